"""Dropping what TensorFlow keeps of a traced program for good."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import keras


@contextmanager
def traced_gradients_dropped() -> Iterator[None]:
    """Drops the gradients that TensorFlow registers meanwhile; nothing on other backends.

    Each custom gradient (attention in blocks, TensorFlow's own SiLU and its sum over replicas) is registered under a
    name of its own when a program is traced. Nothing ever takes it off that list, and with it the list holds the whole
    graph of the program, long after the model is gone: 18 MB for a tiny model's training step. The names are looked up
    while the program is traced; only one that is differentiated from outside would look them up again, which `fit`,
    `evaluate` and `predict` never are.

    Yields:
        None.

    Example:
    ```python
    with traced_gradients_dropped():
        model.fit(batches)
    ```
    """
    if keras.backend.backend() != "tensorflow":
        yield
        return
    from tensorflow.python.framework import ops as framework

    registered = framework.gradient_registry._registry
    before = set(registered)
    try:
        yield
    finally:
        for name in set(registered) - before:
            if name.startswith("CustomGradient-"):
                del registered[name]
