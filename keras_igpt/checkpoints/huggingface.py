"""Weights from and to Hugging Face's transformers, whose ImageGPT is autoregressive and on PyTorch."""

from __future__ import annotations

import os
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from keras_igpt.backend.processes import check_one_process, host_array
from keras_igpt.checkpoints.huggingface_files import (
    CONFIG,
    PREPROCESSOR,
    SAFETENSORS_NEEDED,
    WEIGHTS,
    find_folder,
    open_tensors,
    read_json,
)
from keras_igpt.checkpoints.tensors import Shape, build_model, names_in_blocks, released_architecture
from keras_igpt.model.architecture import Architecture
from keras_igpt.model.quantization import check_not_quantized
from keras_igpt.model.weights_by_role import weights_by_role
from keras_igpt.objectives.causal_lm import ImageGPTCausalLM
from keras_igpt.palette.color_palette import ColorPalette
from keras_igpt.support.files import whole_folder, write_json

_MODEL_TYPE = "imagegpt"
_SIZES = ("vocab_size", "n_positions", "n_layer", "n_head", "n_embd")

# What a configuration must say, or leave out, for its weights to mean the same here.
_MEANING = {
    "activation_function": "quick_gelu",
    "layer_norm_epsilon": 1e-5,
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "add_cross_attention": False,
    "tie_word_embeddings": False,
}

# transformers' names of the weights that hold the same numbers in the same order in both, those of attention in other
# shapes. The last row of `wte` is the start vector, and `lm_head` is transposed.
_OF_BLOCK = {
    "attention_norm": "ln_1.weight",
    "query_key_value": "attn.c_attn.weight",
    "output_projection": "attn.c_proj.weight",
    "feed_forward_norm": "ln_2.weight",
    "expansion": "mlp.c_fc.weight",
    "contraction": "mlp.c_proj.weight",
}
_BIASES_OF_BLOCK = {
    f"{role}_bias": _OF_BLOCK[role].replace("weight", "bias")
    for role in ("query_key_value", "output_projection", "expansion", "contraction")
}
_TABLE = "wte.weight"
_HEAD = "lm_head.weight"
_BODY = "transformer."


def load_huggingface_checkpoint(
    folder: str | os.PathLike[str], *, download: bool = False, dtype: Any = None, remat: bool = False
) -> ImageGPTCausalLM:
    """Makes a model of an ImageGPT checkpoint of Hugging Face's transformers.

    The last row of the checkpoint's embeddings, one more than there are colours, is the start vector. This model puts
    it first and shifts the inputs, as the released weights were trained; transformers does neither: its logits for
    `[V, x_1, …, x_{T-1}]` are those of this model for `x`. A bare `ImageGPTModel` has no pixel head: the head stays
    zero, with a warning. The model is not compiled.

    Args:
        folder: folder with `config.json`, `model.safetensors` or `pytorch_model.bin` (or an index and shards of
            either), and perhaps `preprocessor_config.json`, whose clusters become the palette; or, with `download`, the
            name of a repository of the Hugging Face hub.
        download: bool. Whether to download a repository if there is no folder of that name. Large files are compared
            with the SHA-256 that the hub states. Pickles are read as weights only.
        dtype: dtype policy of the blocks, as in `ImageGPTBackbone`.
        remat: bool, as in `ImageGPTBackbone`.

    Returns:
        An `ImageGPTCausalLM` with `normalization="rms_norm"`, and with `projection_bias` if any bias is not zero.
        Those of the released weights are.

    Raises:
        ValueError: if files or tensors are missing, damaged, unknown or of another shape, or the configuration is of
            another model, with another activation, say.
        ImportError: if safetensors (PyTorch for `pytorch_model.bin`, huggingface_hub for a download) is absent.

    Example:
    ```python
    lm = load_huggingface_checkpoint("openai/imagegpt-small", download=True)
    images = lm.generate(num_images=4, seed=0)
    ```
    """
    path = find_folder(folder, download)
    architecture = _read_config(path / CONFIG)
    palette = _read_palette(path / PREPROCESSOR)
    tensors = open_tensors(path)
    # A configuration could claim any number of layers: checked before they are named.
    if architecture.num_layers > len(tensors.shapes):
        raise ValueError(
            f"{path / CONFIG} must have the layers that the weights are of. "
            f"Received: n_layer={architecture.num_layers}, while {tensors.path} has {len(tensors.shapes)} tensors"
        )
    body = _BODY if any(name.startswith(_BODY) for name in tensors.shapes) else ""
    expected = _expected_shapes(architecture, body)
    biases = [name for name in expected if name.endswith(".bias")]
    tensors.check(expected, optional=biases if body else [*biases, _HEAD])
    if any([tensors[name].any() for name in biases if name in tensors.shapes]):  # all are read, to find inf and NaN
        architecture = replace(architecture, projection_bias=True)
    if _HEAD not in tensors.shapes:
        warnings.warn(
            f"{tensors.path} has no {_HEAD}: the pixel head stays zero, and all colours are equally probable until it "
            "is trained.",
            stacklevel=2,
        )

    model = build_model(path / CONFIG, architecture, palette, dtype, remat)
    weights = weights_by_role(model)
    for role, name in _names(architecture, body).items():
        if name in tensors.shapes:  # else a bias, which is zero
            weights[role].assign(tensors[name].reshape(weights[role].shape))
    table = tensors[body + _TABLE]
    weights["token_embedding"].assign(table[:-1])
    weights["start_vector"].assign(table[-1])
    if _HEAD in tensors.shapes:
        weights["pixel_head"].assign(tensors[_HEAD].T)
    return model


