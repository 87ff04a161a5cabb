"""Where the input pipeline spends its time. No TensorFlow until an iterator is examined."""

from __future__ import annotations

import statistics
import threading
import time
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import tensorflow as tf


@dataclass(frozen=True)
class StageTimes:
    """Times of a running pipeline; `str()` of it is a table.

    Attributes:
      samples: how many the times are means of.
      microseconds: what one sample costs one thread, by stage: order (with random numbers), read (with checksums),
        decode, augment.
      threads: of tf.data; like the next two from its model of an iterator, None when there is none.
      batch_seconds: in which all threads together make a batch.
      consumer_seconds: from the time the consumer gets a batch to its request for the next.
    """

    samples: int
    microseconds: Mapping[str, float]
    threads: int | None = None
    batch_seconds: float | None = None
    consumer_seconds: float | None = None

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
        """The stage that costs most; `consumer` when that is slower than all of them together."""
        if not self.microseconds or (self.consumer_seconds or 0) > (self.batch_seconds or float("inf")):
            return "consumer"
        return max(self.microseconds, key=self.microseconds.__getitem__)

    def __str__(self) -> str:
        lines = [
            f"{name:8} {value:8.1f} us a sample {value / self.total_microseconds:6.1%}"
            for name, value in self.microseconds.items()
        ]
        lines.append(f"{'all':8} {self.total_microseconds:8.1f} us, {self.samples_per_second:,.0f} samples/s a thread")
        if self.batch_seconds is not None and self.consumer_seconds is not None:
            lines.append(
                f"{self.threads} threads make a batch in {self.batch_seconds * 1e3:.1f} ms; "
                f"the consumer takes {self.consumer_seconds * 1e3:.1f} ms"
            )
        return "\n".join([*lines, f"bottleneck: {self.bottleneck}"])


class Stopwatch:
    """Times the stages of one batch in one thread."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self._last = time.perf_counter()

    def lap(self, stage: str) -> None:
        """Add the time since the last lap to `stage`."""
        now = time.perf_counter()
        self.seconds[stage] += now - self._last
        self._last = now


class StageTimer:
    """Sums the stage times of all threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.samples = 0

    def add(self, stage_seconds: Mapping[str, float], samples: int) -> None:
        """Add a batch's times."""
        with self._lock:
            for stage, seconds in stage_seconds.items():
                self.seconds[stage] += seconds
            self.samples += samples

    def times(self, iterator: tf.data.Iterator | None = None) -> StageTimes:
        """All times so far, with those of tf.data's model of an iterator, if one is given."""
        with self._lock:
            samples = self.samples
            microseconds = {stage: seconds / samples * 1e6 for stage, seconds in self.seconds.items()}
        return StageTimes(samples, microseconds, **(_model(iterator) if iterator is not None else {}))


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
