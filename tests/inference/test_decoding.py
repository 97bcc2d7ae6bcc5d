import re

import keras
import numpy as np
import pytest
from conftest import make_causal_lm, make_masked_lm, random_tokens, randomize, to_numpy
from keras import ops
from reference import forward, read_weights, softmax

import keras_igpt as igpt
from keras_igpt.data import resize_images
from keras_igpt.inference import decoding as generation
from keras_igpt.inference.sampling import NOT_DRAWN, Sampling, draw_tokens, noise_at

NOTHING_KNOWN = np.zeros(16, bool)
LOGITS = np.array([0.3, 2.0, -1.0, 1.2, 0.3, -3.0], "float32")


def continue_with(model, prompt, known, noise, batch_size=64, lookahead=None):
    """`continue_tokens` with given noise."""
    sampling = Sampling(noise=noise)
    return generation.continue_tokens(model, prompt, known, sampling, batch_size, lookahead).token_ids


def draw(logits, count=20000, **options):
    """Draws from one distribution as often as asked for."""
    arrays = Sampling(**options).inputs((1, count), len(logits))
    noise, *settings = map(ops.convert_to_tensor, arrays.values())
    noise = noise_at(noise, ops.arange(count, dtype="int32")[None], len(logits))
    return to_numpy(draw_tokens(ops.convert_to_tensor(np.tile(logits, (1, count, 1))), noise, *settings))[0]


def chi_square(drawn, probabilities):
    expected = len(drawn) * probabilities
    return (np.square(np.bincount(drawn, minlength=len(expected)) - expected) / expected).sum()


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_frequencies_match_the_softmax(temperature):
    drawn = draw(LOGITS, temperature=temperature)
    assert chi_square(drawn, softmax(LOGITS / temperature)) < 20.5  # the 0.999 quantile at 5 degrees of freedom


def test_temperatures_near_zero_draw_the_most_probable_token():
    for options in ({"temperature": 0}, {"temperature": 1e-30}, {"temperature": 0, "top_k": 3, "top_p": 0.9}):
        assert (draw(LOGITS, 100, **options) == 1).all()


@pytest.mark.parametrize(("top_k", "kept"), [(1, [1]), (2, [1, 3]), (3, [0, 1, 3]), (6, [0, 1, 2, 3, 4, 5])])
def test_top_k_draws_no_other_token(top_k, kept):
    drawn = draw(LOGITS, top_k=top_k)
    assert sorted(set(drawn.tolist())) == kept
    assert chi_square(np.searchsorted(kept, drawn), softmax(LOGITS[kept])) < 20.5


def test_of_equal_tokens_top_k_keeps_the_lower_ids_and_top_p_restricts_beside_it():
    logits = np.array([1.0, 2.0, 2.0, 2.0, 0.0, 2.0], "float32")
    for top_k, kept in ((1, [1]), (3, [1, 2, 3]), (5, [0, 1, 2, 3, 5])):
        assert sorted(set(draw(logits, top_k=top_k).tolist())) == kept
    # Four equal ones hold more than 0.2 each: with two of them half is not reached, with three it is.
    for top_k, top_p, kept in ((6, 0.5, [1, 2, 3]), (2, 0.5, [1, 2]), (6, 0.2, [1])):
        assert sorted(set(draw(logits, top_k=top_k, top_p=top_p).tolist())) == kept


@pytest.mark.parametrize(("top_p", "kept"), [(1e-9, [1]), (0.5, [1]), (0.6, [1, 3]), (0.8, [0, 1, 3])])
def test_top_p_draws_no_other_token(top_p, kept):
    assert sorted(set(draw(LOGITS, top_p=top_p).tolist())) == kept


