import numpy as np
import pytest

import keras_igpt as igpt

INDICES = np.arange(2000)


def test_a_padded_crop_is_cut_from_the_reflected_picture_or_its_mirror():
    """Against NumPy's padding and slices, on pixels before they become tokens."""
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (2000, 6, 6, 3)).astype("uint8")
    palette = igpt.ColorPalette.from_colors(random.integers(0, 256, (32, 3)).astype("uint8"))
    sources = igpt.PaddedCrop(padding=2).sources(6, seed=1, epoch=3, indices=INDICES)
    moved = np.take_along_axis(palette.encode(images), sources, axis=1)
    seen = set()
    for image, token_ids in zip(images[:300], moved[:300], strict=True):
        padded = np.pad(image, [(2, 2), (2, 2), (0, 0)], mode="reflect")
        crops = {
            (top, left, mirrored): palette.encode(np.ascontiguousarray(canvas[top : top + 6, left : left + 6]))
            for mirrored, canvas in ((False, padded), (True, padded[:, ::-1]))
            for top in range(5)
            for left in range(5)
        }
        matches = [key for key, crop in crops.items() if (crop == token_ids).all()]
        assert len(matches) == 1
        seen.add(matches[0])
    assert len(seen) == 50


def test_padded_crops_are_functions_of_seed_epoch_and_index():
    crop = igpt.PaddedCrop()
    everything = crop.sources(32, 0, 0, INDICES)
    np.testing.assert_array_equal(crop.sources(32, 0, 0, INDICES[[7, 3]]), everything[[7, 3]])
    for seed, epoch in ((1, 0), (0, 1)):
        assert (crop.sources(32, seed, epoch, INDICES) != everything).any(axis=1).mean() > 0.9
    upright = igpt.PaddedCrop(mirror=False).sources(32, 0, 0, INDICES)
    assert 0.4 < (upright == everything).all(axis=1).mean() < 0.6
    centred = (everything.reshape(-1, 32, 32)[:, 4:-4, 4:-4] == np.arange(1024).reshape(32, 32)[4:-4, 4:-4]).all((1, 2))
    assert 0 < centred.mean() < 0.02  # 1 of 81, not mirrored
    np.testing.assert_array_equal(
        igpt.PaddedCrop(padding=0, mirror=False).sources(4, 0, 0, INDICES[:2]), [np.arange(16)] * 2
    )


def test_a_random_resized_crop_stays_inside_and_has_the_papers_sizes():
    crop = igpt.RandomResizedCrop()
    windows = np.array([crop.window(500, 375, seed=0, epoch=2, index=index) for index in INDICES])
    left, top, side = windows.T
    assert (windows >= 0).all()
    assert (left + side <= 500).all()
    assert (top + side <= 375).all()
    resized = 224 * 375 / side
    np.testing.assert_allclose(resized, resized.round(), atol=1e-9)
    assert (resized.min(), resized.max()) == (256, 384)
    counts = np.histogram(resized, 3, (256, 385))[0]
    assert (abs(counts / len(INDICES) - 1 / 3) < 0.04).all()
    assert abs((left / (500 - side)).mean() - 0.5) < 0.03
    assert abs((top / (375 - side)).mean() - 0.5) < 0.03
    assert crop.window(500, 375, 0, 2, 9) == tuple(windows[9])
    assert crop.window(500, 375, 0, 3, 9) != tuple(windows[9])


def test_mirroring_is_true_or_false():
    assert repr(igpt.PaddedCrop(1, np.True_)) == "PaddedCrop(padding=1, mirror=True)"
    with pytest.raises(ValueError, match="`mirror` must be True or False"):
        igpt.PaddedCrop(1, "no")
