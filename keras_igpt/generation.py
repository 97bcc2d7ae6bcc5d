"""Drawing pictures pixel by pixel: one compiled loop over a static key-value cache."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
from keras import ops

from keras_igpt.inference import predict_whole_batches
from keras_igpt.palette import ColorPalette, TokenIds, UInt8Images, check_images, check_token_ids

# Below it, dividing float32 logits overflows.
_LOWEST_TEMPERATURE = 1e-4


def sample_tokens(logits: Any, uniforms: Any, temperature: Any, top_k: Any, top_p: Any) -> Any:
    """Draws one token a row by inverting the cumulative distribution, most probable token first.

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
    order = ops.argsort(-logits, axis=-1)  # stable: of equal logits the lower id comes first
    probabilities = ops.softmax(ops.take_along_axis(logits, order, axis=-1), axis=-1)
    before = ops.cumsum(probabilities, axis=-1) - probabilities
    ranks = ops.expand_dims(ops.arange(logits.shape[-1], dtype="int32"), 0)
    kept = ops.logical_and(ranks < ops.expand_dims(top_k, -1), before < ops.expand_dims(top_p, -1))
    # Rank 0 is always kept, also where p is so small that rounding says otherwise.
    kept = ops.logical_or(kept, ops.equal(ranks, 0))
    cumulative = ops.cumsum(ops.where(kept, probabilities, 0.0), axis=-1)
    target = ops.expand_dims(uniforms, -1) * cumulative[:, -1:]
    rank = ops.sum(ops.cast(cumulative <= target, "int32"), axis=-1)
    last = ops.sum(ops.cast(kept, "int32"), axis=-1) - 1
    rank = ops.expand_dims(ops.minimum(ops.cast(rank, "int32"), ops.cast(last, "int32")), -1)
    return ops.cast(ops.take_along_axis(order, rank, axis=-1)[:, 0], "int32")


class _Decoder(keras.Model):
    """The decoding loop as a model, so that `predict` compiles it on each backend.

    Everything a caller may change from one call to the next is an input: nothing but a new shape compiles anew.
    """

    def __init__(self, language_model: keras.Model) -> None:
        # float32, or Keras would round the uniform numbers to the compute dtype on their way in.
        super().__init__(dtype="float32", name="decoder")
        self.language_model = language_model
        self.built = True

    def call(self, inputs: dict[str, Any]) -> Any:
        backbone = self.language_model.backbone
        prompt, known, uniforms = inputs["prompt"], inputs["known"], inputs["uniforms"]

        def step(index: Any, token_ids: Any, finite: Any, cache: Any) -> tuple[Any, Any, Any, Any]:
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
        start = ops.cast(start, "int32")
        cache = backbone.fill_cache(prompt)
        _, token_ids, finite, _ = ops.while_loop(
            lambda index, token_ids, finite, cache: index < backbone.num_tokens,
            step,
            (start, prompt, ops.ones_like(known[:, 0]), cache),
        )
        # Rows that met NaN or infinity are marked with an impossible token.
        return ops.where(ops.expand_dims(finite, -1), token_ids, -1)


@dataclass(frozen=True)
class _Decoding:
    """Keeps Keras from taking the decoder for a part of the model that owns it, and saving it."""

    decoder: _Decoder


