"""The last stages: what is copied, to as many devices as there are, and what the step trains."""

import pytest

from shardline.benchmarks import step_stages
from shardline.benchmarks.config import BenchConfig
from shardline.pipeline import InputConfig


def test_a_copy_to_each_device_counts_its_images(monkeypatch):
    counted = []
    monkeypatch.setattr(step_stages, "timed", lambda work: counted.append(work()))
    monkeypatch.setattr(step_stages, "repeat_for", lambda seconds, work: work())
    config = InputConfig(global_batch_size=4, image_size=32, augment_on="host")
    for devices in (["/CPU:0"], ["/CPU:0"] * 3):
        step_stages.copier(config, *devices)(0.01)
    assert counted == [4, 12]


@pytest.mark.parametrize("gpus", [0, 1, 8])
def test_the_step_runs_on_all_gpus_of_the_host(gpus, monkeypatch, tmp_path):
    made = []

    class Trainer:
        def __init__(self, config, replicas):
            made.append((config.global_batch_size, replicas))

        step = end_to_end = print

    def copier(config, *devices):
        made.append((config.global_batch_size, devices))
        return print

    monkeypatch.setattr(step_stages, "num_gpus", lambda: gpus)
    monkeypatch.setattr(step_stages, "Trainer", Trainer)
    monkeypatch.setattr(step_stages, "copier", copier)
    bench = BenchConfig(data="data", output=str(tmp_path), step_batch_size=16, precision="float32", jit=True)
    _, what = step_stages.step_stages(bench)
    devices = tuple(f"/GPU:{number}" for number in range(gpus)) or ("/CPU:0",)
    assert made == [(16 * max(1, gpus), max(1, gpus)), (16, devices)]
    assert ("8 replicas" in what["step"]) == (gpus == 8)
    assert step_stages.forecast_facts(bench, 3, gpus > 0)["devices"] == max(1, gpus)
