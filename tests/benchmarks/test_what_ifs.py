"""Which flags are tried beside the present ones, and that they are measured on a (tiny) dataset."""

import pytest

from shardline.benchmarks import what_ifs
from shardline.benchmarks.bottleneck import UNCHANGED, bottleneck_of
from shardline.benchmarks.config import BenchConfig
from shardline.benchmarks.measure import CONTROL
from shardline.pipeline import InputConfig
from shardline.tools.conversion.run import convert
from tests.benchmarks.test_bottleneck import FACTS, rows
from tests.tools.folders import class_folders, config


@pytest.fixture(autouse=True)
def roomy(monkeypatch):
    monkeypatch.setattr(what_ifs, "available_cores", lambda: 4)
    monkeypatch.setattr(what_ifs, "available_memory", lambda: 1 << 34)


def test_each_flag_is_tried_that_is_not_set_already():
    found = what_ifs.changes(InputConfig(), on_gpu=False)
    flags = ["--cache memory", "--workers 8", "--workers 32", "--global_batch_size 128", "--shuffle_block_size 64"]
    assert list(found) == flags
    assert (found["--cache memory"].cache, found["--workers 32"].workers) == ("memory", 32)
    assert found["--shuffle_block_size 64"].global_batch_size == 32
    tuned = InputConfig(cache="memory", workers=2, global_batch_size=256, shuffle_block_size=64, augment_on="host")
    assert list(what_ifs.changes(tuned, on_gpu=True)) == ["--workers 4", "--workers 16", "--augment_on device"]


def test_workers_that_would_not_fit_into_memory_are_not_tried(monkeypatch):
    monkeypatch.setattr(what_ifs, "available_memory", lambda: 16 * (64 << 20))
    assert not any("workers" in name for name in what_ifs.changes(InputConfig(), on_gpu=False))


def bench(tmp_path, **values):
    return BenchConfig(data=str(tmp_path / "data"), output=str(tmp_path), image_size=32, repeats=1, **values)


def test_nothing_is_tried_where_the_step_limits(tmp_path, monkeypatch):
    monkeypatch.setattr(what_ifs, "load_results", lambda path: rows(step=10_000))
    assert what_ifs.measure(bench(tmp_path)) == []


@pytest.mark.slow
def test_what_is_tried_is_measured_in_turns_with_the_unchanged(tmp_path, monkeypatch, capsys):
    convert(config(class_folders(tmp_path / "photos", classes=1, images=4), tmp_path / "data", size=40))
    facts = {**vars(FACTS), "records": 4}
    stages = [m for m in rows(step=10)]
    for m in stages:
        m.settings["facts"] = facts
    assert bottleneck_of(stages).verdict.limits_input
    monkeypatch.setattr(what_ifs, "load_results", lambda path: stages)
    values = {"seconds": 0.02, "global_batch_size": 4}
    found = {m.name: m for m in what_ifs.measure(bench(tmp_path, **values))}
    assert {UNCHANGED, CONTROL, "--cache memory", "--global_batch_size 16"} <= set(found)
    assert all(m.median > 0 and m.suite == "what-ifs" for m in found.values())
    facts["records"] = 10**9
    assert "--cache memory" not in {m.name for m in what_ifs.measure(bench(tmp_path, **values))}
    assert "--cache memory: not tried, because it would take over 30 s to fill" in capsys.readouterr().err
