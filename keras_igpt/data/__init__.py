"""Data sets with the paper's splits, augmentation and tokenisation, in batches that repeat after a restart."""

from keras_igpt.data.augmentation import PaddedCrop, RandomResizedCrop
from keras_igpt.data.batches import EvaluationBatches, TrainingBatches
from keras_igpt.data.datasets import load_arrays, load_dataset, load_image_folder, load_splits
from keras_igpt.data.examples import (
    DataSplits,
    Examples,
    LabeledImages,
    LabeledTokens,
    low_data_subset,
    split_off,
)
from keras_igpt.data.image_files import ImageFiles, resize_images
from keras_igpt.data.token_cache import cache_tokens

__all__ = [
    "DataSplits",
    "EvaluationBatches",
    "Examples",
    "ImageFiles",
    "LabeledImages",
    "LabeledTokens",
    "PaddedCrop",
    "RandomResizedCrop",
    "TrainingBatches",
    "cache_tokens",
    "load_arrays",
    "load_dataset",
    "load_image_folder",
    "load_splits",
    "low_data_subset",
    "resize_images",
    "split_off",
]
