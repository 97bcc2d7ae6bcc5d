"""Who may import whom, and what `import keras_igpt` may need."""

import ast
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import keras
import pytest

PACKAGE = Path(__file__).parent.parent / "keras_igpt"

# From the bottom up: each room imports its own modules and those of lower floors.
FLOORS = [
    {"support"},
    {"backend"},
    {"palette"},
    {"data", "model"},
    {"inference", "training", "plotting"},
    {"objectives"},
    {"evaluation", "describe"},
    {"curation", "checkpoints"},
    {"demo"},
    {"commands"},
    {"__main__"},
]

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
    "pillow_heif",
    "apache_beam",
    "safetensors",
    "huggingface_hub",
    "onnx",
    "onnxruntime",
    "gradio",
}


MODULES = sorted(
    path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py") if path.parts[-2:] != ("keras_igpt", "__init__.py")
)


def room_of(module):
    return module.parts[0].removesuffix(".py")


def imported_names(nodes):
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield node.module


def own_imports(module):
    tree = ast.parse((PACKAGE / module).read_text())
    return [name.split(".") for name in imported_names(ast.walk(tree)) if name.startswith("keras_igpt")]


def test_each_room_has_its_floor():
    assert {room_of(module) for module in MODULES} == set().union(*FLOORS)


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_imports_run_one_way(module):
    room = room_of(module)
    floor = next(number for number, rooms in enumerate(FLOORS) if room in rooms)
    allowed = {room}.union(*FLOORS[:floor])
    # Commands are written as a user's scripts are, with what the package exports.
    top = [["keras_igpt"]] if room == "commands" else []
    assert all(parts in top or (len(parts) > 1 and parts[1] in allowed) for parts in own_imports(module))
    assert not LATE & {name.split(".")[0] for name in imported_names(ast.parse((PACKAGE / module).read_text()).body)}


def test_backend_alone_asks_which_backend_runs():
    """Elsewhere it is asked for reports and messages; and Keras' private modules are named nowhere else."""
    elsewhere = "".join((PACKAGE / module).read_text() for module in MODULES if room_of(module) != "backend")
    assert elsewhere.count("keras.backend.backend()") <= 6
    assert "keras.src" not in elsewhere


def test_no_module_imports_itself_by_way_of_others():
    names = {".".join(module.with_suffix("").parts): module for module in MODULES if module.name != "__init__.py"}
    above = {name: {".".join(parts[1:]) for parts in own_imports(module)} for name, module in names.items()}
    while ready := {name for name, below in above.items() if not below & above.keys()}:
        above = {name: below for name, below in above.items() if name not in ready}
    assert not above


def run(script):
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)


# Python takes a module that is None in `sys.modules` for absent.
BLOCK = """
import sys
sys.modules.update(dict.fromkeys({blocked}))
"""


@pytest.mark.skipif(keras.backend.backend() == "tensorflow", reason="it brings JAX along")
def test_the_package_imports_where_the_extras_are_absent():
    absent = LATE - {keras.backend.backend()}
    script = BLOCK.format(blocked=absent) + (
        "import numpy, keras_igpt as igpt\n"
        "backbone = igpt.ImageGPTBackbone(vocabulary_size=4, image_size=2, num_layers=1, num_heads=1, hidden_dim=4)\n"
        "lm = igpt.ImageGPTCausalLM(backbone)\n"
        "print(lm.predict(numpy.zeros((2, 4), 'int32'), verbose=0).shape)\n"
    )
    result = run(script)
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
    "web": (
        {"apache_beam"},
        "from keras_igpt.curation import pipeline",
    ),
    "demo": ({"gradio"}, "from keras_igpt.demo.page import import_gradio; import_gradio()"),
    "tune": ({"keras_tuner"}, "igpt.DescendingLearningRateOracle('val_loss')"),
}


def test_an_absent_extra_is_named_in_one_line():
    script = BLOCK.format(blocked=set().union(*(absent for absent, _ in USES.values()))) + (
        "import numpy, keras_igpt as igpt, keras_igpt.plotting\n"
        "palette = igpt.ColorPalette.from_colors(numpy.eye(2, 3).astype('uint8'))\n"
    )
    for _, use in USES.values():
        script += f"try:\n    {use}\nexcept ImportError as error:\n    print(error)\n"
    result = run(script)
    assert result.returncode == 0, result.stderr
    lines = result.stdout.strip().splitlines()[-len(USES) :]
    for line, extra in zip(lines, USES, strict=True):
        assert f"pip install 'keras_igpt[{extra}]'" in line


@pytest.mark.parametrize(("chosen", "absent"), [(None, "tensorflow"), ("jax", "jax"), ("torch", "torch")])
def test_an_absent_backend_is_named_in_one_line(tmp_path, chosen, absent):
    script = BLOCK.format(blocked={absent, "tensorflow"}) + (
        "try:\n    import keras_igpt\nexcept ImportError as error:\n    print(error)\n"
    )
    environment = {name: value for name, value in os.environ.items() if name != "KERAS_BACKEND"}
    # Keras' settings of this machine are not to choose.
    environment |= {"KERAS_HOME": str(tmp_path)} | ({} if chosen is None else {"KERAS_BACKEND": chosen})
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env=environment, check=False
    )
    (line,) = result.stdout.splitlines()
    assert "KERAS_BACKEND" in line
    assert "pip install 'keras_igpt[jax]', 'keras_igpt[tensorflow]' or 'keras_igpt[torch]'" in line


def test_an_import_that_fails_for_another_reason_is_left_as_it_is():
    result = run(BLOCK.format(blocked={"ml_dtypes"}) + "import keras_igpt\n")
    assert "ml_dtypes" in result.stderr.splitlines()[-1]
    assert "KERAS_BACKEND" not in result.stderr


def test_the_onnx_extra_excludes_what_the_jax_extra_does():
    """What jax2onnx brings along is JAX too."""
    extras = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    wrong = {(part.partition(">")[0], version) for part in extras["jax"] for version in part.split(",")[1:]}
    assert wrong == {("jax", "!=0.10.2"), ("jaxlib", "!=0.10.2")}
    assert {name + version for name, version in wrong} <= set(extras["onnx"])
