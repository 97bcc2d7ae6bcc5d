"""Drawing pictures pixel by pixel: one compiled loop over a static key-value cache."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from keras import ops

from keras_igpt.backend.compilation import copies_state_of_loops, runs_eagerly
from keras_igpt.data.inputs import as_pictures
from keras_igpt.inference.compiled import Program
from keras_igpt.inference.language_model import LanguageModel, palette_of
from keras_igpt.inference.sampling import (
    NOT_DRAWN,
    Sampling,
    check_prompt,
    draw_rows,
    redraw_pictures,
    sample_tokens,
)
from keras_igpt.palette.color_palette import TokenIds, UInt8Images
from keras_igpt.support.checks import check_integer

# A step's attention reads all keys that there is room for. The room grows this many times, or less where that would be
# in parts of less than so many positions: each is another loop to compile.
_MOST_STAGES = 4
_SHORTEST_STAGE = 256


def _cache_lengths(num_tokens: int) -> tuple[int, ...]:
    """Lengths of the key-value cache, one after the other; the last is all there is."""
    # Where nothing is compiled, a step attends to as many positions as there are.
    stages = 1 if runs_eagerly() else max(1, min(_MOST_STAGES, num_tokens // _SHORTEST_STAGE))
    return tuple(-(-num_tokens * (stage + 1) // stages) for stage in range(stages))


def _grown_cache(cache: list[Any], filled: list[Any], length: int) -> list[Any]:
    """The cache with room for `length` positions, those that are new as they were filled."""
    if not cache:
        return [(keys[:, :, :length], values[:, :, :length]) for keys, values in filled]
    grown = []
    for parts, wholes in zip(cache, filled, strict=True):
        pair = zip(parts, wholes, strict=True)
        grown.append(
            tuple(ops.concatenate([part, whole[:, :, part.shape[2] : length]], axis=2) for part, whole in pair)
        )
    return grown


def _as_number_where_eager(index: Any) -> Any:
    """The index as PyTorch's slices take it, fetched from the device once a step and not by every layer."""
    return int(index) if runs_eagerly() else index


class Decoder(Program):
    """The decoding loop: tokens `(B, T)` of a prompt, of which some are known, and of what `Sampling` gives."""

    def __init__(self, language_model: LanguageModel) -> None:
        super().__init__(language_model)
        if copies_state_of_loops():
            # Or the cache would be copied for each token.
            self.jit_compile = True

    def call(self, inputs: dict[str, Any]) -> Any:
        backbone = self.language_model.backbone
        prompt, known, uniforms = inputs["prompt"], inputs["known"], inputs["uniforms"]

        def step(index: Any, token_ids: Any, finite: Any, cache: Any) -> tuple[Any, Any, Any, Any]:
            index = _as_number_where_eager(index)
            position = ops.reshape(index, (1,))
            hidden, cache = backbone.decode_step(token_ids, index, cache)
            logits = self.language_model.pixel_head(hidden)[:, 0]
            finite = ops.logical_and(finite, ops.all(ops.isfinite(logits), axis=-1))
            drawn = sample_tokens(
                logits,
                ops.take(uniforms, position, axis=1)[:, 0],
                inputs["temperature"],
                inputs["top_k"],
                inputs["top_p"],
            )
            given = ops.take(prompt, position, axis=1)[:, 0]
            token = ops.where(ops.take(known, position, axis=1)[:, 0], given, drawn)
            token_ids = ops.slice_update(token_ids, (0, index), ops.expand_dims(token, -1))
            return index + 1, token_ids, finite, cache

        # Everything before the first position that any row has to draw comes from one pass over the prompt.
        drawn_by_any = ops.any(ops.logical_not(known), axis=0)
        start = ops.where(ops.any(drawn_by_any), ops.argmax(ops.cast(drawn_by_any, "int32")), backbone.num_tokens)
        index = ops.cast(start, "int32")
        filled = ops.cond(
            index > 0, lambda: backbone.fill_cache(prompt), lambda: backbone.empty_cache(ops.shape(prompt)[0])
        )
        token_ids, finite = prompt, ops.ones_like(known[:, 0])
        cache: list[Any] = []
        for length in _cache_lengths(backbone.num_tokens):
            cache = _grown_cache(cache, filled, length)
            index, token_ids, finite, cache = ops.while_loop(
                lambda index, token_ids, finite, cache, end=length: index < end,
                step,
                (index, token_ids, finite, cache),
            )
        return ops.where(ops.expand_dims(finite, -1), token_ids, NOT_DRAWN)


def generate_images(
    language_model: LanguageModel, num_images: int, sampling: Sampling, batch_size: int, verbose: int = 0
) -> UInt8Images:
    """Draws pictures from nothing; `ImageGPTCausalLM.generate`."""
    num_images = check_integer("num_images", num_images)
    palette = palette_of(language_model, without="continue_tokens")
    prompt = np.zeros((num_images, language_model.backbone.num_tokens), np.int32)
    known = np.zeros(prompt.shape, bool)
    return palette.decode(continue_tokens(language_model, prompt, known, sampling, batch_size, verbose))


def pixels_kept(keep_rows: int | None, keep_pixels: int | None, side: int) -> int:
    """Returns how many pixels of a picture are kept, of which rows or pixels were given, or says what is wrong."""
    if (keep_rows is None) == (keep_pixels is None):
        raise ValueError(
            "`keep_rows` or `keep_pixels` must be given, and not both. "
            f"Received: keep_rows={keep_rows}, keep_pixels={keep_pixels}"
        )
    if keep_rows is None:
        return check_integer("keep_pixels", keep_pixels, 0, side**2)
    return check_integer("keep_rows", keep_rows, 0, side) * side


def complete_images(
    language_model: LanguageModel,
    images: Any,
    keep_pixels: int,
    num_samples: int,
    sampling: Sampling,
    batch_size: int,
    quantize: bool = False,
    verbose: int = 0,
) -> UInt8Images:
    """Keeps the beginning of pictures and draws the rest; `ImageGPTCausalLM.complete`."""
    palette = palette_of(language_model, without="continue_tokens")
    side = language_model.backbone.image_size
    array = as_pictures(language_model, images)
    hidden = (np.arange(side**2) >= keep_pixels).reshape(side, side)

    def draw(prompt: TokenIds, drawn: npt.NDArray[np.bool_]) -> TokenIds:
        return continue_tokens(language_model, prompt, ~drawn, sampling, batch_size, verbose)

    return redraw_pictures(palette, array, hidden, num_samples, quantize, draw)


def continue_tokens(
    language_model: LanguageModel,
    prompt: npt.ArrayLike,
    known: npt.ArrayLike,
    sampling: Sampling,
    batch_size: int,
    verbose: int = 0,
) -> TokenIds:
    """Keeps the known tokens of each sequence and draws the others; `ImageGPTCausalLM.continue_tokens`."""
    backbone = language_model.backbone
    prompt, known = check_prompt(backbone, {"prompt": prompt}, {"known": known}, drawn=False)
    draws = sampling.inputs(prompt.shape, backbone.vocabulary_size)
    return draw_rows(Decoder.of(language_model), {"prompt": prompt, "known": known, **draws}, batch_size, verbose)
