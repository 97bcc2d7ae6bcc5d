"""Search, fold-back, refit and the one test: nothing leaks, and a killed search ends as if it had not been killed."""

import gc
import json
import os
import shutil
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import keras
import numpy as np
import pytest
import tuning_process
from conftest import make_causal_lm
from PIL import Image
from tuning_process import RATES, evaluation_batches, make_data, make_model, run, training_batches

import keras_igpt as igpt
from keras_igpt.backend.traced_gradients import traced_gradients_dropped
from keras_igpt.evaluation.search_records import Trial, read_report, why_without_score

keras_tuner = pytest.importorskip("keras_tuner")


def drive(oracle, score, folder):
    """Runs an oracle over a function of the values; None is a failed trial. Returns what it tried."""
    oracle._set_project_dir(str(folder), "oracle")
    oracle.verbose = 0
    tried = []
    while (trial := oracle.create_trial("tuner")).status == "RUNNING":
        values = trial.hyperparameters.values
        tried.append(dict(values))
        result = score(values)
        if result is not None:
            oracle.update_trial(trial.trial_id, {oracle.objective.name: result})
        trial.status = "FAILED" if result is None else "COMPLETED"
        oracle.end_trial(trial)
    assert trial.status == "STOPPED"
    return tried


@pytest.mark.parametrize(
    ("objective", "scores", "tried"),
    [
        ("val_loss", [3.0, 2.0, 2.5, 1.0], 3),  # the fall after the first rise is not seen
        ("val_loss", [3.0, 2.0, 1.0, 0.5], 4),
        ("val_loss", [2.0, 2.0, 2.0, 2.0], 4),  # equal is not worse
        ("val_loss", [None, None, 2.0, 2.5], 4),
        ("val_loss", [None, 2.0, 2.5, 1.0], 3),
        ("val_loss", [2.0, None, 1.0, 1.5], 4),
        ("val_loss", [None, None, None, None], 4),
        ("val_accuracy", [0.3, 0.4, 0.35, 0.9], 3),
    ],
)
def test_rates_descend_until_the_objective_worsens(objective, scores, tried, tmp_path):
    rates = [0.1, 0.03, 0.01, 0.003]
    oracle = igpt.DescendingLearningRateOracle(objective, rates)
    result = drive(oracle, lambda values: scores[rates.index(values["learning_rate"])], tmp_path)
    assert [values["learning_rate"] for values in result] == rates[:tried]


def test_rates_descend_beside_another_oracle(tmp_path):
    space = keras_tuner.HyperParameters()
    space.Choice("weight", [0.5, 1.0, 2.0])
    random = keras_tuner.oracles.RandomSearchOracle("val_loss", max_trials=3, hyperparameters=space, seed=3)
    oracle = igpt.DescendingLearningRateOracle("val_loss", [0.1, 0.03, 0.01], beside=random)

    def score(values):
        if values["weight"] == 2.0:
            return None
        return values["weight"] + abs(values["learning_rate"] - 0.03)

    tried = drive(oracle, score, tmp_path)
    assert {values["weight"] for values in tried} == {0.5, 1.0, 2.0}
    for start in (0, 3, 6):
        assert [values["learning_rate"] for values in tried[start : start + 3]] == [0.1, 0.03, 0.01]
        assert len({values["weight"] for values in tried[start : start + 3]}) == 1
    told = {trial.hyperparameters.get("weight"): trial.score for trial in random.trials.values()}
    assert told == {0.5: 0.5, 1.0: 1.0, 2.0: None}
    assert oracle.get_best_trials(1)[0].hyperparameters.values == {"learning_rate": 0.03, "weight": 0.5}


@pytest.mark.parametrize("rates", [(), (0.1, 0.1), (0.1, 0.3), (0.1, 0.0)])
def test_rates_must_fall(rates):
    with pytest.raises(ValueError, match=r"`learning_rates` must (fall|be one or more finite numbers above 0)"):
        igpt.DescendingLearningRateOracle("val_loss", rates)


