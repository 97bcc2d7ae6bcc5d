"""Checking each batch of the data sets that Keras accepts, before the model sees it."""

from __future__ import annotations

import copy
import inspect
import sys
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np

# Takes a batch as the data set yields it; raises ValueError if it is invalid.
Check = Callable[[Any], None]


class CheckedData:
    """A data set whose batches are checked one by one, the first immediately. Arrays are not checked.

    Args:
        data: `x` of `keras.Model.fit`.
        check: function that checks a batch.

    Attributes:
        data: a data set of the same kind with the same batches; for arrays, `data` itself.
        first: the first batch; None for arrays.
        error: what `check` raised; TensorFlow replaces it by an error of its own type.
    """

    def __init__(self, data: Any, check: Check) -> None:
        self._check = check
        self.data: Any = data
        self.first: Any = None
        self.error: ValueError | None = None
        batches: Iterator[Any]
        if isinstance(data, keras.utils.PyDataset):
            self.data = _CheckedDataset(data, self._look_at)
            batches = iter(data[index] for index in range(1 if data.num_batches is None else data.num_batches))
        elif inspect.isgenerator(data):
            batches = data
            self.data = self._checked_generator(data)
        elif is_a(data, "tensorflow", "data.Dataset"):
            batches = data.take(1).as_numpy_iterator()
            self.data = _checked_tf_dataset(data, self._look_at)
        elif is_a(data, "grain", "MapDataset") or is_a(data, "grain", "IterDataset"):
            batches = iter(data)
            self.data = data.map(self._looked_at)
        elif is_a(data, "torch", "utils.data.DataLoader") or is_a(data, "grain", "DataLoader"):
            batches = _first_of_loader(data)
            self.data = _checked_loader(data, self._look_at)
        else:
            return
        self.first = next(batches, None)
        if self.first is None:
            raise ValueError(f"A data set must have at least one batch. Received: {type(data).__name__} with none")
        check(self.first)

    def _look_at(self, batch: Any) -> None:
        try:
            self._check(batch)
        except ValueError as error:
            self.error = error
            raise

    def _looked_at(self, batch: Any) -> Any:
        self._look_at(batch)
        return batch

    def _checked_generator(self, batches: Iterator[Any]) -> Iterator[Any]:
        # The first batch was already consumed and checked.
        yield self.first
        for batch in batches:
            self._look_at(batch)
            yield batch


class _CheckedDataset(keras.utils.PyDataset):
    """A `PyDataset` that checks the batches of another, and can start at a later item."""

    def __init__(self, dataset: keras.utils.PyDataset, check: Check) -> None:
        super().__init__(
            workers=dataset.workers,
            use_multiprocessing=dataset.use_multiprocessing,
            max_queue_size=dataset.max_queue_size,
        )
        self._dataset, self._check = dataset, check

    @property
    def num_batches(self) -> int | None:
        """The wrapped data set's number of batches."""
        count: int | None = self._dataset.num_batches
        return count

    def start_at(self, step: int) -> None:
        """Makes item 0 the wrapped data set's item `step`; needs its `starting_at`."""
        self._dataset = self._dataset.starting_at(step)

    def __getitem__(self, index: int) -> Any:
        batch = self._dataset[index]
        self._check(batch)
        return batch

    def on_epoch_begin(self) -> None:
        self._dataset.on_epoch_begin()

    def on_epoch_end(self) -> None:
        self._dataset.on_epoch_end()


def is_a(data: Any, package: str, name: str) -> bool:
    """Whether data are an instance of a package's class, found without importing the package."""
    kind: Any = sys.modules.get(package)
    for part in name.split("."):
        kind = getattr(kind, part, None)
    return kind is not None and isinstance(data, kind)


def _checked_tf_dataset(dataset: Any, check: Check) -> Any:
    import tensorflow as tf

    def look_at(*batch: Any) -> Any:
        # `map` unpacks tuples only.
        element = batch if isinstance(dataset.element_spec, tuple) else batch[0]

        def on_host(*arrays: Any) -> np.bool_:
            check(tf.nest.pack_sequence_as(element, arrays))
            return np.True_

        with tf.control_dependencies([tf.numpy_function(on_host, tf.nest.flatten(element), tf.bool)]):
            return tf.nest.map_structure(tf.identity, element)

    return dataset.map(look_at)


def _first_of_loader(loader: Any) -> Iterator[Any]:
    if not is_a(loader, "torch", "utils.data.DataLoader"):
        yield next(iter(loader), None)
        return
    import torch

    # Leaves PyTorch's generator, which orders the loader, unchanged.
    with torch.random.fork_rng(devices=[]):
        yield next(iter(loader), None)


def _checked_loader(loader: Any, check: Check) -> Any:
    """Returns a copy of the loader that checks its batches; a subclass, since Keras tests for the class."""
    kind = type(loader)

    def checked(self: Any) -> Iterator[Any]:
        for batch in kind.__iter__(self):
            check(tuple(batch) if isinstance(batch, list) else batch)
            yield batch

    copied = copy.copy(loader)
    copied.__class__ = type(f"Checked{kind.__name__}", (kind,), {"__iter__": checked})
    return copied
