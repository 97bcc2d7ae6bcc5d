"""Batches for `fit` and `evaluate`, each a function of seed and step alone."""

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
from keras_igpt.support.checks import check_integer, check_number
from keras_igpt.support.randomness import check_seed, uniforms


class EndlessBatches(keras.utils.PyDataset):
    """Batches without an end, each a function of seed and step, which can begin at any step.

    Args:
        batch_size: int. As in `TrainingBatches`.
        seed: int. As in `TrainingBatches`.
        shard: pair of int. As in `TrainingBatches`.
        first_step: int. As in `TrainingBatches`.
        thread_options: what `keras.utils.PyDataset` takes.
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
        """None: the batches have no end."""
        return None

    @property
    def first_step(self) -> int:
        """The step whose batch is item 0."""
        return self._first_step

    def starting_at(self, step: int) -> Self:
        """Returns the same batches from a step on: its item 0 is item `step` here."""
        later = copy.copy(self)
        later._first_step += check_integer("step", step, 0)
        return later

    def _step_of(self, index: int) -> int:
        if index < 0:
            raise IndexError(f"`index` must not be negative. Received: index={index}")
        return self._first_step + index


class TrainingBatches(EndlessBatches):
    """Endless shuffled batches of palette tokens and classes: `batches[k]` is the batch of step k.

    Order, crops and masks are hashes of (seed, epoch, row), so the batch of any step is made without those before it,
    and is the same after a restart, on another backend and with any number of workers. Each epoch is a new order, and
    its ragged rest (fewer than `batch_size` rows, others each time) is left out. Give `fit` the number of
    steps, `steps_per_epoch=batches.steps_per_epoch`; the models of this package take it from here themselves.

    Items are `(token_ids, labels)`, or `({"token_ids", "position_mask"}, labels)` with a mask rate; without `labels`
    where the examples have none. Pre-training ignores the labels.

    Args:
        examples: `LabeledImages`, `LabeledTokens`, `ImageFiles`, `UnlabeledImages` or `UnlabeledTokens`. Pictures in
            memory are encoded once.
        palette: `ColorPalette`; may be None for tokens.
        batch_size: int. Examples of a step, those of all shards together.
        seed: int. Of order, crops and masks.
        augmentation: `PaddedCrop`, `RandomResizedCrop` (of files only) or None.
        mask_rate: float in (0, 1). Share of positions hidden for the BERT objective; None leaves masks to the model,
            whose own are functions of its seed and step.
        shard: pair of int. Which part of how many, for several processes: part p of each batch of `batch_size`. Shards
            are disjoint, equal in size and together the batches of one process.
        first_step: int. Item 0 is the batch of this step, to go on from there; nothing before it is read.
        workers: int. Threads; by default 1, that of `fit` itself, for what is in memory, and `ImageFiles.threads` for
            what is decoded.

    Raises:
        ValueError: if an argument does not fit the others.

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
        mask_rate: float | None = None,
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
        if mask_rate is not None:
            mask_rate = check_number("mask_rate", mask_rate, 0, 1, above=True, below=True)
        # Keras fills the queue anew each epoch and keeps what is left: more than an epoch's would pile up.
        threads = self._source.thread_options(workers, len(self._source) // batch_size - 1)
        super().__init__(int(batch_size), seed, shard, first_step, threads)
        self._augmentation, self._mask_rate = augmentation, mask_rate
        self._orders = EpochOrders(len(self._source), self._seed, in_memory=self._source.labeled)

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches in one pass through the examples."""
        return len(self._source) // self._batch_size

    @property
    def examples(self) -> PictureExamples:
        """What the batches are made of; pictures in memory as the tokens they became."""
        return self._source.examples

    @property
    def known_labels(self) -> Labels | None:
        """Classes of all examples where no file has to be read for them, else None."""
        return self._source.known_labels

    @property
    def description(self) -> dict[str, Any]:
        """What decides which batch a step sees, but for the pictures and the first step; of types that JSON knows."""
        return {
            "examples": len(self._source),
            "batch_size": self._batch_size,
            "seed": self._seed,
            "augmentation": repr(self._augmentation),
            "mask_rate": self._mask_rate,
        }

    @property
    def fingerprint(self) -> str:
        """A digest that changes when the examples do, or the palette of pictures in files; see `ImageFiles.digest`."""
        return self._source.fingerprint()

    def rows(self, index: int) -> tuple[int, npt.NDArray[np.int64]]:
        """Returns the epoch and the rows of the examples that item `index` is made of."""
        epoch, batch = divmod(self._step_of(index), self.steps_per_epoch)
        places = np.arange(batch * self._batch_size, (batch + 1) * self._batch_size)[self._part]
        return epoch, self._orders.rows(epoch, places)

    def __getitem__(self, index: int) -> tuple[Any, ...]:
        epoch, rows = self.rows(index)
        token_ids, labels = self._source.read(rows, self._seed, epoch)
        inputs: Any = token_ids
        if self._mask_rate is not None:
            draws = uniforms("position mask", self._seed, epoch, rows[:, None], np.arange(token_ids.shape[1]))
            inputs = {"token_ids": token_ids, "position_mask": draws < self._mask_rate}
        return (inputs,) if labels is None else (inputs, labels.astype(np.int32))


class EvaluationBatches(keras.utils.PyDataset):
    """One pass of equal batches in order, for `evaluate`, `predict` and validation.

    The last batch is filled up with rows of weight 0, so that none is lost, none counts twice and no batch of another
    shape makes the model compile again. Items are `(token_ids, labels, weights)`; where there are no labels the tokens
    are in their place, which pre-training predicts. `predict` gives the filling too: `len(batches.examples)` says how
    many rows are real.

    Args:
        examples: as in `TrainingBatches`; pictures in files are seen at their centre squares.
        palette: `ColorPalette`; may be None for tokens.
        batch_size: int. Examples of a step, those of all shards together.
        shard: pair of int. As in `TrainingBatches`.
        workers: int. As in `TrainingBatches`.

    Raises:
        ValueError: if an argument does not fit the others.

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
        """What the batches are made of; pictures in memory as the tokens they became."""
        return self._source.examples

    @property
    def known_labels(self) -> Labels | None:
        """Classes of all examples where no file has to be read for them, else None."""
        return self._source.known_labels

    def without_filling(self) -> Self:
        """Returns the same batches with a shorter last one, which makes the model compile again.

        Raises:
            ValueError: if they are a part of batches that are shared out, which must be of one size.
        """
        if self._part != slice(0, self._batch_size):
            raise ValueError("`shard` must be (0, 1) for batches that are not filled up. Received: one part of several")
        shorter = copy.copy(self)
        shorter._filled = False
        return shorter

    def __len__(self) -> int:
        return -(-len(self._source) // self._batch_size)

    def __getitem__(self, index: int) -> tuple[TokenIds, npt.NDArray[np.int32], npt.NDArray[np.float32]]:
        if not 0 <= index < len(self):
            raise IndexError(f"`index` must lie in 0…{len(self) - 1}. Received: index={index}")
        rows = np.arange(index * self._batch_size, (index + 1) * self._batch_size)[self._part]
        if not self._filled:
            rows = rows[rows < len(self._source)]
        real = rows < len(self._source)
        token_ids, labels = self._source.read(rows[real]) if real.any() else self._source.read(np.array([0]))
        filling = [(0, len(rows) - len(token_ids))]
        token_ids = np.pad(token_ids, [*filling, (0, 0)], mode="edge")
        # Keras leaves out weights without targets, and on TensorFlow takes no None among the parts of a batch.
        targets = token_ids if labels is None else np.pad(labels.astype(np.int32), filling, mode="edge")
        return token_ids, targets, real.astype(np.float32)


def part_of_batch(batch_size: int, shard: tuple[int, int]) -> slice:
    """Returns the places of a batch that are one shard's, or says what is wrong with the shard."""
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
