import importlib.util
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import keras
import numpy as np
import pytest
from conftest import make_causal_lm, make_masked_lm, randomize, to_numpy

import keras_igpt as igpt
from keras_igpt.checkpoints.serving import PaletteEncoding, ServingModel
from keras_igpt.evaluation.features import FeatureExtractor

RANDOM = np.random.default_rng(0)
IMAGES = RANDOM.integers(0, 256, (5, 4, 4, 3)).astype("uint8")


def grey(values):
    return igpt.ColorPalette.from_colors(np.array(values, "uint8")[:, None])


PALETTES = {
    "whole colours": lambda: igpt.ColorPalette.from_colors(RANDOM.integers(0, 256, (300, 3)).astype("uint8")),
    # Corners of a grid: many pixels are as near to one as to another.
    "ties": lambda: igpt.ColorPalette.from_colors(
        np.stack(np.meshgrid([0, 128, 254], [2, 100, 254], [0, 4], indexing="ij"), -1).reshape(-1, 3).astype("uint8")
    ),
    "extremes": lambda: igpt.ColorPalette.from_colors(np.array([[255, 255, 255], [0, 0, 0], [255, 0, 255]], "uint8")),
    "grey": lambda: grey([200, 10, 100, 60]),
    "grey, between whole values": lambda: igpt.ColorPalette(np.linspace(-0.93, 0.97, 7)[:, None]),
    "between whole values": lambda: igpt.ColorPalette(RANDOM.uniform(-1, 1, (40, 3))),
}


@pytest.mark.parametrize("name", PALETTES)
def test_encoding_in_the_graph_is_the_palettes_own(name):
    palette = PALETTES[name]()
    images = np.random.default_rng(1).integers(0, 256, (2, 60, 50, palette.num_channels)).astype("uint8")
    # Even values meet ties more often.
    images[1] = images[1] // 2 * 2
    layer = PaletteEncoding(palette)
    assert (layer.table is None) == ("between" not in name)
    token_ids = to_numpy(layer(images))
    assert token_ids.dtype == np.int32
    np.testing.assert_array_equal(token_ids, palette.encode(images))


@pytest.fixture(scope="module")
def classifier():
    keras.utils.set_random_seed(0)
    palette = igpt.ColorPalette.from_colors(np.random.default_rng(3).integers(0, 256, (16, 3)).astype("uint8"))
    return randomize(
        igpt.ImageGPTImageClassifier(make_causal_lm(palette, projection_bias=True), num_classes=4), scale=0.1
    )


def test_pictures_go_in_and_class_logits_come_out(classifier):
    expected = classifier.predict(classifier.palette.encode(IMAGES), verbose=0)
    np.testing.assert_allclose(ServingModel(classifier).predict(IMAGES, verbose=0), expected, atol=1e-6)


@pytest.mark.parametrize("make", [make_causal_lm, make_masked_lm])
def test_pictures_go_in_and_features_or_pixel_logits_come_out(make, palette):
    model = randomize(make(palette), scale=0.1)
    token_ids = palette.encode(IMAGES)
    np.testing.assert_allclose(to_numpy(ServingModel(model)(IMAGES)), to_numpy(model(token_ids)), atol=1e-6)
    extractor = FeatureExtractor(model, layers=[2, 0])
    expected = to_numpy(model.pooled_features(token_ids))[:, [2, 0]]
    np.testing.assert_allclose(to_numpy(ServingModel(extractor)(IMAGES)), expected, atol=1e-6)


def test_a_model_and_its_serving_model_survive_pictures_of_another_kind(palette):
    lm = randomize(make_causal_lm(palette), scale=0.1)
    serving = ServingModel(lm)
    expected = lm.predict(palette.encode(IMAGES), verbose=0)
    for images, received in (
        (IMAGES[:, :3, :3], r"uint8 of shape \(5, 3, 3, 3\)"),
        (IMAGES.astype("float32"), r"float32 of shape \(5, 4, 4, 3\)"),
        (list(IMAGES[:, :2]), r"uint8 of shape \(5, 2, 4, 3\)"),
    ):
        for predict in (serving.predict, serving.predict_on_batch):
            with pytest.raises(ValueError, match=rf"`x` must be uint8 .*Received: {received}$"):
                predict(images)
    # In a data set, after a batch that fits.
    with pytest.raises(Exception, match=r"must be uint8"):
        serving.predict(((images,) for images in (IMAGES, IMAGES[:, :3, :3])), verbose=0)
    for model, inputs in ((lm, palette.encode(IMAGES)), (serving, IMAGES), (serving, list(IMAGES))):
        np.testing.assert_allclose(model.predict(inputs, verbose=0), expected, atol=1e-6)


