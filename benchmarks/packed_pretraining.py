"""CIFAR-10 at 32x32 pixels, packed for a GPU without network and without Keras, in a quarter of an hour.

Commands, the first on a machine with the data, the others on the one with the GPU:
    python benchmarks/packed_pretraining.py pack --data-dir FOLDER      # writes packed/; some minutes
    python3 -m pip install -q --no-index --no-deps --target /tmp/site packed/wheels/*.whl
    export PYTHONPATH=/tmp/site:$PWD JAX_COMPILATION_CACHE_DIR=/tmp/jax PYTHONUNBUFFERED=1
    python3 benchmarks/packed_pretraining.py train --run /tmp/run --output OUT      # 5.5 minutes; again to go on
    python3 benchmarks/packed_pretraining.py judge --run /tmp/run --output OUT      # 5.5 minutes

packed/ is ignored by git: where only the working tree is sent, name it. What must last from one command to the next is
below /tmp, so that packed/ need not be sent again (`--packed` if it was copied there). Only OUT comes back: nine files
of both commands, so at most eight at a time if each has an OUT of its own.

Needs for pack: pip install "keras_igpt[jax,data,palette]". The GPU's machine needs Python 3.12 with jax, NumPy, SciPy,
Matplotlib, absl-py, h5py, ml-dtypes, packaging, rich and typing-extensions; the wheels of Keras and of what else it
needs are packed: keras, namex and optree (`WHEELS`).

`pack` writes 60,000 pictures as tokens of 512 colours, their labels, the palette and the wheels: with the working tree
they must stay below 64 MiB. Measured for CIFAR-10's tokens: 66 MiB at 9 bits each, 107 as PNG sheets, 47 in lossless
WebP (an hour), 40 with bzip2, these three by 2,000 pictures, and 38.0 with xz as it is set here, 5.2 bits a token. With
wheels and working tree it was 47.7 MiB.

`train` pre-trains `igpt_mini` (12 layers, width 256) in mixed bfloat16 and brings back, after each epoch, float16
weights in parts of at most 15 MiB, `log.csv` and `results.json` with model FLOPs utilisation, and last pictures that it
draws. It stops after the last epoch that fits. `--epochs` also sets the length of the schedule: ten epochs are 3.5·10¹⁶
FLOPs, which fit into 5.5 minutes of an H100 at 15% utilisation, compiling and validation included; a run that is
stopped earlier ends at a high rate. What a later call goes on from:
- On the same machine, from the checkpoints in `--run`: exactly. Weights, optimizer, step and order are those of the
  checkpoint, after a kill too. On a CPU the weights are bit for bit those of a run that was never stopped; on a GPU as
  far as its kernels add in the same order each time.
- On another machine, from the folder that came back (`--weights`): not exactly. Step, schedule and order go on at the
  end of an epoch, but weights are rounded to float16 and Adam's moments start at zero. They are left out because they
  do not fit: in float32 weights and moments take 114 MiB. At β2 = 0.95 moments remember some twenty steps.

`judge` measures the loss on the test set in float32, probes every depth, draws, and fine-tunes with the joint loss for
as many epochs as fit, each result with a 95% interval. It takes the weights from `--run`, or from `--weights`. These
take 17.6 MiB more, too much for one call beside data and working tree, for `train` too: on another machine copy packed/
to a folder that stays there in a call of its own, and name it in the next one (`--packed`).
"""

from __future__ import annotations

import argparse
import csv
import json
import lzma
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("KERAS_BACKEND", "jax")

import keras
import numpy as np
from utilisation import device_of, peak_tflops, utilisation

import keras_igpt as igpt
from keras_igpt import plotting
from keras_igpt.model.preset_weights import read_model
from keras_igpt.support.files import whole_file, whole_folder, write_json

STARTED = time.monotonic()
ROOT = Path(__file__).parent.parent
LIMIT = 64 << 20
PART = 15 << 20
PARTS = ("train", "validation", "test")
WHEELS = ("keras==3.15.1", "namex==0.1.0", "optree==0.20.0")
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")
# Literals and positions in units of two bytes.
FILTERS = [{"id": lzma.FILTER_LZMA2, "preset": 6, "lc": 0, "lp": 1, "pb": 1}]
PRESET = "igpt_mini"
DTYPE = "mixed_bfloat16"

