"""Does the data pipeline keep up?

Command: python benchmarks/data_pipeline.py --data-dir FOLDER   (prepared TensorFlow Datasets)

1. CIFAR-10 fine-tuning: shuffled batches of 128 with padded crops, mirroring and tokens;
   against the straightforward tf.data pipeline (map pad, crop, flip; encode with all distances in float32).
2. ImageNet pre-training: random resized crops, 32x32, tokens; against nothing but decoding the same JPEGs with
   TensorFlow Datasets (`as_dataset`, all cores), and against our own reading of whole pictures.
3. What decoding JPEGs at a fraction changes: distance of its 32x32 pictures from those of whole decoding.
"""

from __future__ import annotations

import argparse
import itertools
import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from unittest import mock

os.environ.setdefault("KERAS_BACKEND", "jax")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
from timing import alternate, print_machine, print_rates

import keras_igpt as igpt
from keras_igpt.data import image_files

BATCH_SIZE = 128


def take(batches: igpt.TrainingBatches, count: int) -> Callable[[], None]:
    """Makes `count` batches with as many threads as `fit` would use."""

    def run() -> None:
        with ThreadPoolExecutor(batches.workers) as pool:
            for _ in pool.map(batches.__getitem__, range(count)):
                pass

    return run


def drain(batches: Iterable[object]) -> None:
    """Reads everything."""
    for _ in batches:
        pass


def tf_data_pipeline(examples: igpt.LabeledImages, palette: igpt.ColorPalette, count: int) -> Callable[[], None]:
    """What one would write with tf.data."""
    import tensorflow as tf

    centroids = tf.constant(palette.colors.astype("float32"))

    def augment(image: tf.Tensor) -> tf.Tensor:
        image = tf.pad(image, [[4, 4], [4, 4], [0, 0]], mode="REFLECT")
        return tf.image.random_flip_left_right(tf.image.random_crop(image, (32, 32, 3)))

    def encode(images: tf.Tensor) -> tf.Tensor:
        pixels = tf.reshape(tf.cast(images, tf.float32), (-1, 3))
        distances = tf.reduce_sum(centroids**2, 1) - 2 * pixels @ tf.transpose(centroids)
        return tf.reshape(tf.argmin(distances, 1, tf.int32), (-1, 1024))

    dataset = tf.data.Dataset.from_tensor_slices(examples.images).shuffle(len(examples)).repeat()
    dataset = dataset.map(augment, tf.data.AUTOTUNE).batch(BATCH_SIZE).map(encode, tf.data.AUTOTUNE)
    iterator = iter(dataset.prefetch(tf.data.AUTOTUNE))
    return lambda: drain(itertools.islice(iterator, count))


def cifar(data_dir: str, rounds: int, steps: int) -> dict[str, np.ndarray]:
    """Table 1."""
    data = igpt.load_dataset("cifar10", data_dir)
    palette = igpt.ColorPalette.fit(data.train.images, 512)
    settings = {"seed": 0, "augmentation": igpt.PaddedCrop()}
    contestants = {
        "keras_igpt, crops": take(igpt.TrainingBatches(data.train, palette, BATCH_SIZE, **settings), steps),
        "tf.data, crops": tf_data_pipeline(data.train, palette, steps),
    }
    seconds = alternate(contestants, rounds)
    print_rates(seconds, steps * BATCH_SIZE, "CIFAR-10 fine-tuning pipeline")
    return seconds


def imagenet(data_dir: str, rounds: int) -> dict[str, np.ndarray]:
    """Table 2."""
    import tensorflow_datasets as tfds

    data = igpt.load_dataset("imagenet2012", data_dir, image_size=32)
    everything = data["train+validation"]
    palette = igpt.ColorPalette.fit(everything.load().images, 512)
    count = len(everything)
    batches = igpt.TrainingBatches(
        everything, palette, batch_size=count // 8, augmentation=igpt.RandomResizedCrop(), seed=0
    )
    crop = igpt.RandomResizedCrop()

    def whole() -> None:
        with mock.patch.object(image_files, "_PIXELS_LEFT", float("inf")), ThreadPoolExecutor(os.cpu_count()) as pool:
            drain(pool.map(lambda row: everything.read(row, crop), range(count)))

    (folder,) = (Path(data_dir) / "imagenet2012").iterdir()
    dataset = (
        tfds.builder_from_directory(folder)
        .as_dataset(split="train", read_config=tfds.ReadConfig(try_autocache=False))
        .prefetch(-1)
    )
    seconds = alternate(
        {
            "TFDS, decoding alone": lambda: drain(dataset),
            "keras_igpt, crops and tokens": take(batches, 8),
            "keras_igpt, decoding all pixels, crops, no tokens": whole,
        },
        rounds,
    )
    print_rates(seconds, count, "ImageNet pre-training pipeline")

    reduced = [everything.read(row, crop)[0] for row in range(count)]
    with mock.patch.object(image_files, "_PIXELS_LEFT", float("inf")):
        full = [everything.read(row, crop)[0] for row in range(count)]
    difference = np.abs(np.stack(reduced).astype(float) - np.stack(full))
    changed = (palette.encode(np.stack(reduced)) != palette.encode(np.stack(full))).mean()
    print(
        f"decoding at a fraction: mean difference {difference.mean():.2f} of 255, 99th percentile "
        f"{np.percentile(difference, 99):.0f}; another token for {changed:.1%} of the pixels"
    )
    return seconds


def main(arguments: list[str] | None = None) -> dict[str, float]:
    """Prints the tables; returns median seconds by contestant."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", required=True, help="folder of prepared TensorFlow Datasets")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--steps", type=int, default=100)
    options = parser.parse_args(arguments)
    print_machine()
    seconds = {**cifar(options.data_dir, options.rounds, options.steps), **imagenet(options.data_dir, options.rounds)}
    return {name: float(np.median(values)) for name, values in seconds.items()}


if __name__ == "__main__":
    main()
