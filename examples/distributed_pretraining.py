"""Autoregressive pre-training on all devices of one machine, or of several.

Command:
    python examples/distributed_pretraining.py                        # all devices of this machine, one model on each
    python examples/distributed_pretraining.py --model-parallel 4     # four devices share a model
    python examples/distributed_pretraining.py --dataset cifar10 --data-dir FOLDER --preset igpt_small --image-size 32

    Several processes, one a host: the same command on each, after
    export KERAS_DISTRIBUTION_JOB_ADDRESSES=10.0.0.1:12345    # of the first process
    export KERAS_DISTRIBUTION_NUM_PROCESSES=2
    export KERAS_DISTRIBUTION_PROCESS_ID=0                    # 1 on the other host
    On a TPU slice of several hosts JAX finds all that by itself: the same command with --tpu-slice on each.

    Without accelerators, eight devices made of one CPU:
    XLA_FLAGS=--xla_force_host_platform_device_count=8 python examples/distributed_pretraining.py

Needs: pip install "keras_igpt[quickstart]"; for CIFAR-10 also "keras_igpt[data]". Keras distributes on JAX alone.
Prints devices, processes, parameters and the losses of each epoch, from the first process. On two CPU cores the default
takes about a minute and ends at a validation loss near 1.74 nats per token, on one device as on eight.
Writes the model to distributed_pretraining_output/igpt.keras (--output) after each epoch.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path

os.environ.setdefault("KERAS_BACKEND", "jax")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
from arguments import load_data, make_parser

import keras_igpt as igpt

PHOTOGRAPHS = ("astronaut", "chelsea", "coffee")  # inside the wheel of scikit-image
PATCHES = 1000  # of each photograph


class SaveEachEpoch(keras.callbacks.Callback):
    """Writes the model after each epoch; every process takes part, the first one writes."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        """Saves what the devices hold now."""
        igpt.save_model(self.model, self.path)


def main(arguments: list[str] | None = None) -> dict[str, float]:
    """Trains; returns the last epoch's losses."""
    parser = make_parser(__doc__, "distributed_pretraining_output", ("photographs", "cifar10"), default="photographs")
    parser.add_argument("--preset", default="igpt_nano", help="architecture and recipe")
    parser.add_argument("--image-size", type=int, default=8)
    parser.add_argument("--model-parallel", type=int, default=1, metavar="N", help="devices that share one model")
    parser.add_argument("--tpu-slice", action="store_true", help="this is one of several hosts of a TPU slice")
    parser.add_argument("--batch-size", type=int, default=64, help="pictures of a step, all devices together")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--steps", type=int, default=25, help="steps of an epoch")
    options = parser.parse_args(arguments)

    # Before JAX looks for its devices.
    if options.tpu_slice or "KERAS_DISTRIBUTION_NUM_PROCESSES" in os.environ:
        keras.distribution.initialize()
    keras.utils.set_random_seed(options.seed)
    architecture = {**igpt.get_preset(options.preset).architecture, "image_size": options.image_size}
    distribution = igpt.make_distribution(architecture, options.model_parallel)
    # Before model and optimizer are made.
    with distribution.scope():
        return train(options, architecture, distribution)


def train(
    options: argparse.Namespace, architecture: dict[str, int], distribution: keras.distribution.Distribution
) -> dict[str, float]:
    """Makes data and model, and trains under the distribution."""
    shard = igpt.data_shard(distribution)
    if options.dataset == "photographs" and not options.images:
        data = photograph_patches(options.image_size, options.seed)
    else:
        data = load_data(options, options.image_size)
    # The same pictures and seed give each process the same palette.
    palette = igpt.ColorPalette.fit(data.train.images[:2000], architecture["vocabulary_size"], seed=options.seed)
    batches = igpt.TrainingBatches(data.train, palette, options.batch_size, seed=options.seed, shard=shard)
    held_out = igpt.EvaluationBatches(data.validation, palette, options.batch_size, shard=shard)

    language_model = igpt.ImageGPTCausalLM(igpt.ImageGPTBackbone(**architecture), palette=palette)
    steps = options.epochs * options.steps
    language_model.compile(**igpt.pretraining_recipe(options.preset, "ar", steps=steps))
    first = is_first_process()
    if first:
        print(
            f"devices: {distribution.device_mesh.devices.size}, processes: {distribution.num_processes}, "
            f"models: {distribution.num_model_replicas} of {language_model.count_params() / 1e6:.2f} million weights, "
            f"pictures a step: {options.batch_size}",
            flush=True,
        )
    output = Path(options.output)
    output.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    history = language_model.fit(
        batches,
        epochs=options.epochs,
        steps_per_epoch=options.steps,
        validation_data=held_out,
        callbacks=[SaveEachEpoch(output / "igpt.keras")],
        verbose=2 if first else 0,
    ).history
    if first:
        print(f"{time.monotonic() - started:.0f} s; {output / 'igpt.keras'} opens on any number of devices")
    return {name: values[-1] for name, values in history.items()}


def is_first_process() -> bool:
    """Whether this process is the one that writes and prints."""
    import jax

    return bool(jax.process_index() == 0)


def photograph_patches(patch_size: int, seed: int) -> igpt.DataSplits[igpt.LabeledImages]:
    """Cuts patches from photographs; the right quarter of each is for testing."""
    from skimage import data, transform

    patches: dict[str, list[np.ndarray]] = {"train": [], "test": []}
    for label, name in enumerate(PHOTOGRAPHS):
        picture = getattr(data, name)()
        height, width = 96, round(96 * picture.shape[1] / picture.shape[0])
        picture = np.uint8(255 * transform.resize(picture, (height, width), anti_aliasing=True))
        border = width * 3 // 4
        for part, (left, right) in {"train": (0, border), "test": (border, width)}.items():
            random = np.random.default_rng([seed, label, left])
            for _ in range(PATCHES):
                x, y = random.integers(left, right - patch_size + 1), random.integers(0, height - patch_size + 1)
                patches[part].append(picture[y : y + patch_size, x : x + patch_size])
    labels = np.repeat(np.arange(len(PHOTOGRAPHS)), PATCHES)
    return igpt.load_arrays((np.stack(patches["train"]), labels), (np.stack(patches["test"]), labels), seed=seed)


if __name__ == "__main__":
    main()
