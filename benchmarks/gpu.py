"""How much of a GPU does a training step use?

Command: python benchmarks/gpu.py --output gpu.json   (--toy: the same at tiny sizes on a CPU)

Optimizer steps of the autoregressive objective in bfloat16 with float32 weights, at iGPT-S and iGPT-L shape, 1024 and
4096 tokens: keras_igpt's `fit` on JAX and PyTorch, against a plain PyTorch GPT of the same shape under `torch.compile`
with fused attention and fused Adam. Each contestant is a process of its own, for its own peak of memory. On a GPU they
run one after the other, since two large models would not fit; on a CPU they take turns.

A round is several steps dispatched one after the other, with one wait at its end. Model FLOPs utilisation counts matrix
products, causal attention once, the backward pass twice the forward, and nothing recomputed; it is given of the
device's nominal peak and of the rate measured on large bfloat16 products. Batches are the largest powers of two that
`keras_igpt.estimate` says fit in 80 GB, at most 128.

What is not done when `--minutes` are over is stopped and named: the contestants stand in the order of their importance,
and `--only 'large-1024*' ...` picks some. JAX_COMPILATION_CACHE_DIR, if set, saves later calls the compiling.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("KERAS_BACKEND", "jax")

import keras
import numpy as np

import keras_igpt as igpt
from keras_igpt.model.attention_kernels import attention_kernel

MEMORY = 80e9
# Fragments, the compiler's own work space and what the estimate does not see.
USABLE_SHARE = 0.9
LARGEST_BATCH = 128

# Dense bfloat16 TFLOP/s as NVIDIA states them, the more special name first.
PEAK_TFLOPS = {"H100 PCIe": 756, "H100 NVL": 835, "H100": 989, "H200": 989, "A100": 312}

SHAPES = {
    f"{size}-{side**2}": {**igpt.get_preset(f"igpt_{size}").architecture, "image_size": side}
    for side in (32, 64)
    for size in ("large", "small")
}
TOY_SHAPES = {"toy": {"vocabulary_size": 16, "image_size": 4, "num_layers": 2, "num_heads": 2, "hidden_dim": 32}}


@dataclass(frozen=True)
class Contestant:
    """What a process runs: our model on a backend, or the plain GPT where `ours` is False."""

    backend: str
    ours: bool = True
    kernel: str = "auto"
    remat: bool = False
    compiled: bool = True


MAIN = {
    "keras_igpt jax": Contestant("jax"),
    "plain torch": Contestant("torch", ours=False),
    "keras_igpt torch": Contestant("torch"),
}
VARIANTS = {
    "keras_igpt jax, remat": Contestant("jax", remat=True),
    "keras_igpt jax, no fused kernel": Contestant("jax", kernel="blocks"),
    "keras_igpt torch, eager": Contestant("torch", compiled=False),
    "keras_igpt torch, remat": Contestant("torch", remat=True),
    "keras_igpt torch, no fused kernel": Contestant("torch", kernel="blocks"),
}


# === In the process of a contestant ===


def make_keras_run(contestant: Contestant, shape: dict[str, int], token_ids: np.ndarray) -> Callable[[int], float]:
    """Our model: `run(steps)` trains it by `fit` and returns the loss, which waits for the last step."""
    backbone = igpt.ImageGPTBackbone(**shape, kernel=contestant.kernel, remat=contestant.remat, dtype="mixed_bfloat16")
    language_model = igpt.ImageGPTCausalLM(backbone)
    language_model.compile(
        optimizer=keras.optimizers.Adam(1e-4, beta_1=0.9, beta_2=0.95), jit_compile=contestant.compiled
    )

    def run(steps: int) -> float:
        epoch = np.tile(token_ids, (steps, 1))
        history = language_model.fit(epoch, batch_size=len(token_ids), shuffle=False, verbose=0)
        return float(history.history["loss"][-1])

    return run


def make_plain_run(contestant: Contestant, shape: dict[str, int], token_ids: np.ndarray) -> Callable[[int], float]:
    """A GPT in plain PyTorch: pre-norm, no biases in projections, causal SDPA, autocast, fused Adam, compiled loss."""
    import torch
    from torch import nn
    from torch.nn import functional

    device = "cuda" if torch.cuda.is_available() else "cpu"
    width, heads, vocabulary = shape["hidden_dim"], shape["num_heads"], shape["vocabulary_size"]

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention_norm = nn.LayerNorm(width)
            self.query_key_value = nn.Linear(width, 3 * width, bias=False)
            self.output_projection = nn.Linear(width, width, bias=False)
            self.feed_forward_norm = nn.LayerNorm(width)
            self.expansion = nn.Linear(width, 4 * width, bias=False)
            self.contraction = nn.Linear(4 * width, width, bias=False)

        def forward(self, hidden: torch.Tensor) -> torch.Tensor:
            batch, length, _ = hidden.shape
            projected = self.query_key_value(self.attention_norm(hidden))
            query, key, value = projected.view(batch, length, 3, heads, -1).permute(2, 0, 3, 1, 4)
            attended = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
            hidden = hidden + self.output_projection(attended.transpose(1, 2).reshape(batch, length, width))
            expanded = functional.gelu(self.expansion(self.feed_forward_norm(hidden)), approximate="tanh")
            return hidden + self.contraction(expanded)

    class PlainGPT(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.token_embedding = nn.Embedding(vocabulary + 1, width)  # the last one starts a sequence
            self.position_embedding = nn.Parameter(0.01 * torch.randn(shape["image_size"] ** 2, width))
            self.blocks = nn.ModuleList(Block() for _ in range(shape["num_layers"]))
            self.final_norm = nn.LayerNorm(width)
            self.pixel_head = nn.Linear(width, vocabulary, bias=False)
            nn.init.normal_(self.token_embedding.weight, std=0.02)
            nn.init.zeros_(self.pixel_head.weight)

        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            inputs = functional.pad(tokens[:, :-1], (1, 0), value=vocabulary)
            hidden = self.token_embedding(inputs) + self.position_embedding
            for block in self.blocks:
                hidden = block(hidden)
            logits = self.pixel_head(self.final_norm(hidden)).float()
            return functional.cross_entropy(logits.flatten(0, 1), tokens.flatten())

    torch.manual_seed(0)
    with torch.device(device):
        model = PlainGPT()
    compiled = torch.compile(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4, betas=(0.9, 0.95), fused=True)
    host_tokens = torch.from_numpy(token_ids.astype("int64"))

    def run(steps: int) -> float:
        for _ in range(steps):
            tokens = host_tokens.to(device)
            with torch.autocast(device, dtype=torch.bfloat16):
                loss = compiled(tokens)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return float(loss.detach())

    return run


def device_of(backend: str) -> tuple[str, str]:
    """Platform, `"gpu"` or `"cpu"`, and the device's name."""
    if backend == "jax":
        import jax

        return jax.default_backend(), jax.devices()[0].device_kind
    import torch

    return ("gpu", torch.cuda.get_device_name()) if torch.cuda.is_available() else ("cpu", "cpu")


