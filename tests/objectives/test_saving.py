import os
import shutil
import subprocess
import sys
import zipfile

import h5py
import keras
import numpy as np
import pytest
from conftest import make_causal_lm, make_masked_lm, random_tokens, randomize

import keras_igpt as igpt

BACKENDS = ("jax", "tensorflow", "torch")

# Runs in a process of its own that imports keras_igpt alone before it loads the file.
OPEN_ELSEWHERE = """
import sys
import zipfile
import numpy as np
import keras_igpt
import h5py
import keras
arrays, *paths = sys.argv[1:]
stored = np.load(arrays)
token_ids, labels = stored["token_ids"], stored["labels"]
for path in paths:
    model = keras.saving.load_model(path)
    outputs = {"logits": model.predict(token_ids, verbose=0), "iterations": int(model.optimizer.iterations)}
    backbone = model.backbone
    outputs["features"] = keras.ops.convert_to_numpy(backbone.pooled_features(token_ids))
    outputs["centroids"] = model.palette.centroids
    targets = labels if hasattr(model, "num_classes") else None
    history = model.fit(token_ids, targets, batch_size=8, epochs=2, shuffle=False, verbose=0).history
    outputs["losses"] = np.array(history["loss"])
    np.savez(f"{path}.{keras.backend.backend()}.npz", **outputs)
"""

TOKENS, LABELS = random_tokens(8), np.arange(8) % 4


def make_trained(kind, palette):
    if kind == "causal":
        model = randomize(make_causal_lm(palette), scale=0.1)
        recipe = igpt.pretraining_recipe("igpt_nano", "ar", steps=50)
    elif kind == "masked":
        choices = {"normalization": "rms_norm", "projection_bias": True}
        model = randomize(make_masked_lm(palette, mask_rate=0.3, mask_seed=2, **choices), scale=0.1)
        recipe = igpt.pretraining_recipe("igpt_nano", "bert", steps=50)
    else:
        language_model = randomize(make_masked_lm(palette), scale=0.1)
        model = igpt.ImageGPTImageClassifier(language_model, num_classes=4, generative_weight=0.5)
        recipe = igpt.finetuning_recipe(0.001)
    model.compile(**recipe)
    fit(model, epochs=3)
    return model


def fit(model, epochs):
    targets = LABELS if isinstance(model, igpt.ImageGPTImageClassifier) else None
    return model.fit(TOKENS, targets, batch_size=8, epochs=epochs, shuffle=False, verbose=0).history["loss"]


@pytest.fixture(scope="module")
def saved(palette, tmp_path_factory):
    """The file of each kind of model after three steps, what it gives then, and the losses of two steps more."""
    folder = tmp_path_factory.mktemp("saved")
    np.savez(folder / "arrays.npz", token_ids=TOKENS, labels=LABELS)
    models = {}
    for kind in ("causal", "masked", "classifier"):
        keras.utils.set_random_seed(0)
        model = make_trained(kind, palette)
        model.save(folder / f"{kind}.keras")
        models[kind] = {
            "model": model,
            "logits": model.predict(TOKENS, verbose=0),
            "features": keras.ops.convert_to_numpy(model.backbone.pooled_features(TOKENS)),
            "optimizer": [keras.ops.convert_to_numpy(variable).copy() for variable in model.optimizer.variables],
            "losses": fit(model, epochs=2),
        }
    return folder, models


@pytest.mark.parametrize("kind", ["causal", "masked", "classifier"])
def test_one_file_holds_everything(kind, palette, saved):
    folder, expected = saved[0], saved[1][kind]
    restored = keras.saving.load_model(folder / f"{kind}.keras")
    assert type(restored) is type(expected["model"])
    assert restored.palette == palette
    # Names of metrics are counted up in a process; everything else must be the same.
    assert restored.backbone.get_config() == expected["model"].backbone.get_config()
    np.testing.assert_array_equal(restored.predict(TOKENS, verbose=0), expected["logits"])
    for new, old in zip(restored.optimizer.variables, expected["optimizer"], strict=True):
        np.testing.assert_array_equal(keras.ops.convert_to_numpy(new), old)
    # The next masks are those of the next step, not those of the first.
    np.testing.assert_allclose(fit(restored, epochs=2), expected["losses"], rtol=1e-6)


@pytest.mark.parametrize("kind", ["causal", "masked", "classifier"])
def test_what_is_saved_to_the_hub_is_what_is_loaded_from_it(kind, palette, saved, hub):
    shutil.copy(saved[0] / f"{kind}.keras", hub.parent / "model.keras")
    model = keras.saving.load_model(hub.parent / "model.keras")
    model.save("hf://someone/model")
    assert {"README.md", "config.json", "model.weights.h5"} <= {path.name for path in (hub / "someone/model").iterdir()}
    loaded = keras.saving.load_model("hf://someone/model")
    assert type(loaded) is type(model)
    assert (loaded.palette, loaded.backbone.architecture) == (palette, model.backbone.architecture)
    for new, old in zip(
        [*loaded.weights, *loaded.optimizer.variables], [*model.weights, *model.optimizer.variables], strict=True
    ):
        np.testing.assert_array_equal(keras.ops.convert_to_numpy(new), keras.ops.convert_to_numpy(old))


