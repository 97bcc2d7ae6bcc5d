"""Whose run is in a folder: the same command goes on with it, another is refused and changes nothing."""

import json
import shutil
from argparse import Namespace

import keras
import numpy as np
import pytest
from PIL import Image
from tiny import SIZES, make_folders

import keras_igpt as igpt
from keras_igpt.commands.main import main
from keras_igpt.commands.run_folder import ConfigOnceAccepted
from keras_igpt.commands.shared import has_classes, load_training_pictures
from keras_igpt.support.files import held


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return make_folders(tmp_path_factory)


@pytest.fixture(scope="module")
def command(folders):
    return ["pretrain", "--images", folders.flat, *SIZES, "--epochs", "2"]


@pytest.fixture(scope="module")
def finished(command, tmp_path_factory):
    output = tmp_path_factory.mktemp("finished")
    main([*command, "--output", str(output)])
    return output


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_another_command_is_refused_before_it_trains_or_writes(command, finished, folders, tmp_path):
    before = contents(finished)
    (tmp_path / "others").mkdir()
    for number in range(40):
        Image.open(f"{folders.flat}/dark-{number % 20}.png").rotate(90).save(tmp_path / "others" / f"{number}.png")
    ends = "a new run needs another --output. Received: "
    for change, message in (
        (["--epochs", "3", "--rates", "0.01"], f", 2; {ends}3"),
        (["--rates", "0.01", "0.003"], f"--rates must be that of the run in .*, 0.003; {ends}0.01 0.003"),
        (["--epoch-steps", "2"], f"--epoch-steps must be that of the run in .*; {ends}2"),
        (["--seed", "1"], f"--seed must be .*, 0; {ends}1"),
        (["--images", str(tmp_path / "others")], f"--images must be that of the run in .*; {ends}.* other pictures"),
    ):
        with pytest.raises(SystemExit, match=message):
            main([*command, *change, "--output", str(finished)])
        assert contents(finished) == before


def test_a_run_of_an_earlier_version_goes_on(command, finished, tmp_path, capsys):
    output = tmp_path / "earlier"
    shutil.copytree(finished, output)
    config = json.loads((output / "config.json").read_text())
    # A command that was refused has left its epochs there.
    earlier = {**config, "epochs": 3}
    del earlier["data"]
    (output / "config.json").write_text(json.dumps(earlier))
    before = contents(output)
    with pytest.raises(SystemExit, match="--output must hold checkpoints of a training with these settings"):
        main([*command, "--rates", "0.01", "--output", str(output)])
    assert contents(output) == before
    main([*command, "--output", str(output)])
    assert "is the end of its training of 2 epochs" in capsys.readouterr().out
    assert json.loads((output / "config.json").read_text()) == earlier


def test_a_finished_run_keeps_its_settings(command, finished, tmp_path, capsys):
    shutil.copytree(finished, tmp_path / "run")
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    elsewhere = {**config, "backend": "another", "keras_igpt": "0.0.1"}
    (tmp_path / "run" / "config.json").write_text(json.dumps(elsewhere))
    main([*command, "--output", str(tmp_path / "run")])
    assert "Finished" in capsys.readouterr().out
    assert json.loads((tmp_path / "run" / "config.json").read_text()) == elsewhere


def test_a_palette_that_was_given_is_that_of_the_run(command, folders, tmp_path, monkeypatch):
    palette, output = tmp_path / "mine.npy", tmp_path / "run"
    igpt.ColorPalette.from_colors(np.arange(24, dtype="uint8").reshape(8, 3)).save(palette)
    without = command[: command.index("--colors")] + command[command.index("--colors") + 2 :]

    def crash(self, epoch, logs=None):
        if epoch == 1:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(ConfigOnceAccepted, "on_epoch_end", crash)
        with pytest.raises(KeyboardInterrupt):
            main([*without, "--epoch-steps", "1", "--palette", str(palette), "--output", str(output)])
    first = json.loads((output / "config.json").read_text())
    main([*command, "--epoch-steps", "1", "--output", str(output)])
    for config in (first, json.loads((output / "config.json").read_text())):
        assert (config["palette"], config["colors"]) == (str(palette), 8)


