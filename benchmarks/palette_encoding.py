"""How fast do pictures become palette tokens, and is the table exact?

Command: make benchmark   (or python benchmarks/palette_encoding.py)

1. Builds the table of all 2^24 colours, states the time, and compares it with the nearest colour by all float64
   distances, colour by colour (`--colors` limits how many are compared).
2. Encodes 32x32 pictures with 512 colours, the contestants alternating: `ColorPalette.encode` in one call, and the
   image processor of Hugging Face's ImageGPT (the one without torchvision, in NumPy), and the formula of its other
   one in PyTorch. Nothing resizes.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable

os.environ.setdefault("KERAS_BACKEND", "jax")

import numpy as np
from timing import alternate, print_machine, print_rates

import keras_igpt as igpt
from keras_igpt.palette.nearest_color import build_color_table, nearest_colors, unpack_colors

_CHUNK = 1 << 20


def random_walk_images(count: int, size: int) -> np.ndarray:
    """Pictures whose neighbouring pixels are alike, as those of photographs are: it decides how often caches miss."""
    random = np.random.default_rng(0)
    steps = random.normal(0, 12, (count, size, size, 3))
    return (128 + steps.cumsum(1) * 0.7 + steps.cumsum(2) * 0.7).clip(0, 255).astype("uint8")


def check_table(positions: np.ndarray, num_colors: int) -> int:
    """Builds the table, says how long it took, and counts where it differs from all distances."""
    seconds = []
    for _ in range(5):
        started = time.perf_counter()
        table = build_color_table(positions)
        seconds.append(time.perf_counter() - started)
    differences = 0
    for start in range(0, num_colors, _CHUNK):
        packed = np.arange(start, min(start + _CHUNK, num_colors), dtype=np.int32)
        differences += int((nearest_colors(unpack_colors(packed, 3), positions) != table[packed]).sum())
    print(
        f"table of {len(positions)} colours: {np.median(seconds):.2f} s to build, {table.nbytes / 2**20:.0f} MiB, "
        f"{differences} differences in {num_colors:,} colours"
    )
    return differences


def hugging_face(palette: igpt.ColorPalette, images: np.ndarray) -> dict[str, Callable[[], np.ndarray]]:
    """The ways that transformers offers without torchvision."""
    import torch
    from transformers.models.imagegpt import image_processing_pil_imagegpt as by_numpy

    processor = by_numpy.ImageGPTImageProcessorPil(clusters=palette.centroids, do_resize=False)
    centroids = torch.from_numpy(palette.centroids)

    def by_torch() -> np.ndarray:
        # What its processor on torchvision computes (color_quantize_torch), without the processor.
        token_ids = []
        for start in range(0, len(images), 64):  # 134 MB of distances at a time
            pixels = torch.from_numpy(images[start : start + 64].reshape(-1, 3)).float() / 127.5 - 1
            distances = (pixels**2).sum(1)[:, None] - 2 * pixels @ centroids.T + (centroids.T**2).sum(0)
            token_ids.append(distances.argmin(1).numpy())
        return np.concatenate(token_ids).reshape(len(images), -1)

    return {
        "transformers, processor (NumPy)": lambda: np.asarray(processor(list(images))["input_ids"]),
        "transformers' formula in PyTorch, all cores": by_torch,
    }


def main(arguments: list[str] | None = None) -> dict[str, float]:
    """Prints the tables; returns median images a second by contestant, and the table's differences."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--colors", type=int, default=1 << 24, help="colours to compare with all distances")
    parser.add_argument("--palette-size", type=int, default=512)
    options = parser.parse_args(arguments)
    print_machine()
    images = random_walk_images(options.images, 32)
    palette = igpt.ColorPalette.fit(random_walk_images(64, 32), options.palette_size, max_iterations=5)
    differences = check_table((palette.centroids.astype(np.float64) + 1) * 127.5, options.colors)
    whole = np.rint((palette.centroids.astype(np.float64) + 1) * 127.5)
    differences += check_table(whole, options.colors)

    every_color = np.arange(1 << 17, dtype=np.int32) << 7
    palette.encode(unpack_colors(every_color, 3)[None])  # enough for the palette to build its table
    contestants: dict[str, Callable[[], object]] = {"keras_igpt": lambda: palette.encode(images)}
    others = hugging_face(palette, images)
    agreement = {name: (run() == palette.encode(images)).mean() for name, run in others.items()}
    print("agreement with keras_igpt:", ", ".join(f"{name} {share:.4%}" for name, share in agreement.items()))
    seconds = alternate({**contestants, **others}, options.rounds)
    print_rates(seconds, options.images, "encoder")
    rates = {name: options.images / float(np.median(values)) for name, values in seconds.items()}
    return {**rates, "differences": differences}


if __name__ == "__main__":
    main()
