import numpy as np
import pytest

import keras_igpt as igpt
from keras_igpt.model.suggestion import matrix_product_rate

RATE = 5e10


def test_more_time_and_pictures_give_a_larger_model():
    sizes = [
        igpt.suggest(pictures, minutes, RATE).architecture.num_parameters
        for pictures, minutes in ((5_000, 5), (45_000, 60), (45_000, 10_000), (1_200_000, 5_000_000))
    ]
    assert sizes == sorted(set(sizes))


@pytest.mark.parametrize(("pictures", "minutes"), [(100, 1), (6_000, 30), (45_000, 150), (45_000, 10_000)])
def test_a_run_fits_the_time_and_the_pictures(pictures, minutes):
    suggestion = igpt.suggest(pictures, minutes, RATE)
    assert 0 < suggestion.minutes <= minutes
    assert suggestion.steps <= 40 * (pictures // suggestion.batch_size)
    flops = igpt.estimate(suggestion.architecture, suggestion.batch_size).training_flops
    assert suggestion.minutes * 60 * RATE == pytest.approx(suggestion.steps * flops)
    assert f"{suggestion.steps:,} steps of {suggestion.batch_size} pictures" in str(suggestion)


def test_more_pictures_than_time():
    suggestion = igpt.suggest(10_000_000, 60, RATE)
    assert suggestion.epochs == 1
    assert suggestion.steps < 10_000_000 / suggestion.batch_size


def test_too_little_says_so():
    assert "this is short" in str(igpt.suggest(100, 600, RATE))  # too few pictures
    assert "this is short" in str(igpt.suggest(45_000, 0.5, RATE))  # too little time
    assert "this is short" not in str(igpt.suggest(45_000, 60, RATE))


def test_this_machine_is_timed():
    rate = matrix_product_rate()
    assert 1e8 < rate < 1e16
    assert np.isfinite(igpt.suggest(1_000, 5).minutes)


@pytest.mark.parametrize(
    ("arguments", "name"), [((0, 5), "num_pictures"), ((10, 0), "minutes"), ((10, 5, -1.0), "flops_per_second")]
)
def test_wrong_arguments_are_named(arguments, name):
    with pytest.raises(ValueError, match=f"`{name}` must be"):
        igpt.suggest(*arguments)
