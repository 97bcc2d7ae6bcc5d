"""Tell what a preset or a model's file is: sizes, palette, how it is trained.

keras-igpt describe igpt_small
keras-igpt describe run/igpt.keras
"""

from __future__ import annotations

import argparse
from pathlib import Path

import keras_igpt as igpt
from keras_igpt.objectives.open_model import open_model


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.add_argument("name", help="a preset, or a .keras file")


def run(options: argparse.Namespace) -> None:
    """Runs the command."""
    print(igpt.describe(open_model(options.name, "name") if Path(options.name).is_file() else options.name))
