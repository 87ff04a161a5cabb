"""Stage times add up and name the bottleneck."""

import time
from dataclasses import replace

import numpy as np
import pytest
import tensorflow as tf

from shardline import pipeline
from shardline.pipeline.profiling import StageTimer, StageTimes, Stopwatch


def test_times_are_summed_over_batches_and_shared_out_over_samples(monkeypatch):
    now, cpu = iter([0.0, 0.01, 0.04] * 20), iter([0.0, 0.01, 0.04] * 20)
    monkeypatch.setattr("shardline.pipeline.profiling.time.perf_counter", lambda: next(now))
    monkeypatch.setattr("shardline.pipeline.profiling.time.thread_time", lambda: next(cpu))
    timer = StageTimer()
    for _ in range(20):
        watch = Stopwatch()
        watch.lap("read")
        watch.lap("decode")
        timer.add(*watch.sums(), 5)
    times = timer.times()
    assert times.samples == 100 and times.batches == 20
    assert times.microseconds["read"] == pytest.approx(2000)
    assert times.bottleneck == "decode"
    assert times.samples_per_second == pytest.approx(1e6 / times.total_microseconds)
    assert "bottleneck: decode" in str(times)


def test_without_samples_nothing_is_a_bottleneck():
    assert StageTimer().times().bottleneck == "consumer"
    assert str(StageTimer().times())


def test_a_slow_consumer_is_the_bottleneck():
    stages = {"read": 10.0, "decode": 90.0}
    assert StageTimes(8, stages, 2, batch_seconds=0.01, consumer_seconds=0.5).bottleneck == "consumer"
    assert StageTimes(8, stages, 2, batch_seconds=0.01, consumer_seconds=0.001).bottleneck == "decode"


@pytest.mark.slow  # compares times, which a busy machine makes any
@pytest.mark.parametrize("pause", [0.0, 0.05])
def test_a_running_pipeline_knows_who_waits(tiny, pause):
    data = pipeline.open_dataset(tiny)
    config = pipeline.InputConfig(global_batch_size=32, image_size=64, threads=1, randaugment_layers=1)
    options = tf.data.Options()
    options.autotune.enabled = True
    iterator = iter(data.train_batches("train", config).with_options(options))
    for _ in range(24):
        next(iterator)
        time.sleep(pause)
    times = data.stage_times(iterator)
    assert times.threads == 1
    assert times.samples % 32 == 0
    assert set(times.microseconds) == {"order", "read", "decode", "augment"}
    assert 0.5 < times.batch_seconds / (times.total_microseconds * 32e-6) < 5  # tf.data also counts its own work
    assert (times.bottleneck == "consumer") == (pause > 0), str(times)


def test_no_tuner_keeps_an_iterator_from_ending(tiny):
    data = pipeline.open_dataset(tiny)
    config = pipeline.InputConfig(global_batch_size=4, image_size=32)
    for batches in (data.train_batches("train", config), data.eval_batches("train", config)):
        assert batches.options().autotune.enabled is False


def test_times_since_an_earlier_reading_are_those_of_the_samples_between():
    timer = StageTimer()
    timer.add({"read": 0.1, "decode": 0.3}, {"read": 0.02, "decode": 0.3}, 10)
    earlier = timer.times()
    timer.add({"read": 0.2}, {"read": 0.1}, 40)
    added = timer.times().since(earlier)
    assert added.samples == 40
    assert added.microseconds == pytest.approx({"read": 5_000, "decode": 0})
    assert added.table == {"read": {"cpu": 2_500.0, "waiting": 2_500.0}, "decode": {"cpu": 0.0, "waiting": 0.0}}
    assert timer.times().since(timer.times()).table == {}


def test_a_step_that_hardly_waits_is_the_bottleneck_whatever_the_input_costs():
    stages = {"order": 5.0, "read": 20.0, "decode": 300.0}
    trained = StageTimes(8, stages, cpu_microseconds=stages, waiting_share=0.03)
    assert trained.bottleneck == "step"
    assert str(trained).endswith("bottleneck: step (input waits 3%)")
    waiting = StageTimes(8, stages, cpu_microseconds=stages, waiting_share=0.05)
    assert waiting.bottleneck == "decode" and "(input waits 5%)" in str(waiting)


