import copy
import threading

import numpy as np
import pytest

import keras_igpt as igpt
from keras_igpt.palette import color_palette as palette_module
from keras_igpt.palette import nearest_color as color_table
from keras_igpt.palette.nearest_color import build_color_table, nearest_colors, pack_colors, unpack_colors


def random_positions(count, seed=0):
    return np.random.default_rng(seed).uniform(0, 255, (count, 3))


def by_brute_force(packed, positions):
    """All distances at once, in the order of the definition."""
    colors = unpack_colors(packed, 3).astype("float64")
    return np.square(colors[:, None] - positions).sum(-1).argmin(-1)


@pytest.mark.parametrize("count", [1, 2, 17, 512])
@pytest.mark.parametrize("whole", [False, True])
def test_the_table_agrees_with_all_distances(count, whole):
    positions = random_positions(count, seed=count)
    if whole:  # where ties occur
        positions = np.unique(np.rint(positions), axis=0)
    table = build_color_table(positions)
    assert table.dtype == np.int16
    assert table.shape == (2**24,)
    packed = np.random.default_rng(1).integers(0, 2**24, 20_000).astype("int32")
    packed = np.concatenate([packed, [0, 2**24 - 1]]).astype("int32")
    np.testing.assert_array_equal(table[packed], nearest_colors(unpack_colors(packed, 3), positions))
    distances = np.square(unpack_colors(packed[:2000], 3).astype("float64")[:, None] - positions).sum(-1)
    chosen = np.take_along_axis(distances, table[packed[:2000]].astype(int)[:, None], 1)[:, 0]
    np.testing.assert_allclose(chosen, distances.min(-1), rtol=1e-12)


def test_ties_go_to_the_lower_index_everywhere():
    # Every colour of the plane between them is equally far from both.
    positions = np.array([[100.0, 0, 0], [200, 0, 0], [100, 200, 0], [200, 200, 0]])
    table = build_color_table(positions)
    green, blue = np.meshgrid(np.arange(256), np.arange(256))
    middle = pack_colors(np.stack([np.full_like(green, 150), green, blue], -1).astype("uint8"))
    np.testing.assert_array_equal(table[middle], np.where(green <= 100, 0, 2))


def test_crowded_palettes_are_exact_too():
    """All entries in one cell, where nothing can be ruled out, and far from most colours."""
    positions = 64 + random_positions(300) / 255 * 15
    table = build_color_table(positions)
    packed = np.random.default_rng(1).integers(0, 2**24, 3000).astype("int32")
    np.testing.assert_array_equal(table[packed], by_brute_force(packed, positions))


def test_grey_has_256_entries():
    positions = np.array([[3.5], [3.0], [200.0]])
    table = build_color_table(positions)
    assert table.tolist() == [int(np.argmin(np.abs(value - positions[:, 0]))) for value in range(256)]


def test_packing_is_undone():
    colors = np.random.default_rng(0).integers(0, 256, (5, 7, 3)).astype("uint8")
    assert pack_colors(np.array([[1, 2, 3]], "uint8")).tolist() == [0x010203]
    np.testing.assert_array_equal(unpack_colors(pack_colors(colors), 3), colors)


def test_small_data_need_no_table_and_large_data_get_the_same_tokens(monkeypatch):
    images = np.random.default_rng(0).integers(0, 256, (9, 16, 16, 3)).astype("uint8")
    palette = igpt.ColorPalette(np.random.default_rng(1).uniform(-1, 1, (40, 3)))
    built = []
    monkeypatch.setattr(
        palette_module,
        "build_color_table",
        lambda positions: built.append(1) or color_table.build_color_table(positions),
    )
    small = palette.encode(images)
    assert built == []
    monkeypatch.setattr(palette_module, "_COLORS_BEFORE_TABLE", 100)
    results = []
    threads = [threading.Thread(target=lambda: results.append(palette.encode(images))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert built == [1]
    for large in [*results, copy.deepcopy(palette).encode(images)]:
        np.testing.assert_array_equal(large, small)
