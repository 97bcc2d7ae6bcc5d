"""Drawing tokens from logits: temperature, top-k and top-p as inputs of the compiled program."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
from keras import ops

from keras_igpt.inference.compiled import Arrays, Program, computed_rows
from keras_igpt.model.backbone import ImageGPTBackbone
from keras_igpt.palette.color_palette import ColorPalette, TokenIds, UInt8Images, check_token_ids
from keras_igpt.support.checks import check_integer, check_number
from keras_igpt.support.randomness import check_seed, random_bits

# In place of the tokens of a sequence that met NaN or infinity.
NOT_DRAWN = -1

# Below it, dividing float32 logits overflows.
_LOWEST_TEMPERATURE = 1e-4


@dataclass(frozen=True, eq=False)
class Sampling:
    """How tokens are drawn: the model's distribution, made sharper or cut off, and the random numbers.

    Args:
        temperature: float. 1 draws from the model's distribution, as in the paper; 0 takes the most probable token.
        top_k: int in 1…V. Draw among the k most probable tokens only; all by default.
        top_p: float in (0, 1]. Draw among the most probable tokens that make up p only; all by default.
        seed: int. The draws of row i depend on `(seed, i)` alone.
        uniforms: float array `(B, T)` in [0, 1) to draw with instead of the seed's.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    seed: int = 0
    uniforms: npt.ArrayLike | None = None

    def inputs(self, shape: tuple[int, ...], vocabulary_size: int) -> dict[str, npt.NDArray[Any]]:
        """Checks all of it, and makes the arrays that the compiled program takes.

        Args:
            shape: `(B, T)`, sequences and positions of each.
            vocabulary_size: int. Palette colours `V`.

        Returns:
            Arrays by name: `"uniforms"` float32 `(B, T)`, a function of `(seed, row, position)`; `"temperature"`,
            `"top_k"` and `"top_p"`, `(B,)` each.

        Raises:
            ValueError: if one is out of its range.
        """
        temperature = check_number("temperature", self.temperature, 0)
        if 0 < temperature < _LOWEST_TEMPERATURE:
            raise ValueError(
                f"`temperature` must be 0 (greedy) or at least {_LOWEST_TEMPERATURE}. "
                f"Received: temperature={temperature}"
            )
        top_k = vocabulary_size if self.top_k is None else check_integer("top_k", self.top_k, 1, vocabulary_size)
        top_p = 1.0 if self.top_p is None else check_number("top_p", self.top_p, 0, 1, above=True)
        seed = check_seed(self.seed)
        if temperature == 0:
            temperature, top_k = 1.0, 1
        rows, tokens = shape
        uniforms = self.uniforms
        if uniforms is None:
            bits = random_bits("draw", seed, np.arange(rows)[:, None], np.arange(tokens))
            # 24 bits: more would round to 1 in float32.
            uniforms = (bits >> np.uint64(40)).astype(np.float32) * np.float32(2.0**-24)
        draws = np.asarray(uniforms, np.float32)
        # Said so that not-a-number fails too.
        if draws.shape != shape or not (draws.min() >= 0 and draws.max() < 1):
            raise ValueError(
                f"`uniforms` must have shape {shape} and lie in [0, 1). "
                f"Received: shape {draws.shape}, values from {draws.min()} to {draws.max()}"
            )
        return {
            "uniforms": draws,
            "temperature": np.full(rows, temperature, np.float32),
            "top_k": np.full(rows, top_k, np.int32),
            "top_p": np.full(rows, top_p, np.float32),
        }


def sample_tokens(logits: Any, uniforms: Any, temperature: Any, top_k: Any, top_p: Any) -> Any:
    """Draws one token a row by inverting the cumulative distribution over token ids.

    Args:
        logits: float32 tensor `(B, V)`.
        uniforms: float32 tensor `(B,)` in [0, 1), one number a draw; equal numbers give equal tokens on every backend.
        temperature: float32 tensor `(B,)`, positive; logits are divided by it.
        top_k: int32 tensor `(B,)`, 1…V. Only the k most probable tokens can be drawn; of equal ones the lower ids.
        top_p: float32 tensor `(B,)` in (0, 1]. Only the most probable tokens whose predecessors sum to less than p can
            be drawn.

    Returns:
        int32 tensor `(B,)`.
    """
    logits = logits / ops.expand_dims(temperature, -1)
    probabilities = ops.softmax(logits, axis=-1)
    vocabulary_size = logits.shape[-1]
    restricted = ops.logical_or(ops.any(top_k < vocabulary_size), ops.any(top_p < 1.0))
    # Sorting takes XLA on CPU nearly as long as all products of a small network: it is left out where it can be.
    weights = ops.cond(
        restricted,
        lambda: ops.where(_kept(logits, top_k, top_p), probabilities, 0.0),
        lambda: probabilities,
    )
    cumulative = ops.cumsum(weights, axis=-1)
    target = ops.expand_dims(uniforms, -1) * cumulative[:, -1:]
    # Sums are rounded in another order on each backend, and need not stay equal where a weight is zero.
    ids, possible = ops.arange(0, vocabulary_size, dtype="int32"), weights > 0
    first = ops.min(ops.where(ops.logical_and(possible, cumulative > target), ids, vocabulary_size), axis=-1)
    last = ops.max(ops.where(possible, ids, 0), axis=-1)
    return ops.minimum(first, last)


