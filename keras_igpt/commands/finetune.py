"""Train a classifier from a pre-trained model with the joint loss. Run the same command again after a crash.

keras-igpt finetune --model run/igpt.keras --images FOLDER

Stops at the best validation accuracy and tests its weights once. `keras-igpt search` has the paper's whole protocol.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import Any

import keras

import keras_igpt as igpt
from keras_igpt.commands.run_folder import (
    ConfigOnceAccepted,
    EpochLog,
    exact_resume,
    has_checkpoints,
    make_output_folder,
    other_run,
    settings_of_run,
)
from keras_igpt.commands.shared import (
    TimeLeft,
    add_data_arguments,
    add_model_argument,
    add_output_argument,
    check_counts,
    describe_data,
    load_data,
    load_language_model,
    named_by_flags,
    padded_crop,
    say_plan,
    say_what_next,
    set_seed,
    use_of_classifier,
)
from keras_igpt.evaluation.intervals import HIGH_END, LOW_END, interval_of_share
from keras_igpt.evaluation.probe_report import describe_probed
from keras_igpt.model.weight_digests import digest_of_weights
from keras_igpt.support.files import held, read_log, remove, write_json

# The digest of the weights that a run starts from among its settings, which those of earlier versions lack.
_START = "language_model_weights"
# Epochs of which the best one so far is kept.
_BEST_KEPT = 4
# The model of the best epoch, tested.
_RESULT = "classifier.keras"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    add_model_argument(parser)
    add_data_arguments(parser)
    parser.add_argument("--generative-weight", type=float, default=1.0, help="of L_GEN beside L_CLF; 1 in the paper")
    parser.add_argument("--layer", type=int, help="depth of the features; by default the last, as in the paper")
    parser.add_argument("--rate", type=float, default=0.0003, help="of Adam; about a tenth of the pre-training's")
    parser.add_argument("--batch-size", type=int, default=64, help="pictures of a step")
    parser.add_argument("--epochs", type=int, default=30, help="at most")
    parser.add_argument("--patience", type=int, default=5, help="epochs without a better one after which it stops")
    add_output_argument(parser, "finetune_output")


class StopAfterBest(keras.callbacks.Callback):
    """Stops when the best validation accuracy of a log is so many epochs ago: `EarlyStopping` that survives a kill."""

    def __init__(self, log: Path, patience: int) -> None:
        super().__init__()
        self._log, self._patience = log, patience

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        if epoch - best_epoch(self._log) >= self._patience:
            self.model.stop_training = True


class BestEpochs(keras.callbacks.Callback):
    """Saves the model of each epoch that is the best so far, before the log calls it so.

    Those before stay, but for a few: after a kill the last epochs may have to be trained again, and end as others on a
    GPU. How many depends on the checkpoint: its file may be a save behind, or damaged.
    """

    def __init__(self, output: Path, log: Path) -> None:
        super().__init__()
        self._output, self._log = output, log

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        # Not those of epochs that are trained again.
        self._keep([best for best in self._saved() if best < epoch])

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        before = [line["val_accuracy"] for line in read_log(self._log).values()]
        if logs["val_accuracy"] > max(before, default=-1.0):
            self.model.save(best_model(self._output, epoch))
            self._keep(self._saved()[-_BEST_KEPT:])

    def _saved(self) -> list[int]:
        numbers = [path.stem.removeprefix("best-") for path in self._output.glob("best-*.keras")]
        return sorted(int(number) for number in numbers if number.isdecimal())

    def _keep(self, epochs: list[int]) -> None:
        for other in set(self._saved()) - set(epochs):
            remove(best_model(self._output, other))


def best_model(output: Path, epoch: int) -> Path:
    """Returns the file of an epoch's model."""
    return output / f"best-{epoch:04d}.keras"


def best_epoch(log: Path) -> int:
    """Returns the epoch of the best validation accuracy, the first of a tie."""
    lines = read_log(log)
    return max(lines, key=lambda epoch: (lines[epoch]["val_accuracy"], -epoch))


def epochs_to_train(log: Path, epochs: int, patience: int) -> int:
    """Returns how many epochs a run has, which is as many as it had once it has stopped."""
    last = max(read_log(log), default=-1)
    return min(epochs, last + 1) if last >= 0 and last - best_epoch(log) >= patience else epochs


def why_it_stopped(log: Path, patience: int) -> str:
    """Says why a run has ended, what its best epoch is, and what would make it go on."""
    lines, best = read_log(log), best_epoch(log)
    last = max(lines)
    reason = f"Finished: all {last + 1} epochs are done, and a larger --epochs goes on"
    if last - best >= patience:
        reason = f"Stopped: patience {patience} was exhausted at epoch {last + 1}, and a larger --patience goes on"
    return f"{reason}. The best is epoch {best + 1}, validation accuracy {lines[best]['val_accuracy']:.1%}."


