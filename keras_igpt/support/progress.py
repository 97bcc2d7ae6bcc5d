"""How far something long has come, told to the package's log: `logging.getLogger("keras_igpt")`, at level INFO."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

Item = TypeVar("Item")

LOG = logging.getLogger("keras_igpt")
# Seconds between two lines.
_EVERY = 10.0


class Progress:
    """Tells every few seconds how much is done, and how long the rest will take.

    Args:
        what: str. What is done.
        total: int. How many there are to do.
        unit: str. What they are called.
        seconds: function that returns the time in seconds.

    Example:
    ```python
    progress = Progress("features", len(pictures), "pictures")
    progress.update(128)
    ```
    """

    def __init__(self, what: str, total: int, unit: str, seconds: Callable[[], float] = time.monotonic) -> None:
        self._what, self._total, self._unit, self._seconds = what, total, unit, seconds
        self._first: tuple[int, float] | None = None
        self._told = 0.0

    def update(self, done: int) -> None:
        """Notes how many are done by now."""
        now = self._seconds()
        if self._first is None:
            # The first ones compile.
            self._first, self._told = (done, now), now
        elif now - self._told >= _EVERY and done < self._total:
            self._told = now
            first, started = self._first
            left = (self._total - done) * (now - started) / (done - first)
            LOG.info(f"{self._what}: {done:,} of {self._total:,} {self._unit}, about {left / 60:.1f} minutes left")


def told(items: Sequence[Item], what: str, unit: str) -> Iterator[Item]:
    """Yields items, and tells how many are done as `Progress` does."""
    progress = Progress(what, len(items), unit)
    for done, item in enumerate(items, 1):
        yield item
        progress.update(done)
