"""The attention kernels of the backends.

Keras offers them through one call, but it quietly goes on with the whole score matrix in memory where one cannot run.
"""

from __future__ import annotations

from typing import Any

import keras
from keras import ops


def fused_attention_kernel(dtype: str, head_dim: int) -> tuple[str | None, str]:
    """Says which kernel `fused_attention` runs on this backend and device.

    Args:
        dtype: str. That of queries, keys and values.
        head_dim: int. Width `H` of a head.

    Returns:
        `"torch"` (SDPA, whose own choice depends on the device), `"cudnn"`, or None; and why there is none.
    """
    backend = keras.backend.backend()
    if backend == "torch":
        return "torch", ""
    if backend != "jax":
        return None, f"the {backend} backend has none"
    import jax

    platform = jax.default_backend()
    if platform != "gpu":
        return None, f"JAX has none on {platform}"
    device = jax.local_devices()[0]
    if "cuda" not in device.client.platform_version or float(device.compute_capability) < 8.0:
        return None, "cuDNN's needs an NVIDIA GPU of compute capability 8.0"
    if dtype in ("float16", "bfloat16") and head_dim % 8 == 0 and head_dim <= 128:
        return "cudnn", ""
    return None, "cuDNN's takes half precision and heads of 8, 16, … 128 numbers"


def fused_attention(query: Any, key: Any, value: Any, causal: bool) -> Any:
    """Attends over whole sequences, where `fused_attention_kernel` names a kernel.

    Args:
        query: tensor `(B, T, N, H)`; so are key and value.
        key: of each position.
        value: of each position.
        causal: bool. Whether position i attends to positions 0…i only.

    Returns:
        Tensor `(B, T, N, H)`.
    """
    if keras.backend.backend() == "torch":
        return ops.dot_product_attention(query, key, value, is_causal=causal)
    import jax

    # Keras' operation would fall back on the score matrix when cuDNN fails; JAX' own raises.
    return jax.nn.dot_product_attention(query, key, value, is_causal=causal, implementation="cudnn")


def attend_in_place(projected: Any, cache: tuple[Any, Any], index: Any) -> tuple[Any, tuple[Any, Any]]:
    """Attends from new positions over a cache, which is changed: for PyTorch, where nothing is compiled.

    Keras' update would copy the whole cache for every token.

    Args:
        projected: tensor `(B, T, 3, N, H)`: queries, keys and values of the new positions.
        cache: pair of tensors `(B, N, S, H)`, keys and values of the positions before.
        index: int or int tensor, the new position of all rows, `T` being 1; or int tensor `(B, T)`, those of each row.

    Returns:
        Tensor `(B, T, N, H)`, and the cache with these positions in it.
    """
    import torch

    query, *new = projected.unbind(2)
    keys, values = cache
    if isinstance(index, int) or not index.ndim:
        for whole, part in zip(cache, new, strict=True):
            whole[:, :, index] = part[:, 0]
        # A slice of the positions that are there needs no mask.
        keys, values, visible = keys[:, :, : index + 1], values[:, :, : index + 1], None
    else:
        rows = torch.arange(len(index), device=index.device)[:, None]
        for whole, part in zip(cache, new, strict=True):
            whole[rows, :, index] = part
        visible = torch.arange(keys.shape[2], device=index.device) <= index[:, None, :, None]
    attended = torch.nn.functional.scaled_dot_product_attention(query.transpose(1, 2), keys, values, attn_mask=visible)
    return attended.transpose(1, 2), cache


def contiguous(tensor: Any) -> Any:
    """Copies a tensor so that its last axes lie together in memory, and that nothing it is a view of stays in use."""
    if keras.backend.backend() == "torch":
        import torch

        # Keras' copy keeps the order in memory of what was transposed.
        return tensor.clone(memory_format=torch.contiguous_format)
    return ops.copy(tensor)
