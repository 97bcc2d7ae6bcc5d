"""What the checkpoint formats of others share: tensors by name, and the model that fits them."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from keras_igpt.model.architecture import Architecture
from keras_igpt.model.backbone import ImageGPTBackbone
from keras_igpt.objectives.causal_lm import ImageGPTCausalLM
from keras_igpt.objectives.masked_lm import ImageGPTMaskedLM
from keras_igpt.palette.color_palette import ColorPalette

Shape = tuple[int, ...]


@dataclass(frozen=True)
class CheckpointTensors:
    """The tensors of a checkpoint, read one at a time, so that a large model is not in memory twice.

    Attributes:
        path: what the tensors are in, for messages.
        shapes: the shape of each tensor by its name.
        read: reads a tensor by its name.
    """

    path: Path
    shapes: Mapping[str, Shape]
    read: Callable[[str], npt.NDArray[Any]]

    def __getitem__(self, name: str) -> npt.NDArray[np.float32]:
        """Reads a tensor as float32; raises `ValueError` if it is not of finite real numbers."""
        stored = np.asarray(self.read(name))
        if not np.can_cast(stored.dtype, np.float32, "same_kind"):
            raise ValueError(f"{self.path} must hold real numbers. Received: {name} of {stored.dtype}")
        array = stored.astype(np.float32, copy=False)
        if not np.isfinite(array).all():
            raise ValueError(f"{self.path} must hold finite weights. Received: {name} with inf or NaN")
        return array

    def check(self, expected: Mapping[str, Shape], optional: Collection[str] = ()) -> None:
        """Compares names and shapes with those of a model, before it is built.

        Args:
            expected: the shape of each tensor by its name.
            optional: names of `expected` that may be absent.

        Raises:
            ValueError: if anything differs; names all that does.
        """
        faults = {
            "missing": [name for name in expected if name not in self.shapes and name not in optional],
            "unknown": [name for name in self.shapes if name not in expected],
            "of another shape": [
                f"{name} {self.shapes[name]} instead of {shape}"
                for name, shape in expected.items()
                if self.shapes.get(name, shape) != shape
            ],
        }
        named = [f"{fault}: {', '.join(names)}" for fault, names in faults.items() if names]
        if named:
            raise ValueError(f"{self.path} must hold the weights of one Image GPT. Received: {'; '.join(named)}")


def names_in_blocks(names: Mapping[str, str], prefix: str, num_layers: int) -> dict[str, str]:
    """Returns the names of the tensors of all blocks, by the role of the weight.

    Args:
        names: ends of the names in a block by role.
        prefix: of the names, with `{}` for the block's number.
        num_layers: int. Blocks `L`.
    """
    return {
        f"block_{layer}.{role}": prefix.format(layer) + name
        for layer in range(num_layers)
        for role, name in names.items()
    }


def released_architecture(path: Path, num_tokens: int, **arguments: Any) -> Architecture:
    """Makes the architecture that a checkpoint states, with the released code's norm.

    Args:
        path: where the sizes are from, for messages.
        num_tokens: int. Sequence length `T`.
        **arguments: of `Architecture`, except `image_size` and `normalization`.

    Raises:
        ValueError: if images are not square, or no network has these sizes.
    """
    image_size = math.isqrt(max(num_tokens, 0))
    if image_size**2 != num_tokens:
        raise ValueError(f"{path} must be of square images. Received: {num_tokens} positions, no square number")
    try:
        return Architecture(image_size=image_size, normalization="rms_norm", **arguments)
    except ValueError as error:
        raise ValueError(f"{path} must be of an Image GPT: {error}") from error


def build_model(
    path: Path, architecture: Architecture, palette: ColorPalette | None, dtype: Any, remat: bool
) -> ImageGPTCausalLM | ImageGPTMaskedLM:
    """Builds the language model, with random weights, that the weights of a checkpoint are for.

    Args:
        path: where the architecture is from, for messages.
        architecture: that of the checkpoint.
        palette: a `ColorPalette` or None.
        dtype: dtype policy, as in `ImageGPTBackbone`.
        remat: bool, as in `ImageGPTBackbone`.

    Raises:
        ValueError: if the palette has another number of colours.
    """
    if palette is not None and palette.num_colors != architecture.vocabulary_size:
        raise ValueError(
            f"The colour clusters beside {path} must be as many as the model's {architecture.vocabulary_size} colours. "
            f"Received: {palette.num_colors} clusters"
        )
    backbone = ImageGPTBackbone(**architecture.arguments, remat=remat, dtype=dtype)
    model = ImageGPTCausalLM if architecture.attention == "causal" else ImageGPTMaskedLM
    return model(backbone, palette=palette)
