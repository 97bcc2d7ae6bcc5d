"""Web pictures: those that resemble a reference set, without duplicates and evaluation pictures, as token shards."""

from keras_igpt.curation.curate import curate
from keras_igpt.curation.settings import Rules
from keras_igpt.curation.similarity import PictureFeatures, Reference, Similarity, load_features

__all__ = ["PictureFeatures", "Reference", "Rules", "Similarity", "curate", "load_features"]
