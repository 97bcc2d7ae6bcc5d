"""The differences that decide the paper's claims, computed from the reports in results/: a table and a picture.

    python benchmarks/claims.py          # prints the table of RESULTS.md, writes results/claims.png

Needs: pip install "keras_igpt[torch,palette,plot]"
Both classifiers of a difference saw the same test pictures, which are compared one by one; its interval is of other
pictures. Where there are runs of three seeds, the interval of their mean is of other seeds (Student's).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure

import keras_igpt as igpt

RESULTS = Path(__file__).parent.parent / "results"


@dataclass(frozen=True)
class Classifier:
    """A classifier of the results, in one run or in one of each seed.

    Attributes:
        runs: folders of its reports below that of results, one a seed.
        entry: its name in accuracies.json; None for report.json, of a probe.
        depth: depth of a probe; the one that validation chose by default. −1 is the last.
    """

    runs: Sequence[str]
    entry: str | None = None
    depth: int | None = None

    def load(self, results: Path) -> list[igpt.MeasuredAccuracy]:
        """Reads its accuracies on the test set, one a seed."""
        return [self._load(results / run) for run in self.runs]

    def _load(self, folder: Path) -> igpt.MeasuredAccuracy:
        if self.entry is not None:
            return igpt.MeasuredAccuracy(**json.loads((folder / "accuracies.json").read_text())[self.entry])
        report = igpt.ProbeReport.load(folder / "report.json")
        if self.depth is None or report.final_on_test is None:
            return report.measured
        depths = sorted(report.final_on_test.measured)
        return report.final_on_test.measured[depths[self.depth]]


def _probe(*runs: str, depth: int | None = None) -> Classifier:
    return Classifier(runs, depth=depth)


def _finetuned(*runs: str) -> Classifier:
    return Classifier(runs, "test accuracy")


def _pixels(*runs: str) -> Classifier:
    return Classifier(runs, "raw pixels")


AR_8, BERT_8, SMALL_8 = ([f"cifar10_8x8/seeds/{kind}_{seed}" for seed in range(3)] for kind in ("ar", "bert", "small"))
AR_16, BERT_16 = "cifar10_16x16/ar", "cifar10_16x16/bert"
AR_16_SEEDS, BERT_16_SEEDS = (
    [f"cifar10_16x16/{kind}/probe", *(f"cifar10_16x16/seeds/{kind}_{seed}" for seed in (1, 2))]
    for kind in ("ar", "bert")
)
LARGE_16, LARGE_BERT_16 = (f"cifar10_16x16/seeds/{kind}_0" for kind in ("large", "large_bert"))
# Fine-tuned at the rate, of two, that validation chose. All seeds start from the pre-trained models of seed 0;
# from scratch, each from random weights of its own.
AR_TUNED, BERT_TUNED, SCRATCH = (
    [f"cifar10_16x16/{first}", f"cifar10_16x16/seeds/{kind}_finetuned_1"]
    for kind, first in (("ar", "ar/finetuned"), ("bert", "rates/bert_0.003"), ("scratch", "scratch"))
)
# What is said to be better, and than what.
CLAIMS = {
    "best depth − last depth, AR, 16×16": (_probe(*AR_16_SEEDS), _probe(*AR_16_SEEDS, depth=-1)),
    "best depth − last depth, larger AR model, 16×16": (_probe(LARGE_16), _probe(LARGE_16, depth=-1)),
    "best depth − last depth, AR, 8×8": (_probe(*AR_8), _probe(*AR_8, depth=-1)),
    "AR − BERT, probes, 16×16": (_probe(*AR_16_SEEDS), _probe(*BERT_16_SEEDS)),
    "AR − BERT, larger models, probes, 16×16": (_probe(LARGE_16), _probe(LARGE_BERT_16)),
    "AR − BERT, probes, 8×8": (_probe(*AR_8), _probe(*BERT_8)),
    "larger − smaller AR model, probes, 8×8": (_probe(*AR_8), _probe(*SMALL_8)),
    "larger − smaller AR model, probes, 16×16": (_probe(LARGE_16), _probe(f"{AR_16}/probe")),
    "larger − smaller BERT model, probes, 16×16": (_probe(LARGE_BERT_16), _probe(f"{BERT_16}/probe")),
    "largest − larger AR model, probes, 8×8": (
        _probe("cifar10_8x8/seeds/large_0"),
        _probe(AR_8[0]),
    ),
    "AR fine-tuned − its best probe, 16×16": (_finetuned(*AR_TUNED), _probe(*[f"{AR_16}/probe"] * len(AR_TUNED))),
    "BERT fine-tuned − its best probe, 16×16": (
        _finetuned(*BERT_TUNED),
        _probe(*[f"{BERT_16}/probe"] * len(BERT_TUNED)),
    ),
    "AR fine-tuned − from scratch, 16×16": (_finetuned(*AR_TUNED), _finetuned(*SCRATCH)),
    "BERT fine-tuned − from scratch, 16×16": (_finetuned(*BERT_TUNED), _finetuned(*SCRATCH)),
    "AR − BERT, fine-tuned, 16×16": (_finetuned(*AR_TUNED), _finetuned(*BERT_TUNED)),
    "vote of five masks − one mask, BERT fine-tuned, 16×16": (
        Classifier(BERT_TUNED, "test accuracy, vote of 5 masks"),
        _finetuned(*BERT_TUNED),
    ),
    "joint loss − L_CLF alone, AR, 16×16": (
        _finetuned(AR_TUNED[0]),
        _finetuned(f"{AR_16}/finetuned_on_classes_alone"),
    ),
    # All probes at 16×16 have the same pictures, so one regression on pixels is that of each seed.
    "AR probe − raw pixels, 16×16": (_probe(*AR_16_SEEDS), _pixels(*[f"{AR_16}/probe"] * 3)),
    "AR probe − raw pixels, 8×8": (_probe(*AR_8), _pixels(*AR_8)),
}


def main(arguments: Sequence[str] | None = None) -> list[str]:
    """Prints the table, draws the picture, and returns the table's rows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of reports")
    parser.add_argument("--output", type=Path, default=RESULTS / "claims.png", help="file of the picture")
    options = parser.parse_args(arguments)
    differences = {claim: compare(options.results, *pair) for claim, pair in CLAIMS.items()}
    rows = [
        f"| {claim} | {'; '.join(map(points, by_seed))} | {''.join(map(points, over_seeds(by_seed)))} |"
        for claim, by_seed in differences.items()
    ]
    print("| first − second | points, of each seed | mean over seeds |", "|---|---|---|", *rows, sep="\n")
    plot(differences).savefig(options.output)
    return rows


