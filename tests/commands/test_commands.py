"""The commands, one after the other, as a person with a folder of pictures calls them."""

import json
import re
from dataclasses import replace
from types import SimpleNamespace

import keras
import numpy as np
import pytest
from PIL import Image
from tiny import SIZES, make_folders, next_command, noted

import keras_igpt as igpt
from keras_igpt import plotting
from keras_igpt.commands.finetune import BestEpochs, StopAfterBest, best_epoch, epochs_to_train, why_it_stopped
from keras_igpt.commands.main import COMMANDS, main, make_parser
from keras_igpt.commands.shared import TimeLeft, named_by_flags, with_flags
from keras_igpt.model.weight_digests import digest_of_weights
from keras_igpt.support import progress
from keras_igpt.support.files import drop_epochs, read_log


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return make_folders(tmp_path_factory)


@pytest.fixture(scope="module")
def pretrained(folders, tmp_path_factory):
    output = tmp_path_factory.mktemp("pretrained")
    main(["pretrain", "--images", folders.flat, *SIZES, "--epochs", "2", "--output", str(output)])
    return output


@pytest.fixture
def read(monkeypatch):
    """Which part each batches are of, told by its size: one picture is taken from the test's 4, validation has 4."""
    load = igpt.load_image_folder

    def load_fewer(*arguments, **options):
        data = load(*arguments, **options)
        return replace(data, test=data.test.take([0, 1, 2]))

    monkeypatch.setattr(igpt, "load_image_folder", load_fewer)

    def order(examples, palette, batch_size, seed=0, augmentation=None):
        return len(examples), seed, augmentation is not None

    return SimpleNamespace(
        seeds=noted(monkeypatch, igpt, "load_image_folder", lambda *_, seed, **__: seed),
        trained=noted(monkeypatch, igpt, "TrainingBatches", order),
        evaluated=noted(monkeypatch, igpt, "EvaluationBatches", lambda examples, *_: len(examples)),
    )


def test_pretraining_on_a_flat_folder(pretrained, folders, capsys):
    assert {"igpt.keras", "log.csv", "loss_curves.png", "samples.png", "palette.npy"} <= {
        path.name for path in pretrained.iterdir()
    }
    assert json.loads((pretrained / "config.json").read_text())["pictures"] == 36
    written = (pretrained / "log.csv").read_text()
    # Finished: the same command changes nothing, one with more colours is refused before anything is trained.
    main(["pretrain", "--images", folders.flat, *SIZES, "--epochs", "2", "--output", str(pretrained)])
    assert (pretrained / "log.csv").read_text() == written
    said = capsys.readouterr().out
    assert "8 steps of 128 tokens" in said
    assert "Going on from" not in said
    assert "is the end of its training of 2 epochs" in said
    assert "a longer run needs another --output" in said
    assert next_command(said) == ["demo", "--model", str(pretrained / "igpt.keras")]
    with pytest.raises(SystemExit, match="keras-igpt pretrain: --colors must be that of the run"):
        main(["pretrain", "--images", folders.flat, *SIZES, "--colors", "9", "--output", str(pretrained)])


def test_a_run_that_diverges_says_so(folders, tmp_path):
    with pytest.raises(SystemExit, match=r"keras-igpt pretrain: The loss became (nan|inf) in batch \d of epoch"):
        main(["pretrain", "--images", folders.flat, *SIZES, "--rates", "1e30", "--output", str(tmp_path)])
    with pytest.raises(SystemExit):
        main(["pretrain", "--images", folders.flat, "--dtype", "float16", "--output", str(tmp_path / "new")])
    assert not (tmp_path / "new").exists()


def test_a_warm_up_too_long_is_refused_before_the_search(folders, tmp_path):
    options = ["--images", folders.flat, *SIZES, "--rates", "0.01", "0.003", "--warmup-steps", "99"]
    with pytest.raises(SystemExit, match=r"--warmup-steps must be less than steps=.* Received: --warmup-steps 99"):
        main(["pretrain", *options, "--output", str(tmp_path)])
    assert not (tmp_path / "search").exists()


