"""Pictures of what a model does; each function returns a Matplotlib figure to show or save."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from keras_igpt.palette import ColorPalette, UInt8Images, check_images

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Half-hidden pixels are shown in this grey.
_HIDDEN = 128

# Okabe and Ito's colours, told apart by all kinds of colour vision.
_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")


def plot_palette(palette: ColorPalette) -> Figure:
    """Draws the colours of a palette as tiles, in token order from the upper left.

    Args:
        palette: a `ColorPalette`.

    Returns:
        A figure.

    Example:
    ```python
    plot_palette(palette).savefig("palette.png")
    ```
    """
    square = int(np.ceil(np.sqrt(palette.num_colors)))
    # Full rows where some width near a square's gives them.
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
    """Draws pictures above what the palette makes of them.

    Args:
        images: uint8 array `(B, H, W, C)`.
        palette: a `ColorPalette`.

    Returns:
        A figure.
    """
    originals = check_images(images)
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
        curves: losses by epoch (`History.history["loss"]`), by name. Names that share what stands before a comma share
            a colour, and validation is dashed: `"BERT, training"` and `"BERT, validation"`.
        label: str. What the vertical axis shows.

    Returns:
        A figure.

    Example:
    ```python
    plot_loss_curves({"training": history["loss"], "validation": history["val_loss"]})
    ```
    """
    figure = _figure(6.4, 4.0)
    axes = figure.subplots()
    runs = list(dict.fromkeys(name.partition(",")[0] for name in curves))
    colors = dict(zip(runs, _cycle(len(runs)), strict=True))
    for name, losses in curves.items():
        dashes = "--" if name.endswith("validation") else "-"
        epochs = np.arange(1, len(losses) + 1)
        axes.plot(epochs, losses, dashes, color=colors[name.partition(",")[0]], label=name)
    _finish(axes, "epoch", label)
    return figure


def plot_depth_curves(
    curves: Mapping[str, Mapping[int, float]],
    references: Mapping[str, float] | None = None,
    chosen: Mapping[str, int] | None = None,
) -> Figure:
    """Draws probe accuracy against depth, one line a model, and references that have no depth as level lines.

    Args:
        curves: accuracy in 0…1 by depth (`LinearProbe.score`), by the name of the model.
        references: accuracy in 0…1 by name, of raw pixels say.
        chosen: depth by the name of the model that validation chose (`probe.report.best_layer`); it is ringed.

    Returns:
        A figure.

    Example:
    ```python
    plot_depth_curves({"autoregressive": probe.score(test)}, {"raw pixels": 0.41})
    ```

    Reference:
        [Chen et al., 2020](https://cdn.openai.com/papers/Generative_Pretraining_from_Pixels_V2.pdf), figure 2
    """
    references, chosen = references or {}, chosen or {}
    figure = _figure(6.4, 4.2)
    from matplotlib.ticker import MaxNLocator

    axes = figure.subplots()
    colors = _cycle(len(curves) + len(references))
    for color, (name, accuracies) in zip(colors, curves.items(), strict=False):
        depths = sorted(accuracies)
        values = [100 * accuracies[depth] for depth in depths]
        axes.plot(depths, values, "o-", color=color, markersize=4, label=name)
        if name in chosen:
            best = chosen[name]
            axes.plot([best], [100 * accuracies[best]], "o", color=color, markersize=10, fillstyle="none")
    for color, (name, accuracy) in zip(colors[len(curves) :], references.items(), strict=True):
        axes.axhline(100 * accuracy, color=color, linestyle="--", label=name)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    _finish(axes, "depth l of the features (0 = embeddings)", "accuracy of a linear probe (%)")
    return figure


def plot_completions(originals: npt.ArrayLike, completions: npt.ArrayLike, keep_rows: int) -> Figure:
    """Draws, a row a picture: what the model saw, its completions, the original.

    Args:
        originals: uint8 array `(B, H, W, C)`.
        completions: uint8 array `(B, num_samples, H, W, C)`, of `ImageGPTCausalLM.complete`.
        keep_rows: int. Rows the model saw.

    Returns:
        A figure.

    Example:
    ```python
    plot_completions(images, lm.complete(images, keep_rows=16, num_samples=4), keep_rows=16)
    ```

    Reference:
        [Chen et al., 2020](https://cdn.openai.com/papers/Generative_Pretraining_from_Pixels_V2.pdf), figure 1
    """
    pictures, samples = check_images(originals), check_images(completions, "completions")
    columns = samples.shape[1] + 2
    figure = _figure(1.0 * columns, 1.0 * len(pictures) + 0.4)
    grid = figure.subplots(len(pictures), columns, squeeze=False)
    for row, (picture, drawn) in enumerate(zip(pictures, samples, strict=True)):
        for axes, image in zip(grid[row], (hide_rows(picture, keep_rows), *drawn, picture), strict=True):
            _show(axes, image)
    grid[0, 0].set_title("seen", fontsize=9)
    grid[0, columns // 2].set_title("completions", fontsize=9)
    grid[0, -1].set_title("original", fontsize=9)
    return figure


def plot_rows(rows: Mapping[str, UInt8Images], width: float = 8.0) -> Figure:
    """Draws wide pictures below each other, each under its name.

    Args:
        rows: uint8 arrays `(H, W, C)` by name.
        width: float. Width of the figure in inches.

    Returns:
        A figure.
    """
    pictures = list(rows.values())
    height = sum(width * picture.shape[0] / picture.shape[1] + 0.35 for picture in pictures)
    figure = _figure(width, height)
    for axes, (name, picture) in zip(figure.subplots(len(rows), 1, squeeze=False)[:, 0], rows.items(), strict=True):
        _show(axes, picture)
        axes.set_title(name, fontsize=9, loc="left")
    return figure


def plot_grid(images: npt.ArrayLike, columns: int = 8) -> Figure:
    """Draws pictures side by side, row after row.

    Args:
        images: uint8 array `(B, H, W, C)`.
        columns: int. Pictures a row.

    Returns:
        A figure.
    """
    pictures = check_images(images)
    rows = -(-len(pictures) // columns)
    figure = _figure(0.9 * columns, 0.9 * rows)
    for index, axes in enumerate(figure.subplots(rows, columns, squeeze=False).flat):
        if index < len(pictures):
            _show(axes, pictures[index])
        else:
            axes.set_axis_off()
    return figure


def hide_rows(image: UInt8Images, keep_rows: int) -> UInt8Images:
    """Returns a picture whose rows from `keep_rows` on are grey.

    Args:
        image: uint8 array `(..., H, W, C)`.
        keep_rows: int. Rows left as they are.

    Returns:
        uint8 array of the same shape.
    """
    hidden = image.copy()
    hidden[..., keep_rows:, :, :] = _HIDDEN
    return hidden


def _figure(width: float, height: float) -> Figure:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("Plots need Matplotlib: pip install 'keras_igpt[plot]'") from error
    return Figure(figsize=(width, height), dpi=150, layout="constrained")


def _cycle(count: int) -> list[str]:
    return [_COLORS[index % len(_COLORS)] for index in range(count)]


def _show(axes: Any, image: UInt8Images) -> None:
    axes.imshow(np.repeat(image, 3 // image.shape[-1], axis=-1), interpolation="nearest")
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(False)


def _name_rows(grid: Any, names: Sequence[str]) -> None:
    for axes, name in zip(grid[:, 0], names, strict=True):
        axes.set_ylabel(name, fontsize=9)


def _finish(axes: Any, horizontal: str, vertical: str) -> None:
    axes.set_xlabel(horizontal)
    axes.set_ylabel(vertical)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, fontsize=8)
