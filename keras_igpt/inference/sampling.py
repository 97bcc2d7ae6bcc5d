"""Drawing tokens from logits: temperature, top-k, top-p and noise as inputs of the compiled program."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
from keras import ops

from keras_igpt.backend.row_reductions import row_argmax
from keras_igpt.inference.compiled import Arrays, Program, check_finite, computed_rows
from keras_igpt.model.backbone import ImageGPTBackbone
from keras_igpt.palette.color_palette import ColorPalette, TokenIds, UInt8Images, check_token_ids
from keras_igpt.support.checks import check_integer, check_number
from keras_igpt.support.randomness import check_seed, mixed_words, random_bits, signed_word

# In place of a token that is not there yet, and of the tokens of a sequence that met NaN or infinity.
NOT_DRAWN = -1


@dataclass(frozen=True, eq=False)
class Sampling:
    """How tokens are drawn: the model's distribution, made sharper or cut off, and the noise.

    The token at a position is the one with the highest sum of logit and `temperature` times Gumbel noise: a draw from
    `softmax(logits / temperature)`.

    Args:
        temperature: float. 1 draws from the model's distribution, as in the paper; 0 takes the most probable token.
        top_k: int in 1…V. Draw among the k most probable tokens only; all by default.
        top_p: float in (0, 1]. Draw among the most probable tokens that make up p only; all by default.
        seed: int. The noise is a function of `(seed, row, position, colour)`.
        noise: float array `(B, T, V)` in place of the seed's.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    seed: int = 0
    noise: npt.ArrayLike | None = None

    def inputs(self, shape: tuple[int, ...], vocabulary_size: int) -> dict[str, npt.NDArray[Any]]:
        """Checks all of it, and makes the arrays that the compiled program takes.

        Args:
            shape: `(B, T)`, sequences and positions of each.
            vocabulary_size: int. Palette colours `V`.

        Returns:
            Arrays by name: `"noise"` float32 `(B, T, V)`, or what `noise_at` makes it of, int32 `(B, T)`;
            `"temperature"`, `"top_k"` and `"top_p"`, `(B, 1, 1)` each.

        Raises:
            ValueError: if one is out of its range.
        """
        temperature = check_number("temperature", self.temperature, 0)
        top_k = vocabulary_size if self.top_k is None else check_integer("top_k", self.top_k, 1, vocabulary_size)
        top_p = 1.0 if self.top_p is None else check_number("top_p", self.top_p, 0, 1, above=True)
        seed = check_seed(self.seed)
        rows, tokens = shape
        if self.noise is None:
            bits = random_bits("draw", seed, np.arange(rows)[:, None], np.arange(tokens))
            noise = (bits >> np.uint64(32)).astype(np.uint32).view(np.int32)
        else:
            noise = np.asarray(self.noise, np.float32)
            if noise.shape != (*shape, vocabulary_size) or not np.isfinite(noise).all():
                raise ValueError(
                    f"`noise` must be finite and have shape {(*shape, vocabulary_size)}. "
                    f"Received: shape {noise.shape}, {int((~np.isfinite(noise)).sum())} numbers not finite"
                )
        return {
            "noise": noise,
            "temperature": np.full((rows, 1, 1), temperature, np.float32),
            "top_k": np.full((rows, 1, 1), top_k, np.int32),
            "top_p": np.full((rows, 1, 1), top_p, np.float32),
        }


