import keras
import numpy as np
import pytest
from conftest import make_backbone, make_causal_lm, make_masked_lm, random_tokens, randomize, to_numpy
from keras import ops
from reference import forward, read_weights

from keras_igpt.model import attention_kernels

SIZES = [
    {"vocabulary_size": 50, "image_size": 5, "num_layers": 3, "num_heads": 4, "hidden_dim": 24},
    {"vocabulary_size": 512, "image_size": 12, "num_layers": 1, "num_heads": 1, "hidden_dim": 8},
]

# Kinds of norms, and whether projections have biases.
KINDS = [("layer_norm", False), ("rms_norm", True)]


def tokens_for(model, count=3, seed=0):
    return random_tokens(count, model.backbone.num_tokens, model.backbone.vocabulary_size, seed)


def assert_equals_reference(model, position_mask=None):
    token_ids = tokens_for(model)
    backbone = model.backbone
    normed, residual, logits = forward(
        read_weights(model), token_ids, backbone.attention == "causal", backbone.normalization, position_mask
    )
    inputs = token_ids if position_mask is None else {"token_ids": token_ids, "position_mask": position_mask}
    np.testing.assert_allclose(to_numpy(model(inputs)), logits, atol=1e-4)
    for which, states in (("normed", normed), ("residual", residual)):
        expected = np.stack([state.mean(1) for state in states], axis=1)
        features = to_numpy(backbone.pooled_features(token_ids, position_mask, which))
        np.testing.assert_allclose(features, expected, atol=1e-4)


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize(("norm", "bias"), KINDS)
def test_causal_logits_and_features_equal_the_reference(sizes, norm, bias):
    model = make_causal_lm(**sizes, normalization=norm, projection_bias=bias)
    assert_equals_reference(randomize(model, scale=0.1))


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize(("norm", "bias"), KINDS)
def test_bidirectional_logits_and_features_equal_the_reference(sizes, norm, bias):
    model = randomize(make_masked_lm(**sizes, normalization=norm, projection_bias=bias), scale=0.1)
    mask = np.random.default_rng(1).random((3, model.backbone.num_tokens)) < 0.3
    assert_equals_reference(model, mask)


@pytest.mark.parametrize("make", [make_causal_lm, make_masked_lm])
def test_normed_states_of_any_depths_equal_the_reference(make):
    model = randomize(make(), scale=0.1)
    backbone, token_ids = model.backbone, tokens_for(model)
    normed, _, _ = forward(read_weights(model), token_ids, backbone.attention == "causal", backbone.normalization)
    for layers in ([0], [2, 0], [1, 1]):
        states = backbone.normed_states(token_ids, layers)
        np.testing.assert_allclose(np.stack([to_numpy(state) for state in states]), np.stack(normed)[layers], atol=1e-4)
    np.testing.assert_array_equal(to_numpy(backbone(token_ids)), to_numpy(backbone.normed_states(token_ids, [2])[0]))


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_normed_states_depend_on_all_weights_but_those_above(layer):
    model = randomize(make_causal_lm(projection_bias=True), scale=0.1)
    backbone, token_ids = model.backbone, np.arange(16, dtype="int32")[None]

    def state():
        return to_numpy(backbone.normed_states(token_ids, [layer])[0])

    above = {weight.path for part in backbone.layers_above(layer) for weight in part.weights}
    before = state()
    for weight in backbone.weights:
        value = to_numpy(weight).copy()
        weight.assign(np.full_like(value, np.nan))
        if weight.path in above:
            np.testing.assert_array_equal(state(), before)
        else:
            assert np.isnan(state()).any(), weight.path
        weight.assign(value)


@pytest.mark.parametrize("layers", [[], [3], [-1]])
def test_normed_states_of_no_such_depth(layers):
    with pytest.raises(ValueError, match=r"`layers` must be one or more depths in 0…2\. Received"):
        make_backbone().normed_states(random_tokens(1), layers)


