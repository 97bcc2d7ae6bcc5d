import io
import json
import os
import resource
from pathlib import Path

import numpy as np
import pytest

from keras_igpt.data import token_shards
from keras_igpt.data.token_shards import TokenShard, TokenShards, write_token_manifest, write_token_shard
from keras_igpt.palette import ColorPalette

TOKENS = np.random.default_rng(0).integers(0, 300, (10, 16))
COUNTS = (3, 0, 5, 2)


@pytest.fixture
def many_colors():
    return ColorPalette(np.random.default_rng(0).uniform(-1, 1, (300, 3)).astype(np.float32))


@pytest.fixture
def folder(tmp_path, many_colors):
    parts = np.split(TOKENS, np.cumsum(COUNTS)[:-1])
    shards = [
        write_token_shard(tmp_path / "web", f"{number}.npy", part, 300, {"tar": f"{number}.tar"})
        for number, part in enumerate(parts)
    ]
    write_token_manifest(tmp_path / "web", shards, many_colors, 4, {"broken": 2})
    return tmp_path / "web"


def test_rows_come_back_from_whatever_shard(folder, many_colors):
    shards = TokenShards(folder)
    assert (shards.shape, shards.dtype, shards.image_size, shards.palette) == ((10, 16), np.uint16, 4, many_colors)
    for rows in (np.arange(10), [9, 0, 0, 4, 3, 2], [7], []):
        np.testing.assert_array_equal(shards[rows], TOKENS[np.array(rows, int)])
    assert shards[[1]].dtype == np.uint16
    assert shards.report == {"broken": 2}
    assert [(shard.file, shard.rows, shard.report["tar"]) for shard in shards.shards] == [
        (f"{number}.npy", count, f"{number}.tar") for number, count in enumerate(COUNTS)
    ]
    np.testing.assert_array_equal(shards[np.arange(10) % 3 == 0], TOKENS[[0, 3, 6, 9]])
    for rows in ([10], [-1], [[0]], [0.5], [True, False]):
        with pytest.raises(IndexError, match="`rows` must be a list of rows in 0…9"):
            shards[rows]


def test_taken_and_joined_rows_are_not_read(folder):
    shards = TokenShards(folder)
    for number in range(4):
        (folder / f"{number}.npy").rename(folder / f"{number}.away")
    taken = shards.take([8, 1, 5]).take([2, 0])
    joined = taken.join(shards)
    whole = shards.join(shards)
    for number in range(4):
        (folder / f"{number}.away").rename(folder / f"{number}.npy")
    np.testing.assert_array_equal(taken[[0, 1]], TOKENS[[5, 8]])
    np.testing.assert_array_equal(joined[np.arange(12)], TOKENS[[5, 8, *range(10)]])
    np.testing.assert_array_equal(whole[np.arange(20)], np.tile(TOKENS, (2, 1)))
    np.testing.assert_array_equal(shards.join(taken)[[9, 10, 11]], TOKENS[[9, 5, 8]])


def test_opening_opens_no_shard_and_reading_keeps_none(tmp_path, many_colors, monkeypatch):
    """Ten million pictures of 64x64, 82 GB, in files that take no space."""
    count, rows = 1000, 10_000
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<u2", "fortran_order": False, "shape": (rows, 4096)})
    for number in range(count):
        with open(tmp_path / f"{number}.npy", "wb") as file:
            file.write(header.getvalue())
            file.truncate(file.tell() + rows * 4096 * 2)
    write_token_manifest(
        tmp_path, [TokenShard(f"{number}.npy", rows, number) for number in range(count)], many_colors, 64
    )
    opened = []

    def noting(path, *arguments, **options):
        opened.append(str(path))
        return open(path, *arguments, **options)

    monkeypatch.setattr(token_shards, "open", noting, raising=False)
    shards = TokenShards(tmp_path)
    assert shards.shape == (count * rows, 4096)
    shards.digest()
    assert not opened
    random = np.random.default_rng(0)
    peaks = []
    for _ in range(2):
        for _ in range(10):
            assert not shards[random.integers(count * rows, size=128)].any()
        peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    assert len(set(opened)) > 800
    # In kilobytes; all rows that were read would be 10 MB each time.
    assert peaks[1] - peaks[0] < 4_000
    if Path("/proc/self/fd").exists():
        assert not [file for file in Path("/proc/self/fd").iterdir() if str(tmp_path) in os.path.realpath(file)]


