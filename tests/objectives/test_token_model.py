"""What `fit`, `evaluate` and `predict` check, whatever their data come in, and that their means are true."""

import math

import keras
import numpy as np
import pytest
from conftest import make_causal_lm, make_masked_lm, random_tokens, randomize, to_numpy

import keras_igpt as igpt
from keras_igpt.data.examples import LabeledTokens

LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def make_lm():
    lm = randomize(make_causal_lm(num_layers=1))
    lm.compile(optimizer=keras.optimizers.SGD(0.1))
    return lm


def make_classifier(generative_weight=0.0, **compiled):
    classifier = igpt.ImageGPTImageClassifier(make_lm(), num_classes=3, generative_weight=generative_weight)
    randomize(classifier, seed=1)
    classifier.compile(**{"optimizer": keras.optimizers.SGD(0.1), "loss": LOSS, **compiled})
    return classifier


class Dataset(keras.utils.PyDataset):
    """Batches in a list."""

    def __init__(self, batches, **kwargs):
        super().__init__(**kwargs)
        self.batches = batches

    def __len__(self):
        return len(self.batches)

    def __getitem__(self, index):
        return self.batches[index]


def as_generator(batches):
    return (batch for batch in batches)


def as_tf_dataset(batches):
    tensorflow = pytest.importorskip("tensorflow")
    return tensorflow.data.Dataset.from_tensor_slices(
        tuple(np.concatenate(part) for part in zip(*batches, strict=True))
    ).batch(len(batches[0][0]))


def as_loader(batches):
    torch = pytest.importorskip("torch")
    arrays = [np.concatenate(part) for part in zip(*batches, strict=True)]
    dataset = torch.utils.data.TensorDataset(*map(torch.from_numpy, arrays))
    return torch.utils.data.DataLoader(dataset, batch_size=len(batches[0][0]))


@pytest.fixture(scope="module")
def lm():
    """One compiled model for all that is refused."""
    return make_lm()


@pytest.fixture(scope="module")
def classifier():
    return make_classifier()


def as_grain_dataset(batches):
    grain = pytest.importorskip("grain")
    return grain.MapDataset.source(batches)


KINDS = {
    "PyDataset": Dataset,
    "generator": as_generator,
    "tf.data": as_tf_dataset,
    "DataLoader": as_loader,
    "grain": as_grain_dataset,
}


# === True means ===


@pytest.fixture(scope="module")
def ragged():
    """Ten pictures in batches of eight, the last two unlike the others."""
    token_ids, labels = random_tokens(10), np.arange(10) % 3
    token_ids[8:] = 0
    return LabeledTokens(token_ids, labels, 16)


def in_every_way(examples):
    yield igpt.EvaluationBatches(examples, None, 8)
    yield as_tf_dataset([(examples.token_ids, examples.labels)]).unbatch().batch(8)


def images_of(lm, examples):
    return lm.score(examples.token_ids, batch_size=10).nats_per_token


@pytest.mark.parametrize("make", [make_causal_lm, make_masked_lm])
def test_the_loss_is_a_mean_over_pictures_whatever_fills_the_last_batch(make, ragged):
    lm = randomize(make(num_layers=1))
    lm.compile(optimizer="sgd")
    arrays = lm.evaluate(ragged.token_ids, batch_size=10, verbose=0, return_dict=True)
    assert arrays["loss"] == pytest.approx(arrays["bits_per_pixel"] * math.log(2), rel=1e-6)
    if make is make_causal_lm:
        assert arrays["loss"] == pytest.approx(images_of(lm, ragged).mean(), rel=1e-5)
    for batches in in_every_way(ragged):
        assert lm.evaluate(batches, verbose=0, return_dict=True) == pytest.approx(arrays, rel=1e-5)
        history = lm.fit(ragged.token_ids[:8], batch_size=8, verbose=0, validation_data=batches, epochs=1).history
        after = lm.evaluate(ragged.token_ids, batch_size=10, verbose=0, return_dict=True)
        assert {name: history[f"val_{name}"][0] for name in after} == pytest.approx(after, rel=1e-5)
        arrays = after


