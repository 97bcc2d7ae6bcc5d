"""Draw pictures from nothing.

keras-igpt draw --num-images 16
keras-igpt draw --model run/igpt.keras --temperature 0.9 --top-p 0.95
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
    load_language_model,
    say_what_next,
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    add_model_argument(parser, required=False)
    parser.add_argument("--num-images", type=int, default=16, help="pictures to draw")
    add_drawing_arguments(parser)
    add_output_argument(parser, "draw_output")


def run(options: argparse.Namespace) -> None:
    """Runs the command."""
    check_counts(options, "num_images", "batch_size")
    model = load_language_model(options.model, autoregressive=True)
    make_output_folder(options)
    images = model.generate(options.num_images, verbose=1, **drawing(options))
    plotting.plot_grid(images).savefig(options.output / "samples.png")
    plotting.save_animation(images, options.output / "samples.gif")
    print(model.score(images, batch_size=options.batch_size))
    say_what_next(f"samples.png and samples.gif to {options.output}/", "demo", "--model", options.model)