def test_the_digest_is_that_of_the_tokens(folder, tmp_path, many_colors):
    digest = TokenShards(folder).digest()
    assert digest == TokenShards(folder).digest()
    assert digest != TokenShards(folder).take([1, 0]).digest()
    changed = TOKENS.copy()
    changed[4, 5] = (changed[4, 5] + 1) % 300
    for tokens in (TOKENS, changed):
        shards = [write_token_shard(tmp_path / "b", f"{row}.npy", tokens[row : row + 5], 300) for row in (0, 5)]
        write_token_manifest(tmp_path / "b", shards, many_colors, 4)
        assert TokenShards(tmp_path / "b").digest() != digest
        digest = TokenShards(tmp_path / "b").digest()


def test_the_same_tokens_give_the_same_bytes(folder, tmp_path):
    again = write_token_shard(tmp_path, "0.npy", TOKENS[:3].astype(np.int32), 300)
    assert (tmp_path / "0.npy").read_bytes() == (folder / "0.npy").read_bytes()
    assert again.crc32 == TokenShards(folder).shards[0].crc32


def test_what_is_wrong_with_a_file_is_said_when_it_is_read(folder):
    path = folder / "2.npy"
    content = path.read_bytes()

    def refused(message):
        shards = TokenShards(folder)
        np.testing.assert_array_equal(shards[[0, 9]], TOKENS[[0, 9]])
        with pytest.raises(ValueError, match=f"2.npy .*{message}"):
            shards[[0, 4, 9]]

    path.write_bytes(content[:-1])
    refused("bytes, not")
    path.write_bytes(content[:20])
    refused("")
    path.write_bytes(b"GIF89a" + content)
    refused("magic")
    np.save(path, TOKENS[3:8].astype(np.int32))
    refused("int32 of shape .*, not uint16")
    np.save(path, TOKENS[3:7].astype(np.uint16))
    refused(r"shape \(4, 16\), not uint16 of shape \(5, 16\)")
    np.save(path, np.full((5, 16), 300, np.uint16))
    refused("token 300, where the palette has 300 colours")
    path.unlink()
    refused("No such file")
    path.write_bytes(content)
    shards = TokenShards(folder)
    shards[[3]]
    os.truncate(path, len(content) - 32)
    with pytest.raises(ValueError, match=r"2\.npy .*truncated"):
        shards[[7]]


def test_verifying_finds_what_reading_does_not(folder):
    tokens = TokenShards(folder)
    tokens.verify()
    path = folder / "2.npy"
    content = bytearray(path.read_bytes())
    content[-2] ^= 1  # the low byte of a token
    path.write_bytes(content)
    tokens[np.arange(len(tokens))]
    with pytest.raises(
        ValueError, match=rf"`folder` must hold the files .*Received: {path} \(CRC-32 [0-9a-f]{{8}}, not"
    ):
        tokens.verify()
    path.unlink()
    with pytest.raises(ValueError, match=rf"`folder` must hold the files .*Received: {path} \(.*No such file"):
        tokens.verify()


def test_a_manifest_is_the_last_thing_written(tmp_path, many_colors):
    shard = write_token_shard(tmp_path, "0.npy", TOKENS, 300)
    with pytest.raises(FileNotFoundError, match=r"`folder` must hold token shards and their manifest.json"):
        TokenShards(tmp_path)
    for shards in ([], [shard, shard], [write_token_shard(tmp_path, "1.npy", TOKENS[:0], 300)]):
        with pytest.raises(ValueError, match="`shards` must be different files with at least one row"):
            write_token_manifest(tmp_path, shards, many_colors, 4)
    (tmp_path / "0.npy").unlink()
    with pytest.raises(ValueError, match=r"0\.npy, which is missing"):
        write_token_manifest(tmp_path, [shard], many_colors, 4)


