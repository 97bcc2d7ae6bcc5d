"""Attention: the fused kernel of a backend where it has one, exact and memory-light everywhere else."""

from __future__ import annotations

from typing import Any, Literal

import keras
from keras import ops

from keras_igpt.backend.compilation import runs_eagerly
from keras_igpt.backend.fused_attention import attend_in_place, fused_attention, fused_attention_kernel
from keras_igpt.backend.gradients import barrier, differentiate_by_hand
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
    name, reason = fused_attention_kernel(dtype, head_dim)
    if name is None and choice == "fused":
        raise ValueError(
            f"`kernel` must be 'auto' or 'blocks' where there is no fused kernel: {reason}. "
            f"Received: kernel='fused' with {dtype} and heads of {head_dim}"
        )
    return name or "blocks"


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
    return fused_attention(projected[:, :, 0], projected[:, :, 1], projected[:, :, 2], causal)


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
            (queries,) = barrier(outputs[-1], (queries,))
        output = ops.concatenate(outputs, axis=2)

        def gradient(upstream: Any) -> Any:
            upstream = swap_time_and_heads(upstream)
            correction = row_sum(ops.cast(upstream, "float32") * ops.cast(output, "float32"))
            queries, keys, values = barrier(correction, (query, key, value))
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
                (queries,) = barrier(key_gradient, (queries,))
            gradients = ops.stack([ops.concatenate(query_gradients, axis=2), key_gradient, value_gradient])
            return ops.transpose(gradients, (1, 3, 0, 2, 4))

        return swap_time_and_heads(output), gradient

    return differentiate_by_hand(attend)(projected)


def _add_to_first(total: Any, left: Any, right: Any) -> Any:
    """Adds `left^T right` to the first rows of `total` along time."""
    # Transposing the small factor and the small result: products of a large transposed matrix are slow on CPU.
    product = ops.swapaxes(ops.einsum("bnth,bnts->bnhs", right, left), -1, -2)
    return total + ops.pad(product, [(0, 0), (0, 0), (0, total.shape[2] - product.shape[2]), (0, 0)])


def swap_time_and_heads(tensor: Any) -> Any:
    """Turns `(B, T, N, H)` into `(B, N, T, H)`, and back."""
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
    query, key, value = (swap_time_and_heads(tensor) for tensor in (query, key, value))
    if runs_eagerly():
        attended, cache = attend_in_place(query, key, value, cache, int(index))
        return swap_time_and_heads(attended), cache
    keys = ops.slice_update(cache[0], (0, 0, index, 0), key)
    values = ops.slice_update(cache[1], (0, 0, index, 0), value)
    scores = ops.cast(ops.einsum("bnth,bnsh->bnts", query * _scale_of(query), keys), "float32")
    # `is_causal` would align the single query with the first key, so the visible length is given as a mask.
    scores = ops.where(ops.arange(keys.shape[2]) <= index, scores, ops.cast(_MINUS_INFINITY, "float32"))
    weights = ops.cast(ops.softmax(scores, axis=-1), values.dtype)
    return swap_time_and_heads(ops.matmul(weights, values)), (keys, values)
