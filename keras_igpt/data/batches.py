"""Batches for `fit` and `evaluate`, each a function of seed and step."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, Self

import keras
import numpy as np
import numpy.typing as npt

from keras_igpt.data.epoch_orders import EpochOrders
from keras_igpt.data.examples import Labels
from keras_igpt.data.token_source import Augmentation, PictureExamples, TokenSource
from keras_igpt.palette.color_palette import ColorPalette, TokenIds
from keras_igpt.support.checks import check_integer
from keras_igpt.support.randomness import check_seed


class EndlessBatches(keras.utils.PyDataset):
    """Endless batches, each a function of seed and step, that can start at any step.

    Args as in `TrainingBatches`; `thread_options` are arguments of `keras.utils.PyDataset`.
    """

    def __init__(
        self, batch_size: int, seed: int, shard: tuple[int, int], first_step: int, thread_options: dict[str, int]
    ) -> None:
        super().__init__(**thread_options)
        self._batch_size, self._part = batch_size, part_of_batch(batch_size, shard)
        self._seed = check_seed(seed)
        self._first_step = check_integer("first_step", first_step, 0)

    @property
    def num_batches(self) -> None:
        """None, since the batches are endless."""
        return None

    @property
    def first_step(self) -> int:
        """The step whose batch is item 0."""
        return self._first_step

    def starting_at(self, step: int) -> Self:
        """Returns the same batches, starting at item `step`."""
        later = copy.copy(self)
        later._first_step += check_integer("step", step, 0)
        return later

    def _step_of(self, index: int) -> int:
        if index < 0:
            raise IndexError(f"`index` must not be negative. Received: index={index}")
        return self._first_step + index


class TrainingBatches(EndlessBatches):
    """Endless shuffled batches of palette tokens and classes: `batches[k]` is the batch of step k.

    Order and crops are hashes of (seed, epoch, row), so the batch of any step is computed directly, and is the same
    after a restart, on any backend and with any number of workers. Each epoch has a new order and drops the incomplete
    last batch. This package's models read `steps_per_epoch` from here; pass it to the `fit` of other models.

    Items are `(token_ids, labels)`, or `(token_ids,)` if the examples have no labels. Pre-training ignores the labels.

    Args:
        examples: `LabeledImages`, `LabeledTokens`, `ImageFiles`, `UnlabeledImages` or `UnlabeledTokens`. Pictures in
            memory are encoded once.
        palette: `ColorPalette`; may be None for tokens.
        batch_size: int. Examples per step, over all shards.
        seed: int. Seed of order and crops.
        augmentation: `PaddedCrop`, `RandomResizedCrop` (of files only) or None.
        shard: pair of int `(part, count)`, for several processes: reads one of `count` equal, disjoint parts of each
            batch.
        first_step: int. Item 0 is the batch of this step; earlier ones are not read.
        workers: int. Threads; by default 1 for data in memory and `ImageFiles.threads` for files.

    Raises:
        ValueError: if the arguments do not fit together.

    Example:
    ```python
    batches = TrainingBatches(data.train, palette, batch_size=128, seed=0, augmentation=PaddedCrop())
    classifier.fit(batches, epochs=10)
    ```
    """

    def __init__(
        self,
        examples: PictureExamples,
        palette: ColorPalette | None,
        batch_size: int,
        seed: int = 0,
        augmentation: Augmentation | None = None,
        shard: tuple[int, int] = (0, 1),
        first_step: int = 0,
        workers: int | None = None,
    ) -> None:
        self._source = TokenSource(examples, palette, augmentation)
        if check_integer("batch_size", batch_size) > len(self._source):
            raise ValueError(
                f"`batch_size` must be at most the number of examples, {len(self._source)}. "
                f"Received: batch_size={batch_size}"
            )
        super().__init__(int(batch_size), seed, shard, first_step, self._source.thread_options(workers))
        self._augmentation = augmentation
        self._orders = EpochOrders(len(self._source), self._seed, in_memory=self._source.labeled)

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches in one pass over the examples."""
        return len(self._source) // self._batch_size

    @property
    def examples(self) -> PictureExamples:
        """The examples; pictures in memory are replaced by their tokens."""
        return self._source.examples

    @property
    def palette(self) -> ColorPalette | None:
        """The palette of the tokens; None if it is not known."""
        return self._source.palette

    @property
    def known_labels(self) -> Labels | None:
        """Labels of all examples if known without reading files, else None."""
        return self._source.known_labels

    @property
    def description(self) -> dict[str, Any]:
        """JSON values that determine each step's batch, except for the pictures and the first step."""
        return {
            "examples": len(self._source),
            "batch_size": self._batch_size,
            "seed": self._seed,
            "augmentation": repr(self._augmentation),
            # Earlier versions could draw masks here; checkpoints of those do not match.
            "mask_rate": None,
        }

    @property
    def fingerprint(self) -> str:
        """A digest of the examples, and of the palette for pictures in files; see `ImageFiles.digest`."""
        return self._source.fingerprint()

    def rows(self, index: int) -> tuple[int, npt.NDArray[np.int64]]:
        """Returns the epoch and the example rows of item `index`."""
        epoch, batch = divmod(self._step_of(index), self.steps_per_epoch)
        places = np.arange(batch * self._batch_size, (batch + 1) * self._batch_size)[self._part]
        return epoch, self._orders.rows(epoch, places)

    def __getitem__(self, index: int) -> tuple[TokenIds] | tuple[TokenIds, npt.NDArray[np.int32]]:
        epoch, rows = self.rows(index)
        token_ids, labels = self._source.read(rows, self._seed, epoch)
        return (token_ids,) if labels is None else (token_ids, labels.astype(np.int32))


