"""Pictures and tokens as people hand them in, made to fit a model."""

from __future__ import annotations

import warnings
from typing import Any

import keras
import numpy as np
import numpy.typing as npt

from keras_igpt.data.batches import EvaluationBatches
from keras_igpt.data.examples import LabeledTokens, check_labeled
from keras_igpt.data.image_files import import_pillow, resize_images, to_eight_bits
from keras_igpt.data.token_source import LabeledPictureExamples, PictureExamples
from keras_igpt.data.unlabeled import UnlabeledTokens
from keras_igpt.palette.color_palette import UInt8Images, check_images

LabeledPictures = LabeledPictureExamples | EvaluationBatches | tuple[npt.ArrayLike, npt.ArrayLike]
Pictures = PictureExamples | EvaluationBatches | tuple[npt.ArrayLike, npt.ArrayLike] | npt.ArrayLike


def as_examples(language_model: Any, given: Pictures) -> PictureExamples:
    """Returns pictures as examples that fit the model, or says why they do not.

    Args:
        language_model: an `ImageGPTCausalLM` or `ImageGPTMaskedLM`.
        given: examples of pictures or tokens, or `EvaluationBatches` of them; uint8 images `(B, H, W, C)` or token ids
            `(B, T)`; or a pair of these and integer labels `(B,)`.

    Returns:
        Examples; of arrays, `LabeledTokens` or `UnlabeledTokens`.

    Raises:
        ValueError: if they do not fit the model, or inputs and labels each other.
    """
    colors = language_model.backbone.vocabulary_size
    if isinstance(given, EvaluationBatches):
        given = given.examples
    if isinstance(given, keras.utils.PyDataset):
        raise ValueError(
            "`inputs` must be pictures, token ids, examples or EvaluationBatches, which end. "
            f"Received: {type(given).__name__}"
        )
    if isinstance(given, (LabeledTokens, UnlabeledTokens)) and given.num_colors != colors:
        raise ValueError(f"`inputs` must be tokens of {colors} colours. Received: {given.num_colors} colours")
    if isinstance(given, PictureExamples):
        first = EvaluationBatches(given.take(range(min(1, len(given)))), language_model.palette, 1)
        language_model.check_token_arrays(first[0][0], "inputs", padded=True)
        return given
    inputs, labels = given if isinstance(given, tuple) else (given, None)
    token_ids = language_model.token_array(inputs)
    if labels is None:
        return UnlabeledTokens(token_ids, colors)
    return LabeledTokens(token_ids, np.asarray(labels), colors)


def as_labeled_examples(language_model: Any, given: LabeledPictures, name: str) -> LabeledPictureExamples:
    """Returns labelled pictures as examples that fit the model, or says why they do not.

    Args:
        language_model: as in `as_examples`.
        given: as in `as_examples`, with labels.
        name: str. What the caller calls them.

    Returns:
        Examples with labels.

    Raises:
        ValueError: as `as_examples`, and if there are no labels.
    """
    if not isinstance(given, (tuple, keras.utils.PyDataset)):
        check_labeled(name, given)
    examples = as_examples(language_model, given)
    check_labeled(name, examples)
    assert isinstance(examples, LabeledPictureExamples)
    return examples


def pictures_of_size(
    images: Any, image_size: int, num_channels: int, name: str = "images", stacklevel: int = 3
) -> UInt8Images:
    """Makes one batch of a model's size of whatever pictures are given; says so where it has to resize.

    Args:
        images: uint8 array `(B, H, W, C)` or `(H, W, C)`, a Pillow image, or a list of these single pictures of any
            sizes. Other sizes are cropped to their centre squares and resized, as `resize_images` does; transparency
            is dropped.
        image_size: int. Side wanted.
        num_channels: int. 3 for colour, or 1 for grey. Pillow images are converted, arrays must have them.
        name: str. What the caller calls them.
        stacklevel: int. Of the warning, as `warnings.warn` takes it.

    Returns:
        uint8 array `(B, image_size, image_size, num_channels)`.

    Raises:
        ValueError: if there is no picture, or one is of another kind.
        ImportError: if something has to be resized and Pillow is absent.

    Warns:
        UserWarning: if pictures are resized.
    """
    if isinstance(images, np.ndarray) and images.ndim == 4:
        batches = [check_images(images, name)]
    else:
        several = list(images) if isinstance(images, (list, tuple)) else [images]
        batches = [_one_picture(picture, num_channels, name)[None] for picture in several]
    sizes = sorted({batch.shape[1:3] for batch in batches})
    channels = {batch.shape[-1] for batch in batches}
    if not batches or channels != {num_channels} or any(batch.ndim != 4 for batch in batches):
        raise ValueError(
            f"`{name}` must be pictures of {num_channels} channel(s): a uint8 array (B, H, W, {num_channels}), or a "
            f"list of arrays or Pillow images. Received: shapes {sorted({batch.shape for batch in batches})}"
        )
    resized = np.concatenate([resize_images(batch, image_size) for batch in batches])
    if sizes != [(image_size, image_size)]:
        found = ", ".join(f"{width}x{height}" for height, width in sizes[:3])
        warnings.warn(
            f"Pictures of {found}{' and others' if len(sizes) > 3 else ''} pixels (width x height) were cropped to "
            f"their centre squares and resized to the model's {image_size}x{image_size}.",
            stacklevel=stacklevel,
        )
    return resized


def _one_picture(picture: Any, num_channels: int, name: str) -> UInt8Images:
    """A picture as an array `(H, W, C)`."""
    mode = getattr(picture, "mode", None)
    if isinstance(mode, str):
        pillow = import_pillow()
        from PIL import ImageOps

        try:
            # A new picture: that of the caller stays as it is.
            pixels = np.asarray(to_eight_bits(pillow, ImageOps.exif_transpose(picture), num_channels))
        except ValueError as error:
            raise ValueError(f"`{name}` must be whole numbers. Received: a Pillow image of mode {mode!r}") from error
        return check_images(pixels.reshape(*pixels.shape[:2], num_channels))
    array = check_images(picture, name)
    if array.ndim != 3:
        raise ValueError(f"`{name}` must hold pictures (H, W, C). Received: one of shape {array.shape}")
    return array
