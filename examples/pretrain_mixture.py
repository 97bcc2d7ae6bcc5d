"""Pre-training on labelled pictures and curated web pictures together, as the paper's largest model was.

Command:
    python examples/pretrain_mixture.py --web WEB --images FOLDER       # FOLDER/<class>/<picture>
    python examples/pretrain_mixture.py --web WEB --data-dir FOLDER     # ImageNet, as prepared by TensorFlow Datasets

WEB is a folder of token shards, as `python -m keras_igpt.curation` writes it; its palette and picture size are taken.
The other pictures are cropped at random (`RandomResizedCrop`), those of the web are not.

Needs: pip install "keras_igpt[jax,data]"
Writes to pretrain_mixture_output/ (--output): log.csv, checkpoints/, and the model at the end (igpt.keras). Run the
same command again after a crash: it goes on from the last checkpoint.
"""

from __future__ import annotations

import os
from pathlib import Path

os.environ.setdefault("KERAS_BACKEND", "jax")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
from arguments import load_data, make_parser

import keras_igpt as igpt


def main(arguments: list[str] | None = None) -> dict[str, float]:
    """Trains, and returns loss and bits per pixel on the validation pictures."""
    parser = make_parser(__doc__, "pretrain_mixture_output", ("imagenet2012",), default="imagenet2012")
    parser.add_argument("--web", required=True, help="folder of token shards")
    parser.add_argument("--web-weight", type=float, default=4.0, help="web pictures for each of the others")
    parser.add_argument("--objective", choices=("ar", "bert"), default="ar")
    parser.add_argument("--preset", default="igpt_tiny", help="architecture and recipe")
    parser.add_argument("--learning-rate", type=float, default=0.001)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--updates", type=int, default=10_000)
    parser.add_argument("--updates-per-epoch", type=int, default=1000, help="between validations and checkpoints")
    options = parser.parse_args(arguments)
    if options.updates % options.updates_per_epoch:
        parser.error(f"--updates must be a multiple of --updates-per-epoch; received {options.updates}")

    web = igpt.UnlabeledTokens.open(options.web)
    palette = web.palette
    data = load_data(options, web.image_size, in_memory=False)
    batches = igpt.MixedBatches(
        {
            "pictures": igpt.Source(data.train, augmentation=igpt.RandomResizedCrop(), weight=1),
            "web": igpt.Source(web, weight=options.web_weight),
        },
        palette,
        options.batch_size,
        seed=options.seed,
    )
    held_out = igpt.EvaluationBatches(data.validation, palette, options.batch_size)

    keras.utils.set_random_seed(options.seed)
    kind = igpt.ImageGPTCausalLM if options.objective == "ar" else igpt.ImageGPTMaskedLM
    architecture = {"image_size": web.image_size, "vocabulary_size": palette.num_colors}
    lm = kind.from_preset(options.preset, load_weights=False, palette=palette, **architecture)
    recipe = igpt.pretraining_recipe(
        options.preset, options.objective, options.updates, learning_rate=options.learning_rate
    )
    lm.compile(**recipe)
    output = Path(options.output)
    output.mkdir(parents=True, exist_ok=True)
    lm.fit(
        batches,
        epochs=options.updates // options.updates_per_epoch,
        steps_per_epoch=options.updates_per_epoch,
        validation_data=held_out,
        callbacks=[
            keras.callbacks.CSVLogger(output / "log.csv", append=True),
            igpt.ExactResume(output / "checkpoints", every=options.updates_per_epoch),
        ],
    )
    igpt.save_model(lm, output / "igpt.keras")
    results: dict[str, float] = lm.evaluate(held_out, return_dict=True, verbose=0)
    print(f"Validation: {results}")
    return results


if __name__ == "__main__":
    main()
