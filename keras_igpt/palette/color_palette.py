"""Palettes: images to sequences of colour indices, and back."""

from __future__ import annotations

import math
import os
import threading
import tokenize
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from keras_igpt.palette.nearest_color import build_color_table, nearest_colors, pack_colors, unpack_colors
from keras_igpt.support.checks import check_array, check_integer
from keras_igpt.support.files import whole_file

UInt8Images = npt.NDArray[np.uint8]
TokenIds = npt.NDArray[np.int32]

# Colours looked up before a palette builds its table, which takes less time than looking up as many again.
_COLORS_BEFORE_TABLE = 1 << 16
# Threads of one data pipeline share a palette and build its table once. (A lock of its own could not be copied.)
_BUILDING = threading.Lock()
# Pixels encoded at once, since each takes 56 bytes until it is one token of four.
_PIXELS_AT_ONCE = 1 << 18
# Centroids this close to a whole 8-bit value are that value: float32 on [-1, 1] does not hold it exactly.
_WHOLE_VALUE_TOLERANCE = 1e-3
# ITU-R BT.601 luma, which orders a fitted palette from dark to bright.
_LUMA = np.array([0.299, 0.587, 0.114])


@dataclass(frozen=True)
class QuantizationReport:
    """What a set of images loses when each pixel is replaced by its palette colour.

    Attributes:
        num_pixels: int. Pixels measured.
        root_mean_squared_error: float. Over pixels and channels, in units of the 0…255 scale.
        peak_signal_to_noise_ratio: float. In decibels, with a peak of 255; infinite when nothing is lost.
        largest_error: float. Largest Euclidean distance of a pixel to its colour, 0…255 scale.
        used_colors: int. Palette colours that occur in the images.
        num_colors: int. Palette size `V`.
    """

    num_pixels: int
    root_mean_squared_error: float
    peak_signal_to_noise_ratio: float
    largest_error: float
    used_colors: int
    num_colors: int

    def __str__(self) -> str:
        return (
            f"{self.num_colors} colours ({self.used_colors} used) on {self.num_pixels:,} pixels: "
            f"RMSE {self.root_mean_squared_error:.2f} of 255, "
            f"PSNR {self.peak_signal_to_noise_ratio:.1f} dB, worst pixel {self.largest_error:.1f}"
        )


