"""What training sees: pictures as they are evaluated, and as random crops in one epoch after another.

Run: python examples/contact_sheet.py     # reads pictures/CLASS/PICTURE.jpg, writes contact_sheet.png

Needs: pip install "keras_igpt[jax,data,plot]"
Measured: a sheet of 12 of 4,000 training pictures in 2 s of processor time, x86-64.
"""

import os

os.environ.setdefault("KERAS_BACKEND", "jax")

import numpy as np

import keras_igpt as igpt
from keras_igpt import plotting

PICTURES = "pictures"
OUTPUT = "contact_sheet.png"
IMAGE_SIZE = 32  # the paper's are 32, 48 and 64
ROWS, COLUMNS = 12, 8


def main() -> np.ndarray:
    """Draws the sheet; returns its pictures in order."""
    # For ImageNet: igpt.load_dataset("imagenet2012", FOLDER, IMAGE_SIZE).train
    train = igpt.load_image_folder(PICTURES, IMAGE_SIZE).train
    crop = igpt.RandomResizedCrop()
    images = []
    for row in np.linspace(0, len(train) - 1, min(ROWS, len(train))).round().astype(int):
        images.append(train.read(row)[0])
        images += [train.read(row, crop, seed=0, epoch=epoch)[0] for epoch in range(COLUMNS - 1)]
    plotting.plot_grid(np.stack(images), columns=COLUMNS).savefig(OUTPUT)
    print(f"{len(train):,} training pictures; {len(images) // COLUMNS} of them in {OUTPUT}")
    return np.stack(images)


if __name__ == "__main__":
    main()
