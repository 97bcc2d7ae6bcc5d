"""Open a page to play with a model: completions, surprise, attention, depth curve. Served on this machine alone.

keras-igpt demo
keras-igpt demo --model run/igpt.keras --port 8000 --no-browser
"""

from __future__ import annotations

import argparse

from keras_igpt.commands.shared import add_model_argument, load_language_model
from keras_igpt.demo.page import import_gradio, launch


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    add_model_argument(parser, required=False)
    parser.add_argument("--port", type=int, help="the first one free from 7860 on by default")
    parser.add_argument("--no-browser", action="store_true", help="print the address only")


def run(options: argparse.Namespace) -> None:
    """Runs the command."""
    # What is missing is said before a model is opened.
    import_gradio()
    launch(load_language_model(options.model), options.model, options.port, browser=not options.no_browser)
