import json
import os
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import keras
import numpy as np
import pytest
from conftest import make_causal_lm, make_masked_lm, random_tokens

import keras_igpt as igpt
from keras_igpt.data import LabeledTokens

STEPS = 5


class CrashError(Exception):
    pass


class Crash(keras.callbacks.Callback):
    """Raises before a step, as a crash would."""

    def __init__(self, epoch, batch):
        super().__init__()
        self._at, self._epoch = (epoch, batch), 0

    def on_epoch_begin(self, epoch, logs=None):
        self._epoch = epoch

    def on_train_batch_begin(self, batch, logs=None):
        if (self._epoch, batch) == self._at:
            raise CrashError


def make_batches(seed=0):
    tokens = LabeledTokens(random_tokens(4 * STEPS), np.arange(4 * STEPS) % 3, 16)
    return igpt.TrainingBatches(tokens, None, batch_size=4, seed=seed)


def make_model(kind, **options):
    keras.utils.set_random_seed(0)
    if kind == "classifier":
        model = igpt.ImageGPTImageClassifier(make_masked_lm(num_layers=1, hidden_dim=8), num_classes=3)
        model.compile(**igpt.finetuning_recipe(0.01, **options))
        return model
    model = (make_causal_lm if kind == "ar" else make_masked_lm)(num_layers=1, hidden_dim=8)
    model.compile(**igpt.pretraining_recipe("igpt_small", kind, steps=3 * STEPS, **options))
    return model


def train(model, callbacks=(), batches=None, **options):
    held_out = igpt.EvaluationBatches(LabeledTokens(random_tokens(4, seed=1), np.zeros(4, "int64"), 16), None, 4)
    history = model.fit(
        batches or make_batches(), epochs=3, verbose=0, validation_data=held_out, callbacks=[*callbacks], **options
    )
    return history.history


def assert_same_weights(model, other):
    for weight, expected in zip(model.variables, other.variables, strict=True):
        np.testing.assert_array_equal(np.asarray(weight), np.asarray(expected), err_msg=weight.path)


@pytest.mark.parametrize(
    ("kind", "options"),
    [("ar", {"accumulation_steps": 2}), ("bert", {"ema_momentum": 0.9}), ("classifier", {"clip_norm": 1.0})],
)
def test_a_resumed_run_ends_as_one_never_stopped(kind, options, tmp_path):
    """Stopped in the middle of two epochs and once at an epoch's end; losses and metrics of each epoch too."""
    alone = make_model(kind, **options)
    expected = train(alone)
    for epoch, batch in ((0, 3), (1, 2), (2, 0)):
        with pytest.raises(CrashError):
            train(make_model(kind, **options), [igpt.ExactResume(tmp_path, every=1), Crash(epoch, batch)])
    # Interrupted before a step of which nothing was saved yet: it is taken again.
    resumed = make_model(kind, **options)
    history = train(resumed, [igpt.ExactResume(tmp_path, every=1)])
    assert_same_weights(resumed, alone)
    assert {name: values[-1] for name, values in history.items()} == {name: v[-1] for name, v in expected.items()}


def test_the_metrics_of_a_resumed_epoch_are_those_of_all_its_steps(tmp_path):
    expected = train(make_model("ar"))
    with pytest.raises(CrashError):
        train(make_model("ar"), [igpt.ExactResume(tmp_path, every=2), Crash(1, 4)])
    history = train(make_model("ar"), [igpt.ExactResume(tmp_path, every=2)])
    assert {name: values[-2:] for name, values in expected.items()} == history


def test_a_finished_run_is_not_trained_again(tmp_path):
    first, again = make_model("ar"), make_model("ar")
    train(first, [igpt.ExactResume(tmp_path, every=100)])
    assert train(again, [igpt.ExactResume(tmp_path, every=100)]) == {}
    assert_same_weights(again, first)
    assert [path.name for path in tmp_path.iterdir()] == [f"step-{3 * STEPS:08d}.npz"]


def truncate(path):
    path.write_bytes(path.read_bytes()[:-1000])


