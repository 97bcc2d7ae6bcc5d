"""Classify pictures with a classifier that `keras-igpt finetune` trained.

keras-igpt classify cat.jpg dog.png --model finetune_output/classifier.keras
"""

from __future__ import annotations

import argparse

import keras_igpt as igpt
from keras_igpt.commands.shared import add_model_argument, add_output_argument, say_what_next
from keras_igpt.objectives.open_model import open_model
from keras_igpt.support.files import write_json


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.add_argument("pictures", nargs="+", metavar="PICTURE", help="files of any size")
    add_model_argument(parser)
    parser.add_argument("--batch-size", type=int, default=128)
    add_output_argument(parser, "classify_output")


def run(options: argparse.Namespace) -> None:
    """Runs the command."""
    classifier = open_model(options.model, "--model")
    if not isinstance(classifier, igpt.ImageGPTImageClassifier):
        raise ValueError(f"--model must be a classifier, such as finetune writes. Received: {options.model}")
    predictions = classifier.predict_images(options.pictures, batch_size=options.batch_size)
    for row, picture in enumerate(options.pictures):
        print(f"{picture}: {predictions.describe(row)}")
    probabilities = (
        dict(zip(predictions.class_names, each, strict=True)) for each in predictions.probabilities.tolist()
    )
    options.output.mkdir(parents=True, exist_ok=True)
    write_json(options.output / "classes.json", dict(zip(options.pictures, probabilities, strict=True)))
    say_what_next(f"classes.json to {options.output}/", f"export --model {options.model} --format onnx --batch-size 1")
