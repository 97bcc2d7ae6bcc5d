"""Every example runs, at a tiny size."""

import ast
import json
import types
from pathlib import Path

import keras
import numpy as np
import pytest
from conftest import load_script, make_causal_lm

import keras_igpt as igpt

ROOT = Path(__file__).parent.parent
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
TINY = {"IMAGE_SIZE": 4, "COLORS": 8, "LAYERS": 1, "HEADS": 1, "WIDTH": 8, "BATCH_SIZE": 8}


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_examples_use_what_is_public(path):
    """`keras_igpt` and its plotting, by exported names."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            assert not [alias.name for alias in node.names if alias.name.startswith("keras_igpt.")]
        elif isinstance(node, ast.ImportFrom) and node.module.startswith("keras_igpt"):
            assert node.module == "keras_igpt"
            assert {alias.name for alias in node.names} <= {*igpt.__all__, "plotting"}
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "igpt":
            assert node.attr in igpt.__all__


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_examples_are_short_and_say_what_they_gave(path):
    text = path.read_text()
    assert len(text.splitlines()) < 80
    assert "argparse" not in text
    header = ast.get_docstring(ast.parse(text))
    assert all(f"{part}: " in header for part in ("Run", "Needs", "Measured"))
    assert f"python examples/{path.name}" in header


@pytest.fixture
def run(monkeypatch, tmp_path):
    """Runs an example's `main` with other constants; what it writes goes to tmp_path."""
    monkeypatch.chdir(tmp_path)

    def run(name, **constants):
        module = load_script(ROOT / "examples" / f"{name}.py")
        for constant, value in constants.items():
            monkeypatch.setattr(module, constant, value)
        return module.main()

    return run


@pytest.fixture
def _cifar10(monkeypatch):
    """A hundred pictures of noise, brighter in each of three classes, in place of CIFAR-10."""
    random = np.random.default_rng(0)
    labels = np.arange(100) % 3
    pixels = (random.integers(0, 85, (100, 6, 6, 3)) + 85 * labels[:, None, None, None]).astype("uint8")

    def load_dataset(name, image_size):
        assert name == "cifar10"
        return igpt.load_arrays((pixels[:80], labels[:80]), (pixels[80:], labels[80:]), image_size)

    monkeypatch.setattr(igpt, "load_dataset", load_dataset)


@pytest.fixture
def _tiny_preset(monkeypatch, palette):
    """A small model in place of the trained preset, with the same weights each time."""

    def from_preset(name):
        keras.utils.set_random_seed(0)
        return make_causal_lm(palette, num_layers=1, hidden_dim=16)

    monkeypatch.setattr(igpt.ImageGPTCausalLM, "from_preset", from_preset)


@pytest.fixture
def _pictures(tmp_path):
    pillow = pytest.importorskip("PIL.Image")
    pytest.importorskip("matplotlib")
    random = np.random.default_rng(0)
    for label, name in enumerate(("dark", "bright")):
        (tmp_path / "pictures" / name).mkdir(parents=True)
        for index in range(12):
            pixels = random.integers(128 * label, 128 * (label + 1), (6, 5, 3)).astype("uint8")
            pillow.fromarray(pixels).save(tmp_path / "pictures" / name / f"{index}.png")


@pytest.mark.usefixtures("_pictures")
def test_own_pictures(run, tmp_path):
    pytest.importorskip("sklearn")
    results = run("own_pictures", **TINY, PRETRAINING_EPOCHS=1, FINETUNING_EPOCHS=1)
    assert set(results) == {"probe", "raw pixels", "fine-tuned"}
    assert all(0 <= accuracy <= 1 for accuracy in results.values())
    written = {path.name for path in (tmp_path / "own_pictures_output").iterdir()}
    assert written == {"igpt.keras", "depth_curve.png", "completions.png", "classifier.keras"}


@pytest.mark.usefixtures("_cifar10")
def test_pretrain(run, tmp_path):
    for package in ("sklearn", "matplotlib"):
        pytest.importorskip(package)
    loss = run("pretrain", **TINY, EPOCHS=2, EPOCH_STEPS=2)
    output = tmp_path / "pretrain_output"
    assert keras.saving.load_model(output / "igpt.keras").palette.num_colors == 8
    log = (output / "log.csv").read_text()
    assert len(log.splitlines()) == 3  # a header and two epochs
    # A finished run is not trained again.
    assert run("pretrain", **TINY, EPOCHS=2, EPOCH_STEPS=2) == loss
    assert (output / "log.csv").read_text() == log


