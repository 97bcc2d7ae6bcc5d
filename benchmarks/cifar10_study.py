"""The paper's claims put to the test on CIFAR-10, at a size that two cores carry: probes, fine-tuning, few labels.

For models that `keras-igpt pretrain --keep-epochs` has written to RUNS/ar, RUNS/bert and RUNS/small:
    python benchmarks/cifar10_study.py probes --runs RUNS --data-dir FOLDER       # every depth, along training
    python benchmarks/cifar10_study.py finetuning --runs RUNS --data-dir FOLDER   # from AR, from BERT, from scratch
    python benchmarks/cifar10_study.py joint-loss --runs RUNS --data-dir FOLDER   # L_GEN + L_CLF against L_CLF, 5 seeds
    python benchmarks/cifar10_study.py low-data --runs RUNS --data-dir FOLDER     # 4, 25 and 400 labels a class
    python benchmarks/cifar10_study.py pictures --runs RUNS --data-dir FOLDER     # once the others are done

Needs: pip install "keras_igpt[jax,data,tune,plot]"
Each part writes JSON and pictures to RUNS/study and can be interrupted and restarted: finished parts are skipped.
Figures, their spread, machine and time: RESULTS.md.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

os.environ.setdefault("KERAS_BACKEND", "jax")

import keras
import numpy as np

import keras_igpt as igpt
from keras_igpt import plotting
from keras_igpt.support.files import read_log, whole_file, write_json

RUNS = {"AR": "ar", "BERT": "bert", "AR, smaller": "small", "random weights": "random"}
# What fine-tuning begins with, and the weight of L_GEN.
STARTS = {
    "AR, joint loss": ("ar", 1.0),
    "AR, L_CLF alone": ("ar", 0.0),
    "BERT, joint loss": ("bert", 1.0),
    "from scratch, joint loss": ("scratch", 1.0),
}
Splits = igpt.DataSplits[igpt.LabeledTokens]


def main(arguments: list[str] | None = None) -> None:
    """Runs one part of the study."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parts = {
        "probes": probes,
        "finetuning": finetuning,
        "joint-loss": joint_loss,
        "low-data": low_data,
        "pictures": pictures,
    }
    parser.add_argument("part", choices=parts)
    parser.add_argument("--runs", default="runs", help="folder of the pre-trained models and of what is written")
    parser.add_argument("--data-dir", help="folder of prepared TensorFlow Datasets")
    parser.add_argument("--probe-examples", type=int, default=10_000, help="training pictures of probes on the way")
    parser.add_argument("--labels-per-class", type=int, default=400, help="for fine-tuning")
    parser.add_argument("--validation", type=int, default=1_000, help="pictures that fine-tuning is validated on")
    parser.add_argument("--test", type=int, default=10_000, help="pictures that fine-tuning is tested on")
    parser.add_argument("--batch-size", type=int, default=32, help="for fine-tuning")
    parser.add_argument(
        "--rates", type=float, nargs="+", default=[0.003, 0.001, 0.0003, 0.0001], help="for fine-tuning"
    )
    parser.add_argument("--epochs", type=int, default=8, help="of fine-tuning, at most")
    parser.add_argument("--patience", type=int, default=2)
    # A class in ten is right by chance, and a spoilt model says one class for ever.
    parser.add_argument("--to-beat", type=float, default=0.15, help="validation accuracy of a trial that counts")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument(
        "--labels", type=int, nargs="+", default=[4, 25, 400], help="of each class, for frozen features"
    )
    parser.add_argument("--models", nargs="+", choices=RUNS.values(), default=list(RUNS.values()), help="to probe")
    parser.add_argument("--starts", nargs="+", choices=STARTS, default=list(STARTS), help="of fine-tuning")
    options = parser.parse_args(arguments)
    options.runs = Path(options.runs)
    options.study = options.runs / "study"
    parts[options.part](options)


def once(path: Path, compute: Callable[[], Any]) -> Any:
    """Returns what a JSON file holds, computed and written if it is not there; says how long that took."""
    if not path.is_file():
        print(f"{path.stem} …", flush=True)
        started = time.monotonic()
        write_json(path, compute())
        print(f"{path.stem}: {time.monotonic() - started:.0f} s", flush=True)
    return json.loads(path.read_text())


def load(options: argparse.Namespace, run: str) -> Any:
    """Opens the model of a run; `random` and `scratch` are the architecture of `ar` with weights as drawn."""
    if run not in ("random", "scratch"):
        return keras.saving.load_model(options.runs / run / "igpt.keras", compile=False)
    trained = keras.saving.load_model(options.runs / "ar" / "igpt.keras", compile=False)
    keras.utils.set_random_seed(1)
    return type(trained).from_config(trained.get_config())


