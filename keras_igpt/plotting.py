"""Matplotlib figures of palettes, losses, probes, completions and attention, and an animation of sampling.

Example:
```python
plot_palette(palette).savefig("palette.png")
```
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from keras_igpt.data.examples import check_set_of_images
from keras_igpt.data.image_files import import_pillow
from keras_igpt.data.inputs import pictures_of_size
from keras_igpt.palette.color_palette import ColorPalette, UInt8Images, check_images
from keras_igpt.support.checks import check_integer, check_number

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# The grey of hidden pixels.
_HIDDEN = 128
# Okabe and Ito's colours, which all kinds of colour vision tell apart.
_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
# When the colours are used up, lines are told apart by these.
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_DASHES = ("--", "-.", ":")


@runtime_checkable
class WithInterval(Protocol):
    """A number with its interval, such as `keras_igpt.Interval`."""

    @property
    def estimate(self) -> float:
        """The number."""

    @property
    def low(self) -> float:
        """Lower end of the interval."""

    @property
    def high(self) -> float:
        """Upper end of the interval."""


def plot_palette(palette: ColorPalette) -> Figure:
    """Draws the colours of a palette as tiles, in token order from the upper left."""
    square = int(np.ceil(np.sqrt(palette.num_colors)))
    # Full rows if some width near the square root gives them.
    columns = next((width for width in range(square, 2 * square + 1) if palette.num_colors % width == 0), square)
    rows = -(-palette.num_colors // columns)
    tiles = np.full((rows * columns, 3), 255, np.uint8)
    tiles[: palette.num_colors] = palette.colors  # a grey palette has one channel, which fills all three
    figure = _figure(0.3 * columns + 0.4, 0.3 * rows + 0.7)
    axes = figure.subplots()
    _show(axes, tiles.reshape(rows, columns, 3))
    axes.set_title(f"Palette of {palette.num_colors} colours", fontsize=10)
    return figure


def plot_quantization(images: npt.ArrayLike, palette: ColorPalette) -> Figure:
    """Draws images, uint8 `(B, H, W, C)`, above their quantised versions."""
    originals = check_set_of_images(images)
    approximations = palette.decode(palette.encode(originals), originals.shape[1:3])
    figure = _figure(1.1 * len(originals) + 1.2, 2.6)
    grid = figure.subplots(2, len(originals), squeeze=False)
    for column, pair in enumerate(zip(originals, approximations, strict=True)):
        for row, image in enumerate(pair):
            _show(grid[row, column], image)
    _name_rows(grid, ("original", f"{palette.num_colors} colours"))
    return figure


def plot_loss_curves(curves: Mapping[str, Sequence[float]], label: str = "loss (nats per token)") -> Figure:
    """Draws losses by epoch, one line a run.

    Args:
        curves: losses by epoch (`History.history["loss"]`), by name. Names with the same text before a comma share a
            colour, and validation is dashed: `"BERT, training"` and `"BERT, validation"`. From the eighth run on
            lines have markers, as their colours come again.
        label: str. Label of the vertical axis.

    Example:
    ```python
    plot_loss_curves({"training": history["loss"], "validation": history["val_loss"]})
    ```
    """
    figure = _figure(6.4, 4.0)
    axes = figure.subplots()
    runs = list(dict.fromkeys(name.partition(",")[0] for name in curves))
    for name, losses in curves.items():
        dashes = "--" if name.endswith("validation") else "-"
        number = runs.index(name.partition(",")[0])
        # One loss makes no line. Those of a search are None where they are not finite.
        marked = number >= len(_COLORS) or np.isfinite(np.asarray(losses, np.float64)).sum() == 1
        marker = _marker(number) if marked else None
        epochs = np.arange(1, len(losses) + 1)
        axes.plot(epochs, losses, dashes, marker=marker, markersize=4, color=_color(number), label=name)
    _whole_numbers(axes)
    _finish(axes, "epoch", label)
    return figure


def plot_depth_curves(
    curves: Mapping[str, Mapping[int, float | WithInterval]],
    references: Mapping[str, float | WithInterval] | None = None,
    chosen: Mapping[str, int] | None = None,
) -> Figure:
    """Draws probe accuracy against depth, one line a model, and references without a depth as horizontal lines.

    Args:
        curves: accuracy in 0…1 by depth (`LinearProbe.score`), by the name of the model; with an `Interval` in place of
            a number, the interval is drawn as a band, or as bars where a curve has one depth. A curve whose name ends
            in "validation" is dotted and has bars, so that it can lie on that of test.
        references: accuracy in 0…1 or `Interval` by name, such as that of raw pixels.
        chosen: depth that validation chose (`probe.report.best_layer`), by the name of the model; it is ringed.

    Raises:
        ValueError: if a curve has no depth, or not the chosen one.

    Example:
    ```python
    plot_depth_curves({"autoregressive": probe.score(test)}, {"raw pixels": 0.41})
    measured = probe.report.final_on_test.measured
    plot_depth_curves({"autoregressive": {depth: accuracy.interval for depth, accuracy in measured.items()}})
    ```

    Reference:
        [Chen et al., 2020](https://cdn.openai.com/papers/Generative_Pretraining_from_Pixels_V2.pdf), figure 2
    """
    references, chosen = references or {}, chosen or {}
    figure = _figure(6.4, 4.2)
    axes = figure.subplots()
    shift, ends = 0.0, []
    for number, (name, accuracies) in enumerate(curves.items()):
        color, depths = _color(number), sorted(accuracies)
        if not depths:
            raise ValueError(f"`curves` must have at least one depth each. Received: {name!r} with none")
        if name in chosen and chosen[name] not in depths:
            raise ValueError(f"`chosen` must be depths of the curves. Received: {name!r}: {chosen[name]}, of {depths}")
        values, low, high = np.transpose([_percentages(accuracies[depth]) for depth in depths])
        held_out = name.endswith("validation")
        with_bars = held_out or len(depths) == 1
        places = np.array(depths) + shift * with_bars
        ends += [places[0], places[-1]]
        shift += 0.1 * with_bars  # so that no bar hides another
        line, inside = (":", "white") if held_out else ("-", color)
        marker = _marker(number)
        axes.plot(places, values, line, color=color, marker=marker, markerfacecolor=inside, markersize=4, label=name)
        if not with_bars:
            axes.fill_between(places, low, high, color=color, alpha=0.2, linewidth=0)
        elif (low < high).any():
            axes.errorbar(
                places, values, [values - low, high - values], fmt="none", color=color, capsize=3, linewidth=1
            )
        if name in chosen:
            best = depths.index(chosen[name])
            axes.plot([places[best]], [values[best]], "o", color=color, markersize=10, fillstyle="none")
    for number, (name, accuracy) in enumerate(references.items(), len(curves)):
        color, dashes = _color(number), _DASHES[number // len(_COLORS) % len(_DASHES)]
        value, lowest, highest = _percentages(accuracy)
        axes.axhline(value, color=color, linestyle=dashes, label=name)
        axes.axhspan(lowest, highest, color=color, alpha=0.1, linewidth=0)
    if ends:
        axes.set_xlim(min(ends) - 0.4, max(ends) + 0.4)
    _whole_numbers(axes)
    _finish(axes, "depth of the features (0 = embeddings)", "accuracy of a linear probe (%)")
    return figure


def _percentages(accuracy: float | WithInterval) -> tuple[float, float, float]:
    """Returns an accuracy and the ends of its interval, which are itself where none is given, in percent."""
    if isinstance(accuracy, WithInterval):
        return 100 * accuracy.estimate, 100 * accuracy.low, 100 * accuracy.high
    return 100 * accuracy, 100 * accuracy, 100 * accuracy


def plot_depth_similarity(similarity: npt.ArrayLike, depths: Sequence[int] | None = None) -> Figure:
    """Draws how much every two depths resemble each other, with numbers where there are at most twelve depths.

    Args:
        similarity: float array `(depths, depths)`, of `depth_similarity`.
        depths: sequence of int. The depths; 0, 1, … by default.

    Returns:
        A figure.

    Raises:
        ValueError: if the array is not square, or has not as many rows as there are depths.
    """
    values = np.asarray(similarity)
    names = [str(depth) for depth in (range(len(values)) if depths is None else depths)]
    if values.ndim != 2 or values.shape != (len(names), len(names)):
        raise ValueError(
            f"`similarity` must have shape (depths, depths) for {len(names)} depths. Received: shape {values.shape}"
        )
    figure = _figure(5.0, 4.2)
    axes = figure.subplots()
    # Depths of one network are alike: a scale from 0 would hide how much.
    known = values[np.isfinite(values)]
    lowest = min(0.9, np.floor(10 * known.min()) / 10) if len(known) else 0.0
    shown = axes.imshow(values, cmap="magma", vmin=lowest, vmax=1.0, origin="lower")
    if len(names) <= 12:
        for (row, column), value in np.ndenumerate(values):
            # NaN is drawn white.
            color = "white" if value <= (lowest + 1) / 2 else "black"
            axes.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=7, color=color)
    # More would run into each other.
    ticks = range(0, len(names), -(-len(names) // 13))
    axes.set_xticks(ticks, names[:: ticks.step])
    axes.set_yticks(ticks, names[:: ticks.step])
    axes.set_xlabel("depth")
    axes.set_ylabel("depth")
    figure.colorbar(shown, ax=axes, label="linear CKA")
    return figure


def plot_scaling(
    losses: Mapping[str, Mapping[int, float]], fitted: Mapping[str, Mapping[int, float]], irreducible_loss: float
) -> Figure:
    """Draws validation losses against tokens trained on, a colour a size, and the curves of a law fitted to them.

    Args:
        losses: nats per token by number of tokens, by the name of the size.
        fitted: the law's losses by number of tokens, by the name of the size.
        irreducible_loss: float. What the law says no model goes below.

    Returns:
        A figure.
    """
    figure = _figure(6.4, 4.2)
    axes = figure.subplots()
    for number, (name, points) in enumerate(losses.items()):
        color = _color(number)
        axes.plot(list(points), list(points.values()), _marker(number), color=color, label=name)
        axes.plot(list(fitted[name]), list(fitted[name].values()), "-", color=color, linewidth=1)
    bottom, top = axes.get_ylim()
    axes.axhline(irreducible_loss, color="grey", linestyle=":", label=f"irreducible loss {irreducible_loss:.3f}")
    if irreducible_loss < bottom - (top - bottom):
        # Named, but out of sight: so far below the runs, it would press them together.
        axes.set_ylim(bottom, top)
    axes.set_xscale("log")
    _finish(axes, "tokens trained on", "validation loss (nats per token)")
    return figure


def plot_completions(
    originals: npt.ArrayLike,
    completions: npt.ArrayLike,
    keep_rows: int | None = None,
    keep_pixels: int | None = None,
) -> Figure:
    """Draws, a row an image: what the model saw, its completions, the original.

    Args:
        originals: images as `ImageGPTCausalLM.complete` takes them; those of another size are shown as the model saw
            them, cropped to their centre squares and resized, with a `UserWarning`.
        completions: uint8 array `(B, num_samples, S, S, C)`, of `ImageGPTCausalLM.complete`.
        keep_rows: int. Rows the model saw.
        keep_pixels: int. Pixels the model saw, in raster order; instead of `keep_rows`.

    Raises:
        ValueError: if not exactly one of `keep_rows` and `keep_pixels` is given, or the images do not fit.
        ImportError: if images have to be resized and Pillow is absent.

    Example:
    ```python
    plot_completions(images, lm.complete(images, keep_rows=16, num_samples=4), keep_rows=16)
    ```

    Reference:
        [Chen et al., 2020](https://cdn.openai.com/papers/Generative_Pretraining_from_Pixels_V2.pdf), figure 1
    """
    if (keep_rows is None) == (keep_pixels is None):
        raise ValueError(
            "`keep_rows` or `keep_pixels` must be given, and not both. "
            f"Received: keep_rows={keep_rows}, keep_pixels={keep_pixels}"
        )
    samples = check_images(completions, "completions")
    if samples.ndim != 5 or samples.shape[2] != samples.shape[3]:
        raise ValueError(f"`completions` must have shape (B, num_samples, S, S, C). Received: shape {samples.shape}")
    size, channels = samples.shape[3:]
    pictures = pictures_of_size(originals, size, channels, name="originals")
    if len(pictures) != len(samples):
        raise ValueError(
            f"`originals` must be as many pictures as `completions` has, {len(samples)}. Received: {len(pictures)}"
        )
    if keep_rows is None:
        kept = check_integer("keep_pixels", keep_pixels, 0, size**2)
    else:
        kept = check_integer("keep_rows", keep_rows, 0, size) * size
    columns = samples.shape[1] + 2
    figure = _figure(1.0 * columns, 1.0 * len(pictures) + 0.4)
    grid = figure.subplots(len(pictures), columns, squeeze=False)
    for row, (picture, drawn) in enumerate(zip(pictures, samples, strict=True)):
        for axes, image in zip(grid[row], (hide_pixels(picture, kept), *drawn, picture), strict=True):
            _show(axes, image)
    grid[0, 0].set_title("seen", fontsize=9)
    # In the middle of an even number lies a gap.
    title = "completions" if columns > 3 else "completion"
    grid[0, (columns - 1) // 2].set_title(title, fontsize=9, x=0.5 if columns % 2 else 1.05)
    grid[0, -1].set_title("original", fontsize=9)
    return figure


def plot_surprise(images: npt.ArrayLike, surprise: npt.ArrayLike) -> Figure:
    """Draws images above the surprise of each of their pixels, all on one scale.

    Args:
        images: uint8 array `(B, H, W, C)`.
        surprise: float array `(B, H, W)`, nats of each pixel: `lm.score(images, per_pixel=True).surprise`. NaN, where
            no mask of a BERT model hid a pixel, is white.

    Raises:
        ValueError: if the shapes do not fit.

    Example:
    ```python
    plot_surprise(images, lm.score(images, per_pixel=True).surprise)
    ```
    """
    pictures, maps = check_set_of_images(images), np.asarray(surprise)
    if maps.shape != pictures.shape[:-1]:
        raise ValueError(f"`surprise` must have shape {pictures.shape[:-1]}. Received: shape {maps.shape}")
    figure = _figure(1.1 * len(pictures) + 1.8, 2.6)
    grid = figure.subplots(2, len(pictures), squeeze=False)
    for column, (picture, nats) in enumerate(zip(pictures, maps, strict=True)):
        _show(grid[0, column], picture)
        shown = _show_map(grid[1, column], nats, 0.0, float(np.nanmax(maps)))
    figure.colorbar(shown, ax=grid.ravel().tolist(), label="nats")
    _name_rows(grid, ("picture", "surprise"))
    return figure


def plot_attention(image: npt.ArrayLike, maps: npt.ArrayLike, pixel: tuple[int, int], shifted: bool = True) -> Figure:
    """Draws an image with one pixel marked, and where each head attends to predict it, each on its own scale.

    Args:
        image: uint8 array `(H, W, C)`.
        maps: float array `(N, T, T)` of the image, or `(T, T)` of one head, from `attention_maps`.
        pixel: `(row, column)` of the predicted pixel.
        shifted: bool. Whether the model is autoregressive: position j then holds pixel j - 1, and the title has the
            share of the start vector.

    Raises:
        ValueError: if the maps do not fit the image or it has no such pixel.

    Example:
    ```python
    plot_attention(images[0], attention_maps(lm, images[:1], layer=6)[0], pixel=(20, 12))
    ```
    """
    picture, heads = check_images(image), np.asarray(maps)
    heads = heads[None] if heads.ndim == 2 else heads
    height, width = picture.shape[:2]
    if picture.ndim != 3 or heads.ndim != 3 or heads.shape[1:] != (height * width, height * width):
        raise ValueError(
            f"`maps` must have shape (N, T, T) for a picture of T pixels. "
            f"Received: shape {heads.shape} for a picture of shape {picture.shape}"
        )
    row, column = pixel
    weights, starts = pixel_attention(heads, pixel, (height, width), shifted)
    figure = _figure(1.4 * (len(heads) + 1), 1.7)
    axes = figure.subplots(1, len(heads) + 1, squeeze=False)[0]
    _show(axes[0], picture)
    axes[0].set_title(f"row {row}, column {column}", fontsize=8)
    for number, (place, head) in enumerate(zip(axes[1:], weights, strict=True)):
        _show_map(place, head, 0.0, None)
        place.set_title(f"head {number}" + (f", start {starts[number]:.0%}" if shifted else ""), fontsize=8)
    for place in axes:
        place.plot([column], [row], "s", color=_COLORS[1], markersize=4, fillstyle="none")
    return figure


def pixel_attention(
    maps: npt.NDArray[Any], pixel: tuple[int, int], shape: tuple[int, int], shifted: bool
) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Returns where each head attends to predict one pixel, as pictures.

    Args:
        maps: float array `(N, T, T)` of `attention_maps`.
        pixel: `(row, column)` of the predicted pixel.
        shape: `(H, W)` of the picture.
        shifted: bool. Whether the model is autoregressive: position j then holds pixel j - 1.

    Returns:
        Float arrays `(N, H, W)`, the attention to each pixel, and `(N,)`, that to the start vector; 0 unless shifted.

    Raises:
        ValueError: if there is no such pixel.
    """
    (row, column), (height, width) = pixel, shape
    if not (0 <= row < height and 0 <= column < width):
        raise ValueError(f"`pixel` must lie in a picture of {height}x{width}. Received: pixel={pixel}")
    weights = maps[:, row * width + column]
    starts = np.zeros(len(maps))
    if shifted:
        starts, weights = weights[:, 0], np.pad(weights[:, 1:], [(0, 0), (0, 1)])
    return weights.reshape(-1, height, width), starts


def save_animation(
    images: npt.ArrayLike,
    path: str | os.PathLike[str],
    keep_pixels: int = 0,
    frames: int = 64,
    seconds: float = 5.0,
    scale: int | None = None,
    columns: int = 8,
) -> None:
    """Writes a GIF of images appearing in raster order, in a grid. All frames share 256 colours.

    Args:
        images: uint8 array `(B, H, W, C)` or `(H, W, C)`.
        path: file to write.
        keep_pixels: int. Pixels of the first frame.
        frames: int. Frames in which the other pixels appear.
        seconds: float. Time for all frames; the last one then stays for one second more.
        scale: int. Side of a pixel in the file; by default images get about 128 pixels wide, smaller ones if the grid
            would be larger than 1024.
        columns: int. Images side by side at most.

    Raises:
        ValueError: if an argument is out of its range.
        ImportError: if Pillow is absent.

    Example:
    ```python
    save_animation(lm.generate(num_images=16), "drawing.gif")
    ```
    """
    pictures = check_images(images)
    pictures = pictures[None] if pictures.ndim == 3 else pictures
    height, width = pictures.shape[1:3]
    keep_pixels = check_integer("keep_pixels", keep_pixels, 0, height * width - 1)
    frames, columns = check_integer("frames", frames), min(check_integer("columns", columns), len(pictures))
    seconds = check_number("seconds", seconds, 0, above=True)
    rows = -(-len(pictures) // columns)
    if scale is None:
        scale = max(1, min(128 // width, 1024 // max(columns * (width + 1), rows * (height + 1))))
    scale = check_integer("scale", scale)
    indices, colors = _share_colors(pictures)
    shown = []
    # Never twice the same frame: Pillow would merge them.
    for there in np.unique(np.linspace(keep_pixels, height * width, frames + 1).astype(int)):
        hidden = np.arange(height * width).reshape(height, width) >= there
        # Grey lines between images, and grey where the last row has none.
        grid = np.full((rows * columns, height + 1, width + 1), 255, np.uint8)
        grid[: len(pictures), :-1, :-1] = np.where(hidden, 255, indices)
        lines = grid.reshape(rows, columns, height + 1, width + 1).transpose(0, 2, 1, 3)
        sheet = lines.reshape(rows * (height + 1), -1)[:-1, :-1]
        shown.append(import_pillow().fromarray(sheet.repeat(scale, axis=0).repeat(scale, axis=1)))
        shown[-1].putpalette(colors)
    each = max(20, round(1000 * seconds / len(shown)))
    durations = [each] * (len(shown) - 1) + [1000]
    shown[0].save(path, format="GIF", save_all=True, append_images=shown[1:], duration=durations, loop=0)


def _share_colors(pictures: UInt8Images) -> tuple[npt.NDArray[np.uint8], list[int]]:
    """Reduces images `(B, H, W, C)` to 255 colours: those of each frame on its own would flicker.

    Returns:
        uint8 array `(B, H, W)` of their numbers, and the colours one after the other; number 255 is that of hidden
        pixels.
    """
    tall = np.repeat(pictures, 3 // pictures.shape[-1], axis=-1).reshape(-1, pictures.shape[2], 3)
    reduced = import_pillow().fromarray(tall).quantize(255, dither=0)
    colors = reduced.getpalette()[: 3 * 255]
    colors += [0] * (3 * 255 - len(colors)) + [_HIDDEN] * 3
    return np.asarray(reduced).reshape(pictures.shape[:3]), colors


def plot_rows(rows: Mapping[str, UInt8Images], width: float = 8.0) -> Figure:
    """Draws wide images, uint8 `(H, W, C)`, below each other under their names; `width` is in inches."""
    pictures = list(rows.values())
    height = sum(width * picture.shape[0] / picture.shape[1] + 0.35 for picture in pictures)
    figure = _figure(width, height)
    for axes, (name, picture) in zip(figure.subplots(len(rows), 1, squeeze=False)[:, 0], rows.items(), strict=True):
        _show(axes, picture)
        axes.set_title(name, fontsize=9, loc="left")
    return figure


def plot_scores(
    histograms: Mapping[str, npt.ArrayLike], edges: npt.NDArray[np.floating[Any]], threshold: float
) -> Figure:
    """Draws histograms of scores on top of each other, and the threshold.

    Args:
        histograms: pictures in each bin, by name.
        edges: float array. Edges of the bins, one more than there are.
        threshold: float. Drawn as a line.

    Returns:
        A figure.
    """
    counts = {name: np.asarray(histogram) for name, histogram in histograms.items()}
    used = np.flatnonzero(np.sum([*counts.values()], axis=0))
    figure = _figure(6.4, 4.0)
    axes = figure.subplots()
    bottom = np.zeros(len(edges) - 1)
    for number, (name, histogram) in enumerate(counts.items()):
        axes.bar(edges[:-1], histogram, np.diff(edges), bottom, align="edge", color=_color(number), label=name)
        bottom += histogram
    axes.axvline(threshold, color="black", linestyle="--", label=f"threshold {threshold:.3f}")
    if len(used):
        axes.set_xlim(edges[used[0]], edges[used[-1] + 1])
        axes.set_ylim(0, 1.05 * bottom.max())
    axes.set_axisbelow(True)
    _finish(axes, "score", "pictures")
    return figure


def plot_grid(images: npt.ArrayLike, columns: int = 8) -> Figure:
    """Draws images, uint8 `(B, H, W, C)`, in a grid of at most so many columns."""
    pictures = check_set_of_images(images)
    columns = min(check_integer("columns", columns), len(pictures))
    rows = -(-len(pictures) // columns)
    figure = _figure(0.9 * columns, 0.9 * rows)
    for index, axes in enumerate(figure.subplots(rows, columns, squeeze=False).flat):
        if index < len(pictures):
            _show(axes, pictures[index])
        else:
            axes.set_axis_off()
    return figure


def hide_rows(image: UInt8Images, keep_rows: int) -> UInt8Images:
    """Returns images, uint8 `(..., H, W, C)`, whose rows from `keep_rows` on are grey."""
    return hide_pixels(image, keep_rows * image.shape[-2])


def hide_pixels(image: UInt8Images, keep_pixels: int) -> UInt8Images:
    """Returns images, uint8 `(..., H, W, C)`, whose pixels from `keep_pixels` on, in raster order, are grey."""
    kept = np.arange(image.shape[-3] * image.shape[-2]) < keep_pixels
    return hide(image, ~kept.reshape(image.shape[-3:-1]))


def hide(image: UInt8Images, hidden: npt.NDArray[np.bool_]) -> UInt8Images:
    """Returns images, uint8 `(..., H, W, C)`, grey where `hidden`, bool `(H, W)`, is True."""
    return np.where(hidden[..., None], np.uint8(_HIDDEN), image)


def import_figure() -> type[Figure]:
    """Imports Matplotlib's figures; raises ImportError that names the extra if it is absent."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("Plots need Matplotlib: pip install 'keras_igpt[plot]'") from error
    return Figure


def _figure(width: float, height: float) -> Figure:
    # Without gaps between pictures, whose shape is fixed.
    return import_figure()(figsize=(width, height), dpi=150, layout="compressed")


def _color(number: int) -> str:
    return _COLORS[number % len(_COLORS)]


def _marker(number: int) -> str:
    return _MARKERS[number // len(_COLORS) % len(_MARKERS)]


def _show(axes: Any, image: UInt8Images) -> None:
    axes.imshow(np.repeat(image, 3 // image.shape[-1], axis=-1), interpolation="nearest")
    axes.set(xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set_visible(False)


def _show_map(axes: Any, values: npt.NDArray[Any], lowest: float, highest: float | None) -> Any:
    axes.set(xticks=[], yticks=[])
    return axes.imshow(values, cmap="magma", vmin=lowest, vmax=highest, interpolation="nearest")


def _name_rows(grid: Any, names: Sequence[str]) -> None:
    for axes, name in zip(grid[:, 0], names, strict=True):
        axes.set_ylabel(name, fontsize=9)


def _whole_numbers(axes: Any) -> None:
    """Puts ticks of the horizontal axis at whole numbers alone, however short it is."""
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))


def _finish(axes: Any, horizontal: str, vertical: str) -> None:
    axes.set(xlabel=horizontal, ylabel=vertical)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, fontsize=8)
