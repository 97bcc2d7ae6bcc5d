import numpy as np
import pytest
from sklearn.neighbors import KNeighborsClassifier

import keras_igpt as igpt


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


def test_more_neighbours_than_pictures_are_refused():
    train, validation, test = parts()
    with pytest.raises(ValueError, match="`candidates` must be an integer in 1…200"):
        igpt.nearest_neighbors(train, validation, test, candidates=(1, 201))