def test_other_manifests_are_refused(folder):
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())

    def refused(message, **changes):
        path.write_text(json.dumps(manifest | changes))
        with pytest.raises(ValueError, match=message):
            TokenShards(folder)

    refused("of version 1. Received: .*manifest.json with .*2", version=2)
    refused("keras_igpt token shards", format="others")
    refused("whole manifest.json. Received: .*manifest.json .*image_size", image_size=0)
    refused("whole manifest.json.*unexpected", shards=[{"name": "0.npy"}])
    refused("without a folder", shards=[{"file": "../0.npy", "rows": 1, "crc32": 0}])
    path.write_text("{")
    with pytest.raises(ValueError, match=r"manifest.json of JSON. Received: .*manifest.json"):
        TokenShards(folder)


@pytest.mark.parametrize(
    ("file", "tokens", "message"),
    [
        ("a/0.npy", TOKENS, "`file` must be names"),
        ("0.bin", TOKENS, "`file` must be names"),
        (".npy", TOKENS, "`file` must be names"),
        ("0.npy", TOKENS[0], r"`token_ids` must have shape \(B, S \* S\)"),
        ("0.npy", TOKENS[:, :15], r"`token_ids` must have shape \(B, S \* S\)"),
        ("0.npy", np.full((2, 16), 300), "`token_ids` must lie in 0…299"),
        ("0.npy", TOKENS / 1, "`token_ids` must be integers"),
    ],
)
def test_what_is_not_a_shard_is_not_written(tmp_path, file, tokens, message):
    with pytest.raises(ValueError, match=message):
        write_token_shard(tmp_path, file, tokens, 300)
    assert not list(tmp_path.iterdir())


def test_writing_a_shard_ends_the_set_first(folder, monkeypatch):
    """A kill before the next manifest leaves no rows to be read under the old one."""
    with pytest.raises(ValueError, match="`token_ids`"):
        write_token_shard(folder, "0.npy", TOKENS[:3] + 300, 300)
    assert len(TokenShards(folder)) == 10
    monkeypatch.setattr(token_shards.np, "save", lambda *arguments: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_token_shard(folder, "0.npy", TOKENS[:3][::-1], 300)
    with pytest.raises(FileNotFoundError, match="which is written last"):
        TokenShards(folder)


def test_a_manifest_is_of_what_the_shards_hold(tmp_path, many_colors):
    shards = [write_token_shard(tmp_path, f"{number}.npy", TOKENS, 300) for number in (0, 1)]
    others = {
        "another size": (ColorPalette(many_colors.centroids), 8),
        "tokens of another type": (ColorPalette(many_colors.centroids[:256]), 4),
        "as many bytes a token": (ColorPalette(many_colors.centroids[:299]), 4),
    }
    for palette, image_size in others.values():
        with pytest.raises(ValueError, match=r"`shards` must be .*`image_size`=.*`palette`\. Received: .*0\.npy"):
            write_token_manifest(tmp_path, shards, palette, image_size)
    with pytest.raises(ValueError, match="`palette` must be a ColorPalette"):
        write_token_manifest(tmp_path, shards, "palette.npy", 4)
    assert not (tmp_path / "manifest.json").exists()
    # Entries as earlier versions have them, from anything that yields them.
    write_token_manifest(tmp_path, (TokenShard(shard.file, 10, shard.crc32) for shard in shards), many_colors, 4)
    opened = TokenShards(tmp_path)
    assert len(opened) == 20
    assert list(opened.shards) == shards
    entry = json.loads((tmp_path / "manifest.json").read_text())["shards"][0]
    assert entry.keys() == {"file", "rows", "crc32", "report"}  # what earlier versions read


def test_a_number_of_colors_is_an_integer(tmp_path):
    with pytest.raises(ValueError, match="`num_colors` must be an integer"):
        write_token_shard(tmp_path, "0.npy", TOKENS, 300.0)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("report", [{"counted": np.int64(3)}, {"share": float("nan")}, ["kept"]])
def test_reports_that_are_no_json_are_named(tmp_path, many_colors, report):
    with pytest.raises(ValueError, match="`report` must be a dictionary of JSON values"):
        write_token_shard(tmp_path, "0.npy", TOKENS, 300, report)
    assert not list(tmp_path.iterdir())
    shard = write_token_shard(tmp_path, "0.npy", TOKENS, 300)
    with pytest.raises(ValueError, match="`report` must be a dictionary of JSON values"):
        write_token_manifest(tmp_path, [shard], many_colors, 4, report)
