"""Drawing pictures pixel by pixel: one compiled loop over a static key-value cache."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import numpy.typing as npt
from keras import ops

from keras_igpt.backend.compilation import copies_state_of_loops, runs_eagerly
from keras_igpt.backend.untracked import Untracked
from keras_igpt.backend.whole_steps import WholeStepModel
from keras_igpt.data.inputs import pictures_of_size
from keras_igpt.inference.compiled import predict_whole_batches
from keras_igpt.inference.sampling import NOT_DRAWN, check_all_drawn, check_prompt, sample_tokens, sampling_inputs
from keras_igpt.palette.color_palette import ColorPalette, TokenIds, UInt8Images
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


class _Decoder(WholeStepModel):
    """The decoding loop as a model, so that `predict` compiles it on each backend.

    Everything a caller may change from one call to the next is an input: nothing but a new shape compiles anew.
    """

    def __init__(self, language_model: keras.Model) -> None:
        # float32, or Keras would round the uniform numbers to the compute dtype on their way in.
        super().__init__(dtype="float32", name="decoder")
        self.language_model = language_model
        self.built = True
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


class PixelGeneration:
    """Drawing pictures from an autoregressive model: what `ImageGPTCausalLM` has beside its objective.

    The compiled loop is made on first use and shared by calls of equal shape.
    """

    backbone: Any
    palette: ColorPalette | None
    _decoder: Untracked[_Decoder] | None = None

    def generate(
        self,
        num_images: int,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int = 0,
        batch_size: int = 64,
        verbose: int = 0,
    ) -> UInt8Images:
        """Draws pictures from nothing, the first pixel included.

        Args:
            num_images: int. Pictures to draw.
            temperature: float. 1 draws from the model's distribution, as in the paper; 0 takes the most probable token.
            top_k: int. Draw among the k most probable tokens only; all by default.
            top_p: float in (0, 1]. Draw among the most probable tokens that make up p only; all by default.
            seed: int. Picture i's draws depend on `(seed, i)` alone.
            batch_size: int. Pictures drawn together; twice the key-value cache of so many must fit into memory, for it
                grows from time to time.
            verbose: int. 1 shows how many pictures are done.

        Returns:
            uint8 array `(num_images, H, W, C)`.

        Raises:
            ValueError: if an argument is out of its range or the model has no palette.

        Example:
        ```python
        images = lm.generate(num_images=16, temperature=1.0, seed=0)
        ```
        """
        num_images = check_integer("num_images", num_images)
        palette = self._palette()
        prompt = np.zeros((num_images, self.backbone.num_tokens), np.int32)
        return palette.decode(
            self.continue_tokens(
                prompt, np.zeros(prompt.shape, bool), temperature, top_k, top_p, seed, batch_size, verbose=verbose
            )
        )

    def complete(
        self,
        images: Any,
        keep_rows: int | None = None,
        num_samples: int = 1,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int = 0,
        batch_size: int = 64,
        keep_pixels: int | None = None,
        quantize: bool = False,
        verbose: int = 0,
    ) -> UInt8Images:
        """Keeps the beginning of pictures and draws the rest, several times each.

        Pictures of another size are cropped to their centre squares and resized to the model's, with a warning.

        Args:
            images: uint8 array `(B, H, W, C)` or `(H, W, C)`, a Pillow image, or a list of single pictures.
            keep_rows: int in 0…H. Rows kept, from the top.
            num_samples: int. Completions of each picture.
            temperature: float. 1 draws from the model's distribution, as in the paper; 0 takes the most probable token.
            top_k: int. Draw among the k most probable tokens only; all by default.
            top_p: float in (0, 1]. Draw among the most probable tokens that make up p only; all by default.
            seed: int. The draws of sample j of picture i depend on `(seed, i * num_samples + j)` alone.
            batch_size: int. Completions drawn together; twice the key-value cache of so many must fit into memory.
            keep_pixels: int in 0…T, in place of `keep_rows`. Pixels kept, in raster order.
            quantize: bool. Whether the pixels kept are shown as the model saw them, in palette colours, and not as
                they were given.
            verbose: int. 1 shows how many completions are done.

        Returns:
            uint8 array `(B, num_samples, H, W, C)` of the model's size. What is drawn has palette colours.

        Raises:
            ValueError: if an argument is out of its range or the model has no palette.

        Example:
        ```python
        completions = lm.complete(images, keep_rows=16, num_samples=4, seed=0)
        ```
        """
        palette = self._palette()
        side = self.backbone.image_size
        array = pictures_of_size(images, side, palette.num_channels)
        if (keep_rows is None) == (keep_pixels is None):
            raise ValueError(
                "`keep_rows` or `keep_pixels` must be given, and not both. "
                f"Received: keep_rows={keep_rows}, keep_pixels={keep_pixels}"
            )
        if keep_rows is None:
            keep_pixels = check_integer("keep_pixels", keep_pixels, 0, side**2)
        else:
            keep_pixels = check_integer("keep_rows", keep_rows, 0, side) * side
        num_samples = check_integer("num_samples", num_samples)
        kept = np.arange(side**2) < keep_pixels
        prompt = np.repeat(palette.encode(array), num_samples, axis=0)
        token_ids = self.continue_tokens(prompt, kept, temperature, top_k, top_p, seed, batch_size, verbose=verbose)
        completed = palette.decode(token_ids).reshape(len(array), num_samples, *array.shape[1:])
        if quantize:
            return completed
        return np.where(kept.reshape(side, side, 1), array[:, None], completed)

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
        verbose: int = 0,
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
            batch_size: int. Sequences decoded together; twice the key-value cache of so many must fit into memory.
            uniforms: float array `(B, T)` in [0, 1) to draw with instead of the seed's.
            verbose: int. 1 shows how many sequences are done.

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
        prompt, known = check_prompt(self.backbone, {"prompt": prompt}, {"known": known}, drawn=False)
        batch_size = check_integer("batch_size", batch_size)
        draws = sampling_inputs(prompt.shape, self.backbone.vocabulary_size, temperature, top_k, top_p, seed, uniforms)
        inputs = {"prompt": prompt, "known": known, **draws}
        if self._decoder is None:
            self._decoder = Untracked(_Decoder(self))
        rows = len(prompt)
        token_ids = np.empty(prompt.shape, np.int32)
        progress = keras.utils.Progbar(rows, verbose=verbose, unit_name="picture")
        for start in range(0, rows, batch_size):
            # The last rows share a batch with some before them, which come out the same again: one compiled size.
            first = max(0, min(start, rows - batch_size))
            part = {name: array[first : first + batch_size] for name, array in inputs.items()}
            token_ids[first : first + batch_size] = predict_whole_batches(self._decoder.value, part, batch_size)
            progress.update(min(start + batch_size, rows))
        return check_all_drawn(token_ids)

    def _palette(self) -> ColorPalette:
        if self.palette is None:
            raise ValueError(
                "`palette` is needed to turn tokens into pictures: make the model with "
                "`palette=ColorPalette(...)`, or draw tokens with `continue_tokens`. Received: palette=None"
            )
        return self.palette
