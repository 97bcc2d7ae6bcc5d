"""Does a scaling law fitted to small runs forecast the loss of runs of four times the compute?

Command: python benchmarks/scaling.py --data-dir FOLDER [--output results/scaling_8x8]

Pre-trains autoregressive models of four widths on CIFAR-10 at 8x8 pixels (as TensorFlow Datasets prepared it, in the
256 colours of the preset `igpt_cifar10_8x8`) with four compute budgets each, and fits the law, perhaps only to runs of
`--fewest-updates`. Then some sizes are trained with four times the largest budget, and their losses compared with the
forecast. Printed: the coefficients with their intervals, the runs, and the forecast beside what was observed. Can be
killed and started again: finished runs are kept in `runs.json`. Under an hour of one core.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("KERAS_BACKEND", "torch")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
from timing import print_machine

import keras_igpt as igpt

BUDGETS = (5e11, 1e12, 2e12, 4e12)
WIDTHS = (32, 48, 64, 96)
HELD_OUT_WIDTHS = (48, 64, 96)
TIMES_THE_COMPUTE = 4
BATCH_SIZE = 64


def size_of(width: int) -> dict[str, int]:
    """Architecture of a width."""
    return {"num_layers": 4, "num_heads": 4, "hidden_dim": width}


def load_tokens(data_dir: str, pictures: int | None) -> tuple[igpt.LabeledTokens, igpt.LabeledTokens]:
    """Training and validation tokens of CIFAR-10 at 8x8 pixels."""
    palette = igpt.ImageGPTCausalLM.from_preset("igpt_cifar10_8x8").palette
    data = igpt.load_dataset("cifar10", data_dir, 8)
    parts = (data.train, data.validation)
    train, validation = (part.take(range(min(len(part), pictures or len(part)))).encode(palette) for part in parts)
    return train, validation


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Runs the study and the held-out runs, and returns what was forecast and observed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", required=True)
    parser.add_argument("--pictures", type=int, help="of training and of validation; all by default")
    parser.add_argument("--budgets", type=float, nargs="+", default=BUDGETS, help="floating point operations")
    parser.add_argument("--widths", type=int, nargs="+", default=WIDTHS)
    parser.add_argument("--held-out-widths", type=int, nargs="+", default=HELD_OUT_WIDTHS)
    parser.add_argument("--fewest-updates", type=int, default=0, help="of the runs that the law is fitted to")
    parser.add_argument("--learning-rate", type=float, default=0.003)
    parser.add_argument("--output", type=Path, default=Path("results/scaling_8x8"))
    options = parser.parse_args(arguments)

    print_machine()
    tokens = load_tokens(options.data_dir, options.pictures)
    shared = {"learning_rate": options.learning_rate, "folder": options.output, "batch_size": BATCH_SIZE}
    sizes = {f"width {width}": size_of(width) for width in options.widths}
    report = igpt.scaling_study(*tokens, sizes, options.budgets, **shared)
    fewest = options.fewest_updates * BATCH_SIZE * tokens[0].image_size ** 2
    chosen = [run for runs in report.runs.values() for run in runs if run.tokens >= fewest]
    law = igpt.fit_scaling_law(chosen)
    print(f"{len(chosen)} runs\n{law}")
    for name, runs in report.runs.items():
        for run in runs:
            fitted = law.loss(run.parameters, run.tokens)
            print(f"{name:<10} {run.parameters:>9,} {run.tokens:>12,} {run.loss:.4f} (law {fitted:.4f})")
    report.plot().savefig(options.output / "scaling.png")

    # Runs that the law has not seen: the study keeps those above and adds the larger ones.
    larger = max(options.budgets) * TIMES_THE_COMPUTE
    sizes = {f"width {width}": size_of(width) for width in options.held_out_widths}
    found = igpt.scaling_study(*tokens, sizes, (*options.budgets, larger), **shared)
    held_out = []
    for name, runs in found.runs.items():
        forecast = law.forecast(runs[-1].parameters, runs[-1].tokens)
        error = forecast.estimate / runs[-1].loss - 1
        print(f"{name}, {larger:.3g} operations: forecast {forecast}, observed {runs[-1].loss:.4f} ({error:+.2%})")
        held_out.append({"size": name, "observed": runs[-1].loss, "forecast": str(forecast), "error": error})
    settings = {"fewest_updates": options.fewest_updates, "runs": len(chosen), "backend": keras.backend.backend()}
    result = {**settings, "law": str(law).splitlines(), "held_out": held_out}
    (options.output / "forecast.json").write_text(json.dumps(result, indent=2) + "\n")
    return result


if __name__ == "__main__":
    main()
