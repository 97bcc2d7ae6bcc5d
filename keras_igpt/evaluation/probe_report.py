"""The results of a linear probe, and their file."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from keras_igpt.evaluation.features import Which
from keras_igpt.evaluation.intervals import Interval, MeasuredAccuracy, PairedComparison, interval_of_share
from keras_igpt.objectives.pixel_model import PixelModel
from keras_igpt.plotting import WithInterval, plot_depth_curves
from keras_igpt.support.files import write_json

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class LayerReport:
    """The probe of one depth, or of several concatenated; see `LogisticFit`.

    Attributes:
        layers: tuple of int in 0…L. The depth or depths.
        regularization_strength: float. The chosen C.
        validation_accuracy: float in 0…1, of the fit on train alone.
        iterations: int. L-BFGS iterations of the refit on train and validation.
        converged: bool. Whether the refit and all fits for choosing C converged.
    """

    layers: tuple[int, ...]
    regularization_strength: float
    validation_accuracy: float
    iterations: int
    converged: bool


@dataclass(frozen=True)
class ValidationReport:
    """The choices made on validation.

    Attributes:
        layers: tuple of `LayerReport`, in the order requested.
        best_layer: int. Depth with the best validation accuracy, the lowest in a tie.
        concatenation: `LayerReport` of the concatenated depths around the best one, or None.
    """

    layers: tuple[LayerReport, ...]
    best_layer: int
    concatenation: LayerReport | None


@dataclass(frozen=True)
class FinalReport:
    """Test accuracies of the refits on train and validation.

    Attributes:
        num_test: int. Test pictures.
        accuracies: dict of float in 0…1 by depth.
        concatenation: float in 0…1 of the concatenated depths, or None.
        measured: dict of `MeasuredAccuracy` by depth; empty if read from the file of an earlier version.
        measured_concatenation: `MeasuredAccuracy` of the concatenated depths, or None.
    """

    num_test: int
    accuracies: dict[int, float]
    concatenation: float | None
    measured: dict[int, MeasuredAccuracy] = field(default_factory=dict)
    measured_concatenation: MeasuredAccuracy | None = None


@dataclass(frozen=True)
class ProbeReport:
    """Settings and results of a linear probe; `str` makes a table of all depths, with 95% intervals.

    Attributes:
        chosen_on_validation: `ValidationReport`.
        final_on_test: `FinalReport` of the last set scored, or None.
        model: dict. Kind and sizes of the language model.
        which: `"normed"` or `"residual"`.
        pooling: str. Pooling over positions.
        solver: str. Method of the regression.
        strengths: tuple of float. Candidate values of C.
        max_iterations: int. Maximum number of L-BFGS iterations.
        num_train: int. Training pictures.
        num_validation: int. Validation pictures.
        num_classes: int.
        mask_seed: int. Seed of a BERT model's masks; None for other models.
        backend: str. Keras' backend.
    """

    chosen_on_validation: ValidationReport
    final_on_test: FinalReport | None
    model: dict[str, Any]
    which: Which
    pooling: str
    solver: str
    strengths: tuple[float, ...]
    max_iterations: int
    num_train: int
    num_validation: int
    num_classes: int
    mask_seed: int | None
    backend: str

    @property
    def best_layer(self) -> int:
        """Depth with the best validation accuracy."""
        return self.chosen_on_validation.best_layer

    @property
    def measured(self) -> MeasuredAccuracy:
        """Test accuracy at the depth chosen on validation; raises `ValueError` if there is none."""
        final = self.final_on_test
        if final is None or self.best_layer not in final.measured:
            raise ValueError(
                "The probe must be scored on a test set first: call `score(test)`. Received: a report "
                f"{'without test accuracies' if final is None else 'of an earlier version, which kept no predictions'}"
            )
        return final.measured[self.best_layer]

    @property
    def intervals(self) -> dict[str, dict[int, Interval]]:
        """Accuracies by depth with their 95% intervals, of `"validation"` and, if scored, `"test"`."""
        chosen, final = self.chosen_on_validation, self.final_on_test
        accuracies = {line.layers[0]: line.validation_accuracy for line in chosen.layers}
        curves = {"validation": _intervals(accuracies, self.num_validation)}
        if final is not None:
            curves["test"] = _intervals(final.accuracies, final.num_test)
        return curves

    def compare(self, other: ProbeReport | MeasuredAccuracy) -> PairedComparison:
        """Compares this probe with another on the same test set, each at the depth chosen on validation.

        Args:
            other: `ProbeReport`, or `MeasuredAccuracy` of any other classifier.

        Returns:
            A `PairedComparison`, of this one minus the other.

        Raises:
            ValueError: if a probe is not scored, or the test sets differ.
            ImportError: if SciPy is absent.

        Example:
        ```python
        first, second = ProbeReport.load("ar/probe.json"), ProbeReport.load("bert/probe.json")
        print(first.compare(second))   # +3.6 points [+2.6, +4.6], p = 1.2e-12
        ```
        """
        return self.measured.compare(other.measured if isinstance(other, ProbeReport) else other)

    def __str__(self) -> str:
        chosen, final = self.chosen_on_validation, self.final_on_test
        rows = ["depth         C  validation            test"]
        for line in (*chosen.layers, *([] if chosen.concatenation is None else [chosen.concatenation])):
            (first, *others) = line.layers
            score = None if final is None else final.concatenation if others else final.accuracies[first]
            shown = [
                f"{f'{first}-{others[-1]}' if others else first:>5}  {line.regularization_strength:8g}",
                interval_of_share(line.validation_accuracy, self.num_validation).as_percentages(),
                "" if final is None or score is None else interval_of_share(score, final.num_test).as_percentages(),
            ]
            mark = "  <- chosen on validation" if line.layers == (chosen.best_layer,) else ""
            unfinished = "" if line.converged else "  (not converged)"
            rows.append(f"{shown[0]}  {shown[1]:20}  {shown[2]:20}{unfinished}{mark}".rstrip())
        return "\n".join([*rows, "95% intervals over pictures in brackets"])

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the report as JSON, atomically."""
        write_json(path, asdict(self))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> ProbeReport:
        """Reads a report that `save` wrote.

        Raises:
            ValueError: if the file is not such a report.
        """
        try:
            return cls.from_dict(json.loads(Path(path).read_text(encoding="utf-8")))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                f"`path` must be a report that `ProbeReport.save` wrote. Received: {path} ({type(error).__name__})"
            ) from error

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> ProbeReport:
        """Makes a report of what `dataclasses.asdict` and JSON made of one; raises `KeyError` or `TypeError`."""
        chosen, final = content["chosen_on_validation"], content["final_on_test"]
        restored = {
            "chosen_on_validation": ValidationReport(
                tuple(map(_layer_report, chosen["layers"])),
                chosen["best_layer"],
                None if chosen["concatenation"] is None else _layer_report(chosen["concatenation"]),
            ),
            "final_on_test": None if final is None else _final_report(final),
            "strengths": tuple(content["strengths"]),
        }
        return cls(**{**content, **restored})

    def plot(self, references: Mapping[str, float | WithInterval] | None = None) -> Figure:
        """Plots accuracy against depth on validation and, if scored, on test, with 95% intervals.

        Validation is dotted, with bars; test has a band. The best depth is ringed. Depths side by side are a horizontal
        line, of test if scored.

        Args:
            references: test accuracy in 0…1 or `Interval` by name, such as that of raw pixels; horizontal lines.

        Returns:
            A Matplotlib figure.

        Raises:
            ImportError: if Matplotlib is absent.

        Example:
        ```python
        probe.report.plot({"raw pixels": pixels.interval}).savefig("depth_curve.png")
        ```
        """
        chosen, final, curves = self.chosen_on_validation, self.final_on_test, self.intervals
        lines = dict(references or {})
        if chosen.concatenation is not None:
            many = f"{len(chosen.concatenation.layers)} depths side by side"
            if final is None or final.concatenation is None:
                accuracy = chosen.concatenation.validation_accuracy
                lines[f"{many}, validation"] = interval_of_share(accuracy, self.num_validation)
            else:
                lines[f"{many}, test"] = interval_of_share(final.concatenation, final.num_test)
        return plot_depth_curves(curves, lines, dict.fromkeys(curves, chosen.best_layer))


def describe_probed(language_model: PixelModel) -> dict[str, Any]:
    """Returns what reports say of a language model: its kind, sizes and choices."""
    return {"kind": type(language_model).__name__, **language_model.backbone.architecture.arguments}


def _intervals(accuracies: Mapping[int, float], count: int) -> dict[int, Interval]:
    return {depth: interval_of_share(accuracy, count) for depth, accuracy in accuracies.items()}


def _layer_report(entry: dict[str, Any]) -> LayerReport:
    return LayerReport(**{**entry, "layers": tuple(entry["layers"])})


def _final_report(entry: dict[str, Any]) -> FinalReport:
    by_depth = {int(depth): MeasuredAccuracy(**value) for depth, value in entry.get("measured", {}).items()}
    together = entry.get("measured_concatenation")
    return FinalReport(
        num_test=entry["num_test"],
        accuracies={int(depth): accuracy for depth, accuracy in entry["accuracies"].items()},
        concatenation=entry["concatenation"],
        measured=by_depth,
        measured_concatenation=None if together is None else MeasuredAccuracy(**together),
    )
