"""Attention probabilities of one block."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import numpy.typing as npt
from keras import ops

from keras_igpt.data.inputs import Pictures, as_token_ids
from keras_igpt.inference.sampling import check_prompt
from keras_igpt.support.checks import check_integer


def attention_maps(
    language_model: keras.Model,
    inputs: Pictures,
    layer: int,
    head: int | None = None,
    position_mask: npt.ArrayLike | None = None,
) -> npt.NDArray[np.float32]:
    """Computes the attention probabilities of one block, for a few pictures.

    Slow: nothing is compiled, and each head's `T x T` matrix is in memory, 4 MiB at 1024 positions.

    Args:
        language_model: an `ImageGPTCausalLM` or `ImageGPTMaskedLM`.
        inputs: pictures or token ids `(B, T)`, as in `score`.
        layer: int in 0…L-1. The block.
        head: int in 0…N-1; all heads by default.
        position_mask: bool array `(B, T)`, True where a pixel is hidden from a BERT model; by default none.

    Returns:
        float32 array `(B, N, T, T)`, or `(B, T, T)` for one head. Row i, which sums to one, is the attention of
        position i. In an autoregressive model, position i predicts pixel i, and the input at position j is pixel j - 1,
        or the start vector at 0.

    Raises:
        ValueError: if an argument is out of range, or inputs do not fit the model.

    Example:
    ```python
    maps = attention_maps(lm, images[:1], layer=6)   # (1, N, T, T)
    ```
    """
    backbone: Any = language_model.backbone
    layer = check_integer("layer", layer, 0, backbone.num_layers - 1)
    if head is not None:
        head = check_integer("head", head, 0, backbone.num_heads - 1)
    token_ids = as_token_ids(language_model, inputs).astype(np.int32)
    mask = None
    if position_mask is not None:
        _, hidden = check_prompt(backbone, {"inputs": token_ids}, {"position_mask": position_mask}, drawn=False)
        mask = ops.convert_to_tensor(hidden)
    (states,) = backbone.normed_states(ops.convert_to_tensor(token_ids), (layer,), mask)
    projected = ops.cast(backbone.blocks[layer].attention.query_key_value(states), "float32")  # (B, T, 3, N, H)
    query, key = projected[:, :, 0], projected[:, :, 1]
    if head is not None:
        query, key = query[:, :, head : head + 1], key[:, :, head : head + 1]
    scores = ops.einsum("bqnh,bknh->bnqk", query * backbone.head_dim**-0.5, key)
    if backbone.attention == "causal":
        visible = ops.convert_to_tensor(np.tri(backbone.num_tokens, dtype=bool))
        scores = ops.where(visible, scores, float("-inf"))
    maps: npt.NDArray[np.float32] = ops.convert_to_numpy(ops.softmax(scores, axis=-1))
    return maps if head is None else maps[:, 0]
