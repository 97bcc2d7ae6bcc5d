"""What the benchmarks on accelerators share: the device, its nominal peak, and the model's own arithmetic."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras_igpt as igpt

# Dense bfloat16 TFLOP/s as NVIDIA states them, the more special name first.
PEAK_TFLOPS = {"H100 PCIe": 756, "H100 NVL": 835, "H100": 989, "H200": 989, "A100": 312}


def device_of(backend: str) -> tuple[str, str]:
    """Platform, `"gpu"` or `"cpu"`, and the device's name."""
    if backend == "jax":
        import jax

        return jax.default_backend(), jax.devices()[0].device_kind
    import torch

    return ("gpu", torch.cuda.get_device_name()) if torch.cuda.is_available() else ("cpu", "cpu")


def peak_tflops(device: str) -> float | None:
    """Nominal dense bfloat16 TFLOP/s of a device, None if it is not known by name."""
    return next((peak for name, peak in PEAK_TFLOPS.items() if name in device), None)


def training_flops_per_token(shape: Mapping[str, Any]) -> dict[str, float]:
    """Arithmetic of training on one token by how attention is counted.

    Matrix products alone, the backward pass twice the forward, nothing recomputed. `"causal"` counts the T (T + 1) / 2
    pairs that causal attention needs; `"full"` counts all T² pairs, as llm-foundry and most published figures do.
    """
    kinds = {"causal": "causal", "full": "bidirectional"}
    return {
        count: igpt.estimate({**shape, "attention": kind}, batch_size=1, backend="jax").training_flops_per_token
        for count, kind in kinds.items()
    }


def utilisation(shape: Mapping[str, Any], tokens_per_second: float, peak: float | None) -> dict[str, float | None]:
    """Model FLOPs utilisation of a peak in TFLOP/s by how attention is counted; None without a peak."""
    return {
        count: None if peak is None else flops * tokens_per_second / (1e12 * peak)
        for count, flops in training_flops_per_token(shape).items()
    }
