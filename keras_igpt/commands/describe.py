"""Tell what a preset or a model's file is: sizes, palette, how it is trained.

keras-igpt describe igpt_small
keras-igpt describe run/igpt.keras
keras-igpt describe hf://user/model
"""

from __future__ import annotations

import argparse

import keras_igpt as igpt
from keras_igpt.objectives.open_model import names_a_file, open_model


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.add_argument("name", help="a preset, a .keras file, or hf://user/model on the Hugging Face hub")


def run(options: argparse.Namespace) -> None:
    """Runs the command."""
    print(igpt.describe(open_model(options.name, "name") if names_a_file(options.name) else options.name))
