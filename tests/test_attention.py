import numpy as np
import pytest
from conftest import to_numpy
from keras import ops

from keras_igpt import attention


def reference_attention(query, key, value, causal):
    scores = np.einsum("btnh,bsnh->bnts", query, key).astype("float64") / np.sqrt(query.shape[-1])
    if causal:
        scores = np.where(np.tri(scores.shape[-1], dtype=bool), scores, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return np.einsum("bnts,bsnh->btnh", weights / weights.sum(-1, keepdims=True), value)


@pytest.mark.parametrize("length", [1, 7, 64, 150])  # 150: three unequal blocks of queries
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("fused", [None, False])
def test_attention_equals_the_formula(length, causal, fused, monkeypatch):
    if fused is not None:
        monkeypatch.setattr(attention, "_has_fused_kernel", lambda dtype, causal: fused)
    query, key, value = np.random.default_rng(0).normal(size=(3, 2, length, 3, 8)).astype("float32")
    tensors = [ops.convert_to_tensor(array) for array in (query, key, value)]
    attended = attention.dot_product_attention(*tensors, causal=causal)
    np.testing.assert_allclose(to_numpy(attended), reference_attention(query, key, value, causal), atol=1e-5)


def test_huge_scores_do_not_overflow():
    query, key, value = (1e4 * np.random.default_rng(0).normal(size=(3, 1, 5, 1, 8))).astype("float32")
    tensors = [ops.convert_to_tensor(array) for array in (query, key, value)]
    attended = to_numpy(attention.dot_product_attention(*tensors, causal=True))
    np.testing.assert_allclose(attended[:, 0], value[:, 0], rtol=1e-6)
    assert np.isfinite(attended).all()
