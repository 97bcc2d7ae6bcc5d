"""A transformer block over few positions in plain PyTorch calls.

In decoding, Keras' layers and operations take several times as long as the arithmetic of a small model.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import keras

from keras_igpt.backend.fused_attention import Window, attend_in_place

# The kernel `(in, out)` of a layer, or the gain of a norm, and its bias, which may be None.
Affine = tuple[Any, Any]


class EagerBlock(NamedTuple):
    """A pre-norm block: its weights as PyTorch tensors, read once for all steps, and its constants.

    The activation is `silu(s · x) / s`. The first factor is in the weights of the norm before it, the second is
    `residual_scale`, with the bias of the contraction multiplied by s.
    """

    attention_norm: Affine
    query_key_value: Affine
    output_projection: Affine
    feed_forward_norm: Affine
    expansion: Affine
    contraction: Affine
    centred: bool
    epsilon: float
    residual_scale: float

    def __call__(self, hidden: Any, cache: tuple[Any, Any], index: int | Window) -> tuple[Any, tuple[Any, Any]]:
        """Runs the block over new positions of a cache that is updated in place.

        Args:
            hidden: tensor `(B, T, D)`, the residual stream at the new positions.
            cache: pair of tensors `(B, N, S, H)`, keys and values.
            index: what `window_of` returns.

        Returns:
            Tensor `(B, T, D)`, and the updated cache.
        """
        import torch

        heads, head_dim = cache[0].shape[1], cache[0].shape[3]
        projected = _product(self._normalized(hidden, self.attention_norm), self.query_key_value)
        attended, cache = attend_in_place(projected.view(*hidden.shape[:2], 3, heads, head_dim), cache, index)
        hidden = hidden + _product(attended.reshape(hidden.shape), self.output_projection)
        expanded = _product(self._normalized(hidden, self.feed_forward_norm), self.expansion)
        widened = _product(torch.nn.functional.silu(expanded), self.contraction)
        return torch.add(hidden, widened, alpha=self.residual_scale), cache

    def _normalized(self, hidden: Any, norm: Affine) -> Any:
        import torch

        gain, bias = norm
        # The norm's weights have the dtype of its statistics.
        states, shape = hidden.to(gain.dtype), hidden.shape[-1:]
        if self.centred:
            states = torch.nn.functional.layer_norm(states, shape, gain, bias, self.epsilon)
        else:
            states = torch.nn.functional.rms_norm(states, shape, gain, self.epsilon)
        return states.to(hidden.dtype)


def as_tensors(kernel: Any, bias: Any | None, dtype: str, width: int | None = None) -> Affine:
    """Casts the weights of a layer, as a matrix and a row if it has heads; `width` is that of its inputs."""
    kernel = keras.ops.cast(kernel, dtype)
    return (
        kernel if width is None else kernel.reshape(width, -1),
        None if bias is None else keras.ops.cast(bias, dtype).flatten(),
    )


def _product(inputs: Any, layer: Affine) -> Any:
    kernel, bias = layer
    outputs = inputs @ kernel
    return outputs if bias is None else outputs + bias
