"""What the tabs show, without a browser."""

import math

import numpy as np
import pytest
from conftest import TINY, make_causal_lm, make_masked_lm, random_tokens, randomize

import keras_igpt as igpt
import keras_igpt.demo.pictures as pictures_module
from keras_igpt.demo.markup import grid
from keras_igpt.demo.pictures import as_model_sees, built_in_pictures, centre_square, enlarged, open_upload
from keras_igpt.demo.views import (
    Drawing,
    attention,
    completions,
    fillings,
    heat_map,
    marked,
    pixel_at,
    rectangle_hidden,
    rows_hidden,
    surprise,
)

image_module = pytest.importorskip("PIL.Image")

TWO = Drawing(num_samples=2, temperature=1.0, seed=3)


@pytest.fixture(scope="module")
def causal(palette):
    return randomize(make_causal_lm(palette))


@pytest.fixture(scope="module")
def masked(palette):
    return randomize(make_masked_lm(palette))


@pytest.fixture(scope="module")
def picture(palette):
    return palette.decode(random_tokens(1))[0]


def test_an_upload_is_read_upright_and_limited(tmp_path, monkeypatch):
    path = tmp_path / "turned.png"
    pixels = np.zeros((4, 6, 3), "uint8")
    pixels[0] = 255
    exif = image_module.Exif()
    exif[0x0112] = 6  # the first row is on the right
    image_module.fromarray(pixels).save(path, exif=exif)
    read = open_upload(path)
    assert read.shape == (6, 4, 3)
    assert (read[:, -1] == 255).all()
    assert centre_square(read).shape == (4, 4, 3)

    monkeypatch.setattr(pictures_module, "MAX_PIXELS", 23)
    with pytest.raises(ValueError, match=r"Pictures must have at most 0 million pixels.*turned\.png of 6×4"):
        open_upload(path)
    (tmp_path / "broken.png").write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"readable.*broken\.png"):
        open_upload(tmp_path / "broken.png")


@pytest.mark.parametrize("channels", [3, 1])
def test_a_picture_becomes_one_of_the_models_size_and_colours(channels, palette):
    grey = igpt.ColorPalette.from_colors(np.arange(0, 256, 17, "uint8")[:, None])
    model = make_causal_lm(palette if channels == 3 else grey)
    for picture in built_in_pictures().values():
        seen = as_model_sees(model, picture)
        assert seen.shape == (4, 4, channels)
        np.testing.assert_array_equal(model.palette.decode(model.palette.encode(seen[None]), (4, 4))[0], seen)
        assert enlarged(seen, 9).shape == (8, 8, 3)


def test_completions_stand_between_what_was_seen_and_the_original(causal, picture):
    shown = completions(causal, picture, 2, TWO)
    assert [label for label, _ in shown] == ["seen", "sample 1", "sample 2", "original"]
    images = np.stack([image for _, image in shown])
    np.testing.assert_array_equal(images[1:, :2], np.broadcast_to(picture[:2], (3, 2, 4, 3)))
    assert (images[0, 2:] == 128).all()
    np.testing.assert_array_equal(images[1:3], causal.complete(picture[None], 2, num_samples=2, seed=3)[0])
    np.testing.assert_array_equal(images[3], picture)
    assert grid(shown).count("data:image/png;base64,") == 4


def test_a_bert_model_fills_a_hole(masked, picture):
    hidden = rectangle_hidden(4, (2, 3), (1, 1))
    np.testing.assert_array_equal(np.argwhere(hidden), [[1, 1], [1, 2], [1, 3], [2, 1], [2, 2], [2, 3]])
    images = np.stack([image for _, image in fillings(masked, picture, hidden, TWO)])
    np.testing.assert_array_equal(images[:, ~hidden], np.broadcast_to(picture[~hidden], (4, 10, 3)))
    assert (images[0, hidden] == 128).all()
    assert (images[1] != images[2]).any()
    with pytest.raises(ValueError, match="Some pixel must be hidden"):
        fillings(masked, picture, rows_hidden(4, 4), TWO)


def test_surprise_is_the_score_in_bits(causal, masked, picture):
    found, scores = surprise(causal, picture), causal.score(picture[None], per_pixel=True)
    assert found.bits_per_pixel == pytest.approx(scores.bits_per_pixel[0])
    np.testing.assert_allclose(found.bits * math.log(2), scores.surprise[0], rtol=1e-5)
    assert found.uniform == 4.0
    # So many masks that hardly a pixel is left out.
    assert np.isnan(surprise(masked, picture).bits).sum() <= 1


def test_attention_is_what_predicts_the_pixel(causal, masked, picture, palette):
    other = picture.copy()
    other[1, 2] = palette.decode(np.array([[(palette.encode(picture[None])[0, 6] + 1) % TINY["vocabulary_size"]]]))[0]
    for model in (causal, masked):
        (weights, starts), (others, _) = attention(model, picture, 1, (1, 2)), attention(model, other, 1, (1, 2))
        assert weights.shape == (2, 4, 4)
        # The pixel itself has no say.
        np.testing.assert_allclose(weights, others, rtol=1e-4, atol=1e-6)
        total = weights.sum((1, 2)) + (0 if starts is None else starts)
        np.testing.assert_allclose(total, 1, rtol=1e-5)
    assert starts is None
    weights, _ = attention(causal, picture, 1, (1, 2))
    assert (weights.reshape(2, 16)[:, 6:] == 0).all()


def test_a_heat_map_runs_from_zero_to_the_highest():
    colors = heat_map(np.array([[0.0, 2.0, 4.0, np.nan]]), 2.0)[0]
    assert colors[0].sum() < 10
    np.testing.assert_array_equal(colors[1], colors[2])
    assert colors[1].sum() > 600
    np.testing.assert_array_equal(colors[3], [128] * 3)


def test_a_marked_pixel_is_the_one_that_was_clicked(picture):
    large, plain = marked(picture, (1, 2), 40), enlarged(picture, 40)
    changed = (large != plain).any(-1)
    rows, columns = np.nonzero(changed)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (10, 19, 20, 29)
    assert not changed[15, 25]
    assert pixel_at((20, 10), 40, 4) == pixel_at((29.9, 19), 40, 4) == (1, 2)
    assert pixel_at((40, 40), 40, 4) == (3, 3)
    # Where pixels are not enlarged, the pixel is all frame.
    assert (marked(picture, (0, 0), 4)[0, 0] == (255, 122, 0)).all()
