import json
import os
import shutil
import signal
import subprocess
import sys
import warnings
import zipfile
from pathlib import Path

import keras
import numpy as np
import pytest
from conftest import make_causal_lm, make_masked_lm, random_tokens

import keras_igpt as igpt
from keras_igpt.data import ImageFiles, LabeledTokens
from keras_igpt.data.image_files import FolderReader
from keras_igpt.training import checkpoint_file
from keras_igpt.training.checkpoint_file import DamagedCheckpointError, read_checkpoint, write_checkpoint
from keras_igpt.training.settings import differences, training_settings

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


def make_batches(seed=0, pictures=0, **options):
    tokens = LabeledTokens(random_tokens(4 * STEPS, seed=pictures), np.arange(4 * STEPS) % 3, 16)
    return igpt.TrainingBatches(tokens, None, batch_size=4, seed=seed, **options)


def make_model(kind, **options):
    keras.utils.set_random_seed(0)
    if kind == "classifier":
        model = igpt.ImageGPTImageClassifier(make_masked_lm(num_layers=1, hidden_dim=8), num_classes=3)
        model.compile(**igpt.finetuning_recipe(0.01, **options))
        return model
    model = (make_causal_lm if kind == "ar" else make_masked_lm)(num_layers=1, hidden_dim=8)
    model.compile(**igpt.pretraining_recipe("igpt_small", kind, steps=3 * STEPS, **options))
    return model


HELD_OUT = igpt.EvaluationBatches(LabeledTokens(random_tokens(4, seed=1), np.zeros(4, "int64"), 16), None, 4)


def train(model, callbacks=(), batches=None, **options):
    options = {"epochs": 3, "verbose": 0, **options}
    return model.fit(batches or make_batches(), callbacks=[*callbacks], **options).history


def visit(model, folder, batches=None, meanwhile=lambda: None, **more):
    """Goes on from the checkpoints in a folder and saves the state of step 3, without any training."""
    resume = igpt.ExactResume(folder, every=1)

    def fit(batches, **options):
        meanwhile()
        resume.set_model(model)
        resume.on_epoch_begin(0)
        for batch in (2, 3):
            resume.on_train_batch_begin(batch)

    options = {"callbacks": [resume], "steps_per_epoch": STEPS, "epochs": 3, **more}
    resume.fit(fit, model, batches or make_batches(), options)


def assert_same_weights(model, other):
    for weight, expected in zip(model.variables, other.variables, strict=True):
        np.testing.assert_array_equal(np.asarray(weight), np.asarray(expected), err_msg=weight.path)


@pytest.fixture(scope="module")
def alone():
    """The autoregressive model after a training that was never stopped."""
    model = make_model("ar")
    train(model)
    return model


@pytest.mark.parametrize(
    ("kind", "options"),
    [("ar", {"accumulation_steps": 2}), ("bert", {"ema_momentum": 0.9}), ("classifier", {"clip_norm": 1.0})],
)
def test_a_resumed_run_ends_as_one_never_stopped(kind, options, tmp_path):
    """Stopped in the middle of two epochs and once at an epoch's end; losses and metrics of each epoch too."""
    alone = make_model(kind, **options)
    expected = train(alone, validation_data=HELD_OUT)
    # In one model, as after an exception that was caught, and at last in a new one.
    stopped = make_model(kind, **options)
    for epoch, batch in ((0, 3), (1, 2), (2, 0)):
        with pytest.raises(CrashError):
            train(stopped, [igpt.ExactResume(tmp_path, every=1), Crash(epoch, batch)], validation_data=HELD_OUT)
    # Interrupted before a step of which nothing was saved yet: it is taken again.
    resumed = make_model(kind, **options)
    history = train(resumed, [igpt.ExactResume(tmp_path, every=1)], validation_data=HELD_OUT)
    assert_same_weights(resumed, alone)
    assert {name: values[-1] for name, values in history.items()} == {name: v[-1] for name, v in expected.items()}


