"""What the reports of runs say of a model: settings, figures and pictures for its card."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from keras_igpt.checkpoints.huggingface_files import read_json
from keras_igpt.evaluation.intervals import HIGH_END, LOW_END, Interval, interval_of_share
from keras_igpt.evaluation.low_data import RAW_PIXELS, LowDataLine, LowDataTable
from keras_igpt.evaluation.probe_report import ProbeReport
from keras_igpt.objectives.causal_lm import ImageGPTCausalLM
from keras_igpt.objectives.image_classifier import ImageGPTImageClassifier
from keras_igpt.objectives.masked_lm import ImageGPTMaskedLM
from keras_igpt.objectives.pixel_model import PixelModel
from keras_igpt.plotting import plot_loss_curves
from keras_igpt.support.files import read_log

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# What commands write into the folder of a run.
_CONFIG, _LOG = "config.json", "log.csv"
_REPORTS = ("report.json", "results.json", "table.json")
# Settings that a reader needs, as the card calls them. Folders of the machine are not among them.
_SETTINGS = {
    "objective": "objective",
    "dataset": "data set",
    "pictures": "pictures trained on",
    "augmentation": "augmentation",
    "epochs": "epochs",
    "updates": "updates",
    "batch_size": "batch size",
    "learning_rate": "peak learning rate",
    "rate": "learning rate",
    "generative_weight": "weight of L_GEN",
    "dtype": "dtype policy",
    "seed": "seed",
    "backend": "backend",
    "keras_igpt": "version of keras_igpt",
}
# Behind the names of other ways to judge in the settings of a probe.
TEST_ACCURACY = ", test accuracy"
_TRAININGS = {"pretrain": "Pre-training", "finetune": "Fine-tuning", "search": "Search and refit"}
# How `keras-igpt pretrain` calls the sizes and choices of a network.
_SIZES = {
    "image_size": "image_size",
    "layers": "num_layers",
    "heads": "num_heads",
    "width": "hidden_dim",
    "normalization": "normalization",
}
_OBJECTIVES = {"ar": ImageGPTCausalLM.__name__, "bert": ImageGPTMaskedLM.__name__}

Model = ImageGPTCausalLM | ImageGPTMaskedLM | ImageGPTImageClassifier
Paths = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]


@dataclass(frozen=True)
class Section:
    """A part of a model card.

    Attributes:
        title: str. Its heading.
        text: str. Markdown.
        figure: Matplotlib figure or None.
        level: int. Of the heading.
    """

    title: str
    text: str
    figure: Figure | None = None
    level: int = 2


@dataclass(frozen=True)
class RunReports:
    """What runs say of a model.

    Attributes:
        settings: each training's title and settings, by their names in the card.
        sections: figures and pictures, a section a report.
    """

    settings: list[tuple[str, dict[str, Any]]]
    sections: list[Section]


def read_reports(paths: Paths, model: Model) -> RunReports:
    """Reads the folders of runs, and reports as JSON.

    Args:
        paths: path or sequence of paths. Folders that commands wrote; or JSON files of `ProbeReport.save`,
            `LowDataTable.save`, a `Study`, or of named numbers.
        model: what they must be of. A classifier's may be of its language model, too, and a language model's of
            classifiers made from it.

    Returns:
        `RunReports`.

    Raises:
        ValueError: if `paths` are none, or a path has no report, or one of another model, as far as it says. Numbers
            without the settings of their run say nothing of it.
    """
    try:
        given = [*map(Path, [paths] if isinstance(paths, (str, os.PathLike)) else paths)]
    except TypeError as error:
        raise ValueError(f"`reports` must be a path or a sequence of paths. Received: {paths!r}") from error
    found = RunReports([], [])
    for path in given:
        config: dict[str, Any] = {}
        files = [path] if path.is_file() else [path / name for name in _REPORTS if (path / name).is_file()]
        if (path / _CONFIG).is_file():
            config = read_json(path / _CONFIG)
        log = read_log(path / _LOG)
        if not files and not log:
            raise ValueError(
                f"`reports` must be folders of runs with {_LOG} or {', '.join(_REPORTS)}, or JSON files. "
                f"Received: {os.fspath(path)!r}"
            )
        # Earlier revisions did not write which command it was; others than trainings have no log.
        command = config.get("command", "pretrain" if log else "")
        _check(path / _CONFIG, _stated(config, command, model), model)
        title = _TRAININGS.get(command)
        if title:
            settings = {name: config[key] for key, name in _SETTINGS.items() if config.get(key) is not None}
            if "epochs" in settings:
                # Of fine-tuning and searches they are a limit.
                settings["epochs"] = len(log) if log else f"at most {settings['epochs']}"
            found.settings.append((title, settings))
        found.sections.extend(_training_section(log))
        found.sections.extend(_section(file, config, model) for file in files)
    return found


def table(rows: Mapping[str, Any]) -> str:
    """Returns a Markdown table of names and values."""
    return _table(["", ""], [[name, str(value)] for name, value in rows.items()])


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    cells = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(map(_cell, row))} |" for row in cells)


def _cell(text: str) -> str:
    return "<br>".join(text.replace("|", "&#124;").splitlines())


def language_model_of(model: Model) -> PixelModel:
    """Returns the language model itself, or that of a classifier."""
    return model.language_model if isinstance(model, ImageGPTImageClassifier) else model


def _stated(config: Mapping[str, Any], command: str, model: Model) -> dict[str, Any]:
    """Returns what the settings of a run say of its model, by the model's own names."""
    if command == "pretrain":
        stated = {name: config[key] for key, name in _SIZES.items() if key in config}
        # Beside a palette that was given, the number of colours is not that of the model.
        if "colors" in config and config.get("palette") is None:
            stated["vocabulary_size"] = config["colors"]
        if "objective" in config:
            stated["kind"] = _OBJECTIVES.get(config["objective"])
        return stated
    if command not in ("finetune", "search", "low-data"):
        return {}
    stated = dict(config.get("language_model", {}))
    if isinstance(model, ImageGPTImageClassifier):
        if "classes" in config:
            stated["num_classes"] = len(config["classes"])
            stated |= {"class_names": config["classes"]} if model.class_names else {}
        if "layer" in config:
            stated["layer"] = model.backbone.num_layers if config["layer"] is None else config["layer"]
        if "generative_weight" in config:
            stated["generative_weight"] = 0 if config.get("frozen") else config["generative_weight"]
    return stated


