"""Suggest sizes and steps for one's pictures and time, and say what to expect.

keras-igpt suggest --images FOLDER --minutes 30
keras-igpt suggest --pictures 1280000 --minutes 1440 --flops-per-second 3e14
"""

from __future__ import annotations

import argparse

import keras_igpt as igpt


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    pictures = parser.add_mutually_exclusive_group(required=True)
    pictures.add_argument("--images", help="folder of pictures, which are counted")
    pictures.add_argument("--pictures", type=int, help="how many pictures there are to train on")
    parser.add_argument("--minutes", type=float, required=True, help="time for one run")
    parser.add_argument(
        "--flops-per-second", type=float, help="of another device in training; by default this one is timed"
    )


def run(options: argparse.Namespace) -> None:
    """Runs the command."""
    pictures = options.pictures
    if options.images:
        # A tenth is held out.
        pictures = max(1, len(igpt.load_unlabeled_folder(options.images, image_size=8)) * 9 // 10)
    suggestion = igpt.suggest(pictures, options.minutes, options.flops_per_second)
    model = suggestion.architecture
    print(f"{pictures:,} pictures, {options.minutes:g} minutes:\n{suggestion}")
    print(
        f"Next: keras-igpt pretrain --images {options.images or 'FOLDER'} --image-size {model.image_size} "
        f"--colors {model.vocabulary_size} --layers {model.num_layers} --heads {model.num_heads} "
        f"--width {model.hidden_dim} --batch-size {suggestion.batch_size} --epochs {suggestion.epochs}"
    )
