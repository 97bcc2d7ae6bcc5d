"""Web pictures that a script can make: photographs of prepared data sets, and junk drawn at random, in tar files."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from keras_igpt import ImageFiles
from keras_igpt.curation import PictureFeatures
from keras_igpt.data.tfds_reader import TfdsReader, open_prepared

Generator = np.random.Generator

# What is printed on pages, charts and screens.
WORDS = __doc__.lower().split()


def text_page(random: Generator) -> Image.Image:
    width, height, size = (int(random.integers(*bounds)) for bounds in ((300, 700), (300, 700), (10, 26)))
    paper, ink = _color(random, 235, 256), _color(random, 0, 70)
    if random.random() < 0.15:
        paper, ink = ink, paper
    page, font, margin = Image.new("RGB", (width, height), paper), ImageFont.load_default(size), 10 + 2 * size
    draw = ImageDraw.Draw(page)
    for top in range(size, height - size, round(1.35 * size)):
        if random.random() < 0.1:
            continue
        line, length = "", (width - 2 * margin) * (1 if random.random() < 0.9 else random.random())
        while draw.textlength(line, font) < length:
            line += f"{random.choice(WORDS)} "
        draw.text((margin, top), line, ink, font)
    return page


def chart(random: Generator) -> Image.Image:
    width, height = (int(side) for side in random.integers(300, 640, 2))
    picture, font = Image.new("RGB", (width, height), "white"), ImageFont.load_default(14)
    draw = ImageDraw.Draw(picture)
    left, top, right, bottom = 50, 40, width - 20, height - 40
    draw.text((left, 10), " ".join(random.choice(WORDS, 4)), "black", font)
    draw.line([(left, top), (left, bottom), (right, bottom)], "black", 2)
    colors = [_color(random, 30, 220) for _ in range(5)]
    for step in range(5):
        level = top + (bottom - top) * step // 5
        draw.line([(left, level), (right, level)], (225, 225, 225))
        draw.text((10, level), str(100 - 20 * step), "black", font)
    kind, count = random.integers(3), int(random.integers(3, 12))
    if kind == 0:
        step = (right - left) / count
        for bar in range(count):
            start, end = left + (bar + 0.2) * step, left + (bar + 0.8) * step
            draw.rectangle([start, bottom - random.random() * (bottom - top), end, bottom], colors[bar % 5])
    elif kind == 1:
        for color in colors[: 1 + count % 4]:
            values = np.clip(np.cumsum(random.normal(0, 0.08, 40)) + random.random(), 0, 1)
            points = [(left + (right - left) * k / 39, bottom - v * (bottom - top)) for k, v in enumerate(values)]
            draw.line(points, color, 3)
    else:
        ends = np.append(np.sort(random.random(4)), 1.0) * 360
        side = min(right, bottom) - 10
        for start, end, color in zip(np.append(0.0, ends), ends, colors, strict=False):
            draw.pieslice([left + 10, top + 10, side, side], start, end, color)
    return picture


def screenshot(random: Generator) -> Image.Image:
    width, height, side = (int(random.integers(*bounds)) for bounds in ((480, 900), (360, 640), (80, 200)))
    back = _color(random, 235, 256) if random.random() < 0.7 else _color(random, 20, 50)
    ink = (30, 30, 30) if sum(back) > 380 else (220, 220, 220)
    picture, font = Image.new("RGB", (width, height), back), ImageFont.load_default(13)
    draw = ImageDraw.Draw(picture)
    draw.rectangle([0, 0, width, 32], _color(random, 30, 230))
    for button, color in enumerate(((255, 95, 86), (255, 189, 46), (39, 201, 63))):
        draw.ellipse([8 + 20 * button, 10, 20 + 20 * button, 22], color)
    draw.rectangle([0, 32, side, height], tuple(int(0.9 * value) for value in back))
    for row in range(int(random.integers(5, 14))):
        draw.text((10, 45 + 24 * row), " ".join(random.choice(WORDS, 2)), ink, font)
    for _ in range(int(random.integers(2, 7))):
        left, top = int(random.integers(side + 10, width - 130)), int(random.integers(44, height - 60))
        box = [left, top, left + int(random.integers(80, 240)), top + int(random.integers(24, 90))]
        draw.rounded_rectangle(box, 6, _color(random, 60, 256), outline=ink)
        draw.text((left + 8, top + 6), " ".join(random.choice(WORDS, 3)), ink, font)
    return picture


def noise(random: Generator) -> Image.Image:
    side, kind = int(random.integers(64, 400)), random.integers(3)
    if kind == 2:
        values = random.normal(random.integers(60, 200, 3), random.integers(15, 60), (side, side, 3))
    else:
        values = np.broadcast_to(random.integers(0, 256, (side, side, 3 if kind else 1)), (side, side, 3))
    return Image.fromarray(np.clip(values, 0, 255).astype("uint8"))


def flat(random: Generator) -> Image.Image:
    height, width = random.integers(64, 500, 2)
    wobble = random.integers(-2, 3, (height, width, 3)) if random.random() < 0.5 else np.zeros((height, width, 3), int)
    return Image.fromarray(np.clip(random.integers(0, 256, 3) + wobble, 0, 255).astype("uint8"))


def gradient(random: Generator) -> Image.Image:
    height, width = random.integers(64, 500, 2)
    first, second = random.integers(0, 256, (2, 3))
    angle, row, column = 2 * np.pi * random.random(), *(np.mgrid[:height, :width] / [[[height]], [[width]]])
    place = row * np.sin(angle) + column * np.cos(angle)
    if random.random() < 0.3:
        place = np.hypot(row - random.random(), column - random.random())
    place = (place - place.min()) / np.ptp(place)
    return Image.fromarray((first + (second - first) * place[..., None]).astype("uint8"))


JUNK: dict[str, Callable[[Generator], Image.Image]] = {
    draw.__name__: draw for draw in (text_page, chart, screenshot, noise, flat, gradient)
}


def color_statistics(images: np.ndarray) -> np.ndarray:
    """Features made by hand: distributions of colours and edges, and the coarse layout."""
    values = images.astype("float32") / 255
    grey = values @ np.array([0.299, 0.587, 0.114], "float32")
    edges = np.hypot(np.diff(grey, axis=2)[:, :-1], np.diff(grey, axis=1)[:, :, :-1])
    cells = values.reshape(len(values), 4, 8, 4, 8, 3)
    parts = [
        *(_histograms(values[..., channel], np.linspace(0, 1.001, 9)) for channel in range(3)),
        _histograms(edges, np.array([0, 0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 2])),
        cells.mean((2, 4)).reshape(len(values), -1) - values.mean((1, 2, 3))[:, None],
        3 * cells.std((2, 4)).reshape(len(values), -1),
    ]
    return np.concatenate(parts, axis=1)


def load_color_statistics() -> PictureFeatures:
    return PictureFeatures(color_statistics, image_size=32)


def _histograms(values: np.ndarray, edges: np.ndarray) -> np.ndarray:
    return np.sqrt([np.histogram(picture, edges)[0] / picture.size for picture in values])


def _color(random: Generator, low: int, high: int) -> tuple[int, ...]:
    return tuple(int(value) for value in random.integers(low, high, 3))


def prepared(data_dir: str, name: str, split: str) -> TfdsReader:
    """Opens a split that TensorFlow Datasets has prepared."""
    return TfdsReader(open_prepared(next((Path(data_dir) / name).iterdir())), split)


def data_set(reader: TfdsReader, numbers: range, image_size: int) -> ImageFiles:
    return ImageFiles(reader, image_size, np.array(numbers))


def encoded(picture: Image.Image, kind: str = "JPEG", **options: int) -> bytes:
    file = io.BytesIO()
    picture.convert("RGB").save(file, kind, **options)
    return file.getvalue()


def copied(data: bytes, random: Generator, least: float) -> bytes:
    """The same picture at another size and JPEG quality."""
    picture = Image.open(io.BytesIO(data)).convert("RGB")
    scale, quality = random.uniform(least, 1.3), int(random.integers(30, 96))
    size = [max(32, round(scale * side)) for side in picture.size]
    return encoded(picture.resize(size, Image.Resampling(int(random.integers(1, 4)))), quality=quality)


Pictures = list[tuple[str, bytes]]


def make_web(data_dir: str, counts: dict[str, int], seed: int = 0) -> Pictures:
    """Makes pictures in random order; a name says what each is, and of a copy what it is one of."""
    random = np.random.default_rng(seed)
    imagenet, cifar = prepared(data_dir, "imagenet2012", "train"), prepared(data_dir, "cifar10", "train")
    held_out, tests = prepared(data_dir, "imagenet2012", "validation"), prepared(data_dir, "cifar10", "test")
    rest = range(counts["reference"], len(imagenet))
    pictures = [(f"imagenet-{number}", imagenet.read(number)[0]) for number in rest]
    pictures += [(f"cifar-{number}", cifar.read(number)[0]) for number in range(counts["cifar"])]
    large = [(f"copy-of-imagenet-{number}", copied(imagenet.read(number)[0], random, 0.25)) for number in rest]
    small = [(f"copy-of-cifar-{k}", copied(cifar.read(k)[0], random, 1.0)) for k in range(counts["copies"])]
    pictures += large + small
    for turn in range(3):
        pictures += [
            (f"evaluation{turn}-imagenet-{k}", copied(held_out.read(k)[0], random, 0.25)) for k in range(len(held_out))
        ]
    pictures += [(f"evaluation-cifar-{k}", copied(tests.read(k)[0], random, 1.0)) for k in range(counts["evaluation"])]
    for name, draw in JUNK.items():
        for number in range(counts["junk"]):
            form = {"kind": "PNG"} if random.random() < 0.3 else {"quality": int(random.integers(40, 96))}
            pictures.append((f"{name}-{number}", encoded(draw(random), **form)))
    return [pictures[index] for index in random.permutation(len(pictures))]


def hostile() -> Pictures:
    """Pictures that nobody wants to meet: broken, tiny, animated, 144 megapixels in a few kilobytes."""
    photograph = encoded(Image.effect_mandelbrot((128, 128), (-2, -1.5, 1, 1.5), 20), quality=90)
    frames, file = [Image.new("L", (64, 64), shade) for shade in (0, 255)], io.BytesIO()
    frames[0].save(file, "GIF", save_all=True, append_images=frames[1:])
    return [
        ("broken-0", photograph[: len(photograph) // 2]),
        ("broken-1", b"no picture at all"),
        ("tiny-0", encoded(Image.new("RGB", (300, 8)))),
        ("animated-0", file.getvalue()),
        ("huge-0", encoded(Image.new("1", (12000, 12000)), "PNG")),
    ]


def write_tars(pictures: Pictures, folder: Path, shards: int) -> None:
    """Writes pictures as img2dataset does, with a file of text and one of JSON beside each."""
    folder.mkdir(parents=True, exist_ok=True)
    for shard in range(shards):
        with tarfile.open(folder / f"{shard:05d}.tar", "w") as archive:
            for name, data in pictures[shard::shards]:
                for suffix, content in _files(name, data):
                    member = tarfile.TarInfo(f"{name}.{suffix}")
                    member.size = len(content)
                    archive.addfile(member, io.BytesIO(content))


def _files(name: str, data: bytes) -> Iterator[tuple[str, bytes]]:
    kinds = {b"\x89PN": "png", b"GIF": "gif"}
    yield kinds.get(data[:3], "jpg"), data
    yield "txt", name.encode()
    yield "json", json.dumps({"key": name, "caption": name}).encode()
