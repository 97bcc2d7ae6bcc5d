"""Bad input: one line that names the argument, what was expected and what was received."""

import json

import keras
import numpy as np
import pytest
from conftest import make_backbone, make_causal_lm, make_masked_lm, random_tokens

import keras_igpt as igpt
from keras_igpt.data import (
    DataSplits,
    ImageFiles,
    LabeledImages,
    LabeledTokens,
    low_data_subset,
    resize_images,
    split_off,
)
from keras_igpt.data.image_files import FolderReader
from keras_igpt.evaluation.logistic_regression import fit_logistic_regression
from keras_igpt.model.presets import get_preset
from keras_igpt.palette.color_palette import ColorPalette

GREY = ColorPalette.from_colors(np.arange(16, dtype="uint8")[:, None])
COLORS = ColorPalette.from_colors(np.random.default_rng(0).integers(0, 256, (16, 3)).astype("uint8"))
TOKENS = random_tokens(4)
IMAGES = np.zeros((4, 4, 4, 3), "uint8")


def fitted(model):
    model.compile(optimizer="sgd")
    return model


def labeled(images):
    return LabeledImages(images, np.arange(len(images)))


def tokens(num_colors=16, offset=0):
    return LabeledTokens(TOKENS + offset, np.arange(len(TOKENS)), num_colors)


SPLITS = DataSplits(*[LabeledTokens(TOKENS, np.arange(4), 16)] * 3, ())


def with_token(value):
    token_ids = TOKENS.copy()
    token_ids[1, 2] = value
    return token_ids


