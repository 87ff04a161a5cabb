"""The verdict on measured stages as one sentence, with what would help by how much. Pure arithmetic.

The host's stages run on the same cores one after another, so a stage's cost is what the pipeline cut after it costs
more than the pipeline cut before it, taken within each turn: costs add, rates do not. `verdict.py` decides.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from shardline.benchmarks.measure import CONTROL, Measurement, comparable, rate_text, ratio
from shardline.benchmarks.verdict import (
    HOST_STAGES,
    Cores,
    Cost,
    Strain,
    Turn,
    Verdict,
    input_microseconds,
    judge,
    noise,
    pace,
    typical_turn,
)

# What measurements are filed under.
STAGES_SUITE, WHAT_IF_SUITE, VALIDATION_SUITE, SCALING_SUITE = "stages", "what-ifs", "validation", "scaling"
SIMULATED_SUITE = "simulated GPUs"
UNCHANGED = "unchanged"  # the reference of what-ifs and validations
STAGES = (*HOST_STAGES, "copy", "step", "end_to_end")
"""The host's stages are cumulative: each is the pipeline cut after that stage."""
STAGE_TEXT = {
    "order": "which record comes next, and the random numbers of its augmentation",
    "storage": "read each record's bytes in training's order",
    "records": "read each record, checksums verified",
    "parse": "find image and label in it",
    "decode": "decode the part of the image that training crops",
    "augment": "random resized crop, flip and what else the options ask for",
    "batch": "uint8 batches out of tf.data",
    "copy": "batches to the device",
    "step": "training step on batches in memory",
    "end_to_end": "training step on real input",
}
COLD_STORAGE, COLD_AUGMENT = COLD = ("storage (cold)", "augment (cold)")  # after the page cache was dropped
SEQUENTIAL = "storage (sequential)"  # a megabyte at a time, in stored order, by one process
LEAST = 1.05  # predicted factors below it are not worth a word: noise is larger
MOST_KEPT = 0.1  # of the pages: a stage that finds more of them in memory is no cold one
COLD_SECONDS = 1.0  # a cold pass shorter than this says little
PRICES = {  # of the what-ifs, by flag
    "cache": "keeps the decoded images in memory",
    "global_batch_size": "changes the recipe",
    "shuffle_block_size": "shuffles blocks of neighbors",
    "augment_on": "gives the work to the device",
}


@dataclass(frozen=True)
class Facts:
    """What the arithmetic needs to know beside the rates.

    Attributes:
      cores: whole CPU cores the host stages had.
      image_bytes: mean stored record, bytes.
      stored_pixels: mean stored image, pixels.
      step_on_host: the training step ran on the same cores as the input (no accelerator).
      encoding: how the images are stored.
      stored_size: short side of the stored images, median.
      smaller_sizes: sensible values of `--size` below it.
      smaller_size: the one that earlier reports had.
      resize: what `--size` set when they were stored.
      fits_memory: whether the page cache can hold the split.
      allowed_cores: CPU seconds a second, by affinity and quota; 0: `cores`.
      visible_cores: by affinity alone; 0: `cores`.
      threads: processes that shared the host stages; 0: `cores`.
      records: of the split; 0: not known.
    """

    cores: int
    image_bytes: float
    stored_pixels: float
    step_on_host: bool
    encoding: str = "jpeg"
    stored_size: int | None = None
    smaller_size: int | None = None
    smaller_sizes: Sequence[int] = ()
    resize: str = "short"
    fits_memory: bool = True
    allowed_cores: float = 0.0
    visible_cores: int = 0
    threads: int = 0
    records: int = 0

    @property
    def smaller(self) -> dict[str, float]:
        """Flags that store smaller images, and the share of the pixels that these have."""
        sizes = self.smaller_sizes or ([self.smaller_size] if self.smaller_size else [])
        flags = "" if self.resize in ("short", "squash", "center_crop") else "--resize short "
        stored = self.stored_size or 0
        return {f"{flags}--size {size}": (size / stored) ** 2 for size in sizes if size < stored}

    @property
    def limits(self) -> Cores:
        """The cores, for the verdict."""
        return Cores(self.allowed_cores or self.cores, self.visible_cores or self.cores, self.step_on_host)


@dataclass(frozen=True)
class Advice:
    """One change, the factor it is predicted to bring, and what it brought where it was tried.

    Attributes:
      change: a flag, as a person would type it.
      factor: predicted rate / present rate, end to end.
      price: what it costs, such as "6.8x the bytes".
      input_factor: predicted factor of the input alone, whatever limits training: what a validation measures; 0: there
        was no prediction.
      error: relative, of the factor.
      measured: factor of the input alone, under this flag or on a sample that was converted so; None: not tried.
      beaten: the measured factor is not larger than that of the same thing unchanged, a second time.
    """

    change: str
    factor: float
    price: str = ""
    input_factor: float = 0.0
    error: float = 0.0
    measured: float | None = None
    beaten: bool = False

    def __str__(self) -> str:
        price = f"; {self.price}" if self.price else ""
        if not self.input_factor:
            return f"{self.change} (measured {self.measured:.1f}x for the input alone{price})"
        low, high = self.factor / (1 + self.error), self.factor * (1 + self.error)
        predicted = f"predicted {low:.1f}x" + (f" to {high:.1f}x" if f"{low:.1f}" != f"{high:.1f}" else "")
        if self.measured is None:
            return f"{self.change} ({predicted}{price}; not tried)"
        if self.beaten:
            return f"{self.change} ({predicted}, measured {self.measured:.1f}x: withdrawn)"
        return f"{self.change} ({predicted}, measured {self.measured:.1f}x for the input alone{price})"