def peak_memory(backend: str, platform: str) -> int:
    """Most bytes that were in use on the device; on a CPU, most that the whole process held."""
    if platform == "cpu":
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    if backend == "jax":
        import jax

        return int(jax.devices()[0].memory_stats()["peak_bytes_in_use"])
    import torch

    return torch.cuda.max_memory_allocated()


def measure_products(size: int) -> dict[str, Any]:
    """The device, and the rate of large bfloat16 matrix products on it, on random numbers."""
    import torch

    platform, name = device_of("torch")
    device = "cuda" if platform == "gpu" else "cpu"
    left, right = torch.randn(2, size, size, device=device, dtype=torch.bfloat16)

    def run(products: int) -> None:
        for _ in range(products):
            result = left @ right
        result[0, 0].item()

    run(5)
    started = time.perf_counter()
    run(20)
    tflops = 20 * 2 * size**3 / (time.perf_counter() - started) / 1e12
    return {"platform": platform, "device": name, "torch": torch.__version__, "tflops": tflops}


def serve(task: dict[str, Any]) -> None:
    """Makes a contestant, says so, and runs the steps asked for line by line."""
    # Libraries print what they like; answers have a channel of their own.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def answer(**values: Any) -> None:
        print(json.dumps(values), file=answers, flush=True)

    if "products" in task:
        answer(**measure_products(task["products"]))
        return
    contestant, shape = Contestant(**task["contestant"]), task["shape"]
    platform, device = device_of(contestant.backend)
    if platform != task["platform"]:
        raise RuntimeError(f"{contestant.backend} runs on {platform}, PyTorch's products ran on {task['platform']}")
    random = np.random.default_rng(0)
    token_ids = random.integers(0, shape["vocabulary_size"], (task["batch_size"], shape["image_size"] ** 2))
    make_run = make_keras_run if contestant.ours else make_plain_run
    run = make_run(contestant, shape, token_ids.astype("int32"))
    started = time.perf_counter()
    run(1)
    head_dim = shape["hidden_dim"] // shape["num_heads"]
    kernel = attention_kernel(contestant.kernel, "bfloat16", head_dim) if contestant.ours else "torch"
    answer(device=device, kernel=kernel, first_step=time.perf_counter() - started)
    for line in sys.stdin:
        started = time.perf_counter()
        loss = run(int(line))
        seconds = time.perf_counter() - started
        if not np.isfinite(loss):
            raise RuntimeError(f"the loss is {loss}")
        answer(seconds=seconds, loss=loss, peak_memory=peak_memory(contestant.backend, platform))


