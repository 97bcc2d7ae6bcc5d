"""Internals of Keras' optimizers."""

from __future__ import annotations

from typing import Any

from keras import ops


def innermost(optimizer: Any) -> Any:
    """Returns the optimizer inside a loss-scaling wrapper (`mixed_float16`), or the optimizer itself."""
    return getattr(optimizer, "inner_optimizer", optimizer)


def counted_steps(optimizer: Any) -> int:
    """Returns an optimizer's count of batches; groups that were applied incomplete count as whole ones."""
    return int(ops.convert_to_numpy(innermost(optimizer)._iterations))


def apply_waiting_gradients(optimizer: Any) -> int:
    """Updates with the mean of the gradients accumulated since the last update.

    Args:
        optimizer: a built, unwrapped optimizer with `gradient_accumulation_steps`.

    Returns:
        int. Number of accumulated batches; if 0, nothing is updated.
    """
    steps = optimizer.gradient_accumulation_steps
    iterations = counted_steps(optimizer)
    waiting: int = iterations % steps
    if not waiting:
        return 0
    # As the last batch of an update: the optimizer adds the accumulated sum and divides by `steps`, giving the mean.
    gradients = [total * (steps / waiting - 1) for total in optimizer._accumulated_gradients]
    optimizer._iterations.assign(iterations - waiting + steps - 1)
    optimizer.apply(gradients)
    return waiting


def with_public_optimizers(config: Any) -> Any:
    """Replaces PyTorch's optimizer classes in a compile configuration by the public ones.

    Keras saves optimizers made on PyTorch under a private module, with which loading fails on other backends.

    Args:
        config: result of `get_compile_config`, or a part of it.

    Returns:
        The configuration in a form that any backend can load.
    """
    if isinstance(config, list):
        return [with_public_optimizers(value) for value in config]
    if not isinstance(config, dict):
        return config
    config = {key: with_public_optimizers(value) for key, value in config.items()}
    if str(config.get("module", "")).startswith("keras.src.backend.torch.optimizers"):
        config |= {"module": "keras.optimizers", "registered_name": None}
    return config
