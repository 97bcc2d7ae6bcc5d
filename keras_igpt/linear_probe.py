"""Linear probes: how much of the classes can be read off the features of each depth."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, Self

import keras
import numpy as np
import numpy.typing as npt
from keras import ops

from keras_igpt.inference import predict_whole_batches
from keras_igpt.pixel_models import PixelModel

Examples = tuple[npt.ArrayLike, npt.ArrayLike]

# Smaller feature matrices are fitted on one thread: handing out products that small costs ten times their work.
_ONE_THREAD_BELOW = 1 << 22

# A coarse logarithmic grid; the paper does not state its strengths.
REGULARIZATION_STRENGTHS = (0.01, 0.1, 1.0)


class FeatureExtractor(keras.Model):
    """Computes the features f^l of chosen depths, pooled over positions inside the compiled graph.

    `predict` streams a set of any size through it: what leaves the device is `(B, depths, D)`, not every position.

    Args:
        language_model: an `ImageGPTCausalLM` or `ImageGPTMaskedLM`; its weights are read, never changed.
        layers: sequence of int in 0…L. The depths.
        which: `"normed"` (n^l, the paper's) or `"residual"` (h^l).

    Call arguments:
        inputs: what the language model takes.

    Returns:
        float32 tensor `(B, len(layers), D)`.

    Example:
    ```python
    features = FeatureExtractor(lm, layers=[6, 12]).predict(token_ids)   # (B, 2, D)
    ```
    """

    def __init__(
        self,
        language_model: PixelModel,
        layers: Sequence[int],
        which: Literal["normed", "residual"] = "normed",
    ) -> None:
        super().__init__(name="feature_extractor", dtype="float32")
        self.language_model = language_model
        self._depths = tuple(layers)
        self._which = which
        self.built = True

    def call(self, inputs: Any) -> Any:
        features = self.language_model.pooled_features(inputs, which=self._which)
        return ops.take(features, list(self._depths), axis=1)


@dataclass(frozen=True)
class LogisticFit:
    """A multinomial logistic regression whose strength was chosen on validation.

    Attributes:
        pipeline: the scikit-learn pipeline (standardisation, regression), refitted on train and validation.
        regularization_strength: float. The chosen C, the inverse of the penalty's weight.
        validation_accuracy: float in 0…1, of the fit on train alone.
        iterations: int. L-BFGS iterations of the refit.
        converged: bool. Whether the refit and all fits that chose C ended by their tolerance.
    """

    pipeline: Any
    regularization_strength: float
    validation_accuracy: float
    iterations: int
    converged: bool


@dataclass(frozen=True)
class LayerReport:
    """One depth's line of a probe report; see `LogisticFit` for the figures.

    Attributes:
        layer: int in 0…L.
        regularization_strength: float.
        validation_accuracy: float in 0…1.
        iterations: int.
        converged: bool.
    """

    layer: int
    regularization_strength: float
    validation_accuracy: float
    iterations: int
    converged: bool


@dataclass(frozen=True)
class ProbeReport:
    """What a linear probe did, enough to repeat it.

    Attributes:
        layers: tuple of `LayerReport`, by depth.
        best_layer: int. Depth of the best validation accuracy, the lower one of a tie.
        which: `"normed"` or `"residual"`.
        solver: str. Method of the regression.
        num_train: int. Training pictures.
        num_validation: int. Validation pictures.
        num_classes: int.
    """

    layers: tuple[LayerReport, ...]
    best_layer: int
    which: str
    solver: str
    num_train: int
    num_validation: int
    num_classes: int

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the report as JSON.

        Args:
            path: file to write.
        """
        with open(path, "w", encoding="utf-8") as file:
            json.dump(asdict(self), file, indent=2)


def fit_logistic_regression(
    train: tuple[npt.ArrayLike, npt.ArrayLike],
    validation: tuple[npt.ArrayLike, npt.ArrayLike],
    strengths: Sequence[float] = REGULARIZATION_STRENGTHS,
    max_iterations: int = 1000,
) -> LogisticFit:
    """Fits multinomial logistic regression by L-BFGS: strength chosen on validation, then refitted on both.

    Features are standardised with the statistics of what is fitted, which makes L-BFGS converge and C mean the same at
    every depth. The paper states the solver, not these.

    Args:
        train: features `(B, D)` and labels `(B,)`.
        validation: the same of other examples.
        strengths: sequence of float. Values of C to try; the first of equally good ones is taken.
        max_iterations: int. L-BFGS iterations at most.

    Returns:
        A `LogisticFit`.

    Raises:
        ValueError: if shapes do not fit, there are fewer than two classes, or features are not finite.
        ImportError: if scikit-learn is absent.

    Example:
    ```python
    raw_pixels = fit_logistic_regression(
        (images.reshape(len(images), -1), labels), (other.reshape(len(other), -1), other_labels)
    )
    ```

    Reference:
        [Chen et al., 2020](https://cdn.openai.com/papers/Generative_Pretraining_from_Pixels_V2.pdf), section 3.4
    """
    try:
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler
        from threadpoolctl import threadpool_limits
    except ImportError as error:
        raise ImportError("A linear probe needs scikit-learn: pip install 'keras_igpt[probe]'") from error
    if not strengths:
        raise ValueError("`strengths` must hold at least one value of C. Received: none")
    train_features, train_labels = _check_examples("train", *train)
    validation_features, validation_labels = _check_examples("validation", *validation)

    converged = True

    def fit(strength: float, features: Any, labels: Any) -> Any:
        nonlocal converged
        pipeline = make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=max_iterations))
        threads = 1 if features.size < _ONE_THREAD_BELOW else None
        with threadpool_limits(threads), warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            pipeline.fit(features, labels)
        for warning in caught:
            # Said in the result for this depth (`converged`) rather than as a warning about none in particular.
            if issubclass(warning.category, ConvergenceWarning):
                converged = False
            else:
                warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
        return pipeline

    accuracies = [
        float(fit(strength, train_features, train_labels).score(validation_features, validation_labels))
        for strength in strengths
    ]
    chosen = int(np.argmax(accuracies))
    pipeline = fit(
        strengths[chosen],
        np.concatenate([train_features, validation_features]),
        np.concatenate([train_labels, validation_labels]),
    )
    return LogisticFit(
        pipeline=pipeline,
        regularization_strength=float(strengths[chosen]),
        validation_accuracy=accuracies[chosen],
        iterations=int(np.max(pipeline[-1].n_iter_)),
        converged=converged,
    )


