"""Batches that mix several weighted sets for pre-training."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from keras_igpt.data.batches import EndlessBatches
from keras_igpt.data.epoch_orders import EpochOrders
from keras_igpt.data.token_source import Augmentation, PictureExamples, TokenSource
from keras_igpt.palette.color_palette import ColorPalette, TokenIds, check_color_palette
from keras_igpt.support.checks import check_integer, check_number
from keras_igpt.support.randomness import random_bits

Int64Array = npt.NDArray[np.int64]

# Shares are integer multiples of 2^-32, so sums of draws stay exact.
_SHARE_BITS = 32


@dataclass(frozen=True)
class Source:
    """A set of `MixedBatches`.

    Args:
        examples: `LabeledImages`, `LabeledTokens`, `ImageFiles`, `UnlabeledImages` or `UnlabeledTokens`.
        augmentation: `PaddedCrop`, `RandomResizedCrop` (of files only) or None.
        weight: float. The source's share is its weight divided by the sum of all weights.

    Raises:
        ValueError: if `weight` is not positive.

    Example:
    ```python
    imagenet = Source(data.train, augmentation=RandomResizedCrop(), weight=1)
    ```
    """

    examples: PictureExamples
    augmentation: Augmentation | None = None
    weight: float = 1

    def __post_init__(self) -> None:
        object.__setattr__(self, "weight", check_number("weight", self.weight, 0, above=True))


class MixedBatches(EndlessBatches):
    """Endless batches of several sets for pre-training: `batches[k]` is the batch of step k.

    As in `TrainingBatches`, each batch is a function of seed and step. Sources are interleaved evenly rather than drawn
    at random: in any run of consecutive pictures, each source's count is its share to within the number of sources.
    Each source has its own epochs, each in a new order.

    Items are `(token_ids,)`; labels are dropped.

    Args:
        sources: `Source` by name, in any order.
        palette: `ColorPalette` of all sources.
        batch_size: int. Examples per step, over all shards.
        seed: int. Seed of the interleaving, orders and crops.
        shard: pair of int. As in `TrainingBatches`.
        first_step: int. As in `TrainingBatches`.
        workers: int. Threads; by default the largest default of any source in `TrainingBatches`.

    Raises:
        ValueError: if the arguments do not fit together.

    Example:
    ```python
    web = UnlabeledTokens.open("web")
    batches = MixedBatches(
        {"imagenet": Source(data.train, augmentation=RandomResizedCrop(), weight=1), "web": Source(web, weight=4)},
        web.palette,
        batch_size=128,
    )
    lm.fit(batches, epochs=10, steps_per_epoch=10_000)
    ```
    """

    def __init__(
        self,
        sources: Mapping[str, Source],
        palette: ColorPalette,
        batch_size: int,
        seed: int = 0,
        shard: tuple[int, int] = (0, 1),
        first_step: int = 0,
        workers: int | None = None,
    ) -> None:
        self._sources, self._palette = _check_sources(sources), check_color_palette(palette)
        self._readers = [
            TokenSource(source.examples, palette, source.augmentation, f"sources[{name!r}]")
            for name, source in self._sources.items()
        ]
        sizes = {name: reader.image_size for name, reader in zip(self._sources, self._readers, strict=True)}
        if len(set(sizes.values())) > 1:
            raise ValueError(f"`sources` must have pictures of one size. Received: {sizes}")
        batch_size = check_integer("batch_size", batch_size)
        rows = sum(len(reader) for reader in self._readers)
        self._steps_per_epoch = max(1, rows // batch_size)
        threads = [reader.thread_options(workers) for reader in self._readers]
        super().__init__(batch_size, seed, shard, first_step, max(threads, key=lambda options: options["workers"]))
        self._shares = _Shares([source.weight for source in self._sources.values()], self._seed)
        self._seeds = [int(random_bits(f"source {name}", self._seed)) for name in self._sources]
        self._orders = [EpochOrders(len(reader), seed) for reader, seed in zip(self._readers, self._seeds, strict=True)]

    @property
    def names(self) -> tuple[str, ...]:
        """The sources' names, sorted; source numbers index into them."""
        return tuple(self._sources)

    @property
    def palette(self) -> ColorPalette:
        """The palette of all sources."""
        return self._palette

    @property
    def steps_per_epoch(self) -> int:
        """Batches per default epoch of `fit`: as many pictures as all sources have together."""
        return self._steps_per_epoch

    @property
    def description(self) -> dict[str, Any]:
        """JSON values that determine each step's batch, except for the pictures and the first step."""
        sources = {
            name: {"examples": len(reader), "augmentation": repr(source.augmentation), "weight": source.weight}
            for (name, source), reader in zip(self._sources.items(), self._readers, strict=True)
        }
        return {"sources": sources, "batch_size": self._batch_size, "seed": self._seed}

    @property
    def fingerprint(self) -> str:
        """A digest of all sources' examples; see `TrainingBatches.fingerprint`."""
        each = {name: reader.fingerprint() for name, reader in zip(self._sources, self._readers, strict=True)}
        return hashlib.sha256(json.dumps(each).encode()).hexdigest()

    def rows(self, index: int) -> tuple[Int64Array, Int64Array, Int64Array]:
        """Returns source number, epoch and row of each picture of item `index`, each `(B,)`."""
        size = self._part.stop - self._part.start
        sources, draws = self._shares.draws(self._step_of(index) * self._batch_size + self._part.start, size)
        epochs, rows = np.empty_like(draws), np.empty_like(draws)
        for number, (reader, orders) in enumerate(zip(self._readers, self._orders, strict=True)):
            epochs[sources == number] = draws[sources == number] // len(reader)
            for epoch in np.unique(epochs[sources == number]).tolist():
                chosen = (sources == number) & (epochs == epoch)
                rows[chosen] = orders.rows(epoch, draws[chosen] % len(reader))
        return sources, epochs, rows

    def __getitem__(self, index: int) -> tuple[TokenIds]:
        sources, epochs, rows = self.rows(index)
        token_ids = np.empty((len(rows), self._readers[0].image_size ** 2), np.int32)
        for number, epoch in np.unique(np.stack([sources, epochs]), axis=1).T.tolist():
            chosen = (sources == number) & (epochs == epoch)
            token_ids[chosen] = self._readers[number].read(rows[chosen], self._seeds[number], epoch)[0]
        return (token_ids,)