def test_several_threads_may_serve_one_model(classifier):
    serving = ServingModel(classifier)
    expected = serving.predict(IMAGES, verbose=0)
    with ThreadPoolExecutor(4) as pool:
        computed = [pool.submit(serving.predict, IMAGES, batch_size=1, verbose=0) for _ in range(20)]
    for outputs in computed:
        np.testing.assert_allclose(outputs.result(), expected, atol=1e-6)
    assert all(np.isfinite(to_numpy(weight)).all() for weight in classifier.weights)


def importable(*packages):
    return all(importlib.util.find_spec(package) for package in packages)


def test_a_saved_model_gives_the_same_logits(classifier, tmp_path):
    tf = pytest.importorskip("tensorflow")
    if keras.backend.backend() == "torch" and not importable("torch_xla"):
        with pytest.raises(
            ImportError, match="needs torch_xla: pip install torch_xla, or export with KERAS_BACKEND=tensorflow"
        ):
            ServingModel(classifier).export(tmp_path / "saved")
        return
    serving = ServingModel(classifier)
    serving.export(tmp_path / "saved")
    loaded = tf.saved_model.load(str(tmp_path / "saved"))
    for count in (5, 2):
        outputs = loaded.serve(IMAGES[:count]).numpy()
        np.testing.assert_allclose(outputs, serving.predict(IMAGES[:count], verbose=0), atol=1e-6)


EXPORTERS = {"jax": ["jax2onnx"], "tensorflow": ["tf2onnx"], "torch": ["onnx", "onnxscript"]}


def onnx_outputs(path, images):
    session = pytest.importorskip("onnxruntime").InferenceSession(path)
    (given,) = session.get_inputs()
    return session.run(None, {given.name: images})[0]


def test_onnx_gives_the_same_logits(classifier, tmp_path):
    backend = keras.backend.backend()
    if not importable(*EXPORTERS[backend]):
        pytest.skip(f"needs {EXPORTERS[backend]}")
    serving = ServingModel(classifier)
    serving.export(tmp_path / "model.onnx", format="onnx", batch_size=5 if backend == "torch" else None)
    expected = serving.predict(IMAGES, verbose=0)
    np.testing.assert_allclose(onnx_outputs(tmp_path / "model.onnx", IMAGES), expected, atol=1e-5)


