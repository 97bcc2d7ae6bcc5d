"""Gradients: written by hand, left out, or asked for in another form."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import keras
from keras import ops

from keras_igpt.backend.row_reductions import reduces_rows_slowly

ValueT = TypeVar("ValueT")


def differentiate_by_hand(function: Callable[[Any], tuple[Any, Callable[[Any], Any]]]) -> Callable[[Any], Any]:
    """Gives a function of one tensor its own gradient, as `ops.custom_gradient` does.

    Args:
        function: of a tensor; returns the value, and the function that makes the tensor's gradient of the value's.

    Returns:
        A function of the tensor that returns the value.
    """

    def in_keras_form(inputs: Any) -> tuple[Any, Callable[..., Any]]:
        value, gradient = function(inputs)

        # PyTorch hands over the inputs first and the value's gradient by name, the others that gradient alone.
        def with_any_arguments(*arguments: Any, upstream: Any | None = None) -> Any:
            return gradient(arguments[0] if upstream is None else upstream)

        return value, with_any_arguments

    differentiable: Callable[[Any], Any] = ops.custom_gradient(in_keras_form)
    return differentiable


def barrier(earlier: Any, tensors: tuple[Any, ...]) -> tuple[Any, ...]:
    """Returns the tensors in a form that is there only once `earlier` is.

    Compilers merge equal expressions. One that is written again in a backward pass, to save the memory of its result,
    would be computed once, in the forward pass, and kept. Made of what this function returns it is another expression.

    Args:
        earlier: tensor that is computed before.
        tensors: tensors, unchanged in value.

    Returns:
        The tensors, in the same order.
    """
    if keras.backend.backend() == "jax":
        import jax

        if jax.default_backend() != "cpu":
            return tuple(jax.lax.optimization_barrier((earlier, *tensors))[1:])
        # XLA on CPU drops the barrier before it merges. Zero times a number, which may be NaN, is not dropped.
        nothing = 0 * earlier[(0,) * earlier.ndim]
        return tuple(tensor + nothing.astype(tensor.dtype) for tensor in tensors)
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        with tf.control_dependencies([earlier]):
            return tuple(tf.identity(tensor) for tensor in tensors)
    return tensors


def product_of_rows(inputs: Any, kernel: Any) -> Any:
    """Computes `inputs @ kernel`; its weight gradient takes XLA on CPU no transpose of the output's gradient.

    JAX asks for the transpose of a product, and XLA makes a product of transposes of it: an expression for the output's
    gradient, such as an activation's, would be computed number by number in the transposed order.

    Args:
        inputs: tensor `(…, D)`.
        kernel: tensor `(D, E)`.

    Returns:
        Tensor `(…, E)`.
    """
    if not reduces_rows_slowly():
        return ops.matmul(inputs, kernel)
    import jax

    @jax.custom_vjp
    def product(inputs: Any, kernel: Any) -> Any:
        return inputs @ kernel

    def backward(kept: tuple[Any, Any], upstream: Any) -> tuple[Any, Any]:
        inputs, kernel = kept
        rows = inputs.reshape(-1, inputs.shape[-1]), upstream.reshape(-1, upstream.shape[-1])
        return upstream @ kernel.T, jax.lax.dot_general(*rows, (((0,), (0,)), ((), ())))

    product.defvjp(lambda inputs, kernel: (inputs @ kernel, (inputs, kernel)), backward)
    return product(inputs, kernel)


def rematerialized(layer: keras.layers.Layer) -> Callable[[Any], Any]:
    """Makes the backward pass recompute a layer in place of keeping its intermediates.

    Args:
        layer: a built layer of one tensor, which may return several and changes none of its variables.

    Returns:
        A function of the same values and gradients.
    """
    if keras.backend.backend() != "jax":
        recomputed: Callable[[Any], Any] = keras.remat(layer.__call__)
        return recomputed
    import jax
    from keras.src.backend import AutocastScope

    # `jax.checkpoint` keeps apart what it recomputes by a barrier, which XLA drops on CPU; ours it does not.
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
        # The weights are arguments: `jax.closure_convert` would keep those of the first call for all later ones. They
        # are not cast here, for each layer inside casts its own.
        with AutocastScope(None):
            values = [variable.value for variable in variables]
        return with_gradient(inputs, *values)

    return call_with_weights


def keeps_intermediates() -> bool:
    """Whether every intermediate of an activation is kept for the backward pass, for want of a kernel with its own."""
    return bool(keras.backend.backend() == "jax")


def without_gradient(compute: Callable[[], ValueT]) -> ValueT:
    """Calls a function of weights that are not trained, and keeps nothing for their gradients.

    Args:
        compute: function without arguments.

    Returns:
        What it returns.
    """
    if keras.backend.backend() != "torch":
        # The others are told which weights to differentiate by, and keep nothing for those left out.
        return compute()
    import torch

    with torch.no_grad():
        return compute()


def with_dense_gradient(weight: Any) -> Any:
    """Returns a table of rows in a form whose look-ups give it a gradient that is one tensor.

    TensorFlow's would be a list of rows.
    """
    # The gradient of a product is whole, where that of a look-up in a variable is not.
    return 1.0 * weight if keras.backend.backend() == "tensorflow" else weight
