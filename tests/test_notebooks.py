"""The notebooks hold no outputs, and run from beginning to end at a tiny size."""

import json
from pathlib import Path

import keras
import numpy as np
import pytest

NOTEBOOKS = sorted((Path(__file__).parent.parent / "notebooks").glob("*.ipynb"))


def cells_of(path):
    return json.loads(path.read_text())["cells"]


def tags_of(cell):
    return cell["metadata"].get("tags", [])


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_are_text_without_outputs(path):
    notebook = json.loads(path.read_text())
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    assert set(notebook) == {"cells", "metadata", "nbformat", "nbformat_minor"}
    identifiers = [cell["id"] for cell in notebook["cells"]]
    assert len(set(identifiers)) == len(identifiers)
    for cell in notebook["cells"]:
        fields = {"cell_type", "id", "metadata", "source"}
        if cell["cell_type"] == "code":
            assert (cell["outputs"], cell["execution_count"]) == ([], None)
            fields |= {"outputs", "execution_count"}
        else:
            assert cell["cell_type"] == "markdown"
        assert set(cell) == fields
        assert all(isinstance(line, str) for line in cell["source"])
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert [tags_of(cell) for cell in code].count(["parameters"]) == 1
    # Installed first; and the backend is chosen before Keras is imported.
    assert tags_of(code[0]) == ["install"]
    first = "".join(code[1]["source"])
    assert first.index("KERAS_BACKEND") < first.index("import keras")


def run(path, **parameters):
    """Runs the cells in one namespace, with other parameters and without installing anything; returns it."""
    namespace = {}
    for cell in cells_of(path):
        if cell["cell_type"] != "code" or "install" in tags_of(cell):
            continue
        run_cell(path, cell, namespace)
        if "parameters" in tags_of(cell):
            assert parameters.keys() <= namespace.keys()
            namespace.update(parameters)
    return namespace


def run_cell(path, cell, namespace):
    exec(compile("".join(cell["source"]), f"{path.name}, {cell['id']}", "exec"), namespace)


def run_again(path, namespace, *ids):
    """Runs some cells once more, as after a lost session."""
    for cell in cells_of(path):
        if cell["id"] in ids:
            run_cell(path, cell, namespace)


TINY = {"IMAGE_SIZE": 4, "COLORS": 8, "LAYERS": 1, "HEADS": 1, "WIDTH": 8, "BATCH_SIZE": 8}


def test_own_pictures(tmp_path, monkeypatch):
    for package in ("sklearn", "matplotlib", "PIL"):
        pytest.importorskip(package)
    monkeypatch.chdir(tmp_path)
    (path,) = [path for path in NOTEBOOKS if path.stem == "own_pictures"]
    namespace = run(path, **TINY, PRETRAINING_EPOCHS=1, FINETUNING_EPOCHS=1, PATCHES=20)
    assert len(list((tmp_path / "pictures").glob("*/*.png"))) == 40
    assert namespace["completions"].shape == (4, 4, 4, 4, 3)
    assert 0 <= namespace["tested"]["accuracy"] <= 1
    assert keras.saving.load_model(tmp_path / "classifier.keras").num_classes == 2
    run_again(path, namespace, "pretrain", "loss-curves")
    assert len(namespace["epochs"]) == 1


def test_paper_protocol(tmp_path, monkeypatch):
    for package in ("sklearn", "matplotlib", "keras_tuner"):
        pytest.importorskip(package)
    monkeypatch.chdir(tmp_path)
    # Each class has a brightness, so that there is something to learn.
    labels = np.arange(220) % 10
    noise = np.random.default_rng(0).integers(0, 25, (220, 4, 4, 3))
    pictures = (25 * labels[:, None, None, None] + noise).astype("uint8")
    parts = ((pictures[:200], labels[:200, None]), (pictures[200:], labels[200:, None]))
    monkeypatch.setattr(keras.datasets.cifar10, "load_data", lambda: parts)
    (path,) = [path for path in NOTEBOOKS if path.stem == "paper_protocol"]
    small = {"LEARNING_RATES": (0.01,), "SEARCH_STEPS": 4, "EPOCHS": 1, "EPOCH_STEPS": 2, "PROBE_PICTURES": 40}
    small |= {
        "LABELS_PER_CLASS": 4,
        "VALIDATION_PICTURES": 20,
        "FINETUNING_RATES": (0.01,),
        "FINETUNING_EPOCHS": 1,
        "TO_BEAT": 0.0,
    }
    namespace = run(path, **TINY, **small, FEW_LABELS=(2,))
    assert set(namespace["curves"]) == {"autoregressive", "random weights"}
    reports = {path.parent.name for path in (tmp_path / "protocol").glob("*/report.json")}
    assert reports == {"finetuning"}
    run_again(path, namespace, "pretrain")
    assert len(namespace["epochs"]) == 1
