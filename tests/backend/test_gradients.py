import keras
import numpy as np
import pytest
from conftest import to_numpy
from keras import ops

from keras_igpt.backend.gradients import product_of_activation, product_of_rows, rematerialized

needs_jax = pytest.mark.skipif(keras.backend.backend() != "jax", reason="another way to the same gradients on JAX")


def arrays():
    random = np.random.default_rng(0)
    return [random.standard_normal(shape).astype("float32") for shape in ((2, 3, 4), (4, 5), (2, 3, 5))]


def test_a_product_of_rows_is_a_matrix_product():
    inputs, kernel, _ = arrays()
    computed = product_of_rows(ops.convert_to_tensor(inputs), ops.convert_to_tensor(kernel))
    np.testing.assert_allclose(to_numpy(computed), inputs @ kernel, rtol=1e-5)


@needs_jax
def test_its_gradients_are_those_of_a_matrix_product():
    import jax

    inputs, kernel, upstream = arrays()
    inputs_gradient, kernel_gradient = jax.vjp(product_of_rows, inputs, kernel)[1](upstream)
    np.testing.assert_allclose(inputs_gradient, upstream @ kernel.T, rtol=1e-5)
    np.testing.assert_allclose(kernel_gradient, np.einsum("btd,bte->de", inputs, upstream), rtol=1e-5)


def test_a_product_of_an_activation_has_the_gradients_of_both():
    inputs, kernel, upstream = arrays()
    gate = 1 / (1 + np.exp(-inputs))

    def product(inputs, kernel):
        return product_of_activation(ops.silu, gradient, inputs, kernel)

    def gradient(upstream, inputs):
        return upstream * ops.sigmoid(inputs) * (1.0 + inputs * (1.0 - ops.sigmoid(inputs)))

    expected = (
        (inputs * gate) @ kernel,
        (upstream @ kernel.T) * gate * (1 + inputs * (1 - gate)),
        np.einsum("btd,bte->de", inputs * gate, upstream),
    )
    for computed, reference in zip(value_and_gradients(product, inputs, kernel, upstream), expected, strict=True):
        np.testing.assert_allclose(computed, reference, rtol=1e-4, atol=1e-6)


def value_and_gradients(function, inputs, kernel, upstream):
    """The value, and its gradient with respect to the inputs and the kernel."""
    if keras.backend.backend() == "jax":
        import jax

        value, backward = jax.vjp(function, inputs, kernel)
        return [np.asarray(tensor) for tensor in (value, *backward(upstream))]
    inputs, kernel = keras.Variable(inputs), keras.Variable(kernel)
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        with tf.GradientTape() as tape:
            value = function(inputs.value, kernel.value)
        gradients = tape.gradient(value, [inputs.value, kernel.value], output_gradients=upstream)
    else:
        value = function(inputs.value, kernel.value)
        value.backward(ops.convert_to_tensor(upstream))
        gradients = [inputs.value.grad, kernel.value.grad]
    return [to_numpy(tensor) for tensor in (value, *gradients)]


class Block(keras.layers.Layer):
    def __init__(self, several):
        super().__init__()
        self.several = several
        self.dense = keras.layers.Dense(5, activation="tanh", use_bias=False)

    def build(self, shape):
        self.dense.build(shape)

    def call(self, inputs):
        hidden = self.dense(inputs)
        return (hidden, inputs) if self.several else hidden


@needs_jax
@pytest.mark.parametrize("several", [False, True])
def test_what_is_recomputed_has_the_same_gradients(several):
    import jax

    inputs, kernel, _ = arrays()
    block = Block(several)
    block.build(inputs.shape)

    def loss(inputs, kernel, form):
        with keras.StatelessScope(state_mapping=[(block.dense.kernel, kernel)]):
            outputs = form(block)(inputs)
        return ops.sum(ops.square(outputs[0] if several else outputs))

    gradients = [jax.grad(loss, (0, 1))(inputs, kernel, form) for form in (rematerialized, lambda layer: layer)]
    for recomputed, kept in zip(*gradients, strict=True):
        np.testing.assert_allclose(recomputed, kept, rtol=1e-5)