def test_an_oracle_beside_must_fit():
    space = keras_tuner.HyperParameters()
    space.Float("weight", 0.0, 1.0)
    for beside, message in [
        ("random", "must be a keras_tuner.Oracle"),
        (keras_tuner.oracles.RandomSearchOracle("val_loss"), "must have hyperparameters"),
        (keras_tuner.oracles.RandomSearchOracle("val_accuracy", hyperparameters=space), "val_loss"),
    ]:
        with pytest.raises(ValueError, match=message):
            igpt.DescendingLearningRateOracle("val_loss", beside=beside)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A search that was not stopped: its folder, result, and what was asked of which examples."""
    folder = tmp_path_factory.mktemp("search")
    data = make_data()
    asked = {"trained": [], "evaluated": [], "test batches": []}

    class Counted(igpt.EvaluationBatches):
        def __getitem__(self, index):
            if self.examples is data.test:
                asked["test batches"].append(index)
            return super().__getitem__(index)

    def train_on(examples):
        asked["trained"].append(examples)
        return training_batches(examples)

    def evaluate_on(examples):
        asked["evaluated"].append(examples)
        return Counted(examples, None, 4)  # as tuning_process.evaluation_batches

    evaluations = []

    def evaluate(model, test):
        # All that came before has seen train and validation alone.
        assert not any(examples is data.test for examples in asked["evaluated"])
        evaluations.append(test)
        return model.evaluate(evaluate_on(test), return_dict=True, verbose=0)

    result = run(folder, data=data, training_batches=train_on, evaluation_batches=evaluate_on, evaluate=evaluate)
    return folder, result, data, asked, evaluations


def test_the_best_rate_is_chosen_on_validation(finished):
    _, result, _, _, _ = finished
    search = result.chosen_on_validation
    assert [trial.values["learning_rate"] for trial in search.trials] == list(RATES[:5])
    objectives = [trial.objective for trial in search.trials]
    assert objectives[:2] == [None, None]
    # Whether the third ends fair or diverges depends on the weights drawn, which are others on each backend.
    assert objectives[2] is None or objectives[2] > objectives[3]
    assert objectives[3] < objectives[4] < search.to_beat
    # With the zero head all 16 colours are equally likely.
    assert search.to_beat == pytest.approx(np.log(16), rel=1e-5)
    assert result.values == {"learning_rate": 0.03}
    assert result.steps == 8


@pytest.mark.parametrize(
    ("history", "said"),
    [
        ({}, "diverged"),
        ({"val_loss": [2.1, None]}, "diverged"),
        ({"val_loss": [2.1, 3.0]}, "3.0000, no better than 2.8000"),
    ],
)
def test_a_trial_without_a_score_says_why(history, said):
    assert why_without_score(Trial({}, None, 0, history), "val_loss", 2.8) == said


def test_the_refit_sees_train_and_validation_and_the_test_set_is_read_once(finished):
    _, result, data, asked, evaluations = finished
    trained = asked["trained"]
    assert len(trained) == 2
    assert trained[0] is data.train
    rows = np.concatenate([data.train.token_ids, data.validation.token_ids])
    assert sorted(map(tuple, trained[1].token_ids)) == sorted(map(tuple, rows))
    assert len(trained[1]) == result.num_refit == 64
    assert len(evaluations) == 1
    assert evaluations[0] is data.test
    # To the end once; the first ones also by the check of what comes in and by TensorFlow, which looks at their shapes.
    assert set(asked["test batches"]) == {0, 1, 2, 3}
    assert asked["test batches"].count(3) == 1
    assert result.num_test == 16


def test_the_refit_is_a_plain_training_on_both_parts(finished):
    folder, result, data, _, _ = finished
    keras.utils.set_random_seed(0)
    space = keras_tuner.HyperParameters()
    space.Fixed("learning_rate", 0.03)
    model = make_model(space)
    model.fit(training_batches(data["train+validation"]), epochs=2, steps_per_epoch=4, verbose=0)
    refitted = keras.saving.load_model(folder / "model.keras")
    for weight, expected in zip(refitted.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(weight, expected)
    metrics = model.evaluate(evaluation_batches(data.test), return_dict=True, verbose=0)
    assert result.final_on_test == pytest.approx(metrics, rel=1e-5)


@pytest.mark.parametrize("seed", [0, 5])
def test_models_start_with_weights_of_the_seed(seed, tmp_path):
    made = []

    def make_and_stop(hyperparameters):
        made.append(make_model(hyperparameters).get_weights())
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, make_model=make_and_stop, seed=seed)
    keras.utils.set_random_seed(seed)
    space = keras_tuner.HyperParameters()
    space.Fixed("learning_rate", 0.1)
    for weight, expected in zip(made[0], make_model(space).get_weights(), strict=True):
        np.testing.assert_array_equal(weight, expected)


def test_the_report_keeps_choice_and_test_apart(finished):
    folder, result, _, _, _ = finished
    report = json.loads((folder / "report.json").read_text())
    assert report == json.loads(json.dumps(asdict(result)))
    assert set(report["final_on_test"]) == {"loss", "bits_per_pixel"}
    assert "test" not in json.dumps(report["chosen_on_validation"])
    assert "Chosen on validation (16 pictures): learning_rate=0.03" in str(result)
    assert "Final on test (16 pictures)" in str(result)


def test_disk_holds_the_weights_of_the_refit_alone(finished):
    folder = finished[0]
    files = {
        str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file() and "oracle" not in str(path)
    }
    assert files == {"trials.json", "report.json", "model.keras"}


def test_a_finished_search_is_not_run_again(finished):
    folder, result = finished[:2]

    def refuse(*arguments):
        raise AssertionError("trained or tested again")

    class NotTrained(igpt.TrainingBatches):
        def __getitem__(self, index):
            raise AssertionError("trained again")

    again = run(folder, training_batches=lambda examples: NotTrained(examples, None, 12), evaluate=refuse)
    assert again == result


def test_killed_in_trials_and_resumed_it_reports_the_same(finished, tmp_path):
    environment = {**os.environ, "KERAS_BACKEND": keras.backend.backend()}
    script = Path(tuning_process.__file__)
    for way, trial in [("exit", 0), ("kill", 2)]:
        process = subprocess.run(
            [sys.executable, script, tmp_path, way, str(trial)], env=environment, capture_output=True, text=True
        )
        assert process.returncode == (7 if way == "exit" else -9), process.stderr
    trials = json.loads((tmp_path / "trials.json").read_text())["trials"]
    assert [trial["values"]["learning_rate"] for trial in trials] == [100.0, 30.0]
    result = run(tmp_path)
    assert json.loads((tmp_path / "report.json").read_text()) == json.loads((finished[0] / "report.json").read_text())
    assert result == finished[1]


def test_a_kill_in_the_refit_is_resumed(finished, tmp_path):
    class Stopping(igpt.TrainingBatches):
        def __getitem__(self, index):
            if len(self._source) == 64 and index == 6:
                raise RuntimeError("stopped here")
            return super().__getitem__(index)

    shutil.copy(finished[0] / "trials.json", tmp_path)
    # TensorFlow wraps what its input raises.
    with pytest.raises(Exception, match="stopped here"):
        run(tmp_path, training_batches=lambda examples: Stopping(examples, None, 12), checkpoint_every=2)
    # By this name a refit finds its checkpoint again.
    assert [path.name for path in tmp_path.glob("refit-*")] == ["refit-32b23f699654"]
    assert not (tmp_path / "report.json").exists()
    start = tmp_path / "refit-32b23f699654" / "start.json"
    written = start.read_text()
    start.write_text(written.replace(': "', ': "0'))
    with pytest.raises(ValueError, match="the refit there began with other weights"):
        run(tmp_path, checkpoint_every=2)
    start.write_text(written)
    assert run(tmp_path, checkpoint_every=2) == finished[1]


def test_a_model_that_has_diverged_before_it_is_trained_is_refused(tmp_path):
    def spoiled(hyperparameters):
        model = make_model(hyperparameters)
        model.pixel_head.kernel.assign(np.full(model.pixel_head.kernel.shape, np.nan))
        return model

    with pytest.raises(ValueError, match=r"with a finite val_loss before it is trained; its weights have diverged"):
        run(tmp_path, make_model=spoiled)


def test_every_trial_must_begin_with_the_same_weights(tmp_path):
    models = []

    def same_model(hyperparameters):
        if not models:
            models.append(make_model(hyperparameters))
        return models[0]

    with pytest.raises(ValueError, match="`make_model` must return a model that begins with the same weights"):
        run(tmp_path, make_model=same_model, oracle=igpt.DescendingLearningRateOracle("val_loss", (0.3, 0.03)))


def test_what_cannot_be_searched_is_said_before_training(tmp_path):
    class NotRead(igpt.TrainingBatches):
        def __getitem__(self, index):
            raise AssertionError("training had begun")

    def with_batches(**options):
        run(tmp_path, training_batches=lambda examples: NotRead(examples, None, 12), **options)

    with pytest.raises(
        ValueError, match=r"`objective` must be one of val_bits_per_pixel, val_loss\. Received: 'val_acc"
    ):
        with_batches(objective="val_accuracy", oracle=None)
    with pytest.raises(ValueError, match="`oracle` must have the objective val_loss"):
        with_batches(oracle=igpt.DescendingLearningRateOracle("val_accuracy"))
    with pytest.raises(ValueError, match="`epochs` must be an integer of at least 1"):
        with_batches(epochs=0)
    with pytest.raises(ValueError, match=r"`make_model` must return a compiled model.*that is not compiled"):
        with_batches(make_model=lambda hyperparameters: make_causal_lm(num_layers=1))
    for name in ("patience", "steps_per_epoch"):
        for value in (0, "x", 1.5, True):
            with pytest.raises(ValueError, match=f"`{name}` must be an integer of at least 1. Received: {name}="):
                with_batches(**{name: value})
    for value in (np.nan, np.inf, "2.5", True):
        with pytest.raises(ValueError, match=r"`to_beat` must be a finite number\. Received: to_beat="):
            with_batches(to_beat=value)
    with pytest.raises(ValueError, match=r"`seed` must be an integer in 0…4294967295\. Received: seed=-1"):
        with_batches(seed=-1)
    with pytest.raises(ValueError, match=r"`oracle` must be a keras_tuner\.Oracle\. Received: str"):
        with_batches(oracle="random")
    with pytest.raises(ValueError, match=r"`evaluation_batches` must return EvaluationBatches\. Received: LabeledTo"):
        with_batches(evaluation_batches=lambda examples: examples)


def test_sets_that_do_not_fit_each_other_are_refused_before_any_trial(tmp_path, palette):
    class NotRead(igpt.EvaluationBatches):
        def __getitem__(self, index):
            raise AssertionError("the search had begun")

    def refused(message, **parts):
        with pytest.raises(ValueError, match=message) as raised:
            run(
                tmp_path,
                data=replace(make_data(), **parts),
                training_batches=lambda examples: igpt.TrainingBatches(examples, palette, 4),
                evaluation_batches=lambda examples: NotRead(examples, palette, 4),
            )
        assert "\n" not in str(raised.value)

    part = make_data().test
    small, other_colors = (
        igpt.LabeledTokens(part.token_ids[:, :9], part.labels, 16),
        igpt.LabeledTokens(part.token_ids, part.labels, 17),
    )
    for name in ("validation", "test"):
        refused(rf"`data\.{name}` must have the image size .*image_size=4, .*Received: .*image_size=3", **{name: small})
    refused(r"`data\.test` must have .* number of colours .*Received: .*num_colors=17", test=other_colors)
    unlabeled = igpt.UnlabeledTokens(part.token_ids, 16)
    refused(r"`data\.validation` must be one that can be joined .*Received: UnlabeledTokens", validation=unlabeled)
    images = igpt.LabeledImages(palette.decode(part.token_ids), part.labels)
    refused(r"`data\.validation` must be one that can be joined .*Received: LabeledImages", validation=images)
    refused(r"`data\.test` must have the image size", test=igpt.LabeledImages(images.images[:, :2, :2], part.labels))
    pictures, grey = igpt.UnlabeledImages(images.images), igpt.UnlabeledImages(images.images[..., :1])
    refused(r"`data\.test` must have the image size", train=pictures, validation=pictures, test=grey)
    in_file = tmp_path / "pictures" / "a" / "0.png"
    in_file.parent.mkdir(parents=True)
    Image.fromarray(images.images[0]).save(in_file)
    files = igpt.load_unlabeled_folder(tmp_path / "pictures", image_size=4)
    refused(r"`data\.validation` must be one .*`other` must be an array", train=pictures, validation=files, test=files)
    assert not list(tmp_path.glob("*.json"))


def test_what_cannot_be_refitted_is_said_first(tmp_path):
    study = igpt.Study(make_model, make_data(), training_batches, evaluation_batches, "val_loss", tmp_path)
    for value in (0, "x", 1.5, True):
        with pytest.raises(ValueError, match=r"`checkpoint_every` must be an integer of at least 1\. Received: check"):
            study.refit(checkpoint_every=value)
    with pytest.raises(ValueError, match="`evaluate` must be a function of the model and the test examples"):
        study.refit(evaluate="accuracy")
    with pytest.raises(ValueError, match="must be searched before it is refitted: call `search`") as raised:
        study.refit()
    assert "\n" not in str(raised.value)
    assert not list(tmp_path.iterdir())


def test_an_oracle_serves_one_search(tmp_path):
    """Given again it would be at its end at once, and a search without trials come of it."""
    oracle = igpt.DescendingLearningRateOracle("val_loss", (0.03,))
    run(tmp_path / "first", oracle=oracle, epochs=1)
    with pytest.raises(ValueError, match=r"`oracle` must be new.* Received: one that has proposed 1 trial\(s\)"):
        run(tmp_path / "second", oracle=oracle, epochs=1)
    assert not (tmp_path / "second").exists()
    space = keras_tuner.HyperParameters()
    space.Choice("weight", [0.5])
    beside = keras_tuner.oracles.GridSearchOracle("val_loss", hyperparameters=space)
    drive(igpt.DescendingLearningRateOracle("val_loss", (0.03,), beside), lambda values: 1.0, tmp_path / "driven")
    with pytest.raises(ValueError, match=r"`oracle` must be new"):
        run(tmp_path / "second", oracle=igpt.DescendingLearningRateOracle("val_loss", (0.03,), beside))


def test_a_wrong_evaluation_loses_nothing(finished, tmp_path):
    shutil.copy(finished[0] / "trials.json", tmp_path)
    batches = []

    class Counted(igpt.TrainingBatches):
        def __getitem__(self, index):
            batches.append(index)
            return super().__getitem__(index)

    def once_more(**options):
        return run(tmp_path, training_batches=lambda examples: Counted(examples, None, 12), **options)

    for metrics, message in (
        (0.5, "`evaluate` must return metrics by name"),
        ({"accuracy": [0.5]}, "`evaluate` must return a number for 'accuracy'"),
        ({"accuracy": np.nan}, "`evaluate` must return a finite number for 'accuracy'"),
    ):
        with pytest.raises(ValueError, match=f"{message}.* kept in .*model.keras.* Received: ") as raised:
            once_more(evaluate=lambda model, test, metrics=metrics: metrics)
        assert "\n" not in str(raised.value)
        assert (tmp_path / "model.keras").is_file()
    batches.clear()
    votes = igpt.measure_accuracy(np.arange(16) % 2, np.arange(16) // 8)
    final = once_more(evaluate=lambda model, test: {"accuracy": np.float32(0.5), "accuracy of votes": votes})
    # The first ones, of eight, are looked at for their shapes; none is trained on.
    assert set(batches) <= {0, 1}
    assert final.chosen_on_validation == finished[1].chosen_on_validation
    assert final.final_on_test == {"accuracy": 0.5, "accuracy of votes": 0.5}
    assert final.measured == {"accuracy of votes": votes}


def test_what_differs_from_the_search_in_the_folder_is_said(finished, tmp_path):
    folder = finished[0]

    def message(folder=folder, **options):
        with pytest.raises(ValueError, match="`folder` must hold this search: ") as raised:
            run(folder, **options)
        assert "\n" not in str(raised.value)
        return str(raised.value)

    def other_model(hyperparameters):
        model = make_model(hyperparameters)
        recipe = igpt.pretraining_recipe("igpt_nano", "ar", steps=9, learning_rate=hyperparameters.get("learning_rate"))
        model.compile(**recipe)
        return model

    said = message(make_model=other_model)
    assert "compile.optimizer.config.learning_rate.config.decay_steps is 8 here" in said
    assert "decay_steps=7 in " in said
    assert "Use another folder for other settings" in said
    said = message(training_batches=lambda examples: igpt.TrainingBatches(examples, None, 12, seed=3))
    assert "batches.seed is 3 here" in said
    assert "batches.seed=0 in " in said
    other = make_data()
    other.validation.labels[0] += 1
    said = message(data=other)
    assert "data.validation has other pictures or labels here" in said
    fewer = replace(make_data(), validation=make_data().validation.take(range(8)))
    assert "the number of pictures of data.validation is 8 here" in message(data=fewer)

    def model_of_values(hyperparameters):
        """Another one of some values alone: not of those with which the search begins."""
        model = make_model(hyperparameters)
        if hyperparameters.get("learning_rate") == RATES[1]:
            model.compile(keras.optimizers.SGD(0.5))
        return model

    said = message(make_model=model_of_values)
    assert "the model of learning_rate=30 has other settings here" in said
    assert "those of trial 1 in " in said

    # A ledger of an earlier version: the hash alone, and nothing of what is described since.
    ledger = json.loads((folder / "trials.json").read_text())
    del ledger["settings"], ledger["made"], ledger["search"]["batches"]["seed"], ledger["search"]["test"]
    (tmp_path / "trials.json").write_text(json.dumps(ledger))
    assert "model has other settings here" in message(tmp_path, make_model=other_model)

    class NotTrained(igpt.TrainingBatches):
        def __getitem__(self, index):
            raise RuntimeError("not trained on before the refit")

    with pytest.raises(Exception, match="not trained on before the refit"):
        run(tmp_path, training_batches=lambda examples: NotTrained(examples, None, 12))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("trials.json", "[]"),
        ("trials.json", "{}"),
        ("trials.json", '{"search": '),
        ("trials.json", b"\xff\xfe\x00"),
        ("trials.json", {"trials": [{"values": {}}]}),
        ("trials.json", {"trials": [{"values": [], "objective": None, "epochs": 0, "history": {}}]}),
        ("trials.json", {"trials": [{"values": {}, "objective": "low", "epochs": 0, "history": {}}]}),
        ("trials.json", {"trials": None}),
        ("trials.json", {"search": []}),
        ("trials.json", {"search": {}}),
        ("trials.json", {"bound": None}),
        ("trials.json", {"made": None}),
        ("report.json", "[]"),
        ("report.json", "{}"),
        ("report.json", "{"),
        ("report.json", {"steps": ...}),
        ("report.json", {"more": 1}),
        ("report.json", {"final_on_test": None}),
        ("report.json", {"measured": {"accuracy": {"low": 0.1}}}),
    ],
)
def test_a_damaged_file_of_a_search_is_named(finished, tmp_path, name, content):
    """Written over a good one: text as it is, or keys changed or left out."""
    for path in ("trials.json", "report.json"):
        (tmp_path / path).write_bytes((finished[0] / path).read_bytes())
    if isinstance(content, dict):
        whole = json.loads((tmp_path / name).read_text()) | content
        content = json.dumps({key: value for key, value in whole.items() if value is not ...})
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(
        ValueError, match=rf"`folder` must hold .*(Move it away|Delete it).* Received: .*{name}"
    ) as raised:
        run(tmp_path)
    assert "\n" not in str(raised.value)


def test_a_folder_of_another_search_is_refused(finished, tmp_path):
    folder = finished[0]
    with pytest.raises(ValueError, match=r"`folder` must hold this search: epochs is 3 here\. .* Received: epochs=2"):
        run(folder, epochs=3)
    with pytest.raises(ValueError, match=r"it needs a seed, .* none: trial 1 was .*30.* Received: .*20"):
        run(folder, oracle=igpt.DescendingLearningRateOracle("val_loss", (100.0, 20.0)))
    other = make_data()
    other.train.labels[0] = 1
    with pytest.raises(
        ValueError, match=r"`folder` must hold this search: data\.train has other pictures or labels here"
    ):
        run(folder, data=other)

    def other_model(hyperparameters):
        model = make_model(hyperparameters)
        recipe = igpt.pretraining_recipe("igpt_nano", "ar", steps=9, learning_rate=hyperparameters.get("learning_rate"))
        model.compile(**recipe)
        return model

    with pytest.raises(ValueError, match=r"`folder` must hold this search: compile\.optimizer.*decay_steps is 8 here"):
        run(folder, make_model=other_model)
    (tmp_path / "trials.json").write_text('{"search": ')
    with pytest.raises(ValueError, match="which is damaged"):
        run(tmp_path)


@pytest.mark.parametrize("change", [lambda test: test.take(range(8)), lambda test: test.take(range(16)[::-1])])
def test_a_report_of_another_test_set_is_refused(finished, change):
    """The report was of those pictures, and these were perhaps trained on."""
    other = replace(make_data(), test=change(make_data().test))
    with pytest.raises(ValueError, match=r"`folder` must hold this search: .*data\.test"):
        run(finished[0], data=other)


def test_a_search_on_other_files_is_refused(tmp_path, palette):
    """As many of them: other pictures of the same folder are held out with another seed."""
    generator = np.random.default_rng(0)
    for number in range(20):
        path = tmp_path / "pictures" / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 256, (4, 4, 3), "uint8")).save(path)
    first, second = (igpt.load_image_folder(tmp_path / "pictures", 4, held_out=0.2, seed=seed) for seed in (0, 1))
    options = {
        "training_batches": lambda examples: igpt.TrainingBatches(examples, palette, 4),
        "evaluation_batches": lambda examples: igpt.EvaluationBatches(examples, palette, 4),
        "epochs": 1,
        "oracle": igpt.DescendingLearningRateOracle("val_loss", (0.01,)),
        "to_beat": 100.0,
    }
    assert isinstance(first.train, igpt.ImageFiles)
    run(tmp_path / "study", data=first, **options)
    options["oracle"] = igpt.DescendingLearningRateOracle("val_loss", (0.01,))
    with pytest.raises(ValueError, match=r"data\.train has other pictures or labels here"):
        run(tmp_path / "study", data=second, **options)
    # Earlier versions noted the number of files alone, and go on.
    ledger = json.loads((tmp_path / "study" / "trials.json").read_text())
    ledger["search"] |= {name: str(len(first[name])) for name in ("train", "validation")}
    (tmp_path / "study" / "trials.json").write_text(json.dumps(ledger))
    run(tmp_path / "study", data=first, **options | {"oracle": igpt.DescendingLearningRateOracle("val_loss", (0.01,))})


def test_errors_of_a_trial_are_raised(tmp_path):
    class Failing(igpt.TrainingBatches):
        def __getitem__(self, index):
            if index == 1:
                raise RuntimeError("the disk is on fire")
            return super().__getitem__(index)

    with pytest.raises(Exception, match="the disk is on fire"):
        run(tmp_path, training_batches=lambda examples: Failing(examples, None, 12))
    assert not (tmp_path / "trials.json").exists()


def test_an_accuracy_must_beat_the_most_frequent_class(tmp_path):
    """A spoilt model says one class; which one decides its accuracy, and more than that is none of its merit."""
    data = make_data()
    data.validation.labels[:] = [1] * 12 + [0] * 4

    def never_right(hyperparameters):
        classifier = igpt.ImageGPTImageClassifier(make_causal_lm(num_layers=1, hidden_dim=16), 2)
        # Trained to say bright of all.
        classifier.compile(**igpt.finetuning_recipe(hyperparameters.get("learning_rate")))
        return classifier

    data.train.labels[:] = 1
    oracle = igpt.DescendingLearningRateOracle("val_accuracy", (0.03,))
    with pytest.raises(ValueError, match=r"No trial brought val_accuracy to better than 0\.75"):
        run(tmp_path, make_model=never_right, data=data, objective="val_accuracy", oracle=oracle, epochs=1)


@pytest.fixture
def diverging(monkeypatch):
    """Every training ends at once, as at a loss that is not a number."""

    def fit(*arguments, **options):
        raise FloatingPointError("The loss became nan")

    monkeypatch.setattr(igpt.ImageGPTCausalLM, "fit", fit)


@pytest.mark.usefixtures("diverging")
def test_other_oracles_may_fail_as_often_as_they_like(tmp_path):
    space = keras_tuner.HyperParameters()
    space.Choice("learning_rate", [100.0, 90.0, 80.0, 70.0, 60.0])
    oracle = keras_tuner.oracles.GridSearchOracle("val_loss", hyperparameters=space)
    with pytest.raises(ValueError, match="No trial brought val_loss"):
        run(tmp_path, oracle=oracle)
    assert len(json.loads((tmp_path / "trials.json").read_text())["trials"]) == 5


@pytest.mark.usefixtures("diverging")
def test_when_all_trials_diverge_it_says_so(tmp_path):
    with pytest.raises(ValueError, match=r"No trial brought val_loss to better than 2\.7725"):
        run(tmp_path, oracle=igpt.DescendingLearningRateOracle("val_loss", RATES[:2]))


def test_early_stopping_refits_for_the_epochs_of_the_best_trial(tmp_path):
    """A classifier on patience, with another hyperparameter beside the rate, by KerasTuner's own oracle."""
    space = keras_tuner.HyperParameters()
    space.Float("learning_rate", 0.003, 0.1, sampling="log")
    space.Choice("generative_weight", [0.5, 1.0])
    oracle = keras_tuner.oracles.RandomSearchOracle("val_accuracy", max_trials=2, hyperparameters=space, seed=1)
    language_model = make_causal_lm(num_layers=1, hidden_dim=16)
    language_model.save(tmp_path / "start.keras")

    def make_classifier(hyperparameters):
        start = keras.saving.load_model(tmp_path / "start.keras")
        classifier = igpt.ImageGPTImageClassifier(start, 2, hyperparameters.get("generative_weight"))
        classifier.compile(**igpt.finetuning_recipe(hyperparameters.get("learning_rate")))
        return classifier

    seen = []
    result = run(
        tmp_path / "search",
        make_model=make_classifier,
        objective="val_accuracy",
        oracle=oracle,
        callbacks=[keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: seen.append(epoch))],
        epochs=4,
        patience=1,
    )
    search = result.chosen_on_validation
    assert len(search.trials) == 2
    best = search.best
    # Callbacks see every trial and the refit.
    assert len(seen) == sum(len(trial.history["val_loss"]) for trial in search.trials) + best.epochs
    column = best.history["val_accuracy"]
    assert best.objective == max(column) == column[best.epochs - 1]
    assert len(column) in (best.epochs, best.epochs + 1)
    assert result.steps == 4 * best.epochs
    assert set(result.values) == {"learning_rate", "generative_weight"}
    assert result.final_on_test["accuracy"] > 0.9  # the colours tell the classes apart
    measured = result.measured["accuracy"]
    assert (measured.accuracy, measured.num_test) == (result.final_on_test["accuracy"], 16)
    assert f"accuracy {measured.accuracy:.4f} [{measured.low:.4f}, {measured.high:.4f}]" in str(result)
    assert f"{best.objective:.4f} [" in str(search)
    assert read_report(tmp_path / "search" / "report.json", search) == result


