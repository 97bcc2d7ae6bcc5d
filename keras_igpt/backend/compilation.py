"""What is compiled, and how."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import keras


def runs_eagerly() -> bool:
    """Whether nothing is compiled, and each operation runs when it is called: on PyTorch."""
    return bool(keras.backend.backend() == "torch")


def copies_state_of_loops() -> bool:
    """Whether a loop copies its tensors each time it turns unless XLA is asked for: on TensorFlow.

    Keras leaves XLA out where there is only a CPU.
    """
    return bool(keras.backend.backend() == "tensorflow")


@functools.cache
def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compiles a function once a shape, without gradients and with products in full float32.

    Tensor cores would round what is multiplied to ten bits, and a line search would stop at their noise. PyTorch
    compiles nothing.

    Args:
        function: of tensors, which returns tensors. Calls with the same function share what is compiled.

    Returns:
        A function of the same arguments.
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
