"""Training over several devices and processes: where weights and batches go.

Keras distributes on JAX alone. On TensorFlow, build the models in the scope of a `tf.distribute` strategy; on PyTorch
they run on one device.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import keras

from keras_igpt.backend.processes import host_array, keras_distributes, process_count, process_index, wait_for_processes
from keras_igpt.model.architecture import Architecture
from keras_igpt.model.weights_by_role import PATHS
from keras_igpt.support.checks import check_integer

# The axes of the weights that devices share. All others, 0.2% of iGPT-L at 32x32 pixels, are whole everywhere: they
# need no messages, while a divided table of embeddings would send activations, (B, T, D), in every step.
_LAYOUTS = {
    # A head's queries, keys, values and attention stay on one device; only the sum over heads crosses devices.
    "query_key_value": (None, None, "model", None),
    "query_key_value_bias": (None, "model", None),
    "output_projection": ("model", None, None),
    # Likewise a hidden unit of the feed-forward network: one sum a block.
    "expansion": (None, "model"),
    "expansion_bias": ("model",),
    "contraction": ("model", None),
    # Along the palette, so that the logits, (B, T, V) in float32, are shared out too; the loss sums over them.
    "pixel_head": (None, "model"),
}


def layout_map(
    device_mesh: keras.distribution.DeviceMesh, architecture: Architecture | Mapping[str, Any]
) -> keras.distribution.LayoutMap:
    """Makes the layouts of this package's models on a mesh of devices.

    Attention heads, the feed-forward network's width 4D and the pixel head's colours are shared out along the axis
    `"model"`; all else is whole on every device. The optimizer's moments lie where their weights do.

    Args:
        device_mesh: `keras.distribution.DeviceMesh` with the axes `"batch"` and `"model"`.
        architecture: `Architecture` of the models, which are built after this, or constructor arguments of
            `ImageGPTBackbone`, such as `get_preset("igpt_large").architecture`.

    Returns:
        A `keras.distribution.LayoutMap`, for `keras.distribution.ModelParallel`.

    Raises:
        ValueError: if an axis is missing, or does not divide the heads or the palette.

    Example:
    ```python
    mesh = keras.distribution.DeviceMesh((2, 4), ("batch", "model"))
    layouts = layout_map(mesh, get_preset("igpt_large").architecture)
    keras.distribution.set_distribution(keras.distribution.ModelParallel(layout_map=layouts, batch_dim_name="batch"))
    ```
    """
    axes = dict(zip(device_mesh.axis_names, device_mesh.shape, strict=True))
    if set(axes) != {"batch", "model"}:
        raise ValueError(f"`device_mesh` must have the axes 'batch' and 'model'. Received: {device_mesh.axis_names}")
    sizes = architecture.sizes if isinstance(architecture, Architecture) else architecture
    # Where the heads divide, so do D and 4D.
    for name in ("num_heads", "vocabulary_size"):
        if sizes[name] % axes["model"]:
            raise ValueError(
                f"`device_mesh` must have a 'model' axis that divides {name}={sizes[name]}. "
                f"Received: {axes['model']} devices along it"
            )
    layouts = keras.distribution.LayoutMap(device_mesh)
    for role, layout in _LAYOUTS.items():
        layouts[f".*/{PATHS[role]}"] = layout
    return layouts


def make_distribution(
    architecture: Architecture | Mapping[str, Any], model_devices: int = 1
) -> keras.distribution.Distribution:
    """Makes a distribution over all devices of all processes, for batches of `TrainingBatches`.

    Set it before models and optimizers are made.

    Args:
        architecture: as in `layout_map`.
        model_devices: int. Devices that share one copy of the model. The batch is shared out over the copies.

    Returns:
        A `keras.distribution.DataParallel` or `keras.distribution.ModelParallel`.

    Raises:
        ValueError: if the backend is not JAX, or the devices cannot be divided like this.

    Example:
    ```python
    keras.distribution.initialize()   # only with several processes
    distribution = make_distribution(get_preset("igpt_large").architecture, model_devices=4)
    keras.distribution.set_distribution(distribution)
    batches = TrainingBatches(data.train, palette, batch_size=128, shard=data_shard(distribution))
    ```
    """
    if not keras_distributes():
        raise ValueError(
            "`KERAS_BACKEND` must be 'jax': Keras ignores distributions on TensorFlow (use `tf.distribute`) and has "
            f"none on PyTorch. Received: {keras.backend.backend()!r}"
        )
    devices = keras.distribution.list_devices()
    model_devices = check_integer("model_devices", model_devices)
    if len(devices) % model_devices:
        raise ValueError(
            f"`model_devices` must divide the {len(devices)} device(s). Received: model_devices={model_devices}"
        )
    # Each process reads its shard of the batches itself; Keras could only divide a `tf.data.Dataset`.
    if model_devices == 1:
        return keras.distribution.DataParallel(devices=devices, auto_shard_dataset=False)
    mesh = keras.distribution.DeviceMesh((len(devices) // model_devices, model_devices), ("batch", "model"), devices)
    return keras.distribution.ModelParallel(
        layout_map=layout_map(mesh, architecture), batch_dim_name="batch", auto_shard_dataset=False
    )


def save_model(model: keras.Model, path: str | Path) -> None:
    """Writes a `.keras` file, whole or not at all, from the first of several processes.

    The file opens under any distribution or none. All processes must call this; when it returns, the file is there.
    Weights and optimizer state must fit into the memory of the first host.

    Args:
        model: a model of this package, compiled or not.
        path: file name ending in `.keras`, which the first process can write.

    Example:
    ```python
    save_model(lm, "igpt.keras")
    ```
    """
    if process_count() > 1:
        _save_from_first_process(model, Path(path))
    else:
        model.save(Path(path))


def _save_from_first_process(model: keras.Model, path: Path) -> None:
    with_optimizer = model.optimizer is not None and model.optimizer.built

    def state(owner: keras.Model) -> list[keras.Variable]:
        return [*owner.variables, *(owner.optimizer.variables if with_optimizer else ())]

    first = process_index() == 0
    arrays = []
    for variable in state(model):
        array = host_array(variable)
        if first:
            arrays.append(array)
    if first:
        distribution, random_state = keras.distribution.distribution(), random.getstate()
        keras.distribution.set_distribution(None)
        try:
            # On the host: one device may not hold the whole.
            with keras.device("cpu:0"):
                copy = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(model))
                for variable, array in zip(state(copy), arrays, strict=True):
                    variable.assign(array)
                copy.save(path)
        finally:
            keras.distribution.set_distribution(distribution)
            # The copy drew seeds that the other processes did not draw.
            random.setstate(random_state)
    wait_for_processes("save_model")
