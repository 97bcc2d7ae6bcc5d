"""Train a model on the pixels of pictures, without labels. Run the same command again after a crash.

keras-igpt pretrain --images FOLDER --image-size 16
keras-igpt pretrain --dataset cifar10 --data-dir FOLDER --objective bert --rates 0.01 0.003 0.001

With several rates the paper's search comes first: from the largest down, until the validation loss rises.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import keras

import keras_igpt as igpt
from keras_igpt import plotting
from keras_igpt.commands.run_folder import (
    ConfigOnceAccepted,
    EpochLog,
    exact_resume,
    has_checkpoints,
    make_output_folder,
    other_run,
    settings_of_run,
)
from keras_igpt.commands.shared import (
    TimeLeft,
    add_data_arguments,
    add_output_argument,
    check_batch_fits,
    check_counts,
    data_words,
    has_classes,
    load_training_pictures,
    named_by_flags,
    pixels_of,
    say_plan,
    say_what_next,
    set_seed,
)
from keras_igpt.model.cost import BYTES_BY_POLICY
from keras_igpt.support.files import held, read_log

_PALETTE = "palette.npy"
# The digest of the pictures' tokens among the settings of a run.
_DATA = "data"
# What decides a run beside its palette and pictures.
_DECIDES = (
    "objective",
    "image_size",
    "layers",
    "heads",
    "width",
    "normalization",
    "dtype",
    "batch_size",
    "epochs",
    "epoch_steps",
    "warmup_steps",
    "rates",
    "seed",
)

# Without float16: the gradients' and the optimizer's numbers are too small for it, and Keras scales no loss there.
_POLICIES = tuple(policy for policy in BYTES_BY_POLICY if policy != "float16")


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
    parser.add_argument("--dtype", choices=_POLICIES, default="float32", help="dtype policy")
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
    parser.add_argument("--search-epochs", type=int, default=1, help="of each trial where rates are searched")
    add_output_argument(parser, "pretrain_output")


def run(options: argparse.Namespace) -> None:
    """Runs the command."""
    check_counts(options, "batch_size", "epochs", "epoch_steps", "warmup_steps", "search_epochs")
    set_seed(options)  # raises before anything is read
    run, begun = settings_of_run(options), _has_begun(options.output)
    palette = _known_palette(options, begun)
    # Earlier versions overwrote the settings of a run with those of a command that they refused.
    if begun and _DATA in run:
        _check_settings(options, run)
    architecture = _architecture(options, palette)
    _oracle(options)
    channels = 3 if palette is None else palette.num_channels
    train, validation = load_training_pictures(options, options.image_size, channels)
    check_batch_fits(options, train)
    epoch_steps = options.epoch_steps or len(train) // options.batch_size
    steps, size = options.epochs * epoch_steps, options.image_size
    model = _make_model(options, architecture, palette, options.rates[0], steps, options.warmup_steps)
    say_plan(
        f"{len(train):,} pictures of {size}x{size} pixels", f"{options.epochs} epochs", steps, model, options.batch_size
    )
    make_output_folder(options)
    with held(options.output, "--output"):
        model = _train(options, (train, validation), architecture, palette, epoch_steps)
        _write_results(options, model)


def _train(
    options: argparse.Namespace,
    pictures: tuple[Any, Any],
    architecture: igpt.Architecture,
    palette: igpt.ColorPalette | None,
    epoch_steps: int,
) -> Any:
    """Fits the palette where it is not known, searches the rate where there are several, and trains a model."""
    train, validation = pictures
    run, begun = settings_of_run(options), _has_begun(options.output)
    if palette is None:
        with named_by_flags(num_colors="--colors"):
            palette = igpt.ColorPalette.fit(pixels_of(train), options.colors, seed=options.seed)
    held_out = validation.encode(palette)
    # The search reads no test set.
    tokens = igpt.DataSplits(train.encode(palette), held_out, held_out, ())
    batches = igpt.TrainingBatches(tokens.train, palette, options.batch_size, seed=options.seed)
    data = batches.fingerprint
    if begun and run.get(_DATA, data) != data:
        flag, name = ("--images", options.images) if options.images else ("--dataset", options.dataset)
        raise other_run(options, flag, f"{name}, with other pictures")
    if not run and not begun:
        _check_palette_there(options.output / _PALETTE, palette)
    palette.save(options.output / _PALETTE)
    rate, oracle = options.rates[0], _oracle(options)
    if oracle is not None:
        rate = _searched_rate(options, oracle, architecture, tokens, palette, epoch_steps)
    set_seed(options)
    model = _make_model(options, architecture, palette, rate, options.epochs * epoch_steps, options.warmup_steps)
    found = {
        "colors": palette.num_colors,
        # One that is that of the run without being named again was given once, or fitted.
        "palette": str(options.palette) if options.palette else run.get("palette") if begun else None,
        "learning_rate": rate,
        "parameters": model.count_params(),
        "pictures": len(tokens.train),
        _DATA: data,
    }
    with named_by_flags(folder="--output"):
        history = model.fit(
            batches,
            epochs=options.epochs,
            steps_per_epoch=epoch_steps,
            validation_data=igpt.EvaluationBatches(tokens.validation, palette, options.batch_size),
            callbacks=[ConfigOnceAccepted(options, **found), *_callbacks(options, epoch_steps)],
            verbose=2,
        )
    if not history.epoch:
        # The schedule has the length of the run.
        print("Finished: the learning rate has fallen to zero, a longer run needs another --output.", flush=True)
    return model


def _write_results(options: argparse.Namespace, model: Any) -> None:
    """Writes the model and its plots, and says what to do with them."""
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


def _has_begun(output: Path) -> bool:
    """Whether a folder has trials of a search, checkpoints, or a model."""
    files = (output / "search" / "trials.json", output / "igpt.keras")
    return has_checkpoints(output) or any(path.is_file() for path in files)


def _known_palette(options: argparse.Namespace, begun: bool) -> igpt.ColorPalette | None:
    """The palette of the run in the folder, or of `--palette`; None where one is to be fitted."""
    given = None
    if options.palette:
        with named_by_flags(path="--palette"):
            given = igpt.ColorPalette.load(options.palette)
    path = options.output / _PALETTE
    # One that was left without a run may be of other pictures.
    if not begun or not path.is_file():
        return given
    palette = igpt.ColorPalette.load(path)
    if given is not None and given != palette:
        raise other_run(options, "--palette", str(options.palette))
    if given is None and palette.num_colors != options.colors:
        raise other_run(options, "--colors", options.colors, palette.num_colors)
    return palette


def _check_palette_there(path: Path, palette: igpt.ColorPalette) -> None:
    """Raises `ValueError` where somebody else's palette would be replaced."""
    if path.is_file() and igpt.ColorPalette.load(path) != palette:
        raise ValueError(
            f"--output must hold no palette of other colours than those of the run; to take them, --palette {path}. "
            f"Received: {path.parent}"
        )


