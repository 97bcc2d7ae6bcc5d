"""Does the written-out normalisation pay on JAX and CPU?

Command: make benchmark   (or KERAS_BACKEND=jax python benchmarks/normalization.py)

One training step of the quickstart's model with each of the two forms of `model.layers.Normalization`: Keras' own
operation, whose row sums XLA turns into scalar loops on CPU, and the same by matrix products. The contestants alternate
in one run; after a step each to compile, medians and quartiles of the rest are printed.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from unittest import mock

os.environ.setdefault("KERAS_BACKEND", "jax")

import numpy as np
from timing import alternate, print_machine

import keras_igpt as igpt
from keras_igpt.model import layers


def make_step(by_products: bool, batch_size: int) -> Callable[[], None]:
    """Compiles one training step with the form chosen."""
    random = np.random.default_rng(0)
    with mock.patch.object(layers, "reduces_rows_slowly", return_value=by_products):
        backbone = igpt.ImageGPTBackbone.from_preset("igpt_nano", vocabulary_size=128)
        language_model = igpt.ImageGPTCausalLM(backbone)
        language_model.compile(**igpt.pretraining_recipe("igpt_nano", "ar", steps=1000))
        token_ids = random.integers(0, 128, (batch_size, backbone.num_tokens)).astype("int32")

        def step() -> None:
            # `train_on_batch` returns numbers, which waits for the step.
            language_model.train_on_batch(token_ids)

    return step


def main(arguments: list[str] | None = None) -> dict[str, float]:
    """Prints the table; returns median seconds by contestant."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--batch-size", type=int, default=32)
    options = parser.parse_args(arguments)
    contestants = {
        name: make_step(by_products, options.batch_size)
        for name, by_products in {"Keras operation": False, "matrix products": True}.items()
    }
    times = alternate(contestants, options.rounds)
    print_machine()
    print("| form | median step (ms) | quartiles (ms) |\n|---|---|---|")
    for name, seconds in times.items():
        lower, median, upper = np.percentile(seconds * 1000, [25, 50, 75])
        print(f"| {name} | {median:.0f} | {lower:.0f} to {upper:.0f} |")
    return {name: float(np.median(seconds)) for name, seconds in times.items()}


if __name__ == "__main__":
    main()
