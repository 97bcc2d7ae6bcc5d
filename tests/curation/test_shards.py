import io
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from keras_igpt.curation.pictures import Outcome, artificial, pictures_of, read_square
from keras_igpt.curation.shards import Member, Reading, find_shards, read_member, read_shard


def encoded(side=40, kind="PNG", seed=0, **options):
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side + 2, 3)).astype("uint8")
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, **options)
    return file.getvalue()


def write_tar(path, files):
    with tarfile.open(path, "w") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


@pytest.fixture
def tar(tmp_path):
    files = {}
    for number in range(5):
        files |= {f"{number:03d}.jpg": encoded(seed=number), f"{number:03d}.json": b"{}", f"{number:03d}.txt": b"words"}
    return write_tar(tmp_path / "00000.tar", files)


def read(path):
    reading = Reading()
    (shard,) = find_shards(path)
    return shard, list(read_shard(shard, reading)), reading


def test_a_tar_file_gives_its_pictures_and_counts_the_rest(tar):
    shard, members, reading = read(tar)
    assert [member.key for member in members] == [f"{number:03d}.jpg" for number in range(5)]
    assert [member.data for member in members] == [encoded(seed=number) for number in range(5)]
    assert (reading.others, reading.fault) == (10, "")
    again = members[3]
    assert read_member(shard, again.key, again.offset, again.size) == again.data


@pytest.mark.parametrize("where", ["in a picture", "in a header", "between files"])
def test_a_tar_file_that_is_cut_off_gives_what_comes_before(tar, where):
    _, members, _ = read(tar)
    third = members[2]
    with open(tar, "r+b") as file:
        file.truncate(
            {"in a picture": third.offset + 100, "in a header": third.offset - 100}.get(where, third.offset - 512)
        )
    _, cut, reading = read(tar)
    assert [member.key for member in cut if member.whole] == ["000.jpg", "001.jpg"]
    assert [member.key for member in cut if not member.whole] == (["002.jpg"] if where == "in a picture" else [])
    assert reading.fault


def test_a_tar_file_that_is_damaged_or_empty_says_so(tar, tmp_path):
    _, members, _ = read(tar)
    with open(tar, "r+b") as file:
        file.seek(members[2].offset - 512)
        file.write(b"\xff" * 512)
    _, some, reading = read(tar)
    assert len(some) == 2
    assert "damaged" in reading.fault
    (tmp_path / "empty.tar").touch()
    _, none, reading = read(tmp_path / "empty.tar")
    assert not none
    assert reading.fault


@pytest.mark.parametrize("where", ["in the middle", "to the end", "behind the end"])
def test_zeros_in_place_of_files_are_noticed(tar, where):
    """As in a download that had reserved its space, or in the copy of a sparse file; or where two tars are joined."""
    _, members, reading = read(tar)
    assert not reading.fault
    content = tar.read_bytes()
    start = members[2].offset - 512
    if where == "behind the end":
        tar.write_bytes(content + content)
    else:
        zeros = bytes((len(content) if where == "to the end" else members[3].offset) - start)
        tar.write_bytes(content[:start] + zeros + content[start + len(zeros) :])
    _, some, reading = read(tar)
    assert len(some) == (5 if where == "behind the end" else 2)
    assert reading.fault.startswith("zeros in place of files from byte ")


@pytest.mark.parametrize("record", [512, 1 << 15, 1 << 20])
def test_tars_of_other_records_are_whole(tar, record):
    content = tar.read_bytes()
    end = len(content.rstrip(b"\0"))
    end += -end % 512 + 1024
    tar.write_bytes(content[:end] + bytes(-end % record))
    _, members, reading = read(tar)
    assert (len(members), reading.fault) == (5, "")


def test_a_folder_is_cut_into_shards(tmp_path, monkeypatch):
    monkeypatch.setattr("keras_igpt.curation.shards._FILES_A_SHARD", 2)
    for number in range(5):
        path = tmp_path / "pictures" / str(number % 2) / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(seed=number))
    (tmp_path / "pictures" / "words.txt").write_text("words")
    shards = find_shards(tmp_path / "pictures")
    members = [list(read_shard(shard, Reading())) for shard in shards]
    assert [[member.key for member in some] for some in members] == [
        ["0/0.png", "0/2.png"],
        ["0/4.png", "1/1.png"],
        ["1/3.png"],
    ]
    assert read_member(shards[1], "1/1.png", 0, 0) == encoded(seed=1)
    (tmp_path / "pictures" / "1" / "3.png").unlink()
    (gone,) = read_shard(shards[2], Reading())
    assert read_square(gone, 32, 1, 10**6) == Outcome.BROKEN


