import math

import keras
import numpy as np
import pytest
from conftest import make_causal_lm, make_masked_lm, random_tokens, randomize, to_numpy
from keras import ops
from reference import forward, read_weights

import keras_igpt as igpt
from keras_igpt.model.masking import RandomPositionMask


def cross_entropy(logits, token_ids):
    shifted = logits - logits.max(-1, keepdims=True)
    log_probabilities = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return -np.take_along_axis(log_probabilities, token_ids[..., None], -1)[..., 0]


def compiled(model, learning_rate=0.0):
    model.compile(optimizer=keras.optimizers.SGD(learning_rate))
    return model


@pytest.mark.parametrize("make", [make_causal_lm, make_masked_lm])
def test_an_untrained_model_loses_log_v(make):
    logs = compiled(make()).evaluate(random_tokens(8), verbose=0, return_dict=True)
    assert logs["loss"] == pytest.approx(math.log(16), abs=1e-5)
    assert logs["bits_per_pixel"] == pytest.approx(4.0, abs=1e-5)


def test_autoregressive_loss_is_the_mean_over_all_pixels():
    model = compiled(randomize(make_causal_lm()))
    token_ids = random_tokens(5)
    _, _, logits = forward(read_weights(model), token_ids, True, "layer_norm")
    expected = cross_entropy(logits, token_ids).mean()
    logs = model.evaluate(token_ids, batch_size=5, verbose=0, return_dict=True)
    assert logs["loss"] == pytest.approx(expected, abs=1e-5)
    assert logs["bits_per_pixel"] == pytest.approx(expected / math.log(2), abs=1e-5)


def test_bert_loss_is_the_mean_over_hidden_pixels_then_over_pictures_that_have_any():
    model = compiled(randomize(make_masked_lm()))
    token_ids = random_tokens(4)
    mask = np.random.default_rng(2).random((4, 16)) < 0.3
    mask[1] = False
    _, _, logits = forward(read_weights(model), token_ids, False, "layer_norm", mask)
    losses = cross_entropy(logits, token_ids)
    expected = np.mean([losses[row][mask[row]].mean() for row in (0, 2, 3)])
    inputs = {"token_ids": token_ids, "position_mask": mask}
    logs = model.evaluate(inputs, batch_size=4, verbose=0, return_dict=True)
    assert logs["loss"] == pytest.approx(expected, abs=1e-5)
    assert logs["bits_per_pixel"] == pytest.approx(expected / math.log(2), abs=1e-5)


@pytest.mark.parametrize("mask_rate", [0.0, 1.0])
def test_hiding_nothing_or_everything_divides_by_nothing(mask_rate):
    model = compiled(make_masked_lm(mask_rate=mask_rate, num_layers=1), learning_rate=0.1)
    history = model.fit(random_tokens(4), epochs=2, verbose=0).history
    assert np.isfinite(history["loss"]).all()
    assert history["loss"][0] == pytest.approx(math.log(16) if mask_rate else 0.0, abs=1e-5)
    assert all(np.isfinite(weight).all() for weight in model.get_weights())


def test_a_picture_of_one_pixel():
    sizes = {"image_size": 1, "num_layers": 1}
    for model in (make_causal_lm(**sizes), make_masked_lm(mask_rate=0.5, **sizes)):
        history = compiled(model, 0.1).fit(random_tokens(6, 1), epochs=2, verbose=0).history
        assert np.isfinite(history["loss"]).all()


@pytest.mark.parametrize("make", [make_causal_lm, make_masked_lm])
def test_evaluation_does_not_depend_on_batches_or_order(make):
    model = compiled(randomize(make(num_layers=1)))
    token_ids = random_tokens(10)
    whole = model.evaluate(token_ids, batch_size=10, verbose=0, return_dict=True)["bits_per_pixel"]
    parts = model.evaluate(token_ids[::-1].copy(), batch_size=4, verbose=0, return_dict=True)["bits_per_pixel"]
    assert parts == pytest.approx(whole, rel=1e-5)


def test_sample_weights_take_padding_out():
    model = compiled(randomize(make_causal_lm()))
    token_ids = random_tokens(6)
    weights = np.array([1, 1, 1, 1, 0, 0], "float32")
    padded = model.evaluate(token_ids, sample_weight=weights, batch_size=6, verbose=0, return_dict=True)
    exact = model.evaluate(token_ids[:4], batch_size=4, verbose=0, return_dict=True)
    for name in ("loss", "bits_per_pixel"):
        assert padded[name] == pytest.approx(exact[name], abs=1e-5)


