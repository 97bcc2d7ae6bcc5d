"""Whether a process that trains, predicts, draws or searches for long comes to need more and more memory."""

import json
import os
import subprocess
import sys
from pathlib import Path

import keras
import pytest

pytestmark = pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc/self/statm")

# Eager steps are slow: as many as take some seconds.
STEPS = {"jax": 4_000, "tensorflow": 3_000, "torch": 1_500}[keras.backend.backend()]
REPEATS = 12
TRIALS = 14

# One process for all: each list holds the resident bytes after a fifth of the steps, a call or a trial.
MEASURE = """
import gc, json, os, sys, weakref
import keras, keras_tuner, numpy as np
import keras_igpt as igpt
from keras_igpt.data.examples import LabeledTokens

steps, repeats, trials, folder = *map(int, sys.argv[1:4]), sys.argv[4]


def resident():
    gc.collect()
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


class Resident(keras.callbacks.Callback):
    def on_epoch_end(self, epoch, logs=None):
        sizes["steps"].append(resident())


def make():
    backbone = igpt.ImageGPTBackbone(vocabulary_size=8, image_size=4, num_layers=1, num_heads=1, hidden_dim=8)
    colors = np.arange(24, dtype="uint8").reshape(8, 3)
    return igpt.ImageGPTCausalLM(backbone, palette=igpt.ColorPalette.from_colors(colors))


def build(hp):
    classifier = igpt.ImageGPTImageClassifier(make(), num_classes=2)
    classifier.compile(**igpt.finetuning_recipe(hp.Float("learning_rate", 1e-4, 1e-2)))
    models.append(weakref.ref(classifier))
    return classifier


class Search(keras_tuner.RandomSearch):
    def run_trial(self, trial, *args, **kwargs):
        return self.hypermodel.build(trial.hyperparameters).fit(*args, **kwargs)

    def on_trial_end(self, trial):
        super().on_trial_end(trial)
        sizes["trials"].append(resident())


sizes, models = {"steps": [], "calls": [], "generate": [], "trials": []}, []
tokens = LabeledTokens(np.random.default_rng(0).integers(0, 8, (64, 16)), np.zeros(64, "int64"), 8)
batches = igpt.TrainingBatches(tokens, None, batch_size=4)
held_out = igpt.EvaluationBatches(tokens, None, batch_size=4)
lm = make()
lm.compile(**igpt.pretraining_recipe("igpt_nano", "ar", steps=2 * steps))
lm.fit(batches, epochs=5, steps_per_epoch=steps // 5, verbose=0, callbacks=[Resident()])
for _ in range(repeats):
    lm.fit(batches, epochs=1, steps_per_epoch=4, verbose=0)
    lm.predict(batches[0][0], verbose=0)
    lm.evaluate(held_out, verbose=0)
    sizes["calls"].append(resident())
for seed in range(repeats):
    lm.generate(num_images=2, seed=seed)
    sizes["generate"].append(resident())
objective = keras_tuner.Objective("loss", "min")
search = Search(build, objective=objective, max_trials=trials, directory=folder, seed=0)
search.search(batches, epochs=1, steps_per_epoch=4, verbose=0)
completed = sum(trial.status == "COMPLETED" for trial in search.oracle.trials.values())
gc.collect()
print(json.dumps({**sizes, "completed": completed, "alive": sum(model() is not None for model in models)}))
"""


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    pytest.importorskip("keras_tuner")
    arguments = [str(number) for number in (STEPS, REPEATS, TRIALS)] + [str(tmp_path_factory.mktemp("search"))]
    result = subprocess.run(
        [sys.executable, "-c", MEASURE, *arguments], capture_output=True, text=True, env=os.environ, check=False
    )
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1])


def test_training_steps_leave_nothing_behind(measured):
    assert len(measured["steps"]) == 5
    after_a_fifth, end = measured["steps"][0], measured["steps"][-1]
    # A kilobyte a step: less than its logits.
    assert end - after_a_fifth < 1024 * (STEPS - STEPS // 5)


@pytest.mark.parametrize("what", ["calls", "generate"])
def test_calls_leave_nothing_behind(measured, what):
    assert len(measured[what]) == REPEATS
    # A program compiled anew in each of the ten calls would be more.
    assert measured[what][-1] - measured[what][1] < 5_000_000


def test_models_of_trials_are_dropped(measured):
    assert measured["completed"] == TRIALS
    assert measured["alive"] == 0


def test_trials_leave_nothing_behind(measured):
    # The first trials fill caches and the allocator's pools; each of the last six adds less than its program's size.
    # TensorFlow itself keeps three megabytes of each; with the whole program it would be thirty-five.
    limit = 60_000_000 if keras.backend.backend() == "tensorflow" else 8_000_000
    assert measured["trials"][-1] - measured["trials"][7] < limit
