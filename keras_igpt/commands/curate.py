r"""Make token shards of web pictures that resemble a reference set, without duplicates and evaluation pictures.

keras-igpt curate fit imagenet/train --model igpt_32x32.keras --output imagenet.npz
keras-igpt curate curate 'web/*.tar' --output web-tokens --model igpt_32x32.keras --reference imagenet.npz \
    --palette clusters.npy --image-size 64 --exclude imagenet/validation
"""

from keras_igpt.curation.command import add_arguments, run

__all__ = ["FLAGS", "add_arguments", "run"]

# Those of the two commands inside, which argparse does not list among this one's own, by what errors call them.
FLAGS = {
    "model": "--model",
    "layer": "--layer",
    "layers": "--layer",
    "num_centroids": "--centroids",
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
