"""Pictures drawn by a pre-trained model, from nothing or from the beginning of one's own pictures.

Command:
    python examples/sample.py                                                               # 16 pictures from nothing
    python examples/sample.py --model igpt.keras --complete cat.jpg dog.png --keep-rows 16  # completions of pictures

Needs: pip install "keras_igpt[jax,data,plot]". The model is the one of 8x8 pixels that comes with the package, or
--model, a file of an autoregressive model with its palette, such as examples/pretrain.py writes; --huggingface takes a
folder, or with --download a repository.
Pictures of any size and kind are cropped to their centre squares and resized to the model's. Prints how surprising each
picture is to the model, in nats per token. Writes to sample_output/ (--output): samples.png and samples.gif, the
pictures and how they were written; with --complete instead completions.png, what was seen, the completions and the
original, and completions.gif; surprise.png, where the pictures are surprising; attention.png, where the middle pixel of
the first one looks; palette.png; and results.json.

EXPECTED: one line a picture, lower for pictures like those the model was trained on.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

os.environ.setdefault("KERAS_BACKEND", "jax")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np

import keras_igpt as igpt
from keras_igpt import plotting

# Pictures of which the animation and the surprise map show something.
SHOWN = 8


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Draws pictures; returns their scores."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--preset", default="igpt_cifar10_8x8", help="name of a trained autoregressive preset")
    source.add_argument("--model", help=".keras file of an autoregressive model with its palette")
    source.add_argument("--huggingface", help="folder or repository of an ImageGPT checkpoint of transformers")
    parser.add_argument("--download", action="store_true", help="whether the repository may be fetched")
    parser.add_argument("--num-images", type=int, default=16, help="pictures, or completions of each picture")
    parser.add_argument("--temperature", type=float, default=1.0, help="0 takes the most probable colour")
    parser.add_argument("--top-k", type=int)
    parser.add_argument("--top-p", type=float)
    parser.add_argument("--complete", nargs="+", metavar="PICTURE", help="files to complete")
    parser.add_argument("--keep-rows", type=int, help="rows of them that are kept; half by default")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch-size", type=int, default=16, help="pictures drawn together")
    parser.add_argument("--output", default="sample_output")
    options = parser.parse_args(arguments)

    if options.model:
        language_model = keras.saving.load_model(options.model)
    elif options.huggingface:
        language_model = igpt.load_huggingface_checkpoint(options.huggingface, download=options.download)
    else:
        language_model = igpt.ImageGPTCausalLM.from_preset(options.preset, load_weights=True)
    if not isinstance(language_model, igpt.ImageGPTCausalLM) or language_model.palette is None:
        parser.error("the model must be an autoregressive one with its palette")
    output = Path(options.output)
    output.mkdir(parents=True, exist_ok=True)
    drawing = {name: getattr(options, name) for name in ("temperature", "top_k", "top_p", "seed", "batch_size")}
    size = language_model.backbone.image_size
    if options.keep_rows is not None and not 0 <= options.keep_rows < size:
        parser.error(f"--keep-rows must leave something to draw: 0…{size - 1}")

    if options.complete:
        channels = language_model.palette.num_channels
        try:
            originals = np.stack([read_picture(path, size, channels) for path in options.complete])
        except ValueError as error:
            parser.error(f"--complete: {error}")
        keep = size // 2 if options.keep_rows is None else options.keep_rows
        completions = language_model.complete(
            originals, keep_rows=keep, num_samples=options.num_images, verbose=1, **drawing
        )
        plotting.plot_completions(originals, completions, keep_rows=keep).savefig(output / "completions.png")
        plotting.save_animation(completions[0, :SHOWN], output / "completions.gif", keep_pixels=keep * size)
        scored, names = originals, [Path(path).name for path in options.complete]
    else:
        scored = language_model.generate(options.num_images, verbose=1, **drawing)
        plotting.plot_grid(scored).savefig(output / "samples.png")
        plotting.save_animation(scored[:SHOWN], output / "samples.gif")
        names = [f"sample {index}" for index in range(len(scored))]

    scores = language_model.score(scored, per_pixel=True, batch_size=options.batch_size)
    plotting.plot_surprise(scored[:SHOWN], scores.surprise[:SHOWN]).savefig(output / "surprise.png")
    maps = igpt.attention_maps(language_model, scored[:1], layer=language_model.backbone.num_layers // 2)
    plotting.plot_attention(scored[0], maps[0], pixel=(size // 2, size // 2)).savefig(output / "attention.png")
    plotting.plot_palette(language_model.palette).savefig(output / "palette.png")
    for name, nats in zip(names, scores.nats_per_token, strict=True):
        print(f"{name}: {nats:.3f} nats per token")
    print(scores)
    results = {"nats per token": scores.nats_per_token.tolist(), "names": names}
    (output / "results.json").write_text(json.dumps(results, indent=2) + "\n")
    return results


def read_picture(path: str, size: int, channels: int) -> np.ndarray:
    """Reads a file as the model takes it: upright, its centre square, of the model's size."""
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as picture:
            upright = ImageOps.exif_transpose(picture).convert("RGB" if channels == 3 else "L")
    except (OSError, SyntaxError) as error:  # Pillow raises both for damaged files
        raise ValueError(f"{path} cannot be read ({error})") from error
    return igpt.resize_images(np.asarray(upright).reshape(1, upright.height, upright.width, channels), size)[0]


if __name__ == "__main__":
    main()
