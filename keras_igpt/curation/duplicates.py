"""Near-duplicates: pictures at other sizes, in other formats and qualities, by perceptual hashes of 128 bits.

A hash holds the signs of the 128 lowest frequencies, but the mean, of a picture's cosine transform in grey (pHash). Two
pictures are near-duplicates where at most 4 of the 56 lowest and a given number of all 128 differ. The second condition
is what large sets need: of so many pairs, 64 bits find far too many alike.
"""

from __future__ import annotations

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
    found = np.zeros(len(hashes), np.bool_)
    pairs = _near_pairs(hashes, distance)
    starts = np.flatnonzero(np.diff(pairs[:, 0], prepend=-1))
    for part in np.split(pairs, starts[1:]) if len(pairs) else []:
        # In order: whether the first of them is kept is decided by then.
        if not found[part[0, 0]]:
            found[part[:, 1]] = True
    return found


def _near_pairs(hashes: Hashes, distance: int) -> npt.NDArray[np.int64]:
    """All pairs of near-duplicates `(P, 2)`, the earlier one first, sorted."""
    found: list[npt.NDArray[np.int64]] = [np.empty((0, 2), np.int64)]
    for blocks in combinations(range(_BLOCKS), _BLOCKS - _LOW_DIFFERENCES):
        key = np.zeros(len(hashes), np.uint32)
        for block in blocks:
            key = (key << np.uint32(_BLOCK_BITS)) | _block(hashes, block)
        order = np.argsort(key, kind="stable")
        key = key[order]
        # Places whose successor so many places on has the same key: fewer each time.
        places = np.arange(len(order))
        for step in range(1, len(order)):
            places = places[: np.searchsorted(places, len(order) - step)]
            places = places[key[places] == key[places + step]]
            if not len(places):
                break
            pair = np.stack([order[places], order[places + step]], axis=1)
            found.append(pair[_near(hashes[pair[:, 0]], hashes[pair[:, 1]], _LOW_DIFFERENCES, distance)])
    return np.unique(np.concatenate(found), axis=0)


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
