"""What loaders and data are, in words that are the same in every process."""

from __future__ import annotations

import hashlib
import inspect
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np


def short_digest(content: bytes) -> str:
    """Returns 16 hexadecimal digits that tell contents apart."""
    return hashlib.sha256(content).hexdigest()[:16]


def describe_function(function: Any, by_name: bool = True) -> str:
    """Says which function a loader is, the same in every process; files it is given are told by their content.

    Args:
        function: a function, or a `functools.partial` of one.
        by_name: bool. Whether names of files are told, too.

    Returns:
        str.
    """
    if isinstance(function, partial):
        arguments = [_describe_argument(value, by_name) for value in function.args]
        keywords = sorted(function.keywords.items())
        arguments += [f"{name}={_describe_argument(value, by_name)}" for name, value in keywords]
        return f"{describe_function(function.func)}({', '.join(arguments)})"
    name = getattr(function, "__qualname__", type(function).__qualname__)
    return f"{getattr(function, '__module__', '')}.{name}"


def _describe_argument(value: Any, by_name: bool) -> str:
    if isinstance(value, (str, Path)) and Path(value).is_file():
        digest = short_digest(Path(value).read_bytes())
        return f"{Path(value).name} {digest}" if by_name else f"file {digest}"
    return repr(value)


def describe_source(function: Any) -> str:
    """Describes a loader wherever its files lie and however its arguments are given; None is as good as none."""
    if isinstance(function, partial):
        given = inspect.signature(function.func).bind_partial(*function.args, **function.keywords).arguments
        plain = {name: value.item() if isinstance(value, np.generic) else value for name, value in given.items()}
        function = partial(function.func, **{name: value for name, value in plain.items() if value is not None})
    return describe_function(function, by_name=False)
