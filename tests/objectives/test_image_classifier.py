import logging
import math
import warnings

import keras
import numpy as np
import pytest
from conftest import make_causal_lm, make_masked_lm, random_tokens, randomize, to_numpy
from reference import forward, read_weights

import keras_igpt as igpt
from keras_igpt.data import LabeledTokens
from keras_igpt.model.masking import vote_mask
from keras_igpt.support import progress
from keras_igpt.training.recipes import probing_recipe

LABELS = np.arange(8) % 4


def make_classifier(model, weight, learning_rate=0.1):
    classifier = igpt.ImageGPTImageClassifier(model, num_classes=4, generative_weight=weight)
    classifier.compile(
        optimizer=keras.optimizers.SGD(learning_rate),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    return classifier


def fit_classifier(model, weight, epochs=1, learning_rate=0.1):
    classifier = make_classifier(model, weight, learning_rate)
    history = classifier.fit(random_tokens(8), LABELS, epochs=epochs, batch_size=8, shuffle=False, verbose=0).history
    return classifier, history


@pytest.mark.parametrize("weight", [0.0, 0.5])
@pytest.mark.parametrize("make", [make_causal_lm, make_masked_lm])
def test_the_loss_is_the_weighted_sum(make, weight):
    # Zero-initialised heads: L_GEN = log 16 and L_CLF = log 4 exactly.
    _, history = fit_classifier(make(num_layers=1), weight)
    assert history["loss"][0] == pytest.approx(weight * math.log(16) + math.log(4), abs=1e-5)


@pytest.mark.parametrize("make", [make_causal_lm, make_masked_lm])
def test_the_generative_part_is_the_language_models_own_loss(make):
    model = randomize(make())
    classifier = make_classifier(model, 0.7)
    token_ids = random_tokens(8)
    model.compile(optimizer="sgd")
    generative = model.evaluate(token_ids, batch_size=8, verbose=0, return_dict=True)["loss"]
    logs = classifier.evaluate(token_ids, LABELS, batch_size=8, verbose=0, return_dict=True)
    assert logs["loss"] == pytest.approx(0.7 * generative + math.log(4), abs=1e-5)
    assert logs["generative_loss"] == pytest.approx(generative, abs=1e-5)


def test_logits_are_linear_in_the_mean_of_the_last_features():
    model = randomize(make_causal_lm())
    classifier = randomize(make_classifier(model, 1.0))
    token_ids = random_tokens(8)
    features = to_numpy(model.backbone.pooled_features(token_ids))[:, -1]
    expected = features @ to_numpy(classifier.class_head.kernel)
    np.testing.assert_allclose(classifier.predict(token_ids, verbose=0), expected, atol=1e-5)
    np.testing.assert_allclose(to_numpy(classifier(token_ids)["class_logits"]), expected, atol=1e-5)


@pytest.mark.parametrize("weight", [0.0, 1.0])
@pytest.mark.parametrize("layer", [0, 1, 2, None])
@pytest.mark.parametrize("make", [make_causal_lm, make_masked_lm])
def test_the_head_reads_the_features_of_its_depth(make, layer, weight):
    model = make()
    classifier = randomize(igpt.ImageGPTImageClassifier(model, num_classes=4, generative_weight=weight, layer=layer))
    inputs = token_ids = random_tokens(8)
    mask, causal = None, make is make_causal_lm
    if not causal:
        mask = np.random.default_rng(1).random(token_ids.shape) < 0.3
        inputs = {"token_ids": token_ids, "position_mask": mask}
    normed, _, logits = forward(read_weights(model), token_ids, causal, "layer_norm", mask)
    outputs = classifier(inputs)
    expected = normed[-1 if layer is None else layer].mean(axis=1) @ to_numpy(classifier.class_head.kernel)
    np.testing.assert_allclose(to_numpy(outputs["class_logits"]), expected, atol=2e-4)
    assert ("image_losses" in outputs) == bool(weight)
    if weight:
        log_probabilities = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
        losses = -np.take_along_axis(log_probabilities, token_ids[..., None], axis=-1)[..., 0]
        expected_losses = np.average(losses, axis=1) if mask is None else (losses * mask).sum(1) / mask.sum(1)
        np.testing.assert_allclose(to_numpy(outputs["image_losses"]), expected_losses, rtol=1e-3)


# Paths of the weights that n^l does not depend on, by l.
ABOVE = {
    0: ("block_0/attention/", "block_0/feed_forward", "block_1/", "final_norm/"),
    1: ("block_1/attention/", "block_1/feed_forward", "final_norm/"),
    2: (),
}


@pytest.mark.parametrize("layer", ABOVE)
def test_classification_alone_trains_the_weights_below_its_head_and_no_others(layer):
    model = randomize(make_causal_lm())
    classifier = igpt.ImageGPTImageClassifier(model, num_classes=4, generative_weight=0.0, layer=layer)
    # From a head of zeros no gradient would reach the language model in the first step.
    randomize(classifier.class_head)
    classifier.compile(**igpt.finetuning_recipe(0.01))
    before = {weight.path: to_numpy(weight).copy() for weight in model.weights}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        classifier.fit(random_tokens(8), LABELS, epochs=2, batch_size=8, verbose=0)
    for weight in model.weights:
        unused = any(part in weight.path for part in (*ABOVE[layer], "pixel_head"))
        assert np.isfinite(to_numpy(weight)).all(), weight.path
        assert (to_numpy(weight) == before[weight.path]).all() == unused, weight.path
    # Adam keeps two moments of each weight it trains.
    trained, fixed = classifier.trainable_weights, classifier.non_trainable_weights
    assert len(classifier.optimizer.variables) == 2 + 2 * len(trained)
    assert {w.path for w in trained} | {w.path for w in fixed} == {w.path for w in classifier.weights}
    assert len(trained) + len(fixed) == len(classifier.weights)


@pytest.fixture(scope="module")
def probe():
    """A frozen classifier after three whole-batch steps, and the language model's weights before them."""
    keras.utils.set_random_seed(0)
    model = randomize(make_causal_lm())
    before = model.get_weights()
    classifier = igpt.ImageGPTImageClassifier(model, num_classes=4, generative_weight=0.0, layer=1, frozen=True)
    classifier.compile(**probing_recipe(2.0, steps=4))
    classifier.fit(random_tokens(8), LABELS, epochs=3, batch_size=8, shuffle=False, verbose=0)
    return classifier, before


def test_a_frozen_model_keeps_its_weights_and_the_optimizer_nothing_for_them(probe):
    classifier, before = probe
    for weight, array in zip(classifier.language_model.weights, before, strict=True):
        np.testing.assert_array_equal(to_numpy(weight), array)
    assert [weight.path for weight in classifier.trainable_weights] == [classifier.class_head.kernel.path]
    sizes = [math.prod(variable.shape) for variable in classifier.optimizer.variables]
    assert sizes.count(math.prod(classifier.class_head.kernel.shape)) == 1
    assert sum(sizes) <= math.prod(classifier.class_head.kernel.shape) + 2


def test_the_probe_is_logistic_regression_by_gradient_descent(probe):
    classifier, _ = probe
    normed, _, _ = forward(read_weights(classifier.language_model), random_tokens(8), True, "layer_norm")
    features, targets = normed[1].mean(axis=1), np.eye(4)[LABELS]
    kernel = momentum = np.zeros((32, 4))
    for step in range(3):
        exponentials = np.exp(features @ kernel)
        gradient = features.T @ (exponentials / exponentials.sum(axis=1, keepdims=True) - targets) / 8
        momentum = 0.9 * momentum - 2.0 * 0.5 * (1 + np.cos(np.pi * step / 4)) * gradient
        kernel = kernel + momentum
    np.testing.assert_allclose(to_numpy(classifier.class_head.kernel), kernel, atol=1e-3)


def test_a_file_keeps_depth_and_freezing(probe, tmp_path):
    classifier, before = probe
    classifier.save(tmp_path / "probe.keras")
    restored = keras.saving.load_model(tmp_path / "probe.keras")
    token_ids = random_tokens(8)
    assert (restored.layer, restored.frozen) == (1, True)
    np.testing.assert_array_equal(restored.predict(token_ids, verbose=0), classifier.predict(token_ids, verbose=0))
    head = to_numpy(restored.class_head.kernel).copy()
    restored.fit(token_ids, LABELS, batch_size=8, verbose=0)
    assert (to_numpy(restored.class_head.kernel) != head).any()
    for weight, array in zip(restored.language_model.weights, before, strict=True):
        np.testing.assert_array_equal(to_numpy(weight), array)


def test_freezing_ends_with_the_classifier_that_asked_for_it(probe):
    classifier, _ = probe
    model = classifier.language_model
    other = igpt.ImageGPTImageClassifier(model, num_classes=4)
    assert len(other.trainable_weights) == len(model.trainable_weights) + 1 > 2


LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def test_a_frozen_bert_model_draws_new_masks_in_each_step():
    model = randomize(make_masked_lm())
    before = [to_numpy(weight).copy() for weight in model.trainable_weights]
    classifier = igpt.ImageGPTImageClassifier(model, num_classes=4, generative_weight=0.0, frozen=True)
    randomize(classifier.class_head)
    classifier.compile(optimizer=keras.optimizers.SGD(0.0), loss=LOSS)
    history = classifier.fit(random_tokens(8), LABELS, epochs=3, batch_size=8, verbose=0).history
    assert len(set(history["loss"])) == 3
    for weight, array in zip(model.trainable_weights, before, strict=True):
        np.testing.assert_array_equal(to_numpy(weight), array)


@pytest.mark.parametrize("layer", [-1, 3, 1.0, "last"])
def test_a_depth_that_is_not_there(layer):
    with pytest.raises(ValueError, match=r"`layer` must be an integer in 0…2\. Received: layer="):
        igpt.ImageGPTImageClassifier(make_causal_lm(), num_classes=4, layer=layer)


def test_a_frozen_model_has_no_generative_loss():
    with pytest.raises(ValueError, match=r"`generative_weight` must be 0 with frozen=True.* generative_weight=1.0"):
        igpt.ImageGPTImageClassifier(make_causal_lm(), num_classes=4, frozen=True)


@pytest.mark.parametrize(("make", "weight"), [(make_causal_lm, 0.0), (make_masked_lm, 1.0)])
def test_it_learns_four_classes(make, weight):
    classifier = igpt.ImageGPTImageClassifier(make(), num_classes=4, generative_weight=weight)
    classifier.compile(**igpt.finetuning_recipe(0.01))
    token_ids = random_tokens(8)
    rows = np.tile(np.arange(8), 10)
    history = classifier.fit(token_ids[rows], LABELS[rows], epochs=8, batch_size=8, shuffle=False, verbose=0).history
    assert history["accuracy"][-1] >= 0.75
    assert history["loss"][-1] < history["loss"][0]
    logs = classifier.evaluate(token_ids, LABELS, verbose=0, return_dict=True)
    predicted = classifier.predict(token_ids, verbose=0).argmax(-1)
    assert logs["accuracy"] == pytest.approx((predicted == LABELS).mean())


def test_each_step_of_fine_tuning_draws_new_masks():
    model = randomize(make_masked_lm())
    _, history = fit_classifier(model, 1.0, epochs=3, learning_rate=0.0)
    assert len(set(history["loss"])) == 3
    assert int(model.random_position_mask.step) == 3


def test_sample_weights_count_in_both_parts():
    classifier = make_classifier(randomize(make_causal_lm()), 1.0)
    token_ids = random_tokens(8)
    halved = classifier.evaluate(
        token_ids, LABELS, sample_weight=np.full(8, 0.5, "float32"), batch_size=8, verbose=0, return_dict=True
    )["loss"]
    whole = classifier.evaluate(token_ids, LABELS, batch_size=8, verbose=0, return_dict=True)["loss"]
    # Keras scales a compiled loss by the weights; the generative part is an average and does not change.
    assert whole - halved == pytest.approx(0.5 * math.log(4), abs=1e-5)


@pytest.mark.parametrize("weights", [None, [1, 1, 1, 1, 0, 0, 0, 0]])
def test_the_generative_part_moves_the_backbone_as_the_language_model_alone(weights):
    """Behind a class head of zeros nothing else does; rows without weight do not count."""
    token_ids, rows = random_tokens(8), slice(8 if weights is None else 4)
    start = randomize(make_causal_lm()).get_weights()
    alone, joint = make_causal_lm(), make_causal_lm()
    for model in (alone, joint):
        model.set_weights(start)
    alone.compile(optimizer=keras.optimizers.SGD(0.7 * 0.1))
    alone.fit(token_ids[rows], batch_size=8, verbose=0)
    classifier = make_classifier(joint, 0.7)
    given = None if weights is None else np.array(weights, "float32")
    classifier.fit(token_ids, LABELS, sample_weight=given, batch_size=8, verbose=0)
    for moved, expected, old in zip(joint.get_weights(), alone.get_weights(), start, strict=True):
        np.testing.assert_allclose(moved - old, expected - old, atol=1e-5)
    assert max(np.abs(moved - old).max() for moved, old in zip(joint.get_weights(), start, strict=True)) > 1e-3


def test_class_weights_reach_a_data_set_with_labels():
    tensorflow = pytest.importorskip("tensorflow")
    dataset = tensorflow.data.Dataset.from_tensor_slices((random_tokens(8), LABELS)).batch(8)
    losses = []
    for class_weight in (None, dict.fromkeys(range(4), 2.0)):
        classifier = igpt.ImageGPTImageClassifier(make_causal_lm(), num_classes=4, generative_weight=0.0)
        classifier.compile(**igpt.finetuning_recipe(0.001))
        losses.append(classifier.fit(dataset, class_weight=class_weight, verbose=0).history["loss"][0])
    assert losses == pytest.approx([math.log(4), 2 * math.log(4)], abs=1e-5)


class RecordWeights(keras.callbacks.Callback):
    """Keeps the weights after each epoch."""

    def on_train_begin(self, logs=None):
        self.epochs = []

    def on_epoch_end(self, epoch, logs=None):
        self.epochs.append(self.model.get_weights())


def test_early_stopping_on_accuracy_restores_the_weights_of_the_best_epoch():
    classifier = igpt.ImageGPTImageClassifier(make_causal_lm(), num_classes=4)
    token_ids, labels = random_tokens(10, seed=1), np.arange(10) % 4
    # The second batch is filled up with rows of weight 0.
    validation = igpt.EvaluationBatches(LabeledTokens(token_ids, labels, 16), None, batch_size=8)
    classifier.compile(**igpt.finetuning_recipe(0.03))
    record = RecordWeights()
    stopping = keras.callbacks.EarlyStopping("val_accuracy", mode="max", patience=3, restore_best_weights=True)
    fitting = {"validation_data": validation, "callbacks": [record, stopping], "verbose": 0}
    # Other pictures: what is learned of them helps these by chance only, and the best epoch is soon passed.
    history = classifier.fit(random_tokens(8), LABELS, batch_size=8, epochs=60, **fitting).history["val_accuracy"]
    best = int(np.argmax(history))
    assert len(history) == best + 4 < 60
    assert len(set(history)) > 1
    for weight, array in zip(classifier.weights, record.epochs[best], strict=True):
        np.testing.assert_array_equal(to_numpy(weight), array)
    for weights, accuracy in zip(record.epochs, history, strict=True):
        classifier.set_weights(weights)
        predicted = classifier.predict(token_ids, verbose=0).argmax(axis=-1)
        assert accuracy == pytest.approx((predicted == labels).mean())


def test_a_loss_must_be_compiled():
    classifier = igpt.ImageGPTImageClassifier(make_causal_lm(), num_classes=4)
    classifier.compile(optimizer="sgd")
    with pytest.raises(ValueError, match="`loss` must be given to `compile`"):
        classifier.fit(random_tokens(8), LABELS, verbose=0)


def test_weights_that_have_diverged_predict_no_class():
    classifier = igpt.ImageGPTImageClassifier(make_causal_lm(num_layers=1), num_classes=4)
    classifier.class_head.kernel.assign(np.full((32, 4), np.nan))
    with pytest.raises(ValueError, match=r"finite logits to predict with.*8 of 8 rows"):
        classifier.predict(random_tokens(8), verbose=0)


@pytest.mark.parametrize("make", [make_causal_lm, make_masked_lm])
def test_predicting_computes_no_generative_loss(make):
    lm = randomize(make(num_layers=2))
    classifier, alone = (igpt.ImageGPTImageClassifier(lm, 4, weight, layer=1) for weight in (1.0, 0.0))
    randomize(classifier.class_head)
    alone.class_head.kernel.assign(classifier.class_head.kernel)
    token_ids = random_tokens(8)
    assert set(classifier(token_ids)) == {"class_logits", "image_losses", "image_weights"}
    expected = alone.predict(token_ids, verbose=0)
    # Nothing above the depth of the head has a say.
    for layer in (lm.pixel_head, lm.backbone.blocks[1].feed_forward, lm.backbone.final_norm):
        for weight in layer.weights:
            weight.assign(np.full(weight.shape, np.nan))
    np.testing.assert_allclose(classifier.predict(token_ids, verbose=0), expected, rtol=1e-5)
    assert set(classifier.predict_on_batch(token_ids)) == {"class_logits"}
    assert set(classifier(token_ids)) == {"class_logits", "image_losses", "image_weights"}


def test_a_palette_of_one_colour_trains():
    lm = make_causal_lm(num_layers=1, vocabulary_size=1)
    classifier = igpt.ImageGPTImageClassifier(lm, num_classes=4)
    classifier.compile(**igpt.finetuning_recipe(0.001))
    history = classifier.fit(np.zeros((8, 16), "int32"), LABELS, batch_size=8, verbose=0).history
    assert history["generative_loss"] == [0.0]


NAMES = ("ant", "bee", "cat", "dog")


@pytest.mark.parametrize("make", [make_causal_lm, make_masked_lm])
def test_names_and_probabilities_of_pictures(make, palette, tmp_path):
    classifier = randomize(igpt.ImageGPTImageClassifier(make(palette, num_layers=1), 4, class_names=list(NAMES)))
    token_ids = random_tokens(8)
    predictions = classifier.predict_images(palette.decode(token_ids), num_masks=2, batch_size=8)
    assert predictions.class_names == NAMES
    assert predictions.names == tuple(NAMES[label] for label in predictions.labels)
    np.testing.assert_allclose(predictions.probabilities.sum(axis=-1), 1, rtol=1e-5)
    np.testing.assert_array_equal(predictions.confidences, predictions.probabilities.max(axis=-1))
    assert str(predictions).splitlines()[0].startswith(f"{predictions.names[0]} {predictions.confidences[0]:.1%}, ")
    chances = keras.ops.softmax(classifier.predict(token_ids, batch_size=8, verbose=0))
    if make is make_causal_lm:
        np.testing.assert_allclose(predictions.probabilities, to_numpy(chances), rtol=1e-4)
    else:
        # The mean over masks: with one alone it is the vote's class, and masks differ.
        (one, other) = (classifier.predict_images(token_ids, 1, seed, batch_size=8) for seed in (0, 1))
        np.testing.assert_array_equal(one.labels, classifier.vote(token_ids, 1, batch_size=8))
        assert not np.array_equal(one.probabilities, other.probabilities)
        masks = [vote_mask(token_ids.shape, classifier.language_model.mask_rate, 0, number) for number in range(2)]
        under_each = [
            keras.ops.softmax(classifier.predict({"token_ids": token_ids, "position_mask": mask}, verbose=0))
            for mask in masks
        ]
        np.testing.assert_allclose(
            predictions.probabilities, np.mean([to_numpy(chances) for chances in under_each], axis=0), rtol=1e-4
        )
    classifier.save(tmp_path / "classifier.keras")
    opened = keras.saving.load_model(tmp_path / "classifier.keras")
    assert opened.class_names == NAMES


def test_classes_without_names_have_numbers():
    classifier = igpt.ImageGPTImageClassifier(make_causal_lm(num_layers=1), 4)
    assert classifier.class_names is None
    predictions = classifier.predict_images(random_tokens(30), batch_size=30)
    assert str(predictions).splitlines() == ["0 25.0%, 1 25.0%, 2 25.0%"] * 20 + ["… and 10 more"]


@pytest.mark.parametrize("names", ["abcd", NAMES[:3], ("ant", "ant", "cat", "dog"), (0, 1, 2, 3), 4])
def test_class_names_that_do_not_fit(names):
    with pytest.raises(ValueError, match=r"`class_names` must be 4 different strings.*Received: class_names="):
        igpt.ImageGPTImageClassifier(make_causal_lm(num_layers=1), 4, class_names=names)


def test_class_names_may_be_an_array():
    names = igpt.ImageGPTImageClassifier(make_causal_lm(num_layers=1), 4, class_names=np.array(NAMES)).class_names
    assert names == NAMES
    assert {type(name) for name in names} == {str}


def test_the_progress_of_a_vote_says_which_mask_it_is_of(monkeypatch, caplog):
    caplog.set_level(logging.INFO, "keras_igpt")
    monkeypatch.setattr(progress, "_EVERY", 0.0)
    make_classifier(make_masked_lm(), 0.0).vote(random_tokens(6), num_masks=2, batch_size=2)
    told = [message.partition(", about")[0] for message in caplog.messages]
    assert told == [f"vote, mask {mask} of 2: 4 of 6 pictures" for mask in (1, 2)]
