"""What a conversion will give, estimated from a sample: size, time, bad fraction. No TensorFlow.

The stored order is a shuffle, so any shard, and the head of any split, is a fair sample of the inputs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from shardline.pipeline.wording import count
from shardline.tools.conversion.shard_writer import ShardResult


@dataclass(frozen=True)
class Estimate:
    """Scaled up from a sample; as text, what --dry_run prints."""

    inputs: int
    sampled: int
    workers: int
    output_bytes: int
    seconds: float
    bad_fraction: float
    filtered_fraction: float
    reasons: tuple[tuple[str, int], ...] = ()  # in the sample, most frequent first
    examples: tuple[str, ...] = ()  # bad images of the sample, a line each
    layout: str = ""  # classes, splits and shards

    def __str__(self) -> str:
        reasons = ", ".join(f"{reason} {number}" for reason, number in self.reasons)
        fractions = f"{self.bad_fraction:.1%} bad, {self.filtered_fraction:.1%} filtered"
        return "\n".join(
            [
                f"{count(self.inputs, 'input')}, {self.layout}",
                f"sampled {self.sampled:,}: {fractions}" + (f" ({reasons})" if reasons else ""),
                *(f"  {line}" for line in self.examples),
                f"estimated: {self.output_bytes / 1e6:,.1f} MB, {seconds_text(self.seconds)} with "
                f"{count(self.workers, 'worker')}; nothing was written",
            ]
        )


def estimate_from(sample: Sequence[ShardResult], inputs: int, workers: int) -> Estimate:
    """Scale finished shards up to all inputs, `workers` of them written at a time."""
    sampled = max(1, sum(result.inputs for result in sample))
    reasons = sum((result.reasons() for result in sample), Counter[str]())
    return Estimate(
        inputs=inputs,
        sampled=sampled,
        workers=workers,
        output_bytes=round(sum(result.bytes for result in sample) / sampled * inputs),
        seconds=sum(result.seconds for result in sample) / sampled * inputs / workers,
        bad_fraction=sum(result.quarantined for result in sample) / sampled,
        filtered_fraction=sum(result.filtered for result in sample) / sampled,
        reasons=tuple(reasons.most_common()),
    )


def seconds_text(seconds: float) -> str:
    """`3.4 s`, `12 min`, `2 h 05 min`."""
    if seconds < 90:
        return f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"
