"""Pre-training: models of palette pixels under the autoregressive and the BERT objective."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, Self

import keras
from keras import ops

from keras_igpt.backend.processes import replica_count, sum_over_replicas
from keras_igpt.backend.whole_steps import compile_options
from keras_igpt.model.backbone import ImageGPTBackbone
from keras_igpt.model.preset_weights import open_preset
from keras_igpt.objectives.token_model import TokenModel, per_image, token_ids_of
from keras_igpt.palette.color_palette import ColorPalette, check_color_palette


class PixelModel(TokenModel):
    """What the two objectives share: backbone, palette, pixel head and the loss in nats per token.

    The loss of a batch is the mean over its images, weighted by `sample_weight` where given, of each image's mean over
    its predicted tokens. `bits_per_pixel` is the same in bits, exact over batches of any size and weight. It describes
    the palette image and is not comparable with the bits per dimension of 8-bit RGB models.

    Args:
        backbone: an `ImageGPTBackbone`.
        palette: a `ColorPalette` of `backbone.vocabulary_size` colours, kept in the model's file; None if unknown.
        dtype: dtype policy; the pixel head and the loss are float32 under any.
        **kwargs: of `keras.Model`.
    """

    _attention: str
    # Arguments beside the backbone's that are kept in a preset's file.
    _own_options: tuple[str, ...] = ()

    def __init__(
        self,
        backbone: ImageGPTBackbone,
        palette: ColorPalette | None = None,
        dtype: Any = None,
        **kwargs: Any,
    ) -> None:
        if not isinstance(backbone, ImageGPTBackbone):
            raise ValueError(f"`backbone` must be an ImageGPTBackbone. Received: {type(backbone).__name__}")
        if backbone.attention != self._attention:
            raise ValueError(
                f"`backbone` must have attention={self._attention!r} for {type(self).__name__}. "
                f"Received: attention={backbone.attention!r}"
            )
        super().__init__(dtype=dtype or backbone.dtype_policy, **kwargs)

        # === Layers ===
        self.backbone = backbone
        # Zero, and not tied to the token embeddings: both helped the representation (section 3.3).
        self.pixel_head = keras.layers.Dense(
            backbone.vocabulary_size,
            use_bias=False,
            kernel_initializer="zeros",
            dtype="float32",
            name="pixel_head",
        )
        self.bits_per_pixel = keras.metrics.Mean(name="bits_per_pixel", dtype="float32")
        self._layers_add_losses = False

        # === Config ===
        self.palette = palette

    @property
    def palette(self) -> ColorPalette | None:
        """The palette whose colours the tokens are; None if it is not known."""
        return self._known_palette

    @palette.setter
    def palette(self, palette: ColorPalette | None) -> None:
        if palette is not None and check_color_palette(palette).num_colors != self.backbone.vocabulary_size:
            raise ValueError(
                f"`palette` must have the backbone's vocabulary_size={self.backbone.vocabulary_size} colours. "
                f"Received: {palette.num_colors} colours"
            )
        self._known_palette = palette

    @classmethod
    def from_preset(
        cls, name: str, load_weights: bool = True, palette: ColorPalette | None = None, **overrides: Any
    ) -> Self:
        """Makes a trained model with its palette or, if asked to, one of a preset's architecture with random weights.

        Args:
            name: str. A preset (`keras_igpt.get_preset`), trained under this model's objective.
            load_weights: bool. Whether weights and palette are the preset's; False is for an architecture alone.
            palette: as in the constructor, where there are no weights.
            **overrides: constructor arguments of this model or of `ImageGPTBackbone` that differ from the preset's;
                with its weights none that change their shapes or meaning.

        Returns:
            A model, not compiled.

        Raises:
            ValueError: if there is no such preset; it has no weights, or those of another objective; or an argument
                does not fit them.

        Example:
        ```python
        untrained = ImageGPTCausalLM.from_preset("igpt_small", load_weights=False, palette=palette)
        ```
        """
        own = {option: overrides.pop(option) for option in cls._own_options if option in overrides}
        overrides = {"attention": cls._attention, **overrides}
        if not load_weights:
            backbone = ImageGPTBackbone.from_preset(name, load_weights=False, **overrides)
            return cls(backbone, palette=palette, **own)
        stored = open_preset(name, overrides)
        if palette is not None:
            raise ValueError(f"`palette` must be None with weights, for theirs comes with them. Received: {palette}")
        backbone = ImageGPTBackbone.from_preset(name, load_weights=False, **overrides)
        model = cls(backbone, palette=ColorPalette(stored.centroids), **{**stored.options, **own})
        stored.restore(model)
        return model

    def build(self, input_shape: Any = None) -> None:
        self.pixel_head.build((None, None, self.backbone.hidden_dim))

    def hidden_positions(self, inputs: Any, training: bool | None = None) -> Any | None:
        """Returns the positions `(B, T)` hidden from the input, or None; in training they depend on the step."""
        if isinstance(inputs, dict) and "position_mask" in inputs:
            raise ValueError(
                f"`position_mask` is for ImageGPTMaskedLM. Received: position_mask for {type(self).__name__}"
            )
        return None

    def advance_step(self) -> None:
        """Counts one training step."""

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        position_mask = self.hidden_positions(inputs, training)
        logits = self.pixel_head(self.backbone(token_ids_of(inputs), position_mask=position_mask))
        # The loss takes the mask from the output, so that a training step draws it once.
        return {"logits": logits, "position_mask": position_mask} if training and position_mask is not None else logits

    def pooled_features(
        self,
        inputs: Any,
        which: Literal["normed", "residual"] = "normed",
        layers: Sequence[int] | None = None,
    ) -> Any:
        """Computes f^0 … f^L as the linear probe sees them; BERT models see masked inputs (section 3.2).

        Args:
            inputs: what `call` takes.
            which: `"normed"` or `"residual"`, as in `ImageGPTBackbone.pooled_features`.
            layers: sequence of int in 0…L, as in `ImageGPTBackbone.pooled_features`.

        Returns:
            float32 tensor `(B, len(layers), D)`.
        """
        return self.backbone.pooled_features(
            token_ids_of(inputs), position_mask=self.hidden_positions(inputs), which=which, layers=layers
        )

    def token_losses(self, token_ids: Any, logits: Any) -> Any:
        """Computes the loss `(B, T)` of each token in nats, from token ids `(B, T)` and logits `(B, T, V)`."""
        # Small unsigned types cannot hold the palette's size, and comparing with it would wrap.
        token_ids = ops.cast(token_ids, "int32")
        in_range = ops.logical_and(token_ids >= 0, token_ids < self.backbone.vocabulary_size)
        losses = ops.sparse_categorical_crossentropy(
            ops.where(in_range, token_ids, ops.zeros_like(token_ids)), logits, from_logits=True
        )
        # Out-of-range tokens must not pass for others on any backend.
        return ops.where(in_range, losses, math.nan)

    def image_losses(self, token_ids: Any, logits: Any, position_mask: Any | None) -> Any:
        """Computes each image's loss `(B,)`: the mean over its predicted tokens in nats, 0 if there is none.

        Predicted are the tokens where `position_mask` is True, or all of them if it is None.

        Reference:
            [Chen et al., 2020](https://cdn.openai.com/papers/Generative_Pretraining_from_Pixels_V2.pdf), section 2.2;
            the mean over masked tokens, where the formula has a sum, is the released code's.
        """
        losses = self.token_losses(token_ids, logits)
        if position_mask is None:
            return ops.mean(losses, axis=-1)
        counted = ops.cast(position_mask, losses.dtype)
        total = ops.sum(ops.where(position_mask, losses, ops.zeros_like(losses)), axis=-1)
        return total / ops.maximum(ops.sum(counted, axis=-1), 1.0)

    def image_weights(self, losses: Any, position_mask: Any | None, sample_weight: Any | None = None) -> Any:
        """Computes the weight `(B,)` of each image: its sample weight, or 0 if none of its tokens is predicted."""
        weights = ops.ones_like(losses) if sample_weight is None else ops.cast(sample_weight, losses.dtype)
        if position_mask is not None:
            weights = weights * ops.cast(ops.any(position_mask, axis=-1), losses.dtype)
        return weights

    def compute_loss(
        self,
        x: Any = None,
        y: Any = None,
        y_pred: Any = None,
        sample_weight: Any = None,
        training: bool = True,
    ) -> Any:
        """Computes the objective in nats per token; targets are the inputs, and `y` is ignored.

        What layers add (`regularizer`s, `add_loss`) is added to it, as in all models of Keras.
        """
        if isinstance(y_pred, dict):
            logits, position_mask = y_pred["logits"], y_pred["position_mask"]
        else:
            logits, position_mask = y_pred, self.hidden_positions(x, training)
        losses = self.image_losses(token_ids_of(x), logits, position_mask)
        weights = self.image_weights(losses, position_mask, per_image(sample_weight))
        self.bits_per_pixel.update_state(losses / math.log(2), sample_weight=weights)
        if training:
            self.advance_step()
        loss = weighted_mean(losses, weights)
        for added in self.losses:
            self._layers_add_losses = True
            loss = loss + ops.sum(ops.cast(added, loss.dtype)) / replica_count()
        return loss

    def get_metrics_result(self) -> dict[str, Any]:
        """Returns the metrics by name; the loss is the mean over all images by their weights.

        Keras' own is a mean over batches by their rows, those included that only fill a batch up. It stays where
        layers, or the `compute_loss` of a subclass, add to the objective.
        """
        results: dict[str, Any] = super().get_metrics_result()
        objective_alone = type(self).compute_loss is PixelModel.compute_loss and not self._layers_add_losses
        if "loss" in results and objective_alone:
            results["loss"] = results["bits_per_pixel"] * math.log(2)
        return results

    def _check_settings(self) -> None:
        given = compile_options(self)
        for name in ("loss", "metrics", "weighted_metrics"):
            if given.get(name):
                raise ValueError(
                    f"`{name}` must not be given to `compile`: {type(self).__name__} has its own loss, the metric "
                    f"bits_per_pixel, and no class labels to compare with. Received: {name}={given[name]!r}"
                )

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "backbone": keras.saving.serialize_keras_object(self.backbone),
            "palette": None if self.palette is None else self.palette.get_config(),
        }

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> Self:
        config = dict(config)
        config["backbone"] = keras.saving.deserialize_keras_object(config["backbone"], custom_objects=custom_objects)
        if config["palette"] is not None:
            config["palette"] = ColorPalette.from_config(config["palette"])
        return super().from_config(config, custom_objects=custom_objects)


def check_language_model(model: Any) -> None:
    """Raises `ValueError` for what is no `ImageGPTCausalLM` or `ImageGPTMaskedLM`."""
    if not isinstance(model, PixelModel):
        raise ValueError(
            f"`language_model` must be an ImageGPTCausalLM or ImageGPTMaskedLM. Received: {type(model).__name__}"
        )


def weighted_mean(values: Any, weights: Any) -> Any:
    """Returns the mean of `values` `(B,)` under `weights` `(B,)`; 0 where all weights are.

    Under `tf.distribute`, which adds up the gradients of all replicas, this replica's part of the mean over all.
    """
    total = sum_over_replicas(ops.sum(weights))
    return ops.sum(values * weights) / ops.where(total > 0, total, ops.ones_like(total))
