"""Int8 weights: models that can be quantised, and are the same after saving and loading."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Self

import keras

from keras_igpt.backend.untracked import Untracked
from keras_igpt.backend.whole_saving import WholeSavedModel

Filters = str | Sequence[str] | Callable[[keras.layers.Layer], bool]


class QuantizableModel(WholeSavedModel):
    """A Keras model whose dense layers can be turned into int8, and whose file says which ones were."""

    def quantize(self, mode: str | None = None, config: Any = None, filters: Filters | None = None) -> None:
        """Turns the kernels of dense layers into int8, for inference; `keras.Model.quantize`.

        Keras keeps one scale for each output of a layer, rounds the layer's inputs to int8 row by row, and multiplies
        in integers. Embeddings and norms stay as they are. Int8 kernels cannot be trained, of which `fit` warns; a
        compiled model is compiled again, with a new optimizer. Quantise a model before making others of it, such as a
        `FeatureExtractor`.

        Args:
            mode: `"int8"`, the only mode of Keras that model files restore here.
            config: a `keras.quantizers.Int8QuantizationConfig`; one with `activation_quantizer=None` quantises the
                kernels but not the inputs, which costs less accuracy.
            filters: which layers, as in Keras: a regular expression of names, several, or a function of the layer;
                all dense layers by default.

        Raises:
            ValueError: if another mode is asked for, no layer matches, the model is quantised already, or it computes
                in float16, where Keras advises other policies; float32 and mixed_bfloat16 can be quantised.

        Example:
        ```python
        lm.quantize("int8")
        lm.save("small.keras")
        ```
        """
        if mode != "int8":
            raise ValueError(f"`mode` must be 'int8'. Received: mode={mode!r}")
        if int8_layers(self):
            raise ValueError(f"`mode` must be given once. Received: {mode!r} for a model quantised already")
        self._to_int8(_is_dense if filters is None else filters, config)
        if not int8_layers(self):
            raise ValueError(f"`filters` must match a dense layer. Received: filters={filters!r}")
        if self.compiled:
            # The optimizer has moments of the old kernels.
            self.compile_from_config(self.get_compile_config())

    def _to_int8(self, filters: Filters, config: Any) -> None:
        super().quantize("int8", config=config, filters=filters)
        # Whatever was compiled with the old weights, here or in a model inside, is rebuilt when it is needed.
        for part in self._flatten_layers():
            if isinstance(part, QuantizableModel):
                part.train_function = part.test_function = part.predict_function = None
                for name, value in list(vars(part).items()):
                    if isinstance(value, Untracked) and isinstance(value.value, keras.Model):
                        setattr(part, name, None)

    def get_config(self) -> dict[str, Any]:
        config: dict[str, Any] = super().get_config()
        layers = {
            layer.path: keras.saving.serialize_keras_object(layer.quantization_config) for layer in int8_layers(self)
        }
        return {**config, "int8_layers": layers} if layers else config

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> Self:
        config = dict(config)
        stored = config.pop("int8_layers", {})
        model: Self = super().from_config(config, custom_objects=custom_objects)
        # Models inside this one have quantised their own layers already.
        for path in set(stored) - {layer.path for layer in int8_layers(model)}:
            model._to_int8(_at(path), keras.saving.deserialize_keras_object(stored[path]))
        return model


def int8_layers(model: keras.Model) -> list[keras.layers.Layer]:
    """Returns the quantised layers of a model, at any depth; empty for a model as it was trained."""
    return [layer for layer in model._flatten_layers() if not layer._layers and layer.dtype_policy.quantization_mode]


def check_not_quantized(model: keras.Model, name: str) -> None:
    """Raises `ValueError` for a quantised model, which the caller calls `name`."""
    layers = int8_layers(model)
    if layers:
        raise ValueError(f"`{name}` must not be quantised. Received: {len(layers)} layers in int8")


def _at(path: str) -> Callable[[keras.layers.Layer], bool]:
    return lambda layer: bool(layer.path == path)


def _is_dense(layer: keras.layers.Layer) -> bool:
    return isinstance(layer, (keras.layers.Dense, keras.layers.EinsumDense))
