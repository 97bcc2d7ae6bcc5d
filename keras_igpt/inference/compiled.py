"""Running a model over rows of any number with one compiled batch size."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Self

import keras
import numpy as np
import numpy.typing as npt

from keras_igpt.backend.processes import batch_divisor, check_one_process
from keras_igpt.backend.untracked import Untracked
from keras_igpt.backend.whole_steps import WholeStepModel
from keras_igpt.data.batches import EvaluationBatches
from keras_igpt.data.token_source import PictureExamples
from keras_igpt.inference.language_model import LanguageModel
from keras_igpt.palette.color_palette import ColorPalette
from keras_igpt.support.checks import check_integer

Arrays = Mapping[str, npt.NDArray[Any]]

# Outputs that are computed before they go to their place: what is in memory twice.
_SEGMENT_BYTES = 1 << 27


class Program(WholeStepModel):
    """A function of a language model as a model of its own, so that `predict` compiles it on each backend.

    Everything a caller may change from one call to the next is an input: nothing but a new shape compiles anew.

    Args:
        language_model: the model; its weights are read, never changed.
    """

    def __init__(self, language_model: LanguageModel) -> None:
        # float32, or Keras would round uniform numbers to the compute dtype on their way in.
        super().__init__(dtype="float32", name=type(self).__name__.lower())
        self.language_model = language_model
        self.built = True

    @classmethod
    def of(cls, language_model: LanguageModel) -> Self:
        """Returns a model's program, which is made on first use and kept with the model; quantising it drops it."""
        attribute = f"_{cls.__name__.lower()}"
        kept: Untracked[Self] | None = getattr(language_model, attribute, None)
        if kept is None:
            kept = Untracked(cls(language_model))
            setattr(language_model, attribute, kept)
        return kept.value


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


def computed_rows(
    model: keras.Model,
    arrays: Arrays,
    batch_size: int,
    row_bytes: int | None = None,
    examples: PictureExamples | None = None,
    palette: ColorPalette | None = None,
    purpose: str = "predict",
) -> Iterator[tuple[slice, npt.NDArray[Any]]]:
    """Runs a model over rows, some at a time, all in batches of one size.

    A shorter last batch would be traced and compiled anew on JAX and TensorFlow. The last row fills it up, and what
    comes of the filling is dropped.

    Args:
        model: a model with one output `(B, ...)`, which takes a dictionary.
        arrays: its inputs `(B, ...)` by name, those that are in memory.
        batch_size: int. Rows a batch, at most.
        row_bytes: int. What the output of a row takes; some batches are computed at once, as many as memory has room
            for. None computes one batch at a time, where each takes long.
        examples: pictures or tokens, read and encoded as they are needed: `"token_ids"` of the inputs.
        palette: `ColorPalette` to encode them with; may be None for tokens.
        purpose: str. The function that is called.

    Returns:
        Iterator of rows and their outputs, in order.

    Raises:
        ValueError: if `batch_size` is not positive.
    """
    batch_size = check_integer("batch_size", batch_size)
    check_one_process(purpose)
    rows = len(next(iter(arrays.values()))) if examples is None else len(examples)
    # Equal shares for all devices, if need be by more filling.
    divisor = batch_divisor()
    batch_size = -(-min(batch_size, rows) // divisor) * divisor
    together = batch_size * (1 if row_bytes is None else max(1, _SEGMENT_BYTES // (row_bytes * batch_size)))

    def compute(part: slice) -> Any:
        inputs = {name: array[part] for name, array in arrays.items()}
        if examples is not None:
            batches = EvaluationBatches(examples.take(range(part.start, part.stop)), palette, batch_size)
            return model.predict(_BatchesWithArrays(batches, inputs), verbose=0)
        filling = -(part.stop - part.start) % batch_size
        whole = {name: _filled(array, filling) for name, array in inputs.items()}
        return model.predict(whole, batch_size=batch_size, verbose=0)

    def segments() -> Iterator[tuple[slice, npt.NDArray[Any]]]:
        for start in range(0, rows, together):
            part = slice(start, min(start + together, rows))
            yield part, np.asarray(compute(part))[: part.stop - part.start]

    return segments()


class _BatchesWithArrays(keras.utils.PyDataset):
    """Batches of tokens as a model's inputs, each with its rows of other inputs."""

    def __init__(self, batches: EvaluationBatches, arrays: Arrays) -> None:
        super().__init__(workers=batches.workers, max_queue_size=batches.max_queue_size)
        self._batches, self._arrays = batches, arrays

    def __len__(self) -> int:
        return len(self._batches)

    def __getitem__(self, index: int) -> tuple[dict[str, npt.NDArray[Any]]]:
        token_ids = self._batches[index][0]
        rows = slice(index * len(token_ids), (index + 1) * len(token_ids))
        parts = {name: array[rows] for name, array in self._arrays.items()}
        filled = {name: _filled(part, len(token_ids) - len(part)) for name, part in parts.items()}
        return ({"token_ids": token_ids, **filled},)


def _filled(array: npt.NDArray[Any], rows: int) -> npt.NDArray[Any]:
    """The array and its last row so many times more."""
    return np.pad(array, [(0, rows), *[(0, 0)] * (array.ndim - 1)], mode="edge")
