"""What is known of each picture of a shard, in one file."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from keras_igpt.curation.duplicates import Hashes
from keras_igpt.curation.pictures import Outcome
from keras_igpt.support.files import whole_file


@dataclass(frozen=True, eq=False)
class Records:
    """A shard's pictures, kept or not, in order.

    Attributes:
        keys: bytes array `(B,)`. Their names in the shard, UTF-8.
        offsets: int64 array `(B,)`. Where they begin in the tar file.
        sizes: int64 array `(B,)`. Their bytes.
        outcomes: uint8 array `(B,)`. What became of them, `Outcome`.
        scores: float32 array `(B,)`. Similarity; NaN where it was not computed.
        hashes: uint64 array `(B, 2)`. Perceptual hashes; 0 where they were not decoded.
        others: int. Files of the shard that are no pictures.
        fault: str. Why the shard ended too early, or empty.
    """

    keys: npt.NDArray[np.bytes_]
    offsets: npt.NDArray[np.int64]
    sizes: npt.NDArray[np.int64]
    outcomes: npt.NDArray[np.uint8]
    scores: npt.NDArray[np.float32]
    hashes: Hashes
    others: int = 0
    fault: str = ""

    def __len__(self) -> int:
        return len(self.outcomes)

    def key(self, row: int) -> str:
        """Returns the name of a picture."""
        return bytes(self.keys[row]).decode("utf-8", "surrogateescape")

    def counts(self) -> dict[str, int]:
        """Returns how many pictures had each outcome, by its name."""
        found = np.bincount(self.outcomes, minlength=len(Outcome))
        return {outcome.name.lower(): int(found[outcome]) for outcome in Outcome}

    def report(self) -> dict[str, Any]:
        """Returns counts, scores of what is kept and what else there was, for JSON."""
        kept = self.scores[self.outcomes == Outcome.KEPT].astype(np.float64)
        quantiles = (
            dict(zip(("least", "median", "most"), np.quantile(kept, (0, 0.5, 1)), strict=True)) if len(kept) else {}
        )
        return {
            "pictures": len(self),
            "counts": self.counts(),
            "scores": {name: round(float(value), 6) for name, value in quantiles.items()},
            "other_files": self.others,
            "fault": self.fault,
        }

    def save(self, path: Path) -> None:
        """Writes the file, whole or not at all."""
        with whole_file(path) as partial, open(partial, "wb") as file:
            arrays: dict[str, Any] = vars(self)
            np.savez(file, **arrays)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Records:
        """Reads the file."""
        with np.load(path, allow_pickle=False) as file:
            arrays: dict[str, Any] = {name: file[name] for name in file.files}
        return cls(**{**arrays, "others": int(arrays["others"]), "fault": str(arrays["fault"])})
