"""A search with a refit at a tiny size; as a process of its own it kills itself in the middle of a trial.

python tests/tuning_process.py FOLDER WAY TRIAL

WAY is `exit` (os._exit) or `kill` (SIGKILL), TRIAL the number of the trial that is being trained then.
"""

import json
import os
import signal
import sys
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np

import keras_igpt as igpt
from keras_igpt.data import DataSplits, LabeledTokens

# Not a number, worse than untrained, fair or diverged, best, worse again; the last one is not reached.
RATES = (100.0, 30.0, 0.3, 0.03, 0.003, 0.0003)
BATCH = 12


def make_data():
    """Pictures whose colours tell the class: 48 for training, 16 for validation, 16 for testing."""
    labels = np.arange(80) % 2
    token_ids = (np.random.default_rng(0).integers(0, 8, (80, 16)) + 8 * labels[:, None]).astype("int32")
    parts = [LabeledTokens(token_ids[rows], labels[rows], 16) for rows in (slice(48), slice(48, 64), slice(64, 80))]
    return DataSplits(*parts, class_names=("dark", "bright"))


def make_model(hyperparameters):
    backbone = igpt.ImageGPTBackbone(vocabulary_size=16, image_size=4, num_layers=1, num_heads=2, hidden_dim=16)
    language_model = igpt.ImageGPTCausalLM(backbone)
    rate = hyperparameters.get("learning_rate")
    language_model.compile(**igpt.pretraining_recipe("igpt_nano", "ar", steps=8, learning_rate=rate))
    return language_model


def training_batches(examples):
    return igpt.TrainingBatches(examples, None, BATCH)


def evaluation_batches(examples):
    return igpt.EvaluationBatches(examples, None, 4)


def run(folder, **options):
    """The whole study; options replace arguments of `Study`, `search` and `refit`."""
    arguments = {
        "make_model": make_model,
        "data": make_data(),
        "training_batches": training_batches,
        "evaluation_batches": evaluation_batches,
        "objective": "val_loss",
        "folder": folder,
        "seed": 0,
        "callbacks": (),
    }
    study = igpt.Study(**{name: options.pop(name, default) for name, default in arguments.items()})
    of_refit = {name: options.pop(name) for name in ("checkpoint_every", "evaluate") if name in options}
    oracle = options.pop("oracle", igpt.DescendingLearningRateOracle("val_loss", RATES))
    study.search(**{"epochs": 2, "oracle": oracle, "verbose": 0, **options})
    return study.refit(**of_refit, verbose=0)


def main(folder, way, trial):
    class Deadly(igpt.TrainingBatches):
        def __getitem__(self, index):
            ledger = Path(folder) / "trials.json"
            finished = len(json.loads(ledger.read_text())["trials"]) if ledger.is_file() else 0
            if finished == trial and index == 2:
                if way == "kill":
                    os.kill(os.getpid(), signal.SIGKILL)
                os._exit(7)
            return super().__getitem__(index)

    run(folder, training_batches=lambda examples: Deadly(examples, None, BATCH))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