def test_the_seed_decides_all_of_a_pretraining(folders, tmp_path, monkeypatch):
    decided = []

    def begin(model, batches, **_):
        decided.extend((batches.description["seed"], digest_of_weights(model)))
        raise KeyboardInterrupt

    def of_seed(seed, folder):
        with pytest.raises(KeyboardInterrupt):
            main(["pretrain", "--images", folders.flat, *SIZES, "--seed", seed, "--output", str(tmp_path / folder)])
        return [decided.pop(), decided.pop(), *fitted.pop()]

    fitted = noted(monkeypatch, igpt.ColorPalette, "fit", lambda pixels, _, seed: [seed, pixels.tobytes()])
    monkeypatch.setattr(igpt.ImageGPTCausalLM, "fit", begin)
    one, again, other = of_seed("1", "one"), of_seed("1", "again"), of_seed("2", "other")
    assert one == again
    assert not [value for value, another in zip(one, other, strict=True) if value == another]


def test_from_a_model_to_depth_curve_classifier_and_completions(
    pretrained, folders, tmp_path, capsys, monkeypatch, caplog, read
):
    model = ["--model", str(pretrained / "igpt.keras")]
    labelled = ["--images", folders.classes, *model]
    also = ["--also", "nearest-neighbors", "attention"]
    monkeypatch.setattr(progress, "_EVERY", 0)
    vote = igpt.nearest_neighbors

    def disagreeing(*parts):
        """Votes of which validation prefers the second depth, and test the first."""
        first, second = vote(*parts)
        first = replace(first, validation_accuracy=0.0, measured=replace(first.measured, accuracy=1.0))
        return first, replace(second, validation_accuracy=1.0, measured=replace(second.measured, accuracy=0.0))

    monkeypatch.setattr(igpt, "nearest_neighbors", disagreeing)
    probe = ["probe", *labelled, *also, "--pictures", "20", "--batch-size", "4"]
    main([*probe, "--output", str(tmp_path / "probe")])
    report = json.loads((tmp_path / "probe" / "report.json").read_text())
    assert (report["num_train"], report["num_validation"], report["final_on_test"]["num_test"]) == (20, 4, 3)
    # Printed once, whatever a framework has done with the root's log.
    assert not [record for record in caplog.records if record.name == "keras_igpt"]
    said = capsys.readouterr().out
    assert said.startswith("20 training, 4 validation, 3 test pictures of 4x4 pixels in 2 classes, 16 tokens each")
    assert "frozen: a regression on the features of 2 depths" in said
    assert "extract: 16 of 20 pictures, about 0.0 minutes left" in said
    assert next_command(said) == ["finetune", "--model", model[1], "--images", folders.classes]
    assert "nearest neighbours at depth 1" in said
    assert "attention pooling at depth" in said
    probed = igpt.ProbeReport.load(tmp_path / "probe" / "report.json")
    others = json.loads((tmp_path / "probe" / "accuracies.json").read_text())
    assert [measured["num_test"] for measured in others.values()] == [3, 3, 3]
    pixels = igpt.MeasuredAccuracy(**others["raw pixels"])
    assert f"the linear probe is {probed.compare(pixels)}: " in said
    assert list(json.loads((tmp_path / "probe" / "nearest_neighbors.json").read_text())) == ["0", "1"]
    assert json.loads((tmp_path / "probe" / "attention.json").read_text())["layer"] == probed.best_layer

    finetune = ["finetune", *labelled, "--epochs", "2", "--batch-size", "8", "--output", str(tmp_path / "finetune")]
    finetune += ["--seed", "3"]
    tested = noted(
        monkeypatch,
        igpt.ImageGPTImageClassifier,
        "predict",
        lambda classifier, tokens, **_: (len(tokens), digest_of_weights(classifier)),
    )
    main(finetune)
    assert (read.seeds, read.trained, read.evaluated) == ([0, 3], [(32, 3, True)], [4])
    results = (tmp_path / "finetune" / "results.json").read_text()
    found = json.loads(results)
    # Not the last.
    assert found["best epoch"] == 1
    names = ("best-0000", "classifier")
    best, saved = (keras.saving.load_model(tmp_path / "finetune" / f"{name}.keras") for name in names)
    assert tested == [(3, digest_of_weights(best))]
    assert digest_of_weights(saved) == digest_of_weights(best)
    accuracies = json.loads((tmp_path / "finetune" / "accuracies.json").read_text())
    interval = igpt.MeasuredAccuracy(**accuracies["test accuracy"]).interval
    assert found["test accuracy"] == interval.estimate
    assert found["test accuracy, low end of the 95% interval"] == interval.low
    assert found["validation accuracy, high end of the 95% interval"] >= found["validation accuracy"]
    said = capsys.readouterr().out
    assert said.startswith("32 training, 4 validation, 3 test pictures of 4x4 pixels in 2 classes, at most 2 epochs: ")
    assert "8 steps of 128 tokens\n" in said
    assert " parameters, about 0." in said.splitlines()[1]
    assert f"test accuracy: {interval.as_percentages()}" in said
    assert next_command(said)[:2] == ["classify", folders.classes]
    main(finetune)  # nothing is left to train
    assert (tmp_path / "finetune" / "results.json").read_text() == results
    assert (
        "Finished: all 2 epochs are done, and a larger --epochs goes on. The best is epoch" in capsys.readouterr().out
    )

    picture = f"{folders.flat}/dark-0.png"
    classifier = ["--model", str(tmp_path / "finetune" / "classifier.keras")]
    main(["classify", picture, *classifier, "--output", str(tmp_path / "classify")])
    classes = json.loads((tmp_path / "classify" / "classes.json").read_text())[picture]
    assert set(classes) == {"bright", "dark"}
    assert f"{picture}: {max(classes, key=classes.get)} " in capsys.readouterr().out
    main(["classify", folders.classes, picture, *classifier, "--output", str(tmp_path / "classify")])
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in lines[:41]] == [
        *sorted(f"{folders.classes}/{name}/{number}.png" for name in ("bright", "dark") for number in range(20)),
        picture,
    ]
    with pytest.raises(SystemExit, match="--output must be a folder, or a new name for one"):
        main(["classify", picture, *classifier, "--output", str(tmp_path / "classify" / "classes.json")])
    (tmp_path / "empty").mkdir()
    with pytest.raises(SystemExit, match=r"PICTURE must be a picture or a folder with pictures.*empty with 0"):
        main(["classify", str(tmp_path / "empty"), *classifier])
    with pytest.raises(SystemExit, match="keras-igpt classify: --model must be a classifier"):
        main(["classify", picture, *model])
    with pytest.raises(SystemExit, match="keras-igpt score: --model must be a language model"):
        main(["score", picture, *classifier])
    with pytest.raises(SystemExit, match=r"--keep-rows must be an integer in 0…3\. Received: --keep-rows 4"):
        main(["complete", picture, *model, "--keep-rows", "4"])
    pictures = [picture, f"{folders.flat}/bright-0.png"]
    main(["complete", *pictures, *model, "--num-samples", "3", "--output", str(tmp_path / "complete")])
    with Image.open(tmp_path / "complete" / "completions.gif") as animation:
        assert animation.size == (32 * 14, 32 * 9)  # three completions of each
    main(["score", picture, *model, "--output", str(tmp_path / "score")])
    assert list(json.loads((tmp_path / "score" / "scores.json").read_text())) == [picture]
    for path in (
        "probe/depth_curve.png",
        "probe/depth_similarity.png",
        "complete/completions.png",
        "complete/completions.gif",
        "score/surprise.png",
    ):
        assert np.asarray(Image.open(tmp_path / path)).std() > 1
    main(["describe", str(pretrained / "igpt.keras")])
    assert "ImageGPTCausalLM" in capsys.readouterr().out
    reports = ["--reports", str(pretrained), *(str(tmp_path / name) for name in ("probe", "finetune"))]
    main(["card", *model, *reports, "--num-samples", "0", "--output", str(tmp_path / "card")])
    card = (tmp_path / "card" / "README.md").read_text()
    assert "36 pictures of a folder that is not named here." in card
    for title in ("### Pre-training", "### Linear probes", "### Fine-tuning"):
        assert card.count(f"{title}\n") == (1 if "probes" in title else 2)  # settings and results
    assert folders.classes not in card


