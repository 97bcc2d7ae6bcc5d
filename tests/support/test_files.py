"""Files and folders that are whole or as they were, links that others have planted, and disks that are full."""

import json
import os
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from keras_igpt.support import files as atomic_file
from keras_igpt.support.files import (
    drop_epochs,
    new_mapped_array,
    read_log,
    remove_partial,
    whole_file,
    whole_folder,
    write_json,
)


def test_links_that_were_planted_are_not_followed(tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("years of work")
    for name in (".partial-report.json", "report.json"):
        (tmp_path / name).symlink_to(victim)
    write_json(tmp_path / "report.json", {"accuracy": 0.5})
    assert victim.read_text() == "years of work"
    assert "0.5" in (tmp_path / "report.json").read_text()
    assert (tmp_path / ".partial-report.json").is_symlink()


def test_a_failure_leaves_what_was_there_and_nothing_else(tmp_path):
    (tmp_path / "file").write_text("old")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "old").touch()
    for name, writing in (("file", whole_file), ("folder", lambda path: whole_folder(path, True))):
        with pytest.raises(ZeroDivisionError), writing(tmp_path / name) as partial:
            (partial / "new" if partial.is_dir() else partial).write_text(f"{1 / 0}")
    with pytest.raises(OSError, match="not empty"), whole_folder(tmp_path / "folder") as partial:
        (partial / "new").touch()
    assert sorted(os.listdir(tmp_path)) == ["file", "folder"]
    assert (tmp_path / "file").read_text() == "old"
    assert os.listdir(tmp_path / "folder") == ["old"]


def test_folders_are_made_and_replaced(tmp_path):
    for name in ("first", "second"):
        with whole_folder(tmp_path / "new" / "folder", replaces=True) as partial:
            assert not list(partial.iterdir())
            (partial / name).touch()
    assert os.listdir(tmp_path / "new") == ["folder"]
    assert os.listdir(tmp_path / "new" / "folder") == ["second"]


def test_a_file_keeps_its_permissions(tmp_path):
    write_json(tmp_path / "new", 1)
    before = os.umask(0)
    os.umask(before)
    assert (tmp_path / "new").stat().st_mode & 0o777 == 0o666 & ~before
    (tmp_path / "new").chmod(0o600)
    write_json(tmp_path / "new", 2)
    assert (tmp_path / "new").stat().st_mode & 0o777 == 0o600


def test_what_a_killed_process_left_is_removed_by_the_next_one_that_writes(tmp_path):
    """Not what is being written, and not what only has such a name."""
    (tmp_path / ".partial-file-thesis").mkdir()
    (tmp_path / ".partial-file-thesis" / "thesis.tex").touch()
    child = os.fork()
    if child == 0:
        with whole_file(tmp_path / "file") as partial:
            partial.write_text("half")
            os._exit(9)
    os.waitpid(child, 0)
    assert len(list(tmp_path.iterdir())) == 2
    with whole_file(tmp_path / "file") as partial:
        write_json(tmp_path / "file", "whole")
        assert partial.parent.exists()
        assert len(list(tmp_path.iterdir())) == 3
        partial.write_text("newer")
    assert sorted(os.listdir(tmp_path)) == [".partial-file-thesis", "file"]
    assert os.listdir(tmp_path / ".partial-file-thesis") == ["thesis.tex"]
    assert (tmp_path / "file").read_text() == "newer"


def test_a_kill_between_two_renames_loses_no_folder(tmp_path):
    """The new one is whole by then; it is put in its place, even if the next writing fails."""
    with whole_folder(tmp_path / "model") as partial:
        (partial / "first").touch()
    child = os.fork()
    if child == 0:
        rename = os.replace

        def killed(source, target):
            rename(source, target)
            if Path(target).name == "old":
                os._exit(9)

        os.replace = killed
        with whole_folder(tmp_path / "model", replaces=True) as partial:
            (partial / "second").touch()
    os.waitpid(child, 0)
    assert not (tmp_path / "model").exists()
    with pytest.raises(OSError, match="full"), whole_folder(tmp_path / "model", replaces=True):
        raise OSError("the disk is full")
    assert os.listdir(tmp_path) == ["model"]
    assert os.listdir(tmp_path / "model") == ["second"]