def test_rows_without_weight_train_nothing():
    token_ids = random_tokens(6)
    trained = []
    for rows, weights in ((6, np.array([1, 1, 1, 1, 0, 0], "float32")), (4, None)):
        model = compiled(randomize(make_causal_lm()), learning_rate=0.1)
        model.fit(token_ids[:rows], sample_weight=weights, batch_size=rows, verbose=0)
        trained.append(model.get_weights())
    for padded, exact in zip(*trained, strict=True):
        np.testing.assert_allclose(padded, exact, atol=1e-5)


def test_the_start_vector_learns():
    model = compiled(randomize(make_causal_lm()), learning_rate=0.1)
    before = to_numpy(model.backbone.pixel_embedding.start_vector).copy()
    model.fit(random_tokens(4), verbose=0)
    assert np.abs(to_numpy(model.backbone.pixel_embedding.start_vector) - before).max() > 1e-5


def test_every_weight_learns():
    for model in (make_causal_lm(), make_masked_lm(mask_rate=0.5)):
        randomize(model)
        before = [to_numpy(weight).copy() for weight in model.trainable_weights]
        compiled(model, learning_rate=0.1).fit(random_tokens(8), verbose=0)
        unchanged = [
            weight.path
            for weight, old in zip(model.trainable_weights, before, strict=True)
            if np.array_equal(to_numpy(weight), old)
        ]
        assert unchanged == []


def four_images():
    # The first pixel tells the four apart, so that each of them can be reproduced from it.
    token_ids = random_tokens(4, seed=3)
    token_ids[:, 0] = [1, 4, 9, 12]
    return token_ids


def test_four_images_are_overfitted_and_reproduced_greedily(palette):
    model = make_causal_lm(palette)
    token_ids = four_images()
    model.compile(**igpt.pretraining_recipe("igpt_nano", "ar", steps=250, steps_per_epoch=10, learning_rate=0.01))
    model.fit(np.tile(token_ids, (250, 1)), batch_size=4, shuffle=False, verbose=0)
    loss = model.evaluate(token_ids, verbose=0, return_dict=True)["loss"]
    # All that is left to guess is which picture it is: log 4 nats over 16 pixels.
    assert loss == pytest.approx(math.log(4) / 16, abs=0.005)
    first_pixel = to_numpy(ops.softmax(model(token_ids)[0, 0]))
    np.testing.assert_allclose(first_pixel[[1, 4, 9, 12]], 0.25, atol=0.03)
    known = np.arange(16) < 1
    np.testing.assert_array_equal(model.continue_tokens(token_ids, known, temperature=0), token_ids)
    drawn = palette.encode(model.generate(1, temperature=0))
    assert (drawn == token_ids).all(axis=1).any()


def test_one_image_is_reproduced_from_nothing(palette):
    model = make_causal_lm(palette)
    token_ids = random_tokens(1, seed=5)
    model.compile(**igpt.pretraining_recipe("igpt_nano", "ar", steps=120, steps_per_epoch=10, learning_rate=0.01))
    model.fit(np.tile(token_ids, (120, 1)), batch_size=1, verbose=0)
    np.testing.assert_array_equal(model.generate(2, temperature=0), palette.decode(np.repeat(token_ids, 2, 0)))


def test_bert_learns_to_fill_in():
    model = make_masked_lm(mask_rate=0.5)
    token_ids = random_tokens(1, seed=5)
    model.compile(**igpt.pretraining_recipe("igpt_nano", "bert", steps=400, steps_per_epoch=10, learning_rate=0.01))
    losses = model.fit(np.tile(token_ids, (20, 1)), batch_size=1, epochs=20, verbose=0).history["loss"]
    assert losses[-1] < 0.2 < losses[0]
    mask = np.ones((1, 16), bool)
    logits = to_numpy(model({"token_ids": token_ids[:1], "position_mask": mask}))
    np.testing.assert_array_equal(logits.argmax(-1), token_ids[:1])


