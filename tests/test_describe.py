import keras
import pytest
from conftest import TINY, make_backbone, make_causal_lm

import keras_igpt as igpt
from keras_igpt.describe import describe
from keras_igpt.model.presets import get_preset


def row(text, name):
    """The value behind a name, wherever it is printed first."""
    (line, *_) = [line for line in text.splitlines() if line.startswith(f"  {name}  ")]
    return line.removeprefix(f"  {name}").strip()


def test_a_preset_of_the_paper():
    description = describe("igpt_small")
    text = str(description)
    # Table 1, sections 3.3 and 3.4, table 5.
    for name, value in {
        "num_layers": "24",
        "hidden_dim": "512",
        "parameters": "76,596,736",
        "peak rate": "0.003",
        "Adam's beta_1": "0.9",
        "Adam's beta_2": "0.95",
        "weight decay": "none",
        "batch size": "128",
        "updates": "1000000",
    }.items():
        assert row(text, name) == value
    assert description.training["igpt_small, pre-training, bert"]["peak rate"] == 0.01
    assert "Chen et al., 2020" in row(text, "source")
    assert "cosine to zero" in row(text, "schedule")
    assert "GFLOP a token" in row(text, "forward pass")
    # Weights in float32, and twice as much for Adam.
    assert description.estimate.optimizer_state == 2 * 4 * 76_596_736
    assert description.estimate.tokens == 128 * 1024


def test_a_batch_of_ones_own():
    assert describe("igpt_extra_large").estimate.tokens == 64 * 1024
    assert set(describe("igpt_extra_large").training) == {"igpt_extra_large, pre-training, ar"}
    assert describe("igpt_nano", batch_size=3).estimate.tokens == 3 * 64


def test_a_model_with_what_it_was_compiled_with(palette):
    model = make_causal_lm(palette)
    assert describe(model).training == {}
    model.compile(**igpt.pretraining_recipe("igpt_nano", "ar", steps=40, learning_rate=0.02, accumulation_steps=2))
    description = describe(model, batch_size=8)
    settings = description.training["compiled with"]
    assert "warmup_target=0.02" in settings["schedule"]
    assert (settings["Adam's beta_2"], settings["batches an update"]) == (0.95, 2)
    text = str(description)
    assert row(text, "parameters") == row(text, "all parameters") == f"{model.count_params():,}"
    assert "num_colors=16" in row(text, "palette")
    # Two moments and the accumulated gradients.
    assert description.estimate.optimizer_state == 3 * 4 * model.count_params()


@pytest.mark.skipif(keras.backend.backend() == "torch", reason="it takes no float64")
@pytest.mark.filterwarnings("ignore:Explicitly requested dtype float64")  # JAX' own, which counts in float32 then
def test_a_model_in_double_precision():
    model = make_causal_lm(dtype="float64")
    description = describe(model)
    assert row(str(description), "dtype policy") == "float64"
    # The pixel head stays in float32.
    assert description.estimate.weights == 8 * model.count_params() - 4 * model.pixel_head.count_params()


def test_a_model_of_one_colour():
    assert row(str(describe(make_causal_lm(vocabulary_size=1))), "vocabulary_size") == "1"


def test_a_classifier_in_int8():
    classifier = igpt.ImageGPTImageClassifier(make_causal_lm(num_layers=1), num_classes=3, layer=1)
    classifier.compile(**igpt.finetuning_recipe(0.0003))
    classifier.quantize("int8")
    text = str(describe(classifier))
    assert row(text, "num_classes") == "3"
    assert row(text, "layer") == "1"
    assert row(text, "rate") == "0.0003"
    assert row(text, "layers in int8").startswith("6,")


def test_a_model_of_a_presets_sizes_has_its_recipe():
    sizes = get_preset("igpt_nano").architecture
    backbone = igpt.ImageGPTBackbone.from_preset("igpt_nano", attention="bidirectional", dtype="mixed_bfloat16")
    description = describe(backbone)
    assert description.training == describe("igpt_nano").training
    assert {name: description.architecture[name] for name in sizes} == sizes
    assert row(str(description), "attention") == "bidirectional"
    assert "mixed_bfloat16" in description.estimate.title


@pytest.mark.parametrize(("given", "argument"), [("igpt_huge", "name"), (keras.Sequential(), "preset_or_model")])
def test_what_cannot_be_described(given, argument):
    with pytest.raises(ValueError, match=f"`{argument}`.*Received: "):
        describe(given)


def test_a_batch_of_nothing():
    with pytest.raises(ValueError, match="`batch_size`"):
        describe(make_backbone(**TINY), batch_size=0)
