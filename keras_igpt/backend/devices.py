"""Device memory, double precision, and TensorFlow beside another backend."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import keras


def device_memory() -> int | None:
    """Returns the bytes of memory of the first device, or None if unknown."""
    backend = keras.backend.backend()
    if backend == "jax":
        import jax

        device = jax.local_devices()[0]
        if device.platform != "cpu":
            limit: int | None = (device.memory_stats() or {}).get("bytes_limit")
            return limit
    elif backend == "torch":
        import torch

        if torch.cuda.is_available():
            total: int = torch.cuda.mem_get_info()[1]
            return total
        if torch.backends.mps.is_available():
            return None
    else:
        import tensorflow as tf

        if tf.config.list_physical_devices("GPU"):
            return None
    return host_memory()


def host_memory() -> int | None:
    """Returns the machine's bytes of memory, or the control group's limit if lower."""
    if not hasattr(os, "sysconf") or "SC_PHYS_PAGES" not in os.sysconf_names:
        return None
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    groups, root = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")
    # Lines `number:controllers:/path`; controllers are empty in cgroups v2.
    lines = [line.split(":", 2) for line in groups.read_text().splitlines()] if groups.exists() else []
    for _, controllers, group in lines:
        if controllers not in ("", "memory"):
            continue
        folder, name = (root / "memory", "memory.limit_in_bytes") if controllers else (root, "memory.max")
        inner = folder / group.strip("/")
        for path in (inner, *inner.parents):
            limit = path / name
            # Without a limit, this is "max" or a huge number.
            text = limit.read_text().strip() if path.is_relative_to(folder) and os.access(limit, os.R_OK) else ""
            limits += [int(text)] if text.isdecimal() else []
    return min(limits)


def multiplies_in_double_precision() -> bool:
    """Whether Keras' products of float64 tensors are float64; on PyTorch they are float32."""
    return bool(keras.backend.backend() != "torch")


def leave_gpus_to_the_backend() -> None:
    """Stops TensorFlow, imported for its data sets, from allocating the GPU that another backend uses."""
    if keras.backend.backend() != "tensorflow":
        import tensorflow as tf

        tf.config.set_visible_devices([], "GPU")


@contextmanager
def without_tensorflow() -> Iterator[None]:
    """Keeps Keras on JAX and PyTorch from importing TensorFlow only to ask whether an object is one of TensorFlow's.

    Where TensorFlow is installed, Keras asks whenever it sets a seed, saves or describes. The import takes seconds, and
    prints messages that no setting of TensorFlow 2.21 turns off. What needs TensorFlow itself still imports it.
    """
    if keras.backend.backend() == "tensorflow":
        yield
        return
    from keras.src.utils.module_utils import tensorflow

    known = tensorflow._available
    tensorflow._available = False
    try:
        yield
    finally:
        tensorflow._available = known
