"""Few labels: logistic regression on frozen features from 4, 25 and 400 labels a class, five random subsets each.

Run: TFDS_DATA_DIR=FOLDER python examples/low_data.py     # FOLDER/cifar10, as TensorFlow Datasets prepares it

Needs: pip install "keras_igpt[jax,data]"
Measured: 19.5 ± 1.1%, 28.7 ± 1.4% and 41.9 ± 0.5% from features, 20.2 ± 1.6%, 29.0 ± 1.2% and 37.5 ± 0.4% from raw
pixels: mean and standard deviation over the subsets; x86-64, PyTorch (RESULTS.md).
"""

import os

os.environ.setdefault("KERAS_BACKEND", "jax")

import keras_igpt as igpt

MODEL = "igpt_cifar10_8x8"  # comes with the package
OUTPUT = "low_data_output/table.json"
LABELS_PER_CLASS = (4, 25, 400)
SEEDS = range(5)


def main() -> igpt.LowDataTable:
    """Prints the table, and returns it."""
    lm = igpt.ImageGPTCausalLM.from_preset(MODEL)  # or keras.saving.load_model("igpt.keras")
    data = igpt.load_dataset("cifar10", image_size=lm.backbone.image_size)
    # Depth and C are chosen on the validation pictures, whose labels are not among the few.
    table = igpt.low_data_table(lm, data, LABELS_PER_CLASS, SEEDS, batch_size=500)
    print(table)
    table.save(OUTPUT)
    return table


if __name__ == "__main__":
    main()
