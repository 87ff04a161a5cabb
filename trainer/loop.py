"""The training loop: next batch, step, actions; nothing else."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import FrameType
from typing import Any

import tensorflow as tf

from shardline.trainer.schedule import PhaseSpan
from shardline.trainer.setup import TrainSetup
from shardline.trainer.state import TrainState
from shardline.trainer.step import Batch, TrainStep


@dataclass
class StepRecord:
    """One step, as the actions see it. Reading `report` waits for the step to finish.

    Attributes:
      cursor: samples consumed, those of the step included.
      report: what the step returned.
      records: which records the step trained on, distributed as its batch was.
      wait_seconds: time the loop stood still for input.
      started: when the loop turned to it, and `ended`, when to the next one, by time.perf_counter; 0: it has not yet.
    """

    step: int
    cursor: int
    span: PhaseSpan
    learning_rate: float
    report: dict[str, tf.Tensor]
    records: tf.Tensor
    wait_seconds: float
    started: float
    ended: float = 0.0


class Action:
    """What happens beside training: logging, evaluating, saving. Each subclass does some of this."""

    should_stop = False  # set it to end training after the present step

    def after_step(self, record: StepRecord) -> None:
        """Take in one finished step. Called one step late, so that the device never waits for Python."""

    def due(self, state: TrainState) -> bool:
        """Whether `act` is wanted after the step that led to this state."""
        return False

    def act(self, state: TrainState) -> None:
        """Do it. All steps so far have finished."""


class StopRequest:
    """Turns SIGTERM and SIGINT into a flag, so that a run ends with a checkpoint. A second signal is obeyed at once.

    Python lets only the main thread handle signals; a run in another thread leaves them to their owner.
    """

    def __init__(self) -> None:
        self.signal = 0
        self._previous: dict[int, Any] = {}

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
    step: TrainStep,
    batches: Iterator[Batch],
    actions: Sequence[Action],
    stop: StopRequest,
) -> bool:
    """Train until the state's phase ends. False if it was stopped before, by a signal to any host or by an action."""
    span = setup.spans[state.phase]
    pending: StepRecord | None = None

    def finish_step(ended: float = 0.0) -> None:
        nonlocal pending
        if pending:
            pending.ended = ended
            for action in actions:
                action.after_step(pending)
        pending = None

    def stopped() -> bool:
        return any(action.should_stop for action in actions)

    while state.cursor < span.stop and not stopped():
        started = time.perf_counter()
        batch = next(batches)
        waited = time.perf_counter() - started
        rate = setup.learning_rate(span, state.cursor)
        # Every host learns of every host's wish to stop, with the gradients, and so all stop after the same step.
        report = step(batch, tf.constant(rate), tf.constant(float(bool(stop.signal))))
        state.step += 1
        state.cursor += setup.config.global_batch_size
        finish_step(started)
        pending = StepRecord(state.step, state.cursor, span, rate, report, batch["record"], waited, started)
        if due := [action for action in actions if action.due(state)]:
            finish_step()
            for action in due:
                action.act(state)
    finish_step()
    return not stopped()
