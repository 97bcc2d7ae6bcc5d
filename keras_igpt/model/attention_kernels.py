"""Attention kernels: the backend's fused one if available, else exact blockwise attention."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import keras
from keras import ops

from keras_igpt.backend.compilation import compiles_for_cpu, maps_rows_at_once, runs_eagerly
from keras_igpt.backend.fused_attention import attend_in_place, fused_attention, fused_attention_kernel, window_of
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
    """Returns the kernel that `dot_product_attention` runs on this backend and device.

    Args:
        choice: `"auto"` (fused if available), `"fused"` or `"blocks"`.
        dtype: str. Dtype of queries, keys and values.
        head_dim: int. Width `H` of a head.

    Returns:
        `"torch"` (SDPA), `"cudnn"` or `"blocks"`.

    Raises:
        ValueError: if `"fused"` is requested but not available.
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
        kernel: as in `attention_kernel`. No kernel keeps `T x T` weights for the backward pass.

    Returns:
        Tensor `(B, T, N, H)` of the dtype of `projected`.

    Raises:
        ValueError: if `"fused"` is requested but not available.
    """
    runs = attention_kernel(kernel, keras.backend.standardize_dtype(projected.dtype), projected.shape[-1])
    if runs == "blocks":
        return _attend_in_blocks(projected, causal)
    return fused_attention(projected[:, :, 0], projected[:, :, 1], projected[:, :, 2], causal)


class _QueryBlock(NamedTuple):
    """Queries from `start` to `stop`, which see the first `seen` keys, a causal one those up to its own position."""

    start: int
    stop: int
    seen: int
    causal: bool

    def scores(self, query: Any, key: Any) -> Any:
        """Scores `(B, N, stop - start, seen)` of whole queries and keys `(B, N, T, H)`."""
        queries, keys = query[:, :, self.start : self.stop], key[:, :, : self.seen]
        scores = ops.cast(ops.matmul(queries * _scale_of(queries), ops.swapaxes(keys, -1, -2)), "float32")
        if not self.causal:
            return scores
        # With its start, for the ONNX converter for JAX knows `arange` in no other form.
        positions = ops.expand_dims(ops.arange(self.start, self.stop), -1)
        return _where_visible(scores, ops.arange(0, self.seen) <= positions)


def _query_blocks(length: int, causal: bool) -> list[_QueryBlock]:
    size = max(_SHORTEST_QUERY_BLOCK, -(-length // _QUERY_BLOCKS))
    stops = [min(start + size, length) for start in range(0, length, size)]
    return [
        _QueryBlock(start, stop, stop if causal else length, causal)
        for start, stop in zip(range(0, length, size), stops, strict=True)
    ]


def _attend_in_blocks(projected: Any, causal: bool) -> Any:
    """Attention written out, a block of queries at a time, softmax in float32.

    The backward pass recomputes the weights of each block from queries, keys and the logarithm of each query's sum, as
    [Dao et al., 2022](https://arxiv.org/abs/2205.14135) do: nothing of size `T x T` is kept.
    """
    blocks = _query_blocks(projected.shape[1], causal)

    def attend(projected: Any) -> Any:
        query, key, value = ops.unstack(ops.transpose(projected, (2, 0, 3, 1, 4)))  # each (B, N, T, H)
        output, log_sums = _blockwise_output(query, key, value, blocks)

        def gradient(upstream: Any) -> Any:
            parts = (query, key, value)
            gradients = _blockwise_gradients(swap_time_and_heads(upstream), output, log_sums, parts, blocks)
            return ops.transpose(ops.stack(gradients), (1, 3, 0, 2, 4))

        return swap_time_and_heads(output), gradient

    return differentiate_by_hand(attend)(projected)


def _blockwise_output(query: Any, key: Any, value: Any, blocks: list[_QueryBlock]) -> tuple[Any, list[Any]]:
    """Attends; all tensors are `(B, N, T, H)`. Also the logarithm of the sum of weights of each block's queries."""
    in_half = keras.backend.standardize_dtype(query.dtype) != "float32"
    outputs, log_sums = [], []
    for block in blocks:
        scores = block.scores(query, key)
        highest = row_max(scores)
        weights = ops.exp(scores - highest)
        total = row_sum(weights)
        if in_half:
            # Products of weights that do not sum to one could leave half precision's range.
            attended = ops.matmul(ops.cast(weights / total, value.dtype), value[:, :, : block.seen])
        else:
            attended = ops.matmul(weights, value[:, :, : block.seen]) / total
        outputs.append(attended)
        log_sums.append(highest + ops.log(total))
        # One block after the other, so that one is in memory at a time.
        (query,) = barrier(attended, (query,))
    return ops.concatenate(outputs, axis=2), log_sums


def _blockwise_gradients(
    upstream: Any, output: Any, log_sums: list[Any], parts: tuple[Any, ...], blocks: list[_QueryBlock]
) -> tuple[Any, Any, Any]:
    """The gradients of queries, keys and values, of the output's."""
    correction = row_sum(ops.cast(upstream, "float32") * ops.cast(output, "float32"))
    query, key, value = barrier(correction, parts)
    query_gradients = []
    # Gradients of keys and values as `(B, N, H, T)`, of factors that are transposed before they are cut into blocks:
    # XLA on CPU has fast products for no other form, and makes another one of a transpose right at a product.
    query_columns, upstream_columns = (ops.swapaxes(part, -1, -2) for part in (query, upstream))
    key_gradient, value_gradient = (ops.zeros_like(ops.swapaxes(part, -1, -2)) for part in (key, value))
    for block, log_sum in zip(blocks, log_sums, strict=True):
        rows = slice(block.start, block.stop)
        weights = ops.exp(block.scores(query, key) - log_sum)
        by_weights = ops.matmul(upstream[:, :, rows], ops.swapaxes(value[:, :, : block.seen], -1, -2))
        by_scores = weights * (ops.cast(by_weights, "float32") - correction[:, :, rows])
        by_scores = ops.cast(by_scores, query.dtype) * _scale_of(query)
        query_gradients.append(ops.matmul(by_scores, key[:, :, : block.seen]))
        key_gradient = _add_to_first(key_gradient, ops.matmul(query_columns[..., rows], by_scores))
        by_values = ops.matmul(upstream_columns[..., rows], ops.cast(weights, value.dtype))
        value_gradient = _add_to_first(value_gradient, by_values)
        (query,) = barrier(key_gradient, (query,))
    gradients = (ops.swapaxes(gradient, -1, -2) for gradient in (key_gradient, value_gradient))
    return ops.concatenate(query_gradients, axis=2), *gradients


def _add_to_first(total: Any, product: Any) -> Any:
    """Adds to the first columns of `total` `(B, N, H, T)`."""
    return total + ops.pad(product, [(0, 0), (0, 0), (0, 0), (0, total.shape[3] - product.shape[3])])


def swap_time_and_heads(tensor: Any) -> Any:
    """Transposes `(B, T, N, H)` to `(B, N, T, H)`, and back."""
    return ops.transpose(tensor, (0, 2, 1, 3))


def _scale_of(query: Any) -> Any:
    return ops.cast(query.shape[-1] ** -0.5, query.dtype)


def _where_visible(scores: Any, visible: Any) -> Any:
    return ops.where(visible, scores, ops.cast(_MINUS_INFINITY, "float32"))


def attend_over_cache(projected: Any, cache: KeyValue, index: Any) -> tuple[Any, KeyValue]:
    """Attends from new positions over a cache, and adds their keys and values to it.

    Heads precede time in the cache, since products of transposed caches would copy them for every token.

    Args:
        projected: tensor `(B, T, 3, N, H)`: queries, keys and values of the new positions.
        cache: pair of tensors `(B, N, S, H)`, keys and values. PyTorch updates them in place.
        index: int or scalar tensor, the new position of all rows if `T` is 1; or int tensor `(B, T)` of consecutive
            positions.

    Returns:
        Tensor `(B, T, N, H)`, and the updated cache.
    """
    if runs_eagerly():
        return attend_in_place(projected, cache, window_of(index, cache))
    index = ops.convert_to_tensor(index, "int32")
    query, key, value = (swap_time_and_heads(projected[:, :, part]) for part in range(3))
    keys, values = _written(cache, (key, value), index)
    scores = ops.cast(ops.einsum("bnth,bnsh->bnts", query * _scale_of(query), keys), "float32")
    # `is_causal` would align the first query with the first key, so a mask is used.
    visible = ops.arange(keys.shape[2]) <= ops.reshape(index, (-1, 1, query.shape[2], 1))
    weights = ops.cast(ops.softmax(_where_visible(scores, visible), axis=-1), values.dtype)
    return swap_time_and_heads(ops.matmul(weights, values)), (keys, values)


def _with_part(given: tuple[Any, Any, Any]) -> Any:
    """Writes keys or values `(N, T, H)` of one row into those of its cache from a position on."""
    whole, part, first = given
    return ops.slice_update(whole, (0, first, 0), part)


def _written(cache: KeyValue, new: KeyValue, index: Any) -> KeyValue:
    """Writes keys and values `(B, N, T, H)` of new positions into the cache."""
    one_row = cache[0].shape[0] == 1 and compiles_for_cpu()
    if not len(index.shape) and not one_row:
        keys, values = (ops.slice_update(whole, (0, 0, index, 0), part) for whole, part in zip(cache, new, strict=True))
        return keys, values
    firsts = ops.reshape(index, (-1, new[0].shape[2]))[:, 0]
    if maps_rows_at_once():
        keys, values = (
            ops.vectorized_map(_with_part, (whole, part, firsts)) for whole, part in zip(cache, new, strict=True)
        )
        return keys, values
    # XLA on CPU would unroll a loop of known length over one row, drop the axis of length one, and then copy the whole
    # cache for each pass. So the length is a value that it cannot know, always 1.
    count = ops.cast(ops.min(firsts) >= 0, "int32") if one_row else ops.shape(firsts)[0]

    def write(row: Any, cache: KeyValue) -> KeyValue:
        first = firsts[row]
        keys, values = (
            ops.slice_update(whole, (row, 0, first, 0), ops.slice(part, (row, 0, 0, 0), (1, *part.shape[1:])))
            for whole, part in zip(cache, new, strict=True)
        )
        return keys, values

    # A loop over rows is updated in place by XLA on CPU; a scatter would write single vectors.
    written: KeyValue = ops.fori_loop(0, count, write, cache)
    return written