class ColorPalette:
    """A fixed list of colours, and the exact nearest-colour map from pixels to token ids.

    Image GPT clusters the (R, G, B) values of pixels with k-means (512 colours, "9-bit") and replaces each pixel by the
    index of its nearest centre, so that sequences are three times shorter than those of raw channels.

    Args:
        centroids: float array `(V, C)` in [-1, 1], the official format: pixel value `x` in 0…255 lies at
            `x / 127.5 - 1`. `C` is 3 for colour and 1 for grey images. Rows must be distinct.

    Raises:
        ValueError: if `centroids` has another shape, values outside [-1, 1] or repeated rows.

    Example:
    ```python
    palette = ColorPalette.fit(images, num_colors=512, seed=0)   # images: uint8 (B, H, W, 3)
    token_ids = palette.encode(images)                           # int32 (B, H * W), raster order
    approximation = palette.decode(token_ids)                    # uint8 (B, H, W, 3)
    palette.save("palette.npy")
    released = ColorPalette.load("kmeans_centers.npy")
    black_and_white = ColorPalette.from_colors(np.array([[0], [255]], "uint8"))
    ```

    Reference:
        [Chen et al., 2020](https://cdn.openai.com/papers/Generative_Pretraining_from_Pixels_V2.pdf), section 3.1
    """

    def __init__(self, centroids: npt.ArrayLike) -> None:
        array = check_array("centroids", centroids, "colours")
        if array.ndim != 2 or array.shape[-1] not in (1, 3) or len(array) < 1:
            raise ValueError(
                f"`centroids` must have shape (V, 3) for colour or (V, 1) for grey. Received: shape {array.shape}"
            )
        if array.dtype.kind != "f":
            raise ValueError(
                "`centroids` must be floats in [-1, 1] (use `ColorPalette.from_colors` for uint8 colours). "
                f"Received: dtype {array.dtype}"
            )
        if not np.all(np.abs(array) <= 1 + 1e-6):
            raise ValueError(
                "`centroids` must lie in [-1, 1], where pixel value x is x / 127.5 - 1. "
                f"Received: values from {array.min():.4g} to {array.max():.4g}"
            )
        self._centroids = array.astype(np.float32)
        # The colours on the pixel scale. Whole values are restored, so that distances are exact and ties really tie.
        positions = (self._centroids.astype(np.float64) + 1.0) * 127.5
        whole = np.rint(positions)
        if np.all(np.abs(positions - whole) < _WHOLE_VALUE_TOLERANCE):
            positions = whole
        self._positions = positions
        distinct = len(np.unique(positions, axis=0))
        if distinct != len(positions):
            raise ValueError(
                f"`centroids` must be distinct colours. Received: {distinct} distinct rows of {len(positions)}"
            )
        self._table: npt.NDArray[Any] | None = None
        self._colors_looked_up = 0

    @classmethod
    def from_colors(cls, colors: npt.ArrayLike) -> ColorPalette:
        """Makes a palette of whole 8-bit colours.

        Args:
            colors: uint8 array `(V, 3)` or, for grey images, `(V, 1)`.

        Returns:
            A `ColorPalette`.

        Raises:
            ValueError: if `colors` is not uint8 or has another shape, or a colour occurs twice.
        """
        array = check_array("colors", colors, "colours")
        if array.dtype != np.uint8:
            raise ValueError(f"`colors` must be uint8. Received: dtype {array.dtype}")
        return cls(array / 127.5 - 1.0)

    @classmethod
    def fit(
        cls,
        images: npt.ArrayLike,
        num_colors: int = 512,
        seed: int = 0,
        max_pixels: int = 1 << 18,
        max_iterations: int = 100,
    ) -> ColorPalette:
        """Fits a palette to images with k-means.

        The paper does not give the details. Here at most `max_pixels` pixels are drawn without replacement, for
        k-means++ and Lloyd iterations (scikit-learn) on their distinct colours weighted by count. Centres are rounded
        to whole 8-bit colours, so that `encode(decode(ids))` is `ids`, and ordered from dark to bright.

        Args:
            images: uint8 array `(..., H, W, C)`, `C` 3 or 1.
            num_colors: int. Palette size `V`.
            seed: int. Equal images and seed give an equal palette.
            max_pixels: int. Most pixels that k-means sees.
            max_iterations: int. Most Lloyd iterations.

        Returns:
            A `ColorPalette` of exactly `num_colors` distinct colours.

        Raises:
            ValueError: if `images` is not uint8 of that shape, or has fewer distinct colours than `num_colors`.
            ImportError: if scikit-learn is absent.
        """
        pixels = check_images(images)
        pixels = pixels.reshape(-1, pixels.shape[-1])
        num_colors = check_integer("num_colors", num_colors)
        # scikit-learn's seeds have 32 bits.
        seed = check_integer("seed", seed, 0, 2**32 - 1)
        max_pixels = check_integer("max_pixels", max_pixels)
        max_iterations = check_integer("max_iterations", max_iterations)
        if len(pixels) > max_pixels:
            chosen = np.random.default_rng(seed).choice(len(pixels), max_pixels, replace=False)
            pixels = pixels[chosen]
        packed, counts = np.unique(pack_colors(pixels), return_counts=True)
        colors = unpack_colors(packed, pixels.shape[-1])
        if len(colors) < num_colors:
            raise ValueError(
                f"`images` must have at least `num_colors`={num_colors} distinct colours "
                f"(of {len(pixels):,} pixels looked at); fit fewer colours or give more images. "
                f"Received: {len(colors)} distinct colours"
            )
        if len(colors) > num_colors:
            colors = _cluster(colors, counts, num_colors, seed, max_iterations)
        luma = colors @ _LUMA if colors.shape[-1] == 3 else colors[:, 0]
        order = np.lexsort((*colors.T, luma))
        return cls.from_colors(colors[order])

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> ColorPalette:
        """Reads a palette from a `.npy` file in the official format, the released `kmeans_centers.npy` included.

        Args:
            path: file holding a float array `(V, 3)` or `(V, 1)` in [-1, 1]. Pickled files are refused.

        Returns:
            A `ColorPalette`.

        Raises:
            ValueError: if the file is not such an array.
        """
        try:
            # Mapped, so that a header which claims a huge shape takes no memory.
            centroids = np.array(np.lib.format.open_memmap(path, mode="r"))
        # What NumPy raises for damaged or absurd headers.
        except (ValueError, EOFError, OverflowError, SyntaxError, tokenize.TokenError) as error:
            raise ValueError(
                "`path` must be a .npy file with a float array (V, 3) or (V, 1) in [-1, 1]. "
                f"Received: {os.fspath(path)!r}, which NumPy cannot read ({error})"
            ) from error
        return cls(centroids)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the palette as `.npy`, float32 `(V, C)` in [-1, 1], whole or not at all.

        Args:
            path: file to write.
        """
        with whole_file(path) as partial, partial.open("wb") as file:
            np.save(file, self._centroids, allow_pickle=False)

    @property
    def num_colors(self) -> int:
        """Palette size `V`."""
        return len(self._centroids)

    @property
    def num_channels(self) -> int:
        """3 for colour, 1 for grey."""
        return int(self._centroids.shape[-1])

    @property
    def centroids(self) -> npt.NDArray[np.float32]:
        """A copy of the colours as float32 `(V, C)` in [-1, 1]."""
        return self._centroids.copy()

    @property
    def colors(self) -> UInt8Images:
        """Colours as uint8 `(V, C)`: `rint(127.5 * (centroid + 1))`, as in the official sampler."""
        return np.rint(self._positions).clip(0, 255).astype(np.uint8)

    def __repr__(self) -> str:
        return f"ColorPalette(num_colors={self.num_colors}, num_channels={self.num_channels})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ColorPalette) and np.array_equal(self._centroids, other._centroids)

    __hash__ = None  # type: ignore[assignment]

    def encode(self, images: npt.ArrayLike) -> TokenIds:
        """Replaces each pixel by the index of its nearest colour.

        Nearest in Euclidean distance, computed in float64; a tie goes to the lower index. After 65,536 distinct colours
        the palette builds a table of all 2²⁴ (32 MB, half a second at 512 colours), and encoding is one access a pixel.

        Args:
            images: uint8 array `(..., H, W, C)` with the palette's number of channels.

        Returns:
            int32 array `(..., H * W)` of token ids in raster order.

        Raises:
            ValueError: if `images` is not uint8 or has another number of channels.
        """
        array = check_images(images)
        if array.shape[-1] != self.num_channels:
            raise ValueError(
                f"`images` must have the palette's {self.num_channels} channel(s). Received: shape {array.shape}"
            )
        height, width = array.shape[-3:-1]
        pixels = array.reshape(-1, self.num_channels)
        token_ids = np.empty(len(pixels), np.int32)
        for start in range(0, len(pixels), _PIXELS_AT_ONCE):
            part = slice(start, start + _PIXELS_AT_ONCE)
            token_ids[part] = self._look_up(pack_colors(pixels[part]))
        return token_ids.reshape(*array.shape[:-3], height * width)

    def decode(self, token_ids: npt.ArrayLike, image_shape: tuple[int, int] | None = None) -> UInt8Images:
        """Turns token ids back into pixels.

        Args:
            token_ids: integer array `(..., T)`, values 0…V-1, raster order.
            image_shape: `(height, width)` with `height * width == T`; a square by default.

        Returns:
            uint8 array `(..., H, W, C)`.

        Raises:
            ValueError: if an id is out of range or `T` does not fit `image_shape`.
        """
        ids = check_token_ids(token_ids, self.num_colors)
        length = ids.shape[-1]
        sides = [round(length**0.5)] * 2 if image_shape is None else _sides(image_shape)
        if math.prod(sides) != length:
            raise ValueError(
                "`image_shape` must hold as many pixels as there are tokens (a square by default). "
                f"Received: {length} tokens, image_shape={image_shape}"
            )
        pixels: UInt8Images = self.colors[ids]
        return pixels.reshape(*ids.shape[:-1], *sides, self.num_channels)

    def quantization_report(self, images: npt.ArrayLike) -> QuantizationReport:
        """Measures what the palette loses on images.

        Args:
            images: uint8 array `(..., H, W, C)`.

        Returns:
            A `QuantizationReport`, which prints as one line.

        Raises:
            ValueError: as `encode`.
        """
        array = check_images(images)
        ids = self.encode(array).reshape(-1)
        pixels = array.reshape(-1, self.num_channels).astype(np.float32)
        squared = np.square(pixels - self.colors.astype(np.float32)[ids])
        mean_squared = float(squared.mean(dtype=np.float64))
        return QuantizationReport(
            num_pixels=len(ids),
            root_mean_squared_error=mean_squared**0.5,
            peak_signal_to_noise_ratio=float(10 * np.log10(255**2 / mean_squared)) if mean_squared else float("inf"),
            largest_error=float(np.sqrt(squared.sum(axis=-1).max())),
            used_colors=len(np.unique(ids)),
            num_colors=self.num_colors,
        )

    def get_config(self) -> dict[str, Any]:
        """Returns the palette as plain lists, for a model's configuration."""
        return {"centroids": self._centroids.tolist()}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> ColorPalette:
        """Makes the palette of a configuration."""
        return cls(np.asarray(config["centroids"], np.float32))

    def _look_up(self, packed: npt.NDArray[np.int64]) -> npt.NDArray[np.integer[Any]]:
        if self._table is None:
            distinct, places = np.unique(packed, return_inverse=True)
            self._colors_looked_up += len(distinct)
            if self._colors_looked_up <= _COLORS_BEFORE_TABLE:
                nearest = nearest_colors(unpack_colors(distinct, self.num_channels), self._positions)
                return nearest[places]
            with _BUILDING:
                if self._table is None:
                    self._table = build_color_table(self._positions)
        # All indices are in range; `clip` only skips the check.
        return self._table.take(packed, mode="clip")


