"""Checks and converts the pictures and tokens that users pass to a model."""

from __future__ import annotations

import inspect
import os
import warnings
from pathlib import Path
from typing import Any, Protocol

import keras
import numpy as np
import numpy.typing as npt
from keras import ops

from keras_igpt.data.batches import EvaluationBatches
from keras_igpt.data.checked import batches_of
from keras_igpt.data.examples import LabeledImages, LabeledTokens, check_labeled
from keras_igpt.data.image_files import ImageFiles, import_pillow, open_picture, resize_images, to_eight_bits
from keras_igpt.data.token_shards import TokenShards
from keras_igpt.data.token_source import LabeledPictureExamples, PictureExamples
from keras_igpt.data.unlabeled import UnlabeledImages, UnlabeledTokens
from keras_igpt.palette.color_palette import ColorPalette, TokenIds, UInt8Images, check_images, check_token_ids

# `Any` stands for Pillow images, paths, and lists of pictures.
Pictures = PictureExamples | EvaluationBatches | npt.ArrayLike | Any
LabeledPictures = LabeledPictureExamples | EvaluationBatches | tuple[Pictures, npt.ArrayLike]
TokenArray = npt.NDArray[np.integer[Any]]


class _Sizes(Protocol):
    """The sizes of a backbone that inputs must fit."""

    @property
    def image_size(self) -> int: ...

    @property
    def vocabulary_size(self) -> int: ...


class PictureModel(Protocol):
    """The part of a model that its inputs must fit; all models of this package have it."""

    @property
    def backbone(self) -> _Sizes:
        """The backbone."""

    @property
    def palette(self) -> ColorPalette | None:
        """The palette that encodes pictures, or None."""


def as_examples(model: PictureModel, given: Pictures | LabeledPictures, name: str = "inputs") -> PictureExamples:
    """Returns pictures as examples that fit a model.

    Args:
        model: the model.
        given: uint8 images `(B, H, W, C)` or `(H, W, C)`, a Pillow image, the path of a picture, or a list of single
            pictures; token ids `(B, T)`; examples with or without labels, or `EvaluationBatches` of these; a pair of
            images or token ids and integer labels `(B,)`; or a data set of Keras, TensorFlow, PyTorch or Grain whose
            batches are any of these, which is read into memory.
        name: str. The caller's argument name, for errors.

    Returns:
        `LabeledTokens` or `UnlabeledTokens`; for files, `ImageFiles` or `UnlabeledImages`.

    Raises:
        ValueError: if the inputs do not fit the model or the labels, or a file is no readable picture.
        OSError: if a file cannot be read.

    Warns:
        UserWarning: if pictures are resized.
    """
    labels: Any = None
    # Two pictures are no pair of inputs and labels.
    if isinstance(given, tuple) and len(given) == 2 and not _is_picture(given[1]):
        given, labels = given
    read = _collected(model, given, name)
    if labels is not None and isinstance(read, PictureExamples):
        raise ValueError(
            f"`{name}` must be a pair of images or token ids and labels, or examples alone. "
            f"Received: {type(given).__name__} and labels"
        )
    given = read
    if isinstance(given, LabeledImages):
        labels = given.labels
    fitted = _fitted(model, given, name)
    if isinstance(given, (LabeledTokens, UnlabeledTokens, ImageFiles)):
        return given
    if isinstance(fitted, ImageFiles):
        return UnlabeledImages(fitted)
    assert not isinstance(fitted, TokenShards)
    if fitted.ndim == 4:
        palette = _palette_of(model, name)
        examples = UnlabeledImages(fitted) if labels is None else LabeledImages(fitted, np.asarray(labels))
        return examples.encode(palette)
    colors = model.backbone.vocabulary_size
    return UnlabeledTokens(fitted, colors) if labels is None else LabeledTokens(fitted, np.asarray(labels), colors)


def as_labeled_examples(model: PictureModel, given: LabeledPictures, name: str) -> LabeledPictureExamples:
    """Returns inputs that `as_examples` accepts as examples with labels; raises ValueError if they have none."""
    if not isinstance(given, tuple):
        given = _collected(model, given, name)
        check_labeled(name, given)
    examples = as_examples(model, given, name)
    check_labeled(name, examples)
    assert isinstance(examples, LabeledPictureExamples)
    return examples


def as_token_ids(model: PictureModel, given: Pictures, name: str = "inputs") -> TokenArray:
    """Returns inputs that `as_examples` accepts as token ids `(B, T)` in memory."""
    fitted = _in_memory(_fitted(model, given, name))
    return fitted if fitted.ndim == 2 else _palette_of(model, name).encode(fitted)


def as_pictures(model: PictureModel, given: Pictures, name: str = "images") -> UInt8Images:
    """Returns inputs that `as_examples` accepts as a uint8 array `(B, H, W, C)` of the model's size."""
    fitted = _in_memory(_fitted(model, given, name))
    return fitted if fitted.ndim == 4 else _palette_of(model, name).decode(fitted)


