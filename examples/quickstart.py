"""The whole story in a few minutes: palette, pre-training, probes, fine-tuning, completion, one file.

Command:
    python examples/quickstart.py                                       # photographs that come with scikit-image
    python examples/quickstart.py --dataset cifar10 --data-dir FOLDER   # FOLDER as prepared by TensorFlow Datasets
    python examples/quickstart.py --images FOLDER                       # FOLDER/<class>/<picture>

Needs: pip install "keras_igpt[quickstart]"; for CIFAR-10 also "keras_igpt[data]".
Writes pictures, the trained model and results.json to quickstart_output/ (--output).
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("KERAS_BACKEND", "jax")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
from arguments import load_data, make_parser

import keras_igpt as igpt
from keras_igpt import plotting


@dataclass(frozen=True)
class Size:
    """What two cores carry in the time there is."""

    image_size: int
    num_colors: int
    num_layers: int
    num_heads: int
    hidden_dim: int
    pretraining_steps: int
    finetuning_steps: int
    probe_examples: int
    batch_size: int = 32
    pretraining_rate: float = 0.004
    finetuning_rate: float = 0.001


SIZES = {
    "photographs": Size(8, 128, 6, 4, 64, pretraining_steps=480, finetuning_steps=250, probe_examples=5600),
    "cifar10": Size(16, 128, 6, 4, 64, pretraining_steps=300, finetuning_steps=150, probe_examples=4000),
    "images": Size(16, 128, 6, 4, 64, pretraining_steps=300, finetuning_steps=150, probe_examples=4000),
}
# Colour pictures and textures inside the wheels of scikit-image and scikit-learn.
PHOTOGRAPHS = (
    "astronaut.png",
    "brick.png",
    "chelsea.png",
    "china.jpg",
    "coffee.png",
    "coins.png",
    "flower.jpg",
    "grass.png",
    "gravel.png",
    "hubble_deep_field.jpg",
    "ihc.png",
    "motorcycle_left.png",
    "retina.jpg",
    "rocket.jpg",
)
PHOTOGRAPH_HEIGHT = 96
PATCHES = {"train": 400, "validation": 60, "test": 120}  # of each photograph


def main(arguments: list[str] | None = None) -> dict[str, float]:
    """Runs the story; returns the figures of its table."""
    parser = make_parser(__doc__, "quickstart_output", ("photographs", "cifar10"), default="photographs")
    parser.add_argument("--steps", type=int, help="pre-training steps in place of the default")
    options = parser.parse_args(arguments)
    if options.steps is not None and options.steps < 2:
        parser.error(f"--steps must be at least 2; received {options.steps}")

    started = time.monotonic()
    keras.utils.set_random_seed(options.seed)
    output = Path(options.output)
    output.mkdir(parents=True, exist_ok=True)
    size = SIZES["images" if options.images else options.dataset]
    pretraining_steps = options.steps or size.pretraining_steps
    finetuning_steps = max(1, size.finetuning_steps * pretraining_steps // size.pretraining_steps)
    results: dict[str, float] = {}

    with stage("Data"):
        photographs = options.dataset == "photographs" and not options.images
        data = photograph_patches(size.image_size, options.seed) if photographs else load_data(options, size.image_size)
        print(
            f"  {len(data.train):,} training, {len(data.validation):,} validation and {len(data.test):,} test pictures "
            f"of {size.image_size}x{size.image_size} pixels in {len(data.class_names)} classes"
        )

    with stage("Palette"):
        palette = igpt.ColorPalette.fit(data.train.images, size.num_colors, seed=options.seed)
        print(f"  {palette.quantization_report(data.test.images)}")
        plotting.plot_palette(palette).savefig(output / "palette.png")
        shown = pick_one_a_class(data.test, limit=10)
        plotting.plot_quantization(shown.images, palette).savefig(output / "quantization.png")
        train = data.train.encode(palette)
        validation = first(data.validation, 8 * size.batch_size).encode(palette)

    # === Pre-training, without labels ===
    def make_language_model(objective: str) -> igpt.ImageGPTCausalLM | igpt.ImageGPTMaskedLM:
        backbone = igpt.ImageGPTBackbone(
            vocabulary_size=size.num_colors,
            image_size=size.image_size,
            num_layers=size.num_layers,
            num_heads=size.num_heads,
            hidden_dim=size.hidden_dim,
            attention="causal" if objective == "ar" else "bidirectional",
        )
        kind = igpt.ImageGPTCausalLM if objective == "ar" else igpt.ImageGPTMaskedLM
        return kind(backbone, palette=palette)

    epochs = min(10, pretraining_steps)
    epoch_steps = -(-pretraining_steps // epochs)
    batches = igpt.TrainingBatches(train, palette, size.batch_size, seed=options.seed)
    held_out = igpt.EvaluationBatches(validation, palette, size.batch_size)
    language_models, curves = {}, {}
    for name, objective in {"autoregressive": "ar", "BERT": "bert"}.items():
        with stage(f"Pre-training, {name}"):
            language_model = make_language_model(objective)
            language_model.compile(
                **igpt.pretraining_recipe(
                    "igpt_nano",
                    objective,
                    steps=epochs * epoch_steps,
                    steps_per_epoch=epoch_steps,
                    learning_rate=size.pretraining_rate,
                )
            )
            history = language_model.fit(
                batches,
                epochs=epochs,
                steps_per_epoch=epoch_steps,
                validation_data=held_out,
                verbose=2,
            ).history
        language_models[name] = language_model
        curves[f"{name}, training"] = history["loss"]
        curves[f"{name}, validation"] = history["val_loss"]
        results[f"{name} validation loss (nats per token)"] = history["val_loss"][-1]
    plotting.plot_loss_curves(curves).savefig(output / "loss_curves.png")
    autoregressive = language_models["autoregressive"]

    # === Linear probes at every depth ===
    few = first(data.train, size.probe_examples)
    some = first(data.validation, size.probe_examples // 4)
    probe_train, probe_validation = (few.images, few.labels), (some.images, some.labels)
    test = (data.test.images, data.test.labels)
    depth_curves, chosen_depths = {}, {}
    for name, language_model in {
        **language_models,
        "random weights": make_language_model("ar"),
    }.items():
        with stage(f"Linear probes, {name}"):
            probe = igpt.LinearProbe(language_model).fit(probe_train, probe_validation)
            depth_curves[name] = probe.score(test)
            chosen_depths[name] = probe.report.best_layer
            best, last = probe.report.best_layer, language_model.backbone.num_layers
            print("  " + "  ".join(f"{layer}: {accuracy:.1%}" for layer, accuracy in depth_curves[name].items()))
            results[f"{name}, probe at best depth ({best}, chosen on validation)"] = depth_curves[name][best]
            results[f"{name}, probe at final depth ({last})"] = depth_curves[name][last]
    with stage("Logistic regression on raw pixels"):
        raw_pixels = igpt.fit_logistic_regression(
            *((images.reshape(len(images), -1) / 255, labels) for images, labels in (probe_train, probe_validation)),
        )
        accuracy = raw_pixels.score(test[0].reshape(len(test[0]), -1) / 255, test[1])
        results["raw pixels, logistic regression"] = accuracy
    figure = plotting.plot_depth_curves(depth_curves, {"raw pixels": accuracy}, chosen_depths)
    figure.savefig(output / "depth_curves.png")

    # === One file holds weights, optimizer, palette and configuration ===
    with stage("Saving and reloading"):
        path = output / "igpt.keras"
        autoregressive.save(path)
        reloaded = keras.saving.load_model(path, compile=False)
        sample = palette.encode(data.test.images[: size.batch_size])
        difference = float(
            np.abs(reloaded.predict(sample, verbose=0) - autoregressive.predict(sample, verbose=0)).max()
        )
        print(
            f"  {path}: {path.stat().st_size / 1e6:.1f} MB, largest difference of logits after reloading {difference}"
        )
        results["largest difference of logits after reloading"] = difference

    # === Fine-tuning, each from the same file; nothing is chosen here, so validation is training data too ===
    epoch_steps = max(1, finetuning_steps // 5)
    labeled = igpt.TrainingBatches(data["train+validation"], palette, size.batch_size, seed=options.seed)
    tokens_test = palette.encode(data.test.images)
    for name, weight in {"joint loss L_GEN + L_CLF": 1.0, "L_CLF alone": 0.0}.items():
        with stage(f"Fine-tuning, {name}"):
            classifier = igpt.ImageGPTImageClassifier(
                keras.saving.load_model(path, compile=False), len(data.class_names), generative_weight=weight
            )
            classifier.compile(**igpt.finetuning_recipe(size.finetuning_rate))
            classifier.fit(labeled, epochs=finetuning_steps // epoch_steps, steps_per_epoch=epoch_steps, verbose=2)
            scores = classifier.evaluate(
                tokens_test, data.test.labels, batch_size=size.batch_size, verbose=0, return_dict=True
            )
            results[f"fine-tuned, {name}"] = scores["accuracy"]

    # === What it has learned to draw ===
    with stage("Completing pictures"):
        keep = size.image_size // 2
        # In palette colours, as the model sees them.
        chosen = palette.decode(palette.encode(pick_one_a_class(data.test, limit=8).images))
        completions = autoregressive.complete(chosen, keep_rows=keep, num_samples=5, seed=options.seed)
        plotting.plot_completions(chosen, completions, keep).savefig(output / "completions.png")
        generated = autoregressive.generate(num_images=32, seed=options.seed)
        plotting.plot_grid(generated).savefig(output / "samples.png")
        if photographs:
            strip = photograph("flower.jpg")[30:][: size.image_size]
            strip = palette.decode(palette.encode(strip), strip.shape[:2])
            completed = complete_strip(autoregressive, strip, keep, options.seed)
            rows = {
                "a strip of a photograph, upper half seen": plotting.hide_rows(strip, keep),
                "lower half drawn pixel by pixel": completed,
                "original": strip,
            }
            plotting.plot_rows(rows).savefig(output / "strip.png")

    results["minutes"] = (time.monotonic() - started) / 60
    print_table(results)
    (output / "results.json").write_text(json.dumps(results, indent=2))
    print(f"\nPictures, model and figures: {output}/")
    return results


def photograph(name: str) -> np.ndarray:
    """Reads one of `PHOTOGRAPHS`, uint8 (PHOTOGRAPH_HEIGHT, W, 3)."""
    import skimage
    import sklearn
    from PIL import Image

    folders = (
        Path(skimage.__file__).parent / "data",
        Path(sklearn.__file__).parent / "datasets" / "images",
    )
    (path,) = [folder / name for folder in folders if (folder / name).is_file()]
    with Image.open(path) as picture:
        width = round(picture.width * PHOTOGRAPH_HEIGHT / picture.height)
        small = picture.convert("RGB").resize((width, PHOTOGRAPH_HEIGHT), Image.Resampling.BOX)
    return np.asarray(small)


def photograph_patches(patch_size: int, seed: int) -> igpt.DataSplits:
    """Cuts patches from `PHOTOGRAPHS`; the class of a patch is the photograph it comes from.

    The right quarter of each photograph is for testing, the eighth before it for validation, the rest for training; no
    patch crosses from one into another.
    """
    parts: dict[str, list[tuple[np.ndarray, int]]] = {name: [] for name in PATCHES}
    for label, name in enumerate(PHOTOGRAPHS):
        picture = photograph(name)
        height, width = picture.shape[:2]
        borders = {
            "train": (0, width * 5 // 8),
            "validation": (width * 5 // 8, width * 3 // 4),
            "test": (width * 3 // 4, width),
        }
        for part, (left, right) in borders.items():
            random = np.random.default_rng([seed, label, list(PATCHES).index(part)])
            for _ in range(PATCHES[part]):
                x = random.integers(left, right - patch_size + 1)
                y = random.integers(0, height - patch_size + 1)
                parts[part].append((picture[y : y + patch_size, x : x + patch_size], label))
    train, validation, test = (
        igpt.LabeledImages(np.stack([patch for patch, _ in part]), np.array([label for _, label in part]))
        for part in parts.values()
    )
    return igpt.DataSplits(train, validation, test, tuple(name.split(".")[0] for name in PHOTOGRAPHS))


def complete_strip(language_model: igpt.ImageGPTCausalLM, strip: np.ndarray, keep_rows: int, seed: int) -> np.ndarray:
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


def first(examples: igpt.LabeledImages, count: int) -> igpt.LabeledImages:
    """Takes `count` examples evenly from all of them."""
    rows = np.unique(np.linspace(0, len(examples) - 1, min(count, len(examples))).round().astype(int))
    return igpt.LabeledImages(examples.images[rows], examples.labels[rows])


def pick_one_a_class(examples: igpt.LabeledImages, limit: int) -> igpt.LabeledImages:
    """Takes one example of each of up to `limit` classes: among the first ten the one with the most contrast."""
    contrast = examples.images.std(axis=(1, 2)).mean(axis=-1)
    rows = []
    for label in np.unique(examples.labels)[:limit]:
        candidates = np.flatnonzero(examples.labels == label)[:10]
        rows.append(int(candidates[np.argmax(contrast[candidates])]))
    return igpt.LabeledImages(examples.images[rows], examples.labels[rows])


@contextmanager
def stage(name: str) -> Iterator[None]:
    """Says what is being done, and how long it took."""
    print(f"{name} …", flush=True)
    started = time.monotonic()
    yield
    print(f"  {time.monotonic() - started:.1f} s", flush=True)


def print_table(results: dict[str, float]) -> None:
    """Prints name and figure of each result; accuracies as percentages."""
    width = max(map(len, results))
    print("\n" + "-" * (width + 10))
    for name, value in results.items():
        shown = f"{value:.3g}" if any(word in name for word in ("loss (", "minutes", "difference")) else f"{value:.1%}"
        print(f"{name:<{width}}  {shown:>8}")
    print("-" * (width + 10))


if __name__ == "__main__":
    main()
