"""What drawing, filling and scoring need of a language model."""

from __future__ import annotations

from typing import Any, Protocol

import keras

from keras_igpt.model.backbone import ImageGPTBackbone
from keras_igpt.palette.color_palette import ColorPalette


class LanguageModel(Protocol):
    """A model of palette pixels; `ImageGPTCausalLM` and `ImageGPTMaskedLM` are such.

    Attributes:
        backbone: its `ImageGPTBackbone`.
        palette: the `ColorPalette` whose colours the tokens are; None if it is not known.
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
    """A language model whose inputs may come with a `position_mask`.

    Attributes:
        mask_rate: float in [0, 1]. Probability that a position is hidden.
    """

    mask_rate: float


def palette_of(language_model: LanguageModel, without: str) -> ColorPalette:
    """Returns the palette that turns a model's tokens into pictures.

    Args:
        language_model: the model.
        without: str. Its method that draws tokens and needs none.

    Returns:
        `ColorPalette`.

    Raises:
        ValueError: if the model has none.
    """
    if language_model.palette is None:
        raise ValueError(
            "`palette` is needed to turn tokens into pictures: make the model with "
            f"`palette=ColorPalette(...)`, or draw tokens with `{without}`. Received: palette=None"
        )
    return language_model.palette
