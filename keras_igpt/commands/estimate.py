"""Tell the memory and the arithmetic of a training step before anything is allocated.

keras-igpt estimate igpt_small --batch-size 128 --dtype mixed_bfloat16 --remat
"""

from __future__ import annotations

import argparse

import keras_igpt as igpt


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.add_argument("preset", help="a preset: keras-igpt describe tells of each")
    parser.add_argument("--batch-size", type=int, default=128, help="pictures of a step")
    parser.add_argument("--image-size", type=int, help="in place of the preset's")
    parser.add_argument("--dtype", default="float32", help="dtype policy, such as mixed_bfloat16")
    parser.add_argument("--remat", action="store_true", help="recompute each block in the backward pass")


def run(options: argparse.Namespace) -> None:
    """Runs the command."""
    print(
        igpt.estimate(options.preset, options.batch_size, options.image_size, dtype=options.dtype, remat=options.remat)
    )