def test_onnx_of_a_masked_model(palette, tmp_path):
    serving = ServingModel(FeatureExtractor(randomize(make_masked_lm(palette), scale=0.1), layers=[1]))
    if keras.backend.backend() != "torch":
        with pytest.raises(ValueError, match=r"`format` must be 'tf_saved_model' for a BERT model.*Received: "):
            serving.export(tmp_path / "model.onnx", format="onnx")
        return
    if not importable(*EXPORTERS["torch"]):
        pytest.skip(f"needs {EXPORTERS['torch']}")
    serving.export(tmp_path / "model.onnx", format="onnx", batch_size=5)
    expected = serving.predict(IMAGES, verbose=0)
    np.testing.assert_allclose(onnx_outputs(tmp_path / "model.onnx", IMAGES), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "given", "expected"),
    [
        ("model.onnx", None, "onnx"),
        ("model.ONNX", None, "onnx"),
        ("model", None, "tf_saved_model"),
        ("model", "onnx", "onnx"),
        ("model.onnx", "tf_saved_model", None),
    ],
)
def test_the_name_of_the_file_says_the_format(classifier, tmp_path, monkeypatch, name, given, expected):
    written = []

    def export(self, path, format, **others):
        written.append(format)
        Path(path, "saved_model.pb").touch() if format == "tf_saved_model" else Path(path).touch()

    monkeypatch.setattr(keras.Model, "export", export)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)  # as if all exporters were there
    path = tmp_path / name
    if expected is None:
        with pytest.raises(ValueError, match=r"`filepath` must be a folder.*pass format='onnx'.*Received: "):
            ServingModel(classifier).export(path, format=given, batch_size=np.int64(2))
    else:
        ServingModel(classifier).export(path, format=given, batch_size=np.int64(2))
    assert written == ([] if expected is None else [expected])
    assert list(tmp_path.iterdir()) == ([] if expected is None else [path])
    assert path.is_dir() == (expected == "tf_saved_model")


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_an_earlier_export_stays_until_the_new_one_is_complete(classifier, tmp_path, monkeypatch):
    """A full disk in the middle; then a graph and weights beside it, and a SavedModel with fewer files."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)

    def export(self, path, format, text="old", fails=False, **others):
        if format == "tf_saved_model":
            Path(path, "variables").mkdir(exist_ok=True)
            Path(path, "variables", text).touch()
            Path(path, "saved_model.pb").write_text(text)
        else:
            Path(path).write_text(text)
            Path(f"{path}.data").write_text(text)
        if fails:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(keras.Model, "export", export)
    (tmp_path / "linked").symlink_to(tmp_path / "saved")
    serving = ServingModel(classifier)
    for name in ("model.onnx", "saved", "linked"):
        serving.export(tmp_path / name, batch_size=1)
        before = contents(tmp_path)
        with pytest.raises(OSError, match="No space"):
            serving.export(tmp_path / name, batch_size=1, text="new", fails=True)
        assert contents(tmp_path) == before
    for name in ("model.onnx", "linked"):
        serving.export(tmp_path / name, batch_size=1, text="new")
    assert (tmp_path / "linked").is_symlink()
    assert contents(tmp_path) == {
        Path("model.onnx"): b"new",
        Path("model.onnx.data"): b"new",
        Path("saved/saved_model.pb"): b"new",
        Path("saved/variables/new"): b"",
    }


def test_a_folder_with_other_files_is_refused_first(classifier, tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    (tmp_path / "saved_model.pb").touch()
    (tmp_path / "notes.txt").touch()
    with pytest.raises(ValueError, match=r"`filepath` must be a new or empty folder.*which holds 'notes\.txt'$"):
        ServingModel(classifier).export(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["notes.txt", "saved_model.pb"]


def test_a_path_of_another_kind_is_refused_first(classifier, tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    (tmp_path / "folder.onnx").mkdir()
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"`filepath` must be a file.* format='onnx'\. Received: '.*', a folder"):
        ServingModel(classifier).export(tmp_path / "folder.onnx", batch_size=1)
    with pytest.raises(ValueError, match=r"`filepath` must be a folder.* Received: '.*', a file"):
        ServingModel(classifier).export(tmp_path / "file", batch_size=1)


def test_absent_exporters_are_named(classifier, tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    absent = " ".join(EXPORTERS[keras.backend.backend()])
    with pytest.raises(ImportError, match=f"pip install {absent}$"):
        ServingModel(classifier).export(tmp_path / "model.onnx", format="onnx", batch_size=1)
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_served_is_named(classifier, palette):
    serving = ServingModel(classifier)
    half = ServingModel(make_causal_lm(palette, dtype="mixed_bfloat16"))
    for argument, call in (
        ("model", lambda: ServingModel(classifier.backbone)),
        ("model", lambda: ServingModel(make_causal_lm())),
        ("format", lambda: serving.export("model", format="tflite")),
        ("format", lambda: half.export("model.onnx", format="onnx", batch_size=1)),
        ("batch_size", lambda: serving.export("model", batch_size=0)),
        ("images", lambda: serving(IMAGES.astype("float32"))),
        ("images", lambda: serving(IMAGES[:, :2])),
    ):
        with pytest.raises(ValueError, match=rf"`{argument}` must .*Received: "):
            call()
