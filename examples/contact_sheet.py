"""What training sees: pictures as they are evaluated, and as random crops in one epoch after another.

Command:
    python examples/contact_sheet.py --images FOLDER                            # FOLDER/<class>/<picture>
    python examples/contact_sheet.py --dataset imagenet2012 --data-dir FOLDER   # prepared by TensorFlow Datasets

Needs: pip install "keras_igpt[data,plot]" and a backend. Takes seconds. Writes contact_sheet.png (--output): a row for
each of up to twelve training pictures, the first column without augmentation.
"""

from __future__ import annotations

import os

os.environ.setdefault("KERAS_BACKEND", "jax")

import numpy as np
from arguments import load_data, make_parser

import keras_igpt as igpt
from keras_igpt import plotting

ROWS, COLUMNS = 12, 8


def main(arguments: list[str] | None = None) -> np.ndarray:
    """Draws the sheet; returns its pictures in order."""
    parser = make_parser(__doc__, "contact_sheet.png", datasets=("imagenet2012",))
    parser.add_argument("--image-size", type=int, default=32, help="side in pixels; the paper's are 32, 48 and 64")
    options = parser.parse_args(arguments)

    data = load_data(options, options.image_size, in_memory=False)
    crop = igpt.RandomResizedCrop()
    images = []
    for row in range(min(ROWS, len(data.train))):
        images.append(data.train.read(row)[0])
        images += [data.train.read(row, crop, options.seed, epoch)[0] for epoch in range(COLUMNS - 1)]
    plotting.plot_grid(np.stack(images), columns=COLUMNS).savefig(options.output)
    print(f"{len(data.train):,} training pictures; the first {len(images) // COLUMNS} in {options.output}")
    return np.stack(images)


if __name__ == "__main__":
    main()
