"""Random numbers that are functions of what they are for, not of what was drawn before."""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np
import numpy.typing as npt

from keras_igpt.support.checks import check_integer

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)

# Four would do for a random order; more are cheap.
_FEISTEL_ROUNDS = 8


def random_bits(purpose: str, *keys: npt.ArrayLike) -> npt.NDArray[np.uint64]:
    """Hashes a purpose and integers to 64 random bits: splitmix64's finalizer, once for each key.

    NumPy's generators may change their streams between versions. These bits never change, so that a split, an order or
    a crop is the same wherever it is asked for.

    Args:
        purpose: str. What the numbers are for; other purposes get independent ones.
        *keys: non-negative integers or integer arrays that broadcast: seed, epoch, index, …

    Returns:
        uint64 array of the keys' common shape.

    Example:
    ```python
    bits = random_bits("order", seed, epoch, np.arange(10))
    ```

    Reference:
        [Steele et al., 2014, Fast Splittable Pseudorandom Number Generators](https://doi.org/10.1145/2660193.2660195)
    """
    state = np.asarray(zlib.crc32(purpose.encode()), np.uint64)
    with np.errstate(over="ignore"):  # arithmetic modulo 2^64 is meant
        for key in keys:
            state = _mix(state + _GOLDEN + np.asarray(key).astype(np.uint64))
    return state


def uniforms(purpose: str, *keys: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Uniform numbers in [0, 1) by the same keys as `random_bits`."""
    return (random_bits(purpose, *keys) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def permutation(count: int, purpose: str, *keys: int) -> npt.NDArray[np.int64]:
    """A random order of 0…count-1 by the same keys as `random_bits`."""
    return np.argsort(random_bits(purpose, *keys, np.arange(count)), kind="stable").astype(np.int64)


def shuffled(places: npt.ArrayLike, count: int, purpose: str, *keys: int) -> npt.NDArray[np.int64]:
    """What lies at some places of a random order of 0…count-1, without the order: memory and time are the places'.

    Another order than that of `permutation`. A Feistel network permutes the next power of two; what it moves beyond
    `count` is moved again.

    Args:
        places: integer array of any shape, in 0…count-1.
        count: int. Length of the order.
        purpose: str. As in `random_bits`.
        *keys: non-negative int. As in `random_bits`.

    Returns:
        int64 array of the shape of `places`; all places give each of 0…count-1 once.

    Example:
    ```python
    rows = shuffled(np.arange(128), 100_000_000, "order", seed, epoch)
    ```

    Reference:
        [Black and Rogaway, 2002, Ciphers with Arbitrary Finite Domains](https://eprint.iacr.org/2001/012)
    """
    values = np.array(places, np.uint64)
    bits = max(2, (count - 1).bit_length())
    low_bits = np.uint64(bits // 2)
    low, high = (np.uint64((1 << size) - 1) for size in (bits // 2, bits - bits // 2))
    rounds = random_bits(purpose, *keys, np.arange(_FEISTEL_ROUNDS)) + _GOLDEN
    outside = np.ones(values.shape, bool)
    while outside.any():
        left, right = values[outside] >> low_bits, values[outside] & low
        for number in range(0, _FEISTEL_ROUNDS, 2):
            left ^= _mix(rounds[number] + right) & high
            right ^= _mix(rounds[number + 1] + left) & low
        values[outside] = (left << low_bits) | right
        outside = values >= count
    return values.astype(np.int64)


def check_seed(seed: Any) -> int:
    """Returns a seed as int, or says what is wrong with it."""
    # All 64 bits count, and there are no more.
    return check_integer("seed", seed, 0, 2**64 - 1)


def _mix(bits: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """The finalizer of splitmix64, modulo 2^64."""
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return bits ^ (bits >> np.uint64(31))
