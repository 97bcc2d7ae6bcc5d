"""Low-data classification: logistic regression on the frozen features of random subsets."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from keras_igpt.data.examples import DataSplits, Labels, check_labeled, low_data_rows
from keras_igpt.data.inputs import as_labeled_examples, as_pictures
from keras_igpt.data.token_source import LabeledPictureExamples
from keras_igpt.evaluation.features import FeatureExtractor, LabeledFeatures, Which
from keras_igpt.evaluation.intervals import Interval, import_scipy, mean_interval
from keras_igpt.evaluation.logistic_regression import (
    REGULARIZATION_STRENGTHS,
    check_classes,
    check_strengths,
    fit_logistic_regression,
)
from keras_igpt.objectives.pixel_model import PixelModel
from keras_igpt.palette.color_palette import UInt8Images
from keras_igpt.support.checks import check_integer, check_integers
from keras_igpt.support.files import write_json
from keras_igpt.support.progress import told
from keras_igpt.support.randomness import check_seed

RAW_PIXELS = "raw pixels"


@dataclass(frozen=True)
class LowDataLine:
    """Test accuracies over random subsets, for one kind of features and one number of labels per class.

    Attributes:
        features: str. `"features"` of the model or `"raw pixels"`.
        labels_per_class: int.
        layer: int in 0…L. Depth chosen on validation; None for raw pixels.
        seeds: tuple of int, one per subset.
        accuracies: tuple of float in 0…1, on test, by subset.
        strengths: tuple of float. C chosen on validation, by subset.
        converged: bool. Whether all fits converged.
    """

    features: str
    labels_per_class: int
    layer: int | None
    seeds: tuple[int, ...]
    accuracies: tuple[float, ...]
    strengths: tuple[float, ...]
    converged: bool

    @property
    def mean(self) -> float:
        """Mean accuracy over the subsets."""
        return float(np.mean(self.accuracies))

    @property
    def deviation(self) -> float:
        """Sample standard deviation of the accuracy over the subsets."""
        return float(np.std(self.accuracies, ddof=1))

    @property
    def interval(self) -> Interval:
        """Mean accuracy with its 95% interval over the subsets, cut to [0, 1]; see `mean_interval`."""
        interval = mean_interval(self.accuracies)
        return replace(interval, low=max(0.0, interval.low), high=min(1.0, interval.high))


@dataclass(frozen=True)
class LowDataTable:
    """Low-data accuracies; `str` makes a Markdown table.

    Attributes:
        lines: tuple of `LowDataLine`.
        num_classes: int.
        num_validation: int. Pictures for choosing depth and C, in addition to the few labels.
        num_test: int.
        which: `"normed"` or `"residual"`.
    """

    lines: tuple[LowDataLine, ...]
    num_classes: int
    num_validation: int
    num_test: int
    which: Which

    def __str__(self) -> str:
        header = ["labels a class", "labels", "features", "depth", "test accuracy [95% interval] ± standard deviation"]
        rows = [
            [
                str(line.labels_per_class),
                str(line.labels_per_class * self.num_classes),
                line.features,
                "" if line.layer is None else str(line.layer),
                f"{line.interval.as_percentages()} ± {line.deviation:.1%} ({len(line.seeds)} subsets)"
                f"{'' if line.converged else ', not converged'}",
            ]
            for line in self.lines
        ]
        table = [header, ["---"] * len(header), *rows]
        return "\n".join(f"| {' | '.join(row)} |" for row in table)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the table as JSON, atomically."""
        lines = [
            {
                **asdict(line),
                "mean": line.mean,
                "deviation": line.deviation,
                "interval": [line.interval.low, line.interval.high],
            }
            for line in self.lines
        ]
        write_json(path, {**asdict(self), "lines": lines})


