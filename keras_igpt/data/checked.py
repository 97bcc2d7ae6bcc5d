"""The batches of the data sets that Keras accepts: checked before the model sees them, or read one after the other."""

from __future__ import annotations

import copy
import inspect
import sys
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np

# Takes a batch as the data set yields it, and returns it as the model takes it; raises ValueError if it is invalid.
Check = Callable[[Any], Any]

# `repeat()` gives a Grain `MapDataset` the length of the largest integer, divided by the batch size.
ENDLESS = 1 << 40


class CheckedData:
    """A data set whose batches are checked one by one, the first immediately. Arrays are not checked.

    Args:
        data: `x` of `keras.Model.fit`.
        check: function that checks a batch, and returns it with tokens in place of pictures.

    Attributes:
        data: a data set of the same kind with the same batches as the model takes them; for arrays, `data` itself.
        first: the first batch as the model takes it; None for arrays.
        error: what `check` raised; TensorFlow replaces it by an error of its own type.
    """

    def __init__(self, data: Any, check: Check) -> None:
        self._check = check
        self.data: Any = data
        self.first: Any = None
        self.error: ValueError | None = None
        batches: Iterator[Any]
        if isinstance(data, keras.utils.PyDataset):
            batches = iter(data[index] for index in range(1 if data.num_batches is None else data.num_batches))
        elif inspect.isgenerator(data):
            batches = data
        elif is_a(data, "tensorflow", "data.Dataset"):
            batches = data.take(1).as_numpy_iterator()
        elif _is_loader(data):
            batches = _first_of_loader(data)
        elif _is_grain(data):
            batches = iter(data)
        else:
            return
        first = _as_tuple(next(batches, None))
        if first is None:
            raise ValueError(f"A data set must have at least one batch. Received: {type(data).__name__} with none")
        self.first = check(first)
        self.data = self._wrapped(data, converts=self.first is not first)

    def trained_on_for(self, steps: int | None) -> None:
        """Tells a `PyDataset` how many batches Keras takes of it in an epoch, to go on from there in the next.

        Keras reads ahead in threads and keeps for the next epoch what is left over, so the queue must be shorter than
        an epoch, or more is left over each time.
        """
        if steps is None or not isinstance(self.data, _CheckedDataset):
            return
        if steps == 1:
            self.data.workers = 1
        else:
            self.data.max_queue_size = min(self.data.max_queue_size, steps - 1)

    def validated_on_for(self, steps: int | None) -> None:
        """Tells a `PyDataset` how many batches Keras takes of it in each validation, the first ones every time.

        It ends there, or the next validation would begin with what is left over.
        """
        if steps is not None and isinstance(self.data, _CheckedDataset):
            self.data.end_after(steps)

    def _wrapped(self, data: Any, converts: bool) -> Any:
        """The data set with batches that are checked, and with tokens in place of pictures if it `converts`."""
        if isinstance(data, keras.utils.PyDataset):
            return _CheckedDataset(data, self._look_at)
        if inspect.isgenerator(data):
            return self._checked_generator(data)
        if is_a(data, "tensorflow", "data.Dataset"):
            return _checked_tf_dataset(data, self._look_at, self.first if converts else None)
        if is_a(data, "torch", "utils.data.DataLoader"):
            return _checked_torch_loader(data, self._look_at)
        if is_a(data, "grain", "DataLoader"):
            return _checked_grain_loader(data, self._look_at)
        return data.map(self._look_at)

    def _look_at(self, batch: Any) -> Any:
        try:
            return self._check(_as_tuple(batch))
        except ValueError as error:
            self.error = error
            raise

    def _checked_generator(self, batches: Iterator[Any]) -> Iterator[Any]:
        # The first batch was already consumed and checked.
        yield self.first
        for batch in batches:
            yield self._look_at(batch)


class _CheckedDataset(keras.utils.PyDataset):
    """A `PyDataset` that checks the batches of another, and can start at a later item."""

    def __init__(self, dataset: keras.utils.PyDataset, check: Check) -> None:
        super().__init__(
            workers=dataset.workers,
            use_multiprocessing=dataset.use_multiprocessing,
            max_queue_size=dataset.max_queue_size,
        )
        self._dataset, self._check, self._steps = dataset, check, sys.maxsize

    @property
    def num_batches(self) -> int | None:
        """The wrapped data set's number of batches, at most those to end after."""
        count: int | None = self._dataset.num_batches
        return None if count is None else min(count, self._steps)

    def end_after(self, steps: int) -> None:
        """Leaves out what comes after `steps` batches; no end is given to an endless data set."""
        self._steps = steps

    def start_at(self, step: int) -> None:
        """Makes item 0 the wrapped data set's item `step`; needs its `starting_at`."""
        self._dataset = self._dataset.starting_at(step)

    def __getitem__(self, index: int) -> Any:
        return self._check(self._dataset[index])

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


