"""Models that keep the weights of the last complete step if `fit`, `evaluate` or `predict` is interrupted."""

from __future__ import annotations

import signal
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import islice
from typing import Any, Literal

import keras
import numpy as np

from keras_igpt.backend.compilation import runs_eagerly
from keras_igpt.backend.processes import host_array, process_count
from keras_igpt.backend.traced_gradients import traced_gradients_dropped
from keras_igpt.backend.untracked import Untracked

Kind = Literal["train", "test", "predict"]
# A step function; None until Keras makes it.
Function = Any


class WholeStepModel(keras.Model):
    """A Keras model that stays usable after an interrupt or an error, with the weights of the last complete step.

    On JAX, Keras takes the weights out of the model while it runs and donates their memory to each step, so an
    exception can lose them. On PyTorch, an interrupt may come in the middle of an update. Here Ctrl-C waits for the
    current step, and the weights are restored. On JAX, `evaluate` and `predict` neither donate the weights nor take
    them out, and threads that call them take turns. Both are compiled again where the model has other weights since, or
    others are trainable.
    """

    train_function: Function
    test_function: Function
    predict_function: Function

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # On JAX, Keras keeps one state a model, and `fit` evaluates.
        on_jax = keras.backend.backend() == "jax"
        self._turn: AbstractContextManager[Any] = threading.RLock() if on_jax else nullcontext()

    def fit(self, *args: Any, **kwargs: Any) -> Any:
        """Trains the model; `keras.Model.fit`."""
        with _weights_kept(self):
            return super().fit(*args, **kwargs)

    def evaluate(self, *args: Any, **kwargs: Any) -> Any:
        """Computes loss and metrics; `keras.Model.evaluate`."""
        with self._turn, _weights_kept(self):
            return super().evaluate(*args, **kwargs)

    def predict(self, *args: Any, **kwargs: Any) -> Any:
        """Computes the outputs in batches; `keras.Model.predict`."""
        with self._turn, _weights_kept(self):
            return super().predict(*args, **kwargs)

    def train_on_batch(self, *args: Any, **kwargs: Any) -> Any:
        """Trains on one batch; `keras.Model.train_on_batch`."""
        with self._turn, _weights_kept(self):
            return super().train_on_batch(*args, **kwargs)

    def test_on_batch(self, *args: Any, **kwargs: Any) -> Any:
        """Computes loss and metrics of one batch; `keras.Model.test_on_batch`."""
        with self._turn, _weights_kept(self):
            return super().test_on_batch(*args, **kwargs)

    def predict_on_batch(self, *args: Any, **kwargs: Any) -> Any:
        """Computes the outputs of one batch; `keras.Model.predict_on_batch`."""
        with self._turn, _weights_kept(self):
            return super().predict_on_batch(*args, **kwargs)

    def make_train_function(self, force: bool = False) -> None:
        """Makes the training step function; called by Keras."""
        before = self.train_function
        super().make_train_function(force)
        if self.train_function is not before:
            self.train_function = _whole(self, "train", self.train_function)

    def make_test_function(self, force: bool = False) -> None:
        """Makes the evaluation step function; called by Keras."""
        before = self.test_function
        force = self._has_other_weights("test") or force
        if self._donates_weights() and (before is None or force):
            self.test_function = self._make_function(_jitted(self.test_step))
        else:
            super().make_test_function(force)
        if self.test_function is not before:
            self.test_function = _whole(self, "test", self.test_function)

    def make_predict_function(self, force: bool = False) -> None:
        """Makes the prediction step function; called by Keras."""
        before = self.predict_function
        force = self._has_other_weights("predict") or force
        if self._donates_weights() and (before is None or force):

            def step(state: Any, data: Any) -> Any:
                outputs, non_trainable_variables = self.predict_step(state, data)
                return outputs, (state[0], non_trainable_variables)

            self.predict_function = self._make_function(_jitted(step), concatenate_outputs=True)
        else:
            super().make_predict_function(force)
        if self.predict_function is not before:
            self.predict_function = _whole(self, "predict", self.predict_function)

    def _has_other_weights(self, kind: Kind) -> bool:
        """Whether what was compiled is of other weights, or of the same in another order.

        TensorFlow has the weights in the graph: those that LoRA or quantisation replace would stay there. JAX goes by
        their order, which `trainable` changes.
        """
        if runs_eagerly():
            return False
        weights = [*self.trainable_variables, self, *self.non_trainable_variables]
        attribute = f"_weights_to_{kind}_with"
        # Weakly, so that weights which are replaced are freed.
        kept: Untracked[list[weakref.ref[Any]]] | None = getattr(self, attribute, None)
        same = (
            kept is not None
            and len(kept.value) == len(weights)
            and all(reference() is weight for reference, weight in zip(kept.value, weights, strict=True))
        )
        if not same:
            setattr(self, attribute, Untracked([weakref.ref(weight) for weight in weights]))
        return kept is not None and not same

    def _purge_model_variables(self, **kinds: bool) -> None:
        """Takes the weights out of the model on JAX; called by Keras."""
        # Only training has an optimizer, and donates what is taken out.
        if kinds["optimizer_variables"]:
            super()._purge_model_variables(**kinds)

    def _donates_weights(self) -> bool:
        """Whether Keras would donate the weights even to steps that do not change them."""
        return keras.backend.backend() == "jax" and bool(self.jit_compile) and not self.run_eagerly


