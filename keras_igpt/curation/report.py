"""What a person looks at: the best, the borderline and the refused pictures, and a histogram of scores."""

from __future__ import annotations

import heapq
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from keras_igpt.curation.pictures import Outcome, read_square
from keras_igpt.curation.records import Records
from keras_igpt.curation.settings import Job
from keras_igpt.curation.shards import Member, Shard, read_member
from keras_igpt.palette.color_palette import UInt8Images
from keras_igpt.plotting import plot_rows, plot_scores
from keras_igpt.support.files import whole_file
from keras_igpt.support.randomness import random_bits

# Pictures of the contact sheet: a row, and of each kind.
_COLUMNS, _EACH = 24, 48
_SHOWN_SIZE, _GAP = 64, 4

_BINS = 200
_SCORED = ("kept", "refused: dissimilar or a duplicate")

# Of the outcomes after which there is a picture to show.
_REFUSED = {
    Outcome.DISSIMILAR: "refused: dissimilar",
    Outcome.DUPLICATE: "refused: duplicates",
    Outcome.EVALUATION: "refused: in an evaluation set",
    Outcome.PLAIN: "refused: flat or a gradient",
    Outcome.ROUGH: "refused: noise or small print",
    Outcome.GRAPHIC: "refused: charts and screens",
}

# A picture by what it is sorted by, its shard and its row.
_Place = tuple[float, int, int]


def write_pictures(job: Job, shards: Sequence[Shard], threshold: float) -> None:
    """Draws the contact sheet and the histogram of a finished set.

    Args:
        job: the job.
        shards: its shards.
        threshold: float. Least score of what was kept.
    """
    edges = np.linspace(-1.0, 1.0, _BINS + 1)
    histograms = {name: np.zeros(_BINS, np.int64) for name in _SCORED}
    groups: dict[str, list[_Place]] = {}
    for shard in shards:
        records = Records.load(Path(job.output) / f"{shard.name}.npz")
        scored = ~np.isnan(records.scores)
        kept = records.outcomes == Outcome.KEPT
        for name, rows in zip(_SCORED, (kept, scored & ~kept), strict=True):
            histograms[name] += np.histogram(records.scores[rows], edges)[0]
        for name, places in _chosen(records, shard.number, threshold):
            groups[name] = heapq.nsmallest(_EACH, groups.get(name, []) + places)
    with whole_file(Path(job.output) / "scores.png") as partial:
        plot_scores(histograms, edges, threshold).savefig(partial)
    rows = {name: _strip(_read(job, shards, places)) for name, places in groups.items() if places}
    with whole_file(Path(job.output) / "contact_sheet.png") as partial:
        plot_rows(rows, width=14.0).savefig(partial)


def _chosen(records: Records, shard: int, threshold: float) -> Iterator[tuple[str, list[_Place]]]:
    """The pictures of a shard that may be shown, of each kind."""
    outcomes, scores = records.outcomes, records.scores.astype(np.float64)
    yield "kept: the highest scores", _first(np.flatnonzero(outcomes == Outcome.KEPT), -scores, shard)
    yield "kept: the lowest scores", _first(np.flatnonzero(outcomes == Outcome.KEPT), scores, shard)
    for outcome, name in _REFUSED.items():
        rows = np.flatnonzero(outcomes == outcome)
        if outcome == Outcome.DISSIMILAR:
            yield "refused: just below the threshold", _first(rows, threshold - scores, shard)
        yield name, _first(rows, random_bits("shown", shard, np.arange(len(outcomes))).astype(np.float64), shard)


def _first(rows: npt.NDArray[np.intp], by: npt.NDArray[np.float64], shard: int) -> list[_Place]:
    return heapq.nsmallest(_EACH, ((float(by[row]), shard, int(row)) for row in rows))


def _read(job: Job, shards: Sequence[Shard], places: list[_Place]) -> list[UInt8Images]:
    """Reads pictures again, from where the shards lie."""
    pictures = []
    shown = {number for _, number, _ in places}
    records_of = {number: Records.load(Path(job.output) / f"{shards[number].name}.npz") for number in shown}
    for _, number, row in places:
        records = records_of[number]
        key, offset, size = records.key(row), int(records.offsets[row]), int(records.sizes[row])
        member = Member(key, offset, size, read_member(shards[number], key, offset, size))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            square = read_square(member, _SHOWN_SIZE, 1, job.rules.max_pixels)
        if not isinstance(square, Outcome):
            pictures.append(square)
    return pictures


def _strip(pictures: list[UInt8Images]) -> UInt8Images:
    """Lays pictures side by side on white."""
    step = _SHOWN_SIZE + _GAP
    strip = np.full((step * -(-len(pictures) // _COLUMNS), step * _COLUMNS, 3), 255, np.uint8)
    for index, picture in enumerate(pictures):
        top, left = step * (index // _COLUMNS), step * (index % _COLUMNS)
        strip[top : top + _SHOWN_SIZE, left : left + _SHOWN_SIZE] = picture
    return strip
