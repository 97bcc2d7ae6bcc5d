"""Every benchmark runs, at a tiny size."""

import json
import re
import sys
import zlib
from pathlib import Path

import keras
import numpy as np
import pytest
from conftest import load_script, prepare

import keras_igpt as igpt
from keras_igpt.commands.main import main

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture(scope="module", autouse=True)
def _folder_is_on_the_path():
    """As for a script: benchmarks import what they share from their own folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCHMARKS)
        yield


def test_cifar10_study(tmp_path, capsys):
    for package in ("keras_tuner", "matplotlib"):
        pytest.importorskip(package)
    root = tmp_path
    prepare(root, "cifar10", {"train": 100, "test": 12}, size=9)
    command = ["pretrain", "--dataset", "cifar10", "--data-dir", str(root), "--output", str(root / "runs" / "ar")]
    command += ["--image-size", "4", "--colors", "8", "--layers", "1", "--heads", "1", "--width", "8"]
    main([*command, "--batch-size", "16", "--epochs", "2", "--epoch-steps", "4", "--keep-epochs", "--rates", "0.01"])
    benchmark = load_script(BENCHMARKS / "cifar10_study.py")
    options = ["--runs", str(root / "runs"), "--data-dir", str(root), "--models", "ar", "random"]
    options += ["--starts", "AR, joint loss", "AR, L_CLF alone", "--labels-per-class", "8", "--batch-size", "8"]
    options += ["--rates", "0.01", "--epochs", "2", "--seeds", "2", "--to-beat", "0", "--labels", "2", "4"]
    for part in ("probes", "finetuning", "joint-loss", "low-data", "pictures"):
        benchmark.main([part, *options])
    study = root / "runs" / "study"
    report = json.loads((study / "finetuning" / "AR_joint_loss" / "report.json").read_text())
    assert report["num_refit"] == 24 + 10
    assert 0 <= report["final_on_test"]["accuracy"] <= 1
    assert {path.name for path in study.glob("*.png")} == {"depth_curves.png", "depth_curves_ar.png"}
    assert len(list((study / "joint_loss").iterdir())) == 4
    assert "AR, L_CLF alone" in capsys.readouterr().out
    # What is there is not done again.
    changed = {path: path.stat().st_mtime_ns for path in study.rglob("*.json")}
    benchmark.main(["probes", *options])
    assert changed == {path: path.stat().st_mtime_ns for path in study.rglob("*.json")}


def test_claims(tmp_path):
    """The results' table is that of the reports beside it."""
    pytest.importorskip("matplotlib")
    rows = load_script(BENCHMARKS / "claims.py").main(["--output", str(tmp_path / "claims.png")])
    text = (BENCHMARKS.parent / "RESULTS.md").read_text(encoding="utf-8")
    assert [row for row in rows if row not in text] == []
    assert (tmp_path / "claims.png").is_file()


def test_logistic_regression(tmp_path, monkeypatch):
    pytest.importorskip("sklearn")
    prepare(tmp_path, "cifar10", {"train": 60, "test": 12}, size=8, noise=True)
    benchmark = load_script(BENCHMARKS / "logistic_regression.py")
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
    results = load_script(BENCHMARKS / "generation.py").main(
        ["--rounds", "1", "--batch-sizes", "2", "--greedy", *contestants]
    )
    assert len(results) == 2 + len(peers)
    # The most probable tokens of the same weights.
    assert len({tuple(figures["tokens"]) for figures in results.values()}) == 1


def test_benchmark_of_the_training_step(capsys):
    """One contestant in a process of its own, at a tiny size."""
    shape = {"vocabulary_size": 8, "image_size": 4, "num_layers": 1, "num_heads": 2, "hidden_dim": 8}
    name = f"keras_igpt, {keras.backend.backend()}"
    arguments = ["--rounds", "2", "--batch-size", "2", "--shape", json.dumps(shape), "--only", name]
    figures = load_script(BENCHMARKS / "train_step.py").main(arguments)
    assert set(figures) == {name}
    assert 0 < figures[name]["loss"] < 3
    assert f"| {name} |" in capsys.readouterr().out


def test_the_peers_of_the_training_step_learn_the_same_task():
    """From all tokens of the picture, the first one included: log 8 at first."""
    pytest.importorskip("transformers")
    pytest.importorskip("torch")
    benchmark = load_script(BENCHMARKS / "train_step.py")
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
    report = load_script(BENCHMARKS / "gpu.py").main([*arguments, "--only", *names])
    assert json.loads(output.read_text()) == report
    assert set(report["results"]) == set(names)
    for result in report["results"].values():
        assert "error" not in result
        assert result["tokens_per_second"] > 0


def test_benchmark_of_palette_encoding():
    for package in ("torch", "transformers", "sklearn"):
        pytest.importorskip(package)
    result = load_script(BENCHMARKS / "palette_encoding.py").main(
        ["--rounds", "1", "--images", "2", "--colors", "4096", "--palette-size", "16"]
    )
    assert result.pop("differences") == 0
    assert len(result) == 3


def test_benchmark_of_the_data_pipeline(tmp_path, monkeypatch):
    prepare(tmp_path, "cifar10", {"train": 40, "test": 2}, size=32, noise=True)
    prepare(tmp_path, "imagenet2012", {"train": 40, "validation": 2}, size=40, noise=True)
    module = load_script(BENCHMARKS / "data_pipeline.py")
    monkeypatch.setattr(module, "BATCH_SIZE", 8)
    seconds = module.main(["--data-dir", str(tmp_path), "--rounds", "1", "--steps", "2"])
    assert len(seconds) == 5


def test_benchmark_of_normalization(monkeypatch):
    if keras.backend.backend() != "jax":
        pytest.skip("measures JAX")
    tiny = {"vocabulary_size": 128, "image_size": 4, "num_layers": 1, "num_heads": 1, "hidden_dim": 8}
    monkeypatch.setattr(igpt.ImageGPTBackbone, "from_preset", lambda *_, **__: igpt.ImageGPTBackbone(**tiny))
    medians = load_script(BENCHMARKS / "normalization.py").main(["--rounds", "1", "--batch-size", "2"])
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

    benchmark = load_script(BENCHMARKS / "curation.py")
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


def test_benchmark_of_scaling(tmp_path):
    for package in ("scipy", "matplotlib"):
        pytest.importorskip(package)
    if keras.backend.backend() != "torch":
        pytest.skip("twelve models: compiling each takes long")
    prepare(tmp_path, "cifar10", {"train": 90, "test": 10}, size=8, noise=True)
    options = ["--data-dir", str(tmp_path), "--budgets", "4e9", "8e9", "1.2e10", "--widths", "8", "12", "16"]
    options += ["--held-out-widths", "8", "12", "16", "--output", str(tmp_path / "out")]
    result = load_script(BENCHMARKS / "scaling.py").main(options)
    assert json.loads((tmp_path / "out" / "forecast.json").read_text()) == result
    assert [run["size"] for run in result["held_out"]] == ["width 8", "width 12", "width 16"]
    assert (tmp_path / "out" / "scaling.png").is_file()