class PixelGeneration:
    """Drawing pictures from an autoregressive model: what `ImageGPTCausalLM` has beside its objective.

    The compiled loop is made on first use and shared by calls of equal shape.
    """

    backbone: Any
    palette: ColorPalette | None
    _decoding: _Decoding | None = None

    def generate(
        self,
        num_images: int,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int = 0,
        batch_size: int = 64,
    ) -> UInt8Images:
        """Draws pictures from nothing, the first pixel included.

        Args:
            num_images: int. Pictures to draw.
            temperature: float. 1 draws from the model's distribution, as in the paper; 0 takes the most probable token.
            top_k: int. Draw among the k most probable tokens only; all by default.
            top_p: float in (0, 1]. Draw among the most probable tokens that make up p only; all by default.
            seed: int. Picture i's draws depend on `(seed, i)` alone.
            batch_size: int. Pictures drawn together.

        Returns:
            uint8 array `(num_images, H, W, C)`.

        Raises:
            ValueError: if an argument is out of its range or the model has no palette.

        Example:
        ```python
        images = lm.generate(num_images=16, temperature=1.0, seed=0)
        ```
        """
        if num_images < 1:
            raise ValueError(f"`num_images` must be at least 1. Received: num_images={num_images}")
        palette = self._palette()
        prompt = np.zeros((num_images, self.backbone.num_tokens), np.int32)
        return palette.decode(
            self.continue_tokens(prompt, np.zeros(prompt.shape, bool), temperature, top_k, top_p, seed, batch_size)
        )

    def complete(
        self,
        images: npt.ArrayLike,
        keep_rows: int,
        num_samples: int = 1,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int = 0,
        batch_size: int = 64,
    ) -> UInt8Images:
        """Keeps the upper rows of pictures and draws the rest, several times each.

        Args:
            images: uint8 array `(B, H, W, C)` of the model's size.
            keep_rows: int in 0…H. Rows kept.
            num_samples: int. Completions of each picture.
            temperature: float. 1 draws from the model's distribution, as in the paper; 0 takes the most probable token.
            top_k: int. Draw among the k most probable tokens only; all by default.
            top_p: float in (0, 1]. Draw among the most probable tokens that make up p only; all by default.
            seed: int. Row i's draws depend on `(seed, i)` alone.
            batch_size: int. Completions drawn together.

        Returns:
            uint8 array `(B, num_samples, H, W, C)`. The rows kept are those given; the others have palette colours.

        Raises:
            ValueError: if an argument is out of its range or the model has no palette.

        Example:
        ```python
        completions = lm.complete(images, keep_rows=16, num_samples=4, seed=0)
        ```
        """
        palette = self._palette()
        side = self.backbone.image_size
        array = check_images(images)
        if array.shape[1:] != (side, side, palette.num_channels):
            raise ValueError(
                f"`images` must have shape (B, {side}, {side}, {palette.num_channels}). Received: shape {array.shape}"
            )
        if not 0 <= keep_rows <= side:
            raise ValueError(f"`keep_rows` must lie in 0…{side}. Received: keep_rows={keep_rows}")
        if num_samples < 1:
            raise ValueError(f"`num_samples` must be at least 1. Received: num_samples={num_samples}")
        prompt = np.repeat(palette.encode(array), num_samples, axis=0)
        known = np.arange(side**2) < keep_rows * side
        token_ids = self.continue_tokens(prompt, known, temperature, top_k, top_p, seed, batch_size)
        completed = palette.decode(token_ids).reshape(len(array), num_samples, *array.shape[1:])
        completed[:, :, :keep_rows] = array[:, None, :keep_rows]
        return completed

    def continue_tokens(
        self,
        prompt: npt.ArrayLike,
        known: npt.ArrayLike,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int = 0,
        batch_size: int = 64,
        uniforms: npt.ArrayLike | None = None,
    ) -> TokenIds:
        """Keeps the known tokens of each sequence and draws the others in raster order, one at a time.

        Each token is drawn from the model's distribution given all those before it, kept or drawn; known tokens further
        on have no influence on it. Needs no palette.

        Args:
            prompt: int array `(B, T)`; entries that are not known are ignored.
            known: bool array `(B, T)` or `(T,)`, True where the prompt's token is kept.
            temperature: float. 1 draws from the model's distribution, as in the paper; 0 takes the most probable token.
            top_k: int. Draw among the k most probable tokens only; all by default.
            top_p: float in (0, 1]. Draw among the most probable tokens that make up p only; all by default.
            seed: int. Row i's draws depend on `(seed, i)` alone.
            batch_size: int. Sequences decoded together.
            uniforms: float array `(B, T)` in [0, 1) to draw with instead of the seed's.

        Returns:
            int32 array `(B, T)`.

        Raises:
            ValueError: if an argument is out of its range.

        Example:
        ```python
        known = np.arange(1024) < 512
        continued = lm.continue_tokens(token_ids, known, temperature=0)
        ```
        """
        backbone = self.backbone
        tokens, vocabulary_size = backbone.num_tokens, backbone.vocabulary_size
        prompt = check_token_ids(prompt, vocabulary_size, "prompt").astype(np.int32)
        if prompt.ndim != 2 or prompt.shape[1] != tokens or len(prompt) < 1:
            raise ValueError(
                f"`prompt` must have shape (B, {tokens}) with B at least 1. Received: shape {prompt.shape}"
            )
        given = np.asarray(known)
        if given.dtype != bool or given.shape not in (prompt.shape, prompt.shape[1:]):
            raise ValueError(
                f"`known` must be bool of shape {prompt.shape} or {prompt.shape[1:]}. "
                f"Received: {given.dtype} of shape {given.shape}"
            )
        if temperature != 0 and not _LOWEST_TEMPERATURE <= temperature < float("inf"):
            raise ValueError(
                f"`temperature` must be 0 (greedy) or a number of at least {_LOWEST_TEMPERATURE}. "
                f"Received: temperature={temperature}"
            )
        if top_k is not None and not (isinstance(top_k, int) and 1 <= top_k <= vocabulary_size):
            raise ValueError(f"`top_k` must be an integer in 1…{vocabulary_size}. Received: top_k={top_k}")
        if not isinstance(seed, int) or seed < 0:
            raise ValueError(f"`seed` must be an integer of at least 0. Received: seed={seed!r}")
        if top_p is not None and not 0 < top_p <= 1:
            raise ValueError(f"`top_p` must lie in (0, 1]. Received: top_p={top_p}")
        if temperature == 0:
            temperature, top_k = 1.0, 1
        rows = len(prompt)
        if uniforms is None:
            uniforms = np.stack([np.random.default_rng([seed, row]).random(tokens, np.float32) for row in range(rows)])
        draws = np.asarray(uniforms, np.float32)
        if draws.shape != prompt.shape or draws.min() < 0 or draws.max() >= 1:
            raise ValueError(
                f"`uniforms` must have shape {prompt.shape} and lie in [0, 1). "
                f"Received: shape {draws.shape}, values from {draws.min()} to {draws.max()}"
            )

        inputs = {
            "prompt": prompt,
            "known": np.broadcast_to(given, prompt.shape),
            "uniforms": draws,
            "temperature": np.full(rows, temperature, np.float32),
            "top_k": np.full(rows, vocabulary_size if top_k is None else top_k, np.int32),
            "top_p": np.full(rows, 1.0 if top_p is None else top_p, np.float32),
        }
        if self._decoding is None:
            self._decoding = _Decoding(_Decoder(self))
        token_ids = predict_whole_batches(self._decoding.decoder, inputs, batch_size).astype(np.int32)
        if token_ids.min() < 0:
            raise ValueError(
                "The model must give finite logits to draw from; its weights have diverged. "
                f"Received: NaN or infinity in {int((token_ids[:, 0] < 0).sum())} of {rows} sequences"
            )
        return token_ids

    def _palette(self) -> ColorPalette:
        if self.palette is None:
            raise ValueError(
                "`palette` is needed to turn tokens into pictures: make the model with "
                "`palette=ColorPalette(...)`, or draw tokens with `continue_tokens`. Received: palette=None"
            )
        return self.palette