Splits = dict[str, igpt.LabeledTokens]


# === What travels there ===


def pack(options: argparse.Namespace) -> dict[str, int]:
    """Writes the folder that travels; returns the sizes of its files."""
    data = igpt.load_dataset("cifar10", options.data_dir, options.image_size)
    palette = igpt.ColorPalette.fit(data.train.images, options.colors)
    with whole_folder(options.packed, replaces=True) as folder:
        palette.save(folder / "palette.npy")
        for part in PARTS:
            tokens = data[part].encode(palette)
            np.save(folder / f"{part}_labels.npy", tokens.labels.astype(np.uint8))
            with lzma.open(folder / f"{part}.npy.xz", "wb", filters=FILTERS) as file:
                np.lib.format.write_array(file, np.ascontiguousarray(tokens.token_ids), allow_pickle=False)
        if options.wheels:
            download_wheels(folder / "wheels")
        sizes = {str(path.relative_to(folder)): path.stat().st_size for path in files_in(folder)}
        tree = working_tree_size()
        for name, size in {**sizes, "working tree": tree}.items():
            print(f"{size / 2**20:7.2f} MiB  {name}")
        total = sum(sizes.values()) + tree
        print(f"{total / 2**20:7.2f} MiB  in all")
        if total >= LIMIT:
            raise SystemExit(f"{options.packed} and the working tree must be smaller than {LIMIT:,} bytes: {total:,}")
    return sizes


def download_wheels(folder: Path) -> None:
    """Fetches what Keras needs and the GPU's machine has not."""
    platforms = [argument for platform in PLATFORMS for argument in ("--platform", platform)]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    python = ["--python-version", "3.12", "--implementation", "cp"]
    subprocess.run([*command, *python, *platforms, "--dest", str(folder), *WHEELS], check=True)


def files_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def working_tree_size() -> int:
    """Bytes of the working tree, at most: without what is hidden, packed or an output."""
    left_out = ("packed", "dist", "__pycache__")
    entries = [entry for entry in ROOT.iterdir() if entry.name not in left_out and entry.name[0] != "."]
    folders = [entry for entry in entries if entry.is_dir() and not entry.name.endswith(("_output", ".egg-info"))]
    files = [path for folder in folders for path in files_in(folder)] + [entry for entry in entries if entry.is_file()]
    return sum(path.stat().st_size for path in files)


def load(folder: Path) -> tuple[Splits, igpt.ColorPalette]:
    """Opens what `pack` wrote."""
    palette = igpt.ColorPalette.load(folder / "palette.npy")

    def tokens_of(part: str) -> igpt.LabeledTokens:
        with lzma.open(folder / f"{part}.npy.xz") as file:
            token_ids = np.lib.format.read_array(file)
        return igpt.LabeledTokens(token_ids, np.load(folder / f"{part}_labels.npy"), palette.num_colors)

    return {part: tokens_of(part) for part in PARTS}, palette


# === What comes back ===


def split_file(path: Path, folder: Path) -> None:
    """Copies a file into a folder in parts that are small enough to come back."""
    content = path.read_bytes()
    for earlier in folder.glob(f"{path.name}.part-*"):
        earlier.unlink()
    for index, start in enumerate(range(0, len(content), PART)):
        (folder / f"{path.name}.part-{index:02d}").write_bytes(content[start : start + PART])


def joined(folder: Path, path: Path) -> Path:
    """Writes the file whose parts lie in a folder."""
    parts = sorted(folder.glob(f"{path.name}.part-*"))
    if not parts:
        raise SystemExit(f"--weights must be a folder with {path.name}.part-00 and so on. Received: {folder}")
    with whole_file(path) as partial:
        partial.write_bytes(b"".join(part.read_bytes() for part in parts))
    return path


def open_weights(path: Path, dtype: str) -> igpt.ImageGPTCausalLM:
    """Opens the weights that `train` wrote."""
    stored = read_model(path)
    backbone = igpt.ImageGPTBackbone(**stored.architecture, dtype=dtype)
    language_model = igpt.ImageGPTCausalLM(backbone, igpt.ColorPalette(stored.centroids))
    stored.restore(language_model)
    return language_model


# === Callbacks ===


