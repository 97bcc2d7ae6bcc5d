r"""Make token shards of web pictures that resemble a reference set, without duplicates and evaluation pictures.

keras-igpt curate fit imagenet/train --model igpt_32x32.keras --output imagenet.npz
keras-igpt curate curate 'web/*.tar' --output web-tokens --model igpt_32x32.keras --reference imagenet.npz \
    --palette clusters.npy --image-size 64 --exclude imagenet/validation
"""

from keras_igpt.curation.command import add_arguments, run

__all__ = ["add_arguments", "run"]
