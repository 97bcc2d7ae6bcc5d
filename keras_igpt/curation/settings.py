"""What a curation is to do, and whether a folder was begun with other settings."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from keras_igpt.curation.descriptions import describe_function, short_digest
from keras_igpt.curation.duplicates import Hashes
from keras_igpt.curation.shards import Shard
from keras_igpt.curation.similarity import Similarity
from keras_igpt.palette.color_palette import ColorPalette
from keras_igpt.support.checks import check_integer, check_number
from keras_igpt.support.files import is_partial, write_json
from keras_igpt.training.settings import differences

_VERSION = 1


@dataclass(frozen=True)
class Rules:
    """Which pictures are kept.

    Args:
        quantile: float in [0, 1]. A picture is similar where its score reaches that which this share of the reference's
            own held-out pictures does not reach; unless one of the next two is given.
        threshold: float in [-1, 1]. Least score.
        share: float in (0, 1]. Share of the pictures with a score that reaches the threshold: those with the highest
            scores, of equal ones all. Until all scores are known, the tokens of all these pictures lie on the disk.
        min_side: int. Least shorter side in pixels.
        max_pixels: int. Most pixels, which a picture's header tells before it is decoded.
        photographs: bool. Whether pictures that are no photographs by cheap measures (flat, gradients, noise, charts,
            screens) are refused whatever their score.
        duplicate_bits: int in 0…32, or None. Bits of 128 in which the hashes of near-duplicates may differ, of the 56
            that stand for the lowest frequencies no more than 4; None keeps duplicates.

    Raises:
        ValueError: if an argument is out of its range, or `threshold` and `share` are both given.

    Example:
    ```python
    Rules(share=0.1, min_side=64)
    ```
    """

    quantile: float = 0.02
    threshold: float | None = None
    share: float | None = None
    min_side: int = 32
    max_pixels: int = 50_000_000
    photographs: bool = True
    duplicate_bits: int | None = 12

    def __post_init__(self) -> None:
        check_number("quantile", self.quantile, 0, 1)
        if self.threshold is not None:
            check_number("threshold", self.threshold, -1, 1)
        if self.share is not None:
            check_number("share", self.share, 0, 1, above=True)
        if self.threshold is not None and self.share is not None:
            raise ValueError(
                "`threshold` and `share` must not both be given. "
                f"Received: threshold={self.threshold}, share={self.share}"
            )
        check_integer("min_side", self.min_side)
        check_integer("max_pixels", self.max_pixels)
        if self.duplicate_bits is not None:
            check_integer("duplicate_bits", self.duplicate_bits, 0, 32)


@dataclass(frozen=True, eq=False)
class Job:
    """All that a worker needs to know.

    Attributes:
        output: str. Folder of the set.
        palette: `ColorPalette`.
        image_size: int. Side of the pictures that become tokens.
        similarity: `Similarity`.
        rules: `Rules`.
        evaluation: uint64 array `(E, 2)`. Hashes of pictures that must not be in the set.
        threshold: float; None where it is known when all scores are.
    """

    output: str
    palette: ColorPalette
    image_size: int
    similarity: Similarity
    rules: Rules
    evaluation: Hashes
    threshold: float | None

    @property
    def work(self) -> Path:
        """Folder of what is not finished."""
        return Path(self.output) / "work"

    def describe(self, shards: Sequence[Shard]) -> dict[str, Any]:
        """Returns what decides the result, for JSON."""
        listed = json.dumps([shard.describe() for shard in shards])
        return {
            "version": _VERSION,
            "shards": f"{len(shards)} shards, {short_digest(listed.encode())}",
            "palette": short_digest(self.palette.centroids.tobytes()),
            "image_size": self.image_size,
            "reference": self.similarity.loaded_reference.digest(),
            "features": describe_function(self.similarity.features),
            "exclude": f"{len(self.evaluation)} pictures, {short_digest(self.evaluation.tobytes())}",
            **{f"rules.{field.name}": asdict(self.rules)[field.name] for field in fields(self.rules)},
        }


def check_settings(output: str, here: dict[str, Any]) -> None:
    """Writes the settings of a new folder, or compares them with those that it was begun with.

    Args:
        output: str. The folder.
        here: the settings, `Job.describe`.

    Raises:
        ValueError: if the folder was begun with other settings or holds something else.
    """
    path = Path(output) / "settings.json"
    if path.is_file():
        changed = differences(json.loads(path.read_text(encoding="utf-8")), here)
        if changed:
            raise ValueError(
                "`output` must be a new folder or one that was begun with the same settings; give another one, or "
                f"remove it to begin again. Received: {output}, where {'; '.join(changed)}"
            )
    # A process killed while it wrote the settings leaves them under a temporary name.
    elif path.parent.is_dir() and any(not is_partial(other) for other in path.parent.iterdir()):
        raise ValueError(f"`output` must be a new folder or one of a curation. Received: {output}, another thing")
    else:
        write_json(path, here)
