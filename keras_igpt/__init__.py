"""Image GPT for Keras 3: generative pre-training from pixels, and what its features are good for.

Reference:
    [Chen et al., 2020, Generative Pretraining from Pixels](https://cdn.openai.com/papers/Generative_Pretraining_from_Pixels_V2.pdf)
"""

from keras_igpt.backbone import ImageGPTBackbone
from keras_igpt.compilation_cache import enable_compilation_cache
from keras_igpt.data import (
    EvaluationBatches,
    PaddedCrop,
    RandomResizedCrop,
    TrainingBatches,
    cache_tokens,
    load_arrays,
    load_dataset,
    load_image_folder,
)
from keras_igpt.estimate import estimate
from keras_igpt.exact_resume import ExactResume
from keras_igpt.image_classifier import ImageGPTImageClassifier
from keras_igpt.linear_probe import LinearProbe
from keras_igpt.palette import ColorPalette
from keras_igpt.pixel_models import ImageGPTCausalLM, ImageGPTMaskedLM
from keras_igpt.training import (
    ApplyLeftoverGradients,
    apply_leftover_gradients,
    finetuning_recipe,
    pretraining_recipe,
)

__version__ = "0.1.0"

__all__ = [
    "ApplyLeftoverGradients",
    "ColorPalette",
    "EvaluationBatches",
    "ExactResume",
    "ImageGPTBackbone",
    "ImageGPTCausalLM",
    "ImageGPTImageClassifier",
    "ImageGPTMaskedLM",
    "LinearProbe",
    "PaddedCrop",
    "RandomResizedCrop",
    "TrainingBatches",
    "apply_leftover_gradients",
    "cache_tokens",
    "enable_compilation_cache",
    "estimate",
    "finetuning_recipe",
    "load_arrays",
    "load_dataset",
    "load_image_folder",
    "pretraining_recipe",
]
