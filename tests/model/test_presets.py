import json
from dataclasses import replace

import numpy as np
import pytest
from conftest import make_causal_lm, make_masked_lm, random_tokens, randomize, to_numpy

import keras_igpt as igpt
from keras_igpt.model import preset_weights, presets
from keras_igpt.model.preset_weights import save_preset_weights
from keras_igpt.model.presets import PRESETS, get_preset

# Table 1 of the paper, in millions; it prints 1362M as "1.4M".
PAPER = {"igpt_small": 76, "igpt_medium": 455, "igpt_large": 1362, "igpt_extra_large": 6801}


@pytest.mark.parametrize("normalization", ["layer_norm", "rms_norm"])
@pytest.mark.parametrize(("name", "millions"), PAPER.items())
def test_parameter_counts_are_the_papers(name, millions, normalization):
    assert replace(get_preset(name), normalization=normalization).num_parameters // 10**6 == millions


def test_every_preset_has_rates_and_a_source():
    for preset in PRESETS.values():
        assert set(preset.learning_rates) <= {"ar", "bert"}
        assert preset.source


def test_what_a_preset_fixes_are_its_sizes_and_with_weights_its_choices():
    assert get_preset("igpt_small").architecture == {
        "vocabulary_size": 512,
        "image_size": 32,
        "num_layers": 24,
        "num_heads": 8,
        "hidden_dim": 512,
    }
    trained = get_preset("igpt_cifar10_8x8_bert")
    assert trained.architecture == {**trained.sizes, "attention": "bidirectional", "normalization": "layer_norm"}
    assert (trained.objective, get_preset("igpt_small").objective) == ("bert", None)


# === Trained presets ===


@pytest.fixture
def trained(monkeypatch, tmp_path, palette):
    """Two trained presets with files of their own, and the models in them."""
    monkeypatch.setattr(preset_weights, "WEIGHTS_FOLDER", tmp_path)
    models = {"ar": make_causal_lm(palette, normalization="rms_norm")}
    models["bert"] = make_masked_lm(palette, 0.3, 5, projection_bias=True)
    added = {}
    for objective, model in models.items():
        randomize(model)
        save_preset_weights(model, tmp_path / f"{objective}.npz")
        added[objective] = presets.Preset(
            **model.backbone.architecture.arguments,
            description="tiny",
            learning_rates={objective: 0.01},
            source="a test",
            weights=f"{objective}.npz",
        )
    monkeypatch.setattr(presets, "PRESETS", {**PRESETS, **added})
    return models


def rounded(model):
    return [to_numpy(weight).astype("float16") for weight in model.trainable_weights]


@pytest.mark.parametrize("objective", ["ar", "bert"])
def test_a_trained_language_model_is_the_one_saved_rounded_to_float16(trained, objective):
    original = trained[objective]
    model = type(original).from_preset(objective)
    for weight, expected in zip(model.trainable_weights, rounded(original), strict=True):
        np.testing.assert_array_equal(to_numpy(weight), expected, err_msg=weight.path)
    assert model.palette == original.palette
    assert model.backbone.normalization == original.backbone.normalization
    token_ids = random_tokens(2)
    np.testing.assert_allclose(to_numpy(model(token_ids)), to_numpy(original(token_ids)), atol=0.05)
    if objective == "bert":
        assert (model.mask_rate, model.mask_seed) == (0.3, 5)
        assert type(original).from_preset(objective, mask_rate=0.5).mask_rate == 0.5


def test_a_backbone_and_a_classifier_of_a_trained_preset(trained):
    backbone = igpt.ImageGPTBackbone.from_preset("bert")
    assert backbone.attention == "bidirectional"
    for weight, expected in zip(backbone.weights, rounded(trained["bert"].backbone), strict=True):
        np.testing.assert_array_equal(to_numpy(weight), expected, err_msg=weight.path)
    classifier = igpt.ImageGPTImageClassifier.from_preset("bert", 4, layer=1, dtype="mixed_bfloat16")
    assert isinstance(classifier.language_model, igpt.ImageGPTMaskedLM)
    assert classifier.compute_dtype == "bfloat16"
    np.testing.assert_array_equal(
        to_numpy(classifier.language_model.pixel_head.kernel), to_numpy(trained["bert"].pixel_head.kernel).astype("f2")
    )
    assert isinstance(igpt.ImageGPTImageClassifier.from_preset("ar", 4).language_model, igpt.ImageGPTCausalLM)