@pytest.mark.parametrize("generative_weight", [0.0, 0.5])
def test_a_classifiers_loss_is_a_mean_over_pictures(generative_weight, ragged):
    classifier = make_classifier(generative_weight, weighted_metrics=["accuracy"])
    logits = classifier.predict(ragged.token_ids, batch_size=10, verbose=0)
    log_probabilities = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    expected = -log_probabilities[np.arange(10), ragged.labels].mean()
    expected += generative_weight * images_of(classifier.language_model, ragged).mean()
    accuracy = (logits.argmax(axis=-1) == ragged.labels).mean()
    for batches in in_every_way(ragged):
        found = classifier.evaluate(batches, verbose=0, return_dict=True)
        assert (found["loss"], found["accuracy"]) == pytest.approx((expected, accuracy), rel=1e-5)


def test_metrics_that_know_no_weights_count_no_filling(ragged):
    classifier = make_classifier(metrics=["accuracy"])
    logits = classifier.predict(ragged.token_ids, batch_size=10, verbose=0)
    accuracy = (logits.argmax(axis=-1) == ragged.labels).mean()
    batches = igpt.EvaluationBatches(ragged, None, 8)
    assert classifier.evaluate(batches, verbose=0, return_dict=True)["accuracy"] == pytest.approx(accuracy)
    history = classifier.fit(
        ragged.token_ids[:8], ragged.labels[:8], batch_size=8, verbose=0, validation_data=batches
    ).history
    after = classifier.evaluate(ragged.token_ids, ragged.labels, batch_size=10, verbose=0, return_dict=True)
    assert history["val_accuracy"][0] == pytest.approx(after["accuracy"])
    assert history["val_loss"][0] == pytest.approx(after["loss"], rel=1e-5)


def test_shared_out_batches_refuse_metrics_that_know_no_weights(ragged):
    classifier = make_classifier(metrics=["accuracy"])
    with pytest.raises(ValueError, match=r"`shard` must be \(0, 1\)"):
        classifier.evaluate(igpt.EvaluationBatches(ragged, None, 8, shard=(1, 2)), verbose=0)


# === Weights ===


@pytest.mark.parametrize("generative_weight", [0.0, 1.0])
def test_weights_as_a_column_are_weights(generative_weight):
    token_ids, labels = random_tokens(4), np.array([0, 1, 2, 0])
    weights = np.array([1.0, 2.0, 0.0, 0.5], "float32")
    found = []
    classifier = make_classifier(generative_weight, weighted_metrics=["accuracy"])
    start = classifier.get_weights()
    for shape in ((4,), (4, 1)):
        classifier.set_weights(start)
        classifier.fit(token_ids, labels, sample_weight=weights.reshape(shape), batch_size=4, verbose=0)
        found.append([to_numpy(weight) for weight in classifier.weights])
    for row, column in zip(*found, strict=True):
        np.testing.assert_allclose(row, column, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["arrays", *KINDS])
@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (np.ones((4, 2), "float32"), r"`sample_weight` must be numbers of shape \(4,\).* \(4, 2\)"),
        (np.array([1, 1, np.nan, 1], "float32"), "`sample_weight` must be finite and at least 0.*nan.* 1 of 4 rows"),
        (np.array([1, 1, np.inf, np.inf], "float32"), "`sample_weight` must be finite and at least 0.* 2 of 4 rows"),
        (np.array([1, -1, 1, 1], "int8"), "`sample_weight` must be finite and at least 0.*-1.* 1 of 4 rows"),
    ],
)
def test_weights_that_are_none(lm, kind, weights, message):
    before = [to_numpy(weight).copy() for weight in lm.weights]
    token_ids = random_tokens(4)
    good = np.ones(weights.shape, "float32") if weights.ndim == 1 else weights
    batches = [(token_ids, np.zeros(4, "int32"), part) for part in (good, weights)]
    data = {"x": token_ids, "sample_weight": weights} if kind == "arrays" else {"x": KINDS[kind](batches)}
    with pytest.raises(ValueError, match=message):
        lm.fit(**data, verbose=0)
    if kind == "arrays":
        for weight, array in zip(lm.weights, before, strict=True):
            np.testing.assert_array_equal(to_numpy(weight), array)
    assert all(np.isfinite(to_numpy(weight)).all() for weight in lm.weights)