def test_bert_masks_follow_the_step_and_repeat_with_it():
    token_ids = random_tokens(8)

    def losses(model, epochs):
        return compiled(model).fit(token_ids, batch_size=8, epochs=epochs, shuffle=False, verbose=0).history["loss"]

    model = randomize(make_masked_lm())
    one_run = losses(model, 4)
    assert len(set(one_run)) == 4  # nothing learns at rate 0: the masks differ
    assert int(model.random_position_mask.step) == 4
    again = randomize(make_masked_lm())
    assert losses(again, 2) + losses(again, 2) == one_run
    evaluations = [model.evaluate(token_ids, verbose=0)[0] for _ in range(2)]
    assert evaluations[0] == evaluations[1]
    assert int(model.random_position_mask.step) == 4


@pytest.mark.parametrize("classifies", [False, True])
def test_a_training_step_draws_its_masks_once(monkeypatch, classifies):
    draws = []

    def drawn(layer, token_ids, training=None):
        draws.append(training)
        return token_ids > 7

    monkeypatch.setattr(RandomPositionMask, "call", drawn)
    language_model = randomize(make_masked_lm())
    token_ids = ops.convert_to_tensor(random_tokens(8))
    if classifies:
        model = igpt.ImageGPTImageClassifier(language_model, num_classes=2)
        model.compile(**igpt.finetuning_recipe(0.1))
        labels = ops.zeros(8, "int32")
        model.compute_loss(token_ids, labels, model(token_ids, training=True), training=True)
        loss = model.generative_loss.result()
    else:
        loss = language_model.compute_loss(token_ids, None, language_model(token_ids, training=True), training=True)
    assert draws == [True]
    # The loss of the positions that were hidden from the input.
    masked = {"token_ids": token_ids, "position_mask": token_ids > 7}
    expected = language_model.compute_loss(masked, None, language_model(masked), training=False)
    assert float(loss) == pytest.approx(float(expected), rel=1e-6)


class Batches(keras.utils.PyDataset):
    def __init__(self, batches):
        super().__init__()
        self._batches = batches

    def __len__(self):
        return len(self._batches)

    def __getitem__(self, index):
        return self._batches[index]


def inputs_of_kind(kind, token_ids):
    batches = [token_ids[:4], token_ids[4:]]
    if kind == "array":
        return {"x": token_ids, "batch_size": 4, "shuffle": False}
    if kind == "PyDataset":
        return {"x": Batches([(batch,) for batch in batches]), "shuffle": False}
    if kind == "dict":
        mask = np.random.default_rng(0).random(token_ids.shape) < 0.3
        return {"x": {"token_ids": token_ids, "position_mask": mask}, "batch_size": 4, "shuffle": False}
    tensorflow = pytest.importorskip("tensorflow")
    return {"x": tensorflow.data.Dataset.from_tensor_slices(token_ids).batch(4)}


@pytest.mark.parametrize("make", [make_causal_lm, make_masked_lm])
def test_every_kind_of_input_trains_the_same(make):
    token_ids = random_tokens(8)
    losses = {}
    for kind in ("array", "PyDataset", "tf.data"):
        model = compiled(randomize(make(num_layers=1)), learning_rate=0.1)
        losses[kind] = model.fit(**inputs_of_kind(kind, token_ids), epochs=3, verbose=0).history["loss"]
    np.testing.assert_allclose(losses["PyDataset"], losses["array"], rtol=1e-5)
    np.testing.assert_allclose(losses["tf.data"], losses["array"], rtol=1e-5)
    assert losses["array"][-1] < losses["array"][0]


def test_masks_of_ones_own_train():
    model = compiled(randomize(make_masked_lm()), learning_rate=0.1)
    history = model.fit(**inputs_of_kind("dict", random_tokens(8)), epochs=3, verbose=0).history
    assert history["loss"][-1] < history["loss"][0]


def test_predict_gives_logits():
    model = randomize(make_causal_lm())
    token_ids = random_tokens(5)
    predicted = model.predict(token_ids, batch_size=2, verbose=0)
    np.testing.assert_allclose(predicted, to_numpy(model(token_ids)), atol=1e-5)
    assert predicted.shape == (5, 16, 16)


def test_an_impossible_token_from_a_pipeline_cannot_go_unnoticed():
    model = compiled(randomize(make_causal_lm()))
    token_ids = random_tokens(4)
    token_ids[2, 3] = 16
    logits = ops.convert_to_tensor(to_numpy(model(random_tokens(4))))
    losses = to_numpy(model.image_losses(ops.convert_to_tensor(token_ids), logits, None))
    np.testing.assert_array_equal(np.isnan(losses), [False, False, True, False])


