import keras
import numpy as np
import pytest
from conftest import make_causal_lm, random_tokens, randomize

from keras_igpt.inference import predict_or_restore


class Failing(keras.utils.PyDataset):
    """Four batches, of which one cannot be read."""

    def __init__(self, at):
        super().__init__()
        self.at = at

    def __len__(self):
        return 4

    def __getitem__(self, index):
        if index == self.at:
            raise KeyboardInterrupt
        return random_tokens(2, seed=index)


@pytest.mark.parametrize("at", [0, 2])
@pytest.mark.parametrize("used_before", [True, False])
def test_a_failure_leaves_the_model_as_it_was(at, used_before):
    if keras.backend.backend() != "jax":
        pytest.skip("Keras takes the weights out of the model on JAX only")
    model, token_ids = randomize(make_causal_lm(num_layers=1)), random_tokens(2)
    if used_before:
        model.predict(token_ids, verbose=0)
    weights = [weight.copy() for weight in model.get_weights()]
    with pytest.raises(KeyboardInterrupt):
        predict_or_restore(model, Failing(at), verbose=0)
    for before, after in zip(weights, model.get_weights(), strict=True):
        np.testing.assert_array_equal(before, after)
    assert np.isfinite(model.predict(token_ids, verbose=0)).all()
    assert np.isfinite(model.score(token_ids).nats_per_token).all()
