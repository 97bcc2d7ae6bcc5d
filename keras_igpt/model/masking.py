"""BERT's masks: of a training step, of evaluation and of a vote, by arithmetic that is the same on every backend."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import numpy.typing as npt
from keras import ops

from keras_igpt.support.randomness import uniforms


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


@keras.saving.register_keras_serializable(package="keras_igpt")
class RandomPositionMask(keras.layers.Layer):
    """Chooses the positions that BERT hides: each one independently with probability `rate`.

    The choice is a hash of the seed, the picture and, in training, the step, computed in 32-bit integers: it is the
    same on every backend, whatever the batch and its order, and repeats after a restart, since the step is a weight
    and is saved with the others. Evaluation hides the same positions of the same picture each time.

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
        # A picture's key: the sum of one hash a (position, token), so that any changed pixel gives other masks.
        words = mixed_words(token_ids + signed_word(0x9E3779B9) * (positions + 1))
        picture = ops.cast(ops.sum(words, axis=-1, keepdims=True), "int32")  # (B, 1)
        draw = mixed_words(ops.convert_to_tensor(signed_word(self.seed), "int32"))
        if training:
            # The evaluation draw is no training step's: steps count from one here.
            draw = mixed_words(draw + self.step + 1)
        key = mixed_words(ops.bitwise_xor(picture, draw))
        bits = mixed_words(key + signed_word(0x85EBCA77) * (positions + 1))  # (B, T)
        # 24 bits are a uniform number in steps of 2^-24.
        uniform = ops.bitwise_and(bits, 0xFFFFFF)
        return uniform < round(self.rate * (1 << 24))

    def advance(self) -> None:
        """Counts one training step, so that the next one hides other positions."""
        self.step.assign(self.step + 1)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "rate": self.rate, "seed": self.seed}


def mixed_words(words: Any) -> Any:
    """MurmurHash3's 32-bit finaliser on int32 tensors, whose products wrap on every backend.

    Args:
        words: int32 tensor of any shape.

    Returns:
        int32 tensor of the same shape, random bits.
    """
    words = ops.bitwise_xor(words, _logical_right_shift(words, 16))
    words = words * signed_word(0x85EBCA6B)
    words = ops.bitwise_xor(words, _logical_right_shift(words, 13))
    words = words * signed_word(0xC2B2AE35)
    return ops.bitwise_xor(words, _logical_right_shift(words, 16))


def signed_word(word: int) -> int:
    """The signed 32-bit integer with the bits of `word`."""
    word &= 0xFFFFFFFF
    return word - (1 << 32) if word >= 1 << 31 else word


def _logical_right_shift(words: Any, count: int) -> Any:
    # The shift of a signed integer copies its sign into the top bits; clear them.
    return ops.bitwise_and(ops.right_shift(words, count), (1 << (32 - count)) - 1)