def test_noise_is_the_same_on_every_backend():
    """By NumPy: MurmurHash3's finaliser of a key and the colour's number, 23 bits of it, and two logarithms."""
    keys = Sampling(seed=5).inputs((3, 16), 512)["noise"]
    positions = np.array([[3, 4], [0, 15], [7, 8]], "int32")
    with np.errstate(over="ignore"):
        words = np.take_along_axis(keys, positions, 1).view(np.uint32)[..., None]
        words = words + np.uint32(0x9E3779B9) * np.arange(1, 513, dtype=np.uint32)
        for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
            words = (words ^ (words >> np.uint32(shift))) * np.uint32(factor)
    uniforms = (((words ^ (words >> np.uint32(16))) % 2**23) + 0.5) / 2**23
    noise = to_numpy(noise_at(*map(ops.convert_to_tensor, (keys, positions)), 512))
    np.testing.assert_allclose(noise, -np.log(-np.log(uniforms)), rtol=1e-4, atol=1e-5)
    assert noise.mean() == pytest.approx(np.euler_gamma, abs=0.1)


def naive_continuation(model, prompt, known, noise):
    """The whole sequence again for every token, in NumPy and float64."""
    weights, token_ids = read_weights(model), np.where(known, prompt, 0)
    for index in range(16):
        if not known[index]:
            logits = forward(weights, token_ids, True, "layer_norm")[2][:, index]
            token_ids[:, index] = (logits + noise[:, index]).argmax(-1)
    return token_ids


def gumbel(rows):
    return np.random.default_rng(2).gumbel(size=(rows, 16, 16)).astype("float32")


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


