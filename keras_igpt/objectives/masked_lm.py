"""L_BERT: hidden pixels from all the others."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from keras_igpt.inference.filling import MaskedGeneration
from keras_igpt.inference.scoring import MaskedScoring
from keras_igpt.model.backbone import ImageGPTBackbone
from keras_igpt.model.masking import RandomPositionMask
from keras_igpt.objectives.pixel_model import PixelModel
from keras_igpt.objectives.token_model import token_ids_of
from keras_igpt.palette import ColorPalette
from keras_igpt.support.checks import check_integer, check_number


@keras.saving.register_keras_serializable(package="keras_igpt")
class ImageGPTMaskedLM(MaskedGeneration, MaskedScoring, PixelModel):
    """Image GPT under the BERT objective: hidden pixels from all the others.

    The masks of training are drawn anew each step from `(mask_seed, step, picture)`; in evaluation, prediction and
    probing a picture's mask is always the same (inputs stay masked there, as in the paper). The step is saved with the
    weights. Masks of one's own come in as `position_mask`.

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
        float32 tensor `(B, T, V)`: logits at every position; the loss counts those of hidden positions.

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

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "mask_rate": self.mask_rate, "mask_seed": self.mask_seed}
