"""Drawing pictures in raster order: one compiled loop over a static key-value cache."""

from __future__ import annotations

from typing import Any, NamedTuple

import keras
import numpy as np
import numpy.typing as npt
from keras import ops

from keras_igpt.backend.compilation import copies_state_of_loops, runs_eagerly
from keras_igpt.data.inputs import as_pictures_and_tokens
from keras_igpt.inference.compiled import Program
from keras_igpt.inference.language_model import LanguageModel, palette_of
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

# Attention reads the whole cache, so the cache grows in at most this many stages of at least this many positions. Each
# stage compiles another loop.
_MOST_STAGES = 4
_SHORTEST_STAGE = 256

# With this many positions per pass, a trained model takes half as many passes; doubling it saves only a tenth more. It
# pays off while a pass takes less than twice as long: up to this many rows over all pictures, measured on a CPU.
_LOOKAHEAD = 8
_ROWS_WHERE_COMPILED = 8
_ROWS_WHERE_EAGER = 32


def _cache_lengths(num_tokens: int) -> tuple[int, ...]:
    """Returns the increasing lengths of the key-value cache; the last is `num_tokens`."""
    # Eager steps slice the cache instead.
    stages = 1 if runs_eagerly() else max(1, min(_MOST_STAGES, num_tokens // _SHORTEST_STAGE))
    return tuple(-(-num_tokens * (stage + 1) // stages) for stage in range(stages))


def _grown_cache(cache: list[Any], filled: list[Any], length: int) -> list[Any]:
    """Grows the cache to `length` positions; the new ones are taken from `filled`."""
    if not cache:
        return [(keys[:, :, :length], values[:, :, :length]) for keys, values in filled]
    grown = []
    for parts, wholes in zip(cache, filled, strict=True):
        pair = zip(parts, wholes, strict=True)
        grown.append(
            tuple(ops.concatenate([part, whole[:, :, part.shape[2] : length]], axis=2) for part, whole in pair)
        )
    return grown


class Decoder(Program):
    """The decoding loop over windows of positions.

    Given the noise, each token is a function of the previous ones. A pass over a window, with guesses as inputs, draws
    correct tokens up to and including the one after the first wrong guess; the rest become the next pass's guesses. The
    tokens equal those of one pass per position, except where two colours tie within rounding.

    The inputs are a prompt `(B, T)`, with `NOT_DRAWN` for tokens to draw, and those of `Sampling`; the output is that
    of `draw_rows`.

    Args:
        language_model: the model.
        window: int in 1…T. Positions per row and pass.

    Reference:
        [Wiggers and Hoogeboom, 2020](https://arxiv.org/abs/2002.09928)
    """

    def __init__(self, language_model: LanguageModel, window: int) -> None:
        super().__init__(language_model)
        self.window = window
        if copies_state_of_loops():
            # Otherwise the cache would be copied for each token.
            self.jit_compile = True

    def call(self, inputs: dict[str, Any]) -> Any:
        prompt, tokens = inputs["prompt"], self.language_model.backbone.num_tokens
        first, filled = self._prefilled(prompt)
        zeros = ops.zeros_like(prompt[:, 0])
        # Without guesses, only drawn tokens are looked up, so no marker is needed.
        token_ids = prompt if self.window > 1 else ops.maximum(prompt, 0)
        state: Any = (zeros + first, token_ids, ops.equal(zeros, 0), zeros)
        cache: list[Any] = []
        blocks = self.language_model.backbone.decoding_blocks()
        # A window must fit into the cache.
        for length in [length for length in _cache_lengths(tokens) if length >= self.window]:
            cache = _grown_cache(cache, filled, length)
            *state, cache = ops.while_loop(
                lambda index, *_, length=length: self._has_work(index, length),
                lambda *state: self._pass(inputs, blocks, *state),
                (*state, cache),
            )
        _, token_ids, finite, passes = state
        token_ids = ops.where(ops.expand_dims(finite, -1), token_ids, NOT_DRAWN)
        return ops.concatenate([token_ids, ops.expand_dims(passes, -1)], axis=1)

    def _prefilled(self, prompt: Any) -> tuple[Any, Any]:
        """Returns the first position that any row has to draw, and a cache of the earlier ones from one pass."""
        backbone = self.language_model.backbone
        missing = ops.any(prompt < 0, axis=0)
        first = ops.where(ops.any(missing), ops.argmax(ops.cast(missing, "int32")), backbone.num_tokens)
        first = ops.cast(first, "int32")
        cache = ops.cond(
            first > 0,
            lambda: backbone.fill_cache(ops.maximum(prompt, 0)),
            lambda: backbone.empty_cache(ops.shape(prompt)[0]),
        )
        return first, cache

    def _has_work(self, index: Any, length: int) -> Any:
        """Whether rows are unfinished, and the most advanced one fits into a cache of this length."""
        tokens = self.language_model.backbone.num_tokens
        left = ops.any(index < tokens)
        if length == tokens:
            return left
        return ops.logical_and(left, ops.max(ops.minimum(index, tokens - self.window)) <= length - self.window)

    def _pass(
        self,
        inputs: dict[str, Any],
        blocks: list[Any],
        index: Any,
        token_ids: Any,
        finite: Any,
        passes: Any,
        cache: Any,
    ) -> tuple[Any, ...]:
        """Runs one pass: draws each row's next positions and updates the guesses of the later ones."""
        backbone, window = self.language_model.backbone, self.window
        start = ops.minimum(index, backbone.num_tokens - window)
        offsets = ops.arange(window, dtype="int32")
        positions = ops.expand_dims(start, -1) + offsets  # (B, w)
        if window == 1:
            guesses = None
            hidden, cache = backbone.decode_step(token_ids, _common_index(start), cache, blocks)
        else:
            guesses = self._guesses(token_ids, positions)
            token_ids = _placed(token_ids, guesses, start)
            hidden, updated = backbone.decode_step(
                token_ids, positions, _seen_where_eager(cache, start + window), blocks
            )
            cache = cache if runs_eagerly() else updated
        logits = self.language_model.pixel_head(hidden)
        finite = ops.logical_and(finite, ops.all(ops.isfinite(logits), axis=(1, 2)))
        passes = passes + ops.cast(index < backbone.num_tokens, "int32")
        noise = noise_at(inputs["noise"], positions, logits.shape[-1])
        drawn = draw_tokens(logits, noise, inputs["temperature"], inputs["top_k"], inputs["top_p"])
        given = ops.take_along_axis(inputs["prompt"], positions, axis=1)
        drawn = ops.where(given < 0, drawn, given)
        if guesses is None:
            return index + 1, _placed(token_ids, drawn, start), finite, passes, cache
        # At the end of a picture, a window starts with finished positions.
        drawn = ops.where(positions < ops.expand_dims(index, -1), guesses, drawn)
        first_wrong = ops.min(ops.where(ops.equal(drawn, guesses), window, offsets), axis=-1)
        index = start + ops.minimum(first_wrong + 1, window)
        return index, _placed(token_ids, drawn, start), finite, passes, cache

    def _guesses(self, token_ids: Any, positions: Any) -> Any:
        """Returns the tokens at some positions `(B, w)`, or the pixel above where not drawn yet."""
        above = ops.maximum(positions - self.language_model.backbone.image_size, 0)
        there = ops.take_along_axis(token_ids, positions, axis=1)
        guesses = ops.where(there < 0, ops.take_along_axis(token_ids, above, axis=1), there)
        return ops.maximum(guesses, 0)


def _common_index(index: Any) -> Any:
    """Returns the position shared by all rows; eagerly, as an int, so that it is fetched once per step."""
    return int(index[0]) if runs_eagerly() else index[0]


def _seen_where_eager(cache: Any, stop: Any) -> Any:
    """Slices the cache to the last position needed if running eagerly; compiled shapes are static."""
    if not runs_eagerly():
        return cache
    length = int(ops.max(stop))
    return [(keys[:, :, :length], values[:, :, :length]) for keys, values in cache]


def _placed(token_ids: Any, window: Any, start: Any) -> Any:
    """Writes a window `(B, w)` into tokens `(B, T)` at each row's start."""
    size = window.shape[1]
    offsets = ops.arange(token_ids.shape[1], dtype="int32") - ops.expand_dims(start, -1)
    if size == 1:
        return ops.where(ops.equal(offsets, 0), window, token_ids)
    spread = ops.take_along_axis(window, ops.clip(offsets, 0, size - 1), axis=1)
    return ops.where(ops.logical_and(offsets >= 0, offsets < size), spread, token_ids)


class Drawing(NamedTuple):
    """Drawn sequences.

    Attributes:
        token_ids: int32 array `(B, T)`.
        passes: int32 array `(B,)`. Passes of the model per sequence, not counting the one over the prompt.
    """

    token_ids: TokenIds
    passes: npt.NDArray[np.int32]


def _window(lookahead: int | None, batch_size: int, num_tokens: int) -> int:
    """Returns the number of positions per row and pass."""
    if lookahead is None:
        # With several devices, per-row positions would need look-ups across devices.
        one_device = keras.distribution.distribution() is None
        rows = _ROWS_WHERE_EAGER if runs_eagerly() else _ROWS_WHERE_COMPILED
        lookahead = _LOOKAHEAD if one_device and batch_size * _LOOKAHEAD <= rows else 1
    return min(check_integer("lookahead", lookahead), num_tokens)


def generate_images(
    language_model: LanguageModel,
    num_images: int,
    sampling: Sampling,
    batch_size: int,
    lookahead: int | None = None,
    verbose: int = 0,
) -> UInt8Images:
    """Draws pictures unconditionally; `ImageGPTCausalLM.generate`."""
    num_images = check_integer("num_images", num_images)
    palette = palette_of(language_model, without="continue_tokens")
    prompt = np.zeros((num_images, language_model.backbone.num_tokens), np.int32)
    known = np.zeros(prompt.shape, bool)
    return palette.decode(
        continue_tokens(language_model, prompt, known, sampling, batch_size, lookahead, verbose).token_ids
    )


def pixels_kept(keep_rows: int | None, keep_pixels: int | None, side: int) -> int:
    """Returns how many pixels are kept; raises ValueError unless exactly one of rows and pixels is given."""
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
    lookahead: int | None = None,
    verbose: int = 0,
) -> UInt8Images:
    """Keeps the beginning of pictures and draws the rest; `ImageGPTCausalLM.complete`."""
    palette = palette_of(language_model, without="continue_tokens")
    side = language_model.backbone.image_size
    pictures, token_ids = as_pictures_and_tokens(language_model, images)
    hidden = (np.arange(side**2) >= keep_pixels).reshape(side, side)

    def draw(prompt: TokenIds, drawn: npt.NDArray[np.bool_]) -> TokenIds:
        return continue_tokens(language_model, prompt, ~drawn, sampling, batch_size, lookahead, verbose).token_ids

    return redraw_pictures(palette, pictures, token_ids, hidden, num_samples, quantize, draw)


def continue_tokens(
    language_model: LanguageModel,
    prompt: npt.ArrayLike,
    known: npt.ArrayLike,
    sampling: Sampling,
    batch_size: int,
    lookahead: int | None = None,
    verbose: int = 0,
) -> Drawing:
    """Keeps the known tokens of each sequence and draws the others; `ImageGPTCausalLM.continue_tokens`."""
    backbone = language_model.backbone
    prompt, known = check_prompt(backbone, {"prompt": prompt}, {"known": known}, drawn=False)
    draws = sampling.inputs(prompt.shape, backbone.vocabulary_size)
    batch_size = check_integer("batch_size", batch_size)
    decoder = Decoder.of(language_model, _window(lookahead, min(batch_size, len(prompt)), backbone.num_tokens))
    inputs = {"prompt": np.where(known, prompt, np.int32(NOT_DRAWN)), **draws}
    return Drawing(*draw_rows(decoder, inputs, batch_size, verbose))