@pytest.mark.parametrize("colors", [256, 512])
def test_any_integer_type_that_holds_the_tokens_will_do(colors):
    model = compiled(randomize(make_causal_lm(vocabulary_size=colors, num_layers=1), scale=0.1))
    token_ids = random_tokens(4, vocabulary_size=256)
    losses = [model.evaluate(token_ids.astype(kind), verbose=0)[0] for kind in ("int32", "uint8", "uint16", "int64")]
    assert losses == pytest.approx([losses[0]] * 4, rel=1e-6)


def test_weights_of_validation_count():
    model = compiled(randomize(make_causal_lm()))
    token_ids, weights = random_tokens(4), np.array([1, 0, 0, 0], "float32")
    history = model.fit(token_ids, validation_data=(token_ids, None, weights), verbose=0).history
    alone = model.evaluate(token_ids[:1], verbose=0, return_dict=True)
    assert history["val_bits_per_pixel"][0] == pytest.approx(alone["bits_per_pixel"], rel=1e-5)


def test_grey_digits_from_pixels_to_pictures():
    datasets = pytest.importorskip("sklearn.datasets")
    digits = (datasets.load_digits().images[:256] * 15.9).astype("uint8")[..., None]
    palette = igpt.ColorPalette.fit(digits, 8)
    model = make_causal_lm(palette, vocabulary_size=8, image_size=8)
    token_ids = palette.encode(digits)
    steps = 30
    model.compile(**igpt.pretraining_recipe("igpt_nano", "ar", steps=steps, steps_per_epoch=2, learning_rate=0.01))
    losses = model.fit(token_ids, batch_size=32, epochs=4, verbose=0).history["loss"]
    # Better than the best guess that knows nothing but how often each shade occurs.
    shares = np.bincount(token_ids.ravel(), minlength=8) / token_ids.size
    assert losses[-1] < -(shares * np.log(shares)).sum() < math.log(8)
    completed = model.complete(digits[:2], keep_rows=4, num_samples=2)
    assert completed.shape == (2, 2, 8, 8, 1)
    np.testing.assert_array_equal(completed[:, 0, :4], digits[:2, :4])


@pytest.mark.parametrize("make", [make_causal_lm, make_masked_lm])
def test_what_layers_add_is_trained_and_told(make):
    token_ids = random_tokens(4)
    plain, regularized = (compiled(randomize(make(num_layers=1)), learning_rate=0.1) for _ in range(2))
    kernel = to_numpy(regularized.pixel_head.kernel)
    regularized.pixel_head.kernel.regularizer = keras.regularizers.L2(0.5)
    penalty = 0.5 * np.square(kernel).sum()
    evaluated = [model.evaluate(token_ids, verbose=0, return_dict=True) for model in (plain, regularized)]
    trained = [model.fit(token_ids, verbose=0).history for model in (plain, regularized)]
    assert evaluated[1]["loss"] == pytest.approx(evaluated[0]["loss"] + penalty, rel=1e-5)
    assert trained[1]["loss"][0] == pytest.approx(trained[0]["loss"][0] + penalty, rel=1e-5)
    assert trained[1]["bits_per_pixel"][0] == pytest.approx(trained[0]["bits_per_pixel"][0], rel=1e-5)
    moved = to_numpy(regularized.pixel_head.kernel) - to_numpy(plain.pixel_head.kernel)
    np.testing.assert_allclose(moved, -0.1 * kernel, atol=1e-5)


def test_what_a_subclass_adds_is_told():
    def adding(kind):
        class Adding(kind):
            def compute_loss(self, *arguments, **options):
                return super().compute_loss(*arguments, **options) + 3.0

        return Adding

    token_ids, labels = random_tokens(8), np.arange(8) % 4
    lm = adding(igpt.ImageGPTCausalLM)(make_causal_lm(num_layers=1).backbone)
    classifier = adding(igpt.ImageGPTImageClassifier)(make_causal_lm(num_layers=1), num_classes=4)
    classifier.compile(keras.optimizers.SGD(0.0), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    for model, targets, own in ((compiled(lm), [], math.log(16)), (classifier, [labels], math.log(16) + math.log(4))):
        told = model.evaluate(token_ids, *targets, batch_size=4, verbose=0, return_dict=True)
        assert told["loss"] == pytest.approx(own + 3.0, abs=1e-5)
        history = model.fit(token_ids, *targets, batch_size=4, verbose=0).history
        assert history["loss"] == pytest.approx([own + 3.0], abs=1e-5)
