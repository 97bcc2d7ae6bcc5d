"""Compilation."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import keras


def runs_eagerly() -> bool:
    """Whether operations run eagerly, without compilation (PyTorch)."""
    return bool(keras.backend.backend() == "torch")


def compiles_for_cpu() -> bool:
    """Whether XLA compiles for a CPU (JAX and TensorFlow)."""
    backend = keras.backend.backend()
    if backend == "jax":
        import jax

        return bool(jax.default_backend() == "cpu")
    if backend == "tensorflow":
        import tensorflow as tf

        return not tf.config.list_physical_devices("GPU") and not tf.config.list_physical_devices("TPU")
    return False


def maps_rows_at_once() -> bool:
    """Whether a map over rows is one kernel, where a loop would be many small ones (JAX on an accelerator)."""
    return bool(keras.backend.backend() == "jax" and not compiles_for_cpu())


def copies_state_of_loops() -> bool:
    """Whether loops copy their state in each iteration unless `jit_compile` is set (TensorFlow).

    Keras does not enable XLA by default on CPU.
    """
    return bool(keras.backend.backend() == "tensorflow")


@functools.cache
def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compiles a function of tensors once per shape, without gradients and with full float32 matrix products.

    TF32 rounds factors to ten bits, and a line search would stall in that noise. On PyTorch nothing is compiled.
    """
    backend = keras.backend.backend()
    if backend == "jax":
        import jax

        def precise(*arguments: Any) -> Any:
            with jax.default_matmul_precision("float32"):
                return function(*arguments)

        return jax.jit(precise)
    if backend == "tensorflow":
        import tensorflow as tf

        traced = tf.function(function)

        def run_tensorflow(*arguments: Any) -> Any:
            before = tf.config.experimental.tensor_float_32_execution_enabled()
            tf.config.experimental.enable_tensor_float_32_execution(False)
            try:
                return traced(*arguments)
            finally:
                tf.config.experimental.enable_tensor_float_32_execution(before)

        return run_tensorflow
    import torch

    def run_torch(*arguments: Any) -> Any:
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("highest")
        try:
            with torch.no_grad():
                return function(*arguments)
        finally:
            torch.set_float32_matmul_precision(before)

    return run_torch
