import sys

import numpy as np
import pytest
from conftest import random_tokens, to_numpy
from openai_reference import generative_loss, random_variables, write_checkpoint

import keras_igpt as igpt
from keras_igpt.checkpoints.openai import load_openai_checkpoint

pytest.importorskip("tensorflow", reason="TensorFlow reads and writes OpenAI's checkpoints")

SIZES = [
    {},
    {"layers": 1, "heads": 1, "width": 8},
    {"colors": 50, "positions": 25, "layers": 3, "heads": 4, "width": 24},
]


def checkpoint(folder, variables=None, name="model.ckpt-1000000"):
    write_checkpoint(folder / name, random_variables() if variables is None else variables)
    return folder


@pytest.mark.parametrize("sizes", SIZES)
def test_an_autoregressive_checkpoint_has_the_released_codes_loss(tmp_path, sizes):
    variables = random_variables(**sizes)
    lm = load_openai_checkpoint(checkpoint(tmp_path, variables))
    assert isinstance(lm, igpt.ImageGPTCausalLM)
    tokens = random_tokens(3, lm.backbone.num_tokens, lm.backbone.vocabulary_size)
    loss = lm.compute_loss(tokens, y_pred=lm(tokens), training=False)
    assert float(to_numpy(loss)) == pytest.approx(generative_loss(variables, tokens), abs=1e-5)


@pytest.mark.parametrize("sizes", SIZES)
def test_a_checkpoint_without_start_vector_is_berts(tmp_path, sizes):
    variables = random_variables(**sizes, bert=True)
    lm = load_openai_checkpoint(checkpoint(tmp_path, variables))
    assert isinstance(lm, igpt.ImageGPTMaskedLM)
    assert lm.mask_rate == 0.15
    tokens = random_tokens(3, lm.backbone.num_tokens, lm.backbone.vocabulary_size)
    mask = np.random.default_rng(1).random(tokens.shape) < 0.3
    mask[:, 3] = True
    inputs = {"token_ids": tokens, "position_mask": mask}
    loss = lm.compute_loss(inputs, y_pred=lm(inputs), training=False)
    assert float(to_numpy(loss)) == pytest.approx(generative_loss(variables, tokens, mask), abs=1e-5)


def test_sizes_palette_and_policy(tmp_path, palette):
    palette.save(checkpoint(tmp_path, random_variables(heads=4)) / "kmeans_centers.npy")
    lm = load_openai_checkpoint(tmp_path, dtype="mixed_bfloat16", remat=True)
    backbone = lm.backbone
    assert (backbone.vocabulary_size, backbone.image_size, backbone.num_layers) == (16, 4, 2)
    assert (backbone.num_heads, backbone.hidden_dim, backbone.normalization) == (4, 32, "rms_norm")
    assert backbone.remat
    assert backbone.compute_dtype == "bfloat16"
    assert lm.palette == palette


def test_training_goes_on_from_the_weights(tmp_path):
    variables = random_variables()
    lm = load_openai_checkpoint(checkpoint(tmp_path, variables))
    assert lm.palette is None
    tokens = random_tokens(8)
    lm.compile(optimizer="adam")
    history = lm.fit(tokens, batch_size=8, epochs=3, verbose=0).history["loss"]
    assert history[0] == pytest.approx(generative_loss(variables, tokens), abs=1e-4)
    assert history[2] < history[0]


def test_optimizer_state_is_left_out(tmp_path):
    variables = random_variables()
    slots = {f"{name}/{slot}": array for name, array in variables.items() for slot in ("Adam", "Adam_1", "adam_m")}
    others = {"global_step": np.int64(7), "beta1_power": np.float32(0.9), "model/beta2_power": np.float32(0.9)}
    others["model/clf/wclf"] = np.zeros((10, 4), np.float32)
    lm = load_openai_checkpoint(checkpoint(tmp_path, variables | slots | others))
    np.testing.assert_array_equal(to_numpy(lm.pixel_head.kernel), variables["model/wtet"].T)


def test_of_several_checkpoints_one_is_named(tmp_path):
    checkpoint(tmp_path, random_variables(seed=1), "model.ckpt-131000")
    newer = random_variables(seed=2)
    checkpoint(tmp_path, newer, "model.ckpt-1000000")
    with pytest.raises(ValueError, match=r"must hold one checkpoint.*model\.ckpt-1000000, model\.ckpt-131000"):
        load_openai_checkpoint(tmp_path)
    lm = load_openai_checkpoint(tmp_path / "model.ckpt-1000000")
    np.testing.assert_array_equal(to_numpy(lm.backbone.final_norm.gain), newer["model/ln_f/g"])


