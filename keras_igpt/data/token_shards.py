"""Token shards: a folder of `.npy` files and a manifest, for sets of any size."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import zlib
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from io import FileIO
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from keras_igpt.data.examples import check_square_tokens
from keras_igpt.palette.color_palette import ColorPalette, check_color_palette, token_dtype
from keras_igpt.support.checks import check_integer
from keras_igpt.support.files import whole_file, write_json
from keras_igpt.support.progress import told

_MANIFEST = "manifest.json"
_FORMAT, _VERSION = "keras_igpt token shards", 1


@dataclass(frozen=True)
class TokenShard:
    """A shard's entry in the manifest.

    Attributes:
        file: str. Name of the `.npy` file in the folder.
        rows: int. Number of pictures.
        crc32: int. Checksum of the tokens.
        report: dict. Any other JSON values, such as origin and counts.
        num_colors: int. Size of the palette of the tokens; None if it is not known.
    """

    file: str
    rows: int
    crc32: int
    report: dict[str, Any] = field(default_factory=dict)
    num_colors: int | None = None


def write_token_shard(
    folder: str | os.PathLike[str],
    file: str,
    token_ids: npt.ArrayLike,
    num_colors: int,
    report: dict[str, Any] | None = None,
) -> TokenShard:
    """Writes one shard atomically. Call `write_token_manifest` after the last one.

    A manifest that is in the folder is removed first: the set can be opened again when the next one is written.

    Args:
        folder: folder of the set.
        file: str. File name ending in `.npy`.
        token_ids: integer array `(B, S * S)`; B may be 0.
        num_colors: int. Palette size `V`.
        report: dict. As in `TokenShard`.

    Returns:
        `TokenShard`, for the manifest.

    Raises:
        ValueError: if `file` is not a plain `.npy` name, the tokens have another shape or are out of range,
            `num_colors` is no integer, or `report` is not JSON.

    Example:
    ```python
    shard = write_token_shard("web", "00000.npy", palette.encode(images), palette.num_colors, {"tar": "00000.tar"})
    ```
    """
    _check_file("file", file)
    num_colors = check_integer("num_colors", num_colors)
    _check_report(report)
    tokens = np.ascontiguousarray(check_square_tokens(token_ids, num_colors), token_dtype(num_colors))
    # Killed before the next manifest, the folder would be opened under the old one.
    (Path(folder) / _MANIFEST).unlink(missing_ok=True)
    with whole_file(Path(folder) / file) as partial:
        np.save(partial, tokens)
    return TokenShard(file, len(tokens), _checksum(tokens), report or {}, num_colors)


def write_token_manifest(
    folder: str | os.PathLike[str],
    shards: Iterable[TokenShard],
    palette: ColorPalette,
    image_size: int,
    report: dict[str, Any] | None = None,
) -> None:
    """Writes the manifest that completes a set of shards.

    Args:
        folder: folder of the set.
        shards: results of `write_token_shard`, in row order.
        palette: `ColorPalette` of the tokens.
        image_size: int. Side `S` of the pictures.
        report: dict. Any other JSON values.

    Raises:
        ValueError: if a file is listed twice, is missing, or has pictures of another size or tokens of another palette
            (the number of colours is compared), if all shards are empty, `palette` is no `ColorPalette`, or `report` is
            not JSON.

    Example:
    ```python
    write_token_manifest("web", shards, palette, image_size=32)
    ```
    """
    shards = tuple(shards)
    image_size = check_integer("image_size", image_size)
    check_color_palette(palette)
    _check_report(report)
    names = [_check_file("shards", shard.file) for shard in shards]
    if len(set(names)) < len(names) or not sum(shard.rows for shard in shards):
        raise ValueError(
            "`shards` must be different files with at least one row. "
            f"Received: {len(names)} shards, {len(set(names))} files, {sum(shard.rows for shard in shards)} rows"
        )
    for shard in shards:
        path = Path(folder) / shard.file
        if not path.is_file():
            raise ValueError(f"`shards` must be in `folder`. Received: {path}, which is missing")
        try:
            with open(path, "rb", buffering=0) as file:
                _find_tokens(file, (shard.rows, image_size**2), token_dtype(palette.num_colors))
            if shard.num_colors not in (None, palette.num_colors):
                raise ValueError(f"tokens of {shard.num_colors} colours, not {palette.num_colors}")
        except ValueError as error:
            raise ValueError(
                f"`shards` must be whole files of `image_size`={image_size} and of the {palette.num_colors} colours of "
                f"`palette`. Received: {path} ({error})"
            ) from error
    # The palette tells the number of colours.
    entries = [{name: value for name, value in asdict(shard).items() if name != "num_colors"} for shard in shards]
    content = {
        "format": _FORMAT,
        "version": _VERSION,
        "image_size": image_size,
        "palette": palette.get_config(),
        "report": report or {},
        "shards": entries,
    }
    write_json(Path(folder) / _MANIFEST, content)


class TokenShards:
    """Tokens `(B, T)` in shards, read from disk on indexing.

    Opening reads only the manifest. Each read opens and closes its files, so memory use and open files do not grow with
    the number of shards. Memory mapping would hold a descriptor per file and read ahead far more than the single rows
    of a shuffled order.

    Args:
        folder: folder completed by `write_token_manifest`.

    Attributes:
        palette: `ColorPalette` of the tokens.
        image_size: int. Side `S` of the pictures.
        shards: tuple of `TokenShard`.
        report: dict. The `report` of `write_token_manifest`.

    Raises:
        FileNotFoundError: if the folder has no manifest.
        ValueError: if the manifest is damaged or of another kind.

    Example:
    ```python
    images = shards.palette.decode(TokenShards("web")[np.arange(16)])
    ```
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        path = Path(folder) / _MANIFEST
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise FileNotFoundError(
                f"`folder` must hold token shards and their {_MANIFEST}, which is written last. Received: {folder}"
            ) from error
        except ValueError as error:
            raise ValueError(f"`folder` must have a {_MANIFEST} of JSON. Received: {path} ({error})") from error
        kind = (content.get("format"), content.get("version")) if isinstance(content, dict) else None
        if kind != (_FORMAT, _VERSION):
            raise ValueError(f"`folder` must hold {_FORMAT!r} of version {_VERSION}. Received: {path} with {kind}")
        try:
            self.palette = ColorPalette.from_config(content["palette"])
            self.image_size = check_integer("image_size", content["image_size"])
            self.shards = tuple(TokenShard(**shard, num_colors=self.palette.num_colors) for shard in content["shards"])
            self.report: dict[str, Any] = content["report"]
            counts = [check_integer("rows", shard.rows, 0) for shard in self.shards]
            self._files = [os.path.join(folder, _check_file("shards", shard.file)) for shard in self.shards]
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"`folder` must have a whole {_MANIFEST}. Received: {path} ({error!r})") from error
        self.dtype = token_dtype(self.palette.num_colors)
        # First row of each shard, then the total.
        self._starts = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])
        # Where the tokens begin in each file; 0 until the file is checked.
        self._offsets = np.zeros(len(counts), np.int64)
        self._chosen: npt.NDArray[np.int64] | None = None

    def __repr__(self) -> str:
        return f"TokenShards({len(self)} pictures in {len(self.shards)} shards, image_size={self.image_size})"

    @property
    def shape(self) -> tuple[int, int]:
        """Pictures and tokens, `(B, T)`."""
        return (int(self._starts[-1]) if self._chosen is None else len(self._chosen)), self.image_size**2

    def __len__(self) -> int:
        return self.shape[0]

    def take(self, rows: npt.ArrayLike) -> Self:
        """Returns these rows, in this order, without reading them."""
        chosen = self._checked_rows(rows)
        taken = copy.copy(self)
        taken._chosen = chosen if self._chosen is None else self._chosen[chosen]
        return taken

    def join(self, other: Self) -> Self:
        """Returns these rows followed by another set's, which must have the same palette and size, without reading."""
        if (self.image_size, self.palette) != (other.image_size, other.palette):
            raise ValueError(f"`other` must have the palette and `image_size` of {self}. Received: {other}")
        joined = copy.copy(self)
        joined.shards, joined._files = self.shards + other.shards, self._files + other._files
        joined._starts = np.concatenate([self._starts, self._starts[-1] + other._starts[1:]])
        joined._offsets = np.concatenate([self._offsets, other._offsets])
        if self._chosen is not None or other._chosen is not None:
            first, second = (np.arange(len(part)) if part._chosen is None else part._chosen for part in (self, other))
            joined._chosen = np.concatenate([first, self._starts[-1] + second])
        return joined

    def digest(self) -> str:
        """Returns a hexadecimal digest of the manifest's checksums and the palette."""
        described = [[shard.rows, shard.crc32] for shard in self.shards]
        digest = hashlib.sha256(json.dumps([self.image_size, self.palette.get_config(), described]).encode())
        if self._chosen is not None:
            digest.update(self._chosen.data)
        return digest.hexdigest()

    def verify(self) -> None:
        """Compares every file with the checksum that it was written with, after a copy say.

        Reading rows compares no more than the sizes of files and the number of colours.

        Raises:
            ValueError: if a file is missing or has other content.

        Example:
        ```python
        TokenShards("web").verify()
        ```
        """
        for number in told(range(len(self.shards)), "verify", "files"):
            shard = self.shards[number]
            tokens = np.empty((shard.rows, self.shape[1]), self.dtype)
            if shard.rows:
                self._read_run(number, 0, tokens)
            checksum = _checksum(tokens)
            if checksum != shard.crc32:
                raise ValueError(
                    f"`folder` must hold the files of its {_MANIFEST} as they were written. "
                    f"Received: {self._files[number]} (CRC-32 {checksum:08x}, not {shard.crc32:08x})"
                )

    def __getitem__(self, rows: npt.ArrayLike) -> npt.NDArray[np.integer[Any]]:
        """Reads rows.

        Args:
            rows: integer array `(B,)`, or bool array with an entry for each row.

        Returns:
            Array `(B, T)` of the smallest unsigned integer type.

        Raises:
            IndexError: if a row is out of range.
            ValueError: if a file is missing, or has another size or other colours than the manifest says; see `verify`.
        """
        wanted = self._checked_rows(rows)
        if self._chosen is not None:
            wanted = self._chosen[wanted]
        order = np.argsort(wanted, kind="stable")
        wanted = wanted[order]
        shards = np.searchsorted(self._starts, wanted, side="right") - 1
        places = wanted - self._starts[shards]
        found = np.empty((len(wanted), self.shape[1]), self.dtype)
        # Consecutive rows of a file are read together.
        ends = np.flatnonzero((np.diff(wanted) != 1) | (np.diff(shards) != 0)) + 1
        for start, end in zip([0, *ends.tolist()], [*ends.tolist(), len(wanted)], strict=True):
            if start < end:
                self._read_run(int(shards[start]), int(places[start]), found[start:end])
        result = np.empty_like(found)
        result[order] = found
        return result

    def _checked_rows(self, rows: npt.ArrayLike) -> npt.NDArray[np.int64]:
        wanted = np.asarray(rows)
        if wanted.dtype == bool and wanted.shape == (len(self),):
            wanted = np.flatnonzero(wanted)
        whole = wanted.ndim == 1 and (wanted.dtype.kind in "iu" or not wanted.size)
        if not whole or (wanted.size and (wanted.min() < 0 or wanted.max() >= len(self))):
            raise IndexError(f"`rows` must be a list of rows in 0…{len(self) - 1}. Received: {rows!r}")
        return wanted.astype(np.int64)

    def _read_run(self, shard: int, row: int, out: npt.NDArray[np.integer[Any]]) -> None:
        """Fills `out` with consecutive rows of one shard, starting at `row`."""
        path = self._files[shard]
        try:
            with open(path, "rb", buffering=0) as file:
                file.seek(self._offset(shard, file) + row * out[0].nbytes)
                target = out.data.cast("B")
                while len(target):
                    count = file.readinto(target)
                    if not count:
                        raise ValueError("it was truncated")
                    target = target[count:]
            if int(out.max()) >= self.palette.num_colors:
                raise ValueError(f"token {out.max()}, where the palette has {self.palette.num_colors} colours")
        except (OSError, ValueError) as error:
            raise ValueError(
                f"`folder` must hold the files of its {_MANIFEST} as they were written. Received: {path} ({error})"
            ) from error

    def _offset(self, shard: int, file: FileIO) -> int:
        """Returns where the tokens begin in a file; checks the file the first time."""
        if not self._offsets[shard]:
            self._offsets[shard] = _find_tokens(file, (self.shards[shard].rows, self.shape[1]), self.dtype)
        return int(self._offsets[shard])


