"""Pictures for the page: those drawn here, those a person uploads, and how they become ones of the model."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import numpy.typing as npt

from keras_igpt.data.image_files import import_pillow, open_picture, resize_images, to_eight_bits, turn_upright
from keras_igpt.inference.language_model import LanguageModel, palette_of
from keras_igpt.palette.color_palette import UInt8Images

FloatArray = npt.NDArray[np.float64]

# A file that is larger is refused while it is uploaded, a picture of more pixels before it is decoded.
MAX_FILE_SIZE = "20mb"
MAX_PIXELS = 50_000_000

# Side of the pictures drawn here, and of an upload where it is shown.
_SIDE = 64
_SHOWN_SIDE = 192


def built_in_pictures() -> dict[str, UInt8Images]:
    """Draws pictures, uint8 `(64, 64, 3)`, by name: from easy to predict to impossible."""
    down, across = np.mgrid[0 : 1 : 1j * _SIDE, 0 : 1 : 1j * _SIDE][..., None]
    sunset = np.where(
        down < 0.6, _mix((60, 50, 110), (255, 160, 70), down / 0.6), _mix((40, 50, 90), (15, 20, 45), down)
    )
    sunset = np.where((_distance(down, across, 0.55, 0.5) < 0.16) & (down < 0.6), (255, 225, 130), sunset)
    hills = _mix((90, 160, 235), (200, 225, 250), down)
    hills = np.where(_distance(1.8 * down, across, 0.45, 0.7) < 0.15, (255, 255, 255), hills)
    hills = np.where(down > 0.6 + 0.1 * np.sin(7 * across), (110, 160, 70), hills)
    hills = np.where(down > 0.75 + 0.08 * np.sin(5 * across + 2), (60, 115, 50), hills)
    ball = np.where(down < 0.65, (225, 220, 210), _mix((170, 150, 130), (130, 110, 90), down))
    shade = np.clip(1.15 - 1.9 * _distance(down, across, 0.35, 0.4), 0.25, 1)
    ball = np.where(_distance(down, across, 0.5, 0.5) < 0.3, shade * (230, 50, 45), ball)
    ship = np.where(down < 0.65, (165, 205, 235), (30, 85, 140))
    ship = np.where((across > 0.5) & (across - 0.5 < 0.6 * (down - 0.15)) & (down < 0.58), (250, 250, 245), ship)
    ship = np.where((down > 0.6) & (down < 0.75) & (abs(across - 0.55) < 0.4 - 1.2 * (down - 0.6)), (125, 60, 40), ship)
    stripes = np.where(np.floor(8 * across) % 2 == 0, (235, 190, 60), (40, 60, 110)) + 0 * down
    noise = np.random.default_rng(0).integers(0, 256, (_SIDE // 8, _SIDE // 8, 3)).repeat(8, axis=0).repeat(8, axis=1)
    drawn = {"sunset": sunset, "hills": hills, "ball": ball, "ship": ship, "stripes": stripes, "noise": noise}
    return {name: pixels.astype(np.uint8) for name, pixels in drawn.items()}


def open_upload(path: str | os.PathLike[str]) -> UInt8Images:
    """Reads an uploaded picture, upright and in colour.

    Args:
        path: a picture's file.

    Returns:
        uint8 array `(H, W, 3)`.

    Raises:
        ValueError: if it is damaged, of another format, or has too many pixels; these are counted before any is read.
    """
    name = Path(path).name
    with open_picture(Path(path).read_bytes(), name) as opened:
        width, height = opened.size
        if width * height <= MAX_PIXELS:
            return np.asarray(to_eight_bits(import_pillow(), turn_upright(opened), 3))
    raise ValueError(
        f"Pictures must have at most {MAX_PIXELS // 10**6} million pixels: make it smaller and upload it again. "
        f"Received: {name} of {width}×{height}"
    )


def centre_square(picture: UInt8Images) -> UInt8Images:
    """Returns the part of a picture `(H, W, 3)` that a model sees, at a size to be shown."""
    side = min(*picture.shape[:2], _SHOWN_SIDE)
    square: UInt8Images = resize_images(picture[None], side)[0]
    return square


def as_model_sees(model: LanguageModel, picture: UInt8Images) -> UInt8Images:
    """Returns the centre square of a picture `(H, W, 3)` in a model's size and colours, uint8 `(S, S, C)`."""
    palette = palette_of(model, without="continue_tokens")
    if palette.num_channels == 1:
        pillow = import_pillow()
        picture = np.asarray(to_eight_bits(pillow, pillow.fromarray(picture), 1))[..., None]
    side = model.backbone.image_size
    seen: UInt8Images = palette.decode(palette.encode(resize_images(picture[None], side)), (side, side))[0]
    return seen


def enlarged(image: UInt8Images, side: int = 192) -> UInt8Images:
    """Returns an image `(H, W, C)` in colour and about `side` pixels large, its pixels repeated."""
    times = max(1, side // image.shape[0])
    return np.repeat(image, 3 // image.shape[-1], axis=-1).repeat(times, axis=0).repeat(times, axis=1)


def _mix(first: tuple[int, ...], second: tuple[int, ...], share: FloatArray) -> FloatArray:
    """Returns colours between two, in rows."""
    mixed: FloatArray = (1 - share) * first + share * np.asarray(second) + np.zeros((1, _SIDE, 1))
    return mixed


def _distance(down: FloatArray, across: FloatArray, row: float, column: float) -> FloatArray:
    return np.hypot(down - row, across - column)