def test_waiting_reads_are_storage_and_waiting_for_a_cpu_is_not():
    cpu = {"order": 5.0, "read": 20.0, "decode": 300.0}
    slow = StageTimes(8, cpu | {"read": 2_000.0}, cpu_microseconds=cpu)
    assert slow.bottleneck == "storage" and "waiting 1980.0 us" in str(slow)
    crowded = StageTimes(8, cpu | {"read": 420.0, "decode": 800.0}, cpu_microseconds=cpu)  # 500 us for a CPU
    assert crowded.bottleneck == "decode"


def test_a_few_batches_name_no_bottleneck():
    """Eight batches of an evaluation were called storage-bound: their files were read for the first time."""
    stages = {"read": 400.0, "decode": 300.0}
    few = StageTimes(64, stages, cpu_microseconds=stages | {"read": 5.0}, waiting_share=0.13, batches=8)
    assert few.bottleneck == "not known" and few.limit == "bottleneck: not known after 8 batches (input waits 13%)"
    assert replace(few, batches=20).limit == "bottleneck: storage (input waits 13%)"
    timer = StageTimer()
    for _ in range(19):
        timer.add({"decode": 0.1}, {"decode": 0.1}, 8)
    earlier = timer.times()
    timer.add({"decode": 0.1}, {"decode": 0.1}, 8)
    assert (earlier.bottleneck, timer.times().bottleneck) == ("not known", "decode")
    assert timer.times().since(earlier).bottleneck == "not known"


def test_a_batch_that_adds_its_costs_in_parts_is_one_batch():
    """As with a cache: order and read, then decode, and its samples with the last part."""
    timer = StageTimer()
    for _ in range(3):
        timer.add({"order": 0.1}, {"order": 0.1}, 0)
        timer.add({"decode": 0.1}, {"decode": 0.1}, 0)
        timer.add({"augment": 0.1}, {"augment": 0.1}, 8)
    times = timer.times()
    assert (times.batches, times.samples) == (3, 24) and set(times.microseconds) == {"order", "decode", "augment"}


def test_cpu_time_is_taken_apart_from_waiting():
    watch = Stopwatch()
    time.sleep(0.05)
    watch.lap("read")
    until = time.thread_time() + 0.02
    while time.thread_time() < until:
        pass
    watch.lap("decode")
    seconds, cpu = watch.sums()
    assert cpu["read"] < 0.02 <= cpu["decode"] and seconds["read"] >= 0.05


def test_few_laps_ask_for_cpu_time_and_all_stages_get_theirs(monkeypatch):
    now = {"perf_counter": 0.0, "thread_time": 0.0, "asked": 0}

    def thread_time():
        now["asked"] += 1
        return now["thread_time"]

    def spend(stage, cpu, waiting):
        now["thread_time"] += cpu
        now["perf_counter"] += cpu + waiting
        watch.lap(stage)

    monkeypatch.setattr("shardline.pipeline.profiling.time.perf_counter", lambda: now["perf_counter"])
    monkeypatch.setattr("shardline.pipeline.profiling.time.thread_time", thread_time)
    watch = Stopwatch()
    slow = np.random.default_rng(0).random(20_000) < 0.1
    for sample in range(len(slow)):
        spend("read", 1.0, 40.0 * slow[sample])
        spend("decode", 10.0 + sample % 3, 0.0)
        spend("augment", 3.0, 1.0)
    assert now["asked"] < 0.25 * 3 * len(slow)
    wall, cpu = ({stage: total / len(slow) for stage, total in totals.items()} for totals in watch.sums())
    assert cpu == pytest.approx({"read": cpu["read"], "decode": 11, "augment": 3}, rel=1e-3)
    assert wall["read"] - cpu["read"] == pytest.approx(40 * slow.mean(), rel=0.1)


def test_training_and_evaluation_are_timed_apart_also_in_workers(tiny):
    data = pipeline.open_dataset(tiny)
    config = pipeline.InputConfig(global_batch_size=4, image_size=32, workers=1)
    next(iter(data.train_batches("train", config)))
    trained = data.stage_times()
    assert trained.samples > 0 and data.stage_times(of="evaluation").samples == 0
    assert set(trained.cpu_microseconds) == set(trained.microseconds)
    assert 0 < sum(trained.cpu_microseconds.values()) <= 1.1 * trained.total_microseconds
    next(iter(data.eval_batches("train", config)))
    assert data.stage_times(of="evaluation").samples > 0
