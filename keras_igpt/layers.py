"""The parts of the network that are not attention."""

from __future__ import annotations

from typing import Any, Literal

import keras
from keras import ops

from keras_igpt.direct_call import call_directly
from keras_igpt.recomputation import compute_after, differentiate_by_hand
from keras_igpt.row_reductions import reduces_rows_slowly, row_sum

_EPSILON = 1e-5


@keras.saving.register_keras_serializable(package="keras_igpt")
def quick_gelu(inputs: Any) -> Any:
    """Computes `x * sigmoid(1.702 x)`, the released code's approximation of GELU.

    Args:
        inputs: float tensor of any shape.

    Returns:
        Tensor of the same shape and dtype.
    """
    if keras.backend.backend() != "jax":
        return ops.silu(1.702 * inputs) / 1.702

    def gelu(inputs: Any) -> Any:
        # Differentiated by JAX, three tensors of the network's widest shape would be kept; only the input need be.
        def gradient(upstream: Any) -> Any:
            (again,) = compute_after(upstream, (inputs,))
            gate = ops.sigmoid(1.702 * again)
            return upstream * gate * (1.0 + 1.702 * again * (1.0 - gate))

        return inputs * ops.sigmoid(1.702 * inputs), gradient

    return differentiate_by_hand(gelu)(inputs)


@keras.saving.register_keras_serializable(package="keras_igpt")
class Normalization(keras.layers.Layer):
    """Normalises each position over its width, with statistics in float32 under any dtype policy.

    Args:
        kind: `"layer_norm"`, the paper's text: centred, with gain and bias; or `"rms_norm"`, the released code:
            `x / sqrt(mean(x^2) + 1e-5) * gain`.
        **kwargs: of `keras.layers.Layer`.

    Call arguments:
        inputs: tensor `(B, T, D)`.

    Returns:
        Tensor `(B, T, D)`.
    """

    def __init__(self, kind: Literal["layer_norm", "rms_norm"], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.kind = kind

    def build(self, input_shape: tuple[Any, ...]) -> None:
        self.gain = self.add_weight(name="gain", shape=input_shape[-1:], initializer="ones")
        self.bias = None
        if self.kind == "layer_norm":
            self.bias = self.add_weight(name="bias", shape=input_shape[-1:], initializer="zeros")

    def call(self, inputs: Any) -> Any:
        # Keras' own operations use the backend's kernels; the written-out form is for where there is none.
        if reduces_rows_slowly():
            outputs = self._normalize_written_out(ops.cast(inputs, "float32"))
        elif self.kind == "layer_norm":
            outputs = ops.layer_normalization(inputs, self.gain, self.bias, epsilon=_EPSILON)
        else:
            outputs = ops.rms_normalization(inputs, self.gain, epsilon=_EPSILON)
        return ops.cast(outputs, self.compute_dtype)

    def _normalize_written_out(self, inputs: Any) -> Any:
        """The same by `row_sum`, and differentiated by hand, so that the input alone is kept for the backward pass."""
        width = inputs.shape[-1]
        centred = self.kind == "layer_norm"

        def standardize(inputs: Any) -> tuple[Any, Any]:
            states = inputs - row_sum(inputs) / width if centred else inputs
            inverse = ops.rsqrt(row_sum(ops.square(states)) / width + _EPSILON)
            return states * inverse, inverse

        def standardized(inputs: Any) -> Any:
            def gradient(upstream: Any) -> Any:
                states, inverse = standardize(*compute_after(upstream, (inputs,)))
                result = upstream - states * (row_sum(upstream * states) / width)
                if centred:
                    result = result - row_sum(upstream) / width
                return inverse * result

            return standardize(inputs)[0], gradient

        outputs = differentiate_by_hand(standardized)(inputs) * ops.cast(self.gain, "float32")
        return outputs if self.bias is None else outputs + ops.cast(self.bias, "float32")

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "kind": self.kind}


@keras.saving.register_keras_serializable(package="keras_igpt")
class TokenEmbedding(keras.layers.Embedding):
    """`keras.layers.Embedding` whose gradient is one tensor on every backend.

    TensorFlow's would be a list of rows, a token's as often as it occurs, and Keras' Adam and clipping would square
    each row before they are added up.
    """

    @property
    def embeddings(self) -> Any:
        embeddings = super().embeddings
        # The gradient of a product is whole, where that of a look-up in a variable is not.
        return 1.0 * embeddings if keras.backend.backend() == "tensorflow" else embeddings


