"""Self-attention: the kernel of each backend where it has one, exact and memory-light everywhere else."""

from __future__ import annotations

from typing import Any, Literal

import keras
from keras import ops

# A causal sequence is cut into this many blocks of queries where there is no fused kernel. Each block sees only the
# keys up to its own end, which skips nearly half of the score matrix; more blocks skip more but multiply tiny products.
_QUERY_BLOCKS = 8
_SHORTEST_QUERY_BLOCK = 64

KeyValue = tuple[Any, Any]


def dot_product_attention(query: Any, key: Any, value: Any, *, causal: bool) -> Any:
    """Attends over whole sequences: `softmax(q k^T / sqrt(H)) v`.

    Runs the backend's fused kernel where it has one: SDPA on PyTorch, cuDNN (in half precision) or the TPU kernel (when
    causal) on JAX. Elsewhere it is written out in blocks of queries, with the softmax in float32.

    Args:
        query: tensor `(B, T, N, H)`.
        key: tensor `(B, T, N, H)`.
        value: tensor `(B, T, N, H)`.
        causal: bool. Whether position i attends to positions 0…i only.

    Returns:
        Tensor `(B, T, N, H)` of the dtype of `query`.
    """
    if _has_fused_kernel(keras.backend.standardize_dtype(query.dtype), causal):
        return ops.dot_product_attention(query, key, value, is_causal=causal)
    length = query.shape[1]
    if not causal:
        return _masked_attention(query, key, value, None)
    block = max(_SHORTEST_QUERY_BLOCK, -(-length // _QUERY_BLOCKS))
    outputs = []
    for start in range(0, length, block):
        stop = min(start + block, length)
        # (t, s): query start + t sees key s iff s <= start + t.
        visible = ops.arange(stop) <= ops.expand_dims(ops.arange(start, stop), -1)
        outputs.append(_masked_attention(query[:, start:stop], key[:, :stop], value[:, :stop], visible))
    return outputs[0] if len(outputs) == 1 else ops.concatenate(outputs, axis=1)


def _has_fused_kernel(dtype: str, causal: bool) -> bool:
    """Whether `ops.dot_product_attention` beats the written-out form on this backend and device.

    The one place that asks which backend runs: Keras offers the kernels through one call, but not the knowledge of
    where it would fall back to a score matrix in memory.
    """
    if keras.backend.backend() == "torch":
        return True
    if keras.backend.backend() != "jax":
        return False
    import jax

    platform = jax.default_backend()
    # Keras 3.15's TPU path applies a causal mask when asked for none, so bidirectional attention must not take it.
    if platform == "tpu":
        return causal
    # cuDNN's kernel takes half precision only; in float32 Keras would hold the whole score matrix in memory.
    return platform == "gpu" and dtype in ("float16", "bfloat16")


def _masked_attention(query: Any, key: Any, value: Any, visible: Any | None) -> Any:
    """Attention written out, softmax in float32. `visible` is a bool mask broadcastable to `(B, N, T, S)`."""
    scale = query.shape[-1] ** -0.5
    scores = ops.einsum("btnh,bsnh->bnts", query * ops.cast(scale, query.dtype), key)
    scores = ops.cast(scores, "float32")
    if visible is not None:
        scores = ops.where(visible, scores, ops.cast(-1e30, "float32"))
    weights = ops.cast(ops.softmax(scores, axis=-1), value.dtype)
    return ops.einsum("bnts,bsnh->btnh", weights, value)


@keras.saving.register_keras_serializable(package="keras_igpt")
class SelfAttention(keras.layers.Layer):
    """Multi-head self-attention without biases, whole or one cached step at a time.

    Queries, keys and values are initialised with standard deviation `1/sqrt(D)`, the output projection with
    `1/sqrt(D L)`: the only depth-dependent initialisation of the released code.

    Args:
        num_heads: int. Heads `N`; must divide the width.
        num_layers: int. Depth `L` of the network, for the initialisation.
        mode: `"causal"` or `"bidirectional"`.
        **kwargs: of `keras.layers.Layer`.

    Call arguments:
        inputs: tensor `(B, T, D)`; `T` is 1 with a cache.
        cache: optional pair of tensors `(B, S, N, H)`: keys and values of earlier positions.
        index: optional int tensor, the position of the single input, with `cache` only.

    Returns:
        Tensor `(B, T, D)`, and the pair of keys and values: of `inputs`, or the cache with this step in it.

    Reference:
        [Chen et al., 2020](https://cdn.openai.com/papers/Generative_Pretraining_from_Pixels_V2.pdf), section 3.3
    """

    def __init__(
        self,
        num_heads: int,
        num_layers: int,
        mode: Literal["causal", "bidirectional"],
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.num_heads = num_heads
        self.num_layers = num_layers
        self.mode = mode

    def build(self, input_shape: tuple[Any, ...]) -> None:
        width = input_shape[-1]
        head_dim = width // self.num_heads
        heads = (self.num_heads, head_dim)
        # One product for all three, (D, 3, N, H), so that heads can be shared out along N.
        self.query_key_value = keras.layers.EinsumDense(
            "btd,dcnh->btcnh",
            output_shape=(None, 3, *heads),
            kernel_initializer=keras.initializers.RandomNormal(stddev=width**-0.5),
            dtype=self.dtype_policy,
            name="query_key_value",
        )
        self.query_key_value.build(input_shape)
        self.output_projection = keras.layers.EinsumDense(
            "btnh,nhd->btd",
            output_shape=(None, width),
            kernel_initializer=keras.initializers.RandomNormal(stddev=(width * self.num_layers) ** -0.5),
            dtype=self.dtype_policy,
            name="output_projection",
        )
        self.output_projection.build((*input_shape[:-1], *heads))

    def call(self, inputs: Any, cache: KeyValue | None = None, index: Any | None = None) -> tuple[Any, KeyValue]:
        projected = self.query_key_value(inputs)  # (B, T, 3, N, H)
        query, key, value = projected[:, :, 0], projected[:, :, 1], projected[:, :, 2]
        if cache is None:
            attended = dot_product_attention(query, key, value, causal=self.mode == "causal")
            return self.output_projection(attended), (key, value)
        keys = ops.slice_update(cache[0], (0, index, 0, 0), key)
        values = ops.slice_update(cache[1], (0, index, 0, 0), value)
        # `is_causal` would align the single query with the first key, so the visible length is given as a mask.
        visible = ops.arange(keys.shape[1]) <= index
        attended = _masked_attention(query, keys, values, visible)
        return self.output_projection(attended), (keys, values)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "num_heads": self.num_heads,
            "num_layers": self.num_layers,
            "mode": self.mode,
        }
