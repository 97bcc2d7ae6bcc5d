"""Files that revision 404fac0 wrote open and give the numbers that they gave; what a seed decides stays as it was.

`make_old_files.py` made what lies in `data`, at that revision. A test that fails here says that people's files would
open no more, or give other numbers: the code is to be mended, not the data.
"""

import hashlib
import json
import os
import platform
import shutil
import warnings
import zlib
from pathlib import Path

import keras
import numpy as np
import pytest
import tuning_process
from conftest import make_causal_lm, make_masked_lm, to_numpy

import keras_igpt as igpt
from keras_igpt.data import LabeledTokens, load_splits, low_data_subset, split_off
from keras_igpt.inference.filling import filling_rounds
from keras_igpt.inference.sampling import Sampling, draw_tokens, noise_at

# Not public: where these live may change, what they give may not.
from keras_igpt.model.masking import majority, vote_mask

DATA = Path(__file__).parent / "old_files"
BACKEND = keras.backend.backend()
# Weights that training has changed differ by backend, and so do the files of them.
MODELS = ("causal_lm", "masked_lm", "int8_causal_lm", f"classifier_{BACKEND}")
PRESETS = ("igpt_cifar10_8x8", "igpt_cifar10_8x8_bert")
TRAININGS = ("causal_lm", "classifier")
CACHES = ("of_files", "of_images")
STEPS_PER_EPOCH = 5


def some_tokens(count, num_tokens=16, vocabulary_size=16):
    """Tokens without NumPy's generators, whose streams may change."""
    words = [zlib.crc32(b"%d" % index) >> 8 for index in range(count * num_tokens)]
    return (np.array(words) % vocabulary_size).reshape(count, num_tokens).astype("int32")


TOKENS, CLASSES = some_tokens(8), np.arange(8, dtype="int32") % 3


# === The numbers that files give ===


def machine():
    """What the last bits of a float depend on."""
    modules = ("keras", "numpy", BACKEND)
    versions = [f"{module} {__import__(module).__version__}" for module in modules]
    about_cpu = Path("/proc/cpuinfo")
    lines = about_cpu.read_text().split("\n\n")[0].splitlines() if about_cpu.exists() else []
    processor = [line.split(":", 1)[1].strip() for line in lines if line.startswith(("model name", "flags"))]
    # PyTorch shares sums out among its threads.
    threads = __import__("torch").get_num_threads() if BACKEND == "torch" else os.cpu_count()
    switches = {"jax": ("XLA_FLAGS", "JAX_DISABLE"), "tensorflow": ("TF_ENABLE", "TF_XLA"), "torch": ()}[BACKEND]
    chosen = [f"{name}={value}" for name, value in sorted(os.environ.items()) if name.startswith(switches)]
    return ", ".join([*versions, *chosen, f"{threads} threads", platform.machine(), *processor])


def contents_of(model):
    """A digest of all that a file or checkpoint keeps of a model, in whatever order."""
    variables = [*model.weights, *(model.optimizer.variables if model.compiled else [])]
    arrays = [to_numpy(variable) for variable in variables]
    # Without their types, for backends count in integers of different sizes. A float64 holds any float32 and int32.
    described = sorted(f"{array.shape} ".encode() + array.astype("float64").tobytes() for array in arrays)
    return hashlib.sha256(b"".join(described)).hexdigest()


def numbers_of(model):
    """What a model gives for fixed tokens and seeds, by name."""
    numbers = {"contents": contents_of(model), "logits": model.predict(TOKENS, verbose=0)}
    if model.compiled:
        targets = CLASSES if isinstance(model, igpt.ImageGPTImageClassifier) else None
        evaluated = model.evaluate(TOKENS, targets, batch_size=4, verbose=0, return_dict=True)
        numbers |= {f"evaluated {name}": np.float32(value) for name, value in evaluated.items()}
    if isinstance(model, igpt.ImageGPTImageClassifier):
        numbers["votes"] = model.vote(TOKENS, num_masks=3, seed=1)
        # Two more steps say whether the optimizer goes on from where it was.
        history = model.fit(TOKENS, CLASSES, batch_size=8, epochs=2, shuffle=False, verbose=0).history
        numbers["losses"] = np.array(history["loss"], "float32")
    elif isinstance(model, igpt.ImageGPTMaskedLM):
        numbers["nats"] = model.score(TOKENS, num_masks=3, seed=1).nats_per_token
        # The most probable tokens: what is drawn at random has changed since, once.
        numbers["filled"] = model.fill_tokens(TOKENS, np.arange(16) % 3 > 0, num_rounds=4, temperature=0, seed=2)
    else:
        numbers["nats"] = model.score(TOKENS).nats_per_token
        if model.compiled:  # drawing takes longest to compile, and is the same program for int8
            numbers["drawn"] = model.continue_tokens(TOKENS, np.zeros(16, bool), temperature=0)
            numbers["continued"] = model.continue_tokens(TOKENS, np.arange(16) < 5, temperature=0)
    return numbers


