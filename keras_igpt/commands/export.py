"""Write a SavedModel or an ONNX file that takes uint8 pictures and runs without this package.

keras-igpt export --model finetune_output/classifier.keras --format onnx --batch-size 1
keras-igpt export --model run/igpt.keras --layers 4 6 --format onnx --batch-size 1
"""

from __future__ import annotations

import argparse
from pathlib import Path

import keras_igpt as igpt
from keras_igpt.commands.shared import add_model_argument, named_by_flags
from keras_igpt.objectives.open_model import open_model


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    add_model_argument(parser)
    parser.add_argument("--layers", type=int, nargs="+", help="depths of a language model's features; all by default")
    parser.add_argument("--format", choices=("tf_saved_model", "onnx"), default="tf_saved_model", help="of the file")
    parser.add_argument("--batch-size", type=int, help="fixes the batch size, as ONNX on PyTorch needs")
    parser.add_argument("--output", type=Path, help="exported, or exported.onnx by default")


def run(options: argparse.Namespace) -> None:
    """Runs the command."""
    model = open_model(options.model, "--model")
    if not isinstance(model, igpt.ImageGPTImageClassifier):
        model = igpt.FeatureExtractor(model, options.layers or "all")
    elif options.layers:
        raise ValueError("--layers must be left out for a classifier, which has its own depth")
    output = options.output or Path("exported.onnx" if options.format == "onnx" else "exported")
    serving = igpt.ServingModel(model)
    with named_by_flags(filepath="--output"):
        serving.export(output, format=options.format, batch_size=options.batch_size)
    print(f"Wrote {output}: uint8 pictures {('B', *serving.image_shape)} in, logits or features out.")
