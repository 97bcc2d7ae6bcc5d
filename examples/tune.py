"""The paper's evaluation of fine-tuning: rate searched on validation, validation folded back in, refitted, tested once.

Command:
    python examples/tune.py --model igpt.keras --dataset cifar10 --data-dir FOLDER   # FOLDER as prepared by TFDS
    python examples/tune.py --model igpt.keras --images FOLDER --weights 0 0.5 1     # the weight of L_GEN is swept too
    python examples/tune.py --model igpt.keras --images FOLDER --frozen --layer 4 --rates 30 10 3 1 0.3

Needs: pip install "keras_igpt[jax,data,tune]" and a model's file, such as examples/pretrain.py writes.
Rates are tried from large to small until the validation accuracy worsens. With --frozen it is the paper's linear probe
for ImageNet: the language model stays as it is and a linear map of one depth is trained by SGD with a cosine schedule.
Writes trials.json, report.json and model.keras to tune_output/ (--output). Run the same command again after a crash.

Expected: see RESULTS.md, which has searches of this kind (examples/cifar10_study.py).
"""

from __future__ import annotations

import argparse
import os
from typing import Any

os.environ.setdefault("KERAS_BACKEND", "jax")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
from arguments import add_model_argument, load_data, make_parser

import keras_igpt as igpt


def main(arguments: list[str] | None = None) -> igpt.TunedResult:
    """Searches, refits, tests, and returns the result."""
    parser = make_parser(__doc__, "tune_output")
    add_model_argument(parser)
    parser.add_argument("--rates", type=float, nargs="+", default=[0.003, 0.001, 0.0003, 0.0001], help="falling")
    parser.add_argument(
        "--weights", type=float, nargs="+", help="weights of L_GEN to sweep; 1 by default, as the paper"
    )
    parser.add_argument("--frozen", action="store_true", help="train the class head alone")
    parser.add_argument("--layer", type=int, help="depth of the features; by default the last")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--epochs", type=int, default=50, help="at most; with --frozen exactly, for its schedule")
    parser.add_argument("--patience", type=int, default=5)
    parser.add_argument(
        "--to-beat", type=float, help="accuracy of a trial that counts; by default that before training"
    )
    options = parser.parse_args(arguments)
    if options.frozen and options.weights:
        parser.error("--weights is for fine-tuning, not for --frozen")

    pretrained = keras.saving.load_model(options.model, compile=False)
    palette = pretrained.palette
    data = load_data(options, pretrained.backbone.image_size)
    tokens = igpt.DataSplits(
        *(data[part].encode(palette) for part in ("train", "validation", "test")), data.class_names
    )
    augmentation = igpt.PaddedCrop(round(4 * tokens.train.image_size / 32))
    steps = options.epochs * (len(tokens.train) // options.batch_size)

    def make_model(hyperparameters: Any) -> igpt.ImageGPTImageClassifier:
        # Reloaded for each trial, so that all begin with the same weights.
        language_model = keras.saving.load_model(options.model, compile=False)
        classes, rate = len(data.class_names), hyperparameters.get("learning_rate")
        if options.frozen:
            classifier = igpt.ImageGPTImageClassifier(
                language_model, classes, generative_weight=0.0, layer=options.layer, frozen=True
            )
            classifier.compile(**igpt.probing_recipe(rate, steps))
            return classifier
        weight = hyperparameters.get("generative_weight") if options.weights else 1.0
        classifier = igpt.ImageGPTImageClassifier(language_model, classes, weight, layer=options.layer)
        classifier.compile(**igpt.finetuning_recipe(rate))
        return classifier

    study = igpt.Study(
        make_model,
        tokens,
        lambda examples: igpt.TrainingBatches(
            examples, palette, options.batch_size, seed=options.seed, augmentation=augmentation
        ),
        lambda examples: igpt.EvaluationBatches(examples, palette, options.batch_size),
        "val_accuracy",
        options.output,
        seed=options.seed,
    )
    study.search(
        epochs=options.epochs,
        oracle=igpt.DescendingLearningRateOracle("val_accuracy", options.rates, sweep(options)),
        patience=None if options.frozen else options.patience,
        to_beat=options.to_beat,
    )
    result = study.refit()
    print(result)
    return result


def sweep(options: argparse.Namespace) -> Any:
    """KerasTuner's own oracle for the weight of L_GEN, beside the descent of the rates; None if it is not swept."""
    if not options.weights:
        return None
    import keras_tuner

    space = keras_tuner.HyperParameters()
    space.Choice("generative_weight", options.weights)
    return keras_tuner.oracles.GridSearchOracle("val_accuracy", hyperparameters=space)


if __name__ == "__main__":
    main()
