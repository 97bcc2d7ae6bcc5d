"""Embeddings of palette tokens and positions."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from keras_igpt.backend.direct_call import call_directly
from keras_igpt.backend.gradients import with_dense_gradient


@keras.saving.register_keras_serializable(package="keras_igpt")
class TokenEmbedding(keras.layers.Embedding):
    """`keras.layers.Embedding` with a dense gradient on every backend.

    TensorFlow's sparse gradient repeats rows of repeated tokens, which Keras' Adam and clipping square before adding.
    """

    @property
    def embeddings(self) -> Any:
        return with_dense_gradient(super().embeddings)


@keras.saving.register_keras_serializable(package="keras_igpt")
class PixelEmbedding(keras.layers.Layer):
    """Embeds palette tokens and their positions: the network's input h^0.

    With `shift` (autoregressive), position i holds pixel i-1, and position 0 a learned start vector. Without it (BERT),
    the content embedding of masked positions is zero; their position embedding stays.

    Args:
        vocabulary_size: int. Palette colours `V`.
        hidden_dim: int. Width `D`.
        shift: bool. Whether to prepend the start vector and drop the last pixel.
        **kwargs: of `keras.layers.Layer`.

    Call arguments:
        token_ids: int tensor `(B, T)`.
        position_mask: optional bool tensor `(B, T)`, True where the content is hidden; ignored with `shift`.

    Returns:
        Tensor `(B, T, D)`.

    Reference:
        [Chen et al., 2020](https://cdn.openai.com/papers/Generative_Pretraining_from_Pixels_V2.pdf), sections 2.1-2.3
    """

    def __init__(self, vocabulary_size: int, hidden_dim: int, shift: bool, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.vocabulary_size = vocabulary_size
        self.hidden_dim = hidden_dim
        self.shift = shift

    def build(self, input_shape: tuple[Any, ...]) -> None:
        self.token_embedding = TokenEmbedding(
            self.vocabulary_size,
            self.hidden_dim,
            embeddings_initializer=keras.initializers.RandomNormal(stddev=0.02),
            dtype=self.dtype_policy,
            name="token_embedding",
        )
        self.token_embedding.build(input_shape)
        self.position_embedding = self.add_weight(
            name="position_embedding",
            shape=(input_shape[-1], self.hidden_dim),
            initializer=keras.initializers.RandomNormal(stddev=0.01),
        )
        if self.shift:
            self.start_vector = self.add_weight(
                name="start_vector",
                shape=(self.hidden_dim,),
                initializer=keras.initializers.RandomNormal(stddev=0.02),
            )

    def call(self, token_ids: Any, position_mask: Any | None = None) -> Any:
        content = self.token_embedding(token_ids)  # (B, T, D)
        if self.shift:
            start = ops.broadcast_to(ops.cast(self.start_vector, content.dtype), ops.shape(content[:, :1]))
            content = ops.concatenate([start, content[:, :-1]], axis=1)
        elif position_mask is not None:
            hidden = ops.expand_dims(position_mask, -1)
            content = ops.where(hidden, ops.zeros_like(content), content)
        return content + ops.cast(self.position_embedding, content.dtype)

    def embed_step(self, token_ids: Any, index: Any) -> Any:
        """Embeds some positions of shifted sequences: the output of `call` at `index`.

        Args:
            token_ids: int tensor `(B, T)`; only the pixels at `index - 1` are read.
            index: int or scalar tensor, the position of all rows; or int tensor `(B, w)`.

        Returns:
            Tensor `(B, 1, D)` or `(B, w, D)`.
        """
        if isinstance(index, int):
            # Eagerly, where each operation counts.
            position = self.position_embedding[index : index + 1]
            if not index:
                start = ops.cast(self.start_vector, self.compute_dtype)
                content = ops.broadcast_to(start, (token_ids.shape[0], 1, self.hidden_dim))
            else:
                content = call_directly(self.token_embedding, token_ids[:, index - 1 : index])
            return content + ops.cast(position, content.dtype)
        if not len(index.shape):
            index = ops.reshape(index, (1, 1))
            before = ops.take(token_ids, ops.maximum(index[0] - 1, 0), axis=1)
        else:
            before = ops.take_along_axis(token_ids, ops.maximum(index - 1, 0), axis=1)
        content = call_directly(self.token_embedding, before)
        start = ops.cast(self.start_vector, content.dtype)
        content = ops.where(ops.expand_dims(ops.equal(index, 0), -1), start, content)
        return content + ops.cast(ops.take(self.position_embedding, index, axis=0), content.dtype)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "vocabulary_size": self.vocabulary_size,
            "hidden_dim": self.hidden_dim,
            "shift": self.shift,
        }
