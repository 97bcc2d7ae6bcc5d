"""Calling a layer without what Keras does around it, for the many small steps of decoding."""

from __future__ import annotations

from typing import Any

import keras


def call_directly(layer: keras.layers.Layer, *inputs: Any, **options: Any) -> Any:
    """Computes what a built layer computes, without `Layer.__call__` where that changes nothing.

    `Layer.__call__` converts inputs, fills in contexts and follows masks, which takes PyTorch longer than the products
    of one position. It also casts weights under a mixed dtype policy and lays out results under a distribution, and is
    kept there.

    Args:
        layer: a built layer.
        *inputs: its call arguments, tensors of its compute dtype.
        **options: call arguments that need not be tensors.

    Returns:
        Its outputs.
    """
    if layer.compute_dtype != layer.variable_dtype or keras.distribution.distribution() is not None:
        return layer(*inputs, **options)
    return (layer.call if layer.quantization_mode is None else layer.quantized_call)(*inputs, **options)
