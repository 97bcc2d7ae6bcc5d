"""Data sets as arrays, with the paper's splits."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from keras_igpt.palette import UInt8Images, check_images

Labels = npt.NDArray[np.int64]

# The paper holds out a tenth of the training set of each (section 3.1).
_TFDS_NAMES = ("cifar10", "cifar100", "stl10")
_HELD_OUT = 0.1

_PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp")


@dataclass(frozen=True)
class LabeledImages:
    """Pictures and their classes.

    Attributes:
        images: uint8 array `(B, H, W, C)`.
        labels: int64 array `(B,)`.
    """

    images: UInt8Images
    labels: Labels

    def __len__(self) -> int:
        return len(self.images)


@dataclass(frozen=True)
class DataSplits:
    """A data set in three parts that share no picture.

    Attributes:
        train: `LabeledImages` to learn from.
        validation: `LabeledImages` to choose with.
        test: `LabeledImages` to report on, once.
        class_names: tuple of str; entry k names label k.
    """

    train: LabeledImages
    validation: LabeledImages
    test: LabeledImages
    class_names: tuple[str, ...]


def split_off(
    images: UInt8Images, labels: npt.ArrayLike, share: float, seed: int = 0
) -> tuple[LabeledImages, LabeledImages]:
    """Parts pictures at random into those kept and a share held out.

    Args:
        images: uint8 array `(B, H, W, C)`.
        labels: int array `(B,)`.
        share: float in (0, 1). Part held out, rounded to whole pictures.
        seed: int. Which ones.

    Returns:
        Two `LabeledImages`: kept, held out; each in the order given.

    Raises:
        ValueError: if lengths differ, or one of the parts would be empty.

    Example:
    ```python
    train, validation = split_off(images, labels, share=0.1, seed=0)
    ```
    """
    images = _check_batch(images)
    classes = np.asarray(labels)
    if classes.dtype.kind not in "iu" or classes.shape != images.shape[:1]:
        raise ValueError(
            f"`labels` must be integers of shape {images.shape[:1]}, one an image. "
            f"Received: {classes.dtype} of shape {classes.shape}"
        )
    classes = classes.astype(np.int64)
    if not 0 < share < 1:
        raise ValueError(f"`share` must lie between 0 and 1. Received: share={share}")
    count = round(share * len(images))
    if not 0 < count < len(images):
        raise ValueError(f"`images` must be enough for two parts at share={share}. Received: {len(images)} images")
    held_out = np.zeros(len(images), bool)
    held_out[np.random.default_rng(seed).permutation(len(images))[:count]] = True
    return (
        LabeledImages(images[~held_out], classes[~held_out]),
        LabeledImages(images[held_out], classes[held_out]),
    )


def resize_images(images: npt.ArrayLike, size: int) -> UInt8Images:
    """Resizes pictures to squares: centre crop to the shorter side, then the mean of the area each pixel covers.

    The area mean keeps flat regions flat and stays within the colours that occur. The paper does not state its filter.

    Args:
        images: uint8 array `(B, H, W, C)`.
        size: int. Side in pixels.

    Returns:
        uint8 array `(B, size, size, C)`.

    Raises:
        ValueError: if `images` is not such an array or `size` is not positive.
        ImportError: if Pillow is absent.

    Example:
    ```python
    small = resize_images(images, 16)
    ```
    """
    array = _check_batch(images)
    if size < 1:
        raise ValueError(f"`size` must be positive. Received: size={size}")
    height, width = array.shape[1:3]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    array = array[:, top : top + side, left : left + side]
    if side == size:
        return array
    pillow = _import_pillow()
    return np.stack([_area_resize(pillow, image, size) for image in array])


def load_dataset(
    name: str,
    data_dir: str | os.PathLike[str] | None = None,
    image_size: int | None = None,
    seed: int = 0,
    download: bool = False,
) -> DataSplits:
    """Loads CIFAR-10, CIFAR-100 or STL-10 through TensorFlow Datasets, with a tenth of train held out.

    Args:
        name: `"cifar10"`, `"cifar100"` or `"stl10"`.
        data_dir: folder of prepared data sets; TFDS's own default if None.
        image_size: int. Side to resize to; as stored if None.
        seed: int. Which pictures are held out.
        download: bool. Whether to fetch and prepare a data set that is not in `data_dir`.

    Returns:
        `DataSplits`; `test` is the official one.

    Raises:
        ValueError: if there is no data set of that name.
        FileNotFoundError: if it is not prepared and `download` is False.
        ImportError: if tensorflow-datasets is absent.

    Example:
    ```python
    data = load_dataset("cifar10", data_dir="tensorflow_datasets")
    ```

    Reference:
        [Chen et al., 2020](https://cdn.openai.com/papers/Generative_Pretraining_from_Pixels_V2.pdf), section 3.1
    """
    if name not in _TFDS_NAMES:
        raise ValueError(f"`name` must be one of {', '.join(_TFDS_NAMES)}. Received: {name!r}")
    try:
        import tensorflow_datasets
    except ImportError as error:
        raise ImportError("Loading a data set needs tensorflow-datasets: pip install 'keras_igpt[data]'") from error
    builder = tensorflow_datasets.builder(name, data_dir=data_dir)
    if download:
        builder.download_and_prepare()
    elif not builder.is_prepared():
        raise FileNotFoundError(
            f"`data_dir` must hold {name!r} as prepared by TensorFlow Datasets (or pass download=True). "
            f"Received: nothing in {builder.data_path}"
        )

    def read(split: str) -> LabeledImages:
        # Decoding order must not depend on the machine: it decides which pictures the seed holds out.
        config = tensorflow_datasets.ReadConfig(interleave_cycle_length=1)
        examples = tensorflow_datasets.as_numpy(
            builder.as_dataset(split=split, shuffle_files=False, read_config=config)
        )
        images, labels = zip(*((one["image"], one["label"]) for one in examples), strict=True)
        pictures = np.stack(images)
        if image_size is not None:
            pictures = resize_images(pictures, image_size)
        return LabeledImages(pictures, np.asarray(labels, np.int64))

    everything = read("train")
    train, validation = split_off(everything.images, everything.labels, _HELD_OUT, seed)
    names = tuple(builder.info.features["label"].names)
    return DataSplits(train, validation, read("test"), names)


def load_image_folder(
    folder: str | os.PathLike[str],
    image_size: int,
    held_out: float = _HELD_OUT,
    seed: int = 0,
) -> DataSplits:
    """Loads one's own pictures from a folder with a subfolder for each class.

    Pictures are turned upright, converted to RGB, centre-cropped and resized (`resize_images`); of an animation the
    first frame counts. Of each class a share goes to validation and as many to test. Folders whose names begin with a
    dot and files without the suffix of a picture (.png, .jpg, .jpeg, .bmp, .gif, .tif, .tiff, .webp) are left out.

    Args:
        folder: folder of class subfolders of pictures.
        image_size: int. Side of the pictures in pixels.
        held_out: float in (0, 0.5). Share of validation and of test each.
        seed: int. Which pictures go where.

    Returns:
        `DataSplits`; classes are in alphabetical order.

    Raises:
        FileNotFoundError: if `folder` does not exist.
        ValueError: if there are fewer than two classes, a class has too few pictures for the splits, or a file cannot
            be read; the message names it.
        ImportError: if Pillow is absent.

    Example:
    ```python
    data = load_image_folder("pictures", image_size=16)
    ```
    """
    pillow = _import_pillow()
    root = Path(folder)
    if not root.is_dir():
        raise FileNotFoundError(f"`folder` must be an existing folder. Received: {root}")
    if not 0 < held_out < 0.5:
        raise ValueError(f"`held_out` must lie between 0 and 0.5. Received: held_out={held_out}")
    class_folders = sorted(entry for entry in root.iterdir() if entry.is_dir() and entry.name[0] != ".")
    if len(class_folders) < 2:
        raise ValueError(
            "`folder` must have a subfolder of pictures for each of at least two classes. "
            f"Received: {root} with {len(class_folders)} subfolder(s)"
        )
    parts: list[list[LabeledImages]] = [[], [], []]
    for label, class_folder in enumerate(class_folders):
        files = sorted(file for file in class_folder.iterdir() if file.suffix.lower() in _PICTURE_SUFFIXES)
        count = max(1, round(held_out * len(files)))
        if len(files) < 2 * count + 1:
            raise ValueError(
                f"`folder` must have at least {2 * count + 1} pictures in each class at held_out={held_out}. "
                f"Received: {class_folder} with {len(files)}"
            )
        images = np.stack([_read_picture(pillow, file, image_size) for file in files])
        order = np.random.default_rng([seed, label]).permutation(len(files))
        cuts = np.split(order, [count, 2 * count])
        for part, chosen in zip(parts, (cuts[2], cuts[0], cuts[1]), strict=True):
            part.append(LabeledImages(images[chosen], np.full(len(chosen), label)))
    train, validation, test = (concatenate(part) for part in parts)
    return DataSplits(train, validation, test, tuple(entry.name for entry in class_folders))


def concatenate(parts: Sequence[LabeledImages]) -> LabeledImages:
    """Joins sets of pictures, the fold-back of validation into train say.

    Args:
        parts: sets of equally large pictures.

    Returns:
        One `LabeledImages` with all of them in order.

    Example:
    ```python
    everything = concatenate([data.train, data.validation])
    ```
    """
    return LabeledImages(
        np.concatenate([part.images for part in parts]),
        np.concatenate([part.labels for part in parts]),
    )


def _check_batch(images: npt.ArrayLike) -> UInt8Images:
    array = check_images(images)
    if array.ndim != 4:
        raise ValueError(f"`images` must have shape (B, H, W, C). Received: shape {array.shape}")
    return array


def _import_pillow() -> Any:
    try:
        from PIL import Image
    except ImportError as error:
        raise ImportError("Resizing pictures needs Pillow: pip install 'keras_igpt[data]'") from error
    return Image


def _area_resize(pillow: Any, image: UInt8Images, size: int) -> UInt8Images:
    flat = image[..., 0] if image.shape[-1] == 1 else image
    resized = pillow.fromarray(flat).resize((size, size), pillow.Resampling.BOX)
    pixels = np.asarray(resized, np.uint8).reshape(size, size, image.shape[-1])
    return check_images(pixels)


def _read_picture(pillow: Any, file: Path, size: int) -> UInt8Images:
    from PIL import ImageOps

    try:
        with pillow.open(file) as picture:
            array = np.asarray(ImageOps.exif_transpose(picture).convert("RGB"), np.uint8)
    except (OSError, SyntaxError) as error:  # Pillow raises SyntaxError for some broken PNG files
        raise ValueError(f"`folder` must hold readable pictures. Received: {file} ({error})") from error
    resized: UInt8Images = resize_images(array[None], size)[0]
    return resized