class StopInTime(keras.callbacks.Callback):
    """Ends the training after the last epoch that fits, if the next one takes as long as the last."""

    def __init__(self, deadline: float) -> None:
        super().__init__()
        self._deadline, self._began = deadline, 0.0

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self._began = time.monotonic()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        now = time.monotonic()
        if now + (now - self._began) > self._deadline:
            self.model.stop_training = True


class Log(keras.callbacks.Callback):
    """Writes a line an epoch: losses, tokens a second and model FLOPs utilisation. Repeated epochs replace theirs."""

    # Keras then reports the end of a step from a thread and does not wait for each.
    async_safe = True

    def __init__(self, path: Path, shape: dict[str, Any], tokens: int, steps: int, peak: float | None) -> None:
        super().__init__()
        self._path, self._shape, self._tokens, self._steps, self._peak = path, shape, tokens, steps, peak
        self._finished: dict[int, float] = {}

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self._finished = {}

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        # Reading the loss waits for the device.
        float((logs or {})["loss"])
        self._finished[batch] = time.monotonic()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        first, last = min(self._finished), max(self._finished)
        # Without the first step, in which the program is compiled.
        seconds = self._finished[last] - self._finished[first]
        rate = self._tokens * (last - first) / seconds if last > first else None
        shares = {} if rate is None else utilisation(self._shape, rate, self._peak)
        done = (epoch + 1) * self._steps
        line = {"epoch": epoch + 1, "step": done, "tokens": done * self._tokens, **(logs or {})}
        line |= {"tokens_per_second": rate, "mfu_causal": shares.get("causal"), "mfu_full": shares.get("full")}
        lines = [earlier for earlier in read_log(self._path) if int(earlier["epoch"]) <= epoch]
        with whole_file(self._path) as partial, partial.open("w", newline="") as file:
            writer = csv.DictWriter(file, line, restval="", extrasaction="ignore")
            writer.writeheader()
            writer.writerows([*lines, line])


class BringBack(keras.callbacks.Callback):
    """Brings back what there is after each epoch, should the time be over after all."""

    def __init__(self, options: argparse.Namespace, known: dict[str, Any]) -> None:
        super().__init__()
        self._options, self._known = options, known

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        bring_back(self.model, self._options, self._known)


def read_log(path: Path) -> list[dict[str, str]]:
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


# === On the machine with the GPU ===


def train(options: argparse.Namespace) -> dict[str, Any]:
    """Pre-trains from the newest checkpoint on for as long as the time allows, and brings back what there is."""
    deadline = STARTED + 60 * options.minutes - options.margin
    data, palette = load(options.packed)
    shape = igpt.get_preset(PRESET).architecture
    shape |= {"vocabulary_size": palette.num_colors, "image_size": data["train"].image_size, **options.sizes}
    keras.utils.set_random_seed(0)
    language_model = igpt.ImageGPTCausalLM(igpt.ImageGPTBackbone(**shape, dtype=DTYPE), palette)
    batches = igpt.TrainingBatches(data["train"], None, options.batch_size, seed=0)
    steps = batches.steps_per_epoch
    recipe = igpt.pretraining_recipe(PRESET, "ar", options.epochs * steps, steps, clip_norm=1.0)
    language_model.compile(**recipe)
    first_epoch = 0 if options.weights is None else start_from(options, language_model, steps)

    device = device_of(keras.backend.backend())[1]
    peak = options.peak_tflops or peak_tflops(device)
    tokens = options.batch_size * shape["image_size"] ** 2
    known = {"device": device, "peak_tflops": peak, "shape": shape, "dtype": DTYPE}
    known["parameters"] = language_model.count_params()
    language_model.fit(
        batches,
        epochs=options.epochs,
        initial_epoch=first_epoch,
        validation_data=igpt.EvaluationBatches(data["validation"], None, options.batch_size),
        callbacks=[
            Log(options.run / "log.csv", shape, tokens, steps, peak),
            BringBack(options, known),
            StopInTime(deadline),
            igpt.ExactResume(options.run / "checkpoints", every=options.checkpoint_every),
        ],
        verbose=2,
    )
    # Also where nothing was left to train.
    results = bring_back(language_model, options, known)
    draw(language_model, options, None)
    return results


