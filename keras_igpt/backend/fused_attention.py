"""The backends' fused attention kernels.

Keras' own call silently falls back to the full score matrix if a kernel cannot run.
"""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

# What a pass over several new positions of each row needs in each block, as PyTorch tensors: rows `(B, 1)`, positions
# `(B, w)`, and a mask `(B, 1, w, S)` that is added to the scores.
Window = tuple[Any, Any, Any]


def fused_attention_kernel(dtype: str, head_dim: int) -> tuple[str | None, str]:
    """Returns the kernel that `fused_attention` runs on this backend and device.

    Args:
        dtype: str. Dtype of queries, keys and values.
        head_dim: int. Width `H` of a head.

    Returns:
        `"torch"` (SDPA), `"cudnn"` or None, and the reason if None.
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
    """Attends over whole sequences; call only if `fused_attention_kernel` returns a kernel.

    Args:
        query: tensor `(B, T, N, H)`.
        key: tensor `(B, T, N, H)`.
        value: tensor `(B, T, N, H)`.
        causal: bool. Whether position i attends to positions 0…i only.

    Returns:
        Tensor `(B, T, N, H)`.
    """
    if keras.backend.backend() == "torch":
        return ops.dot_product_attention(query, key, value, is_causal=causal)
    import jax

    # Unlike Keras' operation, this raises if cuDNN fails.
    return jax.nn.dot_product_attention(query, key, value, is_causal=causal, implementation="cudnn")


def window_of(index: Any, cache: tuple[Any, Any]) -> int | Window:
    """Prepares the positions of a pass for the blocks it goes through, once (PyTorch only).

    Args:
        index: int or scalar tensor, the new position of all rows; int tensor `(B, w)`; or what this has returned.
        cache: pair of tensors `(B, N, S, H)`, of any block.

    Returns:
        int or `Window`.
    """
    if isinstance(index, (int, tuple)):
        return index
    if not index.ndim:
        return int(index)
    import torch

    keys, _ = cache
    positions = index.long()
    visible = torch.arange(keys.shape[2], device=index.device) <= positions[:, None, :, None]
    # As the kernel would make it of `visible` in each block.
    mask = torch.zeros(visible.shape, dtype=keys.dtype, device=index.device).masked_fill_(~visible, float("-inf"))
    return torch.arange(len(index), device=index.device)[:, None], positions, mask


def attend_in_place(projected: Any, cache: tuple[Any, Any], window: int | Window) -> tuple[Any, tuple[Any, Any]]:
    """Attends from new positions over a cache that is updated in place (PyTorch only).

    Keras' slice update would copy the whole cache for every token.

    Args:
        projected: tensor `(B, T, 3, N, H)`: queries, keys and values of the new positions.
        cache: pair of tensors `(B, N, S, H)`, keys and values.
        window: what `window_of` returns.

    Returns:
        Tensor `(B, T, N, H)`, and the updated cache.
    """
    import torch

    query, *new = projected.unbind(2)
    keys, values = cache
    if isinstance(window, int):
        for whole, part in zip(cache, new, strict=True):
            whole[:, :, window] = part[:, 0]
        # Slicing to the filled positions makes a mask unnecessary.
        keys, values, mask = keys[:, :, : window + 1], values[:, :, : window + 1], None
    else:
        rows, positions, mask = window
        for whole, part in zip(cache, new, strict=True):
            whole[rows, :, positions] = part
    attended = torch.nn.functional.scaled_dot_product_attention(query.transpose(1, 2), keys, values, attn_mask=mask)
    return attended.transpose(1, 2), cache


def contiguous(tensor: Any) -> Any:
    """Copies a tensor into contiguous memory, so that the tensor it is a view of can be freed."""
    if keras.backend.backend() == "torch":
        import torch

        # Keras' copy keeps the memory layout of transposed tensors.
        return tensor.clone(memory_format=torch.contiguous_format)
    return ops.copy(tensor)
