import math

import keras
import numpy as np
import pytest
from conftest import random_tokens, to_numpy, value_and_gradient
from keras import ops
from reference import normalize

from keras_igpt.model import layers
from keras_igpt.model.embedding import PixelEmbedding
from keras_igpt.model.masking import RandomPositionMask


def test_quick_gelu():
    x = np.linspace(-6, 6, 25).astype("float32")
    np.testing.assert_allclose(
        to_numpy(layers.quick_gelu(ops.convert_to_tensor(x))), x / (1 + np.exp(-1.702 * x)), atol=1e-6
    )


@pytest.mark.parametrize("by_products", [False, True])
@pytest.mark.parametrize("kind", ["layer_norm", "rms_norm"])
def test_normalization_in_both_forms(kind, by_products, monkeypatch):
    monkeypatch.setattr(layers, "reduces_rows_slowly", lambda: by_products)
    x = np.random.default_rng(0).normal(3, 2, (2, 5, 24)).astype("float32")
    layer = layers.Normalization(kind)
    layer.build(x.shape)
    layer.gain.assign(np.linspace(0.5, 2, 24))
    expected = x - x.mean(-1, keepdims=True) if kind == "layer_norm" else x
    expected = expected / np.sqrt((expected**2).mean(-1, keepdims=True) + 1e-5) * np.linspace(0.5, 2, 24)
    if kind == "layer_norm":
        layer.bias.assign(np.linspace(-1, 1, 24))
        expected = expected + np.linspace(-1, 1, 24)
    np.testing.assert_allclose(to_numpy(layer(x)), expected, atol=1e-5)


def numerical_gradient(function, x, upstream):
    """Of the sum of a function's products with `upstream`, by differences in double precision."""
    gradient = np.empty(x.size)
    for place in range(x.size):
        step = np.zeros(x.size)
        step[place] = 1e-5
        step = step.reshape(x.shape)
        gradient[place] = ((function(x + step) - function(x - step)) * upstream).sum() / 2e-5
    return gradient.reshape(x.shape)


