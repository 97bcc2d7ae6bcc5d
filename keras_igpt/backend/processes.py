"""Processes and devices: which part of a batch is this process', and what of a tensor lies elsewhere."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import numpy.typing as npt
from keras import ops


def data_shard(distribution: keras.distribution.Distribution) -> tuple[int, int]:
    """Says which part of each batch this process has to read.

    Processes that share one copy of the model read the same part.

    Args:
        distribution: what `make_distribution` returns.

    Returns:
        `(part, count)`, the `shard` of `TrainingBatches` and `EvaluationBatches`.

    Example:
    ```python
    held_out = EvaluationBatches(data.validation, palette, batch_size=128, shard=data_shard(distribution))
    ```
    """
    return distribution.data_shard_id, min(distribution.num_processes, distribution.num_model_replicas)


def batch_divisor() -> int:
    """Says what the rows of each batch of this process must be a multiple of.

    Returns:
        int. Copies of the model among which this process shares a batch out; 1 without a distribution of Keras.

    Example:
    ```python
    batch_size = -(-num_images // batch_divisor()) * batch_divisor()
    ```
    """
    distribution = keras.distribution.distribution()
    if distribution is None or not keras_distributes():
        return 1
    return int(distribution.num_model_replicas // data_shard(distribution)[1])


def check_rows(rows: int, name: str) -> None:
    """Checks that a number of rows can be shared out over this process' copies of the model.

    On JAX, Keras finds out when the weights have left the model already, and they are lost.

    Args:
        rows: int. Rows of a batch, or of arrays to be cut into batches.
        name: str. What the caller calls it.

    Raises:
        ValueError: if they cannot.
    """
    divisor = batch_divisor()
    if rows % divisor:
        raise ValueError(
            f"`{name}` must be a multiple of {divisor}, the copies of the model that a batch is shared out over "
            f"(`EvaluationBatches` fills the last batch up). Received: {rows} rows"
        )


def check_one_process(name: str) -> None:
    """Checks that what a model computes comes back to this process.

    Args:
        name: str. The function that is called.

    Raises:
        ValueError: if several processes compute together.
    """
    distribution = keras.distribution.distribution()
    if distribution is not None and distribution.num_processes > 1:
        raise ValueError(
            f"`{name}` must run in one process: `save_model`, then open the file in one. "
            f"Received: {distribution.num_processes} processes"
        )


def process_index() -> int:
    """The number of this process, from 0, where JAX runs on several; 0 elsewhere."""
    if keras.backend.backend() != "jax":
        return 0
    import jax

    return int(jax.process_index())


def process_count() -> int:
    """How many processes JAX runs on; 1 on another backend."""
    if keras.backend.backend() != "jax":
        return 1
    import jax

    return int(jax.process_count())


def keras_distributes() -> bool:
    """Whether Keras shares models and batches out over devices: on JAX alone."""
    return bool(keras.backend.backend() == "jax")


def wait_for_processes(name: str) -> None:
    """Waits until all of JAX' processes have come here.

    Args:
        name: str. Of this place.
    """
    from jax.experimental import multihost_utils

    multihost_utils.sync_global_devices(name)


def host_array(variable: Any) -> npt.NDArray[Any]:
    """Brings a variable to the host, whole, wherever its parts are.

    Where parts lie with other processes alone, all processes must call this, in the same order of variables.

    Args:
        variable: a Keras variable or tensor of any shape.

    Returns:
        Array of the same shape and dtype.

    Example:
    ```python
    weights = [host_array(variable) for variable in model.variables]
    ```
    """
    tensor = ops.convert_to_tensor(variable)
    if keras.backend.backend() == "jax" and not (tensor.is_fully_addressable or tensor.is_fully_replicated):
        from jax.experimental import multihost_utils

        return np.asarray(multihost_utils.process_allgather(tensor, tiled=True))
    return np.asarray(ops.convert_to_numpy(tensor))


def sum_over_replicas(value: Any) -> Any:
    """Adds a number of each replica up, inside a step under TensorFlow's `tf.distribute`; returns it elsewhere.

    A step sees its own part of the batch there. On JAX it sees the whole batch, wherever that lies.

    Args:
        value: scalar tensor.

    Returns:
        Scalar tensor, the same on every replica.
    """
    if keras.backend.backend() != "tensorflow":
        return value
    import tensorflow as tf

    context = tf.distribute.get_replica_context()
    if context is None or context.num_replicas_in_sync == 1:
        return value
    return context.all_reduce(tf.distribute.ReduceOp.SUM, value)


def replica_count() -> int:
    """How many replicas share a step's batch out under TensorFlow's `tf.distribute`; 1 elsewhere.

    Keras divides the loss of each by it.
    """
    if keras.backend.backend() != "tensorflow":
        return 1
    import tensorflow as tf

    return int(tf.distribute.get_strategy().num_replicas_in_sync)


def infers_shapes_of_replicas() -> bool:
    """Whether Keras is tracing a model for its shapes, under TensorFlow's `tf.distribute`.

    It does so with the mean of the replicas' batches, whose token ids are no integers.
    """
    if keras.backend.backend() != "tensorflow":
        return False
    import tensorflow as tf

    return bool(tf.inside_function() and tf.distribute.in_cross_replica_context())