@dataclass(frozen=True)
class Bottleneck:
    """The verdict, the one on the first epoch where the page cache was empty, and the advice, most helpful first."""

    verdict: Verdict
    costs: Mapping[str, Cost]  # of each host stage by itself, medians over the turns
    advice: tuple[Advice, ...] = ()
    cold: Verdict | None = None
    notes: tuple[str, ...] = ()

    @property
    def word(self) -> str:
        """See `Verdict.word`."""
        return self.verdict.word

    @property
    def images_per_second(self) -> float:
        """The predicted pace."""
        return self.verdict.images_per_second

    @property
    def headline(self) -> str:
        """The verdict's word, or two where the first epoch is another matter, and the advice."""
        word = self.word
        if (
            self.cold
            and self.cold.stages
            and (self.cold.word != word or self.cold.images_per_second < self.images_per_second / LEAST)
        ):
            first, later = (f"{v.word}, {rate_text(v.images_per_second)} images/s" for v in (self.cold, self.verdict))
            word = f"epoch 1: {first}; later: {later}"
        advice = f": {', or '.join(map(str, self.advice))}" if self.advice else ""
        return f"{word}{advice}"

    @property
    def reasons(self) -> tuple[str, ...]:
        """What the verdict rests on, and what it does not tell, one clause each."""
        return *self.verdict.reasons, *self.notes

    def __str__(self) -> str:
        return f"{self.headline} — {'; '.join(self.reasons)}"


def bottleneck_of(measurements: Sequence[Measurement]) -> Bottleneck | None:
    """The bottleneck that measured stages show; None where a host stage is missing or some stage did nothing."""
    stages = {m.name: m for m in measurements if m.suite == STAGES_SUITE}
    if not set(HOST_STAGES) <= set(stages) or not all(all(m.repeats) for m in stages.values()):
        return None
    facts = Facts(**stages["batch"].settings["facts"])
    turns, notes = turns_of(stages, facts), []
    cold = turns_of(stages, facts, cold=True) if COLD_STORAGE in stages else None
    if cold and facts.records and facts.records / stages[COLD_STORAGE].median < COLD_SECONDS:
        notes.append(f"the disk gave the whole split in less than {COLD_SECONDS:g} s, too little to tell of epoch 1")
    if cold and (doubt := _warm_text(stages[COLD_STORAGE].settings.get("page_cache_kept", ()))):
        notes, cold = [doubt], None
    if cold and not facts.fits_memory:
        turns, cold = cold, None  # no epoch finds its bytes in memory
    verdict = judge(turns, facts.limits)
    if {"decode", "augment", "batch", "records", "parse", "order"} & set(verdict.stages):
        notes.append(_cores_text(measurements))
    advice = [_tried(item, measurements) for item in find_advice(verdict, turns, facts)]
    advice += what_if_advice(verdict, turns, facts, measurements)
    return Bottleneck(
        verdict,
        typical_turn(turns).host,
        tuple(sorted(advice, key=lambda item: (item.beaten, -item.factor))),
        judge(cold, facts.limits) if cold else None,
        tuple(notes),
    )


def turns_of(stages: Mapping[str, Measurement], facts: Facts, *, cold: bool = False) -> list[Turn]:
    """What the rows of the suite say, turn by turn. `cold`: the reads of an epoch that finds nothing in memory."""
    threads = facts.threads or facts.cores

    def total(name: str, number: int) -> Cost:
        m = stages[name]
        wall = threads * 1e6 / m.repeats[number]
        cpu = m.cpu_seconds[number] * 1e6 if m.cpu_seconds else wall
        return Cost(cpu, wall - cpu)

    def more(name: str, before: str, number: int) -> Cost:
        cut, earlier = total(name, number), total(before, number) if before else Cost(0)
        return Cost(cut.cpu - earlier.cpu, cut.waiting - earlier.waiting)

    def microseconds(name: str, number: int) -> float | None:
        return 1e6 / stages[name].repeats[number] if name in stages else None

    def turn(number: int) -> Turn:
        pairs = zip(HOST_STAGES, ("", *HOST_STAGES), strict=False)
        host = {stage: more(stage, before, number) for stage, before in pairs}
        if cold:
            host["storage"] = more(COLD_STORAGE, "order", number)
        batch, step, trained = stages["batch"], microseconds("step", number), microseconds("end_to_end", number)
        waiting = None
        if step and trained and not cold:
            # What the step overlaps is no waiting: a device works on while the host fetches its next batch.
            waiting = max(1 - step / trained, 0.0)
            if stages["end_to_end"].waiting:
                waiting = min(waiting, stages["end_to_end"].waiting[number])
        strains = batch.settings.get("strain", ())
        return Turn(
            host,
            threads,
            busy_cores=sum(cost.cpu for cost in host.values()) * threads
            / sum(cost.cpu + cost.waiting for cost in host.values()),
            delayed_cores=batch.delay_seconds[number] * batch.repeats[number] if batch.delay_seconds else None,
            copy=microseconds("copy", number),
            step=step,
            step_cpu=stages["step"].cpu_seconds[number] * 1e6 if step and stages["step"].cpu_seconds else 0.0,
            end_to_end=None if cold else trained,
            waiting_share=waiting,
            control=stages[CONTROL].repeats[number] / batch.repeats[number] if CONTROL in stages else 1.0,
            strain=Strain(*strains[number]) if strains else Strain(),
        )  # fmt: skip

    return [turn(number) for number in range(len(stages["batch"].repeats))]


