"""A vote over several masks: what is drawn for it, by arithmetic that is the same on every backend."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from keras_igpt.data.repeatable import uniforms


def vote_mask(shape: tuple[int, ...], rate: float, seed: int, mask: int) -> npt.NDArray[np.bool_]:
    """Draws one of the masks of a vote.

    Args:
        shape: `(B, T)`, pictures and positions of each.
        rate: float in [0, 1]. Probability that a position is hidden.
        seed: int.
        mask: int. Which of the masks of a picture.

    Returns:
        bool array `(B, T)`, True where the pixel is hidden. A row is a function of `(seed, mask, row)`.
    """
    hidden = np.empty(shape, bool)
    rows, tokens = shape
    # The random numbers of some rows at a time: they take eight times the memory of what is kept.
    for start in range(0, rows, 1024):
        chunk = np.arange(start, min(start + 1024, rows))
        hidden[chunk] = uniforms("vote mask", seed, mask, chunk[:, None], np.arange(tokens)) < rate
    return hidden


def majority(votes: npt.NDArray[Any], seed: int) -> npt.NDArray[np.int64]:
    """Finds the most frequent class of each row; of several, one at random.

    Args:
        votes: integer array `(B, K)` of classes.
        seed: int.

    Returns:
        int64 array `(B,)`. The choice in a row is a function of `(seed, row)`.
    """
    supporters = (votes[:, :, None] == votes[:, None, :]).sum(axis=-1)  # (B, K), of each vote's class
    # Classes in a tie have equally many votes: to draw one of these votes is to draw one of these classes.
    rows, places = np.indices(votes.shape)
    draws = uniforms("vote tie", seed, rows, places)
    chosen = np.where(supporters == supporters.max(axis=-1, keepdims=True), draws, -1.0).argmax(axis=-1)
    winners: npt.NDArray[np.int64] = votes[np.arange(len(votes)), chosen].astype(np.int64)
    return winners