@pytest.mark.parametrize("backend", [name for name in BACKENDS if name != keras.backend.backend()])
def test_a_file_opens_and_trains_on_in_a_fresh_process_on_any_other_backend(backend, palette, saved):
    pytest.importorskip(backend)
    folder, models = saved
    kinds = ("causal", "classifier")
    subprocess.run(
        [
            sys.executable,
            "-c",
            OPEN_ELSEWHERE,
            *(str(folder / name) for name in ("arrays.npz", *(f"{kind}.keras" for kind in kinds))),
        ],
        check=True,
        env={**os.environ, "KERAS_BACKEND": backend},
        cwd=folder,
    )
    for kind in kinds:
        result, expected = np.load(folder / f"{kind}.keras.{backend}.npz"), models[kind]
        np.testing.assert_allclose(result["logits"], expected["logits"], atol=1e-4)
        np.testing.assert_allclose(result["features"], expected["features"], atol=1e-4)
        np.testing.assert_array_equal(result["centroids"], palette.centroids)
        assert result["iterations"] == 3
        assert result["losses"][0] == pytest.approx(expected["losses"][0], rel=1e-5)
        # One update apart: Adam turns rounding of its smallest gradients into steps of full size.
        assert result["losses"][1] == pytest.approx(expected["losses"][1], rel=2e-3)


@pytest.mark.parametrize("chosen", ["auto", True, False])
def test_where_a_file_opens_decides_whether_it_is_compiled(chosen, tmp_path):
    model = make_causal_lm()
    model.compile(**igpt.pretraining_recipe("igpt_nano", "ar", steps=8), jit_compile=chosen)
    model.optimizer.build(model.trainable_variables)
    by_default = make_causal_lm().jit_compile
    expected = "auto" if chosen in ("auto", by_default) else chosen
    assert model.get_compile_config()["jit_compile"] == expected
    model.save(tmp_path / "model.keras")
    assert keras.saving.load_model(tmp_path / "model.keras").jit_compile == model.jit_compile


def test_a_file_opened_without_its_optimizer_passes_none_on(saved, tmp_path):
    """Neither alone nor inside a classifier, whose own is all that its file has."""
    shutil.copy(saved[0] / "causal.keras", tmp_path / "model.keras")
    without = keras.saving.load_model(tmp_path / "model.keras", compile=False)
    assert getattr(without, "optimizer", None) is None
    without.save(tmp_path / "without.keras")
    classifier = igpt.ImageGPTImageClassifier(without, num_classes=4)
    classifier.compile(**igpt.finetuning_recipe(0.001))
    classifier.optimizer.build(classifier.trainable_variables)
    classifier.save(tmp_path / "classifier.keras")
    stored = {}
    for name in ("model", "without", "classifier"):
        with zipfile.ZipFile(tmp_path / f"{name}.keras") as file, file.open("model.weights.h5") as weights:
            paths = []
            with h5py.File(weights) as tree:
                tree.visit(paths.append)
            stored[name] = [path for path in paths if "optimizer" in path]
    assert stored["model"]
    assert stored["without"] == []
    assert all(path.startswith("optimizer") for path in stored["classifier"])


# Dies while it writes over what it has written, as by SIGKILL: `os._exit` runs nothing on its way out. Several deaths
# are those of its children, and its own.
DIE_WHILE_SAVING = """
import os, shutil, sys
import h5py
import keras_igpt as igpt
from keras_igpt.training.distribution import save_model
lm = igpt.ImageGPTCausalLM(igpt.ImageGPTBackbone(16, 4, 1, 2, 8, attention="causal"))
lm.compile("sgd")
for argument in sys.argv[1:]:
    kind, path, copy = argument.split(",")
    # The last one in this process: JAX may not be forked once it runs.
    if argument == sys.argv[-1] or (child := os.fork()) == 0:
        break
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
save = {
    "file": lambda: lm.save(path),
    "folder": lambda: lm.save(path, zipped=False),
    "weights": lambda: lm.save_weights(path),
    "backbone": lambda: lm.backbone.save(path),
    "save_model": lambda: save_model(lm, path),
}[kind]
save()
(shutil.copytree if os.path.isdir(path) else shutil.copy)(path, copy)
lm.set_weights([weight + 1 for weight in lm.get_weights()])
close = h5py.File.close
h5py.File.close = lambda file: (close(file), os._exit(9))
save()
"""


def content_of(path):
    files = [file for file in path.rglob("*") if file.is_file()] if path.is_dir() else [path]
    return {file.relative_to(path): file.read_bytes() for file in files}


