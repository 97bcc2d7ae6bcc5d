"""The page: its components, and which function of `views` answers which of them."""

# Without `from __future__ import annotations`: Gradio reads the annotations of functions defined within functions.

import functools
import html
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from keras_igpt.demo.depth_curve import find_depth_curve
from keras_igpt.demo.markup import STYLE, address_of, grid, scale, text
from keras_igpt.demo.own_requests import OwnRequestsOnly
from keras_igpt.demo.pictures import (
    MAX_FILE_SIZE,
    as_model_sees,
    built_in_pictures,
    centre_square,
    enlarged,
    open_upload,
)
from keras_igpt.demo.views import (
    BoolArray,
    Drawing,
    Pixel,
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
from keras_igpt.objectives.causal_lm import ImageGPTCausalLM
from keras_igpt.palette.color_palette import UInt8Images
from keras_igpt.plotting import hide
from keras_igpt.support.checks import check_integer

# Side of the images that take clicks.
_CLICKED_SIDE = 384
_CLICK = "Click a pixel of the picture."
# Pixels of an empty result, so that the page does not jump.
_HEIGHT = 160
# No endpoint of an event is offered to programs, and one at a time uses the model.
_PRIVATE: dict[str, Any] = {"api_visibility": "private", "concurrency_id": "model"}
_AT_ONCE: dict[str, Any] = {"trigger_mode": "always_last", "show_progress": "hidden", **_PRIVATE}
# Seconds between removals of what was uploaded and shown, and the age at which it goes.
_REMOVAL = (600, 3600)


def import_gradio() -> Any:
    """Imports `gradio`, which is told to report nothing; the error names the extra to install."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    try:
        import gradio
        import matplotlib  # noqa: F401
        import PIL  # noqa: F401
    except ImportError as error:
        raise ImportError("The page needs Gradio, Pillow and Matplotlib: pip install 'keras_igpt[demo]'") from error
    return gradio


def launch(model: Any, name: str, port: int | None = None, browser: bool = True, wait: bool = True) -> str:
    """Serves the page on this machine alone, and not to other web pages that are open on it.

    Args:
        model: an `ImageGPTCausalLM` or `ImageGPTMaskedLM` with its palette.
        name: str. Path of its file, or trained preset.
        port: int. The first one free from 7860 on by default.
        browser: bool. Whether to open the page in a browser.
        wait: bool. Whether to serve until interrupted; otherwise until the process ends.

    Returns:
        The page's address.

    Raises:
        ImportError: if Gradio, Pillow or Matplotlib is absent.
        ValueError: if there is no such port.
        OSError: if it is taken.
    """
    gradio = import_gradio()
    from starlette.middleware import Middleware

    if port is not None:
        port = check_integer("port", port, 1, 65535)
    page = Page(model, name).build()
    # Gradio looks whether its own server answers, which a proxy could not reach.
    for variable in ("no_proxy", "NO_PROXY"):
        os.environ[variable] = ",".join(filter(None, (os.environ.get(variable), "127.0.0.1")))
    theme = gradio.themes.Base(
        primary_hue="slate",
        neutral_hue="slate",
        radius_size="sm",
        # Fonts of the system: none is fetched.
        font=["system-ui", "sans-serif"],
        font_mono=["ui-monospace", "monospace"],
    )
    try:
        _, address, _ = page.launch(
            server_name="127.0.0.1",
            server_port=port,
            share=False,
            inbrowser=browser,
            max_file_size=MAX_FILE_SIZE,
            theme=theme,
            css=STYLE,
            footer_links=[],
            enable_monitoring=False,
            ssr_mode=False,
            quiet=True,
            prevent_thread_lock=True,
            app_kwargs={"middleware": [Middleware(OwnRequestsOnly)]},
        )
    except OSError as error:
        raise OSError(f"`port` must be free; without it the next free one is taken. Received: port={port}") from error
    print(f"{address} shows {name}; Ctrl+C ends it.", flush=True)
    if wait:
        page.block_thread()
    return str(address)


def told(function: Callable[..., Any]) -> Callable[..., Any]:
    """Has a `ValueError` of a function shown to the person in front of the page."""
    import gradio as gr

    @functools.wraps(function)
    def telling(*arguments: Any) -> Any:
        try:
            return function(*arguments)
        except ValueError as error:
            raise gr.Error(str(error), duration=None, print_exception=False) from error

    return telling


class Page:
    """The page of one model.

    Args:
        model: an `ImageGPTCausalLM` or `ImageGPTMaskedLM` with its palette.
        name: str. Path of its file, or trained preset.
    """

    def __init__(self, model: Any, name: str) -> None:
        self._model, self._name = model, name
        self._size = model.backbone.image_size
        self._causal = isinstance(model, ImageGPTCausalLM)
        self._built_in = built_in_pictures()
        self._first = as_model_sees(model, next(iter(self._built_in.values())))
        self._first_hidden = rows_hidden(self._size, self._size // 2)
        # Components that another picture changes, and what they then show: a function of picture and hidden pixels.
        self._renewed: list[tuple[Any, Callable[[UInt8Images, BoolArray], Any]]] = []

    def build(self) -> Any:
        """Returns the page as `gradio.Blocks`."""
        import gradio as gr

        with gr.Blocks(title="Image GPT", analytics_enabled=False, delete_cache=_REMOVAL, fill_width=True) as page:
            self._picture, self._hidden = gr.State(self._first), gr.State(self._first_hidden)
            gr.HTML(f"<h2>Image GPT</h2>{text(self._described())}")
            with gr.Row():
                with gr.Column(scale=1, min_width=300):
                    gallery = gr.Gallery(
                        [enlarged(picture) for picture in self._built_in.values()],
                        show_label=False,
                        columns=3,
                        height="auto",
                        object_fit="contain",
                        format="png",
                        allow_preview=False,
                        buttons=[],
                        interactive=False,
                        elem_id="pictures",
                    )
                    upload = gr.UploadButton(
                        "Upload a picture", file_types=["image"], type="filepath", elem_id="upload"
                    )
                    chosen = gr.HTML(self._chosen(next(iter(self._built_in.values()))), elem_id="chosen")
                with gr.Column(scale=3, min_width=480), gr.Tabs():
                    for title, make in (
                        ("Complete" if self._causal else "Fill", self._drawing_tab),
                        ("Surprise", self._surprise_tab),
                        ("Attention", self._attention_tab),
                        ("Depth", self._depth_tab),
                    ):
                        with gr.Tab(title):
                            make()
            outputs = [self._picture, chosen, *(component for component, _ in self._renewed)]

            def renew(picture: UInt8Images, hidden: BoolArray) -> list[Any]:
                seen = as_model_sees(self._model, picture)
                return [seen, self._chosen(picture), *(shown(seen, hidden) for _, shown in self._renewed)]

            def select(hidden: BoolArray, event: gr.SelectData) -> list[Any]:
                return renew([*self._built_in.values()][event.index], hidden)

            def take(path: str, hidden: BoolArray) -> list[Any]:
                return renew(open_upload(path), hidden)

            gallery.select(told(select), self._hidden, outputs, **_PRIVATE)
            upload.upload(told(take), [upload, self._hidden], outputs, **_PRIVATE)
        return page

    def _described(self) -> str:
        backbone = self._model.backbone
        kind = "autoregressive" if self._causal else "BERT"
        return (
            f"{Path(self._name).name}: {kind}, {self._size}×{self._size} pixels, {backbone.vocabulary_size} colours, "
            f"{backbone.num_layers} blocks, {backbone.num_heads} heads, width {backbone.hidden_dim}"
        )

    def _chosen(self, picture: UInt8Images) -> str:
        seen = as_model_sees(self._model, picture)
        return grid([("picture", centre_square(picture)), ("model's view", seen)], width=8)

    def _drawing_tab(self) -> None:
        import gradio as gr

        with gr.Row():
            look: dict[str, Any] = {"scale": 3, "min_width": 150, "buttons": []}
            rows = gr.Slider(0, self._size, self._size // 2, step=1, label="Rows kept", **look)
            samples = gr.Slider(1, 8, 4, step=1, label="Samples", **look)
            temperature = gr.Slider(0, 2, 1, step=0.05, label="Temperature", **look)
            seed = gr.Number(0, label="Seed", precision=0, scale=1, min_width=90)
        with gr.Row():
            if not self._causal:
                with gr.Column(scale=2, min_width=240):
                    self._hole(rows)
            with gr.Column(scale=3, min_width=360):
                button = gr.Button("Complete" if self._causal else "Fill", variant="primary", elem_id="draw")
                drawn = gr.HTML(elem_id="drawn", min_height=_HEIGHT)
        self._renewed.append((drawn, lambda picture, hidden: ""))

        def draw(picture: Any, hidden: Any, rows: int, samples: int, temperature: float, seed: int) -> str:
            drawing = Drawing(samples, temperature, seed)
            if self._causal:
                return grid(completions(self._model, picture, rows, drawing))
            return grid(fillings(self._model, picture, hidden, drawing))

        inputs = [self._picture, self._hidden, rows, samples, temperature, seed]
        button.click(told(draw), inputs, drawn, **_PRIVATE)

    def _hole(self, rows: Any) -> None:
        """Lets a person choose what a BERT model fills: all rows below, or a rectangle."""
        import gradio as gr

        corner = gr.State()
        image = self._clickable(hide(self._first, self._first_hidden), "hole")
        gr.HTML(text("Grey is filled: the rows not kept, or a hole, of which you click two opposite corners."))
        self._renewed += [
            (corner, lambda picture, hidden: None),
            (image, lambda picture, hidden: enlarged(hide(picture, hidden), _CLICKED_SIDE)),
        ]

        def keep(picture: UInt8Images, rows: int) -> tuple[Any, ...]:
            hidden = rows_hidden(self._size, rows)
            return hidden, None, enlarged(hide(picture, hidden), _CLICKED_SIDE)

        def click(picture: UInt8Images, first: Pixel | None, event: gr.SelectData) -> tuple[Any, ...]:
            pixel = self._pixel(event)
            hidden = rectangle_hidden(self._size, first or pixel, pixel)
            return hidden, None if first else pixel, enlarged(hide(picture, hidden), _CLICKED_SIDE)

        outputs = [self._hidden, corner, image]
        rows.change(told(keep), [self._picture, rows], outputs, **_AT_ONCE)
        image.select(told(click), [self._picture, corner], outputs, **_AT_ONCE)

    def _surprise_tab(self) -> None:
        import gradio as gr

        button = gr.Button("Show surprise", variant="primary", elem_id="score")
        shown = gr.HTML(elem_id="surprise", min_height=_HEIGHT)
        self._renewed.append((shown, lambda picture, hidden: ""))

        def score(picture: UInt8Images) -> str:
            found = surprise(self._model, picture)
            highest = float(np.nanmax(found.bits))
            sentence = (
                f"{found.bits_per_pixel:.2f} bits per pixel of the palette picture. All {2**found.uniform:.0f} colours "
                f"equally probable would be {found.uniform:.2f}."
            )
            if not self._causal:
                sentence += " Mean over masks; each hidden pixel is predicted from all that are not hidden."
            images = [("model's view", picture), ("surprise", heat_map(found.bits, highest))]
            return grid(images, width=17) + scale(highest, "bits") + text(sentence)

        button.click(told(score), self._picture, shown, **_PRIVATE)

    def _attention_tab(self) -> None:
        import gradio as gr

        last = self._model.backbone.num_layers - 1
        pixel = gr.State()
        with gr.Row():
            with gr.Column(scale=2, min_width=280):
                # A slider needs two values.
                block = gr.Slider(0, last, (last + 1) // 2, step=1, label="Block", buttons=[]) if last else gr.State(0)
                image = self._clickable(self._first, "clicked")
            with gr.Column(scale=3, min_width=280):
                maps = gr.HTML(text(_CLICK), elem_id="maps", min_height=_HEIGHT)
        self._renewed += [
            (pixel, lambda picture, hidden: None),
            (image, lambda picture, hidden: enlarged(picture, _CLICKED_SIDE)),
            (maps, lambda picture, hidden: text(_CLICK)),
        ]

        def attend(picture: UInt8Images, block: int, pixel: Pixel) -> str:
            weights, starts = attention(self._model, picture, block, pixel)
            images = []
            for head, map_ in enumerate(weights):
                start = "" if starts is None else f" · start {starts[head]:.0%}"
                images.append((f"head {head}{start}", marked(heat_map(map_, float(map_.max())), pixel)))
            row, column = pixel
            sentence = f"Where block {block} looks to predict row {row}, column {column}; each head has its own scale."
            return text(sentence) + grid(images, width=11 if len(images) <= 4 else 7.2)

        def click(picture: UInt8Images, block: int, event: gr.SelectData) -> tuple[Any, ...]:
            pixel = self._pixel(event)
            return pixel, marked(picture, pixel, _CLICKED_SIDE), attend(picture, block, pixel)

        def change(picture: UInt8Images, block: int, pixel: Pixel | None) -> str:
            return text(_CLICK) if pixel is None else attend(picture, block, pixel)

        image.select(told(click), [self._picture, block], [pixel, image, maps], **_AT_ONCE)
        block.change(told(change), [self._picture, block, pixel], maps, **_AT_ONCE)

    def _depth_tab(self) -> None:
        import gradio as gr

        curve = find_depth_curve(self._model, self._name)
        if curve is not None:
            gr.HTML(text(str(curve)) + f'<div class="igpt-curve"><img src="{address_of(curve.png())}"></div>')
            return
        if not self._name.endswith(".keras"):
            gr.HTML(text("No probe report of this model is known."))
            return
        gr.HTML(
            text("No probe report stands beside this model. This makes one, from pictures in a folder for each class:")
            + f"<pre>keras-igpt probe --model {html.escape(self._name)} --images FOLDER "
            f"--output {html.escape(str(Path(self._name).parent / 'probe'))}</pre>"
        )

    def _clickable(self, image: UInt8Images, elem_id: str) -> Any:
        import gradio as gr

        return gr.Image(
            enlarged(image, _CLICKED_SIDE),
            type="numpy",
            format="png",
            show_label=False,
            interactive=False,
            buttons=[],
            elem_id=elem_id,
            elem_classes="igpt-pixels",
        )

    def _pixel(self, event: Any) -> Pixel:
        """The pixel that was clicked in a `_clickable` image."""
        return pixel_at(event.index, _CLICKED_SIDE // self._size * self._size, self._size)
