import json
from dataclasses import replace

import keras
import numpy as np
import pytest
from conftest import make_causal_lm, make_masked_lm, random_tokens, randomize

import keras_igpt as igpt
from keras_igpt.data import LabeledTokens
from keras_igpt.evaluation.logistic_regression import fit_logistic_regression


def examples(count=60, seed=0):
    """Three classes that differ in how often low tokens occur: separable in the mean of the embeddings."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, 3, count)
    return (random.integers(0, 6, (count, 16)) + 5 * labels[:, None]).astype("int32"), labels


@pytest.fixture(scope="module")
def parts():
    return {"train": examples(), "validation": examples(30, seed=1), "test": examples(60, seed=2)}


@pytest.fixture(scope="module")
def fitted(parts, tmp_path_factory):
    """A model, the weights it had, its probe fitted and scored, the accuracies by depth and the folder of features."""
    model = randomize(make_causal_lm(), scale=0.1)
    before = model.get_weights()
    folder = tmp_path_factory.mktemp("probe") / "features"
    probe = igpt.LinearProbe(model, concatenate=3, strengths=(0.01, 1.0), batch_size=30, folder=folder)
    stored = {name: LabeledTokens(tokens.astype("uint8"), labels, 16) for name, (tokens, labels) in parts.items()}
    accuracies = probe.fit(stored["train"], stored["validation"]).score(stored["test"])
    return model, before, probe, accuracies, folder


def test_it_reads_the_classes_and_leaves_the_model_alone(fitted, parts):
    model, before, probe, accuracies, _ = fitted
    assert list(accuracies) == [0, 1, 2]
    assert accuracies[0] > 0.9
    inputs, labels = parts["test"]
    best = (probe.predict(inputs) == labels).mean()
    assert best == pytest.approx(accuracies[probe.report.best_layer])
    assert (probe.predict(inputs, layer=1) == labels).mean() == pytest.approx(accuracies[1])
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


def test_each_depth_is_a_regression_on_its_features(fitted, parts):
    """Those of arrays in memory, where the probe itself had examples, and features in files."""
    _, _, probe, accuracies, folder = fitted
    assert {file.name for file in folder.iterdir()} == {"train.npy", "validation.npy", "test.npy"}
    chosen, final = probe.report.chosen_on_validation, probe.report.final_on_test
    computed = {name: probe.features(inputs) for name, (inputs, _) in parts.items()}
    assert [line.layers for line in chosen.layers] == [(0,), (1,), (2,)]
    for line in (*chosen.layers, chosen.concatenation):
        train, validation, test = (
            (computed[name][:, list(line.layers)].reshape(len(labels), -1), labels)
            for name, (_, labels) in parts.items()
        )
        alone = fit_logistic_regression(train, validation, (0.01, 1.0))
        assert line.validation_accuracy == alone.validation_accuracy
        assert line.regularization_strength == alone.regularization_strength
        # Of the refit on both parts.
        np.testing.assert_array_equal(probe._fits[line.layers].coefficients, alone.coefficients)
        found = final.concatenation if len(line.layers) > 1 else accuracies[line.layers[0]]
        assert found == alone.score(*test)


def test_predicting_computes_the_features_of_one_depth(fitted, parts, monkeypatch):
    _, _, probe, _, _ = fitted
    computed, extract = [], igpt.FeatureExtractor.extract

    def watched(self, *given):
        computed.append(self.depths)
        return extract(self, *given)

    monkeypatch.setattr(igpt.FeatureExtractor, "extract", watched)
    for layer in (None, 1):
        probe.predict(parts["test"][0], layer=layer)
    assert computed == [(probe.report.best_layer,), (1,)]


def test_residual_states_are_probed_where_asked(fitted, parts):
    model = fitted[0]
    probe = igpt.LinearProbe(model, layers=[1], strengths=(1.0,), which="residual", batch_size=30)
    probe.fit(parts["train"], parts["validation"])
    expected = igpt.FeatureExtractor(model, [1], "residual").extract(parts["test"][0])
    np.testing.assert_array_equal(probe.features(parts["test"][0]), expected)
    assert not np.allclose(expected, igpt.FeatureExtractor(model, [1]).extract(parts["test"][0]), atol=1e-2)


def test_the_report_keeps_choice_and_result_apart(fitted, tmp_path):
    model, _, probe, accuracies, _ = fitted
    report = probe.report
    chosen, final = report.chosen_on_validation, report.final_on_test
    by_depth = {line.layers[0]: line.validation_accuracy for line in chosen.layers}
    assert report.best_layer == chosen.best_layer == max(by_depth, key=lambda depth: (by_depth[depth], -depth))
    assert all(line.converged and line.iterations > 0 for line in chosen.layers)
    assert (report.num_train, report.num_validation, report.num_classes) == (60, 30, 3)
    assert (final.num_test, final.accuracies) == (60, accuracies)
    report.save(tmp_path / "new" / "report.json")
    saved = json.loads((tmp_path / "new" / "report.json").read_text())
    assert saved["chosen_on_validation"]["best_layer"] == report.best_layer
    assert saved["final_on_test"]["accuracies"] == {str(depth): score for depth, score in accuracies.items()}
    assert saved["backend"] == keras.backend.backend()
    assert saved["model"]["kind"] == "ImageGPTCausalLM"
    assert saved["model"]["num_layers"] == model.backbone.num_layers
    assert saved["strengths"] == [0.01, 1.0]
    assert saved["mask_seed"] is None


def test_a_report_has_intervals_and_is_read_again(fitted, parts, tmp_path):
    _, _, probe, accuracies, _ = fitted
    report, (inputs, labels) = probe.report, parts["test"]
    final = report.final_on_test
    for depth, accuracy in accuracies.items():
        correct = probe.predict(inputs, layer=depth) == labels
        np.testing.assert_array_equal(final.measured[depth].correct_pictures, correct)
        assert final.measured[depth].interval == igpt.accuracy_interval(correct)
        assert f"{100 * accuracy:.1f}% [{100 * final.measured[depth].low:.1f}, " in str(report)
    assert str(report).count("<- chosen on validation") == 1
    assert "\n  0-2 " in str(report)
    report.save(tmp_path / "report.json")
    again = igpt.ProbeReport.load(tmp_path / "report.json")
    assert again == report
    assert again.compare(report).p_value == 1
    always_wrong = igpt.measure_accuracy(labels + 1, labels)
    assert again.compare(always_wrong).difference.estimate == accuracies[report.best_layer]


def test_a_report_of_an_earlier_version_is_read_but_not_compared(fitted, tmp_path):
    report, path = fitted[2].report, tmp_path / "report.json"
    report.save(path)
    content = json.loads(path.read_text())
    for name in ("measured", "measured_concatenation"):
        del content["final_on_test"][name]
    path.write_text(json.dumps(content))
    old = igpt.ProbeReport.load(path)
    assert old.final_on_test.accuracies == report.final_on_test.accuracies
    assert str(old) == str(report)  # intervals need the number of pictures alone
    with pytest.raises(ValueError, match=r"must be scored .*Received: a report of an earlier version"):
        old.compare(report)
    with pytest.raises(ValueError, match=r"must be scored .*Received: a report without"):
        replace(report, final_on_test=None).compare(report)
    for damaged in ("{", "{}", "[]", '{"chosen_on_validation": {}, "final_on_test": null}'):
        path.write_text(damaged)
        with pytest.raises(ValueError, match=r"`path` must be a report that `ProbeReport\.save` wrote"):
            igpt.ProbeReport.load(path)


def test_features_computed_before_are_judged_without_another_pass(fitted, parts, monkeypatch):
    model, _, probe, accuracies, _ = fitted
    extractor = igpt.FeatureExtractor(model)
    features = {name: extractor.extract_labeled(part, batch_size=30) for name, part in parts.items()}
    other = igpt.LinearProbe(model, concatenate=3, strengths=(0.01, 1.0))
    monkeypatch.setattr(other._extractor, "predict", lambda *given, **options: pytest.fail("computed again"))
    other.fit(features["train"], features["validation"])
    assert other.score(features["test"]) == pytest.approx(accuracies)
    assert other.report.chosen_on_validation.best_layer == probe.report.best_layer
    one_depth = igpt.LabeledFeatures(features["test"].features[:, :1], features["test"].labels)
    with pytest.raises(ValueError, match=r"`test` must be features of the probe's depths, \(B, 3, 32\)"):
        other.score(one_depth)


def test_depths_side_by_side_are_those_around_the_best():
    probe = igpt.LinearProbe(make_causal_lm(num_layers=6), layers=[6, 0, 1, 2, 3, 5], concatenate=3)
    expected = {0: (0, 1, 2), 1: (0, 1, 2), 3: (2, 3, 5), 5: (3, 5, 6), 6: (3, 5, 6)}
    assert {best: probe._around(best, 3) for best in expected} == expected


def test_the_report_draws_itself(fitted):
    pytest.importorskip("matplotlib")
    _, _, probe, accuracies, _ = fitted
    (axes,) = probe.report.plot().axes
    lines = {line.get_label(): line for line in axes.lines}
    np.testing.assert_allclose(lines["test"].get_ydata(), [100 * accuracies[depth] for depth in range(3)])
    assert "3 depths side by side, test" in lines
    (axes,) = probe.report.plot({"raw pixels": igpt.Interval(0.4, 0.35, 0.45)}).axes
    lines = {line.get_label(): line for line in axes.lines}
    np.testing.assert_allclose(lines["raw pixels"].get_ydata(), [40, 40])
    unscored = replace(probe.report, final_on_test=None).plot()
    assert not [line for line in unscored.axes[0].lines if "test" in line.get_label()]


def test_a_model_with_masks_reports_their_seed():
    model = randomize(make_masked_lm(mask_seed=7), scale=0.1)
    probe = igpt.LinearProbe(model, layers=[0], strengths=[1.0], batch_size=30).fit(examples(), examples(30, seed=1))
    assert probe.report.mask_seed == 7


def test_labels_are_checked_before_features_are_computed(monkeypatch):
    probe = igpt.LinearProbe(make_causal_lm())
    monkeypatch.setattr(probe._extractor, "predict", lambda *given, **options: pytest.fail("work was done"))
    inputs, labels = examples()
    for train, validation, name in [
        ((inputs, labels[:-1]), (inputs, labels), "labels"),
        ((inputs, 0 * labels), (inputs, labels), "train"),
        ((inputs, labels), (inputs, labels + 1), "validation"),
    ]:
        with pytest.raises(ValueError, match=f"^`{name}` .*Received"):
            probe.fit(train, validation)


def test_classes_that_a_fit_has_not_seen_are_told(fitted, parts):
    probe = fitted[2]
    inputs, labels = parts["test"]
    before = probe.report
    with pytest.warns(UserWarning, match=r"`test` has classes .*count as wrong: \[3\]"):
        accuracies = probe.score((inputs, labels + 1))
    assert max(accuracies.values()) < 0.2
    probe._report = before


@pytest.mark.parametrize("count", [1, 2, 5])
def test_a_number_of_depths_without_a_centre_is_refused(count):
    with pytest.raises(ValueError, match=r"^`concatenate` .*Received"):
        igpt.LinearProbe(make_causal_lm(), concatenate=count)


def test_labels_that_mean_nothing_score_at_chance():
    labels = np.random.default_rng(3).integers(0, 3, 900)
    parts = [(random_tokens(300, seed=seed), labels[300 * seed : 300 * seed + 300]) for seed in range(3)]
    probe = igpt.LinearProbe(make_causal_lm(), layers=[1], strengths=[0.01], batch_size=100).fit(parts[0], parts[1])
    assert 0.2 < probe.score(parts[2])[1] < 0.47