def _check(path: Path, stated: Mapping[str, Any], model: Model) -> None:
    """Raises `ValueError` if a report says other things of its model than are so."""
    # A subclass is a model of its kind too.
    kinds = [each.__name__ for each in type(language_model_of(model)).__mro__]
    kind = stated["kind"] if stated.get("kind") in kinds else kinds[0]
    actual = {"kind": kind, **asdict(model.backbone.architecture)}
    if isinstance(model, ImageGPTImageClassifier):
        actual |= {name: getattr(model, name) for name in ("num_classes", "layer", "generative_weight")}
        actual["class_names"] = list(model.class_names or ())
    for name, value in stated.items():
        if value != actual.get(name):
            raise ValueError(
                f"`reports` must be of this model, with {name}={actual.get(name)!r}. "
                f"Received: {path} with {name}={value!r}"
            )


def _training_section(log: Mapping[int, Mapping[str, float]]) -> list[Section]:
    """The losses of a pre-training; a classifier's are of other things, and its figures are in another report."""
    lines = [log[epoch] for epoch in sorted(log)]
    if not lines or "val_accuracy" in lines[0] or "val_loss" not in lines[0]:
        return []
    curves = {"training": [line["loss"] for line in lines], "validation": [line["val_loss"] for line in lines]}
    text = f"Validation loss at the end: {lines[-1]['val_loss']:.3f} nats per token, of palette pictures."
    return [Section("Pre-training", text, plot_loss_curves(curves), level=3)]


