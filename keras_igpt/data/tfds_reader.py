"""Random access to data sets prepared by TensorFlow Datasets, without TensorFlow."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from keras_igpt.data.image_files import ImageReader

# A TFRecord: length (8 bytes), checksum of the length (4), data, checksum of the data (4).
_BEFORE, _AFTER = 12, 4

# Features of the supported data sets. TFDS would import whatever module a folder's metadata names.
_FEATURES = frozenset(
    f"tensorflow_datasets.core.features.{name}"
    for name in (
        "features_dict.FeaturesDict",
        "image_feature.Image",
        "class_label_feature.ClassLabel",
        "text_feature.Text",
    )
)
# Keys under which TFDS looks up class names (the last one is of older versions), and keys of nested JSON text.
_CLASS_KEYS = ("pythonClassName", "python_class_name", "type")
_NESTED_JSON_KEYS = ("jsonFeature", "json_feature", "content")


def open_prepared(folder: Path) -> Any:
    """Opens a data set prepared by TensorFlow Datasets, without importing code that its metadata names.

    Args:
        folder: folder of one version, with `dataset_info.json` and `features.json`.

    Returns:
        A read-only `tensorflow_datasets` builder.

    Raises:
        ValueError: if the metadata are damaged, or name features other than TFDS' own images, labels and texts.
        ImportError: if tensorflow-datasets is absent.
    """
    try:
        import tensorflow_datasets
    except ImportError as error:
        raise ImportError("Loading a data set needs tensorflow-datasets: pip install 'keras_igpt[data]'") from error
    for name in ("features.json", "dataset_info.json"):
        path = folder / name
        if not path.is_file():
            raise ValueError(f"`data_dir` must hold all files of the data set. Received: no {path}")
        # In `dataset_info.json`, "type" means something else.
        keys = _CLASS_KEYS if name == "features.json" else _CLASS_KEYS[:2]
        try:
            foreign = sorted(set(_class_names(json.loads(path.read_text(encoding="utf-8")), keys)) - _FEATURES)
        except (ValueError, RecursionError) as error:
            raise ValueError(
                f"`data_dir` must hold undamaged files. Received: {path}, which is not JSON ({error})"
            ) from error
        if foreign:
            raise ValueError(
                "`data_dir` must hold a data set with TensorFlow Datasets' own image, label and text features only, "
                f"since others could run code. Received: {path} with {', '.join(foreign)}"
            )
    return tensorflow_datasets.builder_from_directory(folder)


def _class_names(content: Any, keys: tuple[str, ...]) -> Iterator[str]:
    """Yields all class names in a data set's metadata, and nested JSON texts, which could name more."""
    if isinstance(content, list):
        for part in content:
            yield from _class_names(part, keys)
    elif isinstance(content, dict):
        for key, part in content.items():
            if key in keys and isinstance(part, str):
                yield part
            elif key in _NESTED_JSON_KEYS and not (key == "content" and isinstance(part, dict)):
                yield f"{key}={part!r}"
            else:
                yield from _class_names(part, keys)


class TfdsReader(ImageReader):
    """Reads the records of one split by number, without TensorFlow.

    TFRecord files have no index, so the record lengths are scanned once, on construction.

    Args:
        builder: a `tensorflow_datasets` builder of a prepared data set with the features `image` and `label`.
        split: str.

    Raises:
        ValueError: if files are missing, damaged or in a format without random access.
    """

    upright = False

    def __init__(self, builder: Any, split: str) -> None:
        import tensorflow_datasets

        info = builder.info.splits[split]
        self._identity = {"name": builder.name, "version": str(builder.version), "split": split}
        self._features = builder.info.features
        self._decoders = {"image": tensorflow_datasets.decode.SkipDecoding()}
        self._files = [Path(path) for path in info.filepaths]
        file_format = builder.info.file_format
        if file_format is None or file_format.value != "tfrecord":
            raise ValueError(
                f"`data_dir` must hold {builder.name!r} as TFRecord files. "
                f"Received: {file_format.value if file_format else file_format} files in {builder.data_path}"
            )
        with ThreadPoolExecutor(16) as pool:  # waiting for the disk, mostly
            shards = list(pool.map(_record_offsets, self._files, info.shard_lengths))
        self._shards = np.repeat(np.arange(len(shards)), [len(offsets) for offsets in shards])
        self._offsets = np.concatenate(shards)

    def __len__(self) -> int:
        return len(self._offsets)

    def read(self, number: int) -> tuple[bytes, int]:
        path, offset = self._files[self._shards[number]], int(self._offsets[number])
        try:
            with open(path, "rb", buffering=0) as file:
                file.seek(offset)
                (length,) = struct.unpack("<Q", file.read(_BEFORE)[:8])
                record = file.read(length)
            if len(record) != length:
                raise ValueError(f"{len(record)} of {length} bytes")
            example = self._features.deserialize_example_np(record, decoders=self._decoders)
            return example["image"], int(example["label"])
        # The parser does not document what it raises for damaged records.
        except Exception as error:
            raise ValueError(
                f"`data_dir` must hold readable records. Received: {self.name(number)} ({error})"
            ) from error

    def name(self, number: int) -> str:
        shard = self._shards[number]
        return f"record {number - int(np.searchsorted(self._shards, shard))} of {self._files[shard]}"

    def fingerprint(self) -> dict[str, Any]:
        return {**self._identity, "bytes": [file.stat().st_size for file in self._files]}


def _record_offsets(path: Path, count: int) -> npt.NDArray[np.int64]:
    """Returns the offsets of a TFRecord file's `count` records."""
    if not path.is_file():
        raise ValueError(f"`data_dir` must hold all files of the data set. Received: no {path}")
    offsets = []
    size, offset = os.path.getsize(path), 0
    # Unbuffered: only the lengths are read, not the pictures between them.
    with open(path, "rb", buffering=0) as file:
        while offset + _BEFORE <= size:
            offsets.append(offset)
            file.seek(offset)
            offset += _BEFORE + struct.unpack("<Q", file.read(8))[0] + _AFTER
    if offset != size or len(offsets) != count:
        raise ValueError(
            f"`data_dir` must hold undamaged files. Received: {path}, which does not end after {count} records"
        )
    return np.array(offsets, np.int64)
