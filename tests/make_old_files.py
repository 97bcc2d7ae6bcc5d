"""Makes what lies in `old_files`. It was run at revision 404fac0, and is kept to say how. What is drawn at random has
changed since, once: those integers are of the revision that changed it.

    for backend in torch jax tensorflow; do KERAS_BACKEND=$backend python tests/make_old_files.py files; done
    for backend in torch jax tensorflow; do KERAS_BACKEND=$backend python tests/make_old_files.py numbers; done

`files` writes models, checkpoints and caches where they are missing, and `numbers` what they give on this backend. The
last bits of a float belong to one kind of machine and to one version of each library, which are noted beside them. To
hold a later revision to the bits on another machine, check out 404fac0, add this script, `test_old_files.py` and
`old_files` as they are now, and make the numbers there.
"""

import contextlib
import json
import shutil
import sys
import tempfile
from pathlib import Path

import keras
import numpy as np
from conftest import make_causal_lm, make_masked_lm, randomize
from test_old_files import (
    BACKEND,
    CACHES,
    CLASSES,
    DATA,
    MODELS,
    PRESETS,
    TOKENS,
    TRAININGS,
    CutOff,
    CutOffError,
    Restored,
    contents_of,
    copy_pictures,
    integers_of_pictures,
    integers_of_seeds,
    machine,
    numbers_of,
    open_cache,
    preset_numbers,
    search,
    train,
)

import keras_igpt as igpt


def make_palette():
    steps = np.array([0, 85, 170, 255], "uint8")
    red, green = np.meshgrid(steps, steps, indexing="ij")
    return igpt.ColorPalette.from_colors(np.stack([red.ravel(), green.ravel(), np.zeros(16, "uint8")], axis=-1))


def make_model(name, palette):
    """A model with random weights. All but the quantised one are trained, so that the optimizer has a state."""
    if name == "int8_causal_lm":
        model = randomize(make_causal_lm(palette, num_layers=1))
        model.quantize("int8")
        return model
    targets = None
    if name == "causal_lm":
        model = make_causal_lm(palette, hidden_dim=16)
        recipe = igpt.pretraining_recipe("igpt_small", "ar", steps=50, accumulation_steps=2, clip_norm=1.0)
    else:
        layers = 1 if name.startswith("classifier") else 2
        model = make_masked_lm(palette, mask_rate=0.3, mask_seed=2, hidden_dim=16, num_layers=layers)
        recipe = igpt.pretraining_recipe("igpt_small", "bert", steps=50, ema_momentum=0.9)
    if name.startswith("classifier"):
        model = igpt.ImageGPTImageClassifier(model, num_classes=3, generative_weight=0.5)
        recipe, targets = igpt.finetuning_recipe(0.001), CLASSES
    randomize(model)
    model.compile(**recipe)
    # An odd number leaves a gradient in the optimizer that is to be averaged with the next one.
    steps = 3 if name == "causal_lm" else 2
    model.fit(TOKENS, targets, batch_size=8, epochs=steps, shuffle=False, verbose=0)
    return model


def make_pictures(palette, folder):
    """Ten pictures of palette colours; every second one is wider than high."""
    from PIL import Image

    random = np.random.default_rng(0)
    for number in range(10):
        path = folder / ("ant", "bee")[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        tokens = random.integers(0, 16, 4 * (4 + 2 * (number // 2 % 2)))
        Image.fromarray(palette.decode(tokens, (4, len(tokens) // 4))).save(path)


def make_caches(palette):
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        copy_pictures(Path(folder))
        for name in CACHES:
            open_cache(name, palette)
            shutil.copytree(name, DATA / "caches" / name)


def make_files():
    """Writes what is missing; of the files that differ by backend, this one's."""
    for folder in ("models", "trainings", "pictures", "caches"):
        (DATA / folder).mkdir(exist_ok=True, parents=True)
    palette = make_palette()
    if not (DATA / "palette.npy").exists():
        palette.save(DATA / "palette.npy")
    for name in MODELS:
        path = DATA / "models" / f"{name}.keras"
        if not path.exists():
            make_model(name, palette).save(path)
    for kind in TRAININGS:
        folder = DATA / "trainings" / f"{kind}_{BACKEND}"
        if not folder.exists():
            with contextlib.suppress(CutOffError):
                train(kind, [igpt.ExactResume(folder, every=1, keep=1), CutOff()])
    if not any((DATA / "pictures").iterdir()):
        make_pictures(palette, DATA / "pictures")
    if not any((DATA / "caches").iterdir()):
        make_caches(palette)
    if BACKEND == "torch" and not (DATA / "search").exists():
        make_search()


def make_search():
    with tempfile.TemporaryDirectory() as folder:
        search(folder)
        (DATA / "search").mkdir()
        for name in ("trials.json", "report.json"):
            shutil.copy(Path(folder) / name, DATA / "search" / name)


def make_numbers():
    """Writes what the files give on this backend and, where they are missing, the integers that seeds decide."""
    numbers = {"machine": machine()}
    palette = igpt.ColorPalette.load(DATA / "palette.npy")
    for path in sorted((DATA / "models").iterdir()):
        model = keras.saving.load_model(path)
        given = numbers_of(model) if path.stem in MODELS else {"contents": contents_of(model)}
        numbers |= {f"{path.stem}/{key}": value for key, value in given.items()}
    for name in PRESETS:
        numbers |= {f"{name}/{key}": value for key, value in preset_numbers(name).items()}
    for kind in TRAININGS:
        # The one that was never cut off. What was restored into the other is the file's, and the same on any machine.
        with tempfile.TemporaryDirectory() as folder:
            checkpoint = shutil.copytree(DATA / "trainings" / f"{kind}_{BACKEND}", Path(folder) / "checkpoints")
            restored = Restored()
            train(kind, [igpt.ExactResume(checkpoint, every=100), restored])
        given = {"restored": restored.contents, **train(kind, [])}
        numbers |= {f"training of {kind}/{key}": value for key, value in given.items()}
    np.savez_compressed(DATA / f"numbers_{BACKEND}.npz", **numbers)
    write_integers("seeds", integers_of_seeds())
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        copy_pictures(Path(folder))
        write_integers("pictures", integers_of_pictures(palette))


def write_integers(name, values):
    """Writes them, a name a line; where they lie already, they are those of another backend, and no others."""
    path = DATA / f"integers_of_{name}.json"
    lines = ",\n".join(f"{json.dumps(key)}: {json.dumps(value)}" for key, value in values.items())
    text = f"{{\n{lines}\n}}\n"
    if path.exists() and path.read_text() != text:
        raise RuntimeError(f"{path} holds other integers")
    path.write_text(text)


if __name__ == "__main__":
    {"files": make_files, "numbers": make_numbers}[sys.argv[1]]()
