"""Pre-training on labelled pictures and curated web pictures together, as the paper's largest model was.

Run: python examples/pretrain_mixture.py     # reads pictures/CLASS/PICTURE.jpg and web/, token shards

WEB is a folder that `python -m keras_igpt.curation` has written; palette and picture size are its own.
Needs: pip install "keras_igpt[jax,data]"
Measured: 3.21 nats per token on validation (one seed; a warm-up of 1 step in place of 10) in a trial with PRESET =
"igpt_nano", 2 epochs of 50 steps, 5,000 pictures of CIFAR-10 and 10,000 others of it for the web, at 8x8 pixels and 64
colours; 38 s of processor time on JAX, x86-64. Not run at a size that is worth it.
"""

import os
from pathlib import Path

os.environ.setdefault("KERAS_BACKEND", "jax")

import keras

import keras_igpt as igpt

WEB = "web"
PICTURES = "pictures"
OUTPUT = Path("pretrain_mixture_output")
PRESET = "igpt_tiny"  # architecture and recipe
WEB_WEIGHT = 4.0  # web pictures for each of the others
BATCH_SIZE = 64
EPOCHS, EPOCH_STEPS = 10, 1000
LEARNING_RATE = 0.001
SEED = 0


def main() -> dict[str, float]:
    """Trains, and returns loss and bits per pixel on the validation pictures."""
    keras.utils.set_random_seed(SEED)
    OUTPUT.mkdir(parents=True, exist_ok=True)
    web = igpt.UnlabeledTokens.open(WEB)
    palette = web.palette
    assert palette is not None
    # For ImageNet: igpt.load_dataset("imagenet2012", FOLDER, web.image_size)
    data = igpt.load_image_folder(PICTURES, web.image_size)
    batches = igpt.MixedBatches(
        {
            # Pictures are cropped at random, those of the web are not.
            "pictures": igpt.Source(data.train, augmentation=igpt.RandomResizedCrop(), weight=1),
            "web": igpt.Source(web, weight=WEB_WEIGHT),
        },
        palette,
        BATCH_SIZE,
        seed=SEED,
    )
    sizes = {"image_size": web.image_size, "vocabulary_size": palette.num_colors}
    lm = igpt.ImageGPTCausalLM.from_preset(PRESET, load_weights=False, palette=palette, **sizes)
    lm.compile(**igpt.pretraining_recipe(PRESET, "ar", EPOCHS * EPOCH_STEPS, learning_rate=LEARNING_RATE))
    held_out = igpt.EvaluationBatches(data.validation, palette, BATCH_SIZE)
    lm.fit(
        batches,
        epochs=EPOCHS,
        steps_per_epoch=EPOCH_STEPS,
        validation_data=held_out,
        callbacks=[
            keras.callbacks.CSVLogger(OUTPUT / "log.csv", append=True),
            igpt.ExactResume(OUTPUT / "checkpoints", every=EPOCH_STEPS),  # run again after a crash
        ],
        verbose=2,
    )
    lm.save(OUTPUT / "igpt.keras")
    results: dict[str, float] = lm.evaluate(held_out, return_dict=True, verbose=0)
    print(f"Validation: {results}")
    return results


if __name__ == "__main__":
    main()
