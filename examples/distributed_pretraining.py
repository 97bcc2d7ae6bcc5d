"""Autoregressive pre-training on all devices of one machine, or of several.

Run: TFDS_DATA_DIR=FOLDER python examples/distributed_pretraining.py     # FOLDER/cifar10, as TFDS prepares it
     with XLA_FLAGS=--xla_force_host_platform_device_count=8 in front: eight devices made of one CPU.
Several hosts: the same on each, after `export KERAS_DISTRIBUTION_…` (docs/cluster.md), or with TPU_SLICE = True.

Needs: pip install "keras_igpt[jax,data]". Keras distributes on JAX alone.
Measured: 2.426 nats per token on validation, one seed, on one device; 134 s of processor time on JAX, x86-64, beside
other work. On eight devices made of two busy cores XLA gave up waiting after 40 s; tests/training has eight with a
smaller model.
"""

import os
from pathlib import Path

os.environ.setdefault("KERAS_BACKEND", "jax")

import keras

import keras_igpt as igpt

PRESET, IMAGE_SIZE = "igpt_nano", 8  # architecture and recipe; the paper's sizes are igpt_small … igpt_extra_large
MODEL_DEVICES = 1  # devices that share one model
TPU_SLICE = False  # this is one of several hosts of a TPU slice
OUTPUT = Path("distributed_pretraining_output")
BATCH_SIZE = 64  # pictures of a step, all devices together
EPOCHS, EPOCH_STEPS = 4, 50


class SaveEachEpoch(keras.callbacks.Callback):
    """Writes the model after each epoch; every process takes part, the first one writes."""

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        """Saves what the devices hold now."""
        igpt.save_model(self.model, OUTPUT / "igpt.keras")


def main() -> dict[str, float]:
    """Trains; returns the last epoch's losses."""
    # Before JAX looks for its devices.
    if TPU_SLICE or "KERAS_DISTRIBUTION_NUM_PROCESSES" in os.environ:
        keras.distribution.initialize()
    keras.utils.set_random_seed(0)
    architecture = {**igpt.get_preset(PRESET).architecture, "image_size": IMAGE_SIZE}
    distribution = igpt.make_distribution(architecture, MODEL_DEVICES)
    # Before model and optimizer are made.
    with distribution.scope():
        shard = igpt.data_shard(distribution)  # which part of each batch this process reads
        data = igpt.load_dataset("cifar10", image_size=IMAGE_SIZE)
        # The same pictures and seed give each process the same palette.
        palette = igpt.ColorPalette.fit(data.train.images, architecture["vocabulary_size"])
        lm = igpt.ImageGPTCausalLM(igpt.ImageGPTBackbone(**architecture), palette=palette)
        lm.compile(**igpt.pretraining_recipe(PRESET, "ar", EPOCHS * EPOCH_STEPS))
        print(
            f"devices: {distribution.device_mesh.devices.size}, processes: {distribution.num_processes}, "
            f"models: {distribution.num_model_replicas} of {lm.count_params() / 1e6:.2f} million weights",
            flush=True,
        )
        OUTPUT.mkdir(parents=True, exist_ok=True)
        history = lm.fit(
            igpt.TrainingBatches(data.train, palette, BATCH_SIZE, shard=shard),
            epochs=EPOCHS,
            steps_per_epoch=EPOCH_STEPS,
            validation_data=igpt.EvaluationBatches(data.validation, palette, BATCH_SIZE, shard=shard),
            callbacks=[SaveEachEpoch()],  # the file opens on any number of devices
            verbose=2,
        ).history
    return {name: values[-1] for name, values in history.items()}


if __name__ == "__main__":
    main()
