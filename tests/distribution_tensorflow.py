"""What test_distribution.py runs in a process of its own, with two virtual devices on TensorFlow."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import make_causal_lm, make_masked_lm, random_tokens, randomize, to_numpy

import keras_igpt as igpt
from keras_igpt.data import LabeledTokens

# Before TensorFlow makes its devices.
tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2
)
STRATEGY = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
SIZES = {"num_layers": 1, "num_heads": 4, "hidden_dim": 16}
EXAMPLES = LabeledTokens(random_tokens(20), np.arange(20) % 3, 16)


class WeightedBatches(keras.utils.PyDataset):
    """Two batches of eight rows; the second replica's rows weigh far more than the first's."""

    def __len__(self):
        return 2

    def __getitem__(self, index):
        rows = np.arange(8 * index, 8 * index + 8)
        weights = np.array([0, 0.1, 0.2, 0.1, 1, 1.5, 2, 3], "float32")
        return EXAMPLES.token_ids[rows].astype("int32"), EXAMPLES.labels[rows], weights


def train(kind):
    """Trains, evaluates and predicts with a new model; returns all figures and the weights."""
    model = make_causal_lm(**SIZES) if kind == "causal" else make_masked_lm(mask_rate=0.5, **SIZES)
    # Plain gradients: Adam would hide that they are too long.
    recipe = {"optimizer": keras.optimizers.SGD(0.1)}
    if kind == "classifier":
        model = igpt.ImageGPTImageClassifier(model, num_classes=3)
        recipe = igpt.finetuning_recipe(0.1) | recipe
    randomize(model).compile(**recipe)
    batches = igpt.TrainingBatches(EXAMPLES, None, batch_size=8, seed=1) if kind == "masked" else WeightedBatches()
    held_out = igpt.EvaluationBatches(EXAMPLES, None, batch_size=8)  # half of the last batch has weight 0
    history = model.fit(batches, epochs=2, validation_data=held_out, verbose=0).history
    if kind != "causal":
        masked_lm = model if kind == "masked" else model.language_model
        assert to_numpy(masked_lm.random_position_mask.step) == 4  # once a step, not once a replica
    figures = np.concatenate(list(history.values()))
    return [figures, model.predict(held_out, verbose=0), *map(to_numpy, model.variables)]


@pytest.mark.parametrize("kind", ["causal", "masked", "classifier"])
def test_two_replicas_equal_one_device(kind):
    alone = train(kind)
    with STRATEGY.scope():
        together = train(kind)
    for result, expected in zip(together, alone, strict=True):
        np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-5)


class MaskedBatches(keras.utils.PyDataset):
    """One batch with masks of its own."""

    def __len__(self):
        return 1

    def __getitem__(self, index):
        token_ids = EXAMPLES.token_ids[:8]
        return ({"token_ids": token_ids, "position_mask": token_ids > 7},)


def test_masks_of_ones_own_are_not_for_replicas():
    """Keras adds up the replicas' first batches, bool masks included; masks drawn by the model are no part of them."""
    batches = MaskedBatches()
    with STRATEGY.scope():
        model = make_masked_lm(**SIZES)
        model.compile(keras.optimizers.SGD(0.1))
        with pytest.raises(tf.errors.InvalidArgumentError, match="bool is not in the list of allowed values"):
            model.fit(batches, verbose=0)
