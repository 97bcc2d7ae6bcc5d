"""Shares, epochs, restart and shards of batches that mix several sources."""

import keras
import numpy as np
import pytest
from conftest import make_causal_lm, random_tokens, to_numpy, weights_trained_in_parts

import keras_igpt as igpt
from keras_igpt.data.mixture import _Shares

COUNTS = {"a": 7, "b": 30, "c": 11}
WEIGHTS = {"a": 1, "b": 4.5, "c": 0.25}


@pytest.fixture
def sources():
    """Tokens that tell their source and row."""
    made = {}
    for number, (name, count) in enumerate(COUNTS.items()):
        token_ids = random_tokens(count)
        token_ids[:, 0] = number
        token_ids[:, 1], token_ids[:, 2] = np.divmod(np.arange(count), 16)
        examples = igpt.UnlabeledTokens(token_ids.astype("uint8"), 16)
        if name == "a":
            examples = igpt.LabeledTokens(examples.token_ids, np.arange(count), 16)
        made[name] = igpt.Source(examples, weight=WEIGHTS[name])
    return made


def drawn(batches, steps):
    """Source, epoch and row of each place of some steps, one after another."""
    return np.concatenate([np.stack(batches.rows(step), axis=1) for step in steps])


def test_items_are_the_rows(sources, palette):
    batches = igpt.MixedBatches(sources, palette, 8, seed=3)
    assert batches.names == ("a", "b", "c")
    assert batches.num_batches is None
    assert batches.steps_per_epoch == 48 // 8
    for step in range(20):
        (token_ids,) = batches[step]
        assert (token_ids.dtype, token_ids.shape) == (np.int32, (8, 16))
        for tokens, source, row in zip(token_ids, *np.array(batches.rows(step))[[0, 2]], strict=True):
            np.testing.assert_array_equal(tokens, sources[batches.names[source]].examples.token_ids[row])
    with pytest.raises(IndexError, match="`index`"):
        batches[-1]


def test_each_source_goes_through_epochs_of_its_own(sources, palette):
    taken = drawn(igpt.MixedBatches(sources, palette, 8, seed=3), range(400))
    for number, count in enumerate(COUNTS.values()):
        of_source = taken[taken[:, 0] == number]
        epochs = len(of_source) // count
        assert epochs >= 12
        whole = of_source[: epochs * count].reshape(epochs, count, 3)
        assert (whole[:, :, 1] == np.arange(epochs)[:, None]).all()
        np.testing.assert_array_equal(np.sort(whole[:, :, 2]), np.tile(np.arange(count), (epochs, 1)))
        assert len({tuple(order) for order in whole[:, :, 2].tolist()}) > epochs - 2


@pytest.mark.parametrize("weights", [(1, 4), (1, 1, 1), (3, 0.001, 0.5, 7), (5,), (1e-12, 1, 1e-12)])
def test_shares_are_the_weights_to_within_a_draw_or_so(weights):
    """Far within what chance would do: 10,000 steps of 128."""
    shares = _Shares(weights, seed=9)
    sources, earlier = shares.draws(0, 10_000 * 128)
    counts = np.bincount(sources, minlength=len(weights))
    expected = np.array(weights) / sum(weights)
    assert (np.abs(counts - expected * len(sources)) <= len(weights)).all()
    binomial = np.sqrt(len(sources) * expected * (1 - expected))
    assert (np.abs(counts - expected * len(sources)) <= 3 * binomial + 1).all()
    for number in range(len(weights)):
        of_shards = (sources == number).reshape(-1, 32).sum(1)
        assert np.abs(of_shards - 32 * expected[number]).max() < len(weights) + 1e-6
        np.testing.assert_array_equal(earlier[sources == number], np.arange(counts[number]))
    # From anywhere, without what is before: the same.
    for start in (1, 12_345, 1_000_000):
        again = shares.draws(start, 300)
        np.testing.assert_array_equal(again, (sources[start : start + 300], earlier[start : start + 300]))
    far = shares.draws(10**15, 1000)
    np.testing.assert_array_equal(far[1], shares.draws(10**15 - 77, 1100)[1][77:1077])


def test_seeds_move_sources_and_rows(sources, palette):
    batches = [igpt.MixedBatches(sources, palette, 8, seed=seed) for seed in range(12)]
    assert len({batch[5][0].tobytes() for batch in batches}) == 12
    assert len({batch.rows(5)[0].tobytes() for batch in batches}) > 3
    swapped = igpt.MixedBatches(dict(reversed(sources.items())), palette, 8, seed=3)
    np.testing.assert_array_equal(swapped[5][0], batches[3][5][0])
    alike = {name: igpt.Source(sources["b"].examples) for name in "xy"}
    taken = drawn(igpt.MixedBatches(alike, palette, 8), range(8))
    assert taken[taken[:, 0] == 0, 2].tolist() != taken[taken[:, 0] == 1, 2].tolist()


def test_a_restart_gives_the_same_bytes(sources, palette):
    sources = sources | {"b": igpt.Source(sources["b"].examples, igpt.PaddedCrop(2), 4.5)}
    uninterrupted = igpt.MixedBatches(sources, palette, 8, seed=5)
    seen = [uninterrupted[step][0].tobytes() for step in range(40)]
    assert len(set(seen)) == 40
    restarted = igpt.MixedBatches(sources, palette, 8, seed=5, first_step=17)
    assert restarted.first_step == 17
    assert [restarted[item][0].tobytes() for item in range(5)] == seen[17:22]
    assert restarted.starting_at(3)[1][0].tobytes() == seen[21]
    far = igpt.MixedBatches(sources, palette, 8, seed=5, first_step=10**12)
    np.testing.assert_array_equal(far[1][0], far.starting_at(1)[0][0])


