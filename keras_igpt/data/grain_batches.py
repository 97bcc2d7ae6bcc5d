"""The batches of a Grain `MapDataset` by step."""

from __future__ import annotations

import copy
import hashlib
from typing import Any, Self

import keras
import numpy as np

from keras_igpt.data.checked import ENDLESS
from keras_igpt.data.image_files import processors
from keras_igpt.support.checks import check_integer

# Batches whose content enters the fingerprint.
_BATCHES_READ = 8
_MOST_AHEAD = 10


class GrainBatches(keras.utils.PyDataset):
    """Endless batches of a Grain `MapDataset`: item k is its item k, and after its end it begins again.

    These are the batches that `keras.Model.fit` takes from the data set itself, but any of them can be the first. And
    Keras does not know where the data set ends: on TensorFlow it would take an empty step more in each epoch, which
    moves the weights by the optimizer's momentum.

    Args:
        dataset: `grain.MapDataset` of batches.
        steps_per_epoch: int. Batches of an epoch; by default all. Required after `repeat()`.

    Raises:
        ValueError: if the data set is empty, or it has no end and `steps_per_epoch` is None.
    """

    def __init__(self, dataset: Any, steps_per_epoch: int | None = None) -> None:
        count = len(dataset)
        if not count:
            raise ValueError("`x` must have at least one batch. Received: a MapDataset with none")
        if steps_per_epoch is None and count >= ENDLESS:
            raise ValueError(
                "`steps_per_epoch` must be given for a MapDataset without an end. Received: steps_per_epoch=None"
            )
        self.steps_per_epoch = count if steps_per_epoch is None else check_integer("steps_per_epoch", steps_per_epoch)
        super().__init__(workers=processors(), max_queue_size=_MOST_AHEAD)
        self._dataset, self._count, self.first_step = dataset, count, 0

    @property
    def num_batches(self) -> None:
        """None, since the batches are endless."""
        return None

    @property
    def description(self) -> dict[str, Any]:
        """JSON values that tell the data set from others, except for its content."""
        return {"kind": "MapDataset", "num_batches": self._count}

    @property
    def fingerprint(self) -> str:
        """A digest of some batches of the first two epochs."""
        steps = np.linspace(0, 2 * self.steps_per_epoch - 1, _BATCHES_READ).round().astype(int)
        digest = hashlib.sha256()
        for step in np.unique(steps).tolist():
            for array in map(np.asarray, keras.tree.flatten(self._at(step))):
                digest.update(f"{array.shape} {array.dtype}".encode() + array.tobytes())
        return digest.hexdigest()

    def starting_at(self, step: int) -> Self:
        """Returns the same batches, starting at item `step`."""
        later = copy.copy(self)
        later.first_step += check_integer("step", step, 0)
        return later

    def __getitem__(self, index: int) -> Any:
        return self._at(self.first_step + index)

    def _at(self, step: int) -> Any:
        batch = self._dataset[step % self._count]
        if batch is None:
            raise ValueError(
                "`x` must be a MapDataset that has all of its batches; `x.to_iter_dataset()` leaves out those that "
                f"`filter` drops, but has no position for ExactResume. Received: none at {step % self._count}"
            )
        return batch
