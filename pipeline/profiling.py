"""Where the input pipeline spends its time. No TensorFlow until an iterator is examined."""

from __future__ import annotations

import statistics
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from shardline.pipeline.wording import count

if TYPE_CHECKING:
    import tensorflow as tf

NOT_LIMIT = 0.05  # share of its time that a step may wait before the input limits it
LEAST_BATCHES = 20  # fewer tell of the start, when workers, caches and files are cold
UNKNOWN = "not known"


@dataclass(frozen=True)
class StageTimes:
    """Times of a running pipeline; `str()` of it is a table.

    Attributes:
      samples: how many the times are means of.
      batches: how many these came in; None where nobody counted.
      microseconds: what one sample costs one thread, by stage: order (with random numbers), read (with checksums),
        decode, augment; of evaluation preprocess, the resize and crop, in place of the last.
      cpu_microseconds: how much of that is CPU time; the rest is waiting. Empty where it was not taken.
      threads: of tf.data; like the next two from its model of an iterator, None when there is none.
      batch_seconds: in which all threads together make a batch.
      consumer_seconds: from the time the consumer gets a batch to its request for the next.
      waiting_share: of its time, in which the training step waited for batches; None where nobody trained.
    """

    samples: int
    microseconds: Mapping[str, float]
    threads: int | None = None
    batch_seconds: float | None = None
    consumer_seconds: float | None = None
    cpu_microseconds: Mapping[str, float] = field(default_factory=dict)
    waiting_share: float | None = None
    batches: int | None = None

    @property
    def total_microseconds(self) -> float:
        """One sample, all stages, on one thread."""
        return sum(self.microseconds.values())

    @property
    def samples_per_second(self) -> float:
        """Throughput of one thread."""
        return 1e6 / self.total_microseconds if self.total_microseconds else 0.0

    @property
    def bottleneck(self) -> str:
        """The stage that costs most; `consumer` when that is slower than all of them together.

        `step` where training waits for less than 5% of its time: TensorFlow's profiler, too, calls the input no limit
        then. `storage` where reads wait longer than any stage computes. UNKNOWN after too few batches.
        """
        if self._too_few:
            return UNKNOWN
        if self.waiting_share is not None and self.waiting_share < NOT_LIMIT:
            return "step"
        if not self.microseconds or (self.consumer_seconds or 0) > (self.batch_seconds or float("inf")):
            return "consumer"
        costs = {**self.microseconds, **self.cpu_microseconds}
        waiting = {stage: self.microseconds[stage] - cpu for stage, cpu in self.cpu_microseconds.items()}
        if "read" in waiting:  # every stage waits for a CPU and for the interpreter, which is no reading
            costs["storage"] = waiting.pop("read") - max(waiting.values(), default=0.0)
        return max(costs, key=costs.__getitem__)

    @property
    def limit(self) -> str:
        """The bottleneck, and how long the step waited where one was trained, in words."""
        few = f" after {count(self.batches or 0, 'batch')}" if self._too_few else ""
        waits = "" if self.waiting_share is None else f" (input waits {100 * self.waiting_share:.0f}%)"
        return f"bottleneck: {self.bottleneck}{few}{waits}"

    @property
    def _too_few(self) -> bool:
        return self.batches is not None and 0 < self.batches < LEAST_BATCHES

    @property
    def table(self) -> dict[str, dict[str, float]]:
        """Microseconds an image by stage: CPU time, and waiting, which is the rest of the time on the clock."""
        return {
            stage: {"cpu": round(cpu, 1), "waiting": round(max(self.microseconds[stage] - cpu, 0.0), 1)}
            for stage, cpu in self.cpu_microseconds.items()
        }

    def since(self, earlier: StageTimes) -> StageTimes:
        """What was added after an earlier reading of the same timer."""
        samples = self.samples - earlier.samples

        def added(now: Mapping[str, float], before: Mapping[str, float]) -> dict[str, float]:
            totals = {stage: now[stage] * self.samples - before.get(stage, 0.0) * earlier.samples for stage in now}
            return {stage: total / samples for stage, total in totals.items()} if samples else {}

        return replace(
            self,
            samples=samples,
            batches=None if self.batches is None else self.batches - (earlier.batches or 0),
            microseconds=added(self.microseconds, earlier.microseconds),
            cpu_microseconds=added(self.cpu_microseconds, earlier.cpu_microseconds),
        )

    def __str__(self) -> str:
        lines = [
            f"{name:10} {value:8.1f} us a sample {value / self.total_microseconds:6.1%}{self._waiting(name)}"
            for name, value in self.microseconds.items()
        ]
        lines.append(f"{'all':10} {self.total_microseconds:8.1f} us, {self.samples_per_second:,.0f} samples/s a thread")
        if self.batch_seconds is not None and self.consumer_seconds is not None:
            make = "1 thread makes" if self.threads == 1 else f"{self.threads} threads make"
            lines.append(
                f"{make} a batch in {self.batch_seconds * 1e3:.1f} ms; "
                f"the consumer takes {self.consumer_seconds * 1e3:.1f} ms"
            )
        return "\n".join([*lines, self.limit])

    def _waiting(self, stage: str) -> str:
        if stage not in self.cpu_microseconds:
            return ""
        waited = max(0.0, self.microseconds[stage] - self.cpu_microseconds[stage])  # two clocks: it may be less than 0
        return f", waiting {waited:.1f} us"


