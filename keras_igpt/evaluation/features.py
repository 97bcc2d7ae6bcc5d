"""Features of a frozen model at chosen depths."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt

from keras_igpt.backend.whole_steps import WholeStepModel
from keras_igpt.data.examples import LabeledExamples, Labels, check_kind
from keras_igpt.data.inputs import LabeledPictures, Pictures, as_examples, as_labeled_examples
from keras_igpt.inference.compiled import computed_rows
from keras_igpt.objectives.pixel_model import PixelModel, check_language_model
from keras_igpt.support.checks import check_array, check_choice, check_depths
from keras_igpt.support.files import new_mapped_array, whole_file

Which = Literal["normed", "residual"]
Float32Array = npt.NDArray[np.float32]

_SMALLEST = 1e-12


@dataclass(frozen=True, eq=False, repr=False)
class LabeledFeatures(LabeledExamples):
    """Features of pictures at one or more depths, and labels; in memory or memory-mapped.

    Args:
        features: float32 array `(B, depths, D)`; of another float type it is converted.
        labels: integer array `(B,)`.

    Raises:
        ValueError: if the arrays have other shapes or types.

    Example:
    ```python
    train = FeatureExtractor(lm, layers=[12]).extract_labeled(data.train)
    few = low_data_subset(train, labels_per_class=4)
    ```
    """

    features: Float32Array
    labels: Labels

    def __post_init__(self) -> None:
        for name, parts in (("features", "depths"), ("labels", "rows")):
            object.__setattr__(self, name, check_array(name, getattr(self, name), parts))
        if self.features.ndim != 3 or self.labels.shape != self.features.shape[:1]:
            raise ValueError(
                "`features` must have shape (B, depths, D), and `labels` (B,). "
                f"Received: shapes {self.features.shape} and {self.labels.shape}"
            )
        if self.features.dtype.kind != "f" or self.labels.dtype.kind not in "iu":
            raise ValueError(
                "`features` must be floats, and `labels` integers. "
                f"Received: {self.features.dtype} and {self.labels.dtype}"
            )
        # Of float32, in files too, nothing is copied.
        object.__setattr__(self, "features", self.features.astype(np.float32, copy=False))

    def __repr__(self) -> str:
        count, *shape = self.features.shape
        return f"LabeledFeatures({count} pictures, features of shape {tuple(shape)})"

    def __len__(self) -> int:
        return len(self.features)

    def take(self, rows: npt.ArrayLike) -> Self:
        chosen = np.asarray(rows)
        return type(self)(self.features[chosen], self.labels[chosen])

    def join(self, other: Self) -> Self:
        check_kind(self, other)
        if self.features.shape[1:] != other.features.shape[1:]:
            raise ValueError(
                f"`other` must have features of shape {self.features.shape[1:]}. Received: {other.features.shape[1:]}"
            )
        return type(self)(np.concatenate([self.features, other.features]), np.concatenate([self.labels, other.labels]))

    def at(self, *positions: int) -> Float32Array:
        """Returns the features `(B, D)` of the depth at an index, or of several depths concatenated."""
        if len(positions) == 1:
            return self.features[:, positions[0]]
        return np.concatenate([self.features[:, position] for position in positions], axis=1)


def of_length_one(features: Float32Array) -> Float32Array:
    """Scales features `(B, D)` to length 1; those that are all zero, which resemble nothing, stay."""
    lengths = np.linalg.norm(features, axis=1, keepdims=True)
    scaled: Float32Array = features / np.maximum(lengths, np.float32(_SMALLEST))
    return scaled


class FeatureExtractor(WholeStepModel):
    """Computes the features f^l of chosen depths, pooled over positions on the device.

    A BERT model's inputs are masked; a picture's mask is a function of the model's `mask_seed` and the picture.

    Args:
        language_model: an `ImageGPTCausalLM` or `ImageGPTMaskedLM`; its weights are not changed.
        layers: `"all"` for 0…L, or a sequence of depths.
        which: `"normed"` (n^l, as in the paper) or `"residual"` (the residual stream h^l).

    Call arguments:
        inputs: inputs of the language model.

    Returns:
        float32 tensor `(B, depths, D)`.

    Raises:
        ValueError: if an argument is out of range.

    Example:
    ```python
    features = FeatureExtractor(lm, layers=[6, 12]).extract(data.train)   # (B, 2, D)
    ```

    Reference:
        [Chen et al., 2020](https://cdn.openai.com/papers/Generative_Pretraining_from_Pixels_V2.pdf), section 2.5
    """

    def __init__(
        self,
        language_model: PixelModel,
        layers: Literal["all"] | Sequence[int] = "all",
        which: Which = "normed",
    ) -> None:
        check_language_model(language_model)
        last = language_model.backbone.num_layers
        every = isinstance(layers, str) and layers == "all"
        depths = check_depths("layers", range(last + 1) if every else layers, last)
        if len(set(depths)) < len(depths):
            raise ValueError(f"`layers` must be 'all' or different depths in 0…{last}. Received: layers={layers!r}")
        check_choice("which", which, ("normed", "residual"))
        super().__init__(name="feature_extractor", dtype="float32")
        self.language_model = language_model
        self.depths = depths
        self.which: Which = which
        self.built = True

    def call(self, inputs: Any) -> Any:
        return self.language_model.pooled_features(inputs, which=self.which, layers=self.depths)

    def extract(
        self,
        inputs: Pictures,
        batch_size: int = 128,
        path: str | os.PathLike[str] | None = None,
    ) -> Float32Array:
        """Computes the features of pictures; files are decoded batch by batch.

        Args:
            inputs: pictures or token ids, as in `ImageGPTCausalLM.score`.
            batch_size: int.
            path: `.npy` file to write the features to instead of keeping them in memory, shape `(depths, B, D)`. An
                existing file is replaced on completion. ImageNet's take 63 GB at 25 depths of 512 features.

        Returns:
            float32 array `(B, depths, D)`, memory-mapped if `path` is given.

        Raises:
            ValueError: if an argument is out of range, or inputs do not fit the model.
            OSError: if `path` cannot be written, or the disk is full.
        """
        source = as_examples(self.language_model, inputs)
        hidden_dim = self.language_model.backbone.hidden_dim
        segments = computed_rows(
            self,
            {},
            batch_size,
            row_bytes=4 * len(self.depths) * hidden_dim,
            examples=source,
            palette=self.language_model.palette,
            purpose="extract",
        )
        # Depths first, since regressions read one depth at a time.
        shape = (len(self.depths), len(source), hidden_dim)

        def fill(features: Float32Array) -> None:
            for rows, computed in segments:
                features[:, rows] = np.moveaxis(computed, 1, 0)

        if path is None:
            features = np.empty(shape, np.float32)
            fill(features)
        else:
            with whole_file(path) as partial:
                mapped = new_mapped_array(partial, np.float32, shape)
                fill(mapped)
                mapped.flush()
            features = np.load(path, mmap_mode="r")
        return np.moveaxis(features, 0, 1)

    def extract_labeled(
        self, examples: LabeledPictures, batch_size: int = 128, path: str | os.PathLike[str] | None = None
    ) -> LabeledFeatures:
        """Computes the features of labelled pictures.

        Args:
            examples: `LabeledImages`, `LabeledTokens`, `ImageFiles`, or a pair of images or token ids and integer
                labels `(B,)`.
            batch_size: as in `extract`.
            path: as in `extract`.

        Returns:
            `LabeledFeatures`.

        Raises:
            ValueError: if inputs do not fit the model or the labels, or there are no labels.
            OSError: if `path` cannot be written, or the disk is full.
        """
        source = as_labeled_examples(self.language_model, examples, "examples")
        return LabeledFeatures(self.extract(source, batch_size, path), source.labels)
