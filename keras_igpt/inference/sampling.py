"""Drawing tokens from logits: temperature, top-k and top-p as inputs of the compiled program."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from keras import ops

from keras_igpt.palette.color_palette import TokenIds, check_token_ids
from keras_igpt.support.checks import check_integer, check_number
from keras_igpt.support.randomness import check_seed, random_bits

# In place of the tokens of a sequence that met NaN or infinity.
NOT_DRAWN = -1

# Below it, dividing float32 logits overflows.
_LOWEST_TEMPERATURE = 1e-4


def sample_tokens(logits: Any, uniforms: Any, temperature: Any, top_k: Any, top_p: Any) -> Any:
    """Draws one token a row by inverting the cumulative distribution over token ids.

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
    probabilities = ops.softmax(logits, axis=-1)
    vocabulary_size = logits.shape[-1]
    restricted = ops.logical_or(ops.any(top_k < vocabulary_size), ops.any(top_p < 1.0))
    # Sorting takes XLA on CPU nearly as long as all products of a small network: it is left out where it can be.
    weights = ops.cond(
        restricted,
        lambda: ops.where(_kept(logits, top_k, top_p), probabilities, 0.0),
        lambda: probabilities,
    )
    cumulative = ops.cumsum(weights, axis=-1)
    target = ops.expand_dims(uniforms, -1) * cumulative[:, -1:]
    # Sums are rounded in another order on each backend, and need not stay equal where a weight is zero.
    ids, possible = ops.arange(0, vocabulary_size, dtype="int32"), weights > 0
    first = ops.min(ops.where(ops.logical_and(possible, cumulative > target), ids, vocabulary_size), axis=-1)
    last = ops.max(ops.where(possible, ids, 0), axis=-1)
    return ops.minimum(first, last)


def _kept(logits: Any, top_k: Any, top_p: Any) -> Any:
    """Which tokens `(B, V)` top-k and top-p leave: as many of the most probable ones as both allow; one at least."""
    descending = ops.flip(ops.sort(logits, axis=-1), axis=-1)
    probabilities = ops.softmax(descending, axis=-1)
    before = ops.cumsum(probabilities, axis=-1) - probabilities
    allowed = ops.sum(ops.cast(before < ops.expand_dims(top_p, -1), "int32"), axis=-1)
    count = ops.expand_dims(ops.maximum(ops.minimum(ops.cast(allowed, "int32"), top_k), 1), -1)
    least = ops.take_along_axis(descending, count - 1, axis=-1)
    more, equal = logits > least, ops.equal(logits, least)
    # Of equal ones, the lower ids fill the places that are left.
    places = count - ops.cast(ops.sum(ops.cast(more, "int32"), axis=-1, keepdims=True), "int32")
    rank = ops.cast(ops.cumsum(ops.cast(equal, "int32"), axis=-1), "int32")
    return ops.logical_or(more, ops.logical_and(equal, rank <= places))


def check_prompt(
    backbone: Any, token_ids: dict[str, npt.ArrayLike], mask: dict[str, npt.ArrayLike], drawn: bool
) -> tuple[TokenIds, npt.NDArray[np.bool_]]:
    """Checks the tokens that are given and which of them are meant.

    Args:
        backbone: the model's `ImageGPTBackbone`.
        token_ids: int array `(B, T)` by the name of the caller's argument.
        mask: bool array `(B, T)` or `(T,)` by the name of the caller's argument.
        drawn: bool. Whether tokens are drawn where the mask is True, or where it is False. What is given there may be
            anything.

    Returns:
        int32 array, zero where tokens are drawn, and bool array, `(B, T)` each.

    Raises:
        ValueError: if one is of another shape or kind.
    """
    ((name, given),) = token_ids.items()
    prompt, tokens = np.asarray(given), backbone.num_tokens
    if prompt.ndim != 2 or prompt.shape[1] != tokens or len(prompt) < 1:
        raise ValueError(f"`{name}` must have shape (B, {tokens}) with B at least 1. Received: shape {prompt.shape}")
    ((mask_name, given),) = mask.items()
    chosen = np.asarray(given)
    if chosen.dtype != bool or chosen.shape not in (prompt.shape, prompt.shape[1:]):
        raise ValueError(
            f"`{mask_name}` must be bool of shape {prompt.shape} or {prompt.shape[1:]}. "
            f"Received: {chosen.dtype} of shape {chosen.shape}"
        )
    kept = np.where(chosen == drawn, prompt.dtype.type(0), prompt)
    return check_token_ids(kept, backbone.vocabulary_size, name).astype(np.int32), np.broadcast_to(chosen, prompt.shape)


def check_all_drawn(token_ids: TokenIds) -> TokenIds:
    """Refuses tokens of which some are `NOT_DRAWN`.

    Args:
        token_ids: int array `(B, T)`.

    Returns:
        The same array.

    Raises:
        ValueError: if the logits of a sequence were not finite.
    """
    failed = int((token_ids < 0).any(axis=-1).sum())
    if failed:
        raise ValueError(
            "The model must give finite logits to draw from; its weights have diverged. "
            f"Received: NaN or infinity in {failed} of {len(token_ids)} sequences"
        )
    return token_ids


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
    temperature = check_number("temperature", temperature, 0)
    if 0 < temperature < _LOWEST_TEMPERATURE:
        raise ValueError(
            f"`temperature` must be 0 (greedy) or at least {_LOWEST_TEMPERATURE}. Received: temperature={temperature}"
        )
    if top_k is not None:
        top_k = check_integer("top_k", top_k, 1, vocabulary_size)
    if top_p is not None:
        top_p = check_number("top_p", top_p, 0, 1, above=True)
    seed = check_seed(seed)
    if temperature == 0:
        temperature, top_k = 1.0, 1
    rows, tokens = shape
    if uniforms is None:
        bits = random_bits("draw", seed, np.arange(rows)[:, None], np.arange(tokens))
        # 24 bits: more would round to 1 in float32.
        uniforms = (bits >> np.uint64(40)).astype(np.float32) * np.float32(2.0**-24)
    draws = np.asarray(uniforms, np.float32)
    # Said so that not-a-number fails too.
    if draws.shape != shape or not (draws.min() >= 0 and draws.max() < 1):
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
