"""What becomes of stored pictures, good and bad."""

import io
import os
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

import keras_igpt as igpt
from keras_igpt.data import ImageFiles, load_splits, resize_images
from keras_igpt.data.image_files import FolderReader, open_picture
from keras_igpt.evaluation.features import LabeledFeatures

Image = pytest.importorskip("PIL.Image")


def open_files(*files, size=4, **arguments):
    return ImageFiles(FolderReader(list(files), list(range(len(files)))), size, **arguments)


def gradient(height=64, width=96):
    """A picture without sharp edges, in which JPEG changes little."""
    y, x = np.mgrid[:height, :width]
    return np.stack([x * 255 // width, y * 255 // height, (x + y) * 255 // (height + width)], -1).astype("uint8")


def hamming_weights(start, side, size, length):
    """Shares of source pixels in target pixels: sinc(x) (0.54 + 0.46 cos(πx)) for |x| < 1, x in target pixels."""
    scale = max(side / size, 1)
    centres = start + side / size * (np.arange(size) + 0.5)
    x = (np.arange(length) + 0.5 - centres[:, None]) / scale
    weights = np.where(abs(x) < 1, np.sinc(x) * (0.54 + 0.46 * np.cos(np.pi * x)), 0)
    return weights / weights.sum(axis=1, keepdims=True)


def resized(pixels, left, top, side, size):
    rows, columns = hamming_weights(top, side, size, len(pixels)), hamming_weights(left, side, size, pixels.shape[1])
    return np.einsum("yh,xw,hwc->yxc", rows, columns, pixels.astype(float))


def test_resizing_is_what_the_filter_says():
    images = np.random.default_rng(0).integers(0, 256, (2, 8, 12, 3)).astype("uint8")
    small = resize_images(images, 4)
    assert small.dtype == np.uint8
    for before, after in zip(images, small, strict=True):
        # Pillow rounds after each direction and keeps weights in 22 bits.
        np.testing.assert_allclose(after, resized(before, 2, 0, 8, 4), atol=1.1)
    np.testing.assert_array_equal(resize_images(images[:, :, :8], 8), images[:, :, :8])
    assert resize_images(images[..., :1], 4).shape == (2, 4, 4, 1)
    flat = np.full((1, 13, 17, 3), 201, "uint8")
    assert (resize_images(flat, 5) == 201).all()


def test_a_crop_is_resized_from_where_it_is(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (41, 60, 3)).astype("uint8")
    Image.fromarray(pixels).save(tmp_path / "a.png")
    crop = igpt.RandomResizedCrop()
    for epoch in range(6):
        image, _ = open_files(tmp_path / "a.png", size=7).read(0, crop, seed=2, epoch=epoch)
        window = crop.window(60, 41, 2, epoch, 0)
        np.testing.assert_allclose(image, resized(pixels, *window, 7), atol=1.1)


def test_reading_takes_the_centre_square(tmp_path):
    Image.fromarray(gradient()).save(tmp_path / "a.png")
    image, label = open_files(tmp_path / "a.png").read(0)
    np.testing.assert_array_equal(image, resize_images(gradient()[None], 4)[0])
    assert label == 0


@pytest.mark.parametrize("size", [3, 8, 32])
def test_a_jpeg_decoded_at_a_fraction_looks_the_same(tmp_path, size):
    Image.fromarray(gradient(250, 375)).save(tmp_path / "a.jpg", quality=95)
    Image.open(tmp_path / "a.jpg").save(tmp_path / "a.png")
    files = open_files(tmp_path / "a.jpg", tmp_path / "a.png", size=size)
    crop = igpt.RandomResizedCrop()
    for epoch in range(5):
        # The same window of the same pixels: crops depend on the row, so each file is row 0 of a set of its own.
        reduced, whole = (files.take([row]).read(0, crop, seed=0, epoch=epoch)[0] for row in (0, 1))
        np.testing.assert_allclose(reduced.astype(int), whole.astype(int), atol=4)


def test_what_is_not_rgb_is_converted(tmp_path):
    pixels = gradient()
    expected = resize_images(pixels[None], 4)[0].astype(int)
    grey = np.asarray(Image.fromarray(pixels).convert("L"))
    kinds = {
        "cmyk.jpg": Image.fromarray(pixels).convert("CMYK"),
        "palette.gif": Image.fromarray(pixels).quantize(256),
        "alpha.png": Image.fromarray(np.concatenate([pixels, pixels[..., :1]], -1)),
    }
    for name, picture in kinds.items():
        picture.save(tmp_path / name)
        np.testing.assert_allclose(open_files(tmp_path / name).read(0)[0].astype(int), expected, atol=14)
    expected = resize_images(grey[None, ..., None], 4)[0].astype(int)
    kinds = {
        "grey.jpg": Image.fromarray(grey),
        "sixteen.png": Image.fromarray(grey.astype("uint16") * 257),
        "one.png": Image.fromarray(grey),
    }
    for name, picture in kinds.items():
        picture.save(tmp_path / name)
        image = open_files(tmp_path / name).read(0)[0]
        assert image.shape == (4, 4, 3)
        np.testing.assert_allclose(image.astype(int), np.repeat(expected, 3, -1), atol=3)
        assert open_files(tmp_path / name, num_channels=1).read(0)[0].shape == (4, 4, 1)


def test_one_pixel_becomes_a_flat_picture(tmp_path):
    for name in ("one.png", "one.jpg"):
        Image.fromarray(np.full((1, 1, 3), 77, "uint8")).save(tmp_path / name)
        files = open_files(tmp_path / name)
        for crop in (None, igpt.RandomResizedCrop()):
            np.testing.assert_array_equal(files.read(0, crop)[0], np.full((4, 4, 3), 77))


def test_photographs_stand_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter, clockwise
    Image.fromarray(gradient()).save(tmp_path / "a.jpg", exif=exif, quality=95)
    turned = np.rot90(gradient(), -1)
    expected = resize_images(turned[None], 4)[0].astype(int)
    files = open_files(tmp_path / "a.jpg")
    np.testing.assert_allclose(files.read(0)[0].astype(int), expected, atol=4)
    # The window is looked for in the upright picture: 64 wide, 96 high.
    left, top, side = igpt.RandomResizedCrop().window(64, 96, 0, 0, 0)
    cut = resized(turned, left, top, side, 4)
    np.testing.assert_allclose(files.read(0, igpt.RandomResizedCrop())[0].astype(int), cut, atol=8)


@pytest.mark.parametrize("orientation", range(10))
@pytest.mark.parametrize("suffix", ["jpg", "png", "tiff"])
def test_every_orientation_shows_the_same_picture(tmp_path, orientation, suffix):
    """0 and 9 are not orientations, and mean nothing."""
    from PIL import ImageOps

    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(gradient(133, 263)).save(path, exif=exif)
    with Image.open(path) as picture:
        upright = np.asarray(ImageOps.exif_transpose(picture))
    crop = igpt.RandomResizedCrop()
    for epoch in range(3):
        window = crop.window(upright.shape[1], upright.shape[0], 0, epoch, 0)
        image, _ = open_files(path, size=8).read(0, crop, seed=0, epoch=epoch)
        np.testing.assert_allclose(image.astype(int), resized(upright, *window, 8), atol=4)


def test_samples_without_a_known_range_are_refused(tmp_path):
    Image.fromarray(np.full((4, 4), 0.5, "float32")).save(tmp_path / "float.tiff")
    with pytest.raises(ValueError, match=r"float\.tiff .its samples are floats"):
        open_files(tmp_path / "float.tiff").read(0)


def test_bad_files_are_named(tmp_path):
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype("uint8")).save(tmp_path / "whole.jpg")
    whole = (tmp_path / "whole.jpg").read_bytes()
    (tmp_path / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "broken.png").write_bytes(b"\x89PNG no more")
    (tmp_path / "text.jpg").write_text("hello")
    (tmp_path / "empty.jpg").write_bytes(b"")
    (tmp_path / "folder.jpg").mkdir()
    for name in ("cut.jpg", "broken.png", "text.jpg", "empty.jpg", "folder.jpg", "gone.jpg"):
        with pytest.raises(ValueError, match=f"readable.*Received: .*{name}"):
            open_files(tmp_path / name).read(0)


def test_damaged_files_are_left_out_where_asked_for(tmp_path):
    folder = tmp_path / "pictures"
    write_pictures(folder, ["cats", "dogs"])
    kept = igpt.load_image_folder(folder, 4)
    for name in ("0.png", "9.jpg", "8.png", "7.png"):
        (folder / "dogs" / f"damaged-{name}").write_bytes(b"\x89PNG no more")
    opened = igpt.load_image_folder(folder, 4)
    with pytest.raises(ValueError, match=r"skip_unreadable=True leaves out .*Received: .*damaged-"):
        load_splits(opened)
    with pytest.warns(UserWarning, match=r"4 of 14 files were left out.*0\.png, .*7\.png, .*8\.png, 1 more") as caught:
        left = igpt.load_image_folder(folder, 4, skip_unreadable=True)
    assert [warning.filename for warning in caught] == [__file__]
    # The split is that of the folder without them.
    for name in ("train", "validation", "test"):
        np.testing.assert_array_equal(left[name].load().images, kept[name].load().images)
    # In a folder of test pictures, and without classes.
    with pytest.warns(UserWarning, match="4 of 9 files were left out"):
        unlabeled = igpt.load_unlabeled_folder(folder / "dogs", 4, skip_unreadable=True)
    assert len(unlabeled.images.load()) == 5
    write_pictures(tmp_path / "new", ["cats", "dogs"])
    with pytest.warns(UserWarning, match="4 of 24 files were left out"):
        tested = igpt.load_image_folder(tmp_path / "new", 4, test_folder=folder, skip_unreadable=True)
    loaded = load_splits(tested)
    assert len(loaded.test) == 10
    assert load_splits(loaded).train is loaded.train


def write_heic(path, pixels):
    pillow_heif = pytest.importorskip("pillow_heif")
    pillow_heif.from_pillow(Image.fromarray(pixels)).save(path, quality=95)


def test_heic_pictures_are_read(tmp_path):
    write_heic(tmp_path / "a.heic", gradient(64, 64))
    image, _ = open_files(tmp_path / "a.heic", size=64).read(0)
    assert abs(image.astype(int) - gradient(64, 64)).mean() < 4
    whole = (tmp_path / "a.heic").read_bytes()
    (tmp_path / "cut.heic").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"readable.*Received: .*cut\.heic"):
        open_files(tmp_path / "cut.heic").read(0)
    (tmp_path / "cut.heic").unlink()
    (tmp_path / "b.HEIF").write_bytes(whole)
    assert len(igpt.load_unlabeled_folder(tmp_path, 4)) == 2


