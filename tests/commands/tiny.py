"""Pictures and sizes so small that every command can be run on them."""

import shlex
from types import SimpleNamespace

import numpy as np
from PIL import Image

from keras_igpt.commands.main import make_parser

SIZES = ["--image-size", "4", "--colors", "8", "--layers", "1", "--heads", "1", "--width", "8", "--batch-size", "8"]


def make_folders(tmp_path_factory):
    """Twenty pictures of each of two classes, dark and bright, with and without folders for them."""
    classes, flat = tmp_path_factory.mktemp("classes"), tmp_path_factory.mktemp("flat")
    random = np.random.default_rng(0)
    for label, name in enumerate(("dark", "bright")):
        (classes / name).mkdir()
        for number in range(20):
            pixels = random.integers(128 * label, 128 * (label + 1), (6, 6, 3)).astype("uint8")
            Image.fromarray(pixels).save(classes / name / f"{number}.png")
            Image.fromarray(pixels).save(flat / f"{name}-{number}.png")
    return SimpleNamespace(classes=str(classes), flat=str(flat))


def noted(monkeypatch, owner, name, note):
    """A list of what a note says of each call of a function, of its arguments."""
    called, notes = getattr(owner, name), []

    def noting(*arguments, **options):
        notes.append(note(*arguments, **options))
        return called(*arguments, **options)

    monkeypatch.setattr(owner, name, noting)
    return notes


def next_command(said):
    """The command that the last line proposes, which can be run as it stands."""
    words = shlex.split(said.splitlines()[-1].removeprefix("Next: keras-igpt "))
    make_parser().parse_args(words)
    return words
