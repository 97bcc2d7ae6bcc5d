"""What the benchmarks share: contestants that alternate, and how their times are shown."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Mapping

import keras
import numpy as np

import keras_igpt as igpt


def alternate(contestants: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, np.ndarray]:
    """Runs each contestant once a round, in turn, after once without a clock; seconds by contestant."""
    for run in contestants.values():
        run()
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(rounds):
        for name, run in contestants.items():
            started = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - started)
    return {name: np.array(values) for name, values in seconds.items()}


def print_machine() -> None:
    """Says what the figures were measured on."""
    print(f"{platform.machine()}, {os.cpu_count()} cores, keras {keras.__version__}, {keras.backend.backend()}")


def print_rates(seconds: Mapping[str, np.ndarray], images: int, contestant: str) -> None:
    """Prints images a second: median, quartiles, and how many times the slowest."""
    rates = {name: images / values for name, values in seconds.items()}
    slowest = min(float(np.median(rate)) for rate in rates.values())
    print(f"| {contestant} | images/s, median | quartiles | times the slowest |\n|---|---|---|---|")
    for name, rate in rates.items():
        lower, median, upper = np.percentile(rate, [25, 50, 75])
        print(f"| {name} | {median:,.0f} | {lower:,.0f} to {upper:,.0f} | {median / slowest:,.1f} |")


def make_unpredictable(language_model: igpt.ImageGPTCausalLM) -> igpt.ImageGPTCausalLM:
    """Gives an untrained model weights with which its predictions are neither flat nor certain."""
    # Position embeddings large enough for one to draw another colour than the next.
    positions = language_model.backbone.pixel_embedding.position_embedding
    for weight, scale in (
        (language_model.pixel_head.kernel, language_model.backbone.hidden_dim**-0.5),
        (positions, 0.1),
    ):
        weight.assign(np.random.default_rng(0).normal(size=weight.shape, scale=scale))
    return language_model
