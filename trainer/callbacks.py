"""What a run tells while it trains, and to whom: the callbacks of `train(config, callbacks=[...])`. No TensorFlow.

    class Patience:
        def begin(self, start: Start) -> None: ...
        def report(self, report: Report) -> bool:
            return report.kind == "eval" and report.numbers["loss"] < 0.1  # True ends the run
        def end(self) -> None: ...

They are called at the lines of metrics.jsonl, every `log_every_steps` steps, before each evaluation and with it, never
between: several steps run in one call of TensorFlow. On several hosts those of the chief are called. A callback of
Keras can be given as it is (`keras_callbacks`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np

from shardline.pipeline.errors import Failure, UsageError

if TYPE_CHECKING:
    import keras

    from shardline.trainer.config import TrainConfig
    from shardline.trainer.loop import StopRequest


@dataclass(frozen=True)
class Start:
    """What is known before the first step of a call of `train`.

    Attributes:
      step: steps done before, by the calls that this one continues.
      steps: of the whole run.
      epoch, epochs: the same in passes over the training records.
      learning_rate: of the first step.
      model: uint8 RGB [b, s, s, 3] -> float32 probabilities [b, classes], with the weights that train; at an evaluation
        with those that are evaluated, which are their moving average with `ema`.
    """

    config: TrainConfig
    step: int
    steps: int
    epoch: float
    epochs: float
    learning_rate: float
    model: keras.Model


@dataclass(frozen=True, eq=False)
class Answers:
    """What a model said of some records, a row for each.

    Attributes:
      records, labels, predicted: int64 [n].
      confidence: float32 [n], the probability of the predicted class.
    """

    records: np.ndarray
    labels: np.ndarray
    predicted: np.ndarray
    confidence: np.ndarray


@dataclass(frozen=True)
class Report:
    """A line of metrics.jsonl.

    Attributes:
      step: steps done, from the start of the run.
      epoch: passes over the training records.
      kind: `train`, the means since the report before; `eval`, the held-out split, or nothing where there is none.
      metrics: loss, top1 and so on, by their names in metrics.jsonl.
      answers: of an evaluation, what the model said of each record of the held-out split that this host evaluated.
    """

    step: int
    epoch: float
    kind: Literal["train", "eval"]
    metrics: Mapping[str, object]
    answers: Answers | None = None

    @property
    def numbers(self) -> dict[str, float]:
        """Those of the metrics that are numbers."""
        return {name: float(value) for name, value in self.metrics.items() if isinstance(value, int | float)}


class Callback(Protocol):
    """Who is told. A class that inherits from this one needs only the methods that it wants."""

    def begin(self, start: Start) -> None:
        """Before the first step."""
        return None

    def report(self, report: Report) -> bool | None:
        """At each line of metrics. True ends the run, with a checkpoint from which the same call continues it."""
        return None

    def end(self) -> None:
        """After the last checkpoint, however the run ended."""
        return None


def check_callbacks(callbacks: Sequence[Callback]) -> None:
    """Refuse, before any work, what is no callback."""
    for callback in callbacks:
        if isinstance(callback, type) or not all(hasattr(callback, name) for name in ("begin", "report", "end")):
            raise UsageError(
                f"callbacks: {callback!r} is no callback; give an object with begin, report and end "
                "(shardline.trainer.callbacks.Callback), or a Keras callback"
            )


class Callbacks:
    """A run's callbacks, asked in turn. What one raises, also to exit, ends the run in its name, with a checkpoint."""

    def __init__(self, callbacks: Sequence[Callback], stop: StopRequest) -> None:
        self._callbacks, self._stop = tuple(callbacks), stop

    def begin(self, start: Start) -> None:
        """Tell all."""
        for callback in self._callbacks:
            self._call(callback, partial(callback.begin, start))

    def report(self, report: Report) -> None:
        """Tell all, unless one has failed before; end the run where one of them wants it."""
        for callback in self._callbacks:
            if not self._stop.failure:
                self._call(callback, partial(callback.report, report))

    def end(self) -> None:
        """Tell all, also those that failed: they may hold open files."""
        for callback in self._callbacks:
            self._call(callback, callback.end)

    def _call(self, callback: Callback, call: Callable[[], bool | None]) -> None:
        name = getattr(callback, "name", type(callback).__name__)
        try:
            if call() and not self._stop.by:
                self._stop.by = f"callback {name}"
        except SystemExit as error:
            if not self._stop.exit:
                self._stop.by, self._stop.exit = f"callback {name}: sys.exit({error.code!r})", error
        except Exception as error:
            text = str(error) if isinstance(error, Failure) else f"{type(error).__name__}: {error}"
            failure = Failure(f"callback {name}: {' '.join(text.split())}")
            failure.__cause__ = error
            self._stop.failure = self._stop.failure or failure