def save_huggingface_checkpoint(lm: ImageGPTCausalLM, folder: str | os.PathLike[str]) -> None:
    """Writes a model for Hugging Face's transformers: `ImageGPTForCausalImageModeling.from_pretrained` opens it.

    The folder has `config.json`, `model.safetensors` and, if the model has a palette, `preprocessor_config.json`, and
    is written whole or not at all. For the inputs that give the same logits see `load_huggingface_checkpoint`.

    Args:
        lm: an `ImageGPTCausalLM` with `normalization="rms_norm"` and a palette in colour or None; transformers has no
            other models.
        folder: folder to make; one that exists must be empty.

    Raises:
        ValueError: if transformers has no such model, a weight is not finite, or the folder is not empty.
        ImportError: if safetensors is absent.

    Example:
    ```python
    save_huggingface_checkpoint(lm, "for-transformers")
    model = transformers.ImageGPTForCausalImageModeling.from_pretrained("for-transformers")
    ```
    """
    target = Path(folder).absolute()
    _check_exportable(lm, target)
    check_not_quantized(lm, "lm")
    check_one_process("save_huggingface_checkpoint")
    try:
        from safetensors.numpy import save_file
    except ImportError as error:
        raise ImportError(SAFETENSORS_NEEDED) from error
    architecture = lm.backbone.architecture
    tensors = _tensors_of(lm)
    with whole_folder(target) as partial:
        # Older versions of transformers refuse files without this.
        save_file(tensors, partial / WEIGHTS, metadata={"format": "pt"})
        write_json(partial / CONFIG, _config_of(architecture))
        if lm.palette is not None:
            write_json(partial / PREPROCESSOR, _preprocessor_of(lm.palette, architecture.image_size))


def _names(architecture: Architecture, body: str) -> dict[str, str]:
    """The names in transformers of the weights with the same numbers in the same order, by role."""
    ends = {"position_embedding": f"{body}wpe.weight", "final_norm": f"{body}ln_f.weight"}
    of_block = _OF_BLOCK | (_BIASES_OF_BLOCK if architecture.projection_bias else {})
    return ends | names_in_blocks(of_block, body + "h.{}.", architecture.num_layers)


def _expected_shapes(architecture: Architecture, body: str) -> dict[str, Shape]:
    width = architecture.hidden_dim
    of_block: dict[str, Shape] = {"ln_1.weight": (width,), "ln_2.weight": (width,)}
    for name, inputs, outputs in (
        ("attn.c_attn", width, 3 * width),
        ("attn.c_proj", width, width),
        ("mlp.c_fc", width, 4 * width),
        ("mlp.c_proj", 4 * width, width),
    ):
        of_block |= {f"{name}.weight": (inputs, outputs), f"{name}.bias": (outputs,)}
    shapes: dict[str, Shape] = {
        body + _TABLE: (architecture.vocabulary_size + 1, width),
        body + "wpe.weight": (architecture.num_tokens, width),
        body + "ln_f.weight": (width,),
        _HEAD: (architecture.vocabulary_size, width),
    }
    for layer in range(architecture.num_layers):
        shapes |= {f"{body}h.{layer}.{name}": shape for name, shape in of_block.items()}
    return shapes


