"""Models for deployment: from uint8 images to logits or features in one graph, with the palette inside."""

from __future__ import annotations

import functools
import importlib.util
import os
from pathlib import Path
from typing import Any, Literal

import keras
import numpy as np
import numpy.typing as npt
from keras import ops

from keras_igpt.backend.whole_saving import local_path
from keras_igpt.backend.whole_steps import WholeStepModel
from keras_igpt.data.inputs import array_of
from keras_igpt.evaluation.features import FeatureExtractor
from keras_igpt.model.quantization import int8_layers
from keras_igpt.objectives.image_classifier import ImageGPTImageClassifier
from keras_igpt.objectives.masked_lm import ImageGPTMaskedLM
from keras_igpt.objectives.pixel_model import PixelModel
from keras_igpt.palette.color_palette import ColorPalette
from keras_igpt.support.checks import check_integer
from keras_igpt.support.files import whole_file, whole_folder

Format = Literal["tf_saved_model", "onnx"]

# The packages that Keras needs for an export, by format and backend.
_NEEDED = {
    ("tf_saved_model", "jax"): ("tensorflow",),
    ("tf_saved_model", "tensorflow"): ("tensorflow",),
    ("tf_saved_model", "torch"): ("tensorflow", "torch_xla"),
    ("onnx", "jax"): ("jax2onnx",),
    ("onnx", "tensorflow"): ("tf2onnx",),
    ("onnx", "torch"): ("onnx", "onnxscript"),
}
# What TensorFlow writes into the folder of a SavedModel.
_FILES_OF_FOLDER = {"assets", "fingerprint.pb", "saved_model.pb", "variables"}


class PaletteEncoding(keras.layers.Layer):
    """`ColorPalette.encode` inside a graph, with exactly the same token ids.

    Where all colours are whole 8-bit values, as `ColorPalette.fit` makes them, distances are computed: they are
    integers below 2²⁴, which float32 and its faster substitutes on accelerators multiply and add without error. Other
    colours, such as the released palette's, need float64, which not every backend has: for these the layer keeps the
    table of all 2²⁴ colours, 32 MB.

    Args:
        palette: a `ColorPalette`.
        **kwargs: of `keras.layers.Layer`.

    Call arguments:
        images: uint8 tensor `(B, H, W, C)`.

    Returns:
        int32 tensor `(B, H * W)`, raster order.
    """

    def __init__(self, palette: ColorPalette, **kwargs: Any) -> None:
        super().__init__(dtype="float32", **kwargs)
        self.num_channels, self.num_colors = palette.num_channels, palette.num_colors
        colors = palette.colors
        if np.array_equal((colors / 127.5 - 1.0).astype(np.float32), palette.centroids):
            self.colors = self._constant("colors", colors.astype(np.float32))
            self.table = None
        else:
            table = palette.encode(_every_color(palette.num_channels))
            self.table = self._constant("table", table.astype(np.int16 if palette.num_colors <= 1 << 15 else np.int32))
        self.built = True

    def call(self, images: Any) -> Any:
        pixels = ops.reshape(images, (-1, images.shape[1] * images.shape[2], self.num_channels))
        if self.table is not None:
            packed = 0
            for channel in range(self.num_channels):
                packed = 256 * packed + ops.cast(pixels[..., channel], "int32")
            return ops.cast(ops.take(self.table, packed, axis=0), "int32")
        # |pixel - colour|² less |pixel|², which is the same for all colours.
        products = ops.matmul(ops.cast(pixels, "float32"), ops.transpose(self.colors))
        distances = ops.sum(ops.square(self.colors), axis=-1) - 2.0 * products
        # `argmin` does not promise the lowest index of a tie everywhere.
        nearest = distances <= ops.min(distances, axis=-1, keepdims=True)
        return ops.min(ops.where(nearest, ops.arange(0, self.num_colors, dtype="int32"), self.num_colors), axis=-1)

    def _constant(self, name: str, value: npt.NDArray[Any]) -> Any:
        return self.add_weight(
            name=name,
            shape=value.shape,
            dtype=str(value.dtype),
            initializer=lambda shape, dtype: ops.convert_to_tensor(value, dtype),
            trainable=False,
        )


def _every_color(num_channels: int) -> npt.NDArray[Any]:
    """A picture of all 8-bit colours in the order of `256 * (256 * R + G) + B`, or of all greys."""
    values = np.indices((256,) * num_channels, dtype=np.uint8)
    side = 16**num_channels
    return np.moveaxis(values, 0, -1).reshape(side, side, num_channels)


