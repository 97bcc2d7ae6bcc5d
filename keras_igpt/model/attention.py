"""The multi-head self-attention layer."""

from __future__ import annotations

from typing import Any, Literal

import keras

from keras_igpt.backend.direct_call import call_directly
from keras_igpt.model.attention_kernels import (
    Kernel,
    KeyValue,
    attend_over_cache,
    dot_product_attention,
    swap_time_and_heads,
)


@keras.saving.register_keras_serializable(package="keras_igpt")
class SelfAttention(keras.layers.Layer):
    """Multi-head self-attention, over whole sequences or cached steps.

    As in the released code, queries, keys and values are initialised with standard deviation `1/sqrt(D)`, the output
    projection with `1/sqrt(D L)`.

    Args:
        num_heads: int. Heads `N`; must divide the width.
        num_layers: int. Depth `L` of the network, for the initialisation.
        mode: `"causal"` or `"bidirectional"`.
        kernel: `"auto"`, `"fused"` or `"blocks"`, as in `attention_kernel`.
        use_bias: bool. Whether the projections have biases.
        **kwargs: of `keras.layers.Layer`.

    Call arguments:
        inputs: tensor `(B, T, D)`.
        cache: optional pair of tensors `(B, N, S, H)`, keys and values of earlier positions.
        index: with `cache`: int or scalar tensor, the position of all rows' single input; or int tensor `(B, T)`.

    Returns:
        Tensor `(B, T, D)`, and the keys and values of the inputs, `(B, N, T, H)` each, or the updated cache.

    Reference:
        [Chen et al., 2020](https://cdn.openai.com/papers/Generative_Pretraining_from_Pixels_V2.pdf), section 3.3
    """

    def __init__(
        self,
        num_heads: int,
        num_layers: int,
        mode: Literal["causal", "bidirectional"],
        kernel: Kernel = "auto",
        use_bias: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.num_heads = num_heads
        self.num_layers = num_layers
        self.mode = mode
        self.kernel: Kernel = kernel
        self.use_bias = use_bias

    def build(self, input_shape: tuple[Any, ...]) -> None:
        width = input_shape[-1]
        head_dim = width // self.num_heads
        heads = (self.num_heads, head_dim)
        # One kernel (D, 3, N, H) for all three, which can be sharded along N.
        self.query_key_value = keras.layers.EinsumDense(
            "btd,dcnh->btcnh",
            output_shape=(None, 3, *heads),
            bias_axes="cnh" if self.use_bias else None,
            kernel_initializer=keras.initializers.RandomNormal(stddev=width**-0.5),
            dtype=self.dtype_policy,
            name="query_key_value",
        )
        self.query_key_value.build(input_shape)
        self.output_projection = keras.layers.EinsumDense(
            "btnh,nhd->btd",
            output_shape=(None, width),
            bias_axes="d" if self.use_bias else None,
            kernel_initializer=keras.initializers.RandomNormal(stddev=(width * self.num_layers) ** -0.5),
            dtype=self.dtype_policy,
            name="output_projection",
        )
        self.output_projection.build((*input_shape[:-1], *heads))

    def call(self, inputs: Any, cache: KeyValue | None = None, index: Any | None = None) -> tuple[Any, KeyValue]:
        projected = call_directly(self.query_key_value, inputs)  # (B, T, 3, N, H)
        if cache is None:
            attended = dot_product_attention(projected, causal=self.mode == "causal", kernel=self.kernel)
            key_value = (swap_time_and_heads(projected[:, :, 1]), swap_time_and_heads(projected[:, :, 2]))
        else:
            attended, key_value = attend_over_cache(projected, cache, index)
        return call_directly(self.output_projection, attended), key_value

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "num_heads": self.num_heads,
            "num_layers": self.num_layers,
            "mode": self.mode,
            "kernel": self.kernel,
            "use_bias": self.use_bias,
        }