def flip_a_bit(path):
    with zipfile.ZipFile(path) as file:
        largest = max(file.infolist(), key=lambda member: member.file_size)
    content = bytearray(path.read_bytes())
    content[largest.header_offset + largest.file_size // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [truncate, flip_a_bit, lambda path: path.write_bytes(b"")])
def test_a_damaged_checkpoint_is_passed_over_and_named(damage, tmp_path):
    with pytest.raises(CrashError):
        train(make_model("ar"), [igpt.ExactResume(tmp_path, every=3, keep=3), Crash(2, 3)])
    newest = max(tmp_path.glob("step-*.npz"))
    damage(newest)
    resumed, alone = make_model("ar"), make_model("ar")
    with pytest.warns(UserWarning, match=f"{newest.name} is damaged .*: going on from the checkpoint before it"):
        train(resumed, [igpt.ExactResume(tmp_path, every=3)])
    train(alone)
    assert_same_weights(resumed, alone)


def test_a_damaged_checkpoint_does_not_count_among_those_kept(tmp_path):
    with pytest.raises(CrashError):
        train(make_model("ar"), [igpt.ExactResume(tmp_path, every=4, keep=3), Crash(2, 3)])
    truncate(max(tmp_path.glob("step-*.npz")))
    with pytest.warns(UserWarning, match="is damaged"), pytest.raises(CrashError):
        train(make_model("ar"), [igpt.ExactResume(tmp_path, every=1, keep=1), Crash(2, 1)])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["damaged-step-00000012.npz", "step-00000010.npz"]


class StopEarly(keras.callbacks.Callback):
    """Ends the training in the middle of an epoch, as a limit on time does."""

    def on_train_batch_begin(self, batch, logs=None):
        if batch == 1:
            self.model.stop_training = True


def test_a_run_stopped_in_the_middle_of_an_epoch_goes_on_there(tmp_path):
    alone, stopped, resumed = make_model("ar"), make_model("ar"), make_model("ar")
    train(alone)
    train(stopped, [StopEarly(), igpt.ExactResume(tmp_path, every=100)])
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000002.npz"]
    train(resumed, [igpt.ExactResume(tmp_path, every=100)])
    assert_same_weights(resumed, alone)


def test_a_run_that_early_stopping_ended_is_not_trained_again(tmp_path):
    def patience():
        # A loss cannot rise above this baseline.
        return keras.callbacks.EarlyStopping("loss", mode="max", patience=0, baseline=99, restore_best_weights=True)

    first, again = make_model("ar"), make_model("ar")
    history = train(first, [patience(), igpt.ExactResume(tmp_path, every=1)])
    assert len(history["loss"]) == 2
    assert train(again, [patience(), igpt.ExactResume(tmp_path, every=1)]) == {}
    assert_same_weights(again, first)


def test_fewer_epochs_than_the_checkpoint_has_train_no_more(tmp_path):
    with pytest.raises(CrashError):
        train(make_model("ar"), [igpt.ExactResume(tmp_path, every=1), Crash(2, 3)])
    model = make_model("ar")
    model.fit(make_batches(), epochs=1, verbose=0, callbacks=igpt.ExactResume(tmp_path, every=1))
    assert int(keras.ops.convert_to_numpy(model.optimizer.iterations)) == 2 * STEPS + 2


def test_a_signal_after_the_last_step_is_not_lost(tmp_path):
    class Terminate(keras.callbacks.Callback):
        def on_train_end(self, logs=None):
            signal.raise_signal(signal.SIGTERM)

    received = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: received.append(number))
    try:
        train(make_model("ar"), [Terminate(), igpt.ExactResume(tmp_path, every=100)])
    finally:
        signal.signal(signal.SIGTERM, before)
    assert received == [signal.SIGTERM]


def test_training_goes_on_where_nothing_can_be_written(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    resumed, alone = make_model("ar"), make_model("ar")
    with pytest.warns(UserWarning, match="Training goes on, but its checkpoint was not written: .*Not a directory"):
        train(resumed, [igpt.ExactResume(tmp_path / "file" / "folder", every=4)])
    train(alone)
    assert_same_weights(resumed, alone)


def test_a_full_disk_leaves_the_checkpoint_before(tmp_path, monkeypatch):
    write, calls = np.savez, []

    def fill_up(file, **arrays):
        calls.append(1)
        write(file, **arrays)
        if len(calls) > 1:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", fill_up)
    with pytest.warns(UserWarning, match="No space left on device"):
        train(make_model("ar"), [igpt.ExactResume(tmp_path, every=4)])
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000004.npz"]


def test_the_newest_are_kept(tmp_path):
    train(make_model("ar"), [igpt.ExactResume(tmp_path, every=2, keep=3)])
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"step-{step:08d}.npz" for step in (12, 14, 15)]


