"""The commands, one after the other, as a person with a folder of pictures calls them."""

import json
from types import SimpleNamespace

import keras
import numpy as np
import pytest
from PIL import Image

import keras_igpt as igpt
from keras_igpt.commands.finetune import StopAfterBest, best_epoch, epochs_to_train
from keras_igpt.commands.main import COMMANDS, main, make_parser
from keras_igpt.commands.shared import TimeLeft, read_log

SIZES = ["--image-size", "4", "--colors", "8", "--layers", "1", "--heads", "1", "--width", "8", "--batch-size", "8"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Twenty pictures of each of two classes, dark and bright, with and without folders for them."""
    classes, flat = tmp_path_factory.mktemp("classes"), tmp_path_factory.mktemp("flat")
    random = np.random.default_rng(0)
    for label, name in enumerate(("dark", "bright")):
        (classes / name).mkdir()
        for number in range(20):
            pixels = random.integers(128 * label, 128 * (label + 1), (6, 6, 3)).astype("uint8")
            Image.fromarray(pixels).save(classes / name / f"{number}.png")
            Image.fromarray(pixels).save(flat / f"{name}-{number}.png")
    return SimpleNamespace(classes=str(classes), flat=str(flat))


@pytest.fixture(scope="module")
def pretrained(folders, tmp_path_factory):
    output = tmp_path_factory.mktemp("pretrained")
    main(["pretrain", "--images", folders.flat, *SIZES, "--epochs", "2", "--output", str(output)])
    return output


def test_pretraining_on_a_flat_folder(pretrained, folders, capsys):
    assert {"igpt.keras", "log.csv", "loss_curves.png", "samples.png", "palette.npy"} <= {
        path.name for path in pretrained.iterdir()
    }
    assert json.loads((pretrained / "config.json").read_text())["pictures"] == 36
    written = (pretrained / "log.csv").read_text()
    # Finished: the same command changes nothing, one with more colours is refused before anything is trained.
    main(["pretrain", "--images", folders.flat, *SIZES, "--epochs", "2", "--output", str(pretrained)])
    assert (pretrained / "log.csv").read_text() == written
    assert "8 steps of 128 tokens" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="keras-igpt pretrain: --colors must be that of the run"):
        main(["pretrain", "--images", folders.flat, *SIZES, "--colors", "9", "--output", str(pretrained)])


def test_from_a_model_to_depth_curve_classifier_and_completions(pretrained, folders, tmp_path, capsys):
    model = ["--model", str(pretrained / "igpt.keras")]
    labelled = ["--images", folders.classes, *model]
    main(["probe", *labelled, "--pictures", "20", "--output", str(tmp_path / "probe")])
    report = json.loads((tmp_path / "probe" / "report.json").read_text())
    assert (report["num_train"], report["num_validation"]) == (20, 4)
    assert "raw pixels, logistic regression" in capsys.readouterr().out

    finetune = ["finetune", *labelled, "--epochs", "2", "--batch-size", "8", "--output", str(tmp_path / "finetune")]
    main(finetune)
    results = (tmp_path / "finetune" / "results.json").read_text()
    main(finetune)  # nothing is left to train
    assert (tmp_path / "finetune" / "results.json").read_text() == results

    picture = f"{folders.flat}/dark-0.png"
    with pytest.raises(SystemExit, match="keras-igpt score: --model must be a language model"):
        main(["score", picture, "--model", str(tmp_path / "finetune" / "classifier.keras")])
    main(["complete", picture, *model, "--num-samples", "2", "--output", str(tmp_path / "complete")])
    main(["score", picture, *model, "--output", str(tmp_path / "score")])
    assert list(json.loads((tmp_path / "score" / "scores.json").read_text())) == [picture]
    for path in ("probe/depth_curve.png", "complete/completions.png", "score/surprise.png"):
        assert np.asarray(Image.open(tmp_path / path)).std() > 1
    main(["describe", str(pretrained / "igpt.keras")])
    assert "ImageGPTCausalLM" in capsys.readouterr().out


def test_pretraining_on_a_folder_of_classes_with_a_palette_of_its_own(folders, tmp_path):
    palette, output = tmp_path / "palette" / "palette.npy", tmp_path / "pretrained"
    main(
        ["palette", "--images", folders.classes, "--image-size", "4", "--colors", "8", "--output", str(palette.parent)]
    )
    sizes = [*SIZES[:2], *SIZES[4:]]  # without the number of colours
    command = ["pretrain", "--images", folders.classes, *sizes, "--epochs", "2", "--objective", "bert"]
    command += ["--epoch-steps", "1", "--keep-epochs"]
    main([*command, "--palette", str(palette), "--output", str(output)])
    assert {path.name for path in (output / "epochs").iterdir()} == {"epoch-01.keras", "epoch-02.keras"}
    assert len((output / "log.csv").read_text().splitlines()) == 3  # a header and two epochs of one step
    assert keras.saving.load_model(output / "igpt.keras").palette == igpt.ColorPalette.load(palette)
    with pytest.raises(SystemExit, match="`batch_size` must be at most the number of examples, 32"):
        main([*command, "--batch-size", "99", "--output", str(tmp_path / "too_large")])


def test_every_command_says_how_to_call_it(capsys):
    make_parser()
    for name in COMMANDS:
        with pytest.raises(SystemExit) as ended:
            main([name, "--help"])
        assert ended.value.code == 0
        assert f"keras-igpt {name} " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["score", "cat.jpg", "--model", "nothing"], "--model must be a .keras file or one of igpt_cifar10_8x8"),
        (["draw", "--model", "igpt_cifar10_8x8_bert"], "--model must be an autoregressive model"),
        (["estimate", "igpt_huge"], "igpt_huge"),
        (["complete", "missing.png"], "missing.png"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(arguments, message):
    with pytest.raises(SystemExit, match=message) as ended:
        main(arguments)
    assert "\n" not in str(ended.value.code)


def test_stopping_survives_a_kill(tmp_path):
    log = tmp_path / "log.csv"
    log.write_text("epoch,val_accuracy\n0,0.5\n1,0.7\n1,0.7\n2,0.7\n3,0.6\n")
    assert best_epoch(log) == 1
    assert len(read_log(log)) == 4
    stop = StopAfterBest(log, patience=3)
    stop.set_model(SimpleNamespace(stop_training=False))
    stop.on_epoch_end(3)
    assert not stop.model.stop_training
    stop.on_epoch_end(4)
    assert stop.model.stop_training
    # Called again, a run that has stopped is not trained on, unless with more patience.
    assert [epochs_to_train(log, 9, patience) for patience in (1, 2, 3)] == [4, 4, 9]
    assert epochs_to_train(tmp_path / "none.csv", 9, patience=1) == 9


def test_the_time_left_is_told(capsys):
    clock = iter(range(0, 10_000, 3))
    told = TimeLeft(100, seconds=lambda: next(clock))
    told.set_params({"steps": 50})
    told.on_epoch_begin(1)  # resumed: half is done
    for step in range(13):
        told.on_train_batch_end(step)
    # Three seconds passed in ten steps; 37 are left.
    assert capsys.readouterr().out == "63 of 100 steps, 0.3 s each: about 0.2 minutes left\n"
