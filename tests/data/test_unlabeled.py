"""Examples without labels: what takes them, and what refuses them by name."""

import numpy as np
import pytest
from conftest import make_causal_lm, make_masked_lm, random_tokens

import keras_igpt as igpt
from keras_igpt.data import DataSplits, split_off
from keras_igpt.data.epoch_orders import EpochOrders

TOKENS = random_tokens(22).astype("uint8")
LABELED = igpt.LabeledTokens(TOKENS, np.arange(22) % 3, 16)
UNLABELED = igpt.UnlabeledTokens(TOKENS, 16)
IMAGES = np.random.default_rng(0).integers(0, 256, (6, 4, 4, 3)).astype("uint8")


@pytest.fixture
def shards(tmp_path, palette):
    parts = [
        igpt.write_token_shard(tmp_path / "web", f"{start}.npy", TOKENS[start : start + 10], 16)
        for start in (0, 10, 20)
    ]
    igpt.write_token_manifest(tmp_path / "web", parts, palette, 4)
    return igpt.UnlabeledTokens.open(tmp_path / "web")


@pytest.fixture
def folder(tmp_path):
    image = pytest.importorskip("PIL.Image")
    (tmp_path / "pictures" / "below").mkdir(parents=True)
    for number, picture in enumerate(IMAGES):
        image.fromarray(picture).save(tmp_path / "pictures" / ("below" if number > 3 else ".") / f"{number}.png")
    return tmp_path / "pictures"


def test_tokens_in_shards_are_the_tokens(shards, palette):
    assert (len(shards), shards.image_size, shards.num_colors, shards.palette) == (22, 4, 16, palette)
    assert repr(shards) == repr(UNLABELED) == "UnlabeledTokens(22 pictures, image_size=4, num_colors=16)"
    kept, held_out = split_off(shards, 0.2)
    for part, same in zip((kept, held_out), split_off(UNLABELED, 0.2), strict=True):
        np.testing.assert_array_equal(part.token_ids[np.arange(len(part))], same.token_ids)
    joined = kept.join(held_out)
    np.testing.assert_array_equal(joined.token_ids[[20]], held_out.token_ids[[20 - len(kept)]])
    assert len(UNLABELED.join(UNLABELED)) == 44
    batches, same = (igpt.TrainingBatches(examples, palette, 5, seed=3) for examples in (shards, UNLABELED))
    for step in (0, 3, 9):
        assert len(batches[step]) == 1
        np.testing.assert_array_equal(batches[step][0], same[step][0])
        np.testing.assert_array_equal(same[step][0], TOKENS[same.rows(step)[1]])
    # Few rows are in the order of labelled ones.
    np.testing.assert_array_equal(batches.rows(7)[1], igpt.TrainingBatches(LABELED, None, 5, seed=3).rows(7)[1])


def test_lists_of_tokens_are_taken():
    for examples in (igpt.LabeledTokens([[0, 1, 2, 3]], [0], 4), igpt.UnlabeledTokens([[0, 1, 2, 3]], 4)):
        assert (len(examples), examples.image_size) == (1, 2)
        np.testing.assert_array_equal(examples.join(examples).take([1]).token_ids, [[0, 1, 2, 3]])


def test_what_does_not_fit_is_refused(shards, palette):
    other = igpt.ColorPalette.from_colors(palette.colors[::-1])
    for refused, message in {
        lambda: igpt.UnlabeledTokens(TOKENS[:, :15], 16): "`token_ids` must have shape",
        lambda: igpt.UnlabeledTokens(TOKENS, 8): r"`token_ids` must lie in 0…7",
        lambda: igpt.UnlabeledTokens([[0, 1], [2]], 8): "`token_ids` must be one array",
        lambda: igpt.UnlabeledTokens(shards.token_ids, 8): "`num_colors` must be 16",
        lambda: UNLABELED.join(LABELED): "`other` must be UnlabeledTokens. Received: LabeledTokens",
        lambda: LABELED.join(UNLABELED): "`other` must be LabeledTokens. Received: UnlabeledTokens",
        lambda: igpt.UnlabeledImages(IMAGES).join(UNLABELED): "`other` must be UnlabeledImages. Received: UnlabeledTok",
        lambda: igpt.LabeledImages(IMAGES, range(6)).join(LABELED): "`other` must be LabeledImages. Received: LabeledT",
        lambda: igpt.UnlabeledImages(IMAGES[0]): "`images` must have shape",
        lambda: igpt.UnlabeledImages(IMAGES).join(igpt.UnlabeledImages(IMAGES[:, 1:])): "`other` must be an array like",
        lambda: shards.join(UNLABELED): "`other` must be an array like this one, TokenShards .*ndarray",
        lambda: shards.join(igpt.UnlabeledTokens(TOKENS, 17)): "`other` must have tokens of 16 colours",
        lambda: igpt.TrainingBatches(shards, other, 4): "`palette` must be the one that `examples` were encoded with",
        lambda: igpt.TrainingBatches(igpt.UnlabeledImages(IMAGES), None, 4): "`palette` must be given",
        lambda: igpt.UnlabeledImages(IMAGES).encode(None): "`palette` must be a ColorPalette .* Received: NoneType",
        lambda: igpt.LabeledImages(IMAGES, range(6)).encode("palette.npy"): "`palette` must be a ColorPalette",
        lambda: igpt.TrainingBatches(UNLABELED, None, 4, augmentation=igpt.RandomResizedCrop()): "for ImageFiles only",
        lambda: igpt.TrainingBatches(TOKENS, None, 4): "`examples` must be .* UnlabeledImages or UnlabeledTokens",
    }.items():
        with pytest.raises(ValueError, match=message):
            refused()