# === Tokens ===


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("wrong", [-1, 16])
def test_tokens_out_of_range_train_nothing(lm, kind, wrong):
    batches = [(random_tokens(4, seed=seed), np.zeros(4, "int32")) for seed in range(3)]
    batches[1][0][2, 3] = wrong
    with pytest.raises(ValueError, match=rf"`x` must lie in 0…15.*{wrong}"):
        lm.fit(KINDS[kind](batches), verbose=0)
    with pytest.raises(ValueError, match=rf"`x` must lie in 0…15.*{wrong}"):
        lm.predict(KINDS[kind](batches), verbose=0)
    assert all(np.isfinite(to_numpy(weight)).all() for weight in lm.weights)


def test_tokens_of_several_workers_are_checked(lm):
    batches = [(random_tokens(4, seed=seed), np.zeros(4, "int32")) for seed in range(3)]
    batches[2][0][2, 3] = 99
    with pytest.raises(ValueError, match=r"0…15.*99"):
        lm.fit(Dataset(batches, workers=2), verbose=0)


@pytest.fixture(scope="module")
def trained():
    """Three batches, and a classifier after a step with each."""
    batches = [(random_tokens(4, seed=seed), np.arange(4, dtype="int32") % 3) for seed in range(3)]
    classifier = make_classifier(weighted_metrics=["accuracy"])
    for batch in batches:
        classifier.train_on_batch(*batch)
    return batches, classifier


@pytest.mark.parametrize("kind", KINDS)
def test_data_sets_train_as_arrays_do(kind, trained):
    """Nothing is lost to a look at the first batch."""
    batches, expected = trained
    classifier = make_classifier(weighted_metrics=["accuracy"])
    classifier.fit(KINDS[kind](batches), verbose=0, shuffle=False)
    for one, other in zip(expected.weights, classifier.weights, strict=True):
        # XLA and TensorFlow round a lone batch's step otherwise; another batch would be off by a tenth.
        np.testing.assert_allclose(to_numpy(one), to_numpy(other), atol=1e-6)


@pytest.mark.parametrize("workers", [1, 2])
def test_the_first_batches_are_trained_on_first(workers, ragged):
    """Compiled metrics are built of a batch, which is not lost where several threads read."""
    batches = igpt.TrainingBatches(ragged, None, 2, workers=workers)
    classifiers = [make_classifier(weighted_metrics=["accuracy"]) for _ in range(2)]
    for step in range(2 * batches.steps_per_epoch):
        classifiers[0].train_on_batch(*batches[step])
    classifiers[1].fit(batches, epochs=2, verbose=0)
    for one, other in zip(classifiers[0].weights, classifiers[1].weights, strict=True):
        # XLA and TensorFlow round a lone batch's step otherwise; another batch would be off by a tenth.
        np.testing.assert_allclose(to_numpy(one), to_numpy(other), atol=1e-6)


