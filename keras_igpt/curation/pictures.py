"""Web pictures one by one: decoded to their centre squares, or refused for a reason."""

from __future__ import annotations

import os
from collections.abc import Iterator
from enum import IntEnum
from pathlib import Path

import numpy as np
import numpy.typing as npt

from keras_igpt.curation.shards import Member, Reading, find_shards, read_shard
from keras_igpt.data.examples import LabeledImages
from keras_igpt.data.folders import files_in, pictures_in
from keras_igpt.data.image_files import ImageFiles, decode_square, import_pillow, open_picture, turn_upright
from keras_igpt.palette.color_palette import UInt8Images

Pictures = LabeledImages | ImageFiles | str | os.PathLike[str]

# Side of the pictures that are measured and hashed.
HASHED_SIZE = 32

LUMA = np.array([0.299, 0.587, 0.114], np.float32)

# What `artificial` measures at 32x32 pixels. Of ImageNet's and CIFAR-10's pictures these limits refuse 1 to 2%.
_LEAST_DEVIATION = 8.0  # grey levels that the best smooth surface leaves
_CORRELATION = 0.6  # of neighbours
_EQUAL_NEIGHBORS = 0.6  # share whose channels differ by 1 at most

# Pixels of a picture of a trusted set: what Pillow takes without a warning.
_TRUSTED_PIXELS = 89_478_485

# The formats of animations.
_ANIMATED = ("GIF", "PNG", "WEBP")


class Outcome(IntEnum):
    """What became of a picture. The numbers are in files.

    Attributes:
        KEPT: it is in the set.
        BROKEN: it cannot be decoded, or not all of it is there.
        HUGE: it has more pixels than are allowed, which its header says.
        TINY: its shorter side is too short.
        ANIMATED: it has several frames.
        PLAIN: it is flat or a gradient, or nearly so.
        ROUGH: its neighbouring pixels have little in common, as in noise and small print.
        GRAPHIC: most of its neighbouring pixels are equal, as in charts and screens.
        EVALUATION: it is a near-duplicate of a picture of an evaluation set.
        DISSIMILAR: it resembles no picture of the reference.
        DUPLICATE: it is a near-duplicate of a picture that is kept.
    """

    KEPT = 0
    BROKEN = 1
    HUGE = 2
    TINY = 3
    ANIMATED = 4
    PLAIN = 5
    ROUGH = 6
    GRAPHIC = 7
    EVALUATION = 8
    DISSIMILAR = 9
    DUPLICATE = 10


def read_square(member: Member, size: int, min_side: int, max_pixels: int) -> UInt8Images | Outcome:
    """Decodes the centre square of a picture, or says why not.

    Args:
        member: the encoded picture.
        size: int. Side of the result in pixels.
        min_side: int. Least shorter side.
        max_pixels: int. Most pixels.

    Returns:
        uint8 array `(size, size, 3)`, or `BROKEN`, `HUGE`, `TINY` or `ANIMATED`.
    """
    if member.data is None:
        return Outcome.HUGE if member.whole else Outcome.BROKEN
    pillow = import_pillow()
    try:
        with open_picture(member.data, member.key) as picture:
            width, height = picture.size
            if width * height > max_pixels:
                return Outcome.HUGE
            if min(width, height) < min_side:
                return Outcome.TINY
            # The frames of a JPEG are views of one scene, as telephones write them.
            if picture.format in _ANIMATED and picture.n_frames > 1:
                return Outcome.ANIMATED
            return decode_square(turn_upright(picture), size)
    except MemoryError:
        raise
    # What decoders raise on damaged data beside the errors that `open_picture` knows is not documented.
    except Exception as error:
        return Outcome.HUGE if isinstance(error.__cause__, pillow.DecompressionBombError) else Outcome.BROKEN


def _trusted_members(path: Path, argument: str) -> Iterator[Member]:
    """Reads a folder as `load_unlabeled_folder` finds its pictures, so that none is passed over, or tar files."""
    if path.is_dir() and not any(file.suffix == ".tar" for file, _ in files_in(path, argument)):
        for file in pictures_in(path, argument):
            encoded = file.read_bytes()
            yield Member(file.relative_to(path).as_posix(), 0, len(encoded), encoded)
        return
    for shard in find_shards(path, argument):
        reading = Reading()
        yield from read_shard(shard, reading)
        if reading.fault:
            raise ValueError(f"{shard.path} must be whole. Received: a tar file that is not ({reading.fault})")


