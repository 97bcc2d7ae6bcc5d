import json
import tracemalloc

import keras
import numpy as np
import pytest
from conftest import make_causal_lm, make_masked_lm, randomize, to_numpy

import keras_igpt as igpt
from keras_igpt.evaluation import attention_probe
from keras_igpt.evaluation.attention_probe import fit_attention_pooling
from keras_igpt.evaluation.logistic_regression import fit_logistic_regression
from keras_igpt.inference import compiled


def planted(count, seed):
    """The class is at the one position that is marked; the others show random classes, so the mean is nearly blind."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, 3, count)
    shown = random.integers(0, 3, (count, 16))
    marked = random.integers(0, 16, count)
    shown[np.arange(count), marked] = labels
    features = np.concatenate([2 * np.eye(3)[shown], np.zeros((count, 16, 5))], axis=-1)
    features[np.arange(count), marked, 3] = 3
    return (features + 0.3 * random.standard_normal(features.shape)).astype("float16"), labels + 4


def test_it_finds_the_position_that_tells_the_class():
    train, validation, test = planted(500, 0), planted(100, 1), planted(400, 2)
    options = {"num_heads": 2, "rates": (0.03, 1e-6), "max_epochs": 8, "patience": 2, "batch_size": 50}
    fitted = fit_attention_pooling(train, validation, **options, seed=1)
    attention = igpt.measure_accuracy(fitted.predict(test[0], 50), test[1])
    pooled = [(features.mean(axis=1, dtype="float32"), labels) for features, labels in (train, validation, test)]
    mean = igpt.measure_accuracy(fit_logistic_regression(*pooled[:2], (0.1, 10.0)).predict(pooled[2][0]), test[1])
    assert attention.low > 0.9
    assert mean.high < 0.7
    assert attention.compare(mean).significant
    assert fitted.learning_rate == 0.03
    assert 1 <= fitted.epochs <= 8
    assert fitted.validation_accuracies[0] == max(fitted.validation_accuracies)


def test_rate_and_epochs_are_chosen_on_validation_and_both_parts_refitted(monkeypatch):
    train, validation = planted(20, 0), planted(10, 1)
    trained, right = [], iter([3, 5, 4, 4, 5, 6, 1, 1])
    monkeypatch.setattr(
        attention_probe,
        "_train",
        lambda model, parts, *given: trained.append((float(model.optimizer.learning_rate), len(parts), given[-1])),
    )

    def logits(model, features, batch_size):
        labels = np.searchsorted(np.unique(train[1]), validation[1])
        return np.eye(4)[np.where(np.arange(10) < next(right), labels, labels + 1)]

    monkeypatch.setattr(attention_probe, "_logits", logits)
    fitted = fit_attention_pooling(train, validation, 2, rates=(0.25, 0.5), max_epochs=9, patience=2)
    # With each rate until two epochs are no better, and no further than the best one at the end.
    assert trained == [(rate, 1, epoch) for rate in (0.25, 0.5) for epoch in range(4)] + [(0.5, 2, 0), (0.5, 2, 1)]
    assert fitted.validation_accuracies == (0.5, 0.6)
    assert (fitted.learning_rate, fitted.epochs) == (0.5, 2)


def test_a_rate_that_diverges_leaves_the_choice_to_the_others():
    train, validation = planted(100, 0), planted(50, 1)
    options = {"num_heads": 2, "max_epochs": 3, "batch_size": 50}
    fitted = fit_attention_pooling(train, validation, rates=(1e38, 0.03), **options)
    assert fitted.learning_rate == 0.03
    assert fitted.validation_accuracies[0] == 0 < fitted.validation_accuracies[1]
    with pytest.raises(ValueError, match=r"`rates` must .* diverge.*1e\+38"):
        fit_attention_pooling(train, validation, rates=(1e38,), **options)


def test_features_are_standardised():
    features = 10 * np.random.default_rng(0).standard_normal((50, 4, 8)).astype("float32") + 3
    statistics = attention_probe.feature_statistics([features.reshape(-1, 8)])
    model = attention_probe._make_model((4, 8), 3, 2, statistics, 0.1, 0)
    standardised = to_numpy(model.layers[0](features)).reshape(-1, 8)
    np.testing.assert_allclose(standardised.mean(axis=0), 0, atol=1e-3)
    np.testing.assert_allclose(standardised.std(axis=0), 1, atol=1e-3)


def test_global_dtype_policies_change_nothing():
    # bfloat16 has three digits, which such features need for their mean alone.
    features = 100 + np.random.default_rng(0).standard_normal((6, 4, 8)).astype("float32")
    statistics, policy = attention_probe.feature_statistics([features.reshape(-1, 8)]), keras.config.dtype_policy()
    logits = []
    for name in (policy, "mixed_bfloat16"):
        keras.config.set_dtype_policy(name)
        try:
            model = attention_probe._make_model((4, 8), 3, 2, statistics, 0.1, 0)
            model.layers[-1].kernel.assign(np.eye(8, 3))
            logits.append(model.predict_on_batch(features))
        finally:
            keras.config.set_dtype_policy(policy)
    assert logits[1].dtype == np.float32
    np.testing.assert_allclose(logits[1], logits[0], atol=1e-5)


def test_at_first_it_is_the_mean():
    layer = attention_probe._AttentionPooling(num_heads=2, seed=3)
    features = np.random.default_rng(0).standard_normal((4, 5, 8)).astype("float32")
    found = to_numpy(layer(features))
    expected = np.einsum("bd,ndh->bnh", features.mean(axis=1), to_numpy(layer._value)).reshape(4, 8)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    again = attention_probe._AttentionPooling(num_heads=2, seed=3)
    again(features)
    np.testing.assert_array_equal(to_numpy(again._value), to_numpy(layer._value))


def test_rows_are_read_once_in_the_order_of_a_seed():
    parts = [
        (np.arange(first, first + count, dtype="float16")[:, None, None], np.arange(first, first + count))
        for first, count in ((0, 7), (7, 4))
    ]
    epochs = []

    class Model:
        def train_on_batch(self, features, labels):
            np.testing.assert_array_equal(features[:, 0, 0], labels)
            assert len(labels) == 4
            epochs[-1].extend(labels.tolist())

        def predict_on_batch(self, features):
            assert features.dtype == np.float32
            return np.eye(11)[features[:, 0, 0].astype(int)]

    for seed, epoch in ((0, 0), (0, 0), (0, 1), (1, 0)):
        epochs.append([])
        attention_probe._train(Model(), parts, 4, seed, epoch)
    assert all(len(set(epoch)) == 8 for epoch in epochs)  # the last three are left out
    assert epochs[0] == epochs[1]
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert attention_probe._logits(Model(), parts[0][0], 4).argmax(axis=-1).tolist() == [*range(7)]


def examples(count, seed):
    random = np.random.default_rng(seed)
    labels = random.integers(0, 2, count)
    return (random.integers(0, 8, (count, 16)) + 8 * labels[:, None]).astype("int32"), labels


def test_a_model_is_probed_at_one_depth_and_left_alone(tmp_path):
    model = randomize(make_masked_lm(), scale=0.1)
    before = model.get_weights()
    train, validation, test = examples(60, 0), examples(30, 1), examples(50, 2)
    probe = igpt.AttentionProbe(model, 1, rates=(0.01,), max_epochs=3, batch_size=20, folder=tmp_path / "features")
    with pytest.raises(ValueError, match="must be fitted first"):
        probe.score(test)
    measured = probe.fit(train, validation).score(test)
    assert measured == igpt.measure_accuracy(probe.predict(test[0]), test[1])
    assert measured.low > 0.6
    stored = np.load(tmp_path / "features" / "attention_validation.npy")
    (states,) = model.backbone.normed_states(validation[0], (1,), model.hidden_positions(validation[0]))
    np.testing.assert_array_equal(stored.shape, (30, 16, 32))
    np.testing.assert_allclose(stored, to_numpy(states), atol=5e-3)
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)
    probe.report.save(tmp_path / "report.json")
    saved = json.loads((tmp_path / "report.json").read_text())
    assert igpt.MeasuredAccuracy(**saved["measured"]) == measured
    assert (saved["layer"], saved["num_heads"], saved["num_train"], saved["num_validation"]) == (1, 2, 60, 30)
    keras.utils.set_random_seed(5)  # which decides nothing
    again = igpt.AttentionProbe(model, 1, rates=(0.01,), max_epochs=3, batch_size=20).fit(train, validation)
    assert again.score(test) == measured


def test_predicting_keeps_no_features(monkeypatch):
    monkeypatch.setattr(compiled, "_SEGMENT_BYTES", 1)  # one batch at a time
    # Wide, so that features outweigh what TensorFlow makes for each call of `predict`, 2 MB together.
    lm = make_causal_lm(hidden_dim=64)
    probe = igpt.AttentionProbe(lm, 1, rates=(0.01,), max_epochs=1, batch_size=100)
    probe.fit(examples(60, 0), examples(30, 1))
    token_ids, labels = examples(4000, 2)
    probe.predict(token_ids[:100])  # compiles
    tracemalloc.start()
    predicted = probe.predict(token_ids)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 4000 * 16 * 64  # half of what the float16 features of all take
    np.testing.assert_array_equal(predicted[-700:], probe.predict(token_ids[-700:]))
    assert probe.score((token_ids, labels)).num_test == 4000


def test_what_does_not_fit_is_refused_before_any_work(monkeypatch):
    model = make_causal_lm()
    for options, message in (
        ({"layer": 3}, "`layer` must be an integer in 0…2"),
        ({"layer": 1, "num_heads": 5}, "`num_heads` must divide the width of the features, 32"),
        ({"layer": 1, "rates": ()}, "`rates` must be one or more"),
    ):
        with pytest.raises(ValueError, match=message):
            igpt.AttentionProbe(model, **options)
    monkeypatch.setattr(attention_probe, "host_memory", lambda: 2**12)
    with pytest.raises(ValueError, match=r"`folder` must be given.* 90 pictures take 0\.\d\d MiB"):
        igpt.AttentionProbe(model, 1).fit(examples(60, 0), examples(30, 1))
