import keras
import numpy as np
import pytest
from conftest import make_causal_lm, make_masked_lm, random_tokens, randomize, to_numpy
from keras import ops
from reference import forward, read_weights, softmax

from keras_igpt.data import resize_images
from keras_igpt.inference import decoding as generation
from keras_igpt.inference.sampling import Sampling, sample_tokens

NOTHING_KNOWN = np.zeros(16, bool)


def continue_with(model, prompt, known, uniforms, batch_size=64):
    """`continue_tokens` with given random numbers."""
    return generation.continue_tokens(model, prompt, known, Sampling(uniforms=uniforms), batch_size)


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


def test_of_equal_tokens_top_k_keeps_the_lower_ids_and_top_p_restricts_beside_it():
    logits = np.tile([1.0, 2.0, 2.0, 2.0, 0.0, 2.0], (20000, 1))
    for top_k, kept in ((1, [1]), (3, [1, 2, 3]), (5, [0, 1, 2, 3, 5])):
        assert sorted(set(draw(logits, UNIFORMS, top_k=top_k).tolist())) == kept
    # Four equal ones hold more than 0.2 each: with two of them half is not reached, with three it is.
    for top_k, top_p, kept in ((6, 0.5, [1, 2, 3]), (2, 0.5, [1, 2]), (6, 0.2, [1])):
        assert sorted(set(draw(logits, UNIFORMS, top_k=top_k, top_p=top_p).tolist())) == kept


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
    """The whole sequence anew for every token, in NumPy and float64."""
    weights, token_ids = read_weights(model), np.where(known, prompt, 0)
    for index in range(16):
        if known[index]:
            continue
        probabilities = softmax(forward(weights, token_ids, True, "layer_norm")[2][:, index])
        cumulative = np.cumsum(probabilities, axis=-1)
        token_ids[:, index] = (cumulative <= uniforms[:, index, None]).sum(-1).clip(max=15)
    return token_ids


@pytest.fixture(scope="module")
def model():
    return randomize(make_causal_lm())


