"""The commands by name, and how they are called."""

from __future__ import annotations

import argparse
import logging
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from importlib import import_module

from keras_igpt.backend.devices import without_tensorflow
from keras_igpt.commands.shared import named_by_flags, with_flags
from keras_igpt.curation.command import parse
from keras_igpt.support.progress import LOG

COMMANDS = {
    "quickstart": "the whole story in a few minutes, without a download",
    "suggest": "sizes and steps that fit your pictures and time",
    "pretrain": "train a model on the pixels of unlabelled pictures",
    "probe": "linear probes: what the features of each depth know about the classes",
    "finetune": "train a classifier from a pre-trained model",
    "classify": "what is in pictures, by a fine-tuned classifier",
    "search": "the paper's protocol: search on validation, refit, test once",
    "low-data": "classify from few labels",
    "draw": "draw pictures from nothing",
    "complete": "keep the beginning of pictures and draw the rest",
    "score": "how surprising pictures are to a model",
    "demo": "a page to play with a model in the browser",
    "describe": "what a preset or a model's file is",
    "estimate": "memory and arithmetic of a model before it is trained",
    "curate": "token shards of web pictures that resemble a reference set",
    "palette": "fit a palette to pictures",
    "export": "a SavedModel or an ONNX file",
    "card": "a model card for the Hugging Face hub",
}


class _Help(argparse.RawDescriptionHelpFormatter, argparse.ArgumentDefaultsHelpFormatter):
    """Shows descriptions as they are written, and defaults."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        # Without "(default: None)" and its like, which say nothing; but 0 is one.
        says_nothing = action.default is False or action.default in (None, [])
        return action.help if says_nothing else super()._get_help_string(action)


def make_parser() -> argparse.ArgumentParser:
    """Makes the parser of all commands."""
    parser = argparse.ArgumentParser(
        prog="keras-igpt",
        description="Image GPT for Keras 3. KERAS_BACKEND chooses jax, tensorflow or torch.",
        epilog="keras-igpt COMMAND --help tells more of each.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, summary in COMMANDS.items():
        module = import_module(f"keras_igpt.commands.{name.replace('-', '_')}")
        command = commands.add_parser(
            name,
            help=summary,
            description=module.__doc__,
            formatter_class=_Help,
        )
        module.add_arguments(command)
        flags = re.findall(r"--[a-z][a-z-]*", command.format_usage())
        by_argument = {flag.removeprefix("--").replace("-", "_"): flag for flag in flags}
        by_argument |= getattr(module, "FLAGS", {})
        command.set_defaults(run=partial(_run, module.run, by_argument))
    return parser


def _run(run: Callable[[argparse.Namespace], None], flags: Mapping[str, str], options: argparse.Namespace) -> None:
    """Runs a command; errors and warnings of the library name arguments by the command's flags, where it has them."""
    with without_tensorflow(), _told(flags), named_by_flags(**flags):
        run(options)


@contextmanager
def _told(flags: Mapping[str, str]) -> Iterator[None]:
    """Prints the package's log, and warnings without the line of code: they are for the person at the keyboard."""
    printer, level, propagate = _Printer(), LOG.level, LOG.propagate
    LOG.addHandler(printer)
    LOG.setLevel(logging.INFO)
    # A framework that sets up the root's log would print each line again.
    LOG.propagate = False
    try:
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *_: print(
                f"Warning: {with_flags(str(message), flags)}", file=sys.stderr
            )
            yield
    finally:
        LOG.removeHandler(printer)
        LOG.setLevel(level)
        LOG.propagate = propagate


class _Printer(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        print(record.getMessage(), flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs a command. What is wrong with its arguments or files is printed in one line, with exit status 1.

    Args:
        arguments: sequence of str; those of the process by default.
    """
    options = parse(make_parser(), arguments)
    try:
        options.run(options)
    except (ValueError, OSError, ImportError, FloatingPointError) as error:
        sys.exit(f"keras-igpt {options.command}: {error}")
