"""Checkpoints from which a killed training resumes exactly."""

from __future__ import annotations

import os
import re
import signal
import threading
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, Protocol

import keras
import numpy as np
import numpy.typing as npt

from keras_igpt.backend.optimizers import innermost
from keras_igpt.backend.processes import host_array, process_count, process_index
from keras_igpt.support.checks import check_integer
from keras_igpt.support.files import remove_partial
from keras_igpt.training.checkpoint_file import (
    Arrays,
    DamagedCheckpointError,
    Header,
    checkpoints_in,
    read_checkpoint,
    write_checkpoint,
)
from keras_igpt.training.settings import Settings, differences, training_settings

_VERSION = 1
_PATTERN = "step-*.npz"
# The weights that a training ended with, where they are not those of its last step.
_END_PATTERN = "end-*.npz"

# Settings that an error names, of all that differ.
_NAMED = 3


class RepeatableBatches(Protocol):
    """What a resumed run needs of its batches; `TrainingBatches`, `MixedBatches` and `GrainBatches` have it."""

    @property
    def description(self) -> dict[str, Any]:
        """What decides which batch a step sees, but for what follows."""

    @property
    def first_step(self) -> int:
        """The step whose batch is item 0."""

    @property
    def fingerprint(self) -> str:
        """What changes when the examples do."""

    def starting_at(self, step: int) -> Any:
        """The same batches from a step on."""