def test_all_that_is_wrong_with_the_tensors_is_named_at_once(tmp_path):
    variables = random_variables()
    del variables["model/h1/mlp/c_fc/w"], variables["model/wtet"]
    variables["model/h0/ln_1/g"] = np.ones(31, "float32")
    variables["model/head/w"] = np.ones((10, 32), "float32")
    with pytest.raises(ValueError, match="must hold the weights of one Image GPT") as caught:
        load_openai_checkpoint(checkpoint(tmp_path, variables))
    message = str(caught.value)
    assert "missing: model/wtet, model/h1/mlp/c_fc/w" in message
    assert "unknown: model/head/w" in message
    assert "of another shape: model/h0/ln_1/g (31,) instead of (32,)" in message


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        (
            {f"dense_{layer}/kernel": np.ones((2, 2), "float32") for layer in range(3)},
            r"must be an Image GPT of OpenAI.*3 tensors, dense_0/kernel",
        ),
        (random_variables(positions=15), r"square images.*15 positions"),
        (random_variables() | {"model/sos": np.full(32, np.nan, "float32")}, r"finite weights.*model/sos"),
        (random_variables() | {"model/sos": np.full(32, b"1.5")}, r"ckpt-1000000 must hold real.*model/sos of object"),
        (random_variables() | {"model/sos": np.full(32, 1j, "complex64")}, r"real numbers.*model/sos of complex64"),
    ],
)
def test_a_model_that_does_not_fit_is_refused(tmp_path, variables, message):
    with pytest.raises(ValueError, match=message):
        load_openai_checkpoint(checkpoint(tmp_path, variables))


@pytest.mark.parametrize(
    ("clusters", "message"),
    [
        (np.linspace(-1, 1, 15).reshape(5, 3), "must be as many as the model's 16 colours.*5 clusters"),
        (np.linspace(0, 255, 48).reshape(16, 3), r"kmeans_centers\.npy must hold the colour clusters"),
    ],
)
def test_clusters_that_do_not_fit_are_refused(tmp_path, clusters, message):
    np.save(checkpoint(tmp_path) / "kmeans_centers.npy", clusters)
    with pytest.raises(ValueError, match=message):
        load_openai_checkpoint(tmp_path)


def damage(folder, how):
    index = folder / "model.ckpt-1000000.index"
    shard = folder / "model.ckpt-1000000.data-00001-of-00003"
    if how == "truncated index":
        index.write_bytes(index.read_bytes()[:100])
    elif how == "foreign index":
        index.write_bytes(b"no checkpoint" * 99)
    elif how == "truncated data":
        shard.write_bytes(shard.read_bytes()[:100])
    elif how == "changed data":
        content = bytearray(shard.read_bytes())
        content[200] ^= 1
        shard.write_bytes(content)
    elif how == "missing data":
        shard.unlink()
    elif how == "no data":
        for file in folder.glob("*.data-*"):
            file.unlink()
    else:
        index.unlink()


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("truncated index", r"model\.ckpt-1000000\.index must be the index of a TensorFlow checkpoint"),
        ("foreign index", r"model\.ckpt-1000000\.index must be the index of a TensorFlow checkpoint"),
        ("truncated data", r"data files of .*model\.ckpt-1000000 must be whole.*cannot be read"),
        ("changed data", r"data files of .*model\.ckpt-1000000 must be whole.*cannot be read"),
        ("missing data", r"all its data files.*none of model\.ckpt-1000000\.data-00001-of-00003$"),
        ("no data", r"all its data files.*none of model\.ckpt-1000000\.data-00000-of-…"),
        ("no index", r"`folder` must be a folder with OpenAI's checkpoint files.*no such \.index file"),
    ],
)
def test_damaged_files_are_named(tmp_path, how, message):
    damage(checkpoint(tmp_path), how)
    with pytest.raises(ValueError, match=message):
        load_openai_checkpoint(tmp_path)


def test_sizes_that_the_index_only_claims_are_refused_before_a_model_is_made(tmp_path, monkeypatch):
    checkpoint(tmp_path)
    for file in tmp_path.glob("*.data-*"):
        file.write_bytes(b"")

    def no_model(*args):
        raise AssertionError("a model was made")

    monkeypatch.setattr("keras_igpt.checkpoints.openai.build_model", no_model)
    with pytest.raises(ValueError, match=r"data files of .* must be whole\. Received: 0 bytes, .* of [\d,]+ cannot"):
        load_openai_checkpoint(tmp_path)


def test_absent_tensorflow_is_named(tmp_path, monkeypatch):
    checkpoint(tmp_path)
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    with pytest.raises(ImportError, match=r"pip install 'keras_igpt\[tensorflow\]'"):
        load_openai_checkpoint(tmp_path)
