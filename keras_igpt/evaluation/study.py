"""The paper's protocol: search on validation, refit on train and validation, test once."""

from __future__ import annotations

import gc
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import keras
import numpy as np

from keras_igpt.backend.processes import check_one_process
from keras_igpt.data import DataSplits, EvaluationBatches, TrainingBatches
from keras_igpt.data.examples import check_alike, check_labeled
from keras_igpt.evaluation.intervals import MeasuredAccuracy, measure_accuracy
from keras_igpt.evaluation.search_records import (
    Ledger,
    Search,
    Trial,
    TunedResult,
    finite_metrics,
    name_of,
    read_json,
    read_report,
    why_without_score,
)
from keras_igpt.model.weight_digests import weight_digests
from keras_igpt.objectives.image_classifier import ImageGPTImageClassifier
from keras_igpt.objectives.token_model import TokenModel
from keras_igpt.support.checks import check_integer, check_number
from keras_igpt.support.files import whole_file, write_json
from keras_igpt.training.resume import ExactResume

MakeModel = Callable[[Any], keras.Model]
BatchesT = TypeVar("BatchesT", TrainingBatches, EvaluationBatches)

# Ledgers hold a hash of the model's settings, which include the modules of classes. These are the modules at the time
# of the first ledgers, so that hashes stay the same when classes move.
LEDGER_MODULES = {
    "ImageGPTBackbone": "keras_igpt.backbone",
    "ImageGPTCausalLM": "keras_igpt.pixel_models",
    "ImageGPTMaskedLM": "keras_igpt.pixel_models",
    "CosineDecayOverUpdates": "keras_igpt.training",
}


