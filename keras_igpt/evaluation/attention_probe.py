"""Attention-pooling probes: a classifier that learns which positions of the frozen features to read."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Self

import keras
import numpy as np
import numpy.typing as npt
from keras import ops

from keras_igpt.backend.devices import host_memory
from keras_igpt.backend.whole_steps import WholeStepModel
from keras_igpt.data.inputs import LabeledPictures, Pictures, as_examples, as_labeled_examples
from keras_igpt.data.token_source import PictureExamples
from keras_igpt.evaluation.intervals import MeasuredAccuracy, measure_accuracy
from keras_igpt.evaluation.logistic_regression import check_classes, feature_statistics
from keras_igpt.inference.compiled import check_finite, computed_rows
from keras_igpt.model.cost import memory_text
from keras_igpt.objectives.pixel_model import PixelModel, check_language_model
from keras_igpt.objectives.token_model import token_ids_of
from keras_igpt.support.checks import check_integer, check_positive_numbers
from keras_igpt.support.files import new_mapped_array, whole_file, write_json
from keras_igpt.support.progress import Progress
from keras_igpt.support.randomness import permutation

LEARNING_RATES = (0.01, 0.003, 0.001)

Features = npt.NDArray[np.floating[Any]]
_Part = tuple[Features, npt.NDArray[Any]]


@dataclass(frozen=True)
class AttentionReport:
    """Settings and results of an attention-pooling probe.

    Attributes:
        layer: int in 0…L. Depth of the features.
        num_heads: int.
        rates: tuple of float. Candidate learning rates.
        validation_accuracies: tuple of float in 0…1, by rate, each at its best epoch, of the training on train alone;
            0 where that diverged in its first epoch.
        learning_rate: float. The chosen rate.
        epochs: int. Epochs of the refit on train and validation, those of the best validation accuracy.
        num_train: int. Training pictures.
        num_validation: int. Validation pictures.
        seed: int. Seed of initial weights and batches.
        measured: `MeasuredAccuracy` of the last set scored, or None.
    """

    layer: int
    num_heads: int
    rates: tuple[float, ...]
    validation_accuracies: tuple[float, ...]
    learning_rate: float
    epochs: int
    num_train: int
    num_validation: int
    seed: int
    measured: MeasuredAccuracy | None

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the report as JSON, atomically."""
        write_json(path, asdict(self))