def test_weights_that_are_not_wanted_are_random(trained):
    backbone = igpt.ImageGPTBackbone.from_preset("ar", load_weights=False, num_layers=1)
    assert backbone.num_layers == 1
    # As they are initialised.
    assert to_numpy(backbone.pixel_embedding.position_embedding).std() == pytest.approx(0.01, rel=0.2)
    model = igpt.ImageGPTMaskedLM.from_preset("igpt_nano", load_weights=False, mask_rate=0.5, num_layers=1)
    assert (model.mask_rate, model.palette, model.backbone.attention) == (0.5, None, "bidirectional")
    assert not to_numpy(model.pixel_head.kernel).any()
    classifier = igpt.ImageGPTImageClassifier.from_preset("igpt_nano", 3, load_weights=False, num_layers=1)
    assert isinstance(classifier.language_model, igpt.ImageGPTCausalLM)


FAULTS = {
    "no weights": ("load_weights", lambda: igpt.ImageGPTCausalLM.from_preset("igpt_nano")),
    "no weights for a classifier": ("load_weights", lambda: igpt.ImageGPTImageClassifier.from_preset("igpt_nano", 4)),
    "no weights for a backbone": (
        "load_weights",
        lambda: igpt.ImageGPTBackbone.from_preset("igpt_nano", load_weights=True),
    ),
    "another objective": ("name", lambda: igpt.ImageGPTCausalLM.from_preset("bert")),
    "another depth": ("num_layers", lambda: igpt.ImageGPTCausalLM.from_preset("ar", num_layers=3)),
    "another norm": ("normalization", lambda: igpt.ImageGPTBackbone.from_preset("ar", normalization="layer_norm")),
    "biases": ("projection_bias", lambda: igpt.ImageGPTBackbone.from_preset("ar", projection_bias=True)),
    "a second palette": (
        "palette",
        lambda: igpt.ImageGPTCausalLM.from_preset("ar", palette=igpt.ColorPalette(np.linspace(-1, 1, 16)[:, None])),
    ),
    "an unknown name": ("name", lambda: igpt.ImageGPTCausalLM.from_preset("igpt_huge")),
    "saving without palette": ("language_model", lambda: save_preset_weights(make_causal_lm(), "a.npz")),
    "saving a backbone": ("language_model", lambda: save_preset_weights(make_causal_lm().backbone, "a.npz")),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_a_preset_cannot_give_is_named(trained, fault):
    argument, call = FAULTS[fault]
    with pytest.raises(ValueError, match=rf"^`{argument}`.*Received: ") as raised:
        call()
    assert "\n" not in str(raised.value)


def test_a_weight_beyond_float16_is_refused_and_nothing_written(tmp_path, palette):
    model = make_causal_lm(palette)
    model.backbone.final_norm.gain.assign(np.full(32, 1e5, "float32"))
    with pytest.raises(ValueError, match="final_norm/gain"):
        save_preset_weights(model, tmp_path / "model.npz")
    assert not list(tmp_path.iterdir())


def test_a_file_of_another_model_is_refused(trained, tmp_path, palette):
    save_preset_weights(make_causal_lm(palette, num_layers=1, normalization="rms_norm"), tmp_path / "ar.npz")
    with pytest.raises(ValueError, match=r"ar\.npz must hold .*'num_layers': 2.*Received: .*'num_layers': 1"):
        igpt.ImageGPTCausalLM.from_preset("ar")


@pytest.mark.parametrize(
    "fault", ["config", "centroids", "format", "architecture", "options", "other JSON", "no JSON", "cut", "text"]
)
def test_a_damaged_file_is_named_in_a_line(trained, tmp_path, fault):
    path = tmp_path / "ar.npz"
    with np.load(path) as file:
        arrays = {key: file[key] for key in file.files}
    config = json.loads(str(arrays["config"]))
    config.pop(fault, None)
    arrays["config"] = np.array({"other JSON": "[]", "no JSON": "{"}.get(fault, json.dumps(config)))
    arrays.pop(fault if fault in ("config", "centroids") else None, None)
    np.savez(path, **arrays)
    if fault == "cut":
        path.write_bytes(path.read_bytes()[:-30])
    elif fault == "text":
        path.write_text("no archive")
    with pytest.raises(ValueError, match=r"ar\.npz must .*Received: ") as raised:
        igpt.ImageGPTCausalLM.from_preset("ar", load_weights=True)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("name", presets.trained_presets())
def test_the_presets_that_come_with_the_package(name):
    preset = get_preset(name)
    assert (preset_weights.WEIGHTS_FOLDER / preset.weights).stat().st_size < 8e6
    make = igpt.ImageGPTMaskedLM if preset.objective == "bert" else igpt.ImageGPTCausalLM
    model = make.from_preset(name)
    # Trained, it beats chance on its own palette's flat colours.
    flat = np.repeat(np.arange(0, preset.vocabulary_size, 16)[:, None], preset.image_size**2, axis=1)
    losses = to_numpy(model.image_losses(flat, model(flat), None))
    assert losses.mean() < np.log(preset.vocabulary_size)


def test_the_papers_pre_trainings_see_128_million_pictures():
    for name in PAPER:
        assert get_preset(name).steps * get_preset(name).batch_size == 128_000_000
