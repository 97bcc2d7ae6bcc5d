"""What decides a training beside its data and its weights: the settings of model, optimizer and loss."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

import keras

# Where a class lies, how a step is computed, what classes are called, what is frozen, which has no optimizer state,
# and the colours, which the tokens have in them already.
_LEFT_OUT = {
    "build_config",
    "class_names",
    "compile_config",
    "frozen_layers",
    "int8_layers",
    "kernel",
    "module",
    "name",
    "palette",
    "registered_name",
    "remat",
}

_CLASS_WEIGHT = "class_weight"

Settings = dict[str, Any]


def training_settings(model: keras.Model, class_weight: Mapping[int, float] | None = None) -> Settings:
    """Returns how a compiled model is trained, to be compared with other processes.

    Args:
        model: a compiled model.
        class_weight: that of `fit`.

    Returns:
        Strings, numbers, booleans and None by dotted names, such as `"optimizer.learning_rate"`.
    """
    compiled = model.get_compile_config() or {}
    described = {
        "model": {"class_name": type(model).__name__, **model.get_config()},
        # The optimizer itself: `compile` may have been given its name alone.
        "optimizer": {"class_name": type(model.optimizer).__name__, **model.optimizer.get_config()},
        "loss": compiled.get("loss"),
        "loss_weights": compiled.get("loss_weights"),
        # Labels and weights of NumPy are no JSON.
        _CLASS_WEIGHT: {int(label): float(weight) for label, weight in class_weight.items()} if class_weight else None,
    }
    settings: Settings = {}
    _flatten(json.loads(json.dumps(described, default=str)), "", settings)
    return settings


def differences(there: Settings, here: Settings) -> list[str]:
    """Describes each setting that differs between an earlier run and this one.

    None equals absence, so that options which a later version of Keras adds do not differ. Of weights of classes
    earlier versions said nothing.
    """
    weighted = any(_of_classes(name) for name in there)
    return [
        f"{name} is {here.get(name)!r} here and was {there.get(name)!r}"
        for name in {**there, **here}
        if there.get(name) != here.get(name) and (weighted or not _of_classes(name))
    ]


def _of_classes(name: str) -> bool:
    return name.partition(".")[0] == _CLASS_WEIGHT


def _flatten(value: Any, name: str, settings: Settings) -> None:
    if isinstance(value, dict) and str(value.get("class_name")).endswith("DTypePolicy"):
        policy = value["config"]
        settings[name] = policy.get("name", str(policy))
    elif isinstance(value, (dict, list)):
        for key, entry in value.items() if isinstance(value, dict) else enumerate(value):
            if key not in _LEFT_OUT:
                _flatten(entry, name if key == "config" else f"{name}.{key}".removeprefix("."), settings)
    else:
        # Without the numbers that Keras gives names in a process, and places in memory.
        settings[name] = re.sub(r"_\d+$| at 0x[0-9a-f]+", "", value) if isinstance(value, str) else value
