"""Filling hidden pixels with a BERT model in rounds of random order; not in the paper, which samples from L_AR."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from keras import ops

from keras_igpt.data.inputs import as_pictures_and_tokens
from keras_igpt.inference.compiled import Program
from keras_igpt.inference.language_model import MaskedLanguageModel, palette_of
from keras_igpt.inference.sampling import (
    NOT_DRAWN,
    Sampling,
    check_prompt,
    draw_rows,
    draw_tokens,
    noise_at,
    redraw_pictures,
)
from keras_igpt.palette.color_palette import TokenIds, UInt8Images
from keras_igpt.support.checks import check_integer
from keras_igpt.support.randomness import random_bits


class Filler(Program):
    """The loop over filling rounds, whose number is an input."""

    def call(self, inputs: dict[str, Any]) -> Any:
        rounds, prompt = inputs["rounds"], inputs["prompt"]
        settings = [inputs[name] for name in ("temperature", "top_k", "top_p")]
        every_position = ops.expand_dims(ops.arange(prompt.shape[1], dtype="int32"), 0)
        noise = noise_at(inputs["noise"], every_position, self.language_model.backbone.vocabulary_size)

        def fill(number: Any, token_ids: Any, finite: Any) -> tuple[Any, Any, Any]:
            logits = self.language_model({"token_ids": token_ids, "position_mask": rounds >= number})
            finite = ops.logical_and(finite, ops.all(ops.isfinite(logits), axis=(1, 2)))
            token_ids = ops.where(ops.equal(rounds, number), draw_tokens(logits, noise, *settings), token_ids)
            return number + 1, token_ids, finite

        last = ops.max(rounds)
        _, token_ids, finite = ops.while_loop(
            lambda number, token_ids, finite: number <= last,
            fill,
            (ops.ones((), "int32"), prompt, ops.ones_like(prompt[:, 0], dtype="bool")),
        )
        token_ids = ops.where(ops.expand_dims(finite, -1), token_ids, NOT_DRAWN)
        return ops.concatenate([token_ids, ops.max(rounds, axis=1, keepdims=True)], axis=1)


def fill_images(
    language_model: MaskedLanguageModel,
    images: Any,
    hidden: npt.ArrayLike,
    num_samples: int,
    num_rounds: int,
    sampling: Sampling,
    batch_size: int,
    quantize: bool = False,
) -> UInt8Images:
    """Draws the hidden pixels of pictures; `ImageGPTMaskedLM.fill`."""
    palette = palette_of(language_model, without="fill_tokens")
    side = language_model.backbone.image_size
    pictures, token_ids = as_pictures_and_tokens(language_model, images)
    mask = np.asarray(hidden)
    if mask.dtype != bool or mask.shape not in ((side, side), pictures.shape[:3]):
        raise ValueError(
            f"`hidden` must be bool of shape {(side, side)} or {pictures.shape[:3]}. "
            f"Received: {mask.dtype} of shape {mask.shape}"
        )

    def draw(prompt: TokenIds, drawn: npt.NDArray[np.bool_]) -> TokenIds:
        return fill_tokens(language_model, prompt, drawn, num_rounds, sampling, batch_size)

    return redraw_pictures(palette, pictures, token_ids, mask, num_samples, quantize, draw)


def fill_tokens(
    language_model: MaskedLanguageModel,
    token_ids: npt.ArrayLike,
    position_mask: npt.ArrayLike,
    num_rounds: int,
    sampling: Sampling,
    batch_size: int,
) -> TokenIds:
    """Draws the hidden tokens of sequences; `ImageGPTMaskedLM.fill_tokens`."""
    backbone = language_model.backbone
    prompt, mask = check_prompt(backbone, {"token_ids": token_ids}, {"position_mask": position_mask}, drawn=True)
    num_rounds = check_integer("num_rounds", num_rounds)
    draws = sampling.inputs(prompt.shape, backbone.vocabulary_size)
    rounds = filling_rounds(mask, num_rounds, sampling.seed)
    return draw_rows(Filler.of(language_model), {"prompt": prompt, "rounds": rounds, **draws}, batch_size)[0]


def filling_rounds(position_mask: npt.NDArray[np.bool_], num_rounds: int, seed: int) -> npt.NDArray[np.int32]:
    """Assigns the hidden positions of each row to rounds of equal size, in random order.

    Args:
        position_mask: bool array `(B, T)`.
        num_rounds: int. A row with fewer hidden positions takes fewer rounds.
        seed: int. The order in row i is a function of `(seed, i)`.

    Returns:
        int32 array `(B, T)`: the round from 1 on in which a position is drawn, 0 if it is known.
    """
    rows, tokens = position_mask.shape
    bits = random_bits("filling order", seed, np.arange(rows)[:, None], np.arange(tokens))
    # Hidden positions rank first: their keys are halved, the others' top bit is set.
    keys = np.where(position_mask, bits >> np.uint64(1), bits | np.uint64(1 << 63))
    ranks = np.argsort(np.argsort(keys, axis=-1, kind="stable"), axis=-1)
    counts = position_mask.sum(axis=-1, keepdims=True)
    used = np.minimum(num_rounds, counts)
    rounds = ranks * used // np.maximum(counts, 1) + 1
    return np.where(position_mask, rounds, 0).astype(np.int32)