class ExactResume(keras.callbacks.Callback):
    """Saves the whole state of a training every so many steps, and lets `fit` resume from the newest whole checkpoint.

    Give it to `fit` with `TrainingBatches`, `MixedBatches` or a Grain `MapDataset` of batches, and run the same script
    again after a crash: weights, optimizer, metrics, step and position in the data are those of the last checkpoint. On
    a CPU the run ends in the same weights, bit for bit, as one that was never stopped. Other data sets have no position
    to go back to. Checkpoints are copied to the host between two executions of steps and written by a thread while
    training goes on; a file takes its name when it is whole. A damaged checkpoint is passed over for the one before it.
    Once the training has begun, writes that fail do not stop it, and neither do weights that are not finite, which are
    not written; both cause warnings. On SIGTERM the state is saved before the signal takes its usual effect (with
    several processes, which receive it at different steps, it is left alone). In a validation it is the state before
    the last step of the epoch, which is taken again: with `validation_data`, the host holds one more copy of it.

    A resumed run may have more epochs. All other settings of model, optimizer, loss and data must be the same; to
    change them, load the trained model into a new run.

    The state of other callbacks is not saved: `EarlyStopping` starts waiting again, and weights that
    `SwapEMAWeights(swap_on_epoch=True)` has exchanged are saved as they are. But a run that `EarlyStopping` ended is
    not trained again, and keeps the best weights that it restored at its end.

    Args:
        folder: where the checkpoints lie: `step-00001000.npz` and so on. Of one run alone. Several processes share it.
        every: int. Steps between checkpoints. The end of the training is always saved.
        keep: int. Newest checkpoints that stay.

    Raises:
        ValueError: if `every` or `keep` is less than 1. From `fit`: if the batches are of another kind, or a checkpoint
            is of another model, optimizer or data; or unless `every`, the steps of an epoch and what is left of one
            are multiples of `steps_per_execution`.
        OSError: from `fit`, if a checkpoint cannot be read, which may be whole nevertheless, or `folder` cannot be
            written to when the training begins.

    Example:
    ```python
    lm.fit(batches, epochs=20, callbacks=[ExactResume("run/checkpoints", every=500)])
    ```
    """

    def __init__(self, folder: str | os.PathLike[str], every: int, keep: int = 2) -> None:
        super().__init__()
        self._folder = Path(folder)
        self._every, self._keep = check_integer("every", every), check_integer("keep", keep)
        self._description: dict[str, Any] = {}
        self._first_step, self._data = 0, ""
        self._settings: Settings = {}
        self._epochs = self._steps_per_epoch = self._epoch = 0
        # Steps of the first epoch that were taken before this process; what its metrics were then, and their names.
        self._first_epoch, self._skipped, self._metrics = -1, 0, Arrays()
        self._metrics_before: list[str] | None = None
        self._saved_step = self._last_step = -1
        # The state before an epoch's last step, to be saved if a signal comes in the validation.
        self._listens = self._validates = False
        self._before_validation: tuple[Header, Arrays, Arrays] | None = None
        self._early_stopping: list[keras.callbacks.EarlyStopping] = []
        self._before_averaging: Arrays | None = None
        # What the model ends with where nothing is left to train.
        self._end: Arrays = []
        self._warned = False
        self._terminated = threading.Event()
        self._pending: Future[OSError | None] | None = None

    def fit(
        self, fit: Callable[..., Any], model: keras.Model, batches: RepeatableBatches, options: dict[str, Any]
    ) -> Any:
        """Runs a model's `fit` from the newest checkpoint on; the models' own `fit` calls this.

        `options` has this callback among its callbacks. The history is that of the epochs since the checkpoint.
        """
        if not hasattr(batches, "starting_at") or not options.get("steps_per_epoch"):
            raise ValueError(
                "`x` must be TrainingBatches, MixedBatches or a Grain MapDataset of batches where `callbacks` has "
                f"ExactResume, which must know each step's batch. Received: {type(batches).__name__}"
            )
        steps, epochs = options["steps_per_epoch"], options.get("epochs", 1)
        self._check_executions(model, {"`steps_per_epoch`": steps, "`every`": self._every})
        stopping = keras.callbacks.EarlyStopping
        self._early_stopping = [callback for callback in options["callbacks"] if isinstance(callback, stopping)]
        self._steps_per_epoch, self._epochs = steps, epochs
        self._validates, self._before_validation = options.get("validation_data") is not None, None
        self._description = {**batches.description, "steps_per_epoch": steps}
        self._first_step, self._data = batches.first_step, batches.fingerprint
        # As compiled: a callback may change the learning rate meanwhile, which a checkpoint then puts back.
        self._settings = training_settings(model, options.get("class_weight"))
        self._warned, self._last_step = False, -1
        epoch, skipped = self._restore(model) or (options.get("initial_epoch", 0), 0)
        self._first_epoch, self._skipped = epoch, skipped
        self._saved_step = epoch * steps + skipped
        first = epoch * steps
        # In each process: they would wait for one that raises.
        if epoch < epochs:
            self._check_that_it_can_be_written()
        with self._writer_and_signals():
            if not skipped or epoch >= epochs:
                history = fit(batches.starting_at(first), **{**options, "initial_epoch": epoch})
                for variable, array in zip(_weights_of(model) if self._end else [], self._end, strict=True):
                    variable.assign(array)
                return history
            # Keras' epochs are all of one length: the rest of this one is a `fit` of its own.
            callbacks = _OneTraining(options, steps, model)
            rest = {"initial_epoch": epoch, "epochs": epoch + 1, "steps_per_epoch": steps - skipped}
            history = fit(batches.starting_at(first + skipped), **{**options, **rest, "callbacks": callbacks})
            if epoch + 1 == epochs or model.stop_training:
                callbacks.finish()
                return history
            if self._before_averaging is not None:
                # A `fit` ends with the average of the weights in their place, and this is not the end.
                for weight, array in zip(model.trainable_variables, self._before_averaging, strict=True):
                    weight.assign(array)
            callbacks.last = True
            following = {"initial_epoch": epoch + 1, "callbacks": callbacks}
            return fit(batches.starting_at(first + steps), **{**options, **following})

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self._epoch = epoch
        if epoch == self._first_epoch and self._metrics:
            self._restore_metrics()

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        # Between two executions: the end of a batch is reported by another thread while the next one runs.
        step = self._step_of(batch)
        self._last_step = step + self.model.steps_per_execution
        self._save_if_due(step)
        if self._validates and self._listens and self._last_step == (self._epoch + 1) * self._steps_per_epoch:
            # A resumed `fit` cannot begin with a validation.
            self._before_validation = self._copied(step)

    def on_test_batch_begin(self, batch: int, logs: Any = None) -> None:
        # None where a callback ended the epoch in its middle: the end is saved, after the validation.
        if self._terminated.is_set() and self._before_validation is not None:
            self._have_state_written(*self._before_validation)
            self._wait_for_writer()
            self._pass_the_signal_on()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self._before_validation = None
        # Not the epoch's end where a callback stopped the training in its middle.
        self._save_if_due(self._last_step, ends=epoch + 1 == self._epochs or self.model.stop_training)
        if self._skipped and epoch == self._first_epoch and innermost(self.model.optimizer).use_ema:
            self._before_averaging = [np.array(host_array(weight)) for weight in self.model.trainable_variables]

    def on_train_end(self, logs: Any = None) -> None:
        # With the best weights back in place.
        if any(callback.stopped_epoch for callback in self._early_stopping):
            # Nothing is to follow.
            self._save(self._last_step, finished=True)
        elif self._last_step == self._epochs * self._steps_per_epoch and any(
            callback.restore_best_weights and callback.best_weights for callback in self._early_stopping
        ):
            # Further epochs would go on from the last weights.
            self._save_end(self._last_step)

    def _save_if_due(self, step: int, ends: bool = False) -> None:
        if (ends or self._terminated.is_set() or step % self._every == 0) and step != self._saved_step:
            self._save(step)
        if self._terminated.is_set():
            self._wait_for_writer()
            self._pass_the_signal_on()

    @staticmethod
    def _check_executions(model: keras.Model, lengths: dict[str, int]) -> None:
        """Raises ValueError unless lengths in steps are whole executions; Keras would run past their ends."""
        together = model.steps_per_execution
        for name, length in lengths.items():
            if length % together:
                raise ValueError(
                    f"`steps_per_execution` must divide {name}, {length} steps, where `callbacks` has ExactResume, "
                    f"which saves between two executions. Received: steps_per_execution={together}"
                )

    def _check_that_it_can_be_written(self) -> None:
        """Raises OSError, before anything is trained, where no checkpoint could be written ever."""
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with TemporaryFile(dir=self._folder):
                pass
        except OSError as error:
            message = f"`folder` must be one that checkpoints can be written to. Received: {error.strerror}"
            raise OSError(error.errno, message, str(self._folder)) from error

    def _step_of(self, batch: int) -> int:
        skipped = self._skipped if self._epoch == self._first_epoch else 0
        return self._epoch * self._steps_per_epoch + skipped + batch

    def _save(self, step: int, finished: bool = False) -> None:
        """Copies the state to the host and has it written."""
        self._saved_step = step
        self._have_state_written(*self._copied(step, finished))

    def _copied(self, step: int, finished: bool = False) -> tuple[Header, Arrays, Arrays]:
        """Copies the state to the host: a checkpoint's header, its weights with the optimizer, and its metrics."""
        model = self.model
        variables, metrics = _state_of(model), model.metrics_variables
        now = training_settings(model)
        header = {
            **self._header(step, variables),
            "finished": finished,
            "metrics": _descriptions_of_metrics(model),
            "settings_reached": {name: value for name, value in now.items() if self._settings.get(name) != value},
        }
        return header, _copies_of(variables), _copies_of(metrics)

    def _have_state_written(self, header: Header, state: Arrays, metrics: Arrays) -> None:
        if process_index():
            return
        # Metrics may be infinite. A state that is not finite is no state to go on from.
        if not all(_is_finite(array) for array in state):
            if not self._warned:
                self._warned = True
                warnings.warn(
                    f"Training goes on, but its checkpoints are not written: at step {header['step']} there are "
                    "numbers that are not finite among the weights or in the optimizer",
                    stacklevel=2,
                )
            return
        self._have_written(f"step-{header['step']:08d}.npz", header, [*state, *metrics])

    def _save_end(self, step: int) -> None:
        """Writes the weights alone, beside the state of the last step."""
        variables = _weights_of(self.model)
        arrays = _copies_of(variables)
        if not process_index():
            self._have_written(f"end-{step:08d}.npz", {**self._header(step, variables), "finished": True}, arrays)

    def _header(self, step: int, variables: list[Any]) -> Header:
        return {
            "version": _VERSION,
            "step": step,
            "batches": self._description,
            "first_step": self._first_step,
            "data": self._data,
            "settings": self._settings,
            "variables": _descriptions_of(variables),
        }

    def _have_written(self, name: str, header: Header, arrays: Arrays) -> None:
        self._wait_for_writer()
        self._pending = self._writer.submit(self._write, self._folder / name, header, arrays)

    def _write(self, path: Path, header: Header, arrays: Arrays) -> OSError | None:
        try:
            write_checkpoint(path, header, arrays)
            # After a later step an earlier end is not the end.
            ends = [end for end in checkpoints_in(self._folder, _END_PATTERN) if end != path]
            for old in [*checkpoints_in(self._folder, _PATTERN)[: -self._keep], *ends]:
                old.unlink()
        except OSError as error:
            return error
        return None

    def _wait_for_writer(self) -> None:
        if self._pending is not None:
            error, self._pending = self._pending.result(), None
            if error is not None:
                warnings.warn(f"Training goes on, but its checkpoint was not written: {error}", stacklevel=2)

    @contextmanager
    def _writer_and_signals(self) -> Iterator[None]:
        self._terminated.clear()
        self._handler_before = signal.getsignal(signal.SIGTERM)
        # Python runs handlers in the main thread alone, and cannot put back one that it did not set.
        main = threading.current_thread() is threading.main_thread()
        self._listens = main and process_count() == 1 and self._handler_before is not None
        if self._listens:
            signal.signal(signal.SIGTERM, self._note_the_signal)
        try:
            with ThreadPoolExecutor(1) as self._writer:
                yield
        finally:
            self._wait_for_writer()
            if self._listens:
                signal.signal(signal.SIGTERM, self._handler_before)
                if self._terminated.is_set():
                    signal.raise_signal(signal.SIGTERM)

    def _note_the_signal(self, number: int, frame: Any) -> None:
        self._terminated.set()

    def _pass_the_signal_on(self) -> None:
        """Lets the signal take its usual effect; if a handler of the user's lets the program go on, so do we."""
        self._terminated.clear()
        signal.signal(signal.SIGTERM, self._handler_before)
        signal.raise_signal(signal.SIGTERM)
        signal.signal(signal.SIGTERM, self._note_the_signal)

    def _restore(self, model: keras.Model) -> tuple[int, int] | None:
        """Restores the newest whole state; returns its epoch and steps in the epoch, or None if there is none."""
        self._end, self._metrics = [], []
        if process_index() == 0 and os.access(self._folder, os.W_OK):
            for pattern in (_PATTERN, _END_PATTERN):
                remove_partial(self._folder, pattern)
        for path in reversed(checkpoints_in(self._folder, _PATTERN)):
            content = self._read(path, "going on from the checkpoint before it, if there is one")
            if content is None:
                continue
            header, arrays = content
            state = _state_of(model)
            self._check(path, header, model, state)
            epoch, skipped = divmod(header["step"], self._steps_per_epoch)
            self._check_executions(model, {"what is left of the epoch": self._steps_per_epoch - skipped})
            for variable, array in zip(state, arrays, strict=False):
                variable.assign(array)
            weights = len(_weights_of(model))
            if header["finished"]:
                self._end = arrays[:weights]
                print(f"{path} is the end of its training, which EarlyStopping stopped.", flush=True)
                return self._epochs, 0
            end = path.with_name(path.name.replace("step-", "end-"))
            if header["step"] == self._epochs * self._steps_per_epoch and end.exists():
                _, self._end = self._read(end, "the model keeps the weights of the last step") or ({}, [])
            self._metrics = arrays[len(state) :] if skipped else []
            self._metrics_before = header.get("metrics")
            if epoch < self._epochs:
                print(f"Going on from {path}: epoch {epoch + 1}, step {skipped + 1}.", flush=True)
            else:
                print(f"{path} is the end of its training of {epoch} epochs.", flush=True)
            return epoch, skipped
        return None

    def _restore_metrics(self) -> None:
        """Restores what the metrics of the first epoch were, as far as the checkpoint has the same ones."""
        here = _descriptions_of_metrics(self.model)
        if self._metrics_before is None:
            # Earlier versions wrote no names; the metrics that were added since are at the end.
            before, others = here, set[str]()
        else:
            before = self._metrics_before
            others = {_metric_of(description) for description in Counter(here) - Counter(before)}
        waiting: dict[str, Arrays] = {}
        for description, array in zip(before, self._metrics, strict=False):
            waiting.setdefault(description, []).append(array)
        for variable, description in zip(self.model.metrics_variables, here, strict=True):
            if _metric_of(description) not in others and waiting.get(description):
                variable.assign(waiting[description].pop(0))
        if others:
            warnings.warn(
                "Training goes on, but these metrics are not in its checkpoint, and those of the first epoch are of "
                f"its remaining steps alone: {', '.join(sorted(others))}",
                stacklevel=2,
            )

    def _read(self, path: Path, instead: str) -> tuple[Header, Arrays] | None:
        """Reads a checkpoint; if it is damaged, warns of what is done instead and returns None."""
        try:
            return read_checkpoint(path)
        except DamagedCheckpointError as error:
            warnings.warn(f"{path} is damaged ({error}): {instead}", stacklevel=3)
            if process_index() == 0 and os.access(self._folder, os.W_OK):
                # Under its own name it would count among those that are kept.
                path.rename(path.with_name(f"damaged-{path.name}"))
        except FileNotFoundError:
            # The first process found it damaged.
            if process_index() == 0 or os.path.lexists(path):
                raise
        return None

    def _check(self, path: Path, header: Header, model: keras.Model, state: list[Any]) -> None:
        if header["version"] != _VERSION:
            raise ValueError(
                f"`folder` must hold checkpoints of version {_VERSION}. Received: {header['version']}, {path}"
            )
        # Earlier versions wrote neither the first step nor fingerprint and settings.
        if self._first_step and "first_step" not in header:
            warnings.warn(
                f"{path} does not say where its batches began: they are taken to have had "
                f"first_step={self._first_step} too",
                stacklevel=3,
            )
        there = {"first_step": self._first_step, **header["batches"], **header}
        for name, value in {**self._description, "first_step": self._first_step}.items():
            if there.get(name) != value:
                raise ValueError(
                    f"`folder` must hold checkpoints of these batches: {name} is {value!r} here. "
                    f"Received: {name}={there.get(name)!r} in {path}"
                )
        if header.get("data", self._data) != self._data:
            raise ValueError(
                "`folder` must hold checkpoints of this data: as many examples, but other pictures or labels here. "
                f"Received: {path}"
            )
        settings = header.get("settings", self._settings)
        # Compiled as the run was, or the same model again with the settings that callbacks have changed.
        reached = {**settings, **header.get("settings_reached", {})}
        changed = min((differences(before, self._settings) for before in (settings, reached)), key=len)
        if changed:
            others = [f"{len(changed) - _NAMED} more"] if len(changed) > _NAMED else []
            raise ValueError(
                "`folder` must hold checkpoints of a training with these settings (a model that came out of others can "
                f"be loaded into a new run): {'; '.join([*changed[:_NAMED], *others])}. Received: {path}"
            )
        self._settings = settings
        here = _descriptions_of(state)
        if header["variables"] != here:
            differing = [pair for pair in zip(header["variables"], here, strict=False) if pair[0] != pair[1]]
            was, this = differing[0] if differing else (f"{len(header['variables'])} variables", len(here))
            raise ValueError(
                f"`folder` must hold checkpoints of this model and optimizer: {this} here. Received: {was} in {path}"
            )


