import keras
import numpy as np
import pytest
from conftest import make_causal_lm, make_masked_lm, random_tokens, randomize, to_numpy

from keras_igpt.evaluation.attention_maps import attention_maps

TOKENS = random_tokens(2)


@pytest.mark.parametrize("make", [make_causal_lm, make_masked_lm])
def test_values_weighted_by_the_maps_are_what_the_block_attends_to(make, palette):
    model = randomize(make(palette))
    attention = model.backbone.blocks[1].attention
    mask = None if make is make_causal_lm else np.random.default_rng(0).random((2, 16)) < 0.3
    maps = attention_maps(model, TOKENS, layer=1, position_mask=mask)
    assert maps.shape == (2, 2, 16, 16)
    np.testing.assert_allclose(maps.sum(-1), 1, rtol=1e-5)
    (states,) = model.backbone.normed_states(
        keras.ops.convert_to_tensor(TOKENS), (1,), None if mask is None else keras.ops.convert_to_tensor(mask)
    )
    values = to_numpy(attention.query_key_value(states))[:, :, 2]
    attended = np.einsum("bnqk,bknh,nhd->bqd", maps, values, to_numpy(attention.output_projection.kernel))
    np.testing.assert_allclose(attended, to_numpy(attention(states)[0]), rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(attention_maps(model, palette.decode(TOKENS), 1, 1, mask), maps[:, 1])


def test_an_autoregressive_model_looks_at_nothing_to_come():
    maps = attention_maps(randomize(make_causal_lm()), TOKENS, layer=0)
    assert (maps[..., ~np.tri(16, dtype=bool)] == 0).all()


@pytest.mark.parametrize("arguments", [{"layer": 2}, {"layer": -1}, {"layer": 0, "head": 2}])
def test_what_is_not_there_has_no_map(arguments):
    with pytest.raises(ValueError, match=f"`{[*arguments][-1]}`"):
        attention_maps(make_causal_lm(), TOKENS, **arguments)
