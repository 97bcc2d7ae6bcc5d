"""The exact nearest palette colour: of given colours by comparing all, of every 8-bit colour as a table."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Positions = npt.NDArray[np.float64]

# Distances are computed for this many (colour, palette entry) pairs at a time: 32 MB of float64.
_PAIRS_PER_CHUNK = 1 << 22

# Side of the cubes of colours that share their candidates.
_CELL = 16


def pack_colors(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.int64]:
    """Packs each pixel `(..., C)` into one integer: `(R << 16) | (G << 8) | B`, or the grey value itself."""
    num_channels = pixels.shape[-1]
    # Writing bytes in place is faster than shifting and adding wider numbers.
    packed = np.zeros((*pixels.shape[:-1], 8), np.uint8)
    for channel in range(num_channels):
        packed[..., num_channels - 1 - channel] = pixels[..., channel]
    return packed.view("<i8")[..., 0]


def unpack_colors(packed: npt.NDArray[np.integer[Any]], num_channels: int) -> npt.NDArray[np.uint8]:
    """Undoes `pack_colors`."""
    shifts = 8 * np.arange(num_channels - 1, -1, -1)
    return ((packed[..., None] >> shifts) & 255).astype(np.uint8)


def nearest_colors(colors: npt.NDArray[np.uint8], positions: Positions) -> npt.NDArray[np.intp]:
    """Finds the nearest of the palette's `positions` `(V, C)` on the 0…255 scale for each colour `(K, C)`.

    All distances are computed, in float64; a tie goes to the lower index.
    """
    squares = _squares_by_channel(positions)
    nearest = np.empty(len(colors), np.intp)
    step = max(1, _PAIRS_PER_CHUNK // len(positions))
    for start in range(0, len(colors), step):
        chunk = colors[start : start + step]
        distances = squares[0][chunk[:, 0]]
        for channel in range(1, positions.shape[-1]):
            distances += squares[channel][chunk[:, channel]]
        nearest[start : start + step] = np.argmin(distances, axis=-1)  # the first of equals
    return nearest


def build_color_table(positions: Positions) -> npt.NDArray[Any]:
    """Finds the nearest palette entry of every 8-bit colour.

    The colour cube is cut into cells of 16³ colours. The difference of a colour's squared distances to two entries is
    linear in the colour, so a corner of the cell tells whether the entry nearest to the cell's centre beats another one
    everywhere in it. The few candidates left are compared by the float64 distances of `nearest_colors`, so that the two
    agree to the bit.

    Args:
        positions: float64 array `(V, C)`, `C` 3 or 1. The palette on the 0…255 scale.

    Returns:
        Array `(256**C,)` of indices by packed colour: int16 (32 MB for three channels) where they fit, else int32.
    """
    count, num_channels = positions.shape
    dtype = np.int16 if count <= 1 << 15 else np.int32
    if num_channels == 1:
        return nearest_colors(np.arange(256, dtype=np.uint8)[:, None], positions).astype(dtype)
    cells = 256 // _CELL
    squares = _squares_by_channel(positions).reshape(3, cells, _CELL, count)
    table = np.empty((cells, _CELL, cells, _CELL, cells, _CELL), dtype)
    for red, green, blue in np.ndindex(cells, cells, cells):
        lowest = np.array([red, green, blue]) * float(_CELL)
        highest = lowest + (_CELL - 1)
        reference = positions[np.argmin(np.square(positions - (lowest + highest) / 2).sum(axis=-1))]
        # |x - entry|² - |x - reference|² = Σ slope x + constant, least in the corner that the slopes point away from.
        slopes = 2 * (reference - positions)
        constants = np.square(positions).sum(axis=-1) - np.square(reference).sum()
        leads = np.minimum(slopes * lowest, slopes * highest).sum(axis=-1) + constants
        # The slack is far above any rounding, and costs a candidate at worst.
        candidates = np.flatnonzero(leads <= 1e-6)
        distances = (
            squares[0, red][:, None, None, candidates] + squares[1, green][None, :, None, candidates]
        ) + squares[2, blue][None, None, :, candidates]
        table[red, :, green, :, blue, :] = candidates[np.argmin(distances, axis=-1)]
    return table.reshape(-1)


def _squares_by_channel(positions: Positions) -> npt.NDArray[np.float64]:
    """Squared distances along each channel, `(C, 256, V)`, which both searches add up in the same order."""
    values = np.arange(256.0)
    return np.square(values[None, :, None] - positions.T[:, None, :])
