"""Few labels: logistic regression on frozen features from 4, 25 and 400 labels a class, five random subsets each.

Command:
    python examples/low_data.py --model igpt.keras --dataset cifar10 --data-dir FOLDER   # FOLDER as prepared by TFDS
    python examples/low_data.py --model igpt.keras --images FOLDER                       # FOLDER/<class>/<picture>

Needs: pip install "keras_igpt[jax,data]", and a model's file, such as examples/pretrain.py writes.
Depth and C are chosen on the validation split, whose labels are not among the few; the paper does not say how.
Time: the forward pass of all pictures once; --layers spares the regressions at the other depths.
Writes table.json to low_data_output/ (--output).

Expected, for igpt_cifar10_8x8 on CIFAR-10: 19.5 ± 1.1%, 28.7 ± 1.4% and 41.9 ± 0.5% (RESULTS.md).
"""

from __future__ import annotations

import os
from pathlib import Path

os.environ.setdefault("KERAS_BACKEND", "jax")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
from arguments import add_model_argument, load_data, make_parser

import keras_igpt as igpt


def main(arguments: list[str] | None = None) -> igpt.LowDataTable:
    """Prints the table and returns it."""
    parser = make_parser(__doc__, "low_data_output")
    add_model_argument(parser)
    parser.add_argument("--labels", type=int, nargs="+", default=[4, 25, 400], help="labels a class")
    parser.add_argument("--subsets", type=int, default=5, help="random subsets, of seeds 0, 1, …")
    parser.add_argument("--layers", type=int, nargs="+", help="depths to choose from; all of them by default")
    parser.add_argument("--which", choices=("normed", "residual"), default="normed", help="form of the features")
    parser.add_argument("--batch-size", type=int, default=128)
    options = parser.parse_args(arguments)

    language_model = keras.saving.load_model(options.model, compile=False)
    data = load_data(options, language_model.backbone.image_size, in_memory=False)
    table = igpt.low_data_table(
        language_model,
        data,
        labels_per_class=options.labels,
        seeds=range(options.subsets),
        layers=options.layers,
        which=options.which,
        batch_size=options.batch_size,
    )
    print(table)
    output = Path(options.output)
    table.save(output / "table.json")
    print(f"Table: {output}/table.json")
    return table


if __name__ == "__main__":
    main()
