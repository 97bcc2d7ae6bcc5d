"""Data sets with the paper's splits, augmentation, tokenisation and reproducible batches.

There are five kinds of examples: `LabeledImages` and `LabeledTokens` in memory, `ImageFiles`, which are decoded when
they are read, and `UnlabeledImages` and `UnlabeledTokens`. `token_source` reads rows of any of them as tokens, for
`batches` and `mixture`. `inputs` is the one door for pictures and tokens that are handed to a model's methods.
"""

from keras_igpt.data.augmentation import PaddedCrop, RandomResizedCrop
from keras_igpt.data.batches import EvaluationBatches, TrainingBatches
from keras_igpt.data.datasets import load_arrays, load_dataset, load_image_folder, load_splits, load_unlabeled_folder
from keras_igpt.data.examples import (
    DataSplits,
    Examples,
    LabeledExamples,
    LabeledImages,
    LabeledTokens,
    low_data_subset,
    split_off,
)
from keras_igpt.data.image_files import ImageFiles, resize_images
from keras_igpt.data.mixture import MixedBatches, Source
from keras_igpt.data.token_cache import cache_tokens
from keras_igpt.data.token_shards import TokenShard, TokenShards, write_token_manifest, write_token_shard
from keras_igpt.data.unlabeled import UnlabeledImages, UnlabeledTokens

__all__ = [
    "DataSplits",
    "EvaluationBatches",
    "Examples",
    "ImageFiles",
    "LabeledExamples",
    "LabeledImages",
    "LabeledTokens",
    "MixedBatches",
    "PaddedCrop",
    "RandomResizedCrop",
    "Source",
    "TokenShard",
    "TokenShards",
    "TrainingBatches",
    "UnlabeledImages",
    "UnlabeledTokens",
    "cache_tokens",
    "load_arrays",
    "load_dataset",
    "load_image_folder",
    "load_splits",
    "load_unlabeled_folder",
    "low_data_subset",
    "resize_images",
    "split_off",
    "write_token_manifest",
    "write_token_shard",
]
