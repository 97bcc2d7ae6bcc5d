"""Batches for `fit` and `evaluate`, each a function of seed and step alone."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import numpy.typing as npt

from keras_igpt.data.augmentation import PaddedCrop, RandomResizedCrop
from keras_igpt.data.examples import LabeledImages, LabeledTokens, Labels
from keras_igpt.data.image_files import ImageFiles
from keras_igpt.palette.color_palette import ColorPalette, TokenIds
from keras_igpt.support.checks import check_integer
from keras_igpt.support.randomness import check_seed, permutation

Source = LabeledImages | LabeledTokens | ImageFiles

# With several threads: batches that wait for the model, so that a slow one does not hold it up.
_BATCHES_AHEAD = 10


class _TokenSource:
    """Gives rows of any kind of examples as tokens. Pictures in memory are encoded once, here."""

    def __init__(self, examples: Source, palette: ColorPalette | None) -> None:
        if not isinstance(examples, Source):
            raise ValueError(
                f"`examples` must be LabeledImages, LabeledTokens or ImageFiles. Received: {type(examples).__name__}"
            )
        if not len(examples):
            raise ValueError("`examples` must not be empty. Received: 0 examples")
        if isinstance(examples, LabeledTokens):
            if palette is not None and palette.num_colors != examples.num_colors:
                raise ValueError(
                    f"`palette` must have the {examples.num_colors} colours of the tokens. "
                    f"Received: {palette.num_colors} colours"
                )
        elif palette is None:
            raise ValueError("`palette` must be given to make tokens of images. Received: None")
        if isinstance(examples, ImageFiles) and examples.image_size is None:
            raise ValueError("`examples` must have an `image_size`. Received: ImageFiles with image_size=None")
        channels = examples.num_channels if isinstance(examples, ImageFiles) else None
        if palette is not None and channels is not None and palette.num_channels != channels:
            raise ValueError(
                f"`palette` must have the examples' {channels} channel(s). Received: {palette.num_channels}"
            )
        if isinstance(examples, LabeledImages):
            assert palette is not None
            examples = examples.encode(palette)
        self.examples: LabeledTokens | ImageFiles = examples
        self._palette = palette

    def __len__(self) -> int:
        return len(self.examples)

    @property
    def known_labels(self) -> Labels | None:
        return self.examples.labels if isinstance(self.examples, LabeledTokens) else self.examples.known_labels

    @property
    def image_size(self) -> int:
        assert self.examples.image_size is not None
        return self.examples.image_size

    def fingerprint(self) -> str:
        """Returns what changes when the tokens or classes do."""
        if isinstance(self.examples, LabeledTokens):
            return self.examples.digest()
        assert self._palette is not None
        return hashlib.sha256(self.examples.digest().encode() + self._palette.centroids.tobytes()).hexdigest()

    def read(
        self,
        rows: npt.NDArray[np.int64],
        augmentation: PaddedCrop | RandomResizedCrop | None = None,
        seed: int = 0,
        epoch: int = 0,
    ) -> tuple[TokenIds, Labels]:
        """Returns token ids `(B, T)` and classes `(B,)` of these rows."""
        moves = augmentation if isinstance(augmentation, PaddedCrop) else None
        places = None if moves is None else moves.sources(self.image_size, seed, epoch, rows)
        if isinstance(self.examples, LabeledTokens):
            labels = self.examples.labels[rows]
            if places is None:
                return self.examples.token_ids[rows].astype(np.int32), labels
            return self.examples.token_ids[rows[:, None], places].astype(np.int32), labels
        assert self._palette is not None
        crop = augmentation if isinstance(augmentation, RandomResizedCrop) else None
        images, labels_read = zip(*(self.examples.read(row, crop, seed, epoch) for row in rows.tolist()), strict=True)
        token_ids = self._palette.encode(np.stack(images))
        if places is not None:
            token_ids = np.take_along_axis(token_ids, places, axis=1)
        return token_ids, np.array(labels_read, np.int64)


class TrainingBatches(keras.utils.PyDataset):
    """Endless shuffled batches of palette tokens and classes: `batches[k]` is the batch of step k.

    Order and crops are hashes of (seed, epoch, row), so the batch of any step is made without those before it, and is
    the same after a restart, on another backend and with any number of workers. Each epoch is a new order, and
    its ragged rest (fewer than `batch_size` rows, others each time) is left out. Give `fit` the number of
    steps, `steps_per_epoch=batches.steps_per_epoch`; the models of this package take it from here themselves.

    Items are `(token_ids, labels)`. Pre-training ignores the labels.

    Args:
        examples: `LabeledImages`, `LabeledTokens` or `ImageFiles`. Pictures in memory are encoded once.
        palette: `ColorPalette`; may be None for `LabeledTokens`.
        batch_size: int. Examples of a step, those of all shards together.
        seed: int. Of order and crops.
        augmentation: `PaddedCrop`, `RandomResizedCrop` (of `ImageFiles` only) or None.
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
        examples: Source,
        palette: ColorPalette | None,
        batch_size: int,
        seed: int = 0,
        augmentation: PaddedCrop | RandomResizedCrop | None = None,
        shard: tuple[int, int] = (0, 1),
        first_step: int = 0,
        workers: int | None = None,
    ) -> None:
        self._source = _TokenSource(examples, palette)
        self._batch_size = check_integer("batch_size", batch_size)
        self._part = _part_of_batch(self._batch_size, shard)
        if batch_size > len(self._source):
            raise ValueError(
                f"`batch_size` must be at most the number of examples, {len(self._source)}. "
                f"Received: batch_size={batch_size}"
            )
        if not isinstance(augmentation, (PaddedCrop, RandomResizedCrop, type(None))):
            raise ValueError(
                f"`augmentation` must be PaddedCrop(…), RandomResizedCrop(…) or None. Received: {augmentation!r}"
            )
        if isinstance(augmentation, RandomResizedCrop) and not isinstance(examples, ImageFiles):
            raise ValueError(
                "`augmentation` may be RandomResizedCrop for ImageFiles only: what is in memory has its size already. "
                f"Received: {type(examples).__name__}"
            )
        if isinstance(augmentation, PaddedCrop) and augmentation.padding >= self._source.image_size:
            raise ValueError(
                f"`augmentation` must pad by less than the {self._source.image_size} pixels of a side. "
                f"Received: padding={augmentation.padding}"
            )
        # Keras fills the queue anew each epoch and keeps what is left: more than an epoch's would pile up.
        super().__init__(**_threads(examples, workers, self.steps_per_epoch - 1))
        self._seed = check_seed(seed)
        self._augmentation = augmentation
        self._first_step = check_integer("first_step", first_step, 0)
        self._orders: dict[int, npt.NDArray[np.int64]] = {}

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches in one pass through the examples."""
        return len(self._source) // self._batch_size

    @property
    def num_batches(self) -> None:
        """None: the batches have no end."""
        return None

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
            # Earlier versions could draw masks here: their checkpoints of such batches do not fit.
            "mask_rate": None,
        }

    @property
    def first_step(self) -> int:
        """The step whose batch is item 0."""
        return self._first_step

    @property
    def fingerprint(self) -> str:
        """A digest that changes when the examples do, or the palette of pictures in files; see `ImageFiles.digest`."""
        return self._source.fingerprint()

    def starting_at(self, step: int) -> TrainingBatches:
        """Returns the same batches from a step on: its item 0 is item `step` here."""
        later = copy.copy(self)
        later._first_step += check_integer("step", step, 0)
        return later

    def rows(self, index: int) -> tuple[int, npt.NDArray[np.int64]]:
        """Returns the epoch and the rows of the examples that item `index` is made of."""
        if index < 0:
            raise IndexError(f"`index` must not be negative. Received: index={index}")
        epoch, batch = divmod(self._first_step + index, self.steps_per_epoch)
        order = self._orders.get(epoch)
        if order is None:
            order = permutation(len(self._source), "order", self._seed, epoch)
            # At an epoch's end threads need two orders. One assignment: the others see the old ones or the new.
            self._orders = {near: kept for near, kept in self._orders.items() if abs(near - epoch) == 1} | {
                epoch: order
            }
        return epoch, order[batch * self._batch_size :][self._part]

    def __getitem__(self, index: int) -> tuple[TokenIds, npt.NDArray[np.int32]]:
        epoch, rows = self.rows(index)
        token_ids, labels = self._source.read(rows, self._augmentation, self._seed, epoch)
        return token_ids, labels.astype(np.int32)


class EvaluationBatches(keras.utils.PyDataset):
    """One pass of equal batches in order, for `evaluate`, `predict` and validation.

    The last batch is filled up with rows of weight 0, so that none is lost, none counts twice and no batch of another
    shape makes the model compile again. Items are `(token_ids, labels, weights)`. `predict` gives the filling too:
    `len(batches.examples)` says how many rows are real.

    Args:
        examples: as in `TrainingBatches`; pictures in files are seen at their centre squares.
        palette: `ColorPalette`; may be None for `LabeledTokens`.
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
        examples: Source,
        palette: ColorPalette | None,
        batch_size: int,
        shard: tuple[int, int] = (0, 1),
        workers: int | None = None,
    ) -> None:
        self._source = _TokenSource(examples, palette)
        self._batch_size = check_integer("batch_size", batch_size)
        self._part = _part_of_batch(self._batch_size, shard)
        self._filled = True
        super().__init__(**_threads(examples, workers, _BATCHES_AHEAD))

    @property
    def examples(self) -> LabeledTokens | ImageFiles:
        """What the batches are made of; pictures in memory as the tokens they became."""
        return self._source.examples

    @property
    def known_labels(self) -> Labels | None:
        """Classes of all examples where no file has to be read for them, else None."""
        return self._source.known_labels

    def without_filling(self) -> EvaluationBatches:
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
        filling = [(0, len(rows) - len(labels))]
        return (
            np.pad(token_ids, [*filling, (0, 0)], mode="edge"),
            np.pad(labels.astype(np.int32), filling, mode="edge"),
            real.astype(np.float32),
        )


def _threads(examples: Source, workers: int | None, most_ahead: int) -> dict[str, int]:
    if workers is None:
        workers = examples.threads if isinstance(examples, ImageFiles) else 1
    workers = check_integer("workers", workers)
    return {"workers": workers, "max_queue_size": max(1, min(max(_BATCHES_AHEAD, 2 * workers), most_ahead))}


def _part_of_batch(batch_size: int, shard: tuple[int, int]) -> slice:
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