def _find_tokens(file: FileIO, expected: tuple[int, int], expected_dtype: np.dtype[Any]) -> int:
    """Returns where the tokens begin in a file; raises `ValueError` unless they have this shape and type."""
    version = np.lib.format.read_magic(file)
    if version != (1, 0):
        raise ValueError(f"`.npy` version {version}, not (1, 0)")
    shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
    if (shape, fortran, dtype) != (expected, False, expected_dtype):
        raise ValueError(f"{dtype} of shape {shape}, not {expected_dtype} of shape {expected}")
    size, whole = os.fstat(file.fileno()).st_size, file.tell() + expected[0] * expected[1] * dtype.itemsize
    if size != whole:
        raise ValueError(f"{size:,} bytes, not {whole:,}")
    return file.tell()


def _checksum(tokens: npt.NDArray[np.integer[Any]]) -> int:
    # Flattened first, since empty arrays cannot be viewed as bytes in their shape.
    return zlib.crc32(tokens.reshape(-1).view(np.uint8).data)


def _check_report(report: Any) -> None:
    try:
        text = json.dumps(report, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"`report` must be a dictionary of JSON values. Received: {error}") from error
    if not isinstance(report, (dict, type(None))):
        raise ValueError(f"`report` must be a dictionary of JSON values. Received: {text}")


def _check_file(name: str, file: Any) -> str:
    if not isinstance(file, str) or os.path.basename(file) != file or not file.endswith(".npy") or file[0] == ".":
        raise ValueError(f"`{name}` must be names such as '00000.npy', without a folder. Received: {file!r}")
    return file
