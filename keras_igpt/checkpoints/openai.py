"""OpenAI's released weights: TensorFlow 1 checkpoints, as downloaded."""

from __future__ import annotations

import math
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from keras_igpt.checkpoints.tensors import CheckpointTensors, Shape, build_model, names_in_blocks, released_architecture
from keras_igpt.model.architecture import Architecture
from keras_igpt.model.weights_by_role import weights_by_role
from keras_igpt.objectives.causal_lm import ImageGPTCausalLM
from keras_igpt.objectives.masked_lm import ImageGPTMaskedLM
from keras_igpt.palette.color_palette import ColorPalette

_SOURCE = "https://openaipublic.blob.core.windows.net/image-gpt"
_CLUSTERS = "kmeans_centers.npy"

# State of TensorFlow 1's optimizers, the count of steps, and the class head, which pre-training never fits.
_LEFT_OUT = re.compile(
    r"(^|/)(global_step|_step|beta[12]_power|Adam(_\d+)?|adam_[mv]|AdamWeightDecayOptimizer(_\d+)?)(/|$)"
    r"|^model/clf/wclf$"
)

# The released code's names of the weights that have the same shape in both.
_OF_ENDS = {"token_embedding": "model/wte", "position_embedding": "model/wpe", "final_norm": "model/ln_f/g"}
_OF_BLOCK = {
    "attention_norm": "ln_1/g",
    "output_projection": "attn/c_proj",
    "feed_forward_norm": "ln_2/g",
    "expansion": "mlp/c_fc/w",
    "contraction": "mlp/c_proj/w",
}
_START = "model/sos"
_HEAD = "model/wtet"


def load_openai_checkpoint(
    folder: str | os.PathLike[str], *, dtype: Any = None, remat: bool = False
) -> ImageGPTCausalLM | ImageGPTMaskedLM:
    """Makes a model of OpenAI's released weights, from the files as downloaded.

    Sizes and objective are read from the checkpoint: one with a start vector (`model/sos`) is autoregressive, one
    without is BERT's. Optimizer state and the class head, which pre-training does not fit, are left out. The model is
    not compiled.

    The official `download.py` takes the files from `https://openaipublic.blob.core.windows.net/image-gpt`:
    `checkpoints/igpt-s/1000000/model.ckpt-1000000.index` and its 32 data files (64 of `igpt-l`), also `igpt-m`, each
    also with `-bert`, also 131000, 262000 and 524000 steps; and `color-clusters/kmeans_centers.npy`. This function
    downloads nothing.

    Args:
        folder: folder with one checkpoint; of several, the checkpoint's path up to its step,
            `"downloads/model.ckpt-1000000"`. Not needed is the `.meta` file; `kmeans_centers.npy` in the same folder
            becomes the palette.
        dtype: dtype policy of the blocks, as in `ImageGPTBackbone`.
        remat: bool, as in `ImageGPTBackbone`.

    Returns:
        An `ImageGPTCausalLM` or `ImageGPTMaskedLM` with `normalization="rms_norm"`, what the weights were trained with.

    Raises:
        ValueError: if files or tensors are missing, damaged, unknown or of another shape; names them all.
        ImportError: if TensorFlow is absent, which reads the format.

    Example:
    ```python
    lm = load_openai_checkpoint("downloads")
    images = lm.generate(num_images=4, seed=0)
    ```

    Reference:
        [Chen et al., 2020](https://cdn.openai.com/papers/Generative_Pretraining_from_Pixels_V2.pdf), and
        [the released code](https://github.com/openai/image-gpt)
    """
    tensors = _open(_find_checkpoint(Path(folder)))
    architecture = _read_architecture(tensors)
    tensors.check(_expected_shapes(architecture))
    palette = _read_palette(tensors.path.parent / _CLUSTERS)

    model = build_model(tensors.path, architecture, palette, dtype, remat)
    weights = weights_by_role(model)
    for role, name in (_OF_ENDS | names_in_blocks(_OF_BLOCK, "model/h{}/", architecture.num_layers)).items():
        weights[role].assign(tensors[name])
    if "start_vector" in weights:
        weights["start_vector"].assign(tensors[_START])
    weights["pixel_head"].assign(tensors[_HEAD].T)
    for layer in range(architecture.num_layers):
        projections = [tensors[f"model/h{layer}/attn/{part}_proj"] for part in "qkv"]  # each (N, H, D)
        weights[f"block_{layer}.query_key_value"].assign(np.stack(projections).transpose(3, 0, 1, 2))
    return model