class EvaluationBatches(keras.utils.PyDataset):
    """One ordered pass of equal batches, for `evaluate`, `predict` and validation.

    The last batch is padded with rows of weight 0, so every example counts once and nothing is recompiled for a shorter
    batch. Items are `(token_ids, labels, weights)`; without labels, the tokens are the targets. `predict` returns the
    padding too; `len(batches.examples)` is the number of real rows.

    Args:
        examples: as in `TrainingBatches`; pictures in files are cropped to their centre squares.
        palette: `ColorPalette`; may be None for tokens.
        batch_size: int. Examples per step, over all shards.
        shard: pair of int. As in `TrainingBatches`.
        workers: int. As in `TrainingBatches`.

    Raises:
        ValueError: if the arguments do not fit together.

    Example:
    ```python
    lm.fit(batches, epochs=10, validation_data=EvaluationBatches(data.validation, palette, batch_size=128))
    ```
    """

    def __init__(
        self,
        examples: PictureExamples,
        palette: ColorPalette | None,
        batch_size: int,
        shard: tuple[int, int] = (0, 1),
        workers: int | None = None,
    ) -> None:
        self._source = TokenSource(examples, palette)
        self._batch_size = check_integer("batch_size", batch_size)
        self._part = part_of_batch(self._batch_size, shard)
        self._filled = True
        super().__init__(**self._source.thread_options(workers))

    @property
    def examples(self) -> PictureExamples:
        """The examples; pictures in memory are replaced by their tokens."""
        return self._source.examples

    @property
    def palette(self) -> ColorPalette | None:
        """The palette of the tokens; None if it is not known."""
        return self._source.palette

    @property
    def known_labels(self) -> Labels | None:
        """Labels of all examples if known without reading files, else None."""
        return self._source.known_labels

    def without_filling(self) -> Self:
        """Returns the same batches with a shorter last one, for which the model is compiled again.

        Raises:
            ValueError: if `shard` is one of several parts.
        """
        if self._part != slice(0, self._batch_size):
            raise ValueError("`shard` must be (0, 1) for batches without padding. Received: one part of several")
        shorter = copy.copy(self)
        shorter._filled = False
        return shorter

    def __len__(self) -> int:
        return -(-len(self._source) // self._batch_size)

    def __getitem__(self, index: int) -> tuple[TokenIds, npt.NDArray[np.int32], npt.NDArray[np.float32]]:
        if not 0 <= index < len(self):
            raise IndexError(f"`index` must be in 0…{len(self) - 1}. Received: index={index}")
        rows = np.arange(index * self._batch_size, (index + 1) * self._batch_size)[self._part]
        if not self._filled:
            rows = rows[rows < len(self._source)]
        real = rows < len(self._source)
        token_ids, labels = self._source.read(rows[real]) if real.any() else self._source.read(np.array([0]))
        filling = [(0, len(rows) - len(token_ids))]
        token_ids = np.pad(token_ids, [*filling, (0, 0)], mode="edge")
        # Keras ignores weights without targets, and on TensorFlow rejects None in a batch.
        targets = token_ids if labels is None else np.pad(labels.astype(np.int32), filling, mode="edge")
        return token_ids, targets, real.astype(np.float32)


def part_of_batch(batch_size: int, shard: tuple[int, int]) -> slice:
    """Returns the slice of a batch that belongs to a shard; raises ValueError for an invalid shard."""
    if not isinstance(shard, Sequence) or isinstance(shard, str) or len(shard) != 2:
        raise ValueError(f"`shard` must be a pair of integers, (part, count). Received: shard={shard!r}")
    count = check_integer("shard", shard[1])
    part = check_integer("shard", shard[0], 0, count - 1)
    if batch_size % count:
        raise ValueError(
            f"`batch_size` must be a positive multiple of the {count} shard(s). Received: batch_size={batch_size}"
        )
    size = batch_size // count
    return slice(part * size, (part + 1) * size)
