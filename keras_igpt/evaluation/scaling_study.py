"""A grid of small pre-training runs and the scaling law fitted to them."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import keras
import numpy as np

from keras_igpt.data.batches import EvaluationBatches, TrainingBatches
from keras_igpt.data.examples import LabeledTokens, check_alike
from keras_igpt.evaluation.intervals import import_scipy
from keras_igpt.evaluation.scaling_law import ScalingLaw, ScalingRun, check_runs, fit_scaling_law
from keras_igpt.evaluation.search_records import damaged, read_json
from keras_igpt.model.architecture import Architecture, check_architecture
from keras_igpt.model.backbone import ImageGPTBackbone
from keras_igpt.model.cost import estimate
from keras_igpt.objectives.causal_lm import ImageGPTCausalLM
from keras_igpt.plotting import plot_scaling
from keras_igpt.support.checks import check_integer, check_number, check_positive_numbers
from keras_igpt.support.files import write_json
from keras_igpt.support.randomness import check_seed
from keras_igpt.training.recipes import default_warmup, pretraining_recipe

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, eq=False)
class ScalingReport:
    """The runs of a scaling study, and the fitted law.

    Attributes:
        runs: tuples of `ScalingRun`, one per budget, by the name of the size.
        law: `ScalingLaw`.
    """

    runs: dict[str, tuple[ScalingRun, ...]]
    law: ScalingLaw

    def plot(self) -> Figure:
        """Plots losses against training tokens, one colour per size, with the law's curves.

        Returns:
            A Matplotlib figure.

        Raises:
            ImportError: if Matplotlib is absent.
        """
        tokens = [run.tokens for runs in self.runs.values() for run in runs]
        span = np.geomspace(min(tokens), max(tokens), 50).astype(int).tolist()
        return plot_scaling(
            {name: {run.tokens: run.loss for run in runs} for name, runs in self.runs.items()},
            {
                name: {count: self.law.loss(runs[0].parameters, count) for count in span}
                for name, runs in self.runs.items()
            },
            self.law.irreducible_loss,
        )


def scaling_study(
    train: LabeledTokens,
    validation: LabeledTokens,
    sizes: Mapping[str, Mapping[str, Any]],
    budgets: Sequence[float],
    learning_rate: float,
    folder: str | os.PathLike[str],
    batch_size: int = 64,
    seed: int = 0,
) -> ScalingReport:
    """Pre-trains each size with each compute budget, and fits the law `L(N, D)` to the validation losses.

    The law needs at least six runs, of at least three sizes and three numbers of tokens. Each run has its own schedule,
    which ends with it, as the law requires. If called again after an interruption, the study skips finished runs and
    restarts the interrupted one.

    Args:
        train: `LabeledTokens` to train on.
        validation: `LabeledTokens` for the loss.
        sizes: arguments of `ImageGPTBackbone` by name of the size, without `image_size` and `vocabulary_size`.
        budgets: sequence of float. Floating point operations of each run, as counted by `estimate`.
        learning_rate: float. Peak rate of all runs.
        folder: folder for `runs.json`.
        batch_size: int.
        seed: int. Seed of initial weights and batches.

    Returns:
        A `ScalingReport`.

    Raises:
        ValueError: if an argument is out of range, a budget is less than two steps of a size, the runs cannot give a
            law, `validation` does not fit `train`, or the folder holds runs with other settings or a damaged file.
        ImportError: if SciPy is absent.

    Example:
    ```python
    sizes = {f"width {width}": {"num_layers": 4, "num_heads": 4, "hidden_dim": width} for width in (16, 32, 64)}
    budgets = (1e12, 4e12, 1.6e13)
    report = scaling_study(train, validation, sizes, budgets, learning_rate=0.003, folder="scaling")
    print(report.law.forecast(parameters=1_000_000, tokens=50_000_000))
    ```

    Reference:
        [Hoffmann et al., 2022](https://arxiv.org/abs/2203.15556), section 3.3. Chen et al. fit no law.
    """
    batch_size, seed = check_integer("batch_size", batch_size), check_seed(seed)
    rate = check_number("learning_rate", learning_rate, 0, above=True)
    for name, part in (("train", train), ("validation", validation)):
        if not isinstance(part, LabeledTokens):
            raise ValueError(f"`{name}` must be LabeledTokens. Received: {type(part).__name__}")
    check_alike("validation", validation, train)
    if not isinstance(sizes, Mapping) or not all(isinstance(size, Mapping) for size in sizes.values()):
        raise ValueError(f"`sizes` must be arguments of ImageGPTBackbone by name. Received: sizes={sizes!r}")
    budgets = check_positive_numbers("budgets", budgets)
    import_scipy("optimize")  # for the law: raises before anything is trained
    shape = {"image_size": train.image_size, "vocabulary_size": train.num_colors}
    architectures = {name: check_architecture("sizes", {**size, **shape}) for name, size in sizes.items()}
    steps = {name: _steps(name, architecture, budgets, batch_size) for name, architecture in architectures.items()}
    # Whatever their losses will be: too few runs are refused before any is trained.
    check_runs(
        [
            ScalingRun(architecture.num_parameters, count * batch_size, loss=1.0)
            for name, architecture in architectures.items()
            for count in steps[name]
        ]
    )
    settings = {
        "learning_rate": rate,
        "batch_size": batch_size,
        "seed": seed,
        "train": train.digest(),
        "validation": validation.digest(),
        "dtype_policy": keras.config.dtype_policy().name,
    }
    path = Path(folder) / "runs.json"
    finished = _finished_runs(path, settings)
    runs: dict[str, tuple[ScalingRun, ...]] = {}
    for name, architecture in architectures.items():
        for count in steps[name]:
            # Keyed by architecture and schedule, so that sizes and budgets can be added later.
            schedule = {"steps": count, "warmup": default_warmup(count)}
            key = json.dumps({**architecture.arguments, **schedule}, sort_keys=True)
            if key not in finished:
                finished[key] = _run(architecture, count, rate, train, validation, batch_size, seed)
                record = {known: asdict(run) for known, run in finished.items()}
                write_json(path, {"settings": settings, "runs": record})
            runs[name] = (*runs.get(name, ()), finished[key])
    return ScalingReport(runs, fit_scaling_law([run for several in runs.values() for run in several], seed=seed))


def _steps(name: str, architecture: Architecture, budgets: tuple[float, ...], batch_size: int) -> tuple[int, ...]:
    """Returns the number of steps of each budget."""
    flops = estimate(architecture, batch_size).training_flops
    steps = tuple(int(budget / flops) for budget in budgets)
    if min(steps) < 2:
        raise ValueError(
            f"`budgets` must pay for two steps of each size, {2 * flops:.3g} operations for {name!r}. "
            f"Received: budgets={budgets}"
        )
    return steps


def _finished_runs(path: Path, settings: Mapping[str, Any]) -> dict[str, ScalingRun]:
    """Reads the finished runs by key; raises ValueError if the file is damaged or has other settings."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        return {}
    what, remedy = "the runs of a scaling study", "Move it away, and the study starts over"
    record = read_json(path, what, remedy)
    try:
        recorded = dict(record["settings"])
        runs = {key: ScalingRun(**run) for key, run in record["runs"].items()}
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise damaged(path, what, remedy, "not what was written there") from error
    # Earlier versions did not record them all.
    differing = sorted(name for name, value in settings.items() if recorded.get(name, value) != value)
    if differing:
        raise ValueError(
            f"`folder` must be new, or have runs of the same settings. Received: {path} with other {differing}"
        )
    return runs


def _run(
    architecture: Architecture,
    steps: int,
    learning_rate: float,
    train: LabeledTokens,
    validation: LabeledTokens,
    batch_size: int,
    seed: int,
) -> ScalingRun:
    keras.utils.set_random_seed(seed)
    lm = ImageGPTCausalLM(ImageGPTBackbone(**architecture.arguments))
    lm.compile(**pretraining_recipe("igpt_nano", "ar", steps, learning_rate=learning_rate))
    lm.fit(TrainingBatches(train, None, batch_size, seed), steps_per_epoch=steps, epochs=1, verbose=0)
    loss = lm.evaluate(EvaluationBatches(validation, None, batch_size), verbose=0, return_dict=True)["loss"]
    return ScalingRun(lm.count_params(), steps * batch_size * train.image_size**2, float(loss))
