"""Model cards: what a model is, how it was trained and what it reached, for a page of the Hugging Face hub."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_igpt.checkpoints.run_reports import Model, Paths, RunReports, Section, read_reports, table
from keras_igpt.describe import describe
from keras_igpt.objectives.causal_lm import ImageGPTCausalLM
from keras_igpt.objectives.image_classifier import ImageGPTImageClassifier
from keras_igpt.objectives.masked_lm import ImageGPTMaskedLM
from keras_igpt.palette.color_palette import UInt8Images
from keras_igpt.plotting import plot_grid, plot_palette
from keras_igpt.support.checks import check_integer
from keras_igpt.support.files import whole_file

_PAPER = (
    "[Chen et al., 2020, Generative Pretraining from Pixels]"
    "(https://cdn.openai.com/papers/Generative_Pretraining_from_Pixels_V2.pdf)"
)
_NOT_STATED = "Not stated."
# The seed of the samples, which are not chosen.
_SEED = 0


def write_model_card(
    model: Model,
    folder: str | os.PathLike[str],
    *,
    address: str | None = None,
    data: str | None = None,
    recipe: Mapping[str, Any] | None = None,
    reports: Paths = (),
    license: str | None = None,
    num_samples: int = 16,
) -> None:
    """Writes a model card, `README.md` and its pictures, as the Hugging Face hub shows it.

    The card has what the model itself says (architecture, palette, samples), what the reports say (settings, loss
    curve, depth curve, accuracies) and what is given here. Nothing else is in it: what is not known is "not stated".
    `model.save("hf://…")` writes a card of Keras' own, so upload this one after it.

    Args:
        model: an `ImageGPTCausalLM`, `ImageGPTMaskedLM` or `ImageGPTImageClassifier`.
        folder: folder to write to; other files in it stay.
        address: str. `"user/model"`, where the hub has the model or will have it.
        data: str. What it was trained on, in Markdown; by default as the reports say.
        recipe: mapping of settings by name that the reports do not have.
        reports: path or sequence of paths. Folders of runs of `keras-igpt pretrain`, `probe`, `finetune`, `search` and
            `low-data`; or JSON files of `ProbeReport.save`, `LowDataTable.save`, a `Study`, or of named numbers.
        license: str. Identifier of the weights' licence as the hub knows it, such as `"apache-2.0"`.
        num_samples: int. Pictures that a language model draws for the card; 0 draws none.

    Raises:
        ValueError: if an argument is out of its range, or a report is damaged or of another model.
        ImportError: if Matplotlib is absent.

    Example:
    ```python
    write_model_card(lm, "card", address="user/model", reports=["pretrain_output", "probe_output"])
    lm.save("hf://user/model")
    huggingface_hub.upload_folder(repo_id="user/model", folder_path="card")
    ```
    """
    if not isinstance(model, Model):
        raise ValueError(
            "`model` must be an ImageGPTCausalLM, ImageGPTMaskedLM or ImageGPTImageClassifier. "
            f"Received: {type(model).__name__}"
        )
    _check_words("address", address, r"[\w.-]+/[\w.-]+", "'user/model'")
    _check_words("license", license, r"[a-z0-9][a-z0-9.-]*", "an identifier of the Hugging Face hub, such as 'mit'")
    if data is not None and not isinstance(data, str):
        raise ValueError(f"`data` must be Markdown as str, or None. Received: data={data!r}")
    if recipe is not None and not (isinstance(recipe, Mapping) and all(isinstance(name, str) for name in recipe)):
        raise ValueError(f"`recipe` must be a mapping of settings by name, or None. Received: recipe={recipe!r}")
    num_samples = check_integer("num_samples", num_samples, 0)
    found = read_reports(reports, model)
    parts = [
        Section("", _introduction(model)),
        Section("Model", _model(model)),
        *_palette(model),
        *_samples(model, num_samples),
        Section("Data", data or _data(found) or _NOT_STATED),
        Section("Training", _training(model, recipe, found) or _NOT_STATED),
        Section("Results", "" if found.sections else _NOT_STATED),
        *found.sections,
        Section("How to load it", _loading(model, address)),
        Section("Licence", license or _NOT_STATED),
    ]
    _write(Path(folder), _front_matter(model, license) + f"# {address or _title(model)}\n", parts)


def _write(folder: Path, text: str, parts: Sequence[Section]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    names: list[str] = []
    for part in parts:
        text += f"\n{'#' * part.level} {part.title}\n" if part.title else ""
        text += f"\n{part.text}\n" if part.text else ""
        if part.figure is not None:
            # Several reports may be of one kind.
            names.append(re.sub("[^a-z0-9]+", "_", part.title.lower()))
            count = names.count(names[-1])
            picture = f"{names[-1]}_{count}.png" if count > 1 else f"{names[-1]}.png"
            with whole_file(folder / picture) as partial:
                part.figure.savefig(partial)
            text += f"\n![{part.title}]({picture})\n"
    # Last, so that a card never lacks a picture.
    with whole_file(folder / "README.md") as partial:
        partial.write_text(text, encoding="utf-8")


def _check_words(name: str, value: Any, pattern: str, wanted: str) -> None:
    if value is not None and not (isinstance(value, str) and re.fullmatch(pattern, value)):
        raise ValueError(f"`{name}` must be {wanted}, or None. Received: {name}={value!r}")


def _title(model: Model) -> str:
    size = model.backbone.image_size
    return f"{'Classifier' if isinstance(model, ImageGPTImageClassifier) else 'Image GPT'} of {size}x{size} pixels"


def _front_matter(model: Model, license: str | None) -> str:
    if isinstance(model, ImageGPTImageClassifier):
        task = "image-classification"
    elif isinstance(model, ImageGPTCausalLM):
        task = "unconditional-image-generation"
    else:
        task = "image-feature-extraction"
    lines = ["library_name: keras", f"pipeline_tag: {task}"]
    lines += [f"license: {license}"] if license else []
    objective = "autoregressive" if model.backbone.attention == "causal" else "bert"
    lines += ["tags:", "- image-gpt", "- keras-igpt", f"- {objective}"]
    return "\n".join(["---", *lines, "---", "", ""])


def _introduction(model: Model) -> str:
    backbone = model.backbone
    size = f"{backbone.image_size}x{backbone.image_size}"
    predicts = (
        f"each pixel of a picture of {size} pixels from those before it, row by row"
        if backbone.attention == "causal"
        else f"hidden pixels of a picture of {size} pixels from all others (the BERT objective)"
    )
    text = f"A transformer that predicts {predicts}, as one of {backbone.vocabulary_size} colours"
    if isinstance(model, ImageGPTImageClassifier):
        text = (
            f"A classifier of {model.num_classes} classes, on the mean-pooled features of depth {model.layer} of an "
            f"Image GPT. That is {text[0].lower()}{text[1:]}"
        )
    return f"{text}.\n\nMade with keras_igpt for Keras 3; it runs on JAX, TensorFlow and PyTorch. Method: {_PAPER}."


def _model(model: Model) -> str:
    # The kernel is that of the machine the card is written on.
    return table({name: value for name, value in describe(model).architecture.items() if name != "attention kernel"})


def _palette(model: Model) -> list[Section]:
    if model.palette is None:
        return []
    return [Section("Palette", "The colours, in the order of their tokens.", plot_palette(model.palette))]


def _samples(model: Model, count: int) -> list[Section]:
    """What a language model draws; a classifier's need not be kept in training."""
    if isinstance(model, ImageGPTImageClassifier) or model.palette is None or not count:
        return []
    how = f"The first {count} of seed {_SEED} at temperature 1, not chosen"
    if isinstance(model, ImageGPTCausalLM):
        return [Section("Samples", f"{how}.", plot_grid(model.generate(count, seed=_SEED)))]
    return [
        Section("Samples", f"{how}: all pixels hidden at first, drawn in rounds.", plot_grid(_filled(model, count)))
    ]


