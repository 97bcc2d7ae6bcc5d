r"""Make token shards of web pictures that resemble a reference set, without duplicates and evaluation pictures.

keras-igpt curate fit imagenet/train --model igpt_32x32.keras --output imagenet.npz
keras-igpt curate curate 'web/*.tar' --output web-tokens --model igpt_32x32.keras --reference imagenet.npz \
    --palette clusters.npy --image-size 64 --exclude imagenet/validation
"""

from __future__ import annotations

import argparse

from keras_igpt.commands.shared import named_by_flags
from keras_igpt.curation import command

__all__ = ["add_arguments", "run"]

add_arguments = command.add_arguments

# Those of the two commands inside, which are not among this one's own.
_FLAGS = {
    "layer": "--layer",
    "centroids": "--centroids",
    "seed": "--seed",
    "output": "--output",
    "palette": "--palette",
    "image_size": "--image-size",
    "exclude": "--exclude",
    "threshold": "--threshold",
    "share": "--share",
    "quantile": "--quantile",
    "min_side": "--min-side",
    "max_pixels": "--max-pixels",
}


def run(options: argparse.Namespace) -> None:
    """Runs one of the two commands inside; errors name their flags."""
    with named_by_flags(**_FLAGS):
        command.run(options)