def test_heic_pictures_without_what_reads_them(tmp_path, monkeypatch):
    write_heic(tmp_path / "a.heic", gradient(64, 64))
    monkeypatch.setattr("keras_igpt.data.image_files.heic_is_readable", lambda: False)
    with pytest.raises(ValueError, match=r"pip install 'keras_igpt\[heic\]'\. Received: .*a\.heic$"):
        open_files(tmp_path / "a.heic").read(0)


def test_no_program_is_started_for_a_picture_of_another_kind(tmp_path, monkeypatch):
    from PIL import EpsImagePlugin

    started = []
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *args: started.append(args))
    Image.fromarray(gradient()).save(tmp_path / "a.eps")
    (tmp_path / "a.eps").rename(tmp_path / "a.png")
    with pytest.raises(ValueError, match=r"Received: .*a\.png .damaged, or none of PNG, JPEG, BMP, GIF, TIFF, WEBP"):
        open_files(tmp_path / "a.png").read(0)
    assert not started


def test_a_photograph_with_a_second_one_behind_it_is_a_jpeg(tmp_path):
    """As many telephones write them: Pillow calls the format MPO."""
    photograph = Image.fromarray(gradient())
    photograph.save(tmp_path / "a.jpg", "MPO", save_all=True, append_images=[photograph], quality=95)
    with Image.open(tmp_path / "a.jpg") as opened:
        assert opened.format == "MPO"
    expected = resize_images(gradient()[None], 4)[0].astype(int)
    np.testing.assert_allclose(open_files(tmp_path / "a.jpg").read(0)[0].astype(int), expected, atol=4)


