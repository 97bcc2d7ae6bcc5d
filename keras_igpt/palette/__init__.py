"""Colours as tokens: a fixed list of colours, and the nearest of them for each pixel."""

from keras_igpt.palette.color_palette import (
    ColorPalette,
    QuantizationReport,
    TokenIds,
    UInt8Images,
    check_color_palette,
    check_images,
    check_token_ids,
)

__all__ = [
    "ColorPalette",
    "QuantizationReport",
    "TokenIds",
    "UInt8Images",
    "check_color_palette",
    "check_images",
    "check_token_ids",
]