class Study:
    """Searches hyperparameters on validation, refits with the best ones on train and validation, and tests once.

    After an interruption, create the study and call `search` and `refit` again: finished trials are read from
    `folder`, the interrupted one starts over, and the refit resumes from its last checkpoint.

    Every model must start with the same weights, which is checked. The seed is set before each call of `make_model`,
    which must rebuild the model and reload any pre-trained weights.

    Args:
        make_model: takes `keras_tuner.HyperParameters` (`hyperparameters.get("learning_rate")`), returns a compiled
            model of this package.
        data: `DataSplits`.
        training_batches: takes examples, returns `TrainingBatches`.
        evaluation_batches: takes examples, returns `EvaluationBatches`.
        objective: str or `keras_tuner.Objective`. A metric of `fit` such as `"val_loss"` or `"val_accuracy"`; metrics
            unknown to KerasTuner need a direction.
        folder: folder of this study.
        seed: int. Seed of random initial weights.
        callbacks: sequence of `keras.callbacks.Callback`, called in every training, the trials and the refit.

    Raises:
        ValueError: if `seed` is out of range.

    Example:
    ```python
    def make_model(hyperparameters):
        classifier = ImageGPTImageClassifier(keras.saving.load_model("igpt.keras", compile=False), num_classes=10)
        classifier.compile(**finetuning_recipe(hyperparameters.get("learning_rate")))
        return classifier

    study = Study(
        make_model,
        data,
        lambda examples: TrainingBatches(examples, palette, 128, augmentation=PaddedCrop()),
        lambda examples: EvaluationBatches(examples, palette, 128),
        objective="val_accuracy",
        folder="runs/finetuning",
    )
    study.search(epochs=20, patience=3)
    print(study.refit())
    classifier = keras.saving.load_model("runs/finetuning/model.keras")
    ```

    Reference:
        [Chen et al., 2020](https://cdn.openai.com/papers/Generative_Pretraining_from_Pixels_V2.pdf), sections 3.1, 3.3,
        3.4
    """

    def __init__(
        self,
        make_model: MakeModel,
        data: DataSplits[Any],
        training_batches: Callable[[Any], TrainingBatches],
        evaluation_batches: Callable[[Any], EvaluationBatches],
        objective: Any,
        folder: str | os.PathLike[str],
        seed: int = 0,
        callbacks: Sequence[keras.callbacks.Callback] = (),
    ) -> None:
        self._callbacks = tuple(callbacks)
        self._make_model, self._data, self._objective = make_model, data, objective
        self._training_batches, self._evaluation_batches = training_batches, evaluation_batches
        self._folder = Path(folder)
        # NumPy's and PyTorch's generators take 32 bits.
        self._seed = check_integer("seed", seed, 0, 2**32 - 1)
        self._searched: Search | None = None
        self._start: dict[str, str] = {}

    def search(
        self,
        epochs: int,
        oracle: Any = None,
        patience: int | None = None,
        steps_per_epoch: int | None = None,
        to_beat: float | None = None,
        verbose: int | str = 2,
    ) -> Search:
        """Trains a model for each setting and compares them on validation, without the test set.

        By default learning rates are tried from large to small until the objective worsens, as in the paper
        (`DescendingLearningRateOracle`). Other KerasTuner oracles work too, except `Hyperband`, whose trials continue
        earlier ones.

        A trial whose loss is not finite, or whose objective is not better than `to_beat`, has no score and is skipped
        by a descent of rates. Other errors are raised. Trials save no weights.

        Args:
            epochs: int. Maximum number of epochs of each trial.
            oracle: a new `keras_tuner.Oracle` with the same objective. A random one needs a positive seed.
            patience: int. Ends a trial after this many epochs without improvement; its best epoch counts. If None, all
                epochs are run and the last one counts, as suits a schedule that ends there.
            steps_per_epoch: int. By default one pass over the training set.
            to_beat: float. The objective must be better than this; by default its value before training, and for an
                accuracy at least the share of the most frequent class.
            verbose: as in `fit`.

        Returns:
            A `Search`.

        Raises:
            ValueError: if the objective is not among the metrics, two models start with different weights, the three
                sets differ in image size or number of colours, validation cannot be joined to train, the objective is
                not finite before training, or `folder` holds another search, such as one of other pictures in any of
                the three sets, or of trials whose models `make_model` makes otherwise now.
            ImportError: if KerasTuner is absent.

        Example:
        ```python
        search = study.search(epochs=20, oracle=DescendingLearningRateOracle("val_accuracy", (0.003, 0.001, 0.0003)))
        print(search.best.values)
        ```
        """
        epochs = check_integer("epochs", epochs)
        patience = None if patience is None else check_integer("patience", patience)
        steps_per_epoch = None if steps_per_epoch is None else check_integer("steps_per_epoch", steps_per_epoch)
        to_beat = None if to_beat is None else float(check_number("to_beat", to_beat))
        oracle = _new_oracle(oracle, self._objective)
        check_one_process("search")
        batches = _batches("training_batches", self._training_batches, self._data.train, TrainingBatches)
        held_out = _batches("evaluation_batches", self._evaluation_batches, self._data.validation, EvaluationBatches)
        training = _Training(batches, held_out, epochs, patience, verbose, self._callbacks)
        objective, space = oracle.objective, oracle.get_space()
        untrained, start, settings = self._untrained(space, held_out, objective.name)
        # Includes hyperparameters that `make_model` declared.
        oracle.update_space(space)
        search = Search(
            objective=objective.name,
            direction=objective.direction,
            to_beat=_bound(untrained, objective.name, self._data.validation) if to_beat is None else to_beat,
            trials=(),
            steps_per_epoch=steps_per_epoch or batches.steps_per_epoch,
            seed=self._seed,
            backend=keras.backend.backend(),
            num_train=len(self._data.train),
            num_validation=len(self._data.validation),
        )
        ledger = self._ledger(search, training, to_beat, start, settings)
        search = replace(search, to_beat=ledger.bound)

        trials = _run_trials(
            oracle,
            self._folder,
            ledger,
            lambda hyperparameters: self._make(hyperparameters, start),
            lambda model, values: training.run(model, values, search),
        )
        self._searched, self._start = replace(search, trials=trials), start
        return self._searched

    def refit(
        self,
        checkpoint_every: int | None = None,
        evaluate: Callable[[keras.Model, Any], Mapping[str, float | MeasuredAccuracy]] | None = None,
        verbose: int | str = 2,
    ) -> TunedResult:
        """Trains with the best setting of `search` on train and validation together, and tests the model once.

        The refit starts from the same weights as the trials and takes as many steps as the best trial, which keeps
        schedules valid. The model is written to `model.keras` in `folder` and the report to `report.json`. If the
        report exists, it is returned without training or testing again.

        Args:
            checkpoint_every: int. Steps between checkpoints; by default one epoch.
            evaluate: takes the refitted model and the test examples, returns metrics by name, of which accuracies may
                be of `measure_accuracy`; by default `model.evaluate` on the evaluation batches.
            verbose: as in `fit`.

        Returns:
            A `TunedResult`.

        Raises:
            ValueError: before `search`, if no trial has a score, `folder` holds another search's report or a refit that
                began with other weights, or a metric is not a finite number.

        Example:
        ```python
        result = study.refit(
            evaluate=lambda model, test: {"accuracy": measure_accuracy(model.vote(test), test.labels)}
        )
        print(result.measured["accuracy"])   # 45.1% [44.1, 46.1]
        ```
        """
        if checkpoint_every is not None:
            checkpoint_every = check_integer("checkpoint_every", checkpoint_every)
        if evaluate is not None and not callable(evaluate):
            raise ValueError(
                "`evaluate` must be a function of the model and the test examples, or None. "
                f"Received: {type(evaluate).__name__}"
            )
        if self._searched is None:
            raise ValueError(
                "A study must be searched before it is refitted: call `search`, which reads finished trials from "
                f"`folder`. Received: a study in {self._folder} that was not searched in this process"
            )
        search, chosen = self._searched, self._searched.best
        report = self._folder / "report.json"
        if report.is_file():
            return read_report(report, search)
        together = self._data["train+validation"]
        saved = self._folder / "model.keras"
        model = self._refitted(together, search, checkpoint_every or search.steps_per_epoch, verbose)
        with whole_file(saved) as partial:
            model.save(partial)
        final = (self._test if evaluate is None else evaluate)(model, self._data.test)
        result = TunedResult(
            chosen_on_validation=search,
            values=chosen.values,
            steps=chosen.epochs * search.steps_per_epoch,
            num_refit=len(together),
            num_test=len(self._data.test),
            final_on_test=finite_metrics(final, saved),
            measured={str(name): value for name, value in final.items() if isinstance(value, MeasuredAccuracy)},
        )
        write_json(report, asdict(result))
        for finished in self._folder.glob("refit-*"):
            shutil.rmtree(finished)
        return result

    def _check_sets(self, needs_labels: bool) -> None:
        """Raises `ValueError` if a trial, or the refit or the test after all trials, would fail."""
        if needs_labels:
            for name in ("train", "validation", "test"):
                check_labeled(f"data.{name}", self._data[name])
        train, validation = self._data.train, self._data.validation
        for name in ("validation", "test"):
            check_alike(f"data.{name}", self._data[name], train)
        received = f"{validation!r}"
        try:
            if type(validation) is type(train):
                train.take([0]).join(validation.take([0]))
                return
        except ValueError as error:
            received += f" ({error})"
        raise ValueError(
            f"`data.validation` must be one that can be joined to `data.train` for the refit, {train!r}. "
            f"Received: {received}"
        )

    def _test(self, model: keras.Model, test: Any) -> dict[str, float | MeasuredAccuracy]:
        """Returns test metrics, with the pictures that a classifier gets right."""
        batches = self._evaluation_batches(test)
        metrics: dict[str, float | MeasuredAccuracy] = {**_evaluate(model, batches)}
        if isinstance(model, ImageGPTImageClassifier) and "accuracy" in metrics:
            logits = model.predict(batches, verbose=0)[: len(test)]
            metrics["accuracy"] = measure_accuracy(logits.argmax(axis=-1), test.labels)
        return metrics

    def _untrained(self, space: Any, held_out: EvaluationBatches, objective: str) -> tuple[float, dict[str, str], str]:
        """Returns the objective before training, digests of the weights, and the model's settings as JSON."""
        keras.utils.set_random_seed(self._seed)
        model = self._make_model(space)
        if not isinstance(model, TokenModel) or not model.compiled:
            raise ValueError(
                "`make_model` must return a compiled model of this package. "
                f"Received: {type(model).__name__}{' that is not compiled' if isinstance(model, TokenModel) else ''}"
            )
        self._check_sets(model.needs_labels)
        metrics = {f"val_{name}": value for name, value in _evaluate(model, held_out).items()}
        if objective not in metrics:
            raise ValueError(f"`objective` must be one of {', '.join(metrics)}. Received: {objective!r}")
        if not np.isfinite(metrics[objective]):
            raise ValueError(
                f"`make_model` must return a model with a finite {objective} before it is trained; its weights have "
                f"diverged. Received: {metrics[objective]}"
            )
        return metrics[objective], weight_digests(model), _settings(model)

    def _make(self, hyperparameters: Any, start: dict[str, str]) -> keras.Model:
        """Makes a model and checks that it starts with the first model's weights."""
        keras.utils.set_random_seed(self._seed)
        model = self._make_model(hyperparameters)
        digest = weight_digests(model)
        # Hyperparameters may add or remove weights; the common ones must be equal.
        changed = [name for name, value in digest.items() if start.get(name, value) != value]
        if changed:
            raise ValueError(
                "`make_model` must return a model that begins with the same weights each time: rebuild it, and reload "
                f"any pre-trained weights. Received: other weights in {changed[0]}"
            )
        return model

    def _ledger(
        self, search: Search, training: _Training, to_beat: float | None, start: dict[str, str], settings: str
    ) -> Ledger:
        """Opens the ledger in the folder; raises `ValueError` if it belongs to another search."""
        description = {
            "objective": search.objective,
            "epochs": training.epochs,
            "patience": training.patience,
            "steps_per_epoch": search.steps_per_epoch,
            "to_beat": to_beat,
            "seed": search.seed,
            "backend": search.backend,
            "batches": training.batches.description,
            "train": _fingerprint(self._data.train),
            "validation": _fingerprint(self._data.validation),
            "test": _fingerprint(self._data.test),
            "model": _digest(settings),
            "start": start,
        }
        readable = dict(zip(("model", "compile"), json.loads(settings), strict=True))
        return Ledger(self._folder / "trials.json", description, readable, search.to_beat)

    def _refitted(self, examples: Any, search: Search, checkpoint_every: int, verbose: int | str) -> keras.Model:
        """Trains with the best setting on the examples, resuming from the last checkpoint."""
        chosen = search.best
        print(f"Refit on train and validation: {name_of(chosen.values)}, {chosen.epochs} epoch(s)", flush=True)
        model = self._make(_hyperparameters(chosen.values), self._start)
        # A folder for each choice, since an extended search may choose another setting.
        choice = json.dumps([chosen.values, chosen.epochs], sort_keys=True)
        checkpoints = self._folder / f"refit-{_digest(choice)[:12]}"
        _check_start(checkpoints / "start.json", weight_digests(model))
        model.fit(
            self._training_batches(examples),
            epochs=chosen.epochs,
            steps_per_epoch=search.steps_per_epoch,
            callbacks=[*self._callbacks, ExactResume(checkpoints, every=checkpoint_every, keep=1)],
            verbose=verbose,
        )
        return model


