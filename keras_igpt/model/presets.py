"""Named architectures and trained models, and what the paper says of training them."""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

from keras_igpt.support.checks import check_choice, check_integer

Objective = Literal["ar", "bert"]


@dataclass(frozen=True)
class Preset:
    """An architecture by name with its pre-training, or a trained model.

    Attributes:
        description: str. What it is, in a line.
        num_layers: int. Transformer blocks `L`.
        num_heads: int. Attention heads `N`.
        hidden_dim: int. Width `D` of the residual stream.
        vocabulary_size: int. Palette colours `V`.
        image_size: int. Side of the square input in pixels; the paper's parameter counts hold for 32.
        learning_rates: peak Adam learning rate by objective, `"ar"` and `"bert"`; one that the paper does not
            give for its own models is absent.
        source: str. Where the figures come from.
        batch_size: int. Sequences of an update in pre-training.
        steps: int. Updates of the whole pre-training; None where nothing is said of it.
        weights: str. Name of the file with a trained model, in the package's folder `weights`; None for an
            architecture alone.
        objective: `"ar"` or `"bert"`, what the trained model was trained under.
        normalization: `"layer_norm"` or `"rms_norm"`, that of the trained model.
    """

    description: str
    num_layers: int
    num_heads: int
    hidden_dim: int
    vocabulary_size: int
    image_size: int
    learning_rates: MappingProxyType[str, float]
    source: str
    batch_size: int = 128
    steps: int | None = None
    weights: str | None = None
    objective: Objective | None = None
    normalization: Literal["layer_norm", "rms_norm"] = "layer_norm"

    @property
    def attention(self) -> Literal["causal", "bidirectional"]:
        """What the trained model's objective needs; causal for an architecture alone, as `ImageGPTBackbone` has it."""
        return "bidirectional" if self.objective == "bert" else "causal"

    @property
    def architecture(self) -> dict[str, Any]:
        """Constructor arguments of `ImageGPTBackbone`: five sizes, and of a trained model all that its weights fix."""
        trained = {"attention": self.attention, "normalization": self.normalization} if self.weights else {}
        return {
            "vocabulary_size": self.vocabulary_size,
            "image_size": self.image_size,
            "num_layers": self.num_layers,
            "num_heads": self.num_heads,
            "hidden_dim": self.hidden_dim,
            **trained,
        }


def _preset(
    description: str,
    num_layers: int,
    num_heads: int,
    hidden_dim: int,
    learning_rates: dict[str, float],
    source: str,
    vocabulary_size: int = 512,
    image_size: int = 32,
    **further: Any,
) -> Preset:
    return Preset(
        description,
        num_layers,
        num_heads,
        hidden_dim,
        vocabulary_size,
        image_size,
        MappingProxyType(learning_rates),
        source,
        **further,
    )


_PAPER = "Chen et al., 2020, section 3.3 and table 5; heads as in the released code"
_OURS = "not in the paper: a size for one small machine, with the autoregressive rate of iGPT-S for both objectives"
_TRAINED = "not in the paper: RESULTS.md, by examples/pretrain.py on two CPU cores, the rate found by its search"

PRESETS: MappingProxyType[str, Preset] = MappingProxyType(
    {
        "igpt_small": _preset("iGPT-S", 24, 8, 512, {"ar": 0.003, "bert": 0.01}, _PAPER, steps=1_000_000),
        "igpt_medium": _preset("iGPT-M", 36, 8, 1024, {"ar": 0.003, "bert": 0.003}, _PAPER, steps=1_000_000),
        # Table 5 also prints 0.01 for 48x48 pictures, ten times the rate at 32x32; it stands alone there.
        "igpt_large": _preset("iGPT-L", 48, 16, 1536, {"ar": 0.001, "bert": 0.001}, _PAPER, steps=1_000_000),
        # The paper does not state the heads of iGPT-XL. 32 gives them the width of iGPT-L's, 96. It was trained on
        # 64x64 pictures (`image_size=64`), yet its parameter count is the one at 32x32.
        "igpt_extra_large": _preset(
            "iGPT-XL",
            60,
            32,
            3072,
            {"ar": 0.0003},
            f"{_PAPER}, which says nothing of this one's: 32 is our choice",
            batch_size=64,
            steps=2_000_000,
        ),
        "igpt_nano": _preset(
            "for trying out", 6, 4, 64, {"ar": 0.003, "bert": 0.003}, _OURS, vocabulary_size=64, image_size=8
        ),
        "igpt_tiny": _preset(
            "for a laptop", 8, 4, 128, {"ar": 0.003, "bert": 0.003}, _OURS, vocabulary_size=128, image_size=16
        ),
        "igpt_mini": _preset("for one GPU", 12, 8, 256, {"ar": 0.003, "bert": 0.003}, _OURS),
        "igpt_cifar10_8x8": _preset(
            "trained on CIFAR-10, autoregressively",
            8,
            4,
            96,
            {"ar": 0.003},
            _TRAINED,
            vocabulary_size=256,
            image_size=8,
            batch_size=64,
            steps=2800,
            weights="igpt_cifar10_8x8.npz",
            objective="ar",
        ),
        "igpt_cifar10_8x8_bert": _preset(
            "trained on CIFAR-10 under the BERT objective",
            8,
            4,
            96,
            {"bert": 0.003},
            _TRAINED,
            vocabulary_size=256,
            image_size=8,
            batch_size=64,
            steps=2800,
            weights="igpt_cifar10_8x8_bert.npz",
            objective="bert",
        ),
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
    check_choice("name", name, PRESETS)
    return PRESETS[name]


def trained_presets() -> tuple[str, ...]:
    """Lists the presets that come with weights.

    Returns:
        Tuple of str, keys of `PRESETS`.

    Example:
    ```python
    trained_presets()
    ```
    """
    return tuple(name for name, preset in PRESETS.items() if preset.weights is not None)


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
    sizes = (vocabulary_size, image_size, num_layers, num_heads, hidden_dim)
    names = ("vocabulary_size", "image_size", "num_layers", "num_heads", "hidden_dim")
    vocabulary_size, image_size, num_layers, num_heads, hidden_dim = map(check_integer, names, sizes)
    norm = hidden_dim * (2 if normalization == "layer_norm" else 1)
    attention_weights = 4 * hidden_dim**2
    feed_forward_weights = 2 * hidden_dim * (4 * hidden_dim)
    block = attention_weights + feed_forward_weights + 2 * norm
    start = hidden_dim if attention == "causal" else 0
    embeddings = (vocabulary_size + image_size**2) * hidden_dim + start
    pixel_head = hidden_dim * vocabulary_size
    return num_layers * block + norm + embeddings + pixel_head
