"""Drawing tokens from logits with temperature, top-k and top-p."""

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
from keras_igpt.support.checks import check_array, check_integer, check_number
from keras_igpt.support.randomness import check_seed, mixed_words, random_bits, signed_word

# Marks tokens not drawn yet, and sequences whose logits were not finite.
NOT_DRAWN = -1


@dataclass(frozen=True, eq=False)
class Sampling:
    """Settings for drawing tokens.

    The token with the highest logit plus `temperature` times Gumbel noise is a draw from `softmax(logits /
    temperature)`.

    Args:
        temperature: float. 1 draws from the model's distribution, as in the paper; 0 takes the most probable token.
        top_k: int in 1…V. Draw only from the k most probable tokens; all by default.
        top_p: float in (0, 1]. Draw only from the most probable tokens that sum to p; all by default.
        seed: int. The noise is a function of `(seed, row, position, colour)`.
        noise: float array `(B, T, V)` to use instead of the seed's.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    seed: int = 0
    noise: npt.ArrayLike | None = None

    def inputs(self, shape: tuple[int, ...], vocabulary_size: int) -> dict[str, npt.NDArray[Any]]:
        """Checks the settings and makes the compiled program's inputs.

        Args:
            shape: `(B, T)`.
            vocabulary_size: int. Palette colours `V`.

        Returns:
            Arrays by name: `"noise"`, float32 `(B, T, V)`, or int32 `(B, T)` keys for `noise_at`; `"temperature"`,
            `"top_k"` and `"top_p"`, `(B, 1, 1)` each.

        Raises:
            ValueError: if a setting is out of range.
        """
        # In float32, and times noise of up to some ninety.
        temperature = check_number("temperature", self.temperature, 0, 1e30)
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
    """Computes the Gumbel noise at some positions, from uniform numbers that are bit-equal on all backends.

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
    # 23 bits plus a half are exact in float32 and never 0 or 1.
    bits = ops.bitwise_and(mixed_words(keys + colors), (1 << 23) - 1)
    uniforms = (ops.cast(bits, "float32") + 0.5) * 2.0**-23
    return -ops.log(-ops.log(uniforms))


def draw_tokens(logits: Any, noise: Any, temperature: Any, top_k: Any, top_p: Any) -> Any:
    """Draws a token from each distribution by the Gumbel maximum.

    Args:
        logits: float32 tensor `(B, T, V)`.
        noise: float32 tensor `(B, T, V)`, Gumbel noise.
        temperature: float32 tensor `(B, 1, 1)`, at least 0.
        top_k: int32 tensor `(B, 1, 1)`, 1…V. In ties the lower ids are kept.
        top_p: float32 tensor `(B, 1, 1)` in (0, 1]. Tokens are kept while the more probable ones sum to less than p.

    Returns:
        int32 tensor `(B, T)`.
    """
    restricted = ops.logical_or(ops.any(top_k < logits.shape[-1]), ops.any(top_p < 1.0))
    # Sorting is skipped if possible: with XLA on CPU it takes nearly as long as a small network's products.
    possible = ops.cond(
        restricted,
        lambda: ops.where(_kept(logits, temperature, top_k, top_p), logits, float("-inf")),
        lambda: logits,
    )
    return row_argmax(possible + temperature * noise)


def _kept(logits: Any, temperature: Any, top_k: Any, top_p: Any) -> Any:
    """Returns which tokens both top-k and top-p keep; at least one."""
    descending = ops.flip(ops.sort(logits, axis=-1), axis=-1)
    # Relative to the maximum, so that no temperature causes an overflow.
    probabilities = ops.softmax((descending - descending[..., :1]) / ops.maximum(temperature, 1e-30), axis=-1)
    before = ops.cumsum(probabilities, axis=-1) - probabilities
    allowed = ops.sum(ops.cast(before < top_p, "int32"), axis=-1, keepdims=True)
    count = ops.maximum(ops.minimum(ops.cast(allowed, "int32"), top_k), 1)
    least = ops.take_along_axis(descending, count - 1, axis=-1)
    more, equal = logits > least, ops.equal(logits, least)
    # Lower ids win ties for the remaining places.
    places = count - ops.cast(ops.sum(ops.cast(more, "int32"), axis=-1, keepdims=True), "int32")
    rank = ops.cast(ops.cumsum(ops.cast(equal, "int32"), axis=-1), "int32")
    return ops.logical_or(more, ops.logical_and(equal, rank <= places))


def check_prompt(
    backbone: ImageGPTBackbone, token_ids: dict[str, npt.ArrayLike], mask: dict[str, npt.ArrayLike], drawn: bool
) -> tuple[TokenIds, npt.NDArray[np.bool_]]:
    """Checks a prompt and its mask.

    Args:
        backbone: the model's `ImageGPTBackbone`.
        token_ids: int array `(B, T)` by the caller's argument name.
        mask: bool array `(B, T)` or `(T,)` by the caller's argument name.
        drawn: bool. Mask value of the tokens to draw, whose given values are ignored.

    Returns:
        int32 array, zero where tokens are drawn, and bool array, `(B, T)` each.

    Raises:
        ValueError: if an array has another shape or type.
    """
    ((name, given),) = token_ids.items()
    prompt, tokens = check_array(name, given, "rows"), backbone.num_tokens
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
    """Runs a program that draws tokens over all sequences in batches.

    Args:
        program: a `Program` whose output is `(B, T + 1)`: tokens, `NOT_DRAWN` for a sequence that met NaN or infinity,
            and how many passes of the model each sequence took.
        inputs: its inputs by name, `"prompt"` `(B, T)` among them.
        batch_size: int. Sequences drawn together.
        verbose: int. 1 shows progress and the mean number of passes.

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
        check_finite(np.where(outputs == NOT_DRAWN, np.nan, 0.0), "draw")
        progress.update(part.stop, values=[("passes", outputs[:, -1].mean())])
    return drawn[:, :-1], drawn[:, -1]


def redraw_pictures(
    palette: ColorPalette,
    images: UInt8Images,
    token_ids: TokenIds,
    hidden: npt.NDArray[np.bool_],
    num_samples: int,
    quantize: bool,
    draw: Callable[[TokenIds, npt.NDArray[np.bool_]], TokenIds],
) -> UInt8Images:
    """Redraws the hidden pixels of pictures, several times each.

    Args:
        palette: the model's `ColorPalette`.
        images: uint8 array `(B, H, W, C)` of the model's size.
        token_ids: int array `(B, T)`, the same in palette colours.
        hidden: bool array `(H, W)` or `(B, H, W)`, True where a pixel is drawn.
        num_samples: int. Samples per picture.
        quantize: bool. Whether to return the kept pixels in palette colours rather than unchanged.
        draw: function of tokens and a mask of those to draw, `(B * num_samples, T)` each.

    Returns:
        uint8 array `(B, num_samples, H, W, C)`.

    Raises:
        ValueError: if `num_samples` is not positive.
    """
    num_samples = check_integer("num_samples", num_samples)
    hidden = np.broadcast_to(hidden, images.shape[:3])
    prompt = np.repeat(token_ids, num_samples, axis=0)
    redrawn = draw(prompt, np.repeat(hidden.reshape(len(images), -1), num_samples, axis=0))
    drawn = palette.decode(redrawn).reshape(len(images), num_samples, *images.shape[1:])
    return drawn if quantize else np.where(hidden[:, None, :, :, None], drawn, images[:, None])
