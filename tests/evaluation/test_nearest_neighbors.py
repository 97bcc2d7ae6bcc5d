import tracemalloc

import numpy as np
import pytest
from sklearn.neighbors import KNeighborsClassifier

import keras_igpt as igpt
from keras_igpt.evaluation import nearest_neighbors as module


def parts(seed=0, noise=1.0):
    random = np.random.default_rng(seed)
    made = []
    for count in (200, 80, 90):
        labels = random.integers(0, 3, count)
        features = np.eye(3, 8)[labels] + noise * random.standard_normal((count, 8))
        lengths = random.uniform(0.1, 10, (count, 1))  # which cosine similarity does not see
        both = np.stack([features * lengths, random.standard_normal((count, 8))], axis=1)
        made.append(igpt.LabeledFeatures(both.astype("float32"), labels))
    return made


def test_the_vote_is_scikit_learns():
    train, validation, test = parts()
    results = igpt.nearest_neighbors(train, validation, test, candidates=(1, 7, 25))
    assert len(results) == 2
    for depth, result in enumerate(results):
        accuracies = {}
        for number in (1, 7, 25):
            judge = KNeighborsClassifier(number, metric="cosine").fit(train.at(depth), train.labels)
            accuracies[number] = judge.score(validation.at(depth), validation.labels)
        assert result.num_neighbors == max(accuracies, key=accuracies.get)
        assert result.validation_accuracy == pytest.approx(max(accuracies.values()))
        known = train.join(validation)
        judge = KNeighborsClassifier(result.num_neighbors, metric="cosine").fit(known.at(depth), known.labels)
        assert result.measured == igpt.measure_accuracy(judge.predict(test.at(depth)), test.labels)
    assert results[0].measured.low > results[1].measured.high  # the second depth is noise


@pytest.mark.parametrize(("dtype", "factor"), [("float16", 1000), ("float32", 1e30), ("float32", 1e-25)])
def test_the_size_and_the_type_of_features_change_no_vote(dtype, factor):
    """Whose squares are infinite, or zero."""
    given = parts(noise=0.01)
    scaled = [igpt.LabeledFeatures((part.features * factor).astype(dtype), part.labels) for part in given]
    for result, expected in zip(igpt.nearest_neighbors(*scaled)[:1], igpt.nearest_neighbors(*given)[:1], strict=True):
        assert result.num_neighbors == expected.num_neighbors
        assert result.test_accuracy == expected.test_accuracy == 1


def test_more_neighbours_than_pictures_are_refused():
    train, validation, test = parts()
    with pytest.raises(ValueError, match="`candidates` must be an integer in 1…200"):
        igpt.nearest_neighbors(train, validation, test, candidates=(1, 201))
    for none in (5, ()):
        with pytest.raises(ValueError, match=r"`candidates` must be one or more integers\. Received: candidates="):
            igpt.nearest_neighbors(train, validation, test, candidates=none)


def test_parts_that_do_not_fit_are_refused_before_any_work(monkeypatch):
    monkeypatch.setattr(module, "_votes", lambda *given: pytest.fail("work was done"))
    names = ("train", "validation", "test")
    for number, name in enumerate(names):
        for spoil, message in (
            (lambda part: part.features, "must be LabeledFeatures. Received: ndarray"),
            (lambda part: igpt.LabeledFeatures(part.features * np.nan, part.labels), "must have finite features"),
            (lambda part: igpt.LabeledFeatures(part.features[:0], part.labels[:0]), "must have at least one picture"),
        ):
            given = parts()
            given[number] = spoil(given[number])
            with pytest.raises(ValueError, match=f"`{name}` {message}"):
                igpt.nearest_neighbors(*given)
        for fewer in (np.s_[:, :1], np.s_[:, :, :7]):
            given = parts()
            given[number] = igpt.LabeledFeatures(given[number].features[fewer], given[number].labels)
            with pytest.raises(ValueError, match=f"`{name if number else 'validation'}` must have .* depths and width"):
                igpt.nearest_neighbors(*given)
    # Before the features are read.
    spoiled = parts()
    spoiled[2].features[:] = np.inf
    with pytest.raises(ValueError, match="`candidates` must be an integer"):
        igpt.nearest_neighbors(*spoiled, candidates=(0,))


def test_one_depth_at_a_time_is_in_memory(tmp_path):
    random, given = np.random.default_rng(0), []
    for number, count in enumerate((400, 200, 50)):
        path = tmp_path / f"{number}.npy"
        np.save(path, random.standard_normal((20, count, 256)).astype("float32"))
        features = np.moveaxis(np.load(path, mmap_mode="r"), 0, 1)
        given.append(igpt.LabeledFeatures(features, random.integers(0, 3, count)))
    igpt.nearest_neighbors(*given, candidates=(1,))  # the first time imports scikit-learn
    tracemalloc.start()
    igpt.nearest_neighbors(*given, candidates=(1,))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 20 * 600 * 256 * 4 / 2
