import numpy as np
import pytest

import keras_igpt as igpt
from keras_igpt import plotting
from keras_igpt.data import resize_images

pytest.importorskip("matplotlib")


def images(count=3, channels=3):
    return np.random.default_rng(0).integers(0, 256, (count, 4, 4, channels)).astype("uint8")


def pictures_in(figure):
    return [np.asarray(axes.images[0].get_array()) for axes in figure.axes if axes.images]


def test_palette_shows_every_color(palette, tmp_path):
    figure = plotting.plot_palette(palette)
    np.testing.assert_array_equal(pictures_in(figure)[0].reshape(-1, 3), palette.colors)
    figure.savefig(tmp_path / "palette.png")
    assert (tmp_path / "palette.png").stat().st_size > 1000


def test_grey_palettes_and_pictures_show_as_grey():
    palette = igpt.ColorPalette.from_colors(np.array([[0], [100], [255]], "uint8"))
    tiles = pictures_in(plotting.plot_palette(palette))[0].reshape(-1, 3)
    np.testing.assert_array_equal(tiles[:3], np.repeat(palette.colors, 3, axis=1))
    assert pictures_in(plotting.plot_grid(images(channels=1)))[0].shape == (4, 4, 3)


def test_quantization_shows_pairs(palette):
    originals = images()
    shown = pictures_in(plotting.plot_quantization(originals, palette))
    np.testing.assert_array_equal(shown[:3], originals)
    np.testing.assert_array_equal(shown[3:], palette.decode(palette.encode(originals)))


def test_completions_show_what_was_seen_drawn_and_there():
    originals = images(2)
    completions = np.stack([images(2), images(2)[::-1]], axis=1)
    shown = pictures_in(plotting.plot_completions(originals, completions, keep_rows=1))
    assert len(shown) == 2 * 4
    np.testing.assert_array_equal(shown[0][:1], originals[0, :1])
    assert (shown[0][1:] == 128).all()
    np.testing.assert_array_equal(shown[1], completions[0, 0])
    np.testing.assert_array_equal(shown[3], originals[0])


def test_originals_of_other_sizes_are_shown_as_the_model_saw_them():
    pytest.importorskip("PIL")
    small = images(2)
    large = small.repeat(3, axis=1).repeat(3, axis=2)
    wide = np.pad(large[1], [(0, 0), (6, 6), (0, 0)])
    completions = small[:, None]
    with pytest.warns(UserWarning, match=r"Pictures of 12x12, 24x12 pixels \(width x height\) were cropped"):
        figure = plotting.plot_completions([large[0], wide], completions, keep_rows=1)
    shown = pictures_in(figure)
    for given, seen, original in zip((large[0], wide), shown[::3], shown[2::3], strict=True):
        assert seen.shape == original.shape == (4, 4, 3)
        np.testing.assert_array_equal(seen[:1], original[:1])
        assert (seen[1:] == 128).all()
        np.testing.assert_array_equal(original, resize_images(given[None], 4)[0])


@pytest.mark.parametrize(
    ("originals", "completions", "keep", "argument"),
    [
        (images(2), images(3)[:, None], {"keep_rows": 1}, "originals"),
        (images(2, channels=1), images(2)[:, None], {"keep_rows": 1}, "originals"),
        (images(2), images(2), {"keep_rows": 1}, "completions"),
        (images(2), images(2)[:, None, :2], {"keep_rows": 1}, "completions"),
        (images(2), images(2)[:, None], {"keep_rows": 5}, "keep_rows"),
        (images(2), images(2)[:, None], {"keep_pixels": True}, "keep_pixels"),
    ],
)
def test_completions_that_do_not_fit_are_refused(originals, completions, keep, argument):
    with pytest.raises(ValueError, match=f"`{argument}` must .*Received: "):
        plotting.plot_completions(originals, completions, **keep)


def test_curves_hold_the_numbers():
    (axes,) = plotting.plot_depth_curves({"model": {0: 0.5, 2: 0.7, 1: 0.75}}, {"raw pixels": 0.4}, {"model": 2}).axes
    curve, best, reference = axes.lines
    np.testing.assert_allclose(curve.get_xydata(), [[0, 50], [1, 75], [2, 70]])
    np.testing.assert_allclose(best.get_xydata(), [[2, 70]])
    np.testing.assert_allclose(reference.get_ydata(), [40, 40])
    (axes,) = plotting.plot_loss_curves({"training": [3.0, 2.0], "validation": [3.1, 2.5]}).axes
    np.testing.assert_allclose(axes.lines[1].get_xydata(), [[1, 3.1], [2, 2.5]])
    assert axes.get_ylabel() == "loss (nats per token)"


