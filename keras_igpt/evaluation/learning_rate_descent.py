"""The paper's learning rate search: from large to small until the result worsens."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

try:
    import keras_tuner
except ImportError as error:
    raise ImportError("Searching hyperparameters needs KerasTuner: pip install 'keras_igpt[tune]'") from error

from keras_igpt.support.checks import check_positive_numbers

# The paper gives the start of this list only.
LEARNING_RATES = (0.01, 0.003, 0.001, 0.0003, 0.0001, 0.00003)


class DescendingLearningRateOracle(keras_tuner.Oracle):
    """Tries learning rates from large to small and stops when the objective is worse than at the previous rate.

    Trials without a score are skipped. The hyperparameter is called `learning_rate`. If `beside` is given, the descent
    is repeated for each setting that it proposes, and scored by its best result.

    Args:
        objective: str or `keras_tuner.Objective`, such as `"val_loss"`.
        learning_rates: sequence of float, decreasing.
        beside: a `keras_tuner.Oracle` with other, declared hyperparameters, such as
            `keras_tuner.oracles.GridSearchOracle`. To resume a search, a random one needs a positive seed, since
            KerasTuner treats 0 as none.

    Raises:
        ValueError: if `learning_rates` are empty, not positive or not decreasing, or `beside` has another objective or
            no other hyperparameters.
        ImportError: if KerasTuner is absent.

    Example:
    ```python
    oracle = DescendingLearningRateOracle("val_accuracy", learning_rates=(0.003, 0.001, 0.0003))
    ```

    Reference:
        [Chen et al., 2020](https://cdn.openai.com/papers/Generative_Pretraining_from_Pixels_V2.pdf), section 3.3
    """

    def __init__(
        self,
        objective: Any,
        learning_rates: Sequence[float] = LEARNING_RATES,
        beside: Any = None,
    ) -> None:
        # KerasTuner's choices must be of one type.
        rates = list(check_positive_numbers("learning_rates", learning_rates))
        if any(this <= following for this, following in itertools.pairwise(rates)):
            raise ValueError(f"`learning_rates` must fall. Received: learning_rates={tuple(rates)}")
        hyperparameters = keras_tuner.HyperParameters()
        hyperparameters.Choice("learning_rate", rates, ordered=True, default=rates[0])
        if beside is not None:
            if not isinstance(beside, keras_tuner.Oracle):
                raise ValueError(f"`beside` must be a keras_tuner.Oracle. Received: {type(beside).__name__}")
            own = [parameter.name for parameter in beside.get_space().space]
            if not own or "learning_rate" in own:
                raise ValueError(
                    "`beside` must have hyperparameters, declared and other than 'learning_rate'. "
                    f"Received: {own or 'none'}"
                )
            hyperparameters.merge(beside.get_space())
            beside.max_consecutive_failed_trials = -1
        super().__init__(
            objective=objective,
            hyperparameters=hyperparameters,
            allow_new_entries=False,
            tune_new_entries=False,
            # Any number of rates may be too high.
            max_consecutive_failed_trials=-1,
            seed=1,
        )
        if beside is not None and beside.objective != self.objective:
            raise ValueError(f"`beside` must have {self.objective}. Received: {beside.objective}")
        self.learning_rates = tuple(rates)
        self.beside = beside
        self._setting: Any = None
        self._descent: list[str] = []

    def populate_space(self, trial_id: str) -> dict[str, Any]:
        """Returns the next rate, for the current setting or a new one; called by KerasTuner."""
        if self._is_over():
            if self.beside is None:
                return {"status": "STOPPED"}
            self._report()
            self._setting = None
        if self._setting is None:
            self._descent = []
            if self.beside is None:
                self._setting = {}
            else:
                trial = self.beside.create_trial("descent")
                if trial.status != "RUNNING":
                    return {"status": trial.status}
                self._trial, self._setting = trial, trial.hyperparameters.values
        rate = self.learning_rates[len(self._descent)]
        self._descent.append(trial_id)
        return {"status": "RUNNING", "values": {**self._setting, "learning_rate": rate}}

    def _is_over(self) -> bool:
        if self._setting is None:
            return False
        scores = self._scores()
        worse = len(scores) > 1 and self.objective.better_than(scores[-2], scores[-1])
        return worse or len(self._descent) == len(self.learning_rates)

    def _scores(self) -> list[float]:
        """Returns the scores of the descent's completed trials, in order."""
        trials = (self.trials[trial_id] for trial_id in self._descent)
        return [trial.score for trial in trials if trial.status == "COMPLETED"]

    def _report(self) -> None:
        """Reports the best result of the descent to the other oracle."""
        scores = self._scores()
        if scores:
            best = max(scores) if self.objective.direction == "max" else min(scores)
            self.beside.update_trial(self._trial.trial_id, {self.objective.name: best})
        self._trial.status = "COMPLETED" if scores else "FAILED"
        self.beside.end_trial(self._trial)

    def _set_project_dir(self, directory: str, project_name: str) -> None:
        super()._set_project_dir(directory, project_name)
        if self.beside is not None:
            self.beside._set_project_dir(directory, f"{project_name}_beside")
