"""Layers other than attention: activation, normalisation and feed-forward."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from keras_igpt.backend.direct_call import call_directly
from keras_igpt.backend.gradients import barrier, differentiate_by_hand, product_of_activation, product_of_rows
from keras_igpt.backend.row_reductions import reduces_rows_slowly, row_sum
from keras_igpt.model.architecture import NormalizationKind

EPSILON = 1e-5
GELU_SCALE = 1.702


@keras.saving.register_keras_serializable(package="keras_igpt")
def quick_gelu(inputs: Any) -> Any:
    """Computes `x * sigmoid(1.702 x)`, the released code's approximation of GELU.

    Args:
        inputs: float tensor of any shape.

    Returns:
        Tensor of the same shape and dtype.
    """
    if reduces_rows_slowly():
        return inputs * ops.sigmoid(GELU_SCALE * inputs)
    return ops.silu(GELU_SCALE * inputs) / GELU_SCALE


def _quick_gelu_gradient(upstream: Any, inputs: Any) -> Any:
    scaled = GELU_SCALE * inputs
    gate = ops.sigmoid(scaled)
    return upstream * gate * (1.0 + scaled * (1.0 - gate))


@keras.saving.register_keras_serializable(package="keras_igpt")
class Normalization(keras.layers.Layer):
    """Normalises each position over its width, with float32 statistics under any dtype policy.

    Args:
        kind: `"layer_norm"`, as in the paper's text: centred, with gain and bias; or `"rms_norm"`, as in the released
            code: `x / sqrt(mean(x^2) + 1e-5) * gain`.
        **kwargs: of `keras.layers.Layer`.

    Call arguments:
        inputs: tensor `(B, T, D)`.

    Returns:
        Tensor `(B, T, D)`.
    """

    def __init__(self, kind: NormalizationKind, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.kind = kind

    def build(self, input_shape: tuple[Any, ...]) -> None:
        self.gain = self.add_weight(name="gain", shape=input_shape[-1:], initializer="ones")
        self.bias = None
        if self.kind == "layer_norm":
            self.bias = self.add_weight(name="bias", shape=input_shape[-1:], initializer="zeros")

    def call(self, inputs: Any) -> Any:
        # Keras' own operations use the backend's kernels; the written-out form is for where there is none.
        if reduces_rows_slowly():
            outputs = self._normalize_written_out(ops.cast(inputs, "float32"))
        elif self.kind == "layer_norm":
            outputs = ops.layer_normalization(inputs, self.gain, self.bias, epsilon=EPSILON)
        else:
            outputs = ops.rms_normalization(inputs, self.gain, epsilon=EPSILON)
        return ops.cast(outputs, self.compute_dtype)

    def _normalize_written_out(self, inputs: Any) -> Any:
        """The same by `row_sum`, and differentiated by hand, so that the input alone is kept for the backward pass."""
        width = inputs.shape[-1]
        centred = self.kind == "layer_norm"

        def standardize(inputs: Any) -> tuple[Any, Any]:
            states = inputs - row_sum(inputs) / width if centred else inputs
            inverse = ops.rsqrt(row_sum(ops.square(states)) / width + EPSILON)
            return states * inverse, inverse

        def standardized(inputs: Any) -> Any:
            def gradient(upstream: Any) -> Any:
                states, inverse = standardize(*barrier(upstream, (inputs,)))
                result = upstream - states * (row_sum(upstream * states) / width)
                if centred:
                    result = result - row_sum(upstream) / width
                return inverse * result

            return standardize(inputs)[0], gradient

        outputs = differentiate_by_hand(standardized)(inputs) * ops.cast(self.gain, "float32")
        return outputs if self.bias is None else outputs + ops.cast(self.bias, "float32")

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "kind": self.kind}


@keras.saving.register_keras_serializable(package="keras_igpt")
class FeedForward(keras.layers.Layer):
    """Two dense layers of width 4D and D, `quick_gelu` between them, initialised with 0.02.

    Args:
        use_bias: bool. Whether both have biases.
        **kwargs: of `keras.layers.Layer`.

    Call arguments:
        inputs: tensor `(B, T, D)`.

    Returns:
        Tensor `(B, T, D)`.
    """

    def __init__(self, use_bias: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.use_bias = use_bias

    def build(self, input_shape: tuple[Any, ...]) -> None:
        width = input_shape[-1]
        self.expansion = keras.layers.Dense(
            4 * width,
            use_bias=self.use_bias,
            activation=quick_gelu,
            kernel_initializer=keras.initializers.RandomNormal(stddev=0.02),
            dtype=self.dtype_policy,
            name="expansion",
        )
        self.expansion.build(input_shape)
        self.contraction = keras.layers.Dense(
            width,
            use_bias=self.use_bias,
            kernel_initializer=keras.initializers.RandomNormal(stddev=0.02),
            dtype=self.dtype_policy,
            name="contraction",
        )
        self.contraction.build((*input_shape[:-1], 4 * width))

    def call(self, inputs: Any) -> Any:
        if self.expansion.quantization_mode is not None or self.contraction.quantization_mode is not None:
            return call_directly(self.contraction, call_directly(self.expansion, inputs))
        expanded = product_of_rows(inputs, self.expansion.kernel)
        if self.use_bias:
            expanded = expanded + ops.convert_to_tensor(self.expansion.bias)
        outputs = product_of_activation(quick_gelu, _quick_gelu_gradient, expanded, self.contraction.kernel)
        return outputs + self.contraction.bias if self.use_bias else outputs

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "use_bias": self.use_bias}
