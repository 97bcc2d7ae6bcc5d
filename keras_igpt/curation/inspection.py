"""What a worker does: judges each picture of a shard by itself, finds duplicates among all, writes what is kept."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from keras_igpt.curation.duplicates import EvaluationPictures, duplicates, hash_pictures
from keras_igpt.curation.pictures import HASHED_SIZE, Outcome, artificial, read_square
from keras_igpt.curation.records import Records
from keras_igpt.curation.settings import Job
from keras_igpt.curation.shards import Member, Reading, Shard, read_shard
from keras_igpt.data.image_files import resize_images
from keras_igpt.data.token_shards import TokenShard, write_token_shard
from keras_igpt.palette.color_palette import UInt8Images, token_dtype
from keras_igpt.support.files import remove, whole_file, write_json

# Pictures that are decoded before anything is computed of them.
_TOGETHER = 256

_NONE = np.uint8(Outcome.KEPT)


class Inspector:
    """Judges the pictures of shards, each by itself. Made once a worker, for it loads the model.

    Args:
        job: the job.
    """

    def __init__(self, job: Job) -> None:
        self._job = job
        self._reference = job.similarity.loaded_reference
        self._features = job.similarity.load_features()
        self._evaluation = EvaluationPictures(job.evaluation)
        # The largest square that anything is computed of. What is smaller is reduced from it.
        self._size = max(job.image_size, self._features.image_size, HASHED_SIZE)

    def inspect(self, shard: Shard) -> int | None:
        """Writes a shard's records and the tokens of what may be kept, unless that was done before.

        Args:
            shard: the shard.

        Returns:
            Pictures in it, or None if it was done before.
        """
        path = records_path(self._job, shard)
        if path.is_file():
            return None
        reading = Reading()
        found: list[tuple[npt.NDArray[Any], ...]] = [self._none()]
        with warnings.catch_warnings():
            # Of damaged EXIF data, and of pictures that Pillow finds large.
            warnings.simplefilter("ignore")
            found += map(self._judge, _batches(read_shard(shard, reading), _TOGETHER))
        columns = [np.concatenate(arrays) for arrays in zip(*found, strict=True)]
        tokens = columns.pop()
        with whole_file(_candidates_path(self._job, shard)) as partial:
            np.save(partial, tokens)
        keys, offsets, sizes, outcomes, scores, hashes = columns
        records = Records(keys, offsets, sizes, outcomes, scores, hashes, reading.others, reading.fault)
        # Last: a shard with records is done.
        records.save(path)
        return len(records)

    def _none(self) -> tuple[npt.NDArray[Any], ...]:
        columns = (np.bytes_, np.int64, np.int64, np.uint8, np.float32)
        tokens = np.empty((0, self._job.image_size**2), token_dtype(self._job.palette.num_colors))
        return (*(np.empty(0, dtype) for dtype in columns), np.empty((0, 2), np.uint64), tokens)

    def _judge(self, members: Sequence[Member]) -> tuple[npt.NDArray[Any], ...]:
        """The columns of some pictures' records, and the tokens of those that may be kept."""
        rules = self._job.rules
        read = [read_square(member, self._size, rules.min_side, rules.max_pixels) for member in members]
        outcomes = np.array([found if isinstance(found, Outcome) else _NONE for found in read], np.uint8)
        scores = np.full(len(members), np.nan, np.float32)
        hashes = np.zeros((len(members), 2), np.uint64)
        rows = np.flatnonzero(outcomes == _NONE)
        *_, tokens = self._none()
        if len(rows):
            squares = np.stack([found for found in read if not isinstance(found, Outcome)])
            small = resize_images(squares, HASHED_SIZE)
            hashes[rows] = hash_pictures(small)
            outcomes[rows] = self._refused(small, hashes[rows])
            left = outcomes[rows] == _NONE
            squares, small, rows = squares[left], small[left], rows[left]
        if len(rows):
            pictures = small if self._features.image_size == HASHED_SIZE else squares
            scores[rows] = self._reference.scores(self._features(pictures))
            if self._job.threshold is not None:
                outcomes[rows[scores[rows] < np.float32(self._job.threshold)]] = Outcome.DISSIMILAR
            squares = squares[outcomes[rows] == _NONE]
            if len(squares):
                tokens = self._job.palette.encode(resize_images(squares, self._job.image_size)).astype(tokens.dtype)
        keys = np.array([member.key.encode("utf-8", "surrogateescape") for member in members], np.bytes_)
        offsets = np.array([member.offset for member in members], np.int64)
        sizes = np.array([member.size for member in members], np.int64)
        return keys, offsets, sizes, outcomes, scores, hashes, tokens

    def _refused(self, small: UInt8Images, hashes: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint8]:
        """What is refused without a look at the reference."""
        outcomes = artificial(small) if self._job.rules.photographs else np.zeros(len(small), np.uint8)
        # Whatever it looks like: what is in an evaluation set is counted as that.
        return np.where(self._evaluation.near(hashes), np.uint8(Outcome.EVALUATION), outcomes)