class AttentionProbe:
    """Predicts classes from the frozen features of one depth by attention pooling and a linear classifier.

    One learned query attends to the positions of n^l, in several heads, in place of the mean over positions. This is an
    extension: the paper pools by the mean. It shows what a position knows but the mean does not.

    Features of all positions are computed once, without augmentation. Those that are trained and validated on are kept
    as float16: `2 · B · T · D` bytes, 3.3 GB for 50,000 pictures of 16x16 at width 128. Those to be predicted are used
    as they come and not kept. A BERT model's inputs are masked, as in training.

    Args:
        language_model: an `ImageGPTCausalLM` or `ImageGPTMaskedLM`; its weights are not changed.
        layer: int in 0…L. Depth of the features, such as `LinearProbe`'s best.
        num_heads: int. Heads of the attention; by default as many as the model's.
        rates: sequence of float. Learning rates of Adam to choose from on validation.
        max_epochs: int. Maximum number of epochs of each training.
        patience: int. A training ends after this many epochs without a better validation accuracy.
        batch_size: int. Of feature extraction and training.
        seed: int. Seed of initial weights and batches.
        folder: folder for `attention_train.npy` and `attention_validation.npy`. None keeps their features in memory.

    Raises:
        ValueError: if an argument is out of range.

    Example:
    ```python
    attention = AttentionProbe(lm, probe.report.best_layer).fit(data.train, data.validation)
    accuracy = attention.score(data.test)
    print(accuracy, accuracy.compare(probe.report.measured))
    ```

    Reference:
        [Yu et al., 2022, CoCa](https://arxiv.org/abs/2205.01917), section 3.2;
        [El-Nouby et al., 2024, AIM](https://arxiv.org/abs/2401.08541), section 3
    """

    def __init__(
        self,
        language_model: PixelModel,
        layer: int,
        num_heads: int | None = None,
        rates: Sequence[float] = LEARNING_RATES,
        max_epochs: int = 50,
        patience: int = 5,
        batch_size: int = 128,
        seed: int = 0,
        folder: str | os.PathLike[str] | None = None,
    ) -> None:
        check_language_model(language_model)
        backbone = language_model.backbone
        self._layer = check_integer("layer", layer, 0, backbone.num_layers)
        self._num_heads = backbone.num_heads if num_heads is None else check_integer("num_heads", num_heads)
        if backbone.hidden_dim % self._num_heads:
            raise ValueError(
                f"`num_heads` must divide the width of the features, {backbone.hidden_dim}. "
                f"Received: num_heads={num_heads}"
            )
        self._rates = check_positive_numbers("rates", rates)
        self._max_epochs, self._patience = check_integer("max_epochs", max_epochs), check_integer("patience", patience)
        self._batch_size = check_integer("batch_size", batch_size)
        # NumPy's and PyTorch's generators take 32 bits.
        self._seed = check_integer("seed", seed, 0, 2**32 - 1)
        self._folder = None if folder is None else Path(folder)
        self._extractor = _PositionFeatures(language_model, self._layer)
        self._fit: AttentionFit | None = None
        self._report: AttentionReport | None = None

    @property
    def report(self) -> AttentionReport:
        """The results of `fit` and `score`; raises `ValueError` before `fit`."""
        self._fitted()
        assert self._report is not None
        return self._report

    def fit(self, train: LabeledPictures, validation: LabeledPictures) -> Self:
        """Chooses rate and epochs on validation, then refits on train and validation.

        Args:
            train: `LabeledImages`, `LabeledTokens` or `ImageFiles`, or a pair of images or token ids and integer labels
                `(B,)`.
            validation: the same, for the choice.

        Returns:
            The probe itself.

        Raises:
            ValueError: if inputs do not fit the model or the labels, their features do not fit into memory, or training
                diverges with every rate.
            OSError: if the disk is full.
        """
        language_model = self._extractor.language_model
        sources = [
            as_labeled_examples(language_model, part, name)
            for name, part in (("train", train), ("validation", validation))
        ]
        check_classes(sources[0].labels, sources[1].labels)
        self.check_memory(sum(map(len, sources)))
        parts = [
            (self._features(source, name), source.labels)
            for name, source in zip(("train", "validation"), sources, strict=True)
        ]
        self._fit = fitted = fit_attention_pooling(
            parts[0],
            parts[1],
            self._num_heads,
            self._rates,
            self._max_epochs,
            self._patience,
            self._batch_size,
            self._seed,
        )
        self._report = AttentionReport(
            layer=self._layer,
            num_heads=self._num_heads,
            rates=self._rates,
            validation_accuracies=fitted.validation_accuracies,
            learning_rate=fitted.learning_rate,
            epochs=fitted.epochs,
            num_train=len(sources[0]),
            num_validation=len(sources[1]),
            seed=self._seed,
            measured=None,
        )
        return self

    def score(self, test: LabeledPictures) -> MeasuredAccuracy:
        """Measures the accuracy and adds it to the report.

        Args:
            test: as in `fit`.

        Returns:
            A `MeasuredAccuracy`.

        Raises:
            ValueError: if the probe is not fitted, or inputs do not fit the model or the labels.
        """
        self._fitted()
        source = as_labeled_examples(self._extractor.language_model, test, "test")
        measured = measure_accuracy(self._predict(source), source.labels)
        self._report = replace(self.report, measured=measured)
        return measured

    def predict(self, inputs: Pictures) -> npt.NDArray[Any]:
        """Predicts classes.

        Args:
            inputs: pictures or token ids, as in `ImageGPTCausalLM.score`.

        Returns:
            Array `(B,)` of labels.

        Raises:
            ValueError: if the probe is not fitted, or inputs do not fit the model.
        """
        self._fitted()
        return self._predict(as_examples(self._extractor.language_model, inputs))

    def _predict(self, source: PictureExamples) -> npt.NDArray[Any]:
        """Predicts classes as features come: those of many pictures would not fit into memory."""
        fitted, batch_size = self._fitted(), min(self._batch_size, len(source))
        return np.concatenate([fitted.predict(features, batch_size) for _, features in self._computed(source)])

    def _fitted(self) -> AttentionFit:
        if self._fit is None:
            raise ValueError(
                "The probe must be fitted first: call `fit(train, validation)`. Received: an unfitted AttentionProbe"
            )
        return self._fit

    def check_memory(self, count: int) -> None:
        """Raises `ValueError` if the features of `count` pictures need more than half of the memory, and no folder."""
        backbone, available = self._extractor.language_model.backbone, host_memory()
        needed = 2 * count * backbone.num_tokens * backbone.hidden_dim
        if self._folder is None and available is not None and needed > available / 2:
            raise ValueError(
                f"`folder` must be given, to keep the features in files: those of {count} pictures take "
                f"{memory_text(needed)}, more than half of the memory of {memory_text(available)}. "
                "Received: folder=None"
            )

    def _computed(self, source: PictureExamples) -> Iterator[tuple[slice, Features]]:
        """Computes the features of all positions: yields slices of some rows and their float16 `(rows, T, D)`."""
        language_model = self._extractor.language_model
        backbone = language_model.backbone
        segments = computed_rows(
            self._extractor,
            {},
            self._batch_size,
            row_bytes=2 * backbone.num_tokens * backbone.hidden_dim,
            examples=source,
            palette=language_model.palette,
            purpose="extract",
        )
        return ((rows, check_finite(features, "extract features")) for rows, features in segments)

    def _features(self, source: PictureExamples, name: str) -> Features:
        """Computes the features `(B, T, D)` of all positions, in memory or in the file of a name."""
        backbone = self._extractor.language_model.backbone
        shape = (len(source), backbone.num_tokens, backbone.hidden_dim)

        def fill(features: Features) -> None:
            for rows, computed in self._computed(source):
                features[rows] = computed

        if self._folder is None:
            features = np.empty(shape, np.float16)
            fill(features)
            return features
        path = self._folder / f"attention_{name}.npy"
        with whole_file(path) as partial:
            mapped = new_mapped_array(partial, np.float16, shape)
            fill(mapped)
            mapped.flush()
        stored: Features = np.load(path, mmap_mode="r")
        return stored


