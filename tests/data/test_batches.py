"""Order, restart, shards and the ragged end of training and evaluation batches."""

import keras
import numpy as np
import pytest
from conftest import make_causal_lm, random_tokens, to_numpy, weights_trained_in_parts

import keras_igpt as igpt
from keras_igpt.data import LabeledImages, LabeledTokens

COUNT = 22


@pytest.fixture
def examples():
    """Token ids that tell their row: the first two are its digits in base 16."""
    token_ids = random_tokens(COUNT)
    token_ids[:, 0], token_ids[:, 1] = np.divmod(np.arange(COUNT), 16)
    return LabeledTokens(token_ids.astype("uint8"), np.arange(COUNT), 16)


def rows_of(batch):
    return batch[1].tolist()


def as_bytes(batch):
    token_ids, labels = batch
    return token_ids.tobytes() + labels.tobytes()


def test_each_epoch_is_a_new_order_of_all_but_the_rest(examples):
    batches = igpt.TrainingBatches(examples, None, 4, seed=3)
    assert batches.steps_per_epoch == 5
    assert batches.num_batches is None
    epochs = [[row for step in range(5) for row in rows_of(batches[5 * epoch + step])] for epoch in range(40)]
    assert all(len(set(epoch)) == 20 for epoch in epochs)
    assert epochs[0] != epochs[1]
    assert set().union(*epochs) == set(range(COUNT))
    token_ids, labels = batches[7]
    assert (token_ids.dtype, labels.dtype) == (np.int32, np.int32)
    np.testing.assert_array_equal(token_ids, examples.token_ids[labels])
    assert rows_of(igpt.TrainingBatches(examples, None, 4, seed=4)[0]) != rows_of(batches[0])


def test_a_restart_gives_the_same_bytes_in_the_middle_of_an_epoch(examples):
    settings = {"seed": 5, "augmentation": igpt.PaddedCrop(padding=2)}
    uninterrupted = igpt.TrainingBatches(examples, None, 4, **settings)
    seen = [as_bytes(uninterrupted[step]) for step in range(25)]
    assert len(set(seen)) == 25
    step = 3 * 5 + 2  # the third batch of epoch 3
    assert as_bytes(igpt.TrainingBatches(examples, None, 4, **settings)[step]) == seen[step]
    restarted = igpt.TrainingBatches(examples, None, 4, first_step=step, **settings)
    assert [as_bytes(restarted[item]) for item in range(5)] == seen[step : step + 5]


def test_skipping_reads_nothing_of_what_is_skipped(tmp_path):
    image = pytest.importorskip("PIL.Image")
    reads = []
    for index in range(10):
        image.fromarray(np.full((5, 5, 3), index, "uint8")).save(tmp_path / f"{index}.png")

    class CountingReader(igpt.data.image_files.FolderReader):
        def read(self, number):
            reads.append(number)
            return super().read(number)

    files = igpt.data.ImageFiles(CountingReader(sorted(tmp_path.iterdir()), list(range(10))), 4)
    palette = igpt.ColorPalette.from_colors(np.arange(48, dtype="uint8").reshape(16, 3))
    settings = {"seed": 1, "augmentation": igpt.RandomResizedCrop(), "workers": 1}
    batches = igpt.TrainingBatches(files, palette, 3, first_step=1000, **settings)
    first = batches[0]
    assert len(reads) == 3
    assert sorted(reads) == sorted(rows_of(first))
    assert as_bytes(first) == as_bytes(igpt.TrainingBatches(files, palette, 3, **settings)[1000])
    token_ids = palette.encode(
        np.stack([files.read(row, igpt.RandomResizedCrop(), 1, 333)[0] for row in rows_of(first)])
    )
    np.testing.assert_array_equal(first[0], token_ids)


@pytest.mark.parametrize("workers", [1, 3])
def test_training_in_two_parts_equals_training_in_one(examples, workers):
    """What Keras hands to the model, on each backend, through its own threads: weights agree to the bit."""

    def batches_from(first_step):
        return igpt.TrainingBatches(
            examples, None, 4, seed=2, augmentation=igpt.PaddedCrop(1), first_step=first_step, workers=workers
        )

    whole, parted = (weights_trained_in_parts(batches_from, *parts) for parts in ((20,), (17, 3)))
    for weight, same in zip(whole, parted, strict=True):
        np.testing.assert_array_equal(weight, same)


def test_keras_takes_the_steps_in_order_over_epochs(examples):
    taken = []

    class Recorded(igpt.TrainingBatches):
        def __getitem__(self, index):
            taken.append(index)
            return super().__getitem__(index)

    model = make_causal_lm()
    model.compile(optimizer="sgd")
    history = model.fit(Recorded(examples, None, 4), epochs=3, verbose=0)
    assert len(history.history["loss"]) == 3
    assert int(to_numpy(model.optimizer.iterations)) == 15
    # The first batch is looked at before; TensorFlow looks at two for their shapes and reads ahead.
    ordered = taken[taken.index(1) - 1 :] if keras.backend.backend() != "tensorflow" else taken[3:]
    assert ordered[:15] == list(range(15))