def test_a_picture_too_large_to_be_honest_is_named(tmp_path, monkeypatch):
    Image.fromarray(gradient()).save(tmp_path / "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(ValueError, match=r"bomb\.png"):
        open_files(tmp_path / "bomb.png").read(0)


def test_pictures_of_many_sizes_need_one(tmp_path):
    for size in (4, 5):
        Image.fromarray(np.zeros((size, size, 3), "uint8")).save(tmp_path / f"{size}.png")
    files = open_files(tmp_path / "4.png", tmp_path / "5.png", size=None)
    with pytest.raises(ValueError, match="`image_size` must be given"):
        files.load()
    assert files.take([1]).load().images.shape == (1, 5, 5, 3)
    palette = igpt.ColorPalette.from_colors(np.eye(3, dtype="uint8"))
    with pytest.raises(ValueError, match="image_size"):
        igpt.TrainingBatches(files, palette, 1)


def test_loading_takes_little_more_memory_than_its_result(tmp_path):
    for index in range(40):
        Image.fromarray(np.full((128, 128, 3), index, "uint8")).save(tmp_path / f"{index}.png")
    files = open_files(*sorted(tmp_path.iterdir()), size=128)
    files.read(0)
    tracemalloc.start()
    images = files.load().images
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1.5 * images.nbytes


def test_leaving_out_what_is_damaged_is_true_or_false(tmp_path):
    write_pictures(tmp_path, ["cats", "dogs"])
    for load in (igpt.load_image_folder, igpt.load_unlabeled_folder):
        with pytest.raises(ValueError, match="`skip_unreadable` must be True or False"):
            load(tmp_path, 4, skip_unreadable="no")


def test_rows_of_rows(tmp_path):
    for index in range(4):
        Image.fromarray(np.full((2, 2, 3), index, "uint8")).save(tmp_path / f"{index}.png")
    files = open_files(*sorted(tmp_path.iterdir()), size=2)
    chosen = files.take([3, 1, 2]).take(np.array([True, False, True]))
    assert chosen.labels.tolist() == chosen.load().images[:, 0, 0, 0].tolist() == [3, 2]
    joined = chosen.join(files.take([0]))
    assert joined.load().labels.tolist() == [3, 2, 0]
    with pytest.raises(ValueError, match="`other`"):
        files.join(open_files(tmp_path / "0.png", size=2))


def write_pictures(folder, classes, count=5, size=(7, 9)):
    random = np.random.default_rng(0)
    for name in classes:
        (folder / name).mkdir(parents=True)
        for index in range(count):
            pixels = random.integers(0, 256, (*size, 3)).astype("uint8")
            Image.fromarray(pixels).save(folder / name / f"{index}.png")


def test_a_folder_of_ones_own_pictures(tmp_path):
    write_pictures(tmp_path, ["cats", "dogs", "owls"], count=10)
    (tmp_path / "cats" / "notes.txt").write_text("not a picture")
    (tmp_path / "cats" / ".hidden.png").write_text("not a picture")
    (tmp_path / "dogs" / "more").mkdir()
    (tmp_path / "dogs" / "0.png").rename(tmp_path / "dogs" / "more" / "0.PNG")
    (tmp_path / ".ipynb_checkpoints").mkdir()
    data = load_splits(igpt.load_image_folder(tmp_path, image_size=4, held_out=0.2))
    assert data.class_names == ("cats", "dogs", "owls")
    assert [len(part) for part in (data.train, data.validation, data.test)] == [18, 6, 6]
    assert data.train.images.shape == (18, 4, 4, 3)
    assert np.bincount(data.test.labels).tolist() == [2, 2, 2]
    everything = data["train+validation"].join(data["test"]).images.reshape(30, -1)
    assert len(np.unique(everything, axis=0)) == 30
    again = load_splits(igpt.load_image_folder(tmp_path, image_size=4, held_out=0.2))
    np.testing.assert_array_equal(again.train.images, data.train.images)
    other = load_splits(igpt.load_image_folder(tmp_path, image_size=4, held_out=0.2, seed=1))
    assert (other.train.images != data.train.images).any()


def test_sizes_may_be_numpys(tmp_path):
    write_pictures(tmp_path, ["cats", "dogs"])
    data = igpt.load_image_folder(tmp_path, image_size=np.int64(4), num_channels=np.int32(1))
    assert data.train.read(0)[0].shape == (4, 4, 1)
    assert type(data.train.image_size) is int
    assert resize_images(np.zeros((1, 8, 8, 3), "uint8"), np.int16(4)).shape == (1, 4, 4, 3)


def test_a_folder_with_a_test_folder_of_its_own(tmp_path):
    write_pictures(tmp_path / "train", ["cats", "dogs"], count=10)
    write_pictures(tmp_path / "val", ["cats", "dogs"], count=3)
    data = igpt.load_image_folder(tmp_path / "train", 4, test_folder=tmp_path / "val", num_channels=1)
    assert [len(part) for part in (data.train, data.validation, data.test)] == [18, 2, 6]
    assert data.test.load().images.shape == (6, 4, 4, 1)
    (tmp_path / "val" / "owls").mkdir()
    with pytest.raises(ValueError, match="owls differ"):
        igpt.load_image_folder(tmp_path / "train", 4, test_folder=tmp_path / "val")
    (tmp_path / "train" / "owls").mkdir()
    with pytest.raises(ValueError, match="owls with 0"):
        igpt.load_image_folder(tmp_path / "train", 4, test_folder=tmp_path / "val")


def test_a_folder_that_cannot_be_used_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        igpt.load_image_folder(tmp_path / "nowhere", image_size=4)
    with pytest.raises(ValueError, match="at least two classes"):
        igpt.load_image_folder(tmp_path, image_size=4)
    write_pictures(tmp_path, ["cats", "dogs"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="empty with 0"):
        igpt.load_image_folder(tmp_path, image_size=4)
    (tmp_path / "empty").rmdir()
    (tmp_path / "cats" / "broken.png").write_bytes(b"\x89PNG no more")
    data = igpt.load_image_folder(tmp_path, image_size=4)
    with pytest.raises(ValueError, match=r"broken\.png"):
        load_splits(data)


def names_in(examples):
    """The files of a set, by their paths within their class folder."""
    return sorted(Path(examples._reader.name(number)).name for number in examples._numbers.tolist())


def test_links_to_folders_are_followed_once(tmp_path):
    write_pictures(tmp_path / "set", ["cats", "dogs"])
    write_pictures(tmp_path / "elsewhere", ["more"], count=2)
    for number in (0, 1):
        (tmp_path / "elsewhere" / "more" / f"{number}.png").rename(
            tmp_path / "elsewhere" / "more" / f"linked{number}.png"
        )
    (tmp_path / "set" / "cats" / "a").symlink_to(tmp_path / "elsewhere" / "more", target_is_directory=True)
    (tmp_path / "set" / "cats" / "b").symlink_to(tmp_path / "elsewhere" / "more", target_is_directory=True)
    (tmp_path / "elsewhere" / "more" / "round").symlink_to(tmp_path / "set" / "cats", target_is_directory=True)
    data = igpt.load_image_folder(tmp_path / "set", 4)
    expected = ["linked0.png", "linked1.png", *(f"{number}.png" for number in range(5) for _ in range(2))]
    assert names_in(data["train+validation"].join(data["test"])) == sorted(expected)


def test_a_link_that_leads_to_another_class_is_refused(tmp_path):
    write_pictures(tmp_path, ["cats", "dogs"])
    (tmp_path / "cats" / "up").symlink_to(tmp_path, target_is_directory=True)
    with pytest.raises(ValueError, match=r"`folder` must have each picture in one class\. Received: .*dogs"):
        igpt.load_image_folder(tmp_path, 4)


@pytest.mark.parametrize("link", ["symlink_to", "hardlink_to"])
def test_a_file_of_two_names_is_one_picture(tmp_path, link):
    """Or it would be learnt from and tested on."""
    write_pictures(tmp_path, ["cats", "dogs"])
    getattr(tmp_path / "cats" / "again.png", link)(tmp_path / "cats" / "0.png")
    with pytest.warns(UserWarning, match=r"1 file.* count once\. Left out: 1 second name of a file"):
        data = igpt.load_image_folder(tmp_path, 4)
    assert sum(len(part) for part in (data.train, data.validation, data.test)) == 10
    getattr(tmp_path / "dogs" / "cat.png", link)(tmp_path / "cats" / "0.png")
    with pytest.raises(ValueError, match=r"`folder` must have each picture in one class\. Received: .*cat\.png.*cats"):
        igpt.load_image_folder(tmp_path, 4)


def test_whatever_a_decoder_raises_names_the_picture():
    encoded = io.BytesIO()
    Image.new("RGB", (4, 4)).save(encoded, "TIFF")
    message = r"Pictures must be readable.* Received: odd\.tif \(no integer\)"
    with pytest.raises(ValueError, match=message), open_picture(encoded.getvalue(), "odd.tif"):
        raise TypeError("no integer")


def test_a_folder_that_cannot_be_listed_is_named(tmp_path, monkeypatch):
    write_pictures(tmp_path, ["cats", "dogs"])
    (tmp_path / "cats" / "locked").mkdir()

    def refuses(function):
        def listed(path="."):
            if Path(path).name == "locked":
                raise PermissionError(13, "Permission denied", str(path))
            return function(path)

        return listed

    # The tests may run as a user who can read everything.
    monkeypatch.setattr(os, "listdir", refuses(os.listdir))
    monkeypatch.setattr(os, "scandir", refuses(os.scandir))
    with pytest.raises(ValueError, match=r"`folder` must be readable with all folders.*Received: .*locked .*denied"):
        igpt.load_image_folder(tmp_path, 4)


def test_files_that_are_left_out_are_counted_by_their_endings(tmp_path, monkeypatch):
    monkeypatch.setattr("keras_igpt.data.folders.heic_is_readable", lambda: False)
    write_pictures(tmp_path, ["cats", "dogs"])
    for name in ("a.HEIC", "b.heic", "notes.txt", "README", ".hidden.heic"):
        (tmp_path / "cats" / name).touch()
    (tmp_path / "dogs" / "lost.png").symlink_to(tmp_path / "nowhere.png")
    with pytest.warns(
        UserWarning, match=r"5 file.*Left out: 2 \.heic, 1 \.txt, 1 broken link, 1 without.*igpt\[heic\]"
    ) as caught:
        data = igpt.load_image_folder(tmp_path, 4)
    assert caught[0].filename == __file__
    assert sum(len(part) for part in (data.train, data.validation, data.test)) == 10
    write_pictures(tmp_path / "new", ["cats", "dogs"], count=0)
    (tmp_path / "new" / "cats" / "a.heic").touch()
    with pytest.warns(UserWarning, match=r"1 \.heic"), pytest.raises(ValueError, match="cats with 0"):
        igpt.load_image_folder(tmp_path / "new", 4)


@pytest.mark.parametrize("kind", ["same folder", "linked folder", "linked files", "hard links", "one within the other"])
def test_pictures_are_not_tested_on_that_were_learnt_from(tmp_path, kind):
    write_pictures(tmp_path / "set", ["cats", "dogs"])
    test_folder = tmp_path / "test"
    if kind == "same folder":
        test_folder = tmp_path / "set" / ".." / "set"
    elif kind == "linked folder":
        test_folder.symlink_to(tmp_path / "set", target_is_directory=True)
    elif kind == "one within the other":
        test_folder = tmp_path / "set" / "cats"
        write_pictures(test_folder, ["cats", "dogs"])
    else:
        write_pictures(test_folder, ["cats", "dogs"], count=2)
        shared = test_folder / "dogs" / "shared.png"
        link = shared.symlink_to if kind == "linked files" else shared.hardlink_to
        link(tmp_path / "set" / "dogs" / "0.png")
    with pytest.raises(
        ValueError, match=r"`test_folder` must have other pictures than `folder`\. Received: \d+ in both"
    ):
        igpt.load_image_folder(tmp_path / "set", 4, test_folder=test_folder)


def test_a_data_set_is_shown_in_a_line(tmp_path):
    write_pictures(tmp_path, ["cats", "dogs"], count=10)
    data = igpt.load_image_folder(tmp_path, 4)
    assert repr(data.train) == "ImageFiles(16 pictures, image_size=4, num_channels=3)"
    loaded = load_splits(data)
    assert repr(loaded) == (
        "DataSplits(train=LabeledImages(16 pictures of shape (4, 4, 3)), validation=LabeledImages(2 pictures of shape "
        "(4, 4, 3)), test=LabeledImages(2 pictures of shape (4, 4, 3)), 2 classes)"
    )
    palette = igpt.ColorPalette.from_colors(np.eye(3, dtype="uint8"))
    tokens = loaded.train.encode(palette)
    assert repr(tokens) == "LabeledTokens(16 pictures, image_size=4, num_colors=3)"
    features = LabeledFeatures(np.zeros((16, 2, 8), "float32"), tokens.labels)
    assert repr(features) == "LabeledFeatures(16 pictures, features of shape (2, 8))"
    for batches in (igpt.TrainingBatches(tokens, palette, 4), igpt.EvaluationBatches(tokens, palette, 4)):
        assert len(repr(batches)) < 200


def test_a_bad_file_ends_training_with_its_name(tmp_path):
    from conftest import make_causal_lm

    Image.fromarray(gradient()).save(tmp_path / "good.png")
    (tmp_path / "bad.png").write_bytes(io.BytesIO(b"nothing").getvalue())
    palette = igpt.ColorPalette.from_colors(np.random.default_rng(0).integers(0, 256, (16, 3)).astype("uint8"))
    files = open_files(tmp_path / "good.png", tmp_path / "good.png", tmp_path / "bad.png")
    batches = igpt.TrainingBatches(files, palette, 1, workers=2)
    lm = make_causal_lm()
    lm.compile(optimizer="sgd")
    with pytest.raises(Exception, match=r"bad\.png"):  # TensorFlow wraps it in an error of its own
        lm.fit(batches, epochs=3, verbose=0)