CASES = {
    # Palettes and images
    "float images": ("images", lambda: COLORS.encode(IMAGES / 255)),
    "images of two sizes": ("images", lambda: COLORS.encode([IMAGES[0], IMAGES[0, :2]])),
    "images without channels": ("images", lambda: COLORS.encode(np.zeros((4, 4), "uint8"))),
    "images with four channels": ("images", lambda: COLORS.encode(np.zeros((1, 4, 4, 4), "uint8"))),
    "no images": ("images", lambda: COLORS.encode([])),
    "rows of several lengths": ("token_ids", lambda: COLORS.decode([[0, 1, 2], [0]])),
    "an image shape that is a number": ("image_shape", lambda: COLORS.decode(TOKENS, 4)),
    "an image shape of fractions": ("image_shape", lambda: COLORS.decode(TOKENS, (4.0, 4.0))),
    "an image shape below zero": ("image_shape", lambda: COLORS.decode(TOKENS, (-4, -4))),
    "a palette's colours": ("palette", lambda: make_causal_lm(COLORS.colors)),
    "no pixel": ("images", lambda: COLORS.encode(np.zeros((0, 4, 4, 3), "uint8"))),
    "grey images for a colour palette": ("images", lambda: COLORS.encode(np.zeros((1, 4, 4, 1), "uint8"))),
    "colour images for a grey palette": ("images", lambda: GREY.encode(IMAGES)),
    "too few colours": ("images", lambda: ColorPalette.fit(IMAGES, 2)),
    "half a colour": ("num_colors", lambda: ColorPalette.fit(IMAGES, 1.5)),
    "a palette's pixels that are no number": ("max_pixels", lambda: ColorPalette.fit(IMAGES, 1, max_pixels=None)),
    "a palette's negative seed": ("seed", lambda: ColorPalette.fit(IMAGES, 1, seed=-1)),
    "no colours": ("num_colors", lambda: ColorPalette.fit(IMAGES, 0)),
    "centroids on the pixel scale": ("centroids", lambda: ColorPalette(np.full((2, 3), 128.0))),
    "centroids that are NaN": ("centroids", lambda: ColorPalette(np.full((2, 3), np.nan))),
    "integer centroids": ("centroids", lambda: ColorPalette(np.ones((2, 3), int))),
    "centroids of two channels": ("centroids", lambda: ColorPalette(np.zeros((2, 2)))),
    "centroids that repeat": ("centroids", lambda: ColorPalette(np.zeros((2, 3)))),
    "float colours": ("colors", lambda: ColorPalette.from_colors(np.zeros((2, 3)))),
    "decoding an impossible token": ("token_ids", lambda: COLORS.decode(with_token(16))),
    "decoding floats": ("token_ids", lambda: COLORS.decode(TOKENS.astype("float32"))),
    "decoding no square": ("image_shape", lambda: COLORS.decode(TOKENS[:, :15])),
    "decoding to a wrong shape": ("image_shape", lambda: COLORS.decode(TOKENS, (3, 5))),
    # Architectures
    "no layers": ("num_layers", lambda: make_backbone(num_layers=0)),
    "a float width": ("hidden_dim", lambda: make_backbone(hidden_dim=32.0)),
    "heads that do not divide the width": ("num_heads", lambda: make_backbone(num_heads=5)),
    "an unknown attention": ("attention", lambda: make_backbone(attention="sparse")),
    "an unknown norm": ("normalization", lambda: make_backbone(normalization="batch_norm")),
    "an unknown preset": ("name", lambda: get_preset("igpt_huge")),
    "unknown features": ("which", lambda: make_backbone().pooled_features(TOKENS, which="raw")),
    "a palette of another size": (
        "palette",
        lambda: igpt.ImageGPTCausalLM(make_backbone(vocabulary_size=8), palette=COLORS),
    ),
    "a bidirectional backbone for a causal model": (
        "backbone",
        lambda: igpt.ImageGPTCausalLM(make_backbone(attention="bidirectional")),
    ),
    "a causal backbone for a masked model": ("backbone", lambda: igpt.ImageGPTMaskedLM(make_backbone())),
    "no backbone": ("backbone", lambda: igpt.ImageGPTCausalLM("igpt_small")),
    "a mask rate above one": ("mask_rate", lambda: make_masked_lm(mask_rate=15)),
    "a classifier of no model": ("language_model", lambda: igpt.ImageGPTImageClassifier(make_backbone(), 4)),
    "one class": ("num_classes", lambda: igpt.ImageGPTImageClassifier(make_causal_lm(), 1)),
    "a negative weight": (
        "generative_weight",
        lambda: igpt.ImageGPTImageClassifier(make_causal_lm(), 4, generative_weight=-1),
    ),
    # What goes into a model
    "images in place of tokens": ("x", lambda: fitted(make_causal_lm()).fit(IMAGES)),
    "sequences of another length": ("x", lambda: fitted(make_causal_lm()).fit(TOKENS[:, :9])),
    "no sequence": ("x", lambda: fitted(make_causal_lm()).fit(TOKENS[:0])),
    "float tokens": ("x", lambda: fitted(make_causal_lm()).fit(TOKENS.astype("float32"))),
    "a token too large": ("x", lambda: fitted(make_causal_lm()).fit(with_token(16))),
    "a negative token": ("x", lambda: fitted(make_masked_lm()).fit({"token_ids": with_token(-1)})),
    "a bad token in validation": (
        "validation_data",
        lambda: fitted(make_causal_lm()).fit(TOKENS, validation_data=(with_token(99), None)),
    ),
    "evaluating a bad token": ("x", lambda: fitted(make_causal_lm()).evaluate(with_token(16))),
    "predicting a bad token": ("x", lambda: make_causal_lm().predict(with_token(16))),
    "a tensor of bad tokens": ("x", lambda: make_causal_lm().predict(keras.ops.convert_to_tensor(with_token(16)))),
    "a mask of another shape": (
        "position_mask",
        lambda: make_masked_lm().predict({"token_ids": TOKENS, "position_mask": np.ones((4, 1), bool)}),
    ),
    "a mask of floats": (
        "position_mask",
        lambda: make_masked_lm().predict({"token_ids": TOKENS, "position_mask": np.ones((4, 16))}),
    ),
    "a mask for a causal model": (
        "position_mask",
        lambda: make_causal_lm().hidden_positions({"token_ids": TOKENS, "position_mask": TOKENS > 3}),
    ),
    "an input of another name": ("x", lambda: make_masked_lm().predict({"tokens": TOKENS})),
    "class weights without classes": (
        "class_weight",
        lambda: fitted(make_causal_lm()).fit(TOKENS, class_weight={0: 1.0}),
    ),
    # Recipes
    "an unknown objective": ("objective", lambda: igpt.pretraining_recipe("igpt_small", "mae", steps=10)),
    "a rate that nobody published": (
        "learning_rate",
        lambda: igpt.pretraining_recipe("igpt_extra_large", "bert", steps=10),
    ),
    "no steps": ("steps", lambda: igpt.pretraining_recipe("igpt_small", "ar", steps=0)),
    "a warm-up as long as training": (
        "steps_per_epoch",
        lambda: igpt.pretraining_recipe("igpt_small", "ar", steps=10, steps_per_epoch=10),
    ),
    "a negative rate": ("learning_rate", lambda: igpt.finetuning_recipe(-0.1)),
    # Generation
    "generating without a palette": ("palette", lambda: make_causal_lm().generate(1)),
    "generating nothing": ("num_images", lambda: make_causal_lm(COLORS).generate(0)),
    "keeping too many rows": ("keep_rows", lambda: make_causal_lm(COLORS).complete(IMAGES, keep_rows=5)),
    "no samples": ("num_samples", lambda: make_causal_lm(COLORS).complete(IMAGES, 2, num_samples=0)),
    "a negative temperature": ("temperature", lambda: make_causal_lm(COLORS).generate(1, temperature=-1)),
    "a temperature beyond float32": ("temperature", lambda: make_causal_lm(COLORS).generate(1, temperature=1e39)),
    "no lookahead": ("lookahead", lambda: make_causal_lm(COLORS).generate(1, lookahead=0)),
    "half a top_k": ("top_k", lambda: make_causal_lm(COLORS).generate(1, top_k=2.5)),
    "a negative seed": ("seed", lambda: make_causal_lm(COLORS).generate(1, seed=-1)),
    "top_k of zero": ("top_k", lambda: make_causal_lm(COLORS).generate(1, top_k=0)),
    "top_p above one": ("top_p", lambda: make_causal_lm(COLORS).generate(1, top_p=1.5)),
    "a batch of nothing": ("batch_size", lambda: make_causal_lm(COLORS).generate(1, batch_size=0)),
    "a prompt of another length": (
        "prompt",
        lambda: make_causal_lm().continue_tokens(TOKENS[:, :3], np.zeros(3, bool)),
    ),
    "known positions that are no mask": ("known", lambda: make_causal_lm().continue_tokens(TOKENS, 8)),
    # Probes
    "a probe of no model": ("language_model", lambda: igpt.LinearProbe(make_backbone())),
    "a depth that is not there": ("layers", lambda: igpt.LinearProbe(make_causal_lm(), layers=[3])),
    "no depth": ("layers", lambda: igpt.LinearProbe(make_causal_lm(), layers=[])),
    "probing unknown features": ("which", lambda: igpt.LinearProbe(make_causal_lm(), which="raw")),
    "probing images without a palette": ("inputs", lambda: igpt.LinearProbe(make_causal_lm()).features(IMAGES)),
    "probing a bad token": ("inputs", lambda: igpt.LinearProbe(make_causal_lm()).features(with_token(16))),
    "one class to probe": ("train", lambda: fit_logistic_regression((np.eye(4), [0] * 4), (np.eye(4), [0] * 4))),
    "labels of another length": (
        "validation",
        lambda: fit_logistic_regression((np.eye(4), [0, 1, 0, 1]), (np.eye(4), [0, 1])),
    ),
    "features that are NaN": (
        "train",
        lambda: fit_logistic_regression((np.full((2, 3), np.nan), [0, 1]), (np.eye(3)[:2], [0, 1])),
    ),
    "no strengths": (
        "strengths",
        lambda: fit_logistic_regression((np.eye(2), [0, 1]), (np.eye(2), [0, 1]), strengths=()),
    ),
    # Data
    "too few images to split": ("examples", lambda: split_off(labeled(IMAGES), share=0.1)),
    "a share of everything": ("share", lambda: split_off(labeled(IMAGES), share=1.0)),
    "a negative seed of a split": ("seed", lambda: split_off(labeled(IMAGES), share=0.5, seed=-1)),
    "labels for other images": ("labels", lambda: LabeledImages(IMAGES, np.zeros(3, int))),
    "float labels": ("labels", lambda: LabeledImages(IMAGES, np.zeros(4))),
    "labels in two columns": ("labels", lambda: LabeledImages(IMAGES, np.zeros((4, 2), int))),
    "one labelled picture without a batch": ("images", lambda: LabeledImages(IMAGES[0], np.zeros(4, int))),
    "joining other sizes": ("other", lambda: labeled(IMAGES).join(labeled(IMAGES[:, :2]))),
    "tokens of a rectangle": ("images", lambda: labeled(IMAGES[:, :2]).encode(COLORS)),
    "tokens that are no square": ("token_ids", lambda: LabeledTokens(TOKENS[:, :15], np.zeros(len(TOKENS)), 16)),
    "joining other tokens": ("other", lambda: tokens().join(tokens(num_colors=17))),
    "an unknown split": ("name", lambda: DataSplits(tokens(), tokens(), tokens(), ())["trian"]),
    "more labels a class than there are": ("labels_per_class", lambda: low_data_subset(tokens(), 5)),
    "too few class names": (
        "class_names",
        lambda: igpt.load_arrays(*[(IMAGES, np.arange(4))] * 2, held_out=0.5, class_names=["one"]),
    ),
    "batches of an array": ("examples", lambda: igpt.TrainingBatches(TOKENS, None, 2)),
    "batches of images without a palette": ("palette", lambda: igpt.TrainingBatches(labeled(IMAGES), None, 2)),
    "batches with another palette": ("palette", lambda: igpt.TrainingBatches(tokens(num_colors=17), COLORS, 2)),
    "training batches of nothing": ("batch_size", lambda: igpt.TrainingBatches(tokens(), None, 0)),
    "a batch larger than the set": ("batch_size", lambda: igpt.TrainingBatches(tokens(), None, len(TOKENS) + 1)),
    "a batch that does not divide": ("batch_size", lambda: igpt.TrainingBatches(tokens(), None, 3, shard=(0, 2))),
    "a shard that is none": ("shard", lambda: igpt.EvaluationBatches(tokens(), None, 4, shard=(2, 2))),
    "a step before the first": ("first_step", lambda: igpt.TrainingBatches(tokens(), None, 2, first_step=-1)),
    "no worker": ("workers", lambda: igpt.TrainingBatches(tokens(), None, 2, workers=0)),
    "crops of what is small already": (
        "augmentation",
        lambda: igpt.TrainingBatches(tokens(), None, 2, augmentation=igpt.RandomResizedCrop()),
    ),
    "an augmentation that is none": (
        "augmentation",
        lambda: igpt.TrainingBatches(tokens(), None, 2, augmentation=igpt.PaddedCrop),
    ),
    "batches of nothing": ("examples", lambda: igpt.EvaluationBatches(tokens().take(np.arange(0)), None, 2)),
    "labels beyond int32": ("labels", lambda: LabeledImages(IMAGES, np.full(4, 2**40 + 1))),
    "labels that wrap around": ("labels", lambda: LabeledImages(IMAGES, np.full(4, 2**64 - 1, "uint64"))),
    "negative labels": ("labels", lambda: LabeledImages(IMAGES, -np.arange(4))),
    "a test set of another size": (
        "test",
        lambda: igpt.load_arrays((IMAGES, np.arange(4)), (IMAGES[:, :2], np.arange(4)), held_out=0.5),
    ),
    "a cache of rectangles": ("examples", lambda: igpt.cache_tokens(labeled(IMAGES[:, :2]), COLORS, "nowhere")),
    "validating on batches of other colors": (
        "validation_data",
        lambda: fitted(make_causal_lm()).fit(
            TOKENS, validation_data=igpt.EvaluationBatches(tokens(40, offset=20), None, 2)
        ),
    ),
    "a border wider than the picture": (
        "augmentation",
        lambda: igpt.TrainingBatches(tokens(), None, 2, augmentation=igpt.PaddedCrop(padding=4)),
    ),
    "a negative border": ("padding", lambda: igpt.PaddedCrop(padding=-1)),
    "a crop larger than the picture": ("crop", lambda: igpt.RandomResizedCrop(shorter_side=(100, 384))),
    "a cache of tokens": ("examples", lambda: igpt.cache_tokens(tokens(), COLORS, "nowhere")),
    "fitting batches of other colors": (
        "x",
        lambda: fitted(make_causal_lm()).fit(igpt.TrainingBatches(tokens(40, offset=20), None, 2)),
    ),
    "resizing one picture without a batch": ("images", lambda: resize_images(IMAGES[0], 2)),
    "resizing to nothing": ("size", lambda: resize_images(IMAGES, 0)),
    "a size that is true": ("size", lambda: resize_images(IMAGES, True)),
    "a folder without a size": ("image_size", lambda: igpt.load_image_folder("nowhere", None)),
    "arrays of a size that is true": ("image_size", lambda: igpt.load_arrays(*[(IMAGES, np.arange(4))] * 2, True)),
    "files of half a size": ("image_size", lambda: ImageFiles(FolderReader([], []), 2.5)),
    "files of a channel that is true": ("num_channels", lambda: ImageFiles(FolderReader([], []), 2, num_channels=True)),
    "half a label a class": ("labels_per_class", lambda: low_data_subset(tokens(), 0.5)),
    "ImageNet in all its sizes": ("image_size", lambda: igpt.load_dataset("imagenet2012")),
    "an unknown data set": ("name", lambda: igpt.load_dataset("cifar11")),
}