def bring_back(
    language_model: igpt.ImageGPTCausalLM, options: argparse.Namespace, known: dict[str, Any]
) -> dict[str, Any]:
    """Writes weights, log and results into the folder that comes back; returns the results."""
    igpt.save_preset_weights(language_model, options.run / "weights.npz")
    split_file(options.run / "weights.npz", options.output)
    shutil.copy(options.run / "log.csv", options.output)
    results = summary(read_log(options.run / "log.csv"), options) | known
    write_json(options.output / "results.json", results)
    return results


def start_from(options: argparse.Namespace, language_model: igpt.ImageGPTCausalLM, steps: int) -> int:
    """Takes up what came back from another machine; returns its number of epochs."""
    if (options.run / "checkpoints").is_dir():
        raise SystemExit(
            f"--weights must be left out where there are checkpoints to go on from. Received: some in {options.run}"
        )
    epoch: int = json.loads((options.weights / "results.json").read_text())["epoch"]
    read_model(joined(options.weights, options.run / "weights.npz")).restore(language_model)
    shutil.copy(options.weights / "log.csv", options.run)
    language_model.optimizer.iterations.assign(epoch * steps)
    print(f"Going on after epoch {epoch} with weights rounded to float16, and Adam's moments at zero.", flush=True)
    return epoch


def summary(lines: list[dict[str, str]], options: argparse.Namespace) -> dict[str, Any]:
    """The last epoch's losses, and medians of the rates over epochs."""
    last = lines[-1]
    results: dict[str, Any] = {name: int(last[name]) for name in ("epoch", "step", "tokens")}
    results |= {"of_epochs": options.epochs, "batch_size": options.batch_size}
    results |= {name: float(last[name]) for name in ("loss", "val_loss")}
    for name in ("tokens_per_second", "mfu_causal", "mfu_full"):
        values = [float(line[name]) for line in lines if line[name]]
        results[name] = float(np.median(values)) if values else None
    return results | {"keras": keras.__version__, "backend": keras.backend.backend()}


def judge(options: argparse.Namespace) -> dict[str, Any]:
    """Measures what the weights are good for, part by part; the results are rewritten after each."""
    data, _ = load(options.packed)
    path = options.run / "weights.npz"
    if options.weights is not None:
        joined(options.weights, path)
    results: dict[str, Any] = {"device": device_of(keras.backend.backend())[1], "keras": keras.__version__}
    parts: dict[str, Callable[..., Any]] = {"loss": measure_loss, "probe": probe, "draw": draw, "finetune": finetune}
    for name in options.parts:
        # Fine-tuning changes the weights.
        language_model = open_weights(path, "float32" if name == "loss" else DTYPE)
        started = time.monotonic()
        results[name] = parts[name](language_model, options, data)
        print(f"{name}, {time.monotonic() - started:.0f} s: {results[name]}", flush=True)
        write_json(options.output / "judged.json", results)
    return results


def interval_of(interval: igpt.Interval) -> dict[str, float]:
    return {"estimate": interval.estimate, "low": interval.low, "high": interval.high}


def measure_loss(model: igpt.ImageGPTCausalLM, options: argparse.Namespace, data: Splits) -> Any:
    """Nats per token of the test pictures."""
    import jax

    # Products of float32 are rounded to fewer bits on a GPU otherwise.
    with jax.default_matmul_precision("highest"):
        scores = model.score(data["test"], batch_size=options.batch_size)
    return interval_of(igpt.mean_interval(scores.nats_per_token))


def probe(model: igpt.ImageGPTCausalLM, options: argparse.Namespace, data: Splits) -> Any:
    """Logistic regression on every depth; the test accuracy of the one that validation chose."""
    fitted = igpt.LinearProbe(model, batch_size=options.batch_size).fit(data["train"], data["validation"])
    accuracies = fitted.score(data["test"])
    fitted.report.plot().savefig(options.output / "depth_curve.png")
    correct = fitted.predict(data["test"]) == data["test"].labels
    chosen = {"layer": fitted.report.best_layer, "accuracy": interval_of(igpt.accuracy_interval(correct))}
    return chosen | {"accuracies": {str(depth): accuracy for depth, accuracy in accuracies.items()}}


