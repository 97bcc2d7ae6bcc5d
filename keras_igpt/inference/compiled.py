"""Running a model over any number of rows with one compiled batch size."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Self

import keras
import numpy as np
import numpy.typing as npt

from keras_igpt.backend.processes import batch_divisor, check_one_process, divides_batches
from keras_igpt.backend.untracked import Untracked
from keras_igpt.backend.whole_steps import WholeStepModel
from keras_igpt.data.batches import EvaluationBatches
from keras_igpt.data.token_source import PictureExamples
from keras_igpt.inference.language_model import LanguageModel
from keras_igpt.palette.color_palette import ColorPalette
from keras_igpt.support.checks import check_integer
from keras_igpt.support.progress import Progress

Arrays = Mapping[str, npt.NDArray[Any]]

# Size of the outputs that are computed before they are yielded.
_SEGMENT_BYTES = 1 << 27


class Program(WholeStepModel):
    """A function of a language model wrapped as a Keras model, so that `predict` compiles it on each backend.

    All settings are inputs, so only new shapes are recompiled. The language model's weights are not changed.
    """

    def __init__(self, language_model: LanguageModel) -> None:
        # float32, since Keras casts inputs such as noise to the compute dtype.
        super().__init__(dtype="float32", name=type(self).__name__.lower())
        self.language_model = language_model
        self.built = True

    @classmethod
    def of(cls, language_model: LanguageModel, *options: int) -> Self:
        """Returns a model's program, cached on the model; `options` go to the constructor."""
        attribute = "_".join(["", cls.__name__.lower(), *map(str, options)])
        kept: Untracked[Self] | None = getattr(language_model, attribute, None)
        if kept is None:
            kept = Untracked(cls(language_model, *options))
            setattr(language_model, attribute, kept)
        return kept.value


def check_finite(outputs: npt.NDArray[Any], purpose: str) -> npt.NDArray[Any]:
    """Returns outputs `(B, ...)`; raises ValueError, naming the purpose, if any is NaN or infinite."""
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
    told_as: str | None = None,
) -> Iterator[tuple[slice, npt.NDArray[Any]]]:
    """Runs a model over rows in batches of equal size.

    The last batch is padded, since a shorter one would be recompiled on JAX and TensorFlow.

    Args:
        model: a model with dictionary inputs and one output `(B, ...)`.
        arrays: inputs `(B, ...)` by name.
        batch_size: int. Maximum number of rows per batch.
        row_bytes: int. Output size of a row, to compute several batches at once. None computes one batch at a time.
        examples: pictures or tokens, read and encoded on demand as the input `"token_ids"`.
        palette: `ColorPalette` to encode them with; may be None for tokens.
        purpose: str. The calling function's name, for errors.
        told_as: str. What the progress is called, where one call is several passes; `purpose` by default.

    Returns:
        Iterator over slices of rows and their outputs, in order.

    Raises:
        ValueError: if `batch_size` is not positive.
    """
    batch_size = check_integer("batch_size", batch_size)
    check_one_process(purpose)
    rows = len(next(iter(arrays.values()))) if examples is None else len(examples)
    # A multiple of the number of devices.
    divisor = batch_divisor()
    batch_size = -(-min(batch_size, rows) // divisor) * divisor
    progress = Progress(purpose if told_as is None else told_as, rows, "pictures")
    together = batch_size * (1 if row_bytes is None else max(1, _SEGMENT_BYTES // (row_bytes * batch_size)))

    def compute(part: slice) -> Any:
        inputs = {name: array[part] for name, array in arrays.items()}
        if examples is not None:
            batches = EvaluationBatches(examples.take(range(part.start, part.stop)), palette, batch_size)
            telling = _Telling(progress, part.start, batch_size)
            return model.predict(_BatchesWithArrays(batches, inputs), verbose=0, callbacks=[telling])
        filling = -(part.stop - part.start) % batch_size
        whole = {name: _filled(array, filling) for name, array in inputs.items()}
        if together == batch_size and not divides_batches(model):
            # On TensorFlow, the data pipeline of `predict` takes longer than a small model.
            return model.predict_on_batch(whole)
        return model.predict(whole, batch_size=batch_size, verbose=0)

    def segments() -> Iterator[tuple[slice, npt.NDArray[Any]]]:
        for start in range(0, rows, together):
            part = slice(start, min(start + together, rows))
            yield part, np.asarray(compute(part))[: part.stop - part.start]

    return segments()


class _Telling(keras.callbacks.Callback):
    """Tells of each batch that is done."""

    def __init__(self, progress: Progress, start: int, batch_size: int) -> None:
        super().__init__()
        self._progress, self._start, self._batch_size = progress, start, batch_size

    def on_predict_batch_end(self, batch: int, logs: Any = None) -> None:
        self._progress.update(self._start + (batch + 1) * self._batch_size)


class _BatchesWithArrays(keras.utils.PyDataset):
    """Batches of tokens, joined with the matching rows of other inputs."""

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
    """Repeats an array's last row `rows` times more."""
    return np.pad(array, [(0, rows), *[(0, 0)] * (array.ndim - 1)], mode="edge")
