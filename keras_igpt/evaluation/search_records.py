"""The results of a search, and their files."""

from __future__ import annotations

import json
import math
import reprlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from keras_igpt.evaluation.intervals import MeasuredAccuracy, interval_of_share
from keras_igpt.support.files import write_json

_SETS = ("train", "validation", "test")


@dataclass(frozen=True)
class Trial:
    """One setting of a search and its result.

    Attributes:
        values: hyperparameters by name.
        objective: float. Value on validation at `epochs`; None if training diverged or was not good enough.
        epochs: int. Epochs up to that value; 0 if there is none.
        history: one value per epoch of each metric, None if not finite; empty if the training loss was not finite.
    """

    values: dict[str, Any]
    objective: float | None
    epochs: int
    history: dict[str, list[float | None]]


@dataclass(frozen=True)
class Search:
    """The trials of a search.

    Attributes:
        objective: str. Name of the metric.
        direction: `"min"` or `"max"`.
        to_beat: float. Trials with no better objective have no score.
        trials: tuple of `Trial`, in order.
        steps_per_epoch: int.
        seed: int. Seed of random initial weights.
        backend: str. Keras' backend.
        num_train: int. Training pictures.
        num_validation: int. Validation pictures.
    """

    objective: str
    direction: str
    to_beat: float
    trials: tuple[Trial, ...]
    steps_per_epoch: int
    seed: int
    backend: str
    num_train: int
    num_validation: int

    @property
    def best(self) -> Trial:
        """The trial with the best objective, the first in a tie; raises `ValueError` if none has a score."""
        sign = 1 if self.direction == "max" else -1
        scored = [(sign * trial.objective, trial) for trial in self.trials if trial.objective is not None]
        if not scored:
            raise ValueError(
                f"No trial brought {self.objective} to better than {self.to_beat:.6g}, which it had to beat. "
                f"Received: {[trial.values for trial in self.trials]}"
            )
        return max(scored, key=lambda pair: pair[0])[1]

    def __str__(self) -> str:
        lines = [f"{self.objective} of each trial (to beat: {self.to_beat:.4f})"]
        for trial in self.trials:
            if trial.objective is None:
                shown = why_without_score(trial, self.objective, self.to_beat)
            else:
                value = _shown(self.objective, trial.objective, self.num_validation)
                shown = f"{value} after {trial.epochs} epoch(s)"
            lines.append(f"  {name_of(trial.values)}: {shown}")
        return "\n".join(lines)


@dataclass(frozen=True)
class TunedResult:
    """The result of a study: the choice on validation, and the test metrics of the refit.

    Attributes:
        chosen_on_validation: the `Search`.
        values: hyperparameters of the refit.
        steps: int. Steps of the refit, equal to the best trial's.
        num_refit: int. Pictures of train and validation together.
        num_test: int. Test pictures.
        final_on_test: metrics of the refitted model by name.
        measured: `MeasuredAccuracy` by name, of a classifier; empty for others, and if read from the file of an earlier
            version.
    """

    chosen_on_validation: Search
    values: dict[str, Any]
    steps: int
    num_refit: int
    num_test: int
    final_on_test: dict[str, float]
    measured: dict[str, MeasuredAccuracy] = field(default_factory=dict)

    def __str__(self) -> str:
        final = ", ".join(f"{name} {_shown(name, value, self.num_test)}" for name, value in self.final_on_test.items())
        return (
            f"Chosen on validation ({self.chosen_on_validation.num_validation:,} pictures): {name_of(self.values)}, "
            f"{self.steps:,} steps\n{self.chosen_on_validation}\n"
            f"Final on test ({self.num_test:,} pictures), refitted on train and validation: {final}"
        )


