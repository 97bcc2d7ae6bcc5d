"""What the examples share: the arguments that say which pictures, and opening them."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

import keras_igpt as igpt

DATASETS = ("cifar10", "cifar100", "stl10")


def make_parser(
    doc: str, output: str, datasets: Sequence[str] = DATASETS, default: str | None = None
) -> argparse.ArgumentParser:
    """Makes a parser with `--dataset`, `--data-dir`, `--images`, `--seed` and `--output`.

    Args:
        doc: docstring of the example; its first line is the description.
        output: where the example writes unless told otherwise.
        datasets: choices of `--dataset`.
        default: data set used where neither `--dataset` nor `--images` is given; None if one of them must be.
    """
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    source = parser.add_mutually_exclusive_group(required=default is None)
    source.add_argument("--dataset", choices=datasets, default=default)
    source.add_argument("--images", help="folder with a subfolder of pictures for each class")
    parser.add_argument("--data-dir", help="folder of data sets prepared by TensorFlow Datasets")
    parser.add_argument("--seed", type=int, default=0, help="also decides which pictures are held out for validation")
    parser.add_argument("--output", default=output, help=f"where to write; {output} by default")
    return parser


def add_model_argument(parser: argparse.ArgumentParser) -> None:
    """Adds `--model`."""
    parser.add_argument("--model", required=True, help=".keras file of a model with its palette")


def load_data(options: argparse.Namespace, image_size: int, in_memory: bool = True) -> igpt.DataSplits[Any]:
    """Opens the pictures that the command line names.

    Args:
        options: what a parser of `make_parser` returned.
        image_size: side that the pictures get.
        in_memory: whether the pictures of a folder are read at once, or each time they are used.
    """
    if options.images:
        files = igpt.load_image_folder(options.images, image_size, seed=options.seed)
        return igpt.load_splits(files) if in_memory else files
    return igpt.load_dataset(options.dataset, options.data_dir, image_size, seed=options.seed)