def build_for(model: keras.Model, batch: Any) -> None:
    """Builds a compiled model's metrics and loss for batches like this one.

    Otherwise Keras takes a batch from the data, which is then never trained on if the data are a generator or a
    `PyDataset` with several workers.

    Args:
        model: a compiled model whose layers are built.
        batch: tuple of inputs and optional targets and weights.
    """
    model._symbolic_build(data_batch=batch)


def compile_options(model: keras.Model) -> dict[str, Any]:
    """Returns the arguments of a model's `compile`, unserialised; empty if it is not compiled.

    Serialising them would make Keras import TensorFlow.
    """
    config = getattr(model, "_compile_config", None)
    return {} if config is None else dict(config.config)


def called_by_fit(options: dict[str, Any]) -> bool:
    """Whether `evaluate`, with these arguments, was called by `fit`."""
    return bool(options.get("_use_cached_eval_dataset"))


def _jitted(step: Callable[..., Any]) -> Callable[..., Any]:
    """Compiles a step on JAX without donating its inputs."""
    import jax

    return jax.jit(step)


class _Interrupts:
    """Delays Ctrl-C while a step runs."""

    def __init__(self) -> None:
        self._handler: Any = None
        self._waiting = self._in_step = False

    @contextmanager
    def held_back(self) -> Iterator[None]:
        """Delays interrupts between `step_begins` and `before_step`; delivers a pending one at the end."""
        in_main_thread = threading.current_thread() is threading.main_thread()
        handler: Any = signal.getsignal(signal.SIGINT) if in_main_thread else None
        if self._handler is not None or not callable(handler):
            # Nested, or Python does not handle interrupts here.
            yield
            return
        self._handler, self._waiting, self._in_step = handler, False, False
        signal.signal(signal.SIGINT, self._note)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, handler)
            waiting, self._waiting, self._in_step, self._handler = self._waiting, False, False, None
            if waiting:
                handler(signal.SIGINT, None)

    def before_step(self) -> None:
        """Allows interrupts again and delivers a pending one."""
        self._in_step = False
        if self._waiting:
            self._waiting = False
            self._handler(signal.SIGINT, None)

    def step_begins(self) -> None:
        """Delays interrupts until Keras has stored the step's results and the next one starts."""
        self._in_step = True

    def _note(self, number: int, frame: Any) -> None:
        if self._in_step:
            self._waiting = True
        else:
            self._handler(number, frame)


# One for the process, since signals are not per model.
_interrupts = _Interrupts()


@contextmanager
def _weights_kept(model: keras.Model) -> Iterator[None]:
    with traced_gradients_dropped(), _interrupts.held_back():
        try:
            yield
        except BaseException:
            if keras.backend.backend() == "jax":
                # Restores the last complete step's results if Keras has not.
                model.jax_state_sync()
            raise


def _whole(model: keras.Model, kind: Kind, function: Callable[..., Any]) -> Callable[..., Any]:
    """Wraps a step function so that it either completes or leaves the model unchanged."""
    if keras.backend.backend() == "jax":
        return _whole_on_jax(model, kind, function)

    def run(data: Any) -> Any:
        _interrupts.before_step()
        _interrupts.step_begins()
        return function(data)

    return run


def _whole_on_jax(model: keras.Model, kind: Kind, function: Callable[..., Any]) -> Callable[..., Any]:
    # The first step may run out of memory after the weights were donated, so copies are kept.
    copies = kind == "train" and process_count() == 1
    proven = False

    def run(state: Any, iterator: Iterator[Any]) -> Any:
        nonlocal proven
        kept = None
        try:
            _interrupts.before_step()
            # Fetched before the step, since this may fail or be interrupted.
            batches = list(islice(iterator, model.steps_per_execution))
            if not batches:
                raise StopIteration
            if copies and not proven:
                kept = [[np.array(host_array(value)) for value in values] for values in state]
            _interrupts.step_begins()
            result = function(state, iter(batches))
        except BaseException:
            _put_back(model, kind, state, kept)
            raise
        proven = True
        return result

    return run


def _put_back(model: keras.Model, kind: Kind, state: Any, copies: Any) -> None:
    """Restores the values that were passed to a failed step."""
    groups = [model.trainable_variables, model.non_trainable_variables]
    if kind == "train":
        groups.append(model.optimizer.variables)
    if kind != "predict":
        groups.append(model.metrics_variables)
    for position, variables in enumerate(groups):
        for index, variable in enumerate(variables):
            value = state[position][index]
            if not value.is_deleted():
                variable.assign(value)
            elif copies is not None:
                variable.assign(copies[position][index])
    # Otherwise Keras would restore older values.
    model._jax_state, model._jax_state_synced = None, True