class _OneTraining(keras.callbacks.CallbackList):
    """The callbacks of two calls of `fit` that see one training."""

    def __init__(self, options: dict[str, Any], steps: int, model: keras.Model) -> None:
        verbose = options.get("verbose", "auto")
        super().__init__(
            options["callbacks"],
            add_history=True,
            add_progbar=verbose != 0,
            verbose=verbose,
            epochs=options.get("epochs", 1),
            steps=steps,
            model=model,
        )
        self.last = self._begun = False

    def on_train_begin(self, logs: Any = None) -> None:
        if not self._begun:
            self._begun = True
            super().on_train_begin(logs)

    def on_train_end(self, logs: Any = None) -> None:
        self._end_logs = logs
        if self.last:
            super().on_train_end(logs)

    def finish(self) -> None:
        """Ends the training after its first `fit`."""
        super().on_train_end(self._end_logs)


def _is_finite(array: npt.NDArray[Any]) -> bool:
    # NumPy counts bfloat16 among its void types.
    return array.dtype.kind not in "fV" or bool(np.isfinite(array.astype("float32")).all())


def _copies_of(variables: list[Any]) -> Arrays:
    # Copies: a step to come may be given the same memory.
    return [np.array(host_array(variable)) for variable in variables]


def _weights_of(model: keras.Model) -> list[Any]:
    """Weights and seeds, in an order that depends on the model alone."""
    metrics = {id(variable) for variable in model.metrics_variables}
    return [variable for variable in model.variables if id(variable) not in metrics]


def _state_of(model: keras.Model) -> list[Any]:
    """Weights, seeds and the optimizer's variables, in an order that depends on model and optimizer alone."""
    if not model.optimizer.built:
        model.optimizer.build(model.trainable_variables)
    return [*_weights_of(model), *model.optimizer.variables]


def _descriptions_of(variables: list[Any]) -> list[str]:
    # Names but for their numbers, which count the models that a process made.
    return [f"{re.sub(r'_[0-9]+', '', v.name)} {tuple(v.shape)} {v.dtype}" for v in variables]


def _descriptions_of_metrics(model: keras.Model) -> list[str]:
    """Like `_descriptions_of`, of `metrics_variables`, with the names under which the metrics are logged."""
    compiled = model._compile_metrics
    metrics = [part for each in model.metrics for part in (compiled.metrics if each is compiled else [each])]
    return [f"{metric.name}/{text}" for metric in metrics for text in _descriptions_of(metric.variables)]


def _metric_of(description: str) -> str:
    return description.partition("/")[0]
