import json
import re
from dataclasses import FrozenInstanceError

import numpy as np
import pytest
from conftest import TINY, make_causal_lm, make_masked_lm

import keras_igpt as igpt
from keras_igpt.model.architecture import check_architecture


@pytest.mark.parametrize("choices", [{}, {"normalization": "rms_norm"}, {"projection_bias": True}])
@pytest.mark.parametrize("make", [make_causal_lm, make_masked_lm])
def test_a_backbone_has_the_architecture_that_it_is_built_of(make, choices):
    model = make(**choices, num_layers=3)
    backbone = model.backbone
    expected = igpt.Architecture(**{**TINY, "num_layers": 3}, attention=backbone.attention, **choices)
    assert backbone.architecture == expected
    assert expected.arguments == {name: getattr(backbone, name) for name in expected.arguments}
    assert expected.arguments.items() <= backbone.get_config().items()
    assert expected.num_parameters == sum(int(np.prod(weight.shape)) for weight in model.trainable_weights)
    # Earlier revisions wrote nothing of biases, and read nothing of them.
    assert ("projection_bias" in backbone.get_config()) == backbone.projection_bias == ("projection_bias" in choices)
    assert (backbone.num_tokens, backbone.head_dim) == (expected.num_tokens, expected.head_dim) == (16, 16)


def test_numpy_integers_become_integers_and_nothing_changes_later():
    architecture = igpt.Architecture(**{name: np.int64(size) for name, size in TINY.items()})
    assert json.loads(json.dumps(architecture.sizes)) == TINY
    with pytest.raises(FrozenInstanceError):
        architecture.num_layers = 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_layers": 0}, "`num_layers` must be an integer of at least 1. Received: num_layers=0"),
        ({"image_size": True}, "`image_size` must be an integer of at least 1. Received: image_size=True"),
        ({"num_heads": 5}, "`num_heads` must divide `hidden_dim`. Received: num_heads=5, hidden_dim=32"),
        ({"attention": "sparse"}, "`attention` must be one of 'causal', 'bidirectional'. Received: attention='sparse'"),
        ({"normalization": None}, "`normalization` must be one of 'layer_norm', 'rms_norm'."),
        ({"projection_bias": "no"}, "`projection_bias` must be True or False. Received: projection_bias='no'"),
    ],
)
def test_what_no_network_has_is_refused(changes, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        igpt.Architecture(**{**TINY, **changes})


def test_arguments_in_a_dictionary():
    architecture = igpt.Architecture(**TINY)
    assert check_architecture("preset", architecture) is architecture
    assert check_architecture("preset", TINY) == architecture
    for wrong in ({"num_layers": 1}, {**TINY, "dtype": "float32"}):
        with pytest.raises(ValueError, match=r"^`preset` must have the keys .*'projection_bias'.*Received: \["):
            check_architecture("preset", wrong)
