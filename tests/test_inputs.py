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
