import tracemalloc

import numpy as np
import pytest

import keras_igpt as igpt
from keras_igpt.palette import color_palette
from keras_igpt.palette import nearest_color as color_table


def random_images(count=6, size=8, channels=3, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, size, size, channels)).astype("uint8")


def brute_force(images, colors):
    pixels = images.reshape(-1, images.shape[-1]).astype("float64")
    distances = ((pixels[:, None] - colors.astype("float64")[None]) ** 2).sum(-1)
    return distances.argmin(-1).reshape(len(images), -1)


@pytest.mark.parametrize("num_colors", [1, 7, 64])
def test_encode_is_the_exact_nearest_color(num_colors):
    images = random_images()
    palette = igpt.ColorPalette.fit(images, num_colors)
    token_ids = palette.encode(images)
    assert token_ids.dtype == np.int32
    np.testing.assert_array_equal(token_ids, brute_force(images, palette.colors))


def test_encode_agrees_for_float_centroids_and_odd_counts():
    centroids = np.random.default_rng(1).uniform(-1, 1, (33, 3)).astype("float32")
    images = np.random.default_rng(2).integers(0, 256, (1, 1, 2**15 + 1, 3)).astype("uint8")
    positions = (centroids.astype("float64") + 1) * 127.5
    np.testing.assert_array_equal(igpt.ColorPalette(centroids).encode(images), brute_force(images, positions))


def test_encode_in_several_chunks(monkeypatch):
    images = random_images(seed=3)
    palette = igpt.ColorPalette.fit(images, 16)
    expected = igpt.ColorPalette(palette.centroids).encode(images)
    monkeypatch.setattr(color_table, "_PAIRS_PER_CHUNK", 100)
    np.testing.assert_array_equal(igpt.ColorPalette(palette.centroids).encode(images), expected)


def test_a_tie_goes_to_the_lower_index():
    palette = igpt.ColorPalette.from_colors(np.array([[10], [20], [0]], "uint8"))
    assert palette.encode(np.array([[[15], [5]]], "uint8")).tolist() == [0, 0]


def test_fit_repeats_for_a_seed_and_has_distinct_colors():
    images = random_images(count=20)
    first, again = (igpt.ColorPalette.fit(images, 48, seed=3) for _ in range(2))
    assert first == again
    assert first != igpt.ColorPalette.fit(images, 48, seed=4)
    assert len(np.unique(first.colors, axis=0)) == 48


def test_fit_recovers_the_colors_that_there_are():
    colors = np.array([[0, 0, 0], [255, 0, 0], [9, 200, 77]], "uint8")
    images = colors[np.random.default_rng(0).integers(0, 3, (2, 4, 4))]
    palette = igpt.ColorPalette.fit(images, 3)
    assert {tuple(color) for color in palette.colors.tolist()} == {tuple(color) for color in colors.tolist()}
    np.testing.assert_array_equal(palette.decode(palette.encode(images)), images)


def test_fit_gives_frequent_colors_their_due():
    shades = np.repeat(np.array([0, 20, 255], "uint8"), [1000, 10, 10])
    palette = igpt.ColorPalette.fit(shades.reshape(1, 30, 34, 1), 2)
    assert sorted(palette.colors[:, 0].tolist()) == [0, 255]


def test_fit_is_as_close_as_k_means():
    cluster = pytest.importorskip("sklearn.cluster")
    images = (255 * np.random.default_rng(0).beta(0.5, 2, (20, 16, 16, 3))).astype("uint8")
    pixels = images.reshape(-1, 3).astype("float64")
    best = cluster.KMeans(16, n_init=3, random_state=0).fit(pixels).inertia_
    palette = igpt.ColorPalette.fit(images, 16)
    found = np.square(palette.decode(palette.encode(images)).astype("float64") - images).sum()
    assert found < 1.03 * best


def test_fit_fills_up_colors_that_rounding_merges():
    # 18 colours in two tight groups: 17 centres cannot all stay apart after rounding without being reseeded.
    tight = np.array([[[value, value + shift, 0] for shift in range(3)] for value in (0, 1, 2, 250, 251, 252)], "uint8")
    palette = igpt.ColorPalette.fit(tight[None], 17)
    assert palette.num_colors == len(np.unique(palette.colors, axis=0)) == 17


def test_fit_looks_at_no_more_pixels_than_asked():
    images = random_images(count=40)
    assert igpt.ColorPalette.fit(images, 8, max_pixels=500) != igpt.ColorPalette.fit(images, 8)


def test_decode_inverts_encode_on_palette_colors():
    palette = igpt.ColorPalette.fit(random_images(), 32)
    token_ids = np.arange(32).reshape(2, 16)
    np.testing.assert_array_equal(palette.encode(palette.decode(token_ids)), token_ids)
    assert palette.decode(token_ids).shape == (2, 4, 4, 3)
    assert palette.decode(token_ids, image_shape=(2, 8)).shape == (2, 2, 8, 3)


def test_save_and_load_keep_the_official_format(tmp_path):
    palette = igpt.ColorPalette.fit(random_images(), 24)
    palette.save(tmp_path / "palette.npy")
    stored = np.load(tmp_path / "palette.npy", allow_pickle=False)
    assert stored.dtype == np.float32
    assert stored.shape == (24, 3)
    np.testing.assert_array_equal(np.rint(127.5 * (stored + 1)).astype("uint8"), palette.colors)
    assert igpt.ColorPalette.load(tmp_path / "palette.npy") == palette
    assert [file.name for file in tmp_path.iterdir()] == ["palette.npy"]


