"""Suggest sizes and steps that fit your pictures and time, and say what to expect.

keras-igpt suggest --images FOLDER --minutes 30
keras-igpt suggest --pictures 1280000 --minutes 1440 --flops-per-second 3e14
"""

from __future__ import annotations

import argparse
import shlex

import keras_igpt as igpt
from keras_igpt.commands.shared import (
    add_data_arguments,
    check_source,
    data_words,
    load_training_pictures,
    named_by_flags,
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    add_data_arguments(parser, required=False)
    parser.add_argument("--pictures", type=int, help="how many pictures there are to train on, in place of any")
    parser.add_argument("--minutes", type=float, required=True, help="time for one run")
    parser.add_argument(
        "--flops-per-second", type=float, help="of another device in training; by default this one is timed"
    )


def run(options: argparse.Namespace) -> None:
    """Runs the command."""
    pictures = options.pictures
    given = [name for name in ("images", "dataset", "pictures") if getattr(options, name) is not None]
    if len(given) != 1:
        raise ValueError(f"One of --images, --dataset and --pictures must be given. Received: {given or 'none'}")
    check_source(options)
    if pictures is None:
        train, _ = load_training_pictures(options, image_size=8)
        pictures = len(train)
    with named_by_flags(num_pictures="--pictures"):
        suggestion = igpt.suggest(pictures, options.minutes, options.flops_per_second)
    model = suggestion.architecture
    # A run shorter than a pass over the pictures.
    length = f" --epoch-steps {suggestion.steps}" if suggestion.steps * suggestion.batch_size < pictures else ""
    print(f"{pictures:,} pictures, {options.minutes:g} minutes:\n{suggestion}")
    memory = " --dtype mixed_bfloat16 --remat" if suggestion.saves_memory else ""
    data = "--images FOLDER" if options.pictures else shlex.join(data_words(options))
    print(
        f"Next: keras-igpt pretrain {data} --image-size {model.image_size} "
        f"--colors {model.vocabulary_size} --layers {model.num_layers} --heads {model.num_heads} "
        f"--width {model.hidden_dim} --batch-size {suggestion.batch_size} --epochs {suggestion.epochs}{length}{memory}"
    )
