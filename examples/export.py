"""Exporting a trained model to run without this package: pictures in, class logits or features out.

Command:
    python examples/export.py --model classifier.keras                                  # a SavedModel
    python examples/export.py --model classifier.keras --format onnx --batch-size 1     # ONNX
    python examples/export.py --model igpt.keras --layers 4 6                           # features of a language model

Needs: pip install "keras_igpt[jax,tensorflow]" and a model's file, such as examples/finetune.py and
examples/pretrain.py write. ONNX needs the extra `onnx`: jax2onnx on JAX, tf2onnx on
TensorFlow, onnx and onnxscript on PyTorch.
The palette is part of what is exported: it takes uint8 pictures of the model's size. Sampling is not exportable.
Opens what it wrote with TensorFlow or, where it is installed, ONNX Runtime, and prints the largest difference from the
model's own outputs for random pictures: a rounding error, 1e-6 or so. Writes exported/, or exported.onnx (--output).
"""

from __future__ import annotations

import argparse
import importlib.util
import os
from pathlib import Path
from typing import Any

os.environ.setdefault("KERAS_BACKEND", "jax")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
import numpy.typing as npt

import keras_igpt as igpt

# Pictures that the exported model is tried with, where its batch size is not fixed.
_PICTURES = 4


def main(arguments: list[str] | None = None) -> float | None:
    """Exports; returns the largest difference of outputs, or None where nothing can open the file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help=".keras file of a classifier or a language model")
    parser.add_argument("--layers", type=int, nargs="+", help="depths of a language model's features; all by default")
    parser.add_argument("--format", choices=("tf_saved_model", "onnx"), default="tf_saved_model")
    parser.add_argument("--batch-size", type=int, help="fixes the batch size, as ONNX on PyTorch needs")
    parser.add_argument("--output", help="folder of the SavedModel, or .onnx file")
    options = parser.parse_args(arguments)
    onnx = options.format == "onnx"

    model = keras.saving.load_model(options.model, compile=False)
    if not isinstance(model, igpt.ImageGPTImageClassifier):
        model = igpt.FeatureExtractor(model, options.layers or "all")
    elif options.layers:
        parser.error("--layers is for language models: a classifier has its own")
    serving = igpt.ServingModel(model)
    output = Path(options.output or ("exported.onnx" if onnx else "exported"))
    serving.export(output, format=options.format, batch_size=options.batch_size)
    print(f"wrote {output}, {size_of(output) / 1e6:.2f} MB")

    shape = (options.batch_size or _PICTURES, *serving.image_shape)
    images = np.random.default_rng(0).integers(0, 256, shape).astype("uint8")
    if importlib.util.find_spec("onnxruntime" if onnx else "tensorflow") is None:
        print("not compared: ONNX Runtime is not installed")
        return None
    exported = run_onnx(output, images) if onnx else run_saved_model(output, images)
    difference = float(np.abs(exported - serving.predict(images, verbose=0)).max())
    print(f"outputs {exported.shape}; largest difference from the model's own: {difference:.1e}")
    return difference


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files in a folder."""
    return sum(file.stat().st_size for file in ([path] if path.is_file() else path.rglob("*")) if file.is_file())


def run_saved_model(path: Path, images: npt.NDArray[np.uint8]) -> npt.NDArray[Any]:
    """Runs a SavedModel as a server would."""
    import tensorflow as tf

    # Kept until it has run: its variables go with it.
    loaded = tf.saved_model.load(str(path))
    return np.asarray(loaded.serve(images))


def run_onnx(path: Path, images: npt.NDArray[np.uint8]) -> npt.NDArray[Any]:
    """Runs an ONNX file."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path)
    return np.asarray(session.run(None, {session.get_inputs()[0].name: images})[0])


if __name__ == "__main__":
    main()
