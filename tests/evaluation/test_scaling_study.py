import json

import keras
import numpy as np
import pytest

import keras_igpt as igpt
from keras_igpt.evaluation import scaling_study as module
from tests.conftest import random_tokens

SIZES = {f"width {width}": {"num_layers": 1, "num_heads": 2, "hidden_dim": width} for width in (8, 16, 32)}


def tokens(count, seed):
    return igpt.LabeledTokens(random_tokens(count, seed=seed), np.zeros(count, "int64"), 16)


def study(folder, **changes):
    options = {"sizes": SIZES, "budgets": (1e9, 4e9), "learning_rate": 0.003, "batch_size": 8} | changes
    return igpt.scaling_study(tokens(32, 0), tokens(16, 1), folder=folder, **options)


def test_a_run_trains_for_what_its_budget_pays(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "fit_scaling_law", lambda runs, seed: None)
    monkeypatch.setattr(module, "check_runs", lambda runs: None)
    size = {"width 8": SIZES["width 8"]}
    flops = igpt.estimate({**SIZES["width 8"], "image_size": 4, "vocabulary_size": 16}, 8).training_flops
    (run,) = study(tmp_path / "noise", sizes=size, budgets=(3.5 * flops,)).runs["width 8"]
    assert run.tokens == 3 * 8 * 16
    assert run.loss == pytest.approx(np.log(16), abs=0.1)
    # One colour in the pictures it trains on; the loss is of those held out.
    plain, other = (igpt.LabeledTokens(np.full((32, 16), color), np.zeros(32, "int64"), 16) for color in (3, 5))
    options = {"sizes": size, "budgets": (20.5 * flops,), "learning_rate": 0.03, "batch_size": 8}
    losses = [
        igpt.scaling_study(plain, held_out, folder=tmp_path / name, **options).runs["width 8"][0].loss
        for name, held_out in (("same", plain), ("other", other))
    ]
    assert losses[0] < np.log(16) - 0.1 < np.log(16) + 0.1 < losses[1]


def test_finished_runs_are_not_repeated_and_others_are_added(tmp_path, monkeypatch):
    made = []

    def run(architecture, steps, *others):
        made.append((architecture.hidden_dim, steps))
        if len(made) == 4:
            raise KeyboardInterrupt
        width, count = architecture.hidden_dim, steps * 128
        return igpt.ScalingRun(width**2, count, 2 + 3 / width + 5 / count**0.3)

    monkeypatch.setattr(module, "_run", run)
    with pytest.raises(KeyboardInterrupt):
        study(tmp_path)
    assert len(json.loads((tmp_path / "runs.json").read_text())["runs"]) == 3
    report = study(tmp_path)
    assert len(made) == 4 + 3  # the one that was under way once more, and the two that were left
    assert [len(runs) for runs in report.runs.values()] == [2, 2, 2]
    assert len(study(tmp_path, budgets=(1e9, 4e9, 8e9)).runs["width 8"]) == 3
    assert len(made) == 7 + 3
    assert len(report.plot().axes) == 1
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        with pytest.raises(ValueError, match=r"other \['dtype_policy'\]"):
            study(tmp_path)
    finally:
        keras.config.set_dtype_policy("float32")
    with pytest.raises(ValueError, match=r"other \['learning_rate'\]"):
        study(tmp_path, learning_rate=0.001)


def test_budgets_too_small_or_too_few_are_refused_before_any_run(tmp_path):
    with pytest.raises(ValueError, match="`budgets` must pay for two steps"):
        study(tmp_path, budgets=(1e9, 1e3))
    with pytest.raises(ValueError, match=r"`runs` must be at least 6 .*3 different runs of 3 sizes"):
        study(tmp_path, budgets=(1e9,))
    assert not list(tmp_path.iterdir())


def test_what_does_not_fit_is_refused_before_any_run(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_run", lambda *given: pytest.fail("trained"))
    train = tokens(32, 0)
    for validation, message in (
        (igpt.LabeledTokens(random_tokens(16, num_tokens=9), np.zeros(16, "int64"), 16), "must have the image size"),
        (
            igpt.LabeledTokens(random_tokens(16), np.zeros(16, "int64"), 17),
            "must have the image size and number of col",
        ),
        (igpt.UnlabeledTokens(random_tokens(16), 16), "must be LabeledTokens. Received: UnlabeledTokens"),
    ):
        with pytest.raises(ValueError, match=f"`validation` {message}"):
            igpt.scaling_study(train, validation, SIZES, (1e9, 4e9), learning_rate=0.003, folder=tmp_path)
    for wrong in ({"budgets": 1e9}, {"budgets": ("a",)}, {"sizes": [8]}, {"sizes": {"width 8": 8}}):
        with pytest.raises(ValueError, match=f"`{next(iter(wrong))}` must be .*Received: "):
            study(tmp_path, **wrong)

    def absent(name):
        raise ImportError(f"no {name}")

    monkeypatch.setattr(module, "import_scipy", absent)
    with pytest.raises(ImportError, match="no optimize"):
        study(tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "content",
    [
        b"[]",
        b'{"settings": ',
        b"\xff\xfe",
        b"{}",
        b'{"settings": null, "runs": {}}',
        b'{"settings": {}, "runs": []}',
        b'{"settings": {}, "runs": {"a": 1}}',
        b'{"settings": {}, "runs": {"a": {"loss": 1.0}}}',
    ],
)
def test_damaged_runs_are_named(tmp_path, content):
    (tmp_path / "runs.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"`folder` must hold .* Move it away.* Received: .*runs\.json, which is dam"):
        study(tmp_path)