def _section(path: Path, config: Mapping[str, Any], model: Model) -> Section:
    content: Any = read_json(path)
    title, make = next(
        (kind for keys, kind in _KINDS.items() if content.keys() >= set(keys)),
        (_TRAININGS.get(config.get("command", ""), path.stem.replace("_", " ").capitalize()), _figures),
    )
    try:
        if make is _probe:
            content = ProbeReport.load(path)
            _check(path, content.model, model)
        elif make is _low_data:
            deepest = max((line["layer"] or 0 for line in content["lines"]), default=0)
            if deepest > model.backbone.num_layers:
                _check(path, {"num_layers": f"{deepest} or more"}, model)
        text, figure = make(content, config)
    except (AttributeError, IndexError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} must be a report as this package writes it, or an object of numbers. "
            f"Received: another file ({type(error).__name__}: {error})"
        ) from error
    return Section(f"{title} on {config['dataset']}" if config.get("dataset") else title, text, figure, level=3)


def _probe(report: ProbeReport, config: Mapping[str, Any]) -> tuple[str, Figure | None]:
    counts = {"training": report.num_train, "validation": report.num_validation}
    if report.final_on_test is not None:
        counts["test"] = report.final_on_test.num_test
    text = (
        f"Logistic regression on the frozen features of each depth ({report.which}, means over positions); "
        f"{', '.join(f'{count:,} {part}' for part, count in counts.items())} pictures of {report.num_classes} "
        f"classes.\n\n```text\n{report}\n```"
    )
    others = accuracies_beside(report, config)
    for name, interval in others.items():
        text += f"\n\n{name[0].upper()}{name[1:]}{TEST_ACCURACY}: {interval.as_percentages()}."
    return text, report.plot({RAW_PIXELS: others[RAW_PIXELS]} if RAW_PIXELS in others else None)


def accuracies_beside(report: ProbeReport, config: Mapping[str, Any]) -> dict[str, Interval]:
    """Returns the test accuracies of other ways to judge than a scored probe, by their names.

    Args:
        report: `ProbeReport` of `keras-igpt probe`.
        config: mapping. The `config.json` beside it.
    """
    if report.final_on_test is None:
        return {}
    return {
        name.removesuffix(TEST_ACCURACY): interval_of_share(value, report.final_on_test.num_test)
        for name, value in config.items()
        if name.endswith(TEST_ACCURACY) and value is not None
    }


def _study(report: Mapping[str, Any], config: Mapping[str, Any]) -> tuple[str, Figure | None]:
    values = dict(report["values"])
    for name, value in report["final_on_test"].items():
        values[name] = _shown(name, value)
        if "accuracy" in name:
            values[name] = interval_of_share(value, report["num_test"]).as_percentages()
    return (
        "Chosen on validation, refitted on training and validation pictures together "
        f"({report['num_refit']:,}), {report['steps']:,} steps; tested once on {report['num_test']:,} pictures.\n\n"
        + table(values)
    ), None


def _low_data(report: Mapping[str, Any], config: Mapping[str, Any]) -> tuple[str, Figure | None]:
    names = {field.name for field in fields(LowDataLine)}
    lines = tuple(LowDataLine(**{key: line[key] for key in names}) for line in report["lines"])
    whole = LowDataTable(**{**{field.name: report[field.name] for field in fields(LowDataTable)}, "lines": lines})
    return f"{whole}\n\nOn {whole.num_test:,} test pictures.", None


def _figures(report: Mapping[str, Any], config: Mapping[str, Any]) -> tuple[str, Figure | None]:
    shown = {name: _shown(name, value) for name, value in report.items()}
    # The ends of an interval stand behind its middle.
    for name in [name for name in shown if f"{name}{LOW_END}" in shown]:
        shown[name] += f" [{shown.pop(f'{name}{LOW_END}')}, {shown.pop(f'{name}{HIGH_END}')}]"
    return table(shown), None


# What each report has, the title of its section, and what makes it.
_KINDS: dict[tuple[str, ...], tuple[str, Callable[..., tuple[str, Any]]]] = {
    ("chosen_on_validation", "final_on_test", "which"): ("Linear probes", _probe),
    ("chosen_on_validation", "final_on_test", "values"): ("Test after a search", _study),
    ("lines", "num_validation", "which"): ("Few labels", _low_data),
}


def _shown(name: str, value: Any) -> str:
    """A number as a reader wants it; raises `TypeError` for anything else."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} is no number")
    if isinstance(value, float):
        return f"{value:.2%}" if "accuracy" in name else f"{value:.4g}"
    return str(value)