def test_linked_folders_are_read_and_hidden_ones_are_not(tmp_path):
    for name in ("web/1/a.png", "web/.trash/b.png", "disk/c.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(encoded())
    (tmp_path / "web" / "2").symlink_to(tmp_path / "disk", target_is_directory=True)
    (tmp_path / "disk" / "up").symlink_to(tmp_path / "web", target_is_directory=True)
    (shard,) = find_shards(tmp_path / "web")
    assert shard.files == ("1/a.png", "2/c.png")


@pytest.mark.parametrize("argument", ["shards", "exclude"])
def test_a_folder_that_cannot_be_read_is_not_passed_over(tmp_path, monkeypatch, argument):
    (tmp_path / "locked").mkdir()
    write_tar(tmp_path / "a.tar", {})
    listdir = os.listdir

    def locked(path):
        if Path(path).name == "locked":
            raise PermissionError(13, "Permission denied", os.fspath(path))
        return listdir(path)

    monkeypatch.setattr(os, "listdir", locked)
    message = rf"`{argument}` must be readable with all folders in it\. Received: .*locked"
    with pytest.raises(ValueError, match=message):
        find_shards(tmp_path, argument)


def test_shards_are_found_in_one_order(tar, tmp_path):
    for name in ("00002", "00001"):
        write_tar(tmp_path / f"{name}.tar", {})
    names = [shard.path for shard in find_shards(tmp_path)]
    assert names == [str(tmp_path / f"0000{number}.tar") for number in range(3)]
    assert find_shards(str(tmp_path / "*.tar")) == find_shards(tmp_path) == find_shards([tmp_path, tar])


@pytest.mark.parametrize(
    ("files", "given", "message"),
    [
        ({}, "absent", "no file at"),
        ({"a.tar.gz": b""}, "a.tar.gz", "not compressed"),
        ({"a.tar": b"", "b.png": b""}, "", "with both"),
        ({"a.txt": b""}, "", "must hold pictures or tar files"),
    ],
)
def test_what_is_no_shard_is_refused(tmp_path, files, given, message):
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        find_shards(tmp_path / given)


def animation(kind):
    frames, file = [Image.new("L", (64, 64), shade) for shade in (0, 255)], io.BytesIO()
    frames[0].save(file, kind, save_all=True, append_images=frames[1:])
    return file.getvalue()


def flat_png(size):
    file = io.BytesIO()
    Image.new("1", size).save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize(
    ("data", "outcome"),
    [
        (b"", Outcome.BROKEN),
        (b"words", Outcome.BROKEN),
        (encoded(kind="JPEG")[:-200], Outcome.BROKEN),
        (encoded(side=31), Outcome.TINY),
        (animation("GIF"), Outcome.ANIMATED),
        (animation("PNG"), Outcome.ANIMATED),
        (animation("WEBP"), Outcome.ANIMATED),
        # Pillow refuses the second one itself.
        (flat_png((10_000, 10_000)), Outcome.HUGE),
        (flat_png((20_000, 10_000)), Outcome.HUGE),
        (None, Outcome.HUGE),
    ],
    ids=str,
)
@pytest.mark.filterwarnings("ignore:Image size")
def test_pictures_are_refused_for_a_reason(data, outcome, monkeypatch):
    monkeypatch.setattr(
        "PIL.ImageFile.ImageFile.load", lambda self: pytest.fail("decoded")
    ) if outcome == Outcome.HUGE else None
    assert read_square(Member("a", 0, 1, data), 32, 32, 50_000_000) == outcome


def test_a_picture_of_a_telephone_is_no_animation():
    views, file = [Image.new("RGB", (64, 64), color) for color in ("red", "blue")], io.BytesIO()
    views[0].save(file, "MPO", save_all=True, append_images=views[1:])
    square = read_square(Member("a", 0, 1, file.getvalue()), 32, 32, 10**6)
    assert np.asarray(square).mean((0, 1))[0] > 200


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP", "GIF"])
def test_a_square_is_that_of_image_files(tmp_path, kind):
    import keras_igpt as igpt

    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        for number in range(12):
            (tmp_path / name / f"{number}.{kind.lower()}").write_bytes(encoded(80, kind))
    expected = igpt.load_image_folder(tmp_path, image_size=32).train.read(0)[0]
    np.testing.assert_array_equal(read_square(Member("a", 0, 1, encoded(80, kind)), 32, 32, 10**6), expected)


def test_artificial_pictures_are_told_from_photographs():
    rows, columns = np.mgrid[:32, :32] / 32
    waves = 128 + 60 * np.sin(9 * rows + 4 * columns) + 40 * np.cos(7 * columns * rows + 1)
    steps = np.where((rows > 0.4) & (columns > 0.3), 250.0, 30.0)
    noise = np.random.default_rng(0).normal(128, 40, (32, 32))
    pictures = [np.full((32, 32), 7.0), 255 * rows * columns, noise, steps, waves]
    squares = np.stack([np.repeat(picture[..., None], 3, -1).clip(0, 255).astype("uint8") for picture in pictures])
    expected = [Outcome.PLAIN, Outcome.PLAIN, Outcome.ROUGH, Outcome.GRAPHIC, Outcome.KEPT]
    assert artificial(squares).tolist() == expected


def test_a_trusted_folder_is_all_of_it(tmp_path):
    """Files of all kinds that folders are read for, linked subfolders too; of the rest it warns."""
    for name in ("set/a.png", "set/b.tif", "set/more/c.TIFF", "elsewhere/d.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.zeros((32, 32, 3), "uint8")).save(tmp_path / name)
    (tmp_path / "set" / "linked").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    (tmp_path / "set" / "notes.txt").touch()
    with pytest.warns(UserWarning, match=r"1 file.*Left out: 1 \.txt"):
        batches = list(pictures_of(tmp_path / "set", 32, 3, "pictures"))
    assert [len(images) for images in batches] == [3, 1]


def test_a_trusted_set_must_be_whole(tar, tmp_path):
    batches = list(pictures_of(tar, 32, 2, "pictures"))
    assert [len(images) for images in batches] == [2, 2, 1]
    with pytest.raises(ValueError, match=r"bad\.png \(BROKEN\)"):
        list(pictures_of(write_tar(tmp_path / "b.tar", {"bad.png": b"words"}), 32, 2, "pictures"))
    with open(tar, "r+b") as file:
        file.truncate(30_000)
    with pytest.raises(ValueError, match=r"readable pictures|must be whole"):
        list(pictures_of(tar, 32, 2, "pictures"))