def test_shards_together_are_the_batches_of_one_process(sources, palette):
    sources = sources | {"b": igpt.Source(sources["b"].examples, igpt.PaddedCrop(2), 4.5)}
    alone = igpt.MixedBatches(sources, palette, 8, seed=5)
    for count in (2, 4):
        shards = [igpt.MixedBatches(sources, palette, 8, seed=5, shard=(part, count)) for part in range(count)]
        for step in (0, 4, 33):
            together = np.concatenate([shard[step][0] for shard in shards])
            np.testing.assert_array_equal(together, alone[step][0])


def test_crops_of_files_are_those_of_their_epochs(sources, palette, tmp_path):
    image = pytest.importorskip("PIL.Image")
    random = np.random.default_rng(0)
    for number in range(3):
        image.fromarray(random.integers(0, 256, (9, 9, 3)).astype("uint8")).save(tmp_path / f"{number}.png")
    files = igpt.load_unlabeled_folder(tmp_path, image_size=4)
    mixed = {"files": igpt.Source(files, igpt.RandomResizedCrop()), "web": sources["b"]}
    batches = igpt.MixedBatches(mixed, palette, 8, seed=2, workers=2)
    assert batches.workers == 2
    seen: dict = {}
    for step in range(12):
        (token_ids,), taken = batches[step], np.stack(batches.rows(step), axis=1)
        for tokens, (source, _, row) in zip(token_ids, taken.tolist(), strict=True):
            if batches.names[source] == "files":
                seen.setdefault(row, set()).add(tokens.tobytes())
    assert len(seen) == 3
    assert all(len(crops) > 1 for crops in seen.values())


def test_what_does_not_fit_is_refused(sources, palette):
    other_size = igpt.Source(igpt.UnlabeledTokens(random_tokens(5, 9), 16))
    for given, message in {
        "none": ({}, "`sources` must be a dictionary of Source by name, at least one"),
        "a list": ([sources["a"]], "`sources` must be a dictionary"),
        "no source": ({"a": sources["a"].examples}, "`sources` must be a dictionary"),
        "other size": ({**sources, "d": other_size}, "`sources` must have pictures of one size. .*'d': 3"),
        "empty": ({"d": igpt.Source(sources["b"].examples.take(np.arange(0)))}, r"`sources\['d'\]` must not be empty"),
        "no examples": ({"d": igpt.Source(random_tokens(5))}, r"`sources\['d'\]` must be LabeledImages"),
    }.values():
        with pytest.raises(ValueError, match=message):
            igpt.MixedBatches(given, palette, 4)
    for no_palette in (None, "palette.npy"):
        with pytest.raises(ValueError, match="`palette` must be a ColorPalette"):
            igpt.MixedBatches(sources, no_palette, 4)
    with pytest.raises(ValueError, match="`batch_size` must be a positive multiple of the 3"):
        igpt.MixedBatches(sources, palette, 8, shard=(0, 3))
    with pytest.raises(ValueError, match="`weight` must be a finite number above 0"):
        igpt.Source(sources["a"].examples, weight=0)


@pytest.mark.parametrize("workers", [1, 3])
def test_training_in_two_parts_equals_training_in_one(sources, palette, workers):
    """What Keras hands to the model, on each backend, through its own threads: weights agree to the bit."""

    def batches_from(first_step):
        return igpt.MixedBatches(sources, palette, 4, seed=2, first_step=first_step, workers=workers)

    whole, parted = (weights_trained_in_parts(batches_from, *parts) for parts in ((20,), (17, 3)))
    for weight, same in zip(whole, parted, strict=True):
        np.testing.assert_array_equal(weight, same)


def test_a_killed_run_goes_on_in_the_mixture(sources, palette, tmp_path):
    class Kill(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            if batch == 4:
                raise KeyboardInterrupt

    def train(folder, callbacks=(), mixed=sources, seed=2):
        keras.utils.set_random_seed(1)
        model = make_causal_lm()
        model.compile(optimizer=keras.optimizers.SGD(0.1, momentum=0.9))
        batches = igpt.MixedBatches(mixed, palette, 4, seed=seed)
        callbacks = [igpt.ExactResume(tmp_path / folder, every=3), *callbacks]
        model.fit(batches, epochs=2, steps_per_epoch=6, verbose=0, callbacks=callbacks)
        return [to_numpy(weight) for weight in model.trainable_weights]

    whole = train("whole")
    with pytest.raises(KeyboardInterrupt):
        train("killed", [Kill()])
    for same, other in zip(train("killed"), whole, strict=True):
        np.testing.assert_array_equal(same, other)
    heavier = sources | {"a": igpt.Source(sources["a"].examples, weight=2)}
    fewer = sources | {"a": igpt.Source(sources["a"].examples.take([0, 1, 2, 3, 4, 5, 5]))}
    for changes, message in (
        ({"mixed": heavier}, "sources is .*'weight': 2"),
        ({"seed": 3}, "seed is 3"),
        ({"mixed": fewer}, "checkpoints of this data"),
    ):
        with pytest.raises(ValueError, match=message):
            train("killed", **changes)
