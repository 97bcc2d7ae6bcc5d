"""The Image GPT transformer: one forward pass for training, probing and cached decoding."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import islice
from typing import Any, Literal

import keras
from keras import ops

from keras_igpt.backend.compilation import runs_eagerly
from keras_igpt.backend.devices import multiplies_in_double_precision
from keras_igpt.backend.direct_call import call_directly
from keras_igpt.backend.eager_block import EagerBlock, as_tensors
from keras_igpt.backend.fused_attention import contiguous, window_of
from keras_igpt.backend.gradients import rematerialized
from keras_igpt.backend.processes import infers_shapes_of_replicas
from keras_igpt.model.architecture import FIELDS, Architecture, Attention, NormalizationKind
from keras_igpt.model.attention import SelfAttention
from keras_igpt.model.attention_kernels import Kernel, KeyValue, attention_kernel
from keras_igpt.model.embedding import PixelEmbedding
from keras_igpt.model.layers import EPSILON, GELU_SCALE, FeedForward, Normalization
from keras_igpt.model.preset_weights import open_preset
from keras_igpt.model.presets import get_preset
from keras_igpt.model.quantization import QuantizableModel, int8_layers
from keras_igpt.support.checks import check_choice, check_depths, check_flag, check_integer


@keras.saving.register_keras_serializable(package="keras_igpt")
class TransformerBlock(keras.layers.Layer):
    """One pre-norm block: `a = h + MHA(norm(h))`, then `a + MLP(norm(a))`.

    Args:
        num_heads: int. Attention heads.
        num_layers: int. Depth `L` of the network, for the initialisation.
        attention: `"causal"` or `"bidirectional"`.
        normalization: `"layer_norm"` or `"rms_norm"`.
        kernel: `"auto"`, `"fused"` or `"blocks"`.
        projection_bias: bool. Whether the projections have biases.
        **kwargs: of `keras.layers.Layer`.

    Call arguments:
        hidden: tensor `(B, T, D)`, the residual stream.
        cache: optional pair of tensors `(B, N, S, H)`, keys and values of earlier positions.
        index: with `cache`: int or scalar tensor, the position of all rows' single input; or int tensor `(B, T)`.

    Returns:
        Tensor `(B, T, D)`, and the keys and values of the inputs or the updated cache.

    Reference:
        [Chen et al., 2020](https://cdn.openai.com/papers/Generative_Pretraining_from_Pixels_V2.pdf), section 2.3
    """

    def __init__(
        self,
        num_heads: int,
        num_layers: int,
        attention: Attention,
        normalization: NormalizationKind,
        kernel: Kernel = "auto",
        projection_bias: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self._options: dict[str, Any] = {
            "num_heads": num_heads,
            "num_layers": num_layers,
            "attention": attention,
            "normalization": normalization,
            "kernel": kernel,
            "projection_bias": projection_bias,
        }
        self.attention_norm = Normalization(normalization, dtype=self.dtype_policy, name="attention_norm")
        self.attention = SelfAttention(
            num_heads, num_layers, attention, kernel, projection_bias, dtype=self.dtype_policy, name="attention"
        )
        self.feed_forward_norm = Normalization(normalization, dtype=self.dtype_policy, name="feed_forward_norm")
        self.feed_forward = FeedForward(projection_bias, dtype=self.dtype_policy, name="feed_forward")

    def build(self, input_shape: tuple[Any, ...]) -> None:
        for layer in (
            self.attention_norm,
            self.attention,
            self.feed_forward_norm,
            self.feed_forward,
        ):
            layer.build(input_shape)

    def call(self, hidden: Any, cache: KeyValue | None = None, index: Any | None = None) -> tuple[Any, KeyValue]:
        normed = call_directly(self.attention_norm, hidden)
        attended, key_value = call_directly(self.attention, normed, cache=cache, index=index)
        hidden = hidden + attended
        normed = call_directly(self.feed_forward_norm, hidden)
        return hidden + call_directly(self.feed_forward, normed), key_value

    def eager(self) -> EagerBlock:
        """Returns the same block for decoding where operations run eagerly; it must not be quantised."""
        statistics = keras.backend.result_type(self.compute_dtype, "float32")
        width = self.attention_norm.gain.shape[0]
        attention, output = self.attention.query_key_value, self.attention.output_projection
        expansion, contraction = self.feed_forward.expansion, self.feed_forward.contraction

        def scaled(weight: Any) -> Any:
            return None if weight is None else GELU_SCALE * weight

        norm = self.feed_forward_norm
        return EagerBlock(
            attention_norm=as_tensors(self.attention_norm.gain, self.attention_norm.bias, statistics),
            query_key_value=as_tensors(attention.kernel, attention.bias, self.compute_dtype, width),
            output_projection=as_tensors(output.kernel, output.bias, self.compute_dtype, width),
            feed_forward_norm=as_tensors(scaled(norm.gain), scaled(norm.bias), statistics),
            expansion=as_tensors(expansion.kernel, scaled(expansion.bias), self.compute_dtype, width),
            contraction=as_tensors(contraction.kernel, scaled(contraction.bias), self.compute_dtype, 4 * width),
            centred=norm.kind == "layer_norm",
            epsilon=EPSILON,
            residual_scale=1 / GELU_SCALE,
        )

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), **self._options}


@keras.saving.register_keras_serializable(package="keras_igpt")
class ImageGPTBackbone(QuantizableModel):
    """The Image GPT transformer, from palette tokens to features; built on construction.

    Pre-norm blocks on a residual stream, learned position embeddings, no biases in projections (unless asked for) and
    the initialisation of the released code. The arguments are attributes; `architecture` holds those that determine the
    weights.

    Args:
        vocabulary_size: int. Palette colours `V`.
        image_size: int. Side of the square images in pixels; sequences have `T = image_size ** 2` tokens.
        num_layers: int. Blocks `L`.
        num_heads: int. Attention heads `N`; must divide `hidden_dim`.
        hidden_dim: int. Width `D`.
        attention: `"causal"` for the autoregressive objective (inputs are shifted behind a start vector) or
            `"bidirectional"` for BERT's.
        normalization: `"layer_norm"`, as in the paper's text, or `"rms_norm"`, as in the released weights.
        kernel: attention kernel. `"auto"` is the backend's fused kernel if available (SDPA on PyTorch; cuDNN on JAX
            with a GPU, in half precision), else `"blocks"`: exact attention in blocks of queries. `"fused"` raises if
            not available. No kernel keeps `T x T` weights. The property `attention_kernel` is the one in use.
        remat: bool. Whether the backward pass recomputes each block from its input, which saves most of the memory for
            about a third more time.
        dtype: dtype policy of the blocks, such as `"mixed_bfloat16"`. Norm statistics and softmax are always float32.
            PyTorch takes no `"float64"`.
        projection_bias: bool. Whether the projections of the blocks have biases, zero at first. The paper's have none;
            models that were trained in Hugging Face's transformers do.
        **kwargs: of `keras.Model`.

    Call arguments:
        token_ids: int tensor `(B, T)`, raster order.
        position_mask: optional bool tensor `(B, T)`, True where the content is hidden; bidirectional only.

    Returns:
        Tensor `(B, T, D)`: the final norm's output n^L at each position.

    Raises:
        ValueError: if an argument is out of range, or inputs do not fit.

    Example:
    ```python
    backbone = ImageGPTBackbone(
        vocabulary_size=512, image_size=32, num_layers=24, num_heads=8, hidden_dim=512
    )
    features = backbone(token_ids)   # (B, 1024, 512)
    ```

    Reference:
        [Chen et al., 2020](https://cdn.openai.com/papers/Generative_Pretraining_from_Pixels_V2.pdf), section 2.3
    """

    def __init__(
        self,
        vocabulary_size: int,
        image_size: int,
        num_layers: int,
        num_heads: int,
        hidden_dim: int,
        attention: Attention = "causal",
        normalization: NormalizationKind = "layer_norm",
        kernel: Kernel = "auto",
        remat: bool = False,
        dtype: Any = None,
        projection_bias: bool = False,
        **kwargs: Any,
    ) -> None:
        architecture = Architecture(
            *(vocabulary_size, image_size, num_layers, num_heads, hidden_dim),
            *(attention, normalization, projection_bias),
        )
        check_choice("kernel", kernel, ("auto", "fused", "blocks"))
        remat = check_flag("remat", remat)
        super().__init__(dtype=dtype, **kwargs)
        if self.compute_dtype == "float64" and not multiplies_in_double_precision():
            # PyTorch refuses to mix the two.
            raise ValueError("`dtype` must be of at most 32 bits on PyTorch. Received: dtype='float64'")
        # Raises here, not in the first step, if there is no fused kernel.
        attention_kernel(kernel, self.compute_dtype, architecture.head_dim)

        # === Layers ===
        self.pixel_embedding = PixelEmbedding(
            architecture.vocabulary_size,
            architecture.hidden_dim,
            shift=attention == "causal",
            dtype=self.dtype_policy,
            name="pixel_embedding",
        )
        self.blocks = [
            TransformerBlock(
                architecture.num_heads,
                architecture.num_layers,
                attention,
                normalization,
                kernel,
                projection_bias,
                dtype=self.dtype_policy,
                name=f"block_{layer}",
            )
            for layer in range(architecture.num_layers)
        ]
        self.final_norm = Normalization(normalization, dtype=self.dtype_policy, name="final_norm")

        # === Config ===
        self.architecture = architecture
        # `vocabulary_size`, `num_layers` and so on.
        for name in FIELDS:
            setattr(self, name, getattr(architecture, name))
        self.kernel: Kernel = kernel
        self.remat = remat

        self.build((None, self.num_tokens))

    @classmethod
    def from_preset(cls, name: str, load_weights: bool | None = None, **overrides: Any) -> ImageGPTBackbone:
        """Makes a preset's backbone, with trained or random weights.

        Args:
            name: str. A preset (`keras_igpt.get_preset`): `"igpt_small"`, `"igpt_medium"`, `"igpt_large"` and
                `"igpt_extra_large"` of the paper; `"igpt_nano"` and `"igpt_tiny"` for a laptop, `"igpt_mini"` for one
                GPU; or a trained one.
            load_weights: bool. Whether to load the preset's weights; by default if it has any.
            **overrides: constructor arguments that replace the preset's; they must fit its weights.

        Returns:
            An `ImageGPTBackbone`.

        Raises:
            ValueError: if the preset is unknown or has no weights, or an override does not fit them.

        Example:
        ```python
        backbone = ImageGPTBackbone.from_preset("igpt_small", image_size=48)
        ```
        """
        preset = get_preset(name)
        if load_weights is None:
            load_weights = preset.weights is not None
        stored = open_preset(name, overrides) if load_weights else None
        backbone = cls(**{**preset.architecture, **overrides})
        if stored is not None:
            stored.restore(backbone)
        return backbone

    @property
    def _default_save_signature(self) -> None:
        """None inside a SavedModel, since Keras on TensorFlow would trace a signature with float tokens."""

    @property
    def num_tokens(self) -> int:
        """Sequence length `T`."""
        return self.architecture.num_tokens

    @property
    def attention_kernel(self) -> str:
        """The attention kernel in use: `"torch"` (SDPA), `"cudnn"` or `"blocks"`."""
        return attention_kernel(self.kernel, self.compute_dtype, self.head_dim)

    @property
    def head_dim(self) -> int:
        """Width `H` of one attention head."""
        return self.architecture.head_dim

    def build(self, input_shape: tuple[Any, ...]) -> None:
        self.pixel_embedding.build(input_shape)
        hidden_shape = (*input_shape, self.hidden_dim)
        for block in self.blocks:
            block.build(hidden_shape)
        self.final_norm.build(hidden_shape)

    def call(self, token_ids: Any, position_mask: Any | None = None) -> Any:
        return self.normed_states(token_ids, (self.num_layers,), position_mask)[0]

    def normed_states(self, token_ids: Any, layers: Sequence[int], position_mask: Any | None = None) -> list[Any]:
        """Computes n^l, the normed input of block l, at some depths; n^L is the output of `call`.

        Blocks above the deepest one are not run.

        Args:
            token_ids: int tensor `(B, T)`.
            layers: sequence of int in 0…L. The depths.
            position_mask: as in `call`.

        Returns:
            A tensor `(B, T, D)` for each of `layers`.

        Raises:
            ValueError: if a depth is out of range, or inputs do not fit.

        Example:
        ```python
        middle, last = backbone.normed_states(token_ids, (backbone.num_layers // 2, backbone.num_layers))
        ```

        Reference:
            [Chen et al., 2020](https://cdn.openai.com/papers/Generative_Pretraining_from_Pixels_V2.pdf), section 2.5
        """
        depths = check_depths("layers", layers, self.num_layers)
        return self._read_states(depths, token_ids, position_mask, lambda norm, hidden: norm(hidden))

    def layers_above(self, layer: int) -> list[keras.layers.Layer]:
        """Returns the layers whose weights do not influence n^l.

        Args:
            layer: int in 0…L. The depth.

        Returns:
            List of layers, from the bottom up; empty for L.
        """
        layer = check_integer("layer", layer, 0, self.num_layers)
        if layer == self.num_layers:
            return []
        block = self.blocks[layer]
        # n^l is the output of block l's first norm.
        rest = [block.attention, block.feed_forward_norm, block.feed_forward]
        return [*rest, *self.blocks[layer + 1 :], self.final_norm]

    def pooled_features(
        self,
        token_ids: Any,
        position_mask: Any | None = None,
        which: Literal["normed", "residual"] = "normed",
        layers: Sequence[int] | None = None,
    ) -> Any:
        """Computes the features f^0 … f^L: means over positions at every depth.

        Args:
            token_ids: int tensor `(B, T)`.
            position_mask: as in `call`.
            which: `"normed"` takes n^l, the normed input of block l (for l = L the final norm's output), as in the
                paper. `"residual"` takes the residual stream h^l.
            layers: sequence of int in 0…L. The depths; all by default. Blocks above the deepest one are not run.

        Returns:
            float32 tensor `(B, len(layers), D)`.

        Raises:
            ValueError: if `which` is unknown or a depth is out of range.

        Example:
        ```python
        features = backbone.pooled_features(token_ids)
        middle = features[:, backbone.num_layers // 2]
        ```

        Reference:
            [Chen et al., 2020](https://cdn.openai.com/papers/Generative_Pretraining_from_Pixels_V2.pdf), section 2.5
        """
        check_choice("which", which, ("normed", "residual"))
        every = range(self.num_layers + 1)
        depths = check_depths("layers", every if layers is None else layers, self.num_layers)

        def pooled(norm: Normalization, hidden: Any) -> Any:
            return ops.mean(ops.cast(norm(hidden) if which == "normed" else hidden, "float32"), axis=1)

        return ops.stack(self._read_states(depths, token_ids, position_mask, pooled), axis=1)

    def fill_cache(self, token_ids: Any) -> list[KeyValue]:
        """Computes keys and values of all positions in one pass, so that decoding can continue from any of them.

        Args:
            token_ids: int tensor `(B, T)`. Unknown positions may hold any token; their entries are overwritten before
                they are read.

        Returns:
            A pair of tensors `(B, N, T, H)` for each block.
        """
        states = self._residual_states(self.pixel_embedding(token_ids))
        return [(contiguous(key), contiguous(value)) for _, (key, value) in islice(states, 1, None)]

    def empty_cache(self, batch_size: Any) -> list[KeyValue]:
        """Makes a cache for decoding from the first pixel.

        Args:
            batch_size: int or int tensor `B`.

        Returns:
            A pair of zero tensors `(B, N, T, H)` for each block.
        """
        shape = (batch_size, self.num_heads, self.num_tokens, self.head_dim)
        return [(ops.zeros(shape, self.compute_dtype), ops.zeros(shape, self.compute_dtype)) for _ in self.blocks]

    def decoding_blocks(self) -> list[Any]:
        """Returns the blocks in the form that is fastest in many calls of `decode_step`."""
        if runs_eagerly() and not int8_layers(self):
            return [block.eager() for block in self.blocks]
        return [partial(call_directly, block) for block in self.blocks]

    def decode_step(
        self, token_ids: Any, index: Any, cache: Sequence[KeyValue], blocks: Sequence[Any] | None = None
    ) -> tuple[Any, list[KeyValue]]:
        """Computes the features of some positions from the cached earlier ones.

        Args:
            token_ids: int tensor `(B, T)`, known before `index`.
            index: int or scalar tensor, the position of all rows; or int tensor `(B, w)` of consecutive positions.
            cache: a pair of tensors `(B, N, S, H)` for each block, filled before `index`, with `index < S <= T`.
                PyTorch updates them in place.
            blocks: those of `decoding_blocks`, for many steps with the same weights.

        Returns:
            Tensor `(B, 1, D)` or `(B, w, D)`, the output of `call` at `index`, and the updated cache.
        """
        hidden, updated = self.pixel_embedding.embed_step(token_ids, index), []
        if runs_eagerly():
            index = window_of(index, cache[0])
        for block, key_value in zip(blocks or self.decoding_blocks(), cache, strict=True):
            hidden, key_value = block(hidden, cache=key_value, index=index)
            updated.append(key_value)
        return call_directly(self.final_norm, hidden), updated

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            **self.architecture.arguments,
            "kernel": self.kernel,
            "remat": self.remat,
        }

    def _residual_states(self, hidden: Any) -> Iterator[tuple[Any, KeyValue]]:
        """Yields h^0 … h^L with the keys and values of each one's block; None for h^0."""
        yield hidden, (None, None)
        for block in self.blocks:
            hidden, key_value = rematerialized(block)(hidden) if self.remat else block(hidden)
            yield hidden, key_value

    def _read_states(
        self,
        depths: Sequence[int],
        token_ids: Any,
        position_mask: Any | None,
        read: Callable[[Normalization, Any], Any],
    ) -> list[Any]:
        """Applies a function to h^l and the norm above it at some depths; blocks above are not run."""
        self._check_inputs(token_ids, position_mask)
        norms = [*(block.attention_norm for block in self.blocks), self.final_norm]
        states = self._residual_states(self.pixel_embedding(token_ids, position_mask=position_mask))
        reached = enumerate(islice(states, max(depths) + 1))
        found = {layer: read(norms[layer], hidden) for layer, (hidden, _) in reached if layer in depths}
        return [found[layer] for layer in depths]

    def _check_inputs(self, token_ids: Any, position_mask: Any | None) -> None:
        if not hasattr(token_ids, "shape"):
            raise ValueError(f"`token_ids` must be a tensor or an array. Received: {type(token_ids).__name__}")
        shape = tuple(token_ids.shape)
        if len(shape) != 2 or shape[1] != self.num_tokens:
            raise ValueError(
                f"`token_ids` must have shape (B, {self.num_tokens}), one token per pixel "
                f"(`ColorPalette.encode` makes them from images). Received: shape {shape}"
            )
        dtype = keras.backend.standardize_dtype(token_ids.dtype)
        if "int" not in dtype and not infers_shapes_of_replicas():
            raise ValueError(f"`token_ids` must be integers. Received: dtype {dtype}")
        if position_mask is not None and tuple(position_mask.shape)[1:] != (self.num_tokens,):
            raise ValueError(
                f"`position_mask` must have shape (B, {self.num_tokens}). Received: shape {tuple(position_mask.shape)}"
            )
        if position_mask is not None and self.attention == "causal":
            raise ValueError(
                "`position_mask` needs a backbone with attention='bidirectional'. "
                "Received: position_mask with attention='causal'"
            )
