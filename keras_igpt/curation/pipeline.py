"""The Beam pipeline: every shard inspected, a decision about all, every shard written."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any

try:
    import apache_beam as beam
    from apache_beam.metrics.metric import Metrics
    from apache_beam.options.pipeline_options import PipelineOptions, StandardOptions
    from apache_beam.transforms.combiners import Count
    from apache_beam.utils.shared import Shared
except ImportError as error:
    raise ImportError("Curating web pictures needs Apache Beam: pip install 'keras_igpt[web]'") from error

from keras_igpt.curation.inspection import Inspector, Writer, decide
from keras_igpt.curation.settings import Job
from keras_igpt.curation.shards import Shard

_NAMESPACE = "keras_igpt.curation"

# Beam's own runner in Python. What Beam takes by default looks for a program on the network first, which knows nothing
# of several processes.
_LOCAL_RUNNER = "apache_beam.runners.portability.fn_api_runner.fn_runner.FnApiRunner"


class InspectShards(beam.DoFn):  # type: ignore[misc]
    """Inspects shards. The model is loaded once a process.

    Args:
        job: the job.
    """

    def __init__(self, job: Job) -> None:
        self._job = job
        self._shared = Shared()

    def setup(self) -> None:
        self._inspector = self._shared.acquire(lambda: Inspector(self._job))

    def process(self, shard: Shard) -> Iterator[int]:
        start = time.process_time()
        pictures = self._inspector.inspect(shard)
        if pictures is not None:
            _count("shards_inspected", 1)
            _count("pictures_inspected", pictures)
            _count("inspecting_milliseconds", round(1000 * (time.process_time() - start)))
        yield shard.number


class Decide(beam.DoFn):  # type: ignore[misc]
    """Decides about all pictures, once all shards have been inspected.

    Args:
        job: the job.
        shards: its shards.
    """

    def __init__(self, job: Job, shards: Sequence[Shard]) -> None:
        self._job, self._shards = job, shards

    def process(self, inspected: int) -> Iterator[float]:
        start = time.process_time()
        if inspected != len(self._shards):
            raise RuntimeError(f"All {len(self._shards)} shards must have been inspected. Received: {inspected}")
        yield decide(self._job, self._shards)
        _count("deciding_milliseconds", round(1000 * (time.process_time() - start)))


class WriteShards(beam.DoFn):  # type: ignore[misc]
    """Writes what is kept of each shard.

    Args:
        job: the job.
    """

    def __init__(self, job: Job) -> None:
        self._job = job

    def setup(self) -> None:
        self._writer: Writer | None = None

    def process(self, shard: Shard, _decided: float) -> Iterator[int]:
        start = time.process_time()
        # Not in `setup`, which may come before the decision.
        if self._writer is None:
            self._writer = Writer(self._job)
        if self._writer.write(shard):
            _count("shards_written", 1)
        _count("writing_milliseconds", round(1000 * (time.process_time() - start)))
        yield shard.number


def run_pipeline(job: Job, shards: Sequence[Shard], options: Any) -> dict[str, int]:
    """Runs a job to its end.

    Args:
        job: the job.
        shards: its shards.
        options: Beam's `PipelineOptions`, arguments for them, or None.

    Returns:
        What was done in this run, by name: shards, pictures, milliseconds of a core.

    Raises:
        RuntimeError: if the pipeline fails.
    """
    if not isinstance(options, PipelineOptions):
        options = PipelineOptions(list(options or []))
    if options.view_as(StandardOptions).runner in (None, "DirectRunner"):
        options.view_as(StandardOptions).runner = _LOCAL_RUNNER
    pipeline = beam.Pipeline(options=options)
    all_shards = pipeline | "shards" >> beam.Create(list(shards))
    decided = (
        all_shards
        | "spread to inspect" >> beam.Reshuffle()
        | "inspect" >> beam.ParDo(InspectShards(job))
        | "all inspected" >> Count.Globally()
        | "decide" >> beam.ParDo(Decide(job, shards))
    )
    _ = (
        all_shards
        | "spread to write" >> beam.Reshuffle()
        | "write" >> beam.ParDo(WriteShards(job), beam.pvalue.AsSingleton(decided))
    )
    result = pipeline.run()
    state = result.wait_until_finish()
    if state != "DONE":
        raise RuntimeError(f"The pipeline must end well. Received: state {state}")
    counters = result.metrics().query()["counters"]
    return {
        counter.key.metric.name: counter.result for counter in counters if counter.key.metric.namespace == _NAMESPACE
    }


def _count(name: str, value: int) -> None:
    Metrics.counter(_NAMESPACE, name).inc(value)
