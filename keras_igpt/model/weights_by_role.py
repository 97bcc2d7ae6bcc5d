"""Which weight is which: the role of each weight in the network, whatever the models around it are called."""

from __future__ import annotations

import re

import keras

# How the path of a weight ends, by role; shapes as in the data contract. Files of trained presets use these paths.
_OF_BLOCK = {
    "attention_norm": "attention_norm/gain",  # (D,)
    "attention_norm_bias": "attention_norm/bias",  # (D,), with layer_norm
    "query_key_value": "attention/query_key_value/kernel",  # (D, 3, N, H)
    "query_key_value_bias": "attention/query_key_value/bias",  # (3, N, H), with projection_bias
    "output_projection": "attention/output_projection/kernel",  # (N, H, D)
    "output_projection_bias": "attention/output_projection/bias",  # (D,), with projection_bias
    "feed_forward_norm": "feed_forward_norm/gain",  # (D,)
    "feed_forward_norm_bias": "feed_forward_norm/bias",  # (D,), with layer_norm
    "expansion": "feed_forward/expansion/kernel",  # (D, 4D)
    "expansion_bias": "feed_forward/expansion/bias",  # (4D,), with projection_bias
    "contraction": "feed_forward/contraction/kernel",  # (4D, D)
    "contraction_bias": "feed_forward/contraction/bias",  # (D,), with projection_bias
}
PATHS = {
    "token_embedding": "pixel_embedding/token_embedding/embeddings",  # (V, D)
    "position_embedding": "pixel_embedding/position_embedding",  # (T, D)
    "start_vector": "pixel_embedding/start_vector",  # (D,), causal models only
    **_OF_BLOCK,
    "final_norm": "final_norm/gain",  # (D,)
    "final_norm_bias": "final_norm/bias",  # (D,), with layer_norm
    "pixel_head": "pixel_head/kernel",  # (D, V)
    "class_head": "class_head/kernel",  # (D, C)
    "mask_step": "random_position_mask/step",  # (), of BERT's masks
}

_ROLES = {path: role for role, path in PATHS.items()}
_PATTERN = re.compile(rf"(?:.*?/)??(?:(block_\d+)/)?({'|'.join(_ROLES)})")


def weights_by_role(model: keras.Model) -> dict[str, keras.Variable]:
    """Returns the weights of a model by their role.

    Args:
        model: an `ImageGPTBackbone`, `ImageGPTCausalLM`, `ImageGPTMaskedLM` or `ImageGPTImageClassifier`, not
            quantised.

    Returns:
        Dictionary of all weights: `"token_embedding"`, `"block_0.query_key_value"` and so on.

    Raises:
        ValueError: if a weight has no role.

    Example:
    ```python
    weights_by_role(lm)["block_3.expansion"].shape   # (D, 4D)
    ```
    """
    return {_role_of(weight.path): weight for weight in model.weights}


def path_of(role: str) -> str:
    """Returns the path of a weight inside its model: `"block_3/feed_forward/expansion/kernel"`.

    Args:
        role: str. A key of `weights_by_role`.
    """
    block, _, part = role.rpartition(".")
    return f"{block}/{PATHS[part]}" if block else PATHS[part]


def _role_of(path: str) -> str:
    found = _PATTERN.fullmatch(path)
    if found is None:
        raise ValueError(f"`model` must have the weights of an Image GPT alone. Received: {path}")
    block, role = found[1], _ROLES[found[2]]
    return f"{block}.{role}" if role in _OF_BLOCK else role
