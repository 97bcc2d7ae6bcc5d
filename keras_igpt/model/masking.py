"""BERT masks for training, evaluation and voting; the same on every backend."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import numpy.typing as npt
from keras import ops

from keras_igpt.support.randomness import mixed_words, signed_word, uniforms


def vote_mask(shape: tuple[int, ...], rate: float, seed: int, mask: int) -> npt.NDArray[np.bool_]:
    """Draws one of the masks of a vote.

    Args:
        shape: `(B, T)`.
        rate: float in [0, 1]. Probability that a position is hidden.
        seed: int.
        mask: int. Index of the mask.

    Returns:
        bool array `(B, T)`, True where the pixel is hidden. A row is a function of `(seed, mask, row)`.
    """
    hidden = np.empty(shape, bool)
    rows, tokens = shape
    # In chunks: the random numbers take eight times the memory of the mask.
    for start in range(0, rows, 1024):
        chunk = np.arange(start, min(start + 1024, rows))
        hidden[chunk] = uniforms("vote mask", seed, mask, chunk[:, None], np.arange(tokens)) < rate
    return hidden


def majority(votes: npt.NDArray[Any], seed: int) -> npt.NDArray[np.int64]:
    """Returns the most frequent class `(B,)` of votes `(B, K)`; ties are broken at random by `(seed, row)`."""
    supporters = (votes[:, :, None] == votes[:, None, :]).sum(axis=-1)  # (B, K), of each vote's class
    # Tied classes have equally many votes, so a random vote among them is fair.
    rows, places = np.indices(votes.shape)
    draws = uniforms("vote tie", seed, rows, places)
    chosen = np.where(supporters == supporters.max(axis=-1, keepdims=True), draws, -1.0).argmax(axis=-1)
    winners: npt.NDArray[np.int64] = votes[np.arange(len(votes)), chosen].astype(np.int64)
    return winners


@keras.saving.register_keras_serializable(package="keras_igpt")
class RandomPositionMask(keras.layers.Layer):
    """Chooses the positions that BERT hides: each one independently with probability `rate`.

    The choice is a hash of the seed, the picture and, in training, the step: the same on every backend, in any batch
    and order, and after a restart, as the step is a weight and saved with the others. Evaluation always hides the same
    positions of a picture.

    Args:
        rate: float in [0, 1]. Probability of each position.
        seed: int. Another seed gives other masks.
        **kwargs: of `keras.layers.Layer`.

    Call arguments:
        token_ids: int tensor `(B, T)`.
        training: bool. Whether the step takes part.

    Returns:
        bool tensor `(B, T)`, True where the position is hidden.

    Reference:
        [Chen et al., 2020](https://cdn.openai.com/papers/Generative_Pretraining_from_Pixels_V2.pdf), section 2.2
        (each index independently with probability 0.15)
    """

    def __init__(self, rate: float = 0.15, seed: int = 0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.rate = rate
        self.seed = seed

    def build(self, input_shape: tuple[Any, ...]) -> None:
        self.step = self.add_weight(
            name="step",
            shape=(),
            dtype="int32",
            initializer="zeros",
            trainable=False,
            aggregation="only_first_replica",
        )

    def call(self, token_ids: Any, training: bool | None = None) -> Any:
        token_ids = ops.cast(token_ids, "int32")
        positions = ops.arange(token_ids.shape[-1], dtype="int32")
        # The picture's key is a sum of hashes of (position, token), so masks change with any pixel.
        words = mixed_words(token_ids + signed_word(0x9E3779B9) * (positions + 1))
        picture = ops.cast(ops.sum(words, axis=-1, keepdims=True), "int32")  # (B, 1)
        draw = mixed_words(ops.convert_to_tensor(signed_word(self.seed), "int32"))
        if training:
            # From 1, so that no step shares the evaluation mask.
            draw = mixed_words(draw + self.step + 1)
        key = mixed_words(ops.bitwise_xor(picture, draw))
        bits = mixed_words(key + signed_word(0x85EBCA77) * (positions + 1))  # (B, T)
        # A uniform number in multiples of 2^-24.
        uniform = ops.bitwise_and(bits, 0xFFFFFF)
        return uniform < round(self.rate * (1 << 24))

    def advance(self) -> None:
        """Counts a training step, so that the next one has other masks."""
        self.step.assign(self.step + 1)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "rate": self.rate, "seed": self.seed}