def decide(job: Job, shards: Sequence[Shard]) -> float:
    """Chooses the threshold where it was not known, and finds the duplicates among all that reach it.

    Args:
        job: the job.
        shards: its shards, all of which have been inspected.

    Returns:
        The threshold.
    """
    path = job.work / "decision.json"
    if not path.is_file():
        threshold = _threshold(job, shards)
        starts, hashes, places = [0], [np.empty((0, 2), np.uint64)], [np.empty(0, np.int64)]
        for shard in shards:
            records = Records.load(records_path(job, shard))
            rows = np.flatnonzero(_similar(records, threshold))
            hashes.append(records.hashes[rows])
            places.append(starts[-1] + rows)
            starts.append(starts[-1] + len(records))
        repeated = np.zeros(starts[-1], np.bool_)
        if job.rules.duplicate_bits is not None:
            repeated[np.concatenate(places)] = duplicates(np.concatenate(hashes), job.rules.duplicate_bits)
        with whole_file(job.work / "duplicates.npy") as partial:
            np.save(partial, repeated)
        write_json(path, {"threshold": threshold, "starts": starts})
    threshold = json.loads(path.read_text(encoding="utf-8"))["threshold"]
    return float(threshold)


class Writer:
    """Writes the tokens of what is kept, shard by shard.

    Args:
        job: the job.
    """

    def __init__(self, job: Job) -> None:
        self._job = job
        decision = json.loads((job.work / "decision.json").read_text(encoding="utf-8"))
        self._threshold, self._starts = decision["threshold"], decision["starts"]
        self._duplicates = np.load(job.work / "duplicates.npy", mmap_mode="r")

    def write(self, shard: Shard) -> bool:
        """Writes a shard's tokens and records, unless that was done before.

        Args:
            shard: the shard.

        Returns:
            Whether anything was done.
        """
        job, done = self._job, written_path(self._job, shard)
        if done.is_file():
            remove(_candidates_path(job, shard))
            return False
        records = Records.load(records_path(job, shard))
        candidates = np.flatnonzero(records.outcomes == _NONE)
        outcomes = records.outcomes.copy()
        outcomes[candidates[~_similar(records, self._threshold)[candidates]]] = Outcome.DISSIMILAR
        repeated = self._duplicates[self._starts[shard.number] : self._starts[shard.number + 1]]
        outcomes[repeated] = Outcome.DUPLICATE
        records = replace(records, outcomes=outcomes)
        tokens = np.load(_candidates_path(job, shard), mmap_mode="r")[outcomes[candidates] == _NONE]
        records.save(Path(job.output) / f"{shard.name}.npz")
        report = {"source": shard.describe(), **records.report()}
        written = write_token_shard(job.output, f"{shard.name}.npy", tokens, job.palette.num_colors, report)
        # Last: a shard with this file is done.
        write_json(done, asdict(written))
        remove(_candidates_path(job, shard))
        return True


def read_written(job: Job, shard: Shard) -> TokenShard:
    """Reads what `Writer` has left of a shard."""
    return TokenShard(**json.loads(written_path(job, shard).read_text(encoding="utf-8")))


def records_path(job: Job, shard: Shard) -> Path:
    """Where the records of a shard lie that has been inspected."""
    return job.work / f"{shard.name}.npz"


def written_path(job: Job, shard: Shard) -> Path:
    """Where it is noted that a shard is finished."""
    return job.work / f"{shard.name}.json"


def _candidates_path(job: Job, shard: Shard) -> Path:
    return job.work / f"{shard.name}.npy"


def _similar(records: Records, threshold: float) -> npt.NDArray[np.bool_]:
    similar: npt.NDArray[np.bool_] = (records.outcomes == _NONE) & (records.scores >= np.float32(threshold))
    return similar


def _threshold(job: Job, shards: Sequence[Shard]) -> float:
    if job.threshold is not None:
        return job.threshold
    assert job.rules.share is not None
    scores = np.concatenate([Records.load(records_path(job, shard)).scores for shard in shards])
    scores = scores[~np.isnan(scores)]
    if not len(scores):
        return 0.0
    least = len(scores) - max(1, round(job.rules.share * len(scores)))
    return float(np.partition(scores, least)[least])


def _batches(members: Iterable[Member], size: int) -> Iterator[list[Member]]:
    iterator = iter(members)
    while some := list(islice(iterator, size)):
        yield some
