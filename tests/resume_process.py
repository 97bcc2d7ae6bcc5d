"""One training, killed at random moments and started again, against the same training left alone.

Usage: python resume_process.py FOLDER KILLS SEED. Prints a line of JSON: how often it was killed, how often in a save,
and whether the weights at the end are the same.
"""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import keras
import numpy as np
from conftest import make_causal_lm, random_tokens

import keras_igpt as igpt
from keras_igpt.data import LabeledTokens

EPOCHS = 2


class Signs(keras.callbacks.Callback):
    """Tells the parent of each step."""

    def __init__(self, pipe):
        super().__init__()
        self._pipe = pipe

    def on_train_batch_begin(self, batch, logs=None):
        os.write(self._pipe, b"1")


def train(folder, result, steps, pipe=None):
    keras.utils.set_random_seed(0)
    model = make_causal_lm(num_layers=1, hidden_dim=8)
    model.compile(**igpt.pretraining_recipe("igpt_small", "ar", steps=EPOCHS * steps, accumulation_steps=2))
    tokens = LabeledTokens(random_tokens(4 * steps), np.zeros(4 * steps, "int64"), 16)
    batches = igpt.TrainingBatches(tokens, None, batch_size=4)
    callbacks = [] if pipe is None else [Signs(pipe), igpt.ExactResume(folder / "checkpoints", every=3)]
    model.fit(batches, epochs=EPOCHS, callbacks=callbacks, verbose=0)
    weights = {f"weight_{index}": np.asarray(weight) for index, weight in enumerate(model.get_weights())}
    losses = model.history.history["loss"][-1]
    np.savez(result, loss=losses, **weights)


def live(folder, result, steps, killed_at=None, delay=0.0):
    """Lets a child train; kills it `delay` seconds after `killed_at` steps. Whether it was killed."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        train(folder, result, steps, writing)
        os._exit(0)
    os.close(writing)
    # By steps, not by the clock: however slow the machine, there is a checkpoint to go on from after some lives.
    seen = 0
    while (
        killed_at is not None and seen < killed_at and (step := os.read(reading, 1))
    ):  # nothing to read: the child ended
        seen += len(step)
    if seen == killed_at:
        time.sleep(delay)
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    os.close(reading)
    if os.WIFEXITED(status) and os.WEXITSTATUS(status):
        raise RuntimeError(f"A life ended with {os.WEXITSTATUS(status)}")
    return os.WIFSIGNALED(status)


def main():
    folder, kills, seed = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    moments = random.Random(seed)
    # Enough of an epoch that no life before the last one comes to the end.
    steps = 10 * kills
    killed = in_saves = 0
    while killed < kills and not (folder / "resumed.npz").exists():
        # The first step of a life compiles.
        if live(folder, folder / "resumed.npz", steps, moments.randint(2, 20), moments.uniform(0.0, 0.01)):
            killed += 1
            in_saves += bool(list((folder / "checkpoints").glob(".partial-*")))
    if not (folder / "resumed.npz").exists():
        live(folder, folder / "resumed.npz", steps)
    train(folder, folder / "alone.npz", steps)
    with np.load(folder / "resumed.npz") as resumed, np.load(folder / "alone.npz") as alone:
        equal = all(np.array_equal(resumed[name], alone[name]) for name in alone.files)
        print(json.dumps({"killed": killed, "in_saves": in_saves, "equal": equal}))


if __name__ == "__main__":
    main()
