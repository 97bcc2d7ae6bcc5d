import hashlib
import json
import os
import shutil
import sys
import types

import numpy as np
import pytest
from conftest import make_causal_lm, make_masked_lm, random_tokens, randomize, to_numpy

import keras_igpt as igpt
from keras_igpt.checkpoints.huggingface import load_huggingface_checkpoint, save_huggingface_checkpoint

torch = pytest.importorskip("torch", reason="transformers' ImageGPT is on PyTorch")
transformers = pytest.importorskip("transformers", reason="transformers is the other side")
safetensors = pytest.importorskip("safetensors.numpy", reason="safetensors reads and writes the weights")

SIZES = [
    {},
    {"n_layer": 1, "n_head": 1, "n_embd": 8},
    {"vocab_size": 51, "n_positions": 25, "n_layer": 3, "n_head": 4, "n_embd": 24},
]


def transformers_model(kind="ImageGPTForCausalImageModeling", biases=False, **sizes):
    """A model of transformers with random weights, gains included; its biases are zero unless asked for."""
    torch.manual_seed(0)
    config = {"vocab_size": 17, "n_positions": 16, "n_layer": 2, "n_head": 2, "n_embd": 32, **sizes}
    model = getattr(transformers, kind)(transformers.ImageGPTConfig(**config)).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if biases or not name.endswith("bias"):
                weight.copy_(("ln_" in name) + 0.1 * torch.randn_like(weight))
    return model