def _is_loader(data: Any) -> bool:
    return is_a(data, "torch", "utils.data.DataLoader") or is_a(data, "grain", "DataLoader")


def _is_grain(data: Any) -> bool:
    return any(is_a(data, "grain", kind) for kind in ("MapDataset", "IterDataset", "DataLoader"))


def batches_of(data: Any, name: str) -> Iterator[Any] | None:
    """Iterates over the batches of a data set; a batch that is a list comes as a tuple.

    Args:
        data: `PyDataset`, `tf.data.Dataset`, PyTorch `DataLoader` or Grain data set.
        name: str. The caller's argument name, for errors.

    Returns:
        An iterator; None for anything else.

    Raises:
        ValueError: if the data set has no end.
    """
    batches: Iterator[Any]
    if isinstance(data, keras.utils.PyDataset):
        endless, batches = data.num_batches is None, (data[index] for index in range(data.num_batches or 0))
    elif is_a(data, "tensorflow", "data.Dataset"):
        endless, batches = int(data.cardinality()) == -1, data.as_numpy_iterator()
    elif _is_loader(data) or _is_grain(data):
        endless, batches = is_a(data, "grain", "MapDataset") and len(data) >= ENDLESS, iter(data)
    else:
        return None
    if endless:
        raise ValueError(f"`{name}` must end (`EvaluationBatches` does). Received: endless {type(data).__name__}")
    return map(_as_tuple, batches)


def _as_tuple(batch: Any) -> Any:
    return tuple(batch) if isinstance(batch, list) else batch


def _checked_tf_dataset(dataset: Any, check: Check, converted: Any) -> Any:
    """Returns a data set that checks its batches; `converted` is the first one where pictures become tokens."""
    import tensorflow as tf

    several = isinstance(dataset.element_spec, tuple)

    def look_at(*batch: Any) -> Any:
        # `map` unpacks tuples only.
        element = batch if several else batch[0]

        def on_host(*arrays: Any) -> Any:
            checked = check(tf.nest.pack_sequence_as(element, arrays))
            if converted is None:
                return np.True_
            return checked[0] if several else checked

        if converted is None:
            with tf.control_dependencies([tf.numpy_function(on_host, tf.nest.flatten(element), tf.bool)]):
                return tf.nest.map_structure(tf.identity, element)
        first = converted[0] if several else converted
        token_ids = tf.numpy_function(on_host, tf.nest.flatten(element), first.dtype)
        token_ids.set_shape((None, *first.shape[1:]))
        return (token_ids, *batch[1:]) if several else token_ids

    return dataset.map(look_at)


def _first_of_loader(loader: Any) -> Iterator[Any]:
    if not is_a(loader, "torch", "utils.data.DataLoader"):
        yield next(iter(loader), None)
        return
    import torch

    # Leaves PyTorch's generator, which orders the loader, unchanged.
    with torch.random.fork_rng(devices=[]):
        yield next(iter(loader), None)


def _checked_torch_loader(loader: Any, check: Check) -> Any:
    """Returns a copy of the loader that checks its batches; a subclass, since Keras tests for the class."""
    import torch

    kind = type(loader)

    def checked(self: Any) -> Iterator[Any]:
        for batch in kind.__iter__(self):
            taken = check(batch)
            # Keras would take the rows of a tensor that comes alone for inputs, labels and weights.
            parts = taken if isinstance(taken, tuple) else (taken,)
            yield tuple(torch.from_numpy(part) if isinstance(part, np.ndarray) else part for part in parts)

    copied = copy.copy(loader)
    copied.__class__ = type(f"Checked{kind.__name__}", (kind,), {"__iter__": checked})
    return copied


def _checked_grain_loader(loader: Any, check: Check) -> Any:
    """Returns the loader's batches as a Grain data set: Keras would build another loader of its parts."""
    import grain

    class CheckedBatches(grain.DatasetIterator):
        def __init__(self) -> None:
            super().__init__()
            self._batches = iter(loader)

        def __next__(self) -> Any:
            return check(next(self._batches))

        def get_state(self) -> Any:
            return self._batches.get_state()

        def set_state(self, state: Any) -> None:
            self._batches.set_state(state)

    class CheckedLoader(grain.IterDataset):
        def __iter__(self) -> CheckedBatches:
            return CheckedBatches()

    return CheckedLoader()
