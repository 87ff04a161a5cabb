"""What a conversion will give, told from a sample: size, time, bad fraction. No TensorFlow.

The stored order is a shuffle, so any shard, and the head of any split, is a fair sample of the inputs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from shardline.tools.conversion.shard_writer import ShardResult


@dataclass(frozen=True)
class Forecast:
    """Scaled up from a sample."""

    sampled: int
    inputs: int
    output_bytes: int
    seconds: float
    bad_fraction: float
    filtered_fraction: float
    reasons: tuple[tuple[str, int], ...]  # in the sample, most frequent first


def forecast(sample: Sequence[ShardResult], inputs: int, workers: int) -> Forecast:
    """Scale finished shards up to all inputs, `workers` of them written at a time."""
    sampled = max(1, sum(receipt.inputs for receipt in sample))
    reasons = Counter(row["reason"] for receipt in sample for row in receipt.rows() if row["reason"])
    return Forecast(
        sampled=sampled,
        inputs=inputs,
        output_bytes=round(sum(receipt.bytes for receipt in sample) / sampled * inputs),
        seconds=sum(receipt.seconds for receipt in sample) / sampled * inputs / workers,
        bad_fraction=sum(receipt.quarantined for receipt in sample) / sampled,
        filtered_fraction=sum(receipt.filtered for receipt in sample) / sampled,
        reasons=tuple(reasons.most_common()),
    )


def seconds_text(seconds: float) -> str:
    """`3.4 s`, `12 min`, `2 h 05 min`."""
    if seconds < 90:
        return f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"
