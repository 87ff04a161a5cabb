"""What happens beside the steps: which numbers of them reach the log."""

import math
from types import SimpleNamespace

import pytest
import tensorflow as tf

from shardline.trainer.actions import Profile, StepMonitor
from shardline.trainer.loop import StepRecord
from tests.trainer.test_loop import FakeState, create


@pytest.mark.parametrize("finite", [(0, 0, 0, 0), (0, 1, 0, 0), (1, 1, 1, 1)])
def test_lines_tell_the_loss_of_skipped_steps_and_how_many_there_were(finite):
    """A run in float16 begins with some: its first lines would be missing, and the steps counted nowhere."""
    setup, lines = create(precision="mixed_float16", log_every_steps=2), []
    network, callbacks = SimpleNamespace(trained=lambda part: {}), SimpleNamespace(report=lines.append)
    monitor = StepMonitor(setup, network, callbacks, 0)
    monitor.flops[0] = 1.0
    for step, fine in enumerate(finite, 1):
        numbers = {"loss": step / 10, "top1": 0.25, "samples": 4.0, "stop": 0.0, "finite": fine, "scale": 2.0**15}
        numbers["norm"] = step if fine else math.inf
        monitor.after_step(StepRecord(step, 4 * step, setup.spans[0], 0.1, numbers, 0.01, 0.0, None, 0))
    monitor.close()
    assert [line.step for line in lines] == [1, 2, 4]  # the first step alone: it compiles
    assert [line.metrics["loss"] for line in lines] == pytest.approx([0.1, 0.2, 0.35])
    assert [line.metrics["top1"] for line in lines] == [0.25] * 3
    skipped = [1 - fine for fine in finite]
    assert [line.metrics["skipped_steps"] for line in lines] == [skipped[0], skipped[1], skipped[2] + skipped[3]]
    norms = [line.metrics.get("gradient_norm") for line in lines]
    assert norms == [1 if finite[0] else None, 2 if finite[1] else None, 4 if finite[3] else None]


def test_steps_before_the_images_grow_are_in_a_line_too():
    setup, lines = create(log_every_steps=10), []
    network, callbacks = SimpleNamespace(trained=lambda part: {}), SimpleNamespace(report=lines.append)
    monitor = StepMonitor(setup, network, callbacks, 0)
    monitor.flops[0] = 1.0
    for step in range(1, 6):
        numbers = {"loss": step, "top1": 0.25, "samples": 4.0, "stop": 0.0, "finite": 1, "scale": 1.0, "norm": 1.0}
        monitor.after_step(StepRecord(step, 4 * step, setup.spans[0], 0.1, numbers, 0.01, 0.0, None, 0))
        if step == 3:
            monitor.restart()
    monitor.flush()
    monitor.close()
    assert [(line.step, line.metrics["loss"]) for line in lines] == [(1, 1), (3, 2.5), (4, 4), (5, 5)]


@pytest.mark.parametrize(
    "wanted, start, end, traced",
    [
        ("3:5", 0, 9, [3, 4, 5]),
        ("1:2", 0, 9, [1, 2]),  # there is no step before the first
        ("3:5", 0, 3, [3]),  # the run ends before the last one
        ("3:5", 3, 9, [4, 5]),  # it was continued amid them
        ("3:5", 5, 9, []),  # and after them, where there is nothing to stop
    ],
)
def test_wanted_steps_are_traced_as_far_as_they_are_made(wanted, start, end, traced, monkeypatch):
    running, found, state = [], [], FakeState(step=start)
    monkeypatch.setattr(tf.profiler.experimental, "start", running.append)
    monkeypatch.setattr(tf.profiler.experimental, "stop", running.pop)
    profile = Profile(create(profile_steps=wanted), start)
    while state.step < end:
        state.step += 1
        found += [state.step] if running else []
        if profile.due(state):
            profile.act(state)
    profile.close()
    assert (found, running) == (traced, [])