class _PositionFeatures(WholeStepModel):
    """Computes n^l of one depth at all positions, float16 `(B, T, D)`."""

    def __init__(self, language_model: PixelModel, layer: int) -> None:
        super().__init__(name="position_features", dtype="float32")
        self.language_model, self.layer = language_model, layer
        self.built = True

    def call(self, inputs: Any) -> Any:
        position_mask = self.language_model.hidden_positions(inputs)
        (states,) = self.language_model.backbone.normed_states(token_ids_of(inputs), (self.layer,), position_mask)
        return ops.cast(states, "float16")


# === One fit ===


@dataclass(frozen=True, eq=False)
class AttentionFit:
    """An attention-pooling classifier with rate and epochs chosen on validation.

    Attributes:
        classes: array `(K,)`. Labels in increasing order.
        model: `keras.Model` from features `(B, T, D)` to class logits `(B, K)`.
        validation_accuracies: tuple of float in 0…1, by rate.
        learning_rate: float. The chosen rate.
        epochs: int. Epochs of the refit.
    """

    classes: npt.NDArray[Any]
    model: keras.Model
    validation_accuracies: tuple[float, ...]
    learning_rate: float
    epochs: int

    def predict(self, features: Features, batch_size: int) -> npt.NDArray[Any]:
        """Predicts classes `(B,)` from features `(B, T, D)`, `batch_size` of them at once."""
        logits = check_finite(_logits(self.model, features, batch_size), "predict")
        return np.asarray(self.classes[logits.argmax(axis=-1)])


def fit_attention_pooling(
    train: _Part,
    validation: _Part,
    num_heads: int,
    rates: Sequence[float] = LEARNING_RATES,
    max_epochs: int = 50,
    patience: int = 5,
    batch_size: int = 128,
    seed: int = 0,
) -> AttentionFit:
    """Trains with each rate, stopping early on validation; refits with the best one on train and validation.

    Args:
        train: features `(B, T, D)` and labels `(B,)`.
        validation: the same of other examples.
        num_heads: int. Divides D.
        rates: as in `AttentionProbe`, as all that follows. In a tie the first rate is taken.
        max_epochs: int.
        patience: int.
        batch_size: int.
        seed: int.

    Returns:
        An `AttentionFit`.

    Raises:
        ValueError: if training diverges with every rate.
    """
    classes = check_classes(train[1], validation[1])
    parts = [(features, np.searchsorted(classes, labels)) for features, labels in (train, validation)]
    positions = [features.reshape(-1, features.shape[-1]) for features, _ in parts]
    alone, together = feature_statistics(positions[:1]), feature_statistics(positions)

    def start(rate: float, statistics: tuple[Features, Features]) -> keras.Model:
        return _make_model(train[0].shape[1:], len(classes), num_heads, statistics, rate, seed)

    held_out = min(batch_size, len(validation[1]))
    trials: list[tuple[float, int]] = []
    progress = Progress("attention pooling", len(rates) + 1, "trainings")
    for rate in rates:
        model = start(rate, alone)
        best, best_epoch = -1.0, 0
        for epoch in range(max_epochs):
            _train(model, parts[:1], batch_size, seed, epoch)
            logits = _logits(model, parts[1][0], held_out)
            if not np.isfinite(logits).all():
                # What this rate reached before it diverged stands, beside the other rates.
                break
            accuracy = float((logits.argmax(axis=-1) == parts[1][1]).mean())
            if accuracy > best:
                best, best_epoch = accuracy, epoch
            elif epoch - best_epoch >= patience:
                break
        trials.append((best, best_epoch + 1))
        progress.update(len(trials))
    chosen, (best, epochs) = max(enumerate(trials), key=lambda numbered: numbered[1][0])
    if best < 0:
        raise ValueError(f"`rates` must have one with which training does not diverge. Received: rates={tuple(rates)}")
    accuracies = tuple(max(accuracy, 0.0) for accuracy, _ in trials)
    refitted = start(rates[chosen], together)
    for epoch in range(epochs):
        _train(refitted, parts, batch_size, seed, epoch)
    return AttentionFit(classes, refitted, accuracies, rates[chosen], epochs)


