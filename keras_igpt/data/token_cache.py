"""A token cache on disk, so that a large set is decoded once."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_igpt.data.examples import LabeledImages, LabeledTokens, Labels
from keras_igpt.data.image_files import ImageFiles
from keras_igpt.palette.color_palette import ColorPalette, check_color_palette, token_dtype
from keras_igpt.support.files import new_mapped_array, remove, remove_partial, write_json

# Version of the file layout; caches of other versions are rebuilt.
_VERSION = 1

# A folder with any other file is not a cache, and is not overwritten.
_ARRAYS = ("tokens.npy", "labels.npy")
_FILES = {*_ARRAYS, "manifest.json", "progress.json"}
# Of a file system that is read-only, somebody else's or full, and of one without locks.
_CANNOT_WRITE = {errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOSPC, errno.EDQUOT}
_CANNOT_LOCK = {errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP}

# Pictures between two updates of the progress file.
_CHUNK = 2048

Layout = tuple[np.dtype[Any], tuple[int, ...]]


def cache_tokens(
    examples: ImageFiles | LabeledImages, palette: ColorPalette, folder: str | os.PathLike[str]
) -> LabeledTokens:
    """Encodes a set's centre squares once; later calls open the tokens from disk.

    The folder holds `tokens.npy`, `labels.npy` and `manifest.json`, which identifies the pictures and the palette. A
    cache of other pictures, or one that is damaged, is rebuilt with a warning. An interrupted build resumes, and the
    folder appears only when it is complete. If several processes call this, one builds and the others wait. A finished
    cache may be read-only.

    Labels that are known without reading the pictures, such as those of folders, come from `examples`, not from
    `labels.npy`.

    Args:
        examples: the set. ImageNet at 32x32 pixels takes 2.6 GB.
        palette: its `ColorPalette`.
        folder: folder of the cache, a separate one for each split.

    Returns:
        `LabeledTokens`, memory-mapped.

    Raises:
        ValueError: if `examples` are empty or not square, a picture cannot be read, `palette` is no `ColorPalette` of
            the pictures' channels, or `folder` is not a cache.
        OSError: if the disk is full, or `folder` cannot be written and holds no such cache.

    Warns:
        UserWarning: if an existing cache is rebuilt.

    Example:
    ```python
    train = cache_tokens(data.train, palette, "tokens/imagenet-train-32")
    ```
    """
    if not isinstance(examples, (ImageFiles, LabeledImages)):
        raise ValueError(f"`examples` must be ImageFiles or LabeledImages. Received: {type(examples).__name__}")
    if not len(examples):
        raise ValueError("`examples` must not be empty. Received: 0 examples")
    channels = examples.num_channels if isinstance(examples, ImageFiles) else examples.images.shape[-1]
    check_color_palette(palette, channels)
    target = Path(folder).resolve()
    key = _key(examples, palette)
    with _one_process(target) as refusal:
        if target.exists() and not (target.is_dir() and {path.name for path in target.iterdir()} <= _FILES):
            raise ValueError(f"`folder` must be a token cache or not exist yet. Received: {target}")
        fault = _fault(target, key)
        if fault is not None and target.exists() and isinstance(examples, ImageFiles):
            # Caches of earlier versions know paths as they were given.
            earlier = {**key, "examples": _digest_of_files(examples.fingerprint_as_given())}
            fault = fault if _fault(target, earlier) else None
        if fault is not None:
            if refusal is not None:
                raise OSError(refusal.errno, f"{refusal.strerror}, and there is no such cache ({fault})", str(target))
            if target.exists() and any(target.iterdir()):
                warnings.warn(f"The token cache {target} is rebuilt: {fault}.", stacklevel=2)
            _build(examples, palette, target, key)
        tokens, labels = np.load(target / "tokens.npy", mmap_mode="r"), np.load(target / "labels.npy")
    known = _known_labels(examples)
    return LabeledTokens(tokens, labels if known is None else known, palette.num_colors)


def _known_labels(examples: ImageFiles | LabeledImages) -> Labels | None:
    return examples.known_labels if isinstance(examples, ImageFiles) else examples.labels


def _key(examples: ImageFiles | LabeledImages, palette: ColorPalette) -> dict[str, Any]:
    if isinstance(examples, ImageFiles):
        digest = _digest_of_files(examples.fingerprint())
        size = examples.image_size
        if size is None:
            raise ValueError("`examples` must have an `image_size`. Received: ImageFiles with image_size=None")
    else:
        height, size = examples.images.shape[1:3]
        if height != size:
            raise ValueError(f"`examples` must be square to become tokens. Received: {height}x{size} pixels")
        arrays = hashlib.sha256(np.ascontiguousarray(examples.images).data)
        arrays.update(np.ascontiguousarray(examples.labels).data)
        digest = arrays.hexdigest()
    return {
        "version": _VERSION,
        "examples": digest,
        "palette": hashlib.sha256(palette.centroids.tobytes()).hexdigest(),
        "count": len(examples),
        "image_size": size,
    }


def _digest_of_files(fingerprint: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(fingerprint, sort_keys=True).encode()).hexdigest()


def _fault(folder: Path, key: dict[str, Any]) -> str | None:
    """Returns why a folder is not the cache of `key`, or None if it is."""
    manifest = _read_json(folder / "manifest.json")
    made_of, checksums = manifest.get("made_of"), manifest.get("checksums")
    if not isinstance(made_of, dict) or not isinstance(checksums, dict) or checksums.keys() != set(_ARRAYS):
        return "its manifest is missing or cannot be read"
    changed = [name for name, value in key.items() if made_of.get(name) != value]
    if changed:
        return f"it was made from another {' and '.join(changed)}"
    for name, checksum in checksums.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if _checksum(path) != checksum:
            return f"{name} is damaged"
    return None


def _build(examples: ImageFiles | LabeledImages, palette: ColorPalette, target: Path, key: dict[str, Any]) -> None:
    partial = _beside(target, "unfinished")
    progress = partial / "progress.json"
    arrays, done = _unfinished(partial, _layout(palette, key), key)
    tokens, labels = arrays
    bar = keras.utils.Progbar(len(examples), unit_name="picture")
    bar.update(done)
    for start in range(done, len(examples), _CHUNK):
        rows = range(start, min(start + _CHUNK, len(examples)))
        chunk = examples.load_rows(rows) if isinstance(examples, ImageFiles) else examples.take(rows)
        tokens[start : rows.stop] = palette.encode(chunk.images)
        labels[start : rows.stop] = chunk.labels
        tokens.flush()
        labels.flush()
        write_json(progress, {"made_of": key, "done": rows.stop})
        bar.update(rows.stop)
    known = _known_labels(examples)
    if known is not None:
        # Labels may have changed since the earlier rows were written.
        labels[:] = known
        labels.flush()
    checksums = {name: _checksum(partial / name) for name in _ARRAYS}
    write_json(partial / "manifest.json", {"made_of": key, "checksums": checksums})
    # If this is interrupted, either a complete cache has the name or the finished build is found again.
    old = _beside(target, "replaced")
    remove(old)
    if target.exists():
        os.replace(target, old)
    os.replace(partial, target)
    (target / "progress.json").unlink()
    remove(old)


def _layout(palette: ColorPalette, key: dict[str, Any]) -> dict[str, Layout]:
    return {
        "tokens.npy": (token_dtype(palette.num_colors), (key["count"], key["image_size"] ** 2)),
        "labels.npy": (np.dtype(np.int64), (key["count"],)),
    }


def _unfinished(partial: Path, layout: dict[str, Layout], key: dict[str, Any]) -> tuple[list[np.memmap[Any, Any]], int]:
    """Opens the arrays of an unfinished build or creates new ones; returns them and the number of rows done."""
    # Never write through a link.
    if partial.is_dir() and not any(path.is_symlink() for path in (partial, *partial.iterdir())):
        remove_partial(partial)
        state = _read_json(partial / "progress.json")
        done = state.get("done")
        if state.get("made_of") == key and isinstance(done, int) and 0 < done <= key["count"]:
            try:
                arrays = [np.load(partial / name, mmap_mode="r+") for name in layout]
                found = [(array.dtype, array.shape) for array in arrays]
                if found != [*layout.values()]:
                    raise ValueError(f"arrays of another kind, {found}")
            except (OSError, ValueError) as error:  # after a power failure, for example
                warnings.warn(f"The unfinished token cache {partial} is restarted: {error}.", stacklevel=4)
            else:
                return arrays, done
    remove(partial)
    partial.mkdir()
    try:
        return [new_mapped_array(partial / name, *kind) for name, kind in layout.items()], 0
    except OSError:
        remove(partial)
        raise


def _beside(target: Path, purpose: str) -> Path:
    """A hidden path beside the cache that only this module uses, so it may be deleted."""
    return target.with_name(f".{target.name}.tokens-{purpose}")


def _read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON object; returns an empty one if the file is missing or holds anything else."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _checksum(path: Path) -> int:
    value = 0
    with open(path, "rb") as file:
        while chunk := file.read(1 << 24):
            value = zlib.crc32(chunk, value)
    return value


@contextmanager
def _one_process(target: Path) -> Iterator[OSError | None]:
    """Holds a lock that is released when the process ends; yields the error if nothing can be written or locked."""
    import fcntl  # POSIX only

    path, descriptor = _beside(target, "lock"), None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        # Opened without truncating or writing.
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    except OSError as error:
        if descriptor is not None:
            os.close(descriptor)
        if error.errno == errno.ELOOP:
            raise ValueError(f"`folder` must not have a link in place of its lock file. Received: {path}") from error
        if error.errno not in _CANNOT_WRITE | _CANNOT_LOCK:
            raise
        # A cache that is only read needs no lock.
        yield error
        return
    with open(descriptor, "rb"):
        yield None
