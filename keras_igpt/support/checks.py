"""Checks that many functions make of their arguments.

Each takes the argument's name, for the message, and its value, and raises `ValueError` if it is wrong.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from numbers import Integral, Real
from typing import Any

import numpy as np
import numpy.typing as npt


def check_integer(name: str, value: Any, low: int = 1, high: int | None = None) -> int:
    """Returns an integer in low…high, Python's or NumPy's but no bool, as int."""
    whole = isinstance(value, Integral) and not isinstance(value, bool)
    if not whole or value < low or (high is not None and value > high):
        allowed = f"of at least {low}" if high is None else f"in {low}…{high}"
        raise ValueError(f"`{name}` must be an integer {allowed}. Received: {name}={value!r}")
    return int(value)


def check_integers(name: str, values: Any, low: int = 1, high: int | None = None) -> tuple[int, ...]:
    """Returns one or more integers in low…high, in the order given."""
    numbers = tuple(check_integer(name, value, low, high) for value in values) if isinstance(values, Iterable) else ()
    if not numbers:
        raise ValueError(f"`{name}` must be one or more integers. Received: {name}={values!r}")
    return numbers


def check_number(
    name: str, value: Any, low: float = -math.inf, high: float = math.inf, above: bool = False, below: bool = False
) -> float:
    """Returns a finite number in low…high, as int if it is an integer, else as float.

    Args:
        name: str. The argument's name.
        value: Python's or NumPy's number, no bool.
        low: float. The least value allowed.
        high: float. The largest value allowed.
        above: bool. Whether it must be larger than `low`.
        below: bool. Whether it must be smaller than `high`.
    """
    try:
        number = float(value) if isinstance(value, Real) and not isinstance(value, bool) else math.nan
    except OverflowError:  # an integer beyond what float can hold
        number = math.inf
    in_range = (low < number if above else low <= number) and (number < high if below else number <= high)
    if not math.isfinite(number) or not in_range:
        if math.isfinite(high):
            allowed = f"number in {'(' if above else '['}{low:g}, {high:g}{')' if below else ']'}"
        elif math.isfinite(low):
            allowed = f"finite number {'above' if above else 'of at least'} {low:g}"
        else:
            allowed = "finite number"
        raise ValueError(f"`{name}` must be a {allowed}. Received: {name}={value!r}")
    return int(value) if isinstance(value, Integral) else number


def check_flag(name: str, value: Any) -> bool:
    """Returns True or False, Python's or NumPy's, as bool."""
    if not isinstance(value, (bool, np.bool_)):
        raise ValueError(f"`{name}` must be True or False. Received: {name}={value!r}")
    return bool(value)


def check_choice(name: str, value: Any, choices: Iterable[str]) -> None:
    """Checks that a value is one of a few words."""
    words = tuple(choices)
    if not isinstance(value, str) or value not in words:
        raise ValueError(f"`{name}` must be one of {', '.join(map(repr, words))}. Received: {name}={value!r}")


def check_depths(name: str, layers: Any, last: int) -> tuple[int, ...]:
    """Returns one or more depths of a network, in 0…last."""
    try:
        depths = tuple(check_integer(name, layer, 0, last) for layer in layers)
    except (TypeError, ValueError):  # no sequence, or no depth in it
        depths = ()
    if not depths:
        raise ValueError(f"`{name}` must be one or more depths in 0…{last}. Received: {name}={layers!r}")
    return depths


def check_positive_numbers(name: str, values: Any) -> tuple[float, ...]:
    """Returns one or more finite numbers above 0 as float, in the order given."""
    try:
        numbers = tuple(float(check_number(name, value, 0, above=True)) for value in values)
    except (TypeError, ValueError):  # no sequence, or no such number in it
        numbers = ()
    if not numbers:
        raise ValueError(f"`{name}` must be one or more finite numbers above 0. Received: {name}={values!r}")
    return numbers


def check_array(name: str, values: Any, parts: str) -> npt.NDArray[Any]:
    """Returns values as one array; lists that hold `parts` of several sizes are none."""
    try:
        return np.asarray(values)
    except ValueError as error:
        raise ValueError(
            f"`{name}` must be one array, of {parts} of one size. Received: {type(values).__name__} ({error})"
        ) from error
