"""Classify from 4, 25 and 400 labels a class: logistic regression on frozen features, several random subsets each.

keras-igpt low-data --model run/igpt.keras --images FOLDER --labels 4 25
"""

from __future__ import annotations

import argparse

import keras_igpt as igpt
from keras_igpt.commands.shared import (
    add_data_arguments,
    add_model_argument,
    add_output_argument,
    load_data,
    load_language_model,
    say_what_next,
    write_config,
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    add_model_argument(parser)
    add_data_arguments(parser)
    parser.add_argument("--labels", type=int, nargs="+", default=[4, 25, 400], help="labels a class")
    parser.add_argument("--subsets", type=int, default=5, help="random subsets, of seeds 0, 1, …")
    parser.add_argument("--layers", type=int, nargs="+", help="depths to choose from; all of them by default")
    parser.add_argument("--which", choices=("normed", "residual"), default="normed", help="form of the features")
    parser.add_argument("--batch-size", type=int, default=128)
    add_output_argument(parser, "low_data_output")


def run(options: argparse.Namespace) -> None:
    """Runs the command."""
    model = load_language_model(options.model)
    data = load_data(options, model.backbone.image_size)
    table = igpt.low_data_table(
        model,
        data,
        options.labels,
        range(options.subsets),
        options.layers,
        which=options.which,
        batch_size=options.batch_size,
    )
    print(table)
    write_config(options)
    table.save(options.output / "table.json")
    say_what_next(f"table.json to {options.output}/", f"finetune --model {options.model} …")