class ServingModel(WholeStepModel):
    """A model of uint8 images for deployment: the palette's encoding and the network in one graph.

    Its outputs are those of `model.predict` for the same images: the nearest colours are found exactly, and a BERT
    model hides positions as in evaluation. `export` writes it as a SavedModel or in ONNX. Sampling, `generate` and
    `complete`, cannot be exported.

    Args:
        model: an `ImageGPTImageClassifier`, a `FeatureExtractor`, or an `ImageGPTCausalLM` or `ImageGPTMaskedLM`, with
            its palette. Its weights are shared, not copied.

    Call arguments:
        images: uint8 tensor `(B, H, W, C)` of the model's own size.

    Returns:
        float32 tensor: class logits `(B, C)`; features `(B, depths, D)`; or pixel logits `(B, T, V)`.

    Raises:
        ValueError: if it is no such model, or has no palette. From calls and `predict`: if the images are of another
            size or dtype.

    Example:
    ```python
    serving = ServingModel(classifier)
    class_logits = serving.predict(images)
    serving.export("classifier")
    ```
    """

    def __init__(self, model: ImageGPTImageClassifier | FeatureExtractor | PixelModel) -> None:
        if not isinstance(model, (ImageGPTImageClassifier, FeatureExtractor, PixelModel)):
            raise ValueError(
                "`model` must be an ImageGPTImageClassifier, FeatureExtractor, ImageGPTCausalLM or ImageGPTMaskedLM. "
                f"Received: {type(model).__name__}"
            )
        language_model = model if isinstance(model, PixelModel) else model.language_model
        if language_model.palette is None:
            raise ValueError("`model` must have a palette to encode pictures with. Received: palette=None")
        super().__init__(name="serving_model", dtype="float32")
        self.model = model
        self.masked = isinstance(language_model, ImageGPTMaskedLM)
        self.backbone_dtype = language_model.backbone.compute_dtype
        self.palette_encoding = PaletteEncoding(language_model.palette, name="palette_encoding")
        size = language_model.backbone.image_size
        self.image_shape = (size, size, language_model.palette.num_channels)
        self.built = True

    def call(self, images: Any) -> Any:
        self._check_images("images", images.shape, keras.backend.standardize_dtype(images.dtype))
        outputs = self.model(self.palette_encoding(images))
        return outputs["class_logits"] if isinstance(self.model, ImageGPTImageClassifier) else outputs

    def predict(self, x: Any, *args: Any, **kwargs: Any) -> Any:
        """Computes the outputs in batches; `keras.Model.predict`, with pictures in memory checked first."""
        return super().predict(self._checked(x), *args, **kwargs)

    def predict_on_batch(self, x: Any) -> Any:
        """Computes the outputs of one batch; `keras.Model.predict_on_batch`, with `x` checked first."""
        return super().predict_on_batch(self._checked(x))

    def _checked(self, x: Any) -> Any:
        """Returns pictures as an array; a data set's are checked by `call`, batch by batch."""
        images = array_of(x)
        if images is None:
            return x
        self._check_images("x", images.shape, images.dtype.name)
        return images

    def _check_images(self, name: str, shape: Any, dtype: str) -> None:
        if tuple(shape[1:]) != self.image_shape or dtype != "uint8":
            raise ValueError(
                f"`{name}` must be uint8 of shape {('B', *self.image_shape)}. Received: {dtype} of shape {tuple(shape)}"
            )

    def export(
        self,
        filepath: str | os.PathLike[str],
        format: Format | None = None,
        batch_size: int | None = None,
        verbose: bool = False,
        **kwargs: Any,
    ) -> None:
        """Writes the graph with its weights for use without this package; `keras.Model.export`.

        A SavedModel is a folder that `tensorflow.saved_model.load` opens; its `serve` takes the images. An ONNX file
        runs in ONNX Runtime; large weights lie beside it, in a file of its name with `.data` added. What is exported on
        JAX runs on the kind of device it was exported on.

        An earlier export stays unchanged until the new one is complete. URLs such as `gs://…` are written in place.

        | backend | SavedModel | ONNX |
        |---|---|---|
        | JAX | needs TensorFlow | needs jax2onnx |
        | TensorFlow | yes | needs tf2onnx |
        | PyTorch | needs TensorFlow and torch_xla | needs onnx and onnxscript; with `batch_size` only |

        ONNX takes float32 models only, BERT models on PyTorch only, and quantised models on TensorFlow or PyTorch. A
        model's `.keras` file opens on any backend, so that another one can export it.

        Args:
            filepath: folder of the SavedModel, or `.onnx` file.
            format: `"tf_saved_model"` or `"onnx"`; by default as `filepath` ends, `"onnx"` for `.onnx`.
            batch_size: int. Fixed size of a batch; any size by default.
            verbose: bool. Whether Keras says what it writes, under its temporary name.
            **kwargs: of `keras.Model.export`.

        Raises:
            ValueError: if the format cannot hold this model, or not from this backend, or `filepath` is a folder for
                ONNX, or a file for a SavedModel, or a folder that holds other files than a SavedModel's.
            ImportError: if a package that Keras exports with is absent.

        Example:
        ```python
        ServingModel(classifier).export("classifier.onnx", batch_size=1)
        ```
        """
        if batch_size is not None:
            batch_size = check_integer("batch_size", batch_size)
        named_onnx = Path(filepath).suffix.lower() == ".onnx"
        if format is None:
            format = "onnx" if named_onnx else "tf_saved_model"
        if named_onnx and format == "tf_saved_model":
            raise ValueError(
                "`filepath` must be a folder for a SavedModel; for ONNX pass format='onnx'. "
                f"Received: {os.fspath(filepath)!r} with format='tf_saved_model'"
            )
        kind, there = ("file", "folder") if format == "onnx" else ("folder", "file")
        of_the_other_kind = Path(filepath).is_dir() if there == "folder" else Path(filepath).is_file()
        if of_the_other_kind:
            raise ValueError(
                f"`filepath` must be a {kind}, or a new name for one, with format={format!r}. "
                f"Received: {os.fspath(filepath)!r}, a {there}"
            )
        path = local_path(filepath)
        if format == "tf_saved_model" and path is not None and path.is_dir():
            others = sorted({file.name for file in path.iterdir()} - _FILES_OF_FOLDER)
            if others:
                raise ValueError(
                    "`filepath` must be a new or empty folder, or one with a SavedModel alone, which is replaced. "
                    f"Received: {os.fspath(filepath)!r}, which holds {others[0]!r}"
                )
        self._check_format(format, batch_size)
        signature = [keras.InputSpec(shape=(batch_size, *self.image_shape), dtype="uint8", name="images")]
        write = functools.partial(super().export, format=format, verbose=verbose, input_signature=signature, **kwargs)
        if path is None:
            write(os.fspath(filepath))
        elif format == "tf_saved_model":
            # No folder takes the place of a link to one.
            with whole_folder(path.resolve(), replaces=True) as partial:
                write(str(partial))
        else:
            with whole_file(path) as partial:
                write(str(partial))
                weights = partial.with_name(f"{partial.name}.data")
                if weights.exists():
                    # Before the graph, which has their name in it.
                    with whole_file(path.with_name(weights.name)) as partial_weights:
                        os.replace(weights, partial_weights)

    def _check_format(self, format: str, batch_size: int | None) -> None:
        backend = keras.backend.backend()
        if (format, backend) not in _NEEDED:
            raise ValueError(f"`format` must be 'tf_saved_model' or 'onnx'. Received: format={format!r}")
        if format == "onnx":
            if self.backbone_dtype != "float32":
                raise ValueError(
                    f"`format` must be 'tf_saved_model' for a model that computes in half precision. "
                    f"Received: format='onnx' with {self.backbone_dtype}"
                )
            if self.masked and backend != "torch":
                raise ValueError(
                    "`format` must be 'tf_saved_model' for a BERT model on this backend; export to ONNX with "
                    f"KERAS_BACKEND=torch. Received: format='onnx' on {backend}"
                )
            if backend == "jax" and int8_layers(self):
                raise ValueError(
                    "`format` must be 'tf_saved_model' for a quantised model on this backend; ONNX Runtime has no "
                    "product of integers as JAX' exporter writes it. Received: format='onnx' on jax"
                )
            if backend == "torch" and batch_size is None:
                raise ValueError("`batch_size` must be given for ONNX on torch. Received: batch_size=None")
        absent = [package for package in _NEEDED[format, backend] if importlib.util.find_spec(package) is None]
        if absent:
            elsewhere = (
                ", or export with KERAS_BACKEND=tensorflow or jax, which open the same file"
                if (format, backend) == ("tf_saved_model", "torch")
                else ""
            )
            raise ImportError(
                f"Exporting as {format} on {backend} needs {' and '.join(absent)}: pip install {' '.join(absent)}"
                f"{elsewhere}"
            )
