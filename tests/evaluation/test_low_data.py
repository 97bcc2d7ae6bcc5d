import json

import numpy as np
import pytest
from conftest import make_causal_lm, randomize

from keras_igpt.data import DataSplits, LabeledImages, low_data_subset
from keras_igpt.data.examples import low_data_rows
from keras_igpt.evaluation.features import FeatureExtractor
from keras_igpt.evaluation.intervals import mean_interval
from keras_igpt.evaluation.logistic_regression import fit_logistic_regression
from keras_igpt.evaluation.low_data import low_data_table

STRENGTHS = (0.01, 1.0)


def pictures(palette, count, seed):
    """Three classes by which palette colours occur, evenly many of each."""
    random = np.random.default_rng(seed)
    labels = np.arange(count) % 3
    token_ids = random.integers(0, 9, (count, 16)) + 3 * labels[:, None]
    return LabeledImages(palette.decode(token_ids), labels)


@pytest.fixture(scope="module")
def measured():
    import keras_igpt as igpt

    colors = np.stack([np.arange(16) * 16, np.arange(16) * 7 % 16 * 16, np.zeros(16)], axis=-1).astype("uint8")
    palette = igpt.ColorPalette.from_colors(colors)
    model = randomize(make_causal_lm(palette), scale=0.1)
    sizes = {"train": 36, "validation": 30, "test": 60}
    data = DataSplits(*(pictures(palette, count, seed) for seed, count in enumerate(sizes.values())), tuple("abc"))
    weights = model.get_weights()
    table = low_data_table(model, data, labels_per_class=(2, 5), seeds=(0, 3), strengths=STRENGTHS, batch_size=30)
    for old, new in zip(weights, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)
    return model, data, table


def test_each_figure_is_a_regression_on_a_subset_alone(measured):
    """Validation chooses, and its labels are not fitted."""
    model, data, table = measured
    extractor = FeatureExtractor(model)
    for line in table.lines:
        accuracies, choices = [], []
        for seed in (0, 3):
            few = low_data_subset(data.train, line.labels_per_class, seed)
            assert len(few) == 3 * line.labels_per_class
            if line.layer is None:
                few_inputs, validation, test = (
                    part.images.reshape(len(part), 1, -1) / 255 for part in (few, data.validation, data.test)
                )
                depths = [0]
            else:
                few_inputs, validation, test = (
                    extractor.extract(part, batch_size=30) for part in (few, data.validation, data.test)
                )
                depths = [0, 1, 2]
            fits = [
                fit_logistic_regression(
                    (few_inputs[:, depth], few.labels),
                    (validation[:, depth], data.validation.labels),
                    STRENGTHS,
                    refit=False,
                )
                for depth in depths
            ]
            choices.append([fit.validation_accuracy for fit in fits])
            accuracies.append(
                [fit.score(test[:, depth], data.test.labels) for depth, fit in zip(depths, fits, strict=True)]
            )
        best = int(np.argmax(np.mean(choices, axis=0)))
        assert line.layer in (None, best)
        expected = [scores[best] for scores in accuracies]
        np.testing.assert_allclose(line.accuracies, expected, atol=1 / 60 + 1e-9)  # one picture of rounding
        assert line.mean == pytest.approx(sum(line.accuracies) / 2)
        assert line.deviation == pytest.approx(abs(line.accuracies[0] - line.accuracies[1]) / 2**0.5)
        assert line.converged


def test_it_prints_and_saves_itself(measured, tmp_path):
    _, _, table = measured
    assert [(line.features, line.labels_per_class) for line in table.lines] == [
        ("features", 2),
        ("raw pixels", 2),
        ("features", 5),
        ("raw pixels", 5),
    ]
    rows = str(table).splitlines()
    assert len(rows) == 6
    assert all(row.count("|") == 6 for row in rows)
    line = table.lines[2]
    interval = line.interval
    assert mean_interval(line.accuracies).low <= interval.low >= 0
    shown = f"{interval.as_percentages()} ± {line.deviation:.1%} (2 subsets)"
    assert rows[4] == f"| 5 | 15 | features | {line.layer} | {shown} |"
    table.save(tmp_path / "table.json")
    saved = json.loads((tmp_path / "table.json").read_text())
    assert saved["lines"][2]["accuracies"] == list(line.accuracies)
    assert saved["lines"][2]["mean"] == line.mean
    assert saved["lines"][2]["interval"] == [interval.low, interval.high]
    assert (saved["num_classes"], saved["num_validation"], saved["num_test"]) == (3, 30, 60)


def test_tokens_are_seen_in_the_colours_of_the_palette(measured):
    model, data, table = measured
    tokens = DataSplits(
        *(part.encode(model.palette) for part in (data.train, data.validation, data.test)), data.class_names
    )
    same = low_data_table(
        model, tokens, labels_per_class=(2,), seeds=(0, 3), layers=[0], strengths=STRENGTHS, batch_size=30
    )
    assert same.lines[1] == table.lines[1]
    assert same.lines[0].layer == 0


def test_only_pictures_of_a_subset_are_read(measured, monkeypatch):
    model, data, _ = measured
    read = []
    extract = FeatureExtractor.extract_labeled

    def extract_labeled(self, part, *given):
        assert self.which == "residual"
        read.append(len(part))
        return extract(self, part, *given)

    monkeypatch.setattr(FeatureExtractor, "extract_labeled", extract_labeled)
    options = {"layers": [0], "which": "residual", "strengths": STRENGTHS, "batch_size": 30}
    low_data_table(model, data, labels_per_class=(1, 2), seeds=(0, 3), **options)
    few = {row for seed in (0, 3) for row in low_data_rows(data.train.labels, 2, seed).tolist()}
    assert read == [len(few), 30, 60]
    assert len(few) < len(data.train)


@pytest.mark.parametrize(
    ("argument", "options"),
    [
        ("labels_per_class", {"labels_per_class": (13,)}),
        ("labels_per_class", {"labels_per_class": ()}),
        ("labels_per_class", {"labels_per_class": 4}),
        ("seeds", {"seeds": 3}),
        ("seeds", {"seeds": (1,)}),
        ("seeds", {"seeds": (1, 1)}),
        ("layers", {"layers": [5]}),
        ("strengths", {"strengths": ()}),
    ],
)
def test_errors_name_the_argument_before_any_work(measured, monkeypatch, argument, options):
    model, data, _ = measured
    monkeypatch.setattr(FeatureExtractor, "predict", lambda *given, **kwargs: pytest.fail("work was done"))
    with pytest.raises(ValueError, match=f"^`{argument}` .*Received"):
        low_data_table(model, data, **options)
