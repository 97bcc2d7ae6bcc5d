"""Finds the pictures in folders, those of subfolders and behind links too."""

from __future__ import annotations

import os
import stat
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from keras_igpt.data.image_files import HEIC_SUFFIXES, PICTURE_SUFFIXES, heic_is_readable

# Class folders, each with its pictures.
Classes = list[tuple[Path, list[Path]]]


def files_in(folder: str | os.PathLike[str], argument: str) -> Iterator[tuple[Path, os.stat_result | None]]:
    """Finds the files in a folder and its subfolders; not those that are hidden.

    Links are followed, and each folder is read once, by its real name where it has one in `folder`.

    Args:
        folder: an existing folder.
        argument: str. What errors call it.

    Yields:
        A file and its status, None of a link that leads nowhere; folder by folder, in no particular order.

    Raises:
        ValueError: if a folder or a file's status cannot be read.
    """
    seen: set[tuple[int, int]] = set()
    waiting, links = [Path(folder)], list[Path]()
    while waiting or links:
        # Links last: what is reached both ways has its real name.
        parent = waiting.pop() if waiting else links.pop(0)
        try:
            status = parent.stat()
            identity = (status.st_dev, status.st_ino)
            if identity in seen:
                continue
            # Some file systems number no files.
            if status.st_ino:
                seen.add(identity)
            entries = [(entry, _status(entry)) for entry in sorted(parent.iterdir()) if entry.name[0] != "."]
        except OSError as error:
            raise ValueError(
                f"`{argument}` must be readable with all folders in it. Received: {parent} ({error})"
            ) from error
        for entry, found in entries:
            if found is not None and stat.S_ISDIR(found.st_mode):
                (links if entry.is_symlink() else waiting).append(entry)
            else:
                yield entry, found


def pictures_in(folder: str | os.PathLike[str], argument: str) -> list[Path]:
    """Lists the pictures in a folder and its subfolders, sorted, each file once.

    Args:
        folder: the folder.
        argument: str. What errors call it.

    Returns:
        List of paths.

    Raises:
        FileNotFoundError: if the folder does not exist.
        ValueError: if a folder in it cannot be read.

    Warns:
        UserWarning: if other files, or further names of a picture, are left out.
    """
    root, left_out = _existing(folder, argument), Counter[str]()
    files = _pictures(root, argument, {}, left_out)
    _warn_of(left_out, root)
    return files


def class_folders(folder: str | os.PathLike[str], argument: str) -> Classes:
    """Lists the class folders of a folder in alphabetical order, each with its pictures.

    Args:
        folder: the folder.
        argument: str. What errors call it.

    Returns:
        A list of the folders with their pictures, as `pictures_in` lists them.

    Raises:
        FileNotFoundError: if the folder does not exist.
        ValueError: if there are fewer than two classes, a folder cannot be read, or a picture is in two classes.

    Warns:
        UserWarning: if files are left out.
    """
    root = _existing(folder, argument)
    folders = sorted(entry for entry in root.iterdir() if entry.is_dir() and entry.name[0] != ".")
    if len(folders) < 2:
        raise ValueError(
            f"`{argument}` must have a subfolder of pictures for each of at least two classes. "
            f"Received: {root} with {len(folders)} subfolder(s)"
        )
    class_of: dict[tuple[int, int], Path] = {}
    left_out: Counter[str] = Counter()
    classes = [(each, _pictures(each, argument, class_of, left_out)) for each in folders]
    _warn_of(left_out, root)
    return classes


def check_no_picture_twice(classes: Classes, test_classes: Classes) -> None:
    """Raises `ValueError` if a file is in both folders, links included."""

    def identities(of: Classes) -> dict[tuple[int, int], Path]:
        statuses = ((file, file.stat()) for _, files in of for file in files)
        # Some file systems number no files.
        return {(status.st_dev, status.st_ino): file for file, status in statuses if status.st_ino}

    learnt, tested = identities(classes), identities(test_classes)
    shared = [identity for identity in tested if identity in learnt]
    if shared:
        raise ValueError(
            f"`test_folder` must have other pictures than `folder`. Received: {len(shared)} in both, "
            f"such as {tested[shared[0]]}, which is {learnt[shared[0]]}"
        )


def _existing(folder: str | os.PathLike[str], argument: str) -> Path:
    root = Path(folder)
    if not root.is_dir():
        raise FileNotFoundError(f"`{argument}` must be an existing folder. Received: {root}")
    return root


def _status(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except OSError:
        if path.exists():
            raise
        return None


def _pictures(root: Path, argument: str, class_of: dict[tuple[int, int], Path], left_out: Counter[str]) -> list[Path]:
    """Lists the pictures in a class folder and its subfolders, sorted; updates `class_of` and `left_out`.

    `class_of` has the class folder of every picture that was seen, by device and inode: links and second names of a
    file would put it into the training and the test set.
    """
    found: list[Path] = []
    suffixes = (*PICTURE_SUFFIXES, *(HEIC_SUFFIXES if heic_is_readable() else ()))
    for path, status in files_in(root, argument):
        if status is None:
            left_out["broken link"] += 1
            continue
        if not stat.S_ISREG(status.st_mode) or path.suffix.lower() not in suffixes:
            left_out[path.suffix.lower() or "without an ending"] += 1
            continue
        identity = (status.st_dev, status.st_ino)
        if class_of.get(identity, root) != root:
            raise ValueError(
                f"`{argument}` must have each picture in one class. Received: {path}, which is in "
                f"{class_of[identity]} too"
            )
        if identity in class_of:
            left_out["second name of a file"] += 1
            continue
        if status.st_ino:
            class_of[identity] = root
        found.append(path)
    return sorted(found)


def _warn_of(left_out: Counter[str], root: Path) -> None:
    if left_out:
        found = ", ".join(f"{count} {ending}" for ending, count in sorted(left_out.items()))
        heic = sum(left_out[suffix] for suffix in HEIC_SUFFIXES)
        hint = " HEIC pictures are read with pillow-heif: pip install 'keras_igpt[heic]'." if heic else ""
        warnings.warn(
            f"{left_out.total()} file(s) in {root} were left out, since pictures must end in "
            f"{', '.join(PICTURE_SUFFIXES)} and count once. Left out: {found}.{hint}",
            stacklevel=4,  # where data sets are opened
        )
