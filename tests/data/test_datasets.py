"""Data sets as prepared by TensorFlow Datasets, and arrays: what is in which split."""

import hashlib
import importlib.util
import json
import os
import struct
import subprocess
import sys
import time
from pathlib import Path

import keras
import numpy as np
import pytest

import keras_igpt as igpt
from keras_igpt.data import examples, load_arrays, low_data_subset, split_off
from keras_igpt.data.examples import LabeledImages

PREPARED = Path(os.environ.get("KERAS_IGPT_TEST_DATA", Path(__file__).parents[3] / "shared" / "data" / "tfds"))


def needs_prepared(name):
    there = (PREPARED / name).is_dir() and importlib.util.find_spec("tensorflow_datasets") is not None
    return pytest.mark.skipif(
        not there, reason=f"needs tensorflow-datasets and a prepared {name} (KERAS_IGPT_TEST_DATA names its folder)"
    )


@pytest.mark.parametrize(
    ("name", "sizes"), [("imagenet2012", [96, 4, 7]), ("cifar100", [45, 5, 6]), ("stl10", [45, 5, 6])]
)
def test_prepared_sets_have_the_papers_splits(prepared, name, sizes):
    data = igpt.load_dataset(name, prepared, image_size=4)
    if name == "imagenet2012":
        data = igpt.data.load_splits(data)
    assert [len(part) for part in (data.train, data.validation, data.test)] == sizes
    assert data.class_names == ("ant", "bee", "cat")
    assert data.train.images.shape[1:] == (4, 4, 3)
    for part in (data.train, data.validation, data.test):
        values = part.images[:, 0, 0, 0].astype(int)
        assert len(set(values)) == len(part)
        np.testing.assert_array_equal(values % 3, part.labels)
    held = set(data.train.images[:, 0, 0, 0].tolist()), set(data.validation.images[:, 0, 0, 0].tolist())
    assert held[0] | held[1] == set(range(sum(sizes[:2])))
    assert not held[0] & held[1]


def test_imagenet_stays_in_its_files(prepared):
    data = igpt.load_dataset("imagenet2012", prepared, image_size=4)
    folded = data["train+validation"]
    assert len(folded) == 100
    image, label = folded.read(5)
    assert image.shape == (4, 4, 3)
    assert label == folded.labels[5]


def test_another_seed_holds_out_others(prepared):
    first, again, other = (igpt.load_dataset("stl10", prepared, 4, seed=seed).validation.images for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_the_newest_version_is_taken(prepared, tmp_path):
    for version in ("2.0.0", "10.0.0"):
        (tmp_path / "cifar100").mkdir(exist_ok=True)
        folder = tmp_path / "cifar100" / version
        import shutil

        shutil.copytree(prepared / "cifar100" / "1.0.0", folder)
    (tmp_path / "cifar100" / "2.0.0" / "dataset_info.json").write_text("not to be read")
    assert len(igpt.load_dataset("cifar100", tmp_path, 4).train) == 45


def test_damaged_files_are_named(prepared, tmp_path):
    import shutil

    shutil.copytree(prepared / "cifar100", tmp_path / "cifar100")
    folder = tmp_path / "cifar100" / "1.0.0"
    shard = sorted(folder.glob("cifar100-train*"))[0]
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-10])
    with pytest.raises(ValueError, match=rf"undamaged files\. Received: .*{shard.name}"):
        igpt.load_dataset("cifar100", tmp_path, 4)
    (length,) = struct.unpack("<Q", whole[:8])
    shard.write_bytes(whole[:12] + b"\xff" * length + whole[12 + length :])
    with pytest.raises(ValueError, match=f"Received: record 0 of .*{shard.name}"):
        igpt.load_dataset("cifar100", tmp_path, 4)
    start = whole.index(b"\xff\xd8")
    shard.write_bytes(whole[: start + 2] + b"\0" * 40 + whole[start + 42 :])
    with pytest.raises(ValueError, match=rf"readable\. Received: record 0 of .*{shard.name}"):
        igpt.load_dataset("cifar100", tmp_path, 4)
    shard.unlink()
    with pytest.raises(ValueError, match=f"Received: no .*{shard.name}"):
        igpt.load_dataset("cifar100", tmp_path, 4)


