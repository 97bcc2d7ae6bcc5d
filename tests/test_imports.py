"""Who may import whom, and what `import keras_igpt` may need."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "keras_igpt"

# Each module and the modules of the package it may import: one way, from the top down.
ALLOWED = {
    "presets": set(),
    "color_table": set(),
    "palette": {"atomic_file", "color_table"},
    "arguments": set(),
    "direct_call": set(),
    "layers": {"direct_call", "recomputation", "row_reductions"},
    "recomputation": set(),
    "row_reductions": set(),
    "attention": {"direct_call", "recomputation", "row_reductions"},
    "compilation_cache": set(),
    "distribution": set(),
    "estimate": {"presets"},
    "checkpoint_file": {"atomic_file"},
    "training_settings": set(),
    "exact_resume": {"atomic_file", "checkpoint_file", "distribution", "training_settings"},
    "finite_loss": set(),
    "inference": {"arguments", "distribution"},
    "training": {"presets"},
    "data.repeatable": set(),
    "data.augmentation": {"data.repeatable"},
    "data.examples": {"data.repeatable", "palette"},
    "data.image_files": {"data.augmentation", "data.examples", "palette"},
    "data.tfds_reader": {"data.image_files"},
    "data.datasets": {"data.examples", "data.image_files", "data.repeatable", "data.tfds_reader"},
    "data.batches": {"data.augmentation", "data.examples", "data.image_files", "data.repeatable", "palette"},
    "data.token_cache": {"atomic_file", "data.examples", "data.image_files", "palette"},
    "plotting": {"palette"},
    "backbone": {"attention", "direct_call", "distribution", "layers", "preset_weights", "presets", "quantization"},
    "generation": {"arguments", "given_pictures", "inference", "palette", "sampling", "untracked"},
    "token_model": {"backbone", "distribution", "exact_resume", "finite_loss", "palette", "quantization"},
    "pixel_models": {
        "backbone",
        "distribution",
        "generation",
        "layers",
        "masked_generation",
        "palette",
        "preset_weights",
        "scoring",
        "token_model",
    },
    "image_classifier": {
        "backbone",
        "data.repeatable",
        "inference",
        "mask_vote",
        "palette",
        "pixel_models",
        "presets",
        "token_model",
    },
    "mask_vote": {"data.repeatable"},
    "attention_maps": {"arguments", "sampling"},
    "describe": {
        "backbone",
        "estimate",
        "image_classifier",
        "pixel_models",
        "presets",
        "quantization",
        "token_model",
        "training",
    },
    "export": {"features", "image_classifier", "palette", "pixel_models", "quantization"},
    "given_pictures": {"data.image_files", "palette"},
    "masked_generation": {
        "arguments",
        "data.repeatable",
        "given_pictures",
        "inference",
        "palette",
        "sampling",
        "untracked",
    },
    "preset_weights": {"atomic_file", "presets", "quantization"},
    "quantization": {"untracked", "whole_saving"},
    "whole_saving": {"atomic_file"},
    "sampling": {"arguments", "data.repeatable", "palette"},
    "scoring": {
        "arguments",
        "data.batches",
        "data.repeatable",
        "distribution",
        "given_examples",
        "inference",
        "mask_vote",
        "palette",
        "untracked",
    },
    "untracked": set(),
    "lbfgs": set(),
    "logistic_regression": {"lbfgs", "row_reductions"},
    "given_examples": {"data.batches", "data.examples"},
    "features": {
        "arguments",
        "atomic_file",
        "data.batches",
        "data.examples",
        "distribution",
        "given_examples",
        "inference",
        "pixel_models",
    },
    "linear_probe": {
        "atomic_file",
        "data.batches",
        "features",
        "given_examples",
        "logistic_regression",
        "pixel_models",
        "plotting",
    },
    "low_data": {
        "atomic_file",
        "data.batches",
        "data.examples",
        "features",
        "given_examples",
        "logistic_regression",
        "palette",
        "pixel_models",
    },
    "atomic_file": set(),
    "learning_rate_oracle": set(),
    "tuning": {"atomic_file", "data", "distribution", "exact_resume", "learning_rate_oracle", "token_model"},
    "checkpoint_tensors": {"backbone", "palette", "pixel_models"},
    "openai_checkpoint": {"checkpoint_tensors", "palette", "pixel_models"},
    "huggingface_files": {"checkpoint_tensors"},
    "huggingface_checkpoint": {
        "atomic_file",
        "checkpoint_tensors",
        "distribution",
        "huggingface_files",
        "palette",
        "pixel_models",
        "quantization",
    },
    "palette_change": {"distribution", "palette", "pixel_models", "quantization"},
}

# Imported where they are used, and nowhere at the top.
LATE = {
    "jax",
    "tensorflow",
    "torch",
    "sklearn",
    "threadpoolctl",
    "tensorflow_datasets",
    "keras_tuner",
    "matplotlib",
    "PIL",
    "safetensors",
    "huggingface_hub",
    "onnx",
    "onnxruntime",
}


def name_of(path):
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts)


def imported_names(nodes):
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield node.module


def test_the_table_names_every_module():
    modules = {name_of(path) for path in PACKAGE.rglob("*.py") if path.stem != "__init__"}
    assert modules == set(ALLOWED)


@pytest.mark.parametrize("module", ALLOWED)
def test_imports_run_one_way(module):
    tree = ast.parse((PACKAGE / f"{module.replace('.', '/')}.py").read_text())
    own = {
        name.removeprefix("keras_igpt.") for name in imported_names(ast.walk(tree)) if name.startswith("keras_igpt.")
    }
    assert own == ALLOWED[module]
    assert not LATE & {name.split(".")[0] for name in imported_names(tree.body)}


def run(script, **environment):
    return subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        check=False,
    )


# Python takes a module that is None in `sys.modules` for absent.
BLOCK = """
import sys
sys.modules.update(dict.fromkeys({blocked}))
"""


@pytest.mark.parametrize("backend", ["jax", "torch"])
def test_the_package_imports_where_the_extras_are_absent(backend):
    pytest.importorskip(backend)
    absent = LATE - {backend}
    script = BLOCK.format(blocked=absent) + (
        "import numpy, keras_igpt as igpt\n"
        "backbone = igpt.ImageGPTBackbone(vocabulary_size=4, image_size=2, num_layers=1, num_heads=1, hidden_dim=4)\n"
        "lm = igpt.ImageGPTCausalLM(backbone)\n"
        "print(lm.predict(numpy.zeros((2, 4), 'int32'), verbose=0).shape)\n"
    )
    result = run(script, KERAS_BACKEND=backend)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip().endswith("(2, 4, 4)")


USES = {
    "palette": (
        {"sklearn"},
        "igpt.ColorPalette.fit(numpy.random.randint(0, 256, (1, 9, 9, 3)).astype('uint8'), 2)",
    ),
    "plot": ({"matplotlib"}, "igpt.plotting.plot_palette(palette)"),
    "data": (
        {"PIL"},
        "igpt.load_arrays(*[(numpy.zeros((9, 4, 4, 3), 'uint8'), numpy.zeros(9, 'int32'))] * 2, image_size=2)",
    ),
    "tune": ({"keras_tuner"}, "igpt.DescendingLearningRateOracle('val_loss')"),
}


@pytest.mark.parametrize("extra", USES)
def test_an_absent_extra_is_named_in_one_line(extra):
    absent, use = USES[extra]
    script = BLOCK.format(blocked=absent) + (
        "import numpy, keras_igpt as igpt, keras_igpt.plotting\n"
        "palette = igpt.ColorPalette.from_colors(numpy.eye(2, 3).astype('uint8'))\n"
        f"try:\n    {use}\nexcept ImportError as error:\n    print(error)\n"
    )
    result = run(script)
    assert result.returncode == 0, result.stderr
    assert f"pip install 'keras_igpt[{extra}]'" in result.stdout.strip().splitlines()[-1]
