"""Pre-training on the pixels of CIFAR-10, without labels. Kill it anywhere: run again, it goes on to the same weights.

Run: TFDS_DATA_DIR=FOLDER python examples/pretrain.py     # FOLDER/cifar10, as TensorFlow Datasets prepares it

Needs: pip install "keras_igpt[jax,data,plot]". `keras-igpt pretrain` does this with options and searches the rate.
Measured: 3.027 nats per token on validation, one seed, with a warm-up of 28 steps in place of 100; about half an hour
of one x86-64 core, PyTorch (RESULTS.md has that run as "AR, 8 layers, width 96").
"""

import os
from pathlib import Path

os.environ.setdefault("KERAS_BACKEND", "jax")

import keras

import keras_igpt as igpt
from keras_igpt import plotting

OUTPUT = Path("pretrain_output")
IMAGE_SIZE = 8
COLORS = 256
LAYERS, HEADS, WIDTH = 8, 4, 96
BATCH_SIZE = 64
EPOCHS, EPOCH_STEPS = 8, 350
LEARNING_RATE = 0.003
SEED = 0


def main() -> float:
    """Trains, and returns the last validation loss."""
    keras.utils.set_random_seed(SEED)
    OUTPUT.mkdir(parents=True, exist_ok=True)
    data = igpt.load_dataset("cifar10", image_size=IMAGE_SIZE)
    palette = igpt.ColorPalette.fit(data.train.images, COLORS, seed=SEED)
    print(palette.quantization_report(data.validation.images))

    # For BERT: attention="bidirectional", igpt.ImageGPTMaskedLM and the recipe's "bert".
    backbone = igpt.ImageGPTBackbone(COLORS, IMAGE_SIZE, LAYERS, HEADS, WIDTH, attention="causal")
    lm = igpt.ImageGPTCausalLM(backbone, palette=palette)
    recipe = igpt.pretraining_recipe("igpt_tiny", "ar", EPOCHS * EPOCH_STEPS, learning_rate=LEARNING_RATE)
    lm.compile(**recipe)
    print(igpt.estimate(backbone.architecture, BATCH_SIZE))
    lm.fit(
        igpt.TrainingBatches(data.train, palette, BATCH_SIZE, seed=SEED),
        epochs=EPOCHS,
        steps_per_epoch=EPOCH_STEPS,
        validation_data=igpt.EvaluationBatches(data.validation, palette, BATCH_SIZE),
        callbacks=[
            keras.callbacks.CSVLogger(str(OUTPUT / "log.csv"), append=True),
            igpt.ExactResume(OUTPUT / "checkpoints", every=EPOCH_STEPS),
        ],
        verbose=2,
    )
    lm.save(OUTPUT / "igpt.keras")  # weights, optimizer, palette; opens on any backend
    plotting.plot_grid(lm.generate(num_images=16, seed=SEED)).savefig(OUTPUT / "samples.png")
    held_out = igpt.EvaluationBatches(data.validation, palette, BATCH_SIZE)
    loss: float = lm.evaluate(held_out, verbose=0, return_dict=True)["loss"]
    print(f"validation loss: {loss:.3f} nats per token")
    return loss


if __name__ == "__main__":
    main()
