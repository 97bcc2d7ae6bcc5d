"""The language model interface for drawing, filling and scoring."""

from __future__ import annotations

from typing import Any, Protocol

import keras

from keras_igpt.model.backbone import ImageGPTBackbone
from keras_igpt.palette.color_palette import ColorPalette


class LanguageModel(Protocol):
    """A model of palette pixels, such as `ImageGPTCausalLM` and `ImageGPTMaskedLM`.

    Attributes:
        backbone: its `ImageGPTBackbone`.
        palette: the `ColorPalette` of the tokens, or None.
        pixel_head: layer from features `(…, D)` to float32 logits `(…, V)`.
    """

    backbone: ImageGPTBackbone
    palette: ColorPalette | None
    pixel_head: keras.layers.Layer

    def __call__(self, inputs: Any) -> Any:
        """Computes logits `(B, T, V)`."""

    def token_losses(self, token_ids: Any, logits: Any) -> Any:
        """Computes the loss `(B, T)` of each token in nats."""


class MaskedLanguageModel(LanguageModel, Protocol):
    """A language model that accepts a `position_mask`.

    Attributes:
        mask_rate: float in [0, 1]. Probability that a position is hidden.
    """

    mask_rate: float


def palette_of(language_model: LanguageModel, without: str) -> ColorPalette:
    """Returns a model's palette; raises ValueError if it is None, suggesting the method `without` palette."""
    if language_model.palette is None:
        raise ValueError(
            "`palette` is needed to turn tokens into pictures: create the model with "
            f"`palette=ColorPalette(...)`, or draw tokens with `{without}`. Received: palette=None"
        )
    return language_model.palette
