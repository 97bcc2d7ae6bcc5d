"""Fit a palette to pictures, and show what it loses.

keras-igpt palette --images FOLDER --image-size 32 --colors 512
"""

from __future__ import annotations

import argparse

import keras_igpt as igpt
from keras_igpt import plotting
from keras_igpt.commands.run_folder import make_run_folder
from keras_igpt.commands.shared import (
    add_data_arguments,
    add_output_argument,
    check_counts,
    data_words,
    load_training_pictures,
    named_by_flags,
    pixels_of,
    say_what_next,
    spread,
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    add_data_arguments(parser)
    parser.add_argument("--image-size", type=int, default=32, help="side of the pictures in pixels")
    parser.add_argument("--colors", type=int, default=512, help="of the palette")
    add_output_argument(parser, "palette_output")


def run(options: argparse.Namespace) -> None:
    """Runs the command."""
    check_counts(options, "colors")
    train, held_out = load_training_pictures(options, options.image_size)
    shown = pixels_of(spread(held_out, 1000))
    make_run_folder(options)
    with named_by_flags(num_colors="--colors"):
        palette = igpt.ColorPalette.fit(pixels_of(train), options.colors, seed=options.seed)
    palette.save(options.output / "palette.npy")
    plotting.plot_palette(palette).savefig(options.output / "palette.png")
    # The pictures of a class stand together.
    few = pixels_of(spread(held_out, 8))
    plotting.plot_quantization(few, palette).savefig(options.output / "quantization.png")
    print(palette.quantization_report(shown))
    say_what_next(
        f"palette.npy, palette.png and quantization.png to {options.output}/",
        "pretrain",
        *data_words(options),
        "--palette",
        options.output / "palette.npy",
        "--image-size",
        options.image_size,
    )