def test_cached_logits_equal_the_full_pass_at_every_position(model):
    token_ids = ops.convert_to_tensor(random_tokens(3, seed=7))
    expected = to_numpy(model(token_ids))
    cache = model.backbone.empty_cache(3)
    for index in range(16):
        hidden, cache = model.backbone.decode_step(token_ids, ops.convert_to_tensor(index, "int32"), cache)
        np.testing.assert_allclose(to_numpy(model.pixel_head(hidden))[:, 0], expected[:, index], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("known", [NOTHING_KNOWN, np.arange(16) < 6, np.arange(16) % 3 == 0, ~NOTHING_KNOWN])
def test_the_compiled_loop_equals_a_naive_one(model, known):
    prompt, uniforms = random_tokens(5, seed=1), np.random.default_rng(2).random((5, 16)).astype("float32")
    drawn = continue_with(model, prompt, known, uniforms, batch_size=2)
    np.testing.assert_array_equal(drawn, naive_continuation(model, prompt, known, uniforms))
    np.testing.assert_array_equal(drawn[:, known], prompt[:, known])


def test_a_cache_that_grows_in_stages_draws_the_same(model, monkeypatch):
    if keras.backend.backend() == "torch":
        pytest.skip("PyTorch attends to as many positions as there are")
    prompt, uniforms = random_tokens(3, seed=1), np.random.default_rng(2).random((3, 16)).astype("float32")
    known = np.arange(16) < 6
    assert generation._cache_lengths(16) == (16,)
    monkeypatch.setattr(generation, "_SHORTEST_STAGE", 5)
    assert generation._cache_lengths(16) == (6, 11, 16)
    for kept in (NOTHING_KNOWN, known):
        drawn = continue_with(randomize(make_causal_lm()), prompt, kept, uniforms)
        np.testing.assert_array_equal(drawn, naive_continuation(model, prompt, kept, uniforms))


def test_equal_numbers_draw_equal_tokens_on_every_backend(model):
    """What the NumPy reference drew once."""
    uniforms = ((np.arange(32) * 37 + 11) % 64 / 64).reshape(2, 16)
    drawn = continue_with(model, random_tokens(2), NOTHING_KNOWN, uniforms)
    assert drawn.tolist() == EXPECTED


EXPECTED = [
    [7, 11, 1, 15, 11, 0, 15, 7, 15, 5, 15, 15, 5, 15, 10, 15],
    [15, 0, 11, 3, 15, 11, 13, 15, 0, 8, 0, 11, 7, 15, 11, 5],
]


def test_an_overfitted_model_completes_its_pictures_exactly():
    keras.utils.set_random_seed(0)
    model, token_ids = make_causal_lm(), random_tokens(4, seed=3)
    model.compile(optimizer=keras.optimizers.Adam(0.01))
    model.fit(np.tile(token_ids, (150, 1)), batch_size=4, shuffle=False, verbose=0)
    assert len({tuple(row[:2]) for row in token_ids.tolist()}) == 4
    completed = model.continue_tokens(token_ids, np.arange(16) < 2, temperature=0)
    np.testing.assert_array_equal(completed, token_ids)


def test_rows_may_know_different_positions(model):
    prompt, uniforms = random_tokens(2, seed=1), np.random.default_rng(2).random((2, 16)).astype("float32")
    known = np.stack([np.arange(16) < 9, np.arange(16) < 3])
    drawn = continue_with(model, prompt, known, uniforms)
    for row in range(2):
        rows = slice(row, row + 1)
        expected = naive_continuation(model, prompt[rows], known[row], uniforms[rows])
        np.testing.assert_array_equal(drawn[rows], expected)


def test_seeds_decide_and_batches_do_not(model):
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


def test_new_settings_do_not_trace_the_model_again(model, monkeypatch):
    if keras.backend.backend() == "torch":
        pytest.skip("PyTorch runs eagerly: nothing is traced")
    prompt = random_tokens(4)
    traces = []
    step = type(model.backbone).decode_step
    monkeypatch.setattr(type(model.backbone), "decode_step", lambda *inputs: traces.append(0) or step(*inputs))
    fresh = randomize(make_causal_lm())
    fresh.continue_tokens(prompt, NOTHING_KNOWN)
    assert traces, "what is counted is not what runs"
    traces.clear()
    for known, options in (
        (np.arange(16) < 5, {"temperature": 0.5}),
        (NOTHING_KNOWN, {"top_k": 3, "top_p": 0.5, "seed": 7}),
        (NOTHING_KNOWN, {"temperature": 0}),
    ):
        fresh.continue_tokens(prompt, known, **options)
    assert not traces


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


def test_any_raster_prefix_is_kept_as_given_or_in_palette_colors(palette):
    model = randomize(make_causal_lm(palette))
    originals = np.random.default_rng(0).integers(0, 256, (2, 4, 4, 3)).astype("uint8")
    completed = model.complete(originals, keep_pixels=6, num_samples=2)
    quantized = model.complete(originals, keep_pixels=6, num_samples=2, quantize=True)
    flat = originals.reshape(2, 1, 16, 3)[:, :, :6]
    np.testing.assert_array_equal(completed.reshape(2, 2, 16, 3)[:, :, :6], np.repeat(flat, 2, 1))
    seen = palette.decode(palette.encode(originals)).reshape(2, 1, 16, 3)[:, :, :6]
    np.testing.assert_array_equal(quantized.reshape(2, 2, 16, 3)[:, :, :6], np.repeat(seen, 2, 1))
    np.testing.assert_array_equal(completed.reshape(2, 2, 16, 3)[:, :, 6:], quantized.reshape(2, 2, 16, 3)[:, :, 6:])
    assert (completed != quantized).any()
    for arguments in ({}, {"keep_rows": 1, "keep_pixels": 4}, {"keep_pixels": 17}):
        with pytest.raises(ValueError, match="`keep_pixels`"):
            model.complete(originals, **arguments)


def test_pictures_of_other_sizes_and_kinds_are_resized_with_a_word(palette):
    image = pytest.importorskip("PIL.Image")
    pixels = np.random.default_rng(0).integers(0, 256, (9, 12, 3)).astype("uint8")
    model = make_causal_lm(palette)
    expected = resize_images(pixels[None], 4)
    for given in (pixels, pixels[None], image.fromarray(pixels), [image.fromarray(pixels), expected[0]]):
        with pytest.warns(UserWarning, match=r"12x9 pixels .width x height. .* resized to the model's 4x4") as warned:
            completed = model.complete(given, keep_rows=4)
        assert warned[0].filename == __file__
        np.testing.assert_array_equal(completed[0, 0], expected[0])
    rotated = image.fromarray(pixels[:4, :4].transpose(1, 0, 2)[::-1])
    rotated.getexif()[0x0112] = 6
    np.testing.assert_array_equal(model.complete(rotated, keep_rows=4)[0, 0], pixels[:4, :4])
    for given in ([], pixels[..., :1], image.new("F", (4, 4)), "picture.png", [pixels[None]]):
        with pytest.raises(ValueError, match="`images`"):
            model.complete(given, keep_rows=4)


def test_long_runs_say_how_far_they_are(model, capsys):
    model.continue_tokens(random_tokens(5), ~NOTHING_KNOWN, batch_size=2, verbose=1)
    assert "5/5" in capsys.readouterr().out
    model.continue_tokens(random_tokens(5), ~NOTHING_KNOWN, batch_size=2)
    assert not capsys.readouterr().out


def test_bfloat16_models_draw_with_float32_numbers():
    ml_dtypes = pytest.importorskip("ml_dtypes")
    model = randomize(make_causal_lm(dtype="mixed_bfloat16"))
    uniforms = np.full((4096, 16), 0.5, "float32")
    uniforms[:, 0] = np.arange(4096) / 4096
    drawn = continue_with(model, random_tokens(4096), NOTHING_KNOWN, uniforms, batch_size=4096)[:, 0]
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


def test_what_is_drawn_may_be_anything_before(model):
    known = np.arange(16) < 6
    prompt = random_tokens(2)
    expected = model.continue_tokens(prompt, known)
    np.testing.assert_array_equal(model.continue_tokens(np.where(known, prompt, -1), known), expected)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("top_k", {"top_k": True}),
        ("top_k", {"top_k": 17}),
        ("temperature", {"temperature": "1"}),
        ("batch_size", {"batch_size": 0.5}),
    ],
)
def test_wrong_numbers_are_named(model, name, options):
    with pytest.raises(ValueError, match=f"`{name}`.*Received: "):
        model.continue_tokens(random_tokens(2), NOTHING_KNOWN, **options)
    model.continue_tokens(random_tokens(2), NOTHING_KNOWN, top_k=np.int64(3), batch_size=np.int64(2))


