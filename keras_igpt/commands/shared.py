"""What commands share: the arguments that name pictures and models, opening both, what is said first and last."""

from __future__ import annotations

import argparse
import re
import shlex
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import keras
import numpy as np

import keras_igpt as igpt
from keras_igpt.backend.optimizers import counted_steps
from keras_igpt.data.image_files import HEIC_SUFFIXES, PICTURE_SUFFIXES
from keras_igpt.model.cost import memory_text
from keras_igpt.model.memory import training_estimate
from keras_igpt.objectives.open_model import open_model
from keras_igpt.palette.color_palette import UInt8Images
from keras_igpt.support.checks import check_integer

# Those of HEIC are pictures too where they cannot be read: a warning says what is missing.
_SUFFIXES = (*PICTURE_SUFFIXES, *HEIC_SUFFIXES)

# Models that some commands refuse, as a person knows them.
_KINDS = {igpt.ImageGPTMaskedLM.__name__: "a BERT model", igpt.ImageGPTImageClassifier.__name__: "a classifier"}

DATASETS = ("imagenet2012", "cifar10", "cifar100", "stl10")


def add_data_arguments(parser: argparse.ArgumentParser, required: bool = True) -> None:
    """Adds `--dataset`, `--data-dir`, `--images`, `--skip-unreadable` and `--seed`."""
    source = parser.add_mutually_exclusive_group(required=required)
    source.add_argument("--images", help="folder of pictures, with a subfolder for each class")
    source.add_argument("--dataset", choices=DATASETS, help="a data set as TensorFlow Datasets prepares it")
    parser.add_argument("--data-dir", help="folder of the prepared data sets")
    parser.add_argument("--skip-unreadable", action="store_true", help="leave damaged files of --images out")
    parser.add_argument("--seed", type=int, default=0, help="decides which pictures are held out, too")


def add_model_argument(parser: argparse.ArgumentParser, required: bool = True) -> None:
    """Adds `--model`."""
    parser.add_argument(
        "--model",
        required=required,
        default=None if required else "igpt_cifar10_16x16",
        help="a .keras file, hf://user/model on the Hugging Face hub, or the name of a trained preset",
    )


def add_output_argument(parser: argparse.ArgumentParser, default: str) -> None:
    """Adds `--output`."""
    parser.add_argument("--output", type=Path, default=Path(default), help="folder to write to")


def check_counts(options: argparse.Namespace, *names: str) -> None:
    """Checks that arguments, where given, are whole numbers of at least 1, before anything is computed."""
    for name in names:
        if getattr(options, name) is not None:
            check_integer(name, getattr(options, name))


def set_seed(options: argparse.Namespace) -> None:
    """Seeds the initial weights with `--seed`; raises `ValueError` where it is none of Keras'."""
    keras.utils.set_random_seed(check_integer("seed", options.seed, 0, 2**32 - 1))


def check_batch_fits(options: argparse.Namespace, train: Any) -> None:
    """Checks that the pictures to train on fill a batch."""
    if options.batch_size > len(train):
        raise ValueError(f"--batch-size must be at most {len(train)}, the pictures. Received: {options.batch_size}")


def add_drawing_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds how tokens are drawn."""
    parser.add_argument("--temperature", type=float, default=1.0, help="0 takes the most probable colour")
    parser.add_argument("--top-k", type=int, help="draw from the k most probable colours only")
    parser.add_argument("--top-p", type=float, help="draw from the most probable colours of this total probability")
    parser.add_argument("--seed", type=int, default=0, help="decides what is drawn")
    parser.add_argument("--batch-size", type=int, default=16, help="pictures drawn together")


def drawing(options: argparse.Namespace) -> dict[str, Any]:
    """Returns the drawing arguments by name."""
    return {name: getattr(options, name) for name in ("temperature", "top_k", "top_p", "seed", "batch_size")}


def with_flags(message: str, flags: Mapping[str, str]) -> str:
    """Returns a message of the library as the shell's user reads it: with flags in place of arguments.

    Args:
        message: str. Names arguments as `` `name` `` and gives values as `name=value`.
        flags: the flags by argument name; other names stay.

    Returns:
        str.
    """

    def flag(found: re.Match[str]) -> str:
        name = found["quoted"] or found["named"]
        if name not in flags:
            return found[0]
        if found["quoted"] or found["switch"] == "True":
            return flags[name]
        return f"no {flags[name]}" if found["switch"] else f"{flags[name]} "

    return re.sub(r"`(?P<quoted>\w+)(?:=True)?`|(?<![\w./-])(?P<named>\w+)=(?P<switch>(?:True|None)\b)?", flag, message)


@contextmanager
def named_by_flags(**flags: str) -> Iterator[None]:
    """Lets errors that are raised inside name flags: `named_by_flags(folder="--images")`."""
    try:
        yield
    except (ValueError, OSError) as error:
        # Others, such as those of the operating system, are made of several parts.
        if len(error.args) == 1:
            error.args = (with_flags(str(error.args[0]), flags),)
        raise


def load_data(
    options: argparse.Namespace, image_size: int, num_channels: int = 3, in_memory: bool = False
) -> igpt.DataSplits[Any]:
    """Opens the labelled pictures that the command line names.

    Args:
        options: with the arguments of `add_data_arguments`.
        image_size: int. Side that the pictures get.
        num_channels: 3, or 1 for the grey values of a folder's pictures.
        in_memory: bool. Whether pictures that come as files are read at once.

    Returns:
        `DataSplits`.
    """
    check_source(options)
    if options.images:
        with named_by_flags(folder="--images"):
            data: igpt.DataSplits[Any] = igpt.load_image_folder(
                options.images,
                image_size,
                seed=options.seed,
                num_channels=num_channels,
                skip_unreadable=options.skip_unreadable,
            )
    else:
        if num_channels != 3:
            raise ValueError(f"--images must be given with a grey palette. Received: --dataset {options.dataset}")
        data = igpt.load_dataset(options.dataset, options.data_dir, image_size, seed=options.seed)
    return igpt.load_splits(data) if in_memory else data


def check_source(options: argparse.Namespace) -> None:
    """Raises `ValueError` at arguments of another source of pictures than that which is named."""
    for flag, value, source in (
        ("--skip-unreadable", options.skip_unreadable, "images"),
        ("--data-dir", options.data_dir, "dataset"),
    ):
        if value and not getattr(options, source):
            raise ValueError(f"{flag} goes with --{source}. Received: {flag} without it")


def has_classes(options: argparse.Namespace) -> bool:
    """Whether the pictures that the command line names have classes: a data set's, or subfolders and nothing else."""
    if not options.images:
        return True
    subfolders, pictures = _count(options.images)
    return subfolders >= 2 and not pictures


