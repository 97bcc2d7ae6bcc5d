import importlib.util
import os
import time
from pathlib import Path

import numpy as np
import pytest

import keras_igpt as igpt
from keras_igpt.data import concatenate, resize_images

PREPARED = Path(os.environ.get("KERAS_IGPT_TEST_DATA", Path(__file__).parents[2] / "shared" / "data" / "tfds"))


def write_pictures(folder, classes, count=5, size=(7, 9)):
    image = pytest.importorskip("PIL.Image")
    random = np.random.default_rng(0)
    for name in classes:
        (folder / name).mkdir(parents=True)
        for index in range(count):
            pixels = random.integers(0, 256, (*size, 3)).astype("uint8")
            image.fromarray(pixels).save(folder / name / f"{index}.png")


def test_resizing_is_the_mean_of_the_area():
    images = np.random.default_rng(0).integers(0, 256, (2, 8, 12, 3)).astype("uint8")
    small = resize_images(images, 4)
    expected = images[:, :, 2:10].reshape(2, 4, 2, 4, 2, 3).mean((2, 4))
    assert small.dtype == np.uint8
    np.testing.assert_allclose(small, expected, atol=1.01)  # Pillow rounds after each direction
    np.testing.assert_array_equal(resize_images(images[:, :, :8], 8), images[:, :, :8])
    assert resize_images(images[..., :1], 4).shape == (2, 4, 4, 1)


def test_a_folder_of_ones_own_pictures(tmp_path):
    write_pictures(tmp_path, ["cats", "dogs", "owls"], count=10)
    (tmp_path / "cats" / "notes.txt").write_text("not a picture")
    (tmp_path / ".ipynb_checkpoints").mkdir()
    data = igpt.load_image_folder(tmp_path, image_size=4, held_out=0.2)
    assert data.class_names == ("cats", "dogs", "owls")
    assert [len(part) for part in (data.train, data.validation, data.test)] == [18, 6, 6]
    assert data.train.images.shape == (18, 4, 4, 3)
    assert np.bincount(data.test.labels).tolist() == [2, 2, 2]
    everything = concatenate([data.train, data.validation, data.test]).images.reshape(30, -1)
    assert len(np.unique(everything, axis=0)) == 30
    again = igpt.load_image_folder(tmp_path, image_size=4, held_out=0.2)
    np.testing.assert_array_equal(again.train.images, data.train.images)


def test_a_folder_that_cannot_be_used_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        igpt.load_image_folder(tmp_path / "nowhere", image_size=4)
    with pytest.raises(ValueError, match="at least two classes"):
        igpt.load_image_folder(tmp_path, image_size=4)
    write_pictures(tmp_path, ["cats", "dogs"])
    (tmp_path / "cats" / "broken.png").write_bytes(b"\x89PNG no more")
    with pytest.raises(ValueError, match=r"broken\.png"):
        igpt.load_image_folder(tmp_path, image_size=4)
    (tmp_path / "empty").mkdir()
    (tmp_path / "cats" / "broken.png").unlink()
    with pytest.raises(ValueError, match="empty with 0"):
        igpt.load_image_folder(tmp_path, image_size=4)


def test_a_data_set_that_is_not_there_fails_at_once(tmp_path):
    pytest.importorskip("tensorflow_datasets")
    started = time.monotonic()
    with pytest.raises(FileNotFoundError, match="`data_dir` must hold 'cifar100'"):
        igpt.load_dataset("cifar100", data_dir=tmp_path)
    assert time.monotonic() - started < 60  # importing TensorFlow included; a download would hang for minutes


@pytest.mark.skipif(
    not (PREPARED / "cifar10").is_dir() or importlib.util.find_spec("tensorflow_datasets") is None,
    reason="needs tensorflow-datasets and a prepared CIFAR-10 (KERAS_IGPT_TEST_DATA names its folder)",
)
def test_cifar10_has_the_papers_splits():
    data = igpt.load_dataset("cifar10", data_dir=PREPARED, image_size=8)
    assert [len(part) for part in (data.train, data.validation, data.test)] == [45000, 5000, 10000]
    assert data.train.images.shape[1:] == (8, 8, 3)
    assert data.class_names[:2] == ("airplane", "automobile")
    assert np.bincount(concatenate([data.train, data.validation]).labels).tolist() == [5000] * 10
