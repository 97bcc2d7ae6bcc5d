import keras
import numpy as np
import pytest
from conftest import make_causal_lm, random_tokens, to_numpy

import keras_igpt as igpt

PAPER_RATES = {
    ("igpt_small", "ar"): 0.003,
    ("igpt_medium", "ar"): 0.003,
    ("igpt_large", "ar"): 0.001,
    ("igpt_extra_large", "ar"): 0.0003,
    ("igpt_small", "bert"): 0.01,
    ("igpt_medium", "bert"): 0.003,
    ("igpt_large", "bert"): 0.001,
}


def rates(steps, at=None, **options):
    """The learning rates at all steps or some."""
    optimizer = igpt.pretraining_recipe("igpt_small", "ar", steps, **options)["optimizer"]
    schedule = optimizer._learning_rate
    return np.array([float(to_numpy(schedule(step))) for step in (range(steps + 1) if at is None else at)])


@pytest.mark.parametrize(("preset", "objective"), PAPER_RATES)
def test_the_papers_optimizer_and_rates(preset, objective):
    optimizer = igpt.pretraining_recipe(preset, objective, steps=1000, steps_per_epoch=10)["optimizer"]
    assert isinstance(optimizer, keras.optimizers.Adam)
    assert (optimizer.beta_1, optimizer.beta_2, optimizer.weight_decay) == (0.9, 0.95, None)
    assert (optimizer.clipnorm, optimizer.clipvalue, optimizer.global_clipnorm, optimizer.use_ema) == (
        None,
        None,
        None,
        False,
    )
    peak = PAPER_RATES[preset, objective]
    assert float(to_numpy(optimizer._learning_rate(10))) == pytest.approx(peak, rel=1e-6)


def test_the_schedule_warms_up_for_an_epoch_and_ends_at_zero():
    curve = rates(40, steps_per_epoch=8)
    np.testing.assert_allclose(curve[:9], np.linspace(0.003 / 8, 0.003, 9), rtol=1e-5)
    progress = np.arange(33) / 32
    np.testing.assert_allclose(curve[8:], 0.003 * 0.5 * (1 + np.cos(np.pi * progress)), atol=1e-8)
    assert curve[-1] == pytest.approx(0, abs=1e-9)
    assert (curve[:-1] > 0).all()


def test_the_warm_up_is_one_percent_by_default():
    before, peak, after = rates(1000, at=(9, 10, 11))
    assert peak == pytest.approx(0.003)
    assert before < peak > after


def test_one_step_is_enough():
    assert rates(1)[0] == pytest.approx(0.003)


def test_a_rate_of_ones_own():
    assert rates(100, at=[1], learning_rate=0.5)[0] == pytest.approx(0.5)


def test_the_recipe_runs_to_its_end_and_then_stands_still():
    model = make_causal_lm()
    model.compile(**igpt.pretraining_recipe("igpt_nano", "ar", steps=4, steps_per_epoch=2))
    model.fit(random_tokens(8), batch_size=4, epochs=2, verbose=0)
    weights = model.get_weights()
    model.fit(random_tokens(8), batch_size=4, verbose=0)
    for before, after in zip(weights, model.get_weights(), strict=True):
        np.testing.assert_allclose(after, before, atol=1e-7)


def test_fine_tuning_has_no_schedule():
    recipe = igpt.finetuning_recipe(0.0003)
    assert float(to_numpy(recipe["optimizer"].learning_rate)) == pytest.approx(0.0003)
    assert (recipe["optimizer"].beta_1, recipe["optimizer"].beta_2) == (0.9, 0.95)
    assert recipe["weighted_metrics"] == ["accuracy"]
