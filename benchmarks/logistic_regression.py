"""How fast is the probes' logistic regression, and is it scikit-learn's?

Command: python benchmarks/logistic_regression.py --data-dir FOLDER [--model igpt.keras]

Features of CIFAR-10 (as TensorFlow Datasets prepared it): one depth of a trained model (`--model`, `--layer`), or
without one as many rectified random projections of the pixels as iGPT-L has features, 1536. For each C both fit the
same standardised features, ours from nothing each time, in a process of its own; the contestants alternate. Printed:
the objective in float64 against scikit-learn's at a tolerance of 1e-8 (--reference), accuracies, seconds, peak memory
above what the features take, and what the 49 depths of iGPT-L (50,000 x 1536 features) would cost at that rate.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("KERAS_BACKEND", "jax")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
from timing import print_machine

import keras_igpt as igpt

OURS, THEIRS, EXACT = "keras_igpt", "scikit-learn", "scikit-learn, tolerance 1e-8"
DEPTHS = 49  # of iGPT-L
MOST_ITERATIONS = 20_000


def random_features(images: np.ndarray, width: int) -> np.ndarray:
    """Rectified random projections of the pixels."""
    pixels = images.reshape(len(images), -1)
    projection = np.random.default_rng(0).normal(size=(pixels.shape[1], width)).astype("float32")
    chunks = (pixels[start : start + 4096].astype("float32") / 127.5 - 1 for start in range(0, len(pixels), 4096))
    return np.concatenate([np.maximum(chunk @ projection, 0) for chunk in chunks])


def objective(coefficients: np.ndarray, intercept: np.ndarray, data: dict[str, np.ndarray], strength: float) -> float:
    """Mean cross-entropy plus penalty, in float64."""
    total = 0.0
    features, labels = data["train"], data["train_labels"]
    for start in range(0, len(features), 4096):
        logits = features[start : start + 4096].astype("float64") @ coefficients.T + intercept
        logits -= logits.max(axis=1, keepdims=True)
        picked = logits[np.arange(len(logits)), labels[start : start + 4096]]
        total += float((np.log(np.exp(logits).sum(axis=1)) - picked).sum())
    return total / len(features) + float(np.square(coefficients).sum()) / (2 * strength * len(features))


def fit(name: str, strength: float, path: Path) -> dict[str, float]:
    """One contestant's fit at one C, in this process."""
    data = {key: np.asarray(value) for key, value in np.load(path).items()}
    train, test = ((data[part], data[f"{part}_labels"]) for part in ("train", "test"))
    warm_up(name, train)
    before = forget_peak()
    started = time.perf_counter()
    if name == OURS:
        fitted = igpt.fit_logistic_regression(train, test, [strength], refit=False)
        seconds = time.perf_counter() - started
        # They are standardised already: what is left of mean and scale is rounding.
        coefficients = fitted.coefficients / fitted.scale
        intercept = fitted.intercept - coefficients @ fitted.mean
        iterations, accuracy, converged = fitted.iterations, fitted.validation_accuracy, fitted.converged
    else:
        model = scikit_learn(strength, 1e-8 if name == EXACT else 1e-4).fit(*train)
        accuracy = float(model.score(*test))
        seconds = time.perf_counter() - started
        coefficients, intercept, iterations = model.coef_, model.intercept_, int(model.n_iter_[0])
        converged = iterations < MOST_ITERATIONS
    return {
        "seconds": seconds,
        "iterations": iterations,
        "converged": float(converged),
        "accuracy": accuracy,
        "objective": objective(coefficients, intercept, data, strength),
        "megabytes": megabytes("VmHWM") - before,
    }


def fit_depth(name: str, strengths: list[float], path: Path) -> dict[str, float]:
    """All that the probe does at one depth, test standing in for validation: every C, and the refit on both."""
    data = {key: np.asarray(value) for key, value in np.load(path).items()}
    train, test = ((data[part], data[f"{part}_labels"]) for part in ("train", "test"))
    warm_up(name, train)
    before = forget_peak()
    started = time.perf_counter()
    if name == OURS:
        igpt.fit_logistic_regression(train, test, strengths)
    else:
        scores = [scikit_learn(strength, 1e-4).fit(*train).score(*test) for strength in strengths]
        both = np.concatenate([train[0], test[0]]), np.concatenate([train[1], test[1]])
        scikit_learn(strengths[int(np.argmax(scores))], 1e-4).fit(*both)
    return {"seconds": time.perf_counter() - started, "megabytes": megabytes("VmHWM") - before}


def scikit_learn(strength: float, tolerance: float) -> Any:
    """Its logistic regression, as patient as need be."""
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(C=strength, max_iter=MOST_ITERATIONS, tol=tolerance)


def warm_up(name: str, train: tuple[np.ndarray, np.ndarray]) -> None:
    """Imports, outside the clock; what is compiled for the real shapes stays inside."""
    few = train[0][:64, :4], train[1][:64]
    if name == OURS:
        igpt.fit_logistic_regression(few, few, [1.0], refit=False)
    else:
        scikit_learn(1.0, 1e-4).fit(*few)