@dataclass(frozen=True)
class _Training:
    """Training and validation of each trial; see `Study.search`."""

    batches: TrainingBatches
    held_out: EvaluationBatches
    epochs: int
    patience: int | None
    verbose: int | str
    callbacks: tuple[keras.callbacks.Callback, ...]

    def run(self, model: keras.Model, values: dict[str, Any], search: Search) -> Trial:
        """Trains a model and returns its trial."""
        callbacks = [*self.callbacks]
        if self.patience is not None:
            callbacks.append(
                keras.callbacks.EarlyStopping(monitor=search.objective, mode=search.direction, patience=self.patience)
            )
        try:
            history = model.fit(
                self.batches,
                epochs=self.epochs,
                steps_per_epoch=search.steps_per_epoch,
                validation_data=self.held_out,
                callbacks=callbacks,
                verbose=self.verbose,
            ).history
        except FloatingPointError as error:
            print(f"  {error}", flush=True)
            return Trial(values, None, 0, {})
        column = np.array(history[search.objective], np.float64)
        worst = -np.inf if search.direction == "max" else np.inf
        finite = np.where(np.isfinite(column), column, worst)
        best = finite.argmax() if search.direction == "max" else finite.argmin()
        epoch = int(best) if self.patience is not None else len(column) - 1
        value = float(finite[epoch])
        better = value > search.to_beat if search.direction == "max" else value < search.to_beat
        written = {
            name: [float(entry) if np.isfinite(entry) else None for entry in entries]
            for name, entries in history.items()
        }
        return Trial(values, value, epoch + 1, written) if better else Trial(values, None, 0, written)


