"""Train a model on the pixels of pictures, without labels. Run the same command again after a crash.

keras-igpt pretrain --images FOLDER --image-size 16
keras-igpt pretrain --dataset cifar10 --data-dir FOLDER --objective bert --rates 0.01 0.003 0.001

With several rates the paper's search comes first: from the largest down, until the validation loss rises.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import keras

import keras_igpt as igpt
from keras_igpt import plotting
from keras_igpt.commands.shared import (
    EpochLog,
    TimeLeft,
    add_data_arguments,
    add_output_argument,
    data_words,
    exact_resume,
    has_classes,
    load_training_pictures,
    named_by_flags,
    pixels_of,
    say_plan,
    say_what_next,
    write_config,
)
from keras_igpt.support.checks import check_integer
from keras_igpt.support.files import read_log


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    add_data_arguments(parser)
    parser.add_argument("--objective", choices=("ar", "bert"), default="ar", help="ar: autoregressive")
    parser.add_argument("--image-size", type=int, default=16, help="side of the pictures in pixels")
    colors = parser.add_mutually_exclusive_group()
    colors.add_argument("--colors", type=int, default=256, help="of a palette fitted to the pictures")
    colors.add_argument("--palette", type=Path, help="file of a palette, such as that of keras-igpt palette")
    parser.add_argument("--layers", type=int, default=8, help="transformer blocks")
    parser.add_argument("--heads", type=int, default=4, help="attention heads of a block")
    parser.add_argument("--width", type=int, default=96, help="of the residual stream")
    parser.add_argument(
        "--normalization", choices=("layer_norm", "rms_norm"), default="layer_norm", help="rms_norm for transformers"
    )
    parser.add_argument("--dtype", default="float32", help="dtype policy, such as mixed_bfloat16")
    parser.add_argument("--remat", action="store_true", help="less memory, a third more time")
    parser.add_argument("--batch-size", type=int, default=64, help="pictures of a step")
    parser.add_argument("--epochs", type=int, default=10, help="passes over the pictures, or of --epoch-steps each")
    parser.add_argument(
        "--epoch-steps", type=int, help="steps between validations; one pass over the pictures by default"
    )
    parser.add_argument(
        "--warmup-steps", type=int, help="of the run, not of trials; 1%% of the steps by default, more in short runs"
    )
    parser.add_argument("--keep-epochs", action="store_true", help="also write the model of each epoch, to epochs/")
    parser.add_argument("--rates", type=float, nargs="+", default=[0.003], help="falling; several are searched")
    parser.add_argument("--search-epochs", type=int, default=1, help="length of each trial of the search")
    add_output_argument(parser, "pretrain_output")


def run(options: argparse.Namespace) -> None:
    """Runs the command."""
    train, validation = load_training_pictures(options, options.image_size)
    if options.batch_size > len(train):
        raise ValueError(f"--batch-size must be at most {len(train)}, the pictures. Received: {options.batch_size}")
    palette = _palette(options, train)
    held_out = validation.encode(palette)
    # The search reads no test set.
    tokens = igpt.DataSplits(train.encode(palette), held_out, held_out, ())
    batches = igpt.TrainingBatches(tokens.train, palette, options.batch_size, seed=options.seed)
    epoch_steps = batches.steps_per_epoch
    if options.epoch_steps is not None:
        epoch_steps = check_integer("epoch_steps", options.epoch_steps)
    steps = options.epochs * epoch_steps
    model = _make_model(options, palette, options.rates[0], steps, options.warmup_steps)
    size = options.image_size
    say_plan(
        f"{len(tokens.train):,} pictures of {size}x{size} pixels",
        f"{options.epochs} epochs",
        steps,
        model,
        options.batch_size,
    )
    rate = _searched_rate(options, tokens, palette, epoch_steps) if len(options.rates) > 1 else options.rates[0]
    keras.utils.set_random_seed(options.seed)
    model = _make_model(options, palette, rate, steps, options.warmup_steps)
    write_config(options, learning_rate=rate, parameters=model.count_params(), pictures=len(tokens.train))
    with named_by_flags(folder="--output"):
        history = model.fit(
            batches,
            epochs=options.epochs,
            steps_per_epoch=epoch_steps,
            validation_data=igpt.EvaluationBatches(tokens.validation, palette, options.batch_size),
            callbacks=_callbacks(options, epoch_steps),
            verbose=2,
        )
    if not history.epoch:
        # The schedule has the length of the run.
        print("Finished: the learning rate has fallen to zero, a longer run needs another --output.", flush=True)
    model.save(options.output / "igpt.keras")
    *others, last = ["igpt.keras", "log.csv", *_plots(options, model)]
    wrote = f"{', '.join(others)} and {last} to {options.output}/"
    following = ["probe", *data_words(options)] if has_classes(options) else ["demo"]
    say_what_next(wrote, *following, "--model", options.output / "igpt.keras")


def _plots(options: argparse.Namespace, model: Any) -> list[str]:
    """Draws the curves of the log and, where the model can, samples; returns the names of the files."""
    log = read_log(options.output / "log.csv").values()
    curves = {"training": [line["loss"] for line in log], "validation": [line["val_loss"] for line in log]}
    figures = {"loss_curves.png": plotting.plot_loss_curves(curves)}
    if isinstance(model, igpt.ImageGPTCausalLM):
        figures["samples.png"] = plotting.plot_grid(model.generate(16, seed=options.seed))
    for name, figure in figures.items():
        figure.savefig(options.output / name)
    return list(figures)


def _palette(options: argparse.Namespace, train: Any) -> igpt.ColorPalette:
    """The run's palette: that of its folder where there is one."""
    path = options.output / "palette.npy"
    if path.is_file():
        palette = igpt.ColorPalette.load(path)
        if options.palette and igpt.ColorPalette.load(options.palette) != palette:
            raise ValueError(f"--palette must be that of the run in {options.output}. Received: {options.palette}")
        if not options.palette and palette.num_colors != options.colors:
            raise ValueError(
                f"--colors must be that of the run in {options.output}, {palette.num_colors}; a new run needs another "
                f"--output. Received: {options.colors}"
            )
        return palette
    if options.palette:
        with named_by_flags(path="--palette"):
            palette = igpt.ColorPalette.load(options.palette)
    else:
        with named_by_flags(num_colors="--colors"):
            palette = igpt.ColorPalette.fit(pixels_of(train), options.colors, seed=options.seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    palette.save(path)
    return palette


def _make_model(
    options: argparse.Namespace, palette: igpt.ColorPalette, rate: float, steps: int, warmup: int | None = None
) -> Any:
    causal = options.objective == "ar"
    architecture = {"num_layers": "--layers", "num_heads": "--heads", "hidden_dim": "--width"}
    with named_by_flags(**architecture, learning_rate="--rates", steps_per_epoch="--warmup-steps"):
        backbone = igpt.ImageGPTBackbone(
            palette.num_colors,
            options.image_size,
            options.layers,
            options.heads,
            options.width,
            "causal" if causal else "bidirectional",
            options.normalization,
            remat=options.remat,
            dtype=options.dtype,
        )
        model = (igpt.ImageGPTCausalLM if causal else igpt.ImageGPTMaskedLM)(backbone, palette=palette)
        model.compile(**igpt.pretraining_recipe("igpt_tiny", options.objective, steps, warmup, learning_rate=rate))
    return model


def _callbacks(options: argparse.Namespace, epoch_steps: int) -> list[Any]:
    kept = []
    if options.keep_epochs:
        (options.output / "epochs").mkdir(exist_ok=True)
        kept.append(keras.callbacks.ModelCheckpoint(str(options.output / "epochs" / "epoch-{epoch:02d}.keras")))
    return [
        TimeLeft(),
        *kept,
        EpochLog(options.output / "log.csv"),
        exact_resume(options.output, epoch_steps),
    ]


def _searched_rate(
    options: argparse.Namespace, tokens: igpt.DataSplits[Any], palette: igpt.ColorPalette, epoch_steps: int
) -> float:
    study = igpt.Study(
        lambda hyperparameters: _make_model(
            options, palette, hyperparameters.get("learning_rate"), options.search_epochs * epoch_steps
        ),
        tokens,
        lambda examples: igpt.TrainingBatches(examples, palette, options.batch_size, seed=options.seed),
        lambda examples: igpt.EvaluationBatches(examples, palette, options.batch_size),
        "val_loss",
        options.output / "search",
        seed=options.seed,
        callbacks=[TimeLeft("left of this trial")],
    )
    with named_by_flags(folder="--output", learning_rates="--rates", epochs="--search-epochs"):
        oracle = igpt.DescendingLearningRateOracle("val_loss", options.rates)
        search = study.search(epochs=options.search_epochs, oracle=oracle, steps_per_epoch=epoch_steps)
    print(search)
    return float(search.best.values["learning_rate"])
