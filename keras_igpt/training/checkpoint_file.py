"""Files of a training's state: written whole, and read with damaged files told apart from unreadable ones."""

from __future__ import annotations

import errno
import fnmatch
import json
import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from keras_igpt.support.files import whole_file

Header = dict[str, Any]
Arrays = list[npt.NDArray[Any]]

# What each checkpoint's header has had from the first version on.
_HEADER: dict[str, type] = {"version": int, "step": int, "finished": bool, "batches": dict, "variables": list}


class DamagedCheckpointError(ValueError):
    """The file is not a checkpoint, or not a whole one."""


def write_checkpoint(path: Path, header: Header, arrays: Arrays) -> None:
    """Writes an `.npz` checkpoint, whole or not at all, and waits until it is on the disk."""
    text = np.frombuffer(json.dumps({**header, "dtypes": [array.dtype.name for array in arrays]}).encode(), np.uint8)
    # NumPy's format does not know bfloat16, whose bits are stored as they are.
    stored = [array.view(np.uint16) if array.dtype.kind == "V" else array for array in arrays]
    named: dict[str, Any] = {f"array_{index}": array for index, array in enumerate(stored)}
    with whole_file(path) as partial, partial.open("wb") as file:
        np.savez(file, header=text, **named)
        file.flush()
        os.fsync(file.fileno())


def read_checkpoint(path: Path) -> tuple[Header, Arrays]:
    """Reads what `write_checkpoint` wrote.

    Raises:
        DamagedCheckpointError: if the content is not what was written.
        OSError: if the file cannot be read, which says nothing about its content.
    """
    try:
        with path.open("rb") as file:
            return _read(file)
    except OSError as error:
        # A place that a damaged directory of the zip names, outside the file, is an invalid argument or none.
        if error.errno not in (None, errno.EINVAL):
            raise OSError(
                error.errno,
                f"{error.strerror}. The checkpoint may be whole: make it readable, or move it away to go on from the "
                "one before it",
                str(path),
            ) from error
        raise DamagedCheckpointError(str(error)) from error
    except MemoryError:
        raise
    # Of what a flipped bit can make of a zip file, no list of errors is complete.
    except Exception as error:
        raise DamagedCheckpointError(f"{type(error).__name__}: {error}") from error


def _read(file: Any) -> tuple[Header, Arrays]:
    # All checksums first: what follows then works on what was written, and asks for no more memory than that takes.
    with zipfile.ZipFile(file) as content:
        damaged = content.testzip()
    if damaged is not None:
        raise DamagedCheckpointError(f"wrong checksum of {damaged}")
    file.seek(0)
    with np.load(file, allow_pickle=False) as content:
        header: Header = json.loads(content["header"].tobytes())
        for name, kind in _HEADER.items():
            if not isinstance(header[name], kind):
                raise DamagedCheckpointError(f"{name}={header[name]!r}")
        arrays = [content[f"array_{index}"] for index in range(len(header["dtypes"]))]
    return header, [
        array if array.dtype.name == dtype else array.view(np.dtype(dtype))
        for array, dtype in zip(arrays, header["dtypes"], strict=True)
    ]


def checkpoints_in(folder: Path, pattern: str) -> list[Path]:
    """Lists the files of a folder that match a glob pattern, sorted; none where there is no folder."""
    # `Path.glob` would find a folder empty that cannot be listed.
    try:
        names = os.listdir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return []
    return sorted(folder / name for name in fnmatch.filter(names, pattern))
