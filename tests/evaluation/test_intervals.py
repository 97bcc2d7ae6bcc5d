import json
from dataclasses import asdict
from statistics import NormalDist

import numpy as np
import pytest
from scipy import stats

import keras_igpt as igpt


def test_the_interval_is_that_of_resampling():
    correct = np.random.default_rng(0).random(500) < 0.7
    interval = igpt.accuracy_interval(correct, confidence=0.9)
    resampled = np.random.default_rng(1).choice(correct, (20_000, 500)).mean(axis=1)
    assert interval.estimate == correct.mean()
    np.testing.assert_allclose((interval.low, interval.high), np.quantile(resampled, [0.05, 0.95]), atol=0.003)
    assert interval.as_percentages().startswith(f"{100 * correct.mean():.1f}% [")


def test_the_interval_is_wilsons():
    for right, count in ((0, 10), (10, 10), (7, 10), (4510, 10_000)):
        interval = igpt.accuracy_interval(np.arange(count) < right)
        expected = stats.binomtest(right, count).proportion_ci(method="wilson")
        np.testing.assert_allclose((interval.low, interval.high), expected, atol=1e-12)
        assert 0 <= interval.low <= interval.estimate <= interval.high <= 1


@pytest.mark.parametrize(("count", "share"), [(10, 0.9), (50, 0.98), (1000, 0.98)])
def test_an_interval_of_few_pictures_covers_as_often(count, share):
    numbers = np.arange(count + 1)
    intervals = [igpt.accuracy_interval(np.arange(count) < number) for number in numbers]
    covers = np.array([interval.low <= share <= interval.high for interval in intervals])
    assert stats.binom.pmf(numbers, count, share)[covers].sum() > 0.9


def test_the_interval_of_a_difference_covers_as_often():
    """Of few pictures, which both classifiers get right but for a few."""
    random, covered = np.random.default_rng(0), 0
    for _ in range(2000):
        kinds = random.choice(4, 40, p=[0.8, 0.12, 0.04, 0.04])  # both, the first, the second, none
        difference = igpt.compare_accuracies(kinds < 2, (kinds == 0) | (kinds == 2)).difference
        covered += difference.low <= 0.08 <= difference.high
    assert 0.93 <= covered / 2000 <= 0.99


def test_the_interval_of_a_difference_is_bonett_and_prices():
    kinds = np.repeat([0, 1, 2, 3], [60, 20, 10, 10])  # both, the first, the second, none
    difference = igpt.compare_accuracies(kinds < 2, (kinds == 0) | (kinds == 2)).difference
    # (21 - 11) / 102 ± 1.95996 √(((21 + 11) / 102 - (10 / 102)²) / 102)
    assert difference.estimate == pytest.approx(0.1)
    assert (difference.low, difference.high) == pytest.approx((-0.0089811, 0.2050595), abs=1e-7)


def test_an_interval_covers_as_often_as_it_says():
    random = np.random.default_rng(0)
    covered = 0
    for _ in range(400):
        interval = igpt.accuracy_interval(random.random(300) < 0.6)
        covered += interval.low <= 0.6 <= interval.high
    assert 0.92 <= covered / 400 <= 0.98


def test_a_paired_comparison_sees_what_two_intervals_hide():
    first = np.arange(1000) < 700
    second = np.arange(1000) < 680  # right on the same pictures but for 20
    comparison = igpt.compare_accuracies(first, second)
    assert (comparison.first_only, comparison.second_only) == (20, 0)
    assert comparison.p_value == pytest.approx(2 * 0.5**20)
    assert 0 < comparison.difference.low < comparison.difference.estimate == 0.02 < comparison.difference.high
    one, two = igpt.accuracy_interval(first), igpt.accuracy_interval(second)
    assert two.high > one.low  # which the intervals do not show


def test_a_measured_accuracy_survives_json():
    """With what a paired comparison needs, whether or not the pictures fill the last byte."""
    random = np.random.default_rng(0)
    labels = random.integers(0, 3, 203)
    first, second = (np.where(random.random(203) < share, labels, (labels + 1) % 3) for share in (0.8, 0.6))
    better, worse = (
        igpt.MeasuredAccuracy(**json.loads(json.dumps(asdict(igpt.measure_accuracy(predicted, labels.astype(dtype))))))
        for predicted, dtype in ((first, "int64"), (second, "uint8"))
    )
    np.testing.assert_array_equal(better.correct_pictures, first == labels)
    assert better.interval == igpt.accuracy_interval(first == labels)
    assert (better.num_test, better.accuracy) == (203, (first == labels).mean())
    assert str(better) == better.interval.as_percentages()
    comparison = better.compare(worse)
    assert comparison == igpt.compare_accuracies(first == labels, second == labels)
    assert comparison.significant
    assert not better.compare(better).significant
    with pytest.raises(ValueError, match="`other` must be of the same test pictures in the same order"):
        better.compare(igpt.measure_accuracy(first[::-1], labels[::-1]))


def test_equal_classifiers_do_not_differ():
    correct = np.arange(1000) < 400
    comparison = igpt.compare_accuracies(correct, correct)
    assert comparison.p_value == 1.0
    # Not the same for all pictures there are.
    assert str(comparison) == "+0.0 points [-0.3, +0.3], p = 1"


def test_the_mean_over_seeds_has_students_interval():
    values = [0.331, 0.357, 0.352, 0.340]
    interval = igpt.mean_interval(values)
    low, high = stats.t.interval(0.95, 3, np.mean(values), stats.sem(values))
    np.testing.assert_allclose((interval.estimate, interval.low, interval.high), (np.mean(values), low, high))
    # Few seeds: wider than the normal distribution would have it.
    assert interval.high - interval.estimate > NormalDist().inv_cdf(0.975) * stats.sem(values)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: igpt.accuracy_interval([0.5, 1.0]), "`correct` must be a bool array"),
        (lambda: igpt.accuracy_interval(np.zeros(0, bool)), "at least one picture"),
        (lambda: igpt.accuracy_interval(np.ones(2, bool), confidence=1), "`confidence` must be"),
        (lambda: igpt.compare_accuracies(np.ones(3, bool), np.ones(2, bool)), "`second` must be of the same 3"),
        (lambda: igpt.measure_accuracy(np.ones(3, int), np.ones(2, int)), "`predicted` and `labels` must be"),
        (lambda: igpt.measure_accuracy(np.ones((2, 3)), np.ones(2, int)), "`predicted` and `labels` must be"),
        (lambda: igpt.mean_interval([0.1]), "`values` must be at least two"),
        (lambda: igpt.mean_interval(["a"]), "`values` must be at least two"),
        (lambda: igpt.mean_interval([None, 1.0]), "`values` must be at least two"),
    ],
)
def test_what_makes_no_interval_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
