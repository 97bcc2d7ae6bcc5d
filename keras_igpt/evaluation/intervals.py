"""Confidence intervals of accuracies, over test pictures and over seeds, and paired comparisons."""

from __future__ import annotations

import base64
import math
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from statistics import NormalDist
from typing import Any

import numpy as np
import numpy.typing as npt

from keras_igpt.data.examples import digest_of
from keras_igpt.support.checks import check_number

# How the ends of an interval are called in reports, behind the name of the number.
LOW_END, HIGH_END = ", low end of the 95% interval", ", high end of the 95% interval"


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

    @property
    def significant(self) -> bool:
        """Whether the accuracies differ at the interval's confidence: `p_value` is below 0.05 at 95%."""
        return self.p_value < 1 - self.difference.confidence

    def __str__(self) -> str:
        low, high = 100 * self.difference.low, 100 * self.difference.high
        return f"{100 * self.difference.estimate:+.1f} points [{low:+.1f}, {high:+.1f}], p = {self.p_value:.2g}"


@dataclass(frozen=True)
class MeasuredAccuracy:
    """A test accuracy with its 95% interval, and which pictures were classified correctly.

    `dataclasses.asdict` makes it JSON, from which `MeasuredAccuracy(**entry)` restores it.

    Attributes:
        accuracy: float in 0…1.
        low: float. Lower end of the interval, of `accuracy_interval`.
        high: float. Upper end.
        num_test: int. Test pictures.
        correct: str. One bit per test picture, 1 where it was classified correctly, as base64 of `numpy.packbits`.
        test_set: str. Digest of the test labels in their order; two accuracies can be compared if it is the same, and
            the pictures are: sets sorted by class, as those of folders are, differ in nothing but their counts here.
    """

    accuracy: float
    low: float
    high: float
    num_test: int
    correct: str
    test_set: str

    def __str__(self) -> str:
        return self.interval.as_percentages()

    def __float__(self) -> float:
        return self.accuracy

    @property
    def interval(self) -> Interval:
        """The accuracy as an `Interval`."""
        return Interval(self.accuracy, self.low, self.high)

    @property
    def correct_pictures(self) -> npt.NDArray[np.bool_]:
        """Bool array `(B,)`, True where a test picture was classified correctly."""
        packed = np.frombuffer(base64.b64decode(self.correct), np.uint8)
        return np.unpackbits(packed, count=self.num_test).astype(bool)

    def compare(self, other: MeasuredAccuracy) -> PairedComparison:
        """Compares this accuracy with another on the same test set; see `compare_accuracies`.

        Args:
            other: the second accuracy. It may be of another model, kind of features, or picture size.

        Returns:
            A `PairedComparison`, of this one minus the other.

        Raises:
            ValueError: if the other one is of other test labels, or of the same in another order. Other pictures with
                the same labels are not noticed: a folder must be split with the same `seed`.
            ImportError: if SciPy is absent.
        """
        if self.test_set != other.test_set:
            raise ValueError(
                f"`other` must be of the same test pictures in the same order. Received: {other.num_test} pictures "
                f"with other labels than these {self.num_test}"
            )
        return compare_accuracies(self.correct_pictures, other.correct_pictures)


def measure_accuracy(predicted: npt.ArrayLike, labels: npt.ArrayLike) -> MeasuredAccuracy:
    """Measures an accuracy, keeping which pictures were classified correctly.

    Args:
        predicted: integer array `(B,)` of predicted classes.
        labels: integer array `(B,)` of the test set, in the same order.

    Returns:
        A `MeasuredAccuracy`.

    Raises:
        ValueError: if the arrays have other shapes or types.

    Example:
    ```python
    one_mask = measure_accuracy(classifier.predict(data.test).argmax(axis=-1), data.test.labels)
    five_masks = measure_accuracy(classifier.vote(data.test), data.test.labels)
    print(five_masks, five_masks.compare(one_mask))
    ```
    """
    classes, expected = np.asarray(predicted), np.asarray(labels)
    if classes.shape != expected.shape or {classes.dtype.kind, expected.dtype.kind} - {"i", "u"}:
        raise ValueError(
            "`predicted` and `labels` must be integer arrays (B,) of the same pictures. "
            f"Received: {classes.dtype} of shape {classes.shape}, {expected.dtype} of shape {expected.shape}"
        )
    correct = classes == expected
    interval = accuracy_interval(correct)
    packed = base64.b64encode(np.packbits(correct).tobytes()).decode()
    test_set = digest_of(expected.astype(np.int64))
    return MeasuredAccuracy(interval.estimate, interval.low, interval.high, len(correct), packed, test_set)


