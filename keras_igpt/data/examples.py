"""Example sets with random access, the paper's three-way splits, and low-data subsets."""

from __future__ import annotations

import hashlib
import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Generic, Self, TypeVar

import numpy as np
import numpy.typing as npt

from keras_igpt.palette.color_palette import (
    ColorPalette,
    UInt8Images,
    check_color_palette,
    check_images,
    check_token_ids,
    token_dtype,
)
from keras_igpt.support.checks import check_array, check_integer, check_number
from keras_igpt.support.randomness import check_seed, permutation

Labels = npt.NDArray[np.int64]

# Models take labels as int32.
_LARGEST_LABEL = np.iinfo(np.int32).max
_ROWS_DIGESTED = 1 << 12


class Examples(ABC):
    """A set of pictures with random access by row."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def take(self, rows: npt.ArrayLike) -> Self:
        """Returns a set of these rows, in this order."""

    @abstractmethod
    def join(self, other: Self) -> Self:
        """Returns this set followed by another of its kind."""


class LabeledExamples(Examples):
    """A set of pictures with classes.

    Attributes:
        labels: int64 array `(B,)`. Classes.
    """

    labels: Labels


ExamplesT = TypeVar("ExamplesT", bound=Examples)
LabeledT = TypeVar("LabeledT", bound=LabeledExamples)
OtherT = TypeVar("OtherT", bound=Examples)


@dataclass(frozen=True, eq=False, repr=False)
class LabeledImages(LabeledExamples):
    """Pictures of one size and their classes, in memory.

    Args:
        images: uint8 array `(B, H, W, C)`.
        labels: integer array `(B,)` or `(B, 1)`.

    Raises:
        ValueError: if the arrays have other types or shapes.

    Example:
    ```python
    train = LabeledImages(images, labels)
    ```
    """

    images: UInt8Images
    labels: Labels

    def __post_init__(self) -> None:
        object.__setattr__(self, "images", check_set_of_images(self.images))
        object.__setattr__(self, "labels", _check_labels(self.labels, len(self.images)))

    def __repr__(self) -> str:
        count, *shape = self.images.shape
        return f"LabeledImages({count} pictures of shape {tuple(shape)})"

    def __len__(self) -> int:
        return len(self.images)

    def digest(self) -> str:
        """Returns a hexadecimal digest of pictures and labels."""
        return digest_of(self.labels, self.images)

    def take(self, rows: npt.ArrayLike) -> Self:
        chosen = rows_to_take(rows)
        return type(self)(self.images[chosen], self.labels[chosen])

    def join(self, other: Self) -> Self:
        check_kind(self, other)
        if self.images.shape[1:] != other.images.shape[1:]:
            raise ValueError(
                f"`other` must have pictures of shape {self.images.shape[1:]}. Received: {other.images.shape[1:]}"
            )
        return type(self)(np.concatenate([self.images, other.images]), np.concatenate([self.labels, other.labels]))

    def encode(self, palette: ColorPalette) -> LabeledTokens:
        """Encodes the pictures as palette tokens; raises `ValueError` unless they are square and of its channels."""
        return LabeledTokens(encode_images(self.images, palette), self.labels, palette.num_colors)


@dataclass(frozen=True, eq=False, repr=False)
class LabeledTokens(LabeledExamples):
    """Palette tokens of square pictures and their classes, in memory or mapped from a file.

    Args:
        token_ids: integer array `(B, S * S)` in raster order, of any integer type.
        labels: integer array `(B,)`.
        num_colors: int. Palette size `V`.

    Raises:
        ValueError: if the arrays have other types or shapes, or tokens are out of range.

    Example:
    ```python
    tokens = LabeledImages(images, labels).encode(palette)
    ```
    """

    token_ids: npt.NDArray[np.integer[Any]]
    labels: Labels
    num_colors: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "num_colors", check_integer("num_colors", self.num_colors))
        object.__setattr__(self, "token_ids", check_square_tokens(self.token_ids, self.num_colors))
        object.__setattr__(self, "labels", _check_labels(self.labels, len(self.token_ids)))

    def __repr__(self) -> str:
        return f"LabeledTokens({len(self)} pictures, image_size={self.image_size}, num_colors={self.num_colors})"

    def __len__(self) -> int:
        return len(self.token_ids)

    def digest(self) -> str:
        """Returns a hexadecimal digest of tokens and labels."""
        return digest_of(self.labels, self.token_ids)

    @property
    def image_size(self) -> int:
        """Side `S` of the pictures."""
        return math.isqrt(self.token_ids.shape[1])

    def take(self, rows: npt.ArrayLike) -> Self:
        chosen = rows_to_take(rows)
        return type(self)(self.token_ids[chosen], self.labels[chosen], self.num_colors)

    def join(self, other: Self) -> Self:
        check_kind(self, other)
        if (self.image_size, self.num_colors) != (other.image_size, other.num_colors):
            raise ValueError(
                f"`other` must have {self.image_size}x{self.image_size} pictures in {self.num_colors} colours. "
                f"Received: {other.image_size}x{other.image_size} in {other.num_colors}"
            )
        return type(self)(
            np.concatenate([self.token_ids, other.token_ids]),
            np.concatenate([self.labels, other.labels]),
            self.num_colors,
        )


@dataclass(frozen=True, repr=False)
class DataSplits(Generic[ExamplesT]):
    """A data set split into disjoint train, validation and test parts.

    `splits["train+validation"]` joins the first two, for the refit after the hyperparameters are chosen.

    Attributes:
        train: examples to train on.
        validation: examples for choosing hyperparameters.
        test: examples for the final report.
        class_names: tuple of str; entry k names label k.
    """

    train: ExamplesT
    validation: ExamplesT
    test: ExamplesT
    class_names: tuple[str, ...]

    def __repr__(self) -> str:
        parts = f"train={self.train!r}, validation={self.validation!r}, test={self.test!r}"
        return f"DataSplits({parts}, {len(self.class_names)} classes)"

    def __getitem__(self, name: str) -> ExamplesT:
        if name in ("train", "validation", "test"):
            part: ExamplesT = getattr(self, name)
            return part
        if name == "train+validation":
            return self.folded
        raise ValueError(f"`name` must be 'train', 'validation', 'test' or 'train+validation'. Received: {name!r}")

    @cached_property
    def folded(self) -> ExamplesT:
        """Train and validation joined; computed once."""
        return self.train.join(self.validation)


def split_off(examples: ExamplesT, share: float, seed: int = 0) -> tuple[ExamplesT, ExamplesT]:
    """Splits examples at random into a kept and a held-out part.

    Args:
        examples: a set.
        share: float in (0, 1). Share held out, rounded to whole pictures.
        seed: int.

    Returns:
        Two sets, kept and held out, each in the original order.

    Raises:
        ValueError: if one of the parts would be empty.

    Example:
    ```python
    train, validation = split_off(LabeledImages(images, labels), share=0.1, seed=0)
    ```
    """
    share = check_number("share", share, 0, 1, above=True, below=True)
    count = round(share * len(examples))
    if not 0 < count < len(examples):
        raise ValueError(
            f"`examples` must be enough for two parts with share={share}. Received: {len(examples)} examples"
        )
    order = permutation(len(examples), "held out", check_seed(seed))
    return examples.take(np.sort(order[count:])), examples.take(np.sort(order[:count]))


def low_data_subset(examples: LabeledT, labels_per_class: int, seed: int = 0) -> LabeledT:
    """Takes the same number of random examples of each class, for low-data classification.

    The paper reports mean and standard deviation over five subsets of 4, 25 and 400 labels per class. Subsets of one
    seed are nested.

    Args:
        examples: a labelled set.
        labels_per_class: int.
        seed: int.

    Returns:
        A set of `labels_per_class` examples of each class, in the order of `examples`.

    Raises:
        ValueError: if a class has fewer examples, or there are no labels.

    Example:
    ```python
    subsets = [low_data_subset(data["train"], labels_per_class=4, seed=seed) for seed in range(5)]
    ```

    Reference:
        [Chen et al., 2020](https://cdn.openai.com/papers/Generative_Pretraining_from_Pixels_V2.pdf), section 4.7
    """
    check_labeled("examples", examples)
    return examples.take(low_data_rows(examples.labels, labels_per_class, seed))


def low_data_rows(labels: Labels, labels_per_class: int, seed: int) -> npt.NDArray[np.int64]:
    """Returns the rows of `low_data_subset`, rising; raises the same errors."""
    classes, counts = np.unique(labels, return_counts=True)
    labels_per_class = check_integer("labels_per_class", labels_per_class)
    if labels_per_class > counts.min():
        raise ValueError(
            f"`labels_per_class` must be at most {counts.min()}, the examples of the smallest class. "
            f"Received: labels_per_class={labels_per_class}"
        )
    order = permutation(len(labels), "low data", check_seed(seed))
    chosen = [order[labels[order] == label][:labels_per_class] for label in classes]
    return np.sort(np.concatenate(chosen))


def check_labeled(name: str, examples: Any) -> None:
    """Raises ValueError, naming the caller's argument, if examples have no labels."""
    if not isinstance(examples, LabeledExamples):
        raise ValueError(f"`{name}` must have labels. Received: {type(examples).__name__}")


def check_kind(examples: Examples, other: Any) -> None:
    """Raises ValueError unless `other` can be joined to examples, as far as its type goes."""
    if not isinstance(other, type(examples)):
        raise ValueError(f"`other` must be {type(examples).__name__}. Received: {type(other).__name__}")


def check_alike(name: str, examples: Any, train: Any) -> None:
    """Raises ValueError, naming the caller's argument, if examples have another size or palette than those of train."""
    found, expected = _dimensions(examples), _dimensions(train)
    if any(found[dimension] != expected[dimension] for dimension in found.keys() & expected.keys()):
        raise ValueError(
            f"`{name}` must have the image size and number of colours of what is trained on, {train!r}. "
            f"Received: {examples!r}"
        )


def _dimensions(examples: Any) -> dict[str, Any]:
    """Returns what is known without reading files: the sides of pictures, and the number of channels or colours."""
    pictures = getattr(examples, "images", examples)  # of `UnlabeledImages`, which may be files
    if isinstance(pictures, np.ndarray):
        height, width, channels = pictures.shape[1:]
        return {"image_size": height if height == width else (height, width), "num_channels": channels}
    known = {name: getattr(pictures, name, None) for name in ("image_size", "num_channels", "num_colors")}
    return {name: value for name, value in known.items() if value is not None}


def check_set_of_images(images: npt.ArrayLike) -> UInt8Images:
    """Returns images as an array `(B, H, W, C)`; raises ValueError for anything else."""
    array = check_images(images)
    if array.ndim != 4:
        raise ValueError(f"`images` must have shape (B, H, W, C). Received: shape {array.shape}")
    return array


def check_square_tokens(token_ids: npt.ArrayLike, num_colors: int) -> npt.NDArray[np.integer[Any]]:
    """Returns token ids as an array; raises ValueError unless they are `(B, S * S)` and less than `num_colors`."""
    array = check_token_ids(token_ids, num_colors)
    if array.ndim != 2 or not array.shape[1] or math.isqrt(array.shape[1]) ** 2 != array.shape[1]:
        raise ValueError(f"`token_ids` must have shape (B, S * S) for square pictures. Received: shape {array.shape}")
    # A memory-mapped array stays one.
    return token_ids if isinstance(token_ids, np.ndarray) else array


def rows_to_take(rows: npt.ArrayLike) -> npt.NDArray[Any]:
    """Returns rows as an array to index with."""
    chosen = np.asarray(rows)
    # An empty list would be floats.
    return chosen if chosen.size else chosen.astype(np.int64)


def encode_images(images: UInt8Images, palette: ColorPalette) -> npt.NDArray[np.integer[Any]]:
    """Turns square pictures `(B, S, S, C)` into tokens `(B, S * S)` of the smallest unsigned type."""
    check_color_palette(palette)
    if images.shape[1] != images.shape[2]:
        raise ValueError(f"`images` must be square to become tokens. Received: shape {images.shape}")
    # In chunks: the int32 tokens of all pictures would take up to four times the memory of the result.
    token_ids = np.empty((len(images), images.shape[1] ** 2), token_dtype(palette.num_colors))
    for start in range(0, len(images), 1024):
        token_ids[start : start + 1024] = palette.encode(images[start : start + 1024])
    return token_ids


def digest_of(*arrays: npt.NDArray[Any]) -> str:
    """Returns a hexadecimal digest of arrays."""
    digest = hashlib.sha256()
    for array in arrays:
        # In chunks: a memory-mapped array need not fit into memory.
        for start in range(0, len(array), _ROWS_DIGESTED):
            digest.update(np.ascontiguousarray(array[start : start + _ROWS_DIGESTED]).data)
    return digest.hexdigest()


def _check_labels(labels: npt.ArrayLike, count: int) -> Labels:
    classes = check_array("labels", labels, "classes")
    if classes.ndim == 2 and classes.shape[1] == 1:
        classes = classes[:, 0]
    if classes.dtype.kind not in "iu" or classes.shape != (count,):
        raise ValueError(
            f"`labels` must be integers of shape ({count},), one per image. "
            f"Received: {classes.dtype} of shape {classes.shape}"
        )
    if classes.size and (classes.min() < 0 or classes.max() > _LARGEST_LABEL):
        raise ValueError(
            f"`labels` must be in 0…{_LARGEST_LABEL}. Received: values from {classes.min()} to {classes.max()}"
        )
    return classes.astype(np.int64, copy=False)