def test_a_fine_tuning_that_has_crashed_goes_on(pretrained, folders, tmp_path, monkeypatch):
    def finetune(folder):
        keras.utils.clear_session()
        model = ["--model", str(pretrained / "igpt.keras"), "--batch-size", "8", "--epochs", "3"]
        main(["finetune", "--images", folders.classes, *model, "--output", str(tmp_path / folder)])
        return keras.saving.load_model(tmp_path / folder / "classifier.keras").get_weights()

    def crash(self, epoch, logs=None):
        if epoch == 1:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        # The epoch is in the log, and its checkpoint is not written.
        patched.setattr(StopAfterBest, "on_epoch_end", crash)
        with pytest.raises(KeyboardInterrupt):
            finetune("crashed")
    assert len(read_log(tmp_path / "crashed" / "log.csv")) == 2
    for weight, expected in zip(finetune("crashed"), finetune("alone"), strict=True):
        np.testing.assert_array_equal(weight, expected)
    for name in ("results.json", "log.csv"):
        texts = [(tmp_path / folder / name).read_text() for folder in ("crashed", "alone")]
        assert texts[0] == texts[1]


def test_a_search_says_what_it_will_do(pretrained, folders, tmp_path, capsys, read):
    pytest.importorskip("keras_tuner")
    search = ["search", "--images", folders.classes, "--model", str(pretrained / "igpt.keras"), "--batch-size", "8"]
    search += ["--epochs", "2", "--output", str(tmp_path / "search"), "--to-beat", "0", "--seed", "3"]
    main([*search, "--rates", "0.003", "0.001"])
    # Trials on the training pictures alone, the refit on those of validation too.
    assert set(read.trained) == {(32, 3, True), (36, 3, True)}
    assert (set(read.evaluated[:-1]), read.evaluated[-1]) == ({4}, 3)
    assert json.loads((tmp_path / "search" / "report.json").read_text())["num_test"] == 3
    said = capsys.readouterr().out
    assert "in 2 classes, at most 2 rates and a refit, each at most 2 epochs: 8 steps of 128 tokens\n" in said
    assert "4 of 8 steps, " in said
    assert "minutes left of this training at most" in said
    assert next_command(said)[0] == "classify"
    config = (tmp_path / "search" / "config.json").read_text()
    with pytest.raises(SystemExit, match="keras-igpt search: --output must hold this search"):
        main([*search, "--rates", "0.003", "0.001", "--batch-size", "4"])
    assert (tmp_path / "search" / "config.json").read_text() == config
    with pytest.raises(SystemExit, match="--batch-size must be at most 32"):
        main([*search, "--batch-size", "99"])
    with pytest.raises(SystemExit, match=r"keras-igpt search: --rates must fall. Received: --rates \(0.001, 0.003\)"):
        main([*search, "--rates", "0.001", "0.003"])
    frozen = [*search, "--frozen", "--rates", "1", "--output", str(tmp_path / "frozen")]
    for vain in (["--generative-weight", "0.5"], ["--patience", "3"]):
        with pytest.raises(
            SystemExit, match=rf"{vain[0]} must not be given with --frozen\. Received: {' '.join(vain)}"
        ):
            main([*frozen, *vain])
    main(frozen)
    config = json.loads((tmp_path / "frozen" / "config.json").read_text())
    assert (config["generative_weight"], config["patience"]) == (0.0, None)
    model = ["--model", str(tmp_path / "frozen" / "model.keras"), "--num-samples", "0"]
    main(["card", *model, "--reports", str(tmp_path / "frozen"), "--output", str(tmp_path / "card")])
    assert "| epochs | at most 2 |" in (tmp_path / "card" / "README.md").read_text()