# Calls of one argument that must be an integer, or must be a number; none of them compiles anything.
INTEGERS = {
    "sizes of a backbone": ("vocabulary_size", lambda value: make_backbone(vocabulary_size=value)),
    "side of a backbone's pictures": ("image_size", lambda value: make_backbone(image_size=value)),
    "layers of a backbone": ("num_layers", lambda value: make_backbone(num_layers=value)),
    "heads of a backbone": ("num_heads", lambda value: make_backbone(num_heads=value)),
    "width of a backbone": ("hidden_dim", lambda value: make_backbone(hidden_dim=value)),
    "depths of features": ("layers", lambda value: make_backbone().pooled_features(TOKENS, layers=[value])),
    "depths of states": ("layers", lambda value: make_backbone().normed_states(TOKENS, [value])),
    "a depth of a backbone": ("layer", lambda value: make_backbone().layers_above(value)),
    "a seed of masks": ("mask_seed", lambda value: make_masked_lm(mask_seed=value)),
    "classes": ("num_classes", lambda value: igpt.ImageGPTImageClassifier(make_causal_lm(), value)),
    "depth of a classifier": ("layer", lambda value: igpt.ImageGPTImageClassifier(make_causal_lm(), 2, layer=value)),
    "votes": ("num_masks", lambda value: igpt.ImageGPTImageClassifier(make_masked_lm(), 2).vote(TOKENS, value)),
    "masks of a score": ("num_masks", lambda value: make_masked_lm().score(TOKENS, num_masks=value)),
    "rows of a score": ("batch_size", lambda value: make_causal_lm().score(TOKENS, batch_size=value)),
    "pictures to draw": ("num_images", lambda value: make_causal_lm(COLORS).generate(value)),
    "a seed of draws": ("seed", lambda value: make_causal_lm(COLORS).generate(1, seed=value)),
    "a batch of draws": ("batch_size", lambda value: make_causal_lm(COLORS).generate(1, batch_size=value)),
    "tokens to draw among": ("top_k", lambda value: make_causal_lm(COLORS).generate(1, top_k=value)),
    "rows to keep": ("keep_rows", lambda value: make_causal_lm(COLORS).complete(IMAGES, value)),
    "rounds": ("num_rounds", lambda value: make_masked_lm().fill_tokens(TOKENS, TOKENS > 3, value)),
    "depths of a probe": ("layers", lambda value: igpt.LinearProbe(make_causal_lm(), layers=[value])),
    "depths side by side": ("concatenate", lambda value: igpt.LinearProbe(make_causal_lm(), concatenate=value)),
    "iterations of a probe": ("max_iterations", lambda value: igpt.LinearProbe(make_causal_lm(), max_iterations=value)),
    "rows of a probe": ("batch_size", lambda value: igpt.LinearProbe(make_causal_lm(), batch_size=value)),
    "seeds of subsets": ("seed", lambda value: igpt.low_data_table(make_causal_lm(), SPLITS, [1], seeds=[0, value])),
    "labels of subsets": ("labels_per_class", lambda value: igpt.low_data_table(make_causal_lm(), SPLITS, [value])),
    "labels of a subset": ("labels_per_class", lambda value: low_data_subset(tokens(), value)),
    "steps of pre-training": ("steps", lambda value: igpt.pretraining_recipe("igpt_nano", "ar", value)),
    "steps of an epoch": ("steps_per_epoch", lambda value: igpt.pretraining_recipe("igpt_nano", "ar", 10, value)),
    "steps of a probe": ("steps", lambda value: igpt.probing_recipe(0.1, value)),
    "batches of an update": ("accumulation_steps", lambda value: igpt.finetuning_recipe(0.1, value)),
    "rows of an estimate": ("batch_size", lambda value: igpt.estimate("igpt_nano", value)),
    "side of an estimate": ("image_size", lambda value: igpt.estimate("igpt_nano", 1, value)),
    "rows of a description": ("batch_size", lambda value: igpt.describe("igpt_nano", value)),
    "a border": ("padding", lambda value: igpt.PaddedCrop(value)),
    "a crop": ("crop", lambda value: igpt.RandomResizedCrop(crop=value)),
    "a resized side": ("shorter_side", lambda value: igpt.RandomResizedCrop(shorter_side=(256, value))),
    "rows of training": ("batch_size", lambda value: igpt.TrainingBatches(tokens(), None, value)),
    "rows of evaluation": ("batch_size", lambda value: igpt.EvaluationBatches(tokens(), None, value)),
    "a seed of batches": ("seed", lambda value: igpt.TrainingBatches(tokens(), None, 2, value)),
    "a first step": ("first_step", lambda value: igpt.TrainingBatches(tokens(), None, 2, first_step=value)),
    "threads": ("workers", lambda value: igpt.TrainingBatches(tokens(), None, 2, workers=value)),
    "shards": ("shard", lambda value: igpt.TrainingBatches(tokens(), None, 2, shard=(0, value))),
    "colours of tokens": ("num_colors", lambda value: tokens(value)),
    "colours to fit": ("num_colors", lambda value: ColorPalette.fit(IMAGES, value)),
    "a seed of a palette": ("seed", lambda value: ColorPalette.fit(IMAGES, 1, value)),
    "a size to resize to": ("size", lambda value: resize_images(IMAGES, value)),
    "steps between checkpoints": ("every", lambda value: igpt.ExactResume("nowhere", value)),
}
NUMBERS = {
    "a share of masks": ("mask_rate", lambda value: make_masked_lm(mask_rate=value)),
    "a weight": ("generative_weight", lambda value: igpt.ImageGPTImageClassifier(make_causal_lm(), 2, value)),
    "a temperature": ("temperature", lambda value: make_causal_lm(COLORS).generate(1, temperature=value)),
    "a share of tokens": ("top_p", lambda value: make_causal_lm(COLORS).generate(1, top_p=value)),
    "a rate of pre-training": (
        "learning_rate",
        lambda value: igpt.pretraining_recipe("igpt_nano", "ar", 10, learning_rate=value),
    ),
    "a rate of fine-tuning": ("learning_rate", lambda value: igpt.finetuning_recipe(value)),
    "a rate of a probe": ("learning_rate", lambda value: igpt.probing_recipe(value, 10)),
    "a norm to clip to": ("clip_norm", lambda value: igpt.finetuning_recipe(0.1, clip_norm=value)),
    "a moving average": ("ema_momentum", lambda value: igpt.finetuning_recipe(0.1, ema_momentum=value)),
    "values of C": ("strengths", lambda value: igpt.LinearProbe(make_causal_lm(), strengths=[value])),
    "a share to split off": ("share", lambda value: split_off(labeled(IMAGES), value)),
}