def _check_settings(options: argparse.Namespace, run: Mapping[str, Any]) -> None:
    """Raises `ValueError` unless the command is that of the run in its folder."""
    for name in _DECIDES:
        here = getattr(options, name)
        if run.get(name, here) != here:
            raise other_run(options, f"--{name.replace('_', '-')}", here, run[name])


def _architecture(options: argparse.Namespace, palette: igpt.ColorPalette | None) -> igpt.Architecture:
    sizes = {"vocabulary_size": "--colors", "num_layers": "--layers", "num_heads": "--heads", "hidden_dim": "--width"}
    with named_by_flags(**sizes):
        return igpt.Architecture(
            options.colors if palette is None else palette.num_colors,
            options.image_size,
            options.layers,
            options.heads,
            options.width,
            "causal" if options.objective == "ar" else "bidirectional",
            options.normalization,
        )


def _make_model(
    options: argparse.Namespace,
    architecture: igpt.Architecture,
    palette: igpt.ColorPalette | None,
    rate: float,
    steps: int,
    warmup: int | None = None,
) -> Any:
    kind = igpt.ImageGPTCausalLM if options.objective == "ar" else igpt.ImageGPTMaskedLM
    with named_by_flags(learning_rate="--rates", steps_per_epoch="--warmup-steps"):
        backbone = igpt.ImageGPTBackbone(**architecture.arguments, remat=options.remat, dtype=options.dtype)
        model = kind(backbone, palette=palette)
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


def _oracle(options: argparse.Namespace) -> igpt.DescendingLearningRateOracle | None:
    """The search of several rates; raises `ValueError` unless they fall."""
    if len(options.rates) == 1:
        return None
    with named_by_flags(learning_rates="--rates"):
        return igpt.DescendingLearningRateOracle("val_loss", options.rates)


def _searched_rate(
    options: argparse.Namespace,
    oracle: igpt.DescendingLearningRateOracle,
    architecture: igpt.Architecture,
    tokens: igpt.DataSplits[Any],
    palette: igpt.ColorPalette,
    epoch_steps: int,
) -> float:
    steps = options.search_epochs * epoch_steps
    study = igpt.Study(
        lambda values: _make_model(options, architecture, palette, values.get("learning_rate"), steps),
        tokens,
        lambda examples: igpt.TrainingBatches(examples, palette, options.batch_size, seed=options.seed),
        lambda examples: igpt.EvaluationBatches(examples, palette, options.batch_size),
        "val_loss",
        options.output / "search",
        seed=options.seed,
        callbacks=[TimeLeft("left of this trial")],
    )
    with named_by_flags(folder="--output", epochs="--search-epochs"):
        search = study.search(epochs=options.search_epochs, oracle=oracle, steps_per_epoch=epoch_steps)
    print(search)
    return float(search.best.values["learning_rate"])
