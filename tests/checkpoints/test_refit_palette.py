import numpy as np
import pytest
from conftest import make_causal_lm, make_masked_lm, random_tokens, randomize, to_numpy

import keras_igpt as igpt
from keras_igpt.checkpoints.refit_palette import refit_palette


@pytest.mark.parametrize("make", [make_causal_lm, make_masked_lm])
def test_the_same_colours_in_another_order_are_the_same_model(palette, make):
    lm = randomize(make(palette))
    images = palette.decode(random_tokens(3))
    order = np.random.default_rng(0).permutation(16)
    changed = refit_palette(lm, igpt.ColorPalette.from_colors(palette.colors[order]))
    assert type(changed) is type(lm)
    assert changed is not lm
    if make is make_masked_lm:
        mask = np.random.default_rng(1).random((3, 16)) < 0.3
        old, new = ({"token_ids": model.palette.encode(images), "position_mask": mask} for model in (lm, changed))
    else:
        old, new = (model.palette.encode(images) for model in (lm, changed))
    np.testing.assert_allclose(to_numpy(changed(new)), to_numpy(lm(old))[..., order], atol=1e-5)


def test_each_colour_begins_as_the_nearest_old_one():
    old = np.array([[0, 0, 0], [255, 0, 0], [0, 255, 0], [0, 0, 255]], "uint8")
    new = np.array([[250, 9, 9], [3, 3, 3], [9, 250, 9], [200, 40, 0], [0, 9, 130]], "uint8")
    nearest = [1, 0, 2, 1, 3]
    lm = randomize(make_causal_lm(igpt.ColorPalette.from_colors(old), vocabulary_size=4))
    before = lm.get_weights()
    changed = refit_palette(lm, igpt.ColorPalette.from_colors(new))
    assert changed.palette.num_colors == changed.backbone.vocabulary_size == 5

    def rows(model):
        return to_numpy(model.backbone.pixel_embedding.token_embedding.weights[0])

    np.testing.assert_array_equal(rows(changed), rows(lm)[nearest])
    np.testing.assert_array_equal(to_numpy(changed.pixel_head.kernel), to_numpy(lm.pixel_head.kernel)[:, nearest])
    np.testing.assert_array_equal(
        to_numpy(changed.backbone.blocks[1].attention.query_key_value.kernel),
        to_numpy(lm.backbone.blocks[1].attention.query_key_value.kernel),
    )
    for array, again in zip(before, lm.get_weights(), strict=True):
        np.testing.assert_array_equal(array, again)


def test_training_goes_on_under_the_new_palette(palette):
    lm = randomize(make_causal_lm(palette), scale=0.1)
    changed = refit_palette(lm, igpt.ColorPalette.from_colors(palette.colors[:9]))
    tokens = changed.palette.encode(palette.decode(random_tokens(8)))
    changed.compile(optimizer="adam")
    history = changed.fit(tokens, batch_size=8, epochs=3, verbose=0).history["loss"]
    assert history[2] < history[0]


def test_palettes_that_do_not_fit_are_refused(palette):
    with pytest.raises(ValueError, match="`lm` must have a palette"):
        refit_palette(make_causal_lm(), palette)
    grey = igpt.ColorPalette.from_colors(np.arange(16, dtype="uint8")[:, None])
    with pytest.raises(ValueError, match="`palette` must have 3 channel"):
        refit_palette(make_causal_lm(palette), grey)
