"""The classes that a classifier predicts, with their names and probabilities."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

# Classes shown for a picture, and pictures shown.
_CLASSES, _PICTURES = 3, 20


@dataclass(frozen=True, eq=False)
class ClassPredictions:
    """The classes of pictures, as a classifier predicts them.

    Attributes:
        probabilities: float32 array `(B, C)`.
        class_names: tuple of str, one a class.
    """

    probabilities: npt.NDArray[np.float32]
    class_names: tuple[str, ...]

    @property
    def labels(self) -> npt.NDArray[np.int64]:
        """The most probable class of each picture, `(B,)`."""
        labels: npt.NDArray[np.int64] = self.probabilities.argmax(axis=-1)
        return labels

    @property
    def names(self) -> tuple[str, ...]:
        """The name of the most probable class of each picture."""
        return tuple(self.class_names[label] for label in self.labels)

    @property
    def confidences(self) -> npt.NDArray[np.float32]:
        """The probability of each picture's most probable class, `(B,)`."""
        confidences: npt.NDArray[np.float32] = self.probabilities.max(axis=-1)
        return confidences

    def __len__(self) -> int:
        return len(self.probabilities)

    def __str__(self) -> str:
        lines = [self.describe(row) for row in range(min(len(self), _PICTURES))]
        return "\n".join([*lines, *([f"… and {len(self) - _PICTURES} more"] if len(self) > _PICTURES else [])])

    def describe(self, row: int) -> str:
        """Returns a picture's most probable classes in a line: `"cat 91.2%, dog 7.0%, fox 1.1%"`."""
        chances = self.probabilities[row]
        order = np.argsort(-chances, kind="stable")[:_CLASSES]
        return ", ".join(f"{self.class_names[label]} {chances[label]:.1%}" for label in order)