def foreign_feature(form):
    """JSON of a feature of a class that stands in no module of TFDS."""
    name = "evilmod.Evil"
    return {
        "feature": {"pythonClassName": name, "text": {}},
        "other spelling": {"python_class_name": name, "text": {}},
        "older": {"type": name, "content": {}},
        "nested": {
            "pythonClassName": "tensorflow_datasets.core.features.features_dict.FeaturesDict",
            "featuresDict": {"features": {"x": {"pythonClassName": name, "text": {}}}},
        },
        "in a text": {
            "pythonClassName": "tensorflow_datasets.core.features.features_dict.FeaturesDict",
            "jsonFeature": {"json": json.dumps({"x": {"type": name, "content": {}}})},
        },
    }[form]


@pytest.mark.parametrize(
    ("file", "form"),
    [("features.json", "older")]
    + [
        (file, form)
        for file in ("features.json", "dataset_info.json")
        for form in ("feature", "other spelling", "nested", "in a text")
    ],
)
def test_no_code_that_a_data_folder_names_is_run(prepared, tmp_path, monkeypatch, file, form):
    import shutil

    folder = tmp_path / "cifar100" / "1.0.0"
    shutil.copytree(prepared / "cifar100" / "1.0.0", folder)
    features = json.loads((folder / "features.json").read_text())
    features["featuresDict"]["features"]["id"] = foreign_feature(form)
    if form == "older":
        features = {"type": features["pythonClassName"], "content": {"id": foreign_feature(form)}}
    content = features
    if file == "dataset_info.json":
        content = json.loads((folder / file).read_text()) | {"features": features}
    (folder / file).write_text(json.dumps(content))
    (tmp_path / "evilmod.py").write_text("raise SystemExit('this ran')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match=rf"own image, label and text features.*Received: .*{file} with .*evilmod"):
        igpt.load_dataset("cifar100", tmp_path, 4)
    assert "evilmod" not in sys.modules


@pytest.mark.parametrize("content", [None, '{"featuresDict": {', "[" * 100_000])
def test_damaged_metadata_is_named(prepared, tmp_path, content):
    import shutil

    folder = tmp_path / "cifar100" / "1.0.0"
    shutil.copytree(prepared / "cifar100" / "1.0.0", folder)
    path = folder / "features.json"
    path.unlink() if content is None else path.write_text(content)
    with pytest.raises(ValueError, match=r"`data_dir` must hold .*Received: .*features\.json"):
        igpt.load_dataset("cifar100", tmp_path, 4)


def test_a_format_without_random_access_is_named(prepared, tmp_path):
    import shutil

    shutil.copytree(prepared / "cifar100", tmp_path / "cifar100")
    path = tmp_path / "cifar100" / "1.0.0" / "dataset_info.json"
    info = json.loads(path.read_text())
    info["fileFormat"] = "riegeli"
    path.write_text(json.dumps(info))
    with pytest.raises(ValueError, match=r"as TFRecord files\. Received: riegeli"):
        igpt.load_dataset("cifar100", tmp_path, 4)


@pytest.mark.parametrize("name", ["imagenet2012", "cifar10", "cifar100", "stl10"])
def test_a_data_set_that_is_not_there_fails_at_once(tmp_path, name):
    started = time.monotonic()
    with pytest.raises(FileNotFoundError, match=f"`data_dir` must hold '{name}'") as raised:
        igpt.load_dataset(name, data_dir=tmp_path, image_size=4)
    assert str(tmp_path / name) in str(raised.value)
    assert time.monotonic() - started < 2  # promised; nothing slow is imported, nothing is fetched


def test_imagenets_archives_are_asked_for_even_before_a_download(tmp_path):
    manual = tmp_path / "downloads" / "manual"
    manual.mkdir(parents=True)
    (manual / "ILSVRC2012_img_val.tar").touch()
    with pytest.raises(FileNotFoundError, match=r"put ILSVRC2012_img_train\.tar from image-net\.org into") as raised:
        igpt.load_dataset("imagenet2012", tmp_path, image_size=4, download=True)
    assert str(manual) in str(raised.value)


def test_data_sets_are_looked_for_where_tfds_keeps_them(tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "shelf"))
    with pytest.raises(FileNotFoundError, match="shelf"):
        igpt.load_dataset("cifar10")


