"""Fit linear probes on the frozen features of every depth, beside raw pixels.

keras-igpt probe --model run/igpt.keras --images FOLDER
keras-igpt probe --model igpt_cifar10_16x16 --dataset cifar10 --data-dir FOLDER
keras-igpt probe --model igpt_cifar10_16x16 --dataset cifar10 --also nearest-neighbors attention

Accuracies have 95% intervals over test pictures, differences a paired test on the same pictures. depth_similarity.png
shows how much the features of every two depths resemble each other (linear CKA).
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import keras_igpt as igpt
from keras_igpt.checkpoints.run_reports import TEST_ACCURACY
from keras_igpt.commands.run_folder import make_run_folder, write_config
from keras_igpt.commands.shared import (
    add_data_arguments,
    add_model_argument,
    add_output_argument,
    check_counts,
    data_words,
    depths_text,
    load_data,
    load_language_model,
    named_by_flags,
    say_frozen,
    say_what_next,
    spread,
)
from keras_igpt.data.inputs import as_pictures
from keras_igpt.evaluation.intervals import import_scipy
from keras_igpt.evaluation.low_data import RAW_PIXELS, pixel_features
from keras_igpt.evaluation.nearest_neighbors import import_neighbors
from keras_igpt.plotting import import_figure, plot_depth_similarity
from keras_igpt.support.files import remove, write_json

# Few would make the similarities too high, more take long.
_PICTURES_COMPARED = 5000
_DEPTH_CURVE, _SIMILARITY = "depth_curve.png", "depth_similarity.png"
# Written after the report, some of them only where asked for: those of an earlier probe are of another report.
_BESIDE_THE_REPORT = ("config.json", "accuracies.json", "nearest_neighbors.json", "attention.json", _SIMILARITY)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    add_model_argument(parser)
    add_data_arguments(parser)
    parser.add_argument("--layers", type=int, nargs="+", help="depths; all of them by default")
    parser.add_argument("--which", choices=("normed", "residual"), default="normed", help="form of the features")
    parser.add_argument("--concatenate", type=int, help="also so many depths side by side; 5 in the paper's iGPT-XL")
    parser.add_argument("--pictures", type=int, help="training pictures at most; a fifth as many for validation")
    parser.add_argument("--batch-size", type=int, default=128, help="pictures of a pass")
    parser.add_argument("--features", help="folder for the features of sets too large for memory")
    parser.add_argument(
        "--also",
        choices=("nearest-neighbors", "attention"),
        nargs="+",
        default=[],
        help="other ways to judge the features: a vote of neighbours at every depth; attention pooling at the best one",
    )
    parser.add_argument("--no-pixels", action="store_true", help="leave out raw pixels, which are loaded into memory")
    add_output_argument(parser, "probe_output")


def run(options: argparse.Namespace) -> None:
    """Runs the command."""
    check_counts(options, "batch_size", "pictures")
    model = load_language_model(options.model)
    data = _load_pictures(options, model)
    layers: Any = "all" if options.layers is None else options.layers
    probe = igpt.LinearProbe(model, layers, options.which, options.concatenate)
    extractor = igpt.FeatureExtractor(model, layers, options.which)
    say_frozen(data, model, f"a regression on the features of {depths_text(len(extractor.depths))}")
    folder = None if options.features is None else Path(options.features)
    if "attention" in options.also:
        # Before anything is computed; the depth does not matter.
        with named_by_flags(folder="--features"):
            _attention_probe(model, 0, options).check_memory(len(data.train) + len(data.validation))
    _check_extras(options)
    make_run_folder(options)
    train, validation, test = (
        extractor.extract_labeled(data[name], options.batch_size, None if folder is None else folder / f"{name}.npy")
        for name in ("train", "validation", "test")
    )
    probe.fit(train, validation).score(test)
    report = probe.report
    print(report, flush=True)
    # Before the other ways to judge: what takes long is kept, whatever becomes of them.
    _write_report(options.output, report, validation, extractor.depths)
    others: dict[str, igpt.MeasuredAccuracy] = {}
    if not options.no_pixels:
        others[RAW_PIXELS] = _raw_pixels(model, data)
        report.plot({RAW_PIXELS: others[RAW_PIXELS].interval}).savefig(options.output / _DEPTH_CURVE)
    if "nearest-neighbors" in options.also:
        others |= _nearest_neighbors(extractor.depths, (train, validation, test), options.output)
    if "attention" in options.also:
        attention = _attention_probe(model, report.best_layer, options)
        accuracy = attention.fit(data.train, data.validation).score(data.test)
        others[f"attention pooling at depth {report.best_layer}"] = accuracy
        attention.report.save(options.output / "attention.json")
    write_config(options, **{f"{name}{TEST_ACCURACY}": measured.accuracy for name, measured in others.items()})
    write_json(options.output / "accuracies.json", {name: asdict(measured) for name, measured in others.items()})
    _say(report, others)
    written = [name for name in ("report.json", *_BESIDE_THE_REPORT) if (options.output / name).is_file()]
    say_what_next(
        f"{', '.join(written)} and {_DEPTH_CURVE} to {options.output}/",
        "finetune",
        "--model",
        options.model,
        *data_words(options),
    )


def _check_extras(options: argparse.Namespace) -> None:
    """Raises ImportError, before anything is computed, where what the end of the work needs is absent."""
    import_figure()
    import_scipy("stats")
    if "nearest-neighbors" in options.also:
        import_neighbors()


def _load_pictures(options: argparse.Namespace, model: Any) -> igpt.DataSplits[Any]:
    """Opens the pictures; of training and validation `--pictures` and a fifth as many, where that is given."""
    data = load_data(options, model.backbone.image_size, model.palette.num_channels)
    if options.pictures is None:
        return data
    train, validation = spread(data.train, options.pictures), spread(data.validation, -(-options.pictures // 5))
    return igpt.DataSplits(train, validation, data.test, data.class_names)


def _write_report(
    output: Path, report: igpt.ProbeReport, validation: igpt.LabeledFeatures, depths: Sequence[int]
) -> None:
    """Writes the report, its depth curve and how depths resemble each other; removes what an earlier probe left."""
    report.save(output / "report.json")
    for name in _BESIDE_THE_REPORT:
        remove(output / name)
    report.plot().savefig(output / _DEPTH_CURVE)
    if len(validation) > 1:
        similarity = igpt.depth_similarity(validation.features[:: -(-len(validation) // _PICTURES_COMPARED)])
        plot_depth_similarity(similarity, depths).savefig(output / _SIMILARITY)


def _attention_probe(model: Any, layer: int, options: argparse.Namespace) -> igpt.AttentionProbe:
    return igpt.AttentionProbe(model, layer, batch_size=options.batch_size, folder=options.features)


def _say(report: igpt.ProbeReport, others: Mapping[str, igpt.MeasuredAccuracy]) -> None:
    """Prints test accuracies beside the probe's, with paired tests."""
    print(f"linear probe at depth {report.best_layer}: {report.measured} on test")
    for name, measured in others.items():
        comparison = report.compare(measured)
        verdict = "significant" if comparison.significant else "not significant"
        print(f"{name}: {measured} on test; the linear probe is {comparison}: {verdict} by the paired test")


def _nearest_neighbors(
    depths: Sequence[int], parts: Sequence[igpt.LabeledFeatures], output: Path
) -> dict[str, igpt.MeasuredAccuracy]:
    """Writes the votes of all depths; returns the accuracy, by name, at the one that validation chose."""
    train, validation, test = parts
    results = dict(zip(depths, igpt.nearest_neighbors(train, validation, test), strict=True))
    write_json(output / "nearest_neighbors.json", {depth: asdict(result) for depth, result in results.items()})
    depth = max(results, key=lambda depth: (results[depth].validation_accuracy, -depth))
    return {f"{results[depth].num_neighbors} nearest neighbours at depth {depth}": results[depth].measured}


def _raw_pixels(model: Any, data: igpt.DataSplits[Any]) -> igpt.MeasuredAccuracy:
    """Test accuracy of logistic regression on pixels, C chosen as for the features."""
    parts = (data.train, data.validation, data.test)
    features = (pixel_features(as_pictures(model, part), part.labels) for part in parts)
    train, validation, (images, labels) = ((part.at(0), part.labels) for part in features)
    return igpt.measure_accuracy(igpt.fit_logistic_regression(train, validation).predict(images), labels)
