"""L_AR: each pixel from those before it."""

from __future__ import annotations

from typing import Any

import keras
import numpy.typing as npt

from keras_igpt.inference.decoding import complete_images, continue_tokens, generate_images, pixels_kept
from keras_igpt.inference.sampling import Sampling
from keras_igpt.inference.scoring import Scores, score_images
from keras_igpt.model.backbone import ImageGPTBackbone
from keras_igpt.objectives.pixel_model import PixelModel
from keras_igpt.palette.color_palette import ColorPalette, TokenIds, UInt8Images


@keras.saving.register_keras_serializable(package="keras_igpt")
class ImageGPTCausalLM(PixelModel):
    """Image GPT under the autoregressive objective: each pixel from those before it in raster order.

    All `T` pixels are predicted, the first one from the start vector.

    Args:
        backbone: an `ImageGPTBackbone` with causal attention.
        palette: a `ColorPalette` of `backbone.vocabulary_size` colours, kept in the model's file; None if unknown.
        dtype: dtype policy, the backbone's by default; the pixel head and the loss are float32 under any.
        **kwargs: of `keras.Model`.

    Call arguments:
        inputs: int tensor `(B, T)` of token ids, unshifted.

    Returns:
        float32 tensor `(B, T, V)`: logits of pixel i at position i, which depend on pixels 0…i-1 alone.

    Raises:
        ValueError: if backbone and palette do not fit.

    Example:
    ```python
    lm = ImageGPTCausalLM(ImageGPTBackbone.from_preset("igpt_small"), palette=palette)
    lm.compile(**pretraining_recipe("igpt_small", objective="ar", steps=1_000_000))
    lm.fit(token_ids, batch_size=128)
    images = lm.generate(num_images=16, seed=0)
    ```

    Reference:
        [Chen et al., 2020](https://cdn.openai.com/papers/Generative_Pretraining_from_Pixels_V2.pdf), section 2.2,
        L_AR
    """

    _attention = "causal"

    def __init__(
        self,
        backbone: ImageGPTBackbone,
        palette: ColorPalette | None = None,
        dtype: Any = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(backbone, palette, dtype, **kwargs)
        self.build()

    def generate(
        self,
        num_images: int,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int = 0,
        batch_size: int = 64,
        verbose: int = 0,
        lookahead: int | None = None,
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
            verbose: int. 1 shows how many pictures are done, and how many passes of the model one took.
            lookahead: int. Pixels of a picture in one pass of the model; 1 is one pass a pixel. A pass draws pixels
                from guesses of those before them, and they count as far as the guesses were right: the pictures are
                the same whatever it is, except where two colours are equally probable within rounding. None
                chooses by backend and batch.

        Returns:
            uint8 array `(num_images, H, W, C)`.

        Raises:
            ValueError: if an argument is out of its range or the model has no palette.

        Example:
        ```python
        images = lm.generate(num_images=16, temperature=1.0, seed=0)
        ```
        """
        sampling = Sampling(temperature, top_k, top_p, seed)
        return generate_images(self, num_images, sampling, batch_size, lookahead, verbose)

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
        lookahead: int | None = None,
    ) -> UInt8Images:
        """Keeps the beginning of pictures and draws the rest, several times each.

        Args:
            images: pictures, of all the kinds that `score` takes.
            keep_rows: int in 0…H. Rows kept, from the top.
            num_samples: int. Completions of each picture.
            temperature: as in `generate`.
            top_k: as in `generate`.
            top_p: as in `generate`.
            seed: int. The draws of sample j of picture i depend on `(seed, i * num_samples + j)` alone.
            batch_size: int. Completions drawn together; twice the key-value cache of so many must fit into memory.
            keep_pixels: int in 0…T, in place of `keep_rows`. Pixels kept, in raster order.
            quantize: bool. Whether the pixels kept are shown as the model saw them, in palette colours, and not as
                they were given.
            verbose: int. As in `generate`.
            lookahead: int. As in `generate`.

        Returns:
            uint8 array `(B, num_samples, H, W, C)` of the model's size. What is drawn has palette colours.

        Raises:
            ValueError: if an argument is out of its range or the model has no palette.

        Example:
        ```python
        completions = lm.complete(images, keep_rows=16, num_samples=4, seed=0)
        ```
        """
        sampling = Sampling(temperature, top_k, top_p, seed)
        kept = pixels_kept(keep_rows, keep_pixels, self.backbone.image_size)
        return complete_images(self, images, kept, num_samples, sampling, batch_size, quantize, lookahead, verbose)

    def continue_tokens(
        self,
        prompt: npt.ArrayLike,
        known: npt.ArrayLike,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int = 0,
        batch_size: int = 64,
        lookahead: int | None = None,
    ) -> TokenIds:
        """Keeps the known tokens of each sequence and draws the others in raster order.

        Each token is drawn from the model's distribution given all those before it, kept or drawn; known tokens further
        on have no influence on it. Needs no palette.

        Args:
            prompt: int array `(B, T)`; entries that are not known are ignored.
            known: bool array `(B, T)` or `(T,)`, True where the prompt's token is kept.
            temperature: as in `generate`.
            top_k: as in `generate`.
            top_p: as in `generate`.
            seed: int. Row i's draws depend on `(seed, i)` alone.
            batch_size: int. Sequences decoded together; twice the key-value cache of so many must fit into memory.
            lookahead: as in `generate`.

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
        sampling = Sampling(temperature, top_k, top_p, seed)
        return continue_tokens(self, prompt, known, sampling, batch_size, lookahead).token_ids

    def score(self, inputs: Any, per_pixel: bool = False, batch_size: int = 64) -> Scores:
        """Computes how surprising each picture is: the negative log-likelihood of its tokens.

        Files are decoded batch by batch.

        Args:
            inputs: pictures of any size as a uint8 array `(B, H, W, C)` or `(H, W, C)`, a Pillow image, a path, or a
                list of single ones, cropped to their centre squares and resized to the model's size with a warning;
                token ids `(B, T)`; examples with or without labels, files of the model's size; or `EvaluationBatches`
                of these.
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
        return score_images(self, inputs, per_pixel, batch_size)