@pytest.mark.parametrize("layer_kind", ["layer_norm", "rms_norm", "feed_forward", "feed_forward with biases"])
def test_gradients_are_those_of_the_formula(layer_kind):
    random = np.random.default_rng(0)
    x, upstream = random.normal(1, 2, (2, 3, 8)), random.normal(size=(2, 3, 8))
    if layer_kind.startswith("feed_forward"):
        layer = layers.FeedForward(use_bias=layer_kind.endswith("biases"))
    else:
        layer = layers.Normalization(layer_kind)
    layer.build(x.shape)
    for weight in layer.weights:
        weight.assign(random.normal(0.5, 1, weight.shape))
    weights = [to_numpy(weight).astype("float64") for weight in layer.weights]

    def formula(x):
        if not layer_kind.startswith("feed_forward"):
            return normalize(x, dict(zip(("gain", "bias"), weights, strict=False)), layer_kind)
        expansion, *rest = weights
        expanded = x @ expansion + (rest.pop(0) if layer.use_bias else 0)
        activated = expanded / (1 + np.exp(-1.702 * expanded))
        return activated @ rest[0] + (rest[1] if layer.use_bias else 0)

    value, gradient = value_and_gradient(layer, x.astype("float32"), upstream.astype("float32"))
    np.testing.assert_allclose(value, formula(x), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(gradient, numerical_gradient(formula, x, upstream), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("kind", ["layer_norm", "rms_norm"])
def test_norm_statistics_do_not_overflow_in_half_precision(kind):
    # 300² is beyond float16.
    x = (300 * np.random.default_rng(0).choice([-1.0, 1.0], (1, 3, 64))).astype("float16")
    layer = layers.Normalization(kind, dtype="mixed_float16")
    y = to_numpy(layer(x)).astype("float32")
    assert keras.backend.standardize_dtype(layer(x).dtype) == "float16"
    np.testing.assert_allclose(np.abs(y).mean(), 1.0, atol=0.05)


def test_embedding_shifts_behind_the_start_vector():
    embedding = PixelEmbedding(16, 8, shift=True)
    embedding.build((None, 4))
    token_ids = np.array([[3, 5, 7, 9]])
    table, position = to_numpy(embedding.token_embedding.embeddings), to_numpy(embedding.position_embedding)
    expected = np.stack([to_numpy(embedding.start_vector), *table[[3, 5, 7]]]) + position
    np.testing.assert_allclose(to_numpy(embedding(token_ids))[0], expected, atol=1e-6)
    for index in range(4):
        step = embedding.embed_step(ops.convert_to_tensor(token_ids), ops.convert_to_tensor(index, "int32"))
        np.testing.assert_allclose(to_numpy(step)[0, 0], expected[index], atol=1e-6)


def test_hidden_positions_keep_their_position_embedding_alone():
    embedding = PixelEmbedding(16, 8, shift=False)
    embedding.build((None, 4))
    mask = np.array([[True, False, True, False]])
    embedded = to_numpy(embedding(np.array([[3, 5, 7, 9]]), position_mask=mask))[0]
    table, position = to_numpy(embedding.token_embedding.embeddings), to_numpy(embedding.position_embedding)
    np.testing.assert_allclose(embedded[[0, 2]], position[[0, 2]], atol=1e-6)
    np.testing.assert_allclose(embedded[[1, 3]], (table[[5, 9]] + position[[1, 3]]), atol=1e-6)


def make_mask(rate=0.15, seed=0, tokens=1024):
    layer = RandomPositionMask(rate, seed)
    layer.build((None, tokens))
    return layer


def draw(layer, token_ids, training=False):
    return to_numpy(layer(token_ids, training=training))


def murmur_finalizer(words):
    words = words.astype(np.uint32)
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        words = (words ^ (words >> np.uint32(shift))) * np.uint32(factor)
    return words ^ (words >> np.uint32(16))


def test_masks_are_the_same_on_every_backend():
    token_ids, seed, step = random_tokens(8, 49, 512), 5, 1
    with np.errstate(over="ignore"):
        index = np.arange(1, 50, dtype=np.uint32)
        words = murmur_finalizer(token_ids.astype(np.uint32) + np.uint32(0x9E3779B9) * index)
        picture = words.sum(-1, keepdims=True, dtype=np.uint32)
        seeded = murmur_finalizer(murmur_finalizer(np.array([seed])) + np.uint32(step))
        bits = murmur_finalizer(murmur_finalizer(picture ^ seeded) + np.uint32(0x85EBCA77) * index)
    expected = (bits & np.uint32(0xFFFFFF)) < round(0.3 * 2**24)
    np.testing.assert_array_equal(draw(make_mask(0.3, seed, 49), token_ids, training=True), expected)


def test_masks_have_the_rate_and_are_independent():
    token_ids = random_tokens(256, 1024, 512)
    masks = draw(make_mask(), token_ids)
    count = masks.size
    assert masks.mean() == pytest.approx(0.15, abs=5 * math.sqrt(0.15 * 0.85 / count))
    for shift in (1, 2, 32):
        together = (masks[:, shift:] & masks[:, :-shift]).mean()
        assert together == pytest.approx(0.0225, abs=5 * math.sqrt(0.0225 / count))
    # Masked tokens of one picture follow a binomial distribution: variance T p (1 - p).
    assert masks.sum(1).var() == pytest.approx(1024 * 0.15 * 0.85, rel=0.4)


def test_masks_change_with_step_seed_and_picture_and_repeat_otherwise():
    token_ids = random_tokens(4, 1024, 512)
    layer = make_mask()
    evaluated, first = draw(layer, token_ids), draw(layer, token_ids, training=True)
    layer.advance()
    second = draw(layer, token_ids, training=True)
    other_seed = draw(make_mask(seed=1), token_ids)
    for one, other in ((evaluated, first), (first, second), (evaluated, other_seed), (evaluated[:1], evaluated[1:2])):
        assert (one & other).mean() < 0.05
    np.testing.assert_array_equal(draw(layer, token_ids), evaluated)
    np.testing.assert_array_equal(draw(layer, token_ids[::-1].copy()), evaluated[::-1])
    changed = token_ids.copy()
    changed[0, -1] = (changed[0, -1] + 1) % 512
    assert (draw(layer, changed)[0] != evaluated[0]).any()


@pytest.mark.parametrize("rate", [0.0, 1.0])
def test_the_ends_of_the_rate(rate):
    assert (draw(make_mask(rate), random_tokens(4, 1024, 512)) == bool(rate)).all()


def test_layers_survive_serialization():
    for layer in (
        PixelEmbedding(16, 8, shift=True),
        layers.FeedForward(),
        RandomPositionMask(0.2, 3),
        layers.Normalization("rms_norm"),
    ):
        restored = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(layer))
        assert restored.get_config() == layer.get_config()
