import shutil
from functools import partial

import keras
import numpy as np
import pytest
from conftest import make_causal_lm, make_masked_lm

import keras_igpt as igpt
from keras_igpt.curation import PictureFeatures, Reference, Similarity, load_features


def means(images):
    return images.reshape(len(images), -1, 3).mean(axis=1)


def clusters(count=200, seed=0):
    random = np.random.default_rng(seed)
    directions = np.eye(8, dtype="float32")[random.integers(0, 4, count)]
    return directions * random.uniform(1, 9, (count, 1)) + random.normal(0, 0.05, (count, 8))


def test_a_reference_scores_by_the_cosine_to_the_nearest_centroid():
    reference = Reference.fit(clusters(), num_centroids=4)
    np.testing.assert_allclose(np.linalg.norm(reference.centroids, axis=1), 1, atol=1e-6)
    probes = np.vstack([np.eye(8)[:4] * 100, np.eye(8)[5:6], np.zeros((1, 8))])
    scores = reference.scores(probes)
    assert scores[:4].min() > 0.99
    assert scores[4] < 0.2
    assert scores[5] == 0
    expected = (probes[:5] / np.linalg.norm(probes[:5], axis=1, keepdims=True) @ reference.centroids.T).max(axis=1)
    np.testing.assert_allclose(scores[:5], expected, atol=1e-6)
    assert len(reference.held_out_scores) == 40
    assert reference.threshold(0) == reference.held_out_scores.min() < reference.threshold(0.5) < reference.threshold(1)


def test_a_reference_is_one_file(tmp_path):
    reference = Reference.fit(clusters(), num_centroids=4, seed=3)
    reference.save(tmp_path / "reference.npz")
    loaded = Reference.load(tmp_path / "reference.npz")
    assert loaded.digest() == reference.digest() == Reference.fit(clusters(), num_centroids=4, seed=3).digest()
    assert loaded.digest() != Reference.fit(clusters(), num_centroids=4, seed=4).digest()
    np.savez(tmp_path / "other.npz", centroids=reference.centroids)
    with pytest.raises(ValueError, match=r"Reference\.save"):
        Reference.load(tmp_path / "other.npz")


@pytest.mark.parametrize(
    ("features", "count", "message"),
    [
        (np.zeros((9, 2, 2)), 2, r"shape \(B, D\)"),
        (np.full((9, 2), np.nan), 2, "finite"),
        (np.zeros((9, 2)), 9, "num_centroids"),
        (np.zeros((1, 2)), 1, "several"),
    ],
)
def test_features_that_make_no_reference_are_refused(features, count, message):
    with pytest.raises(ValueError, match=message):
        Reference.fit(features, count)


def test_scores_need_features_of_the_reference_kind():
    with pytest.raises(ValueError, match=r"\(B, 8\)"):
        Reference.fit(clusters(), 4).scores(np.zeros((3, 5)))


@pytest.mark.parametrize("make", [make_causal_lm, make_masked_lm])
def test_features_of_language_models_are_those_of_the_extractor(make, palette):
    extractor = igpt.FeatureExtractor(make(palette), layers=[1])
    images = np.random.default_rng(0).integers(0, 256, (5, 4, 4, 3)).astype("uint8")
    features = PictureFeatures(extractor, batch_size=4)
    assert features.image_size == 4
    np.testing.assert_allclose(features(images), extractor.extract(images)[:, 0], atol=1e-5)
    of_set = features.of(igpt.LabeledImages(images, np.zeros(5, int)))
    np.testing.assert_array_equal(of_set, features(images))


def test_features_of_a_keras_model_and_of_a_function():
    images = np.random.default_rng(0).integers(0, 256, (5, 12, 12, 3)).astype("uint8")
    model = keras.Sequential([keras.Input((6, 6, 3)), keras.layers.GlobalAveragePooling2D()])
    expected = means(igpt.resize_images(images, 6))
    np.testing.assert_allclose(PictureFeatures(model, batch_size=2)(images), expected, rtol=1e-5)
    seen = []

    def function(batch):
        seen.append(len(batch))
        return means(batch)

    np.testing.assert_allclose(PictureFeatures(function, 6, batch_size=2)(images), expected, rtol=1e-5)
    assert seen == [2, 2, 2]