class Ledger:
    """The finished trials of a search, in a file that is written atomically.

    `description`, which includes a hash of the model's settings, identifies the search. The settings themselves, which
    older files lack, are only used to report differences.
    """

    def __init__(self, path: Path, description: dict[str, Any], settings: Any, bound: float) -> None:
        self._path, self._description, self._settings = path, json.loads(json.dumps(description)), settings
        self._trials: list[Trial] = []
        # Digests of the settings of each trial's model; None of older files.
        self._made: list[str | None] = []
        # Reused from the file, since on a GPU the last bit may differ between runs.
        self.bound = bound
        if path.is_file():
            content = self._read(path)
            self._compare(content)
            self._trials, self.bound = content["trials"], content["bound"]
            self._made = [*content.get("made", []), *[None] * len(self._trials)][: len(self._trials)]

    @staticmethod
    def _read(path: Path) -> dict[str, Any]:
        content = read_json(path, "a search", "Move it away, and the search starts over")
        try:
            trials = [Trial(**entry) for entry in content["trials"]]
            whole = (
                isinstance(content["search"]["start"], dict)
                and isinstance(content["bound"], (int, float))
                and isinstance(content.get("made", []), list)
                and all(
                    isinstance(trial.values, dict)
                    and isinstance(trial.objective, (int, float, type(None)))
                    and isinstance(trial.epochs, int)
                    and isinstance(trial.history, dict)
                    for trial in trials
                )
            )
        except (KeyError, TypeError):
            whole = False
        if not whole:
            raise damaged(path, "a search", "Move it away, and the search starts over", "not what was written there")
        return {**content, "trials": trials}

    def _compare(self, content: dict[str, Any]) -> None:
        """Raises an error with the first difference if the file belongs to another search."""
        recorded = content["search"]
        for name, here in self._description.items():
            there = recorded.get(name)
            # Older files describe fewer values, no test set, and of pictures in files the number alone.
            if name == "batches" and isinstance(there, dict):
                here = {key: value for key, value in here.items() if key in there}
            if name in _SETS and there in (None, here.partition(" ")[0]):
                continue
            if here == there:
                continue
            if name == "model" and "settings" in content:
                path, here, there = _first_difference("", self._settings, content["settings"])
            elif name in _SETS:
                # Fingerprints are a number of pictures and a hash.
                counts = [str(fingerprint).partition(" ")[0] for fingerprint in (here, there)]
                if counts[0] == counts[1]:
                    raise self._other_search(
                        f"data.{name} has other pictures or labels here", f"as many in {self._path}"
                    )
                path, here, there = f"the number of pictures of data.{name}", *map(int, counts)
            elif name in ("model", "start"):
                what = "model has other settings" if name == "model" else "make_model begins with other weights"
                raise self._other_search(f"{what} here", f"those in {self._path}")
            else:
                path, here, there = _first_difference(name, here, there)
            raise self._other_search(
                f"{path.lstrip('.')} is {reprlib.repr(here)} here",
                f"{path.lstrip('.')}={reprlib.repr(there)} in {self._path}",
            )

    @staticmethod
    def _other_search(difference: str, received: str) -> ValueError:
        return ValueError(
            f"`folder` must hold this search: {difference}. Use another folder for other settings. Received: {received}"
        )

    def recorded(self, index: int, values: dict[str, Any], made: str) -> Trial | None:
        """Returns the finished trial of an index, or None.

        Args:
            index: int.
            values: the hyperparameters that the oracle proposes.
            made: str. Digest of the settings of the model that `make_model` makes of them.

        Raises:
            ValueError: if the trial had other hyperparameters, or its model other settings.
        """
        if index >= len(self._trials):
            return None
        trial = self._trials[index]
        if trial.values != values:
            raise ValueError(
                "`oracle` must propose what it proposed before the search was stopped, so it needs a seed, and not 0, "
                f"which KerasTuner takes for none: trial {index} was {trial.values}. Received: {values}"
            )
        if self._made[index] not in (None, made):
            raise self._other_search(
                f"the model of {name_of(values)} has other settings here", f"those of trial {index} in {self._path}"
            )
        return trial

    def record(self, trial: Trial, made: str) -> None:
        """Adds a finished trial, with the digest of its model's settings."""
        self._trials.append(trial)
        self._made.append(made)
        content = {
            "search": self._description,
            "settings": self._settings,
            "bound": self.bound,
            "made": self._made,
        }
        write_json(self._path, {**content, "trials": [asdict(trial) for trial in self._trials]})


