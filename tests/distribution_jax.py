"""What test_distribution.py runs in a process of its own, with eight virtual devices on JAX."""

import keras
import numpy as np
import pytest
from conftest import TINY, make_causal_lm, make_masked_lm, random_tokens, randomize

import keras_igpt as igpt
from keras_igpt.backend.processes import data_shard, host_array
from keras_igpt.data import LabeledTokens
from keras_igpt.training.distribution import make_distribution, save_model

SIZES = {"num_layers": 1, "num_heads": 4, "hidden_dim": 16}
ARCHITECTURE = {**TINY, **SIZES}
EXAMPLES = LabeledTokens(random_tokens(40), np.arange(40) % 3, 16)
KINDS = ("causal", "masked", "classifier")

# Everything else is whole on every device.
DIVIDED = {
    "query_key_value/kernel": (None, None, "model", None),
    "output_projection/kernel": ("model", None, None),
    "expansion/kernel": (None, "model"),
    "contraction/kernel": ("model", None),
    "pixel_head/kernel": (None, "model"),
}


@pytest.fixture(autouse=True)
def _no_distribution_left():
    yield
    keras.distribution.set_distribution(None)


def distribute(model_devices):
    distribution = make_distribution(ARCHITECTURE, model_devices)
    keras.distribution.set_distribution(distribution)
    return distribution


def make(kind):
    """A compiled model whose weights are functions of the kind alone."""
    language_model = make_causal_lm(**SIZES) if kind == "causal" else make_masked_lm(mask_rate=0.5, **SIZES)
    if kind == "classifier":
        classifier = randomize(igpt.ImageGPTImageClassifier(language_model, num_classes=3))
        classifier.compile(**igpt.finetuning_recipe(0.003))
        return classifier
    randomize(language_model)
    language_model.compile(**igpt.pretraining_recipe("igpt_nano", "ar", steps=6, steps_per_epoch=2))
    return language_model


def train(model):
    """Trains, evaluates and predicts; returns all figures, the optimizer's state and the weights."""
    batches = igpt.TrainingBatches(EXAMPLES, None, batch_size=16, seed=1)
    held_out = igpt.EvaluationBatches(EXAMPLES, None, batch_size=16)  # half of the last batch has weight 0
    history = model.fit(batches, epochs=2, steps_per_epoch=2, validation_data=held_out, verbose=0).history
    evaluated = model.evaluate(held_out, verbose=0, return_dict=True)
    figures = np.concatenate([*history.values(), [*evaluated.values()]])
    predicted = model.predict(held_out, verbose=0)
    return [figures, predicted, *map(host_array, [*model.optimizer.variables, *model.variables])]


@pytest.fixture(scope="module")
def alone():
    """What each kind of model does on one device."""
    assert keras.distribution.distribution() is None
    return {kind: train(make(kind)) for kind in KINDS}


def axes_of(variable):
    axes = tuple(variable.value.sharding.spec)
    return axes + (None,) * (len(variable.shape) - len(axes))


def expected_axes(variable, model_devices):
    whole = (None,) * len(variable.shape)
    return whole if model_devices == 1 else DIVIDED.get("/".join(variable.path.split("/")[-2:]), whole)


@pytest.mark.parametrize(
    ("kind", "model_devices"),
    [("causal", 4), ("masked", 2), ("classifier", 1), ("classifier", 4)],
)
def test_training_equals_that_of_one_device(alone, kind, model_devices):
    distribution = distribute(model_devices)
    assert distribution.num_model_replicas == 8 // model_devices
    assert data_shard(distribution) == (0, 1)
    model = make(kind)
    results = train(model)
    for result, expected in zip(results, alone[kind], strict=True):
        np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-5)

    assert {axes_of(variable) == expected_axes(variable, model_devices) for variable in model.variables} == {True}
    divided = [variable for variable in model.variables if "model" in axes_of(variable)]
    assert len(divided) == (0 if model_devices == 1 else len(DIVIDED))
    for variable in divided:
        assert np.prod(variable.value.addressable_shards[0].data.shape) == np.prod(variable.shape) // model_devices

    # The moments lie where their weights do, and nothing is left over.
    moments = {
        f"{variable.path.replace('/', '_')}_{moment}": axes_of(variable)
        for variable in model.trainable_variables
        for moment in ("momentum", "velocity")
    }
    found = {variable.path.partition("/")[2]: axes_of(variable) for variable in model.optimizer.variables}
    assert {name: axes for name, axes in found.items() if name not in ("iteration", "learning_rate")} == moments