@pytest.mark.parametrize("name", ["pretrain", "finetune", "search"])
def test_one_process_trains_in_a_folder(name, command, finished, folders, tmp_path):
    if name == "search":
        pytest.importorskip("keras_tuner")
    labelled = [*("--images", folders.classes, "--batch-size", "8"), *("--model", str(finished / "igpt.keras"))]
    words = command if name == "pretrain" else [name, *labelled]
    refused = pytest.raises(SystemExit, match="--output must be a folder that no other process is writing to")
    with held(tmp_path, "--output"), refused:
        main([*words, "--output", str(tmp_path)])
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]
    with held(tmp_path, "--output"):  # it was let go
        pass


def test_a_fine_tuning_takes_nothing_of_one_without_checkpoints(finished, folders, tmp_path):
    """Its best weights, and the epochs in its log, are those of another run."""
    output = tmp_path / "finetune"
    finetune = ["finetune", "--images", folders.classes, "--batch-size", "8", "--model", str(finished / "igpt.keras")]
    finetune += ["--epochs", "1", "--output", str(output)]
    main([*finetune, "--rate", "0.01"])
    shutil.rmtree(output / "checkpoints")
    with pytest.raises(SystemExit, match=r"that of a run with its checkpoints.*where classifier\.keras is"):
        main([*finetune, "--rate", "1e-07"])
    (output / "classifier.keras").unlink()
    # Nothing would be better.
    log = (output / "log.csv").read_text().splitlines()
    log[1] = ",".join("1.0" if name == "val_accuracy" else "0" for name in log[0].split(","))
    (output / "log.csv").write_text("\n".join([*log, log[1].replace("0", "1", 1)]) + "\n")
    main([*finetune, "--rate", "1e-07"])
    fresh = tmp_path / "fresh"
    main([*finetune[:-1], str(fresh), "--rate", "1e-07"])
    ours, expected = (keras.saving.load_model(folder / "classifier.keras") for folder in (output, fresh))
    for weight, other in zip(ours.get_weights(), expected.get_weights(), strict=True):
        np.testing.assert_array_equal(weight, other)
    assert (output / "results.json").read_text() == (fresh / "results.json").read_text()


def test_the_palette_is_that_of_the_run_alone(command, folders, tmp_path):
    with pytest.raises(SystemExit, match=r"--heads must divide --width. Received: --heads 3"):
        main([*command, "--heads", "3", "--output", str(tmp_path)])
    assert not list(tmp_path.iterdir())
    with pytest.raises(SystemExit, match=r"--seed must be an integer in 0…4294967295\. Received: --seed -1"):
        main([*command, "--seed", "-1", "--output", str(tmp_path)])
    # By hand.
    mine = igpt.ColorPalette.from_colors(np.arange(24, dtype="uint8").reshape(8, 3))
    mine.save(tmp_path / "palette.npy")
    with pytest.raises(SystemExit, match=rf"to take them, --palette {tmp_path}/palette.npy\. Received: {tmp_path}"):
        main([*command, "--output", str(tmp_path)])
    assert igpt.ColorPalette.load(tmp_path / "palette.npy") == mine
    (tmp_path / "palette.npy").unlink()
    main([*command, "--output", str(tmp_path)])
    palette = keras.saving.load_model(tmp_path / "igpt.keras", compile=False).palette
    assert palette.num_colors == 8
    assert igpt.ColorPalette.load(tmp_path / "palette.npy") == palette


def test_a_run_that_trained_nothing_binds_nobody(command, finished, folders, tmp_path, monkeypatch):
    finetune = ["finetune", "--images", folders.classes, "--batch-size", "8", "--epochs", "1"]
    model = ["--model", str(finished / "igpt.keras")]

    def fail(self, batch, logs=None):
        raise MemoryError

    with monkeypatch.context() as patched:
        patched.setattr(igpt.ExactResume, "on_train_batch_end", fail)
        for name, words in (("pretrain", command), ("finetune", [*finetune, "--rate", "0.1", *model])):
            with pytest.raises(MemoryError):
                main([*words, "--output", str(tmp_path / name)])
            assert (tmp_path / name / "config.json").is_file()
    main([*command, "--colors", "7", "--seed", "3", "--output", str(tmp_path / "pretrain")])
    other = ["--model", str(tmp_path / "pretrain" / "igpt.keras")]
    main([*finetune, *other, "--output", str(tmp_path / "finetune")])
    config = json.loads((tmp_path / "finetune" / "config.json").read_text())
    assert (config["model"], config["rate"]) == (other[1], 0.0003)


