"""Pictures without classes, in memory or in files."""

from __future__ import annotations

import hashlib
import math
import os
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from keras_igpt.data.examples import (
    Examples,
    check_kind,
    check_set_of_images,
    check_square_tokens,
    digest_of,
    encode_images,
    rows_to_take,
)
from keras_igpt.data.image_files import ImageFiles
from keras_igpt.data.token_shards import TokenShards
from keras_igpt.palette.color_palette import ColorPalette, UInt8Images, check_color_palette, token_dtype
from keras_igpt.support.checks import check_integer

# Pictures decoded before they are encoded.
_ROWS_AT_ONCE = 2048


@dataclass(frozen=True, eq=False, repr=False)
class UnlabeledImages(Examples):
    """Pictures without classes, in memory or in files: for pre-training, scoring and features.

    Args:
        images: uint8 array `(B, H, W, C)`, or `ImageFiles`, whose labels are ignored.

    Raises:
        ValueError: if `images` has another type or shape.

    Example:
    ```python
    batches = TrainingBatches(UnlabeledImages(images), palette, batch_size=128)
    ```
    """

    images: UInt8Images | ImageFiles

    def __post_init__(self) -> None:
        if isinstance(self.images, ImageFiles):
            return
        object.__setattr__(self, "images", check_set_of_images(self.images))

    def __repr__(self) -> str:
        if isinstance(self.images, ImageFiles):
            return f"UnlabeledImages({self.images!r})"
        return f"UnlabeledImages({len(self)} pictures of shape {self.images.shape[1:]})"

    def __len__(self) -> int:
        return len(self.images)

    def digest(self) -> str:
        """Returns a hexadecimal digest of the pictures; for files, one that depends on `ImageFiles.digest`."""
        if not isinstance(self.images, ImageFiles):
            return digest_of(self.images)
        # Large sets with and without labels are shuffled differently: a run cannot resume from one with the other.
        return hashlib.sha256(f"unlabeled {self.images.digest()}".encode()).hexdigest()

    def take(self, rows: npt.ArrayLike) -> Self:
        return type(self)(_taken(self.images, rows))

    def join(self, other: Self) -> Self:
        check_kind(self, other)
        return type(self)(_joined(self.images, other.images))

    def encode(self, palette: ColorPalette) -> UnlabeledTokens:
        """Encodes the pictures as palette tokens in memory; files are decoded part by part.

        Raises:
            ValueError: if a picture cannot be read, or they are not square, of one size and of the palette's channels.
        """
        files = self.images
        if not isinstance(files, ImageFiles):
            return UnlabeledTokens(encode_images(files, palette), palette.num_colors)
        check_color_palette(palette, files.num_channels)
        if files.image_size is None:
            # Loading them all tells whether they are of one size.
            return type(self)(files.load().images).encode(palette)
        token_ids = np.empty((len(files), files.image_size**2), token_dtype(palette.num_colors))
        for start in range(0, len(files), _ROWS_AT_ONCE):
            rows = range(start, min(start + _ROWS_AT_ONCE, len(files)))
            token_ids[start : rows.stop] = palette.encode(files.load_rows(rows).images)
        return UnlabeledTokens(token_ids, palette.num_colors)


@dataclass(frozen=True, eq=False, repr=False)
class UnlabeledTokens(Examples):
    """Palette tokens of square pictures without classes: in memory, mapped from a file, or in shards.

    Args:
        token_ids: integer array `(B, S * S)` in raster order, of any integer type; or `TokenShards`, which are read row
            by row.
        num_colors: int. Palette size `V`.

    Raises:
        ValueError: if the tokens have another shape or are out of range.

    Example:
    ```python
    web = UnlabeledTokens.open("web")
    batches = TrainingBatches(web, web.palette, batch_size=128)
    ```
    """

    token_ids: npt.NDArray[np.integer[Any]] | TokenShards
    num_colors: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "num_colors", check_integer("num_colors", self.num_colors))
        if not isinstance(self.token_ids, TokenShards):
            object.__setattr__(self, "token_ids", check_square_tokens(self.token_ids, self.num_colors))
        elif self.num_colors != self.token_ids.palette.num_colors:
            raise ValueError(
                f"`num_colors` must be {self.token_ids.palette.num_colors}, as in the shards' palette. "
                f"Received: num_colors={self.num_colors}"
            )

    @classmethod
    def open(cls, folder: str | os.PathLike[str]) -> Self:
        """Opens a folder of token shards. Only the manifest is read.

        Args:
            folder: a folder completed by `write_token_manifest`.

        Returns:
            `UnlabeledTokens`.

        Raises:
            FileNotFoundError: if the folder has no manifest.
            ValueError: if the manifest is damaged or of another kind.
        """
        shards = TokenShards(folder)
        return cls(shards, shards.palette.num_colors)

    def __repr__(self) -> str:
        return f"UnlabeledTokens({len(self)} pictures, image_size={self.image_size}, num_colors={self.num_colors})"

    def __len__(self) -> int:
        return len(self.token_ids)

    @property
    def image_size(self) -> int:
        """Side `S` of the pictures."""
        return math.isqrt(self.token_ids.shape[1])

    @property
    def palette(self) -> ColorPalette | None:
        """The palette of token shards; None for an array."""
        return self.token_ids.palette if isinstance(self.token_ids, TokenShards) else None

    def digest(self) -> str:
        """Returns a hexadecimal digest of the tokens; for shards, of their checksums."""
        return self.token_ids.digest() if isinstance(self.token_ids, TokenShards) else digest_of(self.token_ids)

    def take(self, rows: npt.ArrayLike) -> Self:
        return type(self)(_taken(self.token_ids, rows), self.num_colors)

    def join(self, other: Self) -> Self:
        check_kind(self, other)
        if self.num_colors != other.num_colors:
            raise ValueError(
                f"`other` must have tokens of {self.num_colors} colours. Received: {other.num_colors} colours"
            )
        return type(self)(_joined(self.token_ids, other.token_ids), self.num_colors)


def _taken(rows_of: Any, rows: npt.ArrayLike) -> Any:
    """Takes rows of an array, files or shards."""
    return rows_of[rows_to_take(rows)] if isinstance(rows_of, np.ndarray) else rows_of.take(rows)


def _joined(first: Any, second: Any) -> Any:
    """Concatenates two arrays, or two sets of files or shards."""
    in_memory = [isinstance(part, np.ndarray) for part in (first, second)]
    if any(in_memory):
        if not all(in_memory) or first.shape[1:] != second.shape[1:]:
            shapes = [f"{type(part).__name__} of shape {getattr(part, 'shape', None)}" for part in (first, second)]
            raise ValueError(f"`other` must be an array like this one, {shapes[0]}. Received: {shapes[1]}")
        return np.concatenate([first, second])
    return first.join(second)