def test_windows_of_positions_equal_the_full_pass(model):
    """Each row is somewhere else; where a guess was wrong, the next pass writes over what it left in the cache."""
    token_ids = random_tokens(3, seed=7)
    expected = to_numpy(model(token_ids))
    cache = model.backbone.fill_cache(ops.convert_to_tensor(np.where(np.arange(16) < 3, token_ids, 0)))
    for starts in ([3, 0, 1], [5, 0, 4], [7, 4, 8], [11, 8, 12]):
        index = np.array(starts, "int32")[:, None] + np.arange(4, dtype="int32")
        guesses = token_ids.copy()
        guesses[np.arange(16) > index[:, 1:2]] = 5
        for inputs, right in ((guesses, 3), (token_ids, 4)):
            hidden, cache = model.backbone.decode_step(*map(ops.convert_to_tensor, (inputs, index)), cache)
            logits = np.take_along_axis(expected, index[..., None], axis=1)[:, :right]
            np.testing.assert_allclose(to_numpy(model.pixel_head(hidden))[:, :right], logits, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("lookahead", [1, 5])
@pytest.mark.parametrize("known", [NOTHING_KNOWN, np.arange(16) < 6, np.arange(16) % 3 == 0, ~NOTHING_KNOWN])
def test_the_compiled_loop_equals_a_naive_one(model, known, lookahead):
    prompt, noise = random_tokens(5, seed=1), gumbel(5)
    drawn = continue_with(model, prompt, known, noise, batch_size=2, lookahead=lookahead)
    np.testing.assert_array_equal(drawn, naive_continuation(model, prompt, known, noise))
    np.testing.assert_array_equal(drawn[:, known], prompt[:, known])


@pytest.mark.parametrize("lookahead", [1, 5, 9, 16])  # the last two are longer than the first stage
def test_a_cache_that_grows_in_stages_draws_the_same(model, monkeypatch, lookahead):
    if keras.backend.backend() == "torch":
        pytest.skip("PyTorch attends to as many positions as there are")
    prompt, noise = random_tokens(3, seed=1), gumbel(3)
    assert generation._cache_lengths(16) == (16,)
    monkeypatch.setattr(generation, "_SHORTEST_STAGE", 5)
    assert generation._cache_lengths(16) == (6, 11, 16)
    fresh = randomize(make_causal_lm())
    for kept in (NOTHING_KNOWN, np.arange(16) < 6):
        drawn = continue_with(fresh, prompt, kept, noise, lookahead=lookahead)
        np.testing.assert_array_equal(drawn, naive_continuation(model, prompt, kept, noise))


def test_a_trained_model_draws_pictures_in_fewer_passes_than_pixels():
    """Each picture is the fixed point: its tokens are what one pass over all of them draws with the same noise."""
    model = igpt.ImageGPTCausalLM.from_preset("igpt_cifar10_8x8")
    nothing, sampling = np.zeros((5, 64), "int32"), Sampling(seed=3)
    token_ids, passes = generation.continue_tokens(model, nothing, np.zeros(64, bool), sampling, 3, lookahead=16)
    keys = ops.convert_to_tensor(sampling.inputs((5, 64), 256)["noise"])
    noise = noise_at(keys, ops.arange(64, dtype="int32")[None], 256)
    np.testing.assert_array_equal(to_numpy(ops.argmax(model(token_ids) + noise, axis=-1)), token_ids)
    assert passes.max() < 45
    assert len({tuple(row) for row in token_ids.tolist()}) == 5


def test_equal_seeds_draw_equal_tokens_on_every_backend(model):
    drawn = model.continue_tokens(random_tokens(2), NOTHING_KNOWN, seed=2, lookahead=5)
    assert drawn.tolist() == EXPECTED


EXPECTED = [
    [15, 15, 8, 7, 6, 15, 11, 8, 11, 7, 1, 15, 0, 11, 11, 11],
    [11, 15, 15, 4, 7, 11, 11, 0, 1, 11, 11, 4, 15, 15, 15, 15],
]


def test_an_overfitted_model_completes_its_pictures_exactly():
    keras.utils.set_random_seed(0)
    model, token_ids = make_causal_lm(), random_tokens(4, seed=3)
    model.compile(optimizer=keras.optimizers.Adam(0.01))
    model.fit(np.tile(token_ids, (150, 1)), batch_size=4, shuffle=False, verbose=0)
    assert len({tuple(row[:2]) for row in token_ids.tolist()}) == 4
    greedy = Sampling(temperature=0)
    completed, passes = generation.continue_tokens(model, token_ids, np.arange(16) < 2, greedy, 4, lookahead=16)
    np.testing.assert_array_equal(completed, token_ids)
    assert passes.max() <= 14


def test_rows_may_know_different_positions(model):
    prompt, noise = random_tokens(2, seed=1), gumbel(2)
    known = np.stack([np.arange(16) < 9, np.arange(16) < 3])
    drawn = continue_with(model, prompt, known, noise)
    for row in range(2):
        rows = slice(row, row + 1)
        expected = naive_continuation(model, prompt[rows], known[row], noise[rows])
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
    assert chi_square(drawn, probabilities) < 37.7  # the 0.999 quantile at 15 degrees of freedom


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
    for given in ([], pixels[..., :1], image.new("F", (4, 4)), [pixels[None]]):
        with pytest.raises(ValueError, match="`images`"):
            model.complete(given, keep_rows=4)
    with pytest.raises(FileNotFoundError, match=r"picture\.png"):
        model.complete("picture.png", keep_rows=4)


def test_long_runs_say_how_far_they_are(model, capsys):
    generation.continue_tokens(model, random_tokens(5), ~NOTHING_KNOWN, Sampling(), batch_size=2, verbose=1)
    shown = capsys.readouterr().out
    assert "5/5" in shown
    assert "passes: 0.0" in shown
    model.continue_tokens(random_tokens(5), ~NOTHING_KNOWN, batch_size=2)
    assert not capsys.readouterr().out


def test_bfloat16_models_draw_with_float32_numbers():
    # Logits are all zero at first, and bfloat16 would make the noise equal too.
    noise = 1 + np.random.default_rng(0).permuted(np.tile(np.arange(16) / 2**16, (2, 16, 1)), axis=-1)
    model = make_causal_lm(dtype="mixed_bfloat16")
    drawn = continue_with(model, random_tokens(2), NOTHING_KNOWN, noise)
    np.testing.assert_array_equal(drawn, noise.argmax(-1))


def test_tokens_are_kept_as_they_are_given():
    """Not as their colours would be encoded: two may be the same in eight bits."""
    centroids = np.random.default_rng(0).uniform(-1, 1, (16, 3))
    centroids[1] = centroids[0] + 1e-4
    model = randomize(make_causal_lm(igpt.ColorPalette(centroids)))
    token_ids = np.tile([1, 0], (2, 8)).astype("int32")
    expected = model.continue_tokens(token_ids, np.arange(16) < 8, seed=3)
    drawn = model.complete(token_ids, keep_rows=2, seed=3)
    np.testing.assert_array_equal(drawn[:, 0].reshape(2, 16, 3), model.palette.colors[expected])


@pytest.mark.parametrize("dtype", ["mixed_bfloat16", "mixed_float16"])
@pytest.mark.parametrize("lookahead", [1, 8])
def test_models_of_mixed_precision_draw_from_nothing(dtype, lookahead):
    model = randomize(make_causal_lm(dtype=dtype), scale=0.1)
    alone = model.continue_tokens(random_tokens(2), NOTHING_KNOWN, temperature=0, lookahead=lookahead)
    first = model.predict(alone, verbose=0)
    # In half precision two of the best may be hard to tell apart.
    best = np.take_along_axis(first, alone[..., None], axis=-1)[..., 0]
    np.testing.assert_allclose(best, first.max(axis=-1), atol=0.1)


def test_a_model_that_diverged_draws_nothing():
    model = randomize(make_causal_lm())
    model.pixel_head.kernel.assign(np.full((32, 16), np.nan))
    with pytest.raises(ValueError, match="finite logits"):
        model.continue_tokens(random_tokens(2), NOTHING_KNOWN)
    # It is said with the first batch, not after all of them.
    with pytest.raises(ValueError, match="infinity in 2 of 2 rows"):
        model.continue_tokens(random_tokens(6), NOTHING_KNOWN, batch_size=2)


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
        ("lookahead", {"lookahead": 2.5}),
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


@pytest.mark.parametrize("wrong", [np.full((2, 16, 16), np.nan), np.zeros((2, 16))], ids=["nan", "shape"])
def test_noise_to_draw_with_is_checked(wrong):
    with pytest.raises(ValueError, match=r"`noise` must be finite and have shape \(2, 16, 16\)\. Received: "):
        Sampling(noise=wrong).inputs((2, 16), vocabulary_size=16)


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


@pytest.mark.skipif(keras.backend.backend() != "jax", reason="reads what XLA makes of JAX programs")
@pytest.mark.parametrize("window", [1, 4])
@pytest.mark.parametrize("rows", [1, 3])
def test_no_pass_copies_the_cache(rows, window):
    """No copy in the body of a loop has the shape of the keys or the values of all positions."""
    import jax

    language_model = make_causal_lm()
    backbone = language_model.backbone
    length = backbone.num_tokens
    draws = Sampling().inputs((rows, length), backbone.vocabulary_size)
    inputs = {"prompt": np.full((rows, length), NOT_DRAWN, np.int32), **draws}
    program = jax.jit(generation.Decoder(language_model, window).call).lower(inputs).compile().as_text()
    parts = dict(re.findall(r"^(%[\w.-]+) .*?\{$(.*?)^\}", program, re.MULTILINE | re.DOTALL))
    bodies = [parts[name] for name in re.findall(r"body=(%[\w.-]+)", program)]
    cache = f"{backbone.num_heads},{length},{backbone.hidden_dim // backbone.num_heads}]"
    assert any(f"[{rows},{cache}" in body for body in bodies)
    # With or without the axis of length one.
    copies = re.compile(rf"\[(?:{rows},)?{re.escape(cache)}\S* copy\(")
    assert [line for body in bodies for line in body.splitlines() if copies.search(line)] == []
