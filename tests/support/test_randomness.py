import numpy as np
import pytest

from keras_igpt.support.randomness import permutation, random_bits, shuffled, uniforms


def reference_bits(state, *keys):
    """The same by Python's integers."""
    mask = 2**64 - 1
    for key in keys:
        state = (state + 0x9E3779B97F4A7C15 + key) & mask
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & mask
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & mask
        state ^= state >> 31
    return state


def test_bits_are_what_they_have_always_been():
    crc_of_order = 0xF5299398
    assert int(random_bits("order", 3, 5, 7)) == reference_bits(crc_of_order, 3, 5, 7)
    bits = random_bits("order", 3, np.arange(4)[:, None], np.arange(2**33, 2**33 + 3))
    assert bits.shape == (4, 3)
    assert int(bits[2, 1]) == reference_bits(crc_of_order, 3, 2, 2**33 + 1)


def test_uniforms_are_uniform_and_neighbours_independent():
    draws = uniforms("test", 0, np.arange(400)[:, None], np.arange(400))
    counts = np.histogram(draws, 100, (0, 1))[0]
    assert ((counts - 1600) ** 2 / 1600).sum() < 160  # 99 degrees of freedom: beyond the 99.9th percentile
    for shifted in (draws[1:], draws[:, 1:]):
        rest = draws[: len(shifted), : shifted.shape[1]]
        assert abs(np.corrcoef(rest.ravel(), shifted.ravel())[0, 1]) < 0.01
    assert (
        abs(np.corrcoef(draws.ravel(), uniforms("other", 0, np.arange(400)[:, None], np.arange(400)).ravel())[0, 1])
        < 0.01
    )


def test_a_permutation_has_all_and_changes_with_its_keys():
    orders = [permutation(1000, "order", seed, epoch) for seed, epoch in ((0, 0), (0, 1), (1, 0))]
    for order in orders:
        np.testing.assert_array_equal(np.sort(order), np.arange(1000))
    assert len({order.tobytes() for order in orders}) == 3


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 16, 17, 1000, 1024, 70_001])
def test_a_shuffle_by_place_has_all_once(count):
    np.testing.assert_array_equal(np.sort(shuffled(np.arange(count), count, "order", 3, 5)), np.arange(count))


def test_a_shuffle_by_place_is_what_it_has_always_been():
    assert shuffled([[0, 1], [2, 99_999_999]], 100_000_000, "order", 3, 5).tolist() == [
        [8485542, 74815634],
        [23260636, 69336619],
    ]
    assert shuffled([], 10, "order").shape == (0,)


def test_a_shuffle_by_place_is_as_random_as_a_sorted_one():
    count = 70_000
    orders = np.stack([shuffled(np.arange(count), count, "order", 0, epoch) for epoch in range(20)])
    # Standardised: a sum over all places is about normal, with variance 1.
    values = (orders - (count - 1) / 2) / count * np.sqrt(12)
    scale = np.sqrt(count)
    assert np.abs((values[:, 1:] * values[:, :-1]).sum(1)).max() / scale < 4
    assert np.abs((values[1:] * values[:-1]).sum(1)).max() / scale < 4
    assert np.abs((values * values[:, ::-1]).sum(1)).max() / scale < 4 * np.sqrt(2)
    assert abs((values.mean(0) * np.sqrt(20)).var() - 1) < 0.03
    differences = np.diff(orders, axis=1) % count
    counts = np.histogram(differences, 100)[0]
    assert ((counts - differences.size / 100) ** 2 / (differences.size / 100)).sum() < 160
    assert 1 < (differences == 1).sum() < 45
