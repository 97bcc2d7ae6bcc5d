"""Files and folders that are whole or not there: written under a temporary name, then renamed."""

from __future__ import annotations

import csv
import errno
import json
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

# Prefix of temporary names.
_PARTIAL = ".partial-"
# What `mkdtemp` puts after a prefix, as a regular expression.
_RANDOM = "[a-z0-9_]{8}"
# A file in each temporary folder, locked as long as the process lives.
_MARK = ".being-written"
# A file in each folder that a process holds.
_LOCK = ".lock"
# Bytes written at once where the system cannot reserve space.
_ZEROS = 1 << 24
# Folders whose abandoned files this process has removed.
_cleaned: set[Path] = set()


@contextmanager
def whole_file(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yields a temporary path of the same name to write to, which replaces `path` unless an exception is raised.

    The temporary path is in a new folder beside `path`, which nobody else can have prepared. A killed process leaves
    that folder behind, and the next one that writes a file beside it removes it.

    Args:
        path: file to write. Its folder is made; a symbolic link is replaced, not followed.

    Example:
    ```python
    with whole_file("run/report.json") as partial:
        partial.write_text("{}")
    ```
    """
    target = Path(path)
    with _new_folder_beside(target) as folder:
        _remove_abandoned_files(target.parent)
        partial = folder / target.name
        yield partial
        if target.is_file() and not target.is_symlink():
            # A private file stays private.
            shutil.copymode(target, partial)
        os.replace(partial, target)


@contextmanager
def whole_folder(path: str | os.PathLike[str], replaces: bool = False) -> Iterator[Path]:
    """Yields an empty temporary folder to write to, which replaces `path` unless an exception is raised.

    Args:
        path: folder to write.
        replaces: bool. Whether a folder with content is replaced. That takes two renames: a process killed between them
            leaves both folders under temporary names, and the next one that writes to `path` first puts the new one
            in its place.

    Raises:
        OSError: if `path` is no folder, or has content and `replaces` is False.

    Example:
    ```python
    with whole_folder("checkpoint") as partial:
        write_json(partial / "config.json", {})
    ```
    """
    target = Path(path)
    with _new_folder_beside(target) as folder:
        _end_abandoned_replacement(target)
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
    folder = Path(tempfile.mkdtemp(prefix=f"{_PARTIAL}{target.name}-", dir=target.parent))
    try:
        with _marked(folder):
            yield folder
    finally:
        # Unlocked by now: another process may be removing it too.
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _marked(folder: Path) -> Iterator[None]:
    """Keeps a locked file in a folder: once it is unlocked, the process has been killed."""
    if sys.platform == "win32":
        yield
        return
    import fcntl

    unlocked = folder / f"{_MARK}-unlocked"
    with open(unlocked, "xb") as file:
        # Some network file systems have no locks: folders there have no mark and are never removed.
        with suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
            os.replace(unlocked, folder / _MARK)
        yield


def _remove_abandoned_files(parent: Path) -> None:
    """Removes what killed processes were writing in a folder, but for folders that are replaced, once a process."""
    # Listing a folder of 100,000 files for each of them would take longer than writing them.
    if parent.resolve() in _cleaned:
        return
    _cleaned.add(parent.resolve())
    for folder in _abandoned(parent, ".+"):
        if not (folder / "old").is_dir():
            shutil.rmtree(folder, ignore_errors=True)


def _end_abandoned_replacement(target: Path) -> None:
    """Does what `whole_folder` was doing to a folder when its process was killed."""
    for folder in _abandoned(target.parent, re.escape(target.name)):
        # Between its two renames: there is no other copy.
        if (folder / "old").is_dir() and (folder / "new").is_dir() and not os.path.lexists(target):
            with suppress(FileNotFoundError):
                os.replace(folder / "new", target)
        # Another process may be removing it too.
        shutil.rmtree(folder, ignore_errors=True)


def _abandoned(parent: Path, name: str) -> Iterator[Path]:
    """Yields, locked, the temporary folders of killed processes, told by their mark; `name` of targets is a pattern."""
    if sys.platform == "win32":
        return
    import fcntl

    temporary = re.compile(f"{re.escape(_PARTIAL)}{name}-{_RANDOM}")
    with os.scandir(parent) as entries:
        found = [entry.path for entry in entries if temporary.fullmatch(entry.name) and not entry.is_symlink()]
    for folder in map(Path, found):
        try:
            descriptor = os.open(folder / _MARK, os.O_RDWR | os.O_NOFOLLOW)
        except OSError:  # without a mark, or somebody else's
            continue
        with open(descriptor, "rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:  # still being written
                continue
            yield folder


@contextmanager
def held(folder: Path, name: str) -> Iterator[None]:
    """Holds a folder that one process at a time writes to.

    Args:
        folder: the folder, which gets an empty file `.lock`.
        name: str. The argument, for the error.

    Raises:
        ValueError: if another process holds it.
    """
    if sys.platform == "win32":
        yield
        return
    import fcntl

    with open(folder / _LOCK, "ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ValueError(
                f"{name} must be a folder that no other process is writing to. Received: {folder}"
            ) from error
        except OSError:
            # Some network file systems have no locks.
            pass
        yield


def is_partial(path: Path) -> bool:
    """Whether a path has the temporary name of what is being written, or was when a process was killed."""
    return path.name.startswith(_PARTIAL)


def remove_partial(folder: str | os.PathLike[str], pattern: str = "*") -> None:
    """Removes what killed processes were writing under names of a glob pattern, where nobody else writes."""
    # Earlier versions used no suffix.
    for suffix in ("", "-*"):
        for path in Path(folder).glob(f"{_PARTIAL}{pattern}{suffix}"):
            remove(path)


def remove(path: Path) -> None:
    """Removes a file, a folder with its content, or a link but not its target, if there is one."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    elif os.path.lexists(path):
        path.unlink()


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Writes a value as JSON, whole or not at all; raises `ValueError` at numbers that are not finite."""
    text = json.dumps(value, indent=2, allow_nan=False) + "\n"
    with whole_file(path) as partial:
        partial.write_text(text, encoding="utf-8")


def read_log(path: Path) -> dict[int, dict[str, float]]:
    """Returns the lines of a training's log by epoch; the last one of an epoch that was run again after a kill.

    Raises:
        ValueError: if the file is no such log.
    """
    header, lines = _written_lines(path)
    try:
        by_name = [dict(zip(header, line, strict=True)) for line in lines]
        return {int(line["epoch"]): {name: float(value) for name, value in line.items()} for line in by_name}
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} must be a log of numbers by epoch. Received: {error}") from error


def drop_epochs(path: Path, first: int) -> None:
    """Removes the lines of an epoch and of those after it from a training's log, and a last line that was cut off.

    Raises:
        ValueError: if the file is no such log.
    """
    read_log(path)
    header, lines = _written_lines(path)
    kept = [line for line in lines if int(line[header.index("epoch")]) < first]
    if path.exists() and (len(kept) < len(lines) or not path.read_bytes().endswith(b"\n")):
        with whole_file(path) as partial, open(partial, "w", newline="") as file:
            csv.writer(file).writerows([header, *kept] if header else [])


def _written_lines(path: Path) -> tuple[list[str], list[list[str]]]:
    """Returns the cells of a CSV file's header and lines; a last line that was cut off was not written."""
    if not path.exists():
        return [], []
    with open(path, newline="") as file:
        header, *lines = [*csv.reader(line for line in file if line.endswith("\n"))] or [[]]
    return header, lines


def new_mapped_array(path: Path, dtype: npt.DTypeLike, shape: tuple[int, ...]) -> np.memmap[Any, Any]:
    """Makes an array of zeros, mapped from a new `.npy` file whose disk space is reserved.

    NumPy alone leaves the file sparse, and writing to it when the disk is full kills Python without a message.

    Raises:
        OSError: if there is not enough space.
    """
    array: np.memmap[Any, Any] = np.lib.format.open_memmap(path, mode="w+", dtype=np.dtype(dtype), shape=shape)
    size = path.stat().st_size
    try:
        with open(path, "r+b") as file:
            # The file is all zeros behind the header.
            _reserve(file.fileno(), size - array.nbytes, array.nbytes)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        del array
        path.unlink()
        free = shutil.disk_usage(path.parent).free
        # Not the temporary folder.
        folder = next(folder for folder in path.absolute().parents if not folder.name.startswith("."))
        message = f"{error.strerror}: {path.name} needs {size:,} bytes where {free:,} are free"
        raise OSError(error.errno, message, str(folder)) from error
    return array


def _reserve(descriptor: int, start: int, size: int) -> None:
    """Reserves the space of `size` bytes of zeros."""
    if not size:
        return
    if hasattr(os, "posix_fallocate"):
        try:
            return os.posix_fallocate(descriptor, start, size)
        except OSError as error:
            # Not every file system can.
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
                raise
    os.lseek(descriptor, start, os.SEEK_SET)
    while size > 0:
        size -= os.write(descriptor, bytes(min(size, _ZEROS)))