def read_json(path: Path, what: str, remedy: str) -> dict[str, Any]:
    """Reads an object from a file in the user's `folder`; raises `ValueError` with the remedy if it is damaged."""
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # of JSON, or of UTF-8
        raise damaged(path, what, remedy, str(error)) from error
    if not isinstance(content, dict):
        raise damaged(path, what, remedy, "not what was written there")
    return content


def damaged(path: Path, what: str, remedy: str, fault: str) -> ValueError:
    """Returns the error for a damaged file in the user's `folder`."""
    return ValueError(f"`folder` must hold {what}. {remedy}. Received: {path}, which is damaged ({fault})")


def _first_difference(path: str, here: Any, there: Any) -> tuple[str, Any, Any]:
    """Returns the path of the first setting that differs, and both values."""
    if isinstance(here, dict) and isinstance(there, dict):
        pairs = [(f"{path}.{key}", here.get(key), there.get(key)) for key in sorted(here.keys() | there.keys())]
    elif isinstance(here, list) and isinstance(there, list) and len(here) == len(there):
        pairs = [(f"{path}[{index}]", *pair) for index, pair in enumerate(zip(here, there, strict=True))]
    else:
        return path, here, there
    # If only one side has a key, with value None, the difference is reported here.
    return next((_first_difference(*pair) for pair in pairs if pair[1] != pair[2]), (path, here, there))


def read_report(path: Path, search: Search) -> TunedResult:
    """Reads `report.json`, which must be of this search."""
    remedy = "Delete it, and the refit is trained and tested again"
    content = read_json(path, "this search's report", remedy)
    if content.get("chosen_on_validation") != json.loads(json.dumps(asdict(search))):
        raise ValueError(
            f"`folder` must hold this search's report. {remedy}. Received: {path}, which is of another search"
        )
    try:
        measured = {name: MeasuredAccuracy(**entry) for name, entry in content.get("measured", {}).items()}
    except (AttributeError, TypeError):
        measured = None
    named = {*content, "measured"} == {entry.name for entry in fields(TunedResult)}
    if not named or measured is None or not isinstance(content["final_on_test"], dict):
        raise damaged(path, "this search's report", remedy, "not what was written there")
    return TunedResult(**{**content, "chosen_on_validation": search, "measured": measured})


def _shown(name: str, value: float, count: int) -> str:
    """Returns a metric with four decimals, an accuracy with its 95% interval over `count` pictures."""
    # An own metric of any name may have any range.
    if "accuracy" not in name or not 0 <= value <= 1:
        return f"{value:.4f}"
    interval = interval_of_share(value, count)
    return f"{value:.4f} [{interval.low:.4f}, {interval.high:.4f}]"


def why_without_score(trial: Trial, objective: str, to_beat: float) -> str:
    """Says what became of a trial without a score."""
    last = (trial.history.get(objective) or [None])[-1]
    return "diverged" if last is None else f"{last:.4f}, no better than {to_beat:.4f}"


def name_of(values: Mapping[str, Any]) -> str:
    """Returns hyperparameters on one line."""
    return ", ".join(
        f"{name}={value:.6g}" if isinstance(value, float) else f"{name}={value}" for name, value in values.items()
    )


def finite_metrics(metrics: Any, saved: Path) -> dict[str, float]:
    """Returns test metrics as floats; errors mention that the refitted model is saved."""
    kept = f"The refitted model is kept in {saved}: run the same again, and nothing is trained again"
    if not isinstance(metrics, Mapping):
        raise ValueError(f"`evaluate` must return metrics by name. {kept}. Received: {type(metrics).__name__}")
    finite = {}
    for name, value in metrics.items():
        try:
            finite[str(name)] = float(value)
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"`evaluate` must return a number for {name!r}. {kept}. Received: {type(value).__name__}"
            ) from error
        if not math.isfinite(finite[str(name)]):
            raise ValueError(f"`evaluate` must return a finite number for {name!r}. {kept}. Received: {value}")
    return finite