def _run_trials(
    oracle: Any,
    folder: Path,
    ledger: Ledger,
    make: Callable[[Any], keras.Model],
    train: Callable[[keras.Model, dict[str, Any]], Trial],
) -> tuple[Trial, ...]:
    """Trains what the oracle proposes, or replays it from the ledger, until the oracle stops."""
    # KerasTuner's own files are not written atomically, so finished trials are replayed from the ledger instead.
    # KerasTuner's tuners set the folder by this private method too.
    oracle._set_project_dir(str(folder), "oracle")
    oracle.verbose = 0
    # KerasTuner's oracles would give up after three failed trials.
    oracle.max_consecutive_failed_trials = -1
    objective = oracle.objective.name
    trials: list[Trial] = []
    while (proposed := oracle.create_trial("search")).status == "RUNNING":
        values = dict(proposed.hyperparameters.values)
        # Of a recorded trial too: what `make_model` makes of its values may have changed since.
        model = make(proposed.hyperparameters)
        made = _digest(_settings(model))
        trial = ledger.recorded(len(trials), values, made)
        if trial is None:
            print(f"Trial {len(trials)}: {name_of(values)}", flush=True)
            trial = train(model, values)
            ledger.record(trial, made)
            if trial.objective is None:
                shown = why_without_score(trial, objective, ledger.bound)
            else:
                shown = f"{objective} {trial.objective:.6g}"
            print(f"Trial {len(trials)}: {name_of(values)}: {shown}", flush=True)
        # Models contain reference cycles; this frees their memory.
        del model
        gc.collect()
        trials.append(trial)
        if trial.objective is not None:
            oracle.update_trial(proposed.trial_id, {objective: trial.objective}, step=trial.epochs - 1)
        proposed.status = "FAILED" if trial.objective is None else "COMPLETED"
        oracle.end_trial(proposed)
    if proposed.status != "STOPPED":
        raise ValueError(
            f"`oracle` must propose a trial once the one before has ended. Received: status {proposed.status!r} of "
            f"{type(oracle).__name__}"
        )
    return tuple(trials)