def as_pictures_and_tokens(model: PictureModel, given: Pictures) -> tuple[UInt8Images, TokenIds]:
    """Returns `images` as `as_pictures` does, and the tokens that the model is to see: those given, if they were."""
    fitted = _in_memory(_fitted(model, given, "images"))
    palette = _palette_of(model, "images")
    if fitted.ndim == 4:
        return fitted, palette.encode(fitted)
    return palette.decode(fitted), fitted.astype(np.int32)


def check_palette(model: PictureModel, palette: ColorPalette | None, name: str) -> None:
    """Raises `ValueError` if tokens are of another palette than the model's, where both are known."""
    if palette is not None and model.palette is not None and palette != model.palette:
        raise ValueError(
            f"`{name}` must be in the colours of the model's own palette: make it with `model.palette`. "
            f"Received: another palette, of {palette.num_colors} colours"
        )


def pictures_of_size(images: Any, image_size: int, num_channels: int, name: str = "images") -> UInt8Images:
    """Returns pictures as one array of the given size; other sizes are resized with a warning.

    Args:
        images: uint8 array `(B, H, W, C)` or `(H, W, C)`, a Pillow image, the path of a picture, or a list of single
            pictures of any sizes. Other sizes are cropped to their centre squares and resized, as by `resize_images`.
        image_size: int. Target side.
        num_channels: int. 3 for colour, 1 for grey. Pillow images and files are converted; arrays must have this many.
        name: str. The caller's argument name, for errors.

    Returns:
        uint8 array `(B, image_size, image_size, num_channels)`.

    Raises:
        ValueError: if there is no picture, or one has another type or shape.
        ImportError: if pictures have to be resized and Pillow is absent.

    Warns:
        UserWarning: if pictures are resized.
    """
    whole = getattr(images, "ndim", 0) == 4
    several = list(images) if isinstance(images, (list, tuple)) else [images]
    found: set[tuple[int, ...]] = set()
    resized = []
    # One by one: large pictures in files are never all in memory.
    for part in several:
        batch = check_images(_on_host(part), name) if whole else _one_picture(part, num_channels, name)[None]
        if batch.shape[-1] != num_channels:
            raise ValueError(
                f"`{name}` must be pictures of {num_channels} channel(s): a uint8 array (B, H, W, {num_channels}), or "
                f"a list of arrays, Pillow images or paths. Received: shape {batch.shape}"
            )
        found.add(batch.shape[1:3])
        resized.append(resize_images(batch, image_size))
    sizes = sorted(found)
    if sizes != [(image_size, image_size)]:
        listed = ", ".join(f"{width}x{height}" for height, width in sizes[:3])
        warnings.warn(
            f"Pictures of {listed}{' and others' if len(sizes) > 3 else ''} pixels (width x height) were cropped to "
            f"their centre squares and resized to the model's {image_size}x{image_size}.",
            stacklevel=_levels_to_caller(),
        )
    return resized[0] if len(resized) == 1 else np.concatenate(resized)


def _collected(model: PictureModel, given: Any, name: str) -> Any:
    """Returns the examples of a data set, read into memory; anything else as it is."""
    if isinstance(given, EvaluationBatches):
        check_palette(model, given.palette, name)
        return given.examples
    batches = batches_of(given, name)
    if batches is None:
        return given
    inputs, labels = [], []
    for batch in batches:
        x, y, weights = keras.utils.unpack_x_y_sample_weight(batch)
        if weights is not None:
            raise ValueError(
                f"`{name}` must be batches of pictures or token ids, with labels or without. "
                f"Received: {type(given).__name__} with sample weights"
            )
        inputs.append(_in_memory(_fitted(model, x, name)))
        labels += [] if y is None else [np.atleast_1d(_on_host(y))]
    if not inputs or len(labels) not in (0, len(inputs)):
        received = "labels in some batches only" if inputs else f"{type(given).__name__} with none"
        raise ValueError(f"`{name}` must have at least one batch, and labels in all or in none. Received: {received}")
    joined = np.concatenate(inputs)
    if not labels:
        return UnlabeledImages(joined) if joined.ndim == 4 else UnlabeledTokens(joined, model.backbone.vocabulary_size)
    classes = np.concatenate(labels)
    if joined.ndim == 4:
        return LabeledImages(joined, classes)
    return LabeledTokens(joined, classes, model.backbone.vocabulary_size)


def _in_memory(fitted: npt.NDArray[Any] | ImageFiles | TokenShards) -> npt.NDArray[Any]:
    if isinstance(fitted, ImageFiles):
        return fitted.load().images
    return fitted[np.arange(len(fitted))] if isinstance(fitted, TokenShards) else fitted


