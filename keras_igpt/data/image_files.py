"""Pictures in files, decoded, cropped and resized when they are read."""

from __future__ import annotations

import hashlib
import io
import json
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cached_property
from importlib import util
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from keras_igpt.data.augmentation import RandomResizedCrop, Window
from keras_igpt.data.examples import LabeledExamples, LabeledImages, Labels, check_kind, rows_to_take
from keras_igpt.palette.color_palette import UInt8Images, check_images
from keras_igpt.support.checks import check_integer

# JPEGs are decoded at a half, a quarter or an eighth of their size if that leaves this many pixels for each target
# pixel in either direction.
_PIXELS_LEFT = 2

# Formats accepted, regardless of file name. Pillow knows many more, and starts external programs for some of them.
_FORMATS = ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP")

# Endings of the files that are read, and of those that are where pillow-heif is installed.
PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp")
HEIC_SUFFIXES = (".heic", ".heif")
# How such files begin, after four bytes of length.
_HEIC_BEGINNINGS = tuple(b"ftyp" + brand for brand in (b"heic", b"heix", b"heim", b"heis", b"mif1", b"msf1"))

# Version of the decoding; token caches of other versions are rebuilt.
_DECODING_VERSION = 1

# One thread decodes CIFAR's 2 kB pictures in half the time of several; ImageNet's 100 kB ones gain from many.
_ENCODED_BYTES_FOR_THREADS = 1 << 13

# Rows that a pool of threads is given together.
_ROWS_AT_ONCE = 1 << 12

# Files whose content enters a folder's digest.
_FILES_READ = 100


class ImageReader(ABC):
    """Reads the encoded pictures of a store by number. Thread-safe."""

    # Whether to apply the EXIF orientation. Benchmark data sets are customarily read without it.
    upright: bool
    # Whether `label` works without reading the picture.
    knows_labels = False
    # What can be done about pictures that cannot be read, for messages.
    remedy = ""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def read(self, number: int) -> tuple[bytes, int]:
        """Returns an encoded picture and its class."""

    @abstractmethod
    def name(self, number: int) -> str:
        """Returns a picture's location, for messages."""

    @abstractmethod
    def fingerprint(self) -> dict[str, Any]:
        """Returns JSON values that change when the store does."""

    def fingerprint_as_given(self) -> dict[str, Any]:
        """Returns the fingerprint of earlier versions, with paths as they were given."""
        return self.fingerprint()

    def content(self) -> dict[str, Any]:
        """Returns JSON values that change when the pictures do, but not when they are copied elsewhere."""
        return self.fingerprint()

    def label(self, number: int) -> int:
        """Returns the class of a picture."""
        return self.read(number)[1]


