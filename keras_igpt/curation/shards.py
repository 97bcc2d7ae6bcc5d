"""Shards of web pictures as they lie on the disk: tar files of img2dataset and WebDataset, or folders of pictures."""

from __future__ import annotations

import glob
import os
import stat
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast

from keras_igpt.data.folders import files_in
from keras_igpt.data.image_files import PICTURE_SUFFIXES

# Files of a folder that make one shard.
_FILES_A_SHARD = 10_000

# An encoded picture larger than this is not read. It is more than any honest one of the largest size allowed.
_MOST_BYTES = 1 << 28

# Bytes of the records that archives are made of, but for the usual ones: `tar -b 32` to `tar -b 2048`.
_LARGE_RECORDS = tuple(1 << power for power in range(14, 21))


@dataclass(frozen=True)
class Shard:
    """A unit of work: a tar file, or some of a folder's pictures.

    Attributes:
        number: int. Its place among all shards.
        path: str. The tar file or the folder.
        files: tuple of str. The pictures' paths in the folder; none of a tar file.
        size: int. Bytes of the tar file, or of all files together.
    """

    number: int
    path: str
    files: tuple[str, ...]
    size: int

    @property
    def name(self) -> str:
        """The stem of all files that are made of this shard."""
        return f"{self.number:06d}"

    def describe(self) -> list[str | int]:
        """Returns what tells this shard from others, for JSON."""
        first = self.files[0] if self.files else ""
        return [Path(self.path).name, first, len(self.files), self.size]


@dataclass(frozen=True)
class Member:
    """A picture in a shard.

    Attributes:
        key: str. Its name in the shard.
        offset: int. Where it begins in the tar file; 0 in a folder.
        size: int. Its bytes.
        data: bytes, or None where it could not be read to its end or is too large to be read.
        whole: bool. Whether all of its bytes are there.
    """

    key: str
    offset: int
    size: int
    data: bytes | None
    whole: bool = True


@dataclass
class Reading:
    """What was met beside pictures while a shard was read.

    Attributes:
        others: int. Files that are no pictures, such as `key.json` and `key.txt`.
        fault: str. Why the shard ends too early; empty if it does not.
    """

    others: int = 0
    fault: str = ""


def find_shards(
    shards: str | os.PathLike[str] | Iterable[str | os.PathLike[str]], argument: str = "shards"
) -> list[Shard]:
    """Finds the shards that paths stand for, in an order that is the same on every machine.

    Args:
        shards: a path, a pattern with `*`, or several of these. A `.tar` file is a shard. So is each `.tar` file of a
            folder that has any. Of another folder all pictures are taken, those of its subfolders too, in shards of
            10,000. Hidden files and folders are left out.
        argument: str. What errors call them.

    Returns:
        List of `Shard`, sorted.

    Raises:
        ValueError: if a path is missing or is neither, a folder cannot be read or holds tar files as well as
            pictures, or there is nothing in any.
    """
    given = [shards] if isinstance(shards, (str, os.PathLike)) else list(shards)
    paths: set[Path] = set()
    for entry in [os.fspath(path) for path in given]:
        found = [entry] if os.path.exists(entry) else glob.glob(entry)
        if not found:
            raise ValueError(
                f"`{argument}` must be tar files, folders or patterns of them. Received: no file at {entry!r}"
            )
        paths.update(Path(path).resolve() for path in found)
    parts: set[tuple[str, tuple[str, ...], int]] = set()
    for path in paths:
        parts.update(_parts_of_folder(path, argument) if path.is_dir() else [_tar_file(path, argument)])
    if not parts:
        received = [str(path) for path in paths]
        raise ValueError(f"`{argument}` must hold pictures or tar files. Received: {argument}={received}")
    return [Shard(number, *part) for number, part in enumerate(sorted(parts))]


def read_shard(shard: Shard, reading: Reading) -> Iterator[Member]:
    """Reads the pictures of a shard one by one, in order.

    A tar file that is cut off or damaged gives what comes before the fault.

    Args:
        shard: the shard.
        reading: takes notes of all that is no picture.

    Yields:
        `Member`.
    """
    yield from (_read_files(shard) if shard.files else _read_tar(shard, reading))


