"""Random numbers as functions of a purpose and integers, not of what was drawn before."""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np
import numpy.typing as npt
from keras import ops

from keras_igpt.support.checks import check_integer

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def random_bits(purpose: str, *keys: npt.ArrayLike) -> npt.NDArray[np.uint64]:
    """Hashes a purpose and integers to 64 random bits: splitmix64's finalizer, once for each key.

    NumPy's generators may change between versions. These bits never do, so that splits, orders and crops stay the same.

    Args:
        purpose: str. What the numbers are for; different purposes get independent numbers.
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
    """Returns uniform numbers in [0, 1), with the keys of `random_bits`."""
    return (random_bits(purpose, *keys) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def permutation(count: int, purpose: str, *keys: int) -> npt.NDArray[np.int64]:
    """Returns a random order of 0…count-1, with the keys of `random_bits`."""
    return np.argsort(random_bits(purpose, *keys, np.arange(count)), kind="stable").astype(np.int64)


def check_seed(seed: Any) -> int:
    """Returns a seed of 64 bits as int."""
    return check_integer("seed", seed, 0, 2**64 - 1)


def _mix(bits: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return bits ^ (bits >> np.uint64(31))


def mixed_words(words: Any) -> Any:
    """MurmurHash3's 32-bit finalizer: the hash for compiled graphs, as not every backend has 64-bit integers.

    Args:
        words: int32 tensor. Products wrap around, on every backend.

    Returns:
        int32 tensor of the same shape.
    """
    words = ops.bitwise_xor(words, _logical_right_shift(words, 16))
    words = words * signed_word(0x85EBCA6B)
    words = ops.bitwise_xor(words, _logical_right_shift(words, 13))
    words = words * signed_word(0xC2B2AE35)
    return ops.bitwise_xor(words, _logical_right_shift(words, 16))


def signed_word(word: int) -> int:
    """Returns the signed 32-bit integer with the lower 32 bits of `word`."""
    word &= 0xFFFFFFFF
    return word - (1 << 32) if word >= 1 << 31 else word


def _logical_right_shift(words: Any, count: int) -> Any:
    # Shifting a signed integer copies its sign into the top bits.
    return ops.bitwise_and(ops.right_shift(words, count), (1 << (32 - count)) - 1)
