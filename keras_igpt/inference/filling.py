"""Filling hidden pixels with a BERT model, some at a time in random order: beyond the paper, which draws with L_AR."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import numpy.typing as npt
from keras import ops

from keras_igpt.backend.untracked import Untracked
from keras_igpt.backend.whole_steps import WholeStepModel
from keras_igpt.data.inputs import pictures_of_size
from keras_igpt.inference.compiled import predict_whole_batches
from keras_igpt.inference.sampling import NOT_DRAWN, check_all_drawn, check_prompt, sample_tokens, sampling_inputs
from keras_igpt.palette.color_palette import ColorPalette, TokenIds, UInt8Images
from keras_igpt.support.checks import check_integer
from keras_igpt.support.randomness import random_bits


class _Filler(WholeStepModel):
    """The rounds of filling as a model, so that `predict` compiles them; their number is an input like all else."""

    def __init__(self, language_model: keras.Model) -> None:
        # float32, or Keras would round the uniform numbers to the compute dtype on their way in.
        super().__init__(dtype="float32", name="filler")
        self.language_model = language_model
        self.built = True

    def call(self, inputs: dict[str, Any]) -> Any:
        rounds, prompt = inputs["rounds"], inputs["prompt"]
        shape = ops.shape(prompt)

        def each_token(values: Any) -> Any:
            return ops.reshape(ops.broadcast_to(ops.expand_dims(values, -1), shape), (-1,))

        settings = [each_token(inputs[name]) for name in ("temperature", "top_k", "top_p")]
        uniforms = ops.reshape(inputs["uniforms"], (-1,))

        def fill(number: Any, token_ids: Any, finite: Any) -> tuple[Any, Any, Any]:
            logits = self.language_model({"token_ids": token_ids, "position_mask": rounds >= number})
            finite = ops.logical_and(finite, ops.all(ops.isfinite(logits), axis=(1, 2)))
            drawn = sample_tokens(ops.reshape(logits, (-1, logits.shape[-1])), uniforms, *settings)
            token_ids = ops.where(ops.equal(rounds, number), ops.reshape(drawn, shape), token_ids)
            return number + 1, token_ids, finite

        last = ops.max(rounds)
        _, token_ids, finite = ops.while_loop(
            lambda number, token_ids, finite: number <= last,
            fill,
            (ops.ones((), "int32"), prompt, ops.ones_like(prompt[:, 0], dtype="bool")),
        )
        return ops.where(ops.expand_dims(finite, -1), token_ids, NOT_DRAWN)


class MaskedGeneration:
    """Filling hidden pixels: what `ImageGPTMaskedLM` has beside its objective.

    The pixels to fill are put into a random order and drawn in rounds, those of a round at once, each from the model's
    distribution given all that are known by then. One a round is exact sampling of an order-agnostic model; fewer
    rounds are faster, and pixels of one round do not see each other. The paper never draws with BERT models: theirs
    have learned with a share `mask_rate` of hidden pixels, and know least about pictures of which most is hidden.
    """

    backbone: Any
    palette: ColorPalette | None
    token_array: Any
    _filler: Untracked[_Filler] | None = None

    def fill(
        self,
        images: Any,
        hidden: npt.ArrayLike,
        num_samples: int = 1,
        num_rounds: int = 16,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int = 0,
        batch_size: int = 16,
        quantize: bool = False,
    ) -> UInt8Images:
        """Draws the hidden pixels of pictures anew, several times each; an extension of the paper.

        Pictures of another size are cropped to their centre squares and resized to the model's, with a warning.

        Args:
            images: uint8 array `(B, H, W, C)` or `(H, W, C)`, a Pillow image, or a list of single pictures.
            hidden: bool array `(H, W)` or `(B, H, W)` of the model's size, True where a pixel is drawn anew.
            num_samples: int. Fillings of each picture.
            num_rounds: int. Rounds in which they are drawn, each one pass of the model; as many as there are hidden
                pixels draw them one by one.
            temperature: float. 1 draws from the model's distribution; 0 takes the most probable token.
            top_k: int. Draw among the k most probable tokens only; all by default.
            top_p: float in (0, 1]. Draw among the most probable tokens that make up p only; all by default.
            seed: int. Order and draws of sample j of picture i depend on `(seed, i * num_samples + j)` alone.
            batch_size: int. Fillings drawn together.
            quantize: bool. Whether the pixels kept are shown as the model saw them, in palette colours, and not as
                they were given.

        Returns:
            uint8 array `(B, num_samples, H, W, C)`. What is drawn has palette colours.

        Raises:
            ValueError: if an argument is out of its range or the model has no palette.

        Example:
        ```python
        hole = np.zeros((32, 32), bool)
        hole[8:24, 8:24] = True
        filled = lm.fill(images, hole, num_samples=4, num_rounds=64)
        ```
        """
        if self.palette is None:
            raise ValueError(
                "`palette` is needed to turn tokens into pictures: make the model with "
                "`palette=ColorPalette(...)`, or draw tokens with `fill_tokens`. Received: palette=None"
            )
        side = self.backbone.image_size
        array = pictures_of_size(images, side, self.palette.num_channels)
        mask = np.asarray(hidden)
        if mask.dtype != bool or mask.shape not in ((side, side), array.shape[:3]):
            raise ValueError(
                f"`hidden` must be bool of shape {(side, side)} or {array.shape[:3]}. "
                f"Received: {mask.dtype} of shape {mask.shape}"
            )
        num_samples = check_integer("num_samples", num_samples)
        mask = np.broadcast_to(mask, array.shape[:3])
        prompt = np.repeat(self.palette.encode(array), num_samples, axis=0)
        position_mask = np.repeat(mask.reshape(len(array), -1), num_samples, axis=0)
        token_ids = self.fill_tokens(prompt, position_mask, num_rounds, temperature, top_k, top_p, seed, batch_size)
        filled = self.palette.decode(token_ids).reshape(len(array), num_samples, *array.shape[1:])
        return filled if quantize else np.where(mask[:, None, :, :, None], filled, array[:, None])

    def fill_tokens(
        self,
        token_ids: npt.ArrayLike,
        position_mask: npt.ArrayLike,
        num_rounds: int = 16,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int = 0,
        batch_size: int = 16,
        uniforms: npt.ArrayLike | None = None,
    ) -> TokenIds:
        """Draws the hidden tokens of sequences anew; an extension of the paper. Needs no palette.

        Args:
            token_ids: int array `(B, T)`; entries that are hidden are ignored.
            position_mask: bool array `(B, T)` or `(T,)`, True where a token is drawn anew.
            num_rounds: int. Rounds, as in `fill`.
            temperature: float. 1 draws from the model's distribution; 0 takes the most probable token.
            top_k: int. Draw among the k most probable tokens only; all by default.
            top_p: float in (0, 1]. Draw among the most probable tokens that make up p only; all by default.
            seed: int. Order and draws of row i depend on `(seed, i)` alone.
            batch_size: int. Sequences drawn together.
            uniforms: float array `(B, T)` in [0, 1) to draw with instead of the seed's.

        Returns:
            int32 array `(B, T)`.

        Raises:
            ValueError: if an argument is out of its range.

        Example:
        ```python
        filled = lm.fill_tokens(token_ids, position_mask, num_rounds=64)
        ```
        """
        prompt, mask = check_prompt(
            self.backbone, {"token_ids": token_ids}, {"position_mask": position_mask}, drawn=True
        )
        num_rounds = check_integer("num_rounds", num_rounds)
        draws = sampling_inputs(prompt.shape, self.backbone.vocabulary_size, temperature, top_k, top_p, seed, uniforms)
        rounds = filling_rounds(mask, num_rounds, seed)
        if self._filler is None:
            self._filler = Untracked(_Filler(self))
        inputs = {"prompt": prompt, "rounds": rounds, **draws}
        return check_all_drawn(predict_whole_batches(self._filler.value, inputs, batch_size).astype(np.int32))


def filling_rounds(position_mask: npt.NDArray[np.bool_], num_rounds: int, seed: int) -> npt.NDArray[np.int32]:
    """Shares the hidden positions of each row out among rounds, in random order and equal parts.

    Args:
        position_mask: bool array `(B, T)`.
        num_rounds: int. No row takes more rounds than it has hidden positions.
        seed: int. The order in row i is a function of `(seed, i)`.

    Returns:
        int32 array `(B, T)`: 1, 2, … for the round in which a position is drawn, 0 where it is known.
    """
    rows, tokens = position_mask.shape
    bits = random_bits("filling order", seed, np.arange(rows)[:, None], np.arange(tokens))
    # Ranks among the hidden positions, which come first: their keys are halved, the others' upper bit is set.
    keys = np.where(position_mask, bits >> np.uint64(1), bits | np.uint64(1 << 63))
    ranks = np.argsort(np.argsort(keys, axis=-1, kind="stable"), axis=-1)
    counts = position_mask.sum(axis=-1, keepdims=True)
    used = np.minimum(num_rounds, counts)
    rounds = ranks * used // np.maximum(counts, 1) + 1
    return np.where(position_mask, rounds, 0).astype(np.int32)
