"""The packed run on a lent GPU, rehearsed from end to end at a tiny size."""

import importlib
import json
from pathlib import Path

import keras
import numpy as np
import pytest

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

    with monkeypatch.context() as patch:
        patch.setattr(benchmark.StopInTime, "on_train_batch_begin", kill)
        with pytest.raises(KeyboardInterrupt):
            train("parts", "killed")
    assert last_state(tmp_path / "parts")[0] == "step-00000002.npz"
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