def test_accuracies_with_intervals_have_bands():
    def around(value):
        return igpt.Interval(value, value - 0.01, value + 0.02)

    curve = {depth: around(value) for depth, value in ((0, 0.5), (1, 0.75))}
    (axes,) = plotting.plot_depth_curves({"model": curve, "one depth": {1: around(0.6)}}, {"pixels": around(0.4)}).axes
    band, bar = axes.collections
    assert {49, 52, 74, 77} <= set(np.round(band.get_paths()[0].vertices[:, 1], 6))
    np.testing.assert_allclose(bar.get_segments()[0][:, 1], [59, 62])
    np.testing.assert_allclose(axes.patches[0].get_bbox().intervaly, [39, 42])


def test_validation_is_told_from_test():
    def around(value):
        return igpt.Interval(value, value - 0.02, value + 0.02)

    curves = {name: {0: around(0.5), 1: around(0.6)} for name in ("validation", "test")}
    (axes,) = plotting.plot_depth_curves(curves, {"raw pixels": around(0.4)}).axes
    lines = {line.get_label(): line for line in axes.lines}
    assert lines["validation"].get_linestyle() != lines["test"].get_linestyle()
    bars, band = axes.collections
    assert len(bars.get_segments()) == 2
    assert len(band.get_paths()) == 1


def test_one_depth_and_one_epoch_can_be_read():
    curves = {name: {7: igpt.Interval(0.5, 0.4, 0.6)} for name in ("validation", "test")}
    (axes,) = plotting.plot_depth_curves(curves).axes
    assert [tick for tick in axes.get_xticks() if 6.6 < tick < 7.4] == [7]
    first, second = (bar.get_segments()[0][0, 0] for bar in axes.collections)
    assert first != second
    (axes,) = plotting.plot_loss_curves({"training": [3.0], "validation": [3.1]}).axes
    assert [line.get_marker() for line in axes.lines] == ["o", "o"]


def test_many_curves_of_one_depth_are_inside_the_axes():
    (axes,) = plotting.plot_depth_curves({f"model {number}": {7: 0.5} for number in range(9)}).axes
    left, right = axes.get_xlim()
    places = [place for line in axes.lines for place in line.get_xdata()]
    assert len(set(places)) == 9
    assert left < min(places) <= max(places) < right


def test_lines_look_different_when_the_colours_come_again():
    def looks(lines):
        return {(line.get_color(), line.get_marker(), line.get_linestyle()) for line in lines}

    names = [f"model {number}" for number in range(16)]
    (axes,) = plotting.plot_depth_curves({name: {0: 0.5, 1: 0.6} for name in names}, dict.fromkeys(names, 0.4)).axes
    assert len(looks(axes.lines)) == 32
    (axes,) = plotting.plot_loss_curves({name: [3.0, 2.0] for name in names}).axes
    assert len(looks(axes.lines)) == 16
    losses = {name: {1_000: 3.0, 10_000: 2.0} for name in names}
    (axes,) = plotting.plot_scaling(losses, losses, 1.5).axes
    assert len(looks(line for line in axes.lines if line.get_label() in names)) == 16


def test_what_cannot_be_drawn_is_refused(palette):
    one = images(1)[0]
    for draw in (
        plotting.plot_grid,
        lambda picture: plotting.plot_quantization(picture, palette),
        lambda picture: plotting.plot_surprise(picture, np.zeros((4, 4))),
    ):
        with pytest.raises(ValueError, match=r"`images` must have shape \(B, H, W, C\)"):
            draw(one)
    with pytest.raises(ValueError, match=r"`curves` must have at least one depth each\. Received: 'model' with none"):
        plotting.plot_depth_curves({"model": {}})
    with pytest.raises(ValueError, match=r"`chosen` must be depths of the curves. Received: 'model': 3, of \[0, 1\]"):
        plotting.plot_depth_curves({"model": {0: 0.5, 1: 0.6}}, chosen={"model": 3})


def test_a_single_finite_loss_can_be_seen():
    (axes,) = plotting.plot_loss_curves({"a": [None, 3.0, np.nan], "b": [3.0, 2.0, np.nan]}).axes
    assert [line.get_marker() for line in axes.lines] == ["o", "None"]


def test_numbers_can_be_read_on_every_colour():
    (axes, _) = plotting.plot_depth_similarity([[1.0, np.nan], [0.2, 1.0]]).axes
    assert [text.get_color() for text in axes.texts] == ["black", "black", "white", "black"]


def test_many_depths_have_few_names():
    (axes, _) = plotting.plot_depth_similarity(np.eye(49)).axes
    names = [text.get_text() for text in axes.get_xticklabels()]
    assert names[:3] == ["0", "4", "8"]
    assert len(names) == 13


def test_rows_and_grid():
    wide = {"a strip": np.zeros((4, 40, 3), "uint8"), "another": np.ones((4, 40, 3), "uint8")}
    assert [axes.get_title(loc="left") for axes in plotting.plot_rows(wide).axes] == list(wide)
    assert len(pictures_in(plotting.plot_grid(images(5), columns=3))) == 5
    assert len(plotting.plot_grid(images(2)).axes) == 2