def test_grey_pictures(folders, tmp_path):
    igpt.ColorPalette.from_colors(np.arange(0, 256, 32, dtype="uint8")[:, None]).save(tmp_path / "grey.npy")
    labelled = ["--images", folders.classes, "--batch-size", "8"]
    sizes = ["--image-size", "4", "--layers", "1", "--heads", "1", "--width", "8", "--epochs", "1"]
    model = str(tmp_path / "igpt.keras")
    pretrain = ["pretrain", "--batch-size", "8", *sizes, "--palette", str(tmp_path / "grey.npy")]
    main([*pretrain, "--images", folders.flat, "--output", str(tmp_path)])
    assert keras.saving.load_model(model).palette.num_channels == 1
    for name, *options in (("probe",), ("low-data", "--labels", "2"), ("finetune", "--epochs", "1")):
        main([name, *labelled, *options, "--model", model, "--output", str(tmp_path / name)])
    with pytest.raises(SystemExit, match=r"--images must be given with a grey palette\. Received: --dataset cifar10"):
        main(["probe", "--dataset", "cifar10", "--model", model])


def test_low_data_takes_what_the_smallest_class_has(pretrained, folders, tmp_path, capsys):
    few = ["low-data", "--images", folders.classes, "--model", str(pretrained / "igpt.keras"), "--subsets", "2"]
    few += ["--output", str(tmp_path / "few")]
    main(few)
    said = capsys.readouterr().out
    assert said.startswith("Without 25 and 400 labels a class: the smallest class has 16 training pictures.")
    assert "frozen: 4 labels a class, 2 subsets of each, regressions on 2 depths and raw pixels" in said
    assert {
        line["labels_per_class"] for line in json.loads((tmp_path / "few" / "table.json").read_text())["lines"]
    } == {4}
    assert next_command(said)[0] == "finetune"
    with pytest.raises(SystemExit, match=r"low-data: --labels must be at most 16, .* Received: --labels 400"):
        main([*few, "--labels", "4", "400"])