def find_advice(verdict: Verdict, turns: Sequence[Turn], facts: Facts) -> tuple[Advice, ...]:
    """What storing the images otherwise would bring where decoding or storage limits; nothing on a doubtful verdict."""
    if not verdict.confident:
        return ()
    turn = typical_turn(turns)
    decode, storage, (stage,) = turn.host["decode"], turn.host["storage"], verdict.stages

    def advice(change: str, costs: Mapping[str, Cost], price: str = "") -> Advice:
        changed = replace(turn, host={**turn.host, **costs})
        factor = pace(turn, facts.limits) / pace(changed, facts.limits)
        alone = input_microseconds(turn, facts.limits) / input_microseconds(changed, facts.limits)
        return Advice(change, factor, price, alone, noise(turns))

    found = []
    if stage in ("decode", "storage"):  # pixels and bytes go with the area
        for flags, area in facts.smaller.items():
            found.append(advice(flags, {"decode": _times(decode, area), "storage": _times(storage, area)}))
    if stage == "decode" and facts.encoding != "raw":
        growth = 3 * facts.stored_pixels / facts.image_bytes
        # Without decoding, what is left also reads more bytes, at the storage stage's rate a byte.
        costs = {"decode": Cost(0), "storage": _times(storage, growth)}
        found.append(advice("--encoding raw", costs, f"{growth:.1f}x the bytes"))
    return tuple(item for item in found if item.factor > LEAST)


def what_if_advice(
    verdict: Verdict, turns: Sequence[Turn], facts: Facts, measurements: Sequence[Measurement]
) -> list[Advice]:
    """The flags that made the input faster than the control, where it is the input that limits."""
    rows = {m.name: m for m in measurements if m.suite == WHAT_IF_SUITE}
    if not verdict.limits_input or not {UNCHANGED, CONTROL} <= set(rows):
        return []
    reference, turn, found = rows[UNCHANGED], typical_turn(turns), []
    stray = max(abs(side - 1) for side in ratio(rows[CONTROL], reference))
    for name, row in rows.items():
        measured = ratio(row, reference)[0]
        if name == CONTROL or measured <= max(1 + stray, LEAST):
            continue
        changed = replace(turn, host={stage: _times(cost, 1 / measured) for stage, cost in turn.host.items()})
        factor = pace(turn, facts.limits) / pace(changed, facts.limits)
        price = PRICES.get(name.split()[0].removeprefix("--"), "")
        found.append(Advice(name, factor, price, error=stray, measured=measured))
    return found


def _tried(advice: Advice, measurements: Sequence[Measurement]) -> Advice:
    """With what was measured, where the change was carried out."""
    rows = {m.name: m for m in measurements if m.suite == VALIDATION_SUITE}
    row = rows.get(advice.change)
    reference = rows.get(row.settings.get("reference", "")) if row else None
    if row is None or reference is None or not comparable(row, reference):
        return advice
    measured = ratio(row, reference)[0]
    control = rows.get(CONTROL)
    stray = max(abs(side - 1) for side in ratio(control, reference)) if control else 0.0
    return replace(advice, measured=measured, beaten=measured <= 1 + stray)


def _cores_text(measurements: Sequence[Measurement]) -> str:
    """The measured curve of cores: nothing is said of more than there are."""
    rows = [m for m in measurements if m.suite == SCALING_SUITE and m.name != CONTROL]
    if len(rows) < 2 or not all(comparable(m, rows[0]) for m in rows):
        return "what more cores would bring was not measured"
    curve = ", ".join(f"{m.name.rpartition(', ')[2]} {ratio(m, rows[0])[0]:.1f}x" for m in rows)
    return f"with {curve}; more cores were not measured"


def _warm_text(kept: Sequence[float]) -> str:
    """Why cold stages were not cold: what the page cache kept when told to drop the shards; empty if nothing much."""
    if min(kept, default=0.0) < 0:
        return "epoch 1 is not known: this file system does not tell whether it dropped its page cache"
    if max(kept, default=0.0) > MOST_KEPT:
        return f"epoch 1 is not known: the page cache kept {max(kept):.0%} of the shards"
    return ""


def _times(cost: Cost, factor: float) -> Cost:
    return Cost(cost.cpu * factor, cost.waiting * factor)


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
