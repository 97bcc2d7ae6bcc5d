"""What a preset or a model is: architecture, size, arithmetic, memory, and how it is trained."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import keras

from keras_igpt.backend.optimizers import innermost
from keras_igpt.model.backbone import ImageGPTBackbone
from keras_igpt.model.cost import Estimate, estimate
from keras_igpt.model.presets import PRESETS, Preset, get_preset
from keras_igpt.model.quantization import int8_layers
from keras_igpt.objectives.image_classifier import ImageGPTImageClassifier
from keras_igpt.objectives.pixel_model import PixelModel
from keras_igpt.objectives.token_model import TokenModel
from keras_igpt.support.checks import check_integer
from keras_igpt.training.recipes import pretraining_recipe

# Of a classifier's class names.
_NAMES_SHOWN = 20


@dataclass(frozen=True)
class Description:
    """What `describe` found. Printed, it is a table in parts.

    Attributes:
        title: str. The preset's name or the model's class.
        architecture: dict. Sizes and choices by name.
        estimate: `Estimate` of arithmetic and memory for the batch asked for.
        training: dict of dicts. The settings of each recipe by its title; empty if none is known.
    """

    title: str
    architecture: dict[str, Any]
    estimate: Estimate
    training: dict[str, dict[str, Any]]

    def __str__(self) -> str:
        lines = [self.title, *_rows(self.architecture), str(self.estimate)]
        for title, settings in self.training.items():
            lines += [title, *_rows(settings)]
        return "\n".join(lines)


def describe(preset_or_model: str | keras.Model, batch_size: int | None = None) -> Description:
    """Describes a preset, without allocating anything, or a model.

    The training of a preset is read from the optimizer that `pretraining_recipe` makes. That of a model is what the
    model was compiled with, and the recipe of a preset of the same sizes if there is one.

    Args:
        preset_or_model: name of a preset; or an `ImageGPTBackbone`, `ImageGPTCausalLM`, `ImageGPTMaskedLM` or
            `ImageGPTImageClassifier`.
        batch_size: int. Sequences that memory and arithmetic are for; by default the preset's own, or 1 for a model.

    Returns:
        A `Description`.

    Raises:
        ValueError: if there is no such preset, or the model is another.

    Example:
    ```python
    print(describe("igpt_small"))
    print(describe(lm, batch_size=16))
    ```

    Reference:
        [Chen et al., 2020](https://cdn.openai.com/papers/Generative_Pretraining_from_Pixels_V2.pdf), section 3.3 and
        table 5; `source` says where the figures of other presets come from
    """
    if batch_size is not None:
        batch_size = check_integer("batch_size", batch_size)
    if isinstance(preset_or_model, str):
        preset = get_preset(preset_or_model)
        rows = {"what": preset.description, **preset.architecture, "weights": preset.weights or "none: random"}
        needs = estimate(preset_or_model, batch_size or preset.batch_size)
        return Description(preset_or_model, rows, needs, _recipes(preset_or_model, preset))
    if not isinstance(preset_or_model, (ImageGPTBackbone, TokenModel)):
        raise ValueError(
            "`preset_or_model` must be the name of a preset, or an ImageGPTBackbone, ImageGPTCausalLM, "
            f"ImageGPTMaskedLM or ImageGPTImageClassifier. Received: {type(preset_or_model).__name__}"
        )
    return _describe_model(preset_or_model, batch_size or 1)


def _describe_model(model: ImageGPTBackbone | TokenModel, batch_size: int) -> Description:
    backbone = model if isinstance(model, ImageGPTBackbone) else model.backbone
    architecture = backbone.architecture
    rows = {
        **architecture.arguments,
        "attention kernel": backbone.attention_kernel,
        "dtype policy": backbone.dtype_policy.name,
        "all parameters": f"{model.count_params():,}",
    }
    if isinstance(model, TokenModel):
        rows["palette"] = "none" if model.palette is None else repr(model.palette)
    if isinstance(model, ImageGPTImageClassifier):
        rows |= {name: getattr(model, name) for name in ("num_classes", "layer", "generative_weight", "frozen")}
        names = model.class_names or ("none",)
        more = len(names) - _NAMES_SHOWN
        rows["class names"] = ", ".join(names[:_NAMES_SHOWN]) + (f" and {more} more" if more > 0 else "")
    if isinstance(model, PixelModel):
        rows |= {name: getattr(model, name) for name in model._own_options}
    quantized = int8_layers(model)
    if quantized:
        rows["layers in int8"] = f"{len(quantized)}, counted below as before quantization"
    inner = innermost(model.optimizer) if model.compiled else None
    needs = estimate(
        architecture,
        batch_size,
        dtype=backbone.dtype_policy.name,
        remat=backbone.remat,
        gradient_accumulation=bool(getattr(inner, "gradient_accumulation_steps", None)),
        ema=bool(getattr(inner, "use_ema", False)),
    )
    training = {} if inner is None else {"compiled with": _settings(inner)}
    for name, preset in PRESETS.items():
        # A trained preset has one objective; an architecture alone serves both.
        if preset.sizes == architecture.sizes and (preset.weights is None or preset.attention == backbone.attention):
            training |= _recipes(name, preset)
    return Description(type(model).__name__, rows, needs, training)


def _recipes(name: str, preset: Preset) -> dict[str, dict[str, Any]]:
    """The pre-training of a preset for each objective that has a rate."""
    recipes = {}
    for objective, rate in preset.learning_rates.items():
        # The steps of the schedule are not shown: any length will do.
        optimizer = pretraining_recipe(name, objective, preset.steps or 1_000)["optimizer"]  # type: ignore[arg-type]
        settings = {"peak rate": rate, **_settings(optimizer)}
        settings["schedule"] = "linear warm-up over one epoch, then cosine to zero"
        settings |= {"batch size": preset.batch_size, "updates": preset.steps or "not fixed"}
        settings |= {"dropout": "none", "source": preset.source}
        recipes[f"{name}, pre-training, {objective}"] = settings
    return recipes


def _settings(optimizer: keras.optimizers.Optimizer) -> dict[str, Any]:
    """The settings in an optimizer's configuration."""
    config = keras.optimizers.serialize(optimizer)["config"]
    rate = config["learning_rate"]
    settings: dict[str, Any] = {"optimizer": type(optimizer).__name__}
    if isinstance(rate, dict):
        given = {key: value for key, value in rate["config"].items() if key != "name" and value is not None}
        settings["schedule"] = f"{rate['class_name']}({', '.join(f'{key}={value}' for key, value in given.items())})"
    else:
        settings["rate"] = f"{float(rate):g}"
    named = {"beta_1": "Adam's beta_1", "beta_2": "Adam's beta_2", "epsilon": "Adam's epsilon", "momentum": "momentum"}
    settings |= {title: config[key] for key, title in named.items() if key in config}
    settings["weight decay"] = config.get("weight_decay") or "none"
    settings["clipped to global norm"] = config.get("global_clipnorm") or "no"
    settings["batches an update"] = config.get("gradient_accumulation_steps") or 1
    settings["moving average"] = config["ema_momentum"] if config.get("use_ema") else "none"
    return settings


def _rows(values: dict[str, Any]) -> list[str]:
    return [f"  {name:<24}{value}" for name, value in values.items()]
