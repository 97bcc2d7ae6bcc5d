"""How surprising pictures are to a model, picture by picture and pixel by pixel."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import numpy.typing as npt

from keras_igpt.backend.processes import batch_divisor, check_one_process
from keras_igpt.backend.untracked import Untracked
from keras_igpt.backend.whole_steps import WholeStepModel
from keras_igpt.data.batches import EvaluationBatches
from keras_igpt.data.inputs import as_examples
from keras_igpt.inference.compiled import check_finite
from keras_igpt.model.masking import vote_mask
from keras_igpt.palette.color_palette import ColorPalette
from keras_igpt.support.checks import check_integer
from keras_igpt.support.randomness import check_seed

Float64Array = npt.NDArray[np.float64]
Float32Array = npt.NDArray[np.float32]

# Losses by pixel that are in memory at once before they are reduced to one number a picture.
_SEGMENT_BYTES = 1 << 27


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


class _Scorer(WholeStepModel):
    """The loss of each pixel as a model, so that `predict` compiles it; the logits stay on the device."""

    def __init__(self, language_model: Any) -> None:
        super().__init__(dtype="float32", name="scorer")
        self.language_model = language_model
        self.built = True

    def call(self, inputs: dict[str, Any]) -> Any:
        return self.language_model.token_losses(inputs["token_ids"], self.language_model(inputs))


class _MaskedBatches(keras.utils.PyDataset):
    """Batches of tokens, each with its rows of a mask."""

    def __init__(self, batches: EvaluationBatches, mask: npt.NDArray[np.bool_] | None) -> None:
        super().__init__(workers=batches.workers, max_queue_size=batches.max_queue_size)
        self._batches, self._mask = batches, mask

    def __len__(self) -> int:
        return len(self._batches)

    def __getitem__(self, index: int) -> tuple[dict[str, npt.NDArray[Any]]]:
        token_ids = self._batches[index][0]
        if self._mask is None:
            return ({"token_ids": token_ids},)
        mask = self._mask[index * len(token_ids) : (index + 1) * len(token_ids)]
        filling = len(token_ids) - len(mask)
        return ({"token_ids": token_ids, "position_mask": np.pad(mask, [(0, filling), (0, 0)], mode="edge")},)


class _PixelScoring:
    """What scoring needs of a model, whatever its objective."""

    backbone: Any
    palette: ColorPalette | None
    token_array: Any
    check_token_arrays: Any
    _scorer: Untracked[_Scorer] | None = None

    def _scores(
        self, inputs: Any, per_pixel: bool, batch_size: int, masks: int = 1, rate: float | None = None, seed: int = 0
    ) -> Scores:
        """The mean over masks of this rate, or of all pixels where there is none."""
        batch_size = check_integer("batch_size", batch_size)
        check_one_process("score")
        examples = as_examples(self, inputs)
        if self._scorer is None:
            self._scorer = Untracked(_Scorer(self))
        # One compiled batch size, in equal shares for all devices.
        divisor = batch_divisor()
        batch_size = -(-min(batch_size, len(examples)) // divisor) * divisor
        rows, side = len(examples), self.backbone.image_size
        tokens = self.backbone.num_tokens
        segment = max(1, _SEGMENT_BYTES // (4 * tokens * batch_size)) * batch_size
        nats, scored = np.zeros(rows), np.zeros(rows, np.int64)
        surprise = np.zeros((rows, tokens), np.float32) if per_pixel else None
        times_hidden = np.zeros((rows, tokens), np.min_scalar_type(masks)) if per_pixel else None
        for index in range(masks):
            mask = None if rate is None else vote_mask((rows, tokens), rate, seed, index)
            for start in range(0, rows, segment):
                part = slice(start, min(start + segment, rows))
                batches = EvaluationBatches(examples.take(range(part.start, part.stop)), self.palette, batch_size)
                hidden = None if mask is None else mask[part]
                losses = self._scorer.value.predict(_MaskedBatches(batches, hidden), verbose=0)
                losses = check_finite(np.asarray(losses)[: part.stop - part.start], "score")
                counted = np.ones(losses.shape, bool) if hidden is None else hidden
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


class CausalScoring(_PixelScoring):
    """Scores under the autoregressive objective: what `ImageGPTCausalLM` has beside it."""

    def score(self, inputs: Any, per_pixel: bool = False, batch_size: int = 64) -> Scores:
        """Computes how surprising each picture is: the negative log-likelihood of its tokens.

        Sets of any size are read, encoded and scored batch after batch.

        Args:
            inputs: uint8 images `(B, H, W, C)`, which the model's palette encodes; token ids `(B, T)`;
                `LabeledImages`, `LabeledTokens` or `ImageFiles`, files at their centre squares; or `EvaluationBatches`,
                whose examples are taken.
            per_pixel: bool. Whether to keep the loss of each pixel too, four bytes each.
            batch_size: int. Pictures computed together.

        Returns:
            `Scores`.

        Raises:
            ValueError: if inputs do not fit the model, or its weights have diverged.

        Example:
        ```python
        scores = lm.score(images, per_pixel=True)
        print(scores)                              # nats per token, bits per pixel
        strangest = scores.nats_per_token.argmax()
        ```
        """
        return self._scores(inputs, per_pixel, batch_size)


class MaskedScoring(_PixelScoring):
    """Scores under the BERT objective: what `ImageGPTMaskedLM` has beside it."""

    mask_rate: float

    def score(
        self, inputs: Any, num_masks: int = 5, seed: int = 0, per_pixel: bool = False, batch_size: int = 64
    ) -> Scores:
        """Computes how surprising each picture's hidden pixels are, in the mean over several masks.

        It is no likelihood: hidden pixels are predicted each by itself, from all that are not hidden. A picture's masks
        are functions of `(seed, row)` and the mask's number; one that hides nothing of a picture does not count for
        it. The masks of a whole set are in memory one at a time, a byte a pixel.

        Args:
            inputs: uint8 images `(B, H, W, C)`, which the model's palette encodes; token ids `(B, T)`;
                `LabeledImages`, `LabeledTokens` or `ImageFiles`, files at their centre squares; or `EvaluationBatches`,
                whose examples are taken.
            num_masks: int. Independent masks of each picture.
            seed: int. Of the masks.
            per_pixel: bool. Whether to keep the loss of each pixel too, in the mean over the masks that hid it; NaN
                where none did, at rate 0.15 and 5 masks nearly half of them.
            batch_size: int. Pictures computed together.

        Returns:
            `Scores`; NaN for a picture of which no mask hid anything.

        Raises:
            ValueError: if inputs do not fit the model, or its weights have diverged.

        Example:
        ```python
        print(lm.score(images, num_masks=5, seed=0))
        ```
        """
        num_masks = check_integer("num_masks", num_masks)
        return self._scores(inputs, per_pixel, batch_size, num_masks, self.mask_rate, check_seed(seed))
