"""Classify from few labels: logistic regression on frozen features, several random subsets each.

keras-igpt low-data --model run/igpt.keras --images FOLDER
keras-igpt low-data --model run/igpt.keras --images FOLDER --labels 4 25

By default with 4, 25 and 400 labels a class, as in the paper, or those of them that the smallest class has.
"""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np

import keras_igpt as igpt
from keras_igpt.commands.run_folder import make_run_folder, write_config
from keras_igpt.commands.shared import (
    add_data_arguments,
    add_model_argument,
    add_output_argument,
    check_counts,
    data_words,
    depths_text,
    load_data,
    load_language_model,
    named_by_flags,
    say_frozen,
    say_what_next,
)
from keras_igpt.evaluation.probe_report import describe_probed
from keras_igpt.support.checks import check_integer

# The paper's, section 4.7.
_LABELS = (4, 25, 400)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    add_model_argument(parser)
    add_data_arguments(parser)
    parser.add_argument("--labels", type=int, nargs="+", help="labels a class; what fits of 4, 25 and 400 by default")
    parser.add_argument("--subsets", type=int, default=5, help="random subsets, of seeds 0, 1, …")
    parser.add_argument("--layers", type=int, nargs="+", help="depths to choose from; all of them by default")
    parser.add_argument("--which", choices=("normed", "residual"), default="normed", help="form of the features")
    parser.add_argument("--batch-size", type=int, default=128, help="pictures of a pass")
    add_output_argument(parser, "low_data_output")


def run(options: argparse.Namespace) -> None:
    """Runs the command."""
    subsets = check_integer("subsets", options.subsets, 2)
    check_counts(options, "batch_size")
    model = load_language_model(options.model)
    data = load_data(options, model.backbone.image_size, model.palette.num_channels)
    labels = options.labels or _labels_that_fit(data)
    depths = model.backbone.num_layers + 1 if options.layers is None else len(options.layers)
    few = f"{', '.join(map(str, labels))} labels a class, {subsets} subsets of each"
    say_frozen(data, model, f"{few}, regressions on {depths_text(depths)} and raw pixels")
    make_run_folder(options)
    with named_by_flags(labels_per_class="--labels"):
        table = igpt.low_data_table(
            model,
            data,
            labels,
            range(subsets),
            options.layers,
            which=options.which,
            batch_size=options.batch_size,
        )
    print(table)
    write_config(options, language_model=describe_probed(model), labels=labels)
    table.save(options.output / "table.json")
    say_what_next(f"table.json to {options.output}/", "finetune", "--model", options.model, *data_words(options))


def _labels_that_fit(data: igpt.DataSplits[Any]) -> list[int]:
    """Returns those of the default numbers that the smallest class has, and says which are left out."""
    smallest = int(np.bincount(data.train.labels).min())
    fitting = [count for count in _LABELS if count <= smallest]
    if not fitting:
        raise ValueError(
            f"--labels must be given, and at most {smallest}, the training pictures of the smallest class. "
            "Received: no --labels"
        )
    too_many = [str(count) for count in _LABELS if count > smallest]
    if too_many:
        print(f"Without {' and '.join(too_many)} labels a class: the smallest class has {smallest} training pictures.")
    return fitting
