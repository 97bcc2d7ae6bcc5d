"""Image GPT for Keras 3: generative pre-training from pixels, and what its features are good for.

A process that only loads a model needs `import keras_igpt` too, before `keras.saving.load_model`: Keras does not import
the classes that a file names, and says "Could not locate class" without it.

Reference:
    [Chen et al., 2020, Generative Pretraining from Pixels](https://cdn.openai.com/papers/Generative_Pretraining_from_Pixels_V2.pdf)
"""

from typing import Any

try:
    import keras  # noqa: F401
except ImportError as error:
    # Keras' own message names the absent package, not why it is looked for; unset, KERAS_BACKEND means TensorFlow.
    if (error.name or "").partition(".")[0] not in ("jax", "tensorflow", "torch"):
        raise
    raise ImportError(
        "Keras must find its backend: set the environment variable KERAS_BACKEND to 'jax', 'tensorflow' or 'torch' "
        "before the import, and install that one: pip install 'keras_igpt[jax]', 'keras_igpt[tensorflow]' or "
        f"'keras_igpt[torch]'. Received: {error}"
    ) from error

from keras_igpt.backend.processes import data_shard
from keras_igpt.checkpoints.huggingface import load_huggingface_checkpoint, save_huggingface_checkpoint
from keras_igpt.checkpoints.model_card import write_model_card
from keras_igpt.checkpoints.openai import load_openai_checkpoint
from keras_igpt.checkpoints.refit_palette import refit_palette
from keras_igpt.checkpoints.serving import ServingModel
from keras_igpt.data import (
    DataSplits,
    EvaluationBatches,
    ImageFiles,
    LabeledImages,
    LabeledTokens,
    MixedBatches,
    PaddedCrop,
    RandomResizedCrop,
    Source,
    TokenShard,
    TokenShards,
    TrainingBatches,
    UnlabeledImages,
    UnlabeledTokens,
    cache_tokens,
    load_arrays,
    load_dataset,
    load_image_folder,
    load_splits,
    load_unlabeled_folder,
    low_data_subset,
    resize_images,
    split_off,
    write_token_manifest,
    write_token_shard,
)
from keras_igpt.describe import Description, describe
from keras_igpt.evaluation.attention_maps import attention_maps
from keras_igpt.evaluation.attention_probe import AttentionProbe, AttentionReport
from keras_igpt.evaluation.depth_similarity import depth_similarity
from keras_igpt.evaluation.features import FeatureExtractor, LabeledFeatures
from keras_igpt.evaluation.intervals import (
    Interval,
    MeasuredAccuracy,
    PairedComparison,
    accuracy_interval,
    compare_accuracies,
    mean_interval,
    measure_accuracy,
)
from keras_igpt.evaluation.linear_probe import LinearProbe
from keras_igpt.evaluation.logistic_regression import LogisticFit, fit_logistic_regression
from keras_igpt.evaluation.low_data import LowDataTable, low_data_table
from keras_igpt.evaluation.nearest_neighbors import NeighborResult, nearest_neighbors
from keras_igpt.evaluation.probe_report import ProbeReport
from keras_igpt.evaluation.scaling_law import ScalingLaw, ScalingRun, fit_scaling_law
from keras_igpt.evaluation.scaling_study import ScalingReport, scaling_study
from keras_igpt.evaluation.search_records import Search, Trial, TunedResult
from keras_igpt.evaluation.study import Study
from keras_igpt.inference.class_predictions import ClassPredictions
from keras_igpt.inference.scoring import Scores
from keras_igpt.model.architecture import Architecture
from keras_igpt.model.backbone import ImageGPTBackbone
from keras_igpt.model.cost import Estimate, estimate, forward_flops
from keras_igpt.model.preset_weights import save_preset_weights
from keras_igpt.model.presets import get_preset, trained_presets
from keras_igpt.model.suggestion import Suggestion, suggest
from keras_igpt.objectives.causal_lm import ImageGPTCausalLM
from keras_igpt.objectives.image_classifier import ImageGPTImageClassifier
from keras_igpt.objectives.masked_lm import ImageGPTMaskedLM
from keras_igpt.palette import ColorPalette, QuantizationReport
from keras_igpt.training.accumulation import ApplyLeftoverGradients, apply_leftover_gradients
from keras_igpt.training.distribution import make_distribution, save_model
from keras_igpt.training.recipes import finetuning_recipe, pretraining_recipe, probing_recipe
from keras_igpt.training.resume import ExactResume

__version__ = "0.2.0"

__all__ = [
    "ApplyLeftoverGradients",
    "Architecture",
    "AttentionProbe",
    "AttentionReport",
    "ClassPredictions",
    "ColorPalette",
    "DataSplits",
    "DescendingLearningRateOracle",
    "Description",
    "Estimate",
    "EvaluationBatches",
    "ExactResume",
    "FeatureExtractor",
    "ImageFiles",
    "ImageGPTBackbone",
    "ImageGPTCausalLM",
    "ImageGPTImageClassifier",
    "ImageGPTMaskedLM",
    "Interval",
    "LabeledFeatures",
    "LabeledImages",
    "LabeledTokens",
    "LinearProbe",
    "LogisticFit",
    "LowDataTable",
    "MeasuredAccuracy",
    "MixedBatches",
    "NeighborResult",
    "PaddedCrop",
    "PairedComparison",
    "ProbeReport",
    "QuantizationReport",
    "RandomResizedCrop",
    "ScalingLaw",
    "ScalingReport",
    "ScalingRun",
    "Scores",
    "Search",
    "ServingModel",
    "Source",
    "Study",
    "Suggestion",
    "TokenShard",
    "TokenShards",
    "TrainingBatches",
    "Trial",
    "TunedResult",
    "UnlabeledImages",
    "UnlabeledTokens",
    "accuracy_interval",
    "apply_leftover_gradients",
    "attention_maps",
    "cache_tokens",
    "compare_accuracies",
    "data_shard",
    "depth_similarity",
    "describe",
    "estimate",
    "finetuning_recipe",
    "fit_logistic_regression",
    "fit_scaling_law",
    "forward_flops",
    "get_preset",
    "load_arrays",
    "load_dataset",
    "load_huggingface_checkpoint",
    "load_image_folder",
    "load_openai_checkpoint",
    "load_splits",
    "load_unlabeled_folder",
    "low_data_subset",
    "low_data_table",
    "make_distribution",
    "mean_interval",
    "measure_accuracy",
    "nearest_neighbors",
    "pretraining_recipe",
    "probing_recipe",
    "refit_palette",
    "resize_images",
    "save_huggingface_checkpoint",
    "save_model",
    "save_preset_weights",
    "scaling_study",
    "split_off",
    "suggest",
    "trained_presets",
    "write_model_card",
    "write_token_manifest",
    "write_token_shard",
]


def __getattr__(name: str) -> Any:
    # A class of KerasTuner's kind, which cannot be defined before KerasTuner is there.
    if name == "DescendingLearningRateOracle":
        from keras_igpt.evaluation.learning_rate_descent import DescendingLearningRateOracle

        return DescendingLearningRateOracle
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
