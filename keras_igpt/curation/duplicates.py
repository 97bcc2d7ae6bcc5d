"""Near-duplicates: pictures at other sizes, in other formats and qualities, by perceptual hashes of 128 bits.

A hash holds the signs of the 128 lowest frequencies, but the mean, of a picture's cosine transform in grey (pHash). Two
pictures are near-duplicates where at most 4 of the 56 lowest and a given number of all 128 differ. The second condition
is what large sets need: of so many pairs, 64 bits find far too many alike.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations

import numpy as np
import numpy.typing as npt

from keras_igpt.curation.pictures import HASHED_SIZE, LUMA
from keras_igpt.data.image_files import resize_images
from keras_igpt.palette.color_palette import UInt8Images

Hashes = npt.NDArray[np.uint64]

_FREQUENCIES = 13  # in either direction; the 128 lowest of all lie among them
_BITS = 128

# The lowest frequencies in blocks: where at most 4 of 7 differ, 3 agree. Pictures that have 3 blocks in common are few
# enough to be compared with each other: the 24 bits tell a hundred million pictures apart but for six.
_BLOCKS, _BLOCK_BITS, _LOW_DIFFERENCES = 7, 8, 4
# Held at once, 8 bytes each: a cluster of near-duplicates has as many as the square of its size, several times over.
_MOST_PAIRS = 1 << 25
_LOW_MASK = np.uint64((1 << (_BLOCKS * _BLOCK_BITS)) - 1)

# An evaluation set is so small that a wider net catches little else.
_EVALUATION_LOW_DIFFERENCES, _EVALUATION_DIFFERENCES = 6, 20


def hash_pictures(images: UInt8Images) -> Hashes:
    """Computes perceptual hashes.

    Args:
        images: uint8 array `(B, H, H, 3)`.

    Returns:
        uint64 array `(B, 2)`; the lowest frequencies are the low bits of the first.
    """
    grey = resize_images(images, HASHED_SIZE).astype(np.float32) @ LUMA
    waves, order = _transform()
    coefficients = (waves @ grey @ waves.T).reshape(len(grey), -1)[:, order]
    packed = np.packbits(np.ascontiguousarray(coefficients > 0), axis=1, bitorder="little")
    return np.ascontiguousarray(packed).view("<u8").astype(np.uint64)


def _transform() -> tuple[npt.NDArray[np.float32], npt.NDArray[np.intp]]:
    """The cosine waves of the lowest frequencies, and the places of the 128 lowest pairs of them."""
    rising = np.arange(_FREQUENCIES)
    waves = np.cos(np.pi * rising[:, None] * (np.arange(HASHED_SIZE) + 0.5) / HASHED_SIZE).astype(np.float32)
    radius = np.square(rising[:, None]) + np.square(rising)
    return waves, np.argsort(radius.ravel(), kind="stable")[1 : _BITS + 1]


def duplicates(hashes: Hashes, distance: int) -> npt.NDArray[np.bool_]:
    """Finds the pictures that are near-duplicates of a kept one before them.

    The first picture is kept, and each that is no near-duplicate of one kept before it: of those kept no two are
    near-duplicates, and each other has one among them.

    Args:
        hashes: uint64 array `(B, 2)`.
        distance: int. Bits that may differ.

    Returns:
        bool array `(B,)`.
    """
    found = np.ones(len(hashes), np.bool_)
    if not len(hashes):
        return found
    # Of equal ones the first; the sort is stable.
    order = np.lexsort((hashes[:, 1], hashes[:, 0]))
    new = np.append(True, (hashes[order[1:]] != hashes[order[:-1]]).any(axis=1))
    firsts = np.sort(order[new])
    found[firsts] = _near_one_before(hashes[firsts], distance)
    return found


def _near_one_before(hashes: Hashes, distance: int) -> npt.NDArray[np.bool_]:
    """`duplicates` of hashes that differ."""
    pairs = _near_pairs(hashes, distance)
    if pairs is None:
        return _near_one_before_in_halves(hashes, distance)
    found = np.zeros(len(hashes), np.bool_)
    starts = np.flatnonzero(np.diff(pairs[:, 0], prepend=-1))
    for part in np.split(pairs, starts[1:]) if len(pairs) else []:
        # In order: whether the first of them is kept is decided by then.
        if not found[part[0, 0]]:
            found[part[:, 1]] = True
    return found


def _near_one_before_in_halves(hashes: Hashes, distance: int) -> npt.NDArray[np.bool_]:
    """The same, where many are near-duplicates of each other: what is near a kept one of the first half falls out."""
    found, middle = np.zeros(len(hashes), np.bool_), len(hashes) // 2
    found[:middle] = _near_one_before(hashes[:middle], distance)
    found[middle:] = _near_any(hashes[middle:], hashes[:middle][~found[:middle]], distance)
    rest = middle + np.flatnonzero(~found[middle:])
    found[rest] = _near_one_before(hashes[rest], distance)
    return found


def _near_pairs(hashes: Hashes, distance: int) -> npt.NDArray[np.int64] | None:
    """All pairs of near-duplicates `(P, 2)`, the earlier one first, sorted; None if there are too many to hold."""
    count = len(hashes)
    # As numbers: those of a pair of places.
    found: list[npt.NDArray[np.int64]] = [np.empty(0, np.int64)]
    held = 0
    for key in _keys(hashes):
        order = np.argsort(key, kind="stable")
        key = key[order]
        # Places whose successor so many places on has the same key: fewer each time.
        places = np.arange(count)
        for step in range(1, count):
            places = places[: np.searchsorted(places, count - step)]
            places = places[key[places] == key[places + step]]
            if not len(places):
                break
            first, second = order[places], order[places + step]
            near = _near(hashes[first], hashes[second], _LOW_DIFFERENCES, distance)
            found.append(first[near] * count + second[near])
            held += len(found[-1])
            if held > _MOST_PAIRS:
                return None
    numbers = np.unique(np.concatenate(found))
    return np.stack([numbers // count, numbers % count], axis=1)


def _near_any(hashes: Hashes, others: Hashes, distance: int) -> npt.NDArray[np.bool_]:
    """Says which of `hashes` are near-duplicates of one of `others`."""
    found = np.zeros(len(hashes), np.bool_)
    for key, other_key in zip(_keys(hashes), _keys(others), strict=True):
        order = np.argsort(other_key, kind="stable")
        other_key = other_key[order]
        rows = np.flatnonzero(~found)
        places = np.searchsorted(other_key, key[rows])
        while len(rows):
            # The others of the same key, one after the other.
            same = places < len(order)
            same[same] = other_key[places[same]] == key[rows[same]]
            rows, places = rows[same], places[same]
            near = _near(hashes[rows], others[order[places]], _LOW_DIFFERENCES, distance)
            found[rows[near]] = True
            rows, places = rows[~near], places[~near] + 1
    return found


def _keys(hashes: Hashes) -> Iterator[npt.NDArray[np.uint32]]:
    """Yields numbers `(B,)` of which one at least is the same for near-duplicates."""
    for blocks in combinations(range(_BLOCKS), _BLOCKS - _LOW_DIFFERENCES):
        key = np.zeros(len(hashes), np.uint32)
        for block in blocks:
            key = (key << np.uint32(_BLOCK_BITS)) | _block(hashes, block)
        yield key


class EvaluationPictures:
    """The pictures that must not be in a set to train on.

    Args:
        hashes: uint64 array `(E, 2)`.
    """

    def __init__(self, hashes: Hashes) -> None:
        self._hashes = np.unique(hashes, axis=0)
        # Rows by the value of each block, and where each value begins: so few bits leave one block the same.
        blocks = [_block(self._hashes, block) for block in range(_BLOCKS)]
        self._orders = [np.argsort(values, kind="stable") for values in blocks]
        edges = np.arange((1 << _BLOCK_BITS) + 1)
        self._starts = [
            np.searchsorted(values[order], edges) for values, order in zip(blocks, self._orders, strict=True)
        ]

    def near(self, hashes: Hashes) -> npt.NDArray[np.bool_]:
        """Says which pictures are near-duplicates of one of these, with a wider net than within a set.

        Args:
            hashes: uint64 array `(B, 2)`.

        Returns:
            bool array `(B,)`.
        """
        if not len(self._hashes):
            return np.zeros(len(hashes), np.bool_)
        values = np.stack([_block(hashes, block) for block in range(_BLOCKS)], axis=1)
        return np.array([self._any_near(*one) for one in zip(hashes, values.tolist(), strict=True)], np.bool_)

    def _any_near(self, one: npt.NDArray[np.uint64], values: list[int]) -> bool:
        rows = np.concatenate(
            [
                order[starts[value] : starts[value + 1]]
                for value, order, starts in zip(values, self._orders, self._starts, strict=True)
            ]
        )
        return bool(_near(self._hashes[rows], one, _EVALUATION_LOW_DIFFERENCES, _EVALUATION_DIFFERENCES).any())


def _block(hashes: Hashes, block: int) -> npt.NDArray[np.uint32]:
    """The bits of a block of the lowest frequencies."""
    bits = (hashes[:, 0] >> np.uint64(block * _BLOCK_BITS)) & np.uint64((1 << _BLOCK_BITS) - 1)
    return bits.astype(np.uint32)


def _near(first: Hashes, second: Hashes, low: int, distance: int) -> npt.NDArray[np.bool_]:
    """Whether hashes `(B, 2)` differ in so few bits."""
    differing = first ^ second
    near: npt.NDArray[np.bool_] = np.bitwise_count(differing[..., 0] & _LOW_MASK) <= low
    near[near] = np.bitwise_count(differing[near]).sum(axis=-1, dtype=np.int64) <= distance
    return near
