import math

import keras
import numpy as np
import pytest
from conftest import make_causal_lm, make_masked_lm, random_tokens, randomize, to_numpy

import keras_igpt as igpt

LABELS = np.arange(8) % 4


def fit_classifier(model, weight, epochs=1, learning_rate=0.1):
    classifier = igpt.ImageGPTImageClassifier(model, num_classes=4, generative_weight=weight)
    classifier.compile(
        optimizer=keras.optimizers.SGD(learning_rate),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    history = classifier.fit(random_tokens(8), LABELS, epochs=epochs, batch_size=8, shuffle=False, verbose=0).history
    return classifier, history


@pytest.mark.parametrize("weight", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("make", [make_causal_lm, make_masked_lm])
def test_the_loss_is_the_weighted_sum(make, weight):
    # Zero-initialised heads: L_GEN = log 16 and L_CLF = log 4 exactly.
    _, history = fit_classifier(make(), weight)
    assert history["loss"][0] == pytest.approx(weight * math.log(16) + math.log(4), abs=1e-5)


@pytest.mark.parametrize("make", [make_causal_lm, make_masked_lm])
def test_the_generative_part_is_the_language_models_own_loss(make):
    model = randomize(make())
    classifier, _ = fit_classifier(model, 0.7, learning_rate=0.0)
    token_ids = random_tokens(8)
    model.compile(optimizer="sgd")
    generative = model.evaluate(token_ids, batch_size=8, verbose=0, return_dict=True)["loss"]
    logs = classifier.evaluate(token_ids, LABELS, batch_size=8, verbose=0, return_dict=True)
    assert logs["loss"] == pytest.approx(0.7 * generative + math.log(4), abs=1e-5)
    assert logs["generative_loss"] == pytest.approx(generative, abs=1e-5)


def test_logits_are_linear_in_the_mean_of_the_last_features():
    model = randomize(make_causal_lm())
    classifier, _ = fit_classifier(model, 1.0)
    token_ids = random_tokens(8)
    features = to_numpy(model.backbone.pooled_features(token_ids))[:, -1]
    expected = features @ to_numpy(classifier.class_head.kernel)
    np.testing.assert_allclose(classifier.predict(token_ids, verbose=0), expected, atol=1e-5)
    np.testing.assert_allclose(to_numpy(classifier(token_ids)["class_logits"]), expected, atol=1e-5)


@pytest.mark.parametrize("make", [make_causal_lm, make_masked_lm])
@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_it_learns_four_classes(make, weight):
    classifier = igpt.ImageGPTImageClassifier(make(), num_classes=4, generative_weight=weight)
    classifier.compile(**igpt.finetuning_recipe(0.01))
    token_ids = random_tokens(8)
    history = classifier.fit(token_ids, LABELS, epochs=80, batch_size=8, verbose=0).history
    assert history["accuracy"][-1] >= 0.75
    assert history["loss"][-1] < history["loss"][0]
    logs = classifier.evaluate(token_ids, LABELS, verbose=0, return_dict=True)
    predicted = classifier.predict(token_ids, verbose=0).argmax(-1)
    assert logs["accuracy"] == pytest.approx((predicted == LABELS).mean())


def test_classification_alone_leaves_the_pixel_head_and_moves_the_rest():
    model = randomize(make_causal_lm())
    before = to_numpy(model.pixel_head.kernel).copy()
    start = to_numpy(model.backbone.pixel_embedding.start_vector).copy()
    fit_classifier(model, 0.0, epochs=2)
    np.testing.assert_array_equal(to_numpy(model.pixel_head.kernel), before)
    assert np.abs(to_numpy(model.backbone.pixel_embedding.start_vector) - start).max() > 0


def test_each_step_of_fine_tuning_draws_new_masks():
    model = randomize(make_masked_lm())
    _, history = fit_classifier(model, 1.0, epochs=3, learning_rate=0.0)
    assert len(set(history["loss"])) == 3
    assert int(model.random_position_mask.step) == 3


def test_sample_weights_count_in_both_parts():
    classifier, _ = fit_classifier(randomize(make_causal_lm()), 1.0, learning_rate=0.0)
    token_ids = random_tokens(8)
    halved = classifier.evaluate(
        token_ids, LABELS, sample_weight=np.full(8, 0.5, "float32"), batch_size=8, verbose=0, return_dict=True
    )["loss"]
    whole = classifier.evaluate(token_ids, LABELS, batch_size=8, verbose=0, return_dict=True)["loss"]
    # Keras scales a compiled loss by the weights; the generative part is an average and does not change.
    assert whole - halved == pytest.approx(0.5 * math.log(4), abs=1e-5)


def test_class_weights_reach_a_data_set_with_labels():
    tensorflow = pytest.importorskip("tensorflow")
    dataset = tensorflow.data.Dataset.from_tensor_slices((random_tokens(8), LABELS)).batch(8)
    losses = []
    for class_weight in (None, dict.fromkeys(range(4), 2.0)):
        classifier = igpt.ImageGPTImageClassifier(make_causal_lm(), num_classes=4, generative_weight=0.0)
        classifier.compile(**igpt.finetuning_recipe(0.001))
        losses.append(classifier.fit(dataset, class_weight=class_weight, verbose=0).history["loss"][0])
    assert losses == pytest.approx([math.log(4), 2 * math.log(4)], abs=1e-5)


def test_early_stopping_on_accuracy_restores_the_best_weights():
    classifier = igpt.ImageGPTImageClassifier(make_causal_lm(), num_classes=4)
    classifier.compile(**igpt.finetuning_recipe(0.01))
    stopping = keras.callbacks.EarlyStopping(monitor="val_accuracy", patience=2, restore_best_weights=True)
    token_ids = random_tokens(8)
    history = classifier.fit(
        token_ids, LABELS, epochs=30, validation_data=(token_ids, LABELS), callbacks=[stopping], verbose=0
    ).history
    best = classifier.evaluate(token_ids, LABELS, verbose=0, return_dict=True)["accuracy"]
    assert best == pytest.approx(max(history["val_accuracy"]))


def test_a_loss_must_be_compiled():
    classifier = igpt.ImageGPTImageClassifier(make_causal_lm(), num_classes=4)
    classifier.compile(optimizer="sgd")
    with pytest.raises(ValueError, match="`loss` must be given to `compile`"):
        classifier.fit(random_tokens(8), LABELS, verbose=0)
