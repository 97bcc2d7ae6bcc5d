from collections import Counter

import numpy as np
import pytest
from conftest import make_causal_lm, make_masked_lm, random_tokens, randomize, to_numpy
from reference import forward, read_weights

import keras_igpt as igpt
from keras_igpt.model.masking import majority, vote_mask


def test_a_mask_hides_its_share_and_depends_on_seed_mask_and_row_alone():
    mask = vote_mask((1500, 64), 0.15, seed=3, mask=1)
    assert mask.mean() == pytest.approx(0.15, abs=0.005)
    assert len({row.tobytes() for row in mask}) > 1490
    # Fewer rows, and those beyond the first chunk, are the same.
    np.testing.assert_array_equal(vote_mask((1030, 64), 0.15, seed=3, mask=1), mask[:1030])
    for other in ({"seed": 4, "mask": 1}, {"seed": 3, "mask": 2}):
        # Independent: both hide a position as often as chance has it.
        both = (vote_mask((1500, 64), 0.15, **other) & mask).mean()
        assert both == pytest.approx(0.15**2, abs=0.003)


def test_masks_do_not_change_with_versions():
    hidden = [np.flatnonzero(row).tolist() for row in vote_mask((3, 16), 0.3, seed=0, mask=0)]
    assert hidden == [[0, 4, 5, 6, 8, 10, 11, 14], [3, 4, 14], [1, 2, 7, 9, 12, 14, 15]]


def test_rates_of_none_and_all():
    assert not vote_mask((2, 9), 0.0, 0, 0).any()
    assert vote_mask((2, 9), 1.0, 0, 0).all()


def most_frequent(votes):
    counts = Counter(votes)
    return {vote for vote, count in counts.items() if count == max(counts.values())}


@pytest.mark.parametrize("masks", [1, 2, 5])
def test_the_majority_is_the_most_frequent_class(masks):
    votes = np.random.default_rng(0).integers(0, 4, (500, masks))
    winners = majority(votes, seed=0)
    assert all(winner in most_frequent(row) for winner, row in zip(winners.tolist(), votes.tolist(), strict=True))
    np.testing.assert_array_equal(majority(np.array([[7, 2, 2, 9, 2], [1, 1, 3, 3, 3]]), seed=0), [2, 3])


def test_ties_are_broken_fairly_and_repeatably():
    votes = np.tile([5, 1, 8, 1, 5], (3000, 1))
    winners = majority(votes, seed=0)
    assert set(winners.tolist()) == {1, 5}
    assert (winners == 1).mean() == pytest.approx(0.5, abs=0.03)
    np.testing.assert_array_equal(majority(votes[:10], seed=0), winners[:10])
    assert (majority(votes, seed=1) != winners).any()
    thirds = majority(np.tile([2, 0, 1], (3000, 1)), seed=0)
    np.testing.assert_allclose(np.bincount(thirds) / 3000, 1 / 3, atol=0.03)


@pytest.fixture(scope="module")
def classifier():
    colors = np.random.default_rng(1).integers(0, 256, (16, 3)).astype("uint8")
    language_model = make_masked_lm(igpt.ColorPalette.from_colors(colors), mask_rate=0.5)
    classifier = randomize(igpt.ImageGPTImageClassifier(language_model, num_classes=4, generative_weight=0.0))
    # A head blind to what all pictures share, which would make them all of one class.
    mean = to_numpy(classifier.backbone.pooled_features(random_tokens(64)))[:, -1].mean(axis=0, keepdims=True)
    kernel = to_numpy(classifier.class_head.kernel)
    classifier.class_head.kernel.assign(kernel - mean.T @ (mean @ kernel) / (mean**2).sum())
    return classifier


def test_the_vote_equals_the_reference_under_each_mask(classifier):
    token_ids = random_tokens(10)
    weights, head = read_weights(classifier.language_model), to_numpy(classifier.class_head.kernel)
    votes = []
    for mask in range(5):
        hidden = vote_mask(token_ids.shape, 0.5, seed=2, mask=mask)
        normed, _, _ = forward(weights, token_ids, False, "layer_norm", hidden)
        votes.append((normed[-1].mean(axis=1) @ head).argmax(axis=-1))
    candidates = [most_frequent(row) for row in np.stack(votes, axis=-1).tolist()]
    assert any(len(set(row)) > 1 for row in np.stack(votes, axis=-1).tolist()), "no mask matters here"
    voted = classifier.vote(token_ids, num_masks=5, seed=2, batch_size=4)
    assert all(vote in some for vote, some in zip(voted.tolist(), candidates, strict=True))
    images = classifier.palette.decode(token_ids)
    np.testing.assert_array_equal(classifier.vote(images, num_masks=5, seed=2, batch_size=4), voted)
    np.testing.assert_array_equal(classifier.vote(token_ids, num_masks=5, seed=2, batch_size=16), voted)
    assert (classifier.vote(token_ids, num_masks=1, seed=3, batch_size=4) != voted).any()


def test_a_vote_refuses_what_it_cannot_do(classifier):
    token_ids = random_tokens(4)
    autoregressive = igpt.ImageGPTImageClassifier(make_causal_lm(), num_classes=4)
    with pytest.raises(ValueError, match=r"`language_model` must be an ImageGPTMaskedLM .* Received: ImageGPTCausalLM"):
        autoregressive.vote(token_ids)
    with pytest.raises(ValueError, match=r"`num_masks` must be an integer of at least 1\. Received: num_masks=0"):
        classifier.vote(token_ids, num_masks=0)
    with pytest.raises(ValueError, match=r"`seed` must be an integer in 0…[0-9]+\. Received: seed=-1"):
        classifier.vote(token_ids, seed=-1)
    with pytest.raises(ValueError, match="`inputs` must lie in 0…15"):
        classifier.vote(token_ids + 16)
    without_palette = igpt.ImageGPTImageClassifier(make_masked_lm(), num_classes=4)
    with pytest.raises(ValueError, match="`inputs` must be token ids, since the model has no palette"):
        without_palette.vote(np.zeros((2, 4, 4, 3), "uint8"))


def test_weights_that_diverged_do_not_vote(classifier):
    kernel = to_numpy(classifier.class_head.kernel).copy()
    classifier.class_head.kernel.assign(np.full_like(kernel, np.nan))
    with pytest.raises(ValueError, match="NaN or infinity in 4 of 4 rows"):
        classifier.vote(random_tokens(4), batch_size=4)
    classifier.class_head.kernel.assign(kernel)
