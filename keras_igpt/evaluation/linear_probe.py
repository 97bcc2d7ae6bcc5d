"""Linear probes on the features of each depth."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, Self

import keras
import numpy as np
import numpy.typing as npt

from keras_igpt.data.inputs import LabeledPictures, Pictures, as_labeled_examples
from keras_igpt.evaluation.features import FeatureExtractor, Float32Array, LabeledFeatures, Which
from keras_igpt.evaluation.intervals import measure_accuracy
from keras_igpt.evaluation.logistic_regression import (
    REGULARIZATION_STRENGTHS,
    LogisticFit,
    check_classes,
    check_strengths,
    fit_logistic_regression,
)
from keras_igpt.evaluation.probe_report import (
    FinalReport,
    LayerReport,
    ProbeReport,
    ValidationReport,
    describe_probed,
)
from keras_igpt.objectives.masked_lm import ImageGPTMaskedLM
from keras_igpt.objectives.pixel_model import PixelModel
from keras_igpt.support.checks import check_integer
from keras_igpt.support.progress import told

_SOLVER = "L-BFGS, multinomial, L2 penalty, standardised features"


class LinearProbe:
    """Predicts classes from the frozen features of every depth by logistic regression.

    Features are f^l, means over positions of the normed input of block l; l = L is the final norm's output. They are
    computed once, without augmentation. A BERT model's inputs are masked, as in training. To judge the same features in
    other ways too, compute them with a `FeatureExtractor` and pass them in place of pictures.

    Args:
        language_model: an `ImageGPTCausalLM` or `ImageGPTMaskedLM`; its weights are not changed.
        layers: `"all"` for 0…L, or a sequence of depths.
        which: `"normed"`, as in the paper, or `"residual"` for the residual stream h^l.
        concatenate: int. Also probe this many concatenated depths, centred on the best one; odd. The paper uses 5, for
            iGPT-XL only. None for single depths only.
        strengths: sequence of float. Values of C to choose from on validation.
        max_iterations: int. Maximum number of L-BFGS iterations.
        batch_size: int. Batch size of feature extraction.
        folder: folder for feature files (`train.npy`, `validation.npy`, `test.npy`) of `4 · B · depths · D` bytes. None
            keeps features in memory.

    Raises:
        ValueError: if an argument is out of range.

    Example:
    ```python
    probe = LinearProbe(lm, layers="all").fit(data.train, data.validation)   # or pairs of arrays
    accuracies = probe.score(data.test)   # by depth
    print(probe.report)
    probe.report.save("probe.json")
    ```

    Or with one pass for several ways to judge:
    ```python
    extractor = FeatureExtractor(lm)
    train, validation, test = (extractor.extract_labeled(part) for part in (data.train, data.validation, data.test))
    LinearProbe(lm).fit(train, validation).score(test)
    nearest_neighbors(train, validation, test)
    depth_similarity(validation.features)
    ```

    Reference:
        [Chen et al., 2020](https://cdn.openai.com/papers/Generative_Pretraining_from_Pixels_V2.pdf), sections 2.5, 3.4
    """

    def __init__(
        self,
        language_model: PixelModel,
        layers: Literal["all"] | Sequence[int] = "all",
        which: Which = "normed",
        concatenate: int | None = None,
        strengths: Sequence[float] = REGULARIZATION_STRENGTHS,
        max_iterations: int = 1000,
        batch_size: int = 128,
        folder: str | os.PathLike[str] | None = None,
    ) -> None:
        self._extractor = FeatureExtractor(language_model, layers, which)
        depths = self._extractor.depths
        if concatenate is not None:
            concatenate = check_integer("concatenate", concatenate)
            if not 1 < concatenate <= len(depths) or not concatenate % 2:
                raise ValueError(
                    f"`concatenate` must be an odd number of depths from 3 to {len(depths)}, or None. "
                    f"Received: concatenate={concatenate}"
                )
        self._concatenate = concatenate
        self._strengths = check_strengths(strengths)
        self._max_iterations = check_integer("max_iterations", max_iterations)
        self._batch_size = check_integer("batch_size", batch_size)
        self._folder = None if folder is None else Path(folder)
        # Of single depths, for `predict`.
        self._extractors: dict[int, FeatureExtractor] = {}
        self._fits: dict[tuple[int, ...], LogisticFit] | None = None
        self._report: ProbeReport | None = None

    @property
    def report(self) -> ProbeReport:
        """The results of `fit` and `score`; raises `ValueError` before `fit`."""
        self._fitted()
        assert self._report is not None
        return self._report

    def features(self, inputs: Pictures) -> Float32Array:
        """Computes the pooled features of the chosen depths.

        Args:
            inputs: pictures or token ids, as in `ImageGPTCausalLM.score`.

        Returns:
            float32 array `(B, len(layers), D)`.

        Raises:
            ValueError: if inputs do not fit the model.
        """
        return self._extractor.extract(inputs, self._batch_size)

    def fit(self, train: LabeledPictures | LabeledFeatures, validation: LabeledPictures | LabeledFeatures) -> Self:
        """Fits one regression per depth: chooses C on validation, then refits on train and validation.

        Args:
            train: `LabeledImages`, `LabeledTokens` or `ImageFiles`, or a pair of images or token ids and integer labels
                `(B,)`; or the `LabeledFeatures` of a `FeatureExtractor` with the probe's `layers` and `which`.
            validation: the same, for choosing C and the best depth.

        Returns:
            The probe itself.

        Raises:
            ValueError: if inputs do not fit the model or the labels.
            OSError: if the folder of features cannot be written, or the disk is full.
        """
        sources = {name: self._checked(name, part) for name, part in (("train", train), ("validation", validation))}
        classes = check_classes(*(source.labels for source in sources.values()))
        learned, held_out = (self._extract(name, source) for name, source in sources.items())
        fits: dict[tuple[int, ...], LogisticFit] = {}

        def fit(layers: tuple[int, ...]) -> LayerReport:
            positions = self._positions(layers)
            fits[layers] = fitted = fit_logistic_regression(
                (learned.at(*positions), learned.labels),
                (held_out.at(*positions), held_out.labels),
                self._strengths,
                self._max_iterations,
            )
            strength, accuracy = fitted.regularization_strength, fitted.validation_accuracy
            return LayerReport(layers, strength, accuracy, fitted.iterations, fitted.converged)

        lines = tuple(fit((layer,)) for layer in told(self._extractor.depths, "linear probes", "depths"))
        best = max(lines, key=lambda line: (line.validation_accuracy, -line.layers[0])).layers[0]
        concatenation = None if self._concatenate is None else fit(self._around(best, self._concatenate))
        self._fits = fits
        self._report = self._make_report(
            ValidationReport(lines, best, concatenation), len(learned), len(held_out), len(classes)
        )
        return self

    def score(self, test: LabeledPictures | LabeledFeatures) -> dict[int, float]:
        """Computes the accuracy of every depth and adds it to the report.

        Args:
            test: as in `fit`.

        Returns:
            Accuracy in 0…1 by depth. `report` has them with 95% intervals, and that of concatenated depths.

        Raises:
            ValueError: if the probe is not fitted, or inputs do not fit the model or the labels.

        Warns:
            UserWarning: if `test` has classes that the probe was not fitted to.
        """
        fits = self._fitted()
        source = self._checked("test", test)
        unknown = np.setdiff1d(source.labels, next(iter(fits.values())).classes)
        if len(unknown):
            warnings.warn(
                f"`test` has classes that the probe was not fitted to, whose pictures count as wrong: {unknown}",
                stacklevel=2,
            )
        examples = self._extract("test", source)
        measured = {
            layers: measure_accuracy(fitted.predict(examples.at(*self._positions(layers))), examples.labels)
            for layers, fitted in fits.items()
        }
        by_depth = {layers[0]: result for layers, result in measured.items() if len(layers) == 1}
        accuracies = {depth: result.accuracy for depth, result in by_depth.items()}
        together = next((result for layers, result in measured.items() if len(layers) > 1), None)
        final = FinalReport(
            len(examples), accuracies, None if together is None else together.accuracy, by_depth, together
        )
        self._report = replace(self.report, final_on_test=final)
        return accuracies

    def predict(self, inputs: Pictures, layer: int | None = None) -> npt.NDArray[Any]:
        """Predicts classes from one depth.

        Args:
            inputs: as in `features`.
            layer: int. The depth; by default the best one on validation.

        Returns:
            Array `(B,)` of labels.

        Raises:
            ValueError: if the probe is not fitted, or not for that depth.
        """
        fits = self._fitted()
        layer = self.report.best_layer if layer is None else check_integer("layer", layer, 0)
        if (layer,) not in fits:
            raise ValueError(f"`layer` must be one of {list(self._extractor.depths)}. Received: layer={layer}")
        if layer not in self._extractors:
            extractor = self._extractor
            self._extractors[layer] = FeatureExtractor(extractor.language_model, [layer], extractor.which)
        return fits[layer,].predict(self._extractors[layer].extract(inputs, self._batch_size)[:, 0])

    def _fitted(self) -> dict[tuple[int, ...], LogisticFit]:
        if self._fits is None:
            raise ValueError(
                "The probe must be fitted first: call `fit(train, validation)`. Received: an unfitted LinearProbe"
            )
        return self._fits

    def _positions(self, layers: tuple[int, ...]) -> list[int]:
        """Indices of depths among the extracted ones."""
        return [self._extractor.depths.index(layer) for layer in layers]

    def _checked(self, name: str, given: LabeledPictures | LabeledFeatures) -> Any:
        """Returns features as given, and pictures as examples; raises ValueError if they do not fit the model."""
        if not isinstance(given, LabeledFeatures):
            return as_labeled_examples(self._extractor.language_model, given, name)
        expected = (len(self._extractor.depths), self._extractor.language_model.backbone.hidden_dim)
        if given.features.shape[1:] != expected:
            raise ValueError(
                f"`{name}` must be features of the probe's depths, (B, {expected[0]}, {expected[1]}). "
                f"Received: shape {given.features.shape}"
            )
        return given

    def _extract(self, name: str, source: Any) -> LabeledFeatures:
        if isinstance(source, LabeledFeatures):
            return source
        path = None if self._folder is None else self._folder / f"{name}.npy"
        return self._extractor.extract_labeled(source, self._batch_size, path)

    def _around(self, best: int, count: int) -> tuple[int, ...]:
        """Returns `count` depths centred on the best one, shifted inwards at the ends."""
        depths = sorted(self._extractor.depths)
        first = min(max(depths.index(best) - count // 2, 0), len(depths) - count)
        return tuple(depths[first : first + count])

    def _make_report(
        self, chosen: ValidationReport, num_train: int, num_validation: int, num_classes: int
    ) -> ProbeReport:
        language_model = self._extractor.language_model
        masked = isinstance(language_model, ImageGPTMaskedLM)
        return ProbeReport(
            chosen_on_validation=chosen,
            final_on_test=None,
            model=describe_probed(language_model),
            which=self._extractor.which,
            pooling="mean over positions",
            solver=_SOLVER,
            strengths=self._strengths,
            max_iterations=self._max_iterations,
            num_train=num_train,
            num_validation=num_validation,
            num_classes=num_classes,
            mask_seed=language_model.mask_seed if masked else None,
            backend=keras.backend.backend(),
        )
