import keras
import numpy as np
import pytest
from conftest import make_backbone, make_causal_lm, random_tokens, randomize, to_numpy, weight_gradients

from keras_igpt.model.attention import SelfAttention


@pytest.mark.parametrize("kind", ["causal", "bidirectional"])
def test_models_with_other_kernels_and_remat_learn_alike(kind):
    """Logits and every gradient, in blocks and with each block computed anew, against what runs by default."""
    token_ids = random_tokens(2, num_tokens=100)
    results = []
    # Only PyTorch has another kernel than blocks on a CPU.
    others = ({"kernel": "blocks"}, {"remat": True}) if keras.backend.backend() == "torch" else ({"remat": True},)
    for options in ({}, *others):
        keras.utils.set_random_seed(0)
        backbone = randomize(make_backbone(attention=kind, image_size=10, projection_bias=True, **options))
        results.append(weight_gradients(backbone, token_ids))
    for weight, gradient in zip(backbone.trainable_weights, results[0], strict=True):
        assert gradient.any(), weight.path
    for other in results[1:]:
        for gradient, expected in zip(other, results[0], strict=True):
            np.testing.assert_allclose(gradient, expected, rtol=2e-3, atol=2e-3 * np.abs(expected).max() + 1e-5)


@pytest.mark.skipif(keras.backend.backend() != "torch", reason="XLA's figures tell on JAX; nothing does on TensorFlow")
def test_remat_keeps_little_for_the_backward_pass():
    import torch

    def kept(remat):
        model, sizes = make_causal_lm(num_layers=4, remat=remat), []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda tensor: (sizes.append(tensor.numel()), tensor)[1], lambda tensor: tensor
        ):
            model(random_tokens(4), training=True)
        return sum(sizes)

    assert kept(remat=True) < kept(remat=False) / 5


def test_recomputed_blocks_use_the_weights_of_each_call():
    token_ids = random_tokens(2)
    backbone, same = make_backbone(remat=True), make_backbone()
    for seed in (0, 1):
        outputs = [to_numpy(randomize(model, seed)(token_ids)) for model in (backbone, same)]
        np.testing.assert_allclose(*outputs, rtol=1e-4, atol=1e-5)


def test_the_backward_pass_keeps_no_score_matrix():
    """On JAX, by what XLA says of the program: another 1,000 tokens must not cost T x T numbers a layer."""
    if keras.backend.backend() != "jax":
        pytest.skip("only XLA says how much memory a program takes")
    import jax

    length, heads = 1024, 2
    layer = SelfAttention(heads, 1, "causal")
    layer.build((1, length, 16))
    weights = [weight.value for weight in layer.trainable_variables]

    def loss(weights, inputs):
        for _ in range(4):
            inputs, _ = layer.stateless_call(weights, [], inputs)[0]
        return inputs.sum()

    program = jax.jit(jax.grad(loss)).lower(weights, jax.numpy.ones((1, length, 16))).compile()
    matrices = 4 * heads * length * length * 4  # of four layers, in bytes
    assert program.memory_analysis().temp_size_in_bytes < matrices / 2
