"""How fast are pictures drawn on a CPU, one pass a pixel and with lookahead?

Command: make benchmark   (or python benchmarks/generation.py --preset igpt_cifar10_8x8)

Whole pictures in float32: keras_igpt on each backend, with `lookahead=1` and as many pixels a pass as it chooses or
`--lookahead` says, and Hugging Face's ImageGPT with `generate(use_cache=True)`. Each contestant lives in a process of
its own, and they draw a batch of pictures in turn.

Random weights say what a pass costs; how many a picture takes, trained ones alone do. With `--preset` transformers
draws with random weights of the same sizes: its time does not depend on them.

The floor is what has to be read for each token, all weights and the keys and values that are there, at the rate at
which a copy of a large array reads and writes together.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np
from timing import make_unpredictable

import keras_igpt as igpt
from keras_igpt.inference.decoding import continue_tokens
from keras_igpt.inference.sampling import Sampling

BACKENDS = ("jax", "tensorflow", "torch")
SEQUENTIAL = {f"keras_igpt, {backend}, a pass a pixel": backend for backend in BACKENDS}
LOOKAHEAD = {f"keras_igpt, {backend}, lookahead": backend for backend in BACKENDS}
PEERS = {"transformers ImageGPT, generate(use_cache=True)": "torch"}
CONTESTANTS = {**SEQUENTIAL, **LOOKAHEAD, **PEERS}

Draw = Callable[[], tuple[np.ndarray, float]]


def make_keras_draw(options: argparse.Namespace) -> Draw:
    """Draws pictures with our model; tokens, and passes a picture."""
    language_model: igpt.ImageGPTCausalLM = keras.saving.load_model(Path(options.folder) / "model.keras")
    tokens = language_model.backbone.num_tokens
    nothing, known = np.zeros((options.batch_size, tokens), np.int32), np.zeros(tokens, bool)
    sampling = Sampling(temperature=0.0 if options.greedy else 1.0)
    lookahead = 1 if options.serve in SEQUENTIAL else options.lookahead

    def draw() -> tuple[np.ndarray, float]:
        drawing = continue_tokens(language_model, nothing, known, sampling, options.batch_size, lookahead)
        return drawing.token_ids, float(drawing.passes.mean())

    return draw


def make_transformers_draw(options: argparse.Namespace) -> Draw:
    """Draws pictures with transformers, from the start vector on."""
    import torch
    import transformers

    model = transformers.ImageGPTForCausalImageModeling.from_pretrained(options.folder).eval()
    start, tokens = model.config.vocab_size - 1, model.config.n_positions
    inputs = torch.full((options.batch_size, 1), start)

    def draw() -> tuple[np.ndarray, float]:
        with torch.inference_mode():
            drawn = model.generate(
                inputs,
                attention_mask=torch.ones_like(inputs),
                max_new_tokens=tokens,
                min_new_tokens=tokens,
                do_sample=not options.greedy,
                top_k=None if options.greedy else 0,
                use_cache=True,
                pad_token_id=start,
            )
        return drawn[:, 1:].numpy(), float(tokens)

    return draw


def serve(options: argparse.Namespace) -> None:
    """Draws a batch for each line of the standard input, and answers in lines of JSON."""
    draw = (make_transformers_draw if options.serve in PEERS else make_keras_draw)(options)
    started = time.perf_counter()
    draw()
    print(json.dumps({"first": time.perf_counter() - started}), flush=True)
    for _ in sys.stdin:
        started = time.perf_counter()
        drawn, passes = draw()
        seconds = time.perf_counter() - started
        print(json.dumps({"seconds": seconds, "passes": passes, "tokens": drawn[0, :16].tolist()}), flush=True)


class Contestant:
    """A process that waits for its turn."""

    def __init__(self, name: str, folder: str, batch_size: int, options: argparse.Namespace) -> None:
        command = [sys.executable, __file__, "--serve", name, "--folder", folder, "--batch-size", str(batch_size)]
        lookahead = [] if options.lookahead is None else ["--lookahead", str(options.lookahead)]
        self._process = subprocess.Popen(
            [*command, *lookahead, *(["--greedy"] if options.greedy else [])],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "KERAS_BACKEND": CONTESTANTS[name], "TF_CPP_MIN_LOG_LEVEL": "3"},
        )
        self.first = self._answer()["first"]

    def draw(self) -> dict:
        assert self._process.stdin is not None
        self._process.stdin.write("draw\n")
        self._process.stdin.flush()
        return self._answer()

    def close(self) -> None:
        self._process.communicate()

    def _answer(self) -> dict:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("{"):
                return json.loads(line)
        raise RuntimeError(f"{self._process.args} ended with {self._process.wait()}")


def copy_rate(megabytes: int = 256) -> float:
    """Bytes a second that are read, and as many written, when a large array is copied; the median of some."""
    source = np.ones(megabytes << 18, np.float32)
    target = np.empty_like(source)
    seconds = []
    for _ in range(5):
        started = time.perf_counter()
        target[:] = source
        seconds.append(time.perf_counter() - started)
    return source.nbytes / float(np.median(seconds))


def bytes_of_a_step(shape: dict[str, int], batch_size: int) -> float:
    """Weights and, in the mean over positions, keys and values of all layers, in float32."""
    width, layers, length = shape["hidden_dim"], shape["num_layers"], shape["image_size"] ** 2
    weights = 12 * layers * width**2 + shape["vocabulary_size"] * width
    cache = 2 * layers * batch_size * width * (length + 1) / 2
    return 4.0 * (weights + cache)


def save_models(shape: dict[str, int], preset: str | None, folder: Path) -> None:
    """Writes a model whose predictions are neither flat nor certain, and for us the preset in its place."""
    keras.utils.set_random_seed(0)
    backbone = igpt.ImageGPTBackbone(**shape, normalization="rms_norm")
    language_model = make_unpredictable(igpt.ImageGPTCausalLM(backbone))
    igpt.save_huggingface_checkpoint(language_model, folder)
    ours = language_model if preset is None else igpt.ImageGPTCausalLM.from_preset(preset)
    ours.save(folder / "model.keras")


def measure(names: list[str], shape: dict[str, int], batch_size: int, options: argparse.Namespace) -> dict[str, dict]:
    """Runs the contestants in turn and prints the table of a batch size; figures by contestant."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "model"
        save_models(shape, options.preset, folder)
        contestants = {name: Contestant(name, str(folder), batch_size, options) for name in names}
        drawn: dict[str, list[dict]] = {name: [] for name in names}
        rates = []
        for _ in range(options.rounds):
            # The array takes turns too; it would not fit into the caches either.
            rates.append(copy_rate())
            for name, contestant in contestants.items():
                drawn[name].append(contestant.draw())
        for contestant in contestants.values():
            contestant.close()
    steps = shape["image_size"] ** 2
    rate = 2 * float(np.median(rates))
    floor = bytes_of_a_step(shape, batch_size) / rate
    print(
        f"\nBatch {batch_size}: {rate / 1e9:.1f} GB/s read or written in a copy; floor {1000 * floor:.2f} ms a pixel\n"
    )
    print(
        "| contestant | tokens/s, median | quartiles | passes a picture | ms a pass | of the floor | first call (s) |"
    )
    print("|---|---|---|---|---|---|---|")
    figures = {}
    for name, taken in drawn.items():
        lower, median, upper = np.percentile([answer["seconds"] for answer in taken], [25, 50, 75])
        tokens, passes = batch_size * steps, taken[-1]["passes"]
        print(
            f"| {name} | {tokens / median:,.0f} | {tokens / upper:,.0f} to {tokens / lower:,.0f} | {passes:.1f} "
            f"| {1000 * median / passes:.2f} | {floor * steps / median:.0%} | {contestants[name].first:.1f} |"
        )
        figures[name] = {"seconds": median, "first": contestants[name].first, "tokens": taken[-1]["tokens"]}
    return figures


def main(arguments: list[str] | None = None) -> dict[str, dict]:
    """Prints the tables; returns the contestants' figures at the last batch size."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch-sizes", type=int, nargs="*", default=[1, 8, 32])
    parser.add_argument("--lookahead", type=int, help="pixels a pass, in place of what the library chooses")
    parser.add_argument("--only", nargs="*", help="contestants whose names contain one of these")
    parser.add_argument("--greedy", action="store_true", help="the most probable token, to compare what is drawn")
    parser.add_argument("--shape", type=json.loads, default={}, help="JSON: sizes in place of the default ones")
    parser.add_argument("--preset", help="a preset with weights, in place of a random model")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    parser.add_argument("--batch-size", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.serve:
        serve(options)
        return {}
    shape = {"vocabulary_size": 512, "image_size": 32, "num_layers": 8, "num_heads": 8, "hidden_dim": 256}
    shape |= options.shape
    if options.preset is not None:
        shape = {name: igpt.get_preset(options.preset).architecture[name] for name in shape}
    names = [name for name in CONTESTANTS if not options.only or any(part in name for part in options.only)]
    figures = {}
    for batch_size in options.batch_sizes:
        figures = measure(names, shape, batch_size, options)
    return figures


if __name__ == "__main__":
    main()
