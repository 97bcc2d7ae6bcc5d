"""What several test modules share: tiny models, and how tensors are read and set."""

import gc
import os
import shutil
import subprocess
import sys
from importlib import metadata, util
from pathlib import Path
from types import SimpleNamespace

# Before Keras or a backend is imported.
os.environ.setdefault("KERAS_BACKEND", "jax")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# On JAX most of the suite's time is compiling the same small programs again, for each model and process anew.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parent.parent / ".cache" / "programs"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
# Halves the time of compiling. XLA ends the process at a flag that it does not know, so only where it is known.
if util.find_spec("jaxlib") and metadata.version("jaxlib").startswith("0.10."):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_cpu_use_fusion_emitters=false"

import keras
import numpy as np
import pytest

import keras_igpt as igpt
from keras_igpt.evaluation.probe_report import FinalReport, LayerReport, ProbeReport, ValidationReport, describe_probed

TINY = {"vocabulary_size": 16, "image_size": 4, "num_layers": 2, "num_heads": 2, "hidden_dim": 32}


@pytest.fixture(scope="module", autouse=True)
def _swept():
    """What is alive by now stays: collecting garbage looks at what a module's tests make, not at all of the suite's."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _seeded():
    keras.utils.set_random_seed(0)


@pytest.fixture(scope="session")
def palette():
    """Sixteen colours whose distances are all distinct enough to survive any rounding."""
    steps = np.array([0, 85, 170, 255], "uint8")
    red, green = np.meshgrid(steps, steps, indexing="ij")
    colors = np.stack([red.ravel(), green.ravel(), np.zeros(16, "uint8")], axis=-1)
    return igpt.ColorPalette.from_colors(colors)


def make_backbone(**overrides):
    return igpt.ImageGPTBackbone(**{**TINY, **overrides})


def make_causal_lm(palette=None, **overrides):
    return igpt.ImageGPTCausalLM(make_backbone(**overrides), palette=palette)


def make_masked_lm(palette=None, mask_rate=0.15, mask_seed=0, **overrides):
    backbone = make_backbone(attention="bidirectional", **overrides)
    return igpt.ImageGPTMaskedLM(backbone, palette=palette, mask_rate=mask_rate, mask_seed=mask_seed)


def random_tokens(count, num_tokens=16, vocabulary_size=16, seed=0):
    return np.random.default_rng(seed).integers(0, vocabulary_size, (count, num_tokens)).astype("int32")


def randomize(model, seed=0, scale=0.3):
    """Gives every weight, zero-initialised heads and unit gains included, a random value."""
    random = np.random.default_rng(seed)
    for weight in model.trainable_weights:
        center = 1.0 if weight.name == "gain" else 0.0
        weight.assign(center + scale * random.standard_normal(weight.shape))
    return model


def to_numpy(tensor):
    return keras.ops.convert_to_numpy(tensor)


def value_and_gradient(function, inputs, upstream):
    """A function's value and the gradient of its product with `upstream`, as arrays, on any backend."""
    if keras.backend.backend() == "jax":
        import jax

        value, pull_back = jax.vjp(function, inputs)
        return to_numpy(value), to_numpy(pull_back(upstream)[0])
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        inputs = tf.constant(inputs)
        with tf.GradientTape() as tape:
            tape.watch(inputs)
            value = function(inputs)
        return to_numpy(value), to_numpy(tape.gradient(value, inputs, output_gradients=tf.constant(upstream)))
    import torch

    inputs = torch.tensor(inputs, requires_grad=True)
    value = function(inputs)
    value.backward(torch.tensor(upstream))
    return value.detach().numpy(), inputs.grad.numpy()


def weight_gradients(model, inputs):
    """The output of a model and the gradients of its sum by all weights, compiled as in training where that is so."""
    if keras.backend.backend() == "jax":
        import jax

        def total(weights):
            return model.stateless_call(weights, [], inputs)[0].sum()

        return [np.asarray(array) for array in jax.jit(jax.grad(total))([w.value for w in model.trainable_variables])]
    weights = model.trainable_weights
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        @tf.function
        def gradients():
            with tf.GradientTape() as tape:
                total = tf.reduce_sum(model(inputs))
            return tape.gradient(total, [weight.value for weight in weights])

        return [np.asarray(tf.convert_to_tensor(array)) for array in gradients()]
    for weight in weights:
        weight.value.grad = None
    model(inputs).sum().backward()
    return [weight.value.grad.detach().numpy() for weight in weights]


