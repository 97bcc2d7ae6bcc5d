"""Named architectures, and what the paper says of training them."""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

Objective = Literal["ar", "bert"]


@dataclass(frozen=True)
class Preset:
    """An architecture by name, with its pre-training learning rates.

    Attributes:
        num_layers: int. Transformer blocks `L`.
        num_heads: int. Attention heads `N`.
        hidden_dim: int. Width `D` of the residual stream.
        vocabulary_size: int. Palette colours `V`.
        image_size: int. Side of the square input in pixels; the paper's parameter counts hold for 32.
        learning_rates: peak Adam learning rate by objective, `"ar"` and `"bert"`; one that the paper does not
            give for its own models is absent.
        source: str. Where the figures come from.
    """

    num_layers: int
    num_heads: int
    hidden_dim: int
    vocabulary_size: int
    image_size: int
    learning_rates: MappingProxyType[str, float]
    source: str

    @property
    def architecture(self) -> dict[str, int]:
        """Constructor arguments of `ImageGPTBackbone`."""
        return {
            "vocabulary_size": self.vocabulary_size,
            "image_size": self.image_size,
            "num_layers": self.num_layers,
            "num_heads": self.num_heads,
            "hidden_dim": self.hidden_dim,
        }


def _preset(
    num_layers: int,
    num_heads: int,
    hidden_dim: int,
    learning_rates: dict[str, float],
    source: str,
    vocabulary_size: int = 512,
    image_size: int = 32,
) -> Preset:
    return Preset(
        num_layers,
        num_heads,
        hidden_dim,
        vocabulary_size,
        image_size,
        MappingProxyType(learning_rates),
        source,
    )


_PAPER = "Chen et al., 2020, section 3.3 and table 5; heads as in the released code"
_OURS = "not in the paper: a size for one small machine, with the autoregressive rate of iGPT-S for both objectives"

PRESETS: MappingProxyType[str, Preset] = MappingProxyType(
    {
        "igpt_small": _preset(24, 8, 512, {"ar": 0.003, "bert": 0.01}, _PAPER),
        "igpt_medium": _preset(36, 8, 1024, {"ar": 0.003, "bert": 0.003}, _PAPER),
        # Table 5 also prints 0.01 for 48x48 pictures, ten times the rate at 32x32; it stands alone there.
        "igpt_large": _preset(48, 16, 1536, {"ar": 0.001, "bert": 0.001}, _PAPER),
        # The paper does not state the heads of iGPT-XL. 32 gives them the width of iGPT-L's, 96. It was trained on
        # 64x64 pictures (`image_size=64`), yet its parameter count is the one at 32x32.
        "igpt_extra_large": _preset(
            60, 32, 3072, {"ar": 0.0003}, f"{_PAPER}, which says nothing of this one's: 32 is our choice"
        ),
        "igpt_nano": _preset(6, 4, 64, {"ar": 0.003, "bert": 0.003}, _OURS, vocabulary_size=64, image_size=8),
        "igpt_tiny": _preset(8, 4, 128, {"ar": 0.003, "bert": 0.003}, _OURS, vocabulary_size=128, image_size=16),
        "igpt_mini": _preset(12, 8, 256, {"ar": 0.003, "bert": 0.003}, _OURS),
    }
)


def get_preset(name: str) -> Preset:
    """Looks a preset up.

    Args:
        name: str. A key of `PRESETS`.

    Returns:
        The `Preset`.

    Raises:
        ValueError: if there is none of that name; the message lists those there are.

    Example:
    ```python
    get_preset("igpt_small").hidden_dim   # 512
    ```
    """
    if name not in PRESETS:
        raise ValueError(f"`name` must be one of {', '.join(PRESETS)}. Received: {name!r}")
    return PRESETS[name]


def count_parameters(
    *,
    vocabulary_size: int,
    image_size: int,
    num_layers: int,
    num_heads: int,
    hidden_dim: int,
    attention: str = "causal",
    normalization: str = "layer_norm",
) -> int:
    """Counts the parameters of a pixel model, pixel head included, without allocating any.

    Args:
        vocabulary_size: int. Palette colours `V`.
        image_size: int. Side of the square input in pixels.
        num_layers: int. Transformer blocks `L`.
        num_heads: int. Attention heads; they share out `hidden_dim` and leave the count as it is.
        hidden_dim: int. Width `D`.
        attention: `"causal"` (with a start vector) or `"bidirectional"`.
        normalization: `"layer_norm"` (gain and bias) or `"rms_norm"` (gain).

    Returns:
        int. Trainable parameters of `ImageGPTCausalLM` or `ImageGPTMaskedLM`. With `rms_norm` and 32x32 pixels they are
        76.57, 455.16, 1362.25 and 6801.44 million for the paper's four sizes, which prints 76M, 455M, 1362M and 6801M.

    Example:
    ```python
    count_parameters(**get_preset("igpt_small").architecture)   # 76,596,736
    ```
    """
    del num_heads
    norm = hidden_dim * (2 if normalization == "layer_norm" else 1)
    attention_weights = 4 * hidden_dim**2
    feed_forward_weights = 2 * hidden_dim * (4 * hidden_dim)
    block = attention_weights + feed_forward_weights + 2 * norm
    start = hidden_dim if attention == "causal" else 0
    embeddings = (vocabulary_size + image_size**2) * hidden_dim + start
    pixel_head = hidden_dim * vocabulary_size
    return num_layers * block + norm + embeddings + pixel_head
