"""Keep the first rows of pictures and draw the rest.

keras-igpt complete cat.jpg dog.png --model run/igpt.keras --keep-rows 8
"""

from __future__ import annotations

import argparse

from keras_igpt import plotting
from keras_igpt.commands.run_folder import make_output_folder
from keras_igpt.commands.shared import (
    add_drawing_arguments,
    add_model_argument,
    add_output_argument,
    check_counts,
    drawing,
    few_of,
    load_language_model,
    say_what_next,
)
from keras_igpt.data.inputs import as_pictures
from keras_igpt.support.checks import check_integer


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.add_argument("pictures", nargs="+", metavar="PICTURE", help="files of any size")
    add_model_argument(parser, required=False)
    parser.add_argument("--keep-rows", type=int, help="rows that are kept; half by default")
    parser.add_argument("--num-samples", type=int, default=5, help="completions of each picture")
    add_drawing_arguments(parser)
    add_output_argument(parser, "complete_output")


def run(options: argparse.Namespace) -> None:
    """Runs the command."""
    check_counts(options, "num_samples", "batch_size")
    model = load_language_model(options.model, autoregressive=True)
    size = model.backbone.image_size
    # Something is left to draw.
    keep = size // 2 if options.keep_rows is None else check_integer("keep_rows", options.keep_rows, 0, size - 1)
    originals = as_pictures(model, options.pictures, "PICTURE")
    make_output_folder(options)
    completions = model.complete(
        originals, keep_rows=keep, num_samples=options.num_samples, verbose=1, **drawing(options)
    )
    plotting.plot_completions(originals, completions, keep_rows=keep).savefig(options.output / "completions.png")
    every = completions.reshape(-1, *completions.shape[2:])
    plotting.save_animation(
        every, options.output / "completions.gif", keep_pixels=keep * size, columns=options.num_samples
    )
    say_what_next(
        f"completions.png and completions.gif to {options.output}/",
        "score",
        *few_of(options.pictures),
        "--model",
        options.model,
    )
