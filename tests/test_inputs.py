"""Every method that takes pictures takes the same kinds of them, and refuses the rest in the same words."""

import re

import keras
import numpy as np
import pytest
from conftest import make_causal_lm, make_masked_lm, randomize

import keras_igpt as igpt
from keras_igpt.data import ImageFiles, LabeledImages, LabeledTokens
from keras_igpt.data.image_files import FolderReader
from keras_igpt.data.inputs import as_pictures, as_token_ids
from keras_igpt.data.token_source import PictureExamples

COLORS = np.array([[red, green, 0] for red in (0, 85, 170, 255) for green in (0, 85, 170, 255)], "uint8")
PALETTE = igpt.ColorPalette.from_colors(COLORS)
TOKENS = np.random.default_rng(0).integers(0, 16, (3, 16)).astype("int32")
IMAGES, LABELS = PALETTE.decode(TOKENS), np.array([0, 1, 1])
HIDDEN = np.arange(16).reshape(4, 4) % 3 == 0


def enlarged(images):
    """Twice the size; reduced again, each pixel is still nearest to its colour."""
    return images.repeat(2, axis=1).repeat(2, axis=2)


def pillow_images(images):
    image = pytest.importorskip("PIL.Image")
    return [image.fromarray(picture) for picture in images]


def paths(folder):
    written = [folder / f"{number}.png" for number in range(3)]
    for path, picture in zip(written, pillow_images(IMAGES), strict=True):
        picture.save(path)
    return written


def files(folder, image_size=4):
    return ImageFiles(FolderReader(paths(folder), LABELS.tolist()), image_size)


KINDS = {
    "token ids": lambda folder: TOKENS,
    "lists of token ids": lambda folder: TOKENS.tolist(),
    "a tensor of token ids": lambda folder: keras.ops.convert_to_tensor(TOKENS),
    "an array": lambda folder: IMAGES,
    "a larger array": lambda folder: enlarged(IMAGES),
    "a list of arrays of several sizes": lambda folder: [IMAGES[0], *enlarged(IMAGES[1:])],
    "Pillow images": lambda folder: pillow_images(IMAGES),
    "paths": paths,
    "paths as strings, and an array": lambda folder: [*map(str, paths(folder)[:2]), IMAGES[2]],
    "LabeledImages": lambda folder: LabeledImages(IMAGES, LABELS),
    "larger LabeledImages": lambda folder: LabeledImages(enlarged(IMAGES), LABELS),
    "LabeledTokens": lambda folder: LabeledTokens(TOKENS.astype("uint8"), LABELS, 16),
    "ImageFiles": files,
    "EvaluationBatches": lambda folder: igpt.EvaluationBatches(LabeledImages(IMAGES, LABELS), PALETTE, 3),
}


def evaluate(models, given):
    labelled = isinstance(given, (PictureExamples, igpt.EvaluationBatches))
    return models.classifier.evaluate(given, None if labelled else LABELS, batch_size=3, verbose=0)[0]


METHODS = {
    "complete": lambda models, given: models.causal.complete(given, keep_rows=2, quantize=True, batch_size=3),
    "fill": lambda models, given: models.masked.fill(given, HIDDEN, num_rounds=2, quantize=True, batch_size=3),
    "score": lambda models, given: models.causal.score(given, batch_size=3).nats_per_token,
    "masked score": lambda models, given: models.masked.score(given, num_masks=1, batch_size=3).nats_per_token,
    "features": lambda models, given: models.probe.features(given),
    "vote": lambda models, given: models.classifier.vote(given, num_masks=1, batch_size=3),
    "attention maps": lambda models, given: igpt.attention_maps(models.causal, given, layer=0),
    "predict_images": lambda models, given: models.classifier.predict_images(given, 1, batch_size=3).probabilities,
    "predict": lambda models, given: models.classifier.predict(given, batch_size=3, verbose=0),
    "evaluate": evaluate,
}


class Models:
    def __init__(self):
        self.causal = randomize(make_causal_lm(PALETTE, num_layers=1))
        self.masked = randomize(make_masked_lm(PALETTE, mask_rate=0.5, num_layers=1))
        self.probe = igpt.LinearProbe(self.causal, layers=[1], batch_size=3)
        self.classifier = randomize(igpt.ImageGPTImageClassifier(self.masked, num_classes=2))
        self.classifier.compile(**igpt.finetuning_recipe(0.1))


@pytest.fixture(scope="module")
def models():
    return Models()


@pytest.mark.filterwarnings("ignore:Pictures of .* were cropped")
@pytest.mark.parametrize("method", METHODS)
def test_pictures_of_every_kind_are_taken(models, method, tmp_path):
    expected = METHODS[method](models, TOKENS)
    for kind, make in KINDS.items():
        np.testing.assert_allclose(METHODS[method](models, make(tmp_path)), expected, rtol=1e-5, err_msg=kind)


