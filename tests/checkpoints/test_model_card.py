import re
from dataclasses import asdict

import keras
import numpy as np
import pytest
from conftest import make_causal_lm, make_masked_lm, probe_report, random_tokens, randomize

import keras_igpt as igpt
from keras_igpt.evaluation.low_data import LowDataLine, LowDataTable
from keras_igpt.evaluation.probe_report import describe_probed
from keras_igpt.evaluation.search_records import Search, Trial, TunedResult
from keras_igpt.support.files import write_json

yaml = pytest.importorskip("yaml", reason="reads the card's front matter")
Image = pytest.importorskip("PIL.Image", reason="reads the card's pictures")
pytest.importorskip("matplotlib", reason="draws the card's pictures")

# The others compile for half a minute to draw, which their own tests do.
DRAWS = keras.backend.backend() == "torch"
PICTURES = np.random.default_rng(0).integers(0, 256, (2, 4, 4, 3)).astype("uint8")


@pytest.fixture
def runs(tmp_path):
    """Folders as commands leave them, of a model of `make_causal_lm`."""
    lm = make_causal_lm()
    private = {"images": None, "dataset": "cifar10", "data_dir": "/home/me/private", "output": "/home/me/runs"}
    sizes = {"image_size": 4, "layers": 2, "heads": 2, "width": 32, "normalization": "layer_norm", "colors": 16}
    sizes |= {"objective": "ar", "palette": None}
    training = {"command": "pretrain", "pictures": 45000, "batch_size": 64, "learning_rate": 0.003, "epochs": 2}
    folders = [tmp_path / name for name in ("pretrain", "probe", "low-data", "finetune", "search")]
    write_json(folders[0] / "config.json", {**private, **sizes, **training})
    (folders[0] / "log.csv").write_text("epoch,bits_per_pixel,loss,val_loss\n0,4,2.5,2.25\n1,3,2.0,1.96875\n")
    write_json(
        folders[1] / "config.json",
        {**private, "command": "probe", "layers": [0, 1, 2], "raw pixels, test accuracy": 0.375},
    )
    probe_report(lm).save(folders[1] / "report.json")
    write_json(folders[2] / "config.json", {**private, "command": "low-data", "language_model": describe_probed(lm)})
    line = LowDataLine("features", 4, 2, (0, 1), (0.25, 0.5), (1.0, 1.0), True)
    LowDataTable((line,), 10, 500, 1234, "normed").save(folders[2] / "table.json")
    head = {"classes": ["cat", "dog", "ship"], "layer": 2, "generative_weight": 1.0}
    finetuning = {"command": "finetune", "rate": 0.0003, "language_model": describe_probed(lm)}
    write_json(folders[3] / "config.json", {**private, **head, **finetuning})
    (folders[3] / "log.csv").write_text("epoch,accuracy,loss,val_accuracy,val_loss\n0,0.5,3.5,0.75,3.25\n")
    write_json(folders[3] / "results.json", {"best epoch": 1, "test accuracy": 0.8125})
    search = {"command": "search", "batch_size": 32, "layer": None, "frozen": True}
    search["language_model"] = describe_probed(lm)
    write_json(folders[4] / "config.json", {**private, **head, **search})
    trials = (Trial({"learning_rate": 0.01}, 0.7, 3, {}),)
    search = Search("val_accuracy", "max", 0.1, trials, 7, 0, "torch", 4000, 500)
    result = TunedResult(search, {"learning_rate": 0.01}, 21, 4500, 1234, {"accuracy": 0.84375})
    write_json(folders[4] / "report.json", asdict(result))
    return folders


def read(folder):
    """The front matter and the text of a card, whose pictures must be there."""
    _, front, text = (folder / "README.md").read_text().split("---\n", 2)
    pictures = re.findall(r"!\[[^]]*\]\((.*?)\)", text)
    assert sorted(pictures) == sorted(path.name for path in folder.glob("*.png"))
    for picture in pictures:
        assert np.asarray(Image.open(folder / picture)).std() > 1
    return yaml.safe_load(front), text, pictures


def parts_of(text):
    """The text under each heading, of all that are alike."""
    pieces = re.split(r"^#+ (.*)\n", text, flags=re.MULTILINE)
    parts = dict.fromkeys(pieces[1::2], "")
    for title, part in zip(pieces[1::2], pieces[2::2], strict=True):
        parts[title] += part
    return parts


