"""Models that are fed with token ids, and what they check of them before any work is done."""

from __future__ import annotations

import inspect
import warnings
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_igpt.backend.optimizers import innermost, with_public_optimizers
from keras_igpt.backend.processes import batch_divisor, check_one_process, check_rows
from keras_igpt.backend.whole_steps import WholeStepModel, build_for, called_by_fit, compile_options
from keras_igpt.data.batches import EndlessBatches, EvaluationBatches
from keras_igpt.data.checked import CheckedData, is_a
from keras_igpt.data.examples import check_labeled
from keras_igpt.data.grain_batches import GrainBatches
from keras_igpt.data.inputs import are_pictures, array_of, as_examples, as_token_ids, check_palette
from keras_igpt.data.token_source import PictureExamples
from keras_igpt.model.backbone import ImageGPTBackbone
from keras_igpt.model.memory import warn_if_too_large
from keras_igpt.model.quantization import QuantizableModel, int8_layers
from keras_igpt.palette.color_palette import ColorPalette, check_token_ids
from keras_igpt.support.checks import check_integer
from keras_igpt.training.non_finite_loss import StopAtNonFiniteLoss
from keras_igpt.training.resume import ExactResume

# Keras' own, of arrays.
_BATCH_SIZE = 32


class TokenModel(QuantizableModel, WholeStepModel):
    """A Keras model that takes token ids, and checks them before it computes anything.

    An id out of range would be NaN on JAX, and another colour or a crash elsewhere. `fit`, `evaluate` and `predict`
    check arrays whole, and each batch of a `PyDataset`, `tf.data.Dataset`, generator, PyTorch `DataLoader` or Grain
    data set before the model sees it; errors are the same `ValueError` on every backend. Pictures, in arrays and in
    such batches, become tokens by the model's palette. After any exception, an interrupt included, the model has the
    weights of the last whole step.
    """

    backbone: ImageGPTBackbone
    palette: ColorPalette | None
    # Whether targets are class labels, which examples without labels do not have.
    needs_labels = False

    @property
    def _default_save_signature(self) -> None:
        """No signature of its own inside a SavedModel: Keras on TensorFlow would trace one with float tokens."""

    def fit(self, x: Any = None, y: Any = None, *args: Any, **kwargs: Any) -> Any:
        """Trains the model; `keras.Model.fit`, with what it is given checked first.

        A `PyDataset` gives its batches in its own order, and its `steps_per_epoch` where it has one; `TrainingBatches`
        begin with the epoch that `initial_epoch` or `BackupAndRestore` begins with. A loss that is not finite stops the
        training (`StopAtNonFiniteLoss`). With `ExactResume` among the callbacks it resumes from the newest checkpoint.
        `validation_data` may be all that `evaluate` takes.
        """
        options = self._options(keras.Model.fit, args, kwargs)
        self._warn_of_int8()
        if is_a(x, "grain", "MapDataset"):
            x = GrainBatches(x, options.get("steps_per_epoch"))
        if isinstance(x, keras.utils.PyDataset):
            # Keras would draw another order of the batches from Python's global generator.
            options.setdefault("shuffle", False)
            if options.get("steps_per_epoch") is None:
                options["steps_per_epoch"] = getattr(x, "steps_per_epoch", None)
        if options.get("class_weight") is not None and y is None and array_of(token_ids_of(x)) is not None:
            raise ValueError("`class_weight` needs class labels in `y`. Received: class_weight without y")
        given: Any = options.get("callbacks") or []
        in_list = isinstance(given, keras.callbacks.CallbackList)
        callbacks = given.callbacks if in_list else [given] if isinstance(given, keras.callbacks.Callback) else [*given]
        resume = [callback for callback in callbacks if isinstance(callback, ExactResume)]
        if len(resume) > 1 or (resume and (in_list or y is not None)):
            raise ValueError(
                "`callbacks` must be a list with one ExactResume, and `y` None, for the batches have the labels. "
                f"Received: {type(given).__name__} with {len(resume)} of them, y of type {type(y).__name__}"
            )
        # Resuming comes last, after what changes the weights at an epoch's end.
        others = [callback for callback in callbacks if callback not in resume]
        options["callbacks"] = given if in_list else [StopAtNonFiniteLoss(), *others, *resume]
        if resume:
            history = resume[0].fit(self._fit, self, x, options)
        else:
            history = self._fit(x, y, seeks_epoch=not in_list, **options)
        if innermost(self.optimizer).use_ema:
            # Keras leaves weights and averages in the same memory, which JAX refuses to give to another step twice.
            for weight in self.trainable_variables:
                weight.assign(ops.copy(weight))
        return history

    def _fit(self, x: Any, y: Any = None, seeks_epoch: bool = False, **options: Any) -> Any:
        """Runs `keras.Model.fit` on checked data, which begin with the first epoch if asked to and if they can."""
        x = as_token_ids(self, x, "x") if are_pictures(x) else x
        data, y = self._prepared(x, y, options)
        data.trained_on_for(options.get("steps_per_epoch"))
        checked = [data]
        if data.first is not None:
            # Keras warns that it cannot shuffle what comes in batches.
            options.setdefault("shuffle", False)
        if seeks_epoch and hasattr(x, "starting_at") and options.get("steps_per_epoch"):
            options["callbacks"] = [_BatchesOfEpoch(data.data, options["steps_per_epoch"]), *options["callbacks"]]
        if options.get("validation_data") is not None:
            held_out, steps = options["validation_data"], options.get("validation_steps")
            parts = held_out if isinstance(held_out, (tuple, list)) else (held_out,)
            if not 1 <= len(parts) <= 3:
                raise ValueError(
                    "`validation_data` must be (x, y), (x, y, sample_weight), or a data set. "
                    f"Received: {type(held_out).__name__} of {len(parts)}"
                )
            inputs, targets, weights = [*parts, None, None][:3]
            batch_size = options.get("validation_batch_size") or options.get("batch_size")
            inputs = self._taken_in(inputs, batch_size, steps, "validation_data")
            validation, targets, weights = self._checked(inputs, targets, weights, "validation_data")
            if validation.first is not None and len(parts) > 1:
                raise ValueError(
                    "`validation_data` must be a data set alone, for its batches have the labels and weights. "
                    f"Received: {type(parts[0]).__name__} with labels"
                )
            validation.validated_on_for(steps)
            checked.append(validation)
            options["validation_data"] = (
                validation.data if validation.first is not None else (validation.data, targets, weights)
            )
        rows = options.get("batch_size") or _BATCH_SIZE
        if data.first is not None:
            example = token_ids_of(keras.utils.unpack_x_y_sample_weight(data.first)[0])
            rows = rows if example is None else len(example)
        warn_if_too_large(self, rows)
        with _errors_of(checked):
            return super().fit(data.data, y, **options)

    def evaluate(self, x: Any = None, y: Any = None, *args: Any, **kwargs: Any) -> Any:
        """Computes loss and metrics; `keras.Model.evaluate`, with what it is given checked first.

        Pictures are taken too, of all the kinds that `score` takes.
        """
        options = self._options(keras.Model.evaluate, args, kwargs)
        if called_by_fit(options):
            # Which has checked the same.
            return super().evaluate(x, y, **options)
        data, y = self._prepared(self._taken_in(x, options.get("batch_size"), options.get("steps")), y, options)
        with _errors_of([data]):
            return super().evaluate(data.data, y, **options)

    def predict(self, x: Any, *args: Any, **kwargs: Any) -> Any:
        """Computes the outputs in batches; `keras.Model.predict`, with `x` checked first.

        Pictures are taken too, of all the kinds that `score` takes.
        """
        check_one_process("predict")
        options = self._options(keras.Model.predict, args, kwargs)
        taken = self._taken_in(x, options.get("batch_size"), options.get("steps"))
        data, _ = self._prepared(taken, None, options, labelled=False)
        with _errors_of([data]):
            outputs = super().predict(data.data, **options)
        # Rows that fill the last batch up are dropped where the batches were made here.
        return (
            keras.tree.map_structure(lambda array: array[: len(x)], outputs)
            if isinstance(x, PictureExamples)
            else outputs
        )

    def train_on_batch(self, x: Any, y: Any = None, sample_weight: Any = None, *args: Any, **kwargs: Any) -> Any:
        """Trains on one batch; `keras.Model.train_on_batch`, with what it is given checked first."""
        self._check_settings()
        self.check_batch((x, y, sample_weight), "x")
        return super().train_on_batch(_without_lists(x), y, sample_weight, *args, **kwargs)

    def test_on_batch(self, x: Any, y: Any = None, sample_weight: Any = None, *args: Any, **kwargs: Any) -> Any:
        """Computes loss and metrics of one batch; `keras.Model.test_on_batch`, with what it is given checked first."""
        self._check_settings()
        self.check_batch((x, y, sample_weight), "x")
        return super().test_on_batch(_without_lists(x), y, sample_weight, *args, **kwargs)

    def predict_on_batch(self, x: Any) -> Any:
        """Computes the outputs of one batch; `keras.Model.predict_on_batch`, with `x` checked first."""
        self.check_batch((x,), "x", labelled=False)
        return super().predict_on_batch(_without_lists(x))

    def _options(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        """Names and checks the options of Keras' `fit`, `evaluate` or `predict`, and the settings that these need."""
        options = _by_name(function, args, kwargs)
        if function is not keras.Model.predict:
            if not self.compiled:
                raise ValueError(
                    "The model must be compiled first, as by model.compile(**pretraining_recipe(…)) or "
                    f"model.compile(**finetuning_recipe(…)). Received: `{function.__name__}` of one that is not"
                )
            self._check_settings()
        _check_counts(options)
        return options

    def _taken_in(self, x: Any, batch_size: int | None, steps: int | None, name: str = "x") -> Any:
        """What `evaluate` and `predict` are given, as Keras takes it: pictures and examples as tokens."""
        _check_that_it_ends(x, steps, name)
        if isinstance(x, PictureExamples):
            return EvaluationBatches(as_examples(self, x, name), self.palette, batch_size or _BATCH_SIZE)
        return as_token_ids(self, x, name) if are_pictures(x) or array_of(x) is not None else x

    def _prepared(self, x: Any, y: Any, options: dict[str, Any], labelled: bool = True) -> tuple[CheckedData, Any]:
        """Checks data and builds the model's metrics and loss for them; `options` gets the weights."""
        data, y, weights = self._checked(x, y, options.get("sample_weight"), "x", labelled)
        if array_of(token_ids_of(x)) is not None:
            check_rows(options.get("batch_size") or _BATCH_SIZE, "batch_size")
        if labelled:
            options["sample_weight"] = weights
            # Otherwise Keras takes the first batch away from the data to do this.
            build_for(self, _as_example(data, y, weights))
        return data, y

    def _checked(
        self, x: Any, y: Any, sample_weight: Any, name: str, labelled: bool = True
    ) -> tuple[CheckedData, Any, Any]:
        """Inputs, targets and weights for Keras: arrays checked whole, other data wrapped to be checked by batch."""
        if x is None:
            raise ValueError(f"`{name}` must be token ids or a data set of them. Received: None")
        if isinstance(x, EvaluationBatches) and self._counts_all_rows_alike():
            if batch_divisor() > 1:
                raise ValueError(
                    "`metrics` of `compile` must be `weighted_metrics` on several devices, for batches are filled up. "
                    "Received: metrics that know no weights"
                )
            x = x.without_filling()
        if isinstance(x, (EndlessBatches, EvaluationBatches)):
            check_palette(self, x.palette, name)
            if labelled and self.needs_labels:
                check_labeled(name, getattr(x, "examples", x))
                if x.known_labels is not None:
                    self.check_labels(x.known_labels, name)
        # Keras takes a list for several inputs or the targets of several outputs.
        x, y, sample_weight = map(_without_lists, (x, y, sample_weight))
        # TensorFlow keeps what it has read from for good, and would keep the model with it.
        take = weakref.WeakMethod(self._taken_batch)

        def look_at(batch: Any) -> Any:
            method = take()
            return batch if method is None else method(batch, name, labelled)

        data = CheckedData(x, look_at)
        if data.first is None:
            self.check_batch((x, y, sample_weight), name, labelled)
            # A `DistributedDataset` of TensorFlow has an `element_spec`. Keras would notice others after an epoch.
            if array_of(token_ids_of(x)) is None and not hasattr(x, "element_spec"):
                raise ValueError(f"`{name}` must be token ids or a data set of them. Received: {type(x).__name__}")
            # Keras would drop the weights where there are no targets.
            y = token_ids_of(x) if y is None and sample_weight is not None else y
        return data, y, sample_weight

    def _taken_batch(self, batch: Any, name: str, labelled: bool) -> Any:
        """Returns a batch of a data set, checked, with tokens in place of pictures."""
        x = keras.utils.unpack_x_y_sample_weight(batch)[0]
        if are_pictures(x):
            token_ids = as_token_ids(self, x, name)
            batch = (token_ids, *batch[1:]) if isinstance(batch, tuple) else token_ids
        self.check_batch(batch, name, labelled)
        return batch

    def check_batch(self, batch: Any, name: str = "x", labelled: bool = True) -> None:
        """Checks inputs and, if `labelled`, targets and weights that are in memory; they come in a tuple."""
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(batch)
        rows = self.check_token_arrays(x, name)
        if labelled and rows is not None:
            self.check_labels(y, name)
            _check_weights(sample_weight, rows)

    def check_labels(self, labels: Any, name: str = "x") -> None:
        """Checks the targets that come with `name`; the pixel models have none but the inputs."""

    def _check_settings(self) -> None:
        """Checks what `compile` was given."""

    def _warn_of_int8(self) -> None:
        """Warns where training goes around the kernels, whose loss falls all the same."""
        layers = int8_layers(self)
        # LoRA gives the layers weights that learn.
        if not layers or any(layer.lora_enabled for layer in layers):
            return
        trained = {id(weight) for weight in self.trainable_weights}
        if any(id(weight) in trained for weight in self.backbone.weights):
            warnings.warn(
                f"{len(layers)} layers in int8 stay as they are: training changes norms and embeddings alone.",
                stacklevel=3,
            )

    def _counts_all_rows_alike(self) -> bool:
        """Whether there are compiled metrics that know no weights, and would count rows that fill a batch up."""
        return bool(compile_options(self).get("metrics"))

    def get_compile_config(self) -> dict[str, Any]:
        """Returns what `compile` was given, in a form that any backend reads.

        Keras 3.15 writes optimizers made on PyTorch under a private PyTorch module, which the other backends would then
        load and fail with in the first step. It also writes whether it compiles on this backend as if it had been told
        to: PyTorch would then compile with Inductor, for minutes, what was made on JAX.
        """
        config: dict[str, Any] = with_public_optimizers(super().get_compile_config())
        if config and config["jit_compile"] == keras.Sequential(name="default").jit_compile:
            config["jit_compile"] = "auto"
        return config

    def check_token_arrays(self, x: Any, name: str = "x") -> int | None:
        """Checks what `call` takes, where it is in memory; returns its number of rows, None for a data set."""
        if isinstance(x, dict) and ("token_ids" not in x or not set(x) <= {"token_ids", "position_mask"}):
            raise ValueError(f"`{name}` must have the key 'token_ids', perhaps 'position_mask'. Received: {list(x)}")
        token_ids = array_of(token_ids_of(x))
        if token_ids is None:
            return None
        tokens = self.backbone.num_tokens
        if token_ids.ndim != 2 or token_ids.shape[1] != tokens or len(token_ids) < 1:
            raise ValueError(
                f"`{name}` must be token ids of shape (B, {tokens}) with B at least 1 "
                f"(`ColorPalette.encode` makes them from images). Received: shape {token_ids.shape}"
            )
        if token_ids.dtype == np.uint64:
            raise ValueError(f"`{name}` must be token ids that int64 holds, for PyTorch's sake. Received: uint64")
        check_rows(len(token_ids), name)
        check_token_ids(token_ids, self.backbone.vocabulary_size, name)
        mask = array_of(x.get("position_mask")) if isinstance(x, dict) else None
        if mask is not None and (mask.dtype != bool or mask.shape != token_ids.shape):
            raise ValueError(
                f"`position_mask` must be bool of shape {token_ids.shape}, True where the pixel is hidden. "
                f"Received: {mask.dtype} of shape {mask.shape}"
            )
        return len(token_ids)


def _without_lists(values: Any) -> Any:
    """Turns lists into arrays, in a dictionary of inputs too."""
    if isinstance(values, dict):
        return {name: _without_lists(value) for name, value in values.items()}
    return array_of(values) if isinstance(values, (list, tuple)) else values


def _check_that_it_ends(x: Any, steps: int | None, name: str) -> None:
    """Refuses an endless data set where Keras would go on for ever."""
    if isinstance(x, keras.utils.PyDataset) and steps is None and x.num_batches is None:
        raise ValueError(f"`{name}` must end (`EvaluationBatches` does). Received: endless {type(x).__name__}")


def _by_name(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Names the arguments of Keras' `fit`, `evaluate` or `predict` that follow `x`, and `y` where there is one."""
    signature = inspect.signature(function)
    leading = [None] * (3 if "y" in signature.parameters else 2)
    bound = signature.bind(*leading, *args, **kwargs).arguments
    named = dict(list(bound.items())[len(leading) :])
    further = named.pop("kwargs", {})
    return {**named, **further}


def _check_counts(options: dict[str, Any]) -> None:
    """Checks the numbers among `fit`'s options, of which Keras takes 0 for none or for no end."""
    for name in ("batch_size", "validation_batch_size", "steps_per_epoch", "validation_steps", "steps"):
        if options.get(name) is not None:
            options[name] = check_integer(name, options[name])
    for name in ("epochs", "initial_epoch"):
        if name in options:
            options[name] = check_integer(name, options[name], 0)


def _check_weights(sample_weight: Any, rows: int) -> None:
    weights = None if sample_weight is None else array_of(sample_weight)
    if weights is None:
        return
    if weights.shape not in ((rows,), (rows, 1)) or weights.dtype.kind not in "fiub":
        raise ValueError(
            f"`sample_weight` must be numbers of shape ({rows},), one an image. "
            f"Received: {weights.dtype} of shape {weights.shape}"
        )
    # NaN compares as False.
    wrong = ~(np.isfinite(weights) & (weights >= 0))
    if wrong.any():
        raise ValueError(
            f"`sample_weight` must be finite and at least 0. Received: {weights[wrong][0]} and the like in "
            f"{int(wrong.sum())} of {rows} rows"
        )


@contextmanager
def _errors_of(checked: list[CheckedData]) -> Iterator[None]:
    """Raises the original error of a batch where TensorFlow replaces it by one of its own."""
    try:
        yield
    except Exception as raised:
        for data in checked:
            if data.error is not None and data.error is not raised:
                raise data.error from None
        raise


def _as_example(data: CheckedData, y: Any, sample_weight: Any) -> Any:
    """A batch of the kind that is to come."""
    if data.first is not None:
        return data.first

    def first_row(values: Any) -> Any:
        array = array_of(values)
        return None if array is None else array[:1]

    x = data.data
    inputs = {name: first_row(values) for name, values in x.items()} if isinstance(x, dict) else first_row(x)
    return inputs, first_row(y), first_row(sample_weight)


class _BatchesOfEpoch(keras.callbacks.Callback):
    """Starts the batches at the first epoch that is trained, which `BackupAndRestore` may choose."""

    def __init__(self, batches: Any, steps_per_epoch: int) -> None:
        super().__init__()
        self._batches, self._steps_per_epoch = batches, steps_per_epoch

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        if self._batches is not None:
            self._batches.start_at(epoch * self._steps_per_epoch)
            self._batches = None


def token_ids_of(inputs: Any) -> Any:
    """Returns the token ids among a model's inputs: the tensor itself, or the dictionary's entry."""
    return inputs["token_ids"] if isinstance(inputs, dict) else inputs


def per_image(sample_weight: Any | None) -> Any | None:
    """Returns sample weights `(B,)` or `(B, 1)` as `(B,)`; raises `ValueError` for another shape."""
    if sample_weight is None:
        return None
    if getattr(sample_weight.shape, "rank", 0) is None:
        # Fitted with `(B,)` before and `(B, 1)` now, TensorFlow traces both at once. They were checked on entry.
        return ops.reshape(sample_weight, (-1,))
    shape = tuple(sample_weight.shape)
    if len(shape) != 1 and (len(shape) != 2 or shape[1] != 1):
        raise ValueError(f"`sample_weight` must have shape (B,), one number an image. Received: shape {shape}")
    return ops.reshape(sample_weight, (-1,))
