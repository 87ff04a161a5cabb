"""The training loop: steps, several in one call where nothing else is due, and actions; nothing else."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from types import FrameType
from typing import Any

import numpy as np
import tensorflow as tf

from shardline.pipeline.errors import Failure
from shardline.trainer.schedule import PhaseSpan
from shardline.trainer.setup import TrainSetup
from shardline.trainer.state import TrainState
from shardline.trainer.step import REPORTED, StepReports, TrainLoop

MOST_STEPS = 32  # in one call
READY_SECONDS = 1e-3  # numbers that are read in less were there already
CALL_SECONDS = 1.0  # about the longest call on one host, so that a signal is heard


@dataclass(frozen=True)
class StepRecord:
    """One finished step, as the actions see it.

    Attributes:
      cursor: samples consumed, those of the step included.
      report: what the step returned, by the names of `step.REPORTED`.
      seconds: its share of the time from its call to the next one, or until the numbers were there.
      wait_seconds: time of it in which the step waited for its batch.
    """

    step: int
    cursor: int
    span: PhaseSpan
    learning_rate: float
    report: dict[str, float]
    seconds: float
    wait_seconds: float
    _call: StepReports
    _index: int

    def samples(self) -> tuple[np.ndarray, np.ndarray]:
        """Record number and loss of each sample that this host trained on in this step."""
        records, losses = (
            np.concatenate([replica[self._index].numpy() for replica in parts])
            for parts in (self._call.records, self._call.losses)
        )
        return records, losses


class Action:
    """What happens beside training: logging, evaluating, saving. Each subclass does some of this."""

    should_stop = False  # set it to end training after the present step

    def after_step(self, record: StepRecord) -> None:
        """Take in one finished step. Called one call late, so that the device never waits for Python."""

    def due(self, state: TrainState) -> bool:
        """Whether `act` is wanted after the step that led to this state."""
        return False

    def act(self, state: TrainState) -> None:
        """Do it. All steps so far have finished."""

    def ends_call(self, state: TrainState) -> bool:
        """Whether a call of several steps must not go beyond this state."""
        return self.due(state)


class StopRequest:
    """Who wants the run to end, with a checkpoint: a signal or a callback.

    SIGTERM and SIGINT become flags here; a second signal is obeyed at once. Python lets only the main thread handle
    signals; a run in another thread leaves them to their owner.

    Attributes:
      signal: number of the signal; 0 for none.
      by: the callback that asked; "" for none.
      failure: what a callback failed with.
      exit: what a callback raised to end the process, `sys.exit`; it is raised again when the run has ended.
    """

    def __init__(self) -> None:
        self.signal, self.by = 0, ""
        self.failure: Failure | None = None
        self.exit: SystemExit | None = None
        self._previous: dict[int, Any] = {}

    @property
    def wanted(self) -> bool:
        """Whether any of them wants it."""
        return bool(self.signal or self.by or self.failure)

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            self._previous = {s: signal.signal(s, self._handle) for s in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number: int, _: FrameType | None) -> None:
        if self.signal:
            signal.signal(number, self._previous[number])
            signal.raise_signal(number)
        self.signal = number


def train_phase(
    setup: TrainSetup,
    state: TrainState,
    train: TrainLoop,
    actions: Sequence[Action],
    stop: StopRequest,
    until: int | None = None,
) -> bool:
    """Train until the state's phase ends, or `until` so many samples are consumed.

    Returns:
      False if a signal to any host, a callback or an action stopped it.
    """
    span = setup.spans[state.phase]
    end = span.stop if until is None else until
    pending: _Call | None = None
    step_seconds = CALL_SECONDS  # the first call is of one step

    def finish_call(ended: float = 0.0) -> None:
        nonlocal pending, step_seconds
        if pending is None:
            return
        pending.wait()
        records = pending.records(ended or time.perf_counter())
        step_seconds = records[0].seconds
        pending = None
        for record in records:
            for action in actions:
                action.after_step(record)

    def stopped() -> bool:
        asked = setup.cluster.hosts == 1 and bool(stop.by or stop.failure)
        return asked or any(action.should_stop for action in actions)

    while state.cursor < end and not stopped():
        hasten = bool(stop.signal) and setup.cluster.hosts == 1
        count = 1 if hasten else steps_until_due(setup, state, actions, most_steps(setup, step_seconds), end)
        cursors = [state.cursor + i * setup.config.global_batch_size for i in range(count + 1)]
        rates = [setup.learning_rate(span, cursor) for cursor in cursors[:-1]]
        started = time.perf_counter()
        # Every host learns of every host's wish to stop, with the gradients, and so all stop after the same step.
        reports = train(tf.constant(rates), tf.constant(float(stop.wanted)))
        call = _Call(state.step + 1, cursors[1:], span, rates, reports, started)
        if setup.queues_steps and (pending is None or pending.wait() < READY_SECONDS):
            call.waited = time.perf_counter() - started  # at most: the GPU had nothing else to do when the call ended
        finish_call(started)
        pending = call
        state.step += count
        state.cursor = cursors[-1]
        due = [action for action in actions if action.due(state)]
        # Where the steps are done when the call returns, no time is won by looking at them later.
        if due or hasten or not setup.queues_steps:
            finish_call()
        for action in due:
            action.act(state)
    finish_call()
    return not stopped()


def most_steps(setup: TrainSetup, step_seconds: float) -> int:
    """How many steps a call may have: the same on all hosts, which else would not stop after the same one."""
    return MOST_STEPS if setup.cluster.hosts > 1 else max(1, min(MOST_STEPS, int(CALL_SECONDS / step_seconds)))


def steps_until_due(setup: TrainSetup, state: TrainState, actions: Sequence[Action], most: int, end: int) -> int:
    """Steps until an action wants the call to end, `end` samples are consumed, or there are `most`."""
    ahead = replace(state)
    for count in range(1, most):
        ahead.step += 1
        ahead.cursor += setup.config.global_batch_size
        if ahead.cursor >= end or any(action.ends_call(ahead) for action in actions):
            return count
    return most


@dataclass
class _Call:
    """Steps that were started together."""

    first_step: int
    cursors: Sequence[int]  # after each
    span: PhaseSpan
    rates: Sequence[float]
    reports: StepReports
    started: float
    waited: float = 0.0  # for input, where the reports tell nothing of it

    def wait(self) -> float:
        """Wait for the steps to finish; how long that took, in seconds."""
        started = time.perf_counter()
        self.reports.numbers.numpy()
        return time.perf_counter() - started

    def records(self, ended: float) -> list[StepRecord]:
        """The steps one by one; `ended`: when the next call started, or these steps were finished."""
        count = len(self.rates)
        waited = self.reports.waited[0].numpy().tolist() if self.reports.waited else [self.waited / count] * count
        return [
            StepRecord(
                step=self.first_step + i,
                cursor=self.cursors[i],
                span=self.span,
                learning_rate=self.rates[i],
                report=dict(zip(REPORTED, numbers, strict=True)),
                seconds=(ended - self.started) / count,
                wait_seconds=waited[i],
                _call=self.reports,
                _index=i,
            )
            for i, numbers in enumerate(self.reports.numbers.numpy().tolist())
        ]
