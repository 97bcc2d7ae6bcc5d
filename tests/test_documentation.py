"""README and docs: blocks of Python run, commands and links are right, figures and lists are those of the code."""

import re
import runpy
import shlex
import tomllib
from pathlib import Path
from textwrap import dedent
from types import SimpleNamespace

import keras
import numpy as np
import pytest

import keras_igpt as igpt
from keras_igpt.commands.main import COMMANDS, make_parser

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
WITH_CODE = [path for path in PAGES if "```python" in path.read_text()]
# What a page takes for granted, as it says.
GIVEN = {
    "cluster": ("data", "palette", "batches", "held_out"),
    "draw": ("data",),
    "judging": ("data", "lm"),
    "logging": ("lm", "batches", "held_out"),
    "resume": ("data", "palette"),
    "weights": ("lm", "palette", "train_images", "test_images"),
}
SMALL = {"vocabulary_size": 64, "image_size": 8, "num_layers": 3, "num_heads": 1, "hidden_dim": 8}


def name_of(path):
    return str(path.relative_to(ROOT))


def blocks(path, *languages):
    found = re.findall(r"^( *)```(\w+)\n(.*?)^\1```", path.read_text(), flags=re.DOTALL | re.MULTILINE)
    return [dedent(text) for _, language, text in found if language in languages]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Ten pictures of each of ten classes, which differ in colour."""
    image = pytest.importorskip("PIL.Image")
    folder, random = tmp_path_factory.mktemp("documentation"), np.random.default_rng(0)
    for label in range(10):
        (folder / "pictures" / f"class {label}").mkdir(parents=True)
        color = random.integers(0, 192, 3)
        for number in range(10):
            pixels = (color + random.integers(0, 64, (8, 8, 3))).astype("uint8")
            image.fromarray(pixels).save(folder / "pictures" / f"class {label}" / f"{number}.png")
    return folder


@pytest.fixture(scope="module", autouse=True)
def _small_presets():
    """Presets without weights have few blocks and are narrow."""
    original = igpt.ImageGPTBackbone.from_preset.__func__

    def from_preset(cls, name, **overrides):
        sizes = {} if igpt.get_preset(name).weights else SMALL
        return original(cls, name, **{**overrides, **sizes})

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(igpt.ImageGPTBackbone, "from_preset", classmethod(from_preset))
        yield


@pytest.fixture(scope="module")
def given(folder):
    """What pages take for granted, by name."""
    data = igpt.load_splits(igpt.load_image_folder(folder / "pictures", image_size=8))
    train_images, test_images = data.train.images, data.test.images
    palette = igpt.ColorPalette.fit(train_images, 64)
    batches = igpt.TrainingBatches(data.train, palette, batch_size=64)
    held_out = igpt.EvaluationBatches(data.validation, palette, batch_size=10)
    lm = igpt.ImageGPTCausalLM(igpt.ImageGPTBackbone.from_preset("igpt_nano"), palette=palette)
    lm.compile(**igpt.pretraining_recipe("igpt_nano", "ar", steps=10))
    return {**locals(), "igpt": igpt}


@pytest.mark.parametrize("path", [path for path in WITH_CODE if path.stem != "cluster"], ids=name_of)
def test_the_code_of_a_page_runs(path, folder, given, monkeypatch):
    """All blocks of a page in order, in one namespace."""
    for package in ("sklearn", "matplotlib", "keras_tuner", "safetensors"):
        pytest.importorskip(package)
    if path.stem != "README" and keras.backend.backend() != "torch":
        pytest.skip("what is called is tested on each backend elsewhere, and PyTorch compiles nothing")
    monkeypatch.chdir(folder)
    namespace = {name: given[name] for name in GIVEN.get(path.stem, ())}
    if path.stem == "web_pictures":
        shard = igpt.write_token_shard("web-tokens", "0.npy", given["palette"].encode(given["train_images"]), 64)
        igpt.write_token_manifest("web-tokens", [shard], given["palette"], 8)
        namespace["data"] = igpt.load_image_folder("pictures", image_size=8)  # in files
    for block in blocks(path, "python"):
        exec(compile(block, name_of(path), "exec"), namespace)
    if path.stem in ("start", "protocol"):
        assert (folder / "igpt.keras").is_file()
        assert (folder / "depth_curve.png").is_file()


def test_the_code_for_several_devices_runs(given, monkeypatch, tmp_path):
    program, on_tensorflow = blocks(DOCS / "cluster.md", "python")
    if keras.backend.backend() == "torch":
        pytest.skip("one device")
    monkeypatch.chdir(tmp_path)
    namespace = {"keras": keras, "igpt": igpt, **{name: given[name] for name in GIVEN["cluster"]}}
    if keras.backend.backend() == "tensorflow":
        import tensorflow

        exec(on_tensorflow, {**namespace, "tf": tensorflow})
        return
    monkeypatch.setattr(keras.distribution, "initialize", lambda: None)  # one process
    monkeypatch.setattr(igpt, "get_preset", lambda name: SimpleNamespace(architecture=SMALL))
    try:
        exec(program.replace("batch_size=128", "batch_size=8"), namespace)
    finally:
        keras.distribution.set_distribution(None)
    assert (tmp_path / "igpt.keras").is_file()


@pytest.mark.parametrize(
    "path", [*PAGES, *(ROOT / name for name in ("RESULTS.md", "CONTRIBUTING.md", "benchmarks/README.md"))], ids=name_of
)
def test_links_lead_somewhere(path):
    links = re.findall(r"\]\((?!https?:)([^)#\s]+)", path.read_text())
    assert [link for link in links if not (path.parent / link).exists()] == []


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_commands_exist(path):
    """Those of the package with all their arguments, targets of make, scripts and extras."""
    shell = "\n".join(blocks(path, "sh"))
    inline = [" ".join(text.split()) for text in re.findall(r"(?<!`)`([^`]+)`(?!`)", path.read_text())]
    lines = [*shell.replace("\\\n", " ").splitlines(), *(text for text in inline if " --" in text)]
    for line in lines:
        if "…" in line:
            continue
        words = shlex.split(line, comments=True)
        if words[:1] == ["keras-igpt"] and words[1] != "COMMAND":
            make_parser().parse_args(words[1:])
        elif words[:3] == ["python", "-m", "keras_igpt.curation"]:
            from keras_igpt.curation.command import _parser

            _parser().parse_known_args(words[3:])
        elif words[:1] == ["python"] and words[1].endswith(".py"):
            assert (ROOT / words[1]).is_file()
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"^make ([\w-]+)", "\n".join([shell, *inline]), flags=re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for names in re.findall(r"pip install (?:-e )?\"[\w.]+\[([\w,]+)\]", shell):
        assert set(names.split(",")) <= set(extras)


def test_the_page_of_commands_has_them_all():
    text = (DOCS / "commands.md").read_text()
    assert dict(re.findall(r"^\| \[`([\w-]+)`\]\(#\1\) \| (.*) \|$", text, flags=re.MULTILINE)) == COMMANDS
    for name in COMMANDS:
        assert re.search(rf"^## {name}\n\n```sh\nkeras-igpt {name}\b", text, flags=re.MULTILINE)


def test_the_table_of_sizes_is_what_estimate_computes():
    rows = re.findall(r"^\| `(igpt_\w+)` \| (.*) \|$", (DOCS / "choose.md").read_text(), flags=re.MULTILINE)
    assert len(rows) > 5
    for name, cells in rows:
        size, colors, parameters, batch, *figures = cells.split(" | ")
        preset = igpt.get_preset(name)
        plain = igpt.estimate(name, int(batch), backend="jax")
        lean = igpt.estimate(name, int(batch), dtype="mixed_bfloat16", remat=True, backend="jax")
        assert (size, colors) == (f"{preset.image_size}×{preset.image_size}", str(preset.vocabulary_size))
        assert parameters == f"{plain.parameters:,}"
        memory = [f"{found.training_memory / 2**30:.2f}" for found in (plain, lean)]
        assert figures == [*memory, f"{plain.training_flops / 1e12:,.3f}"]


def test_the_reference_has_every_public_name_once():
    from keras_igpt import curation

    entries = re.findall(
        r"^::: ([\w.]+)", "\n".join(path.read_text() for path in DOCS.glob("reference/*.md")), flags=re.MULTILINE
    )
    names = [entry.rsplit(".", 1)[1] for entry in entries if entry != "keras_igpt.plotting"]
    assert sorted(names) == sorted([*igpt.__all__, *curation.__all__])


@pytest.fixture(scope="module")
def hooks():
    return SimpleNamespace(**runpy.run_path(str(DOCS / "hooks.py")))


def test_the_site_has_every_page(hooks):
    yaml = pytest.importorskip("yaml")

    def pages(entry):
        if isinstance(entry, str):
            return [entry]
        return [page for part in (entry.values() if isinstance(entry, dict) else entry) for page in pages(part)]

    nav = pages(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"])
    assert sorted(nav) == sorted([*hooks.OUTSIDE, *(str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md"))])
    assert all((ROOT / path).is_file() for path in hooks.OUTSIDE.values())


@pytest.mark.parametrize(
    ("page", "markdown", "on_the_site"),
    [
        (
            "index.md",
            "[Start](docs/start.md#install) ![](docs/completions.png)",
            "[Start](start.md#install) ![](completions.png)",
        ),
        ("start.md", "[Results](../RESULTS.md), [examples](../examples/)", "[Results](results.md), examples"),
        ("reference/data.md", "[Start](../start.md) [Benchmarks](../../benchmarks/README.md)", None),
        ("results.md", "![curve](results/a/b.png) [site](https://keras.io)", None),
        ("start.md", "```\n[a](../examples/)\n```", None),
    ],
)
def test_links_on_the_site_lead_to_the_same(hooks, page, markdown, on_the_site):
    file = SimpleNamespace(file=SimpleNamespace(src_uri=page))
    expected = (
        markdown.replace("../../benchmarks/README.md", "../benchmarks.md") if on_the_site is None else on_the_site
    )
    assert hooks.on_page_markdown(markdown, file) == expected


@pytest.mark.parametrize(
    ("html", "refused"),
    [
        ('<script src="https://unpkg.com/shim"></script>', True),
        ('<link rel="stylesheet" href="//fonts.example/a.css">', True),
        ("@import 'https://fonts.example/a.css'", True),
        ('<a href="https://keras.io">Keras</a> <link rel="canonical" href="https://a.b"> <img src="a.png">', False),
    ],
)
def test_a_site_that_fetches_from_other_hosts_is_refused(hooks, html, refused):
    assert bool(hooks.FETCHED.search(html)) == refused
