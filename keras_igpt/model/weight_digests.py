"""Digests that tell whether models have the same weights."""

from __future__ import annotations

import hashlib
import json
import re

import keras
import numpy as np
from keras import ops


def weight_digests(model: keras.Model) -> dict[str, str]:
    """Returns a hash of each weight by path, shape and a counter of equal paths."""
    digests: dict[str, str] = {}
    for weight in model.weights:
        path = f"{re.sub(r'_[0-9]+', '', weight.path)} {tuple(weight.shape)}"
        count = sum(key.startswith(f"{path} ") for key in digests)
        digests[f"{path} {count}"] = hashlib.sha256(np.asarray(ops.convert_to_numpy(weight)).tobytes()).hexdigest()
    return digests


def digest_of_weights(model: keras.Model) -> str:
    """Returns one hash of all weights."""
    return hashlib.sha256(json.dumps(weight_digests(model), sort_keys=True).encode()).hexdigest()
