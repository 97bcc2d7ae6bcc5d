import io

import numpy as np
import pytest
from curation_process import photograph
from PIL import Image

from keras_igpt.curation.duplicates import EvaluationPictures, duplicates, hash_pictures
from keras_igpt.data.image_files import resize_images


def square(picture):
    return resize_images(np.asarray(picture)[None], 32)[0]


def copied(picture, size, quality):
    file = io.BytesIO()
    picture.resize((size, size)).save(file, "JPEG", quality=quality)
    return Image.open(file)


def near(first, second, low=4, distance=12):
    differing = [int(part) for part in first ^ second]
    return (differing[0] & (2**56 - 1)).bit_count() <= low and sum(part.bit_count() for part in differing) <= distance


def test_copies_at_other_sizes_and_qualities_are_near_and_others_are_not():
    pictures = [photograph(seed) for seed in range(20)]
    copies = [
        copied(picture, size, quality)
        for picture, size, quality in zip(pictures, range(40, 140, 5), range(30, 90, 3), strict=True)
    ]
    hashes = hash_pictures(np.stack([square(picture) for picture in [*pictures, *copies]]))
    assert duplicates(hashes, 12).tolist() == [False] * 20 + [True] * 20


@pytest.mark.parametrize("most_pairs", [1 << 25, 300, 0])
def test_duplicates_are_what_comparing_all_pairs_finds(most_pairs, monkeypatch):
    """Also where there are more pairs than are held at once."""
    monkeypatch.setattr("keras_igpt.curation.duplicates._MOST_PAIRS", most_pairs)
    random = np.random.default_rng(0)
    hashes = random.integers(0, 2**64, (40, 2), dtype=np.uint64)
    # Chains: each is some bits from one before it.
    for _ in range(160):
        flips = random.integers(0, 128, random.integers(0, 9))
        changed = hashes[random.integers(len(hashes))].copy()
        for bit in flips:
            changed[bit // 64] ^= np.uint64(1) << np.uint64(bit % 64)
        hashes = np.concatenate([hashes, changed[None]])
    kept = []
    for row in range(len(hashes)):
        if not any(near(hashes[other], hashes[row]) for other in kept):
            kept.append(row)
    found = duplicates(hashes, 12)
    assert np.flatnonzero(~found).tolist() == kept
    assert 40 <= len(kept) < 180
    assert not duplicates(np.empty((0, 2), np.uint64), 12).size
    assert (
        np.flatnonzero(~duplicates(hashes, 0)).tolist()
        == np.sort(np.unique(hashes, axis=0, return_index=True)[1]).tolist()
    )


@pytest.mark.parametrize("mirrored", [False, True])
def test_an_evaluation_set_catches_its_copies(mirrored):
    squares = np.stack([square(photograph(seed)) for seed in range(8)])
    evaluation = EvaluationPictures(np.concatenate([hash_pictures(squares), hash_pictures(squares[:, :, ::-1])]))
    copies = np.stack([square(copied(photograph(seed), 40, 30)) for seed in range(12)])
    found = evaluation.near(hash_pictures(copies[:, :, ::-1] if mirrored else copies))
    assert found.tolist() == [True] * 8 + [False] * 4
    assert not EvaluationPictures(np.empty((0, 2), np.uint64)).near(hash_pictures(copies)).any()


def test_an_evaluation_set_is_compared_in_more_bits_than_a_set_with_itself():
    random = np.random.default_rng(1)
    hashes = random.integers(0, 2**64, (300, 2), dtype=np.uint64)
    changed = hashes[:200].copy()
    for row, count in zip(changed, random.integers(0, 30, 200), strict=True):
        for bit in random.permutation(128)[:count]:
            row[bit // 64] ^= np.uint64(1) << np.uint64(bit % 64)
    expected = [any(near(one, other, low=6, distance=20) for other in hashes) for one in changed]
    assert EvaluationPictures(hashes).near(changed).tolist() == expected
    assert 20 < sum(expected) < 180