def check_color_palette(palette: Any, num_channels: int | None = None) -> ColorPalette:
    """Returns a palette; raises `ValueError` unless it is a `ColorPalette`, with the examples' channels where given."""
    if not isinstance(palette, ColorPalette):
        raise ValueError(
            f"`palette` must be a ColorPalette (`ColorPalette.load` reads one). Received: {type(palette).__name__}"
        )
    if num_channels not in (None, palette.num_channels):
        raise ValueError(
            f"`palette` must have the examples' {num_channels} channel(s). Received: {palette.num_channels}"
        )
    return palette


def check_images(images: npt.ArrayLike, name: str = "images") -> UInt8Images:
    """Returns images as an array; raises `ValueError` unless they are uint8 `(..., H, W, C)` with `C` 1 or 3."""
    array = check_array(name, images, "pictures")
    if array.size == 0:
        raise ValueError(f"`{name}` must hold at least one pixel. Received: shape {array.shape}")
    if array.dtype != np.uint8:
        hint = "; scale floats to 0…255 and convert them" if array.dtype.kind == "f" else ""
        raise ValueError(f"`{name}` must be uint8 (0…255){hint}. Received: dtype {array.dtype}")
    if array.ndim < 3 or array.shape[-1] not in (1, 3):
        raise ValueError(
            f"`{name}` must have shape (..., height, width, channels) with 3 channels, or 1 for grey. "
            f"Received: shape {array.shape}"
        )
    return cast(UInt8Images, array)