def test_a_card_says_what_model_and_reports_say(tmp_path, palette, runs, hub):
    lm = randomize(make_causal_lm(palette))
    lm.compile(**igpt.pretraining_recipe("igpt_nano", "ar", steps=8))
    lm.optimizer.build(lm.trainable_variables)
    folder = tmp_path / "card"
    folder.mkdir()
    (folder / "notes.txt").write_text("mine")
    igpt.write_model_card(
        lm, folder, address="someone/model", reports=runs, license="apache-2.0", num_samples=2 * DRAWS
    )
    front, text, pictures = read(folder)
    assert front == {
        "library_name": "keras",
        "pipeline_tag": "unconditional-image-generation",
        "license": "apache-2.0",
        "tags": ["image-gpt", "keras-igpt", "autoregressive"],
    }
    samples = ["samples.png"] if DRAWS else []
    assert pictures == ["palette.png", *samples, "pre_training.png", "linear_probes_on_cifar10.png"]
    parts = parts_of(text)
    for title, said in {
        "someone/model": "each pixel of a picture of 4x4 pixels from those before it, row by row, as one of 16 colours",
        "Model": f"| all parameters | {lm.count_params():,} |",
        "Data": "45,000 pictures of cifar10.",
        "Compiled with": "| optimizer | Adam |",
        "Pre-training": "| peak learning rate | 0.003 |",
        "Fine-tuning": "| learning rate | 0.0003 |",
        "Search and refit": "| batch size | 32 |",
        "Linear probes on cifar10": "50.0% [45.6, 54.4]    50.0% [47.2, 52.8]    <- chosen",
        "Few labels on cifar10": "| 4 | 40 | features | 2 | 37.5% [0.0, 100.0] ± 17.7% (2 subsets) |",
        "Fine-tuning on cifar10": "| test accuracy | 81.25% |",
        "Test after a search on cifar10": "| accuracy | 84.4% [82.2, 86.3] |",
        "Licence": "apache-2.0",
    }.items():
        assert said in parts[title], title
    assert "Validation loss at the end: 1.969 nats per token" in text
    assert "Raw pixels, test accuracy: 37.5% [34.8, 40.2]." in text
    assert "Not stated" not in text
    assert "/home/me" not in text
    assert (folder / "notes.txt").read_text() == "mine"

    if DRAWS:
        lm.save("hf://someone/model")
        assert run_code(parts["How to load it"])["completions"].shape == (2, 4, 4, 4, 3)


def run_code(text):
    (code,) = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    names = {"my_pictures": PICTURES, "my_token_ids": random_tokens(2)}
    exec(re.sub(r"(\w+) = [.]{3}", r"\1 = my_\1", code), names)  # what a reader of the card does
    return names


def test_what_nobody_stated_is_not_stated(tmp_path, palette):
    lm = randomize(make_masked_lm(palette))
    igpt.write_model_card(lm, tmp_path / "card", num_samples=2)
    front, text, pictures = read(tmp_path / "card")
    assert front["pipeline_tag"] == "image-feature-extraction"
    assert "license" not in front
    assert pictures == ["palette.png", "samples.png"]
    parts = parts_of(text)
    assert [parts[title].strip() for title in ("Data", "Training", "Results", "Licence")] == ["Not stated."] * 4
    assert "hidden pixels of a picture of 4x4 pixels from all others (the BERT objective)" in text
    assert "| mask_rate | 0.15 |" in parts["Model"]
    # The same again, bit for bit.
    igpt.write_model_card(lm, tmp_path / "again", num_samples=2)
    for path in (tmp_path / "card").iterdir():
        assert (tmp_path / "again" / path.name).read_bytes() == path.read_bytes()


def test_a_classifier_without_palette(tmp_path, hub, runs):
    classifier = randomize(igpt.ImageGPTImageClassifier(make_causal_lm(), num_classes=3))
    recipe = {"batches": "a | b", "layers": "a\nb"}
    reports = [runs[1] / "report.json", runs[3]]
    igpt.write_model_card(classifier, tmp_path / "card", data="*Mine*.", recipe=recipe, reports=reports)
    front, text, pictures = read(tmp_path / "card")
    assert front["pipeline_tag"] == "image-classification"
    assert pictures == ["linear_probes.png"]
    parts = parts_of(text)
    assert (
        parts["Classifier of 4x4 pixels"].strip().startswith("A classifier of 3 classes, on the mean-pooled features")
    )
    assert parts["Data"].strip() == "*Mine*."
    assert "| layers | a<br>b |" in parts["Recipe"]
    assert "| batches | a &#124; b |" in parts["Recipe"]
    assert "| test accuracy | 81.25% |" in parts["Fine-tuning on cifar10"]
    assert "has no palette" in parts["How to load it"]
    classifier.save("hf://someone/classifier")
    igpt.write_model_card(classifier, tmp_path / "card", address="someone/classifier")
    names = run_code(parts_of((tmp_path / "card" / "README.md").read_text())["How to load it"])
    assert names["classes"].shape == (2,)


def test_reports_of_one_kind_have_pictures_of_their_own(tmp_path, runs):
    lm = make_causal_lm()
    probe_report(lm, final=False).save(tmp_path / "unscored.json")
    igpt.write_model_card(lm, tmp_path / "card", reports=[runs[1] / "report.json", tmp_path / "unscored.json"])
    _, text, pictures = read(tmp_path / "card")
    assert pictures == ["linear_probes.png", "linear_probes_2.png"]
    assert re.search(r"50\.0% \[45\.6, 54\.4\] +<- chosen on validation\n", text)


def make_classifier(num_classes=3, **options):
    return igpt.ImageGPTImageClassifier(make_causal_lm(), num_classes, **options)


