"""Pictures as functions take them, in memory or in files, made examples that fit a model."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import numpy.typing as npt

from keras_igpt.data.batches import EvaluationBatches, Source
from keras_igpt.data.examples import LabeledTokens

LabeledPictures = Source | EvaluationBatches | tuple[npt.ArrayLike, npt.ArrayLike]


def as_examples(language_model: Any, given: LabeledPictures | npt.ArrayLike) -> Source:
    """Returns pictures as examples that fit the model, or says why they do not.

    Args:
        language_model: an `ImageGPTCausalLM` or `ImageGPTMaskedLM`.
        given: `LabeledImages`, `LabeledTokens`, `ImageFiles` or `EvaluationBatches` of them; uint8 images
            `(B, H, W, C)` or token ids `(B, T)`, which get labels that mean nothing; or a pair of these and integer
            labels `(B,)`.

    Returns:
        `LabeledImages`, `LabeledTokens` or `ImageFiles`.

    Raises:
        ValueError: if they do not fit the model, or inputs and labels each other.
    """
    colors = language_model.backbone.vocabulary_size
    if isinstance(given, EvaluationBatches):
        given = given.examples
    if isinstance(given, keras.utils.PyDataset):
        raise ValueError(
            "`inputs` must be pictures, token ids, examples or EvaluationBatches, which end. "
            f"Received: {type(given).__name__}"
        )
    if isinstance(given, LabeledTokens) and given.num_colors != colors:
        raise ValueError(f"`inputs` must be tokens of {colors} colours. Received: {given.num_colors} colours")
    if isinstance(given, Source):
        first = EvaluationBatches(given.take(range(min(1, len(given)))), language_model.palette, 1)
        language_model.check_token_arrays(first[0][0], "inputs", padded=True)
        return given
    inputs, labels = given if isinstance(given, tuple) else (given, None)
    token_ids = language_model.token_array(inputs)
    classes = np.zeros(len(token_ids), np.int64) if labels is None else np.asarray(labels)
    return LabeledTokens(token_ids, classes, colors)
