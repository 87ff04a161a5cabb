"""The global order: every record once an epoch, uniformly, the same for everybody, wherever one starts."""

import time
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shardline.pipeline import rng
from shardline.pipeline.sampler import ShuffleSampler

orders = st.builds(ShuffleSampler, st.integers(1, 60), st.integers(0, 99), st.integers(1, 70), st.booleans())


@settings(max_examples=100, deadline=None)
@given(orders, st.integers(0, 5))
def test_every_epoch_holds_every_record_once(order, epoch):
    first = epoch * order.num_records
    records = order.records(np.arange(first, first + order.num_records))
    assert sorted(records) == list(range(order.num_records))


@settings(max_examples=50, deadline=None)
@given(orders, st.integers(0, 300), st.integers(1, 200))
def test_any_stretch_is_a_slice_of_the_one_stream(order, start, count):
    stream = np.concatenate([order.records(np.array([p])) for p in range(start, start + count)])
    np.testing.assert_array_equal(order.records(np.arange(start, start + count)), stream)


@pytest.mark.parametrize("block", [1, 3, 4, 10, 64])
def test_order_is_the_formula(block):
    count, seed = 10, 5
    order = ShuffleSampler(count, seed, block)
    block = min(block, count)
    blocks = count // block
    for position in range(3 * count):
        epoch, p = divmod(position, count)
        permutation = np.argsort(rng.bits(rng.key(seed, "order", epoch), np.arange(blocks)))
        rotation = rng.key(seed, "rotation", epoch) % count
        if p < blocks * block:
            expected = (permutation[p // block] * block + p % block + rotation) % count
        else:
            expected = (p + rotation) % count
        assert order.records(np.array([position])) == expected


def test_order_never_changes():
    # Checkpoints rely on it: a cursor is worth nothing in another order.
    assert ShuffleSampler(10, seed=0).records(np.arange(12)).tolist() == [9, 0, 2, 5, 7, 1, 3, 4, 6, 8, 6, 2]
    assert ShuffleSampler(10, seed=0, shuffle_block_size=4).records(np.arange(12)).tolist() == [
        3,
        4,
        5,
        6,
        7,
        8,
        9,
        0,
        1,
        2,
        4,
        5,
    ]


def test_all_permutations_are_equally_likely():
    counts = Counter(tuple(ShuffleSampler(4, seed).records(np.arange(4)).tolist()) for seed in range(4800))
    assert len(counts) == 24
    chi_square = sum((count - 200) ** 2 / 200 for count in counts.values())
    assert chi_square < 49.7  # 23 degrees of freedom: exceeded once in a thousand


@pytest.mark.parametrize("num_records", [65_537, 262_145])
def test_sizes_where_a_cipher_of_even_width_would_lose_records(num_records):
    assert len(np.unique(ShuffleSampler(num_records).records(np.arange(num_records)))) == num_records


def test_blocks_keep_stored_neighbors_together():
    records = ShuffleSampler(1000, seed=1, shuffle_block_size=8).records(np.arange(1000))
    steps = np.diff(records) % 1000
    assert (steps == 1).mean() > 0.85


def test_seeking_far_costs_no_more_than_starting():
    order = ShuffleSampler(1000, seed=1)
    order.records(np.arange(10))
    started = time.perf_counter()
    order.records(np.arange(10**13, 10**13 + 64))
    assert time.perf_counter() - started < 0.1
