"""Opening a model by the name that a person gives it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import keras

from keras_igpt.model.presets import get_preset, trained_presets
from keras_igpt.objectives.causal_lm import ImageGPTCausalLM
from keras_igpt.objectives.masked_lm import ImageGPTMaskedLM


def open_model(name: str | os.PathLike[str], argument: str) -> Any:
    """Opens a model's file, or a trained preset by its name.

    Args:
        name: path of a `.keras` file, or a preset.
        argument: str. The caller's argument name, for errors.

    Returns:
        A model, not compiled.

    Raises:
        ValueError: if there is neither.
    """
    name = os.fspath(name)
    if name in trained_presets():
        causal = get_preset(name).attention == "causal"
        return (ImageGPTCausalLM if causal else ImageGPTMaskedLM).from_preset(name)
    if not Path(name).is_file():
        presets = ", ".join(trained_presets())
        raise ValueError(f"{argument} must be a .keras file or one of {presets}, the trained presets. Received: {name}")
    return keras.saving.load_model(name, compile=False)
