"""From shards of web pictures to token shards of those that resemble a reference set."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_igpt.curation.duplicates import Hashes, hash_pictures
from keras_igpt.curation.inspection import read_written
from keras_igpt.curation.pictures import HASHED_SIZE, Outcome, Pictures, pictures_of
from keras_igpt.curation.report import write_pictures
from keras_igpt.curation.settings import Job, Rules, check_settings
from keras_igpt.curation.shards import Shard, find_shards
from keras_igpt.curation.similarity import Similarity
from keras_igpt.data.examples import LabeledImages
from keras_igpt.data.image_files import ImageFiles
from keras_igpt.data.token_shards import write_token_manifest
from keras_igpt.palette.color_palette import ColorPalette, check_color_palette
from keras_igpt.support.checks import check_integer
from keras_igpt.support.files import held, remove, remove_partial, write_json

Pathname = str | os.PathLike[str]

# Seconds between two looks at how far the work has got.
_LOOK = 2.0

_PICTURES_TOGETHER = 1024


def curate(
    shards: Pathname | Iterable[Pathname],
    output: Pathname,
    palette: ColorPalette,
    image_size: int,
    similarity: Similarity,
    exclude: Sequence[Pictures] = (),
    rules: Rules | None = None,
    pipeline_options: Any = None,
) -> dict[str, Any]:
    """Makes a set of tokens of the web pictures that resemble a reference set.

    A picture is refused if it cannot be read, is tiny, huge or animated, is no photograph by cheap measures, is a
    near-duplicate of a picture of an evaluation set, resembles the reference too little, or is a near-duplicate of a
    kept picture before it, in this order; each is counted under the first reason that holds. The others' centre squares
    become palette tokens.

    The work is done shard by shard in one Apache Beam pipeline. A call after a kill does what is missing and ends with
    the same bytes. All workers must see the files of `shards` and `output` under the same paths.

    The folder holds, for shard `000000`, the tokens (`000000.npy`) and what became of each of its pictures
    (`000000.npz`: key, outcome, score, hash); `manifest.json`, which `TokenShards` opens; `report.json`; and two
    pictures to look at: `contact_sheet.png` and `scores.png`.

    Args:
        shards: tar files as img2dataset and WebDataset write them, folders of tar files or of pictures, or patterns.
        output: folder of the set, new or begun before with the same settings.
        palette: `ColorPalette` of the tokens.
        image_size: int. Side of the pictures that become tokens.
        similarity: `Similarity`: the reference, and where features come from.
        exclude: evaluation sets whose pictures must not be in the set: `LabeledImages` or `ImageFiles` of at least
            32x32 pixels, folders or tar files.
        rules: `Rules`; the defaults if None.
        pipeline_options: Beam's `PipelineOptions`, or a list of arguments for them such as
            `["--direct_running_mode", "multi_processing", "--direct_num_workers", "8"]`.

    Returns:
        The report, as it is in `report.json`.

    Raises:
        ValueError: if an argument is not as described, `output` was begun with other settings or is being written by
            another process, or nothing is kept.
        RuntimeError: if the pipeline fails.
        ImportError: if the extra `web` is absent.

    Example:
    ```python
    features = load_features("igpt.keras").of(imagenet.train)
    reference = Reference.fit(features, num_centroids=1000, source="igpt.keras")
    similarity = Similarity(reference, "igpt.keras")
    report = curate("web/*.tar", "web-tokens", palette, 64, similarity, exclude=[imagenet.test])
    tokens = TokenShards("web-tokens")
    ```
    """
    # First of all: Beam may be absent.
    from keras_igpt.curation.pipeline import run_pipeline

    rules = Rules() if rules is None else rules
    job = _make_job(output, palette, image_size, similarity, exclude, rules)
    found = find_shards(shards)
    settings = job.describe(found)
    check_settings(job.output, settings)
    start = time.perf_counter()
    manifest = Path(job.output) / "manifest.json"
    # A finished set may be read-only.
    if not manifest.is_file() or job.work.exists():
        with held(Path(job.output), "`output`"):
            # Another process may have begun at the same moment.
            check_settings(job.output, settings)
            if not manifest.is_file():
                job.work.mkdir(exist_ok=True)
                with _progress(job, len(found)):
                    done = run_pipeline(job, found, pipeline_options)
                _finish(job, found, settings, {"seconds": round(time.perf_counter() - start, 1), **done})
            # What a kill has left, which is nothing of the set's.
            remove_partial(job.output)
            remove(job.work)
    report: dict[str, Any] = json.loads((Path(output) / "report.json").read_text(encoding="utf-8"))
    return report


def _make_job(
    output: Pathname,
    palette: ColorPalette,
    image_size: int,
    similarity: Similarity,
    exclude: Sequence[Pictures],
    rules: Rules,
) -> Job:
    check_color_palette(palette, 3)
    for name, value, kind in (("similarity", similarity, Similarity), ("rules", rules, Rules)):
        if not isinstance(value, kind):
            raise ValueError(f"`{name}` must be {kind.__name__}. Received: {type(value).__name__}")
    if isinstance(exclude, (str, os.PathLike, LabeledImages, ImageFiles)):
        exclude = [exclude]  # one alone
    threshold = rules.threshold
    if threshold is None and rules.share is None:
        threshold = similarity.loaded_reference.threshold(rules.quantile)
    return Job(
        str(Path(output).resolve()),
        # Without the table that it may have built: workers build it themselves.
        ColorPalette(palette.centroids),
        check_integer("image_size", image_size),
        similarity,
        rules,
        _hash_all(exclude),
        threshold,
    )


def _hash_all(sets: Sequence[Pictures]) -> Hashes:
    """Hashes of all pictures of evaluation sets, and of their mirror images."""
    hashes = [np.empty((0, 2), np.uint64)]
    for one in sets:
        before = len(hashes)
        for images in pictures_of(one, HASHED_SIZE, _PICTURES_TOGETHER, "exclude"):
            if min(images.shape[1:3]) < HASHED_SIZE:
                raise ValueError(
                    f"`exclude` must be pictures of at least {HASHED_SIZE}x{HASHED_SIZE} pixels. "
                    f"Received: {images.shape[2]}x{images.shape[1]}"
                )
            hashes += [hash_pictures(images), hash_pictures(images[:, :, ::-1])]
        if len(hashes) == before:
            raise ValueError(f"`exclude` must be sets with pictures. Received: {one!r}, where none was found")
    return np.concatenate(hashes)


def _finish(job: Job, shards: Sequence[Shard], settings: dict[str, Any], done: dict[str, Any]) -> None:
    """Makes a set of the shards, and the report."""
    written = [read_written(job, shard) for shard in shards]
    threshold = json.loads((job.work / "decision.json").read_text(encoding="utf-8"))["threshold"]
    counts = {
        outcome.name.lower(): sum(shard.report["counts"][outcome.name.lower()] for shard in written)
        for outcome in Outcome
    }
    report = {
        "pictures": sum(counts.values()),
        "counts": counts,
        "threshold": threshold,
        "shards": len(shards),
        "shards_with_faults": {
            shards[n].path: one.report["fault"] for n, one in enumerate(written) if one.report["fault"]
        },
        "other_files": sum(shard.report["other_files"] for shard in written),
        "settings": settings,
    }
    if not counts["kept"]:
        raise ValueError(f"`rules` must keep some of the pictures of `shards`. Received: none kept, {counts}")
    write_pictures(job, shards, threshold)
    per_second = 1000 * done.get("pictures_inspected", 0) / max(1, done.get("inspecting_milliseconds", 0))
    done["pictures_per_core_second"] = round(per_second, 1)
    write_json(Path(job.output) / "report.json", {**report, "this_run": done})
    # Last: a folder with it is a set.
    write_token_manifest(job.output, written, job.palette, job.image_size, report)


@contextmanager
def _progress(job: Job, shards: int) -> Iterator[None]:
    """Shows how many shards have been inspected and written, by looking into the folder: on any runner."""
    bar = keras.utils.Progbar(2 * shards, unit_name="pass over a shard")
    ended = threading.Event()

    def look() -> None:
        while not ended.wait(_LOOK):
            bar.update(sum(path.suffix in (".npz", ".json") for path in job.work.glob("[0-9]*")))

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
    bar.update(2 * shards)
