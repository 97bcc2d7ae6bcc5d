"""How fast is a training step on a CPU, and how much memory does it take?

Command: make benchmark   (or python benchmarks/train_step.py)

One optimizer step of the autoregressive objective in float32: keras_igpt on each backend, Hugging Face's ImageGPT
(eager: it has no other way), and transformers' GPT-2 of the same shape with fused attention under `torch.compile`, the
strongest GPT that pip installs. Each contestant lives in a process of its own, for its own peak of memory, and they
take their steps in turn. `--scaling` measures keras_igpt from 256 to 4096 tokens instead.

The floor is the products' time at the rate that NumPy reaches on large float32 matrices: 2 FLOPs a multiply-add,
causal attention counted once, backward twice the forward.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

import keras_igpt as igpt

OURS = {f"keras_igpt, {backend}": backend for backend in ("jax", "tensorflow", "torch")}
PEERS = {"transformers ImageGPT, eager": "torch", "transformers GPT-2, SDPA, torch.compile": "torch"}


def make_keras_step(shape: dict[str, int], batch_size: int) -> Callable[[], float]:
    """One step of our model as `fit` runs it."""
    language_model = igpt.ImageGPTCausalLM(igpt.ImageGPTBackbone(**shape))
    language_model.compile(**igpt.pretraining_recipe("igpt_small", "ar", steps=1000))
    token_ids = random_tokens(shape, batch_size)
    return lambda: float(np.ravel(language_model.train_on_batch(token_ids))[0])


def make_transformers_step(name: str, shape: dict[str, int], batch_size: int) -> Callable[[], float]:
    """One step of a PyTorch peer of the same shape: forward, backward, Adam."""
    import torch
    import transformers

    length = shape["image_size"] ** 2
    config = {
        "vocab_size": shape["vocabulary_size"] + 1,
        "n_positions": length,
        "n_embd": shape["hidden_dim"],
        "n_layer": shape["num_layers"],
        "n_head": shape["num_heads"],
        "resid_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "attn_pdrop": 0.0,
        "use_cache": False,
    }
    if "ImageGPT" in name:
        model: Any = transformers.ImageGPTForCausalImageModeling(transformers.ImageGPTConfig(**config))
    else:
        model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**config, attn_implementation="sdpa"))
    model.train()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, betas=(0.9, 0.95))
    tokens = torch.from_numpy(random_tokens(shape, batch_size).astype("int64"))
    start = torch.full((batch_size, 1), shape["vocabulary_size"])
    inputs = torch.cat([start, tokens[:, :-1]], dim=1)

    def loss_of() -> Any:
        logits = model(input_ids=inputs).logits
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens.flatten())

    forward = torch.compile(loss_of) if "compile" in name else loss_of

    def step() -> float:
        optimizer.zero_grad(set_to_none=True)
        loss = forward()
        loss.backward()
        optimizer.step()
        return float(loss.detach())

    return step


def random_tokens(shape: dict[str, int], batch_size: int) -> np.ndarray:
    random = np.random.default_rng(0)
    return random.integers(0, shape["vocabulary_size"], (batch_size, shape["image_size"] ** 2)).astype("int32")


def resident_mebibytes(field: str) -> float:
    """`VmRSS`, what the process holds now, or `VmHWM`, the most it held since the mark was set back."""
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) / 1024 for line in status if line.startswith(f"{field}:"))


def serve(name: str, shape: dict[str, int], batch_size: int) -> None:
    """Takes a step for each line of the standard input, and answers in lines of JSON."""
    make = make_keras_step if name in OURS else lambda *sizes: make_transformers_step(name, *sizes)
    step = make(shape, batch_size)
    started = time.perf_counter()
    step()
    first = time.perf_counter() - started
    step()
    # The peak of compiling is not the peak of training.
    with open("/proc/self/clear_refs", "w") as mark:
        mark.write("5")
    print(json.dumps({"first": first}), flush=True)
    for _ in sys.stdin:
        started = time.perf_counter()
        loss = step()
        seconds = time.perf_counter() - started
        print(json.dumps({"seconds": seconds, "loss": loss, "peak": resident_mebibytes("VmHWM")}), flush=True)


class Contestant:
    """A process that waits for its turn."""

    def __init__(self, name: str, shape: dict[str, int], batch_size: int) -> None:
        command = [sys.executable, __file__, "--serve", name, "--shape", json.dumps(shape)]
        self._process = subprocess.Popen(
            [*command, "--batch-size", str(batch_size)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "KERAS_BACKEND": {**OURS, **PEERS}[name], "TF_CPP_MIN_LOG_LEVEL": "3"},
        )
        self.first = self._answer()["first"]

    def step(self) -> dict[str, float]:
        assert self._process.stdin is not None
        self._process.stdin.write("step\n")
        self._process.stdin.flush()
        return self._answer()

    def close(self) -> None:
        self._process.communicate()

    def _answer(self) -> dict[str, float]:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("{"):
                answer: dict[str, float] = json.loads(line)
                return answer
        raise RuntimeError(f"{self._process.args} ended with {self._process.wait()}")


def matrix_product_rate(size: int = 2048, rounds: int = 10) -> float:
    """FLOP/s of large float32 matrix products, the median of some."""
    left = np.random.default_rng(0).standard_normal((size, size), dtype=np.float32)
    seconds = []
    for _ in range(rounds):
        started = time.perf_counter()
        left @ left
        seconds.append(time.perf_counter() - started)
    return 2 * size**3 / float(np.median(seconds))


def measure(names: list[str], shape: dict[str, int], batch_size: int, rounds: int) -> dict[str, dict[str, float]]:
    """Runs the contestants in turn and prints the table; figures by contestant."""
    contestants = {name: Contestant(name, shape, batch_size) for name in names}
    steps: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    rates = []
    for _ in range(rounds):
        rates.append(matrix_product_rate(rounds=3))
        for name, contestant in contestants.items():
            steps[name].append(contestant.step())
    for contestant in contestants.values():
        contestant.close()
    tokens = batch_size * shape["image_size"] ** 2
    rate = float(np.median(rates))
    flops = igpt.estimate(shape, batch_size).training_flops
    print(f"{flops / 1e9:.0f} GFLOP a step; matrix products {rate / 1e9:.0f} GFLOP/s; floor {flops / rate:.2f} s\n")
    print("| contestant | step (s), median | quartiles | tokens/s | of the product rate | peak MiB | first step (s) |")
    print("|---|---|---|---|---|---|---|")
    figures = {}
    for name, taken in steps.items():
        lower, median, upper = np.percentile([answer["seconds"] for answer in taken], [25, 50, 75])
        peak = max(answer["peak"] for answer in taken)
        share = flops / median / rate
        print(
            f"| {name} | {median:.2f} | {lower:.2f} to {upper:.2f} | {tokens / median:,.0f} | {share:.0%} "
            f"| {peak:,.0f} | {contestants[name].first:.1f} |"
        )
        figures[name] = {"seconds": median, "peak": peak, "loss": taken[-1]["loss"]}
    return figures


def main(arguments: list[str] | None = None) -> dict[str, dict[str, float]]:
    """Prints the tables; returns the figures of the contestants, of the last table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--only", nargs="*", help="contestants whose names contain one of these")
    parser.add_argument("--scaling", action="store_true", help="keras_igpt from 256 to 4096 tokens")
    parser.add_argument("--shape", type=json.loads, default={}, help="JSON: sizes in place of the default ones")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    sizes = {"vocabulary_size": 512, "image_size": 32, "num_layers": 8, "num_heads": 8, "hidden_dim": 256}
    shape = {**sizes, **options.shape}
    if options.serve:
        serve(options.serve, shape, options.batch_size)
        return {}
    names = [name for name in {**OURS, **PEERS} if not options.only or any(part in name for part in options.only)]
    if not options.scaling:
        return measure(names, shape, options.batch_size, options.rounds)
    figures = {}
    for image_size in (16, 32, 48, 64):
        print(f"\n{image_size**2} tokens\n")
        ours = [name for name in names if name in OURS]
        figures = measure(ours, {**shape, "image_size": image_size}, 1, options.rounds)
    return figures


if __name__ == "__main__":
    main()
