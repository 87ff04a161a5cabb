"""The loop: several steps a call, cut where something else is due, and the same numbers as step by step."""

import dataclasses
import signal

import numpy as np
import pytest
import tensorflow as tf

from shardline.trainer import loop, step
from shardline.trainer.cluster import create_cluster
from shardline.trainer.config import TrainConfig
from shardline.trainer.run import clock
from shardline.trainer.setup import create_setup
from shardline.trainer.state import create_train_state
from shardline.trainer.step import REPORTED, StepReports, create_train_loop

pytestmark = pytest.mark.usefixtures("shallow")
BATCH = 4
THIN = {"synthetic": True, "image_size": 32, "width": 0.03, "precision": "float32", "global_batch_size": BATCH}


def create(kind="CPU", hosts=1, **settings):
    cluster = dataclasses.replace(create_cluster("one_device", 0), device_kind=kind)
    setup = create_setup(TrainConfig(**{**THIN, "phases": "all:1@0.1", "jit": False, **settings}), cluster)
    return dataclasses.replace(setup, cluster=dataclasses.replace(cluster, hosts=hosts))


@dataclasses.dataclass
class FakeState:
    step: int = 0
    cursor: int = 0
    phase: int = 0


class FakeSteps:
    """Steps that report their own number as loss, and what they were told about stopping."""

    def __init__(self, log, during=None):
        self.log, self.step, self.during = log, 0, during or {}

    def __call__(self, rates, stop):
        count, first = len(rates), self.step + 1
        self.step += count
        self.log.append(f"call {first}-{self.step}")
        for number, act in self.during.items():
            if first <= number <= self.step:
                act()
        numbers = [
            dict.fromkeys(REPORTED, 0.0) | {"loss": first + i, "stop": float(stop), "finite": 1.0} for i in range(count)
        ]
        numbers = tf.constant([[row[name] for name in REPORTED] for row in numbers])
        rows = tf.reshape(tf.range(count * BATCH), [count, BATCH])
        return StepReports(numbers, (tf.cast(rows, tf.float32),), (tf.cast(rows, tf.int64),), ())


class Log(loop.Action):
    """Notes each step, ends when told to, and acts at some steps."""

    def __init__(self, log, at=(), lines=()):
        self.log, self.at, self.lines, self.steps = log, at, lines, []

    def after_step(self, record):
        self.log.append(f"step {record.step}")
        self.steps.append(record)
        self.should_stop = self.should_stop or record.report["stop"] > 0

    def due(self, state):
        return state.step in self.at

    def act(self, state):
        self.log.append(f"act {state.step}")

    def ends_call(self, state):
        return self.due(state) or state.step in self.lines


@pytest.fixture(autouse=True)
def long_calls(monkeypatch):
    monkeypatch.setattr(loop, "CALL_SECONDS", 1e9)


def run(setup, *, at=(), lines=(), during=None, stop=None, steps=10):
    log = []
    action, stop = Log(log, at, lines), stop or loop.StopRequest()
    setup = dataclasses.replace(setup, spans=(dataclasses.replace(setup.spans[0], stop=steps * BATCH),))
    state = FakeState()
    whole = loop.train_phase(setup, state, FakeSteps(log, during), [action], stop)
    assert state.cursor == state.step * BATCH
    assert [record.step for record in action.steps] == list(range(1, state.step + 1))
    assert [record.report["loss"] for record in action.steps] == list(range(1, state.step + 1))
    return log, whole, action


def test_a_call_ends_where_something_is_due_and_at_the_end_of_the_phase():
    log, whole, _ = run(create(), at=(4,), lines=(7,))
    assert whole
    assert [line for line in log if "step" not in line] == ["call 1-1", "call 2-4", "act 4", "call 5-7", "call 8-10"]


def test_on_gpus_a_call_is_read_while_the_next_one_runs_but_before_an_action():
    log, _, _ = run(create("GPU"), at=(4,), lines=(1, 2), steps=6)
    calls = ["call 1-1", "call 2-2", "step 1", "call 3-4", "step 2", "step 3", "step 4", "act 4"]
    assert log == [*calls, "call 5-6", "step 5", "step 6"]


def test_on_gpus_in_float16_a_call_is_read_at_once_and_its_waits_are_timed():
    half = create("GPU", precision="mixed_float16")
    log, _, _ = run(half, lines=(1, 2), steps=3)
    assert log == ["call 1-1", "step 1", "call 2-2", "step 2", "call 3-3", "step 3"]
    assert clock(half) is not None
    assert clock(create("GPU")) is None


class Clock:
    """Time that passes when it is told to."""

    def __init__(self):
        self.now = 0.0

    def perf_counter(self):
        return self.now

    def sleep(self, seconds):
        self.now += seconds


class Slow:
    """Numbers that a GPU still works on when they are first asked for."""

    def __init__(self, numbers, clock):
        self.numbers, self.clock, self.ready = numbers, clock, False

    def numpy(self):
        if not self.ready:
            self.clock.sleep(3)
        self.ready = True
        return self.numbers.numpy()


