"""Features of a frozen model at chosen depths, from whatever the package reads pictures from."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt

from keras_igpt.backend.whole_steps import WholeStepModel
from keras_igpt.data.examples import LabeledExamples, Labels
from keras_igpt.data.inputs import LabeledPictures, Pictures, as_examples, as_labeled_examples
from keras_igpt.inference.compiled import computed_rows
from keras_igpt.objectives.pixel_model import PixelModel
from keras_igpt.support.checks import check_choice, check_depths
from keras_igpt.support.files import new_mapped_array, whole_file

Which = Literal["normed", "residual"]
Float32Array = npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False, repr=False)
class LabeledFeatures(LabeledExamples):
    """Features of pictures at one or more depths and their classes, in memory or mapped from a file.

    Args:
        features: float32 array `(B, depths, D)`.
        labels: integer array `(B,)`.

    Raises:
        ValueError: if the arrays are not such.

    Example:
    ```python
    train = FeatureExtractor(lm, layers=[12]).extract_labeled(data.train)
    few = low_data_subset(train, labels_per_class=4)
    ```
    """

    features: Float32Array
    labels: Labels

    def __post_init__(self) -> None:
        if self.features.ndim != 3 or self.labels.shape != self.features.shape[:1]:
            raise ValueError(
                "`features` must have shape (B, depths, D), and `labels` (B,). "
                f"Received: shapes {self.features.shape} and {self.labels.shape}"
            )

    def __repr__(self) -> str:
        count, *shape = self.features.shape
        return f"LabeledFeatures({count} pictures, features of shape {tuple(shape)})"

    def __len__(self) -> int:
        return len(self.features)

    def take(self, rows: npt.ArrayLike) -> Self:
        chosen = np.asarray(rows)
        return type(self)(self.features[chosen], self.labels[chosen])

    def join(self, other: Self) -> Self:
        if self.features.shape[1:] != other.features.shape[1:]:
            raise ValueError(
                f"`other` must have features of shape {self.features.shape[1:]}. Received: {other.features.shape[1:]}"
            )
        return type(self)(np.concatenate([self.features, other.features]), np.concatenate([self.labels, other.labels]))

    def at(self, *positions: int) -> Float32Array:
        """Returns the features `(B, D)` at one of the depths, by its place among them, or of several side by side."""
        if len(positions) == 1:
            return self.features[:, positions[0]]
        return np.concatenate([self.features[:, position] for position in positions], axis=1)


class FeatureExtractor(WholeStepModel):
    """Computes the features f^l of chosen depths, pooled over positions inside the compiled graph.

    What leaves the device is `(B, depths, D)`, not every position, of a set of any size in one pass. A BERT model's
    inputs are masked; a picture's mask is a function of the model's `mask_seed` and of the picture.

    Args:
        language_model: an `ImageGPTCausalLM` or `ImageGPTMaskedLM`; its weights are read, never changed.
        layers: `"all"` for 0…L, or a sequence of depths.
        which: `"normed"` (n^l, the paper's) or `"residual"` (the raw stream h^l).

    Call arguments:
        inputs: what the language model takes.

    Returns:
        float32 tensor `(B, depths, D)`.

    Raises:
        ValueError: if an argument is out of its range.

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
        if not isinstance(language_model, PixelModel):
            raise ValueError(
                "`language_model` must be an ImageGPTCausalLM or ImageGPTMaskedLM. "
                f"Received: {type(language_model).__name__}"
            )
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
        """Computes the features of pictures, which are decoded and encoded as they are needed.

        Args:
            inputs: uint8 images `(B, H, W, C)`, which the model's palette encodes; token ids `(B, T)`; or examples
                with or without labels, as `TrainingBatches` takes them, files at their centre squares.
            batch_size: int. Pictures that are computed together.
            path: `.npy` file to write the features to instead of memory, shape `(depths, B, D)`; one of that name is
                replaced when all is done. Those of ImageNet at 25 depths of 512 features take 63 GB.

        Returns:
            float32 array `(B, depths, D)`, mapped from the file where there is one.

        Raises:
            ValueError: if an argument is out of its range, or inputs do not fit the model.
            OSError: if there is not enough space for the file.
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
        # Each depth in one piece: a regression reads them one by one.
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
            examples: `LabeledImages`, `LabeledTokens`, `ImageFiles`, or a pair of inputs (as in `extract`) and integer
                labels `(B,)`.
            batch_size: as in `extract`.
            path: as in `extract`.

        Returns:
            `LabeledFeatures`.

        Raises:
            ValueError: if inputs and labels do not fit the model or each other, or there are no labels.
        """
        source = as_labeled_examples(self.language_model, examples, "examples")
        return LabeledFeatures(self.extract(source, batch_size, path), source.labels)
