"""What each tab of the page shows, as arrays and sentences."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from keras_igpt.demo.pictures import enlarged
from keras_igpt.evaluation.attention_maps import attention_maps
from keras_igpt.objectives.causal_lm import ImageGPTCausalLM
from keras_igpt.objectives.masked_lm import ImageGPTMaskedLM
from keras_igpt.palette.color_palette import UInt8Images
from keras_igpt.plotting import hide, hide_rows, pixel_attention

# Images with a label each, in the order in which they are shown.
Labelled = list[tuple[str, UInt8Images]]
Pixel = tuple[int, int]
BoolArray = npt.NDArray[np.bool_]

# Rounds in which a BERT model fills: many, since pixels of one round do not see each other.
_ROUNDS = 64
# Masks of a BERT model's score: at rate 0.15 they leave one pixel in 180 out.
_MASKS = 32
# Orange, which is seen on most pictures and on the heat maps.
_MARK = (255, 122, 0)


@dataclass(frozen=True)
class Drawing:
    """How pixels are drawn; see `ImageGPTCausalLM.generate`."""

    num_samples: int
    temperature: float
    seed: int


def completions(model: ImageGPTCausalLM, picture: UInt8Images, keep_rows: int, drawing: Drawing) -> Labelled:
    """Keeps the first rows of a picture `(S, S, C)` and draws the rest, several times."""
    drawn = model.complete(picture[None], keep_rows=keep_rows, quantize=True, **vars(drawing))[0]
    return _in_a_row(hide_rows(picture, keep_rows), drawn, picture)


def fillings(model: ImageGPTMaskedLM, picture: UInt8Images, hidden: BoolArray, drawing: Drawing) -> Labelled:
    """Redraws the hidden pixels of a picture `(S, S, C)`, several times.

    Raises:
        ValueError: if none is hidden.
    """
    if not hidden.any():
        raise ValueError("Some pixel must be hidden: keep fewer rows, or click two corners of a hole.")
    drawn = model.fill(picture[None], hidden, num_rounds=_ROUNDS, quantize=True, **vars(drawing))[0]
    return _in_a_row(hide(picture, hidden), drawn, picture)


def _in_a_row(seen: UInt8Images, drawn: UInt8Images, original: UInt8Images) -> Labelled:
    numbered = [(f"sample {number}", image) for number, image in enumerate(drawn, start=1)]
    return [("seen", seen), *numbered, ("original", original)]


def rows_hidden(size: int, keep_rows: int) -> BoolArray:
    """Returns what is hidden, bool `(size, size)`, where the first rows are kept."""
    return np.repeat(np.arange(size) >= keep_rows, size).reshape(size, size)


def rectangle_hidden(size: int, corner: Pixel, opposite: Pixel) -> BoolArray:
    """Returns what is hidden, bool `(size, size)`, where a rectangle between two pixels is, both of them in it."""
    (top, bottom), (left, right) = (sorted(ends) for ends in zip(corner, opposite, strict=True))
    hidden = np.zeros((size, size), bool)
    hidden[top : bottom + 1, left : right + 1] = True
    return hidden


@dataclass(frozen=True, eq=False)
class Surprise:
    """How surprising a picture is.

    Attributes:
        bits_per_pixel: float. Mean over the pixels.
        bits: float array `(S, S)`, of each pixel. NaN where no mask of a BERT model hid it.
        uniform: float. Bits of a pixel if all colours were equally probable.
    """

    bits_per_pixel: float
    bits: npt.NDArray[np.floating[Any]]
    uniform: float


def surprise(model: ImageGPTCausalLM | ImageGPTMaskedLM, picture: UInt8Images) -> Surprise:
    """Computes how surprising each pixel of a picture `(S, S, C)` is to a model."""
    masks = {"num_masks": _MASKS} if isinstance(model, ImageGPTMaskedLM) else {}
    scores = model.score(picture[None], per_pixel=True, **masks)
    assert scores.surprise is not None
    bits = scores.surprise[0] / math.log(2)
    return Surprise(float(scores.bits_per_pixel[0]), bits, math.log2(model.backbone.vocabulary_size))


def attention(
    model: ImageGPTCausalLM | ImageGPTMaskedLM, picture: UInt8Images, block: int, pixel: Pixel
) -> tuple[npt.NDArray[Any], npt.NDArray[Any] | None]:
    """Computes where each head of a block looks to predict a pixel of a picture `(S, S, C)`, hidden from a BERT model.

    Returns:
        Float array `(N, S, S)`, and the share `(N,)` of the start vector; None for a BERT model, which has none.
    """
    size = model.backbone.image_size
    causal = isinstance(model, ImageGPTCausalLM)
    row, column = pixel
    hidden = None if causal else rectangle_hidden(size, pixel, pixel).reshape(1, -1)
    maps = attention_maps(model, picture[None], block, position_mask=hidden)[0]
    weights, starts = pixel_attention(maps, (row, column), (size, size), shifted=causal)
    return weights, starts if causal else None


def heat_map(values: npt.NDArray[Any], highest: float) -> UInt8Images:
    """Returns values `(H, W)` in the colours of `magma` from 0 to `highest`, uint8 `(H, W, 3)`; NaN is grey."""
    from matplotlib import colormaps

    shares = np.clip(values / max(highest, 1e-12), 0, 1)
    colors = np.asarray(colormaps["magma"](np.nan_to_num(shares), bytes=True))[..., :3]
    return hide(colors, np.isnan(values))


def marked(image: UInt8Images, pixel: Pixel, side: int = 192) -> UInt8Images:
    """Returns an image `(S, S, C)` enlarged to about `side` pixels with a frame around one of its pixels."""
    large = enlarged(image, side).copy()
    times = large.shape[0] // image.shape[0]
    top, left = (times * place for place in pixel)
    inside = large[top : top + times, left : left + times].copy()
    large[top : top + times, left : left + times] = _MARK
    width = max(1, times // 8)
    if times > 2 * width:
        large[top + width : top + times - width, left + width : left + times - width] = inside[
            width:-width, width:-width
        ]
    return large


def pixel_at(place: tuple[float, float], shown: int, size: int) -> Pixel:
    """Returns the row and column of the pixel at `(x, y)` of an image that is shown `shown` pixels large."""
    column, row = (min(size - 1, max(0, int(size * part // shown))) for part in place)
    return row, column
