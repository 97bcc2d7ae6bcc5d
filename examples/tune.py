"""The paper's protocol with KerasTuner: search on validation, fold validation back in, refit, test once.

For each weight of L_GEN the learning rate falls until the validation accuracy does. Run again after a crash.

Run: TFDS_DATA_DIR=FOLDER python examples/tune.py     # FOLDER/cifar10, as TensorFlow Datasets prepares it

Needs: pip install "keras_igpt[jax,data,tune]"
Measured: at the tiny sizes of the tests only; RESULTS.md has searches of this kind for one weight at a time.
"""

import os
from typing import Any

os.environ.setdefault("KERAS_BACKEND", "jax")

import keras
import keras_tuner
import numpy as np

import keras_igpt as igpt

MODEL = "igpt_cifar10_8x8"  # comes with the package
OUTPUT = "tune_output"
LABELS_PER_CLASS = 100
VALIDATION_PICTURES = 1000
LEARNING_RATES = (0.003, 0.001, 0.0003)
GENERATIVE_WEIGHTS = (0.0, 1.0)
BATCH_SIZE = 32
EPOCHS, PATIENCE = 8, 2
TO_BEAT = 0.15  # a class in ten is right by chance


def main() -> igpt.TunedResult:
    """Searches, refits, tests; returns the result."""
    keras.utils.set_random_seed(0)
    pretrained = igpt.ImageGPTCausalLM.from_preset(MODEL)  # or keras.saving.load_model("igpt.keras")
    palette, size = pretrained.palette, pretrained.backbone.image_size
    data = igpt.load_dataset("cifar10", image_size=size)
    few = igpt.low_data_subset(data.train, LABELS_PER_CLASS)
    splits = igpt.DataSplits(few, data.validation.take(np.arange(VALIDATION_PICTURES)), data.test, data.class_names)

    def make_model(hyperparameters: Any) -> igpt.ImageGPTImageClassifier:
        lm = igpt.ImageGPTCausalLM.from_preset(MODEL)  # for each trial: all begin with the same weights
        weight = hyperparameters.get("generative_weight")
        classifier = igpt.ImageGPTImageClassifier(lm, len(data.class_names), weight, class_names=data.class_names)
        classifier.compile(**igpt.finetuning_recipe(hyperparameters.get("learning_rate")))
        return classifier

    # KerasTuner's own oracle for the weight, beside the descent of the rates.
    space = keras_tuner.HyperParameters()
    space.Choice("generative_weight", GENERATIVE_WEIGHTS)
    weights = keras_tuner.oracles.GridSearchOracle("val_accuracy", hyperparameters=space)
    crops = igpt.PaddedCrop(padding=max(1, size // 8))
    study = igpt.Study(
        make_model,
        splits,
        lambda examples: igpt.TrainingBatches(examples, palette, BATCH_SIZE, augmentation=crops),
        lambda examples: igpt.EvaluationBatches(examples, palette, 250),
        objective="val_accuracy",
        folder=OUTPUT,
    )
    oracle = igpt.DescendingLearningRateOracle("val_accuracy", LEARNING_RATES, weights)
    study.search(epochs=EPOCHS, oracle=oracle, patience=PATIENCE, to_beat=TO_BEAT)
    result = study.refit()
    print(result)  # "chosen on validation" and "final on test" apart; also in tune_output/report.json
    return result


if __name__ == "__main__":
    main()
