"""The packed run on a lent GPU, rehearsed from end to end at a tiny size."""

import importlib
import json
from dataclasses import asdict
from pathlib import Path

import keras
import numpy as np
import pytest
from conftest import make_causal_lm, random_tokens

import keras_igpt as igpt
from keras_igpt.training.checkpoint_file import read_checkpoint

# 40 training pictures, 5 steps an epoch.
ROWS = {"train": 40, "validation": 16, "test": 16}
TRAIN = ["--epochs", "2", "--batch-size", "8", "--checkpoint-every", "2", "--peak-tflops", "1", "--pictures", "4"]
SIZES = json.dumps({"num_layers": 1, "num_heads": 2, "hidden_dim": 16})


@pytest.fixture
def benchmark(monkeypatch):
    for package in ("sklearn", "matplotlib"):
        pytest.importorskip(package)
    if keras.backend.backend() != "jax":
        pytest.skip("as on the GPU")
    monkeypatch.syspath_prepend(Path(__file__).parent.parent / "benchmarks")
    module = importlib.import_module("packed_pretraining")
    monkeypatch.setattr(igpt, "load_dataset", lambda *_: tiny_pictures())
    return module


def tiny_pictures():
    random = np.random.default_rng(0)
    parts = (
        igpt.LabeledImages(random.integers(0, 256, (rows, 4, 4, 3)).astype("uint8"), np.arange(rows) % 4)
        for rows in ROWS.values()
    )
    return igpt.DataSplits(*parts, ("ant", "bee", "cat", "dog"))


def last_state(run):
    path = max((run / "checkpoints").glob("step-*.npz"))
    return path.name, read_checkpoint(path)[1]


def test_the_packed_run(benchmark, tmp_path, monkeypatch, capsys):
    packed = ["--packed", str(tmp_path / "packed")]

    def call(command, run, output, *options):
        folders = [*packed, "--run", str(tmp_path / run), "--output", str(tmp_path / output)]
        return benchmark.main([command, *folders, *options])

    def train(run, output, *options):
        return call("train", run, output, *TRAIN, "--sizes", SIZES, *options)

    # === What travels is what was packed ===
    sizes = benchmark.main(["pack", *packed, "--colors", "16", "--image-size", "4", "--no-wheels"])
    assert "train.npy.xz" in sizes
    assert "in all" in capsys.readouterr().out
    data, palette = benchmark.load(tmp_path / "packed")
    pictures = tiny_pictures()
    for part in ROWS:
        assert (data[part].token_ids == palette.encode(pictures[part].images)).all()
        assert (data[part].labels == pictures[part].labels).all()

    # === In one call ===
    monkeypatch.setattr(benchmark, "PART", 1 << 13)
    whole = train("whole", "out")
    assert whole["step"] == whole["of_epochs"] * 5 == 10
    assert 0 < whole["mfu_causal"] < whole["mfu_full"]
    returned = {path.name: path.stat().st_size for path in (tmp_path / "out").iterdir()}
    assert {"weights.npz.part-00", "weights.npz.part-01", "log.csv", "results.json", "samples.png"} <= set(returned)
    assert max(size for name, size in returned.items() if "part" in name) == benchmark.PART

    # === Killed in the middle of an epoch, then out of time at its end, then done ===
    draw = benchmark.draw
    monkeypatch.setattr(benchmark, "draw", lambda *_: None)

    def kill(self, batch, logs=None):
        if batch == 3:
            raise KeyboardInterrupt

    def kill_later(self, epoch, logs=None):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(benchmark.StopInTime, "on_epoch_end", kill_later)
        with pytest.raises(KeyboardInterrupt):
            train("cut", "cut_off")
    cut_off = json.loads((tmp_path / "cut_off" / "results.json").read_text())
    assert cut_off["epoch"] == 1
    assert {"weights.npz.part-00", "log.csv"} <= {path.name for path in (tmp_path / "cut_off").iterdir()}

    with monkeypatch.context() as patch:
        patch.setattr(benchmark.StopInTime, "on_train_batch_begin", kill)
        with pytest.raises(KeyboardInterrupt):
            train("parts", "killed")
    assert last_state(tmp_path / "parts")[0] == "step-00000002.npz"
    assert not list((tmp_path / "killed").iterdir())
    assert train("parts", "first", "--minutes", "0")["epoch"] == 1
    resumed = train("parts", "second")
    assert [resumed[name] for name in ("loss", "val_loss")] == [whole[name] for name in ("loss", "val_loss")]
    name, state = last_state(tmp_path / "parts")
    assert name == last_state(tmp_path / "whole")[0] == "step-00000010.npz"
    for array, expected in zip(state, last_state(tmp_path / "whole")[1], strict=True):
        assert array.tobytes() == expected.tobytes()
    assert [line["epoch"] for line in benchmark.read_log(tmp_path / "second" / "log.csv")] == ["1", "2"]

    # === On another machine, with rounded weights and moments at zero ===
    elsewhere = train("elsewhere", "third", "--weights", str(tmp_path / "first"))
    assert elsewhere["step"] == 10
    assert elsewhere["val_loss"] == pytest.approx(whole["val_loss"], rel=0.01)
    assert elsewhere["val_loss"] != whole["val_loss"]
    with pytest.raises(SystemExit, match="checkpoints"):
        train("elsewhere", "third", "--weights", str(tmp_path / "first"))

    # === Judged, from what came back ===
    monkeypatch.setattr(benchmark, "draw", draw)
    options = ["--weights", str(tmp_path / "out"), "--batch-size", "8", "--pictures", "4", "--finetuning-epochs", "1"]
    judged = call("judge", "judged", "judgement", *options)
    assert json.loads((tmp_path / "judgement" / "judged.json").read_text()) == judged
    for interval in (judged["loss"], judged["probe"]["accuracy"], judged["finetune"]["accuracy"]):
        assert interval["low"] <= interval["estimate"] <= interval["high"]
    assert judged["loss"]["estimate"] == pytest.approx(np.log(16), abs=0.5)
    assert set(judged["probe"]["accuracies"]) == {"0", "1"}
    files = {path.name for path in (tmp_path / "judgement").iterdir()}
    assert files == {"judged.json", "depth_curve.png", "samples.png", "completions.png", "finetuning.csv"}