def _make_model(
    shape: tuple[int, ...],
    num_classes: int,
    num_heads: int,
    statistics: tuple[Features, Features],
    rate: float,
    seed: int,
) -> keras.Model:
    mean, scale = statistics
    model = keras.Sequential(
        [
            keras.Input(shape),
            # As for the linear probe, so that rates mean the same at every depth.
            keras.layers.Normalization(mean=mean, variance=scale**2, dtype="float32"),
            _AttentionPooling(num_heads, seed),
            keras.layers.Dense(num_classes, kernel_initializer="zeros", dtype="float32"),
        ]
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(rate), loss)
    return model


class _AttentionPooling(keras.layers.Layer):
    """Attention of one learned query to all positions: `(B, T, D)` to `(B, D)`; the mean at first.

    The query meets the keys only as its product with their map, so that this product is what is learned.
    """

    def __init__(self, num_heads: int, seed: int) -> None:
        super().__init__(dtype="float32")
        self._num_heads, self._seed = num_heads, seed

    def build(self, input_shape: tuple[int, ...]) -> None:
        width = input_shape[-1]
        self._query = self.add_weight(shape=(width, self._num_heads), initializer="zeros", name="query")
        self._value = self.add_weight(
            shape=(self._num_heads, width, width // self._num_heads),
            initializer=keras.initializers.RandomNormal(stddev=width**-0.5, seed=self._seed),
            name="value",
        )

    def call(self, features: Any) -> Any:
        weights = ops.softmax(ops.matmul(features, self._query), axis=1)  # (B, T, N)
        # Pooled before the map of values, which is linear: the same, with T times less arithmetic.
        pooled = ops.matmul(ops.transpose(weights, (0, 2, 1)), features)  # (B, N, D)
        values = ops.einsum("bnd,ndh->bnh", pooled, self._value)
        return ops.reshape(values, (-1, features.shape[-1]))


def _read(parts: Sequence[_Part], rows: npt.NDArray[np.int64]) -> tuple[Features, npt.NDArray[np.int32]]:
    """Returns features, as float32, and labels of rows of several parts, numbered through."""
    features = np.empty((len(rows), *parts[0][0].shape[1:]), np.float32)
    labels = np.empty(len(rows), np.int32)
    first = 0
    for part, classes in parts:
        inside = (rows >= first) & (rows < first + len(classes))
        features[inside], labels[inside] = part[rows[inside] - first], classes[rows[inside] - first]
        first += len(classes)
    return features, labels


def _train(model: keras.Model, parts: Sequence[_Part], batch_size: int, seed: int, epoch: int) -> None:
    """Trains for one epoch, whose order is a function of seed and epoch, and which drops an incomplete last batch."""
    order = permutation(sum(len(labels) for _, labels in parts), "attention probe", seed, epoch)
    size = min(batch_size, len(order))
    for start in range(0, len(order) - size + 1, size):
        model.train_on_batch(*_read(parts, order[start : start + size]))


def _logits(model: keras.Model, features: Features, batch_size: int) -> npt.NDArray[np.float32]:
    """Computes class logits `(B, K)`, `batch_size` of them at once."""
    part = (features, np.zeros(len(features), np.int64))
    logits = []
    for start in range(0, len(features), batch_size):
        # The last batch is filled: another size would be compiled again.
        rows = np.minimum(np.arange(start, start + batch_size), len(features) - 1)
        logits.append(model.predict_on_batch(_read([part], rows)[0]))
    computed: npt.NDArray[np.float32] = np.concatenate(logits)[: len(features)]
    return computed
