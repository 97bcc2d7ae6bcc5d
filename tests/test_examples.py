"""Every example, benchmark and README block runs, at a tiny size."""

import ast
import importlib.util
import json
import re
import sys
import types
import zlib
from pathlib import Path

import keras
import numpy as np
import pytest
from conftest import prepare

import keras_igpt as igpt

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module", autouse=True)
def _folders_are_on_the_path():
    """As for a script: examples and benchmarks import what they share from their own folders."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "examples")
        patch.syspath_prepend(ROOT / "benchmarks")
        yield


def load(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.py")), ids=lambda path: path.name)
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


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    """A small CIFAR-10 and the folder that examples/pretrain.py has written for it."""
    pytest.importorskip("keras_tuner")
    pytest.importorskip("matplotlib")
    root = tmp_path_factory.mktemp("study")
    prepare(root, "cifar10", {"train": 100, "test": 12}, size=9)
    example = load(ROOT / "examples" / "pretrain.py")
    command = ["--dataset", "cifar10", "--data-dir", str(root), "--output", str(root / "runs" / "ar")]
    command += ["--image-size", "4", "--colors", "8", "--layers", "1", "--heads", "1", "--width", "8"]
    command += ["--batch-size", "16", "--updates", "8", "--updates-per-epoch", "4", "--search-updates", "4"]
    return root, command, example.main([*command, "--rates", "0.1", "0.01"])


def test_pretrain(pretrained):
    root, command, config = pretrained
    output = root / "runs" / "ar"
    assert config["learning_rate"] in (0.1, 0.01)
    assert {path.name for path in (output / "epochs").iterdir()} == {"epoch-01.keras", "epoch-02.keras"}
    assert keras.saving.load_model(output / "igpt.keras").palette.num_colors == 8
    lines = (output / "log.csv").read_text().splitlines()
    assert len(lines) == 3  # a header and two epochs
    again = load(ROOT / "examples" / "pretrain.py").main([*command, "--rates", "0.1", "0.01"])
    assert again == config
    assert (output / "log.csv").read_text().splitlines() == lines
    assert str(root) not in (output / "config.json").read_text()


def test_cifar10_study(pretrained, capsys):
    root, _, _ = pretrained
    example = load(ROOT / "examples" / "cifar10_study.py")
    options = ["--runs", str(root / "runs"), "--data-dir", str(root), "--models", "ar", "random"]
    options += ["--starts", "AR, joint loss", "AR, L_CLF alone", "--labels-per-class", "8", "--batch-size", "8"]
    options += ["--rates", "0.01", "--epochs", "2", "--seeds", "2", "--to-beat", "0", "--labels", "2", "4"]
    for part in ("probes", "finetuning", "joint-loss", "low-data", "pictures"):
        example.main([part, *options])
    study = root / "runs" / "study"
    report = json.loads((study / "finetuning" / "AR_joint_loss" / "report.json").read_text())
    assert report["num_refit"] == 24 + 10
    assert 0 <= report["final_on_test"]["accuracy"] <= 1
    assert {path.name for path in study.glob("*.png")} == {"depth_curves.png", "depth_curves_ar.png"}
    assert len(list((study / "joint_loss").iterdir())) == 4
    assert "AR, L_CLF alone" in capsys.readouterr().out
    # What is there is not done anew.
    changed = {path: path.stat().st_mtime_ns for path in study.rglob("*.json")}
    example.main(["probes", *options])
    assert changed == {path: path.stat().st_mtime_ns for path in study.rglob("*.json")}


def test_linear_probe_and_low_data(pretrained, tmp_path):
    root = pretrained[0]
    options = ["--model", str(root / "runs" / "ar" / "igpt.keras"), "--dataset", "cifar10", "--data-dir", str(root)]
    load(ROOT / "examples" / "linear_probe.py").main([*options, "--output", str(tmp_path / "probe")])
    assert list((tmp_path / "probe").glob("*.json"))
    assert list((tmp_path / "probe").glob("*.png"))
    load(ROOT / "examples" / "low_data.py").main([*options, "--output", str(tmp_path / "low"), "--labels", "2", "4"])
    assert list((tmp_path / "low").glob("*.json"))


def test_finetune(pretrained, tmp_path):
    root = pretrained[0]
    options = ["--model", str(root / "runs" / "ar" / "igpt.keras"), "--dataset", "cifar10", "--data-dir", str(root)]
    options += ["--output", str(tmp_path), "--batch-size", "8", "--epochs", "2", "--patience", "1", "--layer", "1"]
    results = load(ROOT / "examples" / "finetune.py").main(options)
    assert 0 <= results["test accuracy"] <= 1
    assert json.loads((tmp_path / "results.json").read_text()) == results


def test_tune(pretrained, tmp_path):
    root = pretrained[0]
    options = ["--model", str(root / "runs" / "ar" / "igpt.keras"), "--dataset", "cifar10", "--data-dir", str(root)]
    options += ["--batch-size", "8", "--epochs", "1", "--rates", "0.1", "0.01", "--to-beat", "0"]
    tune = load(ROOT / "examples" / "tune.py")
    frozen = tune.main([*options, "--frozen", "--layer", "0", "--output", str(tmp_path / "frozen")])
    assert set(frozen.values) == {"learning_rate"}
    once = ["--rates", "0.1", "--weights", "0.5", "1"]
    swept = tune.main([*options, *once, "--output", str(tmp_path / "swept")])
    assert set(swept.values) == {"learning_rate", "generative_weight"}
    assert len({trial.values["generative_weight"] for trial in swept.chosen_on_validation.trials}) == 2


def test_quantize_and_export(pretrained, tmp_path):
    root = pretrained[0]
    model = ["--model", str(root / "runs" / "ar" / "igpt.keras")]
    options = ["--dataset", "cifar10", "--data-dir", str(root), "--pictures", "4", "--batch-size", "4"]
    results = load(ROOT / "examples" / "quantize.py").main([*model, *options, "--output", str(tmp_path / "int8")])
    assert set(results) == {"float", "int8"}
    if keras.backend.backend() == "torch":
        pytest.skip("a SavedModel of PyTorch's needs torch_xla")
    export = load(ROOT / "examples" / "export.py")
    assert export.main([*model, "--layers", "1", "--output", str(tmp_path / "saved")]) < 1e-5


def test_sample(pretrained, tmp_path):
    from PIL import Image

    root = pretrained[0]
    example = load(ROOT / "examples" / "sample.py")
    model = ["--model", str(root / "runs" / "ar" / "igpt.keras")]
    example.main([*model, "--num-images", "3", "--output", str(tmp_path / "drawn")])
    assert list((tmp_path / "drawn").glob("*.png"))
    Image.fromarray(np.full((9, 7, 3), 90, "uint8")).save(tmp_path / "picture.png")
    options = ["--complete", str(tmp_path / "picture.png"), "--keep-rows", "2", "--num-images", "2"]
    example.main([*model, *options, "--output", str(tmp_path / "completed")])
    assert list((tmp_path / "completed").glob("*.png"))


def test_sample_names_a_file_that_it_cannot_read(tmp_path, capsys):
    from PIL import Image

    example = load(ROOT / "examples" / "sample.py")
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype("uint8")
    Image.fromarray(noise).save(tmp_path / "good.jpg")
    (tmp_path / "corrupt.jpg").write_bytes((tmp_path / "good.jpg").read_bytes()[:1000])
    options = ["--complete", str(tmp_path / "good.jpg"), str(tmp_path / "corrupt.jpg")]
    with pytest.raises(SystemExit):
        example.main([*options, "--output", str(tmp_path / "completed")])
    assert "corrupt.jpg" in capsys.readouterr().err.splitlines()[-1]


BENCHMARKS = ROOT / "benchmarks"


def test_logistic_regression(tmp_path, monkeypatch):
    pytest.importorskip("sklearn")
    prepare(tmp_path, "cifar10", {"train": 60, "test": 12}, size=8, noise=True)
    benchmark = load(BENCHMARKS / "logistic_regression.py")
    # Without processes of their own.
    in_turn = lambda name, strength, path: (benchmark.fit_depth if isinstance(strength, list) else benchmark.fit)(  # noqa: E731
        name, strength, path
    )
    monkeypatch.setattr(benchmark, "run", in_turn)
    options = ["--data-dir", str(tmp_path), "--width", "8", "--strengths", "0.1", "--rounds", "1"]
    assert len(benchmark.main(options)) == 4


def test_generation_benchmark():
    for package in ("transformers", "torch", "safetensors"):
        pytest.importorskip(package)
    sizes = {"vocabulary_size": 8, "image_size": 4, "num_layers": 1, "num_heads": 2, "hidden_dim": 8}
    # The peer is on PyTorch.
    peers = ["use_cache"] if keras.backend.backend() == "torch" else []
    contestants = ["--only", f"keras_igpt, {keras.backend.backend()}", *peers, "--shape", json.dumps(sizes)]
    results = load(BENCHMARKS / "generation.py").main(["--rounds", "1", "--batch-sizes", "2", "--greedy", *contestants])
    assert len(results) == 2 + len(peers)
    # The most probable tokens of the same weights.
    assert len({tuple(figures["tokens"]) for figures in results.values()}) == 1


def test_contact_sheet(tmp_path):
    for package in ("matplotlib", "PIL"):
        pytest.importorskip(package)
    from PIL import Image

    for name in ("dark", "bright"):
        (tmp_path / "in" / name).mkdir(parents=True)
        for index in range(3):
            pixels = np.random.default_rng(index).integers(0, 256, (40, 50, 3)).astype("uint8")
            Image.fromarray(pixels).save(tmp_path / "in" / name / f"{index}.jpg")
    output = tmp_path / "sheet.png"
    example = load(ROOT / "examples" / "contact_sheet.py")
    images = example.main(["--images", str(tmp_path / "in"), "--image-size", "8", "--output", str(output)])
    assert images.shape == (2 * 8, 8, 8, 3)  # one training picture a class, seen and seven times cropped
    assert output.is_file()


def test_pretraining_on_a_mixture(tmp_path, palette):
    pillow = pytest.importorskip("PIL.Image")
    random = np.random.default_rng(0)
    for name in ("dark", "bright"):
        (tmp_path / "in" / name).mkdir(parents=True)
        for index in range(4):
            pixels = random.integers(0, 256, (6, 5, 3)).astype("uint8")
            pillow.fromarray(pixels).save(tmp_path / "in" / name / f"{index}.png")
    shard = igpt.write_token_shard(tmp_path / "web", "0.npy", random.integers(0, 16, (20, 16)), 16)
    igpt.write_token_manifest(tmp_path / "web", [shard], palette, 4)
    example = load(ROOT / "examples" / "pretrain_mixture.py")
    command = ["--web", str(tmp_path / "web"), "--images", str(tmp_path / "in"), "--preset", "igpt_nano"]
    command += ["--batch-size", "4", "--updates", "4", "--updates-per-epoch", "2", "--output", str(tmp_path / "out")]
    results = example.main(command)
    assert results == example.main(command)  # a finished run is not trained again
    assert len((tmp_path / "out" / "log.csv").read_text().splitlines()) == 3  # a header and two epochs
    assert keras.saving.load_model(tmp_path / "out" / "igpt.keras").palette == palette


def test_distributed_pretraining(tmp_path, monkeypatch, capsys):
    pytest.importorskip("skimage")
    if keras.backend.backend() != "jax":
        pytest.skip("Keras distributes on JAX alone")
    example = load(ROOT / "examples" / "distributed_pretraining.py")
    monkeypatch.setattr(example, "PATCHES", 40)
    preset = types.SimpleNamespace(architecture={**igpt.get_preset("igpt_nano").architecture, "num_layers": 1})
    monkeypatch.setattr(igpt, "get_preset", lambda name: preset)
    tiny = ["--image-size", "4", "--batch-size", "8", "--epochs", "2", "--steps", "2"]
    losses = example.main([*tiny, "--output", str(tmp_path)])
    assert {"loss", "val_loss"} <= set(losses)
    assert "devices: 1, processes: 1, models: 1 of 0." in capsys.readouterr().out
    assert keras.saving.load_model(tmp_path / "igpt.keras").palette.num_colors == 64
    assert keras.distribution.distribution() is None


def test_benchmark_of_the_training_step(capsys):
    """One contestant in a process of its own, at a tiny size."""
    shape = {"vocabulary_size": 8, "image_size": 4, "num_layers": 1, "num_heads": 2, "hidden_dim": 8}
    name = f"keras_igpt, {keras.backend.backend()}"
    arguments = ["--rounds", "2", "--batch-size", "2", "--shape", json.dumps(shape), "--only", name]
    figures = load(BENCHMARKS / "train_step.py").main(arguments)
    assert set(figures) == {name}
    assert 0 < figures[name]["loss"] < 3
    assert f"| {name} |" in capsys.readouterr().out


def test_the_peers_of_the_training_step_learn_the_same_task():
    """From all tokens of the picture, the first one included: log 8 at first."""
    pytest.importorskip("transformers")
    pytest.importorskip("torch")
    benchmark = load(BENCHMARKS / "train_step.py")
    shape = {"vocabulary_size": 8, "image_size": 4, "num_layers": 1, "num_heads": 2, "hidden_dim": 8}
    for name in benchmark.PEERS:
        step = benchmark.make_transformers_step(name.replace("compile", "eager"), shape, batch_size=2)
        losses = [step() for _ in range(30)]
        assert losses[0] == pytest.approx(np.log(8), abs=0.3)
        assert losses[-1] < losses[0]


def test_benchmark_of_the_gpu(tmp_path, monkeypatch):
    pytest.importorskip("jax")
    pytest.importorskip("torch")
    if keras.backend.backend() != "torch":
        pytest.skip("the contestants choose their own backends: once is enough")
    # torch.compile takes half a minute on a CPU, and is not what is tested.
    monkeypatch.setenv("TORCHDYNAMO_DISABLE", "1")
    output = tmp_path / "gpu.json"
    arguments = ["--toy", "--rounds", "1", "--steps", "2", "--output", str(output)]
    names = ["toy, keras_igpt jax", "toy, plain torch", "toy, keras_igpt torch, eager"]
    report = load(BENCHMARKS / "gpu.py").main([*arguments, "--only", *names])
    assert json.loads(output.read_text()) == report
    assert set(report["results"]) == set(names)
    for result in report["results"].values():
        assert "error" not in result
        assert result["tokens_per_second"] > 0


def test_benchmark_of_palette_encoding():
    for package in ("torch", "transformers", "sklearn"):
        pytest.importorskip(package)
    result = load(BENCHMARKS / "palette_encoding.py").main(
        ["--rounds", "1", "--images", "2", "--colors", "4096", "--palette-size", "16"]
    )
    assert result.pop("differences") == 0
    assert len(result) == 3


def test_benchmark_of_the_data_pipeline(tmp_path, monkeypatch):
    prepare(tmp_path, "cifar10", {"train": 40, "test": 2}, size=32, noise=True)
    prepare(tmp_path, "imagenet2012", {"train": 40, "validation": 2}, size=40, noise=True)
    module = load(BENCHMARKS / "data_pipeline.py")
    monkeypatch.setattr(module, "BATCH_SIZE", 8)
    seconds = module.main(["--data-dir", str(tmp_path), "--rounds", "1", "--steps", "2"])
    assert len(seconds) == 5


def test_benchmark_of_normalization(monkeypatch):
    if keras.backend.backend() != "jax":
        pytest.skip("measures JAX")
    tiny = {"vocabulary_size": 128, "image_size": 4, "num_layers": 1, "num_heads": 1, "hidden_dim": 8}
    monkeypatch.setattr(igpt.ImageGPTBackbone, "from_preset", lambda *_, **__: igpt.ImageGPTBackbone(**tiny))
    medians = load(BENCHMARKS / "normalization.py").main(["--rounds", "1", "--batch-size", "2"])
    assert set(medians) == {"Keras operation", "matrix products"}


def test_benchmark_of_curation(tmp_path, monkeypatch, capsys):
    pytest.importorskip("apache_beam")
    from curation_process import encoded, photograph

    from keras_igpt.data.image_files import ImageReader

    class Photographs(ImageReader):
        upright = False

        def __init__(self, _folder, *names):
            self.first = 1000 * zlib.crc32(repr(names).encode())

        def __len__(self):
            return 50

        def read(self, number):
            return encoded(photograph(self.first + number)), 0

        def name(self, number):
            return str(number)

        def fingerprint(self):
            return {}

    benchmark = load(BENCHMARKS / "curation.py")
    for module in (benchmark, sys.modules["web_pictures"]):
        monkeypatch.setattr(module, "prepared", Photographs)
    monkeypatch.setattr(benchmark, "REFERENCE", 40)
    monkeypatch.setattr(benchmark, "EVALUATION", 10)
    monkeypatch.setattr(benchmark, "EXTRACTORS", {"by hand": benchmark.load_color_statistics})
    monkeypatch.setattr(benchmark, "RULES", (benchmark.Rules(quantile=0),))
    benchmark.main(["separate", "--data-dir", "", "--folder", str(tmp_path), "--cifar", "10", "--junk", "1"])
    assert re.search(
        r"'huge': 1.*faults {.*00007\.tar.*precision 0\.\d+, recall 0\.\d+", capsys.readouterr().out, re.DOTALL
    )
    benchmark.main(["duplicates", "--hashes", "10000"])
    assert "10,000 hashes: 100 copies" in capsys.readouterr().out


def test_links_of_the_readme_lead_somewhere():
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", (ROOT / "README.md").read_text())
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []


def readme_blocks():
    return re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)


def test_the_readme_runs(tmp_path, monkeypatch):
    """All blocks of the README in order, in one namespace, with the names it takes for granted made here."""
    for package in ("sklearn", "matplotlib"):
        pytest.importorskip(package)
    image = pytest.importorskip("PIL.Image")
    monkeypatch.chdir(tmp_path)
    blocks = readme_blocks()
    assert len(blocks) >= 3
    random = np.random.default_rng(0)
    tiny = {"vocabulary_size": 16, "image_size": 4, "num_layers": 1, "num_heads": 2, "hidden_dim": 16}
    original = igpt.ImageGPTBackbone.from_preset.__func__
    monkeypatch.setattr(
        igpt.ImageGPTBackbone,
        "from_preset",
        classmethod(lambda cls, name, **overrides: original(cls, name, **{**tiny, **overrides})),
    )
    fit_palette = igpt.ColorPalette.fit
    monkeypatch.setattr(igpt.ColorPalette, "fit", lambda images, num_colors: fit_palette(images, 16))
    namespace = {}
    for name, count in (("train", 24), ("validation", 12), ("test", 12)):
        namespace[f"{name}_images"] = random.integers(0, 256, (count, 4, 4, 3)).astype("uint8")
        namespace[f"{name}_labels"] = np.arange(count) % 10
    for name in "abcdefghij":
        (tmp_path / "pictures" / name).mkdir(parents=True)
        for index in range(4):
            pixels = random.integers(0, 256, (4, 4, 3)).astype("uint8")
            image.fromarray(pixels).save(tmp_path / "pictures" / name / f"{index}.png")
    sizes = {
        "keep_rows=4": "keep_rows=2",
        "epochs, epoch_steps = 5": "epochs, epoch_steps = 2",
        "epochs=5,": "epochs=1,",
        # Few random pictures teach no class.
        'objective="val_accuracy"': 'objective="val_loss"',
        "image_size=8": "image_size=4",
        "batch_size=64": "batch_size=8",
        "// 64": "// 8",
    }
    read = (ROOT / "README.md").read_text()
    assert all(size in read for size in sizes)
    for block in blocks:
        for large, small in sizes.items():
            block = block.replace(large, small)
        exec(compile(block, "README.md", "exec"), namespace)
    assert (tmp_path / "igpt.keras").is_file()
    assert (tmp_path / "depth_curve.png").is_file()
