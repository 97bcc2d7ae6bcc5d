"""What gpu.py draws: models, ways, and the run that is repeated."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from packed_pretraining import open_weights
from timing import make_unpredictable

import keras_igpt as igpt
from keras_igpt.inference.decoding import continue_tokens
from keras_igpt.inference.sampling import Sampling


@dataclass(frozen=True)
class Drawing:
    """What a process draws: `num_images` at a time, by a model that is random, a preset or a file."""

    backend: str
    model: str
    num_images: int
    lookahead: int | None


def drawings(models: dict[str, str], backend: str) -> dict[str, Drawing]:
    """Each model, 1 and 32 pictures at a time, with one pass a pixel and with more or less lookahead."""
    return {
        f"draw {name}, {backend}, {num_images} at a time, {way}": Drawing(backend, model, num_images, lookahead)
        for name, model in models.items()
        for num_images in (1, 32)
        for way, lookahead in (("a pass a pixel", 1), ("lookahead", None), ("8 pixels a pass", 8))
    }


def open_language_model(name: str, shape: dict[str, int]) -> igpt.ImageGPTCausalLM:
    """A model of a shape with random weights, a trained preset, or what packed_pretraining.py has trained."""
    if name in igpt.trained_presets():
        return igpt.ImageGPTCausalLM.from_preset(name, dtype="mixed_bfloat16")
    if name != "random":
        return open_weights(Path(name), "mixed_bfloat16")
    return make_unpredictable(igpt.ImageGPTCausalLM(igpt.ImageGPTBackbone(**shape, dtype="mixed_bfloat16")))


def make_drawing_run(drawing: Drawing, language_model: igpt.ImageGPTCausalLM) -> Callable[[int], float]:
    """Our model: `run(times)` draws as many batches of pictures and returns the passes that a picture took."""
    tokens = language_model.backbone.num_tokens
    nothing, known = np.zeros((drawing.num_images, tokens), np.int32), np.zeros(tokens, bool)

    def run(times: int) -> float:
        passes = [
            continue_tokens(
                language_model, nothing, known, Sampling(seed=seed), drawing.num_images, drawing.lookahead
            ).passes
            for seed in range(times)
        ]
        return float(np.mean(passes))

    return run