def load_splits(options: argparse.Namespace, run: str = "ar") -> Splits:
    """Opens CIFAR-10 as tokens of a run's palette."""
    language_model = load(options, run)
    data = igpt.load_dataset("cifar10", options.data_dir, language_model.backbone.image_size)
    tokens = (data[part].encode(language_model.palette) for part in ("train", "validation", "test"))
    return igpt.DataSplits(*tokens, data.class_names)


def probes(options: argparse.Namespace) -> None:
    """Probes of every depth: of what each run is in the end, on all pictures, and of what it was on the way, on some.

    On the way there is no test: depth curves there are of the validation set.
    """
    for run in options.models:
        data = load_splits(options, "ar" if run == "random" else run)

        def at_the_end(run: str = run, data: Splits = data) -> Any:
            probe = igpt.LinearProbe(load(options, run), batch_size=500).fit(data.train, data.validation)
            probe.score(data.test)
            return json.loads(json.dumps(asdict(probe.report)))

        once(options.study / f"probe_{run}.json", at_the_end)
    for run in options.models:
        if run == "random":
            continue
        data = load_splits(options, run)
        log = read_log(options.runs / run / "log.csv")
        losses = {epoch + 1: line["val_loss"] for epoch, line in log.items()}
        # Each twice as long as the one before, as the paper's.
        for epoch in sorted({max(losses) // 2**power for power in range(4)} - {0}):

            def on_the_way(run: str = run, epoch: int = epoch, loss: float = losses[epoch], data: Splits = data) -> Any:
                path = options.runs / run / "epochs" / f"epoch-{epoch:02d}.keras"
                language_model = keras.saving.load_model(path, compile=False)
                some = data.train.take(np.arange(min(options.probe_examples, len(data.train))))
                probe = igpt.LinearProbe(language_model, batch_size=500).fit(some, data.validation)
                lines = probe.report.chosen_on_validation.layers
                curve = {line.layers[0]: line.validation_accuracy for line in lines}
                return {"epoch": epoch, "validation_loss": loss, "validation_accuracy": curve}

            once(options.study / f"probe_{run}_epoch_{epoch:02d}.json", on_the_way)

    def raw_pixels() -> Any:
        size = load(options, "ar").backbone.image_size
        pictures = igpt.load_dataset("cifar10", options.data_dir, size)
        train, validation, test = (
            (part.images.reshape(len(part), -1) / 255, part.labels)
            for part in (pictures.train, pictures.validation, pictures.test)
        )
        fit = igpt.fit_logistic_regression(train, validation)
        return {"validation_accuracy": fit.validation_accuracy, "test_accuracy": fit.score(*test)}

    once(options.study / "probe_raw_pixels.json", raw_pixels)


def few_labels(options: argparse.Namespace, data: Splits, seed: int = 0) -> Splits:
    """Few labels to learn from, some to choose with, and the test set."""
    train = igpt.low_data_subset(data.train, options.labels_per_class, seed)
    validation = data.validation.take(np.arange(min(options.validation, len(data.validation))))
    return igpt.DataSplits(
        train, validation, data.test.take(np.arange(min(options.test, len(data.test)))), data.class_names
    )


def batches(options: argparse.Namespace, examples: igpt.LabeledTokens, seed: int = 0) -> igpt.TrainingBatches:
    """The paper's augmentation for CIFAR-10: mirrored, and moved by an eighth of the side at most."""
    crop = igpt.PaddedCrop(max(1, examples.image_size // 8))
    return igpt.TrainingBatches(examples, None, options.batch_size, seed=seed, augmentation=crop)


def make_classifier(options: argparse.Namespace, start: str, rate: float) -> igpt.ImageGPTImageClassifier:
    """A classifier on what fine-tuning begins with."""
    run, generative_weight = STARTS[start]
    classifier = igpt.ImageGPTImageClassifier(load(options, run), 10, generative_weight)
    classifier.compile(**igpt.finetuning_recipe(rate))
    return classifier


def evaluate(classifier: igpt.ImageGPTImageClassifier, examples: igpt.LabeledTokens) -> dict[str, float]:
    """Test metrics; of a BERT model also those of the vote over five masks."""
    metrics = dict(classifier.evaluate(igpt.EvaluationBatches(examples, None, 250), return_dict=True, verbose=0))
    if isinstance(classifier.language_model, igpt.ImageGPTMaskedLM):
        votes = classifier.vote(examples.token_ids, num_masks=5, batch_size=250)
        metrics["accuracy_of_five_masks"] = float(np.mean(votes == examples.labels))
    return metrics


def finetuning(options: argparse.Namespace) -> None:
    """The rate searched, validation folded back in, refitted, tested once: for each start."""
    data = few_labels(options, load_splits(options))
    for start in options.starts:
        study = igpt.Study(
            lambda hyperparameters, start=start: make_classifier(options, start, hyperparameters.get("learning_rate")),
            data,
            lambda examples: batches(options, examples),
            lambda examples: igpt.EvaluationBatches(examples, None, 250),
            "val_accuracy",
            folder_of(options, start),
        )
        study.search(
            epochs=options.epochs,
            oracle=igpt.DescendingLearningRateOracle("val_accuracy", options.rates),
            patience=options.patience,
            to_beat=options.to_beat,
        )
        print(f"{start}\n{study.refit(evaluate=evaluate)}", flush=True)


def folder_of(options: argparse.Namespace, start: str) -> Path:
    """Where fine-tuning from a start is kept."""
    folder: Path = options.study / "finetuning" / start.replace(",", "").replace(" ", "_")
    return folder


def joint_loss(options: argparse.Namespace) -> None:
    """Joint loss against L_CLF alone: other labels, other order and other crops for each seed, each at its own rate."""
    data = load_splits(options)
    for start in ("AR, joint loss", "AR, L_CLF alone"):
        rate = json.loads((folder_of(options, start) / "report.json").read_text())["values"]["learning_rate"]
        for seed in range(options.seeds):

            def train(start: str = start, rate: float = rate, seed: int = seed) -> Any:
                parts = few_labels(options, data, seed)
                classifier = make_classifier(options, start, rate)
                history = classifier.fit(
                    batches(options, parts.train, seed),
                    epochs=options.epochs,
                    validation_data=igpt.EvaluationBatches(parts.validation, None, 250),
                    callbacks=[
                        keras.callbacks.EarlyStopping(
                            "val_accuracy", mode="max", patience=options.patience, restore_best_weights=True
                        )
                    ],
                    verbose=2,
                ).history
                test = evaluate(classifier, parts.test)["accuracy"]
                return {"validation_accuracy": history["val_accuracy"], "test_accuracy": float(test), "rate": rate}

            once(options.study / "joint_loss" / f"{folder_of(options, start).name}_{seed}.json", train)


def low_data(options: argparse.Namespace) -> None:
    """Frozen features and few labels, beside raw pixels."""
    language_model = load(options, "ar")
    data = igpt.load_dataset("cifar10", options.data_dir, language_model.backbone.image_size)
    path = options.study / "low_data.md"
    if not path.is_file():
        table = igpt.low_data_table(language_model, data, options.labels, batch_size=500)
        table.save(options.study / "low_data.json")
        with whole_file(path) as partial:
            partial.write_text(f"{table}\n")
    print(path.read_text())


def pictures(options: argparse.Namespace) -> None:
    """Draws what the other parts have found, and prints it."""
    study = options.study
    curves, chosen = {}, {}
    runs = {name: run for name, run in RUNS.items() if run in options.models}
    for name, run in runs.items():
        report = json.loads((study / f"probe_{run}.json").read_text())
        curves[name] = {int(layer): value for layer, value in report["final_on_test"]["accuracies"].items()}
        chosen[name] = report["chosen_on_validation"]["best_layer"]
        print(f"{name}: " + "  ".join(f"{layer}: {value:.2%}" for layer, value in curves[name].items()))
        print(f"  best on validation: {chosen[name]}, on test {curves[name][chosen[name]]:.2%}")
    raw = json.loads((study / "probe_raw_pixels.json").read_text())["test_accuracy"]
    references = {"raw pixels": raw}
    for start in options.starts:
        report = json.loads((folder_of(options, start) / "report.json").read_text())
        print(start, report["values"], report["steps"], report["final_on_test"])
    plotting.plot_depth_curves(curves, references, chosen).savefig(study / "depth_curves.png")
    for name, run in runs.items():
        along = [json.loads(path.read_text()) for path in sorted(study.glob(f"probe_{run}_epoch_*.json"))]
        if not along:
            continue
        for point in along:
            best = max(point["validation_accuracy"].values())
            print(f"{name}, epoch {point['epoch']}: {point['validation_loss']:.4f} nats per token, {best:.2%}")
        by_epoch = {f"epoch {point['epoch']}": as_depths(point["validation_accuracy"]) for point in along}
        plotting.plot_depth_curves(by_epoch).savefig(study / f"depth_curves_{run}.png")
    for start in ("AR, joint loss", "AR, L_CLF alone"):
        files = sorted((study / "joint_loss").glob(f"{folder_of(options, start).name}_*.json"))
        scores = [json.loads(path.read_text())["test_accuracy"] for path in files]
        print(f"{start}: {np.mean(scores):.2%} ± {np.std(scores, ddof=1):.2%}, {len(scores)} seeds: {scores}")


def as_depths(curve: dict[str, float]) -> dict[int, float]:
    """JSON's keys are strings."""
    return {int(layer): accuracy for layer, accuracy in curve.items()}


if __name__ == "__main__":
    main()