class Stopwatch:
    """Times the stages of one batch in one thread.

    A thread's CPU clock is a system call, a hundredth of an image's time if each of its laps were asked for it. Of
    `LAPS` laps, which no number of stages divides, the first `ASKED` are; the others of their stages wait as long.
    """

    LAPS, ASKED = 25, 4

    def __init__(self) -> None:
        self._stages: list[str] = []
        self._ends, self._cpu_ends = [time.perf_counter()], [time.thread_time()]

    def lap(self, stage: str) -> None:
        """Add the time since the last lap to `stage`."""
        self._stages.append(stage)
        self._ends.append(time.perf_counter())
        if len(self._stages) % self.LAPS <= self.ASKED:
            self._cpu_ends.append(time.thread_time())

    def sums(self) -> tuple[dict[str, float], dict[str, float]]:
        """Time by stage, and CPU time: all but the waiting."""
        seconds, waited = defaultdict[str, float](float), defaultdict[str, float](float)
        for stage, began, ended in zip(self._stages, self._ends, self._ends[1:], strict=False):
            seconds[stage] += ended - began
        asked, laps = Counter[str](), Counter(self._stages)
        for first in range(0, len(self._stages), self.LAPS):
            cpu_first = first // self.LAPS * (self.ASKED + 1)
            for number, stage in enumerate(self._stages[first : first + self.ASKED]):
                began, ended = self._ends[first + number : first + number + 2]
                cpu_began, cpu_ended = self._cpu_ends[cpu_first + number : cpu_first + number + 2]
                waited[stage] += (ended - began) - (cpu_ended - cpu_began)
                asked[stage] += 1
        cpu = {
            stage: max(spent - waited[stage] / max(asked[stage], 1) * laps[stage], 0.0)
            for stage, spent in seconds.items()
        }
        return dict(seconds), cpu


class StageTimer:
    """Sums the stage times of all threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.cpu_seconds: defaultdict[str, float] = defaultdict(float)
        self.samples = self.batches = 0

    def add(self, seconds: Mapping[str, float], cpu_seconds: Mapping[str, float], samples: int) -> None:
        """Add a batch's times, by stage."""
        with self._lock:
            for stage in seconds:
                self.seconds[stage] += seconds[stage]
                self.cpu_seconds[stage] += cpu_seconds[stage]
            self.samples += samples
            self.batches += samples > 0  # through a cache, a batch adds its costs in parts

    def times(self, iterator: tf.data.Iterator | None = None) -> StageTimes:
        """All times so far, with those of tf.data's model of an iterator, if one is given."""
        with self._lock:
            samples, batches = self.samples, self.batches
            wall, cpu = (
                {stage: value / samples * 1e6 for stage, value in seconds.items()}
                for seconds in (self.seconds, self.cpu_seconds)
            )
        model = _model(iterator) if iterator is not None else {}
        return StageTimes(samples, wall, cpu_microseconds=cpu, batches=batches, **model)


def _model(iterator: tf.data.Iterator) -> dict[str, Any]:
    import tensorflow as tf

    model = tf.data.experimental.get_model_proto(iterator)
    (calls,) = (node for node in model.nodes.values() if node.name == "ParallelMapV2")
    (threads,) = (int(p.value) for p in calls.parameters if p.name == "parallelism")
    return {
        "threads": threads,
        "batch_seconds": calls.processing_time / 1e9 / max(calls.num_elements, 1) / threads,
        "consumer_seconds": statistics.median(model.gap_times) / 1e6 if model.gap_times else None,
    }