def test_a_file_opens_on_any_number_of_devices(tmp_path):
    distribute(4)
    model = make("classifier")
    model.optimizer.build(model.trainable_variables)
    random = np.random.default_rng(0)
    for variable in model.optimizer.variables[2:]:
        variable.assign(random.random(variable.shape))
    save_model(model, tmp_path / "model.keras")
    state = list(map(host_array, [*model.optimizer.variables, *model.variables]))
    predicted = model.predict(random_tokens(8), verbose=0)
    for model_devices in (None, 1, 2):
        keras.distribution.set_distribution(None)
        if model_devices is not None:
            distribute(model_devices)
        opened = keras.saving.load_model(tmp_path / "model.keras")
        for variable, expected in zip([*opened.optimizer.variables, *opened.variables], state, strict=True):
            np.testing.assert_array_equal(host_array(variable), expected)
            assert len(variable.value.sharding.device_set) == (1 if model_devices is None else 8)
        np.testing.assert_allclose(opened.predict(random_tokens(8), verbose=0), predicted, atol=1e-5)


def test_a_killed_run_goes_on_with_other_devices(tmp_path):
    batches = igpt.TrainingBatches(EXAMPLES, None, batch_size=16, seed=1)

    def train_on(epochs, *callbacks):
        model = make("causal")
        model.fit(batches, epochs=epochs, steps_per_epoch=2, verbose=0, callbacks=[*callbacks])
        return [host_array(variable) for variable in [*model.optimizer.variables, *model.variables]]

    for epochs, model_devices in ((1, 4), (2, 1)):
        distribute(model_devices)
        train_on(epochs, igpt.ExactResume(tmp_path, every=1))
    keras.distribution.set_distribution(None)
    resumed, expected = train_on(3, igpt.ExactResume(tmp_path, every=1)), train_on(3)
    for array, other in zip(resumed, expected, strict=True):
        np.testing.assert_allclose(array, other, rtol=1e-5, atol=1e-5)


def test_pictures_and_features_of_any_number(palette):
    def draw_and_probe():
        model = randomize(make_causal_lm(palette, **SIZES))
        drawn = model.generate(num_images=3, seed=0)
        completed = model.complete(drawn[:1], keep_rows=2, num_samples=5, seed=0)
        images, labels = palette.decode(random_tokens(14)), np.arange(14) % 2
        probe = igpt.LinearProbe(model).fit((images[:9], labels[:9]), (images[9:], labels[9:]))
        return drawn, completed, probe.features(images[:5])

    alone = draw_and_probe()
    for model_devices in (1, 4):
        keras.distribution.set_distribution(None)
        distribute(model_devices)
        for result, expected in zip(draw_and_probe(), alone, strict=True):
            np.testing.assert_allclose(result, expected, atol=1e-5)


def test_rows_that_cannot_be_shared_out_are_refused_before_any_work():
    distribute(1)
    model = make("causal")
    weights = list(map(host_array, model.variables))
    with pytest.raises(ValueError, match=r"`x` must be a multiple of 8, .* Received: 12 rows"):
        model.predict(random_tokens(12))
    with pytest.raises(ValueError, match=r"`batch_size` must be a multiple of 8, .* Received: 12 rows"):
        model.evaluate(random_tokens(24), batch_size=12)
    with pytest.raises(ValueError, match=r"`validation_data` must be a multiple of 8, .* Received: 4 rows"):
        model.fit(random_tokens(8), validation_data=(random_tokens(4), None))
    with pytest.raises(ValueError, match=r"`x` must be a multiple of 8, .* Received: 4 rows"):
        model.fit(igpt.TrainingBatches(EXAMPLES, None, batch_size=4))
    for variable, expected in zip(model.variables, weights, strict=True):
        np.testing.assert_array_equal(host_array(variable), expected)


def test_devices_that_cannot_be_divided():
    with pytest.raises(ValueError, match=r"`model_devices` must divide the 8 device\(s\). Received: model_devices=3"):
        make_distribution(ARCHITECTURE, 3)
    with pytest.raises(ValueError, match=r"divides num_heads=4\. Received: 8 devices"):
        make_distribution(ARCHITECTURE, 8)