def pictures_of(pictures: Pictures, size: int, batch_size: int, argument: str) -> Iterator[UInt8Images]:
    """Gives the pictures of a trusted set some at a time, those of files at their centre squares.

    Args:
        pictures: `LabeledImages`, `ImageFiles`, or a folder or tar file of pictures.
        size: int. Side that pictures of a folder or tar file are reduced to. Those of a data set are as it has them.
        batch_size: int. Pictures at a time.
        argument: str. What errors call a folder.

    Yields:
        uint8 array `(B, H, W, 3)`.

    Raises:
        ValueError: if a picture cannot be read or has no colour.

    Warns:
        UserWarning: if a folder has files that are left out; see `load_unlabeled_folder`.
    """
    if isinstance(pictures, (str, os.PathLike)):
        squares: list[UInt8Images] = []
        for member in _trusted_members(Path(pictures), argument):
            square = read_square(member, size, 1, _TRUSTED_PIXELS)
            if isinstance(square, Outcome):
                raise ValueError(f"{pictures} must hold readable pictures. Received: {member.key} ({square.name})")
            squares.append(square)
            if len(squares) == batch_size:
                yield np.stack(squares)
                squares = []
        if squares:
            yield np.stack(squares)
        return
    if not isinstance(pictures, (LabeledImages, ImageFiles)):
        raise ValueError(
            "Pictures must be LabeledImages, ImageFiles, or a folder or tar file of pictures. "
            f"Received: {type(pictures).__name__}"
        )
    for start in range(0, len(pictures), batch_size):
        rows = range(start, min(start + batch_size, len(pictures)))
        images = (pictures.load_rows(rows) if isinstance(pictures, ImageFiles) else pictures.take(rows)).images
        if images.shape[-1] != 3:
            raise ValueError(f"Pictures must have 3 channels. Received: {images.shape[-1]}")
        yield images


def artificial(squares: UInt8Images) -> npt.NDArray[np.uint8]:
    """Finds pictures that are no photographs by three cheap measures, whatever they are compared with later.

    Similarity cannot do this alone: a small model's features of a page of text are those of a bright background.

    Args:
        squares: uint8 array `(B, 32, 32, 3)`.

    Returns:
        uint8 array `(B,)`: `PLAIN`, `ROUGH` or `GRAPHIC`, or 0 (`KEPT`) for what may be a photograph.
    """
    grey = squares.astype(np.float32) @ LUMA
    deviations = grey - grey.mean(axis=(1, 2), keepdims=True)
    variance = np.square(deviations).mean(axis=(1, 2))
    products = (
        (deviations[:, 1:] * deviations[:, :-1]).mean(axis=(1, 2))
        + (deviations[:, :, 1:] * deviations[:, :, :-1]).mean(axis=(1, 2))
    ) / 2
    outcomes = np.where(_share_of_equal_neighbors(squares) > _EQUAL_NEIGHBORS, Outcome.GRAPHIC, Outcome.KEPT)
    outcomes = np.where(products < _CORRELATION * variance, Outcome.ROUGH, outcomes)
    plain = _deviation_from_gradients(grey) < _LEAST_DEVIATION
    return np.where(plain, Outcome.PLAIN, outcomes).astype(np.uint8)


def _share_of_equal_neighbors(squares: UInt8Images) -> npt.NDArray[np.float64]:
    values = squares.astype(np.int16)
    steps = [np.abs(np.diff(values, axis=axis)).max(axis=-1).reshape(len(values), -1) for axis in (1, 2)]
    share: npt.NDArray[np.float64] = (np.concatenate(steps, axis=1) <= 1).mean(axis=1)
    return share


def _deviation_from_gradients(grey: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Standard deviation of what a polynomial of second degree leaves of each picture."""
    rows, columns = (part.ravel() / len(part) - 0.5 for part in np.mgrid[: grey.shape[1], : grey.shape[2]])
    terms = np.stack([np.ones_like(rows), rows, columns, rows * columns, rows**2, columns**2], axis=1)
    basis = np.linalg.qr(terms)[0].astype(np.float32)
    flat = grey.reshape(len(grey), -1)
    deviation: npt.NDArray[np.float32] = (flat - (flat @ basis) @ basis.T).std(axis=1)
    return deviation
