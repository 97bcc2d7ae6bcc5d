"""Trained presets: the one small file that holds a language model's architecture, palette and weights."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
import numpy.typing as npt

from keras_igpt.model.architecture import FIELDS
from keras_igpt.model.presets import get_preset, trained_presets
from keras_igpt.model.quantization import check_not_quantized
from keras_igpt.model.weights_by_role import path_of, weights_by_role
from keras_igpt.support.files import whole_file

WEIGHTS_FOLDER = Path(__file__).parent.parent / "weights"

_FORMAT = 1
_CONFIG = "config"
_CENTROIDS = "centroids"
# Folder of the weights in the archive.
_PREFIX = "weights/"


@dataclass(frozen=True)
class StoredModel:
    """A trained language model as its file has it.

    Attributes:
        path: the file.
        architecture: dict. Constructor arguments of `ImageGPTBackbone`.
        options: dict. Arguments of the language model beside backbone and palette.
        centroids: float32 array `(V, C)`, those of the palette.
        weights: float16 arrays by path in the model.
    """

    path: Path
    architecture: dict[str, Any]
    options: dict[str, Any]
    centroids: npt.NDArray[np.float32]
    weights: Mapping[str, npt.NDArray[np.float16]]

    def restore(self, model: keras.Model) -> None:
        """Gives a backbone, or a language model with its pixel head, these weights.

        Raises:
            ValueError: if the file lacks a weight, or has one of another shape; nothing is changed then.
        """
        variables = _variables(model)
        for name, variable in variables.items():
            stored = self.weights[name].shape if name in self.weights else None
            if stored != tuple(variable.shape):
                raise ValueError(f"{self.path} must hold {name} of shape {tuple(variable.shape)}. Received: {stored}")
        for name, variable in variables.items():
            variable.assign(self.weights[name])


def save_preset_weights(language_model: keras.Model, path: str | os.PathLike[str]) -> None:
    """Writes a language model as the small file that comes with a preset, for inference and fine-tuning.

    An `.npz` without pickled objects: architecture as JSON, palette, and weights rounded to float16. The optimizer and
    what was compiled are left out; `language_model.save` keeps them.

    Args:
        language_model: an `ImageGPTCausalLM` or `ImageGPTMaskedLM` with its palette.
        path: file to write; it ends in `.npz`.

    Raises:
        ValueError: if the model has no palette or is quantised, a weight is beyond float16, or `path` does not end in
            `.npz`.

    Example:
    ```python
    save_preset_weights(lm, "keras_igpt/weights/igpt_cifar10_8x8.npz")
    ```
    """
    if not hasattr(language_model, "backbone") or not hasattr(language_model, "pixel_head"):
        raise ValueError(
            "`language_model` must be an ImageGPTCausalLM or ImageGPTMaskedLM. "
            f"Received: {type(language_model).__name__}"
        )
    if language_model.palette is None:
        raise ValueError("`language_model` must have a palette. Received: palette=None")
    if Path(path).suffix != ".npz":
        raise ValueError(f"`path` must end in '.npz'. Received: {os.fspath(path)!r}")
    check_not_quantized(language_model, "language_model")
    arrays: dict[str, npt.NDArray[Any]] = {}
    for name, variable in _variables(language_model).items():
        with np.errstate(over="ignore"):
            rounded = keras.ops.convert_to_numpy(keras.ops.cast(variable, "float32")).astype(np.float16)
        if not np.isfinite(rounded).all():
            raise ValueError(
                f"`language_model` must have finite weights in float16's range of 65504. Received: {name} with others"
            )
        arrays[_PREFIX + name] = rounded
    config = {
        "format": _FORMAT,
        "architecture": language_model.backbone.architecture.arguments,
        "options": {name: getattr(language_model, name) for name in language_model._own_options},
    }
    arrays[_CONFIG] = np.array(json.dumps(config))
    arrays[_CENTROIDS] = language_model.palette.centroids
    with whole_file(path) as partial, open(partial, "wb") as file:
        np.savez_compressed(file, allow_pickle=False, **arrays)


def open_preset(name: str, overrides: Mapping[str, Any]) -> StoredModel:
    """Reads a preset's trained model.

    Args:
        name: str. A preset (`keras_igpt.get_preset`).
        overrides: the caller's arguments of `ImageGPTBackbone`.

    Returns:
        A `StoredModel`.

    Raises:
        ValueError: if there is no such preset, it has no weights, or the overrides or its file do not fit.
    """
    preset = get_preset(name)
    if preset.weights is None:
        raise ValueError(
            f"`load_weights` must be False for {name!r}, which is an architecture without weights "
            f"(trained are: {', '.join(trained_presets()) or 'none'}). Received: load_weights=True"
        )
    if overrides.get("attention", preset.attention) != preset.attention:
        raise ValueError(
            f"`name` must be a preset trained with attention={overrides['attention']!r}. "
            f"Received: {name!r}, trained with {preset.attention!r}"
        )
    for argument in FIELDS:
        value = getattr(preset, argument)
        if overrides.get(argument, value) != value:
            raise ValueError(
                f"`{argument}` must be {value!r}, as the weights of {name!r} were trained (or `load_weights` False). "
                f"Received: {argument}={overrides[argument]!r}"
            )
    stored = read_model(WEIGHTS_FOLDER / preset.weights)
    if stored.architecture != preset.architecture:
        raise ValueError(f"{stored.path} must hold {preset.architecture}. Received: {stored.architecture}")
    return stored


def read_model(path: Path) -> StoredModel:
    """Reads a file of `save_preset_weights`.

    Raises:
        ValueError: if it is damaged, or of another kind or format.
    """
    arrays, config = _read(path)
    if config.get("format") != _FORMAT:
        raise ValueError(f"{path} must be of format {_FORMAT}. Received: {config.get('format')!r}")
    absent = [key for key in ("architecture", "options") if key not in config]
    if absent or _CENTROIDS not in arrays:
        raise ValueError(
            f"{path} must hold a whole model; install the package again. "
            f"Received: a file without {', '.join(absent) or _CENTROIDS}"
        )
    weights = {key.removeprefix(_PREFIX): array for key, array in arrays.items() if key.startswith(_PREFIX)}
    return StoredModel(path, config["architecture"], config["options"], arrays[_CENTROIDS], weights)


def _read(path: Path) -> tuple[dict[str, npt.NDArray[Any]], dict[str, Any]]:
    """The arrays and the configuration in a model's file."""
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {key: file[key] for key in file.files}
        config = json.loads(str(arrays[_CONFIG]))
        if not isinstance(config, dict):
            raise ValueError(f"{_CONFIG} is no JSON object")
    except OSError:  # absent or unreadable, which is not damaged
        raise
    # It is not documented what a damaged archive makes its readers raise.
    except Exception as error:
        raise ValueError(
            f"{path} must be a model as save_preset_weights writes it; install the package again. "
            f"Received: a damaged or foreign file ({type(error).__name__}: {error})"
        ) from error
    return arrays, config


def _variables(model: keras.Model) -> dict[str, keras.Variable]:
    """The trained weights of a backbone or a language model, by their names in the file."""
    return {path_of(role): weight for role, weight in weights_by_role(model).items() if role != "mask_step"}