def draw(model: igpt.ImageGPTCausalLM, options: argparse.Namespace, data: Splits | None) -> Any:
    """Draws pictures from nothing and, given pictures, completions of the first of the test set."""
    if not options.pictures:
        return {"pictures": 0}
    samples = model.generate(options.pictures, seed=0)
    plotting.plot_grid(samples).savefig(options.output / "samples.png")
    if data is not None:
        rows = samples.shape[1] // 2
        originals = model.palette.decode(data["test"].token_ids[: options.pictures // 4])
        completions = model.complete(originals, keep_rows=rows, num_samples=4, seed=0)
        figure = plotting.plot_completions(originals, completions, keep_rows=rows)
        figure.savefig(options.output / "completions.png")
    return {"pictures": len(samples)}


def finetune(model: igpt.ImageGPTCausalLM, options: argparse.Namespace, data: Splits) -> Any:
    """The joint loss on all labels; the test accuracy of the epoch that validation chose."""
    classifier = igpt.ImageGPTImageClassifier(model, int(data["train"].labels.max()) + 1)
    classifier.compile(**igpt.finetuning_recipe(options.rate))
    # The paper pads pictures of 32 pixels by 4.
    crop = igpt.PaddedCrop(data["train"].image_size // 8 or 1)
    history = classifier.fit(
        igpt.TrainingBatches(data["train"], None, options.batch_size, seed=0, augmentation=crop),
        epochs=options.finetuning_epochs,
        validation_data=igpt.EvaluationBatches(data["validation"], None, options.batch_size),
        callbacks=[
            StopInTime(STARTED + 60 * options.minutes - options.margin),
            keras.callbacks.EarlyStopping("val_accuracy", mode="max", patience=5, restore_best_weights=True),
            keras.callbacks.CSVLogger(str(options.output / "finetuning.csv")),
        ],
        verbose=2,
    ).history["val_accuracy"]
    logits = classifier.predict(data["test"], batch_size=options.batch_size, verbose=0)
    correct = logits.argmax(axis=-1) == data["test"].labels
    results = {"accuracy": interval_of(igpt.accuracy_interval(correct)), "rate": options.rate}
    return results | {"epochs": len(history), "best_epoch": int(np.argmax(history)) + 1, "val_accuracy": max(history)}


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Runs one of the three parts; returns its results."""
    commands = {"pack": pack, "train": train, "judge": judge}
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("command", choices=commands)
    parser.add_argument("--packed", type=Path, default=ROOT / "packed", help="folder that travels; packed/ by default")
    group = parser.add_argument_group("pack")
    group.add_argument("--data-dir", help="folder of prepared TensorFlow Datasets")
    group.add_argument("--image-size", type=int, default=32)
    group.add_argument("--colors", type=int, default=512)
    group.add_argument("--no-wheels", dest="wheels", action="store_false", help="where Keras is there already")
    group = parser.add_argument_group("train and judge")
    group.add_argument("--run", type=Path, default=ROOT / "packed_output", help="folder that stays there")
    group.add_argument("--output", type=Path, default=Path("came_back_output"), help="folder that comes back")
    group.add_argument("--weights", type=Path, help="folder that came back from train, on another machine")
    group.add_argument("--minutes", type=float, default=5.5, help="after the imports, which take up to half of one")
    group.add_argument("--margin", type=float, default=45.0, help="seconds of them for what follows the training")
    group.add_argument("--batch-size", type=int, default=128)
    group.add_argument("--pictures", type=int, default=16, help="to draw; none if 0")
    group = parser.add_argument_group("train")
    group.add_argument("--epochs", type=int, default=10, help="of the whole run and its schedule")
    group.add_argument("--checkpoint-every", type=int, default=351, help="steps; about an epoch by default")
    group.add_argument("--sizes", type=json.loads, default={}, help="JSON: sizes in place of those of igpt_mini")
    group.add_argument("--peak-tflops", type=float, help="dense bfloat16, where the device is not known by name")
    group = parser.add_argument_group("judge")
    group.add_argument("--parts", nargs="+", default=["loss", "probe", "draw", "finetune"])
    group.add_argument("--rate", type=float, default=0.0003, help="of fine-tuning")
    group.add_argument("--finetuning-epochs", type=int, default=50, help="at most")
    options = parser.parse_args(arguments)
    if options.command != "pack":
        options.run.mkdir(parents=True, exist_ok=True)
        options.output.mkdir(parents=True, exist_ok=True)
    return commands[options.command](options)


if __name__ == "__main__":
    main()
