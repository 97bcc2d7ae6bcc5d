"""Running a model over arrays of any length with one compiled batch size."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import numpy.typing as npt

from keras_igpt.backend.processes import batch_divisor, check_one_process
from keras_igpt.support.checks import check_integer


def check_finite(outputs: npt.NDArray[Any], purpose: str) -> npt.NDArray[Any]:
    """Refuses what a model computed where its weights are no numbers any more.

    Args:
        outputs: float array `(B, ...)`.
        purpose: str. What they are for, such as `"score"`.

    Returns:
        The same array.

    Raises:
        ValueError: if there is NaN or infinity.
    """
    lost = int((~np.isfinite(outputs)).reshape(len(outputs), -1).any(axis=-1).sum())
    if lost:
        raise ValueError(
            f"The model must give finite logits to {purpose} with; its weights have diverged. "
            f"Received: NaN or infinity in {lost} of {len(outputs)} rows"
        )
    return outputs


def predict_whole_batches(model: keras.Model, inputs: dict[str, npt.NDArray[Any]], batch_size: int) -> npt.NDArray[Any]:
    """Calls `model.predict` so that every batch has the same size.

    A shorter last batch would be traced and compiled anew on JAX and TensorFlow. The last row fills it up, and what
    comes of the filling is dropped.

    Args:
        model: a model with one output `(B, ...)`.
        inputs: arrays `(B, ...)` of equal length by name.
        batch_size: int. Rows a batch, at most.

    Returns:
        Array `(B, ...)`.

    Raises:
        ValueError: if `batch_size` is not positive.
    """
    batch_size = check_integer("batch_size", batch_size)
    check_one_process("predict")
    rows = len(next(iter(inputs.values())))
    # Equal shares for all devices, if need be by more filling.
    divisor = batch_divisor()
    batch_size = -(-min(batch_size, rows) // divisor) * divisor
    padding = -rows % batch_size
    padded = {name: np.concatenate([array, np.repeat(array[-1:], padding, axis=0)]) for name, array in inputs.items()}
    return np.asarray(model.predict(padded, batch_size=batch_size, verbose=0)[:rows])
