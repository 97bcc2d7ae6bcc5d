"""Pictures without a download: patches of the photographs that come with scikit-image and scikit-learn."""

from __future__ import annotations

from pathlib import Path

import numpy as np

import keras_igpt as igpt
from keras_igpt.palette.color_palette import UInt8Images

# Colour pictures and textures inside the wheels of scikit-image and scikit-learn.
PHOTOGRAPHS = (
    "astronaut.png",
    "brick.png",
    "chelsea.png",
    "china.jpg",
    "coffee.png",
    "coins.png",
    "flower.jpg",
    "grass.png",
    "gravel.png",
    "hubble_deep_field.jpg",
    "ihc.png",
    "motorcycle_left.png",
    "retina.jpg",
    "rocket.jpg",
)
PHOTOGRAPH_HEIGHT = 96
# Of each photograph.
PATCHES = {"train": 400, "validation": 60, "test": 120}


def photograph(name: str) -> UInt8Images:
    """Reads one of `PHOTOGRAPHS`, uint8 `(96, W, 3)`; raises `ImportError` where they are not installed."""
    try:
        import skimage
        import sklearn
        from PIL import Image
    except ImportError as error:
        raise ImportError("The photographs need pip install 'keras_igpt[quickstart]'") from error

    folders = (Path(skimage.__file__).parent / "data", Path(sklearn.__file__).parent / "datasets" / "images")
    (path,) = [folder / name for folder in folders if (folder / name).is_file()]
    with Image.open(path) as picture:
        width = round(picture.width * PHOTOGRAPH_HEIGHT / picture.height)
        small = picture.convert("RGB").resize((width, PHOTOGRAPH_HEIGHT), Image.Resampling.BOX)
    return np.asarray(small)


def photograph_patches(patch_size: int, seed: int) -> igpt.DataSplits[igpt.LabeledImages]:
    """Cuts patches from `PHOTOGRAPHS`; the class of a patch is the photograph it comes from.

    The right quarter of each photograph is for testing, the eighth before it for validation, the rest for training; no
    patch crosses from one into another.
    """
    parts: dict[str, list[tuple[UInt8Images, int]]] = {name: [] for name in PATCHES}
    for label, name in enumerate(PHOTOGRAPHS):
        picture = photograph(name)
        height, width = picture.shape[:2]
        borders = {
            "train": (0, width * 5 // 8),
            "validation": (width * 5 // 8, width * 3 // 4),
            "test": (width * 3 // 4, width),
        }
        for part, (left, right) in borders.items():
            random = np.random.default_rng([seed, label, list(PATCHES).index(part)])
            for _ in range(PATCHES[part]):
                x = random.integers(left, right - patch_size + 1)
                y = random.integers(0, height - patch_size + 1)
                parts[part].append((picture[y : y + patch_size, x : x + patch_size], label))
    train, validation, test = (
        igpt.LabeledImages(np.stack([patch for patch, _ in part]), np.array([label for _, label in part]))
        for part in parts.values()
    )
    return igpt.DataSplits(train, validation, test, tuple(name.split(".")[0] for name in PHOTOGRAPHS))