@pytest.mark.skipif(keras.backend.backend() == "torch", reason="Keras has no steps_per_execution there")
def test_a_run_of_several_steps_an_execution_goes_on_at_their_boundaries(tmp_path):
    def make(together):
        model = make_model("ar")
        model.compile(keras.optimizers.Adam(0.01), steps_per_execution=together)
        return model

    def go_on(model, steps, *callbacks, every=2):
        return train(model, [igpt.ExactResume(tmp_path, every), *callbacks], steps_per_epoch=steps)

    alone = make(2)
    expected = train(alone, steps_per_epoch=6)
    for epoch, batch in ((0, 4), (1, 0), (2, 4)):
        with pytest.raises(CrashError):
            go_on(make(2), 6, Crash(epoch, batch))
    for together, steps, every, message in (
        (2, 5, 2, "`steps_per_epoch`, 5 steps"),
        (2, 6, 3, "`every`, 3 steps"),
        (3, 6, 3, "what is left of the epoch, 4 steps"),
    ):
        with pytest.raises(ValueError, match=rf"`steps_per_execution` must divide {message}.*Received: .*={together}$"):
            go_on(make(together), steps, every=every)
    resumed = make(2)
    history = go_on(resumed, 6)
    assert_same_weights(resumed, alone)
    assert history["loss"][-1] == expected["loss"][-1]


def grain_batches(seed=0, endless=False):
    grain = pytest.importorskip("grain")
    # The last batch of a pass is shorter.
    dataset = grain.MapDataset.source(random_tokens(4 * STEPS - 1)).shuffle(seed=seed)
    return (dataset.repeat() if endless else dataset).batch(4).map(lambda token_ids: (token_ids,))


@pytest.mark.parametrize("endless", [False, True])
def test_a_run_on_a_grain_data_set_goes_on(endless, tmp_path):
    """In the middle of an epoch; and checkpoints change nothing of it: steps are the data set's items in order."""
    options = {"steps_per_epoch": STEPS} if endless else {}
    alone = make_model("ar")
    train(alone, batches=grain_batches(endless=endless), **options)
    assert int(np.asarray(alone.optimizer.iterations)) == 3 * STEPS
    stopped = make_model("ar")
    with pytest.raises(CrashError):
        train(stopped, [igpt.ExactResume(tmp_path, every=2), Crash(1, 4)], grain_batches(endless=endless), **options)
    resumed = make_model("ar")
    train(resumed, [igpt.ExactResume(tmp_path, every=2)], grain_batches(endless=endless), **options)
    assert_same_weights(resumed, alone)
    with pytest.raises(ValueError, match="`folder` must hold checkpoints of this data: "):
        train(make_model("ar"), [igpt.ExactResume(tmp_path, every=2)], grain_batches(1, endless), **options)
    if endless:
        with pytest.raises(ValueError, match="`steps_per_epoch` must be given for a MapDataset without an end"):
            train(make_model("ar"), [igpt.ExactResume(tmp_path, every=2)], grain_batches(endless=True))


def positionless():
    yield (batch for batch in [(random_tokens(4),)])
    if "tensorflow" in sys.modules:
        yield sys.modules["tensorflow"].data.Dataset.from_tensors((random_tokens(4),))
    if "torch" in sys.modules:
        yield sys.modules["torch"].utils.data.DataLoader(random_tokens(4))
    grain = pytest.importorskip("grain")
    yield grain_batches().to_iter_dataset()
    yield grain.DataLoader(data_source=[(random_tokens(4),)], sampler=grain.samplers.SequentialSampler(1))


def test_data_without_a_position_is_refused(tmp_path):
    model = make_model("ar")
    for data in positionless():
        with pytest.raises(
            ValueError, match=rf"Grain MapDataset.*each step's batch\. Received: {type(data).__name__}$"
        ):
            train(model, [igpt.ExactResume(tmp_path, every=2)], data, steps_per_epoch=1)
    filtered = grain_batches().filter(lambda batch: False)
    with pytest.raises(ValueError, match="`filter` drops"):
        train(model, [igpt.ExactResume(tmp_path, every=2)], filtered)