def _fitted(model: PictureModel, given: Any, name: str) -> npt.NDArray[Any] | ImageFiles | TokenShards:
    """Returns pictures `(B, H, W, C)` of the model's size, token ids `(B, T)` or files; raises if they do not fit."""
    side, colors = model.backbone.image_size, model.backbone.vocabulary_size
    given = _collected(model, given, name)
    if isinstance(given, UnlabeledImages):
        given = given.images
    if isinstance(given, ImageFiles):
        channels = _palette_of(model, name).num_channels
        if not len(given) or (given.image_size, given.num_channels) != (side, channels):
            raise ValueError(
                f"`{name}` must be files with image_size={side} and num_channels={channels}. Received: {given!r}"
            )
        return given
    tokens_given = isinstance(given, (LabeledTokens, UnlabeledTokens))
    if tokens_given and given.num_colors != colors:
        raise ValueError(f"`{name}` must be tokens of {colors} colours. Received: {given.num_colors} colours")
    if isinstance(given, UnlabeledTokens):
        check_palette(model, given.palette, name)
    if isinstance(given, LabeledImages):
        given = given.images
    if are_pictures(given):
        return pictures_of_size(given, side, _palette_of(model, name).num_channels, name)
    token_ids = given.token_ids if tokens_given else array_of(given)
    if token_ids is None or len(token_ids.shape) != 2 or token_ids.shape[1] != side**2 or not len(token_ids):
        received = type(given).__name__ if token_ids is None else f"shape {token_ids.shape}"
        raise ValueError(
            f"`{name}` must be pictures (a uint8 array (B, H, W, C) or (H, W, C), a Pillow image, a path, or a list of "
            f"single pictures), token ids (B, {side**2}), examples with or without labels, or a data set of batches. "
            f"Received: {received}"
        )
    # Examples checked their tokens on construction.
    return token_ids if tokens_given else check_token_ids(token_ids, colors, name)


def are_pictures(given: Any) -> bool:
    """Whether it is a Pillow image, a path, an array of one or more pictures, or a list of single ones of any size."""
    return _is_picture(given) or (isinstance(given, (list, tuple)) and any(map(_is_picture, given)))


def array_of(values: Any) -> npt.NDArray[Any] | None:
    """Returns tensors, arrays and lists as a NumPy array; None for anything else."""
    if ops.is_tensor(values) or hasattr(values, "__array__"):
        return _on_host(values)
    if not isinstance(values, (list, tuple)):
        return None
    try:
        return np.asarray(values)
    except ValueError:  # rows of several lengths
        return np.empty(len(values), object)


def _palette_of(model: PictureModel, name: str) -> ColorPalette:
    if model.palette is None:
        raise ValueError(
            f"`{name}` must be token ids, since the model has no palette to turn pictures into tokens, or tokens into "
            "pictures. Received: a model with palette=None"
        )
    return model.palette


def _is_pillow(given: Any) -> bool:
    return isinstance(getattr(given, "mode", None), str)


def _is_picture(given: Any) -> bool:
    """Whether it is a Pillow image, a path, or an array of one or more pictures."""
    return _is_pillow(given) or isinstance(given, (str, os.PathLike)) or getattr(given, "ndim", 0) in (3, 4)


def _on_host(values: Any) -> npt.NDArray[Any]:
    return np.asarray(ops.convert_to_numpy(values) if ops.is_tensor(values) else values)


def _one_picture(picture: Any, num_channels: int, name: str) -> UInt8Images:
    """Returns a picture as an array `(H, W, C)`."""
    if isinstance(picture, (str, os.PathLike)):
        with open_picture(Path(picture).read_bytes(), os.fspath(picture)) as opened:
            return _upright_pixels(opened, num_channels)
    if _is_pillow(picture):
        try:
            return _upright_pixels(picture, num_channels)
        except ValueError as error:
            mode = picture.mode
            raise ValueError(f"`{name}` must be whole numbers. Received: a Pillow image of mode {mode!r}") from error
    array = check_images(_on_host(picture), name)
    if array.ndim != 3:
        raise ValueError(f"`{name}` must hold pictures (H, W, C). Received: one of shape {array.shape}")
    return array


def _upright_pixels(picture: Any, num_channels: int) -> UInt8Images:
    """Returns a Pillow image, which stays as it is, as an array `(H, W, C)`."""
    pillow = import_pillow()
    from PIL import ImageOps

    # `exif_transpose` copies.
    pixels = np.asarray(to_eight_bits(pillow, ImageOps.exif_transpose(picture), num_channels))
    return check_images(pixels.reshape(*pixels.shape[:2], num_channels))


def _levels_to_caller() -> int:
    """Returns the `stacklevel` of the code that called this package."""
    frame, level = inspect.currentframe(), 0
    while frame is not None and frame.f_globals.get("__name__", "").startswith("keras_igpt."):
        frame, level = frame.f_back, level + 1
    return level
