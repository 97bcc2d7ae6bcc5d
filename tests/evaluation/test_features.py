import keras
import numpy as np
import pytest
from conftest import make_causal_lm, make_masked_lm, random_tokens, randomize, to_numpy

from keras_igpt.data import LabeledImages, LabeledTokens, load_image_folder, low_data_subset
from keras_igpt.evaluation.features import FeatureExtractor, LabeledFeatures
from keras_igpt.inference import compiled


def expected_features(model, token_ids, which="normed"):
    mask = model.hidden_positions(token_ids)
    return to_numpy(model.backbone.pooled_features(token_ids, position_mask=mask, which=which))


@pytest.mark.parametrize("make", [make_causal_lm, make_masked_lm])
@pytest.mark.parametrize("which", ["normed", "residual"])
def test_they_are_those_of_the_backbone(make, which):
    model = randomize(make())
    token_ids = random_tokens(10)
    expected = expected_features(model, token_ids, which)
    found = FeatureExtractor(model, layers=[2, 0], which=which).extract(token_ids, batch_size=4)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected[:, [2, 0]], atol=1e-5)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """A folder of pictures in palette colours, so that every way of reading them gives the same tokens."""
    image = pytest.importorskip("PIL.Image")
    folder = tmp_path_factory.mktemp("pictures")
    random = np.random.default_rng(0)
    for name in ("ant", "bee"):
        (folder / name).mkdir()
        for index in range(12):
            pixels = 85 * random.integers(0, 4, (4, 4, 3)).astype("uint8")
            pixels[..., 2] = 0
            image.fromarray(pixels).save(folder / name / f"{index}.png")
    return load_image_folder(folder, image_size=4).train


def test_all_kinds_of_examples_give_the_same(palette, pictures):
    model = randomize(make_masked_lm(palette))
    extractor = FeatureExtractor(model)
    in_memory = pictures.load()
    tokens = in_memory.encode(palette)
    expected = expected_features(model, tokens.token_ids.astype("int32"))
    kinds = [pictures, in_memory, tokens, (in_memory.images, in_memory.labels), (tokens.token_ids, tokens.labels)]
    for kind in kinds:
        found = extractor.extract_labeled(kind, batch_size=8)
        np.testing.assert_allclose(found.features, expected, atol=1e-5)
        np.testing.assert_array_equal(found.labels, in_memory.labels)
    np.testing.assert_allclose(extractor.extract(in_memory.images, batch_size=8), expected, atol=1e-5)


def test_a_large_set_comes_in_pieces_and_may_stay_in_a_file(tmp_path, monkeypatch):
    """Two batches of four a piece, the last one cut short, and one compiled batch size for all."""
    model = randomize(make_causal_lm())
    token_ids = random_tokens(21)
    extractor = FeatureExtractor(model)
    calls, pieces = [], []
    call, predict = extractor.call, extractor.predict
    monkeypatch.setattr(extractor, "call", lambda inputs: calls.append(1) or call(inputs))
    monkeypatch.setattr(extractor, "predict", lambda given, **options: pieces.append(len(given)) or predict(given))
    whole = extractor.extract(token_ids, batch_size=4)
    traced = len(calls)
    monkeypatch.setattr(compiled, "_SEGMENT_BYTES", 2 * 4 * 4 * 3 * 32)
    path = tmp_path / "new" / "features.npy"
    mapped = extractor.extract(token_ids, batch_size=4, path=path)
    assert pieces == [6, 2, 2, 2]
    assert keras.backend.backend() == "torch" or len(calls) == traced  # PyTorch is eager and compiles nothing
    assert isinstance(mapped, np.memmap)
    np.testing.assert_allclose(mapped, whole, atol=1e-5)
    stored = np.load(path)
    assert stored.shape == (3, 21, 32)
    np.testing.assert_array_equal(stored[1], mapped[:, 1])
    assert [file.name for file in path.parent.iterdir()] == ["features.npy"]
    np.testing.assert_allclose(extractor.extract(token_ids[:5], batch_size=4, path=path), whole[:5], atol=1e-5)
    assert len(mapped) == 21  # the older file lives on for who reads it


