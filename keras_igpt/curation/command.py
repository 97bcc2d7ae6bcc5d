"""The command line: `fit` makes a reference, `curate` a set of tokens."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np

from keras_igpt.curation.curate import curate
from keras_igpt.curation.settings import Rules
from keras_igpt.curation.similarity import Reference, Similarity, load_features
from keras_igpt.palette.color_palette import ColorPalette


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs one of the commands.

    Args:
        arguments: those of the command line; of this process by default.
    """
    parser = argparse.ArgumentParser(prog="python -m keras_igpt.curation", description="Curates web pictures.")
    add_arguments(parser)
    run(parse(parser, arguments))


def parse(parser: argparse.ArgumentParser, arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parses a command line; what `curate` does not know goes to Apache Beam, and ends the process elsewhere."""
    options, rest = parser.parse_known_args(arguments)
    unknown = rest
    if hasattr(options, "pipeline_options"):
        options.pipeline_options = rest
        # A word is the value of an option right before it, or nobody's.
        unknown = [
            word
            for before, word in pairwise(["", *rest])
            if not word.startswith("-") and (not before.startswith("-") or "=" in before)
        ]
    if unknown:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    return options


def run(options: argparse.Namespace) -> None:
    """Runs the command that was parsed."""
    features = partial(load_features, options.model, layer=options.layer)
    if options.step == "fit":
        loaded = features()
        computed = np.concatenate([loaded.of(path) for path in options.pictures])
        Reference.fit(computed, options.centroids, options.seed, features).save(options.output)
        print(f"{len(computed):,} pictures in {options.centroids} centroids: {options.output}")
        return
    _check_pipeline_options(options.pipeline_options)
    given = {name: getattr(options, name) for name in ("threshold", "share", "quantile", "min_side", "max_pixels")}
    rules = Rules(**{name: value for name, value in given.items() if value is not None})
    report = curate(
        options.shards,
        options.output,
        ColorPalette.load(options.palette),
        options.image_size,
        Similarity(options.reference, features),
        exclude=options.exclude,
        rules=rules,
        pipeline_options=options.pipeline_options,
    )
    print(json.dumps({name: report[name] for name in ("pictures", "counts", "threshold", "this_run")}, indent=2))


def _check_pipeline_options(given: Sequence[str]) -> None:
    """Raises ValueError at options that Beam, too, would pass over: misspelt ones of `curate`."""
    # First, since it says which extra is needed where Beam is absent.
    import keras_igpt.curation.pipeline  # noqa: F401, I001
    from apache_beam.options.pipeline_options import PipelineOptions, StandardOptions

    runner = PipelineOptions(list(given)).view_as(StandardOptions).runner
    if runner not in (None, "DirectRunner"):
        # Others may know more options than Beam says here.
        return
    known = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    kinds: list[Any] = [PipelineOptions, *PipelineOptions.__subclasses__()]
    for kind in kinds:
        # By which pipelines declare options of their own.
        kind._add_argparse_args(known)
    unknown = known.parse_known_args(list(given))[1]
    if unknown:
        raise ValueError(f"Options must be those of `curate` or of Apache Beam. Received: {' '.join(unknown)}")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the two commands and their arguments."""
    commands = parser.add_subparsers(dest="step", required=True)
    model = argparse.ArgumentParser(add_help=False)
    model.add_argument(
        "--model", required=True, help="of the features: a trained preset, a .keras file or hf://user/model"
    )
    model.add_argument("--layer", type=int, help="depth of the features; the middle one by default")
    fit = commands.add_parser("fit", parents=[model], help="makes a reference of folders or tar files of pictures")
    fit.add_argument("pictures", nargs="+", help="folders or tar files")
    fit.add_argument("--output", required=True, help="file, such as imagenet.npz")
    fit.add_argument("--centroids", type=int, default=1000, help="of the reference; %(default)s by default")
    fit.add_argument("--seed", type=int, default=0, help="of k-means; %(default)s by default")
    curating = commands.add_parser(
        "curate", parents=[model], help="makes token shards; other options, such as --runner, go to Apache Beam"
    )
    curating.add_argument("shards", nargs="+", help="tar files, folders of tar files or of pictures, or patterns")
    curating.add_argument("--output", required=True, help="folder of the set")
    curating.add_argument("--palette", required=True, help="file of ColorPalette.save, or the official clusters")
    curating.add_argument("--image-size", type=int, required=True, help="side of the pictures that become tokens")
    curating.add_argument("--reference", required=True, help="file that `fit` has written")
    curating.add_argument(
        "--exclude", action="append", default=[], help="folder or tar file of evaluation pictures; once for each"
    )
    curating.add_argument("--threshold", type=float, help="least score; that of --quantile by default")
    curating.add_argument("--share", type=float, help="share of pictures to keep, in place of a threshold")
    curating.add_argument(
        "--quantile",
        type=float,
        help=f"share of the reference's own pictures below the threshold; {Rules.quantile} by default",
    )
    curating.add_argument("--min-side", type=int, help=f"least shorter side in pixels; {Rules.min_side} by default")
    curating.add_argument("--max-pixels", type=int, help=f"most pixels of a picture; {Rules.max_pixels} by default")
    curating.set_defaults(pipeline_options=())