def test_load_reads_centroids_between_whole_colors(tmp_path):
    centroids = np.random.default_rng(5).uniform(-1, 1, (512, 3))
    np.save(tmp_path / "centers.npy", centroids)
    palette = igpt.ColorPalette.load(tmp_path / "centers.npy")
    np.testing.assert_array_equal(palette.colors, np.rint(127.5 * (centroids.astype("float32") + 1)).astype("uint8"))


def test_load_refuses_pickles_and_other_files(tmp_path):
    np.save(tmp_path / "pickle.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    (tmp_path / "text.npy").write_text("no array")
    for name in ("pickle.npy", "text.npy"):
        with pytest.raises(ValueError, match=r"`path` must be a \.npy file"):
            igpt.ColorPalette.load(tmp_path / name)


def claim(path, shape, descr="<f4", data=b""):
    """Writes a .npy file whose header may say anything."""
    header = str({"descr": descr, "fortran_order": False, "shape": shape}).encode()
    header += b" " * (117 - len(header)) + b"\n"
    path.write_bytes(b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + data)


@pytest.mark.parametrize(
    "fault", ["archive", "cut archive", "nothing", "huge", "beyond integers", "negative", "open bracket", "short"]
)
def test_files_that_are_no_palette_are_named_and_take_no_memory(tmp_path, fault):
    path = tmp_path / "palette.npy"
    if "archive" in fault:
        np.savez(tmp_path / "palette.npz", np.zeros((3, 3)))
        content = (tmp_path / "palette.npz").read_bytes()
        path.write_bytes(content[:-10] if fault == "cut archive" else content)
    elif fault == "nothing":
        path.touch()
    elif fault == "open bracket":
        claim(path, (2, 3))
        path.write_bytes(path.read_bytes().replace(b"}", b"("))
    else:
        # What is claimed is more than any machine has, and yet less than NumPy's own limit.
        shapes = {"huge": (10**15, 3), "beyond integers": (10**30, 3), "negative": (-1, 3), "short": (2, 3)}
        claim(path, shapes[fault], data=bytes(20))
    with pytest.raises(ValueError, match=r"`path` must be a \.npy file.*Received: .*palette\.npy") as raised:
        igpt.ColorPalette.load(path)
    assert "\n" not in str(raised.value)


def test_grey_images():
    images = random_images(channels=1)
    palette = igpt.ColorPalette.fit(images, 16)
    assert palette.num_channels == 1
    assert palette.colors.shape == (16, 1)
    np.testing.assert_array_equal(palette.encode(images), brute_force(images, palette.colors))
    assert palette.decode(palette.encode(images)).shape == images.shape
    assert (np.diff(palette.colors[:, 0].astype(int)) > 0).all()


def test_grey_digits_survive_sixteen_shades():
    datasets = pytest.importorskip("sklearn.datasets")
    digits = (datasets.load_digits().images * 15.9).astype("uint8")[..., None]
    palette = igpt.ColorPalette.fit(digits, 16)
    report = palette.quantization_report(digits)
    assert report.peak_signal_to_noise_ratio > 30
    assert report.used_colors == 16


def test_quantization_report_measures_what_is_lost():
    palette = igpt.ColorPalette.from_colors(np.array([[0], [255]], "uint8"))
    report = palette.quantization_report(np.array([[[3], [255], [251], [0]]], "uint8"))
    assert report.root_mean_squared_error == pytest.approx(np.sqrt((9 + 16) / 4))
    assert report.peak_signal_to_noise_ratio == pytest.approx(10 * np.log10(255**2 * 4 / 25))
    assert (report.largest_error, report.num_pixels, report.used_colors) == (4.0, 4, 2)
    assert "PSNR" in str(report)
    lossless = palette.quantization_report(np.array([[[0], [255]]], "uint8"))
    assert lossless.peak_signal_to_noise_ratio == float("inf")


def test_encoding_takes_little_more_memory_than_its_result():
    palette = igpt.ColorPalette.from_colors(np.array([[0], [255]], "uint8"))
    images = np.random.default_rng(0).integers(0, 2, (2, 1024, 1024, 1)).astype("uint8") * 255
    tracemalloc.start()
    token_ids = palette.encode(images)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    np.testing.assert_array_equal(token_ids, images.reshape(2, -1) // 255)
    assert peak < 4 * token_ids.nbytes


@pytest.mark.parametrize("with_table", [False, True])
def test_encoding_part_by_part_gives_the_same(monkeypatch, with_table):
    images = random_images(5)[:, :, ::-1]
    palette = igpt.ColorPalette.fit(images, 7)
    expected = palette.encode(images)
    monkeypatch.setattr(color_palette, "_PIXELS_AT_ONCE", 9)
    monkeypatch.setattr(color_palette, "_COLORS_BEFORE_TABLE", 100 if with_table else 1 << 16)
    token_ids = palette.encode(images)
    assert (palette._table is not None) == with_table
    assert token_ids.dtype == expected.dtype
    np.testing.assert_array_equal(token_ids, expected)
    assert palette.encode(images[0]).shape == (64,)


def test_colors_of_several_lengths_are_named():
    with pytest.raises(ValueError, match="`centroids` must be one array"):
        igpt.ColorPalette([[0.1, 0.2, 0.3], [0.1]])
    with pytest.raises(ValueError, match="`colors` must be one array"):
        igpt.ColorPalette.from_colors([[1, 2, 3], [1]])
