"""Calling a layer without what Keras does around it, for the many small steps of decoding."""

from __future__ import annotations

from typing import Any

import keras


def call_directly(layer: keras.layers.Layer, *inputs: Any, **options: Any) -> Any:
    """Computes what a built layer computes, if it can be without `Layer.__call__`.

    That converts inputs, fills in contexts and follows masks, which takes PyTorch, with nothing compiled, longer than
    one position's products do. Under a mixed dtype policy it also has the weights cast, and is not left out.

    Args:
        layer: a built layer.
        *inputs: its call arguments, tensors of its compute dtype.
        **options: call arguments that need not be tensors.

    Returns:
        Its outputs.
    """
    if layer.compute_dtype != layer.variable_dtype:
        return layer(*inputs, **options)
    return (layer.call if layer.quantization_mode is None else layer.quantized_call)(*inputs, **options)
