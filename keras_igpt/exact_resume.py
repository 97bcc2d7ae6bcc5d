"""Checkpoints from which a killed training goes on as if nothing had happened."""

from __future__ import annotations

import json
import os
import re
import signal
import threading
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import keras
import numpy as np
import numpy.typing as npt

from keras_igpt.arguments import check_integer
from keras_igpt.atomic_file import whole_file
from keras_igpt.distribution import host_array, process_count, process_index

_VERSION = 1
_PATTERN = "step-*.npz"


class RepeatableBatches(Protocol):
    """What a resumed run needs of its batches; `TrainingBatches` has it."""

    @property
    def description(self) -> dict[str, Any]:
        """What decides which batch a step sees."""

    def starting_at(self, step: int) -> Any:
        """The same batches from a step on."""


class ExactResume(keras.callbacks.Callback):
    """Saves the whole state of a training every so many steps, and lets `fit` go on from the newest whole one.

    Give it to `fit` with `TrainingBatches`, and run the same script again after a crash: weights, optimizer, metrics,
    step and position in the data are those of the last checkpoint, and on a CPU the run ends in the same weights, bit
    for bit, as one that was never stopped. A checkpoint is copied to the host between two steps and written by a thread
    while training goes on; it takes its name when it is whole. A damaged one is passed over for the one before, and
    what cannot be written does not stop the training: both are said in a warning. On SIGTERM the state is saved, and
    the signal then does what it did before (with several processes, which get it at different steps, it is left alone).

    The state of other callbacks is not part of it: `EarlyStopping` begins to wait anew, and weights that
    `SwapEMAWeights(swap_on_epoch=True)` has exchanged are saved as they are. But a run that `EarlyStopping` ended is
    not trained again.

    Args:
        folder: where the checkpoints lie: `step-00001000.npz` and so on. Of one run alone. Several processes share it.
        every: int. Steps between checkpoints. The end of the training is always saved.
        keep: int. Newest checkpoints that stay.

    Raises:
        ValueError: if `every` or `keep` is less than 1. From `fit`: if the batches are not `TrainingBatches`, or a
            checkpoint is of another model, optimizer or data; or with `steps_per_execution`.

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
        self._epochs = self._steps_per_epoch = self._epoch = 0
        # Steps of the first epoch that were taken before this process; what its metrics were then.
        self._first_epoch, self._skipped, self._metrics = -1, 0, list[npt.NDArray[Any]]()
        self._saved_step = self._last_step = -1
        self._early_stopping: list[keras.callbacks.EarlyStopping] = []
        self._before_averaging: list[npt.NDArray[Any]] | None = None
        self._terminated = threading.Event()
        self._pending: Future[OSError | None] | None = None

    def fit(
        self, fit: Callable[..., Any], model: keras.Model, batches: RepeatableBatches, options: dict[str, Any]
    ) -> Any:
        """Runs `keras.Model.fit` from the newest checkpoint on; the models' own `fit` calls this.

        Args:
            fit: `keras.Model.fit` of the model.
            model: the compiled model.
            batches: `TrainingBatches`.
            options: keyword arguments of `fit`, this callback among its callbacks.

        Returns:
            What `fit` returns, of the epochs since the checkpoint.
        """
        if not hasattr(batches, "starting_at") or not options.get("steps_per_epoch"):
            raise ValueError(
                "`x` must be TrainingBatches where `callbacks` has ExactResume, which must know each step's batch. "
                f"Received: {type(batches).__name__}"
            )
        if model.steps_per_execution != 1:
            raise ValueError(
                "`steps_per_execution` must be 1 where `callbacks` has ExactResume, which saves between two steps. "
                f"Received: steps_per_execution={model.steps_per_execution}"
            )
        steps, epochs = options["steps_per_epoch"], options.get("epochs", 1)
        stopping = keras.callbacks.EarlyStopping
        self._early_stopping = [callback for callback in options["callbacks"] if isinstance(callback, stopping)]
        self._steps_per_epoch, self._epochs = steps, epochs
        self._description = {**batches.description, "steps_per_epoch": steps}
        epoch, skipped = self._restore(model) or (options.get("initial_epoch", 0), 0)
        self._first_epoch, self._skipped = epoch, skipped
        self._saved_step = epoch * steps + skipped
        first = epoch * steps
        with self._writer_and_signals():
            if not skipped or epoch >= epochs:
                return fit(batches.starting_at(first), **{**options, "initial_epoch": epoch})
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
            # Of an earlier version: without the metrics that came later, which are last.
            for variable, array in zip(self.model.metrics_variables, self._metrics, strict=False):
                variable.assign(array)

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        # Between two steps: the end of a batch is reported by another thread while the next one runs.
        step = self._step_of(batch)
        self._last_step = step + 1
        self._save_if_due(step)

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        # Not the epoch's end where a callback stopped the training in its middle.
        self._save_if_due(self._last_step, ends=epoch + 1 == self._epochs or self.model.stop_training)
        if self._skipped and epoch == self._first_epoch and _innermost(self.model.optimizer).use_ema:
            self._before_averaging = [np.array(host_array(weight)) for weight in self.model.trainable_variables]

    def on_train_end(self, logs: Any = None) -> None:
        if any(callback.stopped_epoch for callback in self._early_stopping):
            # With the best weights back in place; nothing is to follow.
            self._save(self._last_step, finished=True)

    def _save_if_due(self, step: int, ends: bool = False) -> None:
        if (ends or self._terminated.is_set() or step % self._every == 0) and step != self._saved_step:
            self._save(step)
        if self._terminated.is_set():
            self._wait_for_writer()
            self._pass_the_signal_on()

    def _step_of(self, batch: int) -> int:
        skipped = self._skipped if self._epoch == self._first_epoch else 0
        return self._epoch * self._steps_per_epoch + skipped + batch

    def _save(self, step: int, finished: bool = False) -> None:
        """Copies the state to the host and has it written."""
        self._saved_step = step
        model = self.model
        state = _state_of(model)
        # Copies: a step to come may be given the same memory.
        arrays = [np.array(host_array(variable)) for variable in [*state, *model.metrics_variables]]
        if process_index() or not all(_is_finite(array) for array in arrays):
            # A state that is not finite is no state to go on from; StopAtNonFiniteLoss ends such a run.
            return
        header = {
            "version": _VERSION,
            "step": step,
            "finished": finished,
            "batches": self._description,
            "variables": _descriptions_of(state),
            "dtypes": [array.dtype.name for array in arrays],
        }
        self._wait_for_writer()
        self._pending = self._writer.submit(self._write, step, header, arrays)

    def _write(self, step: int, header: dict[str, Any], arrays: list[npt.NDArray[Any]]) -> OSError | None:
        try:
            with whole_file(self._folder / f"step-{step:08d}.npz") as partial, partial.open("wb") as file:
                text = np.frombuffer(json.dumps(header).encode(), np.uint8)
                # NumPy's format does not know bfloat16, whose bits are stored as they are.
                stored = [array.view(np.uint16) if array.dtype.kind == "V" else array for array in arrays]
                named: dict[str, Any] = {f"array_{index}": array for index, array in enumerate(stored)}
                np.savez(file, header=text, **named)
                file.flush()
                os.fsync(file.fileno())
            for old in sorted(self._folder.glob(_PATTERN))[: -self._keep]:
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
        listens = main and process_count() == 1 and self._handler_before is not None
        if listens:
            signal.signal(signal.SIGTERM, self._note_the_signal)
        try:
            with ThreadPoolExecutor(1) as self._writer:
                yield
        finally:
            self._wait_for_writer()
            if listens:
                signal.signal(signal.SIGTERM, self._handler_before)
                if self._terminated.is_set():
                    signal.raise_signal(signal.SIGTERM)

    def _note_the_signal(self, number: int, frame: Any) -> None:
        self._terminated.set()

    def _pass_the_signal_on(self) -> None:
        """Lets the signal do what it did before. Where a handler of the user's lets the program go on, so do we."""
        self._terminated.clear()
        signal.signal(signal.SIGTERM, self._handler_before)
        signal.raise_signal(signal.SIGTERM)
        signal.signal(signal.SIGTERM, self._note_the_signal)

    def _restore(self, model: keras.Model) -> tuple[int, int] | None:
        """Gives the model the newest whole state; epoch and steps in it, or None where there is none."""
        may_write = process_index() == 0 and os.access(self._folder, os.W_OK)
        if may_write:
            for partial in self._folder.glob(f".partial-{_PATTERN}"):
                partial.unlink()
        for path in sorted(self._folder.glob(_PATTERN), reverse=True):
            try:
                header, arrays = _read(path)
            except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
                warnings.warn(
                    f"{path} is damaged ({error}): going on from the checkpoint before it, if there is one",
                    stacklevel=3,
                )
                if may_write:
                    # Under its own name it would count among those that are kept.
                    path.rename(path.with_name(f"damaged-{path.name}"))
                continue
            self._check(path, header, model)
            state = _state_of(model)
            for variable, array in zip(state, arrays, strict=False):
                variable.assign(array)
            epoch, skipped = divmod(header["step"], self._steps_per_epoch)
            if header["finished"]:
                print(f"{path} is the end of its training, which EarlyStopping stopped.", flush=True)
                return self._epochs, 0
            self._metrics = arrays[len(state) :] if skipped else []
            print(f"Going on from {path}: epoch {epoch + 1}, step {skipped + 1}.", flush=True)
            return epoch, skipped
        return None

    def _check(self, path: Path, header: dict[str, Any], model: keras.Model) -> None:
        if header["version"] != _VERSION:
            raise ValueError(
                f"`folder` must hold checkpoints of version {_VERSION}. Received: {header['version']}, {path}"
            )
        for name, value in self._description.items():
            if header["batches"].get(name) != value:
                raise ValueError(
                    f"`folder` must hold checkpoints of these batches: {name} is {value!r} here. "
                    f"Received: {name}={header['batches'].get(name)!r} in {path}"
                )
        here = _descriptions_of(_state_of(model))
        if header["variables"] != here:
            differing = [pair for pair in zip(header["variables"], here, strict=False) if pair[0] != pair[1]]
            there, this = differing[0] if differing else (f"{len(header['variables'])} variables", len(here))
            raise ValueError(
                f"`folder` must hold checkpoints of this model and optimizer: {this} here. Received: {there} in {path}"
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


def _innermost(optimizer: Any) -> Any:
    """The optimizer that `mixed_float16` wraps in one that scales the loss."""
    return getattr(optimizer, "inner_optimizer", optimizer)


def _is_finite(array: npt.NDArray[Any]) -> bool:
    # NumPy counts bfloat16 among its void types.
    return array.dtype.kind not in "fV" or bool(np.isfinite(array.astype("float32")).all())


def _state_of(model: keras.Model) -> list[Any]:
    """Weights, seeds and the optimizer's variables, in an order that depends on model and optimizer alone."""
    if not model.optimizer.built:
        model.optimizer.build(model.trainable_variables)
    metrics = {id(variable) for variable in model.metrics_variables}
    return [*(v for v in model.variables if id(v) not in metrics), *model.optimizer.variables]


def _descriptions_of(variables: list[Any]) -> list[str]:
    # Names but for their numbers, which count the models that a process made.
    return [f"{re.sub(r'_[0-9]+', '', v.name)} {tuple(v.shape)} {v.dtype}" for v in variables]


def _read(path: Path) -> tuple[dict[str, Any], list[npt.NDArray[Any]]]:
    """Reads a checkpoint whole; the zip's own checksums find what is damaged."""
    with np.load(path, allow_pickle=False) as file:
        header: dict[str, Any] = json.loads(file["header"].tobytes())
        arrays = [file[f"array_{index}"] for index in range(len(header["dtypes"]))]
    return header, [
        array if array.dtype.name == dtype else array.view(np.dtype(dtype))
        for array, dtype in zip(arrays, header["dtypes"], strict=True)
    ]
