import numpy as np
import pytest

import keras_igpt as igpt
from keras_igpt.plotting import plot_depth_similarity


def test_rotation_scale_and_shift_change_nothing():
    random = np.random.default_rng(0)
    features = random.standard_normal((400, 6))
    rotation, _ = np.linalg.qr(random.standard_normal((6, 6)))
    stacked = np.stack([features, 3 * features @ rotation + 7, random.standard_normal((400, 6))], axis=1)
    similarity = igpt.depth_similarity(stacked.astype("float32"))
    assert similarity[0, 1] == pytest.approx(1, abs=1e-5)
    assert similarity[0, 2] < 0.05
    np.testing.assert_allclose(np.diag(similarity), 1)
    np.testing.assert_array_equal(similarity, similarity.T)


def test_it_is_the_normalized_product_of_the_kernels():
    stacked = np.random.default_rng(0).standard_normal((50, 2, 4))
    centre = np.eye(50) - 1 / 50
    kernels = [centre @ (x @ x.T) @ centre for x in (stacked[:, 0], stacked[:, 1])]
    expected = np.sum(kernels[0] * kernels[1]) / np.sqrt(np.sum(kernels[0] ** 2) * np.sum(kernels[1] ** 2))
    assert igpt.depth_similarity(stacked)[0, 1] == pytest.approx(expected)


def test_other_shapes_are_refused():
    with pytest.raises(ValueError, match="`features` must be a float array"):
        igpt.depth_similarity(np.ones((4, 2)))
    with pytest.raises(ValueError, match="`similarity` must have shape"):
        plot_depth_similarity(np.eye(3), depths=[0, 1])


def test_the_picture_has_the_numbers():
    values = np.array([[1.0, 0.83, np.nan], [0.83, 1.0, 0.97], [np.nan, 0.97, 1.0]])
    axes, color_bar = plot_depth_similarity(values, depths=[2, 5, 8]).axes
    np.testing.assert_array_equal(np.ma.filled(axes.images[0].get_array(), np.nan), values)
    assert axes.images[0].get_clim() == (0.8, 1.0)
    assert [text.get_text() for text in axes.texts[:3]] == ["1.00", "0.83", "nan"]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["2", "5", "8"]
    assert color_bar.get_ylabel() == "linear CKA"
    many, _ = plot_depth_similarity(np.eye(13)).axes
    assert not many.texts
    assert many.images[0].get_clim() == (0.0, 1.0)
