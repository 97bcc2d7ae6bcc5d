import keras
import numpy as np
import pytest
from conftest import make_causal_lm, make_masked_lm, random_tokens, randomize, to_numpy
from keras import ops

from keras_igpt.generation import sample_tokens

NOTHING_KNOWN = np.zeros(16, bool)


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def draw(logits, uniforms, temperature=1.0, top_k=None, top_p=1.0):
    rows, colors = logits.shape

    def full(value, dtype):
        return ops.convert_to_tensor(np.full(rows, value, dtype))

    return to_numpy(
        sample_tokens(
            ops.convert_to_tensor(logits.astype("float32")),
            ops.convert_to_tensor(uniforms.astype("float32")),
            full(temperature, "float32"),
            full(colors if top_k is None else top_k, "int32"),
            full(top_p, "float32"),
        )
    )


LOGITS = np.array([0.3, 2.0, -1.0, 1.2, 0.3, -3.0])
UNIFORMS = (np.arange(20000) + 0.5) / 20000


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_frequencies_match_the_softmax(temperature):
    drawn = draw(np.tile(LOGITS, (20000, 1)), UNIFORMS, temperature)
    np.testing.assert_allclose(np.bincount(drawn, minlength=6) / 20000, softmax(LOGITS / temperature), atol=2e-4)


@pytest.mark.parametrize(("top_k", "kept"), [(1, [1]), (2, [1, 3]), (3, [0, 1, 3]), (6, [0, 1, 2, 3, 4, 5])])
def test_top_k_draws_no_other_token(top_k, kept):
    drawn = draw(np.tile(LOGITS, (20000, 1)), UNIFORMS, top_k=top_k)
    assert sorted(set(drawn.tolist())) == kept
    expected = softmax(LOGITS[kept])
    np.testing.assert_allclose(np.bincount(drawn, minlength=6)[kept] / 20000, expected, atol=2e-4)


@pytest.mark.parametrize(("top_p", "kept"), [(1e-9, [1]), (0.5, [1]), (0.6, [1, 3]), (0.8, [0, 1, 3])])
def test_top_p_draws_no_other_token(top_p, kept):
    drawn = draw(np.tile(LOGITS, (20000, 1)), UNIFORMS, top_p=top_p)
    assert sorted(set(drawn.tolist())) == kept


def test_the_largest_uniform_number_draws_a_kept_token():
    largest = np.full(64, np.nextafter(np.float32(1), np.float32(0)))
    logits = np.random.default_rng(0).normal(size=(64, 512))
    for top_k in (1, 5, 511):
        kept = np.argsort(-logits, axis=-1)[:, :top_k]
        drawn = draw(logits, largest, top_k=top_k)
        assert (kept == drawn[:, None]).any(-1).all()


def naive_continuation(model, prompt, known, uniforms):
    """Full recompute for every token, and a sum over sorted probabilities in float64."""
    token_ids = np.where(known, prompt, 0).astype("int32")
    for index in range(16):
        if known[index]:
            continue
        probabilities = softmax(to_numpy(model(token_ids))[:, index].astype("float64"))
        order = np.argsort(-probabilities, axis=-1, kind="stable")
        cumulative = np.cumsum(np.take_along_axis(probabilities, order, -1), axis=-1)
        rank = (cumulative <= uniforms[:, index, None]).sum(-1).clip(max=15)
        token_ids[:, index] = np.take_along_axis(order, rank[:, None], -1)[:, 0]
    return token_ids


@pytest.mark.parametrize("known", [NOTHING_KNOWN, np.arange(16) < 6, np.arange(16) % 3 == 0, ~NOTHING_KNOWN])
def test_the_compiled_loop_equals_a_naive_one(known):
    model = randomize(make_causal_lm())
    prompt, uniforms = random_tokens(5, seed=1), np.random.default_rng(2).random((5, 16)).astype("float32")
    drawn = model.continue_tokens(prompt, known, uniforms=uniforms, batch_size=2)
    np.testing.assert_array_equal(drawn, naive_continuation(model, prompt, known, uniforms))
    np.testing.assert_array_equal(drawn[:, known], prompt[:, known])


def test_rows_may_know_different_positions():
    model = randomize(make_causal_lm())
    prompt, uniforms = random_tokens(2, seed=1), np.random.default_rng(2).random((2, 16)).astype("float32")
    known = np.stack([np.arange(16) < 9, np.arange(16) < 3])
    drawn = model.continue_tokens(prompt, known, uniforms=uniforms)
    for row in range(2):
        rows = slice(row, row + 1)
        expected = naive_continuation(model, prompt[rows], known[row], uniforms[rows])
        np.testing.assert_array_equal(drawn[rows], expected)