def test_pictures_in_folders_need_no_classes(folder, palette):
    files = igpt.load_unlabeled_folder(folder, image_size=4)
    assert repr(files) == "UnlabeledImages(ImageFiles(6 pictures, image_size=4, num_channels=3))"
    in_memory = igpt.UnlabeledImages(IMAGES)
    assert repr(in_memory) == "UnlabeledImages(6 pictures of shape (4, 4, 3))"
    np.testing.assert_array_equal(files.encode(palette).token_ids, palette.encode(IMAGES))
    np.testing.assert_array_equal(files.take([5, 2]).join(files.take([0])).images.load().images, IMAGES[[5, 2, 0]])
    batches, same = (igpt.TrainingBatches(examples, palette, 4, seed=1) for examples in (files, in_memory))
    assert batches.fingerprint != igpt.TrainingBatches(files.images, palette, 4, seed=1).fingerprint
    np.testing.assert_array_equal(batches[3][0], same[3][0])
    crops = igpt.TrainingBatches(files, palette, 4, seed=1, augmentation=igpt.RandomResizedCrop())
    assert (crops[3][0] != batches[3][0]).any()
    (folder / "notes.txt").write_text("no picture")
    with pytest.warns(UserWarning, match="1 .txt"):
        assert len(igpt.load_unlabeled_folder(folder, image_size=4)) == 6
    (folder / "empty").mkdir()
    with pytest.raises(ValueError, match="`folder` must have pictures in it"):
        igpt.load_unlabeled_folder(folder / "empty", image_size=4)
    with pytest.raises(FileNotFoundError, match="`folder` must be an existing folder"):
        igpt.load_unlabeled_folder(folder / "none", image_size=4)


def test_files_are_encoded_part_by_part(folder, palette, monkeypatch):
    files = igpt.load_unlabeled_folder(folder, image_size=4)
    read, load_rows = [], igpt.ImageFiles.load_rows

    def counted(self, rows):
        read.append(len(rows))
        return load_rows(self, rows)

    monkeypatch.setattr(igpt.ImageFiles, "load_rows", counted)
    monkeypatch.setattr("keras_igpt.data.unlabeled._ROWS_AT_ONCE", 4)
    token_ids = files.encode(palette).token_ids
    assert read == [4, 2]
    assert token_ids.dtype == np.uint8
    np.testing.assert_array_equal(token_ids, palette.encode(IMAGES))
    # Of stored sizes, which must be one: known when all are read.
    of_any_size = igpt.UnlabeledImages(igpt.ImageFiles(files.images._reader, None))
    np.testing.assert_array_equal(of_any_size.encode(palette).token_ids, token_ids)
    pytest.importorskip("PIL.Image").fromarray(IMAGES[0, :3, :3]).save(folder / "5.png")
    with pytest.raises(ValueError, match="`image_size` must be given for pictures of different sizes"):
        igpt.UnlabeledImages(igpt.ImageFiles(igpt.load_unlabeled_folder(folder, 4).images._reader, None)).encode(
            palette
        )
    with pytest.raises(ValueError, match="`palette` must be a ColorPalette"):
        files.encode(None)
    assert len(files.take([]).encode(palette)) == 0


def test_no_rows_can_be_taken_of_what_may_be_empty(folder, shards):
    for examples in (shards, UNLABELED, LABELED, igpt.load_unlabeled_folder(folder, 4)):
        assert len(examples.take([])) == len(examples.take(np.array([], int))) == 0
    files = igpt.load_unlabeled_folder(folder, 4).images.take([])
    assert len(files) == 0
    with pytest.raises(ValueError, match=r"at least one picture.*Received: ImageFiles"):
        files.load()
    for examples in (igpt.UnlabeledImages(IMAGES), igpt.LabeledImages(IMAGES, range(6))):
        with pytest.raises(ValueError, match="`images` must hold at least one pixel"):
            examples.take([])


def test_digests_change_with_the_tokens(shards):
    images = igpt.UnlabeledImages(IMAGES)
    for examples in (shards, UNLABELED, images):
        digests = [taken.digest() for taken in (examples, examples.take([0, 1, 2]), examples.take([1, 0, 2]))]
        assert len(set(digests)) == 3
        assert examples.take([1, 2, 0]).take([0, 2, 1]).digest() == examples.take([1, 0, 2]).digest()