def test_utilisation_counts_attention_both_ways(benchmark):
    """By llm-foundry's formula in full: 6 N + 12 L D T a token, N without the embeddings, which are looked up."""
    counted = importlib.import_module("utilisation")
    large = igpt.get_preset("igpt_large").architecture
    layers, width, tokens = large["num_layers"], large["hidden_dim"], large["image_size"] ** 2
    matrices = 12 * layers * width**2 + width * large["vocabulary_size"]
    flops = counted.training_flops_per_token(large)
    assert flops["full"] == 6 * matrices + 12 * layers * width * tokens
    assert flops["causal"] == 6 * matrices + 12 * layers * width * (tokens + 1) / 2
    shares = counted.utilisation(large, 1e12 / flops["full"], peak=4.0)
    assert shares["full"] == pytest.approx(0.25)
    assert counted.peak_tflops("NVIDIA H100 80GB HBM3") == 989
    assert counted.utilisation(large, 1.0, counted.peak_tflops("cpu")) == {"causal": None, "full": None}


def test_the_benchmark_of_the_gpu_draws_with_the_packed_model(benchmark, palette, tmp_path, capsys):
    gpu = importlib.import_module("gpu")
    # Of an untrained model every guess is right.
    igpt.save_preset_weights(make_causal_lm(palette, num_layers=1), tmp_path / "weights.npz")
    drawn = gpu.drawings({"packed": str(tmp_path / "weights.npz")}, "jax")
    assert {(drawing.num_images, drawing.lookahead) for drawing in drawn.values()} == {
        (num_images, lookahead) for num_images in (1, 32) for lookahead in (1, None, 8)
    }
    drawing = drawn["draw packed, jax, 1 at a time, lookahead"]
    task = {"contestant": asdict(drawing), "draws": True, "batch_size": 1, "shape": {}}
    run, num_tokens, _ = gpu.make_run(task)
    assert num_tokens == 16
    assert 1 <= run(2) <= 4
    result = {"tokens": 16, "seconds": [0.5, 0.5], "passes": 2.0, "peak_memory": 2**30, "first_step": 3.0}
    result |= gpu.rates(task, result, {})
    assert result["tokens_per_second"] == 32
    gpu.print_row("packed", task, result)
    assert capsys.readouterr().out == "| packed | 1 | 32 | 32 to 32 | 2.0 | 1.0 | 3 |\n"


def test_the_benchmark_of_the_gpu_gives_utilisation_both_ways(benchmark, capsys):
    gpu = importlib.import_module("gpu")
    task = {"draws": False, "batch_size": 2, "shape": gpu.SHAPES["large-1024"]}
    result = {"tokens": 2048, "seconds": [0.01, 0.01], "kernel": "cudnn", "peak_memory": 2**30, "first_step": 3.0}
    result |= gpu.rates(task, result, {"tflops": 494.5, "peak_tflops": 989})
    shares = result["utilisation"]
    assert 0 < shares["causal"] < shares["full"]
    assert result["of_measured_products"] == pytest.approx(2 * shares["causal"])
    gpu.print_row("large", task, result)
    assert f"| {shares['causal']:.1%} | {shares['full']:.1%} |" in capsys.readouterr().out


def test_the_benchmark_of_the_gpu_opens_random_and_trained_models(benchmark):
    gpu = importlib.import_module("gpu")
    assert gpu.open_language_model("igpt_cifar10_8x8", {}).backbone.num_tokens == 64
    random = gpu.open_language_model("random", gpu.TOY_SHAPES["toy"])
    # Neither flat nor the same at each position.
    assert np.ptp(random.predict(random_tokens(2), verbose=0)[0, 1]) > 0.1