def prepare(root, dataset, counts, size, noise=False):
    """Has TensorFlow Datasets prepare a small set under a data set's name.

    Picture k of a split is all k, of several widths; or, with noise, of one size.
    """
    tfds = pytest.importorskip("tensorflow_datasets")
    pytest.importorskip("tensorflow")

    class Prepared(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        name = dataset
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            features = {
                "image": tfds.features.Image(shape=(None, None, 3), encoding_format="png" if noise else "jpeg"),
                "label": tfds.features.ClassLabel(names=["ant", "bee", "cat"]),
                "id": tfds.features.Text(),
            }
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

        def _split_generators(self, manager):
            return {split: self._generate_examples(count) for split, count in counts.items()}

        def _generate_examples(self, count):
            random = np.random.default_rng(0)
            for index in range(count):
                image = np.full((size, size + index % 3, 3), index, "uint8")
                if noise:
                    image = random.integers(0, 256, (size, size, 3)).astype("uint8")
                yield index, {"image": image, "label": index % 3, "id": str(index)}

    config = tfds.download.DownloadConfig(num_shards=2)
    Prepared(data_dir=root).download_and_prepare(download_config=config)


@pytest.fixture(scope="session")
def prepared(tmp_path_factory):
    """A folder of small data sets under the paper's names, as TensorFlow Datasets prepares them."""
    root = tmp_path_factory.mktemp("tfds")
    prepare(root, "imagenet2012", {"train": 100, "validation": 7}, size=9)
    prepare(root, "cifar100", {"train": 50, "test": 6}, size=9)
    prepare(root, "stl10", {"train": 50, "test": 6, "unlabelled": 5}, size=9)
    return root


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A folder that stands for the Hugging Face hub, with what Keras calls of the hub's package; nothing is sent."""
    huggingface_hub = pytest.importorskip("huggingface_hub")
    root = tmp_path / "hub"

    class Api:
        def __init__(self, **library):
            assert library["library_name"] == "keras"

        def create_repo(self, name, exist_ok):
            (root / name).mkdir(parents=True, exist_ok=exist_ok)
            return SimpleNamespace(repo_id=name)

        def upload_folder(self, repo_id, folder_path, commit_message):
            shutil.copytree(folder_path, root / repo_id, dirs_exist_ok=True)

    def snapshot_download(repo_id, library_name, library_version):
        if not (root / repo_id).is_dir():
            raise OSError(f"404 Client Error.\n\nRepository Not Found for {repo_id}")
        return str(root / repo_id)

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return root


@pytest.fixture
def small_disk(tmp_path):
    """A disk of one megabyte."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("only root can mount a disk of its own")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


def weights_trained_in_parts(batches_from, *parts):
    """Trains a small model for several runs of steps, each with `batches_from(first_step)`; its weights."""
    keras.utils.set_random_seed(1)
    model = make_masked_lm(num_layers=1)
    model.compile(optimizer=keras.optimizers.SGD(0.1, momentum=0.9))
    step = 0
    for steps in parts:
        model.fit(batches_from(step), epochs=1, steps_per_epoch=steps, verbose=0)
        step += steps
    assert int(to_numpy(model.optimizer.iterations)) == step
    return [to_numpy(weight) for weight in model.trainable_weights]


def load_script(path):
    """Imports a script by its path."""
    spec = util.spec_from_file_location(path.stem, path)
    module = util.module_from_spec(spec)
    sys.modules[path.stem] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def probe_report(lm, final=True):
    """Returns an invented report of a probe at depths 0, 1 and 2."""
    lines = tuple(LayerReport((depth,), 1.0, 0.25 + 0.125 * depth, 9, True) for depth in range(3))
    return ProbeReport(
        chosen_on_validation=ValidationReport(lines, 2, None),
        final_on_test=FinalReport(1234, {depth: 0.3 + 0.1 * depth for depth in range(3)}, None) if final else None,
        model=describe_probed(lm),
        which="normed",
        pooling="mean",
        solver="L-BFGS",
        strengths=(1.0,),
        max_iterations=9,
        num_train=4000,
        num_validation=500,
        num_classes=10,
        mask_seed=None,
        backend="torch",
    )
