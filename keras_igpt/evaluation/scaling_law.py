"""A scaling law of the loss in model size and training tokens."""

from __future__ import annotations

import reprlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
import numpy.typing as npt

from keras_igpt.evaluation.intervals import Interval, import_scipy
from keras_igpt.support.checks import check_integer, check_number
from keras_igpt.support.randomness import check_seed

_NUM_COEFFICIENTS = 5
# One more than coefficients: what is left over is all that says how far runs stray from the law.
_FEWEST_RUNS = 6
# Two sizes leave E, A and alpha open, as two numbers of tokens do E, B and beta.
_FEWEST_VALUES = 3
# Of log N and log D: beyond it, a loss that falls with one of them cannot be told from one that falls with the other.
_LARGEST_CORRELATION = 0.999
# Threshold of the Huber loss of log-losses (Hoffmann et al., 2022, appendix D.2).
_HUBER_DELTA = 1e-3
_LARGEST_EXPONENT = 5.0

Float64Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class ScalingRun:
    """One trained model.

    Attributes:
        parameters: int. Trainable parameters `N`.
        tokens: int. Training tokens `D`, repetitions included.
        loss: float. Nats per token on validation.
    """

    parameters: int
    tokens: int
    loss: float


@dataclass(frozen=True, eq=False)
class ScalingLaw:
    """The law `L(N, D) = E + A / N^alpha + B / D^beta`, with a bootstrap.

    Attributes:
        irreducible_loss: float. E, in nats per token.
        parameter_factor: float. A.
        parameter_exponent: float. alpha.
        token_factor: float. B.
        token_exponent: float. beta.
        resampled: float64 array `(resamples, 5)`, the five coefficients of each resample.
        confidence: float in (0, 1), of all intervals.
    """

    irreducible_loss: float
    parameter_factor: float
    parameter_exponent: float
    token_factor: float
    token_exponent: float
    resampled: Float64Array
    confidence: float

    @property
    def coefficients(self) -> tuple[float, float, float, float, float]:
        """E, A, alpha, B and beta."""
        return (
            self.irreducible_loss,
            self.parameter_factor,
            self.parameter_exponent,
            self.token_factor,
            self.token_exponent,
        )

    def intervals(self) -> dict[str, Interval]:
        """Returns each coefficient with its interval, by the name of its attribute."""
        names = ("irreducible_loss", "parameter_factor", "parameter_exponent", "token_factor", "token_exponent")
        columns = zip(names, self.coefficients, self.resampled.T, strict=True)
        return {name: self._interval(value, column) for name, value, column in columns}

    def loss(self, parameters: int, tokens: int) -> float:
        """Returns the law's loss in nats per token."""
        return _loss(self.coefficients, parameters, tokens)

    def forecast(self, parameters: int, tokens: int) -> Interval:
        """Predicts the loss of a run.

        Args:
            parameters: int. Trainable parameters.
            tokens: int. Tokens trained on.

        Returns:
            `Interval` in nats per token. It covers the uncertainty of the coefficients, not of the extrapolation.

        Raises:
            ValueError: if an argument is not positive.
        """
        n, d = check_integer("parameters", parameters), check_integer("tokens", tokens)
        losses = [_loss(coefficients, n, d) for coefficients in (self.coefficients, *self.resampled)]
        return self._interval(losses[0], np.array(losses[1:]))

    def _interval(self, estimate: float, resampled: Float64Array) -> Interval:
        tail = (1 - self.confidence) / 2
        low, high = np.quantile(resampled, [tail, 1 - tail])
        return Interval(float(estimate), float(low), float(high), self.confidence)

    def __str__(self) -> str:
        return "\n".join(f"{name:<20} {interval}" for name, interval in self.intervals().items())


def fit_scaling_law(
    runs: Sequence[ScalingRun], resamples: int = 200, confidence: float = 0.95, seed: int = 0
) -> ScalingLaw:
    """Fits `L(N, D) = E + A / N^alpha + B / D^beta` to runs with a Huber loss of log-losses.

    Hoffmann et al. resample runs, of which they have hundreds. Intervals of a dozen would be too narrow: resamples lack
    what determines a coefficient. Here all runs stay, and their log-losses are drawn around the law, with a variance
    that is drawn too: few runs leave it open.

    Args:
        runs: sequence of `ScalingRun`, at least six different ones, of at least three sizes and three numbers of
            tokens, which must not all lie on one curve `D = c * N^k`.
        resamples: int. Resamples of the losses, for the intervals.
        confidence: float in (0, 1).
        seed: int. Seed of the bootstrap.

    Returns:
        A `ScalingLaw`.

    Raises:
        ValueError: if there are too few runs, sizes or numbers of tokens, or the tokens are a power of the size.
        ImportError: if SciPy is absent.

    Example:
    ```python
    law = fit_scaling_law([ScalingRun(27_000, 3_000_000, 3.61), ...])
    print(law.forecast(parameters=1_000_000, tokens=50_000_000))
    ```

    Reference:
        [Hoffmann et al., 2022](https://arxiv.org/abs/2203.15556), section 3.3 (approach 3)
    """
    check_number("confidence", confidence, 0, 1, above=True, below=True)
    resamples, seed = check_integer("resamples", resamples), check_seed(seed)
    logs = np.log(check_runs(runs))
    starts = [
        (logs[:, 2].mean() - below_n, alpha, logs[:, 2].mean() - below_d, beta, logs[:, 2].min() - below_e)
        for alpha, beta in product((0.1, 0.3, 0.8), repeat=2)
        for below_n, below_d, below_e in product((1.0, 3.0), (1.0, 3.0), (0.3, 0.05))
    ]
    n, d = _centred(logs)
    best = _best_fit(n, d, logs[:, 2], starts)
    fitted = np.logaddexp.reduce(_terms(best, n, d))
    squares = float(((logs[:, 2] - fitted) ** 2).sum())
    random = np.random.default_rng(seed)
    resampled: list[tuple[float, ...]] = []
    for _ in range(resamples):
        variance = squares / random.chisquare(len(logs) - _NUM_COEFFICIENTS)
        drawn = fitted + np.sqrt(variance) * random.standard_normal(len(logs))
        resampled.append(_coefficients(_best_fit(n, d, drawn, [best]), logs))
    return ScalingLaw(*_coefficients(best, logs), resampled=np.array(resampled), confidence=confidence)


