"""Named architectures and trained models, and what the paper says of training them."""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

from keras_igpt.model.architecture import Architecture
from keras_igpt.support.checks import check_choice

Objective = Literal["ar", "bert"]


@dataclass(frozen=True, kw_only=True)
class Preset(Architecture):
    """An architecture by name with its pre-training, or a trained model.

    The paper's parameter counts hold for `image_size=32`. An architecture without weights serves both objectives,
    whatever its `attention`.

    Attributes:
        description: str. What it is, in a line.
        learning_rates: peak Adam learning rate by objective, `"ar"` and `"bert"`; absent where the paper gives none
            for its own models.
        source: str. Where the figures come from.
        batch_size: int. Sequences of an update in pre-training.
        steps: int. Updates of the whole pre-training; None if unknown.
        weights: str. File of the trained model in the package's folder `weights`; None for an architecture alone.
    """

    description: str
    learning_rates: MappingProxyType[str, float]
    source: str
    batch_size: int = 128
    steps: int | None = None
    weights: str | None = None

    @property
    def objective(self) -> Objective | None:
        """`"ar"` or `"bert"`, what the trained model was trained under; None for an architecture alone."""
        if self.weights is None:
            return None
        return "ar" if self.attention == "causal" else "bert"

    @property
    def architecture(self) -> dict[str, Any]:
        """Constructor arguments of `ImageGPTBackbone`: five sizes, and of a trained model all that its weights fix."""
        return self.sizes if self.weights is None else self.arguments


def _rates(**rates: float) -> MappingProxyType[str, float]:
    return MappingProxyType(rates)


_SOURCE = "Chen et al., 2020, section 3.3 and table 5; heads as in the released code"
_PAPER: dict[str, Any] = {"source": _SOURCE, "steps": 1_000_000}
_OURS: dict[str, Any] = {
    "learning_rates": _rates(ar=0.003, bert=0.003),
    "source": "not in the paper: a size for one machine, with the autoregressive rate of iGPT-S for both objectives",
}


def _trained_on_cifar10(
    vocabulary_size: int, image_size: int, objective: Objective, steps: int, rate: str = "that a search found"
) -> Preset:
    causal = objective == "ar"
    return Preset(
        *(vocabulary_size, image_size, 8, 4, 96),
        attention="causal" if causal else "bidirectional",
        description=f"trained on CIFAR-10{', autoregressively' if causal else ' under the BERT objective'}",
        learning_rates=_rates(**{objective: 0.003}),
        source=f"not in the paper: RESULTS.md, trained on two CPU cores at the rate {rate}",
        batch_size=64,
        steps=steps,
        weights=f"igpt_cifar10_{image_size}x{image_size}{'' if causal else '_bert'}.npz",
    )


# Vocabulary size, image size, layers, heads, width.
PRESETS: MappingProxyType[str, Preset] = MappingProxyType(
    {
        "igpt_small": Preset(
            *(512, 32, 24, 8, 512), description="iGPT-S", learning_rates=_rates(ar=0.003, bert=0.01), **_PAPER
        ),
        "igpt_medium": Preset(
            *(512, 32, 36, 8, 1024), description="iGPT-M", learning_rates=_rates(ar=0.003, bert=0.003), **_PAPER
        ),
        # Table 5 also prints 0.01 for 48x48 pixels, ten times the rate at 32x32; it stands alone there.
        "igpt_large": Preset(
            *(512, 32, 48, 16, 1536), description="iGPT-L", learning_rates=_rates(ar=0.001, bert=0.001), **_PAPER
        ),
        # The paper does not state the heads of iGPT-XL. 32 gives them the width of iGPT-L's, 96. It was trained on
        # 64x64 pixels (`image_size=64`), yet its parameter count is the one at 32x32.
        "igpt_extra_large": Preset(
            *(512, 32, 60, 32, 3072),
            description="iGPT-XL",
            learning_rates=_rates(ar=0.0003),
            source=f"{_SOURCE}, which says nothing of this one's: 32 is our choice",
            batch_size=64,
            steps=2_000_000,
        ),
        "igpt_nano": Preset(64, 8, 6, 4, 64, description="for trying out", **_OURS),
        "igpt_tiny": Preset(128, 16, 8, 4, 128, description="for a laptop", **_OURS),
        "igpt_mini": Preset(512, 32, 12, 8, 256, description="for one GPU", **_OURS),
        "igpt_cifar10_8x8": _trained_on_cifar10(256, 8, "ar", steps=2800),
        "igpt_cifar10_8x8_bert": _trained_on_cifar10(256, 8, "bert", steps=2800),
        "igpt_cifar10_16x16": _trained_on_cifar10(512, 16, "ar", steps=1400),
        "igpt_cifar10_16x16_bert": _trained_on_cifar10(512, 16, "bert", steps=1400, rate="of the others"),
    }
)


def get_preset(name: str) -> Preset:
    """Returns the `Preset` of a name.

    Raises:
        ValueError: if there is none; the message lists all names.

    Example:
    ```python
    get_preset("igpt_small").hidden_dim   # 512
    ```
    """
    check_choice("name", name, PRESETS)
    return PRESETS[name]


def trained_presets() -> tuple[str, ...]:
    """Returns the names of the presets that come with weights."""
    return tuple(name for name, preset in PRESETS.items() if preset.weights is not None)