class FolderReader(ImageReader):
    """Reads picture files, given with their classes."""

    upright = True
    knows_labels = True
    remedy = " (skip_unreadable=True leaves out those that are not)"

    def __init__(self, files: list[Path], labels: list[int]) -> None:
        self._files, self._labels = files, labels

    def __len__(self) -> int:
        return len(self._files)

    def read(self, number: int) -> tuple[bytes, int]:
        try:
            return self._files[number].read_bytes(), self._labels[number]
        except OSError as error:
            raise ValueError(
                f"Pictures must be readable{self.remedy}. Received: {self._files[number]} ({error})"
            ) from error

    def name(self, number: int) -> str:
        return str(self._files[number])

    def label(self, number: int) -> int:
        return self._labels[number]

    def fingerprint(self) -> dict[str, Any]:
        return {"files": [[os.path.abspath(path), *state] for path, *state in self.fingerprint_as_given()["files"]]}

    def fingerprint_as_given(self) -> dict[str, Any]:
        stats = [file.stat() for file in self._files]
        return {
            "files": [
                [str(file), stat.st_size, stat.st_mtime_ns] for file, stat in zip(self._files, stats, strict=True)
            ]
        }

    def content(self) -> dict[str, Any]:
        root = os.path.commonpath([file.parent for file in self._files])
        sample = range(0, len(self), -(-len(self) // _FILES_READ))
        return {
            "files": [[os.path.relpath(file, root), file.stat().st_size] for file in self._files],
            # Uncompressed files of different pictures may have equal sizes.
            "some": [hashlib.sha256(self.read(number)[0]).hexdigest() for number in sample],
        }


class ImageFiles(LabeledExamples):
    """Labelled pictures that are decoded when they are read, for sets larger than memory.

    Every picture becomes an RGB square (or grey, if `num_channels` is 1): palette, grey and CMYK pictures are
    converted, transparency is dropped, 16-bit samples keep their upper 8 bits, and animations their first frame.
    Smaller pictures are enlarged.

    Args:
        reader: an `ImageReader`.
        image_size: int. Side `S` to resize to; None keeps the stored size, which must be the same for all.
        numbers: int array. Which of the reader's pictures; all by default.
        num_channels: int. 3 for colour, 1 for grey.

    Raises:
        ValueError: if `image_size` is not positive.
    """

    def __init__(
        self,
        reader: ImageReader,
        image_size: int | None,
        numbers: npt.NDArray[np.int64] | None = None,
        num_channels: int = 3,
    ) -> None:
        self.image_size = None if image_size is None else check_integer("image_size", image_size)
        self.num_channels = check_integer("num_channels", num_channels)
        if num_channels not in (1, 3):
            raise ValueError(f"`num_channels` must be 3, or 1 for grey. Received: num_channels={num_channels}")
        self._reader = reader
        self._numbers = np.arange(len(reader)) if numbers is None else numbers

    def __repr__(self) -> str:
        return f"ImageFiles({len(self)} pictures, image_size={self.image_size}, num_channels={self.num_channels})"

    def __len__(self) -> int:
        return len(self._numbers)

    @cached_property
    def labels(self) -> Labels:  # type: ignore[override]
        """Labels, int64 `(B,)`. For TensorFlow Datasets this reads every record, once."""
        return np.array([self._reader.label(number) for number in self._numbers.tolist()], np.int64)

    @property
    def known_labels(self) -> Labels | None:
        """The labels if known without reading the pictures, else None."""
        return self.labels if self._reader.knows_labels else None

    def take(self, rows: npt.ArrayLike) -> Self:
        return type(self)(self._reader, self.image_size, self._numbers[rows_to_take(rows)], self.num_channels)

    def join(self, other: Self) -> Self:
        check_kind(self, other)
        same = (self.image_size, self.num_channels) == (other.image_size, other.num_channels)
        if self._reader is not other._reader or not same:
            raise ValueError(
                f"`other` must read the same store with the same `image_size` and `num_channels`. Received: {other!r}"
            )
        numbers = np.concatenate([self._numbers, other._numbers])
        return type(self)(self._reader, self.image_size, numbers, self.num_channels)

    def read(
        self, row: int, crop: RandomResizedCrop | None = None, seed: int = 0, epoch: int = 0
    ) -> tuple[UInt8Images, int]:
        """Decodes one picture.

        Args:
            row: int.
            crop: augmentation; None takes the centre square, as in the paper's evaluation.
            seed: int. Seed of the crop.
            epoch: int. Epoch of the crop.

        Returns:
            uint8 array `(S, S, C)`, and the class.

        Raises:
            ValueError: if the picture cannot be read.
        """
        if crop is not None and self.image_size is None:
            raise ValueError("`crop` needs an `image_size`. Received: ImageFiles with image_size=None")
        number = int(self._numbers[row])
        encoded, label = self._reader.read(number)
        pillow = import_pillow()
        with open_picture(encoded, self._reader.name(number), self._reader.remedy) as opened:
            picture = turn_upright(opened) if self._reader.upright else opened
            width, height = picture.size
            window = None if crop is None else crop.window(width, height, seed, epoch, row)
            image = _decode(pillow, picture, self.image_size, window, self.num_channels)
        return image, label

    def load(self) -> LabeledImages:
        """Decodes the centre squares of all pictures into `LabeledImages`.

        Raises:
            ValueError: if there are none, one cannot be read, or `image_size` is None and the sizes differ.
        """
        return self.load_rows(range(len(self)))

    def load_rows(self, rows: range) -> LabeledImages:
        """Decodes some rows, as `load` does all."""
        if not rows:
            raise ValueError(f"Sets must have at least one picture to be loaded. Received: {self!r}")
        images, labels = np.empty(0, np.uint8), np.empty(len(rows), np.int64)
        shapes: set[tuple[int, ...]] = set()
        # No list of pictures, which would take as much memory as the array.
        with ThreadPoolExecutor(self.threads) as pool:
            for place, (image, label) in enumerate((map if self.threads == 1 else pool.map)(self.read, rows)):
                if not shapes:
                    images = np.empty((len(rows), *image.shape), np.uint8)
                shapes.add(image.shape)
                if len(shapes) == 1:
                    images[place], labels[place] = image, label
        if len(shapes) > 1:
            raise ValueError(
                "`image_size` must be given for pictures of different sizes. "
                f"Received: image_size=None with shapes {sorted(shapes)[:3]}"
            )
        return LabeledImages(images, labels)

    def unreadable_rows(self) -> list[int]:
        """Decodes all pictures once, and returns the rows of those that cannot be read."""

        def is_damaged(row: int) -> bool:
            try:
                self.read(row)
            except ValueError:
                return True
            return False

        damaged: list[int] = []
        with ThreadPoolExecutor(processors()) as pool:
            # In parts: a pool keeps an object for each row that it was given.
            for start in range(0, len(self), _ROWS_AT_ONCE):
                rows = range(start, min(start + _ROWS_AT_ONCE, len(self)))
                damaged += [row for row, found in zip(rows, pool.map(is_damaged, rows), strict=True) if found]
        return damaged

    @cached_property
    def threads(self) -> int:
        """Threads to decode with: all processors, or one if the first picture is too small to gain from more."""
        encoded, _ = self._reader.read(int(self._numbers[0]))
        return 1 if len(encoded) < _ENCODED_BYTES_FOR_THREADS else processors()

    def fingerprint(self) -> dict[str, Any]:
        """Returns JSON values that change when the result of `load` does."""
        return self._described(self._reader.fingerprint())

    def fingerprint_as_given(self) -> dict[str, Any]:
        """Returns what earlier versions gave as `fingerprint`: paths are spelled as they were given."""
        return self._described(self._reader.fingerprint_as_given())

    def digest(self) -> str:
        """Returns a hexadecimal digest of the names, sizes and some contents of the files, and of the labels.

        Copies of a folder have the same digest.
        """
        described = self._described(self._reader.content())
        if self.known_labels is not None:
            described["labels"] = self.known_labels.tolist()
        return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()

    def _described(self, store: dict[str, Any]) -> dict[str, Any]:
        return {
            "store": store,
            "numbers": self._numbers.tolist(),
            "decoding": _DECODING_VERSION,
            "image_size": self.image_size,
            "num_channels": self.num_channels,
        }


def resize_images(images: npt.ArrayLike, size: int) -> UInt8Images:
    """Resizes pictures to squares: centre crop to the shorter side, then Pillow's Hamming filter.

    The paper does not state its filter. Hamming's weights are positive, so edges do not ring and flat regions stay
    flat, which matters with few palette colours. It is nearly as sharp as BOX without shifting edges at fractional
    ratios.

    Args:
        images: uint8 array `(B, H, W, C)`.
        size: int. Side in pixels.

    Returns:
        uint8 array `(B, size, size, C)`.

    Raises:
        ValueError: if `images` has another shape or dtype, or `size` is not positive.
        ImportError: if Pillow is absent.

    Example:
    ```python
    small = resize_images(images, 16)
    ```
    """
    array = check_images(images)
    if array.ndim != 4:
        raise ValueError(f"`images` must have shape (B, H, W, C). Received: shape {array.shape}")
    size = check_integer("size", size)
    height, width, channels = array.shape[1:]
    if height == width == size:
        return array
    pillow = import_pillow()
    pictures = (pillow.fromarray(image[..., 0] if channels == 1 else image) for image in array)
    return np.stack([_decode(pillow, picture, size, None, channels) for picture in pictures])


def import_pillow() -> Any:
    """Imports `PIL.Image`; the error names the extra to install."""
    try:
        from PIL import Image
    except ImportError as error:
        raise ImportError("Reading pictures needs Pillow: pip install 'keras_igpt[data]'") from error
    return Image


def heic_is_readable() -> bool:
    """Whether pillow-heif is installed, which reads HEIC pictures."""
    return util.find_spec("pillow_heif") is not None


@contextmanager
def open_picture(encoded: bytes, name: str, remedy: str = "") -> Iterator[Any]:
    """Opens a picture and reads only its header; errors inside the block become a `ValueError` with its name."""
    pillow = import_pillow()
    from PIL import UnidentifiedImageError

    formats: tuple[str, ...] = _FORMATS
    if encoded[4:12] in _HEIC_BEGINNINGS:
        if not heic_is_readable():
            raise ValueError(
                "Pictures must be readable, and HEIC ones need pillow-heif: pip install 'keras_igpt[heic]'. "
                f"Received: {name}"
            )
        from pillow_heif import register_heif_opener

        register_heif_opener()
        formats = ("HEIF",)
    try:
        with pillow.open(io.BytesIO(encoded), formats=formats) as picture:
            yield picture
    except UnidentifiedImageError as error:
        raise ValueError(
            f"Pictures must be readable{remedy}. Received: {name} (damaged, or none of {', '.join(_FORMATS)})"
        ) from error
    except MemoryError:
        raise
    # What Pillow raises on damaged data is not documented: SyntaxError for some PNG, TypeError for some TIFF files.
    except Exception as error:
        raise ValueError(f"Pictures must be readable{remedy}. Received: {name} ({error})") from error


def decode_square(picture: Any, size: int) -> UInt8Images:
    """Decodes the centre square of an open Pillow image as `ImageFiles` does; uint8 `(size, size, 3)`."""
    return _decode(import_pillow(), picture, size, None, 3)


def turn_upright(picture: Any) -> Any:
    """Applies the EXIF orientation; an upright picture is not decoded yet."""
    from PIL import ImageOps

    return ImageOps.exif_transpose(picture) if picture.getexif().get(0x0112) in range(2, 9) else picture


def processors() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def to_eight_bits(pillow: Any, picture: Any, num_channels: int) -> Any:
    """Converts a Pillow image to 8-bit RGB or grey. Transparency is dropped.

    Args:
        pillow: the module `PIL.Image`.
        picture: a Pillow image.
        num_channels: int. 3 for RGB, 1 for grey.

    Returns:
        A Pillow image of mode `"RGB"` or `"L"`.

    Raises:
        ValueError: if its samples are floats.
    """
    if picture.mode == "F":
        raise ValueError("its samples are floats, whose range is unknown")
    mode = "L" if num_channels == 1 else "RGB"
    if picture.mode.startswith("I;16") or picture.mode == "I":
        # Pillow would clip 16-bit samples instead of scaling them.
        picture = pillow.fromarray((np.asarray(picture) >> 8).clip(0, 255).astype(np.uint8))
    if picture.mode != mode:
        picture.info.pop("transparency", None)  # `convert` would warn about it
        picture = picture.convert(mode)
    return picture


def _decode(pillow: Any, picture: Any, size: int | None, window: Window | None, num_channels: int) -> UInt8Images:
    """Decodes a picture and resizes its square `window` (the centre square by default) to `size`."""
    width, height = picture.size
    if window is None and size is not None:
        side = min(width, height)
        window = (float((width - side) // 2), float((height - side) // 2), float(side))
    scale = 1
    if window is not None and size is not None and picture.format == "JPEG":
        # libjpeg decodes at reduced size directly, in effect averaging 2x2, 4x4 or 8x8 pixels.
        stored = picture.size
        wanted = next(times for times in (8, 4, 2, 1) if times == 1 or window[2] >= times * _PIXELS_LEFT * size)
        if picture.draft(None, (stored[0] // wanted, stored[1] // wanted)) is not None:
            scale = wanted
            if picture.size != tuple(-(-length // scale) for length in stored):
                raise ValueError(f"decoded to {picture.size} where {stored} was to be reduced {scale} times")
    picture = to_eight_bits(pillow, picture, num_channels)
    if window is not None and size is not None and (picture.size != (size, size) or window[2] != size):
        left, top, length = window[0] / scale, window[1] / scale, window[2] / scale
        # Rounding must not exceed the picture.
        box = (left, top, min(left + length, picture.width), min(top + length, picture.height))
        picture = picture.resize((size, size), pillow.Resampling.HAMMING, box=box)
    pixels = np.asarray(picture, np.uint8)
    return check_images(pixels.reshape(*pixels.shape[:2], num_channels))
