"""Classify pictures with a classifier that `keras-igpt finetune` trained.

keras-igpt classify cat.jpg dog.png --model finetune_output/classifier.keras
keras-igpt classify FOLDER --model finetune_output/classifier.keras
"""

from __future__ import annotations

import argparse
from pathlib import Path

import keras_igpt as igpt
from keras_igpt.commands.run_folder import make_output_folder
from keras_igpt.commands.shared import add_model_argument, add_output_argument, check_counts, say_what_next
from keras_igpt.data.folders import pictures_in
from keras_igpt.objectives.open_model import open_model
from keras_igpt.support.files import write_json


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.add_argument("pictures", nargs="+", metavar="PICTURE", help="files of any size, or folders of them")
    add_model_argument(parser)
    parser.add_argument("--batch-size", type=int, default=128, help="pictures of a pass")
    add_output_argument(parser, "classify_output")


def run(options: argparse.Namespace) -> None:
    """Runs the command."""
    check_counts(options, "batch_size")
    classifier = open_model(options.model, "--model")
    if not isinstance(classifier, igpt.ImageGPTImageClassifier):
        raise ValueError(f"--model must be a classifier, such as finetune writes. Received: {options.model}")
    pictures = [str(path) for given in options.pictures for path in _files_of(given)]
    make_output_folder(options)
    predictions = classifier.predict_images(pictures, batch_size=options.batch_size)
    for row, picture in enumerate(pictures):
        print(f"{picture}: {predictions.describe(row)}")
    probabilities = (
        dict(zip(predictions.class_names, each, strict=True)) for each in predictions.probabilities.tolist()
    )
    write_json(options.output / "classes.json", dict(zip(pictures, probabilities, strict=True)))
    export = ("export", "--model", options.model, "--format", "onnx", "--batch-size", "1")
    say_what_next(f"classes.json to {options.output}/", *export)


def _files_of(given: str) -> list[Path]:
    """Returns a file as it is, and the pictures of a folder and its subfolders."""
    if not Path(given).is_dir():
        return [Path(given)]
    files = pictures_in(given, "PICTURE")
    if not files:
        raise ValueError(f"PICTURE must be a picture or a folder with pictures in it. Received: {given} with 0")
    return files
