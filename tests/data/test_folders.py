from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from keras_igpt.data.folders import check_no_picture_twice, files_in, pictures_in


def write(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(path)


def test_what_links_reach_too_has_its_real_name(tmp_path):
    write(tmp_path / "set" / "z" / "1.png")
    write(tmp_path / "elsewhere" / "2.png")
    (tmp_path / "set" / "a").symlink_to(tmp_path / "set" / "z", target_is_directory=True)
    (tmp_path / "set" / "b").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    (tmp_path / "set" / "z" / "round").symlink_to(tmp_path / "set", target_is_directory=True)
    files = dict(files_in(tmp_path / "set", "folder"))
    assert sorted(files) == [tmp_path / "set" / name for name in ("b/2.png", "z/1.png")]
    assert all(status.st_size == path.stat().st_size for path, status in files.items())


def test_where_files_have_no_numbers_none_is_passed_over(tmp_path, monkeypatch):
    for name in ("1/1.png", "2/2.png", "2/3.png"):
        write(tmp_path / name)
    stat = Path.stat
    without = {name: 0 for name in ("st_ino", "st_dev")}
    monkeypatch.setattr(
        Path,
        "stat",
        lambda path, **options: SimpleNamespace(**{"st_mode": stat(path, **options).st_mode, "st_size": 1, **without}),
    )
    assert [path.name for path in pictures_in(tmp_path, "folder")] == ["1.png", "2.png", "3.png"]
    one, two = ([(tmp_path / name, pictures_in(tmp_path / name, "folder"))] for name in ("1", "2"))
    check_no_picture_twice(one, two)


def test_files_that_are_hidden_or_lead_nowhere(tmp_path):
    write(tmp_path / "1.png")
    write(tmp_path / ".trash" / "2.png")
    write(tmp_path / ".3.png")
    (tmp_path / "lost.png").symlink_to(tmp_path / "nowhere.png")
    assert {path.name: status is None for path, status in files_in(tmp_path, "folder")} == {
        "1.png": False,
        "lost.png": True,
    }
    with pytest.warns(UserWarning, match="1 broken link"):
        assert pictures_in(tmp_path, "folder") == [tmp_path / "1.png"]


def test_a_missing_folder_is_named_by_its_argument(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"`PICTURE` must be an existing folder\. Received: .*absent"):
        pictures_in(tmp_path / "absent", "PICTURE")
