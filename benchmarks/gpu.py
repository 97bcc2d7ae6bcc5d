"""How much of a GPU does a training step use, and how fast does it draw?

Command: python benchmarks/gpu.py --output gpu.json   (--toy: the same at tiny sizes on a CPU)

Optimizer steps of the autoregressive objective in bfloat16 with float32 weights, at iGPT-S and iGPT-L shape, 1024 and
4096 tokens: keras_igpt's `fit` on JAX and PyTorch, against a plain PyTorch GPT of the same shape under `torch.compile`
with fused attention and fused Adam. Each contestant is a process of its own, for its own peak of memory. On a GPU they
run one after the other, since two large models would not fit; on a CPU they take turns.

A round is several steps dispatched one after the other, with one wait at its end. Model FLOPs utilisation counts matrix
products, the backward pass twice the forward, and nothing recomputed. It is given of the device's nominal peak with the
pairs that causal attention needs, and with all T² pairs as llm-foundry counts them; and, causally, of the rate measured
on large bfloat16 products. Batches are the largest powers of two that `keras_igpt.estimate` says fit in 80 GB, at most
128.

Whole pictures are drawn with one pass a pixel, with the library's choice of lookahead, which was made on a CPU, and
with 8 pixels a pass, 1 and 32 pictures at a time: by iGPT-S with random weights, of which no pixel can be guessed; by
the trained `igpt_cifar10_8x8`; and with `--packed FILE` by the `weights.npz` of packed_pretraining.py.

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
from drawing import Drawing, drawings, make_drawing_run, open_language_model
from utilisation import device_of, peak_tflops, utilisation

import keras_igpt as igpt
from keras_igpt.model.attention_kernels import attention_kernel

MEMORY = 80e9
# Fragments, the compiler's own work space and what the estimate does not see.
USABLE_SHARE = 0.9
LARGEST_BATCH = 128

SHAPES = {
    f"{size}-{side**2}": {**igpt.get_preset(f"igpt_{size}").architecture, "image_size": side}
    for side in (32, 64)
    for size in ("small", "large")
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


def make_run(task: dict[str, Any]) -> tuple[Callable[[int], float], int, str]:
    """What a contestant repeats, the tokens of a picture, and the attention kernel it trains with."""
    shape = task["shape"]
    if task["draws"]:
        drawing = Drawing(**task["contestant"])
        language_model = open_language_model(drawing.model, shape)
        return make_drawing_run(drawing, language_model), language_model.backbone.num_tokens, ""
    contestant, num_tokens = Contestant(**task["contestant"]), shape["image_size"] ** 2
    random = np.random.default_rng(0)
    token_ids = random.integers(0, shape["vocabulary_size"], (task["batch_size"], num_tokens)).astype("int32")
    if not contestant.ours:
        return make_plain_run(contestant, shape, token_ids), num_tokens, "torch"
    kernel = attention_kernel(contestant.kernel, "bfloat16", shape["hidden_dim"] // shape["num_heads"])
    return make_keras_run(contestant, shape, token_ids), num_tokens, kernel


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
    backend = task["contestant"]["backend"]
    platform, device = device_of(backend)
    if platform != task["platform"]:
        raise RuntimeError(f"{backend} runs on {platform}, PyTorch's products ran on {task['platform']}")
    run, num_tokens, kernel = make_run(task)
    started = time.perf_counter()
    run(1)
    answer(
        device=device, kernel=kernel, tokens=task["batch_size"] * num_tokens, first_step=time.perf_counter() - started
    )
    figure = "passes" if task["draws"] else "loss"
    for line in sys.stdin:
        started = time.perf_counter()
        value = run(int(line))
        seconds = time.perf_counter() - started
        if not np.isfinite(value):
            raise RuntimeError(f"the {figure} is {value}")
        answer(seconds=seconds, **{figure: value}, peak_memory=peak_memory(backend, platform))


# === In the process that measures ===


class Worker:
    """A process that serves, and is killed when its time is over."""

    def __init__(self, task: dict[str, Any], deadline: float) -> None:
        self.steps = task.get("steps", 1)
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


def measure(tasks: dict[str, dict[str, Any]], rounds: int, deadline: float) -> dict[str, dict[str, Any]]:
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
        for name, answer in take_turns(lambda worker: worker.run(worker.steps)):
            results[name]["seconds"].append(answer.pop("seconds") / tasks[name]["steps"])
            results[name].update(answer)
    for worker in workers.values():
        worker.close()
    return results


def rates(task: dict[str, Any], result: dict[str, Any], machine: dict[str, Any]) -> dict[str, Any]:
    """Tokens a second and, of training, the share of the device's arithmetic that they are."""
    seconds = np.array(result["seconds"])
    lower, median, upper = (float(q) for q in np.percentile(result["tokens"] / seconds, [25, 50, 75]))
    speed = {"tokens_per_second": median, "quartiles": [lower, upper]}
    if task["draws"]:
        return speed
    of_products = utilisation(task["shape"], median, machine["tflops"])["causal"]
    return {
        **speed,
        "of_measured_products": of_products,
        "utilisation": utilisation(task["shape"], median, machine["peak_tflops"]),
    }


