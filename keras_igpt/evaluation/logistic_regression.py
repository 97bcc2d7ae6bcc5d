"""Multinomial logistic regression by L-BFGS, with large matrix products on the Keras backend."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from keras import ops

from keras_igpt.backend.compilation import compiled
from keras_igpt.backend.row_reductions import row_max, row_sum
from keras_igpt.evaluation.lbfgs import Float64Array, minimize
from keras_igpt.support.checks import check_integer, check_positive_numbers

Float32Array = npt.NDArray[np.float32]
Examples = tuple[Float32Array, npt.NDArray[Any]]

# Decades around the best values for 512 to 1536 features. The paper does not state its grid.
REGULARIZATION_STRENGTHS = (0.0001, 0.001, 0.01, 0.1, 1.0, 10.0)

# Rows per chunk: 32 MB of logits with a thousand classes.
_CHUNK_ROWS = 8192

# Rows used to estimate covariances, and block width of the covariance matrix.
_PRECONDITIONING_ROWS = 16384
_PRECONDITIONING_WIDTH = 2048


@dataclass(frozen=True, eq=False)
class LogisticFit:
    """A multinomial logistic regression with C chosen on validation.

    Attributes:
        classes: array `(K,)`. Labels in increasing order.
        mean: float32 array `(D,)`. Subtracted from the features.
        scale: float32 array `(D,)`. Divides the centred features.
        coefficients: float64 array `(K, D)`, of standardised features.
        intercept: float64 array `(K,)`.
        regularization_strength: float. The chosen C, the inverse weight of the penalty relative to the summed loss.
        strengths: tuple of float. Candidate values of C, increasing.
        validation_accuracies: tuple of float in 0…1, by strength, each of the fit on train alone.
        iterations: int. L-BFGS iterations of the final fit.
        converged: bool. Whether the final fit and all fits for choosing C converged.
    """

    classes: npt.NDArray[Any]
    mean: Float32Array
    scale: Float32Array
    coefficients: Float64Array
    intercept: Float64Array
    regularization_strength: float
    strengths: tuple[float, ...]
    validation_accuracies: tuple[float, ...]
    iterations: int
    converged: bool

    @property
    def validation_accuracy(self) -> float:
        """Validation accuracy in 0…1 of the chosen strength, fitted on train alone."""
        return self.validation_accuracies[self.strengths.index(self.regularization_strength)]

    def predict(self, features: npt.ArrayLike) -> npt.NDArray[Any]:
        """Predicts classes.

        Args:
            features: float array `(B, D)`.

        Returns:
            Array `(B,)` of labels.

        Raises:
            ValueError: if the features have another shape or are not finite.
        """
        inputs = _check_features("features", features)
        if inputs.shape[1] != len(self.mean):
            raise ValueError(f"`features` must have shape (B, {len(self.mean)}). Received: shape {inputs.shape}")
        parameters = np.concatenate([self.coefficients, self.intercept[:, None]], axis=1)
        return np.asarray(self.classes[_predict(_chunks(inputs, self.mean, self.scale), parameters)])

    def score(self, features: npt.ArrayLike, labels: npt.ArrayLike) -> float:
        """Computes the accuracy.

        Args:
            features: float array `(B, D)`.
            labels: array `(B,)`.

        Returns:
            float in 0…1.

        Raises:
            ValueError: if features and labels do not fit together.
        """
        inputs, expected = check_examples("test", features, labels)
        return float((self.predict(inputs) == expected).mean())


def fit_logistic_regression(
    train: tuple[npt.ArrayLike, npt.ArrayLike],
    validation: tuple[npt.ArrayLike, npt.ArrayLike],
    strengths: Sequence[float] = REGULARIZATION_STRENGTHS,
    max_iterations: int = 1000,
    refit: bool = True,
) -> LogisticFit:
    """Fits multinomial logistic regression by L-BFGS: chooses C on validation, then refits on train and validation.

    The objective is that of scikit-learn's `LogisticRegression`: mean cross-entropy plus half the sum of squared
    coefficients over C·B, without penalty on intercepts (with two classes, the coefficients' difference is penalised).
    A fit has converged when the largest gradient entry is at most 1e-4, scikit-learn's tolerance, and the next step's
    expected gain at most 1e-5 of the value. L-BFGS is preconditioned with the inverse Hessian at zero, which takes some
    30 iterations instead of over a thousand for ill-conditioned features. Each fit starts from the previous one.

    Features are standardised with the statistics of the fitted set, so that C means the same at every depth. The paper
    states neither this nor its values of C.

    The device holds one float32 copy of the features, and the logits of 8,192 rows at a time.

    Args:
        train: features `(B, D)` and labels `(B,)`.
        validation: the same of other examples.
        strengths: sequence of float. Values of C to try; in a tie the smallest is taken.
        max_iterations: int. Maximum number of L-BFGS iterations of each fit.
        refit: bool. Whether to refit on train and validation with the chosen C; False keeps the fit on train.

    Returns:
        A `LogisticFit`.

    Raises:
        ValueError: if shapes do not match, there are fewer than two classes, validation has a class that train lacks,
            or features are not finite.

    Example:
    ```python
    raw_pixels = fit_logistic_regression(
        (images.reshape(len(images), -1), labels), (other.reshape(len(other), -1), other_labels)
    )
    accuracy = raw_pixels.score(test_images.reshape(len(test_images), -1), test_labels)
    ```

    Reference:
        [Chen et al., 2020](https://cdn.openai.com/papers/Generative_Pretraining_from_Pixels_V2.pdf), section 3.4
    """
    values = check_strengths(strengths)
    max_iterations = check_integer("max_iterations", max_iterations)
    train_features, train_labels = check_examples("train", *train)
    validation_features, validation_labels = check_examples("validation", *validation)
    classes = check_classes(train_labels, validation_labels)
    if validation_features.shape[1] != train_features.shape[1]:
        raise ValueError(
            f"`validation` must have {train_features.shape[1]} features, as `train`. "
            f"Received: {validation_features.shape[1]}"
        )
    parts = [
        (train_features, np.searchsorted(classes, train_labels)),
        (validation_features, np.searchsorted(classes, validation_labels)),
    ]

    mean, scale = feature_statistics([train_features])
    hessian = _HessianAtZero(train_features, mean, scale, len(classes))
    objective = _Objective(parts[:1], mean, scale, len(classes))
    held_out = list(_chunks(validation_features, mean, scale))
    accuracies: list[float] = []
    converged = True
    chosen = parameters = np.zeros((len(classes), train_features.shape[1] + 1))
    iterations = chosen_iterations = 0
    for strength in values:
        parameters, iterations, ended = _fit(objective, hessian, strength, parameters, max_iterations)
        converged = converged and ended
        accuracy = float((_predict(held_out, parameters) == parts[1][1]).mean())
        if not accuracies or accuracy > max(accuracies):
            chosen, chosen_iterations = parameters, iterations
        accuracies.append(accuracy)
    strength = values[int(np.argmax(accuracies))]

    if refit:
        del objective, held_out  # frees the first copy of the features on the device
        mean, scale = feature_statistics([train_features, validation_features])
        both = _Objective(parts, mean, scale, len(classes))
        chosen, chosen_iterations, ended = _fit(both, hessian, strength, chosen, max_iterations)
        converged = converged and ended
    return LogisticFit(
        classes=classes,
        mean=mean,
        scale=scale,
        coefficients=chosen[:, :-1],
        intercept=chosen[:, -1],
        regularization_strength=strength,
        strengths=values,
        validation_accuracies=tuple(accuracies),
        iterations=chosen_iterations,
        converged=converged,
    )


def check_strengths(strengths: Sequence[float]) -> tuple[float, ...]:
    """Returns values of C in increasing order; raises ValueError if they are not positive numbers."""
    return tuple(sorted(check_positive_numbers("strengths", strengths)))


def check_classes(train_labels: npt.NDArray[Any], validation_labels: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Returns the classes in increasing order; raises ValueError for too few or for unknown validation classes."""
    classes = np.unique(train_labels)
    if len(classes) < 2:
        raise ValueError(
            f"`train` must have at least two classes. Received: {len(classes)} in {len(train_labels)} example(s)"
        )
    unknown = np.setdiff1d(validation_labels, classes)
    if len(unknown):
        raise ValueError(f"`validation` must have no other classes than `train`. Received: {unknown[:5].tolist()}")
    return classes


def check_examples(name: str, features: npt.ArrayLike, labels: npt.ArrayLike) -> Examples:
    """Returns features as float32 `(B, D)` and labels `(B,)`; raises ValueError for other shapes."""
    inputs, classes = _check_features(name, features), np.asarray(labels)
    if classes.shape != inputs.shape[:1]:
        raise ValueError(
            f"`{name}` must be features (B, D) and labels (B,). Received: shapes {inputs.shape} and {classes.shape}"
        )
    return inputs, classes


def _check_features(name: str, features: npt.ArrayLike) -> Float32Array:
    inputs = np.asarray(features, np.float32)
    if inputs.ndim != 2 or not inputs.size:
        raise ValueError(f"`{name}` must be features (B, D) with B at least 1. Received: shape {inputs.shape}")
    if not all(np.isfinite(inputs[rows]).all() for rows in _slices(len(inputs))):
        raise ValueError(f"`{name}` must have finite features. Received: NaN or infinity")
    return inputs


# === Data ===


def _slices(count: int) -> Iterator[slice]:
    return (slice(start, min(start + _CHUNK_ROWS, count)) for start in range(0, count, _CHUNK_ROWS))


def feature_statistics(parts: Sequence[npt.NDArray[np.floating[Any]]]) -> tuple[Float32Array, Float32Array]:
    """Returns each feature's mean and standard deviation over all parts; the latter is 1 for constant features."""
    count = sum(map(len, parts))
    mean = sum(part[rows].sum(axis=0, dtype=np.float64) for part in parts for rows in _slices(len(part))) / count
    squares = sum(
        np.square(part[rows] - mean, dtype=np.float64).sum(axis=0) for part in parts for rows in _slices(len(part))
    )
    deviation = np.sqrt(squares / count)
    # Otherwise float32 rounding of a constant would be scaled to noise of deviation 1.
    varies = deviation > 1e-6 * np.abs(mean)
    return mean.astype(np.float32), np.where(varies, deviation, 1.0).astype(np.float32)


def _standardize(features: Float32Array, mean: Float32Array, scale: Float32Array) -> Float32Array:
    rows: Float32Array = features - mean
    rows /= scale
    return rows


def _chunks(features: Float32Array, mean: Float32Array, scale: Float32Array) -> Iterator[tuple[Any, int]]:
    """Yields standardised rows on the device, with a column of ones for the intercept, and their number.

    The last chunk is padded with zeros. To compile few shapes, small sets are padded to a power of two.
    """
    size = min(_CHUNK_ROWS, 1 << (len(features) - 1).bit_length())
    for rows in _slices(len(features)):
        count = rows.stop - rows.start
        chunk = np.zeros((size, features.shape[1] + 1), np.float32)
        chunk[:count, :-1] = _standardize(features[rows], mean, scale)
        chunk[:count, -1] = 1.0
        yield ops.convert_to_tensor(chunk), count


# === On the device ===


def _losses_and_gradient(features: Any, labels: Any, parameters: Any, gradient: Any) -> tuple[Any, Any]:
    """Returns each row's cross-entropy, and `gradient` plus that of their sum; padding does not contribute to it."""
    logits = ops.matmul(features, ops.transpose(parameters))
    shifted = logits - row_max(logits)
    exponentials = ops.exp(shifted)
    total = row_sum(exponentials)
    expected = ops.one_hot(labels, parameters.shape[0], dtype="float32")
    losses = ops.log(total) - row_sum(expected * shifted)
    # Transposing the small factor takes a third of the time in PyTorch.
    return losses[:, 0], gradient + ops.matmul(ops.transpose(exponentials / total - expected), features)


def _most_likely(features: Any, parameters: Any) -> Any:
    return ops.argmax(ops.matmul(features, ops.transpose(parameters)), axis=-1)


def _predict(chunks: Iterator[tuple[Any, int]] | list[tuple[Any, int]], parameters: Float64Array) -> Any:
    """Returns indices of the most likely classes, int array `(B,)`."""
    on_device = ops.convert_to_tensor(parameters.astype(np.float32))
    predict = compiled(_most_likely)
    return np.concatenate([ops.convert_to_numpy(predict(rows, on_device))[:count] for rows, count in chunks])


class _Objective:
    """The mean cross-entropy of rows on the device, and its gradient, for parameters `(K, D + 1)`."""

    def __init__(
        self,
        parts: Sequence[tuple[Float32Array, npt.NDArray[Any]]],
        mean: Float32Array,
        scale: Float32Array,
        num_classes: int,
    ) -> None:
        self.num_classes = num_classes
        self.count = sum(len(labels) for _, labels in parts)
        self._chunks = []
        for features, labels in parts:
            for rows, (chunk, count) in zip(_slices(len(labels)), _chunks(features, mean, scale), strict=True):
                padded = np.pad(labels[rows].astype(np.int32), (0, chunk.shape[0] - count))
                self._chunks.append((chunk, ops.convert_to_tensor(padded), count))

    def __call__(self, parameters: Float64Array) -> tuple[float, Float64Array]:
        step = compiled(_losses_and_gradient)
        on_device = ops.convert_to_tensor(parameters.astype(np.float32))
        gradient = ops.zeros(parameters.shape, "float32")
        losses = []
        for chunk, labels, count in self._chunks:
            chunk_losses, gradient = step(chunk, labels, on_device, gradient)
            losses.append((chunk_losses, count))
        # Summed in float64; a float32 sum would be too coarse for the line search.
        total = sum(ops.convert_to_numpy(rows)[:count].sum(dtype=np.float64) for rows, count in losses)
        return float(total) / self.count, ops.convert_to_numpy(gradient).astype(np.float64) / self.count


# === One fit ===


class _HessianAtZero:
    """The inverse Hessian at zero coefficients, where all classes are equally likely: (covariance / K + penalty)⁻¹.

    Covariances are estimated from some of the rows, within blocks of at most 2,048 columns.
    """

    def __init__(self, features: Float32Array, mean: Float32Array, scale: Float32Array, num_classes: int) -> None:
        count = min(len(features), _PRECONDITIONING_ROWS)
        some = np.linspace(0, len(features) - 1, count).astype(np.int64)
        width = features.shape[1]
        blocks = np.array_split(np.arange(width), -(-width // _PRECONDITIONING_WIDTH))
        self._num_classes = num_classes
        self._blocks = []
        for block in blocks:
            columns = slice(block[0], block[-1] + 1)
            rows = _standardize(features[some, columns], mean[columns], scale[columns])
            if count < rows.shape[1]:
                _, values, directions = np.linalg.svd(rows.astype(np.float64), full_matrices=False)
                variances = values**2 / count
            else:
                variances, vectors = np.linalg.eigh((rows.T @ rows / count).astype(np.float64))
                directions = vectors.T
            self._blocks.append((columns, np.maximum(variances, 0.0), directions))

    def solve(self, gradient: Float64Array, penalty: float) -> Float64Array:
        """Multiplies a gradient `(K, D + 1)` by the inverse Hessian."""
        product = np.empty_like(gradient)
        for columns, variances, directions in self._blocks:
            # With fewer rows than columns, the remaining directions have zero variance.
            part = gradient[:, columns]
            excess = 1 / (variances / self._num_classes + penalty) - 1 / penalty
            product[:, columns] = part / penalty + ((part @ directions.T) * excess) @ directions
        product[:, -1] = gradient[:, -1] * self._num_classes
        return product


def _fit(
    data_loss: _Objective, hessian: _HessianAtZero, strength: float, start: Float64Array, max_iterations: int
) -> tuple[Float64Array, int, bool]:
    """Minimises the penalised loss for one C; returns parameters, iterations, and whether it converged."""
    # With two classes the coefficients are ±w/2, whose squares sum to half of w's.
    penalty = (2.0 if data_loss.num_classes == 2 else 1.0) / (strength * data_loss.count)

    def objective(parameters: Float64Array) -> tuple[float, Float64Array]:
        value, gradient = data_loss(parameters)
        coefficients = parameters[:, :-1]
        gradient[:, :-1] += penalty * coefficients
        return value + 0.5 * penalty * float(np.square(coefficients).sum()), gradient

    return minimize(objective, start, lambda gradient: hessian.solve(gradient, penalty), max_iterations)