def test_seeds_decide_and_batches_do_not():
    model = randomize(make_causal_lm())
    prompt = random_tokens(5)
    first = model.continue_tokens(prompt, NOTHING_KNOWN, seed=1)
    np.testing.assert_array_equal(model.continue_tokens(prompt, NOTHING_KNOWN, seed=1, batch_size=2), first)
    assert (model.continue_tokens(prompt, NOTHING_KNOWN, seed=2) != first).any()
    assert (first[0] != first[1]).any()


def test_the_first_pixel_is_drawn_from_its_distribution():
    model = randomize(make_causal_lm(), scale=0.5)
    drawn = model.continue_tokens(random_tokens(2000), NOTHING_KNOWN, batch_size=2000)[:, 0]
    probabilities = softmax(to_numpy(model(random_tokens(1)))[0, 0].astype("float64"))
    expected = 2000 * probabilities
    chi_square = (np.square(np.bincount(drawn, minlength=16) - expected) / expected).sum()
    assert chi_square < 37.7  # the 0.999 quantile at 15 degrees of freedom


def test_new_settings_do_not_trace_the_model_again(monkeypatch):
    model = randomize(make_causal_lm())
    prompt = random_tokens(4)
    model.continue_tokens(prompt, NOTHING_KNOWN)
    traces = []
    original = type(model.backbone).fill_cache
    monkeypatch.setattr(type(model.backbone), "fill_cache", lambda self, ids: traces.append(0) or original(self, ids))
    for known, options in (
        (np.arange(16) < 5, {"temperature": 0.5}),
        (NOTHING_KNOWN, {"top_k": 3, "top_p": 0.5, "seed": 7}),
        (NOTHING_KNOWN, {"temperature": 0}),
    ):
        model.continue_tokens(prompt, known, **options)
    # PyTorch runs eagerly: each call passes through Python.
    assert len(traces) == (3 if keras.backend.backend() == "torch" else 0)


def test_generate_and_complete_make_pictures(palette):
    model = randomize(make_causal_lm(palette))
    images = model.generate(3, seed=4)
    assert images.shape == (3, 4, 4, 3)
    assert images.dtype == np.uint8
    originals = np.random.default_rng(0).integers(0, 256, (2, 4, 4, 3)).astype("uint8")
    completed = model.complete(originals, keep_rows=2, num_samples=3, seed=1)
    assert completed.shape == (2, 3, 4, 4, 3)
    np.testing.assert_array_equal(completed[:, :, :2], np.repeat(originals[:, None, :2], 3, 1))
    np.testing.assert_array_equal(completed, palette_rows(palette, completed, 2))
    assert (completed[:, 0] != completed[:, 1]).any()
    np.testing.assert_array_equal(model.complete(originals, keep_rows=4)[:, 0], originals)


def palette_rows(palette, images, start):
    """The images with the rows from `start` on replaced by their nearest palette colours."""
    quantized = palette.decode(palette.encode(images)).copy()
    quantized[..., :start, :, :] = images[..., :start, :, :]
    return quantized


def test_bfloat16_models_draw_with_float32_numbers():
    ml_dtypes = pytest.importorskip("ml_dtypes")
    model = randomize(make_causal_lm(dtype="mixed_bfloat16"))
    uniforms = np.full((4096, 16), 0.5, "float32")
    uniforms[:, 0] = np.arange(4096) / 4096
    drawn = model.continue_tokens(random_tokens(4096), NOTHING_KNOWN, uniforms=uniforms, batch_size=4096)[:, 0]
    rounded = uniforms[:, 0].astype(ml_dtypes.bfloat16)
    # One token begins between two numbers that bfloat16 cannot tell apart: they were not rounded on their way in.
    assert ((rounded[1:] == rounded[:-1]) & (drawn[1:] != drawn[:-1])).any()


def test_a_model_that_diverged_draws_nothing():
    model = randomize(make_causal_lm())
    model.pixel_head.kernel.assign(np.full((32, 16), np.nan))
    with pytest.raises(ValueError, match="finite logits"):
        model.continue_tokens(random_tokens(2), NOTHING_KNOWN)


def test_a_masked_model_has_no_order_to_draw_in():
    assert not hasattr(make_masked_lm(), "generate")


def test_the_generator_is_not_part_of_the_model(palette):
    model = make_causal_lm(palette)
    before = [weight.path for weight in model.weights]
    model.generate(1)
    assert [weight.path for weight in model.weights] == before
    assert [layer.name for layer in model.layers] == [model.backbone.name, "pixel_head"]
