"""Models that are fed with token ids, and what they check of them before any work is done."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
from keras import ops

from keras_igpt.backbone import ImageGPTBackbone
from keras_igpt.distribution import check_one_process, check_rows
from keras_igpt.exact_resume import ExactResume
from keras_igpt.finite_loss import StopAtNonFiniteLoss
from keras_igpt.palette import ColorPalette, check_token_ids
from keras_igpt.quantization import QuantizableModel


class TokenModel(QuantizableModel):
    """A Keras model fed with token ids, which are checked before any work is done.

    `fit`, `evaluate` and `predict` look at arrays of token ids on the host: an id out of range would be NaN on JAX and
    a crash deep inside elsewhere. Of a `PyDataset` they look at the first batch. What comes through a `tf.data.Dataset`
    or a generator is not seen here; there an out-of-range id makes the loss NaN, or the backend raises.
    """

    backbone: ImageGPTBackbone
    palette: ColorPalette | None

    @property
    def _default_save_signature(self) -> None:
        """No signature of its own inside a SavedModel: Keras on TensorFlow would trace one with float tokens."""

    def fit(self, x: Any = None, y: Any = None, *args: Any, **kwargs: Any) -> Any:
        """Trains the model; `keras.Model.fit`, with `x` checked first.

        A `PyDataset` gives its batches in its own order, and its `steps_per_epoch` where it has one. A loss that is no
        number stops the training (`StopAtNonFiniteLoss`). With `ExactResume` among the callbacks it goes on from the
        newest checkpoint.
        """
        options = _by_name(keras.Model.fit, args, kwargs)
        self.check_token_arrays(x)
        _check_batch_size(x, options)
        if isinstance(x, keras.utils.PyDataset):
            # Keras would draw another order of the batches from Python's global generator.
            options.setdefault("shuffle", False)
            if options.get("steps_per_epoch") is None:
                options["steps_per_epoch"] = getattr(x, "steps_per_epoch", None)
        if options.get("class_weight") is not None and y is None and _array_of(token_ids_of(x)) is not None:
            raise ValueError("`class_weight` needs class labels in `y`. Received: class_weight without y")
        validation = options.get("validation_data")
        if isinstance(validation, keras.utils.PyDataset):
            _check_that_it_ends(validation, options.get("validation_steps"), "validation_data")
            self.check_token_arrays(validation, "validation_data")
        if isinstance(validation, tuple) and validation:
            self.check_token_arrays(validation[0], "validation_data")
            if len(validation) == 3:
                inputs, targets, weights = validation
                options["validation_data"] = (inputs, _targets_for(inputs, targets, weights), weights)
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
            history = resume[0].fit(super().fit, self, x, options)
        else:
            history = super().fit(x, _targets_for(x, y, options.get("sample_weight")), **options)
        optimizer: Any = self.optimizer
        if getattr(optimizer, "inner_optimizer", optimizer).use_ema:
            # Keras leaves weights and averages in the same memory, which JAX refuses to give to another step twice.
            for weight in self.trainable_variables:
                weight.assign(ops.copy(weight))
        return history

    def evaluate(self, x: Any = None, y: Any = None, *args: Any, **kwargs: Any) -> Any:
        """Computes loss and metrics; `keras.Model.evaluate`, with `x` checked first."""
        options = _by_name(keras.Model.evaluate, args, kwargs)
        _check_that_it_ends(x, options.get("steps"), "x")
        self.check_token_arrays(x)
        _check_batch_size(x, options)
        return super().evaluate(x, _targets_for(x, y, options.get("sample_weight")), **options)

    def predict(self, x: Any, *args: Any, **kwargs: Any) -> Any:
        """Computes the outputs in batches; `keras.Model.predict`, with `x` checked first."""
        check_one_process("predict")
        options = _by_name(keras.Model.predict, args, kwargs)
        _check_that_it_ends(x, options.get("steps"), "x")
        self.check_token_arrays(x)
        _check_batch_size(x, options)
        return super().predict(x, **options)

    def get_compile_config(self) -> dict[str, Any]:
        """Returns what `compile` was given, in a form that any backend reads.

        Keras 3.15 writes optimizers made on PyTorch under a private PyTorch module, which the other backends would then
        load and fail with in the first step. It also writes whether it compiles on this backend as if it had been told
        to: PyTorch would then compile with Inductor, for minutes, what was made on JAX.
        """
        config: dict[str, Any] = _with_public_optimizers(super().get_compile_config())
        if config and config["jit_compile"] == keras.Sequential(name="default").jit_compile:
            config["jit_compile"] = "auto"
        return config

    def check_token_arrays(self, x: Any, name: str = "x", padded: bool = False) -> None:
        """Checks token ids that are in memory; data sets and generators pass unseen.

        Args:
            x: what `fit` takes.
            name: str. What the caller calls it.
            padded: bool. Whether the caller fills batches up, so that any number of rows will do on several devices.

        Raises:
            ValueError: if shape, dtype or range of the token ids do not fit the model.
        """
        if isinstance(x, keras.utils.PyDataset):
            batch = x[0]
            x = batch[0] if isinstance(batch, (tuple, list)) else batch
        if isinstance(x, dict) and ("token_ids" not in x or not set(x) <= {"token_ids", "position_mask"}):
            raise ValueError(f"`{name}` must have the key 'token_ids', perhaps 'position_mask'. Received: {list(x)}")
        token_ids = _array_of(token_ids_of(x))
        if token_ids is None:
            return
        tokens = self.backbone.num_tokens
        if token_ids.ndim != 2 or token_ids.shape[1] != tokens or len(token_ids) < 1:
            raise ValueError(
                f"`{name}` must be token ids of shape (B, {tokens}) with B at least 1 "
                f"(`ColorPalette.encode` makes them from images). Received: shape {token_ids.shape}"
            )
        if not padded:
            check_rows(len(token_ids), name)
        check_token_ids(token_ids, self.backbone.vocabulary_size, name)
        mask = _array_of(x.get("position_mask")) if isinstance(x, dict) else None
        if mask is not None and (mask.dtype != bool or mask.shape != token_ids.shape):
            raise ValueError(
                f"`position_mask` must be bool of shape {token_ids.shape}, True where the pixel is hidden. "
                f"Received: {mask.dtype} of shape {mask.shape}"
            )

    def token_array(self, inputs: npt.ArrayLike, name: str = "inputs") -> npt.NDArray[np.integer[Any]]:
        """Makes token ids of what is in memory, and checks them.

        Args:
            inputs: uint8 images `(B, H, W, C)`, which the palette encodes, or token ids `(B, T)`.
            name: str. What the caller calls them.

        Returns:
            Integer array `(B, T)`.

        Raises:
            ValueError: if they do not fit the model, or are images and it has no palette.
        """
        array = np.asarray(inputs)
        if array.ndim == 4:
            if self.palette is None:
                raise ValueError(
                    f"`{name}` must be token ids, since the model has no palette to encode images with. "
                    f"Received: shape {array.shape}"
                )
            side, channels = self.backbone.image_size, self.palette.num_channels
            if array.shape[1:] != (side, side, channels):
                raise ValueError(
                    f"`{name}` must be images (B, {side}, {side}, {channels}) or token ids. "
                    f"Received: shape {array.shape}"
                )
            array = self.palette.encode(array)
        self.check_token_arrays(array, name, padded=True)
        return array


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


def _check_batch_size(x: Any, options: dict[str, Any]) -> None:
    """Checks the batch size, or Keras' own 32, of what is not in batches yet."""
    if not isinstance(x, keras.utils.PyDataset) and _array_of(token_ids_of(x)) is not None:
        check_rows(options.get("batch_size") or 32, "batch_size")


