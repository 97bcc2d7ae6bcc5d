"""Write a model card for the Hugging Face hub: README.md and its pictures.

keras-igpt card --model run/igpt.keras --reports run probe_output --license apache-2.0 --address user/model
keras-igpt card --model igpt_cifar10_16x16
"""

from __future__ import annotations

import argparse
from typing import Any

import keras_igpt as igpt
from keras_igpt.commands.run_folder import make_output_folder
from keras_igpt.commands.shared import add_model_argument, add_output_argument
from keras_igpt.objectives.open_model import open_model


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    add_model_argument(parser)
    parser.add_argument("--reports", nargs="+", default=[], help="folders of runs, or their reports as JSON")
    parser.add_argument("--address", help="user/model, where the hub has the model or will have it")
    parser.add_argument("--data", help="what the model was trained on, in a sentence")
    parser.add_argument("--license", help="of the weights, as the hub knows it: apache-2.0")
    parser.add_argument("--num-samples", type=int, default=16, help="pictures drawn for the card; 0 for none")
    add_output_argument(parser, "card_output")


def run(options: argparse.Namespace) -> None:
    """Runs the command."""
    make_output_folder(options)
    known: dict[str, Any] = {"data": options.data}
    if options.model in igpt.trained_presets():
        description = igpt.describe(options.model)
        (recipe,) = description.training.values()
        known = {"data": options.data or f"The preset was {description.architecture['what']}.", "recipe": recipe}
    igpt.write_model_card(
        open_model(options.model, "--model"),
        options.output,
        address=options.address,
        reports=options.reports,
        license=options.license,
        num_samples=options.num_samples,
        **known,
    )
    address = options.address or "USER/MODEL"
    print(
        f"Wrote README.md and its pictures to {options.output}/.\n"
        f"Next: model.save('hf://{address}') in Python, and after it, since it writes a card of its own, "
        f"hf upload {address} {options.output}"
    )
