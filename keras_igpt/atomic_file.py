"""Files that are whole or not there: written under a temporary name, then renamed."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def whole_file(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Gives a temporary path beside `path` to write to, which takes its place when all went well.

    Args:
        path: file that shall be there whole, or as it was. Its folder is made.

    Yields:
        The temporary path; it keeps the ending of `path`.

    Example:
    ```python
    with whole_file("run/report.json") as partial:
        partial.write_text("{}")
    ```
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    # Always the same: what a kill in mid-write leaves behind is overwritten by the next attempt.
    partial = target.with_name(f".partial-{target.name}")
    try:
        yield partial
        os.replace(partial, target)
    finally:
        partial.unlink(missing_ok=True)


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Writes a value as JSON, whole or not at all.

    Args:
        path: file to write.
        value: what `json` can hold; not-a-number is refused, for other readers of JSON do not know it.

    Raises:
        ValueError: if a number in it is not finite.

    Example:
    ```python
    write_json("run/report.json", {"accuracy": 0.5})
    ```
    """
    text = json.dumps(value, indent=2, allow_nan=False) + "\n"
    with whole_file(path) as partial:
        partial.write_text(text, encoding="utf-8")
