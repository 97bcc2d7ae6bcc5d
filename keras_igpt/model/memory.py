"""What a training step of a compiled model needs, and a warning where that is more memory than there is."""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import Any

import keras

from keras_igpt.backend.devices import device_memory
from keras_igpt.backend.optimizers import innermost
from keras_igpt.backend.processes import divides_batches
from keras_igpt.model.cost import BYTES_BY_POLICY, Estimate, estimate, memory_text

# The rest is for the framework itself, fragmentation and a compiler's freedom.
_USABLE = 5 / 6


def warn_if_too_large(model: Any, batch_size: Any) -> None:
    """Warns if training at this batch size will probably run out of memory, and says what to lower.

    Compares what `estimate` counts, with the state of the model's own optimizer, to five sixths of the memory of the
    first device, or on a CPU of the machine or its control group. Silent where either is unknown: for frozen models,
    several devices, integer weights, and GPUs whose backend does not tell. Takes less than a millisecond.

    Args:
        model: a compiled pixel model or classifier.
        batch_size: int. Sequences of a step; anything else is ignored.
    """
    if not isinstance(batch_size, int) or batch_size < 1:
        return
    needs = training_estimate(model, batch_size)
    available = None if needs is None else device_memory()
    if needs is None or available is None or needs.training_memory <= _USABLE * available:
        return
    smaller = batch_size // 2
    while smaller and _exceeds(training_estimate(model, smaller), _USABLE * available):
        smaller //= 2
    advice = [f"`batch_size` to {smaller} (`accumulation_steps` makes up for it)"] if smaller else []
    if not model.backbone.remat:
        advice.append("the memory of activations by `remat=True`")
    if model.backbone.dtype_policy.name == "float32":
        advice.append("dtype to 'mixed_bfloat16'")
    advice.append("the size of the pictures or of the model")
    warnings.warn(
        f"A training step with batch_size={batch_size} will take about {memory_text(needs.training_memory)}, and there "
        f"are {memory_text(available)}. If it runs out of memory, lower {', '.join(advice[:-1])}"
        f"{' or ' if advice[:-1] else ''}{advice[-1]}.",
        stacklevel=3,
    )


def _exceeds(needs: Estimate | None, bound: float) -> bool:
    return needs is not None and needs.training_memory > bound


def training_estimate(model: Any, batch_size: int) -> Estimate | None:
    """Estimates a training step of a compiled model with its own optimizer; None where that is not known.

    Args:
        model: a compiled pixel model or classifier.
        batch_size: int. Sequences of a step.

    Returns:
        An `Estimate`, whose parameters are those of the network that is trained; None if the model is not compiled,
        frozen or divided over devices, or its dtype policy is another.
    """
    backbone, optimizer = model.backbone, getattr(model, "optimizer", None)
    policy = backbone.dtype_policy.name
    unknown = policy not in BYTES_BY_POLICY or getattr(model, "frozen", False) or divides_batches(model)
    if optimizer is None or unknown:
        return None
    architecture = backbone.architecture
    if not getattr(model, "generative_weight", 1):
        # A classifier without L_GEN has no pixel logits, and runs no block above its features.
        architecture = replace(architecture, vocabulary_size=1, num_layers=max(1, model.layer))
    inner = innermost(optimizer)
    needs = estimate(architecture, batch_size, dtype=policy, remat=backbone.remat)
    # The state of optimizers other than Adam is not counted.
    copies = 2 * isinstance(inner, keras.optimizers.Adam)
    copies += bool(inner.gradient_accumulation_steps) + bool(inner.use_ema)
    state = copies * needs.weights
    return replace(needs, optimizer_state=state, training_memory=needs.training_memory - needs.optimizer_state + state)
