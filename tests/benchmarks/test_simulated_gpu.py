"""Steps and workers that sleep cost what they say and nothing else, and what lacks to the rate of so many is named."""

import gc
import time
from dataclasses import replace

import numpy as np
import pytest
import tensorflow as tf

from shardline.benchmarks import simulated_gpu
from shardline.benchmarks.config import BenchConfig
from shardline.benchmarks.measure import Measurement
from shardline.benchmarks.report import write_report
from shardline.benchmarks.simulated_gpu import SleepingDataset, SleepingDevice, lacking, sleeping_forward, train_config
from shardline.pipeline import InputConfig
from shardline.pipeline.workers import Workers
from tests.pipeline.tiny import payloads, write_dataset


@pytest.fixture
def data(tmp_path):
    write_dataset(tmp_path / "data", {"train": payloads(9)})
    return tmp_path / "data"


def test_sleepers_make_whole_batches_in_their_time(data):
    config = InputConfig(global_batch_size=390, image_size=32, workers=1, threads=1, augment_on="device")
    began = time.perf_counter()
    batch, *_ = SleepingDataset(data).train_batches("train", config).take(3)
    assert time.perf_counter() - began >= 3 * 0.1
    assert batch["image"].shape[0] == 390 and batch["weight"].numpy().all()
    np.testing.assert_array_equal(batch["position"], np.arange(390))
    assert "augment_params" in batch


def test_a_device_takes_a_step_while_it_works_on_one_and_none_takes_less_than_its_time():
    """Its clock is ours: the host comes back with a step when the device begins it, however long it was away."""
    device, now = SleepingDevice(100.0), [50.0]

    def advance(seconds):
        now[0] += seconds

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(simulated_gpu.time, "perf_counter", lambda: now[0])
        patch.setattr(simulated_gpu.time, "sleep", advance)
        step = np.arange(20)  # 0.2 s
        device.enqueue(step)
        assert now[0] == pytest.approx(50.0)  # begun
        device.enqueue(step)
        assert now[0] == pytest.approx(50.2)  # the first is done, the second begun
        advance(0.15)  # the host prepares the next batch: nothing is lost
        device.enqueue(step)
        assert now[0] == pytest.approx(50.4)
        advance(0.5)  # the device was without work for 0.3 s
        device.enqueue(step)
        assert now[0] == pytest.approx(50.9)
        device.wait()
        assert now[0] == pytest.approx(51.1)


def test_a_sleeping_pass_has_zero_gradients_of_the_right_shapes_and_takes_its_time():
    variables, devices = [tf.Variable(tf.ones([3, 5])), tf.Variable(2.0)], []
    forward = sleeping_forward(variables, 100.0, devices)
    batch = {"position": tf.range(20), "label": tf.zeros(20, tf.int32)}
    began = time.perf_counter()
    with tf.GradientTape() as tape:
        logits, targets = forward(batch)
        loss = tf.reduce_sum(tf.nn.softmax_cross_entropy_with_logits(targets, logits))
    gradients = tape.gradient(loss, variables)
    devices[0].wait()
    assert time.perf_counter() - began >= 0.2
    assert [gradient.shape for gradient in gradients] == [(3, 5), ()]
    assert not any(tf.reduce_any(gradient != 0) for gradient in gradients) and np.isfinite(loss)


def row(rate, waiting=0.0, busy=0.1):
    return Measurement("simulated GPUs", "x", "images/s", (rate,), cpu_seconds=(busy / rate,), waiting=(waiting,))


def test_what_lacks_is_named(monkeypatch):
    monkeypatch.setattr(simulated_gpu, "available_cores", lambda: 2)
    assert lacking(row(4_300), 4_400) == "98% of 4,400 images/s"
    assert lacking(row(2_200, busy=1.9), 4_400) == "50% of 4,400 images/s: all of 2 cores busy"
    assert lacking(row(2_200, waiting=0.4), 4_400) == "50% of 4,400 images/s: the step waits 40% for batches"
    assert lacking(row(2_200, waiting=0.1), 4_400) == "50% of 4,400 images/s: the time goes between the steps"


def test_as_many_sleepers_as_feed_the_replicas_and_one(data, tmp_path):
    bench = BenchConfig(data=str(data), output=str(tmp_path), suite="simulated_gpu")
    one, eight = train_config(bench, 1), train_config(bench, 8)
    assert (one.workers, eight.workers) == (3, 11)
    assert (one.global_batch_size, eight.global_batch_size, eight.logical_cpus) == (128, 1024, 8)
    assert eight.augment_on == "device" and not eight.jit


def test_the_report_draws_replicas_beside_their_rate(tmp_path):
    settings = {"step_rate": 4_400.0, "reference": "shardline, 1 replica"}
    rows = [
        replace(row(rate), name=f"shardline, {name}", settings=settings)
        for name, rate in (("1 replica", 4_300), ("8 replicas", 30_000), ("1 replica, real input", 900))
    ]
    write_report(tmp_path, rows)
    page = (tmp_path / "report.html").read_text()
    assert "8 reach 85% of 8 times one GPU&#x27;s rate" in page and (tmp_path / "simulated_gpu.png").exists()


@pytest.mark.slow
def test_the_trainer_runs_around_them_and_workers_make_every_batch(data, tmp_path, monkeypatch):
    monkeypatch.setattr(tf.config.threading, "set_inter_op_parallelism_threads", lambda count: None)  # too late here
    bench = BenchConfig(
        data=str(data), output=str(tmp_path), suite="simulated_gpu", seconds=0.5, gpu_step_rate=1_000, image_size=32
    )
    turn = simulated_gpu.simulated(bench, 1, 1_000.0, sleeping=True)
    turn()
    found = turn()
    assert 0 < found.rate <= 1_010  # it sleeps rows / 1,000 s
    assert 0 <= found.waiting <= 1
    pools = [pool for pool in gc.get_objects() if isinstance(pool, Workers) and pool._setup]
    assert any(b"SleepingBatches" in pool._setup and not pool.sent for pool in pools)