def hugging_face_model(model):
    """A transformers ImageGPT with the weights of `model`; token id V is its start vector."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    backbone = model.backbone
    config = transformers.ImageGPTConfig(
        vocab_size=backbone.vocabulary_size + 1,
        n_positions=backbone.num_tokens,
        n_embd=backbone.hidden_dim,
        n_layer=backbone.num_layers,
        n_head=backbone.num_heads,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
    )
    peer = transformers.ImageGPTForCausalImageModeling(config).eval()
    weights, width = read_weights(model), backbone.hidden_dim
    tensors = {
        "transformer.wte.weight": np.concatenate([weights["token"], weights["start"][None]]),
        "transformer.wpe.weight": weights["position"],
        "transformer.ln_f.weight": weights["final_norm"]["gain"],
        "lm_head.weight": weights["head"].T,
    }
    for index, block in enumerate(weights["blocks"]):
        prefix = f"transformer.h.{index}."
        tensors |= {
            prefix + "ln_1.weight": block["attention_norm"]["gain"],
            prefix + "attn.c_attn.weight": block["query_key_value"][0].reshape(width, 3 * width),
            prefix + "attn.c_proj.weight": block["output"][0].reshape(width, width),
            prefix + "ln_2.weight": block["feed_forward_norm"]["gain"],
            prefix + "mlp.c_fc.weight": block["expansion"][0],
            prefix + "mlp.c_proj.weight": block["contraction"][0],
        }
    state = peer.state_dict()
    for name in state:
        if name in tensors:
            state[name] = torch.tensor(tensors.pop(name), dtype=torch.float32)
        elif name.endswith(".bias") and state[name].is_floating_point():
            state[name] = torch.zeros_like(state[name])  # the paper's projections have none
    assert not tensors, f"transformers has no {list(tensors)}"
    peer.load_state_dict(state)
    return peer


def test_logits_and_features_equal_hugging_face():
    """Other sizes: tests/checkpoints/test_huggingface.py."""
    model = randomize(make_causal_lm(**SIZES[0], normalization="rms_norm"), scale=0.1)
    peer = hugging_face_model(model)
    import torch

    token_ids = tokens_for(model)
    start = np.full((len(token_ids), 1), model.backbone.vocabulary_size)
    shifted = torch.tensor(np.concatenate([start, token_ids[:, :-1]], axis=1), dtype=torch.long)
    with torch.no_grad():
        outputs = peer(input_ids=shifted, output_hidden_states=True)
        normed = [block.ln_1(hidden) for block, hidden in zip(peer.transformer.h, outputs.hidden_states, strict=False)]
        # The last hidden state comes out of the final norm already.
        normed.append(outputs.hidden_states[-1])
    np.testing.assert_allclose(to_numpy(model(token_ids)), outputs.logits.numpy(), atol=1e-4)
    expected = torch.stack([state.mean(1) for state in normed], dim=1).numpy()
    np.testing.assert_allclose(to_numpy(model.backbone.pooled_features(token_ids)), expected, atol=1e-4)


@pytest.mark.parametrize("changed", [0, 5, 14, 15])
def test_a_pixel_moves_later_logits_only(changed):
    model = randomize(make_causal_lm())
    token_ids = tokens_for(model, count=1)
    other = token_ids.copy()
    other[0, changed] = (other[0, changed] + 1) % 16
    moved = np.abs(to_numpy(model(other)) - to_numpy(model(token_ids))).max(axis=(0, 2))
    assert (moved[: changed + 1] == 0).all()
    assert (moved[changed + 1 :] > 1e-6).all()


@pytest.mark.parametrize("image_size", [4, 12])
def test_a_pixel_moves_all_logits_of_a_bidirectional_model(image_size):
    model = randomize(make_masked_lm(image_size=image_size), scale=0.5)
    token_ids = tokens_for(model, count=1)
    nothing_hidden = np.zeros(token_ids.shape, bool)
    for changed in (0, token_ids.shape[1] // 2, token_ids.shape[1] - 1):
        other = token_ids.copy()
        other[0, changed] = (other[0, changed] + 1) % 16
        before, after = (
            to_numpy(model({"token_ids": tokens, "position_mask": nothing_hidden})) for tokens in (token_ids, other)
        )
        assert (np.abs(after - before).max(axis=(0, 2)) > 1e-7).all()


def test_a_hidden_pixel_moves_nothing():
    model = randomize(make_masked_lm())
    token_ids = tokens_for(model, count=1)
    mask = np.zeros((1, 16), bool)
    mask[0, 6] = True
    other = token_ids.copy()
    other[0, 6] = (other[0, 6] + 1) % 16
    before, after = (to_numpy(model({"token_ids": tokens, "position_mask": mask})) for tokens in (token_ids, other))
    np.testing.assert_array_equal(before, after)


@pytest.mark.parametrize(("norm", "bias"), KINDS)
@pytest.mark.parametrize("filled", [False, True])
def test_cached_steps_equal_the_whole_forward(norm, bias, filled):
    backbone = randomize(make_backbone(normalization=norm, projection_bias=bias))
    token_ids = ops.convert_to_tensor(random_tokens(2))
    expected = to_numpy(backbone(token_ids))
    cache = backbone.fill_cache(token_ids) if filled else backbone.empty_cache(2)
    for index in range(16):
        position = ops.convert_to_tensor(index, "int32") if index % 2 else index
        hidden, cache = backbone.decode_step(token_ids, position, cache)
        np.testing.assert_allclose(to_numpy(hidden)[:, 0], expected[:, index], atol=1e-5)


def test_the_cache_of_later_positions_is_never_seen():
    backbone = randomize(make_backbone())
    token_ids = random_tokens(1)
    garbled = token_ids.copy()
    garbled[:, 7:] = 0
    expected = to_numpy(backbone(token_ids))
    cache = backbone.fill_cache(ops.convert_to_tensor(garbled))
    for index in range(7, 16):
        position = ops.convert_to_tensor(index, "int32")
        hidden, cache = backbone.decode_step(ops.convert_to_tensor(token_ids), position, cache)
        np.testing.assert_allclose(to_numpy(hidden)[:, 0], expected[:, index], atol=1e-5)


def test_blocks_of_queries_do_not_change_the_model(monkeypatch):
    backbone = randomize(make_backbone(image_size=12, kernel="blocks"))
    token_ids = random_tokens(2, 144)
    expected = to_numpy(backbone(token_ids))
    monkeypatch.setattr(attention_kernels, "_SHORTEST_QUERY_BLOCK", 50)
    np.testing.assert_allclose(to_numpy(backbone(token_ids)), expected, atol=1e-5)


def test_initialisation_is_the_released_codes():
    model = make_causal_lm(hidden_dim=128, num_layers=4, vocabulary_size=256, image_size=16, projection_bias=True)
    weights = read_weights(model)
    block = weights["blocks"][2]
    for array, deviation in (
        (block["query_key_value"][0], 128**-0.5),
        (block["output"][0], (128 * 4) ** -0.5),
        (block["expansion"][0], 0.02),
        (block["contraction"][0], 0.02),
        (weights["token"], 0.02),
        (weights["position"], 0.01),
    ):
        assert array.std() == pytest.approx(deviation, rel=0.03)
    assert weights["start"].std() == pytest.approx(0.02, rel=0.3)
    assert (weights["head"] == 0).all()
    assert (block["attention_norm"]["gain"] == 1).all()
    assert not np.array_equal(block["expansion"][0], weights["blocks"][0]["expansion"][0])
    for projection in ("query_key_value", "output", "expansion", "contraction"):
        assert (block[projection][1] == 0).all()


def test_bfloat16_stays_close_and_keeps_float32_logits():
    exact = randomize(make_causal_lm(projection_bias=True), scale=0.1)
    rough = make_causal_lm(dtype="mixed_bfloat16", projection_bias=True)
    rough.set_weights(exact.get_weights())
    token_ids = random_tokens(2)
    logits = rough(token_ids)
    assert keras.backend.standardize_dtype(logits.dtype) == "float32"
    assert keras.backend.standardize_dtype(rough.backbone(token_ids).dtype) == "bfloat16"
    assert keras.backend.standardize_dtype(rough.backbone.pixel_embedding.position_embedding.dtype) == "float32"
    np.testing.assert_allclose(to_numpy(logits), to_numpy(exact(token_ids)), atol=0.05)


def test_double_precision_is_refused_where_products_have_none():
    if keras.backend.backend() != "torch":
        make_backbone(dtype="float64")
        return
    with pytest.raises(ValueError, match=r"`dtype` must be of at most 32 bits on PyTorch\. Received: dtype='float64'"):
        make_backbone(dtype="float64")


def test_preset_architectures():
    backbone = type(make_backbone()).from_preset("igpt_nano", image_size=4)
    assert (backbone.num_layers, backbone.num_heads, backbone.hidden_dim, backbone.num_tokens) == (6, 4, 64, 16)
    assert backbone.vocabulary_size == 64