@pytest.mark.parametrize("busy", [True, False])
def test_a_gpu_waited_for_input_only_if_it_was_done_with_the_call_before(busy, monkeypatch):
    clock, call = Clock(), FakeSteps.__call__
    monkeypatch.setattr(loop, "time", clock)
    if busy:
        monkeypatch.setattr(FakeSteps, "__call__", lambda *a: (r := call(*a))._replace(numbers=Slow(r.numbers, clock)))
    _, _, action = run(create("GPU"), lines=range(10), during=dict.fromkeys(range(10), lambda: clock.sleep(1)), steps=6)
    assert [record.wait_seconds for record in action.steps] == [1] + 5 * [0 if busy else 1]
    assert [record.seconds for record in action.steps] == ([1, 4, 4, 4, 4, 7] if busy else [1] * 6)


def test_each_step_has_its_rate_and_its_own_samples():
    setup = create(schedule="cosine")
    _, _, action = run(setup)
    for i, record in enumerate(action.steps):
        assert record.cursor == (i + 1) * BATCH
        assert record.learning_rate == setup.learning_rate(record.span, i * BATCH)
    records, losses = action.steps[2].samples()  # the second of its call
    assert records.tolist() == losses.tolist() == [4, 5, 6, 7]


def test_a_signal_ends_training_one_step_after_the_call_it_comes_in():
    stop = loop.StopRequest()
    log, whole, _ = run(create(), during={4: lambda: setattr(stop, "signal", signal.SIGINT)}, lines=(5,), stop=stop)
    assert not whole
    assert [line for line in log if "call" in line] == ["call 1-1", "call 2-5", "call 6-6"]


def test_several_hosts_make_the_same_calls_whatever_reaches_one_of_them(monkeypatch):
    """Else one would wait for the others in a step that they never begin."""
    calm = run(create(hosts=2), steps=40)[0]
    monkeypatch.setattr(loop, "CALL_SECONDS", 1e-9)  # a slow host
    stop = loop.StopRequest()
    stop.signal = signal.SIGTERM
    calls = [[line for line in log if "call" in line] for log in (calm, run(create(hosts=2), steps=40, stop=stop)[0])]
    assert calls == [["call 1-32", "call 33-40"], ["call 1-32"]]


def test_calls_are_as_long_as_a_second_is():
    setup = create()
    assert loop.most_steps(setup, step_seconds=1e9) == 1
    assert loop.most_steps(setup, step_seconds=1e8) == 10
    assert loop.most_steps(setup, step_seconds=1.0) == loop.MOST_STEPS


@pytest.mark.parametrize("jit", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", ["CPU", pytest.param("GPU", marks=pytest.mark.slow)])
def test_several_steps_are_the_same_steps_bit_for_bit(kind, jit):
    """Weights, reports and records of three steps in one call, against one by one."""
    found = []
    for together in (True, False):
        setup = create(jit=jit, dropout=0.3, ema=0.9, clip_norm=0.5)
        _, state, step = create_train_state(setup, setup.spans[0])
        batches = setup.train_batches(0)
        rates = [0.1, 0.05, 0.02]
        if together:
            reports = create_train_loop(setup.cluster.strategy, step, batches, clock(create(kind)))(
                tf.constant(rates), tf.constant(0.0)
            )
            numbers, losses, records = reports.numbers, reports.losses[0], reports.records[0]
            assert len(reports.waited) == (kind == "CPU")
            assert all((part >= 0).numpy().all() and (part < 60).numpy().all() for part in reports.waited)
        else:
            rows = []
            for rate in rates:
                batch = next(batches)
                report = step(batch, tf.constant(rate), tf.constant(0.0))
                rows.append(
                    ([float(report[name]) for name in REPORTED], report["losses"].numpy(), batch["record"].numpy())
                )
            numbers, losses, records = map(np.array, zip(*rows, strict=True))
        weights = [variable.numpy() for variable in [*state.weights.values(), *state.ema_weights.values()]]
        found.append([np.asarray(numbers), np.asarray(losses), np.asarray(records), *weights])
    assert found[0][1].shape == (3, BATCH) and found[0][2].tolist() == np.arange(12).reshape(3, 4).tolist()
    for a, b in zip(*found, strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_step_begins_after_the_wait_for_its_batch_was_timed():
    """Else replicas that have their batch compute on all cores while the clock is to be read."""
    strategy = create_cluster("one_device", 0).strategy
    batches = iter(strategy.experimental_distribute_dataset(tf.data.Dataset.range(8).batch(2).map(lambda x: {"x": x})))

    @tf.function(autograph=False)
    def traced():
        batch, waited = step._timed_next(strategy, batches, clock(create()))
        return tf.negative(batch["x"], name="use"), waited

    graph = traced.get_concrete_function().graph
    waiting, before = [graph.get_operation_by_name("use")], set()
    while waiting:
        op = waiting.pop()
        if op not in before:
            before.add(op)
            waiting += [*(tensor.op for tensor in op.inputs), *op.control_inputs]
    assert sum(op.type == "PyFunc" for op in before) == 2
