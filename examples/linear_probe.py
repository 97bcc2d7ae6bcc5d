"""Linear probes: logistic regression on the frozen features of every depth, beside raw pixels.

Run: TFDS_DATA_DIR=FOLDER python examples/linear_probe.py     # FOLDER/cifar10, as TensorFlow Datasets prepares it

Needs: pip install "keras_igpt[jax,data,plot]"
Measured: 46.0% on test at depth 6 of 8, which validation chose, and 41.7% for raw pixels; 22 minutes of one x86-64
core, PyTorch (RESULTS.md has every depth).
"""

import os
from pathlib import Path

os.environ.setdefault("KERAS_BACKEND", "jax")

import keras_igpt as igpt

MODEL = "igpt_cifar10_16x16"  # comes with the package
OUTPUT = Path("linear_probe_output")


def main() -> dict[int, float]:
    """Fits and scores the probes; returns test accuracies by depth."""
    lm = igpt.ImageGPTCausalLM.from_preset(MODEL)  # or keras.saving.load_model("igpt.keras")
    data = igpt.load_dataset("cifar10", image_size=lm.backbone.image_size)

    # C and depth by validation, then each depth refitted on train and validation and tested once.
    probe = igpt.LinearProbe(lm, layers="all").fit(data.train, data.validation)
    accuracies = probe.score(data.test)
    for depth, accuracy in accuracies.items():
        print(f"depth {depth}: {accuracy:.2%}{'  <- chosen on validation' * (depth == probe.report.best_layer)}")

    train, validation, test = (
        (part.images.reshape(len(part), -1) / 255, part.labels) for part in (data.train, data.validation, data.test)
    )
    print(f"raw pixels: {igpt.fit_logistic_regression(train, validation).score(*test):.2%}")

    OUTPUT.mkdir(parents=True, exist_ok=True)
    probe.report.save(OUTPUT / "report.json")  # depth, C, iterations, pictures: all that decided the figures
    probe.report.plot().savefig(OUTPUT / "depth_curve.png")
    return accuracies


if __name__ == "__main__":
    main()
