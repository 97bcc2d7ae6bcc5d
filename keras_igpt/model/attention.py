"""Self-attention: the kernel of each backend where it has one, exact and memory-light everywhere else."""

from __future__ import annotations

from typing import Any, Literal

import keras
from keras import ops

from keras_igpt.backend.direct_call import call_directly
from keras_igpt.backend.recomputation import compute_after, differentiate_by_hand
from keras_igpt.backend.row_reductions import row_max, row_sum

# Queries are cut into this many blocks where there is no fused kernel. A causal block sees only the keys up to its own
# end, which skips nearly half of the score matrix; more blocks skip more but multiply smaller matrices.
_QUERY_BLOCKS = 8
_SHORTEST_QUERY_BLOCK = 64
_MINUS_INFINITY = -1e30

KeyValue = tuple[Any, Any]
Kernel = Literal["auto", "fused", "blocks"]


def attention_kernel(choice: Kernel, dtype: str, head_dim: int) -> str:
    """Says which kernel `dot_product_attention` runs on this backend and device.

    The one place that asks which backend runs: Keras offers the kernels through one call, but it quietly goes on with
    the whole score matrix in memory where a kernel cannot run.

    Args:
        choice: `"auto"`, the fused kernel where there is one; `"fused"`; or `"blocks"`.
        dtype: str. That of queries, keys and values.
        head_dim: int. Width `H` of a head.

    Returns:
        `"torch"` (SDPA, whose own choice depends on the device), `"cudnn"` or `"blocks"`.

    Raises:
        ValueError: if `"fused"` is asked for where there is none.
    """
    if choice == "blocks":
        return "blocks"
    if keras.backend.backend() == "torch":
        return "torch"
    reason = f"the {keras.backend.backend()} backend has none"
    if keras.backend.backend() == "jax":
        import jax

        platform = jax.default_backend()
        reason = f"JAX has none on {platform}"
        if platform == "gpu":
            device = jax.local_devices()[0]
            if "cuda" not in device.client.platform_version or float(device.compute_capability) < 8.0:
                reason = "cuDNN's needs an NVIDIA GPU of compute capability 8.0"
            elif dtype in ("float16", "bfloat16") and head_dim % 8 == 0 and head_dim <= 128:
                return "cudnn"
            else:
                reason = "cuDNN's takes half precision and heads of 8, 16, … 128 numbers"
    if choice == "fused":
        raise ValueError(
            f"`kernel` must be 'auto' or 'blocks' where there is no fused kernel: {reason}. "
            f"Received: kernel='fused' with {dtype} and heads of {head_dim}"
        )
    return "blocks"


def dot_product_attention(projected: Any, *, causal: bool, kernel: Kernel = "auto") -> Any:
    """Attends over whole sequences: `softmax(q k^T / sqrt(H)) v`.

    Args:
        projected: tensor `(B, T, 3, N, H)`: queries, keys and values.
        causal: bool. Whether position i attends to positions 0…i only.
        kernel: what runs, as in `attention_kernel`. No kernel keeps `T x T` weights for the backward pass.

    Returns:
        Tensor `(B, T, N, H)` of the dtype of `projected`.

    Raises:
        ValueError: if a fused kernel is asked for where there is none.
    """
    runs = attention_kernel(kernel, keras.backend.standardize_dtype(projected.dtype), projected.shape[-1])
    if runs == "blocks":
        return _attend_in_blocks(projected, causal)
    query, key, value = projected[:, :, 0], projected[:, :, 1], projected[:, :, 2]
    if runs == "torch":
        return ops.dot_product_attention(query, key, value, is_causal=causal)
    import jax

    # Keras' operation would fall back on the score matrix when cuDNN fails; JAX' own raises.
    return jax.nn.dot_product_attention(query, key, value, is_causal=causal, implementation="cudnn")


