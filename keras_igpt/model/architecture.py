"""The sizes and choices that make an Image GPT, and what follows from them without building one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from typing import Any, Literal

from keras_igpt.support.checks import check_choice, check_flag, check_integer

Attention = Literal["causal", "bidirectional"]
NormalizationKind = Literal["layer_norm", "rms_norm"]


@dataclass(frozen=True)
class Architecture:
    """What decides the weights of an `ImageGPTBackbone`, checked when it is made.

    Args:
        vocabulary_size: int. Palette colours `V`.
        image_size: int. Side of the square images in pixels.
        num_layers: int. Transformer blocks `L`.
        num_heads: int. Attention heads `N`; must divide `hidden_dim`.
        hidden_dim: int. Width `D` of the residual stream.
        attention: `"causal"` (with a start vector) or `"bidirectional"`.
        normalization: `"layer_norm"` (gain and bias) or `"rms_norm"` (gain).
        projection_bias: bool. Whether the projections of the blocks have biases.

    Raises:
        ValueError: if a size is not a positive integer, the heads do not divide the width, or a choice is unknown.

    Example:
    ```python
    architecture = Architecture(512, 32, num_layers=24, num_heads=8, hidden_dim=512)
    architecture.num_parameters   # 76,596,736
    ```
    """

    vocabulary_size: int
    image_size: int
    num_layers: int
    num_heads: int
    hidden_dim: int
    attention: Attention = "causal"
    normalization: NormalizationKind = "layer_norm"
    projection_bias: bool = False

    def __post_init__(self) -> None:
        for name in SIZES:
            object.__setattr__(self, name, check_integer(name, getattr(self, name)))
        if self.hidden_dim % self.num_heads:
            raise ValueError(
                "`num_heads` must divide `hidden_dim`. "
                f"Received: num_heads={self.num_heads}, hidden_dim={self.hidden_dim}"
            )
        check_choice("attention", self.attention, ("causal", "bidirectional"))
        check_choice("normalization", self.normalization, ("layer_norm", "rms_norm"))
        object.__setattr__(self, "projection_bias", check_flag("projection_bias", self.projection_bias))

    @property
    def arguments(self) -> dict[str, Any]:
        """Sizes and choices by name: constructor arguments of `ImageGPTBackbone`.

        `projection_bias` is left out if False, so that files of models without biases read as they did before it.
        """
        return {name: getattr(self, name) for name in FIELDS if name != "projection_bias" or self.projection_bias}

    @property
    def sizes(self) -> dict[str, int]:
        """The five sizes by name."""
        return {name: getattr(self, name) for name in SIZES}

    @property
    def num_tokens(self) -> int:
        """Sequence length `T`."""
        return self.image_size**2

    @property
    def head_dim(self) -> int:
        """Width `H` of one attention head."""
        return self.hidden_dim // self.num_heads

    @property
    def num_parameters(self) -> int:
        """Trainable parameters of `ImageGPTCausalLM` or `ImageGPTMaskedLM`, pixel head included.

        With `rms_norm` and 32x32 pixels they are 76.57, 455.16, 1362.25 and 6801.44 million for the paper's four
        sizes, which prints 76M, 455M, 1362M and 6801M.
        """
        width = self.hidden_dim
        norm = width * (2 if self.normalization == "layer_norm" else 1)
        block = 4 * width**2 + 2 * width * (4 * width) + 2 * norm  # attention, feed-forward network, norms
        if self.projection_bias:
            block += (3 + 1 + 4 + 1) * width
        start = width if self.attention == "causal" else 0
        embeddings = (self.vocabulary_size + self.num_tokens) * width + start
        pixel_head = width * self.vocabulary_size
        return self.num_layers * block + norm + embeddings + pixel_head


FIELDS = tuple(field.name for field in fields(Architecture))
SIZES = tuple(field.name for field in fields(Architecture) if field.default is MISSING)


def check_architecture(name: str, value: Architecture | Mapping[str, Any]) -> Architecture:
    """Returns an architecture, made of constructor arguments where it is given as these.

    Args:
        name: str. What the caller calls it.
        value: an `Architecture`, or a mapping of its fields, choices optional.

    Returns:
        An `Architecture`.

    Raises:
        ValueError: if it is neither, keys are absent or unknown, or a value is out of its range.
    """
    if isinstance(value, Architecture):
        return value
    if not isinstance(value, Mapping):
        raise ValueError(
            f"`{name}` must be an Architecture, such as a backbone's `architecture`, or its fields in a dictionary. "
            f"Received: {type(value).__name__}"
        )
    if not set(SIZES) <= set(value) <= set(FIELDS):
        optional = ", ".join(repr(field) for field in FIELDS if field not in SIZES)
        raise ValueError(f"`{name}` must have the keys {sorted(SIZES)}, perhaps {optional}. Received: {list(value)}")
    return Architecture(**value)
