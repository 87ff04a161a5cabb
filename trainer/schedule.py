"""Where a run stands and its learning rate there, as functions of the samples consumed. No TensorFlow.

The samples consumed (the cursor) are the clock: phases, warmup and decay are measured in them, so another batch
size or another number of hosts changes neither.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from shardline.trainer.config import Phase, Resize


@dataclass(frozen=True)
class PhaseSpan:
    """A phase with the stretch of samples it covers: from `start` up to `stop`."""

    phase: Phase
    index: int
    start: int
    stop: int


def spans(phases: tuple[Phase, ...], num_records: int) -> tuple[PhaseSpan, ...]:
    """Lay the phases end to end over the endless stream of samples."""
    result, epochs, start = [], 0.0, 0
    for index, phase in enumerate(phases):
        epochs += phase.epochs
        stop = max(start + 1, round(epochs * num_records))
        result.append(PhaseSpan(phase, index, start, stop))
        start = stop
    return tuple(result)


@dataclass(frozen=True)
class Stretch:
    """Samples of one phase that are trained on at one image size, up to `stop`."""

    image_size: int
    stop: int


def stretches(span: PhaseSpan, cursor: int, resizes: Sequence[Resize], image_size: int, end: int) -> Iterator[Stretch]:
    """What is left of a phase at `cursor`, cut where the images of a run that ends at `end` grow.

    The step that starts at a sample has the size of that sample: where the run was killed does not matter.
    """
    for resize in resizes:
        stop = min(round(resize.until * end), span.stop)
        if cursor < stop:
            yield Stretch(resize.image_size, stop)
            cursor = stop
    if cursor < span.stop:
        yield Stretch(image_size, span.stop)


def steps_between(start: int, stop: int, global_batch_size: int) -> int:
    """Steps that take the cursor from `start` to or just past `stop`."""
    return max(0, math.ceil((stop - start) / global_batch_size))


def phase_steps(span: PhaseSpan, global_batch_size: int) -> int:
    """Steps of a phase of a whole run: the last step of the phase before may reach into it, or beyond it."""
    return steps_between(0, span.stop, global_batch_size) - steps_between(0, span.start, global_batch_size)


def learning_rate(
    span: PhaseSpan, cursor: int, *, num_records: int, schedule: str, warmup_epochs: float, batch: int
) -> float:
    """Rate of the step that starts at `cursor`: linear warmup, then constant or half a cosine down to 0."""
    length = span.stop - span.start
    warmup = 0.1 * length if warmup_epochs < 0 else min(warmup_epochs * num_records, length)
    done = max(cursor - span.start, 0)
    if done < warmup:
        # Counted to the end of the step, so that the first step learns too.
        return span.phase.learning_rate * min(1.0, (done + batch) / (warmup + batch))
    if schedule == "constant":
        return span.phase.learning_rate
    progress = min(1.0, (done - warmup) / max(length - warmup, 1))
    return span.phase.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))
