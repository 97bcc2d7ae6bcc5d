import numpy as np
import pytest
from conftest import make_masked_lm, random_tokens, randomize
from reference import forward, read_weights

import keras_igpt as igpt
from keras_igpt.inference.filling import fill_tokens, filling_rounds
from keras_igpt.inference.sampling import Sampling

COLORS = igpt.ColorPalette.from_colors(np.random.default_rng(1).integers(0, 256, (16, 3)).astype("uint8"))
TOKENS = random_tokens(5, seed=1)
HIDDEN = np.random.default_rng(3).random((5, 16)) < 0.5
NOISE = np.random.default_rng(2).gumbel(size=(5, 16, 16)).astype("float32")


@pytest.fixture(scope="module")
def model():
    return randomize(make_masked_lm(COLORS))


def test_positions_are_shared_out_equally_in_random_order():
    hidden = np.random.default_rng(0).random((400, 64)) < 0.4
    rounds = filling_rounds(hidden, 5, seed=0)
    assert ((rounds > 0) == hidden).all()
    for row in rounds:
        counts = np.bincount(row, minlength=6)[1:]
        assert len(counts) == 5
        assert counts.max() - counts.min() <= 1
    # Any hidden position comes first as often as another.
    share = (filling_rounds(np.ones((4000, 8), bool), 8, seed=1) == 1).mean(0)
    np.testing.assert_allclose(share, 1 / 8, atol=0.025)
    np.testing.assert_array_equal(filling_rounds(hidden[:3], 5, seed=0), rounds[:3])
    assert (filling_rounds(hidden, 5, seed=1) != rounds).any()
    # Fewer hidden positions than rounds: one each.
    few = filling_rounds(np.arange(9)[None] < 3, 7, seed=0)
    assert sorted(few[0].tolist()) == [0] * 6 + [1, 2, 3]
    assert not filling_rounds(np.zeros((2, 9), bool), 7, seed=0).any()


def naive_filling(model, rounds):
    """The same in NumPy, by the reference of the network."""
    weights, token_ids = read_weights(model), TOKENS.copy()
    for number in range(1, rounds.max() + 1):
        _, _, logits = forward(weights, token_ids, False, "layer_norm", rounds >= number)
        token_ids = np.where(rounds == number, (logits + NOISE).argmax(-1), token_ids)
    return token_ids


@pytest.mark.parametrize("num_rounds", [1, 3, 16])
def test_filling_equals_a_naive_one(model, num_rounds):
    filled = fill_tokens(model, TOKENS, HIDDEN, num_rounds, Sampling(seed=4, noise=NOISE), batch_size=3)
    expected = naive_filling(model, filling_rounds(HIDDEN, num_rounds, seed=4))
    np.testing.assert_array_equal(filled, expected)
    np.testing.assert_array_equal(filled[~HIDDEN], TOKENS[~HIDDEN])
    assert (filled != TOKENS).any()


def test_what_is_hidden_has_no_influence(model):
    other = np.where(HIDDEN, 15 - TOKENS, TOKENS)
    first = model.fill_tokens(TOKENS, HIDDEN, 3, seed=4, batch_size=3)
    np.testing.assert_array_equal(model.fill_tokens(other, HIDDEN, 3, seed=4, batch_size=3), first)
    assert (model.fill_tokens(TOKENS, HIDDEN, 3, seed=5, batch_size=3) != first).any()


def test_pictures_keep_what_is_not_hidden(model):
    images = np.random.default_rng(0).integers(0, 256, (2, 4, 4, 3)).astype("uint8")
    hole = np.zeros((4, 4), bool)
    hole[1:3, 1:3] = True
    filled = model.fill(images, hole, num_samples=3, num_rounds=2, batch_size=3)
    assert filled.shape == (2, 3, 4, 4, 3)
    np.testing.assert_array_equal(filled[:, :, ~hole], np.repeat(images[:, None][:, :, ~hole], 3, 1))
    seen = COLORS.decode(COLORS.encode(filled))
    np.testing.assert_array_equal(filled[:, :, hole], seen[:, :, hole])
    quantized = model.fill(images, hole, num_samples=3, num_rounds=2, batch_size=3, quantize=True)
    np.testing.assert_array_equal(quantized, seen)
    assert (filled[:, 0] != filled[:, 1]).any()


def test_arguments_that_do_not_fit_are_refused(model):
    images = COLORS.decode(TOKENS)
    diverged = make_masked_lm()
    diverged.pixel_head.kernel.assign(np.full((32, 16), np.nan))
    for call, message in (
        (lambda: make_masked_lm().fill(images, np.ones((4, 4), bool)), "`palette`"),
        (lambda: model.fill(images, np.ones((4, 4))), "`hidden`"),
        (lambda: model.fill(images, np.ones((4, 4), bool), num_samples=0), "`num_samples`"),
        (lambda: model.fill_tokens(TOKENS, HIDDEN[:2]), "`position_mask`"),
        (lambda: model.fill_tokens(TOKENS[:, :3], HIDDEN), "`token_ids`"),
        (lambda: model.fill_tokens(TOKENS, HIDDEN, 0), "`num_rounds`"),
        (lambda: diverged.fill_tokens(TOKENS, HIDDEN), "finite logits"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