class LinearProbe:
    """Reads classes off the frozen features of every depth with logistic regression.

    Features are f^l, means over positions of the normed input of block l; l = L is the final norm's output. A BERT
    model's inputs are masked, as they were in training. The weights of the model are not changed.

    Args:
        language_model: an `ImageGPTCausalLM` or `ImageGPTMaskedLM`, trained or not.
        layers: `"all"` for 0…L, or a sequence of depths.
        which: `"normed"`, the paper's, or `"residual"` for the raw stream h^l.
        strengths: sequence of float. Values of C to choose from on validation.
        max_iterations: int. L-BFGS iterations at most.
        batch_size: int. Pictures whose features are computed together.

    Raises:
        ValueError: if an argument is out of its range.

    Example:
    ```python
    probe = LinearProbe(lm, layers="all").fit((images, labels), (more_images, more_labels))
    print(probe.report.best_layer)
    accuracies = probe.score((test_images, test_labels))   # by depth
    ```

    Reference:
        [Chen et al., 2020](https://cdn.openai.com/papers/Generative_Pretraining_from_Pixels_V2.pdf), sections 2.5, 3.4
    """

    def __init__(
        self,
        language_model: PixelModel,
        layers: Literal["all"] | Sequence[int] = "all",
        which: Literal["normed", "residual"] = "normed",
        strengths: Sequence[float] = REGULARIZATION_STRENGTHS,
        max_iterations: int = 1000,
        batch_size: int = 128,
    ) -> None:
        if not isinstance(language_model, PixelModel):
            raise ValueError(
                "`language_model` must be an ImageGPTCausalLM or ImageGPTMaskedLM. "
                f"Received: {type(language_model).__name__}"
            )
        depth = language_model.backbone.num_layers
        chosen = tuple(range(depth + 1)) if layers == "all" else tuple(layers)
        if not chosen or not all(isinstance(layer, int) and 0 <= layer <= depth for layer in chosen):
            raise ValueError(f"`layers` must be 'all' or depths in 0…{depth}. Received: layers={layers!r}")
        if which not in ("normed", "residual"):
            raise ValueError(f"`which` must be 'normed' or 'residual'. Received: which={which!r}")
        self._language_model = language_model
        self._layers = chosen
        self._which = which
        self._strengths = tuple(strengths)
        self._max_iterations = max_iterations
        self._batch_size = batch_size
        self._extractor = FeatureExtractor(language_model, chosen, which)
        self._fits: dict[int, LogisticFit] | None = None
        self._report: ProbeReport | None = None

    @property
    def report(self) -> ProbeReport:
        """What `fit` did; raises `ValueError` before it."""
        self._fitted()
        assert self._report is not None
        return self._report

    def features(self, inputs: npt.ArrayLike) -> npt.NDArray[np.float32]:
        """Computes the pooled features of the chosen depths.

        Args:
            inputs: uint8 images `(B, H, W, C)`, which the model's palette encodes, or token ids `(B, T)`.

        Returns:
            float32 array `(B, len(layers), D)`.

        Raises:
            ValueError: if inputs do not fit the model.
        """
        array = np.asarray(inputs)
        if array.ndim == 4:
            if self._language_model.palette is None:
                raise ValueError(
                    "`inputs` must be token ids, since the model has no palette to encode images with. "
                    f"Received: shape {array.shape}"
                )
            array = self._language_model.palette.encode(array)
        self._language_model.check_token_arrays(array, "inputs", padded=True)
        return predict_whole_batches(self._extractor, {"token_ids": array}, self._batch_size)

    def fit(self, train: Examples, validation: Examples) -> Self:
        """Fits one regression a depth: C chosen on validation, then refitted on train and validation.

        Args:
            train: inputs (as in `features`) and labels `(B,)`.
            validation: the same of other pictures; they also choose the best depth.

        Returns:
            The probe itself.

        Raises:
            ValueError: if inputs and labels do not fit.
        """
        train_features, train_labels = self.features(train[0]), np.asarray(train[1])
        validation_features = self.features(validation[0])
        validation_labels = np.asarray(validation[1])
        fits = {
            layer: fit_logistic_regression(
                (train_features[:, position], train_labels),
                (validation_features[:, position], validation_labels),
                self._strengths,
                self._max_iterations,
            )
            for position, layer in enumerate(self._layers)
        }
        self._fits = fits
        self._report = ProbeReport(
            layers=tuple(
                LayerReport(
                    layer,
                    fit.regularization_strength,
                    fit.validation_accuracy,
                    fit.iterations,
                    fit.converged,
                )
                for layer, fit in fits.items()
            ),
            best_layer=max(fits, key=lambda layer: (fits[layer].validation_accuracy, -layer)),
            which=self._which,
            solver="scikit-learn L-BFGS, standardised features",
            num_train=len(train_labels),
            num_validation=len(validation_labels),
            num_classes=len(np.unique(train_labels)),
        )
        return self

    def score(self, test: Examples) -> dict[int, float]:
        """Computes the accuracy of every depth.

        Args:
            test: inputs (as in `features`) and labels `(B,)`.

        Returns:
            Accuracy in 0…1 by depth.

        Raises:
            ValueError: if the probe is not fitted, or inputs and labels do not fit.
        """
        fits = self._fitted()
        features = self.features(test[0])
        accuracies = {}
        for position, layer in enumerate(self._layers):
            examples, labels = _check_examples("test", features[:, position], test[1])
            accuracies[layer] = float(fits[layer].pipeline.score(examples, labels))
        return accuracies

    def predict(self, inputs: npt.ArrayLike, layer: int | None = None) -> npt.NDArray[Any]:
        """Predicts classes from one depth.

        Args:
            inputs: as in `features`.
            layer: int. The depth; the best one on validation by default.

        Returns:
            Array `(B,)` of labels.

        Raises:
            ValueError: if the probe is not fitted, or not at that depth.
        """
        fits = self._fitted()
        layer = self.report.best_layer if layer is None else layer
        if layer not in fits:
            raise ValueError(f"`layer` must be one of {list(fits)}. Received: layer={layer}")
        features = self.features(inputs)[:, self._layers.index(layer)]
        return np.asarray(fits[layer].pipeline.predict(features))

    def _fitted(self) -> dict[int, LogisticFit]:
        if self._fits is None:
            raise ValueError(
                "The probe must be fitted before it is read: call `fit(train, validation)`. "
                "Received: an unfitted LinearProbe"
            )
        return self._fits


def _check_examples(
    name: str, features: npt.ArrayLike, labels: npt.ArrayLike
) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    inputs, classes = np.asarray(features, np.float32), np.asarray(labels)
    if inputs.ndim != 2 or classes.shape != inputs.shape[:1] or len(inputs) < 1:
        raise ValueError(
            f"`{name}` must be features (B, D) and labels (B,) with B at least 1. "
            f"Received: shapes {inputs.shape} and {classes.shape}"
        )
    if name == "train" and len(np.unique(classes)) < 2:
        raise ValueError(
            f"`train` must have at least two classes. Received: {len(np.unique(classes))} in {len(classes)} example(s)"
        )
    if not np.isfinite(inputs).all():
        raise ValueError(f"`{name}` must have finite features. Received: NaN or infinity")
    return inputs, classes
