"""Fine-tuning a pre-trained model on classes with the joint loss, stopped at its best validation accuracy.

Command:
    python examples/finetune.py --model igpt.keras --dataset cifar10 --data-dir FOLDER   # FOLDER as prepared by TFDS
    python examples/finetune.py --model igpt.keras --images FOLDER                       # FOLDER/<class>/<picture>

Needs: pip install "keras_igpt[jax,data]" and a model's file, such as examples/pretrain.py writes.
All weights are trained, at a constant rate, on crops of padded pictures and their mirror images. Prints the validation
accuracy of the best epoch and, once at the end, the test accuracy of its weights; that of a BERT model also by a vote
over five masks. Validation pictures choose the epoch and are not trained on; the paper trains on them too in the end.
Writes classifier.keras, history.csv, config.json and results.json to finetune_output/ (--output).

Not run on real pictures at its defaults; examples/cifar10_study.py has been, on few labels (RESULTS.md).
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

os.environ.setdefault("KERAS_BACKEND", "jax")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
from arguments import add_model_argument, load_data, make_parser

import keras_igpt as igpt


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Fine-tunes; returns the accuracies and the best epoch."""
    parser = make_parser(__doc__, "finetune_output")
    add_model_argument(parser)
    parser.add_argument("--generative-weight", type=float, default=1.0, help="of L_GEN beside L_CLF; 1 in the paper")
    parser.add_argument("--layer", type=int, help="depth of the features; by default the last, as in the paper")
    parser.add_argument("--rate", type=float, default=0.0003, help="of Adam; about a tenth of the pre-training's")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--epochs", type=int, default=50, help="at most")
    parser.add_argument("--patience", type=int, default=5, help="epochs without a better one after which it stops")
    options = parser.parse_args(arguments)

    keras.utils.set_random_seed(options.seed)
    language_model = keras.saving.load_model(options.model, compile=False)
    palette, size = language_model.palette, language_model.backbone.image_size
    data = load_data(options, size)
    classifier = igpt.ImageGPTImageClassifier(
        language_model, len(data.class_names), options.generative_weight, layer=options.layer
    )
    classifier.compile(**igpt.finetuning_recipe(options.rate))
    # The paper pads pictures of 32 pixels by 4.
    augmentation = igpt.PaddedCrop(padding=round(4 * size / 32))
    batches = igpt.TrainingBatches(
        data.train, palette, options.batch_size, seed=options.seed, augmentation=augmentation
    )
    validation = igpt.EvaluationBatches(data.validation, palette, options.batch_size)

    output = Path(options.output)
    output.mkdir(parents=True, exist_ok=True)
    paths = ("model", "images", "data_dir", "output")
    config = {name: value for name, value in vars(options).items() if name not in paths}
    config |= {"layer": classifier.layer, "augmentation": repr(augmentation), "backend": keras.backend.backend()}
    config |= {"objective": type(language_model).__name__, "parameters": classifier.count_params()}
    config |= {part: len(data[part]) for part in ("train", "validation", "test")}
    (output / "config.json").write_text(json.dumps(config, indent=2) + "\n")

    history = classifier.fit(
        batches,
        epochs=options.epochs,
        validation_data=validation,
        callbacks=[
            keras.callbacks.EarlyStopping(
                "val_accuracy", mode="max", patience=options.patience, restore_best_weights=True
            ),
            keras.callbacks.CSVLogger(str(output / "history.csv")),
        ],
        verbose=2,
    ).history["val_accuracy"]
    igpt.save_model(classifier, output / "classifier.keras")
    best = int(np.argmax(history))
    results = {"best epoch": best + 1, "validation accuracy": history[best]}
    print(f"validation accuracy {history[best]:.2%} in epoch {best + 1} of {len(history)}")

    # === Once, with the weights that validation chose ===
    test = data.test.encode(palette)
    test_batches = igpt.EvaluationBatches(test, None, options.batch_size)
    results["test accuracy"] = classifier.evaluate(test_batches, verbose=0, return_dict=True)["accuracy"]
    if isinstance(language_model, igpt.ImageGPTMaskedLM):
        voted = classifier.vote(test.token_ids, num_masks=5, seed=options.seed, batch_size=options.batch_size)
        results["test accuracy, vote of 5 masks"] = float(np.mean(voted == test.labels))
    for name, accuracy in list(results.items())[2:]:
        print(f"{name} {accuracy:.2%}")
    (output / "results.json").write_text(json.dumps(results, indent=2) + "\n")
    return results


if __name__ == "__main__":
    main()
