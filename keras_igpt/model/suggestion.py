"""Sizes and steps that fit a number of pictures and a time."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

import numpy as np
from keras import ops

from keras_igpt.model.architecture import Architecture
from keras_igpt.model.cost import estimate, memory_text
from keras_igpt.support.checks import check_integer, check_number

# Of the rate of matrix products, training the models of RESULTS.md on two CPU cores reached 44 to 50%.
_SHARE_OF_MATRIX_PRODUCTS = 0.4
# Below 12 tokens for each parameter our models of 8x8 pixels were still falling fast.
_FEWEST_TOKENS_PER_PARAMETER = 12
_FEWEST_STEPS = 1_000
# The best of those searched for each of our models, and the paper's for iGPT-S.
_LEARNING_RATE = 0.003
# Passes over the same pictures: more of them help small models little.
_MOST_EPOCHS = 40
# Multiplied to measure the rate, for at least so long.
_MATRIX_SIDE = 1024
_SECONDS_MEASURED = 0.3
# From which ways to save it are told.
_MUCH_MEMORY = 4 * 2**30


@dataclass(frozen=True)
class Suggestion:
    """A pre-training run that fits pictures and time. Printed, it says what to expect.

    Attributes:
        architecture: `Architecture`.
        batch_size: int. Pictures of a step.
        steps: int. Steps of the whole run.
        epochs: int. Passes over the pictures; of a run shorter than one, 1.
        learning_rate: float. Peak rate to start a search from.
        minutes: float. Expected time.
        memory: int. Peak of a training step in bytes, in float32, beside the framework's own.
        expected: str. What runs of this size gave.
    """

    architecture: Architecture
    batch_size: int
    steps: int
    epochs: int
    learning_rate: float
    minutes: float
    memory: int
    expected: str

    def __str__(self) -> str:
        model = self.architecture
        return (
            f"{model.image_size}x{model.image_size} pixels, {model.vocabulary_size} colours, "
            f"{model.num_layers} layers, {model.num_heads} heads, width {model.hidden_dim}: "
            f"{model.num_parameters:,} parameters\n"
            f"{self.steps:,} steps of {self.batch_size} pictures, {self.epochs} epochs, about {self.minutes:,.1f} "
            f"minutes and {memory_text(self.memory)} in float32 beside the framework's own{self._smaller()}\n"
            f"rate {self.learning_rate} to start with\n"
            f"{self.expected}"
        )

    @property
    def saves_memory(self) -> bool:
        """Whether the run had better be in mixed_bfloat16 with remat."""
        return self.memory >= _MUCH_MEMORY

    def _smaller(self) -> str:
        """How to need less memory, where that matters."""
        if not self.saves_memory:
            return ""
        smaller = estimate(self.architecture, self.batch_size, dtype="mixed_bfloat16", remat=True).training_memory
        return f" ({memory_text(smaller)} in mixed_bfloat16 with remat, which computes a third more)"


@dataclass(frozen=True)
class _Rung:
    """One size of a ladder, and what it gave."""

    architecture: Architecture
    batch_size: int
    expected: str


_LADDER = (
    _Rung(
        Architecture(256, 8, num_layers=6, num_heads=4, hidden_dim=64),
        64,
        "on CIFAR-10, 2,800 steps: linear probe 43%, raw pixels 41%; pictures are blobs of fitting colour",
    ),
    _Rung(
        Architecture(256, 8, num_layers=8, num_heads=4, hidden_dim=96),
        64,
        "on CIFAR-10, 2,800 steps: linear probe 45%, raw pixels 41%; pictures are blobs of fitting colour",
    ),
    _Rung(
        Architecture(512, 16, num_layers=8, num_heads=4, hidden_dim=96),
        64,
        "on CIFAR-10, 1,400 steps: linear probe 46%, raw pixels 42%; completions go on with colours and edges",
    ),
    _Rung(
        Architecture(512, 32, num_layers=12, num_heads=8, hidden_dim=256),
        128,
        "not run by us; on CIFAR-10 minGPT of this size: 2.04 nats per token; RandSAC, larger: linear probe 42%",
    ),
    _Rung(
        Architecture(512, 32, num_layers=24, num_heads=8, hidden_dim=512),
        128,
        "the paper's iGPT-S; a million steps on ImageNet gave a linear probe of 41.9% there",
    ),
)


def suggest(num_pictures: int, minutes: float, flops_per_second: float | None = None) -> Suggestion:
    """Suggests sizes and steps for a number of pictures and a time.

    The largest size of a ladder is taken that sees at least twelve tokens for each of its parameters, in at least
    1,000 steps, within the time and within forty passes over the pictures; if none does, the smallest, and its
    `expected` says so.

    Args:
        num_pictures: int. Pictures to train on.
        minutes: float. Time for one pre-training run. A search of the rate comes on top.
        flops_per_second: float. Floating point operations per second in training, for a device that is not this one; by
            default matrix products are timed on this one for a second, and 40% of their rate is taken.

    Returns:
        A `Suggestion`.

    Raises:
        ValueError: if an argument is not positive.

    Example:
    ```python
    print(suggest(num_pictures=6_000, minutes=30))
    suggest(1_280_000, minutes=24 * 60, flops_per_second=0.3 * 989e12)  # an H100 at 30% of its bfloat16 rate
    ```
    """
    pictures = check_integer("num_pictures", num_pictures)
    seconds = 60 * check_number("minutes", minutes, 0, above=True)
    rate = (
        _SHARE_OF_MATRIX_PRODUCTS * matrix_product_rate()
        if flops_per_second is None
        else check_number("flops_per_second", flops_per_second, 0, above=True)
    )
    runs = [_run(rung, pictures, seconds, rate) for rung in _LADDER]
    long_enough = [run for run in runs if _is_long_enough(run)]
    if long_enough:
        return long_enough[-1]
    return replace(
        runs[0], expected="this is short: features will be little better than pixels; give it more time or pictures"
    )


def _run(rung: _Rung, pictures: int, seconds: float, rate: float) -> Suggestion:
    """Returns the longest sensible run of a size."""
    batch_size = min(rung.batch_size, pictures)
    needs = estimate(rung.architecture, batch_size)
    epoch_steps = pictures // batch_size
    steps = max(1, min(int(seconds * rate / needs.training_flops), _MOST_EPOCHS * epoch_steps))
    if steps > epoch_steps:
        steps -= steps % epoch_steps
    return Suggestion(
        rung.architecture,
        batch_size,
        steps,
        epochs=max(1, steps // epoch_steps),
        learning_rate=_LEARNING_RATE,
        minutes=steps * needs.training_flops / rate / 60,
        memory=needs.training_memory,
        expected=rung.expected,
    )


def _is_long_enough(run: Suggestion) -> bool:
    tokens = run.steps * run.batch_size * run.architecture.num_tokens
    return run.steps >= _FEWEST_STEPS and tokens >= _FEWEST_TOKENS_PER_PARAMETER * run.architecture.num_parameters


def matrix_product_rate() -> float:
    """Measures the floating point operations per second of float32 matrix products on the default device."""
    factor = ops.convert_to_tensor(np.full((_MATRIX_SIDE, _MATRIX_SIDE), 1 / _MATRIX_SIDE, "float32"))

    def seconds_of(products: int) -> float:
        started, product = time.perf_counter(), factor
        for _ in range(products):
            product = ops.matmul(product, factor)
        # Fetched, so that all of them are done.
        ops.convert_to_numpy(product)
        return time.perf_counter() - started

    # The first ones load kernels; then as many as take long enough to be timed.
    seconds_of(1)
    products = 8
    while (seconds := seconds_of(products)) < _SECONDS_MEASURED:
        products *= 2
    return products * 2 * _MATRIX_SIDE**3 / seconds
