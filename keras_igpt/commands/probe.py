"""Fit linear probes on the frozen features of every depth, beside raw pixels.

keras-igpt probe --model run/igpt.keras --images FOLDER
keras-igpt probe --model igpt_cifar10_8x8 --dataset cifar10 --data-dir FOLDER
"""

from __future__ import annotations

import argparse
from typing import Any

import keras_igpt as igpt
from keras_igpt.commands.shared import (
    add_data_arguments,
    add_model_argument,
    add_output_argument,
    load_data,
    load_language_model,
    say_what_next,
    spread,
    write_config,
)
from keras_igpt.data.inputs import as_pictures
from keras_igpt.evaluation.low_data import pixel_features
from keras_igpt.support.checks import check_integer


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    add_model_argument(parser)
    add_data_arguments(parser)
    parser.add_argument("--layers", type=int, nargs="+", help="depths; all of them by default")
    parser.add_argument("--which", choices=("normed", "residual"), default="normed", help="form of the features")
    parser.add_argument("--concatenate", type=int, help="also so many depths side by side; 5 in the paper's iGPT-XL")
    parser.add_argument("--pictures", type=int, help="training pictures at most; a fifth as many for validation")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--features", help="folder for the features of sets too large for memory")
    parser.add_argument("--no-pixels", action="store_true", help="leave out raw pixels, which come to memory")
    add_output_argument(parser, "probe_output")


def run(options: argparse.Namespace) -> None:
    """Runs the command."""
    model = load_language_model(options.model)
    data = load_data(options, model.backbone.image_size)
    if options.pictures is not None:
        few = check_integer("--pictures", options.pictures)
        train, validation = spread(data.train, few), spread(data.validation, -(-few // 5))
        data = igpt.DataSplits(train, validation, data.test, data.class_names)
    print(
        f"{len(data.train):,} training, {len(data.validation):,} validation, {len(data.test):,} test pictures",
        flush=True,
    )
    probe = igpt.LinearProbe(
        model,
        "all" if options.layers is None else options.layers,
        options.which,
        options.concatenate,
        batch_size=options.batch_size,
        folder=options.features,
    )
    probe.fit(data.train, data.validation)
    accuracies = probe.score(data.test)
    chosen = probe.report.chosen_on_validation
    print(" depth         C  validation    test")
    for line in chosen.layers:
        (depth,) = line.layers
        mark = "  <- chosen on validation" if depth == chosen.best_layer else ""
        print(
            f"{depth:6}  {line.regularization_strength:8g}  {line.validation_accuracy:10.2%}  {accuracies[depth]:6.2%}"
            f"{'' if line.converged else '  (not converged)'}{mark}"
        )
    final = probe.report.final_on_test
    if chosen.concatenation is not None and final is not None and final.concatenation is not None:
        several = chosen.concatenation
        print(
            f"depths {several.layers[0]} to {several.layers[-1]} side by side: "
            f"{several.validation_accuracy:.2%} on validation, {final.concatenation:.2%} on test"
        )
    found: dict[str, Any] = {}
    if not options.no_pixels:
        found["raw pixels, test accuracy"] = _raw_pixels(model, data)
        print(f"raw pixels, logistic regression: {found['raw pixels, test accuracy']:.2%} on test")
    write_config(options, **found)
    probe.report.save(options.output / "report.json")
    probe.report.plot().savefig(options.output / "depth_curve.png")
    say_what_next(
        f"report.json, config.json and depth_curve.png to {options.output}/", f"finetune --model {options.model} …"
    )


def _raw_pixels(model: Any, data: igpt.DataSplits[Any]) -> float:
    """Test accuracy of logistic regression on pixels, C chosen as for the features."""
    parts = (data.train, data.validation, data.test)
    features = (pixel_features(as_pictures(model, part), part.labels) for part in parts)
    train, validation, test = ((part.at(0), part.labels) for part in features)
    return igpt.fit_logistic_regression(train, validation).score(*test)