def forget_peak() -> float:
    """Resets the peak memory measurement (Linux); returns the megabytes in use."""
    Path("/proc/self/clear_refs").write_text("5")
    return megabytes("VmRSS")


def megabytes(name: str) -> float:
    """Memory of this process as Linux names it: VmRSS now, VmHWM at most."""
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name)]
    return int(line.split()[1]) / 1024


def run(name: str, strengths: float | list[float], path: Path) -> dict[str, float]:
    """One contestant in a process of its own: its peak of memory is not that of the others."""
    command = [sys.executable, __file__, "--worker", json.dumps([name, strengths, str(path)])]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


def main(arguments: list[str] | None = None) -> dict[str, dict[str, float]]:
    """Prints the tables; returns the figures by contestant and C."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", help="folder of prepared TensorFlow Datasets")
    parser.add_argument("--model", help=".keras file of a language model; random features without one")
    parser.add_argument("--layer", type=int, help="depth of the model's features; the middle one by default")
    parser.add_argument("--width", type=int, default=1536, help="random features")
    parser.add_argument("--pictures", type=int, help="training pictures; all by default")
    parser.add_argument("--strengths", type=float, nargs="+", default=[0.001, 0.1, 10.0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--reference", action="store_true", help="also scikit-learn at a tolerance of 1e-8, once")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.worker:
        name, strengths, path = json.loads(options.worker)
        work = fit_depth if isinstance(strengths, list) else fit
        print(json.dumps(work(name, strengths, Path(path))))
        return {}

    print_machine()
    figures: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "features.npz"
        count, width = write_features(options, path)
        print(f"{count:,} x {width} features")
        print(
            "| C | fit by | seconds, median (least to most) | iterations | test accuracy | objective | peak MB more |"
        )
        print("|---|---|---|---|---|---|---|")
        for strength in options.strengths:
            rounds: dict[str, list[dict[str, float]]] = {OURS: [], THEIRS: []}
            for _ in range(options.rounds):
                for name, results in rounds.items():
                    results.append(run(name, strength, path))
            if options.reference:
                rounds[EXACT] = [run(EXACT, strength, path)]
            for name, results in rounds.items():
                seconds = sorted(result["seconds"] for result in results)
                last = {**results[-1], "seconds": float(np.median(seconds))}
                figures[f"{name}, C={strength:g}"] = last
                print(
                    f"| {strength:g} | {name} | {last['seconds']:.2f} ({seconds[0]:.2f} to {seconds[-1]:.2f}) | "
                    f"{last['iterations']}{'' if last['converged'] else ', not converged'} | {last['accuracy']:.2%} | "
                    f"{last['objective']:.6f} | {last['megabytes']:.0f} |"
                )
            best = figures[f"{EXACT if options.reference else THEIRS}, C={strength:g}"]
            ours = figures[f"{OURS}, C={strength:g}"]
            print(
                f"C={strength:g}: ours above {EXACT if options.reference else THEIRS} by "
                f"{ours['objective'] / best['objective'] - 1:+.1e} of the objective, "
                f"{ours['accuracy'] - best['accuracy']:+.2%} of accuracy"
            )
        for name in (OURS, THEIRS):
            figures[f"{name}, one depth"] = depth = run(name, options.strengths, path)
            # Products grow with rows and columns.
            hours = depth["seconds"] * DEPTHS * (50_000 / count) * (1536 / width) / 3600
            print(
                f"{name}: {depth['seconds']:.1f} s and {depth['megabytes']:.0f} MB for one depth, all C and the refit; "
                f"about {hours:.1f} hours for {DEPTHS} depths of 50,000 x 1536 features"
            )
    return figures


def write_features(options: argparse.Namespace, path: Path) -> tuple[int, int]:
    """Writes standardised features of CIFAR-10's train and test pictures; rows and columns."""
    model = keras.saving.load_model(options.model) if options.model else None
    size = None if model is None else model.backbone.image_size
    data = igpt.load_dataset("cifar10", options.data_dir, size)
    train, test = data["train+validation"], data.test
    if options.pictures is not None:
        train, test = (part.take(np.arange(min(options.pictures, len(part)))) for part in (train, test))
    if model is None:
        features = [random_features(part.images, options.width) for part in (train, test)]
    else:
        layer = model.backbone.num_layers // 2 if options.layer is None else options.layer
        extractor = igpt.FeatureExtractor(model, [layer])
        features = [extractor.extract(part)[:, 0] for part in (train, test)]
    mean, deviation = features[0].mean(axis=0), features[0].std(axis=0)
    arrays = [((part - mean) / np.where(deviation > 0, deviation, 1)).astype("float32") for part in features]
    np.savez(path, train=arrays[0], test=arrays[1], train_labels=train.labels, test_labels=test.labels)
    return arrays[0].shape


if __name__ == "__main__":
    main()
