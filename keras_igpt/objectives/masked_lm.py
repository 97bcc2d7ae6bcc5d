"""L_BERT: hidden pixels from all the others."""

from __future__ import annotations

from typing import Any

import keras
import numpy.typing as npt
from keras import ops

from keras_igpt.inference.filling import fill_images, fill_tokens
from keras_igpt.inference.sampling import Sampling
from keras_igpt.inference.scoring import Scores, score_hidden_pixels
from keras_igpt.model.backbone import ImageGPTBackbone
from keras_igpt.model.masking import RandomPositionMask
from keras_igpt.objectives.pixel_model import PixelModel
from keras_igpt.objectives.token_model import token_ids_of
from keras_igpt.palette.color_palette import ColorPalette, TokenIds, UInt8Images
from keras_igpt.support.checks import check_integer, check_number


@keras.saving.register_keras_serializable(package="keras_igpt")
class ImageGPTMaskedLM(PixelModel):
    """Image GPT under the BERT objective: hidden pixels from all the others.

    Each training step draws new masks from `(mask_seed, step, picture)`; in evaluation, prediction and probing, where
    inputs stay masked as in the paper, a picture's mask is always the same. The step is saved with the weights. Pass
    `position_mask` to use other masks.

    Args:
        backbone: an `ImageGPTBackbone` with bidirectional attention.
        palette: a `ColorPalette` of `backbone.vocabulary_size` colours, kept in the model's file; None if unknown.
        mask_rate: float in [0, 1]. Probability that a position is hidden.
        mask_seed: int. Another seed gives other masks.
        dtype: dtype policy, the backbone's by default; the pixel head and the loss are float32 under any.
        **kwargs: of `keras.Model`.

    Call arguments:
        inputs: int tensor `(B, T)` of token ids, or a dictionary of `"token_ids"` and `"position_mask"`, a bool tensor
            `(B, T)`, True where the pixel is hidden from the input and predicted.

    Returns:
        float32 tensor `(B, T, V)`: logits at every position; the loss counts those of hidden positions. With
        `training=True` a dictionary of `"logits"` and the `"position_mask"` that was drawn.

    Raises:
        ValueError: if backbone and palette do not fit, or `mask_rate` is out of range.

    Example:
    ```python
    backbone = ImageGPTBackbone.from_preset("igpt_small", attention="bidirectional")
    lm = ImageGPTMaskedLM(backbone, palette=palette, mask_rate=0.15)
    lm.compile(**pretraining_recipe("igpt_small", objective="bert", steps=1_000_000))
    lm.fit(token_ids, batch_size=128)
    ```

    Reference:
        [Chen et al., 2020](https://cdn.openai.com/papers/Generative_Pretraining_from_Pixels_V2.pdf), section 2.2,
        L_BERT
    """

    _attention = "bidirectional"
    _own_options = ("mask_rate", "mask_seed")

    def __init__(
        self,
        backbone: ImageGPTBackbone,
        palette: ColorPalette | None = None,
        mask_rate: float = 0.15,
        mask_seed: int = 0,
        dtype: Any = None,
        **kwargs: Any,
    ) -> None:
        mask_rate = check_number("mask_rate", mask_rate, 0, 1)
        # Its lower 32 bits count, whatever its sign.
        mask_seed = check_integer("mask_seed", mask_seed, -(2**63), 2**64 - 1)
        super().__init__(backbone, palette, dtype, **kwargs)
        self.random_position_mask = RandomPositionMask(
            mask_rate, mask_seed, dtype=self.dtype_policy, name="random_position_mask"
        )
        self.mask_rate = mask_rate
        self.mask_seed = mask_seed
        self.build()

    def build(self, input_shape: Any = None) -> None:
        super().build(input_shape)
        self.random_position_mask.build((None, self.backbone.num_tokens))

    def hidden_positions(self, inputs: Any, training: bool | None = None) -> Any:
        if isinstance(inputs, dict) and "position_mask" in inputs:
            return ops.cast(inputs["position_mask"], "bool")
        return self.random_position_mask(token_ids_of(inputs), training=training)

    def advance_step(self) -> None:
        self.random_position_mask.advance()

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
        """Redraws the hidden pixels of pictures, several times each; an extension of the paper.

        Hidden pixels are drawn in rounds in a random order, each from the model's distribution given all pixels known
        by then. One pixel a round is exact sampling of an order-agnostic model; fewer rounds are faster, but pixels of
        one round do not see each other. The paper draws with L_AR alone: BERT models are trained with a share
        `mask_rate` of hidden pixels, and know least about pictures that are mostly hidden.

        Args:
            images: pictures, of all the kinds that `score` takes.
            hidden: bool array `(H, W)` or `(B, H, W)` of the model's size, True where a pixel is redrawn.
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
        sampling = Sampling(temperature, top_k, top_p, seed)
        return fill_images(self, images, hidden, num_samples, num_rounds, sampling, batch_size, quantize)

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
    ) -> TokenIds:
        """Redraws the hidden tokens of sequences; an extension of the paper. Needs no palette.

        Args:
            token_ids: int array `(B, T)`; entries that are hidden are ignored.
            position_mask: bool array `(B, T)` or `(T,)`, True where a token is redrawn.
            num_rounds: int. Rounds, as in `fill`.
            temperature: as in `fill`.
            top_k: as in `fill`.
            top_p: as in `fill`.
            seed: int. Order and draws of row i depend on `(seed, i)` alone.
            batch_size: int. Sequences drawn together.

        Returns:
            int32 array `(B, T)`.

        Raises:
            ValueError: if an argument is out of its range.

        Example:
        ```python
        filled = lm.fill_tokens(token_ids, position_mask, num_rounds=64)
        ```
        """
        sampling = Sampling(temperature, top_k, top_p, seed)
        return fill_tokens(self, token_ids, position_mask, num_rounds, sampling, batch_size)

    def score(
        self, inputs: Any, num_masks: int = 5, seed: int = 0, per_pixel: bool = False, batch_size: int = 64
    ) -> Scores:
        """Computes how surprising each picture's hidden pixels are, in the mean over several masks.

        It is no likelihood: hidden pixels are predicted each by itself, from all that are not hidden. A picture's masks
        are functions of `(seed, row)` and the mask's number; one that hides nothing of a picture does not count for
        it. The masks of a whole set are in memory one at a time, a byte a pixel.

        Args:
            inputs: pictures of any size as a uint8 array `(B, H, W, C)` or `(H, W, C)`, a Pillow image, a path, or a
                list of single ones, cropped to their centre squares and resized to the model's size with a warning;
                token ids `(B, T)`; examples with or without labels, files of the model's size; or `EvaluationBatches`
                of these.
            num_masks: int. Independent masks of each picture.
            seed: int. Of the masks.
            per_pixel: bool. Whether to keep the loss of each pixel too, in the mean over the masks that hid it; NaN
                where none did, at rate 0.15 and 5 masks nearly half of them.
            batch_size: int. Pictures computed together.

        Returns:
            `Scores`; NaN for a picture of which no mask hid anything.

        Raises:
            ValueError: if inputs do not fit the model, or its weights have diverged.

        Example:
        ```python
        print(lm.score(images, num_masks=5, seed=0))
        ```
        """
        return score_hidden_pixels(self, inputs, num_masks, seed, per_pixel, batch_size)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "mask_rate": self.mask_rate, "mask_seed": self.mask_seed}