@pytest.mark.parametrize("case", INTEGERS)
def test_what_is_no_integer_is_named_in_one_line(case):
    argument, call = INTEGERS[case]
    for value in ("3", 3.0, True, float("nan"), -(2**70), np.float32(3), [3]):
        with pytest.raises(ValueError, match=f"^`{argument}` .*Received: [^\\n]*$"):
            call(value)


@pytest.mark.parametrize("case", NUMBERS)
def test_what_is_no_number_is_named_in_one_line(case):
    argument, call = NUMBERS[case]
    for value in ("0.5", True, float("nan"), np.float32("inf"), -1.0, 10**400, [0.5], b"1"):
        with pytest.raises(ValueError, match=f"^`{argument}` .*Received: [^\\n]*$"):
            call(value)


@pytest.mark.parametrize("case", [name for name in INTEGERS if name.startswith("a seed of") and "masks" not in name])
def test_seeds_have_64_bits(case):
    argument, call = INTEGERS[case]
    with pytest.raises(ValueError, match=f"^`{argument}` must be an integer in 0…[0-9]+. Received"):
        call(2**64)


def test_a_temperature_must_be_there():
    with pytest.raises(ValueError, match=r"`temperature` must be a number in \[0, 1e\+30\]\. Received: .*None"):
        make_causal_lm(COLORS).generate(1, temperature=None)


