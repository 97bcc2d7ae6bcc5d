import os
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
path, arrays, result = sys.argv[1:]
model = keras.saving.load_model(path)
stored = np.load(arrays)
token_ids, labels = stored["token_ids"], stored["labels"]
outputs = {"logits": model.predict(token_ids, verbose=0), "iterations": int(model.optimizer.iterations)}
backbone = model.backbone
outputs["features"] = keras.ops.convert_to_numpy(backbone.pooled_features(token_ids))
outputs["centroids"] = model.palette.centroids
targets = labels if hasattr(model, "num_classes") else None
history = model.fit(token_ids, targets, batch_size=8, epochs=2, shuffle=False, verbose=0).history
outputs["losses"] = np.array(history["loss"])
np.savez(result, **outputs)
"""


def make_trained(kind, palette):
    if kind == "causal":
        model = randomize(make_causal_lm(palette), scale=0.1)
        recipe = igpt.pretraining_recipe("igpt_nano", "ar", steps=50)
    elif kind == "masked":
        model = randomize(make_masked_lm(palette, normalization="rms_norm", mask_rate=0.3, mask_seed=2), scale=0.1)
        recipe = igpt.pretraining_recipe("igpt_nano", "bert", steps=50)
    else:
        language_model = randomize(make_masked_lm(palette), scale=0.1)
        model = igpt.ImageGPTImageClassifier(language_model, num_classes=4, generative_weight=0.5)
        recipe = igpt.finetuning_recipe(0.001)
    model.compile(**recipe)
    token_ids, labels = random_tokens(8), np.arange(8) % 4
    fit(model, token_ids, labels, epochs=3)
    return model, token_ids, labels


def fit(model, token_ids, labels, epochs):
    targets = labels if isinstance(model, igpt.ImageGPTImageClassifier) else None
    return model.fit(token_ids, targets, batch_size=8, epochs=epochs, shuffle=False, verbose=0).history["loss"]


@pytest.mark.parametrize("kind", ["causal", "masked", "classifier"])
def test_one_file_holds_everything(kind, palette, tmp_path):
    model, token_ids, labels = make_trained(kind, palette)
    model.save(tmp_path / "model.keras")
    restored = keras.saving.load_model(tmp_path / "model.keras")
    assert type(restored) is type(model)
    assert restored.palette == palette
    # Names of metrics are counted up in a process; everything else must be the same.
    assert restored.backbone.get_config() == model.backbone.get_config()
    np.testing.assert_array_equal(restored.predict(token_ids, verbose=0), model.predict(token_ids, verbose=0))
    for old, new in zip(model.optimizer.variables, restored.optimizer.variables, strict=True):
        np.testing.assert_array_equal(keras.ops.convert_to_numpy(old), keras.ops.convert_to_numpy(new))
    # The next masks are those of the next step, not those of the first.
    np.testing.assert_allclose(
        fit(restored, token_ids, labels, epochs=2), fit(model, token_ids, labels, epochs=2), rtol=1e-6
    )


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", ["causal", "classifier"])
def test_a_file_opens_and_trains_on_in_a_fresh_process_on_any_backend(kind, backend, palette, tmp_path):
    pytest.importorskip(backend)
    model, token_ids, labels = make_trained(kind, palette)
    model.save(tmp_path / "model.keras")
    np.savez(tmp_path / "arrays.npz", token_ids=token_ids, labels=labels)
    arguments = [str(tmp_path / name) for name in ("model.keras", "arrays.npz", "result.npz")]
    subprocess.run(
        [sys.executable, "-c", OPEN_ELSEWHERE, *arguments],
        check=True,
        env={**os.environ, "KERAS_BACKEND": backend},
        cwd=tmp_path,
    )
    result = np.load(tmp_path / "result.npz")
    np.testing.assert_allclose(result["logits"], model.predict(token_ids, verbose=0), atol=1e-4)
    features = keras.ops.convert_to_numpy(model.backbone.pooled_features(token_ids))
    np.testing.assert_allclose(result["features"], features, atol=1e-4)
    np.testing.assert_array_equal(result["centroids"], palette.centroids)
    assert result["iterations"] == 3
    here = fit(model, token_ids, labels, epochs=2)
    assert result["losses"][0] == pytest.approx(here[0], rel=1e-5)
    # One update apart: Adam turns rounding of its smallest gradients into steps of full size.
    assert result["losses"][1] == pytest.approx(here[1], rel=2e-3)


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


def test_a_file_opened_without_its_optimizer_passes_none_on(palette, tmp_path):
    """Neither alone nor inside a classifier, whose own is all that its file has."""
    model, _, _ = make_trained("causal", palette)
    model.save(tmp_path / "model.keras")
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
