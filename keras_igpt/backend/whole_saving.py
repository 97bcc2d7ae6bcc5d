"""Models whose files are whole or as they were, whenever the process is killed."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import keras

from keras_igpt.support.files import whole_file, whole_folder

# What Keras writes into the folder of a model that is not zipped.
_FILES_OF_FOLDER = {"assets", "config.json", "metadata.json", "model.weights.h5"}


class WholeSavedModel(keras.Model):
    """A Keras model that is written under a temporary name, which is then renamed.

    `keras.callbacks.ModelCheckpoint` goes through its methods; the functions `keras.saving.save_model` and
    `keras.saving.save_weights` write in place.
    """

    def save(
        self, filepath: str | os.PathLike[str], overwrite: bool = True, zipped: bool | None = None, **kwargs: Any
    ) -> None:
        """Writes the model to a file, which takes its name when it is whole; `keras.Model.save`.

        An existing file stays as it was until then. A symbolic link is replaced, not followed. So is a folder, with
        `zipped=False`, unless it holds other files too, among which Keras writes in place. What goes elsewhere
        (`hf://…` and the like) is sent there by Keras.

        Args:
            filepath: path ending in `.keras`; without that ending where `zipped` is False.
            overwrite: bool. Whether to replace what exists without asking.
            zipped: bool. Whether to write one file, or a folder; by default one file, and a folder for `hf://…`.
            **kwargs: as in Keras.

        Example:
        ```python
        lm.save("igpt.keras")
        ```
        """
        path = _local(filepath)
        as_folder = zipped is not None and not zipped
        if path is None or (path.suffix == ".keras") == as_folder or (as_folder and not _is_replaceable(path)):
            # Of what is wrong with others Keras tells.
            super().save(filepath, overwrite=overwrite, zipped=zipped, **kwargs)
        elif overwrite or _may_replace(path):
            with whole_folder(path, replaces=True) if as_folder else whole_file(path) as partial:
                super().save(partial, zipped=zipped, **kwargs)

    def save_weights(
        self, filepath: str | os.PathLike[str], overwrite: bool = True, max_shard_size: float | None = None
    ) -> None:
        """Writes the weights to a file, which takes its name when it is whole; `keras.Model.save_weights`.

        Several files, with `max_shard_size`, are written in place.

        Args:
            filepath: path ending in `.weights.h5`.
            overwrite: bool. Whether to replace what exists without asking.
            max_shard_size: float. As in Keras.

        Example:
        ```python
        lm.save_weights("igpt.weights.h5")
        ```
        """
        path = _local(filepath)
        if path is None or max_shard_size is not None or not path.name.endswith(".weights.h5"):
            super().save_weights(filepath, overwrite=overwrite, max_shard_size=max_shard_size)
        elif overwrite or _may_replace(path):
            with whole_file(path) as partial:
                super().save_weights(partial)


def _local(filepath: Any) -> Path | None:
    """The path of a file on this machine; None for other places and other things."""
    is_path = isinstance(filepath, (str, os.PathLike)) and "://" not in os.fspath(filepath)
    return Path(filepath) if is_path else None


def _is_replaceable(path: Path) -> bool:
    """Whether there is no folder of that name, or one with nothing but what Keras writes."""
    if not path.exists():
        return True
    return path.is_dir() and {file.name for file in path.iterdir()} <= _FILES_OF_FOLDER


def _may_replace(path: Path) -> bool:
    """Asks in Keras' words, for Keras would ask about the temporary name."""
    answer = "y"
    if path.exists():
        answer = input(f"[WARNING] {path} already exists - overwrite? [y/n]").strip().lower()
        while answer not in ("y", "n"):
            answer = input('Enter "y" (overwrite) or "n" (cancel).').strip().lower()
    return answer == "y"