def low_data_table(
    language_model: PixelModel,
    data: DataSplits[Any],
    labels_per_class: Sequence[int] = (4, 25, 400),
    seeds: Sequence[int] = range(5),
    layers: Sequence[int] | None = None,
    which: Which = "normed",
    strengths: Sequence[float] = REGULARIZATION_STRENGTHS,
    batch_size: int = 128,
) -> LowDataTable:
    """Measures low-data classification with frozen features and with raw pixels.

    For each number of labels and each seed, logistic regression is fitted to a random, class-balanced subset of train
    (`low_data_subset`), without augmentation, pseudo-labels or fine-tuning. Other training pictures are not read.

    The paper does not say how depth and C are chosen. Here C is chosen on validation for each subset, and the depth for
    each number of labels by the mean over subsets. This uses more labels than are fitted, which is common but flatters
    methods with more choices; raw pixels get the same choice of C.

    Args:
        language_model: an `ImageGPTCausalLM` or `ImageGPTMaskedLM`; its weights are not changed.
        data: `DataSplits` of `LabeledImages`, `ImageFiles` (those that are used are loaded into memory) or
            `LabeledTokens` of the model's palette.
        labels_per_class: sequence of int.
        seeds: sequence of at least two int, one subset each (`low_data_subset`).
        layers: sequence of depths in 0…L to choose from; all by default.
        which: `"normed"`, as in the paper, or `"residual"`.
        strengths: sequence of float. Values of C to choose from.
        batch_size: int. Batch size of feature extraction.

    Returns:
        A `LowDataTable`.

    Raises:
        ValueError: if an argument is out of range, or the pictures do not fit the model.
        ImportError: if SciPy is absent.

    Example:
    ```python
    table = low_data_table(lm, load_dataset("cifar10"), layers=[probe.report.best_layer])
    print(table)
    ```

    Reference:
        [Chen et al., 2020](https://cdn.openai.com/papers/Generative_Pretraining_from_Pixels_V2.pdf), section 4.7
    """
    extractor = FeatureExtractor(language_model, "all" if layers is None else layers, which)
    values = check_strengths(strengths)
    different = tuple(check_seed(seed) for seed in seeds) if isinstance(seeds, Iterable) else ()
    if len(set(different)) < max(2, len(different)):
        raise ValueError(f"`seeds` must be at least two, all different. Received: seeds={seeds}")
    counts = check_integers("labels_per_class", labels_per_class)
    batch_size = check_integer("batch_size", batch_size)
    import_scipy("stats")  # for the table's intervals: raises before anything is computed
    check_labeled("data.train", data.train)
    rows = {  # raises before anything is computed
        count: {seed: low_data_rows(data.train.labels, count, seed) for seed in different} for count in counts
    }
    taken = np.unique(np.concatenate([subset for subsets in rows.values() for subset in subsets.values()]))
    given = {"train": data.train.take(taken), "validation": data.validation, "test": data.test}
    parts: dict[str, LabeledPictureExamples] = {
        name: as_labeled_examples(extractor.language_model, part, f"data.{name}") for name, part in given.items()
    }
    classes = check_classes(parts["train"].labels, data.validation.labels)
    pixels = {
        name: pixel_features(as_pictures(language_model, part, f"data.{name}"), parts[name].labels)
        for name, part in given.items()
    }
    features = {name: extractor.extract_labeled(part, batch_size) for name, part in parts.items()}
    lines = []
    for count, subsets in rows.items():
        few = {seed: np.searchsorted(taken, subset) for seed, subset in subsets.items()}
        lines.append(_line("features", features, extractor.depths, count, few, values))
        lines.append(_line(RAW_PIXELS, pixels, (None,), count, few, values))
    return LowDataTable(tuple(lines), len(classes), len(data.validation), len(data.test), which)


def _line(
    name: str,
    parts: Mapping[str, LabeledFeatures],
    depths: Sequence[int | None],
    labels_per_class: int,
    rows: Mapping[int, npt.NDArray[np.int64]],
    strengths: Sequence[float],
) -> LowDataLine:
    """Fits all subsets, rows by seed, at every depth, and tests at the depth with the best mean on validation."""
    subsets = [parts["train"].take(chosen) for chosen in rows.values()]
    validation, test = parts["validation"], parts["test"]
    fits = [
        [
            fit_logistic_regression(
                (subset.at(position), subset.labels),
                (validation.at(position), validation.labels),
                strengths,
                refit=False,
            )
            for subset in subsets
        ]
        for position in told(range(len(depths)), f"{labels_per_class} labels a class, {name}", "depths")
    ]
    best = int(np.argmax([np.mean([fit.validation_accuracy for fit in fitted]) for fitted in fits]))
    return LowDataLine(
        features=name,
        labels_per_class=labels_per_class,
        layer=depths[best],
        seeds=tuple(rows),
        accuracies=tuple(fit.score(test.at(best), test.labels) for fit in fits[best]),
        strengths=tuple(fit.regularization_strength for fit in fits[best]),
        converged=all(fit.converged for fitted in fits for fit in fitted),
    )


def pixel_features(images: UInt8Images, labels: Labels) -> LabeledFeatures:
    """Returns pixels in 0…1 as features of a single depth."""
    return LabeledFeatures((images.reshape(len(images), 1, -1) / np.float32(255)).astype(np.float32), labels)
