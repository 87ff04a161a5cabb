"""Results are taken when the next batch is under way, all of them, and waiting for batches is told from working."""

import pytest

from shardline.trainer import overlap
from shardline.trainer.overlap import InputWaits, one_late


def test_a_result_is_read_when_the_next_batch_was_handed_over():
    events = []

    def batches():
        for number in range(3):
            events.append(f"fetch {number}")
            yield number

    def compute(number):
        events.append(f"start {number}")
        return number * 10

    for batch, result in one_late(compute, batches()):
        assert result == batch * 10
        events.append(f"read {batch}")
    first = ["fetch 0", "start 0", "fetch 1", "start 1", "read 0"]
    assert events == [*first, "fetch 2", "start 2", "read 1", "read 2"]


@pytest.mark.parametrize("count", [0, 1])
def test_none_and_one(count):
    assert list(one_late(str, range(count))) == [(i, str(i)) for i in range(count)]


def test_waiting_is_the_time_until_a_batch_is_there(monkeypatch):
    now = 0.0

    def pass_time(seconds):
        nonlocal now
        now += seconds

    monkeypatch.setattr(overlap.time, "perf_counter", lambda: now)
    waits = InputWaits()
    assert waits.share is None

    def batches():
        for number in range(4):
            pass_time(3)
            yield number

    for _ in waits.over(batches()):
        pass_time(1)
    assert waits.share == pytest.approx(3 / 4)
