"""Calling layers without Keras' overhead, for the many small steps of decoding."""

from __future__ import annotations

from typing import Any

import keras


def call_directly(layer: keras.layers.Layer, *inputs: Any, **options: Any) -> Any:
    """Calls a built layer, skipping `Layer.__call__` where that makes no difference.

    On PyTorch, `Layer.__call__` takes longer than the matrix products of one position. It is needed for mixed dtype
    policies and under a distribution.

    Args:
        layer: a built layer.
        *inputs: tensors of its compute dtype.
        **options: further call arguments.

    Returns:
        Its outputs.
    """
    if layer.compute_dtype != layer.variable_dtype or keras.distribution.distribution() is not None:
        return layer(*inputs, **options)
    return (layer.call if layer.quantization_mode is None else layer.quantized_call)(*inputs, **options)