def test_numpy_numbers_are_numbers():
    """As `labels.max() + 1` gives them; what is kept of them can be written as JSON."""
    sizes = {"vocabulary_size": 16, "image_size": 4, "num_layers": 2, "num_heads": 2, "hidden_dim": 8}
    backbone = make_backbone(**{name: np.int64(size) for name, size in sizes.items()})
    lm = igpt.ImageGPTCausalLM(backbone)
    classifier = igpt.ImageGPTImageClassifier(lm, np.int64(3), np.float32(0.5), layer=np.int32(1))
    masked = make_masked_lm(mask_rate=np.float64(0.15), mask_seed=np.int64(3))
    for model in (backbone, lm, classifier, masked):
        config = json.dumps(model.get_config())
        assert config == json.dumps(type(model).from_config(model.get_config()).get_config())
    assert classifier.get_config()["num_classes"] == 3
    assert igpt.LinearProbe(lm, layers=np.arange(2), concatenate=None)._extractor.depths == (0, 1)
    probe = igpt.LinearProbe(lm, layers=np.array([1, 2]), strengths=np.array([0.1, 1.0]))
    assert json.dumps(probe._strengths) == "[0.1, 1.0]"
    assert igpt.estimate("igpt_nano", np.int64(2), np.int64(4)).tokens == 32
    steps = igpt.pretraining_recipe("igpt_nano", "ar", np.int64(10), np.int64(2), np.float32(0.5))
    assert json.dumps(steps["optimizer"].get_config())
    json.dumps(igpt.TrainingBatches(tokens(), None, np.int64(2), np.uint64(2**64 - 1)).description)
    assert repr(igpt.PaddedCrop(np.int64(2))) == repr(igpt.PaddedCrop(2))


