"""Fine-tuning: classification together with the pre-training objective."""

from __future__ import annotations

from typing import Any, Self

import keras
from keras import ops

from keras_igpt.backbone import ImageGPTBackbone
from keras_igpt.palette import ColorPalette
from keras_igpt.pixel_models import PixelModel, TokenModel, token_ids_of, weighted_mean


@keras.saving.register_keras_serializable(package="keras_igpt")
class ImageGPTImageClassifier(TokenModel):
    """Image GPT with a class head on its last features, trained on `L_GEN + L_CLF`.

    The class logits are a linear map, zero at first, of f^L, the mean over positions of the final norm's output. The
    pixel objective is that of the model given, computed in the same forward pass; a BERT model's inputs are masked in
    training and in evaluation. L_GEN alone is shown as the metric `generative_loss`, in nats per token.

    Args:
        language_model: an `ImageGPTCausalLM` or `ImageGPTMaskedLM`, which is trained along.
        num_classes: int. Classes `C`.
        generative_weight: float, at least 0. Weight of L_GEN beside L_CLF; 1 in the paper, and 0 leaves L_CLF alone.
        **kwargs: of `keras.Model`.

    Call arguments:
        inputs: what the language model takes: an int tensor `(B, T)` of token ids, or a dictionary.

    Returns:
        Dictionary of `"class_logits"`, float32 `(B, C)`, and with a positive `generative_weight` `"image_losses"`,
        float32 `(B,)`, the pixel objective of each image in nats per token. `predict` returns the class logits alone.

    Raises:
        ValueError: if an argument is out of its range.

    Example:
    ```python
    classifier = ImageGPTImageClassifier(lm, num_classes=10)
    classifier.compile(**finetuning_recipe(learning_rate=0.0003))
    classifier.fit(token_ids, labels, batch_size=128, epochs=10)
    ```

    Reference:
        [Chen et al., 2020](https://cdn.openai.com/papers/Generative_Pretraining_from_Pixels_V2.pdf), section 2.4
    """

    def __init__(
        self,
        language_model: PixelModel,
        num_classes: int,
        generative_weight: float = 1.0,
        **kwargs: Any,
    ) -> None:
        if not isinstance(language_model, PixelModel):
            raise ValueError(
                "`language_model` must be an ImageGPTCausalLM or ImageGPTMaskedLM. "
                f"Received: {type(language_model).__name__}"
            )
        if not isinstance(num_classes, int) or num_classes < 2:
            raise ValueError(f"`num_classes` must be an integer of at least 2. Received: num_classes={num_classes!r}")
        if generative_weight < 0:
            raise ValueError(f"`generative_weight` must be at least 0. Received: generative_weight={generative_weight}")
        kwargs.setdefault("dtype", language_model.dtype_policy)
        super().__init__(**kwargs)

        # === Layers ===
        self.language_model = language_model
        self.class_head = keras.layers.Dense(
            num_classes,
            use_bias=False,
            kernel_initializer="zeros",
            dtype="float32",
            name="class_head",
        )

        if generative_weight:
            self.generative_loss = keras.metrics.Mean(name="generative_loss")

        # === Config ===
        self.num_classes = num_classes
        self.generative_weight = generative_weight

        self.build()

    @property
    def backbone(self) -> ImageGPTBackbone:  # type: ignore[override]
        """The transformer inside the language model."""
        backbone: ImageGPTBackbone = self.language_model.backbone
        return backbone

    @property
    def palette(self) -> ColorPalette | None:
        """The language model's palette."""
        palette: ColorPalette | None = self.language_model.palette
        return palette

    def build(self, input_shape: Any = None) -> None:
        self.class_head.build((None, self.backbone.hidden_dim))

    def predict(self, x: Any, *args: Any, **kwargs: Any) -> Any:
        """Computes class logits in batches; `keras.Model.predict`, with `x` checked first.

        Args:
            x: what `call` takes, or a data set of it.
            *args: of `keras.Model.predict`.
            **kwargs: of `keras.Model.predict`.

        Returns:
            float32 array `(B, C)`.
        """
        return super().predict(x, *args, **kwargs)["class_logits"]

    def call(self, inputs: Any, training: bool | None = None) -> dict[str, Any]:
        token_ids = token_ids_of(inputs)
        position_mask = self.language_model.hidden_positions(inputs, training)
        hidden = self.backbone(token_ids, position_mask=position_mask)  # (B, T, D)
        outputs = {"class_logits": self.class_head(ops.mean(ops.cast(hidden, "float32"), axis=1))}
        if self.generative_weight:
            # Reduced to one number an image at once: the logits themselves, (B, T, V), are too large to hand out.
            logits = self.language_model.pixel_head(hidden)
            outputs["image_losses"] = self.language_model.image_losses(token_ids, logits, position_mask)
        return outputs

    def compute_loss(
        self,
        x: Any = None,
        y: Any = None,
        y_pred: Any = None,
        sample_weight: Any = None,
        training: bool = True,
    ) -> Any:
        """Computes `generative_weight * L_GEN + L_CLF`, L_CLF being the loss given to `compile`.

        L_GEN is a mean under `sample_weight`; L_CLF is Keras' loss, divided by the batch size whatever the weights.
        """
        if self.loss is None:
            raise ValueError(
                "`loss` must be given to `compile`; `finetuning_recipe` has the paper's. Received: loss=None"
            )
        loss = super().compute_loss(x, y, y_pred["class_logits"], sample_weight, training)
        if self.generative_weight:
            losses = y_pred["image_losses"]
            weights = self.language_model.image_weights(
                losses, self.language_model.hidden_positions(x, training), sample_weight
            )
            self.generative_loss.update_state(losses, sample_weight=weights)
            loss = loss + self.generative_weight * weighted_mean(losses, weights)
        else:
            # A gradient of zero, which leaves the pixel head as it is, rather than none, which TensorFlow warns about.
            loss = loss + 0.0 * ops.sum(self.language_model.pixel_head.kernel)
        if training:
            self.language_model.advance_step()
        return loss

    def compute_metrics(self, x: Any, y: Any, y_pred: Any, sample_weight: Any = None) -> dict[str, Any]:
        """Updates the compiled metrics with the class logits."""
        metrics: dict[str, Any] = super().compute_metrics(x, y, y_pred["class_logits"], sample_weight)
        return metrics

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "language_model": keras.saving.serialize_keras_object(self.language_model),
            "num_classes": self.num_classes,
            "generative_weight": self.generative_weight,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> Self:
        config = dict(config)
        config["language_model"] = keras.saving.deserialize_keras_object(
            config["language_model"], custom_objects=custom_objects
        )
        return cls(**config)