WRONG_PICTURES = {
    "floats": lambda folder: IMAGES / 255,
    "grey pictures": lambda folder: IMAGES[..., :1],
    "a list with floats": lambda folder: [IMAGES[0], IMAGES[1] / 255],
    "token ids of smaller pictures": lambda folder: TOKENS[:, :9],
    "token ids out of range": lambda folder: TOKENS + 16,
    "no token ids": lambda folder: TOKENS[:0],
    "no picture": lambda folder: [],
    "rows of several lengths": lambda folder: [[1, 2], [3]],
    "one row of token ids": lambda folder: TOKENS[0],
    "tokens of other colours": lambda folder: LabeledTokens(TOKENS, LABELS, 17),
    "tokens of smaller pictures": lambda folder: LabeledTokens(TOKENS[:, :9], LABELS, 16),
    "files of another size": lambda folder: files(folder, image_size=2),
}
# `predict` and `evaluate` take some of these for data sets of Keras, and have words of their own for the others.
WRONG_KINDS = {
    "nothing": lambda folder: None,
    "a number": lambda folder: 3,
    "a dictionary": lambda folder: {"token_ids": TOKENS},
    "batches without end": lambda folder: igpt.TrainingBatches(LabeledTokens(TOKENS, LABELS, 16), None, 3),
}


@pytest.mark.parametrize("kind", [*WRONG_PICTURES, *WRONG_KINDS])
def test_what_does_not_fit_is_refused_in_the_same_words(models, kind, tmp_path):
    words = set()
    for name, method in METHODS.items():
        if kind in WRONG_PICTURES or name not in ("predict", "evaluate"):
            with pytest.raises(ValueError, match=r"must .* Received: ") as raised:
                method(models, {**WRONG_PICTURES, **WRONG_KINDS}[kind](tmp_path))
            words.add(re.sub("^`(images|inputs|pictures|x)`", "", str(raised.value)))
    (only,) = words
    assert only.startswith(" must ")


def test_single_pictures_and_what_is_made_of_them(models, tmp_path):
    for picture in (IMAGES[0], pillow_images(IMAGES)[0], paths(tmp_path)[0], str(paths(tmp_path)[0])):
        np.testing.assert_array_equal(as_token_ids(models.causal, picture), TOKENS[:1])
        np.testing.assert_array_equal(as_pictures(models.causal, picture), IMAGES[:1])
    for kind in ("token ids", "ImageFiles"):
        np.testing.assert_array_equal(as_token_ids(models.causal, KINDS[kind](tmp_path)), TOKENS)
        np.testing.assert_array_equal(as_pictures(models.causal, KINDS[kind](tmp_path)), IMAGES)


def test_rows_that_fill_a_batch_up_are_not_among_the_outputs(models, tmp_path):
    expected = models.classifier.predict(TOKENS, batch_size=2, verbose=0)
    for kind in ("LabeledTokens", "ImageFiles"):
        predicted = models.classifier.predict(KINDS[kind](tmp_path), batch_size=2, verbose=0)
        np.testing.assert_allclose(predicted, expected, rtol=1e-5)


def test_two_pictures_are_no_pair_of_pictures_and_labels(models):
    np.testing.assert_array_equal(
        models.causal.score(tuple(IMAGES[:2])).nats_per_token, models.causal.score(IMAGES[:2]).nats_per_token
    )


def test_resizing_warns_where_the_method_was_called(models):
    for method in ("attention maps", "features", "predict"):
        with pytest.warns(UserWarning, match=r"8x8 pixels .* resized to the model's 4x4") as warned:
            METHODS[method](models, enlarged(IMAGES))
        assert [warning.filename for warning in warned if "resized" in str(warning.message)] == [__file__]


def test_pictures_need_a_palette(tmp_path):
    blind = make_causal_lm(num_layers=1)
    for given in (IMAGES, pillow_images(IMAGES), LabeledImages(IMAGES, LABELS), files(tmp_path)):
        with pytest.raises(ValueError, match="`inputs` must be token ids, since the model has no palette"):
            blind.score(given)


