"""The paper's two augmentations, as pure functions of seed, epoch and example."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from keras_igpt.support.checks import check_flag, check_integer
from keras_igpt.support.randomness import uniforms

# Left, top and side of a square, in pixels of the stored picture.
Window = tuple[float, float, float]


@dataclass(frozen=True)
class RandomResizedCrop:
    """The ImageNet augmentation: resizes the shorter side at random, then crops a square at random.

    The square is located on the stored picture and resized once to the model's size, which is sharper and cheaper than
    resizing twice. As in the paper, there is no mirroring.

    Args:
        shorter_side: pair of int. The shorter side is resized to a whole number between them, both included.
        crop: int. Side of the square cut from the resized picture; at most the smaller of `shorter_side`.

    Raises:
        ValueError: if an argument is out of range.

    Example:
    ```python
    batches = TrainingBatches(data.train, palette, 128, augmentation=RandomResizedCrop())
    ```

    Reference:
        [Chen et al., 2020](https://cdn.openai.com/papers/Generative_Pretraining_from_Pixels_V2.pdf), section 3.1:
        [256, 384] and 224
    """

    shorter_side: tuple[int, int] = (256, 384)
    crop: int = 224

    def __post_init__(self) -> None:
        crop = check_integer("crop", self.crop)
        sides = self.shorter_side
        if not isinstance(sides, Sequence) or isinstance(sides, str) or len(sides) != 2:
            raise ValueError(f"`shorter_side` must be a pair of integers. Received: shorter_side={sides!r}")
        smallest, largest = (check_integer("shorter_side", side) for side in sides)
        if not crop <= smallest <= largest:
            raise ValueError(
                "`crop` must be positive and at most the smaller, `shorter_side` in ascending order. "
                f"Received: crop={self.crop}, shorter_side={self.shorter_side}"
            )
        # Plain ints: the data description includes `repr`.
        object.__setattr__(self, "crop", crop)
        object.__setattr__(self, "shorter_side", (smallest, largest))

    def window(self, width: int, height: int, seed: int, epoch: int, index: int) -> Window:
        """Locates the crop of one picture.

        Args:
            width: int. Width of the stored picture in pixels.
            height: int. Height of the stored picture in pixels.
            seed: int.
            epoch: int.
            index: int. The example's row in its set.

        Returns:
            Left, top and side of the square, floats in pixels of the stored picture.
        """
        smallest, largest = self.shorter_side
        size, across, down = uniforms("random resized crop", seed, epoch, index, np.arange(3)).tolist()
        resized = smallest + int(size * (largest - smallest + 1))
        side = self.crop * min(width, height) / resized
        return across * (width - side), down * (height - side), side


@dataclass(frozen=True)
class PaddedCrop:
    """The CIFAR fine-tuning augmentation: pads by reflection, crops the original size at random, mirrors half.

    It only moves pixels, so it works on palette tokens and a set is encoded once.

    Args:
        padding: int. Width of the border in pixels; less than the picture's side.
        mirror: bool. Whether to mirror half of the crops at random.

    Raises:
        ValueError: if `padding` is not an integer of at least 0, or `mirror` not True or False.

    Example:
    ```python
    batches = TrainingBatches(data.train, palette, 128, augmentation=PaddedCrop())
    ```

    Reference:
        [Chen et al., 2020](https://cdn.openai.com/papers/Generative_Pretraining_from_Pixels_V2.pdf), section 3.1
    """

    padding: int = 4
    mirror: bool = True

    def __post_init__(self) -> None:
        # Python's own: the data description includes `repr`.
        object.__setattr__(self, "padding", check_integer("padding", self.padding, 0))
        object.__setattr__(self, "mirror", check_flag("mirror", self.mirror))

    def sources(self, image_size: int, seed: int, epoch: int, indices: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Returns the source pixel of each pixel of each crop.

        Args:
            image_size: int. Side `S` of the pictures, more than `padding`.
            seed: int.
            epoch: int.
            indices: int array `(B,)`. The examples' rows in their set.

        Returns:
            int array `(B, S * S)` of raster positions.
        """
        draws = uniforms("padded crop", seed, epoch, indices[:, None], np.arange(3))
        shifts = (draws[:, :2] * (2 * self.padding + 1)).astype(np.int64) - self.padding
        # Reflected about the outermost pixels, which are not repeated.
        places = np.abs(np.arange(image_size) + shifts[..., None])
        last = image_size - 1
        places = last - np.abs(last - places)
        rows, columns = places[:, 0], places[:, 1]
        if self.mirror:
            mirrored = draws[:, 2] < 0.5
            columns = np.where(mirrored[:, None], last - columns, columns)
        grid: npt.NDArray[np.int64] = rows[:, :, None] * image_size + columns[:, None, :]
        return grid.reshape(len(indices), -1)
