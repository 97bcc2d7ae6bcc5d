"""L_AR: each pixel from those before it."""

from __future__ import annotations

from typing import Any

import keras

from keras_igpt.inference.decoding import PixelGeneration
from keras_igpt.inference.scoring import CausalScoring
from keras_igpt.model.backbone import ImageGPTBackbone
from keras_igpt.objectives.pixel_model import PixelModel
from keras_igpt.palette import ColorPalette


@keras.saving.register_keras_serializable(package="keras_igpt")
class ImageGPTCausalLM(PixelGeneration, CausalScoring, PixelModel):
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