# === In the process that measures ===


class Worker:
    """A process that serves, and is killed when its time is over."""

    def __init__(self, task: dict[str, Any], deadline: float) -> None:
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 (open as long as the process is)
        environment = {**os.environ, "KERAS_BACKEND": task.get("contestant", {}).get("backend", "torch")}
        # By default JAX takes three quarters of the memory and no more.
        environment.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.95")
        environment.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
        self._process = subprocess.Popen(
            [sys.executable, __file__, "--serve", json.dumps(task)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            env=environment,
        )
        self._timer = threading.Timer(max(0.0, deadline - time.monotonic()), self._process.kill)
        self._timer.start()

    def run(self, steps: int) -> dict[str, Any]:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(f"{steps}\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise RuntimeError(self._why()) from None
        return self.answer()

    def answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(self._why())
        values: dict[str, Any] = json.loads(line)
        return values

    def close(self) -> None:
        self._process.communicate()
        self._timer.cancel()
        self._errors.close()

    def _why(self) -> str:
        """The end of what the process said before it went."""
        status = self._process.wait()
        if status == -9:
            return "killed: out of time, or of the host's memory"
        self._errors.seek(0)
        lines = [line.strip() for line in self._errors if line.strip()]
        telling = [line for line in lines if "Error" in line or "RESOURCE_EXHAUSTED" in line]
        return (telling or lines or [f"ended with {status}"])[-1][:200]


def fitting_batch(shape: dict[str, int]) -> int:
    """The largest power of two of sequences whose training step is estimated to fit on either backend."""
    batch = LARGEST_BATCH
    while batch > 1 and any(
        igpt.estimate(shape, batch, dtype="mixed_bfloat16", backend=backend).training_memory > USABLE_SHARE * MEMORY
        for backend in ("jax", "torch")
    ):
        batch //= 2
    return batch


def measure(tasks: dict[str, dict[str, Any]], rounds: int, steps: int, deadline: float) -> dict[str, dict[str, Any]]:
    """Runs contestants in turn, round by round; what each gave, or the error it ended with."""
    workers = {name: Worker(task, deadline) for name, task in tasks.items()}
    results: dict[str, dict[str, Any]] = {name: {"seconds": []} for name in tasks}

    def take_turns(turn: Callable[[Worker], dict[str, Any]]) -> Iterator[tuple[str, dict[str, Any]]]:
        for name, worker in list(workers.items()):
            try:
                yield name, turn(worker)
            except RuntimeError as error:
                results[name]["error"] = str(error)
                workers.pop(name).close()

    for name, answer in take_turns(Worker.answer):
        results[name].update(answer)
    # One more step without a clock: a compiler may look at the second one again.
    list(take_turns(lambda worker: worker.run(1)))
    for _ in range(rounds):
        for name, answer in take_turns(lambda worker: worker.run(steps)):
            results[name]["seconds"].append(answer.pop("seconds") / steps)
            results[name].update(answer)
    for worker in workers.values():
        worker.close()
    return results


def rates(task: dict[str, Any], seconds: list[float], machine: dict[str, Any]) -> dict[str, Any]:
    """Tokens a second, and the share of the device's arithmetic that they are."""
    shape, batch_size = task["shape"], task["batch_size"]
    sizes = {key: shape[key] for key in ("num_layers", "hidden_dim", "vocabulary_size")}
    num_tokens = shape["image_size"] ** 2
    lower, median, upper = (float(q) for q in np.percentile(batch_size * num_tokens / np.array(seconds), [25, 50, 75]))
    flops = 3 * igpt.forward_flops(**sizes, num_tokens=num_tokens, batch_size=batch_size)
    tflops = flops / (batch_size * num_tokens) * median / 1e12
    return {
        "tokens_per_second": median,
        "quartiles": [lower, upper],
        "tflops": tflops,
        "of_measured_products": tflops / machine["tflops"],
        "utilisation": tflops / machine["peak_tflops"] if machine["peak_tflops"] else None,
    }


def print_row(name: str, task: dict[str, Any], result: dict[str, Any]) -> None:
    cells = [name, str(task["batch_size"])]
    if "error" in result:
        cells += [result["error"].replace("|", "/")] + [""] * 6
    else:
        lower, upper = result["quartiles"]
        cells += [
            result["kernel"],
            f"{result['tokens_per_second']:,.0f}",
            f"{lower:,.0f} to {upper:,.0f}",
            "" if result["utilisation"] is None else f"{result['utilisation']:.1%}",
            f"{result['of_measured_products']:.1%}",
            f"{result['peak_memory'] / 2**30:.1f}",
            f"{result['first_step']:.0f}",
        ]
    print("| " + " | ".join(cells) + " |", flush=True)


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Prints the table; returns the machine and the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--toy", action="store_true", help="one tiny shape: what the test runs")
    parser.add_argument("--only", nargs="+", default=["*"], metavar="PATTERN", help="of names, say 'large-*, *jax'")
    parser.add_argument("--batch-size", type=int, help="for every shape; by default what fits in 80 GB")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=8, help="of a round")
    parser.add_argument("--minutes", type=float, default=9.0, help="after which nothing runs any more")
    parser.add_argument("--peak-tflops", type=float, help="dense bfloat16, where the device is not known by name")
    parser.add_argument("--output", type=Path, help="JSON file, rewritten after each contestant")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.serve is not None:
        serve(json.loads(options.serve))
        return {}

    # The main contestants at each shape come before the variants at any.
    shapes = TOY_SHAPES if options.toy else SHAPES
    chosen = [
        (f"{shape_name}, {name}", shape, contestant)
        for contestants in (MAIN, VARIANTS)
        for shape_name, shape in shapes.items()
        for name, contestant in contestants.items()
    ]
    chosen = [row for row in chosen if any(fnmatch.fnmatch(row[0], pattern) for pattern in options.only)]
    if not chosen:
        parser.error(f"--only must match a name. Received: {options.only}")

    deadline = time.monotonic() + 60 * options.minutes
    products = Worker({"products": 256 if options.toy else 8192}, deadline)
    machine = products.answer()
    products.close()
    known = [peak for device, peak in PEAK_TFLOPS.items() if device in machine["device"]]
    machine["peak_tflops"] = options.peak_tflops or (known[0] if known else None)
    print(
        f"{machine['device']}, torch {machine['torch']}, keras {keras.__version__}: bfloat16 products at "
        f"{machine['tflops']:.4g} TFLOP/s, nominal peak {machine['peak_tflops'] or 'unknown'}\n"
    )
    columns = ["contestant", "batch", "attention", "tokens/s, median", "quartiles", "MFU", "of measured products"]
    columns += ["peak GiB", "first step (s)"]
    print(f"| {' | '.join(columns)} |\n{'|---' * len(columns)}|", flush=True)
    tasks = {
        name: {
            "contestant": asdict(contestant),
            "shape": shape,
            "batch_size": options.batch_size or (2 if options.toy else fitting_batch(shape)),
            "platform": machine["platform"],
        }
        for name, shape, contestant in chosen
    }
    # Two large models would not fit on one GPU.
    groups = [tasks] if machine["platform"] == "cpu" else [{name: task} for name, task in tasks.items()]
    report: dict[str, Any] = {"machine": machine, "results": {}}
    for group in groups:
        for name, result in measure(group, options.rounds, options.steps, deadline).items():
            if "error" not in result:
                result.update(rates(tasks[name], result["seconds"], machine))
            report["results"][name] = {**tasks[name], **result}
            print_row(name, tasks[name], result)
            if options.output is not None:
                options.output.write_text(json.dumps(report, indent=1))
    return report


if __name__ == "__main__":
    failed = [name for name, result in main().get("results", {}).items() if "error" in result]
    if failed:
        sys.exit(f"no figures of: {'; '.join(failed)}")
