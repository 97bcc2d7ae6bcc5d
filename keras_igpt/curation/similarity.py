"""How much a picture resembles a reference set: cosine similarity of features to the nearest of the set's centroids."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import keras
import numpy as np
import numpy.typing as npt

from keras_igpt.curation.descriptions import describe_source
from keras_igpt.curation.pictures import Pictures, pictures_of
from keras_igpt.data.image_files import resize_images
from keras_igpt.evaluation.features import FeatureExtractor, of_length_one
from keras_igpt.objectives.open_model import open_model
from keras_igpt.objectives.pixel_model import PixelModel
from keras_igpt.palette.color_palette import UInt8Images
from keras_igpt.support.checks import check_integer, check_number
from keras_igpt.support.files import whole_file
from keras_igpt.support.randomness import check_seed, permutation

Float32Array = npt.NDArray[np.float32]
# A `FeatureExtractor`, a Keras model, which has no static type, or a function.
Extractor: TypeAlias = Any

# Where features come from: a preset's name or a model's file, or a function that loads them.
FeatureSource: TypeAlias = "str | os.PathLike[str] | Callable[[], PictureFeatures]"

# Part of the reference's pictures that the centroids do not see. Their scores say what is similar.
_HELD_OUT = 0.2


class PictureFeatures:
    """Features of pictures of one size, computed by whatever gives features.

    Args:
        extractor: a `FeatureExtractor`; a Keras model that takes pictures `(B, S, S, 3)` as floats in 0…255 and gives
            `(B, D)`; or a function of uint8 pictures `(B, S, S, 3)` that does.
        image_size: int. Side `S` of the pictures. A `FeatureExtractor` and a Keras model with a fixed size know it.
        batch_size: int. Pictures that are computed together, always as many: the last batch is filled up.

    Attributes:
        image_size: int.

    Raises:
        ValueError: if the size is not known or is another than the model's.

    Example:
    ```python
    features = PictureFeatures(FeatureExtractor(lm, layers=[12]))
    reference = Reference.fit(features.of(imagenet), num_centroids=1000)
    ```
    """

    def __init__(self, extractor: Extractor, image_size: int | None = None, batch_size: int = 128) -> None:
        known = _image_size(extractor)
        if (image_size if known is None else known) is None or (image_size or known) != (known or image_size):
            raise ValueError(
                "`image_size` must be given for a function or a model without a fixed size, and be a model's own. "
                f"Received: image_size={image_size}, where the extractor has {known}"
            )
        self.image_size = check_integer("image_size", image_size if known is None else known)
        self.batch_size = check_integer("batch_size", batch_size)
        self.extractor = extractor

    def __call__(self, images: UInt8Images) -> Float32Array:
        """Computes the features of pictures.

        Args:
            images: uint8 array `(B, H, H, 3)` of any size `H`; it is resized.

        Returns:
            float32 array `(B, D)`.

        Raises:
            ValueError: if features have another shape or are not finite.
        """
        squares = resize_images(images, self.image_size)
        starts = range(0, len(squares), self.batch_size)
        return np.concatenate([self._batch(squares[start : start + self.batch_size]) for start in starts])

    def of(self, pictures: Pictures) -> Float32Array:
        """Computes the features of a set of pictures, those of files at their centre squares.

        Args:
            pictures: `LabeledImages`, `ImageFiles`, or a folder or tar file of pictures.

        Returns:
            float32 array `(B, D)`.

        Raises:
            ValueError: if a picture cannot be read or has no colour.
        """
        batches = pictures_of(pictures, self.image_size, self.batch_size, "pictures")
        return np.concatenate([self(images) for images in batches])

    def _batch(self, squares: UInt8Images) -> Float32Array:
        filled = np.pad(squares, [(0, self.batch_size - len(squares)), (0, 0), (0, 0), (0, 0)], mode="edge")
        if isinstance(self.extractor, FeatureExtractor):
            found = self.extractor.extract(filled, self.batch_size).reshape(len(filled), -1)
        elif isinstance(self.extractor, keras.Model):
            found = self.extractor.predict_on_batch(filled.astype(np.float32))
        else:
            found = self.extractor(filled)
        features = np.asarray(found, np.float32)
        if features.ndim != 2 or len(features) != len(filled):
            raise ValueError(
                f"`extractor` must give features (B, D) for {len(filled)} pictures; pool them if they have positions. "
                f"Received: shape {features.shape}"
            )
        if not np.isfinite(features).all():
            raise ValueError("`extractor` must give finite features. Received: NaN or infinity")
        return features[: len(squares)]


def _image_size(extractor: Extractor) -> int | None:
    if isinstance(extractor, FeatureExtractor):
        size: int = extractor.language_model.backbone.image_size
        return size
    if isinstance(extractor, keras.Model):
        shape = getattr(extractor, "input_shape", None)
        return shape[1] if isinstance(shape, tuple) and len(shape) == 4 else None
    return None


def load_features(model: str | os.PathLike[str], layer: int | None = None) -> PictureFeatures:
    """Loads a model for its features. Workers call this, each once.

    Args:
        model: a trained preset's name, or a `.keras` file or address `hf://user/model` of a language model of this
            package or of another Keras model.
        layer: int in 0…L. Depth of a language model's features; the middle one by default.

    Returns:
        `PictureFeatures`.

    Raises:
        ValueError: if there is no such model, or a `layer` is given for one that has none.
    """
    loaded = open_model(model, "`model`")
    if isinstance(loaded, PixelModel):
        return PictureFeatures(FeatureExtractor(loaded, [loaded.backbone.num_layers // 2 if layer is None else layer]))
    if layer is not None:
        raise ValueError(f"`layer` must be None for a {type(loaded).__name__}. Received: layer={layer}")
    return PictureFeatures(loaded)


@dataclass(frozen=True, eq=False, repr=False)
class Reference:
    """What the pictures of a reference set look like: centroids of their features.

    Args:
        centroids: float32 array `(K, D)`, of length 1.
        held_out_scores: float32 array. Scores of pictures of the set that the centroids have not seen, sorted.
        source: str. Where the features came from; empty if that is not known.

    Example:
    ```python
    reference = Reference.fit(features, num_centroids=1000)
    reference.save("imagenet.npz")
    ```
    """

    centroids: Float32Array
    held_out_scores: Float32Array
    source: str = ""

    def __repr__(self) -> str:
        return f"Reference({len(self.centroids)} centroids of {self.centroids.shape[1]} features)"

    @classmethod
    def fit(
        cls, features: npt.ArrayLike, num_centroids: int, seed: int = 0, source: FeatureSource | None = None
    ) -> Reference:
        """Clusters the features of a reference set with k-means.

        A fifth of the pictures, chosen at random, is held out; the features of the others are scaled to length 1 and
        clustered with scikit-learn's `MiniBatchKMeans`.

        Args:
            features: float array `(B, D)`.
            num_centroids: int. Clusters, at most four fifths of the pictures.
            seed: int. Equal features and seed give equal centroids.
            source: where the features came from, as `Similarity` takes it, which then refuses another one. The scores
                of other features say nothing.

        Returns:
            `Reference`.

        Raises:
            ValueError: if the features are not such or too few, or `source` is no such.
            ImportError: if scikit-learn is absent.
        """
        known = "" if source is None else describe_source(_loader_of(source, "source"))
        given = np.asarray(features, np.float32)
        if given.ndim != 2 or not np.isfinite(given).all():
            raise ValueError(f"`features` must be finite and of shape (B, D). Received: shape {given.shape}")
        order = permutation(len(given), "reference held out", check_seed(seed))
        held_out = round(_HELD_OUT * len(given))
        count = check_integer("num_centroids", num_centroids, 1, max(1, len(given) - held_out))
        if held_out < 1:
            raise ValueError(f"`features` must be those of several pictures. Received: {len(given)}")
        try:
            from sklearn.cluster import MiniBatchKMeans
        except ImportError as error:
            raise ImportError("Clustering features needs scikit-learn: pip install 'keras_igpt[web]'") from error
        # scikit-learn's seeds have 32 bits.
        clustering = MiniBatchKMeans(count, random_state=seed % 2**32, batch_size=4096, n_init=3)
        clustering.fit(of_length_one(given[np.sort(order[held_out:])]))
        reference = cls(of_length_one(clustering.cluster_centers_.astype(np.float32)), np.empty(0, np.float32))
        scores = np.sort(reference.scores(given[np.sort(order[:held_out])]))
        return cls(reference.centroids, scores, known)

    def scores(self, features: npt.ArrayLike) -> Float32Array:
        """Returns the cosine similarity of each picture to its nearest centroid.

        Args:
            features: float array `(B, D)`.

        Returns:
            float32 array `(B,)`, in [-1, 1].

        Raises:
            ValueError: if there are not as many features as the reference has.
        """
        given = np.asarray(features, np.float32)
        if given.ndim != 2 or given.shape[1] != self.centroids.shape[1]:
            raise ValueError(
                f"`features` must have shape (B, {self.centroids.shape[1]}), as the reference's. "
                f"Received: shape {given.shape}"
            )
        scores: Float32Array = (of_length_one(given) @ self.centroids.T).max(axis=1)
        return scores

    def threshold(self, quantile: float) -> float:
        """Returns the score that this share of the reference's own held-out pictures does not reach."""
        quantile = check_number("quantile", quantile, 0, 1)
        return float(np.quantile(self.held_out_scores.astype(np.float64), quantile))

    def digest(self) -> str:
        """Returns a hexadecimal digest of all numbers."""
        arrays = (self.centroids, self.held_out_scores)
        return hashlib.sha256(b"".join(np.ascontiguousarray(array).tobytes() for array in arrays)).hexdigest()

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the reference as one `.npz` file, whole or not at all."""
        with whole_file(path) as partial_path, open(partial_path, "wb") as file:
            np.savez(file, centroids=self.centroids, held_out_scores=self.held_out_scores, source=np.array(self.source))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Reference:
        """Reads what `save` has written.

        Args:
            path: the file.

        Returns:
            `Reference`.

        Raises:
            ValueError: if the file is another one.
        """
        try:
            with np.load(path, allow_pickle=False) as file:
                # Earlier versions did not know the source.
                source = str(file["source"]) if "source" in file else ""
                return cls(file["centroids"], file["held_out_scores"], source)
        except (KeyError, ValueError, AttributeError, TypeError) as error:
            raise ValueError(f"`path` must be a file of `Reference.save`. Received: {path} ({error})") from error


@dataclass(frozen=True)
class Similarity:
    """What pictures are compared with, and by which features.

    Args:
        reference: `Reference`, or the file it was saved in.
        features: where its features came from. A preset's name or a `.keras` file, as `load_features` takes them, or a
            function without arguments that returns `PictureFeatures`. Workers call it: `pickle` has to know it, as it
            does functions of a module and `functools.partial` of these.

    Raises:
        ValueError: if `features` is neither, or not where the reference's came from.

    Example:
    ```python
    similarity = Similarity("imagenet.npz", partial(load_features, "igpt_small.keras", layer=16))
    ```
    """

    reference: Reference | str | os.PathLike[str]
    features: FeatureSource

    def __post_init__(self) -> None:
        if not isinstance(self.reference, Reference):
            object.__setattr__(self, "reference", Reference.load(self.reference))
        object.__setattr__(self, "features", _loader_of(self.features, "features"))
        there = self.loaded_reference.source
        # Where it is known: a description reads the model's file.
        if there and there != (here := describe_source(self.features)):
            raise ValueError(
                f"`features` must be described as those that the reference was made with, {there}: scores of others "
                f"say nothing. Received: {here}"
            )

    @property
    def loaded_reference(self) -> Reference:
        """The reference itself."""
        assert isinstance(self.reference, Reference)
        return self.reference

    def load_features(self) -> PictureFeatures:
        """Loads the features."""
        assert callable(self.features)
        features = self.features()
        if not isinstance(features, PictureFeatures):
            raise ValueError(
                f"`features` must be a function that returns PictureFeatures. Received: {type(features).__name__}"
            )
        return features


def _loader_of(source: FeatureSource, name: str) -> Callable[[], PictureFeatures]:
    if isinstance(source, (str, os.PathLike)):
        return partial(load_features, os.fspath(source))
    if isinstance(source, PictureFeatures) or not callable(source):
        raise ValueError(
            f"`{name}` must be a model's file or preset, or a function that returns PictureFeatures. "
            f"Received: {type(source).__name__}"
        )
    return source
