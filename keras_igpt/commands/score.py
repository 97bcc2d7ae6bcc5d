"""Tell how surprising pictures are to a model, and where.

keras-igpt score cat.jpg dog.png --model run/igpt.keras
"""

from __future__ import annotations

import argparse

import keras_igpt as igpt
from keras_igpt import plotting
from keras_igpt.commands.run_folder import make_output_folder
from keras_igpt.commands.shared import (
    add_model_argument,
    add_output_argument,
    check_counts,
    few_of,
    load_language_model,
    say_what_next,
)
from keras_igpt.data.inputs import as_pictures
from keras_igpt.support.files import write_json


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.add_argument("pictures", nargs="+", metavar="PICTURE", help="files of any size")
    add_model_argument(parser, required=False)
    parser.add_argument("--batch-size", type=int, default=16, help="pictures of a pass")
    add_output_argument(parser, "score_output")


def run(options: argparse.Namespace) -> None:
    """Runs the command."""
    check_counts(options, "batch_size")
    model = load_language_model(options.model)
    images = as_pictures(model, options.pictures, "PICTURE")
    make_output_folder(options)
    scores = model.score(images, per_pixel=True, batch_size=options.batch_size)
    for name, nats in zip(options.pictures, scores.nats_per_token, strict=True):
        print(f"{name}: {nats:.3f} nats per token")
    print(scores)
    plotting.plot_surprise(images, scores.surprise).savefig(options.output / "surprise.png")
    results = dict(zip(options.pictures, scores.nats_per_token.tolist(), strict=True))
    write_json(options.output / "scores.json", results)
    # BERT models complete nothing; the page shows what they fill.
    following = ["complete", *few_of(options.pictures)] if isinstance(model, igpt.ImageGPTCausalLM) else ["demo"]
    say_what_next(f"surprise.png and scores.json to {options.output}/", *following, "--model", options.model)