@pytest.mark.parametrize("absent", ["import_scipy", "import_figure", "import_neighbors"])
def test_a_probe_misses_no_package_at_its_end(absent, pretrained, folders, tmp_path, monkeypatch):
    def missing(*names):
        raise ImportError("there is none")

    monkeypatch.setattr(f"keras_igpt.commands.probe.{absent}", missing)
    probe = ["probe", "--images", folders.classes, "--model", str(pretrained / "igpt.keras")]
    with pytest.raises(SystemExit, match="keras-igpt probe: there is none"):
        main([*probe, "--also", "nearest-neighbors", "--output", str(tmp_path / "probe")])
    assert not (tmp_path / "probe").exists()


def test_what_an_earlier_probe_wrote_is_not_left_beside_the_report(pretrained, folders, tmp_path, capsys):
    (tmp_path / "probe").mkdir()
    for name in ("nearest_neighbors.json", "attention.json", "mine.txt"):
        (tmp_path / "probe" / name).write_text("{}")
    probe = ["probe", "--images", folders.classes, "--model", str(pretrained / "igpt.keras"), "--layers", "1"]
    main([*probe, "--no-pixels", "--output", str(tmp_path / "probe")])
    assert "the features of 1 depth\n" in capsys.readouterr().out
    report = {"report.json", "accuracies.json", "config.json", "depth_curve.png", "depth_similarity.png"}
    assert {path.name for path in (tmp_path / "probe").iterdir()} == {"mine.txt", *report}


@pytest.mark.parametrize(
    "command", ["probe", "low-data", "finetune", "search", "pretrain", "draw", "complete", "score", "card", "export"]
)
def test_an_output_that_is_a_file_is_refused_before_anything_is_computed(
    command, pretrained, folders, tmp_path, monkeypatch
):
    if command == "search":
        pytest.importorskip("keras_tuner")
    (tmp_path / "file").write_text("mine")
    model = [] if command == "pretrain" else ["--model", str(pretrained / "igpt.keras")]
    pictures = [f"{folders.flat}/dark-0.png"]
    data = {"draw": [], "card": [], "export": [], "complete": pictures, "score": pictures}
    data = data.get(command, ["--images", folders.classes, "--batch-size", "8"])

    def compute(*arguments, **options):
        raise AssertionError

    monkeypatch.setattr(igpt.ColorPalette, "fit", compute)
    monkeypatch.setattr(keras.Model, "fit", compute)
    monkeypatch.setattr(igpt.FeatureExtractor, "extract_labeled", compute)
    monkeypatch.setattr(igpt, "low_data_table", compute)
    monkeypatch.setattr(igpt.ServingModel, "call", compute)
    for name in ("generate", "complete", "score"):
        monkeypatch.setattr(igpt.ImageGPTCausalLM, name, compute)
    with pytest.raises(SystemExit, match=r"--output must be a folder, or a new name for one.* Received: .*file"):
        main([command, *data, *model, "--output", str(tmp_path / "file")])
    assert (tmp_path / "file").read_text() == "mine"