def _count(folder: str) -> tuple[int, int]:
    """Returns how many subfolders, and pictures beside them, a folder has; what is hidden does not count."""
    entries = [path for path in Path(folder).glob("*") if not path.name.startswith(".")]
    subfolders = sum(path.is_dir() for path in entries)
    return subfolders, sum(path.suffix.lower() in _SUFFIXES and path.is_file() for path in entries)


def load_training_pictures(options: argparse.Namespace, image_size: int, num_channels: int = 3) -> tuple[Any, Any]:
    """Opens the pictures that the command line names, to train on without labels: all of a folder without classes.

    Args:
        options: with the arguments of `add_data_arguments`.
        image_size: int. Side that the pictures get.
        num_channels: 3, or 1 for the grey values of a folder's pictures.

    Returns:
        The pictures to train on, and those held out.
    """
    check_source(options)
    if not has_classes(options):
        subfolders, beside = _count(options.images)
        if subfolders >= 2:
            warnings.warn(
                f"--images has {beside} picture(s) beside its {subfolders} subfolders, which do not count as classes "
                "then: every picture is used, and none is kept for a test",
                stacklevel=2,
            )
        with named_by_flags(folder="--images", examples="--images"):
            pictures = igpt.load_unlabeled_folder(
                options.images, image_size, num_channels, skip_unreadable=options.skip_unreadable
            )
            return igpt.split_off(pictures, 0.1, options.seed)
    data = load_data(options, image_size, num_channels)
    train, validation = (
        igpt.UnlabeledImages(part) if isinstance(part, igpt.ImageFiles) else part
        for part in (data.train, data.validation)
    )
    return train, validation


def spread(examples: Any, at_most: int) -> Any:
    """Takes `at_most` examples, spread evenly over all of them."""
    return examples.take(np.unique(np.linspace(0, len(examples) - 1, min(at_most, len(examples))).round().astype(int)))


def pixels_of(examples: Any, at_most: int = 20_000) -> UInt8Images:
    """Returns the pixels of pictures; of those in files, of `at_most` spread evenly over all of them."""
    images = examples if isinstance(examples, igpt.LabeledImages) else spread(examples, at_most)
    while not isinstance(images, np.ndarray):
        # Pictures without classes may be in files; files are read into labelled pictures.
        images = images.load() if isinstance(images, igpt.ImageFiles) else images.images
    return images


def load_language_model(name: str, autoregressive: bool = False) -> Any:
    """Opens a language model with its palette.

    Args:
        name: str. Path, or trained preset.
        autoregressive: bool. Whether a BERT model is refused.

    Returns:
        An `ImageGPTCausalLM` or `ImageGPTMaskedLM`.

    Raises:
        ValueError: if the model is of another kind.
    """
    model = open_model(name, "--model")
    kinds = igpt.ImageGPTCausalLM if autoregressive else (igpt.ImageGPTCausalLM, igpt.ImageGPTMaskedLM)
    if not isinstance(model, kinds) or model.palette is None:
        wanted = "an autoregressive model" if autoregressive else "a language model"
        if isinstance(model, kinds):
            received = "a model without a palette"
        else:
            received = _KINDS.get(type(model).__name__, f"a model of the class {type(model).__name__}")
        raise ValueError(f"--model must be {wanted} with its palette. Received: {name}, {received}")
    return model


