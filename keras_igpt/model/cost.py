"""What a pixel model will need: arithmetic and memory, from its shapes alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import keras

from keras_igpt.model.architecture import Architecture, check_architecture
from keras_igpt.model.presets import get_preset
from keras_igpt.support.checks import check_choice, check_flag, check_integer

# Widths D that a block keeps of each token for its backward pass, in the compute dtype: both normalised inputs;
# queries, keys and values; attention's output in the kernel's layout and in the projection's; the input of quick_gelu,
# 4 D, and on TensorFlow and PyTorch its output.
_KEPT_WIDTHS = {"jax": 2 + 3 + 2 + 4, "tensorflow": 2 + 3 + 2 + 2 * 4, "torch": 2 + 3 + 2 + 2 * 4}
# In float32, for each normalisation: its input, and what else its gradient needs where it is not one kernel.
_KEPT_WIDTHS_OF_NORM = {"jax": 1, "tensorflow": 2, "torch": 1}
# Widths D of temporary tensors in a block's backward pass, and in its forward pass where nothing is kept.
_BACKWARD_WIDTHS = 11
_FORWARD_WIDTHS = 13
# The logits, their log-softmax and the gradients of both.
_COPIES_OF_LOGITS = 4
# Bytes of a number in a block and of one in a weight, by dtype policy.
BYTES_BY_POLICY = {
    "float32": (4, 4),
    "mixed_bfloat16": (2, 4),
    "mixed_float16": (2, 4),
    "bfloat16": (2, 2),
    "float16": (2, 2),
    "float64": (8, 8),
}
# Temporary arrays of all weights in an update.
_UPDATE_COPIES = {"jax": 0, "tensorflow": 0, "torch": 3}


def memory_text(size: int) -> str:
    """Returns a number of bytes in GiB, or in MiB where that would show next to nothing."""
    return f"{size / 2**30:,.2f} GiB" if size >= 2**30 else f"{size / 2**20:,.2f} MiB"


def forward_flops(
    num_layers: int,
    hidden_dim: int,
    vocabulary_size: int,
    num_tokens: int,
    batch_size: int,
    causal: bool = True,
) -> int:
    """Counts the floating point operations of one forward pass: matrix products alone, two for a multiply-add.

    Of causal attention only the `T (T + 1) / 2` visible pairs are counted, whatever a kernel computes in vain. A
    training step takes three times as many; recomputation by `remat` is not counted.

    Args:
        num_layers: int. Transformer blocks `L`.
        hidden_dim: int. Width `D`.
        vocabulary_size: int. Palette colours `V`.
        num_tokens: int. Sequence length `T`.
        batch_size: int. Sequences `B`.
        causal: bool. Whether attention is causal.

    Returns:
        int.

    Example:
    ```python
    forward_flops(24, 512, 512, num_tokens=1024, batch_size=1)   # 180,950,663,168 for iGPT-S
    ```
    """
    pairs = num_tokens * (num_tokens + 1) // 2 if causal else num_tokens**2
    projections = 2 * num_tokens * 12 * hidden_dim**2  # queries, keys, values, output: 4 D^2; feed-forward: 8 D^2
    attention = 2 * pairs * 2 * hidden_dim  # scores and weighted values, summed over heads
    pixel_head = 2 * num_tokens * hidden_dim * vocabulary_size
    return batch_size * (num_layers * (projections + attention) + pixel_head)


@dataclass(frozen=True)
class Estimate:
    """What training and running a pixel model needs; memory in bytes. Printed, it is a table.

    Attributes:
        title: str. Model, batch, dtype policy and backend.
        parameters: int. Trainable parameters.
        weights: int. The weights, in their own dtype.
        gradients: int. One gradient a weight.
        optimizer_state: int. Adam's two moments, and the accumulator and the average where asked for.
        activations: int. What the forward pass keeps for the backward pass, and the workspace of one block.
        logits: int. The logits of a batch, and what the loss keeps beside them.
        training_memory: int. The peak of a training step.
        inference_memory: int. The peak of `predict` or `score`.
        key_value_cache: int. Keys and values of a batch, which `generate` holds beside the weights.
        tokens: int. Tokens of a batch.
        forward_flops: int. Operations of a batch's forward pass, as `forward_flops` counts them.
    """

    title: str
    parameters: int
    weights: int
    gradients: int
    optimizer_state: int
    activations: int
    logits: int
    training_memory: int
    inference_memory: int
    key_value_cache: int
    tokens: int
    forward_flops: int

    @property
    def training_flops(self) -> int:
        """Operations of a training step: three forward passes."""
        return 3 * self.forward_flops

    @property
    def forward_flops_per_token(self) -> float:
        """Operations of the forward pass for one token."""
        return self.forward_flops / self.tokens

    @property
    def training_flops_per_token(self) -> float:
        """Operations of a training step for one token."""
        return self.training_flops / self.tokens

    def __str__(self) -> str:
        memory = {
            "weights": self.weights,
            "gradients": self.gradients,
            "optimizer state": self.optimizer_state,
            "activations": self.activations,
            "logits and loss": self.logits,
            "training, at most": self.training_memory,
            "inference, at most": self.inference_memory,
            "key-value cache": self.key_value_cache,
        }
        rows = {
            "parameters": f"{self.parameters:,}",
            "tokens a step": f"{self.tokens:,}",
            **{name: memory_text(size) for name, size in memory.items()},
            "forward pass": f"{self.forward_flops_per_token / 1e9:,.3f} GFLOP a token",
            "training": f"{self.training_flops_per_token / 1e9:,.3f} GFLOP a token",
            "training step": f"{self.training_flops / 1e12:,.3f} TFLOP",
        }
        return "\n".join([self.title, *(f"  {name:<20}{value:>24}" for name, value in rows.items())])


def estimate(
    preset: str | Architecture | Mapping[str, Any],
    batch_size: int,
    image_size: int | None = None,
    *,
    dtype: str = "float32",
    remat: bool = False,
    gradient_accumulation: bool = False,
    ema: bool = False,
    backend: str | None = None,
) -> Estimate:
    """Estimates the memory and the arithmetic of a pixel model before anything is allocated.

    Counts the tensors of a training step with Adam on one device, undivided. A framework's own hundreds of megabytes,
    fragmentation and a compiler's freedom come on top: leave a sixth of the memory free.

    Args:
        preset: name of a preset; an `Architecture`; or its fields in a dictionary, the choices optional.
        batch_size: int. Sequences `B` of a step.
        image_size: int. Side of the images, in place of the preset's.
        dtype: dtype policy of the model: `"float32"`, `"mixed_bfloat16"`, `"mixed_float16"`, `"bfloat16"`,
            `"float16"`, `"float64"`.
        remat: bool. Whether the backward pass recomputes the blocks. The estimate was then a third too low on PyTorch
            at the one, tiny, size where it was compared.
        gradient_accumulation: bool. Whether the optimizer accumulates gradients.
        ema: bool. Whether the optimizer keeps an average of the weights.
        backend: `"jax"`, `"tensorflow"` or `"torch"`; Keras' current one by default.

    Returns:
        An `Estimate`.

    Raises:
        ValueError: if an argument is out of its range.

    Example:
    ```python
    print(estimate("igpt_large", batch_size=16, dtype="mixed_bfloat16", remat=True))
    ```
    """
    model = get_preset(preset) if isinstance(preset, str) else check_architecture("preset", preset)
    if image_size is not None:
        model = replace(model, image_size=image_size)
    batch_size = check_integer("batch_size", batch_size)
    averages = check_flag("gradient_accumulation", gradient_accumulation) + check_flag("ema", ema)
    remat = check_flag("remat", remat)
    backend = keras.backend.backend() if backend is None else backend
    check_choice("backend", backend, _UPDATE_COPIES)
    check_choice("dtype", dtype, BYTES_BY_POLICY)
    compute, variable = BYTES_BY_POLICY[dtype]
    tokens, width = batch_size * model.num_tokens, model.hidden_dim

    # The pixel head is float32 under any policy.
    head = width * model.vocabulary_size
    weights = (model.num_parameters - head) * variable + head * 4
    optimizer_state = weights * (2 + averages)
    logits = tokens * model.vocabulary_size * 4
    scores = _score_bytes(model, batch_size, backend, compute)
    kept, workspace = _activation_bytes(model, tokens, backend, compute, variable, remat)
    workspace += scores
    moments = [
        kept + max(_COPIES_OF_LOGITS * logits, logits + workspace),
        weights * (1 + _UPDATE_COPIES[backend]) + logits * (backend == "torch"),
    ]
    if backend == "torch":
        # Keras drops the last step's gradients after the forward pass.
        moments.append(weights + kept + logits)
    title = f"{preset if isinstance(preset, str) else 'model'}, {batch_size} x {model.num_tokens} tokens, {dtype}, "
    return Estimate(
        title=title + backend + (", remat" if remat else ""),
        parameters=model.num_parameters,
        weights=weights,
        gradients=weights,
        optimizer_state=optimizer_state,
        activations=kept + workspace,
        logits=_COPIES_OF_LOGITS * logits,
        training_memory=weights + optimizer_state + max(moments),
        inference_memory=weights + logits + tokens * _FORWARD_WIDTHS * width * compute + scores,
        key_value_cache=2 * model.num_layers * tokens * width * compute,
        tokens=tokens,
        forward_flops=forward_flops(
            model.num_layers, width, model.vocabulary_size, model.num_tokens, batch_size, model.attention == "causal"
        ),
    )


def _score_bytes(model: Architecture, batch_size: int, backend: str, compute: int) -> int:
    """Attention scores of one block of queries, a few of them at once, where no kernel is fused."""
    if backend == "torch" or (backend == "jax" and compute < 4):
        return 0
    queries = max(64, -(-model.num_tokens // 8))
    return 3 * batch_size * model.num_heads * queries * model.num_tokens * 4


def _activation_bytes(
    model: Architecture, tokens: int, backend: str, compute: int, variable: int, remat: bool
) -> tuple[int, int]:
    """What the forward pass keeps for the backward pass, and the workspace of one block without its scores."""
    width = model.hidden_dim
    norm_widths = _KEPT_WIDTHS_OF_NORM[backend] + (backend == "torch" and model.normalization == "rms_norm")
    # Statistics of attention, one float32 a head and token, stand in for the score matrix.
    block = tokens * (_KEPT_WIDTHS[backend] * width * compute + 2 * norm_widths * width * 4 + model.num_heads * 4)
    if compute != variable:
        block += 12 * width**2 * compute  # the weights, cast
    workspace = tokens * _BACKWARD_WIDTHS * width * compute
    ends = tokens * width * (compute + 4)  # of the final norm and the pixel head
    if remat:
        return model.num_layers * tokens * width * compute + ends, workspace + block
    return model.num_layers * block + ends, workspace
