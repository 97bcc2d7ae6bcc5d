"""Pre-training without labels: the rate by the paper's search, then the run, which can be killed and started again.

Command:
    python examples/pretrain.py --dataset cifar10 --data-dir FOLDER     # FOLDER as prepared by TensorFlow Datasets
    python examples/pretrain.py --images FOLDER --objective bert        # FOLDER/<class>/<picture>

Needs: pip install "keras_igpt[jax,data,tune,plot]"
Writes to pretrain_output/ (--output): config.json, log.csv, loss_curves.png, palette.npy, the model at each epoch
(epochs/epoch-01.keras and so on) and at the end (igpt.keras). Run the same command again after a crash.

Expected, with the defaults on CIFAR-10 (0.94 million parameters, 8x8 pixels, 256 colours): see RESULTS.md.
"""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path
from typing import Any

os.environ.setdefault("KERAS_BACKEND", "jax")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
from arguments import load_data, make_parser

import keras_igpt as igpt
from keras_igpt import plotting


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Searches the rate, trains, and returns the configuration with the last line of the log."""
    parser = make_parser(__doc__, "pretrain_output")
    parser.add_argument("--objective", choices=("ar", "bert"), default="ar")
    parser.add_argument("--image-size", type=int, default=8)
    parser.add_argument("--colors", type=int, default=256)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--width", type=int, default=96)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--updates", type=int, default=3500)
    parser.add_argument("--updates-per-epoch", type=int, default=350, help="between validations")
    parser.add_argument("--rates", type=float, nargs="+", default=[0.01, 0.003, 0.001, 0.0003, 0.0001])
    parser.add_argument("--search-updates", type=int, default=350, help="length of each trial of the search")
    options = parser.parse_args(arguments)
    if options.updates % options.updates_per_epoch:
        parser.error(f"--updates must be a multiple of --updates-per-epoch; received {options.updates}")

    output = Path(options.output)
    output.mkdir(parents=True, exist_ok=True)
    data = load_data(options, options.image_size)
    palette_file = output / "palette.npy"
    if palette_file.is_file():
        palette = igpt.ColorPalette.load(palette_file)
    else:
        palette = igpt.ColorPalette.fit(data.train.images, options.colors, seed=options.seed)
        palette.save(palette_file)
    tokens = igpt.DataSplits(
        *(data[part].encode(palette) for part in ("train", "validation", "test")), data.class_names
    )

    def make_model(rate: float, updates: int) -> igpt.ImageGPTCausalLM | igpt.ImageGPTMaskedLM:
        backbone = igpt.ImageGPTBackbone(
            vocabulary_size=options.colors,
            image_size=options.image_size,
            num_layers=options.layers,
            num_heads=options.heads,
            hidden_dim=options.width,
            attention="causal" if options.objective == "ar" else "bidirectional",
        )
        kind = igpt.ImageGPTCausalLM if options.objective == "ar" else igpt.ImageGPTMaskedLM
        language_model = kind(backbone, palette=palette)
        recipe = igpt.pretraining_recipe("igpt_tiny", options.objective, updates, learning_rate=rate)
        language_model.compile(**recipe)
        return language_model

    def training_batches(examples: Any) -> igpt.TrainingBatches:
        return igpt.TrainingBatches(examples, palette, options.batch_size, seed=options.seed)

    def evaluation_batches(examples: Any) -> igpt.EvaluationBatches:
        return igpt.EvaluationBatches(examples, palette, options.batch_size)

    # === The rate: trials as long as one can afford, each with its whole schedule ===
    rate = options.rates[0]
    paths = ("images", "data_dir", "output")
    config: dict[str, Any] = {name: value for name, value in vars(options).items() if name not in paths}
    config["backend"] = keras.backend.backend()
    if len(options.rates) > 1:
        study = igpt.Study(
            lambda hyperparameters: make_model(hyperparameters.get("learning_rate"), options.search_updates),
            tokens,
            training_batches,
            evaluation_batches,
            "val_loss",
            output / "search",
            seed=options.seed,
        )
        oracle = igpt.DescendingLearningRateOracle("val_loss", options.rates)
        search = study.search(epochs=1, oracle=oracle, steps_per_epoch=options.search_updates)
        print(search)
        rate = search.best.values["learning_rate"]
        config["search"] = [{**trial.values, "val_loss": trial.objective} for trial in search.trials]

    # === The run ===
    keras.utils.set_random_seed(options.seed)
    language_model = make_model(rate, options.updates)
    config |= {"learning_rate": rate, "parameters": language_model.count_params()}
    (output / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    (output / "epochs").mkdir(exist_ok=True)
    language_model.fit(
        training_batches(tokens.train),
        epochs=options.updates // options.updates_per_epoch,
        steps_per_epoch=options.updates_per_epoch,
        validation_data=evaluation_batches(tokens.validation),
        callbacks=[
            keras.callbacks.ModelCheckpoint(str(output / "epochs" / "epoch-{epoch:02d}.keras")),
            keras.callbacks.CSVLogger(str(output / "log.csv"), append=True),
            igpt.ExactResume(output / "checkpoints", every=options.updates_per_epoch),
        ],
        verbose=2,
    )
    language_model.save(output / "igpt.keras")
    with open(output / "log.csv", newline="") as file:
        # An epoch that a kill made run twice counts once.
        log = {int(line["epoch"]): line for line in csv.DictReader(file)}
    curves = {name: [float(line[column]) for line in log.values()] for name, column in CURVES.items()}
    plotting.plot_loss_curves(curves).savefig(output / "loss_curves.png")
    return {**config, **{name: curve[-1] for name, curve in curves.items()}}


CURVES = {"training": "loss", "validation": "val_loss"}


if __name__ == "__main__":
    main()
