"""Balanced sampling: a pure function of position that gives every class the same share."""

import numpy as np

from shardline.pipeline.sampler import BalancedSampler

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


def test_any_position_can_be_asked_for_alone():
    whole = balanced().records(np.arange(60))
    assert [int(balanced().records(np.array([p]))[0]) for p in range(60)] == whole.tolist()
    assert (whole != balanced(seed=1).records(np.arange(60))).any()
