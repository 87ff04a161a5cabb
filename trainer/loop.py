"""The training loop: next batch, step, actions; nothing else."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import tensorflow as tf

from shardline.trainer.schedule import PhaseSpan
from shardline.trainer.setup import Plan
from shardline.trainer.state import TrainState


@dataclass
class StepRecord:
    """One step, as the actions see it. Reading `report` waits for the step to finish."""

    step: int
    cursor: int  # behind the step
    span: PhaseSpan
    learning_rate: float
    report: dict[str, Any]
    records: Any  # which records the step saw
    wait_seconds: float  # time the loop stood still for input


class Action(Protocol):
    """What happens beside training: logging, evaluating, saving."""

    def due(self, state: TrainState) -> bool:
        """Whether `act` is wanted after the step that led to this state."""

    def act(self, state: TrainState) -> None:
        """Do it. All steps so far have finished."""


class StopRequest:
    """Turns SIGTERM and SIGINT into a flag, so that a run ends with a checkpoint. A second signal is obeyed at once."""

    def __init__(self) -> None:
        self.signal = 0

    def __enter__(self) -> StopRequest:
        self._previous: dict[int, Any] = {s: signal.signal(s, self._handle) for s in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *_: Any) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number: int, _: Any) -> None:
        if self.signal:
            signal.signal(number, self._previous[number])
            signal.raise_signal(number)
        self.signal = number


def train_phase(
    plan: Plan,
    state: TrainState,
    span: PhaseSpan,
    step: Callable[..., dict[str, Any]],
    batches: Iterator[Any],
    *,
    after_step: Callable[[StepRecord], bool],
    actions: Sequence[Action],
    stop: StopRequest,
) -> bool:
    """Train until the phase ends. False if it was stopped before, by a signal to any host or by an action.

    `after_step` reads a step's numbers one step late, so that the device never waits for Python.
    """
    pending: StepRecord | None = None
    going = True
    while state.cursor < span.stop and going:
        started = time.perf_counter()
        batch = next(batches)
        waited = time.perf_counter() - started
        rate = plan.learning_rate(span, state.cursor)
        # Every host learns of every host's wish to stop, with the gradients, and so all stop after the same step.
        report = step(batch, tf.constant(rate), tf.constant(float(bool(stop.signal))))
        state.step += 1
        state.cursor += plan.config.global_batch_size
        if pending:
            going = after_step(pending)
        pending = StepRecord(state.step, state.cursor, span, rate, report, batch["record"], waited)
        if due := [action for action in actions if action.due(state)]:
            going = after_step(pending) and going
            pending = None
            for action in due:
                action.act(state)
            going = going and not any(getattr(action, "should_stop", False) for action in actions)
    if pending:
        going = after_step(pending) and going
    return going