def test_a_target_whose_name_begins_with_anothers_is_left_alone(tmp_path):
    child = os.fork()
    if child == 0:
        with whole_folder(tmp_path / "model-small", replaces=True) as partial:
            (partial / "small").touch()
            (partial.parent / "old").mkdir()  # between the two renames
            os._exit(9)
    os.waitpid(child, 0)
    for _ in range(2):
        with whole_folder(tmp_path / "model", replaces=True) as partial:
            (partial / "large").touch()
        write_json(tmp_path / "report.json", 1)
    assert os.listdir(tmp_path / "model") == ["large"]
    with whole_folder(tmp_path / "model-small", replaces=True) as partial:
        assert os.listdir(tmp_path / "model-small") == ["small"]
        (partial / "newer").touch()
    assert sorted(os.listdir(tmp_path)) == ["model", "model-small", "report.json"]


def test_processes_that_write_to_one_path_leave_one_of_theirs(tmp_path):
    children = []
    for number in range(3):
        children.append(os.fork())
        if children[-1] == 0:
            failed = 1
            with suppress(OSError):
                for _ in range(200):
                    atomic_file._cleaned.clear()  # as if each were of a process of its own
                    write_json(tmp_path / "report.json", number)
                failed = 0
            os._exit(failed)
    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0, 0]
    assert os.listdir(tmp_path) == ["report.json"]
    assert json.loads((tmp_path / "report.json").read_text()) in range(3)


def test_what_killed_processes_left_is_removed(tmp_path):
    others = [tmp_path / ".partial-other.npz", tmp_path / "step-1.npz", tmp_path / "victim"]
    for path in others:
        path.touch()
    (tmp_path / ".partial-step-1.npz").touch()  # as earlier versions did
    (tmp_path / ".partial-step-2.npz").symlink_to(tmp_path / "victim")
    (tmp_path / ".partial-step-3.npz-abc").mkdir()
    (tmp_path / ".partial-step-3.npz-abc" / "step-3.npz").touch()
    remove_partial(tmp_path, "step-*.npz")
    assert sorted(tmp_path.iterdir()) == sorted(others)


def test_mapped_arrays_have_their_space(tmp_path):
    array = new_mapped_array(tmp_path / "array.npy", "float32", (1000, 100))
    assert (tmp_path / "array.npy").stat().st_blocks * 512 >= array.nbytes
    array[:] = 3
    array.flush()
    np.testing.assert_array_equal(np.load(tmp_path / "array.npy"), 3)
    assert new_mapped_array(tmp_path / "empty.npy", "uint8", (0, 4)).shape == (0, 4)


@pytest.mark.parametrize("reserving", [True, False])
def test_a_disk_too_small_says_what_is_missing(small_disk, reserving, monkeypatch):
    if not reserving:
        monkeypatch.delattr(os, "posix_fallocate")
    with pytest.raises(
        OSError, match=r"No space left on device: array.npy needs 2,000,128 bytes where 1,0\d\d,\d\d\d are"
    ):
        new_mapped_array(small_disk / "array.npy", "uint8", (1000, 2000))
    assert not list(small_disk.iterdir())
    monkeypatch.setattr(atomic_file, "_ZEROS", 1000)
    new_mapped_array(small_disk / "array.npy", "uint8", (1000, 1000))[:] = 7
    np.testing.assert_array_equal(np.load(small_disk / "array.npy"), 7)


def test_epochs_that_are_run_again_leave_the_log(tmp_path):
    log = tmp_path / "log.csv"
    drop_epochs(log, 0)
    assert not log.exists()
    lines = ["epoch,loss\r\n", "0,0.50\r\n", "1,0.25\r\n", "2,1e-3\r\n"]
    for first in (3, 1, 0):
        log.write_bytes("".join(lines).encode())
        drop_epochs(log, first)
        assert log.read_bytes().decode() == "".join(lines[: first + 1])


def test_a_line_that_was_cut_off_was_not_written(tmp_path):
    log = tmp_path / "log.csv"
    for written in ("", "epoch,loss\r\n", "epoch,loss\r\n0,0.50\r\n"):
        for cut in ("1", "1,0.2", "1,0.25\r") if written else ("epo",):
            log.write_bytes(f"{written}{cut}".encode())
            assert read_log(log) == ({0: {"epoch": 0, "loss": 0.5}} if "0.50" in written else {})
            drop_epochs(log, 1)
            assert log.read_bytes().decode() == written


@pytest.mark.parametrize("line", ["0,0.5\n1\n", "a,b\n1,2\n", "epoch,loss\n0,much\n"])
def test_a_damaged_log_is_named(tmp_path, line):
    (tmp_path / "log.csv").write_text(line if line.startswith(("a", "e")) else f"epoch,loss\n{line}")
    with pytest.raises(ValueError, match=r"log\.csv must be a log of numbers by epoch"):
        read_log(tmp_path / "log.csv")