def logits_of(model, token_ids):
    """What transformers predicts for each pixel from those before it, the start vector first."""
    start = np.full((len(token_ids), 1), model.config.vocab_size - 1)
    shifted = np.concatenate([start, token_ids[:, :-1]], axis=1)
    with torch.no_grad():
        return model(input_ids=torch.tensor(shifted, dtype=torch.long)).logits.numpy()


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A small checkpoint as transformers writes it."""
    folder = tmp_path_factory.mktemp("saved")
    transformers_model().save_pretrained(folder)
    return folder


@pytest.fixture
def copied(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "copied")


@pytest.mark.parametrize("biases", [False, True])
@pytest.mark.parametrize("sizes", SIZES)
def test_weights_from_transformers_and_back_are_the_same_bytes(tmp_path, sizes, biases):
    model = transformers_model(biases=biases, **sizes)
    model.save_pretrained(tmp_path / "theirs")
    lm = load_huggingface_checkpoint(tmp_path / "theirs")
    assert lm.backbone.projection_bias == biases
    tokens = random_tokens(2, lm.backbone.num_tokens, lm.backbone.vocabulary_size)
    logits = logits_of(model, tokens)
    np.testing.assert_allclose(to_numpy(lm(tokens)), logits, atol=1e-4)

    save_huggingface_checkpoint(lm, tmp_path / "ours")
    again, report = transformers.ImageGPTForCausalImageModeling.from_pretrained(
        tmp_path / "ours", output_loading_info=True
    )
    assert not any(report.values()), report
    np.testing.assert_array_equal(logits_of(again.eval(), tokens), logits)
    theirs, ours = model.state_dict(), again.state_dict()
    assert theirs.keys() == ours.keys()
    for name, tensor in theirs.items():
        assert ours[name].numpy().tobytes() == tensor.numpy().tobytes(), name


def test_a_model_of_ours_has_the_same_logits_in_transformers(tmp_path, palette):
    lm = randomize(make_causal_lm(palette, normalization="rms_norm", projection_bias=True), scale=0.1)
    (tmp_path / "folder").mkdir()
    # Somebody else's, whatever its name.
    (tmp_path / ".partial-folder").mkdir()
    (tmp_path / ".partial-folder" / "thesis.tex").touch()
    save_huggingface_checkpoint(lm, tmp_path / "folder")
    assert sorted(os.listdir(tmp_path)) == [".partial-folder", "folder"]
    assert os.listdir(tmp_path / ".partial-folder") == ["thesis.tex"]
    model = transformers.ImageGPTForCausalImageModeling.from_pretrained(tmp_path / "folder")
    assert model.config.resid_pdrop == model.config.embd_pdrop == model.config.attn_pdrop == 0
    tokens = random_tokens(3)
    np.testing.assert_allclose(to_numpy(lm(tokens)), logits_of(model.eval(), tokens), atol=1e-4)
    again = load_huggingface_checkpoint(tmp_path / "folder")
    assert again.palette == palette
    for ours, theirs in zip(lm.get_weights(), again.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_transformers_quantises_with_the_palette(tmp_path, palette):
    processing = pytest.importorskip("transformers.models.imagegpt.image_processing_pil_imagegpt")
    # Pictures of four rows it would take for pictures of four channels.
    lm = make_causal_lm(palette, normalization="rms_norm", image_size=6)
    save_huggingface_checkpoint(lm, tmp_path / "folder")
    processor = processing.ImageGPTImageProcessorPil.from_pretrained(tmp_path / "folder")
    images = palette.decode(random_tokens(3, 36))
    np.testing.assert_array_equal(processor(list(images))["input_ids"], palette.encode(images))


@pytest.mark.parametrize("form", ["pickled", "legacy pickled", "old", "shards", "pickled shards", "half precision"])
def test_all_forms_of_the_weights_are_read(copied, form):
    model = transformers_model()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    # Older versions of transformers saved the causal mask too.
    state["transformer.h.0.attn.bias"] = torch.tril(torch.ones(1, 1, 16, 16, dtype=torch.uint8))
    state["transformer.h.0.attn.masked_bias"] = torch.tensor(-1e4)
    tolerance = 0.0
    (copied / "model.safetensors").unlink()
    if form == "shards":
        model.save_pretrained(copied, max_shard_size="20KB")
        assert len(list(copied.glob("*.safetensors"))) > 2
    elif form == "old":
        from safetensors.torch import save_file

        save_file({name: tensor.contiguous() for name, tensor in state.items()}, copied / "model.safetensors")
    elif form == "half precision":
        model.half().save_pretrained(copied)
        tolerance = 1e-3  # of the value, half a unit of ten bits
    elif form == "pickled shards":
        names = sorted(state)
        for shard in range(2):
            torch.save({name: state[name] for name in names[shard::2]}, copied / f"part-{shard}.bin")
        places = {name: f"part-{index % 2}.bin" for index, name in enumerate(names)}
        (copied / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": places}))
    else:
        torch.save(state, copied / "pytorch_model.bin", _use_new_zipfile_serialization=form == "pickled")
    lm = load_huggingface_checkpoint(copied)
    for name, variable in (
        ("lm_head.weight", to_numpy(lm.pixel_head.kernel).T),
        ("transformer.h.1.mlp.c_proj.weight", to_numpy(lm.backbone.blocks[1].feed_forward.contraction.kernel)),
        ("transformer.wpe.weight", to_numpy(lm.backbone.pixel_embedding.position_embedding)),
    ):
        np.testing.assert_allclose(variable, state[name].numpy(), rtol=tolerance, atol=1e-7 if tolerance else 0)


def test_a_bare_model_has_a_head_of_zeros_and_says_so(tmp_path):
    model = transformers_model("ImageGPTModel", biases=True)
    model.save_pretrained(tmp_path)
    with pytest.warns(UserWarning, match=r"no lm_head\.weight: the pixel head stays zero"):
        lm = load_huggingface_checkpoint(tmp_path)
    tokens = random_tokens(2)
    with torch.no_grad():
        shifted = np.concatenate([np.full((2, 1), 16), tokens[:, :-1]], axis=1)
        states = model(input_ids=torch.tensor(shifted, dtype=torch.long)).last_hidden_state.numpy()
    np.testing.assert_allclose(to_numpy(lm.backbone(tokens)), states, atol=1e-4)
    assert not to_numpy(lm(tokens)).any()


def test_policy_and_recomputation_are_ones_own(saved):
    lm = load_huggingface_checkpoint(saved, dtype="mixed_bfloat16", remat=True)
    assert lm.backbone.remat
    assert lm.backbone.compute_dtype == "bfloat16"
    assert lm.palette is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "gpt2"}, r"config\.json must have model_type='imagegpt'.*'gpt2'"),
        (
            {"activation_function": "gelu", "n_inner": 7},
            "activation_function='gelu' instead of 'quick_gelu', n_inner=7",
        ),
        ({"layer_norm_epsilon": 1e-6}, "layer_norm_epsilon=1e-06 instead of 1e-05"),
        ({"tie_word_embeddings": True}, "tie_word_embeddings=True instead of False"),
        ({"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx=True"),
        ({"n_head": None}, "positive whole numbers.*n_head=None"),
        ({"n_head": True}, "positive whole numbers.*n_head=True"),
        ({"n_layer": 10**10}, r"config\.json must have the layers.*n_layer=10000000000, while .* has 24 tensors"),
        ({"n_embd": 10**10}, r"another shape: transformer\.wte\.weight \(17, 32\) instead of \(17, 10000000000\)"),
        ({"n_head": 5}, r"config\.json must be of an Image GPT: `num_heads` must divide.*num_heads=5, hidden_dim=32"),
        ({"n_positions": 15}, "square images.*15 positions"),
        ({"n_layer": 3}, r"missing: transformer\.h\.2\.ln_1\.weight, .*transformer\.h\.2\.mlp\.c_proj\.weight$"),
        ({"n_layer": 1}, r"unknown: transformer\.h\.1\.attn\.c_attn\.bias, .*transformer\.h\.1\.mlp\.c_proj\.weight$"),
        ({"vocab_size": 20}, r"another shape: transformer\.wte\.weight \(17, 32\) instead of \(20, 32\), lm_head"),
    ],
)
def test_a_configuration_of_another_model_is_refused(copied, change, message):
    path = copied / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ValueError, match=message):
        load_huggingface_checkpoint(copied)


def test_all_that_is_wrong_with_the_tensors_is_named_at_once(copied):
    tensors = safetensors.load_file(copied / "model.safetensors")
    del tensors["transformer.wpe.weight"], tensors["lm_head.weight"]
    tensors["score.weight"] = np.ones((3, 32), "float32")
    tensors["transformer.ln_f.weight"] = np.ones(31, "float32")
    safetensors.save_file(tensors, copied / "model.safetensors")
    with pytest.raises(ValueError, match="must hold the weights of one Image GPT") as caught:
        load_huggingface_checkpoint(copied)
    message = str(caught.value)
    assert "missing: transformer.wpe.weight, lm_head.weight" in message
    assert "unknown: score.weight" in message
    assert "of another shape: transformer.ln_f.weight (31,) instead of (32,)" in message


def test_one_bias_is_enough_and_absent_ones_are_zero(copied):
    tensors = safetensors.load_file(copied / "model.safetensors")
    tensors["transformer.h.1.mlp.c_fc.bias"][5] = 0.1
    del tensors["transformer.h.0.attn.c_attn.bias"]
    safetensors.save_file(tensors, copied / "model.safetensors")
    lm = load_huggingface_checkpoint(copied)
    biases = {weight.path: to_numpy(weight) for weight in lm.weights if weight.path.endswith("/bias")}
    assert len(biases) == 4 * 2
    (trained,) = [path for path, bias in biases.items() if bias.any()]
    assert trained.endswith("block_1/feed_forward/expansion/bias")
    assert np.flatnonzero(biases[trained]).tolist() == [5]


def test_biases_that_are_no_numbers_are_refused(copied):
    tensors = safetensors.load_file(copied / "model.safetensors")
    tensors["transformer.h.0.mlp.c_fc.bias"][5] = 0.1
    tensors["transformer.h.1.mlp.c_fc.bias"][5] = np.nan
    safetensors.save_file(tensors, copied / "model.safetensors")
    with pytest.raises(ValueError, match=r"finite weights.*c_fc\.bias with inf or NaN"):
        load_huggingface_checkpoint(copied)


@pytest.mark.parametrize("kind", ["complex", "integers", "sparse", "of no device", "one number for all"])
def test_pickled_tensors_that_are_no_weights_are_named(copied, kind):
    (copied / "model.safetensors").unlink()
    state = transformers_model().state_dict()
    name = "transformer.ln_f.weight"
    weight = state[name]
    state[name] = {
        "complex": lambda: weight + 1j,
        "integers": lambda: weight.int(),
        "sparse": lambda: weight.to_sparse(),
        "of no device": lambda: weight.to("meta"),
        "one number for all": lambda: torch.ones(1).expand(32),
    }[kind]()
    torch.save(state, copied / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"pytorch_model\.bin must hold .*Received: transformer\.ln_f\.weight of "):
        load_huggingface_checkpoint(copied)


class Evil:
    def __reduce__(self):
        return os.mkdir, ("evil",)


def damage(folder, how):
    weights, pickled = folder / "model.safetensors", folder / "pytorch_model.bin"
    content = weights.read_bytes()
    if how == "truncated":
        weights.write_bytes(content[:-9])
    elif how == "foreign":
        weights.write_bytes(b"no weights" * 99)
    elif how == "bfloat16":
        transformers_model().bfloat16().save_pretrained(folder)
    elif how == "no config":
        (folder / "config.json").unlink()
    elif how == "config":
        (folder / "config.json").write_text('{"model_type": "ima')
    elif how == "deep config":
        (folder / "config.json").write_text("[" * 100_000)
    elif how == "config list":
        (folder / "config.json").write_text("[]")
    else:
        weights.unlink()
        index = folder / "model.safetensors.index.json"
        if how == "pickle that runs":
            torch.save({"lm_head.weight": Evil()}, pickled)
        elif how == "pickle of numbers":
            torch.save({"lm_head.weight": 1}, pickled)
        elif how == "truncated pickle":
            torch.save(transformers_model().state_dict(), pickled)
            pickled.write_bytes(pickled.read_bytes()[:-900])
        elif how == "pickle of one byte":
            torch.save({}, pickled)
            pickled.write_bytes(pickled.read_bytes()[:1])
        elif how == "pickle on several disks":
            torch.save({}, pickled)
            content = bytearray(pickled.read_bytes())
            content[content.rindex(b"PK\6\7") + 4] = 1
            pickled.write_bytes(content)
        elif how == "numbers for names":
            torch.save({1: torch.ones(1)}, pickled)
        elif how == "foreign pickle":
            pickled.write_bytes(b"no weights" * 99)
        elif how == "lost shard":
            (folder.parent / "model.safetensors").write_bytes(content)
            index.write_text(json.dumps({"weight_map": {"a": "model-1.safetensors", "b": "../model.safetensors"}}))
        elif how == "index":
            index.write_text('{"weights": 1}')


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("truncated", r"model\.safetensors must be a safetensors file.*truncated or foreign"),
        ("foreign", r"model\.safetensors must be a safetensors file.*truncated or foreign"),
        ("bfloat16", r"save the model in float32.*of BF16"),
        ("no config", r"`folder` must have config\.json"),
        ("config", r"config\.json must be JSON.*damaged or foreign"),
        ("config list", r"config\.json must hold a JSON object.*list"),
        ("no weights", r"must have model\.safetensors or pytorch_model\.bin.*with config\.json"),
        ("pickle that runs", r"pytorch_model\.bin must be weights that PyTorch saved"),
        ("pickle of numbers", r"pytorch_model\.bin must hold a dictionary of tensors"),
        ("truncated pickle", r"pytorch_model\.bin must be weights that PyTorch saved"),
        ("pickle of one byte", r"pytorch_model\.bin must be weights that PyTorch saved.*only load failed\)$"),
        ("pickle on several disks", r"pytorch_model\.bin must be weights that PyTorch saved"),
        ("numbers for names", r"pytorch_model\.bin must hold a dictionary of tensors"),
        ("deep config", r"config\.json must be JSON.*damaged or foreign"),
        ("foreign pickle", r"pytorch_model\.bin must be weights that PyTorch saved"),
        ("lost shard", r"index\.json must have all its files.*none of \.\./model\.safetensors, model-1\.safetensors"),
        ("index", r"index\.json must have a weight_map"),
    ],
)
def test_damaged_files_are_named(copied, monkeypatch, how, message):
    monkeypatch.chdir(copied)
    damage(copied, how)
    with pytest.raises(ValueError, match=message) as raised:
        load_huggingface_checkpoint(copied)
    assert not (copied / "evil").exists()
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("clusters", "message"),
    [
        (np.linspace(-1, 1, 15).reshape(5, 3), "as many as the model's 16 colours.*5 clusters"),
        (np.linspace(0, 255, 48).reshape(16, 3), r"preprocessor_config\.json must hold the colour clusters"),
        (np.array([[10**400] * 3], object), r"preprocessor_config\.json must hold the colour clusters"),
    ],
)
def test_clusters_that_do_not_fit_are_refused(copied, clusters, message):
    (copied / "preprocessor_config.json").write_text(json.dumps({"clusters": clusters.tolist()}))
    with pytest.raises(ValueError, match=message):
        load_huggingface_checkpoint(copied)


def test_models_that_transformers_has_not_are_not_written(tmp_path):
    grey = igpt.ColorPalette.from_colors(np.arange(16, dtype="uint8")[:, None])
    masked = make_masked_lm(normalization="rms_norm")
    for model, message in (
        (make_causal_lm(), "normalization='rms_norm'.*'layer_norm'"),
        (masked, "must be an ImageGPTCausalLM.*ImageGPTMaskedLM"),
        (make_causal_lm(grey, normalization="rms_norm"), "palette in colour"),
    ):
        with pytest.raises(ValueError, match=message):
            save_huggingface_checkpoint(model, tmp_path / "folder")
    assert not os.listdir(tmp_path)


def test_weights_that_are_no_numbers_are_not_written(tmp_path, palette):
    lm = make_causal_lm(palette, normalization="rms_norm")
    lm.backbone.final_norm.gain.assign(np.full(32, np.nan, "float32"))
    lm.pixel_head.kernel.assign(np.full((32, 16), np.inf, "float32"))
    with pytest.raises(
        ValueError, match=r"`lm` must have finite weights.*in transformer\.ln_f\.weight, lm_head\.weight$"
    ):
        save_huggingface_checkpoint(lm, tmp_path / "folder")
    assert not os.listdir(tmp_path)


def test_a_folder_with_content_is_left_alone(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="must be a new or empty folder"):
        save_huggingface_checkpoint(make_causal_lm(normalization="rms_norm"), tmp_path)
    assert os.listdir(tmp_path) == ["notes.txt"]


def test_a_write_that_fails_leaves_nothing(tmp_path, palette, monkeypatch):
    def full(*args):
        raise OSError("no space left")

    monkeypatch.setattr("keras_igpt.checkpoints.huggingface.write_json", full)
    with pytest.raises(OSError, match="no space left"):
        save_huggingface_checkpoint(make_causal_lm(palette, normalization="rms_norm"), tmp_path / "folder")
    assert not os.listdir(tmp_path)


class Hub:
    """What is used of huggingface_hub, over a local folder instead of the net."""

    def __init__(self, remote, sent, cache):
        self.remote, self.sent, self.cache = remote, sent, cache
        self.constants = types.SimpleNamespace(HF_HUB_OFFLINE=False)

    def HfApi(self):  # noqa: N802 - the hub's own name
        return self

    def model_info(self, repository, files_metadata):
        assert repository == "someone/imagegpt"
        assert files_metadata
        siblings = []
        for path in sorted(self.remote.iterdir()):
            checksum = hashlib.sha256(path.read_bytes()).hexdigest()
            lfs = None if path.suffix == ".json" else types.SimpleNamespace(sha256=checksum)
            siblings.append(types.SimpleNamespace(rfilename=path.name, lfs=lfs))
        return types.SimpleNamespace(sha="c0ffee", siblings=siblings)

    def snapshot_download(self, repository, revision, allow_patterns):
        assert (repository, revision) == ("someone/imagegpt", "c0ffee")
        self.cache.mkdir()
        for name in allow_patterns:
            shutil.copy(self.sent / name, self.cache / name)
        return str(self.cache)


def test_a_download_is_made_only_if_asked_and_compared_with_the_hubs_checksums(copied, tmp_path, monkeypatch):
    torch.save({}, copied / "pytorch_model.bin")
    monkeypatch.setitem(sys.modules, "huggingface_hub", Hub(copied, copied, tmp_path / "cache"))
    with pytest.raises(ValueError, match=r"pass its name and download=True.*'someone/imagegpt', which is no folder"):
        load_huggingface_checkpoint("someone/imagegpt")
    assert not (tmp_path / "cache").exists()
    lm = load_huggingface_checkpoint("someone/imagegpt", download=True)
    assert lm.backbone.vocabulary_size == 16
    assert sorted(os.listdir(tmp_path / "cache")) == ["config.json", "model.safetensors"]

    sent = shutil.copytree(copied, tmp_path / "sent")
    content = bytearray((sent / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (sent / "model.safetensors").write_bytes(content)
    monkeypatch.setitem(sys.modules, "huggingface_hub", Hub(copied, sent, tmp_path / "other"))
    with pytest.raises(ValueError, match=r"other/model\.safetensors must be what the hub has.*SHA-256"):
        load_huggingface_checkpoint("someone/imagegpt", download=True)


def test_without_a_network_the_cached_copy_is_opened(copied, tmp_path, monkeypatch):
    hub = pytest.importorskip("huggingface_hub")
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(hub.constants, "HF_HUB_CACHE", str(tmp_path))
    folder = tmp_path / "models--someone--imagegpt"
    (folder / "refs").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"`folder` must have been downloaded before.*'someone/other'"):
        load_huggingface_checkpoint("someone/other", download=True)
    for name, modified in (("0ld", 1), ("c0ffee", 2)):
        snapshot = folder / "snapshots" / name
        snapshot.mkdir(parents=True)
        for path in copied.iterdir() if name == "c0ffee" else ():
            blob = folder / "blobs" / path.name
            blob.parent.mkdir(exist_ok=True)
            shutil.copy(path, blob)
            (snapshot / path.name).symlink_to(blob)
        os.utime(snapshot, (modified, modified))
    lm = load_huggingface_checkpoint("someone/imagegpt", download=True)
    assert lm.backbone.vocabulary_size == 16


def test_a_local_folder_is_not_downloaded(copied, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert load_huggingface_checkpoint(copied, download=True).backbone.vocabulary_size == 16


def test_absent_packages_are_named(copied, monkeypatch):
    extra = r"pip install 'keras_igpt\[checkpoints\]'"
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ImportError, match=f"needs huggingface_hub: {extra}"):
        load_huggingface_checkpoint("someone/imagegpt", download=True)
    lm = load_huggingface_checkpoint(copied)
    monkeypatch.setitem(sys.modules, "safetensors", None)
    monkeypatch.setitem(sys.modules, "safetensors.numpy", None)
    with pytest.raises(ImportError, match=f"need safetensors: {extra}"):
        load_huggingface_checkpoint(copied)
    with pytest.raises(ImportError, match=f"need safetensors: {extra}"):
        save_huggingface_checkpoint(lm, copied.parent / "folder")
    assert not (copied.parent / "folder").exists()


def test_the_written_epsilon_is_the_layers():
    from keras_igpt.checkpoints import huggingface as huggingface_checkpoint
    from keras_igpt.model import layers

    assert huggingface_checkpoint._MEANING["layer_norm_epsilon"] == layers.EPSILON
