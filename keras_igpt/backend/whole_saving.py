"""Models that are saved atomically, and with all that they need to go on as they were."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Self

import keras

from keras_igpt.support.files import whole_file, whole_folder

# Files that Keras writes for an unzipped model.
_FILES_OF_FOLDER = {"assets", "config.json", "metadata.json", "model.weights.h5"}


class WholeSavedModel(keras.Model):
    """A Keras model that saves to a temporary name and then renames it, and whose file says which layers are frozen.

    `keras.callbacks.ModelCheckpoint` uses these methods; `keras.saving.save_model` and `save_weights` write in place.
    """

    def save(
        self, filepath: str | os.PathLike[str], overwrite: bool = True, zipped: bool | None = None, **kwargs: Any
    ) -> None:
        """Saves the model atomically; `keras.Model.save`.

        An existing file stays unchanged until the new one is complete. A symbolic link is replaced, not followed. With
        `zipped=False`, a folder that holds other files too is written in place, and so are URLs such as `hf://…`.

        Args:
            filepath: path ending in `.keras`; without that ending if `zipped` is False.
            overwrite: bool. Whether to replace an existing file without asking.
            zipped: bool. Whether to write one file or a folder; by default one file, and a folder for `hf://…`.
            **kwargs: as in Keras.

        Example:
        ```python
        lm.save("igpt.keras")
        ```
        """
        path = local_path(filepath)
        as_folder = zipped is not None and not zipped
        if path is None or (path.suffix == ".keras") == as_folder or (as_folder and not _is_replaceable(path)):
            # Keras raises the errors for invalid paths.
            super().save(filepath, overwrite=overwrite, zipped=zipped, **kwargs)
        elif overwrite or _may_replace(path):
            with whole_folder(path, replaces=True) if as_folder else whole_file(path) as partial:
                super().save(partial, zipped=zipped, **kwargs)

    def save_weights(
        self, filepath: str | os.PathLike[str], overwrite: bool = True, max_shard_size: float | None = None
    ) -> None:
        """Saves the weights atomically; `keras.Model.save_weights`.

        With `max_shard_size`, the files are written in place.

        Args:
            filepath: path ending in `.weights.h5`.
            overwrite: bool. Whether to replace an existing file without asking.
            max_shard_size: float. As in Keras.

        Example:
        ```python
        lm.save_weights("igpt.weights.h5")
        ```
        """
        path = local_path(filepath)
        if path is None or max_shard_size is not None or not path.name.endswith(".weights.h5"):
            super().save_weights(filepath, overwrite=overwrite, max_shard_size=max_shard_size)
        elif overwrite or _may_replace(path):
            with whole_file(path) as partial:
                super().save_weights(partial)

    def get_config(self) -> dict[str, Any]:
        config: dict[str, Any] = super().get_config()
        frozen = [layer.path for layer in self._flatten_layers() if not layer.trainable]
        return {**config, "frozen_layers": frozen} if frozen else config

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> Self:
        """Makes the model anew. Keras itself would freeze it alone, and none of the layers that have the weights."""
        config = dict(config)
        frozen = set(config.pop("frozen_layers", ()))
        model: Self = super().from_config(config, custom_objects=custom_objects)
        if frozen:
            # From the outside in, for layers pass it on.
            for layer in model._flatten_layers():
                layer.trainable = layer.path not in frozen
        return model


def local_path(filepath: Any) -> Path | None:
    """Returns a local path, or None for URLs and anything else."""
    is_path = isinstance(filepath, (str, os.PathLike)) and "://" not in os.fspath(filepath)
    return Path(filepath) if is_path else None


def _is_replaceable(path: Path) -> bool:
    """Whether the path does not exist, or is a folder with Keras' files only."""
    if not path.exists():
        return True
    return path.is_dir() and {file.name for file in path.iterdir()} <= _FILES_OF_FOLDER


def _may_replace(path: Path) -> bool:
    """Asks before overwriting, as Keras does, which would name the temporary file."""
    answer = "y"
    if path.exists():
        answer = input(f"[WARNING] {path} already exists - overwrite? [y/n]").strip().lower()
        while answer not in ("y", "n"):
            answer = input('Enter "y" (overwrite) or "n" (cancel).').strip().lower()
    return answer == "y"
