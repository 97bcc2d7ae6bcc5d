"""A small web for the tests of curation, and a run of it in several processes that ends in a kill."""

import io
import os
import signal
import sys
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image

import keras_igpt as igpt
from keras_igpt.curation import PictureFeatures, Reference, Rules, Similarity, curate
from keras_igpt.data.image_files import resize_images

SHARDS, PHOTOGRAPHS = 4, 10


def photograph(seed, cold=False, side=48):
    """Smooth and sharp random shapes in warm or cold colours."""
    random = np.random.default_rng(seed)
    layers = [
        np.asarray(
            Image.fromarray(random.integers(0, 256, (n, n)).astype("uint8")).resize(
                (side, side), Image.Resampling.BICUBIC
            )
        )
        for n in (4, 9, 24)
    ]
    grey = np.average(layers, axis=0, weights=(4, 2, 1))
    colors = np.array([0.4, 0.7, 1.0] if cold else [1.0, 0.7, 0.4]) - random.uniform(0, 0.2, 3)
    return Image.fromarray((grey[..., None] * colors).astype("uint8"))


def encoded(picture, kind="PNG", **options):
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def copied(picture):
    return encoded(picture.resize((60, 60)), "JPEG", quality=80)


def squares(pictures, size=32):
    return np.concatenate([resize_images(np.asarray(picture)[None], size) for picture in pictures])


def mean_colors(images):
    global batches
    main = os.environ.get("MAIN_PROCESS")
    if main and int(main) != os.getpid():
        batches += 1
        if batches == 2:  # a worker that has its second shard
            os.killpg(0, signal.SIGKILL)
    return images.reshape(len(images), -1, 3).mean(axis=1)


batches = 0


def load_mean_colors():
    return PictureFeatures(mean_colors, 8, batch_size=16)


# What is in every shard beside its photographs, and its outcome.
PLANTED = {"cold": "dissimilar", "flat": "plain", "broken": "broken", "copy": "duplicate", "evaluation": "evaluation"}


def write_web(folder):
    """Writes tar files; pictures are numbered over all shards."""
    folder.mkdir()
    for shard in range(SHARDS):
        files = {f"photograph{k}": encoded(photograph(shard * PHOTOGRAPHS + k)) for k in range(PHOTOGRAPHS)}
        files["cold"] = encoded(photograph(900 + shard, cold=True))
        files["flat"] = encoded(Image.new("RGB", (40, 40), (shard, 9, 9)))
        files["broken"] = encoded(photograph(0))[:900]
        # Of a picture in the next shard: there it is the one that goes. The last shard's is of its own.
        files["copy"] = copied(photograph(min(shard + 1, SHARDS - 1) * PHOTOGRAPHS))
        files["evaluation"] = copied(photograph(800 + shard))
        with tarfile.open(folder / f"{shard}.tar", "w") as archive:
            for name, content in files.items():
                member = tarfile.TarInfo(f"{name}.png")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    return folder


def palette():
    values = np.arange(27)
    return igpt.ColorPalette.from_colors(np.stack([values // 9, values // 3 % 3, values % 3], -1).astype("uint8") * 127)


def reference():
    return Reference.fit(
        load_mean_colors().of(igpt.LabeledImages(squares(map(photograph, range(500, 540))), np.zeros(40, int))), 2
    )


def evaluation():
    return igpt.LabeledImages(squares(map(photograph, range(800, 800 + SHARDS))), np.zeros(SHARDS, int))


def run(web, output, **options):
    arguments = {"palette": palette(), "image_size": 16, "similarity": Similarity(reference(), load_mean_colors)}
    rules = Rules(threshold=0.9)
    return curate(web, output, **{**arguments, "exclude": evaluation(), "rules": rules, **options})


def main():
    """Runs in two processes, until one of them kills all."""
    os.environ["MAIN_PROCESS"] = str(os.getpid())
    web, output = map(Path, sys.argv[1:])
    run(web, output, pipeline_options=["--direct_running_mode", "multi_processing", "--direct_num_workers", "2"])