@pytest.mark.parametrize("other", ["finetune", "probe", "low-data", "search", "palette", "quickstart"])
def test_a_folder_of_another_command_is_refused(other, finished, folders):
    if other == "search":
        pytest.importorskip("keras_tuner")
    before = contents(finished)
    options = ["--images", folders.classes]
    if other not in ("palette", "quickstart"):
        options += ["--batch-size", "8", "--model", str(finished / "igpt.keras")]
    with pytest.raises(SystemExit, match=r"--output must be a folder of its own\. .*, that of `keras-igpt pretrain`"):
        main([other, *options, "--output", str(finished)])
    assert contents(finished) == before


def test_a_search_that_has_begun_keeps_its_palette(command, tmp_path, monkeypatch):
    pytest.importorskip("keras_tuner")
    # The first diverges.
    search = [*command, "--rates", "10", "0.01", "--seed", "3", "--output", str(tmp_path)]

    def crash(self, epoch, logs=None):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(ConfigOnceAccepted, "on_epoch_begin", crash)
        with pytest.raises(KeyboardInterrupt):
            main(search)
    assert not (tmp_path / "config.json").exists()
    with pytest.raises(SystemExit, match=r"--colors must be that of the run in .*, 8; a new run .* Received: 9"):
        main([*search, "--colors", "9"])
    main(search)
    config = json.loads((tmp_path / "config.json").read_text())
    assert (config["rates"], config["learning_rate"]) == ([10, 0.01], 0.01)
    optimizer = keras.saving.load_model(tmp_path / "igpt.keras").optimizer.get_config()
    assert optimizer["learning_rate"]["config"]["warmup_target"] == 0.01
    searched = json.loads((tmp_path / "search" / "trials.json").read_text())["search"]
    assert (searched["seed"], searched["batches"]["seed"]) == (3, 3)


def test_a_fine_tuning_goes_on_from_its_own_model_alone(finished, folders, tmp_path, capsys):
    other = keras.saving.load_model(finished / "igpt.keras", compile=False)
    other.pixel_head.kernel.assign(other.pixel_head.kernel + 1.0)
    other.save(tmp_path / "other.keras")
    shutil.copy(finished / "igpt.keras", tmp_path / "copy.keras")
    output = tmp_path / "finetune"
    finetune = ["finetune", "--images", folders.classes, "--batch-size", "8", "--output", str(output)]
    main([*finetune, "--epochs", "2", "--model", str(finished / "igpt.keras")])
    before = contents(output)
    with pytest.raises(SystemExit, match=r"--model must be that of the run in .* Received: .*other.keras, with other"):
        main([*finetune, "--epochs", "2", "--model", str(tmp_path / "other.keras")])
    with pytest.raises(SystemExit, match=r"--epochs must be at least 2, .* Received: 1"):
        main([*finetune, "--epochs", "1", "--model", str(finished / "igpt.keras")])
    with pytest.raises(SystemExit, match="--output must hold checkpoints of a training with these settings"):
        main([*finetune, "--epochs", "3", "--rate", "0.01", "--model", str(finished / "igpt.keras")])
    assert contents(output) == before
    config = json.loads((output / "config.json").read_text())
    # Earlier versions did not say from which weights a run began.
    earlier = {name: value for name, value in config.items() if name != "language_model_weights"}
    (output / "config.json").write_text(json.dumps(earlier))
    capsys.readouterr()
    main([*finetune, "--epochs", "2", "--model", str(tmp_path / "copy.keras")])
    assert "Finished: all 2 epochs are done" in capsys.readouterr().out
    assert json.loads((output / "config.json").read_text()) == earlier


def test_no_picture_is_dropped_without_labels(folders, tmp_path):
    def counted(folder):
        options = Namespace(images=str(folder), dataset=None, data_dir=None, skip_unreadable=False, seed=0)
        train, validation = load_training_pictures(options, image_size=4)
        return len(train) + len(validation), has_classes(options)

    pictures = tmp_path / "pictures"
    shutil.copytree(folders.flat, pictures)
    for hidden in (".thumbnails", ".cache"):
        (pictures / hidden).mkdir()
    assert counted(pictures) == (40, False)
    shutil.copytree(f"{folders.classes}/dark", pictures / "dark")
    assert counted(pictures) == (60, False)
    shutil.copytree(f"{folders.classes}/bright", pictures / "bright")
    with pytest.warns(UserWarning, match=r"--images has 40 picture\(s\) beside its 2 subfolders"):
        assert counted(pictures) == (80, False)
    for path in pictures.glob("*.png"):
        path.unlink()
    (pictures / "notes.txt").write_text("no picture")
    # A tenth of each class is kept for a test.
    assert counted(pictures) == (36, True)
