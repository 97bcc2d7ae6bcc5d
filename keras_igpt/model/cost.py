"""What a model will need: arithmetic and memory, from its shapes alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import keras

from keras_igpt.model.architecture import Architecture, check_architecture
from keras_igpt.model.presets import get_preset
from keras_igpt.support.checks import check_choice, check_integer

# Widths D that a block keeps of each token for its backward pass, in the compute dtype: both normalised inputs;
# queries, keys and values; attention's output in the kernel's layout and in the projection's; in the feed-forward part
# what goes into quick_gelu and what comes out, 4 D each.
_KEPT_WIDTHS = 2 + 3 + 2 + 2 * 4
# In float32, for each normalisation: its input, and what else its gradient needs where it is not one kernel.
_KEPT_WIDTHS_OF_NORM = {"jax": 1, "tensorflow": 2, "torch": 1}
# Widths D that come and go in the backward pass of a block, and in a block's forward pass where nothing is kept.
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
# Arrays of all weights that an update makes on the way.
_UPDATE_COPIES = {"jax": 0, "tensorflow": 0, "torch": 3}


def forward_flops(
    num_layers: int,
    hidden_dim: int,
    vocabulary_size: int,
    num_tokens: int,
    batch_size: int,
    causal: bool = True,
) -> int:
    """Counts the arithmetic of one forward pass of a pixel model: matrix products alone.

    Two operations a multiply-add. A causal model attends from each position to itself and those before it, which is
    `T (T + 1) / 2` pairs a head and sequence, and only these are counted, whatever a kernel computes in vain. The
    backward pass is twice as much, so that a training step is three times this; what rematerialisation computes anew
    is not counted.

    Args:
        num_layers: int. Transformer blocks `L`.
        hidden_dim: int. Width `D`.
        vocabulary_size: int. Palette colours `V`.
        num_tokens: int. Sequence length `T`.
        batch_size: int. Sequences `B`.
        causal: bool. Whether attention is causal.

    Returns:
        int. Floating point operations.

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
        title: str. What it was made for.
        parameters: int. Trainable parameters.
        weights: int. The weights, in the dtype they are kept in.
        gradients: int. One gradient a weight.
        optimizer_state: int. Adam's two moments, and the accumulator and the average where asked for.
        activations: int. What the forward pass keeps for the backward pass, and what one block works in.
        logits: int. The logits of a batch, and what the loss keeps beside them.
        training_memory: int. The most that is held at once in a training step.
        inference_memory: int. The most that is held at once in `predict` or `score`.
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
        rows = {"parameters": f"{self.parameters:,}", "tokens a step": f"{self.tokens:,}"}
        rows |= {name: f"{size / 2**30:,.2f} GiB" for name, size in memory.items()}
        rows |= {
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

    Counted are the tensors that a training step with Adam keeps, on one device: a model's shares under data or model
    parallelism are not worked out. A framework's own hundreds of megabytes, fragments and a compiler's freedom come on
    top: leave a sixth of the memory free.

    Args:
        preset: name of a preset; an `Architecture`; or its fields in a dictionary, the choices optional.
        batch_size: int. Sequences `B` of a step.
        image_size: int. Side of the pictures, in place of the preset's.
        dtype: dtype policy of the model: `"float32"`, `"mixed_bfloat16"`, `"mixed_float16"`, `"bfloat16"`,
            `"float16"`, `"float64"`.
        remat: bool. Whether blocks are computed anew in the backward pass. With it the estimate was a third too low on
            PyTorch at the one, tiny, size where it was compared; elsewhere it was not.
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
    architecture = get_preset(preset) if isinstance(preset, str) else check_architecture("preset", preset)
    if image_size is not None:
        architecture = replace(architecture, image_size=image_size)
    batch_size = check_integer("batch_size", batch_size)
    backend = keras.backend.backend() if backend is None else backend
    check_choice("backend", backend, _UPDATE_COPIES)
    check_choice("dtype", dtype, BYTES_BY_POLICY)
    compute, variable = BYTES_BY_POLICY[dtype]
    layers, width, heads = architecture.num_layers, architecture.hidden_dim, architecture.num_heads
    vocabulary, length = architecture.vocabulary_size, architecture.num_tokens
    causal = architecture.attention == "causal"
    tokens = batch_size * length

    # === What lives throughout ===
    parameters = architecture.num_parameters
    # The pixel head is float32 under any policy.
    head = width * vocabulary
    weights = (parameters - head) * variable + head * 4
    optimizer_state = weights * (2 + gradient_accumulation + ema)

    # === What the forward pass keeps ===
    fused = backend == "torch" or (backend == "jax" and compute < 4)
    norm_widths = _KEPT_WIDTHS_OF_NORM[backend]
    if backend == "torch" and architecture.normalization == "rms_norm":
        norm_widths += 1
    # Statistics of attention, one float32 a head and token, stand in for the score matrix.
    block = tokens * (_KEPT_WIDTHS * width * compute + 2 * norm_widths * width * 4 + heads * 4)
    if compute != variable:
        block += 12 * width**2 * compute
    # Scores of one block of queries, a few of them at once.
    scores = 0 if fused else 3 * batch_size * heads * max(64, -(-length // 8)) * length * 4
    workspace = tokens * _BACKWARD_WIDTHS * width * compute + scores
    ends = tokens * width * (compute + 4)  # what the final norm and the pixel head keep
    if remat:
        kept = layers * tokens * width * compute + ends
        workspace += block
    else:
        kept = layers * block + ends

    # === The most at once ===
    logits = tokens * vocabulary * 4
    moments = [
        kept + max(_COPIES_OF_LOGITS * logits, logits + workspace),
        weights * (1 + _UPDATE_COPIES[backend]) + logits * (backend == "torch"),
    ]
    if backend == "torch":
        # Keras drops the last step's gradients after the forward pass.
        moments.append(weights + kept + logits)
    return Estimate(
        title=f"{preset if isinstance(preset, str) else 'model'}, {batch_size} x {length} tokens, {dtype}, {backend}"
        + (", remat" if remat else ""),
        parameters=parameters,
        weights=weights,
        gradients=weights,
        optimizer_state=optimizer_state,
        activations=kept + workspace,
        logits=_COPIES_OF_LOGITS * logits,
        training_memory=weights + optimizer_state + max(moments),
        inference_memory=weights + logits + tokens * _FORWARD_WIDTHS * width * compute + scores,
        key_value_cache=2 * layers * tokens * width * compute,
        tokens=tokens,
        forward_flops=forward_flops(layers, width, vocabulary, length, batch_size, causal),
    )