def test_the_metrics_of_a_resumed_epoch_are_those_of_all_its_steps(tmp_path):
    expected = train(make_model("ar"), validation_data=HELD_OUT)
    model = make_model("ar")
    with pytest.raises(CrashError):
        train(model, [igpt.ExactResume(tmp_path, every=2), Crash(1, 4)], validation_data=HELD_OUT)
    history = train(model, [igpt.ExactResume(tmp_path, every=2)], validation_data=HELD_OUT)
    assert {name: values[-2:] for name, values in expected.items()} == history


def test_other_metrics_than_those_of_the_checkpoint_start_at_zero(tmp_path):
    """In another order too, and where a name's number alone tells them apart."""

    def make(*metrics):
        model = make_model("classifier")
        named = {f"top_{k}": keras.metrics.SparseTopKCategoricalAccuracy(k, name=f"top_{k}") for k in (2, 3)}
        weighted = [named.get(name, name) for name in metrics]
        model.compile(**{**igpt.finetuning_recipe(0.01), "weighted_metrics": weighted})
        return model

    expected = train(make("top_2", "top_3", "accuracy"), epochs=1)
    with pytest.raises(CrashError):
        train(make("accuracy", "top_2"), [igpt.ExactResume(tmp_path, every=1), Crash(0, 4)], epochs=1)
    model = make("top_3", "top_2", "accuracy")
    with pytest.warns(UserWarning, match=r"not in its checkpoint.*remaining steps alone: top_3$"):
        history = train(model, [igpt.ExactResume(tmp_path, every=1)], epochs=1)
    assert history == {**expected, "top_3": [1.0]}


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


def change_the_directory(offset, value):
    """Changes a byte of the zip's directory: an entry has its flags at 8 and its method at 10."""

    def damage(path):
        content = bytearray(path.read_bytes())
        content[content.rindex(b"PK\x01\x02") + offset] ^= value
        path.write_bytes(content)

    return damage


def save_an_array(path):
    with path.open("wb") as file:
        np.save(file, np.zeros(3))


DAMAGES = {
    "truncated": truncate,
    "flipped": flip_a_bit,
    "empty": lambda path: path.write_bytes(b""),
    "encrypted": change_the_directory(8, 1),
    "compressed": change_the_directory(10, 1),
    "misplaced": change_the_directory(45, 128),
    "array": save_an_array,
}


@pytest.fixture(scope="module")
def crashed(tmp_path_factory):
    """The last three checkpoints of a run that crashed, and the weights of the last but one."""
    folder = tmp_path_factory.mktemp("crashed")
    with pytest.raises(CrashError):
        train(make_model("ar"), [igpt.ExactResume(folder, every=3, keep=3), Crash(2, 3)])
    older = tmp_path_factory.mktemp("older")
    for path in sorted(folder.glob("step-*.npz"))[:-1]:
        shutil.copy(path, older)
    return folder, restored(older)


def restored(folder):
    """The weights that a training would go on from."""
    model, found = make_model("ar"), []
    visit(model, folder, meanwhile=lambda: found.extend(np.asarray(weight) for weight in model.variables))
    return found


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_checkpoint_is_passed_over_and_named(damage, crashed, tmp_path):
    folder = shutil.copytree(crashed[0], tmp_path / "copied")
    newest = max(folder.glob("step-*.npz"))
    damage(newest)
    with pytest.warns(UserWarning, match=f"{newest.name} is damaged .*: going on from the checkpoint before it"):
        found = restored(folder)
    for weight, expected in zip(found, crashed[1], strict=True):
        np.testing.assert_array_equal(weight, expected)