def test_what_comes_next_can_be_run_and_read(pretrained, folders, tmp_path, capsys):
    pictures = [f"{folders.flat}/dark-{number}.png" for number in range(5)]
    model = ["--model", str(pretrained / "igpt.keras")]
    main(["complete", *pictures, *model, "--num-samples", "1", "--output", str(tmp_path)])
    assert next_command(capsys.readouterr().out) == ["score", *pictures[:3], *model]
    main(["score", *pictures, *model, "--output", str(tmp_path)])
    assert next_command(capsys.readouterr().out) == ["complete", *pictures[:3], *model]
    bert = ["--model", "igpt_cifar10_8x8_bert"]
    main(["score", pictures[0], *bert, "--output", str(tmp_path)])
    assert next_command(capsys.readouterr().out) == ["demo", *bert]


def test_damaged_files_are_left_out_where_asked_for(folders, tmp_path, capsys):
    (tmp_path / "pictures").mkdir()
    for number in range(10):
        Image.open(f"{folders.flat}/dark-{number}.png").save(tmp_path / "pictures" / f"{number}.png")
    (tmp_path / "pictures" / "damaged.png").write_bytes(b"no picture")
    palette = ["palette", "--images", str(tmp_path / "pictures"), "--image-size", "4", "--colors", "4"]
    palette += ["--output", str(tmp_path / "palette")]
    with pytest.raises(SystemExit, match=r"Pictures must be readable \(--skip-unreadable leaves out"):
        main(palette)
    main([*palette, "--skip-unreadable"])
    assert "Warning: 1 of 11 files were left out" in capsys.readouterr().err


def test_pretraining_on_a_folder_of_classes_with_a_palette_of_its_own(folders, tmp_path, capsys, monkeypatch):
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
    assert json.loads((output / "config.json").read_text())["colors"] == 8
    with pytest.raises(SystemExit, match="--batch-size must be at most 32"):
        main([*command, "--batch-size", "99", "--output", str(tmp_path / "too_large")])
    finetune = ["finetune", "--images", folders.classes, "--model", str(output / "igpt.keras"), "--epochs", "1"]
    voted = noted(monkeypatch, igpt.ImageGPTImageClassifier, "vote", lambda *_, seed, **__: seed)
    main([*finetune, "--batch-size", "8", "--seed", "3", "--output", str(tmp_path / "finetune")])
    assert voted == [3]
    accuracies = json.loads((tmp_path / "finetune" / "accuracies.json").read_text())
    one_mask, vote = (igpt.MeasuredAccuracy(**entry) for entry in accuracies.values())
    assert f"the vote against one mask, on the same pictures: {vote.compare(one_mask)}" in capsys.readouterr().out


