import numpy as np
import pytest

import keras_igpt as igpt

PLANTED = (1.7, 400.0, 0.34, 410.0, 0.28)


def runs(noise=0.0, seed=0):
    random = np.random.default_rng(seed)
    e, a, alpha, b, beta = PLANTED
    return [
        igpt.ScalingRun(int(n), int(d), float((e + a * n**-alpha + b * d**-beta) * np.exp(noise * random.normal())))
        for n in (3e4, 1e5, 3e5, 1e6, 3e6)
        for d in (1e6, 4e6, 1.6e7, 6.4e7)
    ]


def test_planted_coefficients_are_recovered():
    law = igpt.fit_scaling_law(runs(), resamples=2)
    np.testing.assert_allclose(law.coefficients, PLANTED, rtol=1e-3)


@pytest.fixture(scope="module")
def noisy():
    return igpt.fit_scaling_law(runs(noise=0.002), resamples=30)


def test_noisy_runs_forecast_a_larger_one_within_their_interval(noisy):
    e, a, alpha, b, beta = PLANTED
    truth = e + a * 1e7**-alpha + b * 2.5e8**-beta
    forecast = noisy.forecast(10_000_000, 250_000_000)
    assert forecast.low <= truth <= forecast.high
    assert forecast.estimate == pytest.approx(truth, rel=0.01)
    again = igpt.fit_scaling_law(runs(noise=0.002), resamples=30)
    np.testing.assert_array_equal(noisy.resampled, again.resampled)


def test_one_wild_run_does_not_move_the_law():
    spoiled = runs()
    spoiled[7] = igpt.ScalingRun(spoiled[7].parameters, spoiled[7].tokens, 3 * spoiled[7].loss)
    law = igpt.fit_scaling_law(spoiled, resamples=1)
    assert law.loss(10_000_000, 250_000_000) == pytest.approx(5.1929, rel=0.01)


def test_runs_that_cannot_tell_are_refused():
    few = [*runs()[:5], *runs()[8:9]]
    for not_enough in (few[:5], few[:5] * 2):
        with pytest.raises(ValueError, match=r"`runs` must be at least 6 different ones .* Received: 5 different"):
            igpt.fit_scaling_law(not_enough)
    # Of two sizes or two numbers of tokens, any irreducible loss below the runs fits.
    for few, received in (
        (runs()[:8], "8 different runs of 2 sizes and 4 numbers of tokens"),
        ([run for run in runs() if run.tokens < 1e7], "10 different runs of 5 sizes and 2 numbers of tokens"),
    ):
        with pytest.raises(ValueError, match=f"at least 3 sizes and 3 numbers of tokens. Received: {received}"):
            igpt.fit_scaling_law(few)
    # Twenty tokens a parameter, up to the rounding to whole batches.
    line = [igpt.ScalingRun(n, 20 * n // 1_024 * 1_024, 2 + 40 / n**0.3) for n in (10_000 * 2**k for k in range(8))]
    with pytest.raises(ValueError, match=r"`runs` must have numbers of tokens that are no power .* of 1\.0000"):
        igpt.fit_scaling_law(line)
    for wrong in ([1, 2, 3], 5, [igpt.ScalingRun(1, 1, "low")]):
        with pytest.raises(ValueError, match=r"`runs` must be a sequence of ScalingRun\. Received: runs="):
            igpt.fit_scaling_law(wrong)


def test_few_runs_give_wide_intervals(noisy):
    """Of six runs that stray from the law as those of a grid do: one degree of freedom is left, not fifteen."""
    few = [runs(noise=0.002)[number] for number in (0, 5, 10, 2, 8, 6)]
    interval = igpt.fit_scaling_law(few, resamples=30).intervals()["irreducible_loss"]
    many = noisy.intervals()["irreducible_loss"]
    for found in (interval, many):
        assert found.low <= PLANTED[0] <= found.high
    assert interval.high - interval.low > 2 * (many.high - many.low)
    assert igpt.fit_scaling_law(few * 2, resamples=30).intervals()["irreducible_loss"] == interval


def test_runs_that_say_little_of_the_sizes_give_finite_forecasts():
    losses = {
        21_808: (5.4708, 5.4150, 5.3220),
        41_928: (5.4730, 5.4256, 5.3457),
        82_000: (5.4731, 5.4260, 5.3460),
    }
    tokens = {21_808: (36_864, 77_824, 159_744)} | dict.fromkeys((41_928, 82_000), (20_480, 40_960, 81_920))
    few = [igpt.ScalingRun(n, d, loss) for n in losses for d, loss in zip(tokens[n], losses[n], strict=True)]
    law = igpt.fit_scaling_law(few, resamples=1)
    # An exponent of 64 fits a little better, and its factor overflows in other resamples.
    assert law.parameter_exponent <= 5
    assert np.isfinite(law.loss(1_000_000, 10_000_000))