class _Shares:
    """Assigns numbered draws to sources evenly, by weight, with random access.

    The first source takes `floor(n * share + offset)` of the first n draws, the second a share of the remaining ones,
    and so on; the last takes the rest.
    """

    def __init__(self, weights: Sequence[float], seed: int) -> None:
        left = [sum(weights[number:]) for number in range(len(weights))]
        shares = [round(weight / rest * 2**_SHARE_BITS) for weight, rest in zip(weights, left, strict=True)]
        # Every source gets a share, however small; the last takes the whole rest.
        whole = 1 << _SHARE_BITS
        self._shares = [min(max(1, share), whole - 1) for share in shares[:-1]] + [whole]
        self._offsets = (random_bits("source", seed, np.arange(len(weights))) >> np.uint64(64 - _SHARE_BITS)).tolist()

    def draws(self, start: int, count: int) -> tuple[Int64Array, Int64Array]:
        """Returns each draw's source, and how many draws that source had before; each `(count,)`, from `start` on."""
        sources, earlier = np.empty(count, np.int64), np.empty(count, np.int64)
        # Draws not assigned yet: those before `start` (Python integers, which cannot overflow), and those from it on.
        before, further = start, np.arange(count + 1)
        for number, (share, offset) in enumerate(zip(self._shares, self._offsets, strict=True)):
            taken_before, rest = divmod(before * share + offset, 1 << _SHARE_BITS)
            taken = (rest + further * share) >> _SHARE_BITS
            chosen = np.diff(taken) > 0
            sources[chosen], earlier[chosen] = number, taken_before + taken[:-1][chosen]
            before, further = before - taken_before, further - taken
        return sources, earlier


def _check_sources(sources: Any) -> dict[str, Source]:
    """Returns the sources sorted by name."""
    named = isinstance(sources, Mapping) and all(isinstance(name, str) for name in sources)
    if not named or not sources or not all(isinstance(source, Source) for source in sources.values()):
        raise ValueError(f"`sources` must be a dictionary of Source by name, at least one. Received: {sources!r}")
    return dict(sorted(sources.items()))
