"""Confidence intervals of accuracies, over test pictures and over seeds, and paired comparisons."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import numpy as np
import numpy.typing as npt

from keras_igpt.support.checks import check_number
from keras_igpt.support.randomness import check_seed

_RESAMPLES = 10_000


@dataclass(frozen=True)
class Interval:
    """An estimate with a confidence interval.

    Attributes:
        estimate: float.
        low: float.
        high: float.
        confidence: float in (0, 1).
    """

    estimate: float
    low: float
    high: float
    confidence: float = 0.95

    def __str__(self) -> str:
        return f"{self.estimate:.4g} [{self.low:.4g}, {self.high:.4g}]"

    def as_percentages(self) -> str:
        """Formats an accuracy: `"45.1% [44.1, 46.1]"`."""
        return f"{100 * self.estimate:.1f}% [{100 * self.low:.1f}, {100 * self.high:.1f}]"


@dataclass(frozen=True)
class PairedComparison:
    """A comparison of two classifiers on the same test pictures.

    Attributes:
        difference: `Interval` of the first accuracy minus the second.
        first_only: int. Pictures that only the first classifies correctly.
        second_only: int. Pictures that only the second classifies correctly.
        p_value: float. McNemar's exact test of equal accuracies.
    """

    difference: Interval
    first_only: int
    second_only: int
    p_value: float

    def __str__(self) -> str:
        low, high = 100 * self.difference.low, 100 * self.difference.high
        return f"{100 * self.difference.estimate:+.1f} points [{low:+.1f}, {high:+.1f}], p = {self.p_value:.2g}"


def accuracy_interval(correct: npt.ArrayLike, confidence: float = 0.95) -> Interval:
    """Computes an accuracy and its bootstrap interval over test pictures.

    The number of correct pictures in a resample is binomial, so the percentile bootstrap is exact without resampling.

    Args:
        correct: bool array `(B,)`, True where a test picture was classified correctly.
        confidence: float in (0, 1).

    Returns:
        An `Interval`.

    Raises:
        ValueError: if an argument is out of range.
        ImportError: if SciPy is absent.

    Example:
    ```python
    interval = accuracy_interval(probe.predict(data.test) == data.test.labels)
    print(interval.as_percentages())   # 45.1% [44.1, 46.1]
    ```
    """
    right = _check_correct("correct", correct)
    confidence = _check_confidence(confidence)
    accuracy = float(right.mean())
    tail = (1 - confidence) / 2
    low, high = import_scipy("stats").binom.ppf([tail, 1 - tail], len(right), accuracy) / len(right)
    return Interval(accuracy, float(low), float(high), confidence)


def compare_accuracies(
    first: npt.ArrayLike, second: npt.ArrayLike, confidence: float = 0.95, seed: int = 0
) -> PairedComparison:
    """Compares two classifiers on the same test pictures.

    This looks at the pictures on which they disagree, so accuracies can differ clearly even if their own intervals
    overlap.

    Args:
        first: bool array `(B,)`, True where the first classifier is correct.
        second: bool array `(B,)` of the second, in the same order.
        confidence: float in (0, 1), of the interval.
        seed: int. Seed of the bootstrap.

    Returns:
        A `PairedComparison`.

    Raises:
        ValueError: if the arrays have different lengths or are not bool.
        ImportError: if SciPy is absent.

    Example:
    ```python
    print(compare_accuracies(joint.predict(test) == labels, alone.predict(test) == labels))
    ```

    Reference:
        McNemar, *Note on the sampling error of the difference between correlated proportions*, Psychometrika 1947
    """
    one, two = _check_correct("first", first), _check_correct("second", second)
    if one.shape != two.shape:
        raise ValueError(f"`second` must be of the same {len(one)} pictures as `first`. Received: {len(two)}")
    confidence, seed = _check_confidence(confidence), check_seed(seed)
    only_one, only_two = int((one & ~two).sum()), int((two & ~one).sum())
    shares = np.array([only_one, only_two, len(one) - only_one - only_two]) / len(one)
    resampled = np.random.default_rng(seed).multinomial(len(one), shares, size=_RESAMPLES)
    differences = (resampled[:, 0] - resampled[:, 1]) / len(one)
    tail = (1 - confidence) / 2
    low, high = np.quantile(differences, [tail, 1 - tail])
    disagreed = only_one + only_two
    p_value = 1.0 if disagreed == 0 else float(import_scipy("stats").binomtest(only_one, disagreed).pvalue)
    difference = Interval((only_one - only_two) / len(one), float(low), float(high), confidence)
    return PairedComparison(difference, only_one, only_two, p_value)


def mean_interval(values: Sequence[float], confidence: float = 0.95) -> Interval:
    """Computes the mean over seeds and its Student's t interval.

    Args:
        values: sequence of at least two float, one result per seed.
        confidence: float in (0, 1).

    Returns:
        An `Interval`.

    Raises:
        ValueError: if there are fewer than two values, or one is not finite.
        ImportError: if SciPy is absent.

    Example:
    ```python
    print(mean_interval([0.331, 0.357, 0.352]).as_percentages())
    ```
    """
    results = np.asarray(values, np.float64)
    if results.ndim != 1 or len(results) < 2 or not np.isfinite(results).all():
        raise ValueError(f"`values` must be at least two finite numbers. Received: values={values}")
    confidence = _check_confidence(confidence)
    mean, error = float(results.mean()), float(results.std(ddof=1) / np.sqrt(len(results)))
    reach = error * float(import_scipy("stats").t.ppf((1 + confidence) / 2, len(results) - 1))
    return Interval(mean, mean - reach, mean + reach, confidence)


def _check_correct(name: str, correct: npt.ArrayLike) -> npt.NDArray[np.bool_]:
    array = np.asarray(correct)
    if array.dtype != bool or array.ndim != 1 or not len(array):
        raise ValueError(
            f"`{name}` must be a bool array (B,) of at least one picture. "
            f"Received: {array.dtype} of shape {array.shape}"
        )
    return array


def _check_confidence(confidence: float) -> float:
    return float(check_number("confidence", confidence, 0, 1, above=True, below=True))


def import_scipy(module: str) -> Any:
    """Imports one of SciPy's modules; raises ImportError that names the extra if SciPy is absent."""
    try:
        return import_module(f"scipy.{module}")
    except ImportError as error:
        raise ImportError(
            "Intervals and fits need SciPy, which scikit-learn brings: pip install 'keras_igpt[palette]'"
        ) from error
