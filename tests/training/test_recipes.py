import keras
import ml_dtypes
import numpy as np
import pytest
from conftest import make_causal_lm, make_masked_lm, random_tokens, randomize, to_numpy

import keras_igpt as igpt
from keras_igpt.training.accumulation import ApplyLeftoverGradients, apply_leftover_gradients
from keras_igpt.training.recipes import probing_recipe

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


@pytest.mark.parametrize(
    ("steps", "warmup"), [(20, 2), (350, 35), (1_000, 100), (5_000, 100), (10_000, 100), (1_000_000, 10_000)]
)
def test_the_warm_up_is_one_percent_by_default_and_longer_in_short_runs(steps, warmup):
    # In a long run, single precision does not see the cosine's first step down.
    before, peak, after = rates(steps, at=(warmup - 1, warmup, warmup + max(1, steps // 1000)))
    assert peak == pytest.approx(0.003)
    assert before < peak > after


def test_one_step_is_enough():
    assert rates(1)[0] == pytest.approx(0.003)


def test_a_rate_of_ones_own():
    assert rates(100, at=[10], learning_rate=0.5)[0] == pytest.approx(0.5)


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


def test_probing_is_gradient_descent_with_momentum_and_a_cosine_to_zero():
    recipe = probing_recipe(30.0, steps=8)
    optimizer = recipe["optimizer"]
    assert isinstance(optimizer, keras.optimizers.SGD)
    assert (optimizer.momentum, optimizer.nesterov, optimizer.weight_decay) == (0.9, False, None)
    curve = [float(to_numpy(optimizer._learning_rate(step))) for step in range(10)]
    expected = 30 * 0.5 * (1 + np.cos(np.pi * np.minimum(np.arange(10) / 8, 1)))
    np.testing.assert_allclose(curve, expected, atol=1e-5)
    assert recipe["weighted_metrics"] == ["accuracy"]


@pytest.mark.parametrize(
    ("name", "arguments"), [("learning_rate", (0.0, 8)), ("steps", (30.0, 0)), ("steps", (30.0, 1.5))]
)
def test_probing_names_the_wrong_argument(name, arguments):
    with pytest.raises(ValueError, match=f"`{name}` must be .* Received: {name}="):
        probing_recipe(*arguments)


def test_with_accumulation_lengths_stay_in_updates():
    plain = rates(6, steps_per_epoch=2)
    accumulated = rates(6, at=range(18), steps_per_epoch=2, accumulation_steps=3)
    np.testing.assert_array_equal(accumulated, np.repeat(plain[:6], 3))


def make_trained(objective="ar", accumulation_steps=1, **options):
    """A tiny compiled model with random weights, the same ones at each call."""
    model = make_causal_lm(num_layers=1) if objective == "ar" else make_masked_lm(num_layers=1)
    randomize(model, scale=0.1)
    recipe = igpt.pretraining_recipe(
        "igpt_nano", objective, steps=4, steps_per_epoch=2, accumulation_steps=accumulation_steps, **options
    )
    model.compile(**recipe)
    return model


def fit(model, x, batch_size, **options):
    return model.fit(x, batch_size=batch_size, shuffle=False, verbose=0, **options)


def gradient_mean(model):
    """Adam's moving average of the gradients, which is linear in them, as one vector."""
    return np.concatenate([to_numpy(momentum).ravel() for momentum in model.optimizer._momentums])


def counts(model):
    optimizer = model.optimizer
    return int(to_numpy(optimizer.iterations)), pytest.approx(float(to_numpy(optimizer.learning_rate)), rel=1e-6)


def assert_trained_alike(model, expected):
    np.testing.assert_allclose(gradient_mean(model), gradient_mean(expected), rtol=1e-4, atol=1e-7)
    for weight, other in zip(model.trainable_weights, expected.trainable_weights, strict=True):
        # Adam divides by the gradient's size, and so magnifies the rounding of the smallest ones.
        np.testing.assert_allclose(to_numpy(weight), to_numpy(other), atol=1e-4)
    assert counts(model) == counts(expected)


CLIP_NORM = 0.5


@pytest.mark.parametrize("objective", ["ar", "bert"])
def test_small_batches_train_as_a_large_one(objective):
    x = random_tokens(8)
    if objective == "bert":
        # Masks of one's own: the model draws others in each batch.
        x = {"token_ids": x, "position_mask": np.random.default_rng(0).random(x.shape) < 0.4}
    large = make_trained(objective, clip_norm=CLIP_NORM)
    fit(large, x, batch_size=8, epochs=3)
    small = make_trained(objective, clip_norm=CLIP_NORM, accumulation_steps=4)
    before = small.get_weights()
    fit(small, x, batch_size=2, epochs=3)
    assert_trained_alike(small, large)
    # The three updates moved the weights a hundred times further than the tolerance.
    assert max(np.abs(a - b).max() for a, b in zip(before, small.get_weights(), strict=True)) > 0.005


def test_clipping_sees_the_accumulated_gradient():
    model = make_trained(accumulation_steps=4, clip_norm=CLIP_NORM)
    fit(model, random_tokens(8), batch_size=2)
    # Gradients clipped one by one point in different ways, and their mean would be shorter.
    assert np.linalg.norm(gradient_mean(model)) == pytest.approx(0.1 * CLIP_NORM, rel=1e-4)


def test_no_batch_is_lost_over_two_fits_a_file_and_the_end(tmp_path):
    x = random_tokens(12)
    large = make_trained(clip_norm=CLIP_NORM)
    fit(large, x[:8], batch_size=8)
    fit(large, x[8:], batch_size=4)

    model = make_trained(clip_norm=CLIP_NORM, accumulation_steps=4)
    fit(model, x[:6], batch_size=2)
    model.save(tmp_path / "waiting.keras")
    model = keras.saving.load_model(tmp_path / "waiting.keras")
    assert int(to_numpy(model.optimizer.iterations)) == 0
    fit(model, x[6:], batch_size=2)
    assert int(to_numpy(model.optimizer.iterations)) == 1
    assert apply_leftover_gradients(model) == 2
    assert_trained_alike(model, large)
    assert not any(to_numpy(total).any() for total in model.optimizer._accumulated_gradients)
    assert apply_leftover_gradients(model) == 0


def test_the_callback_applies_the_rest_of_each_epoch_before_its_validation():
    x = random_tokens(6)
    large = make_trained()
    expected = fit(large, x, batch_size=6, epochs=2, validation_data=(x, None))
    model = make_trained(accumulation_steps=4)
    history = fit(model, x, batch_size=2, epochs=2, validation_data=(x, None), callbacks=[ApplyLeftoverGradients()])
    assert_trained_alike(model, large)
    np.testing.assert_allclose(history.history["val_loss"], expected.history["val_loss"], rtol=1e-5)


def test_a_smaller_last_batch_counts_as_much_as_the_others():
    x = random_tokens(5)
    # Each picture as often as the other batch has pictures: one batch of batches that count alike.
    large = make_trained()
    fit(large, np.concatenate([x[:4], *4 * [x[4:]]]), batch_size=8)
    model = make_trained(accumulation_steps=4)
    fit(model, x, batch_size=4)
    assert apply_leftover_gradients(model) == 2
    assert_trained_alike(model, large)


def test_nothing_is_left_over_without_accumulation():
    model = make_trained()
    fit(model, random_tokens(4), batch_size=2)
    weights = model.get_weights()
    assert apply_leftover_gradients(model) == 0
    for before, after in zip(weights, model.get_weights(), strict=True):
        np.testing.assert_array_equal(after, before)


class Recorder(keras.callbacks.Callback):
    """Keeps the trained weights after each update."""

    def __init__(self):
        super().__init__()
        self.weights = []

    def on_train_batch_end(self, batch, logs=None):
        self.weights.append([to_numpy(weight).copy() for weight in self.model.trainable_weights])


def test_the_moving_average_is_what_is_validated_and_what_remains():
    x = random_tokens(8)
    model = make_trained(ema_momentum=0.5)
    recorder = Recorder()
    callbacks = [recorder, keras.callbacks.SwapEMAWeights()]
    history = fit(model, x, batch_size=2, validation_data=(x, None), callbacks=callbacks)
    average = recorder.weights[0]
    for weights in recorder.weights[1:]:
        average = [(one + other) / 2 for one, other in zip(average, weights, strict=True)]
    for weight, expected in zip(model.trainable_weights, average, strict=True):
        np.testing.assert_allclose(to_numpy(weight), expected, atol=1e-6)

    of_average = model.evaluate(x, verbose=0, return_dict=True)["loss"]
    assert history.history["val_loss"] == [pytest.approx(of_average, rel=1e-6)]
    for weight, last in zip(model.trainable_weights, recorder.weights[-1], strict=True):
        weight.assign(last)
    assert abs(model.evaluate(x, verbose=0, return_dict=True)["loss"] - of_average) > 1e-4


def test_bfloat16_trains_close_to_float32_and_keeps_its_state_in_float32():
    x = random_tokens(12)
    precise = make_trained()
    expected = fit(precise, x, batch_size=12)
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        model = make_trained(accumulation_steps=4)
    finally:
        keras.config.set_dtype_policy("float32")
    assert model.backbone.compute_dtype == "bfloat16"
    history = fit(model, x, batch_size=4)
    np.testing.assert_allclose(history.history["loss"], expected.history["loss"], rtol=0.01)
    state = model.trainable_weights + [weight for weight in model.optimizer.variables if weight.shape != ()]
    assert {keras.backend.standardize_dtype(weight.dtype) for weight in state} == {"float32"}
    # Three gradients are summed: bfloat16 could not hold what they add up to.
    kernel = model.backbone.blocks[0].feed_forward.expansion.kernel
    index = [id(weight) for weight in model.trainable_weights].index(id(kernel))
    total = to_numpy(model.optimizer._accumulated_gradients[index])
    assert (total.astype(ml_dtypes.bfloat16).astype("float32") != total).any()
    # Without validation the callback does it after the epoch.
    callback = ApplyLeftoverGradients()
    callback.set_model(model)
    callback.on_epoch_end(0)
    assert int(to_numpy(model.optimizer.iterations)) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"accumulation_steps": 0}, "accumulation_steps"),
        ({"accumulation_steps": 2.0}, "accumulation_steps"),
        ({"clip_norm": 0}, "clip_norm"),
        ({"ema_momentum": 1}, "ema_momentum"),
        ({"ema_momentum": 0.9, "accumulation_steps": 2}, "Leave one of the two out"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        igpt.pretraining_recipe("igpt_small", "ar", steps=100, **options)
    with pytest.raises(ValueError, match=message):
        igpt.finetuning_recipe(0.001, **options)


def test_leftover_gradients_need_an_optimizer_that_averages_nothing():
    model = make_causal_lm()
    with pytest.raises(ValueError, match="compiled"):
        apply_leftover_gradients(model)
    model.compile(keras.optimizers.Adam(0.1, use_ema=True, gradient_accumulation_steps=2))
    with pytest.raises(ValueError, match="moving average"):
        apply_leftover_gradients(model)