def test_files_that_are_no_pictures_are_named(models, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"missing\.png"):
        models.causal.score(tmp_path / "missing.png")
    (tmp_path / "broken.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"Pictures must be readable\. Received: .*broken\.png"):
        models.causal.score([*paths(tmp_path), str(tmp_path / "broken.png")])


# === Data sets ===


def in_batches(inputs, labels):
    return [(inputs[:2], labels[:2]), (inputs[2:], labels[2:])]


def as_tf_dataset(inputs, labels):
    return pytest.importorskip("tensorflow").data.Dataset.from_tensor_slices((inputs, labels)).batch(2)


def as_torch_loader(inputs, labels):
    torch = pytest.importorskip("torch")
    arrays = torch.utils.data.TensorDataset(torch.from_numpy(inputs), torch.from_numpy(labels))
    return torch.utils.data.DataLoader(arrays, batch_size=2)


def as_map_dataset(inputs, labels):
    return pytest.importorskip("grain").MapDataset.source(in_batches(inputs, labels))


def as_iter_dataset(inputs, labels):
    return as_map_dataset(inputs, labels).to_iter_dataset()


def as_grain_loader(inputs, labels):
    grain = pytest.importorskip("grain")
    sampler = grain.samplers.SequentialSampler(2)
    return grain.DataLoader(data_source=in_batches(inputs, labels), sampler=sampler)


DATA_SETS = {
    "tf.data.Dataset": as_tf_dataset,
    "PyTorch DataLoader": as_torch_loader,
    "MapDataset": as_map_dataset,
    "IterDataset": as_iter_dataset,
    "Grain DataLoader": as_grain_loader,
}


def fitted(model, data):
    """The weights after an epoch, as one row; the model keeps those from before."""
    before = model.get_weights()
    try:
        model.fit(data, epochs=1, verbose=0)
        return np.concatenate([weight.ravel() for weight in model.get_weights()])
    finally:
        model.set_weights(before)


WITH_DATA_SETS = {
    "fit": lambda models, data: fitted(models.trained, data),
    "evaluate": lambda models, data: models.trained.evaluate(data, verbose=0)[0],
    "predict": lambda models, data: models.trained.predict(data, verbose=0),
    "score": lambda models, data: models.causal.score(data, batch_size=3).nats_per_token,
    "LinearProbe": lambda models, data: models.probe.fit(data, data).report.chosen_on_validation.layers[0].iterations,
    "features": lambda models, data: models.probe.features(data),
    "predict_images": lambda models, data: models.trained.predict_images(data, batch_size=3).probabilities,
    "complete": lambda models, data: models.causal.complete(data, keep_rows=2, batch_size=3),
}


@pytest.fixture(scope="module")
def with_trained(models):
    # Without momentum, each training starts alike.
    models.trained = igpt.ImageGPTImageClassifier(randomize(make_causal_lm(PALETTE, num_layers=1)), num_classes=2)
    models.trained.compile(keras.optimizers.SGD(0.1), loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return models


@pytest.mark.parametrize("method", WITH_DATA_SETS)
def test_every_data_set_is_taken(with_trained, method):
    """Of tokens and of pictures, with labels; and ids out of range are found in any batch."""
    labels = LABELS.astype("int32")
    # Of arrays in one batch where order is what is to be seen.
    of_arrays = {
        "predict": lambda: with_trained.trained.predict(TOKENS, verbose=0),
        "score": lambda: with_trained.causal.score(TOKENS).nats_per_token,
        "features": lambda: with_trained.probe.features(TOKENS),
        "predict_images": lambda: with_trained.trained.predict_images(TOKENS).probabilities,
    }
    expected = of_arrays[method]() if method in of_arrays else None
    for kind, make in DATA_SETS.items():
        for inputs in (TOKENS, IMAGES):
            found = WITH_DATA_SETS[method](with_trained, make(inputs, labels))
            expected = found if expected is None else expected
            np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5, err_msg=kind)
        with pytest.raises(ValueError, match=r"must lie in 0…15.*99"):
            WITH_DATA_SETS[method](with_trained, make(np.where(np.arange(3)[:, None] == 2, 99, TOKENS), labels))


def test_data_sets_that_cannot_be_read_whole(models):
    endless = [as_tf_dataset(TOKENS, LABELS).repeat(), as_map_dataset(TOKENS, LABELS).repeat()]
    for data in endless:
        with pytest.raises(ValueError, match=rf"`inputs` must end .*Received: endless {type(data).__name__}"):
            models.causal.score(data)
    weighted = pytest.importorskip("grain").MapDataset.source([(TOKENS, LABELS, np.ones(3))])
    with pytest.raises(ValueError, match="Received: SourceMapDataset with sample weights"):
        models.causal.score(weighted)
    with pytest.raises(ValueError, match="`train` must have labels"):
        models.probe.fit(as_map_dataset(TOKENS, LABELS).map(lambda batch: batch[:1]), (TOKENS, LABELS))


def test_larger_pictures_train_and_tensors_without_labels():
    lm = randomize(make_causal_lm(PALETTE, num_layers=1))
    lm.compile(keras.optimizers.SGD(0.1))
    expected = fitted(lm, as_map_dataset(TOKENS, LABELS))
    for make in DATA_SETS.values():
        with pytest.warns(UserWarning, match="8x8 pixels"):
            found = fitted(lm, make(enlarged(IMAGES), LABELS))
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    torch = pytest.importorskip("torch")
    alone = torch.utils.data.DataLoader(torch.from_numpy(TOKENS), batch_size=2)
    np.testing.assert_allclose(fitted(lm, alone), expected, rtol=1e-4, atol=1e-5)