@pytest.mark.usefixtures("_cifar10", "_tiny_preset")
def test_linear_probe_and_low_data(run, tmp_path):
    pytest.importorskip("matplotlib")
    assert set(run("linear_probe")) == {0, 1}
    assert {path.name for path in (tmp_path / "linear_probe_output").iterdir()} == {"report.json", "depth_curve.png"}
    table = run("low_data", LABELS_PER_CLASS=(2, 4), SEEDS=range(2))
    assert {line.labels_per_class for line in table.lines} == {2, 4}
    assert json.loads((tmp_path / "low_data_output" / "table.json").read_text())["num_test"] == 20


@pytest.mark.usefixtures("_cifar10", "_tiny_preset")
def test_finetune_and_tune(run, tmp_path):
    pytest.importorskip("keras_tuner")
    small = {"LABELS_PER_CLASS": 8, "VALIDATION_PICTURES": 6, "BATCH_SIZE": 8, "EPOCHS": 2}
    assert 0 <= run("finetune", **small) <= 1
    assert keras.saving.load_model(tmp_path / "finetune_output" / "classifier.keras").num_classes == 3
    result = run("tune", **{**small, "EPOCHS": 1}, LEARNING_RATES=(0.1, 0.01), TO_BEAT=0.0)
    assert set(result.values) == {"learning_rate", "generative_weight"}
    assert {trial.values["generative_weight"] for trial in result.chosen_on_validation.trials} == {0.0, 1.0}


@pytest.mark.usefixtures("_tiny_preset", "_pictures")
def test_sample(run, tmp_path):
    assert run("sample", PICTURES=("pictures/dark/0.png",)) > 0
    output = tmp_path / "sample_output"
    pictures = {"samples.png", "samples.gif", "completions.png", "surprise.png", "attention.png"}
    assert {path.name for path in output.iterdir()} == pictures


@pytest.mark.usefixtures("_cifar10", "_tiny_preset")
def test_quantize(run):
    assert set(run("quantize")) == {"float32", "int8"}


@pytest.mark.usefixtures("_tiny_preset")
def test_export(run):
    pytest.importorskip("tensorflow")
    if keras.backend.backend() == "torch":
        pytest.skip("a SavedModel of PyTorch's needs torch_xla")
    assert run("export", LAYERS=(1,)) < 1e-5


@pytest.mark.usefixtures("_pictures")
def test_contact_sheet(run, tmp_path):
    images = run("contact_sheet", IMAGE_SIZE=4, ROWS=2)
    assert images.shape == (2 * 8, 4, 4, 3)  # seen whole, and seven times cropped
    assert (tmp_path / "contact_sheet.png").is_file()


@pytest.mark.usefixtures("_pictures")
def test_pretraining_on_a_mixture(run, tmp_path, palette):
    random = np.random.default_rng(0)
    shard = igpt.write_token_shard(tmp_path / "web", "0.npy", random.integers(0, 16, (20, 16)), 16)
    igpt.write_token_manifest(tmp_path / "web", [shard], palette, 4)
    small = {"PRESET": "igpt_nano", "BATCH_SIZE": 4, "EPOCHS": 2, "EPOCH_STEPS": 2}
    results = run("pretrain_mixture", **small)
    assert results == run("pretrain_mixture", **small)  # a finished run is not trained again
    output = tmp_path / "pretrain_mixture_output"
    assert len((output / "log.csv").read_text().splitlines()) == 3  # a header and two epochs
    assert keras.saving.load_model(output / "igpt.keras").palette == palette


@pytest.mark.usefixtures("_cifar10")
def test_distributed_pretraining(run, monkeypatch, tmp_path, capsys):
    if keras.backend.backend() != "jax":
        pytest.skip("Keras distributes on JAX alone")
    preset = types.SimpleNamespace(architecture={**igpt.get_preset("igpt_nano").architecture, "num_layers": 1})
    monkeypatch.setattr(igpt, "get_preset", lambda name: preset)
    losses = run("distributed_pretraining", IMAGE_SIZE=4, BATCH_SIZE=8, EPOCHS=2, EPOCH_STEPS=2)
    assert {"loss", "val_loss"} <= set(losses)
    assert "devices: 1, processes: 1, models: 1 of 0." in capsys.readouterr().out
    output = tmp_path / "distributed_pretraining_output"
    assert keras.saving.load_model(output / "igpt.keras").palette.num_colors == 64
    assert keras.distribution.distribution() is None
