"""Which depth curve belongs to a model."""

import json
from dataclasses import replace
from pathlib import Path

from conftest import make_causal_lm, make_masked_lm, probe_report

import keras_igpt as igpt
from keras_igpt.demo.depth_curve import find_depth_curve
from keras_igpt.evaluation.intervals import interval_of_share

RESULTS = Path(__file__).parents[2] / "results"
# The reports of the presets, and of the raw pixels of the same pictures.
BUNDLED = {
    "igpt_cifar10_8x8": ("cifar10_8x8/study/probe_ar.json", "cifar10_8x8/study/probe_raw_pixels.json", "test_accuracy"),
    "igpt_cifar10_8x8_bert": (
        *("cifar10_8x8/study/probe_bert.json", "cifar10_8x8/study/probe_raw_pixels.json"),
        "test_accuracy",
    ),
    "igpt_cifar10_16x16": (
        *("cifar10_16x16/ar/probe/report.json", "cifar10_16x16/ar/probe/config.json"),
        "raw pixels, test accuracy",
    ),
    "igpt_cifar10_16x16_bert": (
        *("cifar10_16x16/bert/probe/report.json", "cifar10_16x16/ar/probe/config.json"),
        "raw pixels, test accuracy",
    ),
}


def test_bundled_models_have_the_curves_of_the_results(palette):
    for name, (report, pixels, key) in BUNDLED.items():
        curve, final = find_depth_curve(None, name), json.loads((RESULTS / report).read_text())["final_on_test"]
        assert {str(depth): found.estimate for depth, found in curve.report.intervals["test"].items()} == final[
            "accuracies"
        ]
        raw_pixels = json.loads((RESULTS / pixels).read_text())[key]
        assert curve.raw_pixels == interval_of_share(raw_pixels, 10_000)
        assert "10,000 test pictures of 10 classes: " in str(curve)
    assert set(BUNDLED) == set(igpt.trained_presets())
    assert find_depth_curve(None, "igpt_small") is None


def test_a_report_beside_the_model_is_found_if_it_is_of_such_a_model(tmp_path, palette):
    model = make_causal_lm(palette)
    path = tmp_path / "igpt.keras"
    path.touch()
    # As written before the architecture had other choices.
    sizes = {"kind": "ImageGPTCausalLM", "num_layers": 2, "hidden_dim": 32}
    report = replace(probe_report(model, final=False), model=sizes)
    (tmp_path / "trials.json").write_text('{"chosen_on_validation": {}, "trials": []}')
    (tmp_path / "broken.json").write_text("{")
    (tmp_path / "list.json").write_text("[]")
    assert find_depth_curve(model, str(path)) is None
    report.save(tmp_path / "probe" / "report.json")
    (tmp_path / "probe" / "config.json").write_text('{"raw pixels, test accuracy": 0.3}')
    assert find_depth_curve(make_masked_lm(palette), str(path)) is None
    assert find_depth_curve(make_causal_lm(palette, num_layers=1), str(path)) is None
    curve = find_depth_curve(model, str(path))
    assert curve.report == report
    assert (
        "500 validation pictures of 10 classes: 25.0% [21.4, 29.0] at depth 0, 50.0% [45.6, 54.4] at depth 2. "
        "Brackets are 95% intervals. Validation chose depth 2." in str(curve)
    )
    # Raw pixels were tested on the pictures of the probe's test.
    replace(probe_report(model), model=sizes).save(tmp_path / "probe" / "report.json")
    curve = find_depth_curve(model, str(path))
    assert "1,234 test pictures of 10 classes: " in str(curve)
    assert "50.0% [47.2, 52.8] at depth 2; 30.0% [27.5, 32.6] from raw pixels" in str(curve)
    assert curve.png().startswith(b"\x89PNG")


def test_what_is_no_report_is_passed_over(tmp_path):
    model = make_causal_lm()
    model.save(tmp_path / "model.keras")
    (tmp_path / "folder.json").mkdir()
    (tmp_path / "broken.json").symlink_to(tmp_path / "nowhere")
    (tmp_path / "text.json").write_text("no JSON")
    assert find_depth_curve(model, str(tmp_path / "model.keras")) is None