def test_pretraining_scoring_and_features_take_them(shards, palette):
    lm = make_causal_lm(palette)
    lm.compile(optimizer="sgd")
    held_out = igpt.EvaluationBatches(shards, palette, 4)
    losses = [lm.evaluate(igpt.EvaluationBatches(x, palette, 4), verbose=0) for x in (shards, LABELED)]
    assert losses[0] == losses[1]
    history = lm.fit(igpt.TrainingBatches(shards, palette, 4), epochs=2, validation_data=held_out, verbose=0).history
    assert np.isfinite(history["val_loss"]).all()
    np.testing.assert_allclose(lm.score(shards).nats_per_token, lm.score(LABELED).nats_per_token)
    extractor = igpt.FeatureExtractor(lm, layers=[1])
    np.testing.assert_allclose(extractor.extract(held_out), extractor.extract(TOKENS))
    assert len(lm.predict(held_out, verbose=0)) == 24


def test_what_needs_labels_refuses_them(shards, palette, tmp_path):
    lm = make_masked_lm(palette)
    classifier = igpt.ImageGPTImageClassifier(lm, num_classes=3)
    classifier.compile(**igpt.finetuning_recipe(0.01))
    splits = DataSplits(UNLABELED, LABELED, LABELED, ("a", "b", "c"))
    study = igpt.Study(
        lambda hyperparameters: classifier,
        splits,
        lambda examples: igpt.TrainingBatches(examples, palette, 4),
        lambda examples: igpt.EvaluationBatches(examples, palette, 4),
        igpt.DescendingLearningRateOracle("val_accuracy", (0.01,)).objective,
        folder=tmp_path / "study",
    )
    mixture = igpt.MixedBatches({"web": igpt.Source(LABELED)}, palette, 4)
    probe = igpt.LinearProbe(lm)
    for refused, message in {
        lambda: classifier.fit(igpt.TrainingBatches(shards, palette, 4)): "`x` must have labels. .*UnlabeledTokens",
        lambda: classifier.evaluate(igpt.EvaluationBatches(shards, palette, 4)): "`x` must have labels. .*UnlabeledTok",
        lambda: classifier.fit(mixture): "`x` must have labels. Received: MixedBatches",
        lambda: probe.fit(shards, LABELED): "`train` must have labels. Received: UnlabeledTokens",
        lambda: probe.fit(TOKENS, LABELED): "`train` must have labels. Received: ndarray",
        lambda: probe.fit(LABELED, igpt.EvaluationBatches(shards, palette, 4)): "`validation` must have labels. .*Unla",
        lambda: igpt.FeatureExtractor(lm).extract_labeled(igpt.UnlabeledImages(IMAGES)): "`examples` must have labels",
        lambda: igpt.low_data_table(lm, splits, (1,)): "`data.train` must have labels. Received: UnlabeledTokens",
        lambda: igpt.low_data_subset(shards, 1): "`examples` must have labels. Received: UnlabeledTokens",
        lambda: igpt.cache_tokens(igpt.UnlabeledImages(IMAGES), palette, "x"): "`examples` must be .*UnlabeledImages",
        lambda: study.search(epochs=1): "`data.train` must have labels. Received: UnlabeledTokens",
    }.items():
        with pytest.raises(ValueError, match=message):
            refused()


def test_labels_that_have_to_be_read_do_for_a_classifier(folder, palette):
    """Those of TensorFlow Datasets' records are known when a record is read, and not before."""

    class Unknowing(igpt.data.image_files.FolderReader):
        knows_labels = False

    files = igpt.ImageFiles(Unknowing(sorted(folder.glob("*.png")), [0, 1, 0, 5]), 4)
    classifier = igpt.ImageGPTImageClassifier(make_causal_lm(palette), num_classes=2)
    classifier.compile(**igpt.finetuning_recipe(0.01))
    classifier.fit(igpt.TrainingBatches(files.take([0, 1]), palette, 2), verbose=0)
    with pytest.raises(ValueError, match=r"integers \(B,\) in 0…1.* Received: 0…5"):
        classifier.fit(igpt.TrainingBatches(files, palette, 4), verbose=0)


def test_orders_of_many_rows_are_not_in_memory():
    count = 100_000_000
    orders = EpochOrders(count, seed=3)
    rows = orders.rows(5, np.arange(count - 1000, count))
    assert not orders._orders
    assert len(np.unique(rows)) == 1000
    assert 0 <= rows.min() < 0.01 * count < 0.99 * count < rows.max() < count
    assert (orders.rows(6, np.arange(count - 1000, count)) != rows).mean() > 0.99
    small = EpochOrders(70_000, seed=3)
    np.testing.assert_array_equal(np.sort(small.rows(0, np.arange(70_000))), np.arange(70_000))
    np.testing.assert_array_equal(
        EpochOrders(70_000, 3, in_memory=True).rows(2, np.arange(9)),
        igpt.support.randomness.permutation(70_000, "order", 3, 2)[:9],
    )
