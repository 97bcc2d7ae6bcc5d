"""Layouts by path; and, in processes with virtual devices of their own, training equal to that of one device."""

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
from conftest import TINY, make_backbone, make_causal_lm, make_masked_lm, to_numpy

import keras_igpt as igpt
from keras_igpt.backend.processes import batch_divisor, check_one_process, check_rows, host_array
from keras_igpt.training.distribution import layout_map, make_distribution, save_model

TESTS = Path(__file__).parents[1]
BACKEND = keras.backend.backend()


def make_mesh(shape=(1, 2), axes=("batch", "model")):
    return keras.distribution.DeviceMesh(shape, axes, [f"cpu:{device}" for device in range(np.prod(shape))])


MODELS = {
    "backbone": lambda: make_backbone(attention="bidirectional", projection_bias=True, name="renamed"),
    "causal": make_causal_lm,
    "masked": make_masked_lm,
    "classifier": lambda: igpt.ImageGPTImageClassifier(make_masked_lm(), num_classes=3),
}


@pytest.mark.parametrize("kind", MODELS)
def test_the_weights_of_blocks_and_logits_are_shared_out_and_all_others_whole(kind):
    layouts = layout_map(make_mesh(), igpt.Architecture(**TINY))
    for variable in MODELS[kind]().variables:
        matching = [key for key in layouts if re.fullmatch(key, variable.path)]
        divided = re.search(r"attention/|feed_forward/|pixel_head", variable.path) is not None
        # The biases of sums over devices are added once.
        divided = divided and not re.search(r"(output_projection|contraction)/bias", variable.path)
        assert len(matching) == divided, variable.path
        if divided:
            axes = layouts[matching[0]].axes
            assert axes.count("model") == 1
            assert len(axes) == len(variable.shape), variable.path
            assert variable.shape[axes.index("model")] % 2 == 0


@pytest.mark.parametrize(
    ("axes", "sizes", "message"),
    [
        (("data", "model"), {}, r"must have the axes 'batch' and 'model'. Received: \('data', 'model'\)"),
        (("batch", "model"), {"num_heads": 3}, "divides num_heads=3. Received: 2 devices along it"),
        (("batch", "model"), {"vocabulary_size": 9}, "divides vocabulary_size=9. Received: 2 devices along it"),
    ],
)
def test_a_mesh_that_does_not_fit(axes, sizes, message):
    with pytest.raises(ValueError, match=message):
        layout_map(make_mesh(axes=axes), {**TINY, **sizes})


@pytest.mark.skipif(BACKEND == "jax", reason="JAX has distributions")
def test_a_backend_without_distributions():
    with pytest.raises(ValueError, match=f"`KERAS_BACKEND` must be 'jax'.* Received: '{BACKEND}'"):
        make_distribution(TINY)


def test_on_one_device_nothing_changes(tmp_path):
    assert batch_divisor() == 1
    check_rows(7, "x")
    check_one_process("predict")
    model = make_masked_lm()
    for variable in model.variables:
        array = host_array(variable)
        assert (array.dtype, array.shape) == (variable.dtype, tuple(variable.shape))
        np.testing.assert_array_equal(array, to_numpy(variable))
    save_model(model, tmp_path / "model.keras")
    opened = keras.saving.load_model(tmp_path / "model.keras")
    for variable, expected in zip(opened.variables, model.variables, strict=True):
        np.testing.assert_array_equal(host_array(variable), host_array(expected))


def start(*command, devices=8):
    # Compiling takes most of the time, and what is compiled runs for a few steps only.
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
    return subprocess.Popen(
        [sys.executable, *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=TESTS,
        env={**os.environ, "XLA_FLAGS": flags, "KERAS_BACKEND": BACKEND},
    )


def assert_passes(module):
    process = start("-m", "pytest", module)
    output, _ = process.communicate()
    assert process.returncode == 0, output
    assert " passed" in output


@pytest.mark.skipif(BACKEND != "jax", reason="Keras distributes on JAX alone")
def test_eight_devices_on_jax():
    assert_passes("distribution_jax.py")


@pytest.mark.skipif(BACKEND != "tensorflow", reason="a strategy of TensorFlow")
def test_two_replicas_on_tensorflow():
    assert_passes("distribution_tensorflow.py")


@pytest.fixture(scope="module")
def alone():
    """What distribution_process.py does, on the one device of this process."""
    from distribution_jax import make, train

    return train(make("masked"))


@pytest.mark.skipif(BACKEND != "jax", reason="Keras distributes on JAX alone")
def test_two_processes(alone, tmp_path):
    from distribution_jax import EXAMPLES

    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    processes = [start("distribution_process.py", address, "2", str(rank), str(tmp_path), devices=2) for rank in (0, 1)]
    outputs = [process.communicate()[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], "\n".join(outputs)
    figures, predicted, *state = alone
    # A model a device; and one model over all four, so that both processes read the whole batch.
    for model_devices, shards in {1: 2, 4: 1}.items():
        for rank, output in enumerate(outputs):
            assert f"{model_devices} devices a model, shard {rank % shards} of {shards}\n" in output
            assert output.count("`predict` must run in one process") == 2
        np.testing.assert_allclose(np.load(tmp_path / f"{model_devices}.npy"), figures, rtol=1e-5)
        opened = keras.saving.load_model(tmp_path / f"{model_devices}.keras")
        for variable, expected in zip([*opened.optimizer.variables, *opened.variables], state, strict=True):
            np.testing.assert_allclose(host_array(variable), expected, rtol=1e-5, atol=1e-5)
        again = opened.predict(igpt.EvaluationBatches(EXAMPLES, None, batch_size=16), verbose=0)
        np.testing.assert_allclose(again, predicted, atol=1e-5)
