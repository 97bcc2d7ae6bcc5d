"""HTML of the page: images in a grid, a scale of colours, a line of text."""

from __future__ import annotations

import base64
import html
import io

import numpy as np

from keras_igpt.data.image_files import import_pillow
from keras_igpt.demo.pictures import enlarged
from keras_igpt.demo.views import Labelled, heat_map
from keras_igpt.palette.color_palette import UInt8Images

# Pixels stay squares, and nothing is fetched from elsewhere.
STYLE = """
.gradio-container {max-width: 1180px !important; margin: 0 auto !important}
.igpt-pixels .icon-button-wrapper {display: none}
.igpt-grid {display: flex; flex-wrap: wrap; gap: 0.9rem 0.75rem; margin: 0.4rem 0}
.igpt-grid figure {margin: 0; max-width: 100%}
.igpt-grid img {width: 100%; height: auto; display: block; border-radius: 4px}
.igpt-grid figcaption {font-size: 0.8rem; margin-top: 0.25rem; opacity: 0.7}
.igpt-curve img {width: 100%; max-width: 42rem; border-radius: 4px}
.igpt-scale {display: flex; align-items: center; gap: 0.5rem; font-size: 0.8rem; margin-top: 0.5rem}
.igpt-scale img {width: 14rem; height: 0.7rem; border-radius: 2px}
.igpt-grid img, .igpt-pixels img {image-rendering: pixelated}
.igpt-pixels img {cursor: crosshair}
.igpt-text {opacity: 0.75; margin: 0.2rem 0}
#pictures .grid-wrap {height: auto; min-height: 0; max-height: none; overflow: hidden}
#pictures .grid-container {grid-template-columns: repeat(3, minmax(0, 1fr)); height: auto}
#pictures .thumbnail-item {width: 100%}
"""


def png_address(image: UInt8Images) -> str:
    """Returns an image `(H, W, 3)` as a `data:` address."""
    written = io.BytesIO()
    import_pillow().fromarray(image).save(written, format="PNG")
    return address_of(written.getvalue())


def address_of(png: bytes) -> str:
    """Returns the content of a PNG file as a `data:` address."""
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def grid(images: Labelled, width: float = 7.2) -> str:
    """Returns labelled images in a grid, enlarged without blurring to `width` times the height of the text."""
    figures = "".join(
        f'<figure style="width: {width}rem"><img src="{png_address(enlarged(image))}" alt="{html.escape(label)}">'
        f"<figcaption>{html.escape(label)}</figcaption></figure>"
        for label, image in images
    )
    return f'<div class="igpt-grid">{figures}</div>'


def scale(highest: float, unit: str) -> str:
    """Returns the scale of a heat map from 0 to `highest`."""
    colors = png_address(heat_map(np.linspace(0, 1, 256)[None], 1.0))
    return f'<div class="igpt-scale">0 <img src="{colors}" alt="scale"> {highest:.1f} {html.escape(unit)}</div>'


def text(sentence: str) -> str:
    """Returns a paragraph."""
    return f'<p class="igpt-text">{html.escape(sentence)}</p>'