def preset_numbers(name):
    """What a preset of the package gives for fixed tokens."""
    make = igpt.ImageGPTMaskedLM if name.endswith("bert") else igpt.ImageGPTCausalLM
    model = make.from_preset(name)
    tokens = some_tokens(2, model.backbone.num_tokens, model.backbone.vocabulary_size)
    return {"contents": contents_of(model), "nats": model.score(tokens).nats_per_token}


# === Trainings that were cut off in the middle of an epoch ===


class CutOffError(Exception):
    pass


class CutOff(keras.callbacks.Callback):
    """Ends a training before a step, as a crash would."""

    def on_epoch_begin(self, epoch, logs=None):
        self._epoch = epoch

    def on_train_batch_begin(self, batch, logs=None):
        if (self._epoch, batch) == (1, 3):
            raise CutOffError


class Restored(keras.callbacks.Callback):
    """Notes the state of the first step."""

    contents = None

    def on_train_batch_begin(self, batch, logs=None):
        self.contents = self.contents or contents_of(self.model)


def make_training(kind):
    """A model to train, and its batches. A picture without any hidden pixel is as good as impossible."""
    keras.utils.set_random_seed(0)
    rows = LabeledTokens(some_tokens(4 * STEPS_PER_EPOCH), np.arange(4 * STEPS_PER_EPOCH) % 3, 16)
    batches = igpt.TrainingBatches(rows, None, batch_size=4, seed=7)
    if kind == "classifier":
        model = igpt.ImageGPTImageClassifier(make_masked_lm(mask_rate=0.5, num_layers=1, hidden_dim=8), num_classes=3)
        model.compile(**igpt.finetuning_recipe(0.01, clip_norm=1.0))
    else:
        model = make_causal_lm(num_layers=1, hidden_dim=8)
        # A warm-up of 1% was the default.
        steps = {"steps": 3 * STEPS_PER_EPOCH, "steps_per_epoch": 1}
        model.compile(**igpt.pretraining_recipe("igpt_small", "ar", **steps, accumulation_steps=2))
    return model, batches


def train(kind, callbacks):
    """Trains for two epochs; what comes of it."""
    model, batches = make_training(kind)
    history = model.fit(batches, epochs=2, verbose=0, callbacks=callbacks).history
    metrics = {name: np.float32(values[-1]) for name, values in history.items()}
    weights = [to_numpy(weight).ravel().astype("float32") for weight in model.weights]
    return {"weights": np.concatenate(weights), **metrics}


# === What a seed decides ===


