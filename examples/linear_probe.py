"""Linear probes of a trained model: the accuracy of logistic regression on the features of every depth.

Command:
    python examples/linear_probe.py --model igpt.keras --dataset cifar10 --data-dir FOLDER  # FOLDER as prepared by TFDS
    python examples/linear_probe.py --model igpt.keras --images FOLDER                      # FOLDER/<class>/<picture>

Needs: pip install "keras_igpt[jax,data,plot]", and a model's file, such as examples/pretrain.py writes.
Time: the forward pass of all pictures, then some thirty products with the features for each depth and C.
Writes report.json and depth_curve.png to linear_probe_output/ (--output).

Expected, for igpt_cifar10_8x8 on CIFAR-10: 45.1% on test at depth 7 of 8, five minutes on one busy core (RESULTS.md).
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("KERAS_BACKEND", "jax")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
from arguments import add_model_argument, load_data, make_parser

import keras_igpt as igpt


def main(arguments: list[str] | None = None) -> igpt.ProbeReport:
    """Fits and scores the probes; returns their report."""
    parser = make_parser(__doc__, "linear_probe_output")
    add_model_argument(parser)
    parser.add_argument("--layers", type=int, nargs="+", help="depths; all of them by default")
    parser.add_argument("--which", choices=("normed", "residual"), default="normed", help="form of the features")
    parser.add_argument("--concatenate", type=int, help="also so many depths side by side; 5 in the paper's iGPT-XL")
    parser.add_argument(
        "--pictures", type=int, help="training pictures at most, spread over all; a fifth for validation"
    )
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--features", help="folder for the features of sets too large for memory")
    options = parser.parse_args(arguments)

    language_model = keras.saving.load_model(options.model, compile=False)
    size = language_model.backbone.image_size
    data = load_data(options, size, in_memory=False)
    train, validation = data.train, data.validation
    if options.pictures is not None:
        train, validation = spread(train, options.pictures), spread(validation, -(-options.pictures // 5))
    print(
        f"{len(train):,} training, {len(validation):,} validation and {len(data.test):,} test pictures, {size}x{size}"
    )

    started = time.monotonic()
    probe = igpt.LinearProbe(
        language_model,
        layers="all" if options.layers is None else options.layers,
        which=options.which,
        concatenate=options.concatenate,
        batch_size=options.batch_size,
        folder=options.features,
    ).fit(train, validation)
    probe.score(data.test)
    print_curve(probe.report)
    print(f"{(time.monotonic() - started) / 60:.1f} minutes on {keras.backend.backend()}")
    output = Path(options.output)
    probe.report.save(output / "report.json")
    probe.report.plot().savefig(output / "depth_curve.png")
    print(f"Report and picture: {output}/")
    return probe.report


def spread(examples: Any, count: int) -> Any:
    """Takes `count` examples evenly from all of them."""
    return examples.take(np.unique(np.linspace(0, len(examples) - 1, min(count, len(examples))).round().astype(int)))


def print_curve(report: igpt.ProbeReport) -> None:
    """Prints a line for each depth; the one that validation chose has an arrow."""
    chosen, final = report.chosen_on_validation, report.final_on_test
    assert final is not None
    print(" depth         C  iterations  validation    test")
    for line in chosen.layers:
        (depth,) = line.layers
        mark = "  <- chosen on validation" if depth == chosen.best_layer else ""
        print(
            f"{depth:6}  {line.regularization_strength:8g}  {line.iterations:10}  {line.validation_accuracy:10.2%}"
            f"  {final.accuracies[depth]:6.2%}{'' if line.converged else '  (not converged)'}{mark}"
        )
    if chosen.concatenation is not None:
        line = chosen.concatenation
        depths = f"{line.layers[0]} to {line.layers[-1]}"
        print(
            f"depths {depths} side by side: C {line.regularization_strength:g}, "
            f"{line.validation_accuracy:.2%} on validation, {final.concatenation:.2%} on test"
        )


if __name__ == "__main__":
    main()
