"""The order of a set's rows in each epoch."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from keras_igpt.support.randomness import permutation, shuffled

# Up to this many rows, an epoch's order is sorted and kept. Beyond it, each place is computed on demand.
_ROWS_SORTED = 1 << 16


class EpochOrders:
    """A new random order of 0…count-1 in each epoch, by seed.

    Args:
        count: int. Rows.
        seed: int.
        in_memory: bool. Whether to sort and keep orders of any length, at 8 bytes a row. Labelled sets always do.
    """

    def __init__(self, count: int, seed: int, in_memory: bool = False) -> None:
        self._count, self._seed = count, seed
        self._sorted = in_memory or count <= _ROWS_SORTED
        self._orders: dict[int, npt.NDArray[np.int64]] = {}

    def rows(self, epoch: int, places: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Returns the rows at some places, in 0…count-1, of an epoch's order."""
        if not self._sorted:
            return shuffled(places, self._count, "order", self._seed, epoch)
        order = self._orders.get(epoch)
        if order is None:
            order = permutation(self._count, "order", self._seed, epoch)
            # Threads need two orders at an epoch's end. A single assignment is atomic for them.
            self._orders = {near: kept for near, kept in self._orders.items() if abs(near - epoch) == 1} | {
                epoch: order
            }
        return order[places]
