"""The parent's cost of a batch is its own CPU time, told beside the limit."""

import time

import pytest

from shardline.benchmarks import parent_cost, run
from shardline.benchmarks.measure import Measurement
from shardline.tools.conversion.run import convert
from tests.tools.folders import class_folders, config


def test_it_is_told_beside_the_limit():
    def of(milliseconds):
        cpu = tuple(ms / 1e3 / parent_cost.BATCH for ms in (milliseconds, 0.1, 99.0))
        return parent_cost.cost(Measurement("s", "a", "images/s", (1.0, 1.0, 1.0), cpu_seconds=cpu))

    assert of(1.25) == "1.25 ms of CPU in the parent for a batch of 64 × 224 px, below 2"
    assert of(2.5) == "2.50 ms of CPU in the parent for a batch of 64 × 224 px, NOT below 2"


def test_workers_that_answer_at_once_feed_the_parent_and_their_cpu_time_is_not_its_own(tmp_path, monkeypatch):
    data = tmp_path / "data"
    convert(config(class_folders(tmp_path / "photos", classes=2, images=6), data, size=40))
    turn = parent_cost.parent(str(data), 1, 0.1)
    clock = iter([5.0, 5.5])
    monkeypatch.setattr(time, "process_time", lambda: next(clock))
    rate = turn()
    images = 0.5 / rate.cpu_seconds
    assert images == pytest.approx(round(images)) and round(images) % parent_cost.BATCH == 0 < images


def test_it_belongs_to_the_suite_of_simulated_gpus():
    assert parent_cost.measure in run.parts("simulated_gpu")
