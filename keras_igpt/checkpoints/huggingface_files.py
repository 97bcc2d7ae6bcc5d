"""The files of a checkpoint folder of Hugging Face's transformers, and the tensors in them."""

from __future__ import annotations

import hashlib
import json
import os
import re
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from keras_igpt.checkpoints.tensors import CheckpointTensors, Shape

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
PREPROCESSOR = "preprocessor_config.json"
SAFETENSORS_NEEDED = "Hugging Face checkpoints need safetensors: pip install 'keras_igpt[checkpoints]'"

_PICKLED_WEIGHTS = "pytorch_model.bin"
_READABLE_DTYPES = ("F16", "F32", "F64")
# The causal mask, which older versions saved as if it were a weight.
_OLD_BUFFER = re.compile(r"(transformer\.)?h\.\d+\.attn\.(bias|masked_bias)")


def find_folder(folder: str | os.PathLike[str], download: bool) -> Path:
    """Returns the folder of a checkpoint, or with `download` the cached copy of the hub's repository of that name.

    Raises:
        ValueError: if there is no such folder and no download is asked for, a downloaded file is damaged, or
            HF_HUB_OFFLINE is set and nothing was downloaded before.
        ImportError: if huggingface_hub is absent and needed.
    """
    if Path(folder).is_dir():
        return Path(folder)
    if not download:
        raise ValueError(
            f"`folder` must be a folder with {CONFIG} and {WEIGHTS}; to fetch a repository of the Hugging Face hub, "
            f"'openai/imagegpt-small' say, pass its name and download=True. Received: {os.fspath(folder)!r}, "
            "which is no folder"
        )
    return _download(os.fspath(folder))


def _download(repository: str) -> Path:
    """Downloads the files needed, and compares them with the checksums that the hub states."""
    try:
        import huggingface_hub
    except ImportError as error:
        raise ImportError("A download needs huggingface_hub: pip install 'keras_igpt[checkpoints]'") from error
    if huggingface_hub.constants.HF_HUB_OFFLINE:
        return _last_downloaded(repository)
    info = huggingface_hub.HfApi().model_info(repository, files_metadata=True)
    files = {file.rfilename: file for file in info.siblings or ()}
    wanted = [name for name in (CONFIG, PREPROCESSOR) if name in files] + _weight_files(files)
    # The revision that the checksums are of.
    folder = Path(huggingface_hub.snapshot_download(repository, revision=info.sha, allow_patterns=wanted))
    for name in wanted:
        stored = files[name].lfs
        # Small files are not in large-file storage and have no SHA-256.
        if stored is None:
            continue
        with open(folder / name, "rb") as file:
            checksum = hashlib.file_digest(file, "sha256").hexdigest()
        if checksum != stored.sha256:
            raise ValueError(
                f"{folder / name} must be what the hub has: delete it and download again. "
                f"Received: SHA-256 {checksum} instead of {stored.sha256}"
            )
    return folder


def _last_downloaded(repository: str) -> Path:
    """Returns the folder of the cached copy that was downloaded last; its checksums were compared then."""
    import huggingface_hub

    cached = huggingface_hub.scan_cache_dir().repos
    snapshots = [copy for found in cached if found.repo_id == repository for copy in found.revisions]
    if not snapshots:
        raise ValueError(
            f"`folder` must have been downloaded before where HF_HUB_OFFLINE is set. Received: {repository!r}, "
            "which is not in the cache"
        )
    return Path(max(snapshots, key=lambda copy: copy.last_modified).snapshot_path)


def _weight_files(names: Iterable[str]) -> list[str]:
    """The weight files of a repository in one format, with shards and index; safetensors if there are any."""
    names = sorted(names)
    for stem, ending in (WEIGHTS.split("."), _PICKLED_WEIGHTS.split(".")):
        pattern = rf"{stem}(-\d+-of-\d+)?\.{ending}(\.index\.json)?"
        found = [name for name in names if re.fullmatch(pattern, name)]
        if found:
            return found
    return []


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON object; raises `ValueError` if the file holds something else."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} must be JSON. Received: a damaged or foreign file ({error})") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold a JSON object. Received: {type(content).__name__}")
    return content


def open_tensors(folder: Path) -> CheckpointTensors:
    """Opens the weights of a checkpoint folder: safetensors if there are any, else PyTorch's format.

    Raises:
        ValueError: if files are missing, damaged, or of a number format that NumPy lacks or that is not real.
        ImportError: if safetensors, or PyTorch for its format, is absent.
    """
    for name, open_file in ((WEIGHTS, _open_safetensors), (_PICKLED_WEIGHTS, _open_pickled)):
        if (folder / name).exists():
            return open_file(folder / name)
        index = folder / f"{name}.index.json"
        if index.exists():
            return _join(index, [open_file(path) for path in _shards(index)])
    raise ValueError(
        f"`folder` must have {WEIGHTS} or {_PICKLED_WEIGHTS}, or the index of either. "
        f"Received: {os.fspath(folder)!r} with {', '.join(sorted(os.listdir(folder))) or 'nothing'}"
    )