def test_shards_are_disjoint_complete_and_equal(examples):
    settings = {"seed": 5, "augmentation": igpt.PaddedCrop(padding=2)}
    alone = igpt.TrainingBatches(examples, None, 4, **settings)
    shards = [igpt.TrainingBatches(examples, None, 4, shard=(part, 2), **settings) for part in range(2)]
    for step in (0, 4, 13):
        parts = [shard[step] for shard in shards]
        assert [len(labels) for _, labels in parts] == [2, 2]
        np.testing.assert_array_equal(np.concatenate([token_ids for token_ids, _ in parts]), alone[step][0])
        np.testing.assert_array_equal(np.concatenate([labels for _, labels in parts]), alone[step][1])
    evaluation = [igpt.EvaluationBatches(examples, None, 8, shard=(part, 4)) for part in range(4)]
    assert {len(shard) for shard in evaluation} == {3}
    items = [shard[step] for shard in evaluation for step in range(3)]
    assert {len(labels) for _, labels, _ in items} == {2}
    real = [row for _, labels, weights in items for row in labels[weights > 0].tolist()]
    assert sorted(real) == list(range(COUNT))


def test_evaluation_counts_everything_once_and_compiles_once(examples):
    batches = igpt.EvaluationBatches(examples, None, 4)
    assert len(batches) == 6
    items = [batches[index] for index in range(6)]
    assert {token_ids.shape for token_ids, _, _ in items} == {(4, 16)}
    assert [weights.tolist() for _, _, weights in items][-2:] == [[1, 1, 1, 1], [1, 1, 0, 0]]

    traces = []

    class Traced(igpt.ImageGPTCausalLM):
        def call(self, inputs, training=None):
            traces.append(inputs.shape)
            return super().call(inputs, training)

    model = Traced(make_causal_lm().backbone)
    model.compile(optimizer="sgd")
    model.fit(igpt.TrainingBatches(examples, None, 4), epochs=1, verbose=0)
    for weight in model.trainable_weights:
        weight.assign(weight + 0.3 * np.random.default_rng(0).standard_normal(weight.shape))
    traces.clear()
    padded = model.evaluate(batches, verbose=0, return_dict=True)
    if keras.backend.backend() != "torch":  # which traces nothing
        assert len(traces) <= 2  # the compiled one, and Keras' symbolic build
    whole = model.evaluate(examples.token_ids.astype("int32"), batch_size=COUNT, verbose=0, return_dict=True)
    assert padded["bits_per_pixel"] == pytest.approx(whole["bits_per_pixel"], rel=1e-5)
    assert padded["bits_per_pixel"] != pytest.approx(4.0, rel=1e-3)
    predicted = model.predict(batches, verbose=0)[: len(batches.examples)]
    np.testing.assert_allclose(predicted, model.predict(examples.token_ids.astype("int32"), verbose=0), atol=1e-5)


def test_a_classifier_is_not_judged_by_the_filling(examples):
    labels = np.arange(COUNT) % 3
    labeled = LabeledTokens(examples.token_ids, labels, 16)
    classifier = igpt.ImageGPTImageClassifier(make_causal_lm(), num_classes=3)
    classifier.compile(**igpt.finetuning_recipe(0.01))
    classifier.fit(igpt.TrainingBatches(labeled, None, 4), epochs=2, verbose=0)
    scores = classifier.evaluate(igpt.EvaluationBatches(labeled, None, 16), verbose=0, return_dict=True)
    predicted = classifier.predict(examples.token_ids.astype("int32"), verbose=0).argmax(-1)
    assert scores["accuracy"] == pytest.approx((predicted == labels).mean())


def test_images_in_memory_are_encoded_as_they_are_moved():
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (8, 4, 4, 3)).astype("uint8")
    palette = igpt.ColorPalette.from_colors(random.integers(0, 256, (300, 3)).astype("uint8"))
    examples = LabeledImages(images, np.arange(8))
    token_ids, labels = igpt.TrainingBatches(examples, palette, 8)[0]
    np.testing.assert_array_equal(token_ids, palette.encode(images)[labels])
    assert examples.encode(palette).token_ids.dtype == np.uint16
    plain, moved = (
        igpt.TrainingBatches(examples, palette, 8, augmentation=augmentation)[0][0]
        for augmentation in (None, igpt.PaddedCrop(padding=1))
    )
    assert (np.sort(plain[0]) != np.sort(moved[0])).any() or (plain != moved).any()


def test_a_palettes_path_is_no_palette(examples):
    images = LabeledImages(np.zeros((COUNT, 4, 4, 3), "uint8"), np.arange(COUNT))
    for given in (examples, images):
        for use in (igpt.TrainingBatches, igpt.EvaluationBatches):
            with pytest.raises(ValueError, match=r"`palette` must be a ColorPalette .*reads one.* Received: str"):
                use(given, "palette.npy", 4)


def test_items_out_of_range_and_endless_sets_are_refused(examples):
    training, evaluation = igpt.TrainingBatches(examples, None, 4), igpt.EvaluationBatches(examples, None, 4)
    for batches, index in ((training, -1), (evaluation, -1), (evaluation, 6)):
        with pytest.raises(IndexError, match="`index`"):
            batches[index]
    model = make_causal_lm()
    model.compile(optimizer="sgd")
    for name, use in {
        "x": lambda: model.evaluate(training),
        "x`": lambda: model.predict(training),
        "validation_data": lambda: model.fit(training, validation_data=training),
    }.items():
        with pytest.raises(ValueError, match=f"`{name}.* must end"):
            use()