@keras.saving.register_keras_serializable(package="keras_igpt")
class PixelEmbedding(keras.layers.Layer):
    """Embeds palette tokens and their positions: the network's input h^0.

    With a start vector (autoregressive) the sequence is shifted by one: position i carries pixel i-1, position 0 the
    start vector, and the last pixel is never an input. Without one (BERT) pixels stay where they are, and the content
    of masked positions is zero while their position embedding stays.

    Args:
        vocabulary_size: int. Palette colours `V`.
        hidden_dim: int. Width `D`.
        shift: bool. Whether to put the start vector first and drop the last pixel.
        **kwargs: of `keras.layers.Layer`.

    Call arguments:
        token_ids: int tensor `(B, T)`.
        position_mask: optional bool tensor `(B, T)`, True where the content is hidden; only without `shift`.

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
        """Embeds the input of one position of a shifted sequence: what `call` puts at `index`.

        Args:
            token_ids: int tensor `(B, T)`; only the pixel at `index - 1` is read.
            index: int tensor, the position.

        Returns:
            Tensor `(B, 1, D)`.
        """
        before = ops.maximum(index - 1, 0)
        content = call_directly(self.token_embedding, ops.take(token_ids, ops.reshape(before, (1,)), axis=1))
        start = ops.broadcast_to(ops.cast(self.start_vector, content.dtype), ops.shape(content))
        content = ops.where(ops.equal(index, 0), start, content)
        position = ops.take(self.position_embedding, ops.reshape(index, (1,)), axis=0)  # (1, D)
        return content + ops.cast(position, content.dtype)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "vocabulary_size": self.vocabulary_size,
            "hidden_dim": self.hidden_dim,
            "shift": self.shift,
        }


@keras.saving.register_keras_serializable(package="keras_igpt")
class FeedForward(keras.layers.Layer):
    """Two dense layers of width 4D and D without biases, `quick_gelu` between them, initialised with 0.02.

    Call arguments:
        inputs: tensor `(B, T, D)`.

    Returns:
        Tensor `(B, T, D)`.
    """

    def build(self, input_shape: tuple[Any, ...]) -> None:
        width = input_shape[-1]
        self.expansion = keras.layers.Dense(
            4 * width,
            use_bias=False,
            activation=quick_gelu,
            kernel_initializer=keras.initializers.RandomNormal(stddev=0.02),
            dtype=self.dtype_policy,
            name="expansion",
        )
        self.expansion.build(input_shape)
        self.contraction = keras.layers.Dense(
            width,
            use_bias=False,
            kernel_initializer=keras.initializers.RandomNormal(stddev=0.02),
            dtype=self.dtype_policy,
            name="contraction",
        )
        self.contraction.build((*input_shape[:-1], 4 * width))

    def call(self, inputs: Any) -> Any:
        return self.contraction(self.expansion(inputs))


@keras.saving.register_keras_serializable(package="keras_igpt")
class RandomPositionMask(keras.layers.Layer):
    """Chooses the positions that BERT hides: each one independently with probability `rate`.

    The choice is a hash of the seed, the picture and, in training, the step, computed in 32-bit integers: it is the
    same on every backend, whatever the batch and its order, and repeats after a restart, since the step is a weight
    and is saved with the others. Evaluation hides the same positions of the same picture each time.

    Args:
        rate: float in [0, 1]. Probability of each position.
        seed: int. Another seed gives other masks.
        **kwargs: of `keras.layers.Layer`.

    Call arguments:
        token_ids: int tensor `(B, T)`.
        training: bool. Whether the step takes part.

    Returns:
        bool tensor `(B, T)`, True where the position is hidden.

    Reference:
        [Chen et al., 2020](https://cdn.openai.com/papers/Generative_Pretraining_from_Pixels_V2.pdf), section 2.2
        (each index independently with probability 0.15)
    """

    def __init__(self, rate: float = 0.15, seed: int = 0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.rate = rate
        self.seed = seed

    def build(self, input_shape: tuple[Any, ...]) -> None:
        self.step = self.add_weight(
            name="step",
            shape=(),
            dtype="int32",
            initializer="zeros",
            trainable=False,
            aggregation="only_first_replica",
        )

    def call(self, token_ids: Any, training: bool | None = None) -> Any:
        token_ids = ops.cast(token_ids, "int32")
        positions = ops.arange(token_ids.shape[-1], dtype="int32")
        # A picture's key: the sum of one hash a (position, token), so that any changed pixel gives other masks.
        words = _mix(token_ids + _wrap(0x9E3779B9) * (positions + 1))
        picture = ops.cast(ops.sum(words, axis=-1, keepdims=True), "int32")  # (B, 1)
        draw = _mix(ops.convert_to_tensor(_wrap(self.seed), "int32"))
        if training:
            # The evaluation draw is no training step's: steps count from one here.
            draw = _mix(draw + self.step + 1)
        key = _mix(ops.bitwise_xor(picture, draw))
        bits = _mix(key + _wrap(0x85EBCA77) * (positions + 1))  # (B, T)
        # 24 bits are a uniform number in steps of 2^-24.
        uniform = ops.bitwise_and(bits, 0xFFFFFF)
        return uniform < round(self.rate * (1 << 24))

    def advance(self) -> None:
        """Counts one training step, so that the next one hides other positions."""
        self.step.assign(self.step + 1)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "rate": self.rate, "seed": self.seed}


def _wrap(word: int) -> int:
    """The signed 32-bit integer with the bits of `word`."""
    word &= 0xFFFFFFFF
    return word - (1 << 32) if word >= 1 << 31 else word


def _mix(words: Any) -> Any:
    """MurmurHash3's 32-bit finaliser on int32 tensors, whose products wrap on every backend."""
    words = ops.bitwise_xor(words, _logical_right_shift(words, 16))
    words = words * _wrap(0x85EBCA6B)
    words = ops.bitwise_xor(words, _logical_right_shift(words, 13))
    words = words * _wrap(0xC2B2AE35)
    return ops.bitwise_xor(words, _logical_right_shift(words, 16))


def _logical_right_shift(words: Any, count: int) -> Any:
    # The shift of a signed integer copies its sign into the top bits; clear them.
    return ops.bitwise_and(ops.right_shift(words, count), (1 << (32 - count)) - 1)