def check_token_ids(token_ids: npt.ArrayLike, num_colors: int, name: str = "token_ids") -> npt.NDArray[np.integer[Any]]:
    """Returns token ids as an array; raises `ValueError` unless they are integers `(..., T)` in 0…num_colors-1."""
    array = check_array(name, token_ids, "rows")
    if array.dtype.kind not in "iu":
        raise ValueError(f"`{name}` must be integers. Received: dtype {array.dtype}")
    if array.ndim < 1:
        raise ValueError(f"`{name}` must have shape (..., tokens). Received: a scalar")
    if array.size and (array.min() < 0 or array.max() >= num_colors):
        raise ValueError(
            f"`{name}` must lie in 0…{num_colors - 1}, the palette's colours. "
            f"Received: values from {array.min()} to {array.max()}"
        )
    return array


def _sides(image_shape: Any) -> list[int]:
    """Checks the height and width of an image."""
    try:
        height, width = (check_integer("image_shape", side) for side in image_shape)
    except (TypeError, ValueError) as error:  # no sequence, of another length, or of other values
        raise ValueError(
            f"`image_shape` must be height and width, two integers of at least 1. Received: {image_shape!r}"
        ) from error
    return [height, width]


def token_dtype(num_colors: int) -> np.dtype[Any]:
    """Returns the smallest unsigned integers that number a palette's colours, for tokens that are kept."""
    return np.dtype(np.min_scalar_type(num_colors - 1))


def _cluster(
    colors: UInt8Images, counts: npt.NDArray[np.int64], num_colors: int, seed: int, max_iterations: int
) -> UInt8Images:
    """K-means on weighted colours; the centres as whole, distinct colours."""
    try:
        from sklearn.cluster import KMeans
        from threadpoolctl import threadpool_limits
    except ImportError as error:
        raise ImportError("Fitting a palette needs scikit-learn: pip install 'keras_igpt[palette]'") from error
    k_means = KMeans(num_colors, n_init=1, max_iter=max_iterations, random_state=seed)
    # One thread: several would add up the centres in whatever order they finish, and the seed would not decide.
    with threadpool_limits(limits=1):
        k_means.fit(colors.astype(np.float64), sample_weight=counts.astype(np.float64))
    centers = np.unique(np.rint(k_means.cluster_centers_).clip(0, 255).astype(np.uint8), axis=0)
    # Rounding can merge centres. Colours that are far from all others and frequent replace them.
    distances = np.full(len(colors), np.iinfo(np.int64).max)

    def serve(center: UInt8Images) -> None:
        squared = np.square(colors.astype(np.int64) - center.astype(np.int64)).sum(axis=-1)
        np.minimum(distances, squared, out=distances)

    if len(centers) < num_colors:
        for center in centers:
            serve(center)
    while len(centers) < num_colors:
        centers = np.concatenate([centers, colors[np.argmax(distances * counts)][None]])
        serve(centers[-1])
    return centers
