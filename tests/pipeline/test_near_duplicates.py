"""Near duplicates: found as all-against-all would, across splits first."""

import numpy as np
import pytest

from shardline.pipeline.near_duplicates import MAX_BITS, near_duplicates


def planted(count, pairs, seed=0):
    """Random hashes, some of which are copies with up to eight bits changed."""
    random = np.random.default_rng(seed)
    hashes = random.integers(1, 2**64, count, dtype=np.uint64)
    for _ in range(pairs):
        source, target = random.choice(count, 2, replace=False)
        bits = random.choice(64, random.integers(0, 9), replace=False)
        hashes[target] = hashes[source] ^ np.bitwise_or.reduce(np.uint64(1) << bits.astype(np.uint64), initial=0)
    return hashes, random.integers(0, 2, count)


def families(count, centers, seed=0):
    """Hashes like those of images of few kinds: hundreds have most bits in common."""
    random = np.random.default_rng(seed)
    kinds = random.integers(0, 2, (centers, 64))[random.integers(0, centers, count)]
    bits = kinds ^ (random.random((count, 64)) < 0.12)
    return np.packbits(bits, axis=1).view(np.uint64).ravel(), random.integers(0, 2, count)


@pytest.mark.parametrize("most", [MAX_BITS, 6])
@pytest.mark.parametrize("across_only", [False, True])
@pytest.mark.parametrize("sample", [planted(3000, 400), families(3000, 10)], ids=["copies", "families"])
def test_finds_exactly_the_pairs_that_comparing_all_with_all_finds(sample, most, across_only):
    hashes, splits = sample
    inputs = np.arange(len(hashes)) + 7
    bits = np.bitwise_count(hashes[:, None] ^ hashes[None, :])
    near = (bits <= most) & ((splits[:, None] != splits[None, :]) | (not across_only))
    expected = {(int(a) + 7, int(b) + 7, int(bits[a, b])) for a, b in np.argwhere(near) if a < b}
    found = near_duplicates(hashes, inputs, splits, bits=most, across_only=across_only)
    assert len(expected) > 30
    assert {(pair.first, pair.second, pair.bits) for pair in found} == expected
    assert [(not p.across_splits, p.bits) for p in found] == sorted((not p.across_splits, p.bits) for p in found)
    assert all(p.across_splits == (splits[p.first - 7] != splits[p.second - 7]) for p in found)


def test_blank_images_and_crowds_do_not_flood_the_list():
    hashes = np.concatenate((np.zeros(5000, np.uint64), np.full(5000, 12345, np.uint64)))
    found = near_duplicates(hashes, np.arange(10_000), np.arange(10_000) % 2, limit=100)
    assert len(found) == 100
    assert all(pair.first >= 5000 and pair.across_splits for pair in found)


def test_blank_images_are_not_compared(monkeypatch):
    compared, count = [], np.bitwise_count
    monkeypatch.setattr(np, "bitwise_count", lambda bits: compared.append(len(bits)) or count(bits))
    hashes = np.concatenate((np.zeros(5000, np.uint64), np.array([5, 7], np.uint64)))
    found = near_duplicates(hashes, np.arange(5002), np.zeros(5002, int))
    assert [(pair.first, pair.second) for pair in found] == [(5000, 5001)]
    assert sum(compared) < 50


def test_few_and_none():
    assert near_duplicates(np.empty(0, np.uint64), np.empty(0, int), np.empty(0, int)) == []
    assert near_duplicates(np.array([5], np.uint64), np.array([0]), np.array([0])) == []
