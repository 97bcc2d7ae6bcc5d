"""Checks that many functions make of their arguments."""

from __future__ import annotations

from typing import Any

import numpy as np


def check_integer(name: str, value: Any, low: int = 1, high: int | None = None) -> int:
    """Returns an integer, Python's or NumPy's, as int, or says what is wrong with it.

    Args:
        name: str. What the caller calls it.
        value: what was given.
        low: int. The least value allowed.
        high: int. The largest value allowed; none by default.

    Returns:
        int.

    Raises:
        ValueError: if it is no integer, a bool, or out of its range.
    """
    whole = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
    if not whole or value < low or (high is not None and value > high):
        allowed = f"of at least {low}" if high is None else f"in {low}…{high}"
        raise ValueError(f"`{name}` must be an integer {allowed}. Received: {name}={value!r}")
    return int(value)