def token_ids_of(inputs: Any) -> Any:
    """Returns the token ids among a model's inputs: the tensor itself, or the dictionary's entry."""
    return inputs["token_ids"] if isinstance(inputs, dict) else inputs


def _array_of(values: Any) -> npt.NDArray[Any] | None:
    """Values in memory as a NumPy array; None for data sets, generators and nothing."""
    if isinstance(values, (list, tuple)):
        return np.asarray(values)
    if ops.is_tensor(values):
        return np.asarray(ops.convert_to_numpy(values))
    return values if isinstance(values, np.ndarray) else None


def _targets_for(x: Any, y: Any, sample_weight: Any | None) -> Any:
    """Returns `y`, or the inputs where there are weights but no targets: Keras would drop the weights."""
    return token_ids_of(x) if y is None and sample_weight is not None else y


def _with_public_optimizers(config: Any) -> Any:
    """The configuration with PyTorch's optimizer classes replaced by the public ones of the same name."""
    if isinstance(config, list):
        return [_with_public_optimizers(value) for value in config]
    if not isinstance(config, dict):
        return config
    config = {key: _with_public_optimizers(value) for key, value in config.items()}
    if str(config.get("module", "")).startswith("keras.src.backend.torch.optimizers"):
        config |= {"module": "keras.optimizers", "registered_name": None}
    return config
