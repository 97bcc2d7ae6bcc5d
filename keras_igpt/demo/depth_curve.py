"""The depth curve of a model: that of a probe report beside its file, or the one known of a bundled model."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from keras_igpt.checkpoints.run_reports import TEST_ACCURACY, accuracies_beside
from keras_igpt.evaluation.intervals import Interval
from keras_igpt.evaluation.low_data import RAW_PIXELS
from keras_igpt.evaluation.probe_report import ProbeReport, describe_probed

# Reports of `keras-igpt probe` on CIFAR-10 for the bundled models, and the test accuracy of raw pixels.
_KNOWN = "depth_curves.json"


@dataclass(frozen=True)
class DepthCurve:
    """What linear probes found at each depth of a model.

    Attributes:
        source: str. Where the figures come from.
        report: `ProbeReport`.
        raw_pixels: `Interval` of the test accuracy of logistic regression on raw pixels, or None if unknown.
    """

    source: str
    report: ProbeReport
    raw_pixels: Interval | None

    def __str__(self) -> str:
        report, final = self.report, self.report.final_on_test
        part, count = ("validation", report.num_validation) if final is None else ("test", final.num_test)
        curve = report.intervals[part]
        depths = sorted({min(curve), report.best_layer, max(curve)})
        told = ", ".join(f"{curve[depth].as_percentages()} at depth {depth}" for depth in depths)
        pixels = "" if self.raw_pixels is None else f"; {self.raw_pixels.as_percentages()} from raw pixels"
        return (
            f"A linear classifier on the features of each depth, {count:,} {part} pictures of {report.num_classes} "
            f"classes: {told}{pixels}. Brackets are 95% intervals. Validation chose depth {report.best_layer}. "
            f"From {self.source}."
        )

    def png(self) -> bytes:
        """Draws the curve as a PNG file."""
        written = io.BytesIO()
        figure = self.report.plot({} if self.raw_pixels is None else {RAW_PIXELS: self.raw_pixels})
        figure.savefig(written, format="png")
        return written.getvalue()


def find_depth_curve(model: Any, name: str) -> DepthCurve | None:
    """Finds the depth curve of a model.

    Args:
        model: an `ImageGPTCausalLM` or `ImageGPTMaskedLM`.
        name: str. Path of its `.keras` file, or trained preset.

    Returns:
        The curve of the newest report in the file's folder, or in a folder there, that is of a model of this kind and
        these sizes; for a preset the known one; None if there is none.
    """
    if not Path(name).is_file():
        known = json.loads((files("keras_igpt.demo") / _KNOWN).read_text(encoding="utf-8"))
        if name not in known["reports"]:
            return None
        report = ProbeReport.from_dict(known["reports"][name])
        return _depth_curve(known["source"], report, {f"{RAW_PIXELS}{TEST_ACCURACY}": known["raw_pixels"][name]})
    folder = Path(name).absolute().parent
    sizes = describe_probed(model)
    found = [*folder.glob("*.json"), *folder.glob("*/*.json")]
    there = [path for path in found if path.is_file()]
    for path in sorted(there, key=lambda path: path.stat().st_mtime, reverse=True):
        try:
            report = ProbeReport.load(path)
        except (OSError, ValueError):
            continue  # another file
        # Reports name the sizes and choices that there were when they were written.
        if report.model.items() <= sizes.items():
            return _depth_curve(str(path), report, _read(path.parent / "config.json"))
    return None


def _depth_curve(source: str, report: ProbeReport, config: dict[str, Any]) -> DepthCurve:
    return DepthCurve(source, report, accuracies_beside(report, config).get(RAW_PIXELS))


def _read(path: Path) -> dict[str, Any]:
    """Reads a JSON object. Other files, and those that cannot be read, count as empty ones."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError):
        return {}
    return content if isinstance(content, dict) else {}
