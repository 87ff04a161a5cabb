"""Samplers: every record once an epoch, uniformly, on any host, from any position; batches cut from one stream."""

import time
import tracemalloc
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shardline.pipeline import rng, sampler
from shardline.pipeline.config import InputConfig
from shardline.pipeline.errors import UsageError
from shardline.pipeline.sampler import BalancedSampler, ReplicaBatches, ShuffleSampler

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


@pytest.mark.parametrize("count", [2, 3, 5, 16, 17, 99, 100, 101, 1000, 65_537])
def test_without_a_table_every_block_comes_once(count):
    found = sampler._feistel(np.arange(count), count, key=3)
    assert sorted(found) == list(range(count))
    some = np.arange(count)[:: max(1, count // 7)]
    np.testing.assert_array_equal(sampler._feistel(some, count, key=3), found[some])  # each can be asked for alone


@pytest.mark.parametrize("permutation", [sampler._feistel, lambda n, count, key: sampler._permutation(count, key)[n]])
def test_with_and_without_a_table_places_and_pairs_are_uniform(permutation):
    """Both held against the same bound of chi-square, whose mean is the degrees of freedom."""
    count, keys = 20, 3000
    found = np.array([permutation(np.arange(count), count, rng.key(7, key)) for key in range(keys)])
    places = np.array([np.bincount(column, minlength=count) for column in found.T])
    assert ((places - keys / count) ** 2 / (keys / count)).sum() < 361 + 4 * (2 * 361) ** 0.5
    pairs = np.zeros((count, count))
    np.add.at(pairs, (found[:, :-1].ravel(), found[:, 1:].ravel()), 1)
    expected = keys * (count - 1) / (count * (count - 1))
    off = pairs[~np.eye(count, dtype=bool)]
    assert ((off - expected) ** 2 / expected).sum() < off.size + 4 * (2 * off.size) ** 0.5


def test_a_billion_records_need_no_table():
    order = ShuffleSampler(10**9 + 7, seed=1)
    tracemalloc.start()
    records = order.records(np.arange(10**15, 10**15 + 200_000))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(np.unique(records)) == 200_000 and records.min() >= 0 and records.max() < 10**9 + 7
    assert peak < 50e6  # a table would have 4 GB
    assert abs(records.mean() / 5e8 - 1) < 0.01 and abs(np.diff(np.sort(records)).std() / 5000 - 1) < 0.02  # as uniform
    blocks = ShuffleSampler(10**9 + 7, seed=1, shuffle_block_size=64).records(np.arange(0, 64_000))
    assert (np.diff(blocks.reshape(-1, 64)) == 1).mean() > 0.999
    # Checkpoints rely on it: a cursor is worth nothing in another order.
    assert order.records(np.arange(4)).tolist() == [518336095, 735353185, 165322290, 435910148]


def test_the_tail_of_blocks_without_a_table_is_read_once(monkeypatch):
    monkeypatch.setattr(sampler, "TABLE_BLOCKS", 3)
    for count, size in [(43, 4), (40, 4), (4, 1), (9, 2)]:
        order = ShuffleSampler(count, seed=2, shuffle_block_size=size)
        assert sorted(order.records(np.arange(count, 2 * count))) == list(range(count))


def test_blocks_keep_stored_neighbors_together():
    records = ShuffleSampler(1000, seed=1, shuffle_block_size=8).records(np.arange(1000))
    steps = np.diff(records) % 1000
    assert (steps == 1).mean() > 0.85


def test_seeking_far_costs_no_more_than_starting():
    order = ShuffleSampler(1000, seed=1)
    order.records(np.arange(10))
    started = time.thread_time()  # of the CPU: the machine may be busy
    order.records(np.arange(10**13, 10**13 + 64))
    assert time.thread_time() - started < 0.1


LABELS = np.array([0] * 20 + [3] * 5 + [7] * 2)  # three of the classes have records


def balanced(seed=0):
    return BalancedSampler(LABELS, seed)


def test_each_class_comes_once_in_each_turn():
    records = balanced().records(np.arange(120))
    assert (np.sort(LABELS[records].reshape(40, 3)) == [0, 3, 7]).all()
    assert len({tuple(turn) for turn in LABELS[records].reshape(40, 3)}) > 1  # and not always in the same order


def test_a_class_goes_through_all_its_records_before_any_comes_again():
    records = balanced().records(np.arange(120))
    for label, count in ((0, 20), (3, 5), (7, 2)):
        laps = records[LABELS[records] == label].reshape(-1, count)
        assert (np.sort(laps) == np.flatnonzero(label == LABELS)).all()
    assert len({tuple(lap) for lap in records[LABELS[records] == 3].reshape(-1, 5)}) > 1


def test_the_balanced_order_never_changes():
    # Checkpoints rely on it, as on the shuffled one.
    assert balanced().records(np.arange(12)).tolist() == [26, 22, 7, 23, 12, 25, 26, 16, 21, 25, 24, 1]


def test_any_position_can_be_asked_for_alone():
    whole = balanced().records(np.arange(60))
    assert [int(balanced().records(np.array([p]))[0]) for p in range(60)] == whole.tolist()
    assert (whole != balanced(seed=1).records(np.arange(60))).any()


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 5), st.integers(1, 4), st.integers(1, 4), st.integers(0, 10**15), st.integers(0, 10**9))
def test_replica_batches_are_cut_from_one_stream_in_order(size, hosts, replicas, cursor, step):
    config = InputConfig(global_batch_size=size * hosts * replicas)
    found = []
    for host in range(hosts):
        batches = ReplicaBatches(config, host, hosts, replicas, cursor)
        assert batches.size == size
        found += [batches.positions(step * replicas + replica) for replica in range(replicas)]
    first = cursor + step * config.global_batch_size
    assert np.concatenate(found).tolist() == list(range(first, first + config.global_batch_size))


def test_positions_are_the_same_in_a_tensorflow_graph():
    import tensorflow as tf

    batches = ReplicaBatches(InputConfig(global_batch_size=12), host=1, hosts=2, replicas=3, cursor=10**12)
    elements = tf.data.Dataset.range(7).map(batches.positions)
    assert elements.element_spec == tf.TensorSpec((2,), tf.int64)
    for number, positions in enumerate(elements.as_numpy_iterator()):
        assert positions.tolist() == batches.positions(number).tolist()


@pytest.mark.parametrize(
    ("options", "changes", "complaint"),
    [
        ({"host": 2, "hosts": 2}, {}, "host=2 of hosts=2: hosts count from 0"),
        ({"host": -1}, {}, "host=-1 of hosts=1"),
        ({"hosts": 3}, {}, "global_batch_size=8 does not divide over 3 replicas; use a multiple of 3, e.g. 6 or 9"),
        ({"hosts": 2, "replicas": 3}, {}, "does not divide over 6 replicas"),
        ({"cursor": -1}, {}, "cursor=-1: use 0 or more"),
        ({"cursor": 3}, {"mixup": 0.2}, "cursor=3: use 0 or more, even when pairs are mixed"),
        ({"replicas": 8}, {"mixup": 0.2}, "8 replicas in pairs"),
    ],
)
def test_batches_that_cannot_be_cut_are_refused(options, changes, complaint):
    with pytest.raises(UsageError, match=complaint):
        ReplicaBatches(InputConfig(global_batch_size=8, **changes), **options)
