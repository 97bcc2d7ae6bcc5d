import numpy as np
import pytest
from conftest import TINY, make_causal_lm, make_masked_lm

from keras_igpt.presets import PRESETS, count_parameters, get_preset

# Table 1 of the paper, in millions; it prints 1362M as "1.4M".
PAPER = {"igpt_small": 76, "igpt_medium": 455, "igpt_large": 1362, "igpt_extra_large": 6801}


@pytest.mark.parametrize("normalization", ["layer_norm", "rms_norm"])
@pytest.mark.parametrize(("name", "millions"), PAPER.items())
def test_parameter_counts_are_the_papers(name, millions, normalization):
    assert count_parameters(**get_preset(name).architecture, normalization=normalization) // 10**6 == millions


@pytest.mark.parametrize("normalization", ["layer_norm", "rms_norm"])
@pytest.mark.parametrize("make", [make_causal_lm, make_masked_lm])
def test_counting_agrees_with_a_model_that_exists(make, normalization):
    model = make(normalization=normalization, num_layers=3)
    attention = model.backbone.attention
    counted = count_parameters(**{**TINY, "num_layers": 3}, attention=attention, normalization=normalization)
    assert counted == sum(int(np.prod(weight.shape)) for weight in model.trainable_weights)


def test_every_preset_can_be_built_as_an_architecture():
    for preset in PRESETS.values():
        assert preset.hidden_dim % preset.num_heads == 0
        assert set(preset.learning_rates) <= {"ar", "bert"}
        assert preset.source