def run(options: argparse.Namespace) -> None:
    """Runs the command."""
    check_counts(options, "batch_size", "epochs", "patience")
    set_seed(options)
    language_model = load_language_model(options.model)
    start = digest_of_weights(language_model)
    log = options.output / "log.csv"
    _check_run_there(options, start, log)
    palette, size = language_model.palette, language_model.backbone.image_size
    data = load_data(options, size, palette.num_channels, in_memory=True)
    classifier = _make_classifier(options, language_model, data.class_names)
    augmentation = padded_crop(size)
    batches = igpt.TrainingBatches(
        data.train, palette, options.batch_size, seed=options.seed, augmentation=augmentation
    )
    epoch_steps = batches.steps_per_epoch
    steps, epochs = options.epochs * epoch_steps, f"at most {options.epochs} epochs"
    say_plan(describe_data(data, size), epochs, steps, classifier, options.batch_size)
    make_output_folder(options)
    found = {
        "language_model": describe_probed(language_model),
        _START: start,
        "classes": data.class_names,
        "layer": classifier.layer,
        "augmentation": repr(augmentation),
    }
    with held(options.output, "--output"):
        if not has_checkpoints(options.output):
            # Of another run, which left nothing to go on with.
            remove(log)
        with named_by_flags(folder="--output"):
            classifier.fit(
                batches,
                epochs=epochs_to_train(log, options.epochs, options.patience),
                validation_data=igpt.EvaluationBatches(data.validation, palette, options.batch_size),
                callbacks=[ConfigOnceAccepted(options, **found), *_callbacks(options, log, epoch_steps)],
                verbose=2,
            )
        print(why_it_stopped(log, options.patience), flush=True)
        epoch = best_epoch(log)
        chosen = keras.saving.load_model(best_model(options.output, epoch))
        accuracy = read_log(log)[epoch]["val_accuracy"]
        measured = _tested(options, chosen, data.test.encode(palette))
        chosen.save(options.output / _RESULT)
        _report(options.output, epoch, interval_of_share(accuracy, len(data.validation)), measured)
    say_what_next(
        f"{_RESULT}, log.csv, results.json and accuracies.json to {options.output}/",
        *use_of_classifier(options, options.output / _RESULT),
    )


def _check_run_there(options: argparse.Namespace, start: str, log: Path) -> None:
    """Raises `ValueError` unless the command goes on with the run in its folder, if there is one."""
    run = settings_of_run(options)
    if not has_checkpoints(options.output):
        if (options.output / _RESULT).exists():
            raise ValueError(
                "--output must be a new folder, or that of a run with its checkpoints. "
                f"Received: {options.output}, where {_RESULT} is and no checkpoint"
            )
        return
    if run.get(_START, start) != start:
        # Its checkpoints would take the place of these weights.
        raise other_run(options, "--model", f"{options.model}, with other weights")
    done = len(read_log(log))
    if options.epochs < done:
        raise ValueError(
            f"--epochs must be at least {done}, what the run in {options.output} has done. Received: {options.epochs}"
        )


def _make_classifier(
    options: argparse.Namespace, language_model: Any, class_names: tuple[str, ...]
) -> igpt.ImageGPTImageClassifier:
    classifier = igpt.ImageGPTImageClassifier(
        language_model,
        len(class_names),
        options.generative_weight,
        layer=options.layer,
        class_names=class_names,
    )
    with named_by_flags(learning_rate="--rate"):
        classifier.compile(**igpt.finetuning_recipe(options.rate))
    return classifier


def _callbacks(options: argparse.Namespace, log: Path, epoch_steps: int) -> list[Any]:
    return [
        TimeLeft("left at most"),
        # Before the log, so that what it calls the best is in a file.
        BestEpochs(options.output, log),
        EpochLog(log),
        StopAfterBest(log, options.patience),
        exact_resume(options.output, epoch_steps),
    ]


def _tested(
    options: argparse.Namespace, classifier: Any, tokens: igpt.LabeledTokens
) -> dict[str, igpt.MeasuredAccuracy]:
    """Returns the accuracies on test by name."""
    predicted = classifier.predict(tokens, batch_size=options.batch_size, verbose=0).argmax(axis=-1)
    measured = {"test accuracy": igpt.measure_accuracy(predicted, tokens.labels)}
    if isinstance(classifier.language_model, igpt.ImageGPTMaskedLM):
        voted = classifier.vote(tokens.token_ids, num_masks=5, seed=options.seed, batch_size=options.batch_size)
        measured["test accuracy, vote of 5 masks"] = igpt.measure_accuracy(voted, tokens.labels)
    return measured


def _report(output: Path, epoch: int, validation: igpt.Interval, measured: dict[str, igpt.MeasuredAccuracy]) -> None:
    """Writes and prints the accuracies with their intervals."""
    intervals = {"validation accuracy": validation, **{name: value.interval for name, value in measured.items()}}
    results: dict[str, float] = {"best epoch": epoch + 1}
    for name, interval in intervals.items():
        results[name] = interval.estimate
        results[f"{name}{LOW_END}"] = interval.low
        results[f"{name}{HIGH_END}"] = interval.high
    write_json(output / "results.json", results)
    write_json(output / "accuracies.json", {name: asdict(value) for name, value in measured.items()})
    print(f"best epoch: {epoch + 1}")
    for name, interval in intervals.items():
        print(f"{name}: {interval.as_percentages()}")
    if len(measured) > 1:
        one_mask, vote = measured.values()
        print(f"the vote against one mask, on the same pictures: {vote.compare(one_mask)}")
