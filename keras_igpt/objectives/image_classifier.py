"""Fine-tuning: classification together with the pre-training objective."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Sequence
from contextvars import ContextVar
from typing import Any, Self

import keras
import numpy as np
import numpy.typing as npt
from keras import ops

from keras_igpt.backend.gradients import without_gradient
from keras_igpt.backend.processes import replica_count
from keras_igpt.backend.untracked import Untracked
from keras_igpt.data.inputs import Pictures, as_examples
from keras_igpt.data.token_source import PictureExamples
from keras_igpt.inference.class_predictions import ClassPredictions
from keras_igpt.inference.compiled import check_finite, computed_rows
from keras_igpt.model.backbone import ImageGPTBackbone
from keras_igpt.model.masking import majority, vote_mask
from keras_igpt.model.presets import get_preset
from keras_igpt.objectives.causal_lm import ImageGPTCausalLM
from keras_igpt.objectives.masked_lm import ImageGPTMaskedLM
from keras_igpt.objectives.pixel_model import PixelModel, check_language_model, weighted_mean
from keras_igpt.objectives.token_model import TokenModel, per_image, token_ids_of
from keras_igpt.palette.color_palette import ColorPalette
from keras_igpt.support.checks import check_flag, check_integer, check_number
from keras_igpt.support.randomness import check_seed

# Whether L_GEN, which nobody sees then, and the blocks that only it needs are left out.
_PREDICTING: ContextVar[bool] = ContextVar("predicting", default=False)


@keras.saving.register_keras_serializable(package="keras_igpt")
class ImageGPTImageClassifier(TokenModel):
    """Image GPT with a class head on the features of one depth, trained on `L_GEN + L_CLF`.

    The class logits are a linear map, zero at first, of f^l, the mean over positions of the normed input of block l;
    f^L is the final norm's. The pixel objective is that of the model given, computed in the same forward pass; a BERT
    model's inputs are masked in training and in evaluation. L_GEN alone is shown as the metric `generative_loss`, in
    nats per token.

    Training changes the weights that its loss depends on. Without L_GEN these are the class head's and those below it;
    the others are not used, and have no optimizer state.

    Args:
        language_model: an `ImageGPTCausalLM` or `ImageGPTMaskedLM`, which is trained along.
        num_classes: int. Classes `C`.
        generative_weight: float, at least 0. Weight of L_GEN beside L_CLF; 1 in the paper, and 0 leaves L_CLF alone.
        layer: int in 0…L. Depth l of the features; by default L, the paper's. A head at the depth of the best linear
            probe is trained faster, but in the end the last one was better.
        frozen: bool. Whether the language model stays as it is and the class head alone is trained: a linear probe by
            gradient descent, the paper's for ImageNet, with `probing_recipe`. Needs `generative_weight=0`. A BERT
            model still draws new masks in each step.
        class_names: sequence of str, one a class. They are saved with the model, and `predict_images` shows them.
        **kwargs: of `keras.Model`.

    Call arguments:
        inputs: what the language model takes: an int tensor `(B, T)` of token ids, or a dictionary.

    Returns:
        Dictionary of `"class_logits"`, float32 `(B, C)`, and with a positive `generative_weight` `"image_losses"`,
        float32 `(B,)`, the pixel objective of each image in nats per token, and `"image_weights"`, float32 `(B,)`, 0
        for an image without a predicted token. `predict` returns the class logits alone, and computes no more.

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
        layer: int | None = None,
        frozen: bool = False,
        class_names: Sequence[str] | None = None,
        **kwargs: Any,
    ) -> None:
        check_language_model(language_model)
        num_classes = check_integer("num_classes", num_classes, 2)
        if class_names is not None:
            class_names = _check_class_names(class_names, num_classes)
        generative_weight = check_number("generative_weight", generative_weight, 0)
        last = language_model.backbone.num_layers
        layer = last if layer is None else check_integer("layer", layer, 0, last)
        frozen = check_flag("frozen", frozen)
        if frozen and generative_weight:
            raise ValueError(
                "`generative_weight` must be 0 with frozen=True, for L_GEN has no weights to train then. "
                f"Received: generative_weight={generative_weight}"
            )
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
            self.generative_loss = keras.metrics.Mean(name="generative_loss", dtype="float32")
        # Not in the model's files. The first replaces Keras' mean loss. In evaluation it has L_CLF alone and the second
        # L_GEN, as each has its own weights; in training the second stays zero.
        self._mean_loss = Untracked(keras.metrics.Mean(name="loss", dtype="float32"))
        self._mean_generative_loss = Untracked(keras.metrics.Mean(name="mean_generative_loss", dtype="float32"))

        # === Config ===
        self.num_classes = num_classes
        self.generative_weight = generative_weight
        self.layer = layer
        self.frozen = frozen
        self.class_names = class_names

        self.build()

    @classmethod
    def from_preset(
        cls,
        name: str,
        num_classes: int,
        load_weights: bool = True,
        generative_weight: float = 1.0,
        layer: int | None = None,
        frozen: bool = False,
        class_names: Sequence[str] | None = None,
        **overrides: Any,
    ) -> ImageGPTImageClassifier:
        """Makes a classifier of a preset's language model; its class head is zero.

        Args:
            name: str. A preset. The language model is of the objective that it was trained under, autoregressive for
                an architecture alone.
            num_classes: as in the constructor.
            load_weights: bool. Whether the language model is the preset's trained one, with its palette; False is for
                an architecture alone.
            generative_weight: as in the constructor.
            layer: as in the constructor.
            frozen: as in the constructor.
            class_names: as in the constructor.
            **overrides: of the language model's `from_preset`.

        Returns:
            An `ImageGPTImageClassifier`, not compiled.

        Raises:
            ValueError: if there is no such preset, or it has no weights, or an argument does not fit them.

        Example:
        ```python
        from_scratch = ImageGPTImageClassifier.from_preset("igpt_tiny", num_classes=10, load_weights=False)
        ```
        """
        masked = get_preset(name).objective == "bert"
        language_model = (ImageGPTMaskedLM if masked else ImageGPTCausalLM).from_preset(name, load_weights, **overrides)
        return cls(language_model, num_classes, generative_weight, layer, frozen, class_names)

    @property
    def backbone(self) -> ImageGPTBackbone:  # type: ignore[override]
        """The transformer inside the language model."""
        backbone: ImageGPTBackbone = self.language_model.backbone
        return backbone

    @property
    def palette(self) -> ColorPalette | None:  # type: ignore[override]
        """The language model's palette."""
        palette: ColorPalette | None = self.language_model.palette
        return palette

    # Not by the layers' `trainable`: the caller may train the language model elsewhere too.
    @property
    def trainable_variables(self) -> list[Any]:
        """The variables that training changes."""
        return self._trained(super().trainable_variables)

    @property
    def non_trainable_variables(self) -> list[Any]:
        """All other variables."""
        return _without(self.variables, self.trainable_variables)

    @property
    def trainable_weights(self) -> list[Any]:
        """The weights that training changes."""
        return self._trained(super().trainable_weights)

    @property
    def non_trainable_weights(self) -> list[Any]:
        """All other weights."""
        return _without(self.weights, self.trainable_weights)

    def _trained(self, variables: list[Any]) -> list[Any]:
        """Leaves out those that stay as they are."""
        if self.frozen:
            return _without(variables, self.language_model.variables)
        if self.generative_weight:
            return variables
        unused = [*self.backbone.layers_above(self.layer), self.language_model.pixel_head]
        return _without(variables, [variable for layer in unused for variable in layer.variables])

    def build(self, input_shape: Any = None) -> None:
        self.class_head.build((None, self.backbone.hidden_dim))

    def predict(self, x: Any, *args: Any, **kwargs: Any) -> Any:
        """Computes class logits `(B, C)` in batches; `keras.Model.predict`, which takes pictures too.

        Raises `ValueError` if the weights have diverged: the largest of logits that are not finite would be class 0.
        """
        return check_finite(super().predict(x, *args, **kwargs)["class_logits"], "predict")

    def vote(self, inputs: Pictures, num_masks: int = 5, seed: int = 0, batch_size: int = 128) -> npt.NDArray[np.int64]:
        """Predicts classes by a majority of several masks, for a BERT model, whose inputs are masked.

        A picture's masks and the choice among classes with equally many votes are functions of `(seed, row)`.

        Args:
            inputs: pictures or token ids `(B, T)`, of all the kinds that `score` takes.
            num_masks: int. Independent masks of each picture.
            seed: int. Of masks and ties.
            batch_size: int. Pictures computed together.

        Returns:
            int64 array `(B,)` of classes.

        Raises:
            ValueError: if an argument is out of its range, inputs do not fit, or the model is autoregressive.

        Example:
        ```python
        accuracy = measure_accuracy(classifier.vote(test_images), test_labels)   # with its 95% interval
        ```

        Reference:
            [Chen et al., 2020](https://cdn.openai.com/papers/Generative_Pretraining_from_Pixels_V2.pdf), section 4.6:
            5 masks
        """
        if not isinstance(self.language_model, ImageGPTMaskedLM):
            raise ValueError(
                "`language_model` must be an ImageGPTMaskedLM for a vote over masks; others see the whole picture, and "
                f"`predict` will do. Received: {type(self.language_model).__name__}"
            )
        num_masks = check_integer("num_masks", num_masks)
        seed = check_seed(seed)
        logits = self._logits_of_masks(as_examples(self, inputs), num_masks, seed, batch_size, "vote")
        return majority(np.stack([each.argmax(axis=-1) for each in logits], axis=-1), seed)

    def predict_images(
        self, pictures: Pictures, num_masks: int = 5, seed: int = 0, batch_size: int = 128
    ) -> ClassPredictions:
        """Predicts the classes of pictures, with names and probabilities.

        The probabilities are the softmax of the class logits; for a BERT model, their mean over the masks of `vote`,
        so that a picture on which the votes are close may get another class than there.

        Args:
            pictures: pictures, paths of them or token ids, of all the kinds that `score` takes.
            num_masks: int. Independent masks of each picture, for a BERT model; others see the whole picture.
            seed: int. Of the masks.
            batch_size: int. Pictures computed together.

        Returns:
            `ClassPredictions`; classes are named by their numbers where the model has no `class_names`.

        Raises:
            ValueError: if an argument is out of its range, pictures do not fit, or the weights have diverged.

        Example:
        ```python
        predictions = classifier.predict_images(["cat.jpg", "dog.png"])
        print(predictions, predictions.names, predictions.probabilities)
        ```
        """
        num_masks = check_integer("num_masks", num_masks)
        masks = num_masks if isinstance(self.language_model, ImageGPTMaskedLM) else 1
        examples = as_examples(self, pictures, "pictures")
        total = np.zeros((len(examples), self.num_classes))
        for logits in self._logits_of_masks(examples, masks, check_seed(seed), batch_size, "predict_images"):
            chances = np.exp(logits - logits.max(axis=-1, keepdims=True), dtype=np.float64)
            total += chances / chances.sum(axis=-1, keepdims=True)
        names = self.class_names or tuple(map(str, range(self.num_classes)))
        return ClassPredictions((total / masks).astype(np.float32), names)

    def _logits_of_masks(
        self, examples: PictureExamples, num_masks: int, seed: int, batch_size: int, purpose: str
    ) -> Iterator[npt.NDArray[np.float32]]:
        """Computes class logits `(B, C)` under each of several masks; an autoregressive model has none."""
        for mask in range(num_masks):
            arrays = {}
            if isinstance(self.language_model, ImageGPTMaskedLM):
                shape = (len(examples), self.backbone.num_tokens)
                arrays["position_mask"] = vote_mask(shape, self.language_model.mask_rate, seed, mask)
            segments = computed_rows(
                self,
                arrays,
                batch_size,
                row_bytes=4 * self.num_classes,
                examples=examples,
                palette=self.palette,
                purpose=purpose,
                told_as=f"{purpose}, mask {mask + 1} of {num_masks}" if num_masks > 1 else None,
            )
            yield np.concatenate([logits for _, logits in segments])

    def call(self, inputs: Any, training: bool | None = None) -> dict[str, Any]:
        token_ids = token_ids_of(inputs)
        position_mask = self.language_model.hidden_positions(inputs, training)
        generates = self.generative_weight and not _PREDICTING.get()
        # One pass for the class head and, where L_GEN needs it, the pixel head.
        depths = (self.layer, self.backbone.num_layers) if generates else (self.layer,)

        def normed_states() -> list[Any]:
            return self.backbone.normed_states(token_ids, depths, position_mask)

        states = without_gradient(normed_states) if self.frozen else normed_states()  # (B, T, D) each
        outputs = {"class_logits": self.class_head(ops.mean(ops.cast(states[0], "float32"), axis=1))}
        if generates:
            # Reduced to one number an image here: the logits (B, T, V) are too large to return.
            logits = self.language_model.pixel_head(states[-1])
            losses = self.language_model.image_losses(token_ids, logits, position_mask)
            outputs["image_losses"] = losses
            outputs["image_weights"] = self.language_model.image_weights(losses, position_mask)
        return outputs

    def predict_step(self, *args: Any) -> Any:
        """Computes the class logits alone; called by Keras on each backend, on JAX with the state before the data."""
        token = _PREDICTING.set(True)
        try:
            return super().predict_step(*args)
        finally:
            _PREDICTING.reset(token)

    def compute_loss(
        self,
        x: Any = None,
        y: Any = None,
        y_pred: Any = None,
        sample_weight: Any = None,
        training: bool = True,
    ) -> Any:
        """Computes `generative_weight * L_GEN + L_CLF`, L_CLF being the loss given to `compile`.

        L_GEN is a mean under `sample_weight`; L_CLF is Keras' loss, divided by the batch size whatever the weights. The
        metric divides it by the number of images that have a weight: `EvaluationBatches` fill batches up with others.
        """
        if self.loss is None:
            raise ValueError(
                "`loss` must be given to `compile`; `finetuning_recipe` has the paper's. Received: loss=None"
            )
        logits, sample_weight = y_pred["class_logits"], per_image(sample_weight)
        loss = super().compute_loss(x, y, logits, sample_weight, training)
        if not training:
            self._mean_loss.value.update_state(*self._mean_class_loss(x, y, logits, sample_weight, loss))
        if self.generative_weight:
            losses, weights = y_pred["image_losses"], y_pred["image_weights"]
            if sample_weight is not None:
                weights = weights * ops.cast(sample_weight, weights.dtype)
            self.generative_loss.update_state(losses, sample_weight=weights)
            loss = loss + self.generative_weight * weighted_mean(losses, weights)
            if not training:
                self._mean_generative_loss.value.update_state(losses, sample_weight=weights)
        if training:
            self._mean_loss.value.update_state(loss * replica_count(), sample_weight=ops.shape(logits)[0])
            self.language_model.advance_step()
        return loss

    def _mean_class_loss(self, x: Any, y: Any, logits: Any, sample_weight: Any | None, loss: Any) -> tuple[Any, Any]:
        """L_CLF as the mean over the images of a batch that have a weight, and how many these are."""
        rows = ops.cast(ops.shape(logits)[0], logits.dtype)
        if sample_weight is None:
            return loss * replica_count(), rows
        counted = ops.sum(ops.cast(ops.not_equal(sample_weight, 0), logits.dtype))
        # The compiled loss divides by all rows, those included that only fill the batch up.
        scaled = ops.cast(sample_weight, logits.dtype) * rows / ops.maximum(counted, 1.0)
        return super().compute_loss(x, y, logits, scaled, training=False) * replica_count(), counted

    def compute_metrics(self, x: Any, y: Any, y_pred: Any, sample_weight: Any = None) -> dict[str, Any]:
        """Updates the compiled metrics with the class logits."""
        metrics: dict[str, Any] = super().compute_metrics(x, y, y_pred["class_logits"], per_image(sample_weight))
        return metrics

    @property
    def metrics(self) -> list[Any]:
        """Keras' own, but for its mean loss, which counts rows that only fill a batch up."""
        metrics: list[Any] = super().metrics
        if self._adds_nothing():
            metrics = [self._mean_loss.value if metric.name == "loss" else metric for metric in metrics]
        return [*metrics, self._mean_generative_loss.value]

    def _adds_nothing(self) -> bool:
        """Whether the loss is this class's, with nothing that the `compute_loss` of a subclass adds."""
        return type(self).compute_loss is ImageGPTImageClassifier.compute_loss

    def get_metrics_result(self) -> dict[str, Any]:
        """Returns the metrics by name; in evaluation the loss is the mean over all images that have a weight."""
        results: dict[str, Any] = super().get_metrics_result()
        generative_loss = results.pop(self._mean_generative_loss.value.name)
        if "loss" in results and self._adds_nothing():
            results["loss"] = results["loss"] + self.generative_weight * generative_loss
        return results

    needs_labels = True

    def check_labels(self, labels: Any, name: str = "x") -> None:
        """Checks class labels: integers `(B,)` or `(B, 1)`; or, for a loss that takes them, numbers `(B, C)`."""
        wanted = f"`{name}` must come with class labels, integers (B,) in 0…{self.num_classes - 1}"
        if labels is None:
            raise ValueError(f"{wanted}. Received: no labels")
        classes = np.asarray(ops.convert_to_numpy(labels) if ops.is_tensor(labels) else labels)
        if classes.shape[1:] == (self.num_classes,) and classes.dtype.kind in "fiu":
            if "sparse" in _name_of(self.loss):
                raise ValueError(
                    f"{wanted} (one-hot labels: `labels.argmax(-1)`, or CategoricalCrossentropy(from_logits=True)). "
                    f"Received: shape {classes.shape}"
                )
            if not np.isfinite(classes).all():
                raise ValueError(f"{wanted} or finite numbers (B, {self.num_classes}). Received: NaN or infinity")
            return
        if classes.dtype.kind not in "iu" or classes.shape[1:] not in ((), (1,)) or not classes.ndim:
            raise ValueError(f"{wanted}. Received: {classes.dtype} of shape {classes.shape}")
        if len(classes) and not 0 <= classes.min() <= classes.max() < self.num_classes:
            raise ValueError(
                f"{wanted} (where they count from 1, subtract 1). Received: {classes.min()}…{classes.max()}"
            )

    def _check_settings(self) -> None:
        loss = keras.losses.get(self.loss) if isinstance(self.loss, str) else self.loss
        from_logits = getattr(loss, "from_logits", None)
        if from_logits is None and callable(loss):
            parameter = inspect.signature(loss).parameters.get("from_logits")
            from_logits = None if parameter is None else parameter.default
        if from_logits is False:
            raise ValueError(
                "`loss` must take logits, such as keras.losses.SparseCategoricalCrossentropy(from_logits=True); "
                f"`finetuning_recipe` has it. Received: {_name_of(self.loss)} of probabilities"
            )

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "language_model": keras.saving.serialize_keras_object(self.language_model),
            "num_classes": self.num_classes,
            "generative_weight": self.generative_weight,
            "layer": self.layer,
            "frozen": self.frozen,
            "class_names": None if self.class_names is None else list(self.class_names),
        }

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> Self:
        config = dict(config)
        config["language_model"] = keras.saving.deserialize_keras_object(
            config["language_model"], custom_objects=custom_objects
        )
        return super().from_config(config, custom_objects=custom_objects)


def _check_class_names(class_names: Any, num_classes: int) -> tuple[str, ...]:
    # A string is a sequence of strings too.
    names = () if isinstance(class_names, str) or not isinstance(class_names, Iterable) else tuple(class_names)
    named = len(names) == num_classes and all(isinstance(name, str) for name in names)
    if not named or len(set(names)) < num_classes:
        raise ValueError(
            f"`class_names` must be {num_classes} different strings, one a class. Received: class_names={class_names!r}"
        )
    # NumPy's strings are of a class of their own.
    return tuple(map(str, names))


def _name_of(loss: Any) -> str:
    """What a loss is called, however it was given to `compile`."""
    return loss if isinstance(loss, str) else str(getattr(loss, "name", getattr(loss, "__name__", "")))


def _without(variables: list[Any], others: list[Any]) -> list[Any]:
    left_out = {id(variable) for variable in others}
    return [variable for variable in variables if id(variable) not in left_out]
