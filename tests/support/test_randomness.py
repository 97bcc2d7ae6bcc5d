import numpy as np

from keras_igpt.support.randomness import permutation, random_bits, uniforms


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