def _attend_in_blocks(projected: Any, causal: bool) -> Any:
    """Attention written out, a block of queries at a time, softmax in float32.

    The backward pass computes the weights of each block anew from queries, keys and the logarithm of each query's sum,
    as [Dao et al., 2022](https://arxiv.org/abs/2205.14135) do: nothing of size `T x T` is kept.
    """
    length = projected.shape[1]
    in_half = keras.backend.standardize_dtype(projected.dtype) != "float32"
    size = max(_SHORTEST_QUERY_BLOCK, -(-length // _QUERY_BLOCKS))
    # Queries from `start` to `stop`, and how many keys they see.
    blocks = [
        (start, min(start + size, length), min(start + size, length) if causal else length)
        for start in range(0, length, size)
    ]

    def scores_of(query: Any, key: Any, start: int) -> Any:
        visible = _causal_mask(start, query.shape[2], key.shape[2]) if causal else None
        return _attention_scores(query, key, visible)

    def attend(projected: Any) -> Any:
        query, key, value = ops.unstack(ops.transpose(projected, (2, 0, 3, 1, 4)))  # each (B, N, T, H)
        outputs, log_sums = [], []
        queries = query
        for start, stop, seen in blocks:
            scores = scores_of(queries[:, :, start:stop], key[:, :, :seen], start)
            highest = row_max(scores)
            weights = ops.exp(scores - highest)
            total = row_sum(weights)
            if in_half:
                # Products of weights that do not sum to one could leave half precision's range.
                attended = ops.matmul(ops.cast(weights / total, value.dtype), value[:, :, :seen])
            else:
                attended = ops.matmul(weights, value[:, :, :seen]) / total
            outputs.append(attended)
            log_sums.append(highest + ops.log(total))
            # One block after the other, so that one is in memory at a time.
            (queries,) = compute_after(outputs[-1], (queries,))
        output = ops.concatenate(outputs, axis=2)

        def gradient(upstream: Any) -> Any:
            upstream = _swap_time_and_heads(upstream)
            correction = row_sum(ops.cast(upstream, "float32") * ops.cast(output, "float32"))
            queries, keys, values = compute_after(correction, (query, key, value))
            query_gradients = []
            key_gradient, value_gradient = ops.zeros_like(key), ops.zeros_like(value)
            for (start, stop, seen), log_sum in zip(blocks, log_sums, strict=True):
                block, incoming = queries[:, :, start:stop], upstream[:, :, start:stop]
                weights = ops.exp(scores_of(block, keys[:, :, :seen], start) - log_sum)
                by_weights = ops.matmul(incoming, ops.swapaxes(values[:, :, :seen], -1, -2))
                by_scores = weights * (ops.cast(by_weights, "float32") - correction[:, :, start:stop])
                by_scores = ops.cast(by_scores, query.dtype) * _scale_of(query)
                query_gradients.append(ops.matmul(by_scores, keys[:, :, :seen]))
                key_gradient = _add_to_first(key_gradient, by_scores, block)
                value_gradient = _add_to_first(value_gradient, ops.cast(weights, value.dtype), incoming)
                (queries,) = compute_after(key_gradient, (queries,))
            gradients = ops.stack([ops.concatenate(query_gradients, axis=2), key_gradient, value_gradient])
            return ops.transpose(gradients, (1, 3, 0, 2, 4))

        return _swap_time_and_heads(output), gradient

    return differentiate_by_hand(attend)(projected)


def _add_to_first(total: Any, left: Any, right: Any) -> Any:
    """Adds `left^T right` to the first rows of `total` along time."""
    # Transposing the small factor and the small result: products of a large transposed matrix are slow on CPU.
    product = ops.swapaxes(ops.einsum("bnth,bnts->bnhs", right, left), -1, -2)
    return total + ops.pad(product, [(0, 0), (0, 0), (0, total.shape[2] - product.shape[2]), (0, 0)])


def _swap_time_and_heads(tensor: Any) -> Any:
    return ops.transpose(tensor, (0, 2, 1, 3))


def _causal_mask(start: int, queries: int, keys: int) -> Any:
    """Query start + t sees key s iff s <= start + t; bool `(queries, keys)`."""
    # With its start, for the ONNX converter for JAX knows `arange` in no other form.
    return ops.arange(0, keys) <= ops.expand_dims(ops.arange(start, start + queries), -1)


def _scale_of(query: Any) -> Any:
    return ops.cast(query.shape[-1] ** -0.5, query.dtype)


def _attention_scores(query: Any, key: Any, visible: Any | None) -> Any:
    """Scaled products of queries `(B, N, T, H)` and keys `(B, N, S, H)` in float32, where they are visible."""
    scores = ops.cast(ops.matmul(query * _scale_of(query), ops.swapaxes(key, -1, -2)), "float32")
    return scores if visible is None else ops.where(visible, scores, ops.cast(_MINUS_INFINITY, "float32"))


def copy_closely(tensor: Any) -> Any:
    """Copies a tensor so that its last axes lie together in memory, and that nothing it is a view of stays in use."""
    if keras.backend.backend() == "torch":
        import torch

        # Keras' copy keeps the order in memory of what was transposed.
        return tensor.clone(memory_format=torch.contiguous_format)
    return ops.copy(tensor)


def attend_one_step(query: Any, key: Any, value: Any, cache: KeyValue, index: Any) -> tuple[Any, KeyValue]:
    """Attends from one new position over a cache, which gets its key and value.

    Heads come before time in the cache, so that a head's keys lie together: products of transposed caches would copy
    them for every token.

    Args:
        query: tensor `(B, 1, N, H)`; so are key and value.
        key: of the new position.
        value: of the new position.
        cache: pair of tensors `(B, N, S, H)`, keys and values of the positions before `index`. PyTorch changes them.
        index: int, or int tensor. The new position.

    Returns:
        Tensor `(B, 1, N, H)`, and the cache with this position in it.
    """
    query, key, value = (_swap_time_and_heads(tensor) for tensor in (query, key, value))
    if keras.backend.backend() == "torch":
        attended, cache = _attend_in_place(query, key, value, cache, int(index))
        return _swap_time_and_heads(attended), cache
    keys = ops.slice_update(cache[0], (0, 0, index, 0), key)
    values = ops.slice_update(cache[1], (0, 0, index, 0), value)
    scores = ops.cast(ops.einsum("bnth,bnsh->bnts", query * _scale_of(query), keys), "float32")
    # `is_causal` would align the single query with the first key, so the visible length is given as a mask.
    scores = ops.where(ops.arange(keys.shape[2]) <= index, scores, ops.cast(_MINUS_INFINITY, "float32"))
    weights = ops.cast(ops.softmax(scores, axis=-1), values.dtype)
    return _swap_time_and_heads(ops.matmul(weights, values)), (keys, values)


def _attend_in_place(query: Any, key: Any, value: Any, cache: KeyValue, index: int) -> tuple[Any, KeyValue]:
    """The step on PyTorch, where nothing is compiled.

    Keras' update would copy the whole cache for every token; and a slice of the positions that are there needs no mask.
    """
    import torch

    for whole, new in zip(cache, (key, value), strict=True):
        whole[:, :, index] = new[:, :, 0]
    keys, values = (whole[:, :, : index + 1] for whole in cache)
    return torch.nn.functional.scaled_dot_product_attention(query, keys, values), cache


@keras.saving.register_keras_serializable(package="keras_igpt")
class SelfAttention(keras.layers.Layer):
    """Multi-head self-attention without biases, whole or one cached step at a time.

    Queries, keys and values are initialised with standard deviation `1/sqrt(D)`, the output projection with
    `1/sqrt(D L)`: the only depth-dependent initialisation of the released code.

    Args:
        num_heads: int. Heads `N`; must divide the width.
        num_layers: int. Depth `L` of the network, for the initialisation.
        mode: `"causal"` or `"bidirectional"`.
        kernel: `"auto"`, `"fused"` or `"blocks"`, as in `attention_kernel`.
        **kwargs: of `keras.layers.Layer`.

    Call arguments:
        inputs: tensor `(B, T, D)`.

    Returns:
        Tensor `(B, T, D)`, and the pair of keys and values, `(B, N, T, H)` each.

    Reference:
        [Chen et al., 2020](https://cdn.openai.com/papers/Generative_Pretraining_from_Pixels_V2.pdf), section 3.3
    """

    def __init__(
        self,
        num_heads: int,
        num_layers: int,
        mode: Literal["causal", "bidirectional"],
        kernel: Kernel = "auto",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.num_heads = num_heads
        self.num_layers = num_layers
        self.mode = mode
        self.kernel: Kernel = kernel

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

    def call(self, inputs: Any) -> tuple[Any, KeyValue]:
        projected = self.query_key_value(inputs)  # (B, T, 3, N, H)
        attended = dot_product_attention(projected, causal=self.mode == "causal", kernel=self.kernel)
        key_value = (_swap_time_and_heads(projected[:, :, 1]), _swap_time_and_heads(projected[:, :, 2]))
        return self.output_projection(attended), key_value

    def decode_step(self, inputs: Any, cache: KeyValue, index: Any) -> tuple[Any, KeyValue]:
        """Attends from one position over those before it.

        Args:
            inputs: tensor `(B, 1, D)`.
            cache: pair of tensors `(B, N, S, H)`, keys and values of the positions before `index`.
            index: int or int tensor, the position.

        Returns:
            Tensor `(B, 1, D)`, what `call` gives at `index`, and the cache with this position in it.
        """
        projected = call_directly(self.query_key_value, inputs)
        query, key, value = projected[:, :, 0], projected[:, :, 1], projected[:, :, 2]
        attended, cache = attend_one_step(query, key, value, cache, index)
        return call_directly(self.output_projection, attended), cache

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "num_heads": self.num_heads,
            "num_layers": self.num_layers,
            "mode": self.mode,
            "kernel": self.kernel,
        }