def _read_config(path: Path) -> Architecture:
    if not path.exists():
        raise ValueError(f"`folder` must have {CONFIG}. Received: {os.fspath(path.parent)!r} without one")
    config = read_json(path)
    if config.get("model_type") != _MODEL_TYPE:
        raise ValueError(
            f"{path} must have model_type={_MODEL_TYPE!r}. Received: model_type={config.get('model_type')!r}"
        )
    if not all(type(config.get(name)) is int and config[name] > 0 for name in _SIZES):
        sizes = ", ".join(f"{name}={config.get(name)!r}" for name in _SIZES)
        raise ValueError(f"{path} must have positive whole numbers for all of the sizes. Received: {sizes}")
    faults = [
        f"{name}={config[name]!r} instead of {value!r}"
        for name, value in _MEANING.items()
        if config.get(name, value) != value
    ]
    if config.get("n_inner") not in (None, 4 * config["n_embd"]):
        faults.append(f"n_inner={config['n_inner']!r} instead of {4 * config['n_embd']}")
    if faults:
        raise ValueError(f"{path} must describe the released architecture. Received: {', '.join(faults)}")
    return released_architecture(
        path,
        num_tokens=config["n_positions"],
        vocabulary_size=config["vocab_size"] - 1,
        num_layers=config["n_layer"],
        num_heads=config["n_head"],
        hidden_dim=config["n_embd"],
    )


def _read_palette(path: Path) -> ColorPalette | None:
    clusters = read_json(path).get("clusters") if path.exists() else None
    if clusters is None:
        return None
    try:
        return ColorPalette(np.asarray(clusters, np.float32))
    except (OverflowError, TypeError, ValueError) as error:
        raise ValueError(f"{path} must hold the colour clusters, a list of triples in [-1, 1]. {error}") from error


def _check_exportable(lm: ImageGPTCausalLM, target: Path) -> None:
    if not isinstance(lm, ImageGPTCausalLM):
        raise ValueError(
            "`lm` must be an ImageGPTCausalLM, since transformers has no other ImageGPT of pixels. "
            f"Received: {type(lm).__name__}"
        )
    if lm.backbone.normalization != "rms_norm":
        raise ValueError(
            "`lm` must have normalization='rms_norm', the only norm of transformers' ImageGPT. "
            f"Received: normalization={lm.backbone.normalization!r}"
        )
    if lm.palette is not None and lm.palette.num_channels != 3:
        raise ValueError(
            "`lm` must have a palette in colour, since transformers' clusters are; with `lm.palette = None` the "
            f"weights are written alone. Received: {lm.palette!r}"
        )
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ValueError(f"`folder` must be a new or empty folder. Received: {os.fspath(target)!r}, which has content")


def _tensors_of(lm: ImageGPTCausalLM) -> dict[str, npt.NDArray[np.float32]]:
    """The tensors of transformers' model: the weights, and biases of zero where the model has none."""
    architecture = lm.backbone.architecture
    weights = {role: np.asarray(host_array(weight), np.float32) for role, weight in weights_by_role(lm).items()}
    shapes = _expected_shapes(architecture, _BODY)
    tensors = {name: weights[role].reshape(shapes[name]) for role, name in _names(architecture, _BODY).items()}
    tensors[_BODY + _TABLE] = np.concatenate([weights["token_embedding"], weights["start_vector"][None]])
    tensors[_HEAD] = weights["pixel_head"].T
    broken = [name for name, tensor in tensors.items() if not np.isfinite(tensor).all()]
    if broken:
        raise ValueError(
            "`lm` must have finite weights. "
            f"Received: inf or NaN in {', '.join(broken[:3])}{' and others' if len(broken) > 3 else ''}"
        )
    absent = {name: np.zeros(shape, np.float32) for name, shape in shapes.items() if name not in tensors}
    return {name: np.ascontiguousarray(tensor) for name, tensor in (tensors | absent).items()}


def _config_of(architecture: Architecture) -> dict[str, Any]:
    return {
        "architectures": ["ImageGPTForCausalImageModeling"],
        "model_type": _MODEL_TYPE,
        "vocab_size": architecture.vocabulary_size + 1,
        "n_positions": architecture.num_tokens,
        "n_layer": architecture.num_layers,
        "n_head": architecture.num_heads,
        "n_embd": architecture.hidden_dim,
        "n_inner": None,
        **_MEANING,
        "attn_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "resid_pdrop": 0.0,
    }


def _preprocessor_of(palette: ColorPalette, image_size: int) -> dict[str, Any]:
    return {
        "image_processor_type": "ImageGPTImageProcessor",
        "clusters": palette.centroids.tolist(),
        "do_color_quantize": True,
        "do_resize": True,
        "size": {"height": image_size, "width": image_size},
        "resample": 2,  # bilinear, transformers' default
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
    }
