"""Several processes and devices: shards of batches, and tensors spread over processes."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import numpy.typing as npt
from keras import ops


def data_shard(distribution: keras.distribution.Distribution) -> tuple[int, int]:
    """Returns which part of each batch this process reads.

    Processes that share one copy of the model read the same part.

    Args:
        distribution: the result of `make_distribution`.

    Returns:
        `(part, count)`, the `shard` of `TrainingBatches` and `EvaluationBatches`.

    Example:
    ```python
    held_out = EvaluationBatches(data.validation, palette, batch_size=128, shard=data_shard(distribution))
    ```
    """
    return distribution.data_shard_id, min(distribution.num_processes, distribution.num_model_replicas)


def batch_divisor() -> int:
    """Returns the number that this process' batch sizes must be a multiple of.

    Returns:
        int. Copies of the model on this process; 1 without a `keras.distribution`.

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
    """Raises ValueError, naming the caller's argument, if rows do not divide among this process' copies of the model.

    On JAX, Keras would fail too late, after taking the weights out of the model.
    """
    divisor = batch_divisor()
    if rows % divisor:
        raise ValueError(
            f"`{name}` must be a multiple of {divisor}, the copies of the model that share a batch "
            f"(`EvaluationBatches` pads the last batch). Received: {rows} rows"
        )


def check_one_process(name: str) -> None:
    """Raises ValueError, naming the function, if the model is distributed over several processes."""
    distribution = keras.distribution.distribution()
    if distribution is not None and distribution.num_processes > 1:
        raise ValueError(
            f"`{name}` must run in one process: call `save_model`, then load the file in one process. "
            f"Received: {distribution.num_processes} processes"
        )


def process_index() -> int:
    """Returns the index of this JAX process; 0 on other backends."""
    if keras.backend.backend() != "jax":
        return 0
    import jax

    return int(jax.process_index())


def process_count() -> int:
    """Returns the number of JAX processes; 1 on other backends."""
    if keras.backend.backend() != "jax":
        return 1
    import jax

    return int(jax.process_count())


def keras_distributes() -> bool:
    """Whether `keras.distribution` works on this backend (JAX only)."""
    return bool(keras.backend.backend() == "jax")


def wait_for_processes(name: str) -> None:
    """Waits until all JAX processes reach the barrier of this name."""
    from jax.experimental import multihost_utils

    multihost_utils.sync_global_devices(name)


def host_array(variable: Any) -> npt.NDArray[Any]:
    """Copies a whole variable to the host, even if it is sharded.

    If shards are on other processes, all processes must call this, in the same order of variables.

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
    """Sums a value over the replicas of `tf.distribute`; returns it unchanged elsewhere.

    A step sees only its part of the batch there, but the whole batch on JAX.

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
    """Returns the number of `tf.distribute` replicas, by which Keras divides each one's loss; 1 elsewhere."""
    if keras.backend.backend() != "tensorflow":
        return 1
    import tensorflow as tf

    return int(tf.distribute.get_strategy().num_replicas_in_sync)


def divides_batches(model: keras.Model) -> bool:
    """Whether a model's batches are divided among devices."""
    replicas = getattr(getattr(model, "distribute_strategy", None), "num_replicas_in_sync", 1)
    return replicas > 1 or keras.distribution.distribution() is not None


def infers_shapes_of_replicas() -> bool:
    """Whether Keras is inferring shapes under `tf.distribute`, for which it averages token ids to non-integers."""
    if keras.backend.backend() != "tensorflow":
        return False
    import tensorflow as tf

    return bool(tf.inside_function() and tf.distribute.in_cross_replica_context())
