import json

import numpy as np
import pytest
from conftest import make_causal_lm, make_masked_lm, random_tokens, randomize, to_numpy

import keras_igpt as igpt
from keras_igpt.linear_probe import FeatureExtractor, fit_logistic_regression

pytest.importorskip("sklearn")


def examples(count=60, seed=0):
    """Three classes that differ in how often low tokens occur: separable in the mean of the embeddings."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, 3, count)
    return (random.integers(0, 6, (count, 16)) + 5 * labels[:, None]).astype("int32"), labels


@pytest.mark.parametrize("make", [make_causal_lm, make_masked_lm])
@pytest.mark.parametrize("which", ["normed", "residual"])
def test_features_are_those_of_the_backbone(make, which):
    model = randomize(make())
    token_ids = random_tokens(10)
    mask = model.hidden_positions(token_ids)
    expected = to_numpy(model.backbone.pooled_features(token_ids, position_mask=mask, which=which))
    probe = igpt.LinearProbe(model, which=which, batch_size=4)
    features = probe.features(token_ids)
    assert features.dtype == np.float32
    np.testing.assert_allclose(features, expected, atol=1e-5)
    chosen = igpt.LinearProbe(model, layers=[2, 0], which=which).features(token_ids)
    np.testing.assert_allclose(chosen, expected[:, [2, 0]], atol=1e-5)


def test_the_extractor_is_a_plain_keras_model():
    model = randomize(make_causal_lm())
    features = FeatureExtractor(model, layers=[1]).predict(random_tokens(6), verbose=0)
    assert features.shape == (6, 1, 32)


def test_images_and_tokens_give_the_same_features(palette):
    model = randomize(make_causal_lm(palette))
    token_ids = random_tokens(6)
    probe = igpt.LinearProbe(model)
    np.testing.assert_array_equal(probe.features(palette.decode(token_ids)), probe.features(token_ids))


def test_it_reads_the_classes_and_reports_how(tmp_path):
    model = randomize(make_causal_lm(), scale=0.1)
    before = model.get_weights()
    probe = igpt.LinearProbe(model, strengths=(0.01, 1.0)).fit(examples(), examples(30, seed=1))
    accuracies = probe.score(examples(60, seed=2))
    assert list(accuracies) == [0, 1, 2]
    assert accuracies[0] > 0.9
    report = probe.report
    assert report.best_layer == max((0, 1, 2), key=lambda layer: (report.layers[layer].validation_accuracy, -layer))
    assert (report.num_train, report.num_validation, report.num_classes) == (60, 30, 3)
    assert all(layer.converged and layer.regularization_strength in (0.01, 1.0) for layer in report.layers)
    report.save(tmp_path / "report.json")
    assert json.loads((tmp_path / "report.json").read_text())["best_layer"] == report.best_layer
    inputs, labels = examples(60, seed=2)
    best = (probe.predict(inputs) == labels).mean()
    assert best == pytest.approx(accuracies[report.best_layer])
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


def test_labels_that_mean_nothing_score_at_chance():
    labels = np.random.default_rng(3).integers(0, 3, 900)
    parts = [(random_tokens(300, seed=seed), labels[300 * seed : 300 * seed + 300]) for seed in range(3)]
    probe = igpt.LinearProbe(make_causal_lm(), layers=[1]).fit(parts[0], parts[1])
    assert 0.2 < probe.score(parts[2])[1] < 0.47


def test_the_strength_is_chosen_on_validation_and_the_refit_sees_both():
    linear_model = pytest.importorskip("sklearn.linear_model")
    random = np.random.default_rng(0)
    train = (random.normal(size=(40, 30)).astype("float32"), random.integers(0, 2, 40))
    validation = (random.normal(size=(40, 30)).astype("float32"), random.integers(0, 2, 40))
    strengths = (1e-4, 1e-2, 1.0)
    fit = fit_logistic_regression(train, validation, strengths)

    def standardized(fitted, features):
        return (features - fitted.mean(0)) / fitted.std(0)

    scores = [
        linear_model.LogisticRegression(C=strength, max_iter=1000)
        .fit(standardized(train[0], train[0]), train[1])
        .score(standardized(train[0], validation[0]), validation[1])
        for strength in strengths
    ]
    assert fit.validation_accuracy == max(scores)
    assert fit.regularization_strength == strengths[int(np.argmax(scores))]
    both = np.concatenate([train[0], validation[0]])
    reference = linear_model.LogisticRegression(C=fit.regularization_strength, max_iter=1000).fit(
        standardized(both, both), np.concatenate([train[1], validation[1]])
    )
    np.testing.assert_allclose(fit.pipeline[-1].coef_, reference.coef_, atol=1e-3)


def test_an_unfinished_fit_says_so():
    fit = fit_logistic_regression(examples(), examples(30, seed=1), strengths=(100.0,), max_iterations=2)
    assert not fit.converged
    assert fit.iterations == 2
