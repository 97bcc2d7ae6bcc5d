"""The whole story in a few minutes: palette, pre-training, probes, fine-tuning, completions.

keras-igpt quickstart
keras-igpt quickstart --images FOLDER

Without --images or --dataset it learns from patches of photographs that come with scikit-image and scikit-learn.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

import keras_igpt as igpt
from keras_igpt import plotting
from keras_igpt.commands.photographs import photograph, photograph_patches
from keras_igpt.commands.run_folder import make_run_folder
from keras_igpt.commands.shared import (
    add_data_arguments,
    add_output_argument,
    check_source,
    describe_data,
    load_data,
    say_what_next,
    set_seed,
    spread,
)
from keras_igpt.model.presets import Objective
from keras_igpt.palette.color_palette import UInt8Images
from keras_igpt.support.checks import check_integer
from keras_igpt.support.files import write_json

Splits = igpt.DataSplits[igpt.LabeledImages]


@dataclass(frozen=True)
class Size:
    """What two cores carry in the time there is."""

    image_size: int
    num_colors: int = 128
    num_layers: int = 6
    num_heads: int = 4
    hidden_dim: int = 64
    pretraining_steps: int = 300
    finetuning_steps: int = 150
    probe_examples: int = 4000
    batch_size: int = 32
    pretraining_rate: float = 0.004
    finetuning_rate: float = 0.001


PHOTOGRAPHS = Size(8, pretraining_steps=480, finetuning_steps=250, probe_examples=5600)
PICTURES = Size(16)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    add_data_arguments(parser, required=False)
    parser.add_argument("--steps", type=int, help="pre-training steps in place of the default")
    add_output_argument(parser, "quickstart_output")


def run(options: argparse.Namespace) -> None:
    """Runs the command."""
    started = time.monotonic()
    set_seed(options)
    check_source(options)
    make_run_folder(options)
    from_photographs = not (options.images or options.dataset)
    size = PHOTOGRAPHS if from_photographs else PICTURES
    steps = size.pretraining_steps if options.steps is None else check_integer("steps", options.steps, 2)
    results: dict[str, float] = {}
    with _stage("Data"):
        data: Splits
        if from_photographs:
            data = photograph_patches(size.image_size, options.seed)
        else:
            data = load_data(options, size.image_size, in_memory=True)
            if len(data.train) < size.batch_size:
                raise ValueError(
                    f"--images must hold at least {size.batch_size} pictures to train on. Received: {len(data.train)}"
                )
        print(f"  {describe_data(data, size.image_size)}")
    palette = _fit_palette(options, size, data)
    models = _pretrain(options, size, data, palette, steps, results)
    _probe(options, size, data, {**models, "random weights": _make_model(size, palette, "ar")}, results)
    _save_and_reload(options, size, data, models["autoregressive"], results)
    finetuning_steps = max(1, size.finetuning_steps * steps // size.pretraining_steps)
    _finetune(options, size, data, palette, finetuning_steps, results)
    _draw(options, size, data, models["autoregressive"], from_photographs)
    results["minutes"] = (time.monotonic() - started) / 60
    _print_table(results)
    write_json(options.output / "results.json", results)
    wrote = f"pictures, igpt.keras and results.json to {options.output}/"
    say_what_next(wrote, "draw", "--model", options.output / "igpt.keras")


def _fit_palette(options: argparse.Namespace, size: Size, data: Splits) -> igpt.ColorPalette:
    with _stage("Palette"):
        palette = igpt.ColorPalette.fit(data.train.images, size.num_colors, seed=options.seed)
        print(f"  {palette.quantization_report(data.test.images)}")
        plotting.plot_palette(palette).savefig(options.output / "palette.png")
        shown = pick_one_a_class(data.test, limit=10)
        plotting.plot_quantization(shown.images, palette).savefig(options.output / "quantization.png")
    return palette


def _make_model(size: Size, palette: igpt.ColorPalette, objective: str) -> Any:
    backbone = igpt.ImageGPTBackbone(
        size.num_colors,
        size.image_size,
        size.num_layers,
        size.num_heads,
        size.hidden_dim,
        attention="causal" if objective == "ar" else "bidirectional",
    )
    return (igpt.ImageGPTCausalLM if objective == "ar" else igpt.ImageGPTMaskedLM)(backbone, palette=palette)


def _pretrain(
    options: argparse.Namespace,
    size: Size,
    data: Splits,
    palette: igpt.ColorPalette,
    steps: int,
    results: dict[str, float],
) -> dict[str, Any]:
    """Trains both objectives without labels; returns the models by name."""
    epochs = min(10, steps)
    epoch_steps = -(-steps // epochs)
    batches = igpt.TrainingBatches(data.train.encode(palette), palette, size.batch_size, seed=options.seed)
    validation = spread(data.validation, 8 * size.batch_size).encode(palette)
    models, curves = {}, {}
    objectives: dict[str, Objective] = {"autoregressive": "ar", "BERT": "bert"}
    for name, objective in objectives.items():
        with _stage(f"Pre-training, {name}"):
            model = models[name] = _make_model(size, palette, objective)
            recipe = igpt.pretraining_recipe(
                "igpt_nano", objective, epochs * epoch_steps, epoch_steps, learning_rate=size.pretraining_rate
            )
            model.compile(**recipe)
            history = model.fit(
                batches,
                epochs=epochs,
                steps_per_epoch=epoch_steps,
                validation_data=igpt.EvaluationBatches(validation, palette, size.batch_size),
                verbose=2,
            ).history
        curves[f"{name}, training"] = history["loss"]
        curves[f"{name}, validation"] = history["val_loss"]
        results[f"{name} validation loss (nats per token)"] = history["val_loss"][-1]
    plotting.plot_loss_curves(curves).savefig(options.output / "loss_curves.png")
    return models


def _probe(
    options: argparse.Namespace, size: Size, data: Splits, models: dict[str, Any], results: dict[str, float]
) -> None:
    """Fits linear probes at every depth, and logistic regression on raw pixels beside them."""
    train, validation, test = (
        (part.images, part.labels)
        for part in (
            spread(data.train, size.probe_examples),
            spread(data.validation, size.probe_examples // 4),
            data.test,
        )
    )
    curves, chosen = {}, {}
    for name, model in models.items():
        with _stage(f"Linear probes, {name}"):
            probe = igpt.LinearProbe(model).fit(train, validation)
            curve = curves[name] = probe.score(test)
            best, last = probe.report.best_layer, size.num_layers
            chosen[name] = best
            print("  " + "  ".join(f"{layer}: {accuracy:.1%}" for layer, accuracy in curve.items()))
            results[f"{name}, probe at best depth ({best}, chosen on validation)"] = curve[best]
            results[f"{name}, probe at final depth ({last})"] = curve[last]
    with _stage("Logistic regression on raw pixels"):
        pixels = [(images.reshape(len(images), -1) / 255, labels) for images, labels in (train, validation, test)]
        accuracy = igpt.fit_logistic_regression(pixels[0], pixels[1]).score(*pixels[2])
        results["raw pixels, logistic regression"] = accuracy
    figure = plotting.plot_depth_curves(curves, {"raw pixels": accuracy}, chosen)
    figure.savefig(options.output / "depth_curves.png")


def _save_and_reload(
    options: argparse.Namespace, size: Size, data: Splits, model: Any, results: dict[str, float]
) -> None:
    """One file holds weights, optimizer, palette and configuration."""
    with _stage("Saving and reloading"):
        path = options.output / "igpt.keras"
        model.save(path)
        reloaded = keras.saving.load_model(path, compile=False)
        sample = model.palette.encode(data.test.images[: size.batch_size])
        difference = float(np.abs(reloaded.predict(sample, verbose=0) - model.predict(sample, verbose=0)).max())
        print(
            f"  {path}: {path.stat().st_size / 1e6:.1f} MB, largest difference of logits after reloading {difference}"
        )
        results["largest difference of logits after reloading"] = difference


def _finetune(
    options: argparse.Namespace,
    size: Size,
    data: Splits,
    palette: igpt.ColorPalette,
    steps: int,
    results: dict[str, float],
) -> None:
    """Fine-tunes twice, from the same file; nothing is chosen here, so validation is training data too."""
    epoch_steps = max(1, steps // 5)
    batches = igpt.TrainingBatches(data["train+validation"], palette, size.batch_size, seed=options.seed)
    test = palette.encode(data.test.images)
    for name, weight in {"joint loss L_GEN + L_CLF": 1.0, "L_CLF alone": 0.0}.items():
        with _stage(f"Fine-tuning, {name}"):
            model = keras.saving.load_model(options.output / "igpt.keras", compile=False)
            classifier = igpt.ImageGPTImageClassifier(model, len(data.class_names), generative_weight=weight)
            classifier.compile(**igpt.finetuning_recipe(size.finetuning_rate))
            classifier.fit(batches, epochs=steps // epoch_steps, steps_per_epoch=epoch_steps, verbose=2)
            scores = classifier.evaluate(
                test, data.test.labels, batch_size=size.batch_size, verbose=0, return_dict=True
            )
            results[f"fine-tuned, {name}"] = scores["accuracy"]


def _draw(options: argparse.Namespace, size: Size, data: Splits, model: Any, from_photographs: bool) -> None:
    with _stage("Completing pictures"):
        keep, palette = size.image_size // 2, model.palette
        # In palette colours, as the model sees them.
        chosen = palette.decode(palette.encode(pick_one_a_class(data.test, limit=8).images))
        completions = model.complete(chosen, keep_rows=keep, num_samples=5, seed=options.seed)
        plotting.plot_completions(chosen, completions, keep).savefig(options.output / "completions.png")
        generated = model.generate(num_images=32, seed=options.seed)
        plotting.plot_grid(generated).savefig(options.output / "samples.png")
        if from_photographs:
            strip = photograph("flower.jpg")[30:][: size.image_size]
            strip = palette.decode(palette.encode(strip), strip.shape[:2])
            rows = {
                "a strip of a photograph, upper half seen": plotting.hide_rows(strip, keep),
                "lower half drawn pixel by pixel": complete_strip(model, strip, keep, options.seed),
                "original": strip,
            }
            plotting.plot_rows(rows).savefig(options.output / "strip.png")


def complete_strip(language_model: Any, strip: UInt8Images, keep_rows: int, seed: int) -> UInt8Images:
    """Draws the lower rows of a picture of any width with a window that moves from left to right.

    In each place the window knows its upper rows and the columns drawn before, and adds two columns.
    """
    palette, side = language_model.palette, language_model.backbone.image_size
    drawn = strip.copy()
    step = 2
    for left in range(0, strip.shape[1] - side + 1, step):
        known = np.zeros((side, side), bool)
        known[:keep_rows] = True
        if left:
            known[:, : side - step] = True
        window = palette.encode(drawn[None, :, left : left + side])
        completed = language_model.continue_tokens(window, known.reshape(-1), temperature=0.9, seed=seed + left)
        drawn[:, left : left + side] = palette.decode(completed)[0]
    return drawn[:, : left + side]


def pick_one_a_class(examples: igpt.LabeledImages, limit: int) -> igpt.LabeledImages:
    """Takes one example of each of up to `limit` classes: among the first ten the one with the most contrast."""
    contrast = examples.images.std(axis=(1, 2)).mean(axis=-1)
    rows = []
    for label in np.unique(examples.labels)[:limit]:
        candidates = np.flatnonzero(examples.labels == label)[:10]
        rows.append(int(candidates[np.argmax(contrast[candidates])]))
    return examples.take(rows)


@contextmanager
def _stage(name: str) -> Iterator[None]:
    """Says what is being done, and how long it took."""
    print(f"{name} …", flush=True)
    started = time.monotonic()
    yield
    print(f"  {time.monotonic() - started:.1f} s", flush=True)


def _print_table(results: dict[str, float]) -> None:
    """Prints name and figure of each result; accuracies as percentages."""
    width = max(map(len, results))
    print("\n" + "-" * (width + 10))
    for name, value in results.items():
        shown = f"{value:.3g}" if any(word in name for word in ("loss (", "minutes", "difference")) else f"{value:.1%}"
        print(f"{name:<{width}}  {shown:>8}")
    print("-" * (width + 10))
