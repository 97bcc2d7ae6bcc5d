"""Reductions over the last axis that are fast with XLA on CPU too.

XLA compiles reductions to scalar loops on CPU; matrix products instead save 30% of a small model's training step.
Accelerators would round the products, so Keras' operations are used elsewhere.
"""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from keras_igpt.backend.compilation import compiles_for_cpu


def reduces_rows_slowly() -> bool:
    """Whether the backend is JAX on a CPU."""
    return keras.backend.backend() == "jax" and compiles_for_cpu()


def row_sum(inputs: Any) -> Any:
    """Sums a float32 tensor `(…, W)` over its last axis; returns `(…, 1)`."""
    if not reduces_rows_slowly():
        return ops.sum(inputs, axis=-1, keepdims=True)
    return ops.matmul(inputs, ops.ones((inputs.shape[-1], 1), "float32"))


def row_max(inputs: Any) -> Any:
    """Takes the maximum of a tensor `(…, W)` over its last axis; returns `(…, 1)`."""
    width = inputs.shape[-1]
    while reduces_rows_slowly() and width % 2 == 0:
        # The elementwise maximum of two halves is vectorised.
        width //= 2
        inputs = ops.maximum(inputs[..., :width], inputs[..., width:])
    return ops.max(inputs, axis=-1, keepdims=True)


def row_argmax(inputs: Any) -> Any:
    """Finds where the largest of the last axis of a float32 tensor `(…, W)` is, the first of a tie; int32 `(…)`."""
    if not reduces_rows_slowly():
        return ops.cast(ops.argmax(inputs, axis=-1), "int32")
    # XLA's argmax would compute an expression in `inputs` number by number, too.
    width = inputs.shape[-1]
    places = -ops.arange(width, dtype="float32")
    first = -row_max(ops.where(inputs >= row_max(inputs), places, -float(width - 1)))
    return ops.cast(first[..., 0], "int32")