@pytest.mark.parametrize("wrong", [np.nan, 1.0, -0.5])
def test_numbers_to_draw_with_are_checked(wrong):
    with pytest.raises(ValueError, match=r"`uniforms` must have shape \(2, 16\) and lie in \[0, 1\)\. Received: "):
        Sampling(uniforms=np.full((2, 16), wrong)).inputs((2, 16), vocabulary_size=16)


def test_pictures_are_counted_in_whole_numbers(palette):
    model, originals = make_causal_lm(palette), np.zeros((1, 4, 4, 3), "uint8")
    for name, options in (("keep_rows", {"keep_rows": 1.5}), ("num_samples", {"keep_rows": 1, "num_samples": 1.5})):
        with pytest.raises(ValueError, match=f"`{name}` must be an integer"):
            model.complete(originals, **options)
    with pytest.raises(ValueError, match="`num_images` must be an integer"):
        model.generate(2.5)


def test_a_palette_of_another_size_is_refused_at_once(palette):
    model = make_causal_lm()
    with pytest.raises(ValueError, match=r"vocabulary_size=16 colours\. Received: 3 colours"):
        model.palette = palette.from_colors(np.eye(3, dtype="uint8"))
    model.palette = palette
    assert model.palette is palette


def test_pictures_of_other_depths_are_those_that_files_give(palette):
    image = pytest.importorskip("PIL.Image")
    model, pixels = make_causal_lm(palette), np.random.default_rng(0).integers(0, 256, (4, 4, 4)).astype("uint8")
    seen = model.complete(image.fromarray(pixels), keep_rows=4)[0, 0]
    np.testing.assert_array_equal(seen, pixels[..., :3])
    deep = image.fromarray(pixels[..., 0].astype("uint16") << 8)
    np.testing.assert_array_equal(model.complete(deep, keep_rows=4)[0, 0], np.repeat(pixels[..., :1], 3, -1))
