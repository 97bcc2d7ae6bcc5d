"""How surprising pictures are to a model, picture by picture and pixel by pixel."""

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

    They are about the palette picture. Bits per pixel are not comparable with the bits per dimension of models of 8-bit
    RGB: what the palette throws away costs nothing here.

    Attributes:
        nats_per_token: float64 array `(B,)`. Mean loss of each picture's predicted pixels.
        surprise: float32 array `(B, H, W)`, the loss of each pixel in nats, where asked for; else None. NaN where no
            mask of a BERT model hid the pixel.
    """

    nats_per_token: Float64Array
    surprise: Float32Array | None = None

    @property
    def bits_per_pixel(self) -> Float64Array:
        """The same in bits, `(B,)`; of the palette picture, and not comparable with 8-bit RGB bits per dimension."""
        return self.nats_per_token / math.log(2)

    def __str__(self) -> str:
        # A picture of which no mask hid anything has no score.
        scored = np.isfinite(self.nats_per_token)
        left_out = len(scored) - int(scored.sum())
        return (
            f"{len(scored)} pictures{f', {left_out} of them without a score' if left_out else ''}: "
            f"{np.mean(self.nats_per_token[scored]):.4f} nats per token, "
            f"{np.mean(self.bits_per_pixel[scored]):.4f} bits per pixel of the palette picture "
            "(not comparable with 8-bit RGB bits/dim)"
        )


class Scorer(Program):
    """The loss of each pixel; the logits stay on the device."""

    def call(self, inputs: dict[str, Any]) -> Any:
        return self.language_model.token_losses(inputs["token_ids"], self.language_model(inputs))


def score_images(language_model: LanguageModel, inputs: Any, per_pixel: bool, batch_size: int) -> Scores:
    """Computes how surprising each picture is; `ImageGPTCausalLM.score`."""
    return _mean_scores(language_model, as_examples(language_model, inputs), [None], per_pixel, batch_size)


def score_hidden_pixels(
    language_model: MaskedLanguageModel, inputs: Any, num_masks: int, seed: int, per_pixel: bool, batch_size: int
) -> Scores:
    """Computes how surprising each picture's hidden pixels are; `ImageGPTMaskedLM.score`."""
    num_masks, seed = check_integer("num_masks", num_masks), check_seed(seed)
    examples = as_examples(language_model, inputs)
    shape = (len(examples), language_model.backbone.num_tokens)
    # The masks of a whole set are in memory one at a time.
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
    """The mean over masks of their hidden pixels; of all pixels where a mask is None."""
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
            # A mask that hides nothing of a picture says nothing about it.
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