def depths_text(count: int) -> str:
    """Returns how many depths."""
    return f"{count} depth{'' if count == 1 else 's'}"


def padded_crop(image_size: int) -> igpt.PaddedCrop:
    """Returns the paper's augmentation for fine-tuning, which pads pictures of 32 pixels by 4."""
    return igpt.PaddedCrop(padding=max(1, round(4 * image_size / 32)))


class TimeLeft(keras.callbacks.Callback):
    """Prints after the first steps, each minute and after each epoch how long a training has still to go.

    Args:
        left: str. What is left, for trainings that may end early or are several.
        seconds: function that returns the time in seconds.
    """

    # The first steps compile.
    _SKIPPED, _MEASURED = 3, 10
    # Seconds between two lines.
    _EVERY = 60.0

    def __init__(self, left: str = "left", seconds: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._left, self._seconds = left, seconds
        self._steps, self._done, self._seen = 0, 0, 0
        self._started = self._told = 0.0

    def on_train_begin(self, logs: Any = None) -> None:
        self._steps = self.params["epochs"] * self.params["steps"]
        self._seen = 0
        # A training that goes on begins in the middle.
        self._done = counted_steps(self.model.optimizer)

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self._seen += 1
        self._done += 1
        if self._seen == self._SKIPPED:
            self._started = self._seconds()
        first = self._SKIPPED + self._MEASURED
        if self._seen == first or (self._seen > first and self._seconds() - self._told >= self._EVERY):
            self._say()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        if self._seen > self._SKIPPED and self._done < self._steps:
            self._say()

    def _say(self) -> None:
        self._told = self._seconds()
        each = (self._told - self._started) / (self._seen - self._SKIPPED)
        left = max(0, self._steps - self._done) * each
        print(
            f"{self._done:,} of {self._steps:,} steps, {each:.2g} s each: about {left / 60:.1f} minutes {self._left}",
            flush=True,
        )


def describe_data(data: igpt.DataSplits[Any], image_size: int) -> str:
    """Returns how many labelled pictures there are, of which size and of how many classes."""
    return (
        f"{len(data.train):,} training, {len(data.validation):,} validation, {len(data.test):,} test pictures of "
        f"{image_size}x{image_size} pixels in {len(data.class_names)} classes"
    )


def say_plan(pictures: str, epochs: str, steps: int, model: Any, batch_size: int) -> None:
    """Prints what a training is going to do, and what it needs where that is known.

    Args:
        pictures: str. Which pictures.
        epochs: str. How many epochs, in words.
        steps: int. Steps of them.
        model: the compiled model.
        batch_size: int. Pictures of a step.
    """
    needs = training_estimate(model, batch_size)
    needed = ""
    if needs is not None:
        tera = steps * needs.training_flops / 1e12
        memory, flops = memory_text(needs.training_memory), f"{tera:,.0f}" if tera >= 10 else f"{tera:.2g}"
        needed = f", about {memory} beside the framework's own, {flops} TFLOP"
    tokens = batch_size * model.backbone.num_tokens
    print(
        f"{pictures}, {epochs}: {steps:,} steps of {tokens:,} tokens\n{model.count_params():,} parameters{needed}",
        flush=True,
    )


def say_frozen(data: igpt.DataSplits[Any], model: Any, what: str) -> None:
    """Prints what is going to be fitted to the features of a model that is not trained."""
    size, tokens = model.backbone.image_size, model.backbone.num_tokens
    print(
        f"{describe_data(data, size)}, {tokens:,} tokens each\n{model.count_params():,} parameters, frozen: {what}",
        flush=True,
    )


def data_words(options: argparse.Namespace) -> list[str]:
    """Returns the words that name the same pictures in another command."""
    words = ["--images", options.images] if options.images else ["--dataset", options.dataset]
    words += ["--data-dir", options.data_dir] if options.data_dir else []
    words += ["--skip-unreadable"] if options.skip_unreadable else []
    # It decides which pictures are held out.
    return words + (["--seed", str(options.seed)] if options.seed else [])


def use_of_classifier(options: argparse.Namespace, path: Path) -> list[str | Path]:
    """Returns a command for a new classifier: for the user's own pictures or, of a data set, for its card."""
    if options.images:
        return ["classify", options.images, "--model", path]
    return ["card", "--model", path, "--reports", options.output]


def few_of(pictures: Sequence[str]) -> Sequence[str]:
    """Returns the first pictures that were given, for a next command: a line with hundreds helps nobody."""
    return pictures[:3]


def say_what_next(wrote: str, *words: str | int | Path) -> None:
    """Prints the last lines of a command: what it wrote, and a command to run with it, by its words."""
    print(f"Wrote {wrote}.\nNext: {shlex.join(['keras-igpt', *map(str, words)])}")
