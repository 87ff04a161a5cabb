"""Finding settings: what a run would do, a learning rate, the largest batch."""

import json
import subprocess

import numpy as np
import pytest

from shardline.pipeline.errors import Failure
from shardline.trainer import tuning
from shardline.trainer.config import TrainConfig

TINY = {
    "synthetic": True,
    "image_size": 32,
    "width": 0.03,
    "precision": "float32",
    "jit": False,
    "global_batch_size": 8,
    "strategy": "one_device",
    "phases": "head:1@0.1,all:2@0.01",
}


def test_the_suggested_rate_is_a_tenth_of_where_the_smoothed_loss_is_lowest():
    rates = np.geomspace(1e-6, 10, 100)
    noise = np.random.default_rng(0).normal(0, 0.05, 100)
    losses = 3 + (np.log10(rates) + 1) ** 2 / 10 + noise  # lowest at 0.1
    smooth, suggestion = tuning.suggest(rates, losses)
    assert smooth.shape == losses.shape
    assert 0.005 < suggestion < 0.02


def test_find_lr_draws_the_search_and_prints_a_rate(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(tuning, "RATE_STEPS", 15)
    found = tuning.find_lr(TrainConfig(workdir=str(tmp_path), **TINY))
    err = capsys.readouterr().err
    assert found["phase"] == "head" and tuning.LOWEST_RATE / 10 <= found["learning_rate"] <= tuning.HIGHEST_RATE / 10
    assert (tmp_path / "plots" / "find_lr.png").stat().st_size > 5000 and "find_lr.png" in err
    assert [path.name for path in tmp_path.iterdir()] == ["plots"]  # a search is no run


def test_find_lr_says_so_when_the_loss_breaks_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(tuning, "LOWEST_RATE", 1e6)
    monkeypatch.setattr(tuning, "HIGHEST_RATE", 1e9)
    with pytest.raises(Failure, match=r"find_lr: the loss broke at a rate of 1\.\de\+06"):
        tuning.find_lr(TrainConfig(workdir=str(tmp_path), **TINY))


def test_the_batch_is_that_of_the_phase_that_trains_most(monkeypatch):
    class Begun(Exception):
        pass

    def begin(setup, span):
        raise Begun(span.phase)

    monkeypatch.setattr(tuning, "create_train_state", begin)
    config = TrainConfig(**TINY | {"phases": "head:1@0.1,all:1@0.01,block5:1@0.01"})
    with pytest.raises(Begun, match=r"all:1@0\.01"):
        tuning._measure(json.dumps(config.to_dict()))


def test_dry_run_tells_phases_steps_and_memory_and_writes_nothing(tmp_path):
    lines = tuning.dry_run(TrainConfig(workdir=str(tmp_path / "run"), **TINY)).splitlines()
    assert [line.split(":")[0] for line in lines] == ["devices", "batch", "data", "phase 1", "phase 2", "memory"]
    assert "head, 1 epoch = 160 steps at a peak rate of 0.1" in lines[3]
    assert "all, 2 epochs = 320 steps at a peak rate of 0.01" in lines[4]
    assert not (tmp_path / "run").exists()
    # 1,280 records: two steps of 1,000 reach beyond the first epoch, and one more beyond the second.
    large = TrainConfig(**TINY | {"global_batch_size": 1000, "phases": "head:1@0.1,all:1@0.01"})
    lines = tuning.dry_run(large).splitlines()
    assert "head, 1 epoch = 2 steps" in lines[3] and "all, 1 epoch = 1 step at" in lines[4]


def batches(monkeypatch, trial, free=2**40, **settings):
    tried = []
    monkeypatch.setattr(tuning, "available_memory", lambda: free / tuning.MEMORY_SHARE)
    monkeypatch.setattr(tuning, "_trial", lambda config, batch: tried.append(batch) or (trial(batch), 2.0**30))
    return tried, tuning.find_batch(TrainConfig(**TINY | settings))


def test_find_batch_doubles_until_a_trial_does_not_fit(monkeypatch, capsys):
    tried, found = batches(monkeypatch, lambda batch: batch * 2.0**30 if batch < 16 else None)
    assert tried == [1, 2, 4, 8, 16]
    assert found == {"batch_per_device": 8, "peak_gib": 8.0}
    *_, fits, last = capsys.readouterr().err.splitlines()
    assert fits == "batch 8: fits, 8.00 GiB (forecast for a GPU: 1.00 GiB)"
    assert last == "batch 16: does not fit (forecast for a GPU: 1.00 GiB)"


def test_find_batch_tries_pairs_where_pairs_are_mixed(monkeypatch):
    tried, _ = batches(monkeypatch, lambda batch: batch * 2.0**30 if batch < 8 else None, mixup=0.2)
    assert tried == [2, 4, 8]
    assert TrainConfig(**TINY | {"mixup": 0.2, "global_batch_size": tried[0]})  # as a trial has it


def test_find_batch_tries_nothing_that_the_host_could_not_hold(monkeypatch):
    """Memory grows by 1 GiB an image: 8 would take the host down, or swap for minutes."""
    tried, found = batches(monkeypatch, lambda batch: (1 + batch) * 2.0**30, free=6 * 2**30)
    assert tried == [1, 2, 4] and found["batch_per_device"] == 4


@pytest.mark.parametrize("asked, device", [({}, "auto"), ({"device": "cpu"}, "cpu"), ({"logical_cpus": 2}, "cpu")])
def test_a_trial_is_made_on_the_devices_of_the_run(monkeypatch, asked, device):
    tried = []

    def run(command, **_):
        tried.append(TrainConfig.from_dict(json.loads(command[-1])))
        return subprocess.CompletedProcess(command, 0, "1 2\n", "")

    monkeypatch.setattr(tuning.subprocess, "run", run)
    settings = TINY | {"synthetic": False, "data": "d", "class_weights": "balanced", "strategy": "mirrored"} | asked
    assert tuning._trial(TrainConfig(**settings), 4) == (2.0, 1.0)
    assert (tried[0].device, tried[0].logical_cpus, tried[0].strategy) == (device, 0, "one_device")


@pytest.mark.slow
def test_a_trial_is_a_process_that_trains_two_steps_and_tells_its_memory():
    peak, forecast = tuning._trial(TrainConfig(**TINY), 4)
    assert 2**27 < peak < 2**33
    assert 0 < forecast < peak
