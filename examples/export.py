"""Exporting a model to run without this package: uint8 pictures in, features or class logits out.

Run: python examples/export.py     # writes a SavedModel to exported/, and opens it with TensorFlow

Needs: pip install "keras_igpt[jax,tensorflow]"; for ONNX the extra `onnx` and FORMAT = "onnx".
Measured: outputs (4, 2, 96) that differ from the model's own by at most 5e-7; 18 s of processor time on JAX, x86-64.
"""

import os
from pathlib import Path
from typing import Any

os.environ.setdefault("KERAS_BACKEND", "jax")

import numpy as np

import keras_igpt as igpt

MODEL = "igpt_cifar10_16x16"  # comes with the package
LAYERS = (4, 6)
FORMAT = "tf_saved_model"
OUTPUT = Path("exported")


def main() -> float:
    """Exports; returns the largest difference from the model's own outputs."""
    lm = igpt.ImageGPTCausalLM.from_preset(MODEL)
    # The palette is part of what is exported. An ImageGPTImageClassifier goes in as it is.
    serving = igpt.ServingModel(igpt.FeatureExtractor(lm, LAYERS))
    serving.export(OUTPUT, format=FORMAT)
    images = np.random.default_rng(0).integers(0, 256, (4, *serving.image_shape)).astype("uint8")
    exported = run_onnx(images) if FORMAT == "onnx" else run_saved_model(images)
    difference = float(np.abs(exported - serving.predict(images, verbose=0)).max())
    print(f"outputs {exported.shape}; largest difference from the model's own: {difference:.1e}")
    return difference


def run_saved_model(images: np.ndarray) -> Any:
    """Runs the SavedModel as a server would."""
    import tensorflow as tf

    loaded = tf.saved_model.load(str(OUTPUT))  # kept until it has run: its variables go with it
    return np.asarray(loaded.serve(images))


def run_onnx(images: np.ndarray) -> Any:
    """Runs the ONNX file."""
    import onnxruntime

    session = onnxruntime.InferenceSession(OUTPUT)
    return session.run(None, {session.get_inputs()[0].name: images})[0]


if __name__ == "__main__":
    main()
