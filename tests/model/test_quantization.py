import warnings

import keras
import numpy as np
import pytest
from conftest import make_causal_lm, make_masked_lm, random_tokens, randomize, to_numpy

import keras_igpt as igpt
from keras_igpt.model.quantization import check_not_quantized, int8_layers

TOKENS = random_tokens(8)


@pytest.fixture(scope="module")
def quantized():
    """A compiled classifier in int8, the kernels it had before and its logits before and after."""
    keras.utils.set_random_seed(0)
    classifier = randomize(igpt.ImageGPTImageClassifier(make_causal_lm(projection_bias=True), num_classes=4), scale=0.1)
    classifier.compile(**igpt.finetuning_recipe(0.01))
    kernels = {
        layer.path: to_numpy(layer.kernel).copy()
        for layer in classifier._flatten_layers()
        if isinstance(layer, (keras.layers.Dense, keras.layers.EinsumDense))
    }
    before = classifier.predict(TOKENS, verbose=0)
    classifier.quantize("int8")
    return classifier, kernels, before, classifier.predict(TOKENS, verbose=0)


def test_every_dense_layer_is_int8_and_nothing_else(quantized):
    classifier, kernels, *_ = quantized
    # Four in each of two blocks, the pixel head and the class head.
    assert len(kernels) == 4 * 2 + 2
    assert {layer.path for layer in int8_layers(classifier)} == set(kernels)
    assert sum(keras.backend.standardize_dtype(weight.dtype) == "int8" for weight in classifier.weights) == 10


def test_kernels_are_within_half_a_step(quantized):
    classifier, kernels, *_ = quantized
    for layer in int8_layers(classifier):
        if isinstance(layer, keras.layers.Dense):
            steps = 1 / to_numpy(layer.kernel_scale)
            assert (np.abs(to_numpy(layer.kernel) * steps - kernels[layer.path]) <= 0.5001 * steps).all()
            np.testing.assert_allclose(steps, np.abs(kernels[layer.path]).max(axis=0) / 127, rtol=1e-3)


def test_logits_hardly_change(quantized):
    *_, before, after = quantized
    assert 0 < np.abs(after - before).max() < 0.1 * np.abs(before).max()


def test_a_quantized_model_is_the_same_after_loading(quantized, tmp_path):
    classifier, _, _, after = quantized
    classifier.save(tmp_path / "classifier.keras")
    loaded = keras.saving.load_model(tmp_path / "classifier.keras")
    assert {layer.path for layer in int8_layers(loaded)} == {layer.path for layer in int8_layers(classifier)}
    np.testing.assert_array_equal(loaded.predict(TOKENS, verbose=0), after)
    # Norms and embeddings can still be trained, from where the loaded optimizer starts.
    with pytest.warns(UserWarning, match="10 layers in int8 stay as they are"):
        loss = loaded.fit(TOKENS, np.arange(8) % 4, batch_size=8, verbose=0).history["loss"]
    assert np.isfinite(loss).all()


def test_kernels_alone(tmp_path):
    """Inputs that are not rounded cost less, and the file keeps that they are not; so does one of a part."""
    model = randomize(make_masked_lm(num_layers=1), scale=0.1)
    before = model.predict(TOKENS, verbose=0)
    kernels_alone = keras.quantizers.Int8QuantizationConfig(activation_quantizer=None)
    model.quantize(config=kernels_alone, filters="expansion|pixel_head")
    assert len(int8_layers(model)) == 2
    after = model.predict(TOKENS, verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert len(int8_layers(loaded)) == 2
    np.testing.assert_array_equal(loaded.predict(TOKENS, verbose=0), after)
    assert 0 < np.abs(after - before).max() < 0.02 * np.abs(before).max()


def test_a_backbone_is_the_same_after_loading(tmp_path):
    backbone = randomize(make_causal_lm(num_layers=1).backbone, scale=0.1)
    backbone.quantize("int8")
    backbone.save(tmp_path / "backbone.keras")
    loaded = keras.saving.load_model(tmp_path / "backbone.keras")
    np.testing.assert_array_equal(loaded.predict(TOKENS, verbose=0), backbone.predict(TOKENS, verbose=0))


def test_helpers_compiled_before_use_the_new_weights():
    model = randomize(make_causal_lm(num_layers=1), scale=0.1)
    before = model.score(TOKENS).nats_per_token
    model.quantize("int8")
    after = model.score(TOKENS).nats_per_token
    model.compile("sgd")
    assert np.mean(after) != np.mean(before)
    assert np.mean(after) == pytest.approx(model.evaluate(TOKENS, verbose=0, return_dict=True)["loss"], rel=1e-5)


def test_a_model_inside_forgets_what_it_compiled():
    inner = randomize(make_causal_lm(num_layers=1), scale=0.1)
    before = inner.score(TOKENS).nats_per_token, inner.predict(TOKENS, verbose=0)
    igpt.ImageGPTImageClassifier(inner, num_classes=3).quantize("int8")
    after = inner.score(TOKENS).nats_per_token
    assert (after != before[0]).any()
    logits = inner.predict(TOKENS, verbose=0)
    assert (logits != before[1]).any()
    expected = keras.ops.convert_to_numpy(keras.ops.log_softmax(logits))
    expected = -np.take_along_axis(expected, TOKENS[..., None], -1).mean(axis=(1, 2))
    np.testing.assert_allclose(after, expected, rtol=1e-5)


@pytest.mark.parametrize(
    "filters",
    ["query_key_value", "output_projection", "expansion", "contraction", "pixel_head", "expansion|contraction"],
)
def test_any_choice_of_layers_keeps_the_logits(filters):
    model = randomize(make_causal_lm())
    token_ids = random_tokens(4)
    before = to_numpy(model(token_ids))
    model.quantize("int8", filters=filters)
    assert np.abs(to_numpy(model(token_ids)) - before).mean() < 0.05 * np.abs(before).mean()


def test_filters_that_match_nothing_are_refused():
    with pytest.raises(ValueError, match=r"`filters` must match a dense layer.*Received: filters='no_such_layer'"):
        make_causal_lm(num_layers=1).quantize("int8", filters="no_such_layer")


def test_training_around_int8_kernels_is_said():
    lm = make_causal_lm(num_layers=1)
    lm.quantize("int8")
    classifier = igpt.ImageGPTImageClassifier(lm, 3)
    lm.compile("sgd")
    classifier.compile(**igpt.finetuning_recipe(0.001))
    token_ids, labels = random_tokens(4), np.arange(4) % 3
    for model, targets in ((lm, None), (classifier, labels)):
        with pytest.warns(UserWarning, match="5 layers in int8 stay as they are: training changes norms") as caught:
            model.fit(token_ids, targets, verbose=0)
        assert caught[0].filename == __file__
    probe = igpt.ImageGPTImageClassifier(lm, 3, generative_weight=0, frozen=True)
    probe.compile(**igpt.finetuning_recipe(0.001))
    lm.compile("sgd")
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*int8")
        probe.fit(token_ids, labels, verbose=0)
        lm.backbone.blocks[0].feed_forward.expansion.enable_lora(2)
        lm.fit(token_ids, verbose=0)


def test_what_cannot_be_quantized_is_named(quantized):
    with pytest.raises(ValueError, match=r"`mode` must be 'int8'.*Received: mode='int4'"):
        make_causal_lm().quantize("int4")
    with pytest.raises(ValueError, match="must be given once"):
        quantized[0].quantize("int8")
    with pytest.raises(ValueError, match=r"`language_model` must not be quantised. Received: 10 layers"):
        check_not_quantized(quantized[0], "language_model")
