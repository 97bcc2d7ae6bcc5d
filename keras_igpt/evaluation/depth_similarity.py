"""Similarity of the features of different depths."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def depth_similarity(features: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Computes linear CKA between the features of each pair of depths.

    1 means equal up to rotation and scale. With fewer pictures than a few times D the values are too high.

    Args:
        features: float array `(B, depths, D)`, of `FeatureExtractor.extract`.

    Returns:
        float64 array `(depths, depths)`, symmetric, 1 on the diagonal; NaN for a depth whose features are constant.

    Raises:
        ValueError: if the array has another shape or dtype, or fewer than two pictures.

    Example:
    ```python
    similarity = depth_similarity(FeatureExtractor(lm).extract(data.validation))
    plot_depth_similarity(similarity).savefig("similarity.png")
    ```

    Reference:
        [Kornblith et al., 2019](https://arxiv.org/abs/1905.00414), section 3
    """
    stacked = np.asarray(features)
    if stacked.ndim != 3 or len(stacked) < 2 or stacked.dtype.kind != "f":
        raise ValueError(
            "`features` must be a float array (B, depths, D) of at least two pictures. "
            f"Received: {stacked.dtype} of shape {stacked.shape}"
        )
    depths = stacked.shape[1]
    cross = np.empty((depths, depths))
    for first in range(depths):
        left = _centred(stacked[:, first])
        for second in range(first, depths):
            cross[first, second] = cross[second, first] = np.square(left.T @ _centred(stacked[:, second])).sum()
    scales = np.sqrt(np.diag(cross))
    with np.errstate(invalid="ignore"):
        similarity: npt.NDArray[np.float64] = cross / np.outer(scales, scales)
    return similarity


def _centred(features: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    whole = features.astype(np.float64)
    centred: npt.NDArray[np.float64] = whole - whole.mean(axis=0)
    return centred