def read_member(shard: Shard, key: str, offset: int, size: int) -> bytes:
    """Reads one picture again, by what its `Member` said."""
    if shard.files:
        return (Path(shard.path) / key).read_bytes()
    with open(shard.path, "rb") as file:
        file.seek(offset)
        return file.read(size)


def _tar_file(path: Path, argument: str) -> tuple[str, tuple[str, ...], int]:
    if path.suffix != ".tar":
        raise ValueError(f"`{argument}` must be `.tar` files, not compressed, or folders. Received: {path}")
    return str(path), (), path.stat().st_size


def _parts_of_folder(folder: Path, argument: str) -> list[tuple[str, tuple[str, ...], int]]:
    found = files_in(folder, argument)
    files = {path: status.st_size for path, status in found if status and stat.S_ISREG(status.st_mode)}
    tars = [path for path in files if path.suffix == ".tar"]
    pictures = sorted(path for path in files if path.suffix.lower() in PICTURE_SUFFIXES)
    if tars and pictures:
        raise ValueError(f"`{argument}` must be folders of tar files or of pictures. Received: {folder} with both")
    if tars:
        return [_tar_file(path, argument) for path in tars]
    chunks = [pictures[start : start + _FILES_A_SHARD] for start in range(0, len(pictures), _FILES_A_SHARD)]
    return [
        (str(folder), tuple(path.relative_to(folder).as_posix() for path in chunk), sum(files[path] for path in chunk))
        for chunk in chunks
    ]


def _read_files(shard: Shard) -> Iterator[Member]:
    for key in shard.files:
        path = Path(shard.path) / key
        try:
            size = path.stat().st_size
            data = path.read_bytes() if size <= _MOST_BYTES else None
            yield Member(key, 0, size, data)
        except (FileNotFoundError, PermissionError):  # of other errors, such as those of a disk, nobody knows more
            yield Member(key, 0, 0, None, whole=False)


def _read_tar(shard: Shard, reading: Reading) -> Iterator[Member]:
    try:
        with tarfile.open(shard.path, "r:") as archive:
            for member in archive:
                archive.members.clear()  # type: ignore[attr-defined]  # or the archive keeps what it knows of each
                if not member.isfile():
                    continue
                if Path(member.name).suffix.lower() not in PICTURE_SUFFIXES:
                    reading.others += 1
                    continue
                yield _read_member(archive, member)
            _check_end(archive, reading)
    # Damaged headers make tarfile raise ValueError and its like too. Errors of the disk are not the archive's: they end
    # the work on this shard, which is done again.
    except (tarfile.TarError, ValueError, OverflowError) as error:
        reading.fault = str(error)


def _read_member(archive: tarfile.TarFile, member: tarfile.TarInfo) -> Member:
    if member.size > _MOST_BYTES:
        return Member(member.name, member.offset_data, member.size, None)
    file: IO[bytes] | None = archive.extractfile(member)
    assert file is not None, "members that are no files were left out"
    try:
        data = file.read()
    except tarfile.TarError:
        data = b""
    if len(data) < member.size:
        return Member(member.name, member.offset_data, member.size, None, whole=False)
    return Member(member.name, member.offset_data, member.size, data)


def _check_end(archive: tarfile.TarFile, reading: Reading) -> None:
    """Notes where an archive ends without the zeros that all end with, or goes on behind them: tarfile does not."""
    file = cast("IO[bytes]", archive.fileobj)
    size = file.seek(0, os.SEEK_END)
    # Two blocks, and what fills up the last record.
    records = [tarfile.RECORDSIZE, *(record for record in _LARGE_RECORDS if size % record == 0)]
    most = 2 * tarfile.BLOCKSIZE + max(records)
    file.seek(archive.offset)
    rest = file.read(most + 1)
    if len(rest) < tarfile.BLOCKSIZE:
        reading.fault = f"cut off at byte {archive.offset:,}"
    elif any(rest[: tarfile.BLOCKSIZE]):
        reading.fault = f"damaged at byte {archive.offset:,}"
    # A download that reserved its space, or a copy with a hole, has zeros in place of pictures.
    elif len(rest) > most or any(rest):
        reading.fault = f"zeros in place of files from byte {archive.offset:,} on"
