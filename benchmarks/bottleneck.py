"""One sentence from the rates of the stages: which one binds, and what would help by how much. Pure arithmetic.

The host's stages run on the same cores one after another, so a stage's cost is the difference between the reciprocal
rates of the pipeline cut after it and before it; costs add, rates do not. Copying and stepping are measured alone:
where they run beside the host (an accelerator), the slowest of the three sets the pace; where the step runs on the
host's own cores, its cost adds to the host's.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from shardline.benchmarks.measure import Measurement, rate_text

STAGES_SUITE, VALIDATION_SUITE = "stages", "validation"  # what the measurements are filed under
HOST_STAGES = ("storage", "records", "parse", "decode", "augment", "batch")
"""Cumulative: each is the pipeline cut after that stage. All stages: these, then copy, step, end_to_end."""
STAGES = (*HOST_STAGES, "copy", "step", "end_to_end")
STAGE_TEXT = {
    "storage": "read the shards' bytes",
    "records": "read each record, checksums verified",
    "parse": "find image and label in it",
    "decode": "decode the whole image",
    "augment": "random resized crop, flip and what else the options ask for",
    "batch": "uint8 batches out of tf.data",
    "copy": "batches to the device",
    "step": "training step on batches in memory",
    "end_to_end": "training step on real input",
}
COLD_STORAGE, COLD_AUGMENT = COLD = ("storage (cold)", "augment (cold)")  # after the page cache was dropped
BALANCED = 0.1  # two limits closer than this: neither is "the" bottleneck


@dataclass(frozen=True)
class Facts:
    """What the arithmetic needs to know beside the rates.

    Attributes:
      cores: CPU cores the host stages had.
      image_bytes: mean stored record, bytes.
      stored_pixels: mean stored image, pixels.
      step_on_host: the training step ran on the same cores as the input (no accelerator).
      encoding: how the images are stored.
      stored_size: the present `--size` of the conversion.
      smaller_size: the next sensible one, when there is one.
      fits_memory: whether the page cache can hold the split.
    """

    cores: int
    image_bytes: float
    stored_pixels: float
    step_on_host: bool
    encoding: str = "jpeg"
    stored_size: int | None = None
    smaller_size: int | None = None
    fits_memory: bool = True

    @property
    def area(self) -> float | None:
        """The share of the pixels that images of the smaller size have; None where there is no such size."""
        if self.smaller_size and self.stored_size and self.smaller_size < self.stored_size:
            return (self.smaller_size / self.stored_size) ** 2
        return None


@dataclass(frozen=True)
class Advice:
    """One change and the factor it is predicted to bring end to end."""

    change: str  # a flag, as a person would type it, or a number of cores
    factor: float  # predicted rate / present rate
    price: str = ""  # what it costs, such as "6.8x the bytes"
    input_factor: float = 0.0  # the factor of the input alone, whatever limits training: what a validation measures

    def __str__(self) -> str:
        price = f", {self.price}" if self.price else ""
        return f"{self.change} (predicted {self.factor:.1f}x{price})"


@dataclass(frozen=True)
class Bottleneck:
    """The stage that binds, the pace it sets, and the advice, most helpful first."""

    stage: str  # storage, decode, augment, copy, step, or "" where two of them are balanced
    images_per_second: float
    advice: tuple[Advice, ...]
    reason: str

    @property
    def word(self) -> str:
        """storage-bound, decode-bound, augment-bound, copy-bound, step-bound or balanced."""
        return f"{self.stage}-bound" if self.stage else "balanced"

    def __str__(self) -> str:
        advice = f": {', or '.join(map(str, self.advice))}" if self.advice else ""
        return f"{self.word}{advice} — {self.reason}"


def bottleneck_of(measurements: Sequence[Measurement]) -> Bottleneck | None:
    """The bottleneck that measured stages show; None where a host stage is missing or did nothing."""
    stages = {m.name: m for m in measurements if m.suite == STAGES_SUITE}
    if not set(HOST_STAGES) <= set(stages):
        return None
    facts = Facts(**stages["batch"].settings["facts"])
    rates = {name: stages[name].median for name in STAGES if name in stages}
    if not facts.fits_memory and COLD_STORAGE in stages:
        rates["storage"] = stages[COLD_STORAGE].median  # no epoch finds its bytes in memory
    return find_bottleneck(rates, facts) if all(rates.values()) else None


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


def find_bottleneck(rates: Mapping[str, float], facts: Facts) -> Bottleneck:
    """Name the bottleneck.

    Args:
      rates: stage name to images/s; needs every host stage, and copy and step where they were measured.
      facts: of the images and the machine.
    """
    limits = {"storage": rates["storage"], "host": rates["batch"]}
    limits |= {stage: rates[stage] for stage in ("copy", "step") if stage in rates}
    lowest, second, *_ = sorted(limits, key=lambda name: limits[name])
    pace = limits[lowest]
    if facts.step_on_host and "step" in limits:
        pace = 1 / (1 / limits["host"] + 1 / limits["step"])
    reason = ", ".join(f"{name} {rate_text(limits[name])}" for name in sorted(limits, key=lambda n: limits[n]))
    reason += " images/s"
    if limits[second] < pace * (1 + BALANCED) and not facts.step_on_host:
        return Bottleneck("", pace, (), f"{lowest} and {second} are within 10 %: {reason}")
    if lowest == "host":
        seconds = stage_seconds(rates)
        stage = max(("decode", "augment"), key=lambda name: seconds[name])
        share = seconds[stage] / sum(seconds.values())
        advice = _host_advice(stage, seconds, facts, limits[second] / limits["host"])
        return Bottleneck(stage, pace, advice, f"{stage} takes {share:.0%} of the host's time; {reason}")
    if lowest == "storage" and facts.area:
        smaller = Advice(f"--size {facts.smaller_size}", 0.0, input_factor=1 / facts.area)  # bytes go with the area
        return Bottleneck("storage", pace, _limited([smaller], limits[second] / pace), reason)
    return Bottleneck(lowest, pace, (), reason)


def _host_advice(stage: str, seconds: Mapping[str, float], facts: Facts, headroom: float) -> tuple[Advice, ...]:
    """What makes the host faster, where the next limit allows `headroom` times the present rate."""
    total, decode = sum(seconds.values()), seconds["decode"]
    more = max(math.ceil(facts.cores * headroom) - facts.cores, 1)
    # Linear in cores: the host stages share nothing but memory.
    cores = f"{more} more core{'s' if more > 1 else ''}"
    advice = [Advice(cores, 0.0, input_factor=(facts.cores + more) / facts.cores)]
    if stage == "decode" and facts.encoding != "raw":
        if facts.area:
            faster = total / (total - decode * (1 - facts.area))
            advice.append(Advice(f"--size {facts.smaller_size}", 0.0, input_factor=faster))
        growth = 3 * facts.stored_pixels / facts.image_bytes
        # Without decoding, what is left also reads more bytes, at the storage stage's rate a byte.
        faster = total / (total - decode + seconds["storage"] * (growth - 1))
        advice.append(Advice("--encoding raw", 0.0, f"{growth:.1f}x the bytes", faster))
    return _limited(advice, headroom)


def _limited(advice: Sequence[Advice], headroom: float) -> tuple[Advice, ...]:
    """With the factors that the next limit allows; those below 5 % are left out: noise is larger."""
    limited = (replace(item, factor=min(item.input_factor, headroom)) for item in advice)
    return tuple(item for item in limited if item.factor > 1 + BALANCED / 2)


def cores_for(
    gpus: Sequence[int], *, gpu_images_per_second: float, images_per_second_per_core: float
) -> dict[int, int]:
    """Host cores that so many GPUs need, at the measured rate a core (above 0)."""
    return {n: math.ceil(n * gpu_images_per_second / images_per_second_per_core) for n in gpus}


def cost_per_million(images_per_second: float, price_per_hour: float) -> float:
    """What a million images cost, in the price's currency."""
    return price_per_hour * 1_000_000 / images_per_second / 3600


def scaling_forecast(
    replicas: Sequence[int], *, step_seconds: float, gradient_bytes: float, bytes_per_second: float
) -> dict[int, float]:
    """Predicted efficiency (1.0 = linear) of synchronous training on n replicas.

    A ring all-reduce moves 2 (n-1)/n of the gradients over each link (Patarasuk and Yuan, 2009). No overlap
    with the backward pass is assumed, so this is the pessimistic end.
    """
    return {n: step_seconds / (step_seconds + 2 * (n - 1) / n * gradient_bytes / bytes_per_second) for n in replicas}