def _kept(logits: Any, top_k: Any, top_p: Any) -> Any:
    """Which tokens `(B, V)` top-k and top-p leave: as many of the most probable ones as both allow; one at least."""
    descending = ops.flip(ops.sort(logits, axis=-1), axis=-1)
    probabilities = ops.softmax(descending, axis=-1)
    before = ops.cumsum(probabilities, axis=-1) - probabilities
    allowed = ops.sum(ops.cast(before < ops.expand_dims(top_p, -1), "int32"), axis=-1)
    count = ops.expand_dims(ops.maximum(ops.minimum(ops.cast(allowed, "int32"), top_k), 1), -1)
    least = ops.take_along_axis(descending, count - 1, axis=-1)
    more, equal = logits > least, ops.equal(logits, least)
    # Of equal ones, the lower ids fill the places that are left.
    places = count - ops.cast(ops.sum(ops.cast(more, "int32"), axis=-1, keepdims=True), "int32")
    rank = ops.cast(ops.cumsum(ops.cast(equal, "int32"), axis=-1), "int32")
    return ops.logical_or(more, ops.logical_and(equal, rank <= places))


def check_prompt(
    backbone: ImageGPTBackbone, token_ids: dict[str, npt.ArrayLike], mask: dict[str, npt.ArrayLike], drawn: bool
) -> tuple[TokenIds, npt.NDArray[np.bool_]]:
    """Checks the tokens that are given and which of them are meant.

    Args:
        backbone: the model's `ImageGPTBackbone`.
        token_ids: int array `(B, T)` by the name of the caller's argument.
        mask: bool array `(B, T)` or `(T,)` by the name of the caller's argument.
        drawn: bool. Whether tokens are drawn where the mask is True, or where it is False. What is given there may be
            anything.

    Returns:
        int32 array, zero where tokens are drawn, and bool array, `(B, T)` each.

    Raises:
        ValueError: if one is of another shape or kind.
    """
    ((name, given),) = token_ids.items()
    prompt, tokens = np.asarray(given), backbone.num_tokens
    if prompt.ndim != 2 or prompt.shape[1] != tokens or len(prompt) < 1:
        raise ValueError(f"`{name}` must have shape (B, {tokens}) with B at least 1. Received: shape {prompt.shape}")
    ((mask_name, given),) = mask.items()
    chosen = np.asarray(given)
    if chosen.dtype != bool or chosen.shape not in (prompt.shape, prompt.shape[1:]):
        raise ValueError(
            f"`{mask_name}` must be bool of shape {prompt.shape} or {prompt.shape[1:]}. "
            f"Received: {chosen.dtype} of shape {chosen.shape}"
        )
    kept = np.where(chosen == drawn, prompt.dtype.type(0), prompt)
    return check_token_ids(kept, backbone.vocabulary_size, name).astype(np.int32), np.broadcast_to(chosen, prompt.shape)


def draw_rows(program: Program, inputs: Arrays, batch_size: int, verbose: int = 0) -> TokenIds:
    """Runs a program that draws tokens over all sequences, a batch at a time.

    Args:
        program: a `Program` whose output is tokens, `NOT_DRAWN` for a sequence that met NaN or infinity.
        inputs: its inputs by name, `"prompt"` `(B, T)` among them.
        batch_size: int. Sequences drawn together.
        verbose: int. 1 shows how many sequences are done.

    Returns:
        int32 array `(B, T)`.

    Raises:
        ValueError: if `batch_size` is not positive, or the logits of a sequence were not finite.
    """
    token_ids = np.empty(inputs["prompt"].shape, np.int32)
    progress = keras.utils.Progbar(len(token_ids), verbose=verbose, unit_name="picture")
    for part, drawn in computed_rows(program, inputs, batch_size):
        token_ids[part] = drawn
        progress.update(part.stop)
    failed = int((token_ids < 0).any(axis=-1).sum())
    if failed:
        raise ValueError(
            "The model must give finite logits to draw from; its weights have diverged. "
            f"Received: NaN or infinity in {failed} of {len(token_ids)} sequences"
        )
    return token_ids


def redraw_pictures(
    palette: ColorPalette,
    images: UInt8Images,
    hidden: npt.NDArray[np.bool_],
    num_samples: int,
    quantize: bool,
    draw: Callable[[TokenIds, npt.NDArray[np.bool_]], TokenIds],
) -> UInt8Images:
    """Draws some pixels of pictures, several times each, and keeps the others.

    Args:
        palette: the model's `ColorPalette`.
        images: uint8 array `(B, H, W, C)` of the model's size.
        hidden: bool array `(H, W)` or `(B, H, W)`, True where a pixel is drawn.
        num_samples: int. Drawings of each picture.
        quantize: bool. Whether the pixels kept are shown in palette colours, and not as they were given.
        draw: function of tokens and which of them to draw, `(B * num_samples, T)` each.

    Returns:
        uint8 array `(B, num_samples, H, W, C)`.

    Raises:
        ValueError: if `num_samples` is not positive.
    """
    num_samples = check_integer("num_samples", num_samples)
    hidden = np.broadcast_to(hidden, images.shape[:3])
    prompt = np.repeat(palette.encode(images), num_samples, axis=0)
    token_ids = draw(prompt, np.repeat(hidden.reshape(len(images), -1), num_samples, axis=0))
    drawn = palette.decode(token_ids).reshape(len(images), num_samples, *images.shape[1:])
    return drawn if quantize else np.where(hidden[:, None, :, :, None], drawn, images[:, None])
