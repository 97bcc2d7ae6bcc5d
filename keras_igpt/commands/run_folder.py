"""The folder that a command writes to: its settings, its log, its checkpoints, and whose run is in it."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras

import keras_igpt as igpt
from keras_igpt.checkpoints.huggingface_files import read_json
from keras_igpt.support.files import drop_epochs, write_json

_CONFIG = "config.json"
_CHECKPOINTS = "checkpoints"


def make_output_folder(options: argparse.Namespace) -> None:
    """Makes `--output`, before anything is computed that could not be written."""
    try:
        options.output.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise ValueError(f"--output must be a folder, or a new name for one. Received: {options.output}") from error


def write_config(options: argparse.Namespace, **found: Any) -> None:
    """Writes `config.json` into the output folder: the command's arguments, the backend and what was found out."""
    given = {name: str(value) if isinstance(value, Path) else value for name, value in vars(options).items()}
    del given["run"]  # no argument
    config = {**given, "backend": keras.backend.backend(), "keras_igpt": igpt.__version__, **found}
    write_json(options.output / _CONFIG, config)


class ConfigOnceAccepted(keras.callbacks.Callback):
    """Writes `config.json` before the first epoch: `ExactResume` has accepted the run in the folder by then.

    A finished run, of which no epoch is left, keeps its own.
    """

    def __init__(self, options: argparse.Namespace, **found: Any) -> None:
        super().__init__()
        self._write: Callable[[], None] | None = lambda: write_config(options, **found)

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        if self._write is not None:
            self._write()
            self._write = None


def make_run_folder(options: argparse.Namespace) -> None:
    """Makes `--output` for a command whose files would replace those of a run; raises ValueError where one is."""
    settings_of_run(options)
    make_output_folder(options)


def settings_of_run(options: argparse.Namespace) -> dict[str, Any]:
    """Returns the `config.json` of the same command in the output folder; empty where there is none.

    Raises:
        ValueError: if it is another command's, whose files this one would replace.
    """
    path = options.output / _CONFIG
    settings = read_json(path) if path.is_file() else {}
    there = settings.get("command", options.command)
    if there != options.command:
        raise ValueError(
            f"--output must be a folder of its own. Received: {options.output}, that of `keras-igpt {there}`"
        )
    return settings


def has_checkpoints(output: Path) -> bool:
    """Whether a training that writes to a folder has got as far as its first checkpoint."""
    return any((output / _CHECKPOINTS).glob("*.npz"))


def other_run(options: argparse.Namespace, flag: str, received: Any, expected: Any = None) -> ValueError:
    """Makes the error of a command that is not that of the run in its output folder.

    Args:
        options: with `output`.
        flag: str. What differs.
        received: its value here.
        expected: its value there, where that says something to a person.
    """

    def shown(value: Any) -> str:
        return " ".join(map(str, value)) if isinstance(value, list) else str(value)

    there = "" if expected is None else f", {shown(expected)}"
    none = "none" if received is None else shown(received)
    return ValueError(
        f"{flag} must be that of the run in {options.output}{there}; a new run needs another --output. Received: {none}"
    )


def exact_resume(output: Path, epoch_steps: int) -> igpt.ExactResume:
    """Saves a few times an epoch, or once where epochs are short."""
    return igpt.ExactResume(output / _CHECKPOINTS, every=min(epoch_steps, max(50, epoch_steps // 4)))


class EpochLog(keras.callbacks.CSVLogger):
    """A log with one line an epoch: epochs that are run again after a kill replace their lines."""

    def __init__(self, path: Path) -> None:
        super().__init__(str(path), append=True)

    def on_train_begin(self, logs: Any = None) -> None:
        # Opened once it is known where the training goes on.
        pass

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        if self.csv_file is None or self.csv_file.closed:
            drop_epochs(Path(self.filename), epoch)
            super().on_train_begin(logs)
