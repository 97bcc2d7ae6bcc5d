"""Freeing the gradients that TensorFlow registers while tracing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import keras


@contextmanager
def traced_gradients_dropped() -> Iterator[None]:
    """Drops the custom gradients that TensorFlow registers inside the block; does nothing on other backends.

    TensorFlow registers each custom gradient under a new name when a program is traced and never removes it, which
    keeps the program's whole graph alive: 18 MB for a tiny model's training step. Names are looked up again only if the
    program is differentiated from outside, which `fit`, `evaluate` and `predict` never do.
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
