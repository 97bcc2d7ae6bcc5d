"""k-nearest-neighbour classification with frozen features."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import numpy as np
import numpy.typing as npt

from keras_igpt.evaluation.features import Float32Array, LabeledFeatures, of_length_one
from keras_igpt.evaluation.intervals import MeasuredAccuracy, measure_accuracy
from keras_igpt.evaluation.logistic_regression import check_examples
from keras_igpt.support.checks import check_integers

_CANDIDATES = (1, 5, 10, 20, 50, 100, 200)
# Below any feature's size that means something.
_SMALLEST = 1e-30


@dataclass(frozen=True)
class NeighborResult:
    """Nearest-neighbour accuracies at one depth.

    Attributes:
        num_neighbors: int. The k chosen on validation, the smallest in a tie.
        validation_accuracy: float in 0…1, with neighbours among train.
        measured: `MeasuredAccuracy` on test, with neighbours among train and validation.
    """

    num_neighbors: int
    validation_accuracy: float
    measured: MeasuredAccuracy

    @property
    def test_accuracy(self) -> float:
        """Test accuracy in 0…1."""
        return self.measured.accuracy

    @property
    def correct(self) -> npt.NDArray[np.bool_]:
        """Bool array `(B,)`, True where a test picture was classified correctly."""
        return self.measured.correct_pictures


def nearest_neighbors(
    train: LabeledFeatures,
    validation: LabeledFeatures,
    test: LabeledFeatures,
    candidates: Sequence[int] | None = None,
) -> tuple[NeighborResult, ...]:
    """Classifies by a vote of the nearest neighbours by cosine similarity, at each depth.

    k is chosen on validation, which then joins the neighbours for the test. In a tied vote the lowest label wins. This
    is not in the paper. The features may be those that a `LinearProbe` is fitted to, of the same pass.

    Args:
        train: `LabeledFeatures` `(B, depths, D)`, of `FeatureExtractor.extract_labeled`.
        validation: the same of other pictures.
        test: the same of other pictures.
        candidates: sequence of int. Values of k to choose from; by default 1, 5, 10, 20, 50, 100 and 200, those that
            exceed the number of training pictures left out.

    Returns:
        One `NeighborResult` per depth.

    Raises:
        ValueError: if the features have different shapes or are not finite, or there are fewer training pictures than
            neighbours.
        ImportError: if scikit-learn is absent.

    Example:
    ```python
    extractor = FeatureExtractor(lm, layers=[4, 8])
    results = nearest_neighbors(*(extractor.extract_labeled(part) for part in (data.train, data.validation, data.test)))
    print([str(result.measured) for result in results])   # ['38.6% [37.6, 39.6]', …]
    ```
    """
    parts = {"train": train, "validation": validation, "test": test}
    for name, part in parts.items():
        if not isinstance(part, LabeledFeatures):
            raise ValueError(f"`{name}` must be LabeledFeatures. Received: {type(part).__name__}")
        if not part.features.size or part.features.shape[1:] != train.features.shape[1:]:
            raise ValueError(
                f"`{name}` must have at least one picture, and the depths and width of `train`, "
                f"{train.features.shape[1:]}. Received: features of shape {part.features.shape}"
            )
    if candidates is None:
        candidates = [number for number in _CANDIDATES if number <= len(train)]
    numbers = sorted(set(check_integers("candidates", candidates, 1, len(train))))
    depths = range(train.features.shape[1])
    for name, part in parts.items():
        for depth in depths:
            check_examples(name, part.at(depth), part.labels)
    known_labels = np.concatenate([train.labels, validation.labels])
    results = []
    for depth in depths:
        votes = _votes(train.at(depth), train.labels, validation.at(depth), numbers)
        accuracies = [float(np.mean(vote == validation.labels)) for vote in votes]
        best = int(np.argmax(accuracies))
        # One depth at a time: features in files need not fit into memory.
        known = np.concatenate([train.at(depth), validation.at(depth)])
        (vote,) = _votes(known, known_labels, test.at(depth), numbers[best : best + 1])
        results.append(NeighborResult(numbers[best], accuracies[best], measure_accuracy(vote, test.labels)))
    return tuple(results)


def import_neighbors() -> Any:
    """Imports scikit-learn's module of neighbours; raises ImportError that names the extra if it is absent."""
    try:
        return import_module("sklearn.neighbors")
    except ImportError as error:
        raise ImportError("Neighbours need scikit-learn: pip install 'keras_igpt[palette]'") from error


def _on_sphere(features: Float32Array) -> Float32Array:
    # Scaled before: the squares of large features would be infinite, those of small ones zero.
    largest = np.abs(features).max(axis=1, keepdims=True)
    return of_length_one(features / np.maximum(largest, np.float32(_SMALLEST)))


def _votes(
    known: npt.NDArray[np.float32], labels: npt.NDArray[Any], queries: npt.NDArray[np.float32], numbers: Sequence[int]
) -> list[npt.NDArray[Any]]:
    """Returns the queries' classes `(B,)` for each number of neighbours."""
    # On the unit sphere, distances order like cosines, and scikit-learn computes them faster.
    index = import_neighbors().NearestNeighbors(n_neighbors=numbers[-1], algorithm="brute").fit(_on_sphere(known))
    neighbors = index.kneighbors(_on_sphere(queries), return_distance=False)
    classes, numbered = np.unique(labels, return_inverse=True)
    counts = np.zeros((len(queries), len(classes)), np.int64)
    rows, votes, start = np.arange(len(queries))[:, None], [], 0
    for number in numbers:
        np.add.at(counts, (rows, numbered[neighbors[:, start:number]]), 1)
        votes.append(classes[counts.argmax(axis=1)])
        start = number
    return votes