TRAINING_COLUMNS = ["contestant", "batch", "attention", "tokens/s, median", "quartiles", "MFU, causal", "MFU, full"]
TRAINING_COLUMNS += ["of measured products", "peak GiB", "first step (s)"]
DRAWING_COLUMNS = ["contestant", "batch", "tokens/s, median", "quartiles", "passes a picture", "peak GiB"]
DRAWING_COLUMNS += ["first batch (s)"]


def print_header(columns: list[str]) -> None:
    print(f"\n| {' | '.join(columns)} |\n{'|---' * len(columns)}|", flush=True)


def print_row(name: str, task: dict[str, Any], result: dict[str, Any]) -> None:
    columns = DRAWING_COLUMNS if task["draws"] else TRAINING_COLUMNS
    cells = [name, str(task["batch_size"])]
    if "error" in result:
        cells += [result["error"].replace("|", "/")] + [""] * (len(columns) - 3)
    else:
        lower, upper = result["quartiles"]
        speed = [f"{result['tokens_per_second']:,.0f}", f"{lower:,.0f} to {upper:,.0f}"]
        if task["draws"]:
            cells += [*speed, f"{result['passes']:.1f}"]
        else:
            shares = [*result["utilisation"].values(), result["of_measured_products"]]
            cells += [result["kernel"], *speed, *("" if share is None else f"{share:.1%}" for share in shares)]
        cells += [f"{result['peak_memory'] / 2**30:.1f}", f"{result['first_step']:.0f}"]
    print("| " + " | ".join(cells) + " |", flush=True)


def choose(options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """What each chosen contestant's process is told, the most important first."""
    shapes = TOY_SHAPES if options.toy else SHAPES
    models = {"random iGPT-S": "random", "igpt_cifar10_8x8": "igpt_cifar10_8x8"}
    if options.packed is not None:
        models["packed model"] = str(options.packed)
    chosen: list[tuple[str, dict[str, int], Contestant | Drawing]] = []
    # The main contestants at each shape, then drawing, then the variants at any.
    for contestants, backend in ((MAIN, "jax"), (VARIANTS, "torch")):
        chosen += [
            (f"{size}, {name}", shape, one) for size, shape in shapes.items() for name, one in contestants.items()
        ]
        drawn_by = shapes["toy" if options.toy else "small-1024"]
        chosen += [(name, drawn_by, drawing) for name, drawing in drawings(models, backend).items()]
    tasks = {}
    for name, shape, contestant in chosen:
        if any(fnmatch.fnmatch(name, pattern) for pattern in options.only):
            task = {"contestant": asdict(contestant), "shape": shape}
            if isinstance(contestant, Drawing):
                task |= {"draws": True, "batch_size": contestant.num_images, "steps": 1}
            else:
                batch_size = options.batch_size or (2 if options.toy else fitting_batch(shape))
                task |= {"draws": False, "batch_size": batch_size, "steps": options.steps}
            tasks[name] = task
    return tasks


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
    parser.add_argument(
        "--packed", type=Path, metavar="FILE", help="weights.npz of packed_pretraining.py, to draw with"
    )
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.serve is not None:
        serve(json.loads(options.serve))
        return {}

    tasks = choose(options)
    if not tasks:
        parser.error(f"--only must match a name. Received: {options.only}")
    deadline = time.monotonic() + 60 * options.minutes
    products = Worker({"products": 256 if options.toy else 8192}, deadline)
    machine = products.answer()
    products.close()
    for task in tasks.values():
        task["platform"] = machine["platform"]
    machine["peak_tflops"] = options.peak_tflops or peak_tflops(machine["device"])
    print(
        f"{machine['device']}, torch {machine['torch']}, keras {keras.__version__}: bfloat16 products at "
        f"{machine['tflops']:.4g} TFLOP/s, nominal peak {machine['peak_tflops'] or 'unknown'}"
    )
    # Two large models would not fit on one GPU.
    groups = [tasks] if machine["platform"] == "cpu" else [{name: task} for name, task in tasks.items()]
    report: dict[str, Any] = {"machine": machine, "results": {}}
    draws = None
    for group in groups:
        for name, result in measure(group, options.rounds, deadline).items():
            if "error" not in result:
                result.update(rates(tasks[name], result, machine))
            report["results"][name] = {**tasks[name], **result}
            if tasks[name]["draws"] != draws:
                draws = tasks[name]["draws"]
                print_header(DRAWING_COLUMNS if draws else TRAINING_COLUMNS)
            print_row(name, tasks[name], result)
            if options.output is not None:
                options.output.write_text(json.dumps(report, indent=1))
    return report


if __name__ == "__main__":
    failed = [name for name, result in main().get("results", {}).items() if "error" in result]
    if failed:
        sys.exit(f"no figures of: {'; '.join(failed)}")
