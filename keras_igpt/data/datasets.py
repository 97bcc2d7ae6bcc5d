"""The paper's data sets, folders of pictures and arrays, each with the paper's splits."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from keras_igpt.backend.devices import leave_gpus_to_the_backend
from keras_igpt.data.examples import DataSplits, LabeledImages, split_off
from keras_igpt.data.folders import Classes, check_no_picture_twice, class_folders, pictures_in
from keras_igpt.data.image_files import FolderReader, ImageFiles, import_pillow, resize_images
from keras_igpt.data.tfds_reader import TfdsReader, open_prepared
from keras_igpt.data.unlabeled import UnlabeledImages
from keras_igpt.support.checks import check_choice, check_flag, check_integer, check_number
from keras_igpt.support.randomness import check_seed, permutation

# Share of the official training set held out for validation (section 3.1).
_HELD_OUT = {"imagenet2012": 0.04, "cifar10": 0.1, "cifar100": 0.1, "stl10": 0.1}
_IMAGENET_ARCHIVES = ("ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar")

# Unreadable files that a warning names.
_NAMED = 3


def load_dataset(
    name: str,
    data_dir: str | os.PathLike[str] | None = None,
    image_size: int | None = None,
    seed: int = 0,
    download: bool = False,
) -> DataSplits[Any]:
    """Opens ImageNet, CIFAR-10, CIFAR-100 or STL-10, prepared by TensorFlow Datasets, with the paper's splits.

    4% of ImageNet's training set, and 10% of the others', is held out for validation. ImageNet's official validation
    set and the others' official test sets are used for testing. STL-10's unlabelled pictures are left out. Reading
    needs neither TensorFlow nor a network; preparing (`download=True`) needs both.

    Args:
        name: `"imagenet2012"`, `"cifar10"`, `"cifar100"` or `"stl10"`.
        data_dir: folder of prepared data sets; by default `TFDS_DATA_DIR` or `~/tensorflow_datasets`.
        image_size: int. Side to resize to; None keeps the stored size. Required for ImageNet.
        seed: int. Determines which pictures are held out.
        download: bool. Whether to download and prepare a data set that is not in `data_dir`. ImageNet's archives must
            be put into `data_dir/downloads/manual` first.

    Returns:
        `DataSplits` of `LabeledImages`; for ImageNet of `ImageFiles`.

    Raises:
        ValueError: if the name is unknown, files are damaged (TFRecord checksums are not compared), or the data set has
            features that are not TFDS' own.
        FileNotFoundError: if the data set is not prepared and `download` is False, or ImageNet's archives are missing.
        ImportError: if tensorflow-datasets or Pillow is absent.

    Example:
    ```python
    data = load_dataset("cifar10", data_dir="tensorflow_datasets")
    data["train+validation"]   # for the refit
    ```

    Reference:
        [Chen et al., 2020](https://cdn.openai.com/papers/Generative_Pretraining_from_Pixels_V2.pdf), section 3.1
    """
    check_choice("name", name, _HELD_OUT)
    in_memory = name != "imagenet2012"
    if image_size is None and not in_memory:
        raise ValueError("`image_size` must be given for 'imagenet2012'. Received: image_size=None")
    if image_size is not None:
        check_integer("image_size", image_size)
    check_seed(seed)
    folder = _prepared_folder(name, data_dir, download)
    builder = open_prepared(folder)
    test_split = "test" if in_memory else "validation"
    everything, test = (ImageFiles(TfdsReader(builder, split), image_size) for split in ("train", test_split))
    train, validation = split_off(everything, _HELD_OUT[name], seed)
    splits = DataSplits(train, validation, test, tuple(builder.info.features["label"].names))
    return load_splits(splits) if in_memory else splits


def load_image_folder(
    folder: str | os.PathLike[str],
    image_size: int,
    held_out: float = 0.1,
    seed: int = 0,
    test_folder: str | os.PathLike[str] | None = None,
    num_channels: int = 3,
    skip_unreadable: bool = False,
) -> DataSplits[ImageFiles]:
    """Opens a folder of pictures with one subfolder per class.

    Pictures are decoded when read (`load_splits` loads them into memory), turned upright by their EXIF data and
    converted as `ImageFiles` describes. A share of each class goes to validation, and the same share to test unless
    `test_folder` is given. Subfolders of a class folder are searched too, links included. Hidden files are skipped
    silently, files other than .png, .jpg, .jpeg, .bmp, .gif, .tif, .tiff and .webp, and further names of the same file,
    with a warning; .heic and .heif are read where pillow-heif is installed.

    Args:
        folder: folder of class subfolders.
        image_size: int. Side of the pictures in pixels.
        held_out: float in (0, 0.5). Share of validation and of test each.
        seed: int. Determines the split.
        test_folder: folder of test pictures with the same class subfolders.
        num_channels: int. 3 for colour, 1 for grey.
        skip_unreadable: bool. Whether damaged files are left out, with one warning, before the split. For this, each
            picture is decoded once. With False, reading a damaged file raises `ValueError`.

    Returns:
        `DataSplits` of `ImageFiles`; classes are in alphabetical order.

    Raises:
        FileNotFoundError: if a folder does not exist.
        ValueError: if an argument is not as described, there are fewer than two classes, the classes of `test_folder`
            differ, a class has too few pictures for the splits, a folder cannot be read, or a picture is in two classes
            or in both folders.
        ImportError: if Pillow is absent.

    Warns:
        UserWarning: if files are left out.

    Example:
    ```python
    data = load_splits(load_image_folder("pictures", image_size=16))
    ```
    """
    import_pillow()
    check_seed(seed)
    check_integer("image_size", image_size)
    check_flag("skip_unreadable", skip_unreadable)
    held_out = check_number("held_out", held_out, 0, 0.5, above=True, below=True)
    classes = class_folders(folder, "folder")
    test_classes = None if test_folder is None else class_folders(test_folder, "test_folder")
    if skip_unreadable:
        every = [*classes, *(test_classes or [])]
        readable = set(_readable([file for _, files in every for file in files], image_size, num_channels))
        every = [(class_folder, [file for file in files if file in readable]) for class_folder, files in every]
        classes, test_classes = every[: len(classes)], test_classes and every[len(classes) :]
    with_test = test_classes is None
    if test_classes is not None:
        check_no_picture_twice(classes, test_classes)
    parts: dict[str, list[npt.NDArray[np.int64]]] = {"train": [], "validation": [], "test": []}
    everything: list[Path] = []
    labels: list[int] = []
    for label, (class_folder, files) in enumerate(classes):
        count = max(1, round(held_out * len(files)))
        needed = (2 if with_test else 1) * count + 1
        if len(files) < needed:
            raise ValueError(
                f"`folder` must have at least {needed} pictures in each class at held_out={held_out}. "
                f"Received: {class_folder} with {len(files)}"
            )
        order = permutation(len(files), "held out", seed, label) + len(everything)
        test_count = count if with_test else 0
        for part, chosen in zip(
            parts.values(), np.split(order, [-count - test_count, len(order) - test_count]), strict=True
        ):
            part.append(chosen)
        everything += files
        labels += [label] * len(files)
    files_of = ImageFiles(FolderReader(everything, labels), image_size, num_channels=num_channels)
    train, validation, test = (files_of.take(np.sort(np.concatenate(part))) for part in parts.values())
    names = tuple(class_folder.name for class_folder, _ in classes)
    if test_classes is not None:
        test = _test_pictures(test_classes, names, image_size, num_channels)
    return DataSplits(train, validation, test, names)


def load_unlabeled_folder(
    folder: str | os.PathLike[str], image_size: int, num_channels: int = 3, skip_unreadable: bool = False
) -> UnlabeledImages:
    """Opens all pictures in a folder and its subfolders, without classes.

    Files are found and decoded as in `load_image_folder`.

    Args:
        folder: folder of pictures.
        image_size: int. Side of the pictures in pixels.
        num_channels: int. 3 for colour, 1 for grey.
        skip_unreadable: bool. As in `load_image_folder`.

    Returns:
        `UnlabeledImages` of files, decoded when read.

    Raises:
        ValueError: if an argument is not as described, there are no pictures, or a folder cannot be read.
        FileNotFoundError: if the folder is missing.
        ImportError: if Pillow is absent.

    Example:
    ```python
    batches = TrainingBatches(load_unlabeled_folder("pictures", image_size=32), palette, batch_size=128)
    ```
    """
    import_pillow()
    check_flag("skip_unreadable", skip_unreadable)
    files = pictures_in(folder, "folder")
    if skip_unreadable:
        files = _readable(files, image_size, num_channels)
    if not files:
        raise ValueError(f"`folder` must have pictures in it. Received: {os.fspath(folder)} with 0")
    # `FolderReader` needs classes; they are not used.
    return UnlabeledImages(ImageFiles(FolderReader(files, [0] * len(files)), image_size, num_channels=num_channels))


def load_arrays(
    train: tuple[npt.ArrayLike, npt.ArrayLike],
    test: tuple[npt.ArrayLike, npt.ArrayLike],
    image_size: int | None = None,
    held_out: float = 0.1,
    seed: int = 0,
    class_names: Sequence[str] | None = None,
) -> DataSplits[LabeledImages]:
    """Makes splits from arrays like those of `keras.datasets.cifar10.load_data()`.

    Args:
        train: uint8 images `(B, H, W, C)` and integer labels `(B,)` or `(B, 1)`.
        test: the same, for testing.
        image_size: int. Side to resize to; None keeps the size.
        held_out: float in (0, 1). Share of `train` for validation.
        seed: int. Determines which pictures are held out.
        class_names: one str per class; the labels' numbers by default.

    Returns:
        `DataSplits` of `LabeledImages`.

    Raises:
        ValueError: if `train` or `test` is no pair, or the arrays have other types or shapes.

    Example:
    ```python
    data = load_arrays(*keras.datasets.cifar10.load_data())
    ```
    """
    pairs: dict[str, Any] = {"train": train, "test": test}
    for name, pair in pairs.items():
        if not isinstance(pair, (tuple, list)) or len(pair) != 2:
            raise ValueError(f"`{name}` must be a pair, images and labels. Received: {type(pair).__name__}")
    sets = [LabeledImages(*pair) for pair in pairs.values()]
    if image_size is not None:
        check_integer("image_size", image_size)
        sets = [LabeledImages(resize_images(part.images, image_size), part.labels) for part in sets]
    shapes = [part.images.shape[1:] for part in sets]
    if shapes[0] != shapes[1]:
        raise ValueError(f"`test` must have images of the shape of `train`, {shapes[0]}. Received: {shapes[1]}")
    count = 1 + max(int(part.labels.max()) for part in sets)
    if class_names is not None and len(class_names) < count:
        raise ValueError(f"`class_names` must name all {count} classes. Received: {len(class_names)} names")
    names = tuple(map(str, range(count)) if class_names is None else class_names)
    return DataSplits(*split_off(sets[0], held_out, seed), sets[1], names)


def load_splits(splits: DataSplits[ImageFiles] | DataSplits[LabeledImages]) -> DataSplits[LabeledImages]:
    """Decodes all splits into memory, at their centre squares.

    Args:
        splits: `DataSplits` of `ImageFiles`; those of `LabeledImages` are returned as they are.

    Returns:
        `DataSplits` of `LabeledImages`.

    Raises:
        ValueError: if a picture cannot be read.

    Example:
    ```python
    data = load_splits(load_image_folder("pictures", image_size=16))
    ```
    """
    train, validation, test = (
        part if isinstance(part, LabeledImages) else part.load()
        for part in (splits.train, splits.validation, splits.test)
    )
    return DataSplits(train, validation, test, splits.class_names)


def _prepared_folder(name: str, data_dir: str | os.PathLike[str] | None, download: bool) -> Path:
    """Finds the newest prepared version of a data set, before anything slow is imported."""
    root = Path(data_dir or os.environ.get("TFDS_DATA_DIR") or Path.home() / "tensorflow_datasets").expanduser()
    versions = [path.parent for path in (root / name).glob("*/dataset_info.json")]
    if versions:
        return max(versions, key=lambda path: [int(part) if part.isdigit() else -1 for part in path.name.split(".")])
    manual = root / "downloads" / "manual"
    missing = [archive for archive in _IMAGENET_ARCHIVES if not (manual / archive).is_file()]
    if name == "imagenet2012" and missing:
        raise FileNotFoundError(
            f"`data_dir` must hold {name!r} as prepared by TensorFlow Datasets. To prepare it, put "
            f"{' and '.join(missing)} from image-net.org into {manual} and pass download=True once. "
            f"Received: nothing in {root / name}"
        )
    if not download:
        raise FileNotFoundError(
            f"`data_dir` must hold {name!r} as prepared by TensorFlow Datasets: a folder {root / name / 'VERSION'} "
            f"with dataset_info.json (in Python `keras_igpt.load_dataset({name!r}, {str(root)!r}, "
            f"download=True)` downloads it). Received: nothing in {root / name}"
        )
    return _prepare(name, root)


def _prepare(name: str, root: Path) -> Path:
    try:
        import tensorflow_datasets

        leave_gpus_to_the_backend()
    except ImportError as error:
        raise ImportError("Preparing a data set needs pip install 'keras_igpt[data,tensorflow]'") from error
    builder = tensorflow_datasets.builder(name, data_dir=root)
    builder.download_and_prepare()
    return Path(builder.data_path)


def _readable(files: list[Path], image_size: int, num_channels: int) -> list[Path]:
    """Returns the files that can be decoded, in order; warns about the others."""
    reader = FolderReader(files, [0] * len(files))
    unreadable = ImageFiles(reader, image_size, num_channels=num_channels).unreadable_rows()
    if unreadable:
        named = [str(files[row]) for row in unreadable[:_NAMED]]
        more = [f"{len(unreadable) - _NAMED} more"] if len(unreadable) > _NAMED else []
        warnings.warn(
            f"{len(unreadable)} of {len(files)} files were left out, since they cannot be read: "
            f"{', '.join([*named, *more])}.",
            stacklevel=3,
        )
    left_out = set(unreadable)
    return [file for row, file in enumerate(files) if row not in left_out]


def _test_pictures(classes: Classes, names: tuple[str, ...], image_size: int, num_channels: int) -> ImageFiles:
    received = tuple(folder.name for folder, _ in classes)
    if received != names:
        raise ValueError(
            f"`test_folder` must have the class subfolders of `folder`. Received: {classes[0][0].parent}, where "
            f"{', '.join(sorted(set(received) ^ set(names)))} differ"
        )
    empty = [folder for folder, files in classes if not files]
    if empty:
        raise ValueError(f"`test_folder` must have pictures in each class. Received: {empty[0]} with 0")
    labels = [label for label, (_, files) in enumerate(classes) for _ in files]
    reader = FolderReader([file for _, files in classes for file in files], labels)
    return ImageFiles(reader, image_size, num_channels=num_channels)
