"""Checks that many functions make of their arguments."""

from __future__ import annotations

import math
from collections.abc import Iterable
from numbers import Integral, Real
from typing import Any


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
    whole = isinstance(value, Integral) and not isinstance(value, bool)
    if not whole or value < low or (high is not None and value > high):
        allowed = f"of at least {low}" if high is None else f"in {low}…{high}"
        raise ValueError(f"`{name}` must be an integer {allowed}. Received: {name}={value!r}")
    return int(value)


def check_number(
    name: str,
    value: Any,
    low: float = -math.inf,
    high: float = math.inf,
    above: bool = False,
    below: bool = False,
) -> float:
    """Returns a number, Python's or NumPy's, as Python's, or says what is wrong with it.

    Args:
        name: str. What the caller calls it.
        value: what was given.
        low: float. The least value allowed; none by default.
        high: float. The largest value allowed; none by default.
        above: bool. Whether it must be larger than `low`.
        below: bool. Whether it must be smaller than `high`.

    Returns:
        int if it is an integer, else float; finite.

    Raises:
        ValueError: if it is no number, a bool, not finite, or out of its range.
    """
    try:
        number = float(value) if isinstance(value, Real) and not isinstance(value, bool) else math.nan
    except OverflowError:  # an integer beyond what float can hold
        number = math.inf
    if (
        not math.isfinite(number)
        or not low <= number <= high
        or (above and number == low)
        or (below and number == high)
    ):
        if math.isfinite(high):
            allowed = f"number in {'(' if above else '['}{low:g}, {high:g}{')' if below else ']'}"
        elif math.isfinite(low):
            allowed = f"finite number {'above' if above else 'of at least'} {low:g}"
        else:
            allowed = "finite number"
        raise ValueError(f"`{name}` must be a {allowed}. Received: {name}={value!r}")
    return int(value) if isinstance(value, Integral) else number


def check_choice(name: str, value: Any, choices: Iterable[str]) -> None:
    """Says what is wrong with a value that is none of a few words.

    Args:
        name: str. What the caller calls it.
        value: what was given.
        choices: the words allowed.

    Raises:
        ValueError: if it is none of them.
    """
    words = tuple(choices)
    if not isinstance(value, str) or value not in words:
        raise ValueError(f"`{name}` must be one of {', '.join(map(repr, words))}. Received: {name}={value!r}")


def check_depths(name: str, layers: Any, last: int) -> tuple[int, ...]:
    """Returns depths of a network as a tuple of int, or says what is wrong with them.

    Args:
        name: str. What the caller calls them.
        layers: what was given.
        last: int. The deepest one, L.

    Returns:
        Tuple of int.

    Raises:
        ValueError: if they are none, or one is no integer in 0…L.
    """
    try:
        depths = tuple(check_integer(name, layer, 0, last) for layer in layers)
    except (TypeError, ValueError):  # no sequence, or no depth in it
        depths = ()
    if not depths:
        raise ValueError(f"`{name}` must be one or more depths in 0…{last}. Received: {name}={layers!r}")
    return depths


def check_positive_numbers(name: str, values: Any) -> tuple[float, ...]:
    """Returns numbers above 0 as a tuple of float, or says what is wrong with them.

    Args:
        name: str. What the caller calls them.
        values: what was given.

    Returns:
        Tuple of float, in the order given.

    Raises:
        ValueError: if they are none, or one is no positive finite number.
    """
    try:
        numbers = tuple(float(check_number(name, value, 0, above=True)) for value in values)
    except (TypeError, ValueError):  # no sequence, or no such number in it
        numbers = ()
    if not numbers:
        raise ValueError(f"`{name}` must be one or more finite numbers above 0. Received: {name}={values!r}")
    return numbers
