"""Drawing tokens from logits: temperature, top-k and top-p as inputs of the compiled program."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from keras import ops

from keras_igpt.data.repeatable import check_seed, random_bits

# Below it, dividing float32 logits overflows.
_LOWEST_TEMPERATURE = 1e-4


def sample_tokens(logits: Any, uniforms: Any, temperature: Any, top_k: Any, top_p: Any) -> Any:
    """Draws one token a row by inverting the cumulative distribution, most probable token first.

    Args:
        logits: float32 tensor `(B, V)`.
        uniforms: float32 tensor `(B,)` in [0, 1), one number a draw; equal numbers give equal tokens on every backend.
        temperature: float32 tensor `(B,)`, positive; logits are divided by it.
        top_k: int32 tensor `(B,)`, 1…V. Only the k most probable tokens can be drawn; of equal ones the lower ids.
        top_p: float32 tensor `(B,)` in (0, 1]. Only the most probable tokens whose predecessors sum to less than p can
            be drawn.

    Returns:
        int32 tensor `(B,)`.
    """
    logits = logits / ops.expand_dims(temperature, -1)
    order = ops.argsort(-logits, axis=-1)  # stable: of equal logits the lower id comes first
    probabilities = ops.softmax(ops.take_along_axis(logits, order, axis=-1), axis=-1)
    before = ops.cumsum(probabilities, axis=-1) - probabilities
    ranks = ops.expand_dims(ops.arange(logits.shape[-1], dtype="int32"), 0)
    kept = ops.logical_and(ranks < ops.expand_dims(top_k, -1), before < ops.expand_dims(top_p, -1))
    # Rank 0 is always kept, also where p is so small that rounding says otherwise.
    kept = ops.logical_or(kept, ops.equal(ranks, 0))
    cumulative = ops.cumsum(ops.where(kept, probabilities, 0.0), axis=-1)
    target = ops.expand_dims(uniforms, -1) * cumulative[:, -1:]
    rank = ops.sum(ops.cast(cumulative <= target, "int32"), axis=-1)
    last = ops.sum(ops.cast(kept, "int32"), axis=-1) - 1
    rank = ops.expand_dims(ops.minimum(ops.cast(rank, "int32"), ops.cast(last, "int32")), -1)
    return ops.cast(ops.take_along_axis(order, rank, axis=-1)[:, 0], "int32")


def sampling_inputs(
    shape: tuple[int, int],
    vocabulary_size: int,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    seed: int,
    uniforms: npt.ArrayLike | None,
) -> dict[str, npt.NDArray[Any]]:
    """Checks how tokens are to be drawn, and makes the arrays that the compiled program takes.

    Args:
        shape: `(B, T)`, sequences and positions of each.
        vocabulary_size: int. Palette colours `V`.
        temperature: float, 0 for the most probable token.
        top_k: int in 1…V, or None for all.
        top_p: float in (0, 1], or None for all.
        seed: int.
        uniforms: float array `(B, T)` in [0, 1) to draw with instead of the seed's; or None.

    Returns:
        Arrays by name: `"uniforms"` float32 `(B, T)`, a function of `(seed, row, position)`; `"temperature"`, `"top_k"`
        and `"top_p"`, `(B,)` each.

    Raises:
        ValueError: if an argument is out of its range.
    """
    if temperature != 0 and not _LOWEST_TEMPERATURE <= temperature < float("inf"):
        raise ValueError(
            f"`temperature` must be 0 (greedy) or a number of at least {_LOWEST_TEMPERATURE}. "
            f"Received: temperature={temperature}"
        )
    if top_k is not None and not (isinstance(top_k, int) and 1 <= top_k <= vocabulary_size):
        raise ValueError(f"`top_k` must be an integer in 1…{vocabulary_size}. Received: top_k={top_k}")
    if top_p is not None and not 0 < top_p <= 1:
        raise ValueError(f"`top_p` must lie in (0, 1]. Received: top_p={top_p}")
    check_seed(seed)
    if temperature == 0:
        temperature, top_k = 1.0, 1
    rows, tokens = shape
    if uniforms is None:
        bits = random_bits("draw", seed, np.arange(rows)[:, None], np.arange(tokens))
        # 24 bits: more would round to 1 in float32.
        uniforms = (bits >> np.uint64(40)).astype(np.float32) * np.float32(2.0**-24)
    draws = np.asarray(uniforms, np.float32)
    if draws.shape != shape or draws.min() < 0 or draws.max() >= 1:
        raise ValueError(
            f"`uniforms` must have shape {shape} and lie in [0, 1). "
            f"Received: shape {draws.shape}, values from {draws.min()} to {draws.max()}"
        )
    return {
        "uniforms": draws,
        "temperature": np.full(rows, temperature, np.float32),
        "top_k": np.full(rows, vocabulary_size if top_k is None else top_k, np.int32),
        "top_p": np.full(rows, 1.0 if top_p is None else top_p, np.float32),
    }