def _shards(index: Path) -> list[Path]:
    places = read_json(index).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(name, str) for name in places.values()):
        raise ValueError(f"{index} must have a weight_map, the file of each tensor. Received: {places!r}")
    names = sorted(set(places.values()))
    # An untrusted index must not make files outside the folder be read.
    missing = [name for name in names if Path(name).name != name or not (index.parent / name).exists()]
    if missing:
        raise ValueError(f"{index} must have all its files beside it. Received: none of {', '.join(missing)}")
    return [index.parent / name for name in names]


def _join(index: Path, shards: list[CheckpointTensors]) -> CheckpointTensors:
    shard_of = {name: shard for shard in shards for name in shard.shapes}
    shapes = {name: shard.shapes[name] for name, shard in shard_of.items()}
    return CheckpointTensors(index, shapes, lambda name: shard_of[name].read(name))


def _open_safetensors(path: Path) -> CheckpointTensors:
    try:
        from safetensors import SafetensorError, safe_open
    except ImportError as error:
        raise ImportError(SAFETENSORS_NEEDED) from error
    shapes: dict[str, Shape] = {}
    try:
        with safe_open(path, framework="np") as file:
            for name in file.keys():  # noqa: SIM118 - it is no mapping
                if _OLD_BUFFER.fullmatch(name):
                    continue
                part = file.get_slice(name)
                shapes[name] = tuple(part.get_shape())
                if part.get_dtype() not in _READABLE_DTYPES:
                    raise ValueError(
                        f"{path} must hold numbers of {', '.join(_READABLE_DTYPES)}; save the model in float32. "
                        f"Received: {name} of {part.get_dtype()}"
                    )
    except SafetensorError as error:
        raise ValueError(
            f"{path} must be a safetensors file. Received: a truncated or foreign file ({error})"
        ) from error

    def read(name: str) -> npt.NDArray[Any]:
        with safe_open(path, framework="np") as file:
            return np.asarray(file.get_tensor(name))

    return CheckpointTensors(path, shapes, read)


def _open_pickled(path: Path) -> CheckpointTensors:
    try:
        import torch
    except ImportError as error:
        raise ImportError(f"{path.name} needs PyTorch: pip install 'keras_igpt[torch]'") from error
    if tuple(int(part) for part in torch.__version__.split(".")[:2]) < (2, 6):
        raise ImportError(
            f"{path.name} needs PyTorch 2.6 or later, which loads weights without running what else a file may hold: "
            f"pip install 'keras_igpt[torch]'. Found: {torch.__version__}"
        )
    try:
        # Weights only: a pickle could run anything. Files of the older format cannot be mapped into memory.
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except OSError:  # absent or unreadable, which is not damaged
        raise
    # It is not documented what damaged and foreign files make it raise.
    except Exception as error:
        # The first sentence; PyTorch goes on to advise that the file be trusted.
        reason = re.split(r"\. |\n", str(error))[0] or type(error).__name__
        raise ValueError(
            f"{path} must be weights that PyTorch saved. Received: a damaged or foreign file ({reason})"
        ) from error
    if not isinstance(state, dict) or not all(
        isinstance(name, str) and isinstance(tensor, torch.Tensor) for name, tensor in state.items()
    ):
        raise ValueError(f"{path} must hold a dictionary of tensors. Received: {type(state).__name__} of other things")
    state = {name: tensor for name, tensor in state.items() if not _OLD_BUFFER.fullmatch(name)}
    for name, tensor in state.items():
        if not tensor.is_floating_point() or tensor.layout != torch.strided or tensor.device.type != "cpu":
            raise ValueError(
                f"{path} must hold dense tensors of real numbers. "
                f"Received: {name} of {tensor.dtype}, {tensor.layout}, on {tensor.device}"
            )
        # A stride of 0 repeats one number any number of times.
        if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
            raise ValueError(
                f"{path} must hold all numbers of its tensors. "
                f"Received: {name} of shape {tuple(tensor.shape)} in {tensor.untyped_storage().nbytes()} bytes"
            )
    shapes: dict[str, Shape] = {name: tuple(tensor.shape) for name, tensor in state.items()}
    return CheckpointTensors(path, shapes, lambda name: state[name].detach().float().numpy())
