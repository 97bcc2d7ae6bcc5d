"""Going on from a model's weights with another palette."""

from __future__ import annotations

from typing import TypeVar

import numpy as np

from keras_igpt.backend.processes import check_one_process, host_array
from keras_igpt.model.quantization import check_not_quantized
from keras_igpt.model.weights_by_role import weights_by_role
from keras_igpt.objectives.pixel_model import PixelModel
from keras_igpt.palette.color_palette import ColorPalette

Model = TypeVar("Model", bound=PixelModel)


def refit_palette(lm: Model, palette: ColorPalette) -> Model:
    """Makes a model of another palette from the weights of a trained one, to be trained further.

    Each new colour takes over the embedding and the pixel-head column of the old colour nearest to it; all other
    weights stay. New colours with the same old one start alike, each with its whole probability. A palette of the old
    colours in another order gives the same model of the same images.

    Args:
        lm: an `ImageGPTCausalLM` or `ImageGPTMaskedLM` with a palette.
        palette: a `ColorPalette` of any number of colours and the same number of channels.

    Returns:
        A new model of the same class, not compiled; `lm` stays as it is.

    Raises:
        ValueError: if `lm` has no palette, or one of another number of channels.

    Example:
    ```python
    lm = load_openai_checkpoint("downloads")
    mine = refit_palette(lm, ColorPalette.fit(images, num_colors=256))
    mine.compile(**pretraining_recipe("igpt_small", objective="ar", steps=10_000))
    mine.fit(mine.palette.encode(images), batch_size=128)
    ```
    """
    if lm.palette is None:
        raise ValueError("`lm` must have a palette: set `lm.palette` to the one it was trained with. Received: None")
    if palette.num_channels != lm.palette.num_channels:
        raise ValueError(
            f"`palette` must have {lm.palette.num_channels} channel(s) as the model's has. Received: {palette!r}"
        )
    check_not_quantized(lm, "lm")
    check_one_process("refit_palette")
    differences = palette.centroids[:, None].astype(np.float64) - lm.palette.centroids  # (V new, V old, C)
    nearest = np.square(differences).sum(axis=-1).argmin(axis=-1)

    config = lm.get_config()
    config["palette"] = palette.get_config()
    config["backbone"]["config"]["vocabulary_size"] = palette.num_colors
    changed = type(lm).from_config(config)
    old_weights = weights_by_role(lm)
    for role, weight in weights_by_role(changed).items():
        values = host_array(old_weights[role])
        if role == "token_embedding":
            values = values[nearest]
        elif role == "pixel_head":
            values = values[:, nearest]
        weight.assign(values)
    return changed
