"""What the input of a run costs: each stage of it, for training and for evaluation, on each host.

Every line of metrics.jsonl has the stages' costs since the line before. RUN/input_profile.json has those of the whole
run; it is written anew every few seconds, so that a run that is killed leaves it. What the other hosts measured is
collected with the evaluations, at which all hosts stop anyway.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from shardline import pipeline
from shardline.pipeline import stored
from shardline.pipeline.profiling import StageTimes

FILE_NAME, FORMAT = "input_profile.json", "shardline input profile 1"
REMEDY = "train on, and it is written again"


@dataclass(frozen=True)
class HostProfile:
    """Stage times of one host's batches, each of them None before the first batch."""

    host: int
    training: StageTimes | None = None
    evaluation: StageTimes | None = None

    @property
    def tables(self) -> Iterator[tuple[str, StageTimes]]:
        """What the times are of, and the times."""
        for name in ("training", "evaluation"):
            if times := getattr(self, name):
                yield name, times

    def content(self) -> dict[str, Any]:
        """JSON values, with what limits each kind of batches."""
        tables = {name: {"bottleneck": times.bottleneck, **asdict(times)} for name, times in self.tables}
        return {"host": self.host, **tables}


class StageLaps:
    """The costs of the stages from one look to the next."""

    def __init__(self, data: pipeline.TrainingData, kind: str) -> None:
        """`kind`: training or evaluation."""
        self._data, self._kind = data, kind
        self._before = stage_times(data, kind)

    def lap(self) -> dict[str, dict[str, float]]:
        """CPU time and waiting of each stage since the last call, in microseconds an image; {} without images."""
        now = stage_times(self._data, self._kind)
        added, self._before = now.since(self._before), now
        return added.table


def stage_times(data: pipeline.TrainingData, kind: str) -> StageTimes:
    """The times so far; of data that is not on a disk, those of no image."""
    return data.stage_times(of=kind) if isinstance(data, pipeline.Dataset) else StageTimes(0, {})


def host_profile(
    data: pipeline.TrainingData, host: int, training_waits: float | None, evaluation_waits: float | None
) -> HostProfile:
    """This host's profile; the shares of their time that the steps of both kinds waited for their batches."""
    waits = {"training": training_waits, "evaluation": evaluation_waits}
    times = {kind: replace(stage_times(data, kind), waiting_share=share) for kind, share in waits.items()}
    return HostProfile(host, **{kind: found if found.samples else None for kind, found in times.items()})


def slowest_first(hosts: list[HostProfile]) -> list[HostProfile]:
    """The host whose step waits longest for its input before the others: it is the one that all others wait for."""

    def key(profile: HostProfile) -> tuple[float, float, int]:
        times = profile.training or StageTimes(0, {})
        return -(times.waiting_share or 0.0), -times.total_microseconds, profile.host

    return sorted(hosts, key=key)


def to_text(profile: HostProfile) -> str:
    """Inverse of `from_text`."""
    return json.dumps(profile.content())


def from_text(text: str) -> HostProfile:
    """A host's profile, as it told it to the others."""
    return stored.parse(text, HostProfile, what="the input profile of another host", remedy=REMEDY)


@dataclass(frozen=True)
class InputProfile:
    """The content of RUN/input_profile.json: of all hosts, the slowest first, after so many steps."""

    step: int
    hosts: tuple[HostProfile, ...]

    def save(self, workdir: str | os.PathLike[str]) -> None:
        """Write it: whole, or as it was before."""
        content = {"step": self.step, "hosts": [profile.content() for profile in self.hosts]}
        stored.save(Path(workdir) / FILE_NAME, content, format=FORMAT, durable=False)

    @classmethod
    def load(cls, workdir: str | os.PathLike[str]) -> InputProfile:
        """Inverse of `save`. Raises FileNotFoundError, and UsageError for a damaged file."""
        return stored.load(Path(workdir) / FILE_NAME, cls, format=FORMAT, remedy=REMEDY)

    def __str__(self) -> str:
        several = len(self.hosts) > 1
        return "\n".join(
            f"input{f' of host {profile.host}' if several else ''}, {name}:\n{times}"
            for profile in self.hosts
            for name, times in profile.tables
        )
