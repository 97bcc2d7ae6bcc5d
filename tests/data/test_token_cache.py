import json
import multiprocessing
import subprocess
import warnings
from pathlib import Path

import numpy as np
import pytest

import keras_igpt as igpt
from keras_igpt.data import ImageFiles, LabeledImages, token_cache
from keras_igpt.data.image_files import FolderReader

Image = pytest.importorskip("PIL.Image")


@pytest.fixture
def files(tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    random = np.random.default_rng(0)
    for index in range(10):
        Image.fromarray(random.integers(0, 256, (5, 6, 3)).astype("uint8")).save(folder / f"{index}.png")
    return ImageFiles(FolderReader(sorted(folder.iterdir()), list(range(10))), 4)


@pytest.fixture
def reads(files, monkeypatch):
    counted: list = []
    original = ImageFiles.read

    def read(self, row, *rest):
        # Threads of a test before may still be reading files of theirs.
        if self._reader is files._reader:
            counted.append(row)
        return original(self, row, *rest)

    monkeypatch.setattr(ImageFiles, "read", read)
    return counted


def assert_right(tokens, files, palette):
    loaded = files.load()
    np.testing.assert_array_equal(tokens.token_ids, palette.encode(loaded.images))
    np.testing.assert_array_equal(tokens.labels, loaded.labels)


def test_pictures_are_decoded_once(tmp_path, files, palette, reads, capsys):
    made = igpt.cache_tokens(files, palette, tmp_path / "cache")
    assert len(reads) == 10
    assert "10/10" in capsys.readouterr().out
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = igpt.cache_tokens(files, palette, tmp_path / "cache")
    assert len(reads) == 10
    assert isinstance(again.token_ids, np.memmap)
    assert again.token_ids.dtype == np.uint8
    np.testing.assert_array_equal(made.token_ids, again.token_ids)
    assert_right(again, files, palette)
    assert {path.name for path in (tmp_path / "cache").iterdir()} == {"tokens.npy", "labels.npy", "manifest.json"}


def test_arrays_have_caches_too(tmp_path, files, palette):
    images = files.load()
    tokens = igpt.cache_tokens(images, palette, tmp_path / "cache")
    assert_right(tokens, files, palette)
    changed = images.images.copy()
    changed[3, 0, 0, 0] ^= 255
    with pytest.warns(UserWarning, match="another examples"):
        igpt.cache_tokens(LabeledImages(changed, images.labels), palette, tmp_path / "cache")


def test_a_cache_of_something_else_is_made_anew(tmp_path, files, palette, reads):
    folder = tmp_path / "cache"
    igpt.cache_tokens(files, palette, folder)
    other = igpt.ColorPalette.from_colors(palette.colors[::-1])
    for examples, colors, fault in (
        (files, other, "another palette"),
        (files.take(np.arange(9)), other, "another examples and count"),
        (ImageFiles(files._reader, 3), other, "another examples and count and image_size"),
    ):
        reads.clear()
        with pytest.warns(UserWarning, match=f"rebuilt: it was made from {fault}"):
            tokens = igpt.cache_tokens(examples, colors, folder)
        assert len(reads) == len(examples)
        assert_right(tokens, examples, colors)
    picture = tmp_path / "pictures" / "0.png"
    Image.fromarray(np.zeros((7, 7, 3), "uint8")).save(picture)
    igpt_files = ImageFiles(files._reader, 3)
    with pytest.warns(UserWarning, match="another examples"):
        tokens = igpt.cache_tokens(igpt_files, other, folder)
    assert_right(tokens, igpt_files, other)


@pytest.mark.parametrize("name", ["tokens.npy", "labels.npy", "manifest.json"])
@pytest.mark.parametrize("harm", ["flip", "truncate", "remove"])
def test_a_damaged_cache_is_made_anew(tmp_path, files, palette, name, harm):
    folder = tmp_path / "cache"
    igpt.cache_tokens(files, palette, folder)
    path = folder / name
    content = bytearray(path.read_bytes())
    if harm == "flip":
        content[-3] ^= 255
        path.write_bytes(content)
    elif harm == "truncate":
        path.write_bytes(content[: len(content) // 2])
    else:
        path.unlink()
    with pytest.warns(UserWarning, match="rebuilt"):
        tokens = igpt.cache_tokens(files, palette, folder)
    assert_right(tokens, files, palette)


def test_killed_work_goes_on_where_it_was(tmp_path, files, palette, reads, monkeypatch):
    monkeypatch.setattr(token_cache, "_CHUNK", 3)
    encode = igpt.ColorPalette.encode
    calls = []

    def die_in_the_third(self, images):
        calls.append(len(images))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return encode(self, images)

    with monkeypatch.context() as patch:
        patch.setattr(igpt.ColorPalette, "encode", die_in_the_third)
        with pytest.raises(KeyboardInterrupt):
            igpt.cache_tokens(files, palette, tmp_path / "cache")
    assert not (tmp_path / "cache").exists()
    assert json.loads((tmp_path / ".cache.tokens-unfinished" / "progress.json").read_text())["done"] == 6
    reads.clear()
    tokens = igpt.cache_tokens(files, palette, tmp_path / "cache")
    assert sorted(reads) == [6, 7, 8, 9]
    assert_right(tokens, files, palette)
    assert not (tmp_path / ".cache.tokens-unfinished").exists()


def test_unfinished_work_on_something_else_is_not_gone_on_with(tmp_path, files, palette, monkeypatch):
    monkeypatch.setattr(token_cache, "_CHUNK", 3)
    with monkeypatch.context() as patch:
        patch.setattr(token_cache, "_checksum", lambda path: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            igpt.cache_tokens(files, palette, tmp_path / "cache")
    other = igpt.ColorPalette.from_colors(palette.colors[::-1])
    assert_right(igpt.cache_tokens(files, other, tmp_path / "cache"), files, other)


def test_a_folder_of_something_else_is_left_alone(tmp_path, files, palette):
    with pytest.raises(ValueError, match=r"`folder` must be a token cache.*pictures"):
        igpt.cache_tokens(files, palette, tmp_path / "pictures")
    assert len(list((tmp_path / "pictures").iterdir())) == 10
    project = tmp_path / "project"
    project.mkdir()
    (project / "manifest.json").write_text("{}")
    (project / "thesis.tex").write_text("years of work")
    with pytest.raises(ValueError, match="`folder` must be a token cache"):
        igpt.cache_tokens(files, palette, project)
    assert (project / "thesis.tex").exists()


@pytest.mark.parametrize("moment", [0, 1, 2])
def test_killed_while_the_finished_cache_is_put_in_place(tmp_path, files, palette, reads, monkeypatch, moment):
    """At each of the renames at the end, over an old cache."""
    other = igpt.ColorPalette.from_colors(palette.colors[::-1])
    folder = tmp_path / "cache"
    igpt.cache_tokens(files, other, folder)
    replace, calls = token_cache.os.replace, []

    def die(source, target):
        if Path(target).parent == tmp_path:
            calls.append(target)
            if len(calls) == moment + 1:
                raise KeyboardInterrupt
        replace(source, target)

    def die_at_unlink(self, **arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        if moment < 2:
            patch.setattr(token_cache.os, "replace", die)
        else:
            patch.setattr(token_cache.Path, "unlink", die_at_unlink)
        with pytest.raises(KeyboardInterrupt), pytest.warns(UserWarning, match="rebuilt"):
            igpt.cache_tokens(files, palette, folder)
    reads.clear()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tokens = igpt.cache_tokens(files, palette, folder)
    assert reads == []
    assert_right(tokens, files, palette)


def test_damaged_notes_of_progress_start_the_work_again(tmp_path, files, palette, monkeypatch):
    monkeypatch.setattr(token_cache, "_CHUNK", 3)
    for damage in (
        lambda partial: (partial / "progress.json").write_text(""),
        lambda partial: (partial / "labels.npy").unlink(),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(token_cache, "_checksum", lambda path: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                igpt.cache_tokens(files, palette, tmp_path / "cache")
        damage(tmp_path / ".cache.tokens-unfinished")
    with pytest.warns(UserWarning, match="is restarted: .*labels.npy"):
        tokens = igpt.cache_tokens(files, palette, tmp_path / "cache")
    assert_right(tokens, files, palette)


@pytest.mark.parametrize(
    "manifest",
    [
        "[]",
        "{}",
        '{"made_of": [], "checksums": {}}',
        '{"made_of": null, "checksums": null}',
        "[" * 100_000,
        # Believed once, whatever the files were.
        {"checksums": {}},
        {"checksums": {"tokens.npy": 0}},
        {"checksums": ["tokens.npy", "labels.npy"]},
    ],
)
def test_a_damaged_manifest_is_not_believed(tmp_path, files, palette, manifest):
    folder = tmp_path / "cache"
    igpt.cache_tokens(files, palette, folder)
    path = folder / "manifest.json"
    written = json.loads(path.read_text())
    path.write_text(manifest if isinstance(manifest, str) else json.dumps({**written, **manifest}))
    (folder / "tokens.npy").write_bytes(b"other things")
    with pytest.warns(UserWarning, match="rebuilt: its manifest is missing or cannot be read"):
        tokens = igpt.cache_tokens(files, palette, folder)
    assert_right(tokens, files, palette)


@pytest.mark.parametrize("done", [None, "6", [], 11, -3, {}])
def test_damaged_progress_is_not_believed(tmp_path, files, palette, monkeypatch, done):
    with monkeypatch.context() as patch:
        patch.setattr(token_cache, "_checksum", lambda path: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            igpt.cache_tokens(files, palette, tmp_path / "cache")
    progress = tmp_path / ".cache.tokens-unfinished" / "progress.json"
    state = json.loads(progress.read_text())
    del state["done"]
    progress.write_text(json.dumps(state if done is None else {**state, "done": done}))
    np.save(tmp_path / ".cache.tokens-unfinished" / "tokens.npy", np.zeros((10, 16), "uint8"))
    assert_right(igpt.cache_tokens(files, palette, tmp_path / "cache"), files, palette)


def test_unfinished_arrays_of_another_kind_are_not_gone_on_with(tmp_path, files, palette, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(token_cache, "_checksum", lambda path: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            igpt.cache_tokens(files, palette, tmp_path / "cache")
    np.save(tmp_path / ".cache.tokens-unfinished" / "tokens.npy", np.zeros((9, 16), "uint8"))
    with pytest.warns(UserWarning, match="is restarted: arrays of another kind"):
        assert_right(igpt.cache_tokens(files, palette, tmp_path / "cache"), files, palette)


def test_labels_are_those_of_the_examples(tmp_path, files, palette, reads):
    """The same files in other classes, without reading them again."""
    igpt.cache_tokens(files, palette, tmp_path / "cache")
    others = ImageFiles(FolderReader(files._reader._files, [3] * 10), 4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tokens = igpt.cache_tokens(others, palette, tmp_path / "cache")
    assert len(reads) == 10
    assert tokens.labels.tolist() == [3] * 10
    assert_right(tokens, others, palette)


def test_labels_of_work_that_was_gone_on_with_are_those_of_the_examples(tmp_path, files, palette, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(token_cache, "_checksum", lambda path: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            igpt.cache_tokens(files, palette, tmp_path / "cache")
    others = ImageFiles(FolderReader(files._reader._files, [3] * 10), 4)
    assert igpt.cache_tokens(others, palette, tmp_path / "cache").labels.tolist() == [3] * 10
    assert np.load(tmp_path / "cache" / "labels.npy").tolist() == [3] * 10


def test_links_that_were_planted_are_not_followed(tmp_path, files, palette):
    victim = tmp_path / "victim"
    victim.mkdir()
    for name in ("thesis.tex", "tokens.npy"):
        (victim / name).write_text("years of work")
    lock = tmp_path / ".cache.tokens-lock"
    lock.symlink_to(victim / "thesis.tex")
    with pytest.raises(ValueError, match=r"`folder` must not have a link in place of its lock file. .*tokens-lock"):
        igpt.cache_tokens(files, palette, tmp_path / "cache")
    lock.unlink()
    for purpose in ("unfinished", "replaced"):
        (tmp_path / f".cache.tokens-{purpose}").symlink_to(victim)
    assert_right(igpt.cache_tokens(files, palette, tmp_path / "cache"), files, palette)
    # A folder that somebody else has prepared.
    unfinished = tmp_path / ".other.tokens-unfinished"
    unfinished.mkdir()
    (unfinished / "tokens.npy").symlink_to(victim / "tokens.npy")
    assert_right(igpt.cache_tokens(files, palette, tmp_path / "other"), files, palette)
    assert {path.read_text() for path in victim.iterdir()} == {"years of work"}


def test_what_a_kill_leaves_in_unfinished_work_is_removed(tmp_path, files, palette, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(token_cache, "_checksum", lambda path: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            igpt.cache_tokens(files, palette, tmp_path / "cache")
    (tmp_path / ".cache.tokens-unfinished" / ".partial-progress.json-x1y2").mkdir()
    igpt.cache_tokens(files, palette, tmp_path / "cache")
    assert len(list((tmp_path / "cache").iterdir())) == 3


def test_a_finished_cache_opens_where_nothing_can_be_written(files, palette, small_disk):
    made = igpt.cache_tokens(files, palette, small_disk / "cache")
    (small_disk / ".cache.tokens-lock").unlink()
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    opened = igpt.cache_tokens(files, palette, small_disk / "cache")
    np.testing.assert_array_equal(opened.token_ids, made.token_ids)
    with pytest.raises(
        OSError, match=r"Read-only file system, and there is no such cache \(it was made from another ex"
    ):
        igpt.cache_tokens(files.take(range(3)), palette, small_disk / "cache")


def test_a_disk_too_small_is_found_before_anything_is_encoded(palette, small_disk, monkeypatch):
    monkeypatch.setattr(igpt.ColorPalette, "encode", lambda self, images: 1 / 0)
    images = LabeledImages(np.zeros((300, 64, 64, 3), "uint8"), np.zeros(300, int))
    with pytest.raises(OSError, match=r"No space left on device: tokens.npy needs 1,228,928 bytes where"):
        igpt.cache_tokens(images, palette, small_disk / "cache")
    assert [path.name for path in small_disk.iterdir()] == [".cache.tokens-lock"]


def test_a_cache_is_of_the_pictures_however_their_paths_are_spelled(tmp_path, files, palette, reads, monkeypatch):
    monkeypatch.chdir(tmp_path)
    relative = ImageFiles(FolderReader(sorted(Path("pictures").iterdir()), list(range(10))), 4)
    assert relative.digest() == files.digest()
    igpt.cache_tokens(relative, palette, "cache")
    reads.clear()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_right(igpt.cache_tokens(files, palette, "cache"), relative, palette)
    assert reads == []


def test_what_cannot_be_cached_leaves_nothing(tmp_path, files, palette):
    grey = igpt.ColorPalette.from_colors(np.array([[0], [255]], "uint8"))
    images = files.load()
    for examples, colors, message in (
        (files.take([]), palette, "`examples` must not be empty"),
        (files, grey, r"`palette` must have the examples' 3 channel\(s\). Received: 1"),
        (images, grey, r"`palette` must have the examples' 3 channel\(s\). Received: 1"),
        (files, "palette.npy", "`palette` must be a ColorPalette .* Received: str"),
        (images, None, "`palette` must be a ColorPalette .* Received: NoneType"),
    ):
        with pytest.raises(ValueError, match=message):
            igpt.cache_tokens(examples, colors, tmp_path / "new" / "cache")
    assert [path.name for path in tmp_path.iterdir()] == ["pictures"]


def test_an_empty_folder_is_no_cache_that_is_rebuilt(tmp_path, files, palette):
    (tmp_path / "cache").mkdir()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_right(igpt.cache_tokens(files, palette, tmp_path / "cache"), files, palette)


def make_cache(files, palette, folder, reads):
    original = ImageFiles.read

    def counted(self, row, *rest):
        with reads.get_lock():
            reads.value += 1
        return original(self, row, *rest)

    ImageFiles.read = counted
    igpt.cache_tokens(files, palette, folder)


def test_of_several_processes_one_does_the_work(tmp_path, files, palette, monkeypatch):
    # NumPy's work on any backend, and JAX is the quickest to import.
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    context = multiprocessing.get_context("spawn")
    reads = context.Value("i", 0)
    arguments = (files, palette, tmp_path / "cache", reads)
    processes = [context.Process(target=make_cache, args=arguments) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    assert reads.value == 10
    assert_right(igpt.cache_tokens(files, palette, tmp_path / "cache"), files, palette)