def accuracy_interval(correct: npt.ArrayLike, confidence: float = 0.95) -> Interval:
    """Computes an accuracy and Wilson's interval over test pictures, which holds for few of them too.

    Args:
        correct: bool array `(B,)`, True where a test picture was classified correctly.
        confidence: float in (0, 1).

    Returns:
        An `Interval`.

    Raises:
        ValueError: if an argument is out of range.

    Example:
    ```python
    interval = accuracy_interval(probe.predict(data.test) == data.test.labels)
    print(interval.as_percentages())   # 45.1% [44.1, 46.1]
    ```

    Reference:
        Wilson, *Probable inference, the law of succession, and statistical inference*, JASA 1927
    """
    right = _check_correct("correct", correct)
    return interval_of_share(float(right.mean()), len(right), _check_confidence(confidence))


def interval_of_share(share: float, count: int, confidence: float = 0.95) -> Interval:
    """Computes the interval of an accuracy from it and the number of pictures, as `accuracy_interval` does."""
    square = _quantile(confidence) ** 2
    centre = (count * share + square / 2) / (count + square)
    reach = math.sqrt(square * (count * share * (1 - share) + square / 4)) / (count + square)
    return _around(share, centre - reach, centre + reach, confidence)


def compare_accuracies(first: npt.ArrayLike, second: npt.ArrayLike, confidence: float = 0.95) -> PairedComparison:
    """Compares two classifiers on the same test pictures.

    This looks at the pictures on which they disagree, so accuracies can differ clearly even if their own intervals
    overlap.

    Args:
        first: bool array `(B,)`, True where the first classifier is correct.
        second: bool array `(B,)` of the second, in the same order.
        confidence: float in (0, 1), of the interval.

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
        McNemar, *Note on the sampling error of the difference between correlated proportions*, Psychometrika 1947, for
        the test; Bonett and Price, *Adjusted Wald confidence interval for a difference of binomial proportions based
        on paired data*, Journal of Educational and Behavioral Statistics 2012, for the interval
    """
    one, two = _check_correct("first", first), _check_correct("second", second)
    if one.shape != two.shape:
        raise ValueError(f"`second` must be of the same {len(one)} pictures as `first`. Received: {len(two)}")
    confidence = _check_confidence(confidence)
    only_one, only_two = int((one & ~two).sum()), int((two & ~one).sum())
    # As if there were two more pictures, on each of which another one is right.
    count = len(one) + 2
    centre, together = (only_one - only_two) / count, (only_one + only_two + 2) / count
    reach = _quantile(confidence) * math.sqrt((together - centre**2) / count)
    disagreed = only_one + only_two
    p_value = 1.0 if disagreed == 0 else float(import_scipy("stats").binomtest(only_one, disagreed).pvalue)
    estimate = (only_one - only_two) / len(one)
    difference = _around(estimate, max(-1.0, centre - reach), min(1.0, centre + reach), confidence)
    return PairedComparison(difference, only_one, only_two, p_value)


def mean_interval(values: Sequence[float], confidence: float = 0.95) -> Interval:
    """Computes the mean over seeds and its Student's t interval.

    Args:
        values: sequence of at least two float, one result per seed.
        confidence: float in (0, 1).

    Returns:
        An `Interval`.

    Raises:
        ValueError: if there are fewer than two values, or one is no finite number.
        ImportError: if SciPy is absent.

    Example:
    ```python
    print(mean_interval([0.331, 0.357, 0.352]).as_percentages())
    ```
    """
    try:
        results = np.asarray(values, np.float64)
    except (TypeError, ValueError):  # no numbers
        results = np.empty(0)
    if results.ndim != 1 or len(results) < 2 or not np.isfinite(results).all():
        raise ValueError(f"`values` must be at least two finite numbers. Received: values={values}")
    confidence = _check_confidence(confidence)
    mean, error = float(results.mean()), float(results.std(ddof=1) / np.sqrt(len(results)))
    reach = error * float(import_scipy("stats").t.ppf((1 + confidence) / 2, len(results) - 1))
    return Interval(mean, mean - reach, mean + reach, confidence)


def _around(estimate: float, low: float, high: float, confidence: float) -> Interval:
    """An interval around an estimate that rounding, or all pictures but none being right, may have put outside."""
    return Interval(estimate, min(estimate, low), max(estimate, high), confidence)


def _quantile(confidence: float) -> float:
    """How many standard deviations a normal interval reaches to each side."""
    return NormalDist().inv_cdf((1 + confidence) / 2)


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
