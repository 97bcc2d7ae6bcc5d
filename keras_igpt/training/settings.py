"""What decides a training beside its data and its weights: the settings of model, optimizer and loss."""

from __future__ import annotations

import json
import re
from typing import Any

import keras

# What says where a class lies or how a step is computed, and the colours, which the tokens have in them already.
_LEFT_OUT = {
    "build_config",
    "compile_config",
    "int8_layers",
    "kernel",
    "module",
    "name",
    "palette",
    "registered_name",
    "remat",
}

Settings = dict[str, Any]


def training_settings(model: keras.Model) -> Settings:
    """Says how a compiled model is trained, for comparison with other processes.

    Args:
        model: a compiled model.

    Returns:
        Strings, numbers, booleans and None by dotted names, such as `"optimizer.learning_rate"`.
    """
    optimizer = model.optimizer
    compiled = model.get_compile_config() or {}
    described = {
        "model": {"class_name": type(model).__name__, **model.get_config()},
        # The optimizer itself: `compile` may have been given its name alone.
        "optimizer": {"class_name": type(optimizer).__name__, **optimizer.get_config()},
        "loss": compiled.get("loss"),
        "loss_weights": compiled.get("loss_weights"),
    }
    settings: Settings = {}
    _flatten(json.loads(json.dumps(described, default=str)), "", settings)
    return settings


def differences(there: Settings, here: Settings) -> list[str]:
    """Compares two settings.

    Args:
        there: settings of a run before.
        here: settings of this run.

    Returns:
        For each that differs its name, its value here and its value there, in words. None is the same as nothing: so
        begin options that a later version of Keras adds.
    """
    return [
        f"{name} is {here.get(name)!r} here and was {there.get(name)!r}"
        for name in {**there, **here}
        if there.get(name) != here.get(name)
    ]


def _flatten(value: Any, name: str, settings: Settings) -> None:
    if isinstance(value, dict) and str(value.get("class_name")).endswith("DTypePolicy"):
        policy = value["config"]
        settings[name] = policy.get("name", str(policy))
    elif isinstance(value, (dict, list)):
        for key, entry in value.items() if isinstance(value, dict) else enumerate(value):
            if key not in _LEFT_OUT:
                _flatten(entry, name if key == "config" else f"{name}.{key}".removeprefix("."), settings)
    else:
        # Keras numbers the names of what a process makes; what has no other text is shown with its place in memory.
        settings[name] = re.sub(r"_\d+$| at 0x[0-9a-f]+", "", value) if isinstance(value, str) else value