def _find_checkpoint(path: Path) -> Path:
    """The path of the checkpoint up to its step; checks that all its files are there."""
    if path.is_dir():
        found = sorted(file.with_suffix("") for file in path.glob("*.index"))
    else:
        found = [path] if path.with_name(f"{path.name}.index").exists() else []
    if not found:
        raise ValueError(
            "`folder` must be a folder with OpenAI's checkpoint files, model.ckpt-1000000.index and its data files "
            f"(from {_SOURCE}/checkpoints/igpt-s/1000000, say), or the checkpoint's path up to its step. "
            f"Received: {os.fspath(path)!r}, where there is no such .index file"
        )
    if len(found) > 1:
        raise ValueError(
            "`folder` must hold one checkpoint; of several, give the path of one up to its step. "
            f"Received: {os.fspath(path)!r} with {', '.join(file.name for file in found)}"
        )
    (checkpoint,) = found
    shards = {}
    for file in checkpoint.parent.iterdir():
        match = re.fullmatch(re.escape(checkpoint.name) + r"\.data-(\d{5})-of-(\d{5})", file.name)
        if match:
            shards[int(match[1])] = int(match[2])
    count = max(shards.values(), default=0)
    missing = [f"{checkpoint.name}.data-{shard:05d}-of-{count:05d}" for shard in range(count) if shard not in shards]
    if not shards:
        missing = [f"{checkpoint.name}.data-00000-of-…"]
    if missing:
        raise ValueError(f"{checkpoint} must have all its data files beside it. Received: none of {', '.join(missing)}")
    return checkpoint


def _read_palette(clusters: Path) -> ColorPalette | None:
    if not clusters.exists():
        return None
    try:
        return ColorPalette.load(clusters)
    except ValueError as error:
        raise ValueError(f"{clusters} must hold the colour clusters. {error}") from error


def _open(checkpoint: Path) -> CheckpointTensors:
    try:
        import tensorflow as tf
    except ImportError as error:
        raise ImportError("OpenAI's checkpoints need TensorFlow: pip install 'keras_igpt[tensorflow]'") from error
    # What TensorFlow raises for damaged files.
    failures = (tf.errors.OpError, IndexError, RuntimeError, ValueError)
    try:
        reader = tf.train.load_checkpoint(os.fspath(checkpoint))
        shapes: dict[str, Shape] = {
            name: tuple(shape)
            for name, shape in reader.get_variable_to_shape_map().items()
            if not _LEFT_OUT.search(name)
        }
        dtypes = reader.get_variable_to_dtype_map()
    except failures as error:
        raise ValueError(
            f"{checkpoint}.index must be the index of a TensorFlow checkpoint. Received: a damaged or foreign file "
            f"({error})"
        ) from error

    # Checked before a model of the sizes in the index is built.
    claimed = sum(math.prod(shape) * dtypes[name].size for name, shape in shapes.items() if dtypes[name].is_floating)
    data = [file for file in checkpoint.parent.iterdir() if file.name.startswith(f"{checkpoint.name}.data-")]
    there = sum(file.stat().st_size for file in data)
    if claimed > there:
        raise ValueError(
            f"The data files of {checkpoint} must be whole. "
            f"Received: {there:,} bytes, from which tensors of {claimed:,} cannot be read"
        )

    def read(name: str) -> npt.NDArray[Any]:
        try:
            return np.asarray(reader.get_tensor(name))
        except failures as error:
            raise ValueError(
                f"The data files of {checkpoint} must be whole. Received: {name} cannot be read ({error})"
            ) from error

    return CheckpointTensors(checkpoint, shapes, read)


def _read_architecture(tensors: CheckpointTensors) -> Architecture:
    """The architecture that a few shapes tell, with which all shapes are then compared."""
    ranks = {"model/wte": 2, "model/wpe": 2, "model/h0/attn/q_proj": 3}
    if any(len(tensors.shapes.get(name, ())) != rank for name, rank in ranks.items()):
        raise ValueError(
            f"{tensors.path} must be an Image GPT of OpenAI, with {', '.join(ranks)}. "
            f"Received: {len(tensors.shapes)} tensors, {', '.join(sorted(tensors.shapes)[:5])} …"
        )
    vocabulary_size, hidden_dim = tensors.shapes["model/wte"]
    layers = {match[0] for name in tensors.shapes if (match := re.match(r"model/h\d+/", name))}
    return released_architecture(
        tensors.path,
        num_tokens=tensors.shapes["model/wpe"][0],
        vocabulary_size=vocabulary_size,
        num_layers=len(layers),
        num_heads=tensors.shapes["model/h0/attn/q_proj"][0],
        hidden_dim=hidden_dim,
        attention="causal" if _START in tensors.shapes else "bidirectional",
    )


def _expected_shapes(architecture: Architecture) -> dict[str, Shape]:
    width = architecture.hidden_dim
    heads = (architecture.num_heads, architecture.head_dim, width)
    of_block: dict[str, Shape] = {
        **{f"attn/{part}_proj": heads for part in "qkvc"},
        "ln_1/g": (width,),
        "ln_2/g": (width,),
        "mlp/c_fc/w": (width, 4 * width),
        "mlp/c_proj/w": (4 * width, width),
    }
    shapes: dict[str, Shape] = {
        "model/wte": (architecture.vocabulary_size, width),
        _HEAD: (architecture.vocabulary_size, width),
        "model/wpe": (architecture.num_tokens, width),
        "model/ln_f/g": (width,),
    }
    if architecture.attention == "causal":
        shapes[_START] = (width,)
    for layer in range(architecture.num_layers):
        shapes |= {f"model/h{layer}/{name}": shape for name, shape in of_block.items()}
    return shapes