@pytest.mark.parametrize(
    ("function", "message"),
    [(lambda images: images, "pool them"), (lambda images: np.full((len(images), 2), np.nan), "finite")],
)
def test_features_of_another_kind_are_refused(function, message):
    with pytest.raises(ValueError, match=message):
        PictureFeatures(function, 4)(np.zeros((2, 4, 4, 3), "uint8"))


def test_the_size_must_be_known():
    with pytest.raises(ValueError, match="image_size"):
        PictureFeatures(means)
    model = keras.Sequential([keras.Input((6, 6, 3)), keras.layers.GlobalAveragePooling2D()])
    with pytest.raises(ValueError, match="has 6"):
        PictureFeatures(model, image_size=8)


def test_models_are_loaded_by_name_and_from_files(tmp_path, palette):
    assert load_features("igpt_cifar10_8x8").extractor.depths == (4,)
    assert load_features("igpt_cifar10_8x8_bert", layer=8).extractor.depths == (8,)
    lm = make_causal_lm(palette)
    lm.save(tmp_path / "lm.keras")
    images = np.random.default_rng(0).integers(0, 256, (2, 4, 4, 3)).astype("uint8")
    expected = igpt.FeatureExtractor(lm, layers=[2]).extract(images)[:, 0]
    np.testing.assert_allclose(load_features(tmp_path / "lm.keras", layer=2)(images), expected, atol=1e-5)
    with pytest.raises(ValueError, match="trained preset"):
        load_features("igpt_small")
    keras.Sequential([keras.Input((6, 6, 3)), keras.layers.GlobalAveragePooling2D()]).save(tmp_path / "other.keras")
    assert load_features(tmp_path / "other.keras").image_size == 6
    with pytest.raises(ValueError, match="`layer` must be None"):
        load_features(tmp_path / "other.keras", layer=1)


def test_a_reference_knows_its_features(tmp_path):
    make_causal_lm().save(tmp_path / "lm.keras")
    shutil.copy(tmp_path / "lm.keras", tmp_path / "renamed.keras")
    Reference.fit(clusters(), 4, source=tmp_path / "lm.keras").save(tmp_path / "reference.npz")
    for same in (tmp_path / "renamed.keras", partial(load_features, str(tmp_path / "lm.keras"), layer=None)):
        Similarity(tmp_path / "reference.npz", same)
    by_place = Reference.fit(clusters(), 4, source=partial(load_features, tmp_path / "lm.keras", np.int64(1)))
    Similarity(by_place, partial(load_features, model=tmp_path / "lm.keras", layer=1))
    with pytest.raises(ValueError, match="`source` must be a model's file or preset, or a function"):
        Reference.fit(clusters(), 4, source=PictureFeatures(means, 4))
    for other in ("igpt_cifar10_8x8", partial(load_features, str(tmp_path / "lm.keras"), layer=1)):
        with pytest.raises(ValueError, match="`features` must be described as those that the reference was made with"):
            Similarity(tmp_path / "reference.npz", other)


def test_similarity_takes_loaders(tmp_path):
    reference = Reference.fit(clusters(), 4)
    reference.save(tmp_path / "reference.npz")
    similarity = Similarity(tmp_path / "reference.npz", "igpt_cifar10_8x8")
    assert similarity.loaded_reference.digest() == reference.digest()
    assert isinstance(similarity.features, partial)
    with pytest.raises(ValueError, match="function that returns PictureFeatures"):
        Similarity(reference, PictureFeatures(means, 4))
    with pytest.raises(ValueError, match="Received: ndarray"):
        Similarity(reference, lambda: np.zeros(3)).load_features()