def noise_at(noise: Any, positions: Any, vocabulary_size: int) -> Any:
    """Makes the Gumbel noise of some positions.

    The uniform numbers inside are equal bit for bit on all backends.

    Args:
        noise: tensor `"noise"` of `Sampling.inputs`.
        positions: int tensor `(B, w)`.
        vocabulary_size: int. Colours `V`.

    Returns:
        float32 tensor `(B, w, V)`.
    """
    if len(noise.shape) == 3:
        return ops.take_along_axis(noise, ops.expand_dims(positions, -1), axis=1)
    keys = ops.expand_dims(ops.take_along_axis(noise, positions, axis=1), -1)
    colors = ops.arange(1, vocabulary_size + 1, dtype="int32") * signed_word(0x9E3779B9)
    # 23 bits and a half: float32 holds these numbers, and none is 0 or 1.
    bits = ops.bitwise_and(mixed_words(keys + colors), (1 << 23) - 1)
    uniforms = (ops.cast(bits, "float32") + 0.5) * 2.0**-23
    return -ops.log(-ops.log(uniforms))


def draw_tokens(logits: Any, noise: Any, temperature: Any, top_k: Any, top_p: Any) -> Any:
    """Draws a token from each distribution by the Gumbel maximum.

    Args:
        logits: float32 tensor `(B, T, V)`.
        noise: float32 tensor `(B, T, V)`, Gumbel noise.
        temperature: float32 tensor `(B, 1, 1)`, not negative; noise is multiplied by it.
        top_k: int32 tensor `(B, 1, 1)`, 1…V. Only the k most probable tokens can be drawn; of equal ones the lower ids.
        top_p: float32 tensor `(B, 1, 1)` in (0, 1]. Only the most probable tokens whose predecessors sum to less than p
            can be drawn.

    Returns:
        int32 tensor `(B, T)`.
    """
    restricted = ops.logical_or(ops.any(top_k < logits.shape[-1]), ops.any(top_p < 1.0))
    # Sorting takes XLA on CPU nearly as long as all products of a small network: it is left out where it can be.
    possible = ops.cond(
        restricted,
        lambda: ops.where(_kept(logits, temperature, top_k, top_p), logits, float("-inf")),
        lambda: logits,
    )
    return row_argmax(possible + temperature * noise)


def _kept(logits: Any, temperature: Any, top_k: Any, top_p: Any) -> Any:
    """Which tokens top-k and top-p leave: as many of the most probable ones as both allow; one at least."""
    descending = ops.flip(ops.sort(logits, axis=-1), axis=-1)
    # Differences to the highest divided, so that nothing overflows at any temperature.
    probabilities = ops.softmax((descending - descending[..., :1]) / ops.maximum(temperature, 1e-30), axis=-1)
    before = ops.cumsum(probabilities, axis=-1) - probabilities
    allowed = ops.sum(ops.cast(before < top_p, "int32"), axis=-1, keepdims=True)
    count = ops.maximum(ops.minimum(ops.cast(allowed, "int32"), top_k), 1)
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


def draw_rows(program: Program, inputs: Arrays, batch_size: int, verbose: int = 0) -> tuple[TokenIds, TokenIds]:
    """Runs a program that draws tokens over all sequences, a batch at a time.

    Args:
        program: a `Program` whose output is `(B, T + 1)`: tokens, `NOT_DRAWN` for a sequence that met NaN or infinity,
            and how many passes of the model each sequence took.
        inputs: its inputs by name, `"prompt"` `(B, T)` among them.
        batch_size: int. Sequences drawn together.
        verbose: int. 1 shows how many sequences are done, and their mean number of passes.

    Returns:
        int32 arrays: tokens `(B, T)` and passes `(B,)`.

    Raises:
        ValueError: if `batch_size` is not positive, or the logits of a sequence were not finite.
    """
    rows, tokens = inputs["prompt"].shape
    drawn = np.empty((rows, tokens + 1), np.int32)
    progress = keras.utils.Progbar(rows, verbose=verbose, unit_name="picture")
    for part, outputs in computed_rows(program, inputs, batch_size):
        drawn[part] = outputs
        progress.update(part.stop, values=[("passes", outputs[:, -1].mean())])
    check_finite(np.where(drawn == NOT_DRAWN, np.nan, 0.0), "draw")
    return drawn[:, :-1], drawn[:, -1]


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