def compare(results: Path, first: Classifier, second: Classifier) -> list[igpt.Interval]:
    """Compares two classifiers picture by picture, for each seed."""
    pairs = zip(first.load(results), second.load(results), strict=True)
    return [one.compare(two).difference for one, two in pairs]


def over_seeds(differences: Sequence[igpt.Interval]) -> list[igpt.Interval]:
    """Returns the mean of the differences with its interval over seeds; nothing for two, of which that says little."""
    return [igpt.mean_interval([difference.estimate for difference in differences])] if differences[2:] else []


def points(difference: igpt.Interval) -> str:
    """Formats a difference in points with its interval: `+1.5 [+0.7, +2.3]`."""
    estimate, low, high = (f"{100 * value:+.1f}" for value in (difference.estimate, difference.low, difference.high))
    return f"{estimate} [{low}, {high}]".replace("-", "−")


def plot(differences: Mapping[str, Sequence[igpt.Interval]]) -> Figure:
    """Draws every difference with its interval: those of several seeds one below the other, their mean below them."""
    figure = Figure(figsize=(8.0, 0.2 * sum(len(by_seed) + 1 for by_seed in differences.values()) + 1.0), dpi=150)
    figure.set_layout_engine("constrained")
    axes = figure.subplots()
    heights, line = [], 0.0
    for by_seed in differences.values():
        means = over_seeds(by_seed)
        heights.append(line + (len(by_seed) + len(means) - 1) / 2)
        for difference in [*by_seed, *means]:
            estimate, low, high = (100 * value for value in (difference.estimate, difference.low, difference.high))
            color, marker = ("#D55E00", "D") if difference in means else ("#0072B2", "o")
            reach = [[estimate - low], [high - estimate]]
            axes.errorbar([estimate], [line], xerr=reach, fmt=marker, color=color, markersize=4, capsize=3)
            line += 1
        line += 0.8
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_yticks(heights, list(differences), fontsize=9)
    axes.invert_yaxis()
    axes.grid(axis="x", alpha=0.3)
    axes.set_xlabel("points of test accuracy; 95% intervals\nof runs over test pictures, of means (orange) over seeds")
    return figure


if __name__ == "__main__":
    main()