def test_a_disk_too_small_is_found_before_anything_is_computed(small_disk, monkeypatch):
    extractor = FeatureExtractor(make_causal_lm())
    monkeypatch.setattr(extractor, "predict", lambda *arguments, **options: 1 / 0)
    with pytest.raises(OSError, match=r"No space left on device: features.npy needs 1,152,128 bytes where"):
        extractor.extract(random_tokens(3000), path=small_disk / "features.npy")
    assert not list(small_disk.iterdir())


def test_features_are_examples_like_others():
    values = np.arange(24, dtype="float32").reshape(6, 2, 2)
    examples = LabeledFeatures(values, np.array([0, 1, 0, 1, 0, 1]))
    few = low_data_subset(examples, labels_per_class=2, seed=3)
    assert few.labels.tolist().count(0) == few.labels.tolist().count(1) == 2
    assert {tuple(row.ravel()) for row in few.features} < {tuple(row.ravel()) for row in values}
    np.testing.assert_array_equal(examples.at(1), values[:, 1])
    np.testing.assert_array_equal(examples.at(1, 0), np.concatenate([values[:, 1], values[:, 0]], axis=1))
    both = few.join(examples)
    np.testing.assert_array_equal(both.features, np.concatenate([few.features, values]))
    assert len(both.labels) == 10
    listed = LabeledFeatures(values.tolist(), [0, 1, 0, 1, 0, 1])
    np.testing.assert_array_equal(listed.features, values)
    np.testing.assert_array_equal(listed.take([1, 0]).labels, [1, 0])


def errors(palette):
    model, blind = make_causal_lm(palette), make_causal_lm()
    images = np.zeros((2, 4, 4, 3), "uint8")
    tokens = random_tokens(3)
    twice = LabeledTokens(tokens, [0, 1, 2], 16)
    three = LabeledFeatures(np.zeros((2, 3, 4), "float32"), np.zeros(2, int))
    return {
        "no model": ("language_model", lambda: FeatureExtractor(model.backbone)),
        "a depth twice": ("layers", lambda: FeatureExtractor(model, layers=[1, 1])),
        "a depth too many": ("layers", lambda: FeatureExtractor(model, layers=[3])),
        "another kind": ("which", lambda: FeatureExtractor(model, which="raw")),
        "no batch": ("batch_size", lambda: FeatureExtractor(model).extract(tokens, batch_size=0)),
        "no palette": ("inputs", lambda: FeatureExtractor(blind).extract(images)),
        "pictures without a palette": (
            "inputs",
            lambda: FeatureExtractor(blind).extract(LabeledImages(images, [0, 1])),
        ),
        "other colours": ("inputs", lambda: FeatureExtractor(blind).extract(LabeledTokens(tokens, [0, 1, 2], 99))),
        "labels twice": ("examples", lambda: FeatureExtractor(model).extract_labeled((twice, [2, 1, 0]))),
        "too few labels": ("labels", lambda: FeatureExtractor(model).extract_labeled((tokens, [0, 1]))),
        "no depth axis": ("features", lambda: LabeledFeatures(np.zeros((2, 4)), np.zeros(2, int))),
        "ragged features": ("features", lambda: LabeledFeatures([[[1.0], [1.0, 2.0]]], [0])),
        "features that are integers": ("features", lambda: LabeledFeatures(np.zeros((2, 1, 4), int), [0, 1])),
        "labels that are floats": ("labels", lambda: LabeledFeatures(three.features, np.zeros(3))),
        "ragged labels": ("labels", lambda: LabeledFeatures(three.features, [0, [1]])),
        "no features": ("other", lambda: three.join(twice)),
        "unlike features": ("other", lambda: three.join(LabeledFeatures(three.features[:, :1], three.labels))),
    }


def test_errors_name_the_argument(palette):
    for argument, call in errors(palette).values():
        with pytest.raises(ValueError, match=f"`{argument}` .*Received"):
            call()


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="others keep no list of gradients")
def test_no_program_of_a_probe_is_kept():
    from tensorflow.python.framework import ops as framework

    lm = make_causal_lm()
    before = set(framework.gradient_registry._registry)
    FeatureExtractor(lm, layers=[1]).extract(random_tokens(4), batch_size=4)
    assert set(framework.gradient_registry._registry) == before
