"""What Keras' optimizers keep to themselves."""

from __future__ import annotations

from typing import Any

from keras import ops


def innermost(optimizer: Any) -> Any:
    """The optimizer itself, or the one inside where `mixed_float16` has wrapped it in one that scales the loss."""
    return getattr(optimizer, "inner_optimizer", optimizer)


def apply_waiting_gradients(optimizer: Any) -> int:
    """Makes one update with the mean of the gradients that have been accumulated since the last one.

    Args:
        optimizer: a built optimizer with `gradient_accumulation_steps`, not wrapped.

    Returns:
        int. Batches that went into the update; 0, and no update, where none was waiting.
    """
    steps = optimizer.gradient_accumulation_steps
    iterations = int(ops.convert_to_numpy(optimizer._iterations))
    waiting: int = iterations % steps
    if not waiting:
        return 0
    # The batch that completes the update: the optimizer adds the sum, divides by `steps`, and has the mean.
    gradients = [total * (steps / waiting - 1) for total in optimizer._accumulated_gradients]
    optimizer._iterations.assign(iterations - waiting + steps - 1)
    optimizer.apply(gradients)
    return waiting


def with_public_optimizers(config: Any) -> Any:
    """Replaces PyTorch's optimizer classes in a configuration by the public ones of the same name.

    Keras writes optimizers made on PyTorch under a private module, which the other backends load and fail with.

    Args:
        config: what `get_compile_config` returns, or a part of it.

    Returns:
        The configuration in a form that any backend reads.
    """
    if isinstance(config, list):
        return [with_public_optimizers(value) for value in config]
    if not isinstance(config, dict):
        return config
    config = {key: with_public_optimizers(value) for key, value in config.items()}
    if str(config.get("module", "")).startswith("keras.src.backend.torch.optimizers"):
        config |= {"module": "keras.optimizers", "registered_name": None}
    return config
