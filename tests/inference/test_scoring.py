import numpy as np
import pytest
from conftest import make_causal_lm, make_masked_lm, random_tokens, randomize
from reference import forward, read_weights

import keras_igpt as igpt
from keras_igpt.data import LabeledImages, LabeledTokens
from keras_igpt.inference import compiled, scoring
from keras_igpt.model.masking import vote_mask

COLORS = igpt.ColorPalette.from_colors(np.random.default_rng(1).integers(0, 256, (16, 3)).astype("uint8"))
TOKENS = random_tokens(7, seed=1)


def expected_losses(model, token_ids, position_mask=None):
    """Nats of each token, from the NumPy reference."""
    causal = position_mask is None
    _, _, logits = forward(read_weights(model), token_ids, causal, "layer_norm", position_mask)
    highest = logits.max(-1, keepdims=True)
    log_sums = np.log(np.exp(logits - highest).sum(-1)) + highest[..., 0]
    return log_sums - np.take_along_axis(logits, token_ids[..., None], -1)[..., 0]


@pytest.fixture(scope="module")
def causal():
    return randomize(make_causal_lm(COLORS))


@pytest.fixture(scope="module")
def masked():
    return randomize(make_masked_lm(COLORS, mask_rate=0.15))


def test_scores_are_the_negative_log_likelihood(causal):
    losses = expected_losses(causal, TOKENS)
    scores = causal.score(TOKENS, per_pixel=True, batch_size=3)
    np.testing.assert_allclose(scores.nats_per_token, losses.mean(-1), rtol=1e-5)
    np.testing.assert_allclose(scores.surprise, losses.reshape(7, 4, 4), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(scores.bits_per_pixel, np.log2(np.exp(losses.mean(-1))), rtol=1e-5)
    assert causal.score(TOKENS, batch_size=3).surprise is None


def test_a_set_in_segments_and_whatever_holds_it(causal, monkeypatch, tmp_path):
    images = COLORS.decode(TOKENS)
    labels = np.zeros(7, "int64")
    expected = expected_losses(causal, TOKENS).mean(-1)
    # Two batches a segment: three segments, the last one of one row.
    monkeypatch.setattr(compiled, "_SEGMENT_BYTES", 2 * 4 * 16 * 3)
    tokens = LabeledTokens(TOKENS.astype("uint8"), labels, 16)
    batches = igpt.EvaluationBatches(tokens, None, batch_size=2)
    for inputs in (images, LabeledImages(images, labels), tokens, batches):
        np.testing.assert_allclose(causal.score(inputs, batch_size=3).nats_per_token, expected, rtol=1e-5)


def test_picture_files_are_read_as_they_are_scored(causal, tmp_path):
    image = pytest.importorskip("PIL.Image")
    from keras_igpt.data.image_files import FolderReader, ImageFiles

    files = [tmp_path / f"{index}.png" for index in range(7)]
    for file, picture in zip(files, COLORS.decode(TOKENS), strict=True):
        image.fromarray(picture).save(file)
    scores = causal.score(ImageFiles(FolderReader(files, [0] * 7), 4), batch_size=3)
    np.testing.assert_allclose(scores.nats_per_token, expected_losses(causal, TOKENS).mean(-1), rtol=1e-5)


def test_masked_scores_are_means_over_the_masks_that_hide_something(masked):
    scores = masked.score(TOKENS, num_masks=3, seed=6, per_pixel=True, batch_size=4)
    masks = [vote_mask(TOKENS.shape, 0.15, 6, mask) for mask in range(3)]
    losses = [np.where(mask, expected_losses(masked, TOKENS, mask), np.nan) for mask in masks]
    assert any((~mask).all(-1).any() for mask in masks), "no mask is empty: choose another seed"
    by_mask = [np.nansum(loss, -1) / np.maximum(mask.sum(-1), 1) for loss, mask in zip(losses, masks, strict=True)]
    counted = np.sum([mask.any(-1) for mask in masks], axis=0)
    np.testing.assert_allclose(scores.nats_per_token, np.sum(by_mask, axis=0) / counted, rtol=1e-5)
    times = np.sum(masks, axis=0)
    expected = np.nansum(losses, axis=0) / np.where(times, times, np.nan)
    np.testing.assert_allclose(scores.surprise.reshape(7, 16), expected, rtol=1e-4, atol=1e-4)
    assert np.isnan(scores.surprise).any()


def test_masks_depend_on_the_seed_and_not_on_batches(masked):
    first = masked.score(TOKENS, num_masks=2, batch_size=4).nats_per_token
    np.testing.assert_allclose(masked.score(TOKENS, num_masks=2, batch_size=3).nats_per_token, first, rtol=1e-5)
    assert (masked.score(TOKENS, num_masks=2, seed=1, batch_size=4).nats_per_token != first).any()


def test_the_line_of_a_score_says_what_it_is_not():
    line = str(scoring.Scores(np.array([1.0, 3.0])))
    assert line.startswith("2 pictures: 2.0000 nats per token, 2.8854 bits per pixel")
    assert "not comparable with 8-bit RGB" in line
    assert str(scoring.Scores(np.array([np.nan, np.nan]))) == "2 pictures, none of them with a score"


def test_the_scorer_is_not_part_of_the_model(causal):
    causal.score(TOKENS, batch_size=3)
    assert [layer.name for layer in causal.layers] == [causal.backbone.name, "pixel_head"]


def test_scores_that_mean_nothing_are_refused(causal):
    diverged = make_causal_lm(COLORS)
    diverged.pixel_head.kernel.assign(np.full((32, 16), np.nan))
    endless = igpt.TrainingBatches(LabeledTokens(TOKENS, np.zeros(7, "int64"), 16), None, 2)
    wrong = LabeledTokens(TOKENS, np.zeros(7, "int64"), 32)
    for model, arguments, message in (
        (diverged, (TOKENS,), "finite logits"),
        (causal, (endless,), "`inputs` must end"),
        (causal, (wrong,), "`inputs` must be tokens of 16 colours"),
        (causal, (TOKENS[:, :5],), "`inputs` must be"),
        (causal, (TOKENS, False, 0), "`batch_size`"),
        (make_masked_lm(), (TOKENS, 0), "`num_masks`"),
        (make_masked_lm(), (TOKENS, 1, -1), "`seed`"),
        (make_masked_lm(), (COLORS.decode(TOKENS),), "palette"),
    ):
        with pytest.raises(ValueError, match=message):
            model.score(*arguments)
