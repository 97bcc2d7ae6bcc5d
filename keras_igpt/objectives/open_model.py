"""Opening a model by the name that a person gives it."""

from __future__ import annotations

import importlib.util
import os
import zipfile
from pathlib import Path
from typing import Any

import keras

from keras_igpt.model.presets import get_preset, trained_presets
from keras_igpt.objectives.causal_lm import ImageGPTCausalLM
from keras_igpt.objectives.masked_lm import ImageGPTMaskedLM

# How an address of the Hugging Face hub begins, which Keras loads from and saves to.
_HUB = "hf://"


def names_a_file(name: str) -> bool:
    """Whether a name is that of a model's file, here or on the Hugging Face hub, rather than a preset's."""
    return name.startswith(_HUB) or Path(name).is_file()


def open_model(name: str | os.PathLike[str], argument: str) -> Any:
    """Opens a model's file, a model of the Hugging Face hub, or a trained preset by its name.

    Args:
        name: path of a `.keras` file; an address `"hf://user/model"`, to which a Keras model was saved; or a preset.
        argument: str. The caller's argument name, for errors.

    Returns:
        A model, not compiled.

    Raises:
        ValueError: if there is none of them, the file is damaged, or the hub's cannot be opened.
        ImportError: if huggingface_hub is absent and needed.
    """
    name = os.fspath(name)
    if name in trained_presets():
        causal = get_preset(name).attention == "causal"
        return (ImageGPTCausalLM if causal else ImageGPTMaskedLM).from_preset(name)
    if not names_a_file(name):
        presets = ", ".join(trained_presets())
        raise ValueError(
            f"{argument} must be a .keras file or one of {presets}, the trained presets, or hf://user/model on the "
            f"Hugging Face hub. Received: {name}"
        )
    if name.startswith(_HUB):
        return _open_from_hub(name, argument)
    if not zipfile.is_zipfile(name):
        # Keras would say that there is no such file.
        raise ValueError(
            f"{argument} must be a whole .keras file. Received: {name}, which is cut off or something else"
        )
    return keras.saving.load_model(name, compile=False)


def _open_from_hub(address: str, argument: str) -> Any:
    if importlib.util.find_spec("huggingface_hub") is None:
        raise ImportError(f"{address} needs huggingface_hub: pip install 'keras_igpt[checkpoints]'")
    try:
        return keras.saving.load_model(address, compile=False)
    # It is not documented what the hub, and Keras on files that are not its own, raise.
    except Exception as error:
        reason = str(error).strip().partition("\n")[0]
        raise ValueError(
            f"{argument} could not be opened: {type(error).__name__}: {reason}. It must be the address of a Keras "
            "model, as `model.save('hf://user/model')` makes it (`load_huggingface_checkpoint` opens ImageGPT of "
            f"transformers), and the hub must be reachable. Received: {address}"
        ) from error
