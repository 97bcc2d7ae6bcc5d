"""Files and folders that are whole or not there: written under a temporary name, then renamed."""

from __future__ import annotations

import errno
import glob
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

# How the names of what is being written begin; see `remove_partial`.
_PARTIAL = ".partial-"

# A file in the folder of what is being written, which is locked as long as the process lives.
_MARK = ".being-written"

# Zeros that are written at once where the system cannot reserve space.
_ZEROS = 1 << 24


@contextmanager
def whole_file(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Gives a temporary path to write to, which takes the place of `path` when all went well.

    The temporary path lies in a new folder beside `path`, which nobody else can have prepared. A process that is killed
    leaves that folder behind; the next one that writes to `path` removes it.

    Args:
        path: file that shall be there whole, or as it was. Its folder is made. A symbolic link is replaced, not
            followed.

    Yields:
        The temporary path; its name is that of `path`.

    Example:
    ```python
    with whole_file("run/report.json") as partial:
        partial.write_text("{}")
    ```
    """
    target = Path(path)
    with _new_folder_beside(target) as folder:
        partial = folder / target.name
        yield partial
        if target.is_file() and not target.is_symlink():
            # A file that others may not read stays so.
            shutil.copymode(target, partial)
        os.replace(partial, target)


@contextmanager
def whole_folder(path: str | os.PathLike[str], replaces: bool = False) -> Iterator[Path]:
    """Gives a temporary folder to write to, which takes the place of `path` when all went well.

    Args:
        path: folder that shall be there whole, or as it was.
        replaces: bool. Whether a folder with content is replaced with all that is in it. This takes two renames: a
            process that is killed between them leaves the old folder under a temporary name.

    Yields:
        The temporary folder, which is empty.

    Raises:
        OSError: if `path` is a folder with content that may not be replaced, or no folder.

    Example:
    ```python
    with whole_folder("checkpoint") as partial:
        write_json(partial / "config.json", {})
    ```
    """
    target = Path(path)
    with _new_folder_beside(target) as folder:
        partial, old = folder / "new", folder / "old"
        partial.mkdir()
        yield partial
        try:
            os.replace(partial, target)
        except OSError as error:
            if not replaces or error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            os.replace(target, old)
            os.replace(partial, target)


@contextmanager
def _new_folder_beside(target: Path) -> Iterator[Path]:
    target.parent.mkdir(parents=True, exist_ok=True)
    prefix = f"{_PARTIAL}{target.name}-"
    _remove_abandoned(target.parent, prefix)
    folder = Path(tempfile.mkdtemp(prefix=prefix, dir=target.parent))
    try:
        with _marked(folder):
            yield folder
    finally:
        shutil.rmtree(folder)


@contextmanager
def _marked(folder: Path) -> Iterator[None]:
    """Keeps a locked file in a folder: where it is no longer locked, the process has been killed."""
    if sys.platform == "win32":
        yield
        return
    import fcntl

    unlocked = folder / f"{_MARK}-unlocked"
    with open(unlocked, "xb") as file:
        # Some network file systems have no locks: what a kill leaves there has no mark, and stays.
        with suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
            os.replace(unlocked, folder / _MARK)
        yield


def _remove_abandoned(parent: Path, prefix: str) -> None:
    """Removes what killed processes have left of earlier attempts; nothing that has not their mark."""
    if sys.platform == "win32":
        return
    import fcntl

    for folder in parent.glob(f"{glob.escape(prefix)}*"):
        if folder.is_symlink():
            continue
        try:
            descriptor = os.open(folder / _MARK, os.O_RDWR | os.O_NOFOLLOW)
        except OSError:  # without a mark, or somebody else's
            continue
        with open(descriptor, "rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:  # it lives
                continue
            # Another process may be about to do the same.
            shutil.rmtree(folder, ignore_errors=True)


def remove_partial(folder: str | os.PathLike[str], pattern: str = "*") -> None:
    """Removes what killed processes were writing into a folder.

    Only for a folder that this package has for itself, while nobody else writes to it.

    Args:
        folder: where to look, not in its subfolders.
        pattern: glob pattern of the names that were to be written.
    """
    # Without a suffix: as earlier versions named them.
    for suffix in ("", "-*"):
        for path in Path(folder).glob(f"{_PARTIAL}{pattern}{suffix}"):
            remove(path)


def remove(path: Path) -> None:
    """Removes what there is: a file, a folder with all that is in it, or a link without what it points to."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    elif os.path.lexists(path):
        path.unlink()


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Writes a value as JSON, whole or not at all.

    Args:
        path: file to write.
        value: what `json` can hold; not-a-number is refused, for other readers of JSON do not know it.

    Raises:
        ValueError: if a number in it is not finite.

    Example:
    ```python
    write_json("run/report.json", {"accuracy": 0.5})
    ```
    """
    text = json.dumps(value, indent=2, allow_nan=False) + "\n"
    with whole_file(path) as partial:
        partial.write_text(text, encoding="utf-8")


def new_mapped_array(path: Path, dtype: npt.DTypeLike, shape: tuple[int, ...]) -> np.memmap[Any, Any]:
    """Makes an array of zeros that is mapped from a new `.npy` file, whose space on the disk is its own.

    NumPy leaves the file empty until it is written to, and a disk that is full by then ends Python without a word.

    Args:
        path: file to make.
        dtype: of the array.
        shape: of the array.

    Returns:
        Array of that shape.

    Raises:
        OSError: if there is not enough space.
    """
    array: np.memmap[Any, Any] = np.lib.format.open_memmap(path, mode="w+", dtype=np.dtype(dtype), shape=shape)
    size = path.stat().st_size
    try:
        with open(path, "r+b") as file:
            # Nothing but zeros lies behind the header.
            _reserve(file.fileno(), size - array.nbytes, array.nbytes)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        del array
        path.unlink()
        free = shutil.disk_usage(path.parent).free
        # Not the temporary one.
        folder = next(folder for folder in path.absolute().parents if not folder.name.startswith("."))
        message = f"{error.strerror}: {path.name} needs {size:,} bytes where {free:,} are free"
        raise OSError(error.errno, message, str(folder)) from error
    return array


def _reserve(descriptor: int, start: int, size: int) -> None:
    """Has the system find the place for `size` bytes of zeros."""
    if not size:
        return
    if hasattr(os, "posix_fallocate"):
        try:
            return os.posix_fallocate(descriptor, start, size)
        except OSError as error:
            # Some file systems cannot.
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
                raise
    os.lseek(descriptor, start, os.SEEK_SET)
    while size > 0:
        size -= os.write(descriptor, bytes(min(size, _ZEROS)))
