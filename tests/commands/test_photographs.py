"""Patches of photographs."""

import numpy as np
import pytest

from keras_igpt.commands import photographs


def test_patches_of_a_photograph_share_no_pixel_across_splits(monkeypatch):
    # A picture whose pixels tell their column: (x // 256, x % 256, 0).
    x = np.arange(120)
    columns = np.stack([x // 256, x % 256, 0 * x], axis=-1).astype("uint8")
    monkeypatch.setattr(photographs, "photograph", lambda _: np.tile(columns, (photographs.PHOTOGRAPH_HEIGHT, 1, 1)))
    monkeypatch.setattr(photographs, "PATCHES", {"train": 6, "validation": 2, "test": 2})
    data = photographs.photograph_patches(8, seed=0)
    ranges = [
        (int(part.images[..., 1].min()), int(part.images[..., 1].max()))
        for part in (data.train, data.validation, data.test)
    ]
    assert ranges[0][1] < 75 <= ranges[1][0] <= ranges[1][1] < 90 <= ranges[2][0]


def test_every_photograph_is_installed():
    for package in ("skimage", "sklearn", "PIL"):
        pytest.importorskip(package)
    for name in photographs.PHOTOGRAPHS:
        picture = photographs.photograph(name)
        assert picture.shape[0] == photographs.PHOTOGRAPH_HEIGHT
        assert picture.shape[1] >= 8 * 8  # a patch of 8 pixels fits into an eighth
        assert picture.std() > 5