def test_killed_while_it_is_written_over_a_file_is_as_it_was(tmp_path):
    if not hasattr(os, "fork"):
        pytest.skip("those that die are forks")
    # The backend has no part in how files take each other's place.
    kinds = ["file", "folder", "weights", "backbone", "save_model"] if keras.backend.backend() == "torch" else ["file"]
    endings = {"folder": "", "weights": ".weights.h5"}
    paths = {}
    for kind in kinds:
        (tmp_path / kind).mkdir()
        paths[kind] = [tmp_path / kind / f"{name}{endings.get(kind, '.keras')}" for name in ("model", "copy")]
    arguments = [f"{kind},{path},{copy}" for kind, (path, copy) in paths.items()]
    result = subprocess.run([sys.executable, "-c", DIE_WHILE_SAVING, *arguments], capture_output=True)
    assert result.returncode == 9, result.stderr[-2000:]
    for path, copy in paths.values():
        assert content_of(path) == content_of(copy)
        assert len(list(path.parent.glob(".partial-*"))) == 1


def test_saving_means_what_it_means_in_keras(tmp_path, monkeypatch):
    lm = make_causal_lm(num_layers=1, hidden_dim=8)
    saves = [("model.keras", lm.save), ("weights.weights.h5", lm.save_weights)]
    saves.append(("folder", lambda path, **options: lm.save(path, zipped=False, **options)))
    asked = []
    for name, save in saves:
        path = tmp_path / "new" / name
        save(str(path))
        before = content_of(path)
        lm.set_weights([weight + 1 for weight in lm.get_weights()])
        for answers, expected in ((["n"], True), (["what?", "Y"], False)):
            replies = iter(answers)
            monkeypatch.setattr("builtins.input", lambda text, replies=replies: asked.append(text) or next(replies))
            save(path, overwrite=False)
            assert (content_of(path) == before) == expected
        assert f" {path} already exists" in asked[-2]
    assert ".partial" not in "".join(asked)
    assert sorted(os.listdir(tmp_path / "new")) == ["folder", "model.keras", "weights.weights.h5"]
    opened = [keras.saving.load_model(tmp_path / "new" / name) for name in ("model.keras", "folder")]
    weights = make_causal_lm(num_layers=1, hidden_dim=8)
    weights.load_weights(tmp_path / "new" / "weights.weights.h5")
    for model, more in zip([*opened, weights], (-2, 0, -1), strict=True):
        np.testing.assert_allclose(model.get_weights()[0], lm.get_weights()[0] + more, atol=1e-5)
    # What else lies in a folder is not Keras' to remove.
    (tmp_path / "notes.txt").touch()
    lm.save(tmp_path, zipped=False)
    assert {"notes.txt", "model.weights.h5"} <= {path.name for path in tmp_path.iterdir()}
    with pytest.raises(ValueError, match=r"filepath=.*/model.txt"):
        lm.save(tmp_path / "model.txt")
    with pytest.raises(ValueError, match=r"filepath=.*/model.keras"):
        lm.save(tmp_path / "model.keras", zipped=False)
    sent = []
    monkeypatch.setattr(keras.Model, "save", lambda self, path, **options: sent.append((path, options)))
    lm.save("hf://somebody/model")
    assert sent == [("hf://somebody/model", {"overwrite": True, "zipped": None})]


@pytest.mark.parametrize("freeze", ["backbone", "blocks", "block but its norm"])
def test_a_file_keeps_what_is_frozen(freeze, tmp_path):
    lm = randomize(make_causal_lm(), scale=0.1)
    backbone = lm.backbone
    for layer in [backbone] if freeze == "backbone" else [backbone.blocks[0], backbone.pixel_embedding]:
        layer.trainable = False
    backbone.blocks[0].attention_norm.trainable = freeze == "block but its norm"
    lm.compile(optimizer=keras.optimizers.Adam(0.01))
    lm.fit(TOKENS, batch_size=4, epochs=2, shuffle=False, verbose=0)
    lm.save(tmp_path / "frozen.keras")
    opened = keras.saving.load_model(tmp_path / "frozen.keras")
    classifier = igpt.ImageGPTImageClassifier(opened, 4)
    assert [weight.path for weight in opened.trainable_weights] == [weight.path for weight in lm.trainable_weights]
    before = opened.get_weights()
    for model in (lm, opened):
        model.fit(TOKENS, batch_size=4, epochs=1, shuffle=False, verbose=0)
    for there, here in zip(lm.get_weights(), opened.get_weights(), strict=True):
        np.testing.assert_allclose(here, there, atol=1e-6)
    frozen = [not weight.trainable for weight in opened.weights]
    for weight, old, stays in zip(opened.get_weights(), before, frozen, strict=True):
        assert np.array_equal(weight, old) == stays
    classifier.save(tmp_path / "classifier.keras")
    inside = keras.saving.load_model(tmp_path / "classifier.keras").language_model
    assert [weight.trainable for weight in inside.weights] == [not stays for stays in frozen]


def test_checkpoints_of_keras_are_whole_too(tmp_path, monkeypatch):
    written = []
    save = keras.Model.save
    monkeypatch.setattr(keras.Model, "save", lambda self, path, **options: written.append(path) or save(self, path))
    callback = keras.callbacks.ModelCheckpoint(str(tmp_path / "model.keras"))
    callback.set_model(make_causal_lm(num_layers=1, hidden_dim=8))
    callback.on_epoch_end(0, {})
    assert os.fspath(written[0]) != str(tmp_path / "model.keras")
    assert os.listdir(tmp_path) == ["model.keras"]
