"""Custom gradients, rematerialisation and gradient workarounds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import keras
from keras import ops

from keras_igpt.backend.compilation import compiles_for_cpu
from keras_igpt.backend.row_reductions import reduces_rows_slowly

ValueT = TypeVar("ValueT")


def differentiate_by_hand(function: Callable[..., tuple[Any, Callable[[Any], Any]]]) -> Callable[..., Any]:
    """Gives a function of tensors a custom gradient, like `ops.custom_gradient` but the same on all backends.

    Args:
        function: takes tensors; returns the value and a function from the value's gradient to the tensor's, or to a
            tuple of the tensors'.

    Returns:
        A differentiable function of the tensors.
    """

    def in_keras_form(*inputs: Any) -> tuple[Any, Callable[..., Any]]:
        value, gradient = function(*inputs)

        # PyTorch passes the inputs, and the gradient by name; the others pass the gradient only.
        def with_any_arguments(*arguments: Any, upstream: Any | None = None) -> Any:
            return gradient(arguments[0] if upstream is None else upstream)

        return value, with_any_arguments

    differentiable: Callable[..., Any] = ops.custom_gradient(in_keras_form)
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
        if not compiles_for_cpu():
            import jax

            return tuple(jax.lax.optimization_barrier((earlier, *tensors))[1:])
        # XLA on CPU drops the barrier before merging, but keeps zero times a number, which may be NaN.
        nothing = 0 * earlier[(0,) * earlier.ndim]
        return tuple(tensor + nothing.astype(tensor.dtype) for tensor in tensors)
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        with tf.control_dependencies([earlier]):
            return tuple(tf.identity(tensor) for tensor in tensors)
    return tensors


def product_of_rows(inputs: Any, kernel: Any) -> Any:
    """Computes `inputs @ kernel` with a weight gradient for which XLA on CPU transposes nothing large.

    JAX's own is a transposed product, which XLA turns into a product of transposes. The output's gradient, such as an
    activation's backward pass, would then be computed element by element in transposed order.

    Args:
        inputs: tensor `(…, D)`.
        kernel: tensor or variable `(D, E)`.

    Returns:
        Tensor `(…, E)`.
    """
    if not reduces_rows_slowly():
        return ops.matmul(inputs, kernel)

    def product(inputs: Any, kernel: Any) -> tuple[Any, Callable[[Any], Any]]:
        return ops.matmul(inputs, kernel), lambda upstream: _gradients_of_product(inputs, kernel, upstream)

    return differentiate_by_hand(product)(inputs, ops.convert_to_tensor(kernel))


def _gradients_of_product(inputs: Any, kernel: Any, upstream: Any) -> tuple[Any, Any]:
    """The gradients of the inputs and the kernel of `inputs @ kernel`, that of the kernel as a product of rows."""
    rows = (ops.reshape(tensor, (-1, tensor.shape[-1])) for tensor in (inputs, upstream))
    return ops.matmul(upstream, ops.transpose(kernel)), ops.einsum("rd,re->de", *rows)


def product_of_activation(
    activation: Callable[[Any], Any], activation_gradient: Callable[[Any, Any], Any], inputs: Any, kernel: Any
) -> Any:
    """Computes `activation(inputs) @ kernel`, keeping the inputs for the backward pass, but not their activation.

    To compute the activation again is cheap where a compiler joins operations, and it has the network's widest shape.
    So on JAX; the other backends keep it.

    Args:
        activation: function of a tensor.
        activation_gradient: function of the gradient of the activation's output and of its input; returns that of its
            input.
        inputs: tensor `(…, D)`.
        kernel: tensor or variable `(D, E)`.

    Returns:
        Tensor `(…, E)`.
    """
    if keras.backend.backend() != "jax":
        return ops.matmul(activation(inputs), kernel)

    def product(inputs: Any, kernel: Any) -> tuple[Any, Callable[[Any], Any]]:
        def gradient(upstream: Any) -> tuple[Any, Any]:
            (again,) = barrier(upstream, (inputs,))
            by_activation, by_kernel = _gradients_of_product(activation(again), kernel, upstream)
            return activation_gradient(by_activation, again), by_kernel

        return ops.matmul(activation(inputs), kernel), gradient

    return differentiate_by_hand(product)(inputs, ops.convert_to_tensor(kernel))


def rematerialized(layer: keras.layers.Layer) -> Callable[[Any], Any]:
    """Makes the backward pass recompute a layer's intermediates instead of storing them.

    Args:
        layer: a built layer of one tensor, which may return several and changes none of its variables.

    Returns:
        A function with the same values and gradients.
    """
    if keras.backend.backend() != "jax":
        recomputed: Callable[[Any], Any] = keras.remat(layer.__call__)
        return recomputed
    import jax
    from keras.src.backend import AutocastScope

    # `jax.checkpoint` relies on a barrier that XLA drops on CPU, unlike `barrier`.
    variables = layer.variables

    def call(inputs: Any, *values: Any) -> Any:
        with keras.StatelessScope(state_mapping=zip(variables, values, strict=True)):
            return layer(inputs)

    def backward(kept: tuple[Any, ...], upstream: Any) -> Any:
        earlier = jax.tree.leaves(upstream)[0]
        return jax.vjp(call, *barrier(earlier, kept[:1]), *kept[1:])[1](upstream)

    with_gradient = jax.custom_vjp(call)
    with_gradient.defvjp(lambda *arguments: (call(*arguments), arguments), backward)

    def call_with_weights(inputs: Any) -> Any:
        # The weights are arguments: `jax.closure_convert` would keep those of the first call for all later calls.
        # Layers inside cast their own, so nothing is cast here.
        with AutocastScope(None):
            values = [variable.value for variable in variables]
        return with_gradient(inputs, *values)

    return call_with_weights


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
