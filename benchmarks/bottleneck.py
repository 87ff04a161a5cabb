"""One sentence from a ladder of rates: which stage binds, and what would help by how much. Pure arithmetic.

The host's stages run on the same cores one after another, so a stage's cost is the difference between the
reciprocal rates of the pipeline cut after it and before it; costs add, rates do not. Copying and stepping are
measured alone: where they run beside the host (an accelerator), the slowest of the three sets the pace; where
the step runs on the host's own cores, its cost adds to the host's.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

HOST_STAGES = ("storage", "records", "parse", "decode", "augment", "batch")
"""Cumulative: each is the pipeline cut after that stage. All stages: these, then copy, step, end_to_end."""
STAGES = (*HOST_STAGES, "copy", "step", "end_to_end")
STAGE_TEXT = {
    "storage": "read the shards' bytes",
    "records": "read each record, checksums verified",
    "parse": "find image and label in it",
    "decode": "decode the whole image",
    "augment": "random crop, resize, flip",
    "batch": "uint8 batches out of tf.data",
    "copy": "batches to the device",
    "step": "training step on batches in memory",
    "end_to_end": "training step on real input",
}
BALANCED = 0.1  # two limits closer than this: neither is "the" bottleneck


@dataclass(frozen=True)
class Advice:
    """One change and the factor it is predicted to bring end to end."""

    change: str  # a flag, as a person would type it, or a number of cores
    factor: float  # predicted rate / present rate
    price: str = ""  # what it costs, such as "6.8x the bytes"
    alone: float = 0.0  # the factor for the stage itself, were nothing behind it a limit: what a re-run can check

    def __str__(self) -> str:
        price = f", {self.price}" if self.price else ""
        return f"{self.change} (predicted {self.factor:.1f}x{price})"


@dataclass(frozen=True)
class Verdict:
    """The binding stage, the pace it sets, and the advice, most helpful first."""

    word: str  # storage-bound, decode-bound, augment-bound, copy-bound, step-bound, balanced
    images_per_second: float
    advice: tuple[Advice, ...]
    reason: str

    def __str__(self) -> str:
        advice = f": {', or '.join(map(str, self.advice))}" if self.advice else ""
        return f"{self.word}{advice} — {self.reason}"


def stage_seconds(rates: Mapping[str, float]) -> dict[str, float]:
    """Seconds an image spends in each host stage, from the cumulative rates (images/s).

    Noise can make a longer pipeline look faster than a shorter one; such a stage costs 0.
    """
    seconds: dict[str, float] = {}
    before = 0.0
    for stage in HOST_STAGES:
        if stage in rates:
            total = 1 / rates[stage]
            seconds[stage] = max(total - before, 0.0)
            before = max(total, before)
    return seconds


def judge(
    rates: Mapping[str, float],
    *,
    cores: int,
    image_bytes: float,
    stored_pixels: float,
    step_on_host: bool,
    encoding: str = "jpeg",
    smaller_size: int | None = None,
    stored_size: int | None = None,
) -> Verdict:
    """Name the bottleneck of a ladder.

    Args:
      rates: stage name to images/s; needs every host stage, and copy and step where they were measured.
      cores: CPU cores the host stages had.
      image_bytes: mean stored record, bytes.
      stored_pixels: mean stored image, pixels.
      step_on_host: the training step ran on the same cores as the input (no accelerator).
      encoding: how the images are stored.
      smaller_size: the next sensible `--size`, when there is one.
      stored_size: the present `--size`.
    """
    seconds = stage_seconds(rates)
    host = rates["batch"] if "batch" in rates else rates["augment"]
    limits = {"storage": rates["storage"], "host": host}
    limits.update({stage: rates[stage] for stage in ("copy", "step") if stage in rates})
    ordered = sorted(limits, key=lambda name: limits[name])
    lowest = ordered[0]
    pace = limits[lowest]
    if step_on_host and "step" in limits:
        pace = 1 / (1 / host + 1 / limits["step"])
    reason = ", ".join(f"{name} {_rate(limits[name])}" for name in ordered) + " images/s"
    if len(ordered) > 1 and limits[ordered[1]] < pace * (1 + BALANCED) and not step_on_host:
        return Verdict("balanced", pace, (), f"{ordered[0]} and {ordered[1]} are within 10 %: {reason}")
    if lowest == "storage" and smaller_size and stored_size and smaller_size < stored_size:
        faster = (stored_size / smaller_size) ** 2  # bytes go with the area
        smaller = Advice(f"--size {smaller_size}", min(faster, limits[ordered[1]] / pace), alone=faster)
        return Verdict("storage-bound", pace, (smaller,), reason)
    if lowest != "host":
        return Verdict(f"{lowest}-bound", pace, (), reason)

    heavy = max(("decode", "augment"), key=lambda stage: seconds.get(stage, 0.0))
    next_limit = limits[ordered[1]] if len(ordered) > 1 else math.inf
    advice = []
    if math.isfinite(next_limit):
        more = max(math.ceil(cores * next_limit / host) - cores, 1)
        # Linear in cores: the host stages share nothing but memory.
        faster = (cores + more) / cores
        change = f"{more} more core{'s' if more > 1 else ''}"
        advice.append(Advice(change, min(faster, next_limit / host), alone=faster))
    if heavy == "decode" and encoding != "raw":
        total = sum(seconds.values())
        if smaller_size and stored_size and smaller_size < stored_size:
            share = (smaller_size / stored_size) ** 2
            faster = total / (total - seconds["decode"] * (1 - share))
            advice.append(Advice(f"--size {smaller_size}", min(faster, next_limit / host), alone=faster))
        growth = 3 * stored_pixels / image_bytes
        # Without decoding, what is left also reads more bytes, at the storage stage's rate a byte.
        faster = total / (total - seconds["decode"] + seconds["storage"] * (growth - 1))
        price = f"{growth:.1f}x the bytes"
        advice.append(Advice("--encoding raw", min(faster, next_limit / host), price, alone=faster))
    advice = [item for item in advice if item.factor > 1 + BALANCED / 2]  # less is not worth anybody's day
    share = seconds[heavy] / sum(seconds.values())
    return Verdict(f"{heavy}-bound", pace, tuple(advice), f"{heavy} takes {share:.0%} of the host's time; {reason}")


def cores_for(
    gpus: Sequence[int], *, gpu_images_per_second: float, images_per_second_per_core: float
) -> dict[int, int]:
    """Host cores that feed so many GPUs, at the measured rate a core (above 0)."""
    return {n: math.ceil(n * gpu_images_per_second / images_per_second_per_core) for n in gpus}


def cost_per_million(images_per_second: float, price_per_hour: float) -> float:
    """What a million images cost, in the price's currency."""
    return price_per_hour * 1_000_000 / images_per_second / 3600


def scaling_forecast(
    replicas: Sequence[int], *, step_seconds: float, gradient_bytes: float, wire_bytes_per_second: float
) -> dict[int, float]:
    """Predicted efficiency (1.0 = linear) of synchronous training on n replicas.

    A ring all-reduce moves 2 (n-1)/n of the gradients over each link (Patarasuk and Yuan, 2009). No overlap
    with the backward pass is assumed, so this is the pessimistic end.
    """
    return {
        n: step_seconds / (step_seconds + 2 * (n - 1) / n * gradient_bytes / wire_bytes_per_second) for n in replicas
    }


def _rate(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"