def test_completions_of_a_raster_prefix_show_its_pixels():
    originals = images(1)
    shown = pictures_in(plotting.plot_completions(originals, originals[:, None], keep_pixels=6))[0].reshape(16, 3)
    np.testing.assert_array_equal(shown[:6], originals.reshape(16, 3)[:6])
    assert (shown[6:] == 128).all()
    for arguments in ({}, {"keep_rows": 1, "keep_pixels": 4}):
        with pytest.raises(ValueError, match="`keep_rows` or `keep_pixels`"):
            plotting.plot_completions(originals, originals[:, None], **arguments)


def test_surprise_is_on_one_scale():
    nats = np.random.default_rng(0).random((3, 4, 4))
    nats[0, 0, 0], nats[1, 2, 3] = np.nan, 7.0
    figure = plotting.plot_surprise(images(), nats)
    maps = [axes.images[0] for axes in figure.axes if axes.images][3:6]
    np.testing.assert_array_equal(np.stack([np.ma.filled(shown.get_array(), np.nan) for shown in maps]), nats)
    assert {shown.get_clim() for shown in maps} == {(0.0, 7.0)}
    with pytest.raises(ValueError, match="`surprise`"):
        plotting.plot_surprise(images(), nats[:2])


@pytest.mark.parametrize("shifted", [True, False])
def test_attention_is_where_the_pixels_are(shifted):
    maps = np.random.default_rng(0).random((2, 16, 16))
    figure = plotting.plot_attention(images(1)[0], maps, pixel=(2, 1), shifted=shifted)
    shown = [axes.images[0].get_array() for axes in figure.axes][1:]
    for head in range(2):
        # Pixel p is what position p + 1 holds.
        expected = [*maps[head, 9, 1:], 0] if shifted else maps[head, 9]
        np.testing.assert_array_equal(np.ravel(shown[head]), expected)
    for arguments, name in (((images(1)[0], maps[:, :4], (0, 0)), "maps"), ((images(1)[0], maps, (4, 0)), "pixel")):
        with pytest.raises(ValueError, match=f"`{name}`"):
            plotting.plot_attention(*arguments)


def test_an_animation_writes_pictures_pixel_by_pixel(tmp_path):
    image = pytest.importorskip("PIL.Image")
    pictures = np.array([0, 255], "uint8")[np.random.default_rng(0).integers(0, 2, (2, 4, 4, 1))]
    plotting.save_animation(pictures, tmp_path / "a.gif", keep_pixels=4, frames=4, scale=2)
    with image.open(tmp_path / "a.gif") as gif:
        assert gif.n_frames == 5
        for frame, there in enumerate((4, 7, 10, 13, 16)):
            gif.seek(frame)
            strip = np.asarray(gif.convert("L"))[::2, ::2]
            assert strip.shape == (4, 9)
            for picture, left in zip(pictures, (0, 5), strict=True):
                written = np.where(np.arange(16) < there, picture.ravel(), 128).reshape(4, 4)
                np.testing.assert_allclose(strip[:, left : left + 4], written, atol=1)
    for arguments in ({"keep_pixels": 16}, {"frames": 0}, {"scale": 0}, {"seconds": 0}, {"columns": 0}):
        with pytest.raises(ValueError, match=f"`{next(iter(arguments))}`"):
            plotting.save_animation(pictures, tmp_path / "b.gif", **arguments)


def test_an_animation_shows_all_pictures_in_colors_that_stay(tmp_path):
    image = pytest.importorskip("PIL.Image")
    colors = np.random.default_rng(0).integers(0, 256, (200, 3))
    pictures = colors[np.random.default_rng(1).integers(0, 200, (16, 16, 16))].astype("uint8")
    plotting.save_animation(pictures, tmp_path / "a.gif", columns=5)
    assert (tmp_path / "a.gif").stat().st_size < 2_000_000
    with image.open(tmp_path / "a.gif") as gif:
        assert gif.size == (8 * 84, 8 * 67)  # four rows, the last with one picture
        for frame in (20, 64):
            gif.seek(frame)
            sheet = np.asarray(gif.convert("RGB"))[::8, ::8]
            for number, picture in enumerate(pictures):
                row, column = divmod(number, 5)
                shown = sheet[17 * row : 17 * row + 16, 17 * column : 17 * column + 16]
                np.testing.assert_array_equal(shown, plotting.hide_pixels(picture, 4 * frame))
        assert (sheet[52:, 17:] == 128).all()


def test_an_irreducible_loss_far_below_the_runs_does_not_press_them_together():
    losses = {"width 8": {1_000: 3.0, 10_000: 2.0}}
    lowest = [plotting.plot_scaling(losses, losses, irreducible).axes[0].get_ylim()[0] for irreducible in (1.5, 0.1)]
    assert lowest[0] < 1.5 < lowest[1] < 2