def integers_of_seeds():
    """Orders, crops, masks and draws of some seeds, as integers by name."""
    rows = np.arange(24)
    numbered = LabeledTokens(rows[:, None].astype("uint8"), rows % 3, 24)
    every_place = LabeledTokens(np.tile(np.arange(16, dtype="uint8"), (6, 1)), np.arange(6), 16)
    values = {}
    for seed in (0, 3):
        batches = igpt.TrainingBatches(LabeledTokens(numbered.token_ids, rows, 24), None, batch_size=5, seed=seed)
        values[f"order of two epochs, seed {seed}"] = [batches[step][1] for step in range(2 * batches.steps_per_epoch)]
    shard = igpt.TrainingBatches(LabeledTokens(numbered.token_ids, rows, 24), None, 6, 3, shard=(1, 2), first_step=3)
    values["second shard from step 3 on"] = [shard[step][1] for step in range(3)]
    for name, crop in (("crops", igpt.PaddedCrop(2)), ("crops, not mirrored", igpt.PaddedCrop(1, mirror=False))):
        batches = igpt.TrainingBatches(every_place, None, batch_size=3, seed=1, augmentation=crop)
        values[f"padded {name}"] = [batches[step][0] for step in range(4)]
    for seed in (0, 5):
        values[f"held out, seed {seed}"] = split_off(numbered, 0.25, seed)[1].token_ids[:, 0]
        for count in (1, 3):
            subset = low_data_subset(numbered, count, seed)
            values[f"{count} of each class, seed {seed}"] = subset.token_ids[:, 0]
    pictures = np.arange(20, dtype="uint8").reshape(20, 1, 1, 1)
    splits = igpt.load_arrays((pictures, rows[:20]), (pictures, rows[:20]), held_out=0.2, seed=2)
    values["validation split of arrays"] = splits.validation.labels
    model = make_masked_lm(mask_rate=0.3, mask_seed=2)
    for step in range(3):
        values[f"BERT mask in step {step}"] = to_numpy(model.hidden_positions(TOKENS[:3], training=True))
        model.advance_step()
    values["BERT mask in evaluation"] = to_numpy(model.hidden_positions(TOKENS[:3]))
    values["masks of a vote"] = [vote_mask((3, 16), 0.3, seed=4, mask=mask) for mask in range(2)]
    values["majorities"] = majority(some_tokens(12, 4, vocabulary_size=3), seed=4)
    values["filling rounds"] = filling_rounds(TOKENS[:4] % 3 > 0, num_rounds=4, seed=5)
    logits = keras.ops.convert_to_tensor((some_tokens(16, 12, vocabulary_size=41) / 8).astype("float32")[None])
    for temperature, top_k, top_p in ((1.0, 12, 1.0), (0.7, 4, 1.0), (1.3, 12, 0.6), (1.0, 5, 0.7)):
        arrays = Sampling(temperature, top_k, top_p, seed=6).inputs((1, 16), vocabulary_size=12)
        noise, *limits = map(keras.ops.convert_to_tensor, arrays.values())
        drawn = draw_tokens(logits, noise_at(noise, keras.ops.arange(16)[None], 12), *limits)
        values[f"tokens drawn at temperature {temperature}, top-k {top_k}, top-p {top_p}"] = to_numpy(drawn)[0]
    crop, keys = igpt.RandomResizedCrop(), [(0, 0, 0), (0, 0, 1000), (0, 1, 0), (3, 0, 0)]
    windows = np.array([crop.window(500, 375, *key) for key in keys])
    values["windows of random resized crops in 2^-20 pixels"] = windows * 2.0**20
    return {name: np.asarray(value).astype(int).tolist() for name, value in values.items()}


# === Pictures in a folder, and caches of their tokens ===


@pytest.fixture
def pictures(tmp_path, monkeypatch):
    """A copy of the folder of pictures under a path and with times that a cache of it may hold."""
    pytest.importorskip("PIL")
    copy_pictures(tmp_path)
    monkeypatch.chdir(tmp_path)


def copy_pictures(folder):
    shutil.copytree(DATA / "pictures", folder / "pictures")
    for file in (folder / "pictures").rglob("*.png"):
        os.utime(file, ns=(10**18, 10**18))


def open_pictures():
    return igpt.load_image_folder("pictures", image_size=4, held_out=0.25, seed=1)


def integers_of_pictures(palette):
    """How a folder is split, and what its random crops become."""
    splits = open_pictures()
    values = {part: palette.encode(splits[part].load().images) for part in ("train", "validation", "test")}
    values |= {f"classes of {part}": splits[part].labels for part in ("train", "validation", "test")}
    crop = igpt.RandomResizedCrop(shorter_side=(9, 12), crop=8)
    batches = igpt.TrainingBatches(splits.train, palette, batch_size=4, seed=2, augmentation=crop, workers=1)
    values["crops"] = [batches[step][0] for step in range(2 * batches.steps_per_epoch)]
    return {name: np.asarray(value).astype(int).tolist() for name, value in values.items()}


def open_cache(name, palette):
    """Tokens of all the pictures, from a cache that is there or else made: of their files, or of arrays of them."""
    splits = open_pictures()
    examples = splits["train+validation"] if name == "of_files" else load_splits(splits)["train+validation"]
    return igpt.cache_tokens(examples, palette, name)


# === A search, refitted and tested ===


def search(folder, make_batches=tuning_process.training_batches):
    """A study of a classifier that begins with the same weights on any backend."""

    def make_model(hyperparameters):
        classifier = igpt.ImageGPTImageClassifier(make_causal_lm(num_layers=1, hidden_dim=16), num_classes=2)
        for index, weight in enumerate(classifier.weights):
            weight.assign(np.full(weight.shape, index / 128, "float32"))
        rate = hyperparameters.get("learning_rate")
        # A schedule of this package's own, for its settings are in the file too.
        schedule = igpt.pretraining_recipe("igpt_small", "ar", steps=8, learning_rate=rate)
        classifier.compile(**igpt.finetuning_recipe(rate) | schedule)
        return classifier

    oracle = igpt.DescendingLearningRateOracle("val_loss", (0.03, 0.01))
    options = {"make_model": make_model, "training_batches": make_batches, "oracle": oracle}
    return tuning_process.run(folder, epochs=1, to_beat=100.0, **options)