FAULTS = {
    "no card for a backbone": (
        lambda: make_causal_lm().backbone,
        lambda runs: [],
        "`model` must be an ImageGPTCausalLM",
    ),
    "depths of another model": (
        lambda: make_causal_lm(num_layers=3),
        lambda runs: [runs[1]],
        r"`reports` must be of this model, with num_layers=3.*report\.json with num_layers=2",
    ),
    "a run of another width": (
        lambda: make_causal_lm(hidden_dim=16),
        lambda runs: runs[:1],
        r"`reports` must be of this model, with hidden_dim=16.*config\.json with hidden_dim=32",
    ),
    "a run with another palette": (
        lambda: make_causal_lm(vocabulary_size=8),
        lambda runs: runs[:1],
        r"`reports` must be of this model, with vocabulary_size=8.*config\.json with vocabulary_size=16",
    ),
    "a run with another objective": (
        lambda: make_masked_lm(),
        lambda runs: runs[:1],
        r"with kind='ImageGPTMaskedLM'.*config\.json with kind='ImageGPTCausalLM'",
    ),
    "another objective": (
        lambda: make_masked_lm(),
        lambda runs: [runs[1] / "report.json"],
        r"with kind='ImageGPTMaskedLM'.*report\.json with kind='ImageGPTCausalLM'",
    ),
    "few labels of a deeper model": (
        lambda: make_causal_lm(num_layers=1),
        lambda runs: [runs[2] / "table.json"],
        r"with num_layers=1\. Received: .*table\.json with num_layers='2 or more'",
    ),
    "few labels of a wider model": (
        lambda: make_causal_lm(hidden_dim=16),
        lambda runs: [runs[2]],
        r"with hidden_dim=16\. Received: .*config\.json with hidden_dim=32",
    ),
    "a search with another language model": (
        lambda: igpt.ImageGPTImageClassifier(make_causal_lm(hidden_dim=16), 3),
        lambda runs: [runs[4]],
        r"with hidden_dim=16\. Received: .*config\.json with hidden_dim=32",
    ),
    "a fine-tuning of another language model": (
        lambda: igpt.ImageGPTImageClassifier(make_causal_lm(hidden_dim=16), 3),
        lambda runs: [runs[3]],
        r"with hidden_dim=16\. Received: .*config\.json with hidden_dim=32",
    ),
    "more classes": (
        lambda: make_classifier(4),
        lambda runs: [runs[3]],
        r"with num_classes=4\. Received: .*config\.json with num_classes=3",
    ),
    "other classes": (
        lambda: make_classifier(class_names=["cat", "dog", "frog"]),
        lambda runs: [runs[3]],
        r"with class_names=\['cat', 'dog', 'frog'\]\. Received: .* with class_names=\['cat', 'dog', 'ship'\]",
    ),
    "another depth": (
        lambda: make_classifier(layer=1),
        lambda runs: [runs[3]],
        r"with layer=1\. Received: .*config\.json with layer=2",
    ),
    "a search with another weight": (
        lambda: make_classifier(),
        lambda runs: [runs[4]],
        r"with generative_weight=1\.0\. Received: .*config\.json with generative_weight=0",
    ),
    "an empty folder": (
        lambda: make_causal_lm(),
        lambda runs: [runs[0].parent],
        r"`reports` must be folders of runs with log\.csv",
    ),
    "no report": (
        lambda: make_causal_lm(),
        lambda runs: [runs[0] / "config.json"],
        "must be a report as this package writes it",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_reports_that_do_not_fit_are_refused_before_anything_is_written(fault, runs, tmp_path):
    make, reports, message = FAULTS[fault]
    with pytest.raises(ValueError, match=message) as raised:
        igpt.write_model_card(make(), tmp_path / "card", reports=reports(runs))
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "card").exists()


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("address", "https://huggingface.co/someone/model"),
        ("license", "Apache License"),
        ("num_samples", -1),
        ("data", 5),
        ("recipe", "adam"),
        ("recipe", {1: 2}),
    ],
)
def test_arguments_out_of_range_are_named(argument, value, tmp_path):
    with pytest.raises(ValueError, match=rf"^`{argument}` must be .*Received: {argument}={value!r}"):
        igpt.write_model_card(make_causal_lm(), tmp_path / "card", **{argument: value})


@pytest.mark.parametrize("reports", [5, [5]])
def test_reports_that_are_no_paths_are_named(reports, tmp_path):
    with pytest.raises(ValueError, match=r"^`reports` must be a path or a sequence of paths\. Received: "):
        igpt.write_model_card(make_causal_lm(), tmp_path / "card", reports=reports)


class OwnLM(igpt.ImageGPTCausalLM):
    """A model of a user's own class."""


def test_a_card_of_a_subclass_with_a_single_report(tmp_path, runs):
    """The reports of it say its own class or that of the package."""
    lm = OwnLM(make_causal_lm().backbone)
    probe_report(lm).save(tmp_path / "own.json")
    for folder, report in (("first", str(runs[1])), ("second", tmp_path / "own.json")):
        igpt.write_model_card(lm, tmp_path / folder, reports=report)
        front, _, pictures = read(tmp_path / folder)
        assert front["pipeline_tag"] == "unconditional-image-generation"
        assert len(pictures) == 1
