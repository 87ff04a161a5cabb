"""Numbers over time: metrics.jsonl. No TensorFlow."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shardline.pipeline import stored
from shardline.pipeline.cli import log
from shardline.pipeline.errors import Failure, UsageError
from shardline.pipeline.files import atomic_write
from shardline.pipeline.stored import Count
from shardline.trainer.callbacks import Callback, Report

FILE_NAME = "metrics.jsonl"
LIMIT_BYTES = 1 << 32  # of some ten million lines


class MetricsLog(Callback):
    """The run's own callback: one JSON object a line."""

    def __init__(self, workdir: str, resumed_step: int) -> None:
        """Lines after `resumed_step` are dropped: those steps will be run, and written, again."""
        self._path = Path(workdir) / FILE_NAME
        kept = [line for line in read(workdir) if line["step"] <= resumed_step]
        atomic_write(self._path, "".join(map(stored.sealed_line, kept)))
        self._file = self._path.open("a", encoding="utf-8")

    def report(self, report: Report) -> None:
        """One line, flushed, so that a reader never waits and a kill loses nothing."""
        if not report.metrics:  # there is no split to evaluate
            return
        values = {"epoch": report.epoch, **report.metrics}
        try:
            self._file.write(stored.sealed_line({"step": report.step, "kind": report.kind, **values}))
            self._file.flush()
        except OSError as error:
            raise Failure(f"{self._path} cannot be written: {error.strerror}; free some space") from None

    def end(self) -> None:
        """Flush and close."""
        self._file.close()


def read(workdir: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """All whole lines of a run's metrics. What a kill cut short is left out; so are damaged lines, with a warning.

    Raises:
      UsageError: what is there is no file, or an absurd one.
    """
    path, lines = Path(workdir) / FILE_NAME, []
    try:
        text = stored.read_bytes(path, remedy="move it away", limit_bytes=LIMIT_BYTES).decode(errors="replace")
    except FileNotFoundError:
        text = ""
    for number, line in enumerate(text.split("\n")[:-1], 1):  # what follows the last line break was cut short
        try:
            values = stored.unsealed_line(line, what=path, remedy="")
            stored.convert(values, _LINES[values["kind"]], what=path, remedy="")
        except (KeyError, TypeError, UsageError):
            log(f"warning: {path}, line {number} is damaged and left out")
        else:
            lines.append(values)
    return lines


def steady(lines: Sequence[dict[str, Any]], log_every_steps: int) -> list[dict[str, Any]]:
    """The lines of training that tell its speed: without those of a first step, which compiles, if there are others."""
    train = [line for line in lines if line["kind"] == "train"]
    return [line for line in train if line["step"] % log_every_steps == 0] or train


@dataclass(frozen=True)
class _TrainLine:
    """The numbers of a line that are computed with."""

    step: Count
    epoch: float
    loss: float
    top1: float
    learning_rate: float
    images_per_second: float
    waiting_percent: float


@dataclass(frozen=True)
class _EvalLine:
    step: Count
    epoch: float
    loss: float
    top1: float


_LINES = {"train": _TrainLine, "eval": _EvalLine}