def check_runs(runs: Sequence[ScalingRun]) -> Float64Array:
    """Returns N, D and loss of each run, once, or says why no law can be fitted to them."""
    try:
        table = np.array([(run.parameters, run.tokens, run.loss) for run in runs], np.float64).reshape(-1, 3)
    except (AttributeError, TypeError, ValueError) as error:  # no sequence, or no run in it
        raise ValueError(f"`runs` must be a sequence of ScalingRun. Received: runs={reprlib.repr(runs)}") from error
    # A run that is given twice says nothing more.
    table = table[np.sort(np.unique(table, axis=0, return_index=True)[1])]
    sizes, tokens = _num_values(table)
    fewest = min(sizes, tokens)
    different = len(np.unique(table[:, :2], axis=0))
    if different < _FEWEST_RUNS or fewest < _FEWEST_VALUES or not (np.isfinite(table) & (table > 0)).all():
        raise ValueError(
            f"`runs` must be at least {_FEWEST_RUNS} different ones with finite, positive losses, of at least "
            f"{_FEWEST_VALUES} sizes and {_FEWEST_VALUES} numbers of tokens. "
            f"Received: {different} different runs of {sizes} sizes and {tokens} numbers of tokens"
        )
    correlation = _correlation(np.log(table))
    if correlation > _LARGEST_CORRELATION:
        raise ValueError(
            "`runs` must have numbers of tokens that are no power of the size, which would hide what is due to each: "
            "train some sizes on more or fewer tokens. "
            f"Received: runs whose log N and log D have a correlation of {correlation:.4f}"
        )
    return table


def _num_values(table: Float64Array) -> tuple[int, int]:
    """Returns how many sizes and numbers of tokens differ."""
    return len(np.unique(table[:, 0])), len(np.unique(table[:, 1]))


def _centred(logs: Float64Array) -> Float64Array:
    """Returns log N and log D less their means, which decorrelates the factor and the exponent of a term."""
    centred: Float64Array = (logs[:, :2] - logs[:, :2].mean(axis=0)).T
    return centred


def _correlation(logs: Float64Array) -> float:
    """Returns how closely log N and log D lie on a line, in 0…1."""
    n, d = _centred(logs)
    return float(abs(n @ d) / np.sqrt((n @ n) * (d @ d)))


def _terms(at: Float64Array, n: Float64Array, d: Float64Array) -> Float64Array:
    """Returns the logarithms of the law's three terms for each run."""
    return np.stack([at[0] - at[1] * n, at[2] - at[3] * d, np.full_like(n, at[4])])


def _best_fit(
    n: Float64Array, d: Float64Array, observed: Float64Array, starts: Sequence[npt.ArrayLike]
) -> Float64Array:
    """Returns the best minimum over the starts: each term's logarithm at the mean run and, but for E, its exponent."""

    def residuals(at: Float64Array) -> Float64Array:
        errors: Float64Array = np.logaddexp.reduce(_terms(at, n, d)) - observed
        return errors

    def jacobian(at: Float64Array) -> Float64Array:
        terms = _terms(at, n, d)
        first, second, third = np.exp(terms - np.logaddexp.reduce(terms))
        return np.stack([first, -first * n, second, -second * d, third], axis=1)

    # Bounded, since factors of few runs' exponents would overflow.
    low, high = np.full(5, -np.inf), np.full(5, np.inf)
    low[[1, 3]], high[[1, 3]] = 0, _LARGEST_EXPONENT
    least_squares = import_scipy("optimize").least_squares
    fits = [
        least_squares(residuals, start, jacobian, bounds=(low, high), loss="huber", f_scale=_HUBER_DELTA)
        for start in np.asarray(starts, np.float64)
    ]
    best: Float64Array = min(fits, key=lambda fit: fit.cost).x
    return best


def _coefficients(at: Float64Array, logs: Float64Array) -> tuple[float, float, float, float, float]:
    """Converts a point in centred logarithms to E, A, alpha, B and beta."""
    centre = logs[:, :2].mean(axis=0)
    a, alpha, b, beta, e = at
    return float(np.exp(e)), float(np.exp(a + alpha * centre[0])), alpha, float(np.exp(b + beta * centre[1])), beta


def _loss(coefficients: Sequence[float], parameters: int, tokens: int) -> float:
    e, a, alpha, b, beta = coefficients
    return float(e + a * parameters**-alpha + b * tokens**-beta)
