import keras
import numpy as np
import pytest
from conftest import make_backbone, to_numpy, value_and_gradient
from keras import ops

from keras_igpt.model import attention_kernels
from keras_igpt.model.attention_kernels import dot_product_attention


def reference_attention(query, key, value, causal):
    scores = np.einsum("btnh,bsnh->bnts", query, key).astype("float64") / np.sqrt(query.shape[-1])
    if causal:
        scores = np.where(np.tri(scores.shape[-1], dtype=bool), scores, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return np.einsum("bnts,bsnh->btnh", weights / weights.sum(-1, keepdims=True), value)


@pytest.mark.parametrize("length", [1, 7, 64, 150])  # 150: three unequal blocks of queries
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("kernel", ["auto", "blocks"] if keras.backend.backend() == "torch" else ["blocks"])
def test_attention_and_its_gradient_equal_the_formula(length, causal, kernel):
    """The gradient in direction `upstream` against differences of the formula along random directions."""
    random = np.random.default_rng(0)
    projected = random.normal(size=(2, length, 3, 3, 8))
    direction, upstream = random.normal(size=projected.shape), random.normal(size=(2, length, 3, 8))

    def reference(projected):
        return reference_attention(*(projected[:, :, part] for part in range(3)), causal)

    attended, gradient = value_and_gradient(
        lambda tensor: dot_product_attention(tensor, causal=causal, kernel=kernel),
        projected.astype("float32"),
        upstream.astype("float32"),
    )
    np.testing.assert_allclose(attended, reference(projected), atol=1e-5)
    slope = (reference(projected + 1e-6 * direction) - reference(projected - 1e-6 * direction)) / 2e-6
    assert (gradient * direction).sum() == pytest.approx((slope * upstream).sum(), rel=1e-4, abs=1e-3)


def test_huge_scores_do_not_overflow():
    projected = (1e4 * np.random.default_rng(0).normal(size=(1, 5, 3, 1, 8))).astype("float32")
    attended, gradient = value_and_gradient(
        lambda tensor: dot_product_attention(tensor, causal=True, kernel="blocks"),
        projected,
        np.ones((1, 5, 1, 8), "float32"),
    )
    np.testing.assert_allclose(attended[:, 0], projected[:, 0, 2], rtol=1e-6)
    assert np.isfinite(attended).all()
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_blocks_in_half_precision(dtype):
    """Values near the end of float16's range, where sums of weighted values before the division would leave it."""
    projected = np.random.default_rng(0).normal(size=(1, 100, 3, 2, 8)).astype("float32")
    projected[:, :, 2] = 3e3 + 100 * projected[:, :, 2]
    tensor = keras.ops.cast(projected, dtype)
    attended = keras.ops.cast(dot_product_attention(tensor, causal=True, kernel="blocks"), "float32")
    expected = reference_attention(*(projected[:, :, part] for part in range(3)), True)
    np.testing.assert_allclose(to_numpy(attended), expected, rtol=0.02)


def test_a_kernel_that_is_not_there_is_refused_and_not_replaced():
    if keras.backend.backend() == "torch":
        assert make_backbone(kernel="fused").attention_kernel == "torch"
    else:
        with pytest.raises(ValueError, match=r"`kernel` must be 'auto' or 'blocks'.*Received: kernel='fused'"):
            make_backbone(kernel="fused")
        assert make_backbone().attention_kernel == "blocks"
    assert make_backbone(kernel="blocks").attention_kernel == "blocks"


@pytest.mark.skipif(keras.backend.backend() != "jax", reason="others loop over rows everywhere")
def test_rows_are_written_at_places_of_their_own_at_once_on_a_gpu(monkeypatch):
    random = np.random.default_rng(0)
    cache = tuple(random.normal(size=(3, 2, 10, 4)).astype("float32") for _ in range(2))
    new = tuple(random.normal(size=(3, 2, 3, 4)).astype("float32") for _ in range(2))
    index = np.array([[0, 1, 2], [7, 8, 9], [4, 5, 6]])
    expected = [whole.copy() for whole in cache]
    for whole, part in zip(expected, new, strict=True):
        for row, places in enumerate(index):
            whole[row][:, places] = part[row]
    on_cpu = attention_kernels._written(cache, new, ops.convert_to_tensor(index))
    monkeypatch.setattr(attention_kernels, "maps_rows_at_once", lambda: True)
    on_gpu = attention_kernels._written(cache, new, ops.convert_to_tensor(index))
    for computed, others, right in zip(on_cpu, on_gpu, expected, strict=True):
        np.testing.assert_array_equal(to_numpy(computed), right)
        np.testing.assert_array_equal(to_numpy(others), right)