def test_search_knows_no_best_without_a_score(finished):
    search = finished[1].chosen_on_validation
    with pytest.raises(ValueError, match="No trial brought"):
        _ = replace(search, trials=search.trials[:2]).best


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="others keep no list of gradients")
def test_no_graph_of_an_ended_trial_is_kept(tmp_path):
    """TensorFlow's list of custom gradients is for ever, and holds the graph that each was traced in."""
    from tensorflow.python.framework.func_graph import FuncGraph

    def graphs():
        gc.collect()
        return sum(isinstance(value, FuncGraph) for value in gc.get_objects())

    before = graphs()
    result = run(tmp_path, oracle=igpt.DescendingLearningRateOracle("val_loss", (0.03, 0.01)), epochs=1)
    assert len(result.chosen_on_validation.trials) == 2
    # TensorFlow may hold on to the last one; four training steps have more than a hundred.
    assert graphs() <= before + 1
    # A model whose own were dropped goes on, with programs that it has and with new ones.
    rate = keras_tuner.HyperParameters()
    rate.Fixed("learning_rate", 0.03)
    trained = make_model(rate)
    with traced_gradients_dropped():
        trained.fit(training_batches(make_data().train), epochs=1, verbose=0)
    trained.fit(training_batches(make_data().train), epochs=1, verbose=0)
    trained.evaluate(evaluation_batches(make_data().test), verbose=0)