def test_a_signal_saves_the_state_and_goes_where_it_went_before(tmp_path):
    class Terminate(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch, logs=None):
            if batch == 2:
                signal.raise_signal(signal.SIGTERM)

    received = []

    def handler(number, frame):
        received.append(number)
        raise CrashError

    before = signal.signal(signal.SIGTERM, handler)
    try:
        with pytest.raises(CrashError):
            train(make_model("ar"), [Terminate(), igpt.ExactResume(tmp_path, every=100)])
        assert signal.getsignal(signal.SIGTERM) is handler
    finally:
        signal.signal(signal.SIGTERM, before)
    assert received == [signal.SIGTERM]
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000002.npz"]
    resumed, alone = make_model("ar"), make_model("ar")
    train(resumed, [igpt.ExactResume(tmp_path, every=100)])
    train(alone)
    assert_same_weights(resumed, alone)


def test_what_does_not_belong_together_is_refused(tmp_path):
    train(make_model("ar"), [igpt.ExactResume(tmp_path, every=100)])
    with pytest.raises(ValueError, match=r"`folder` must hold checkpoints of these batches: seed is 1 here.*seed=0"):
        train(make_model("ar"), [igpt.ExactResume(tmp_path, every=100)], make_batches(seed=1))
    with pytest.raises(ValueError, match=r"`folder` must hold checkpoints of this model and optimizer: "):
        train(make_model("bert"), [igpt.ExactResume(tmp_path, every=100)])
    with pytest.raises(ValueError, match=r"`x` must be TrainingBatches where.*Received: ndarray"):
        make_model("ar").fit(random_tokens(4), callbacks=[igpt.ExactResume(tmp_path, every=100)])
    with pytest.raises(ValueError, match=r"`callbacks` must be a list with one ExactResume"):
        train(make_model("ar"), [igpt.ExactResume(tmp_path, every=1), igpt.ExactResume(tmp_path, every=2)])
    model = make_model("ar")
    model.compile("sgd", steps_per_execution=1 if keras.backend.backend() == "torch" else 2)
    if keras.backend.backend() != "torch":
        with pytest.raises(ValueError, match=r"`steps_per_execution` must be 1.*Received: steps_per_execution=2"):
            train(model, [igpt.ExactResume(tmp_path, every=1)])
    with pytest.raises(ValueError, match=r"`every` must be an integer of at least 1\. Received: every=0"):
        igpt.ExactResume(tmp_path, every=0)


def test_a_run_killed_at_random_moments_ends_as_one_left_alone(tmp_path):
    """By SIGKILL, bit for bit. `python tests/resume_process.py FOLDER 20 0` does it twenty times, and in saves too."""
    if not hasattr(os, "fork"):
        pytest.skip("the lives of this test are forks")
    script = Path(__file__).parent / "resume_process.py"
    environment = {**os.environ, "PYTHONPATH": str(script.parent.parent), "TF_CPP_MIN_LOG_LEVEL": "3"}
    result = subprocess.run(
        [sys.executable, str(script), str(tmp_path), "4", "0"], capture_output=True, text=True, env=environment
    )
    assert result.returncode == 0, result.stderr[-3000:]
    report = json.loads(result.stdout.splitlines()[-1])
    assert report["equal"]
    assert report["killed"] == 4
    assert "Going on from" in result.stdout


@pytest.mark.parametrize("learning_rate", [1e30, float("inf")])
def test_a_diverged_run_stops_and_keeps_its_last_good_state(learning_rate, tmp_path):
    model = make_model("ar")
    model.compile(keras.optimizers.SGD(learning_rate))
    with pytest.raises(
        FloatingPointError, match=r"The loss became (nan|inf) in batch \d of epoch 1, at optimizer step"
    ):
        train(model, [igpt.ExactResume(tmp_path, every=1)])
    newest = max(tmp_path.glob("step-*.npz"), default=None)
    if newest is not None:
        with np.load(newest) as state:
            assert all(np.isfinite(state[name]).all() for name in state.files if state[name].dtype.kind == "f")


def test_two_fits_with_averaged_weights():
    model = make_model("ar", ema_momentum=0.9)
    train(model)
    assert np.isfinite(train(model)["loss"]).all()


def test_a_loss_that_is_no_number_is_named():
    class Spoil(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch, logs=None):
            if batch == 2:
                kernel = self.model.pixel_head.kernel
                kernel.assign(np.full(kernel.shape, np.nan))

    with pytest.raises(FloatingPointError, match="The loss became nan in batch 3 of epoch 1"):
        make_model("ar").fit(random_tokens(4 * STEPS), batch_size=4, callbacks=[Spoil()], verbose=0)