# === The tests ===


@pytest.fixture
def palette():
    return igpt.ColorPalette.load(DATA / "palette.npy")


@pytest.fixture(scope="module")
def numbers():
    with np.load(DATA / f"numbers_{BACKEND}.npz") as file:
        return dict(file)


def assert_as_before(given, numbers, name, rtol=1e-5, atol=1e-5):
    """Bit for bit where the numbers were made; elsewhere, what is no float to the bit and floats to their rounding."""
    before = {key.partition("/")[2]: value for key, value in numbers.items() if key.startswith(f"{name}/")}
    assert given.keys() == before.keys()
    same_machine = numbers["machine"] == machine()
    for key, expected in before.items():
        # A loss of `evaluate` and `fit` was a mean over batches; over pictures, its last bit is another.
        if expected.dtype.kind != "f" or (same_machine and "loss" not in key):
            np.testing.assert_array_equal(given[key], expected, err_msg=f"{name}/{key}")
        else:
            np.testing.assert_allclose(given[key], expected, rtol, atol, err_msg=f"{name}/{key}")


@pytest.mark.parametrize("name", MODELS)
def test_a_model_gives_the_numbers_that_it_gave(name, palette, numbers):
    model = keras.saving.load_model(DATA / "models" / f"{name}.keras")
    assert model.palette == palette
    assert_as_before(numbers_of(model), numbers, name)


@pytest.mark.parametrize("backend", sorted({"jax", "tensorflow", "torch"} - {BACKEND}))
def test_a_model_of_another_backend_is_read_whole(backend, numbers):
    model = keras.saving.load_model(DATA / "models" / f"classifier_{backend}.keras")
    assert contents_of(model) == numbers[f"classifier_{backend}/contents"]


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_gives_the_numbers_that_it_gave(name, numbers):
    assert_as_before(preset_numbers(name), numbers, name)


@pytest.mark.parametrize("kind", TRAININGS)
def test_a_training_goes_on_to_where_it_went(kind, numbers, tmp_path):
    folder = shutil.copytree(DATA / "trainings" / f"{kind}_{BACKEND}", tmp_path / "checkpoints")
    restored = Restored()
    given = train(kind, [igpt.ExactResume(folder, every=100), restored])
    given["restored"] = restored.contents
    assert_as_before(given, numbers, f"training of {kind}")


@pytest.mark.parametrize("name", CACHES)
def test_a_token_cache_is_used_and_not_made_again(name, pictures, palette, tmp_path):
    shutil.copytree(DATA / "caches" / name, name)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cached = open_cache(name, palette)
    expected = open_pictures()["train+validation"].load()
    np.testing.assert_array_equal(cached.token_ids, palette.encode(expected.images))
    np.testing.assert_array_equal(cached.labels, expected.labels)
    assert cached.num_colors == 16


def test_a_finished_search_is_not_run_again(tmp_path):
    pytest.importorskip("keras_tuner")

    class NotTrained(igpt.TrainingBatches):
        def __getitem__(self, index):
            raise AssertionError("trained again")

    # They were written on PyTorch; nothing else in them differs by backend but the last bits of the scores.
    for file in (DATA / "search").iterdir():
        (tmp_path / file.name).write_text(file.read_text().replace('"torch"', f'"{BACKEND}"'))
    result = search(tmp_path, lambda examples: NotTrained(examples, None, tuning_process.BATCH))
    report = json.loads((DATA / "search" / "report.json").read_text())
    assert result.final_on_test == report["final_on_test"]
    assert [trial.objective for trial in result.chosen_on_validation.trials] == [
        trial["objective"] for trial in report["chosen_on_validation"]["trials"]
    ]


def test_orders_crops_masks_and_draws_of_a_seed_stay_as_they_were():
    assert_same_integers(integers_of_seeds(), "seeds")


def test_splits_and_crops_of_pictures_stay_as_they_were(pictures, palette):
    assert_same_integers(integers_of_pictures(palette), "pictures")


def assert_same_integers(given, name):
    expected = json.loads((DATA / f"integers_of_{name}.json").read_text())
    assert given.keys() == expected.keys()
    for key, value in expected.items():
        assert given[key] == value, key
