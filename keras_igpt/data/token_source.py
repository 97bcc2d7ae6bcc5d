"""Reading rows of any kind of examples as tokens."""

from __future__ import annotations

import hashlib

import numpy as np
import numpy.typing as npt

from keras_igpt.data.augmentation import PaddedCrop, RandomResizedCrop
from keras_igpt.data.examples import LabeledExamples, LabeledImages, LabeledTokens, Labels
from keras_igpt.data.image_files import ImageFiles
from keras_igpt.data.unlabeled import UnlabeledImages, UnlabeledTokens
from keras_igpt.palette.color_palette import ColorPalette, TokenIds, check_color_palette
from keras_igpt.support.checks import check_integer

LabeledPictureExamples = LabeledImages | LabeledTokens | ImageFiles
PictureExamples = LabeledPictureExamples | UnlabeledImages | UnlabeledTokens
Augmentation = PaddedCrop | RandomResizedCrop

# Batches to prefetch with several threads, so that a slow one does not stall the model.
_BATCHES_AHEAD = 10


class TokenSource:
    """Reads rows of any kind of examples as tokens. Pictures in memory are encoded once, on construction.

    Args:
        examples: `LabeledImages`, `LabeledTokens`, `ImageFiles`, `UnlabeledImages` or `UnlabeledTokens`.
        palette: `ColorPalette`; may be None for tokens.
        augmentation: `PaddedCrop`, `RandomResizedCrop` (of files only) or None.
        name: str. The caller's argument name, for errors.

    Attributes:
        examples: the examples; pictures in memory are replaced by their tokens.
        palette: `ColorPalette` of the tokens, or None if it is not known.

    Raises:
        ValueError: if the arguments do not fit together.
    """

    def __init__(
        self,
        examples: PictureExamples,
        palette: ColorPalette | None,
        augmentation: Augmentation | None = None,
        name: str = "examples",
    ) -> None:
        if not isinstance(examples, PictureExamples):
            raise ValueError(
                f"`{name}` must be LabeledImages, LabeledTokens, ImageFiles, UnlabeledImages or UnlabeledTokens. "
                f"Received: {type(examples).__name__}"
            )
        if not len(examples):
            raise ValueError(f"`{name}` must not be empty. Received: 0 examples")
        self._files = examples if isinstance(examples, ImageFiles) else None
        if isinstance(examples, UnlabeledImages) and isinstance(examples.images, ImageFiles):
            self._files = examples.images
        _check_palette(examples, self._files, palette, name)
        if self._files is None and isinstance(examples, (LabeledImages, UnlabeledImages)):
            assert palette is not None
            examples = examples.encode(palette)
        self.examples: PictureExamples = examples
        if palette is None and isinstance(examples, UnlabeledTokens):
            palette = examples.palette
        self.palette, self._augmentation = palette, augmentation
        self._check_augmentation(name)

    def __len__(self) -> int:
        return len(self.examples)

    @property
    def image_size(self) -> int:
        """Side `S` of the pictures."""
        if self._files is not None:
            assert self._files.image_size is not None
            return self._files.image_size
        assert isinstance(self.examples, (LabeledTokens, UnlabeledTokens))
        return self.examples.image_size

    @property
    def labeled(self) -> bool:
        """Whether the examples have labels."""
        return isinstance(self.examples, LabeledExamples)

    @property
    def known_labels(self) -> Labels | None:
        """Labels of all examples if known without reading files, else None."""
        if isinstance(self.examples, ImageFiles):
            return self.examples.known_labels
        return self.examples.labels if isinstance(self.examples, LabeledTokens) else None

    def fingerprint(self) -> str:
        """Returns a digest that changes when the tokens or labels do."""
        digest = self.examples.digest()
        if self._files is None:
            return digest
        assert self.palette is not None
        return hashlib.sha256(digest.encode() + self.palette.centroids.tobytes()).hexdigest()

    def thread_options(self, workers: int | None) -> dict[str, int]:
        """Returns `keras.utils.PyDataset` arguments for `workers` threads, or for a suitable number if None."""
        if workers is None:
            workers = 1 if self._files is None else self._files.threads
        workers = check_integer("workers", workers)
        return {"workers": workers, "max_queue_size": max(_BATCHES_AHEAD, 2 * workers)}

    def read(self, rows: npt.NDArray[np.int64], seed: int = 0, epoch: int = 0) -> tuple[TokenIds, Labels | None]:
        """Returns token ids `(B, T)` and labels `(B,)` of some rows, with an epoch's augmentation."""
        labels: Labels | None = None
        if self._files is None:
            assert isinstance(self.examples, (LabeledTokens, UnlabeledTokens))
            token_ids = self.examples.token_ids[rows].astype(np.int32)
            if isinstance(self.examples, LabeledTokens):
                labels = self.examples.labels[rows]
        else:
            assert self.palette is not None
            crop = self._augmentation if isinstance(self._augmentation, RandomResizedCrop) else None
            images, classes = zip(*(self._files.read(row, crop, seed, epoch) for row in rows.tolist()), strict=True)
            token_ids = self.palette.encode(np.stack(images))
            labels = np.array(classes, np.int64) if self.labeled else None
        if isinstance(self._augmentation, PaddedCrop):
            places = self._augmentation.sources(self.image_size, seed, epoch, rows)
            token_ids = np.take_along_axis(token_ids, places, axis=1)
        return token_ids, labels

    def _check_augmentation(self, name: str) -> None:
        augmentation = self._augmentation
        if not isinstance(augmentation, (PaddedCrop, RandomResizedCrop, type(None))):
            raise ValueError(
                f"`augmentation` must be PaddedCrop(…), RandomResizedCrop(…) or None. Received: {augmentation!r}"
            )
        if isinstance(augmentation, RandomResizedCrop) and self._files is None:
            raise ValueError(
                "`augmentation` may be RandomResizedCrop for ImageFiles only; pictures in memory already have the "
                f"model's size. Received: {type(self.examples).__name__}"
            )
        if isinstance(augmentation, PaddedCrop) and augmentation.padding >= self.image_size:
            raise ValueError(
                f"`augmentation` must pad by less than the {self.image_size} pixels of a side. "
                f"Received: padding={augmentation.padding}"
            )


def _check_palette(
    examples: PictureExamples, files: ImageFiles | None, palette: ColorPalette | None, name: str
) -> None:
    if palette is not None:
        check_color_palette(palette, None if files is None else files.num_channels)
    if isinstance(examples, (LabeledTokens, UnlabeledTokens)):
        if palette is not None and palette.num_colors != examples.num_colors:
            raise ValueError(
                f"`palette` must have the {examples.num_colors} colours of the tokens. "
                f"Received: {palette.num_colors} colours"
            )
        if palette is not None and isinstance(examples, UnlabeledTokens) and examples.palette not in (None, palette):
            raise ValueError(f"`palette` must be the one that `{name}` were encoded with. Received: a different one")
        return
    if palette is None:
        raise ValueError("`palette` must be given to encode images. Received: None")
    if files is not None and files.image_size is None:
        raise ValueError(f"`{name}` must have an `image_size`. Received: ImageFiles with image_size=None")
