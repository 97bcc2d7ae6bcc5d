"""The depth curve of a model: that of a probe report beside its file, or the one known of a bundled model."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from keras_igpt.plotting import plot_depth_curves

# Reports of `keras-igpt probe` on CIFAR-10 for the bundled models, and the test accuracy of raw pixels.
_KNOWN = "depth_curves.json"


@dataclass(frozen=True)
class DepthCurve:
    """What linear probes found at each depth of a model.

    Attributes:
        source: str. Where the figures come from.
        accuracies: dict of float in 0…1 by depth.
        best_layer: int. The depth that validation chose.
        measured_on: str. The pictures, such as "10,000 test pictures of 10 classes".
        raw_pixels: float. Accuracy of logistic regression on raw pixels, or None if unknown.
    """

    source: str
    accuracies: dict[int, float]
    best_layer: int
    measured_on: str
    raw_pixels: float | None

    @classmethod
    def from_report(cls, report: dict[str, Any], source: str, raw_pixels: float | None) -> DepthCurve:
        """Takes the figures of test pictures from a saved `ProbeReport`, or of validation if none was scored."""
        chosen, final = report["chosen_on_validation"], report["final_on_test"]
        if final is None:
            accuracies = {line["layers"][0]: line["validation_accuracy"] for line in chosen["layers"]}
            pictures = f"{report['num_validation']:,} validation"
        else:
            accuracies = {int(depth): accuracy for depth, accuracy in final["accuracies"].items()}
            pictures = f"{final['num_test']:,} test"
        measured_on = f"{pictures} pictures of {report['num_classes']} classes"
        return cls(source, accuracies, chosen["best_layer"], measured_on, raw_pixels)

    def __str__(self) -> str:
        first, best, last = min(self.accuracies), self.best_layer, max(self.accuracies)
        told = [f"{self.accuracies[depth]:.1%} at depth {depth}" for depth in sorted({first, best, last})]
        pixels = "" if self.raw_pixels is None else f"; {self.raw_pixels:.1%} from raw pixels"
        return (
            f"A linear classifier on the features of each depth, {self.measured_on}: {', '.join(told)}{pixels}. "
            f"Validation chose depth {best}. From {self.source}."
        )

    def png(self) -> bytes:
        """Draws the curve as a PNG file."""
        references = {} if self.raw_pixels is None else {"raw pixels": self.raw_pixels}
        written = io.BytesIO()
        name = "linear probe"
        plot_depth_curves({name: self.accuracies}, references, {name: self.best_layer}).savefig(written, format="png")
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
        return DepthCurve.from_report(known["reports"][name], known["source"], known["raw_pixels"])
    folder = Path(name).absolute().parent
    sizes = {"kind": type(model).__name__, **model.backbone.architecture.arguments}
    found = [*folder.glob("*.json"), *folder.glob("*/*.json")]
    there = [path for path in found if path.is_file()]
    for path in sorted(there, key=lambda path: path.stat().st_mtime, reverse=True):
        report = _read(path)
        # A search's report has choices too, but no model.
        if {"chosen_on_validation", "final_on_test"} <= report.keys() and _fits(report.get("model"), sizes):
            pixels = _read(path.parent / "config.json").get("raw pixels, test accuracy")
            return DepthCurve.from_report(report, str(path), pixels)
    return None


def _fits(described: Any, sizes: dict[str, Any]) -> bool:
    """Whether a report's model is one of these sizes; reports name those that there were when they were written."""
    return isinstance(described, dict) and described.items() <= sizes.items() and "kind" in described


def _read(path: Path) -> dict[str, Any]:
    """Reads a JSON object. Other files, and those that cannot be read, count as empty ones."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError):
        return {}
    return content if isinstance(content, dict) else {}