FIT_WITHOUT_TENSORFLOW = """
import sys
import numpy
import keras_igpt as igpt
data = igpt.load_dataset("imagenet2012", sys.argv[1], image_size=4)
palette = igpt.ColorPalette.from_colors(numpy.arange(48, dtype="uint8").reshape(16, 3))
backbone = igpt.ImageGPTBackbone(vocabulary_size=16, image_size=4, num_layers=1, num_heads=1, hidden_dim=8)
lm = igpt.ImageGPTCausalLM(backbone, palette)
lm.compile(optimizer="sgd")
batches = igpt.TrainingBatches(data.train, palette, 8, augmentation=igpt.RandomResizedCrop())
lm.fit(batches, epochs=1, validation_data=igpt.EvaluationBatches(data.validation, palette, 8), verbose=0)
print("tensorflow" in sys.modules)
"""


@pytest.mark.skipif(keras.backend.backend() == "tensorflow", reason="about the other backends")
def test_tensorflow_takes_no_memory_from_another_backend(prepared):
    """It is not even imported, by reading, augmenting, encoding and training."""
    result = subprocess.run(
        [sys.executable, "-c", FIT_WITHOUT_TENSORFLOW, str(prepared)],
        capture_output=True,
        text=True,
        env={**os.environ, "KERAS_BACKEND": keras.backend.backend()},
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "False"


def test_arrays():
    images = np.arange(40, dtype="uint8").repeat(48).reshape(40, 4, 4, 3)
    data = load_arrays((images, np.arange(40)[:, None] % 2), (images[:3], [0, 1, 0]), image_size=2, held_out=0.25)
    assert [len(part) for part in (data.train, data.validation, data.test)] == [30, 10, 3]
    assert data.class_names == ("0", "1")
    np.testing.assert_array_equal(data.train.images[:, 0, 0, 0] % 2, data.train.labels)
    assert data.train.images.shape[1:] == (2, 2, 3)


def test_pictures_and_labels_stay_together():
    examples = LabeledImages(np.arange(48, dtype="uint8").reshape(16, 1, 1, 3), np.arange(16))
    kept, held_out = split_off(examples, share=0.25, seed=1)
    assert (len(kept), len(held_out)) == (12, 4)
    for part in (kept, held_out):
        np.testing.assert_array_equal(part.images[:, 0, 0, 0] // 3, part.labels)
    assert not set(kept.labels) & set(held_out.labels)


def test_low_data_subsets_are_balanced_nested_and_repeatable():
    labels = np.random.default_rng(0).integers(0, 5, 400)
    examples = LabeledImages(np.arange(400, dtype="uint16").view("uint8").reshape(400, 1, 2, 1), labels)

    def numbers(count, seed):
        subset = low_data_subset(examples, count, seed)
        assert np.bincount(subset.labels).tolist() == [count] * 5
        found = subset.images.reshape(-1, 2).copy().view("uint16")[:, 0]
        np.testing.assert_array_equal(labels[found], subset.labels)
        return set(found.tolist())

    subsets = [numbers(4, seed) for seed in range(5)]
    assert len({frozenset(subset) for subset in subsets}) == 5
    assert numbers(4, 2) == subsets[2] < numbers(25, 2)


@needs_prepared("cifar10")
def test_cifar10_has_the_papers_splits():
    if keras.backend.backend() != "jax":
        pytest.skip("takes long, and is NumPy on any backend")
    data = igpt.load_dataset("cifar10", data_dir=PREPARED)
    assert [len(part) for part in (data.train, data.validation, data.test)] == [45000, 5000, 10000]
    assert data.train.images.shape[1:] == (32, 32, 3)
    assert data.class_names[:2] == ("airplane", "automobile")
    folded = data["train+validation"]
    assert np.bincount(folded.labels).tolist() == [5000] * 10
    assert np.bincount(data.test.labels).tolist() == [1000] * 10

    # Each example once, by its pixels; CIFAR-10 itself repeats a few pictures, also between train and test.
    def prints(part):
        return [image.tobytes() for image in part.images]

    split = prints(data.train) + prints(data.validation)
    assert sorted(split) == sorted(prints(folded))
    distinct = set(split)
    assert len(distinct) > 49_900
    official = {part: igpt.data.ImageFiles(official_reader("cifar10", part), None) for part in ("train", "test")}
    for row in range(0, 10000, 50):
        assert official["train"].read(5 * row)[0].tobytes() in distinct
        np.testing.assert_array_equal(data.test.images[row], official["test"].read(row)[0])
    for count in (4, 25, 400):
        assert np.bincount(low_data_subset(folded, count, seed=4).labels).tolist() == [count] * 10


def official_reader(name, split):
    import tensorflow_datasets

    from keras_igpt.data.tfds_reader import TfdsReader

    (folder,) = (PREPARED / name).iterdir()
    return TfdsReader(tensorflow_datasets.builder_from_directory(folder), split)


@needs_prepared("cifar10")
def test_records_are_those_that_tensorflow_reads():
    tfds = pytest.importorskip("tensorflow_datasets")
    pytest.importorskip("tensorflow")
    config = tfds.ReadConfig(interleave_cycle_length=1)
    builder = tfds.builder("cifar10", data_dir=PREPARED)
    ours = igpt.data.ImageFiles(official_reader("cifar10", "test"), None)
    for row, example in enumerate(tfds.as_numpy(builder.as_dataset("test", read_config=config).take(500))):
        image, label = ours.read(row)
        np.testing.assert_array_equal(image, example["image"])
        assert label == example["label"]


@needs_prepared("imagenet2012")
def test_imagenet_pictures_of_every_kind_are_read():
    data = igpt.load_dataset("imagenet2012", PREPARED, image_size=48)
    assert [len(part) for part in (data.train, data.validation, data.test)] == [192, 8, 40]
    loaded = data["train+validation"].load()
    assert loaded.images.shape == (200, 48, 48, 3)
    assert loaded.images.std() > 30
    crop, _ = data.train.read(0, igpt.RandomResizedCrop(), seed=0, epoch=1)
    assert crop.shape == (48, 48, 3)


def test_digests_of_arrays_are_what_searches_on_disk_have(monkeypatch):
    monkeypatch.setattr(examples, "_ROWS_DIGESTED", 3)
    images = LabeledImages(np.arange(7 * 48, dtype="uint8").reshape(7, 4, 4, 3)[:, :, ::-1], np.arange(7))
    expected = hashlib.sha256(images.labels.tobytes() + images.images.tobytes()).hexdigest()
    assert images.digest() == expected
    assert images.take([0, 1]).digest() != images.take([1, 0]).digest()


def test_sets_of_arrays_are_pairs():
    images = np.zeros((9, 4, 4, 3), "uint8")
    pair, examples = (images, np.zeros(9, int)), LabeledImages(images, np.zeros(9, int))
    for name, sets in {"train": (examples, pair), "test": (pair, examples)}.items():
        with pytest.raises(ValueError, match=f"`{name}` must be a pair, images and labels. Received: LabeledImages"):
            load_arrays(*sets)
    with pytest.raises(ValueError, match="`images` must be one array"):
        load_arrays(([images[0], images[0, :2]], [0, 1]), pair)
    with pytest.raises(ValueError, match="`labels` must be one array"):
        load_arrays((images, [[0], [0, 1]]), pair)