def _new_oracle(oracle: Any, objective: Any) -> Any:
    """Returns the oracle, by default the paper's; raises ValueError for a used one."""
    import keras_tuner

    from keras_igpt.evaluation.learning_rate_descent import DescendingLearningRateOracle

    if oracle is None:
        return DescendingLearningRateOracle(objective)
    if not isinstance(oracle, keras_tuner.Oracle):
        raise ValueError(f"`oracle` must be a keras_tuner.Oracle. Received: {type(oracle).__name__}")
    if oracle.objective != DescendingLearningRateOracle(objective).objective:
        raise ValueError(f"`oracle` must have the objective {objective}. Received: {oracle.objective}")
    # A used oracle would continue, or propose nothing at its end.
    asked = oracle.trials or getattr(getattr(oracle, "beside", None), "trials", None)
    if asked:
        raise ValueError(
            "`oracle` must be new: create one for each search, also to resume a search. "
            f"Received: one that has proposed {len(asked)} trial(s)"
        )
    return oracle


def _batches(name: str, make: Callable[[Any], BatchesT], examples: Any, kind: type[BatchesT]) -> BatchesT:
    batches = make(examples)
    if not isinstance(batches, kind):
        raise ValueError(f"`{name}` must return {kind.__name__}. Received: {type(batches).__name__}")
    return batches


def _check_start(path: Path, start: dict[str, str]) -> None:
    """Writes which weights a refit starts from, or compares them: checkpoints would take the place of others."""
    if not path.exists():
        # Earlier versions wrote none.
        write_json(path, start)
    elif read_json(path, "the refit's first weights", f"Remove {path.parent}, and it starts over") != start:
        raise ValueError(
            "`folder` must hold this search: the refit there began with other weights. "
            f"Use another folder for other models. Received: {path.parent}"
        )


def _bound(untrained: float, objective: str, validation: Any) -> float:
    if not objective.endswith("accuracy"):
        return untrained
    return max(untrained, float(np.bincount(validation.labels).max() / len(validation)))


def _fingerprint(examples: Any) -> str:
    """Returns the number of examples and a hash of them; see `ImageFiles.digest`."""
    return f"{len(examples)} {examples.digest()}"


def _evaluate(model: keras.Model, batches: EvaluationBatches) -> dict[str, float]:
    return {name: float(value) for name, value in model.evaluate(batches, return_dict=True, verbose=0).items()}


def _settings(model: keras.Model) -> str:
    """Returns a model's settings but for class names as JSON, independent of the process and this package's modules."""

    def as_in_ledgers(found: re.Match[str]) -> str:
        module, name = found.groups()
        return f'"module": "{LEDGER_MODULES.get(name, module)}", "registered_name": "keras_igpt>{name}"'

    config = {name: value for name, value in model.get_config().items() if name != "class_names"}
    settings = json.dumps([config, model.get_compile_config()], sort_keys=True, default=str)
    settings = re.sub(r'"module": "([^"]*)", "registered_name": "keras_igpt>(\w+)"', as_in_ledgers, settings)
    # Keras appends a counter to names; an object without settings is shown with its place in memory.
    return re.sub(r'_\d+(?=")| at 0x[0-9a-f]+', "", settings)


def _digest(settings: str) -> str:
    return hashlib.sha256(settings.encode()).hexdigest()


def _hyperparameters(values: dict[str, Any]) -> Any:
    import keras_tuner

    hyperparameters = keras_tuner.HyperParameters()
    hyperparameters.values = dict(values)
    return hyperparameters
