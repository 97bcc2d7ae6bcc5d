"""The quickstart, at a tiny size."""

import json

import keras
import numpy as np
import pytest
from PIL import Image
from tiny import noted

import keras_igpt as igpt
from keras_igpt.commands import photographs, quickstart
from keras_igpt.commands.main import main
from keras_igpt.evaluation.logistic_regression import LogisticFit


@pytest.fixture
def _tiny(monkeypatch):
    for package in ("skimage", "sklearn", "matplotlib"):
        pytest.importorskip(package)
    sizes = {"num_colors": 16, "num_layers": 1, "num_heads": 2, "hidden_dim": 16, "batch_size": 8}
    tiny = quickstart.Size(4, pretraining_steps=4, finetuning_steps=2, probe_examples=42, **sizes)
    monkeypatch.setattr(quickstart, "PHOTOGRAPHS", tiny)
    monkeypatch.setattr(quickstart, "PICTURES", tiny)
    monkeypatch.setattr(photographs, "PATCHES", {"train": 6, "validation": 2, "test": 1})


def assert_told_the_story(output):
    results = json.loads((output / "results.json").read_text())
    pictures = {"palette", "quantization", "loss_curves", "depth_curves", "completions", "samples"}
    assert pictures <= {path.stem for path in output.glob("*.png")}
    assert results["largest difference of logits after reloading"] == 0.0
    for name in ("raw pixels, logistic regression", "fine-tuned, joint loss L_GEN + L_CLF", "fine-tuned, L_CLF alone"):
        assert 0 <= results[name] <= 1
    model = keras.saving.load_model(output / "igpt.keras")
    assert model.palette.num_colors == model.backbone.vocabulary_size


@pytest.mark.usefixtures("_tiny")
def test_on_photographs(tmp_path, capsys, monkeypatch):
    trained = noted(monkeypatch, igpt, "TrainingBatches", lambda examples, *_, **options: len(examples))
    evaluated = noted(monkeypatch, igpt, "EvaluationBatches", lambda examples, *_: len(examples))
    fitted = noted(monkeypatch, igpt.LinearProbe, "fit", lambda _, *parts: tuple(len(part[0]) for part in parts))
    scored = noted(monkeypatch, igpt.LinearProbe, "score", lambda _, test: len(test[0]))
    scored_pixels = noted(monkeypatch, LogisticFit, "score", lambda _, images, labels: len(images))
    tested = noted(monkeypatch, igpt.ImageGPTImageClassifier, "evaluate", lambda _, tokens, *labels, **__: len(tokens))
    main(["quickstart", "--output", str(tmp_path)])
    kinds = len(photographs.PHOTOGRAPHS)
    # Parts are told by their sizes: for a photograph 6 training, 2 validation and 1 test patches.
    assert trained == [6 * kinds, 8 * kinds]
    assert evaluated == [2 * kinds] * 2
    assert fitted == [(42, 10)] * 3
    assert scored == [kinds] * 3
    assert scored_pixels == [kinds]
    assert tested == [kinds] * 2
    assert_told_the_story(tmp_path)
    assert (tmp_path / "strip.png").is_file()
    assert "fine-tuned, joint loss L_GEN + L_CLF" in capsys.readouterr().out


@pytest.mark.usefixtures("_tiny")
def test_on_a_folder(tmp_path, monkeypatch):
    # They are the same whatever the pictures are.
    for stage in ("_probe", "_finetune"):
        monkeypatch.setattr(quickstart, stage, lambda *_: None)
    random = np.random.default_rng(0)
    for name in ("dark", "bright"):
        (tmp_path / "in" / name).mkdir(parents=True)
        for index in range(12):
            pixels = random.integers(0, 256, (6, 6, 3)).astype("uint8")
            Image.fromarray(pixels).save(tmp_path / "in" / name / f"{index}.png")
    output = tmp_path / "out"
    main(["quickstart", "--images", str(tmp_path / "in"), "--steps", "2", "--output", str(output)])
    results = json.loads((output / "results.json").read_text())
    assert results["largest difference of logits after reloading"] == 0.0
    assert (output / "completions.png").is_file()
    assert not (output / "strip.png").exists()


def test_too_few_steps_are_refused(tmp_path):
    with pytest.raises(SystemExit, match="--steps must be an integer of at least 2"):
        main(["quickstart", "--steps", "1", "--output", str(tmp_path)])


def test_a_strip_keeps_what_was_seen(palette):
    backbone = igpt.ImageGPTBackbone(vocabulary_size=16, image_size=4, num_layers=1, num_heads=1, hidden_dim=8)
    strip = palette.decode(np.random.default_rng(0).integers(0, 16, 44), (4, 11))
    drawn = quickstart.complete_strip(igpt.ImageGPTCausalLM(backbone, palette), strip, keep_rows=2, seed=0)
    assert drawn.shape == (4, 10, 3)
    np.testing.assert_array_equal(drawn[:2], strip[:2, :10])
    assert (drawn[2:] != strip[2:, :10]).any()