def _filled(model: ImageGPTMaskedLM, count: int) -> UInt8Images:
    size = model.backbone.image_size
    nothing = np.zeros((count, size**2), np.int32)
    tokens = model.fill_tokens(nothing, np.ones(size**2, bool), seed=_SEED)
    return model.palette.decode(tokens, (size, size))  # type: ignore[union-attr]


def _data(found: RunReports) -> str | None:
    """What the first training says."""
    for _, settings in found.settings:
        pictures, dataset = settings.get("pictures trained on"), settings.get("data set")
        if dataset or pictures:
            count = f"{pictures:,} pictures" if pictures else "pictures"
            return f"{count.capitalize()} of {dataset or 'a folder that is not named here'}."
    return None


def _training(model: Model, recipe: Mapping[str, Any] | None, found: RunReports) -> str:
    tables = [("Recipe", recipe or {}), *found.settings]
    tables.append(("Compiled with", describe(model).training.get("compiled with", {})))
    return "\n\n".join(f"### {title}\n\n{table(rows)}" for title, rows in tables if rows)


def _loading(model: Model, address: str | None) -> str:
    size = model.backbone.image_size
    inputs = "pictures" if model.palette else "token_ids"
    uses = [f"{inputs} = ...  # {'uint8 (B, H, W, C)' if model.palette else f'int32 (B, {size**2})'}"]
    if isinstance(model, ImageGPTImageClassifier):
        uses.append(f"classes = model.predict({inputs}).argmax(-1)  # (B,)")
    else:
        tokens = "model.palette.encode(pictures)" if model.palette else inputs
        uses.append(f"features = keras_igpt.FeatureExtractor(model).predict({tokens})  # (B, depths, D)")
    if isinstance(model, ImageGPTCausalLM) and model.palette:
        uses += [
            "images = model.generate(num_images=16, seed=0)",
            f"completions = model.complete(pictures, keep_rows={size // 2}, num_samples=4)",
        ]
    lines = [
        "import keras",
        "import keras_igpt  # registers the classes",
        "",
        f'model = keras.saving.load_model("{f"hf://{address}" if address else "FILE.keras"}")',
        *uses,
    ]
    text = "\n".join(["```python", *lines, "```", "", f"The card was written with Keras {keras.__version__}."])
    return text if model.palette else f"{text} The model has no palette: it takes tokens alone."
