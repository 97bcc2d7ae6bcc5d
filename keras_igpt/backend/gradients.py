"""Custom gradients, rematerialisation and gradient workarounds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import keras
from keras import ops

ValueT = TypeVar("ValueT")


def differentiate_by_hand(function: Callable[[Any], tuple[Any, Callable[[Any], Any]]]) -> Callable[[Any], Any]:
    """Gives a function of one tensor a custom gradient, like `ops.custom_gradient` but the same on all backends.

    Args:
        function: takes a tensor; returns the value and a function from the value's gradient to the tensor's.

    Returns:
        A differentiable function of the tensor.
    """

    def in_keras_form(inputs: Any) -> tuple[Any, Callable[..., Any]]:
        value, gradient = function(inputs)

        # PyTorch passes the inputs, and the gradient by name; the others pass the gradient only.
        def with_any_arguments(*arguments: Any, upstream: Any | None = None) -> Any:
            return gradient(arguments[0] if upstream is None else upstream)

        return value, with_any_arguments

    differentiable: Callable[[Any], Any] = ops.custom_gradient(in_keras_form)
    return differentiable


def barrier(earlier: Any, tensors: tuple[Any, ...]) -> tuple[Any, ...]:
    """Returns the tensors unchanged, but available only after `earlier` is computed.

    Compilers merge equal expressions, so a value recomputed in the backward pass to save memory would be kept from the
    forward pass after all. Recomputing it from this function's result prevents that.

    Args:
        earlier: tensor to be computed first.
        tensors: tensors to return.

    Returns:
        The tensors, in the same order.
    """
    if keras.backend.backend() == "jax":
        import jax

        if jax.default_backend() != "cpu":
            return tuple(jax.lax.optimization_barrier((earlier, *tensors))[1:])
        # XLA on CPU drops the barrier before merging, but keeps zero times a number, which may be NaN.
        nothing = 0 * earlier[(0,) * earlier.ndim]
        return tuple(tensor + nothing.astype(tensor.dtype) for tensor in tensors)
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        with tf.control_dependencies([earlier]):
            return tuple(tf.identity(tensor) for tensor in tensors)
    return tensors


def rematerialized(function: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Makes the backward pass recompute a function's intermediates instead of storing them.

    Args:
        function: takes one tensor; may read weights and return several tensors.

    Returns:
        A function with the same values and gradients.
    """
    if keras.backend.backend() != "jax":
        rematerialized: Callable[[Any], Any] = keras.remat(function)
        return rematerialized
    import jax

    def call(inputs: Any) -> Any:
        # `jax.checkpoint` relies on a barrier that XLA drops on CPU, unlike `barrier`.
        converted, weights = jax.closure_convert(function, inputs)

        def backward(kept: tuple[Any, ...], upstream: Any) -> Any:
            earlier = jax.tree.leaves(upstream)[0]
            return jax.vjp(converted, *barrier(earlier, kept[:1]), *kept[1:])[1](upstream)

        recomputed = jax.custom_vjp(converted)
        recomputed.defvjp(lambda *arguments: (converted(*arguments), arguments), backward)
        return recomputed(inputs, *weights)

    return call


def keeps_intermediates() -> bool:
    """Whether activations store all intermediates for the backward pass, having no fused kernel (JAX)."""
    return bool(keras.backend.backend() == "jax")


def without_gradient(compute: Callable[[], ValueT]) -> ValueT:
    """Returns `compute()` of untrained weights, without recording gradients."""
    if keras.backend.backend() != "torch":
        # The others record nothing for weights that are not differentiated.
        return compute()
    import torch

    with torch.no_grad():
        return compute()


def with_dense_gradient(weight: Any) -> Any:
    """Returns an embedding table whose look-ups have a dense gradient; TensorFlow's would be `IndexedSlices`."""
    # The gradient of a product is dense.
    return 1.0 * weight if keras.backend.backend() == "tensorflow" else weight
