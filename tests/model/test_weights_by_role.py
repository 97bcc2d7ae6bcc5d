import keras
import pytest
from conftest import make_backbone, make_causal_lm, make_masked_lm

import keras_igpt as igpt
from keras_igpt.model.weights_by_role import path_of, weights_by_role

V, T, D, N, H = 16, 16, 32, 2, 16
SHAPES = {
    "token_embedding": (V, D),
    "position_embedding": (T, D),
    "final_norm": (D,),
}
OF_BLOCK = {
    "attention_norm": (D,),
    "query_key_value": (D, 3, N, H),
    "output_projection": (N, H, D),
    "feed_forward_norm": (D,),
    "expansion": (D, 4 * D),
    "contraction": (4 * D, D),
}
SHAPES |= {f"block_{layer}.{role}": shape for layer in (0, 1) for role, shape in OF_BLOCK.items()}
OF_PROJECTIONS = {
    "query_key_value_bias": (3, N, H),
    "output_projection_bias": (D,),
    "expansion_bias": (4 * D,),
    "contraction_bias": (D,),
}
OF_PROJECTIONS = {f"block_{layer}.{role}": shape for layer in (0, 1) for role, shape in OF_PROJECTIONS.items()}
BIASES = {f"{role}_bias": (D,) for role in SHAPES if role.endswith("norm")}


@pytest.mark.parametrize(
    ("make", "others"),
    [
        (
            lambda: make_backbone(normalization="rms_norm", projection_bias=True, name="block_7"),
            {"start_vector": (D,), **OF_PROJECTIONS},
        ),
        (lambda: make_causal_lm(), {"start_vector": (D,), "pixel_head": (D, V), **BIASES}),
        (
            lambda: igpt.ImageGPTImageClassifier(make_masked_lm(), num_classes=3),
            {"pixel_head": (D, V), "class_head": (D, 3), "mask_step": (), **BIASES},
        ),
    ],
    ids=["backbone", "causal", "classifier"],
)
def test_every_weight_has_one_role(make, others):
    model = make()
    weights = weights_by_role(model)
    assert {role: tuple(weight.shape) for role, weight in weights.items()} == {**SHAPES, **others}
    assert len(weights) == len(model.weights)
    for role, weight in weights.items():
        assert weight.path.endswith(f"/{path_of(role)}")


def test_blocks_keep_their_numbers():
    model = make_causal_lm(num_layers=12)
    kernel = model.backbone.blocks[11].feed_forward.expansion.kernel
    assert weights_by_role(model)["block_11.expansion"].path == kernel.path
    assert path_of("block_11.expansion") == "block_11/feed_forward/expansion/kernel"


def test_weights_of_other_models_have_no_role():
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2, name="other")])
    with pytest.raises(ValueError, match=r"`model` must have the weights of an Image GPT alone\. Received: .*other/"):
        weights_by_role(model)