def test_what_a_palette_loses_is_shown_of_all_classes(tmp_path, monkeypatch):
    for label, name in enumerate(("dark", "bright")):
        (tmp_path / "pictures" / name).mkdir(parents=True)
        for number in range(100):
            picture = Image.fromarray(np.full((4, 4, 3), 200 * label + number // 2, "uint8"))
            picture.save(tmp_path / "pictures" / name / f"{number}.png")
    shown = []
    plot = plotting.plot_quantization

    def record(images, palette):
        shown.append(images)
        return plot(images, palette)

    monkeypatch.setattr(plotting, "plot_quantization", record)
    palette = ["palette", "--images", str(tmp_path / "pictures"), "--image-size", "4", "--colors", "4"]
    main([*palette, "--output", str(tmp_path / "palette")])
    assert len(shown[0]) == 8
    assert (shown[0] >= 200).all(axis=(1, 2, 3)).sum() == 4


def test_every_command_says_how_to_call_it(capsys):
    make_parser()
    for name in COMMANDS:
        with pytest.raises(SystemExit) as ended:
            main([name, "--help"])
        assert ended.value.code == 0
        told = capsys.readouterr().out
        assert f"keras-igpt {name} " in told
        assert "(default: [])" not in told
        # Every option says what it is, and 0 is a default that says something.
        assert not re.findall(r"^  --[\w-]+(?: [\w{},]+)?$\n(?! {10})", told, flags=re.MULTILINE)
        assert len(re.findall(r"\(default:\s+0\)", told)) == ("--seed" in told)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["score", "cat.jpg", "--model", "nothing"], "--model must be a .keras file or one of igpt_cifar10_8x8"),
        (
            ["draw", "--model", "igpt_cifar10_8x8_bert"],
            "--model must be an autoregressive model with its palette. Received: igpt_cifar10_8x8_bert, a BERT model",
        ),
        (["estimate", "igpt_huge"], "igpt_huge"),
        (["complete", "missing.png"], "missing.png"),
        (["pretrain", "--images", "missing"], "pretrain: --images must be an existing folder. Received: missing"),
        (["estimate", "igpt_small", "--batch-size", "0"], "--batch-size must be .*. Received: --batch-size 0"),
        # Before models and pictures are looked for.
        (["search", "--images", "i", "--model", "m", "--batch-size", "0"], "--batch-size .*. Received: --batch-size 0"),
        (["finetune", "--images", "i", "--model", "m", "--epochs", "0"], "--epochs must .*. Received: --epochs 0"),
        (["pretrain", "--images", "i", "--epochs", "0"], "--epochs must be an integer .*. Received: --epochs 0"),
        (["pretrain", "--images", "i", "--rates", "0.1", "0.2"], "--rates must fall"),
        (["pretrain", "--images", "i", "--data-dir", "d"], "--data-dir goes with --dataset. Received: --data-dir with"),
        (["quickstart", "--data-dir", "d"], "--data-dir goes with --dataset"),
        (["suggest", "--pictures", "9", "--minutes", "1", "--skip-unreadable"], "--skip-unreadable goes with --images"),
        (["probe", "--images", "i", "--model", "m", "--batch-size", "0"], "--batch-size must be an integer"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(arguments, message):
    with pytest.raises(SystemExit, match=message) as ended:
        main(arguments)
    assert "\n" not in str(ended.value.code)


def test_what_is_suggested_can_be_run(folders, capsys):
    main(["suggest", "--images", folders.flat, "--minutes", "5", "--flops-per-second", "5e10"])
    told = capsys.readouterr().out
    assert told.startswith("36 pictures, 5 minutes:")
    command = told.splitlines()[-1].removeprefix("Next: keras-igpt ").split()
    assert make_parser().parse_args(command).image_size == 8
    assert make_parser().parse_args(command).batch_size == 36
    # Less than one pass over the pictures.
    main(["suggest", "--pictures", "10000000", "--minutes", "60", "--flops-per-second", "5e10"])
    command = capsys.readouterr().out.splitlines()[-1].removeprefix("Next: keras-igpt ").split()
    shorter = make_parser().parse_args(command)
    assert shorter.epoch_steps * shorter.batch_size < 10_000_000
    assert (shorter.dtype, shorter.remat) == ("float32", False)
    # What the text says of memory is what the command does.
    main(["suggest", "--pictures", "1280000", "--minutes", "1440", "--flops-per-second", "3e14"])
    told = capsys.readouterr().out
    assert "in mixed_bfloat16 with remat" in told
    assert next_command(told)[-3:] == ["--dtype", "mixed_bfloat16", "--remat"]
    for wrong in ([], ["--images", folders.flat, "--pictures", "9"]):
        with pytest.raises(SystemExit, match="One of --images"):
            main(["suggest", "--minutes", "5", *wrong])


def test_messages_name_flags():
    flags = {"folder": "--images", "skip_unreadable": "--skip-unreadable", "batch_size": "--batch-size"}
    for message, expected in (
        ("`folder` must be `other`. Received: folder='a b'", "--images must be `other`. Received: --images 'a b'"),
        ("(skip_unreadable=True leaves out", "(--skip-unreadable leaves out"),
        ("lower `batch_size` or set `skip_unreadable=True`", "lower --batch-size or set --skip-unreadable"),
        (
            "`batch_size` must be given. Received: batch_size=None",
            "--batch-size must be given. Received: no --batch-size",
        ),
        ("batches.batch_size=8, a folder, held_out=0.1", "batches.batch_size=8, a folder, held_out=0.1"),
        ("runs/batch_size=8/folder=3.png, --batch_size=8", "runs/batch_size=8/folder=3.png, --batch_size=8"),
    ):
        assert with_flags(message, flags) == expected
    with pytest.raises(FileNotFoundError, match=r"No such file.*`folder`"), named_by_flags(folder="--images"):
        raise FileNotFoundError(2, "No such file", "`folder`")  # the system's own


def test_tensorflow_is_not_imported_on_other_backends(monkeypatch, capsys):
    if keras.backend.backend() == "tensorflow":
        pytest.skip("it is the backend")
    from keras.src.utils.module_utils import tensorflow

    looked = []
    monkeypatch.setattr(tensorflow, "_available", None)  # as in a new process
    monkeypatch.setattr(type(tensorflow), "initialize", lambda self: looked.append(self.name))
    main(["describe", "igpt_nano"])
    assert "Adam" in capsys.readouterr().out
    assert not looked
    assert tensorflow.available  # Keras looks for it again
    assert looked == ["tensorflow"]


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
    best = "The best is epoch 2, validation accuracy 70.0%."
    patient = "Stopped: patience 2 was exhausted at epoch 4, and a larger --patience goes on."
    assert why_it_stopped(log, patience=2) == f"{patient} {best}"
    done = "Finished: all 4 epochs are done, and a larger --epochs goes on."
    assert why_it_stopped(log, patience=3) == f"{done} {best}"


def test_the_best_epoch_survives_a_kill(tmp_path):
    """Its model is that of the run in the log, though an epoch that is trained again ends as another one."""
    log = tmp_path / "log.csv"

    def saved():
        return {path.name: path.read_text() for path in tmp_path.glob("*.keras")}

    def train(*epochs, first=0):
        best = BestEpochs(tmp_path, log)
        for epoch, accuracy in enumerate(epochs, first):
            best.set_model(SimpleNamespace(save=lambda path, accuracy=accuracy: path.write_text(str(accuracy))))
            best.on_epoch_begin(epoch)
            drop_epochs(log, epoch)
            best.on_epoch_end(epoch, {"val_accuracy": accuracy})
            lines = log.read_text() if log.exists() else "epoch,val_accuracy\n"
            log.write_text(f"{lines}{epoch},{accuracy}\n")

    train(0.0, 0.5, 0.4, 0.7)
    assert saved() == {"best-0000.keras": "0.0", "best-0001.keras": "0.5", "best-0003.keras": "0.7"}
    train(0.3, first=3)  # again, and worse
    assert saved() == {"best-0000.keras": "0.0", "best-0001.keras": "0.5"}
    (tmp_path / "best-model.keras").write_text("mine")
    train(0.51, 0.8, 0.85, 0.9, 0.95, first=4)
    kept = {f"best-000{epoch}.keras": value for epoch, value in ((5, "0.8"), (6, "0.85"), (7, "0.9"), (8, "0.95"))}
    assert saved() == {**kept, "best-model.keras": "mine"}
    train(first=9)
    assert best_epoch(log) == 8
    train(0.1, first=6)  # again from an earlier epoch
    assert best_epoch(log) == 5
    assert saved() == {"best-0005.keras": "0.8", "best-model.keras": "mine"}


def test_the_time_left_is_told(capsys):
    now = 0.0
    told = TimeLeft("left at most", seconds=lambda: now)
    told.set_params({"steps": 50, "epochs": 2})
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    model.compile("adam", "mse")
    model.optimizer.build(model.trainable_variables)
    model.optimizer.iterations.assign(23)  # resumed in the middle of the first epoch
    told.set_model(model)
    told.on_train_begin()
    for step in range(43):
        now += 3
        told.on_train_batch_end(step)
    # After thirteen steps, and a minute later.
    assert capsys.readouterr().out.splitlines() == [
        "36 of 100 steps, 3 s each: about 3.2 minutes left at most",
        "56 of 100 steps, 3 s each: about 2.2 minutes left at most",
    ]