def test_epochs_have_their_own_batches_where_training_goes_on(ragged, tmp_path):
    batches = igpt.TrainingBatches(ragged, None, 2)
    whole, resumed, backed_up = (make_lm() for _ in range(3))
    whole.fit(batches, epochs=3, verbose=0)
    resumed.fit(batches, epochs=1, verbose=0)
    resumed.fit(batches, epochs=3, initial_epoch=1, verbose=0)

    class Stop(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            raise KeyboardInterrupt

    backup = keras.callbacks.BackupAndRestore(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        backed_up.fit(batches, epochs=3, verbose=0, callbacks=[backup, Stop()])
    backed_up = make_lm()
    backed_up.fit(batches, epochs=3, verbose=0, callbacks=[keras.callbacks.BackupAndRestore(tmp_path)])
    for one, two, three in zip(whole.weights, resumed.weights, backed_up.weights, strict=True):
        np.testing.assert_array_equal(to_numpy(one), to_numpy(two))
        np.testing.assert_array_equal(to_numpy(one), to_numpy(three))


# === Labels ===


@pytest.mark.parametrize(
    ("labels", "received"),
    [
        (np.array([1, 2, 3, 1]), "1…3"),
        (np.array([0, -1, 2, 1]), "-1…2"),
        (np.array([0, 2**31, 2, 1]), "0…2147483648"),
        (np.array([0, 2**40 + 1, 2, 1]), "0…1099511627777"),
        (np.array([0.0, 1.0, 2.0, 1.0]), "float64 of shape"),
        (np.array(["cat", "dog", "cat", "cow"]), "<U3 of shape"),
        (np.eye(3)[[0, 1, 2, 1]], r"labels.argmax.*\(4, 3\)"),
        (None, "no labels"),
    ],
    ids=["from 1", "negative", "2^31", "2^40", "floats", "strings", "one-hot", "none"],
)
def test_labels_that_are_none(classifier, labels, received):
    token_ids = random_tokens(4)
    message = rf"`x` must come with class labels, integers \(B,\) in 0…2.*{received}"
    for method in (classifier.fit, classifier.evaluate, classifier.train_on_batch):
        with pytest.raises(ValueError, match=message):
            method(token_ids, labels)
    batch = (token_ids,) if labels is None else (token_ids, labels)
    with pytest.raises(ValueError, match=message):
        classifier.fit(Dataset([batch]), verbose=0)
    with pytest.raises(ValueError, match=message.replace("`x`", "`validation_data`")):
        classifier.fit(token_ids, np.zeros(4, int), validation_data=(token_ids, labels), verbose=0)


def test_labels_out_of_range_are_found_before_the_first_step(classifier):
    examples = LabeledTokens(random_tokens(8), np.array([0, 1, 2, 0, 1, 2, 0, 3]), 16)
    for batches in (igpt.TrainingBatches(examples, None, 2), igpt.EvaluationBatches(examples, None, 2)):
        with pytest.raises(ValueError, match=r"integers \(B,\) in 0…2 .*Received: 0…3"):
            (classifier.fit if batches.num_batches is None else classifier.evaluate)(batches, verbose=0)


def test_smoothed_labels_are_for_a_loss_that_takes_them():
    classifier = make_classifier(loss=keras.losses.CategoricalCrossentropy(from_logits=True))
    smoothed = np.full((4, 3), 0.1, "float32") + 0.7 * np.eye(3, dtype="float32")[[0, 1, 2, 1]]
    assert np.isfinite(classifier.fit(random_tokens(4), smoothed, verbose=0).history["loss"][0])
    with pytest.raises(ValueError, match="NaN or infinity"):
        classifier.fit(random_tokens(4), smoothed * np.nan, verbose=0)


# === What `compile` and `fit` are given ===


@pytest.mark.parametrize(
    "loss",
    [
        "sparse_categorical_crossentropy",
        keras.losses.SparseCategoricalCrossentropy(),
        keras.losses.sparse_categorical_crossentropy,
        keras.losses.CategoricalCrossentropy(),
    ],
    ids=["name", "object", "function", "categorical"],
)
def test_a_loss_of_probabilities(loss):
    with pytest.raises(ValueError, match=r"`loss` must take logits.*of probabilities"):
        make_classifier(loss=loss).fit(random_tokens(4), np.zeros(4, int), verbose=0)


@pytest.mark.parametrize("options", [{"metrics": ["accuracy"]}, {"weighted_metrics": ["accuracy"]}, {"loss": LOSS}])
def test_a_pixel_model_has_no_labels_to_compare_with(options):
    lm = make_causal_lm(num_layers=1)
    lm.compile(optimizer="sgd", **options)
    for method in (lm.fit, lm.evaluate):
        with pytest.raises(ValueError, match=rf"`{next(iter(options))}` must not be given to `compile`"):
            method(random_tokens(4), verbose=0)


@pytest.mark.parametrize("name", ["batch_size", "steps_per_epoch", "validation_batch_size", "validation_steps"])
@pytest.mark.parametrize("value", [0, -1, "2", 2.0, True])
def test_numbers_that_are_none(lm, name, value):
    with pytest.raises(ValueError, match=rf"`{name}` must be an integer of at least 1. Received: {name}="):
        lm.fit(random_tokens(4), **{name: value}, verbose=0)


def test_nothing_to_train_on(lm):
    for method in (lm.fit, lm.evaluate, lm.predict):
        with pytest.raises(ValueError, match=r"`x` must be token ids or a data set of them. Received: None"):
            method(None)
    with pytest.raises(ValueError, match=r"at least one batch. Received: generator with none"):
        lm.fit(as_generator([]))


def test_tokens_that_pytorch_cannot_hold(lm):
    with pytest.raises(ValueError, match=r"`x` must be token ids that int64 holds.*uint64"):
        lm.fit(random_tokens(4).astype("uint64"), verbose=0)


def test_a_model_that_is_not_compiled_says_how():
    model = make_causal_lm()
    for use in (model.fit, model.evaluate):
        with pytest.raises(
            ValueError, match=rf"must be compiled first, .*pretraining_recipe.* `{use.__name__}` of one"
        ):
            use(random_tokens(2))
    assert model.predict(random_tokens(2), verbose=0).shape == (2, 16, 16)


def test_tokens_in_lists():
    lm, token_ids = make_lm(), random_tokens(4)
    expected = lm.evaluate(token_ids, verbose=0)
    assert lm.evaluate(token_ids.tolist(), verbose=0) == expected
    assert lm.test_on_batch(token_ids.tolist()) == pytest.approx(lm.test_on_batch(token_ids))
    logits = lm.predict_on_batch(token_ids)
    np.testing.assert_array_equal(lm.predict_on_batch(token_ids.tolist()), logits)
    lm.fit(token_ids.tolist(), verbose=0)
    lm.fit({"token_ids": token_ids.tolist()}, verbose=0)
    lm.train_on_batch(token_ids.tolist())
    assert lm.evaluate(token_ids, verbose=0) != expected


def test_labels_in_a_list():
    classifier = make_classifier()
    token_ids, labels = random_tokens(4), [0, 1, 2, 1]
    expected = classifier.evaluate(token_ids, np.array(labels), sample_weight=np.array([1.0, 2.0, 1.0, 1.0]), verbose=0)
    assert classifier.evaluate(token_ids, labels, sample_weight=[1.0, 2.0, 1.0, 1.0], verbose=0) == expected
    classifier.fit(token_ids, labels, validation_data=(token_ids, labels), verbose=0)


def test_tokens_of_another_palette_are_refused(palette):
    other = igpt.ColorPalette.from_colors(255 - palette.colors)
    model = make_causal_lm(palette)
    model.compile(optimizer="sgd")
    images = igpt.UnlabeledImages(np.random.default_rng(0).integers(0, 256, (4, 4, 4, 3), "uint8"))
    held_out = igpt.EvaluationBatches(images, other, 2)
    for name, use in (
        ("x", lambda: model.fit(igpt.TrainingBatches(images, other, 2))),
        ("x", lambda: model.fit(igpt.MixedBatches({"a": igpt.Source(images)}, other, 2))),
        ("x", lambda: model.evaluate(held_out)),
        ("validation_data", lambda: model.fit(random_tokens(2), validation_data=held_out)),
        ("inputs", lambda: model.score(held_out)),
    ):
        with pytest.raises(ValueError, match=f"`{name}` must be in the colours of the model's own palette"):
            use()
    # The same colours made anew, and tokens of which no palette is known.
    again = igpt.ColorPalette.from_config(palette.get_config())
    model.evaluate(igpt.EvaluationBatches(images, again, 2), verbose=0)
    model.evaluate(igpt.EvaluationBatches(igpt.UnlabeledTokens(random_tokens(4), 16), None, 2), verbose=0)


class Slow(Dataset):
    """Batches read in four threads, which read ahead; counts what they read."""

    def __init__(self, batches, endless=False):
        super().__init__(batches, workers=4)
        self.endless, self.read = endless, []

    @property
    def num_batches(self):
        return None if self.endless else len(self.batches)

    def __getitem__(self, index):
        self.read.append(index)
        return self.batches[index % len(self.batches)]


def test_a_part_of_the_validation_data_is_the_same_part_each_epoch():
    model = randomize(make_causal_lm(num_layers=1))
    model.compile(optimizer=keras.optimizers.SGD(0.0))
    held_out = Slow([(random_tokens(2, seed=seed),) for seed in range(12)])
    training = [(random_tokens(2),)]
    history = model.fit(Dataset(training), epochs=4, validation_data=held_out, validation_steps=2, verbose=0).history
    assert len(set(history["val_loss"])) == 1
    assert set(held_out.read) == {0, 1}


@pytest.mark.parametrize("steps", [1, 3])
def test_short_epochs_read_what_they_train_on(steps):
    model = randomize(make_causal_lm(num_layers=1))
    model.compile(optimizer=keras.optimizers.SGD(0.1))
    batches = Slow([(random_tokens(2, seed=seed),) for seed in range(12)], endless=True)
    model.fit(batches, epochs=20, steps_per_epoch=steps, verbose=0)
    # The first batch is looked at before, and TensorFlow looks at two.
    assert len(batches.read) < 20 * steps + 16


def test_validation_data_are_checked_before_the_first_epoch(lm):
    token_ids = random_tokens(4)
    bad = np.where(token_ids == token_ids.max(), 99, token_ids)
    for held_out in ([bad, None], (bad,), (bad, None, np.ones(4)), Dataset([(bad, np.zeros(4))])):
        with pytest.raises(ValueError, match=r"`validation_data`.*0…15.*99"):
            lm.fit(token_ids, validation_data=held_out, verbose=0)
    with pytest.raises(ValueError, match=r"`validation_data` must be \(x, y\).*tuple of 4"):
        lm.fit(token_ids, validation_data=(token_ids, None, None, None), verbose=0)
    with pytest.raises(ValueError, match=r"`validation_data` must be token ids or a data set of them.*Received: int"):
        lm.fit(token_ids, validation_data=3, verbose=0)
    examples = LabeledTokens(token_ids, np.zeros(4, int), 16)
    for held_out in (examples, Dataset([(token_ids, np.zeros(4))])):
        with pytest.raises(ValueError, match=r"`validation_data` must be a data set alone.*with labels"):
            lm.fit(token_ids, validation_data=(held_out, np.zeros(4)), verbose=0)


def test_validation_data_may_be_what_evaluate_takes(lm):
    token_ids = random_tokens(4)
    examples = LabeledTokens(token_ids, np.zeros(4, int), 16)
    history = lm.fit(token_ids, batch_size=4, validation_data=examples, verbose=0).history
    np.testing.assert_allclose(history["val_loss"], lm.evaluate(token_ids, batch_size=4, verbose=0)[0], rtol=1e-5)
