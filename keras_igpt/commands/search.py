"""The paper's protocol: rates searched on validation, validation folded back in, refitted, tested once.

keras-igpt search --model run/igpt.keras --images FOLDER --rates 0.003 0.001 0.0003
keras-igpt search --model run/igpt.keras --images FOLDER --frozen --layer 4 --rates 30 10 3 1

With --frozen it is a linear probe as the paper's for ImageNet: a linear map of one depth, trained by SGD. Either way
padded crops and mirror images of the pictures are trained on. Run the same command again after a crash.
"""

from __future__ import annotations

import argparse
from typing import Any

import keras_igpt as igpt
from keras_igpt.commands.run_folder import make_run_folder, write_config
from keras_igpt.commands.shared import (
    TimeLeft,
    add_data_arguments,
    add_model_argument,
    add_output_argument,
    check_batch_fits,
    check_counts,
    describe_data,
    load_data,
    load_language_model,
    named_by_flags,
    padded_crop,
    say_plan,
    say_what_next,
    use_of_classifier,
)
from keras_igpt.evaluation.probe_report import describe_probed
from keras_igpt.support.files import held


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    add_model_argument(parser)
    add_data_arguments(parser)
    parser.add_argument("--rates", type=float, nargs="+", default=[0.003, 0.001, 0.0003, 0.0001], help="falling")
    parser.add_argument("--frozen", action="store_true", help="train the class head alone")
    parser.add_argument(
        "--generative-weight",
        type=float,
        help="of L_GEN beside L_CLF; 1 by default, as in the paper; not with --frozen",
    )
    parser.add_argument("--layer", type=int, help="depth of the features; by default the last")
    parser.add_argument("--batch-size", type=int, default=128, help="pictures of a step")
    parser.add_argument("--epochs", type=int, default=30, help="at most; with --frozen exactly, for its schedule")
    parser.add_argument(
        "--patience", type=int, help="epochs without a better one after which it stops; 5 by default; not with --frozen"
    )
    parser.add_argument("--to-beat", type=float, help="accuracy that a trial has to beat; before training by default")
    add_output_argument(parser, "search_output")


def run(options: argparse.Namespace) -> None:
    """Runs the command."""
    check_counts(options, "batch_size", "epochs", "patience")
    _choose_by_head(options)
    with named_by_flags(learning_rates="--rates"):
        oracle = igpt.DescendingLearningRateOracle("val_accuracy", options.rates)
    pretrained = load_language_model(options.model)
    palette, size = pretrained.palette, pretrained.backbone.image_size
    data = load_data(options, size, palette.num_channels, in_memory=True)
    check_batch_fits(options, data.train)
    make_run_folder(options)
    train, validation, test = (part.encode(palette) for part in (data.train, data.validation, data.test))
    tokens = igpt.DataSplits(train, validation, test, data.class_names)
    augmentation = padded_crop(size)
    steps = options.epochs * (len(train) // options.batch_size)

    def make_model(hyperparameters: Any) -> igpt.ImageGPTImageClassifier:
        return _make_classifier(options, data.class_names, hyperparameters.get("learning_rate"), steps)

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
        callbacks=[TimeLeft("left of this training at most")],
    )
    with held(options.output, "--output"), named_by_flags(folder="--output", learning_rate="--rates"):
        how_many = f"at most {len(options.rates)} rates and a refit, each at most {options.epochs} epochs"
        say_plan(describe_data(data, size), how_many, steps, make_model(oracle.get_space()), options.batch_size)
        study.search(
            epochs=options.epochs,
            oracle=oracle,
            patience=options.patience,
            to_beat=options.to_beat,
        )
        print(study.refit())
    # The settings of the report beside it: only now is it known that the folder is this search's.
    write_config(options, language_model=describe_probed(pretrained), classes=data.class_names)
    say_what_next(
        f"trials.json, report.json and model.keras to {options.output}/",
        *use_of_classifier(options, options.output / "model.keras"),
    )


def _choose_by_head(options: argparse.Namespace) -> None:
    """Sets what a head alone has no use for, or its default; raises `ValueError` where it was asked for in vain."""
    for name, alone, default in (("generative_weight", 0.0, 1.0), ("patience", None, 5)):
        given = getattr(options, name)
        if given is None:
            setattr(options, name, alone if options.frozen else default)
        elif options.frozen:
            flag = f"--{name.replace('_', '-')}"
            raise ValueError(f"{flag} must not be given with --frozen. Received: {flag} {given}")


def _make_classifier(
    options: argparse.Namespace, class_names: tuple[str, ...], rate: float, steps: int
) -> igpt.ImageGPTImageClassifier:
    classifier = igpt.ImageGPTImageClassifier(
        # Opened for each trial: all begin with the same weights.
        load_language_model(options.model),
        len(class_names),
        options.generative_weight,
        layer=options.layer,
        frozen=options.frozen,
        class_names=class_names,
    )
    classifier.compile(**(igpt.probing_recipe(rate, steps) if options.frozen else igpt.finetuning_recipe(rate)))
    return classifier