def test_whole_numbers_stay_as_they_were_given():
    """Searches compare configurations as text: 1 and 1.0 are two."""
    classifier = igpt.ImageGPTImageClassifier(make_causal_lm(), 2, generative_weight=1)
    assert json.dumps(classifier.get_config()["generative_weight"]) == "1"


@pytest.mark.parametrize("case", CASES)
def test_bad_input_is_named_in_one_line(case):
    argument, call = CASES[case]
    with pytest.raises(ValueError, match=f"`{argument}`") as raised:
        call()
    message = str(raised.value)
    assert "\n" not in message
    assert "Received: " in message


def test_an_unfitted_probe_refuses_to_report():
    probe = igpt.LinearProbe(make_causal_lm())
    for read in (lambda: probe.score((TOKENS, [0, 1, 2, 3])), lambda: probe.predict(TOKENS), lambda: probe.report):
        with pytest.raises(ValueError, match="must be fitted"):
            read()


def test_shapes_are_checked_where_a_model_is_called_directly():
    for call in (
        lambda: make_causal_lm()(IMAGES),
        lambda: make_causal_lm()(TOKENS.astype("float32")),
        lambda: make_backbone()(TOKENS, position_mask=np.zeros((4, 16), bool)),
    ):
        with pytest.raises(ValueError, match="Received: "):
            call()
