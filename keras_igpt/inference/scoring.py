"""Scoring pictures: the loss of each picture and pixel."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from keras_igpt.data.inputs import as_examples
from keras_igpt.data.token_source import PictureExamples
from keras_igpt.inference.compiled import Program, check_finite, computed_rows
from keras_igpt.inference.language_model import LanguageModel, MaskedLanguageModel
from keras_igpt.model.masking import vote_mask
from keras_igpt.support.checks import check_integer
from keras_igpt.support.randomness import check_seed

Float64Array = npt.NDArray[np.float64]
Float32Array = npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Scores:
    """Losses of pictures under a model.

    They refer to the quantised picture, so bits per pixel are not comparable with bits per dimension of 8-bit RGB.

    Attributes:
        nats_per_token: float64 array `(B,)`. Mean loss of each picture's predicted pixels.
        surprise: float32 array `(B, H, W)`, the loss of each pixel in nats, if requested, else None. NaN where no mask
            of a BERT model hid the pixel.
    """

    nats_per_token: Float64Array
    surprise: Float32Array | None = None

    @property
    def bits_per_pixel(self) -> Float64Array:
        """The same in bits `(B,)`, of the quantised picture; not comparable with 8-bit RGB bits per dimension."""
        return self.nats_per_token / math.log(2)

    def __str__(self) -> str:
        # A picture of which no mask hid a pixel has no score.
        scored = np.isfinite(self.nats_per_token)
        left_out = len(scored) - int(scored.sum())
        if left_out == len(scored):
            return f"{left_out} pictures, none of them with a score"
        return (
            f"{len(scored)} pictures{f', {left_out} of them without a score' if left_out else ''}: "
            f"{np.mean(self.nats_per_token[scored]):.4f} nats per token, "
            f"{np.mean(self.bits_per_pixel[scored]):.4f} bits per pixel of the palette picture "
            "(not comparable with 8-bit RGB bits/dim)"
        )


class Scorer(Program):
    """Computes the loss of each pixel; the logits stay on the device."""

    def call(self, inputs: dict[str, Any]) -> Any:
        return self.language_model.token_losses(inputs["token_ids"], self.language_model(inputs))


def score_images(language_model: LanguageModel, inputs: Any, per_pixel: bool, batch_size: int) -> Scores:
    """Computes the loss of each picture; `ImageGPTCausalLM.score`."""
    return _mean_scores(language_model, as_examples(language_model, inputs), [None], per_pixel, batch_size)


def score_hidden_pixels(
    language_model: MaskedLanguageModel, inputs: Any, num_masks: int, seed: int, per_pixel: bool, batch_size: int
) -> Scores:
    """Computes the loss of each picture's hidden pixels; `ImageGPTMaskedLM.score`."""
    num_masks, seed = check_integer("num_masks", num_masks), check_seed(seed)
    examples = as_examples(language_model, inputs)
    shape = (len(examples), language_model.backbone.num_tokens)
    # A generator, so that one mask is in memory at a time.
    masks = (vote_mask(shape, language_model.mask_rate, seed, index) for index in range(num_masks))
    return _mean_scores(language_model, examples, masks, per_pixel, batch_size, num_masks)


def _mean_scores(
    language_model: LanguageModel,
    examples: PictureExamples,
    masks: Iterable[npt.NDArray[np.bool_] | None],
    per_pixel: bool,
    batch_size: int,
    num_masks: int = 1,
) -> Scores:
    """Averages the loss over masks and their hidden pixels; over all pixels if a mask is None."""
    rows, tokens, side = len(examples), language_model.backbone.num_tokens, language_model.backbone.image_size
    nats, scored = np.zeros(rows), np.zeros(rows, np.int64)
    surprise = np.zeros((rows, tokens), np.float32) if per_pixel else None
    times_hidden = np.zeros((rows, tokens), np.min_scalar_type(num_masks)) if per_pixel else None
    for mask in masks:
        segments = computed_rows(
            Scorer.of(language_model),
            {} if mask is None else {"position_mask": mask},
            batch_size,
            row_bytes=4 * tokens,
            examples=examples,
            palette=language_model.palette,
            purpose="score",
        )
        for part, losses in segments:
            check_finite(losses, "score")
            counted = np.ones(losses.shape, bool) if mask is None else mask[part]
            predicted = counted.sum(axis=-1)
            # A mask that hides no pixel of a picture does not count.
            scored[part] += predicted > 0
            nats[part] += (losses * counted).sum(axis=-1, dtype=np.float64) / np.maximum(predicted, 1)
            if surprise is not None and times_hidden is not None:
                surprise[part] += losses * counted
                times_hidden[part] += counted.astype(times_hidden.dtype)
    with np.errstate(invalid="ignore"):
        nats = nats / scored
        if surprise is None or times_hidden is None:
            return Scores(nats)
        surprise /= times_hidden
        return Scores(nats, surprise.reshape(rows, side, side))