def test_a_run_goes_on_past_a_damaged_checkpoint(crashed, alone, tmp_path):
    folder = shutil.copytree(crashed[0], tmp_path / "copied")
    truncate(max(folder.glob("step-*.npz")))
    resumed = make_model("ar")
    with pytest.warns(UserWarning, match="is damaged"):
        train(resumed, [igpt.ExactResume(folder, every=3)])
    assert_same_weights(resumed, alone)


def test_a_damaged_checkpoint_does_not_count_among_those_kept(tmp_path):
    model = make_model("ar")
    with pytest.raises(CrashError):
        train(model, [igpt.ExactResume(tmp_path, every=4, keep=3), Crash(2, 3)])
    truncate(max(tmp_path.glob("step-*.npz")))
    with pytest.warns(UserWarning, match="is damaged"), pytest.raises(CrashError):
        train(model, [igpt.ExactResume(tmp_path, every=1, keep=1), Crash(2, 1)])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["damaged-step-00000012.npz", "step-00000010.npz"]


def fail_in_the_middle(file):
    raise OSError(5, "Input/output error")


@pytest.mark.parametrize("failing", ["open", "testzip", "listdir"])
def test_an_unreadable_checkpoint_is_not_taken_for_a_damaged_one(failing, tmp_path, monkeypatch):
    visit(make_model("ar"), tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    opening = Path.open

    def refuse(path, *arguments):
        if path.name == "step-00000003.npz":
            raise PermissionError(13, "Permission denied", str(path))
        return opening(path, *arguments)

    with monkeypatch.context() as patch:
        if failing == "open":
            patch.setattr(Path, "open", refuse)
        elif failing == "testzip":
            patch.setattr(zipfile.ZipFile, "testzip", fail_in_the_middle)
        else:
            patch.setattr(checkpoint_file.os, "listdir", fail_in_the_middle)
        expected = {"open": PermissionError}.get(failing, OSError)
        with pytest.raises(expected, match=r"denied. The checkpoint may be whole: .*step-0+3|Input/output error"):
            visit(make_model("ar"), tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_what_is_read_is_what_was_written_or_damaged(tmp_path):
    """One flipped bit at a time, all through a file."""
    path = tmp_path / "step-00000003.npz"
    header = {"version": 1, "step": 3, "finished": False, "batches": {}, "variables": []}
    arrays = [np.arange(5, dtype="float32"), np.zeros((0, 2)), np.array(3)]
    write_checkpoint(path, header, arrays)
    content = path.read_bytes()
    found = []
    for bit in range(0, 8 * len(content), 61):
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        try:
            read_header, read = read_checkpoint(path)
        except DamagedCheckpointError:
            found.append(bit)
            continue
        assert read_header == {**header, "dtypes": ["float32", "float64", "int64"]}
        for array, expected in zip(read, arrays, strict=True):
            np.testing.assert_array_equal(array, expected)
    assert len(found) > 100


def test_what_killed_processes_left_is_removed(tmp_path):
    (tmp_path / ".partial-step-00000003.npz").touch()
    (tmp_path / ".partial-step-00000003.npz-x1y2").mkdir()
    (tmp_path / ".partial-step-00000003.npz-x1y2" / "step-00000003.npz").touch()
    train(make_model("ar"), [igpt.ExactResume(tmp_path, every=100)])
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000015.npz"]


class StopEarly(keras.callbacks.Callback):
    """Ends the training in the middle of an epoch, as a limit on time does."""

    def on_train_batch_begin(self, batch, logs=None):
        if batch == 1:
            self.model.stop_training = True


def test_a_run_stopped_in_the_middle_of_an_epoch_goes_on_there(alone, tmp_path):
    stopped, resumed = make_model("ar"), make_model("ar")
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


class BestFirst(keras.callbacks.EarlyStopping):
    """Takes the first epoch for the best and puts its weights back at the end."""

    def __init__(self):
        super().__init__("loss", mode="max", patience=99, restore_best_weights=True)

    def get_monitor_value(self, logs):
        return 0.0


@pytest.mark.parametrize("options", [{}, {"ema_momentum": 0.9}])
def test_best_weights_of_a_run_through_all_epochs_are_those_of_the_finished_run(options, tmp_path):
    first, again, alone = (make_model("bert", **options) for _ in range(3))
    train(first, [BestFirst(), igpt.ExactResume(tmp_path, every=100)])
    last = make_model("bert", **options)
    train(last)
    assert not all(map(np.array_equal, first.get_weights(), last.get_weights()))
    for _ in range(2):
        assert train(again, [BestFirst(), igpt.ExactResume(tmp_path, every=100)]) == {}
        for weight, expected in zip(again.get_weights(), first.get_weights(), strict=True):
            np.testing.assert_array_equal(weight, expected)
    # More epochs go on from the last weights, as they would have.
    train(again, [igpt.ExactResume(tmp_path, every=100)], epochs=4)
    train(alone, epochs=4)
    assert_same_weights(again, alone)
    assert not list(tmp_path.glob("end-*"))


def test_an_end_that_early_stopping_came_to_is_kept_with_averaged_weights(tmp_path):
    def patience():
        return keras.callbacks.EarlyStopping("loss", mode="max", patience=0, baseline=99, restore_best_weights=True)

    first, again = (make_model("bert", ema_momentum=0.9) for _ in range(2))
    for model in (first, again):
        train(model, [patience(), igpt.ExactResume(tmp_path, every=100)])
    for weight, expected in zip(again.get_weights(), first.get_weights(), strict=True):
        np.testing.assert_array_equal(weight, expected)


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


def test_training_goes_on_where_nothing_can_be_written_any_more(alone, tmp_path):
    class Lose(keras.callbacks.Callback):
        def on_train_begin(self, logs=None):
            (tmp_path / "folder").rmdir()
            (tmp_path / "folder").touch()

    resumed = make_model("ar")
    with pytest.warns(UserWarning, match="Training goes on, but its checkpoint was not written: .*exists"):
        train(resumed, [Lose(), igpt.ExactResume(tmp_path / "folder", every=4)])
    assert_same_weights(resumed, alone)


def test_a_folder_that_cannot_be_written_to_is_said_before_the_first_step(tmp_path):
    (tmp_path / "file").touch()
    model = make_model("ar")
    before = model.get_weights()
    for folder in (tmp_path / "file", tmp_path / "file" / "folder"):
        with pytest.raises(OSError, match=r"`folder` must be one that checkpoints can be written to.*file"):
            train(model, [igpt.ExactResume(folder, every=4)])
    assert all(map(np.array_equal, before, model.get_weights()))


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


def test_a_signal_saves_the_state_and_goes_where_it_went_before(alone, tmp_path):
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
    resumed = make_model("ar")
    train(resumed, [igpt.ExactResume(tmp_path, every=100)])
    assert_same_weights(resumed, alone)


@pytest.mark.parametrize("options", [{}, {"ema_momentum": 0.9}])
def test_a_signal_in_a_validation_does_not_wait_for_its_end(options, tmp_path):
    """The first time before it begins; and averages that it is made with are not what is saved."""

    class Terminate(keras.callbacks.Callback):
        begun = 0

        def on_train_batch_end(self, batch, logs=None):
            if not list(tmp_path.iterdir()) and batch == STEPS - 1:
                signal.raise_signal(signal.SIGTERM)

        def on_test_batch_begin(self, batch, logs=None):
            self.begun += 1
            if batch == 2:
                signal.raise_signal(signal.SIGTERM)

    def handler(number, frame):
        raise CrashError

    def make_callbacks():
        return [keras.callbacks.SwapEMAWeights()] if options else []

    tokens = LabeledTokens(random_tokens(40, seed=1), np.zeros(40, "int64"), 16)
    held_out = igpt.EvaluationBatches(tokens, None, batch_size=4)
    alone, resumed = make_model("bert", **options), make_model("bert", **options)
    expected = train(alone, make_callbacks(), validation_data=held_out)
    before = signal.signal(signal.SIGTERM, handler)
    try:
        for begun in (1, 3):
            stopped, terminate = make_model("bert", **options), Terminate()
            callbacks = [*make_callbacks(), terminate, igpt.ExactResume(tmp_path, every=100)]
            with pytest.raises(CrashError):
                train(stopped, callbacks, validation_data=held_out)
            assert terminate.begun == begun
            assert [path.name for path in tmp_path.iterdir()] == ["step-00000004.npz"]
    finally:
        signal.signal(signal.SIGTERM, before)
    history = train(resumed, [*make_callbacks(), igpt.ExactResume(tmp_path, every=100)], validation_data=held_out)
    assert_same_weights(resumed, alone)
    assert history == expected


def test_what_does_not_belong_together_is_refused(tmp_path):
    train(make_model("ar"), [igpt.ExactResume(tmp_path, every=100)])
    with pytest.raises(ValueError, match=r"`folder` must hold checkpoints of these batches: seed is 1 here.*seed=0"):
        train(make_model("ar"), [igpt.ExactResume(tmp_path, every=100)], make_batches(seed=1))
    with pytest.raises(ValueError, match=r"model.class_name is 'ImageGPTMaskedLM' here and was 'ImageGPTCausalLM'"):
        train(make_model("bert"), [igpt.ExactResume(tmp_path, every=100)])
    without(tmp_path / "step-00000015.npz", "settings", "settings_reached")
    with pytest.raises(ValueError, match=r"`folder` must hold checkpoints of this model and optimizer: "):
        train(make_model("bert"), [igpt.ExactResume(tmp_path, every=100)])
    with pytest.raises(ValueError, match=r"`x` must be TrainingBatches, MixedBatches or.*Received: ndarray"):
        make_model("ar").fit(random_tokens(4), callbacks=[igpt.ExactResume(tmp_path, every=100)])
    with pytest.raises(ValueError, match=r"`callbacks` must be a list with one ExactResume"):
        train(make_model("ar"), [igpt.ExactResume(tmp_path, every=1), igpt.ExactResume(tmp_path, every=2)])
    with pytest.raises(ValueError, match=r"`every` must be an integer of at least 1\. Received: every=0"):
        igpt.ExactResume(tmp_path, every=0)


def test_other_pictures_are_refused(tmp_path):
    visit(make_model("ar"), tmp_path)
    with pytest.raises(ValueError, match=r"`folder` must hold checkpoints of this data: .*step-00000003.npz"):
        visit(make_model("ar"), tmp_path, make_batches(pictures=1))


def test_other_pictures_in_files_are_refused(tmp_path, palette):
    """Not those that were copied elsewhere; without compression others may be of the same size."""
    image = pytest.importorskip("PIL.Image")

    def pictures(folder, seed=0, labels=range(4)):
        random = np.random.default_rng(seed)
        (tmp_path / folder).mkdir(exist_ok=True)
        files = [tmp_path / folder / f"{index}.bmp" for index in range(4)]
        for file in files:
            image.fromarray(random.integers(0, 256, (5, 5, 3)).astype("uint8")).save(file)
        return ImageFiles(FolderReader(files, list(labels)), 4)

    def batches(files, colors=palette):
        return igpt.TrainingBatches(files, colors, batch_size=2).fingerprint

    first = batches(pictures("first"))
    assert batches(pictures("copied")) == first
    others = igpt.ColorPalette.from_colors(palette.colors[::-1])
    changed = [
        batches(pictures("other", seed=1)),
        batches(pictures("first", labels=(0, 0, 0, 0))),
        batches(pictures("first").take([1, 0, 2, 3])),
        batches(pictures("first"), others),
    ]
    assert len({first, *changed}) == 5


def test_another_first_step_is_refused(tmp_path):
    """Who counts the steps before a checkpoint himself would skip them twice."""
    visit(make_model("ar"), tmp_path)
    with pytest.raises(ValueError, match=r"first_step is 5 here. Received: first_step=0"):
        visit(make_model("ar"), tmp_path, make_batches(first_step=5))
    resumed, alone = make_model("ar"), make_model("ar")
    callbacks = [igpt.ExactResume(tmp_path / "new", every=1), Crash(1, 2)]
    with pytest.raises(CrashError):
        train(make_model("ar"), callbacks, make_batches(first_step=7))
    train(resumed, [igpt.ExactResume(tmp_path / "new", every=1)], make_batches(first_step=7))
    train(alone, (), make_batches(first_step=7))
    assert_same_weights(resumed, alone)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("learning_rate", r"optimizer.learning_rate is 0.25 here and was 0.5\. Received: .*step-0+6.npz"),
        ("schedule", r"optimizer.learning_rate is None here and was 0.5; optimizer.learning_rate.class_name is 'Exp"),
        ("mask_rate", r"model.language_model.mask_rate is 0.5 here and was 0.15\. Received"),
        ("mask_seed", r"model.language_model.mask_seed is 7 here and was 0\. Received"),
        ("generative_weight", r"model.generative_weight is 0.5 here and was 1.0\. Received"),
        ("loss", r"loss.from_logits is False here and was True\. Received"),
    ],
)
def test_other_settings_are_refused(change, message, tmp_path):
    def make(mask_rate=0.15, mask_seed=0, generative_weight=1.0, learning_rate=0.5, from_logits=True):
        keras.utils.set_random_seed(0)
        lm = make_masked_lm(num_layers=1, hidden_dim=8, mask_rate=mask_rate, mask_seed=mask_seed)
        model = igpt.ImageGPTImageClassifier(lm, num_classes=3, generative_weight=generative_weight)
        model.compile(keras.optimizers.SGD(learning_rate), keras.losses.SparseCategoricalCrossentropy(from_logits))
        return model

    changes = {
        "learning_rate": {"learning_rate": 0.25},
        "schedule": {"learning_rate": keras.optimizers.schedules.ExponentialDecay(0.5, 10, 0.9)},
        "mask_rate": {"mask_rate": 0.5},
        "mask_seed": {"mask_seed": 7},
        "generative_weight": {"generative_weight": 0.5},
        "loss": {"from_logits": False},
    }
    visit(make(), tmp_path)
    visit(make(), tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(ValueError, match=message):
        visit(make(**changes[change]), tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_other_weights_of_classes_are_refused(tmp_path):
    visit(make_model("ar"), tmp_path, class_weight={0: 1.0, 1: 2.0})
    visit(make_model("ar"), tmp_path, class_weight={np.int64(0): np.float32(1), np.int64(1): 2})
    for other in (None, {0: 1.0, 1: 3.0}):
        with pytest.raises(ValueError, match=r"class_weight\.1 is (None|3\.0) here and was 2\.0"):
            visit(make_model("ar"), tmp_path, class_weight=other)
    visit(make_model("ar"), tmp_path / "without")
    with pytest.raises(ValueError, match=r"class_weight\.0 is 1\.0 here and was None"):
        visit(make_model("ar"), tmp_path / "without", class_weight={0: 1.0})
    # An earlier version kept none.
    now, earlier = ({**training_settings(make_model("ar"), weights)} for weights in ({0: 1.0}, None))
    del earlier["class_weight"]
    assert differences(earlier, now) == []


def test_a_rate_that_a_callback_has_changed_goes_on(tmp_path):
    """In a model compiled as the run was, and in the same model again."""

    def make(learning_rate=0.5):
        model = make_model("ar")
        model.compile(keras.optimizers.SGD(learning_rate))
        return model

    def rate(model):
        return float(keras.ops.convert_to_numpy(model.optimizer.learning_rate))

    model, again = make(), make()
    visit(model, tmp_path, meanwhile=lambda: model.optimizer.learning_rate.assign(0.25))
    for resumed in (model, again):
        visit(resumed, tmp_path)
        assert rate(resumed) == 0.25
    with pytest.raises(ValueError, match=r"learning_rate is 0.125 here and was 0.5"):
        visit(make(0.125), tmp_path)


def without(path, *keys):
    """Makes a checkpoint one of an earlier version, which did not write these."""
    header, arrays = read_checkpoint(path)
    header.pop("dtypes")
    write_checkpoint(path, {key: value for key, value in header.items() if key not in keys}, arrays)


def test_checkpoints_of_an_earlier_version_go_on(alone, tmp_path):
    model = make_model("ar")
    with pytest.raises(CrashError):
        train(model, [igpt.ExactResume(tmp_path, every=1, keep=1), Crash(1, 3)])
    without(max(tmp_path.glob("step-*")), "first_step", "data", "settings", "settings_reached", "metrics")
    resumed = make_model("ar")
    history = train(resumed, [igpt.ExactResume(tmp_path, every=100)])
    assert_same_weights(resumed, alone)
    assert history == {name: values[1:] for name, values in alone.history.history.items()}
    visit(make_model("ar"), tmp_path / "new")
    without(tmp_path / "new" / "step-00000003.npz", "first_step", "data", "settings", "settings_reached")
    with pytest.warns(UserWarning, match="does not say where its batches began: .*first_step=5 too"):
        visit(make_model("ar"), tmp_path / "new", make_batches(first_step=5))


def test_an_infinite_metric_is_no_reason_not_to_save(tmp_path):
    def infinite(labels, outputs):
        return keras.ops.sum(keras.ops.cast(labels, "float32")) + float("inf")

    def make():
        model = make_model("classifier")
        model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=[infinite])
        return model

    alone, resumed = make(), make()
    train(alone)
    with pytest.raises(CrashError):
        train(make(), [igpt.ExactResume(tmp_path, every=1), Crash(1, 3)])
    with warnings.catch_warnings():
        # A function has another name in Keras for each model; its metric is the same.
        warnings.filterwarnings("error", message=".*metrics are not in its checkpoint")
        history = train(resumed, [igpt.ExactResume(tmp_path, every=1)])
    assert history["infinite"] == [np.inf, np.inf]
    assert_same_weights(resumed, alone)


def test_weights_that_are_not_finite_are_said_once(tmp_path):
    model = make_model("ar")
    with pytest.warns(UserWarning, match="at step 2 there are numbers that are not finite") as warned:
        visit(model, tmp_path, meanwhile=lambda: model.set_weights([weight + np.inf for weight in model.get_weights()]))
    assert sum("not finite" in str(warning.message) for warning in warned) == 1
    assert not list(tmp_path.iterdir())


def test_a_run_killed_at_random_moments_ends_as_one_left_alone(tmp_path):
    """By SIGKILL, bit for bit. `python tests/resume_process.py FOLDER 20 0` does it twenty times, and in saves too."""
    if not hasattr(os, "fork"):
        pytest.skip("the lives of this test are forks")
    script = Path(__file__).parents[1] / "resume_process.py"
    environment = {**os.environ, "PYTHONPATH": str(script.parent.parent), "TF_CPP_MIN_LOG_LEVEL": "3"}
    result = subprocess.run(
        [sys.executable, str(script), str(tmp_path), "3", "0"], capture_output=True, text=True, env=environment
    )
    assert result.returncode == 0, result.stderr[-3000:]
    report = json.loads(result.stdout.splitlines()[-1])
    assert report["equal"]
    assert report["killed"] == 3
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
    keras.config.set_dtype_policy("float16")
    try:
        with pytest.raises(FloatingPointError, match=r"may help\. So may the policy mixed_float16"):
            make_model("ar").fit(random_tokens(4 * STEPS), batch_size=4, callbacks=[Spoil()], verbose=0)
    finally:
        keras.config.set_dtype_policy("float32")
