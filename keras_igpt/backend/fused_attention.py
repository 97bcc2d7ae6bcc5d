"""The backends' fused attention kernels.

Keras' own call silently falls back to the full score matrix if a kernel cannot run.
"""

from __future__ import annotations

from typing import Any

import keras
from keras import ops


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


def attend_in_place(projected: Any, cache: tuple[Any, Any], index: Any) -> tuple[Any, tuple[Any, Any]]:
    """Attends from new positions over a cache that is updated in place (PyTorch only).

    Keras' slice update would copy the whole cache for every token.

    Args:
        projected: tensor `(B, T, 3, N, H)`: queries, keys and values of the new positions.
        cache: pair of tensors `(B, N, S, H)`, keys and values.
        index: int or scalar tensor, the new position of all rows if `T` is 1; or int tensor `(B, T)`.

    Returns:
        Tensor `(B, T, N, H)`, and the updated cache.
    """
    import torch

    query, *new = projected.unbind(2)
    keys, values = cache
    if isinstance(index, int) or not index.ndim:
        for whole, part in zip(cache, new, strict=True):
            whole[:, :, index] = part[:, 0]
        # Slicing to the filled positions makes a mask unnecessary.
        keys, values, visible = keys[:, :, : index + 1], values[:, :, : index + 1], None
    else:
        rows = torch.arange(len(index), device=index.device)[:, None]
        for whole, part in zip(cache, new, strict=True):
            whole[rows, :, index] = part
        visible = torch.arange(keys.shape[2], device=index.device) <= index[:, None, :, None]
    attended = torch.nn.functional.scaled_dot_product_attention(query.transpose(1, 2), keys, values, attn_mask=visible)
    return attended.transpose(1, 2), cache


def contiguous(tensor: Any) -> Any:
    """Copies a tensor into contiguous memory, so that the tensor it is a view of can be freed."""
    if keras.backend.backend() == "torch":
        import torch

        # Keras' copy keeps the memory layout of transposed tensors.
        return tensor.clone(memory_format=torch.contiguous_format)
    return ops.copy(tensor)
