"""Which stage limits training, decided from the costs that each turn measured. Pure arithmetic.

Two questions. Is the input the limit? That is the share of the end-to-end run in which the step waits for its batch,
with the bounds of TensorFlow's profiler (https://www.tensorflow.org/guide/data_performance_analysis): below 5% it is
not, below 20% moderately. And if it is, what limits the input? The largest cost of an image: the CPU time of a
stage, or the time in which reads wait. Where threads were ready and others had the CPUs, as the kernel counts, it is
that. A step that hardly waits for an input of its own pace is in balance with it.

CPU time survives a busy machine, waiting does not; so the control decides whether a verdict is given at all, and the
shares of CPU time are given either way.
"""

from __future__ import annotations

import random
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

HOST_STAGES = ("order", "storage", "records", "parse", "decode", "augment", "batch")
READS = ("storage", "records")  # the stages whose waiting is waiting for reads
TAKEN = "CPU taken away"
QUOTA = "CPU quota"
NOT_LIMIT, MODERATE = 0.05, 0.2  # waiting shares of TensorFlow's profiler
BUSY = 0.8  # of the allowed cores: below it, the CPU is not what limits
SURE = 0.9  # share of the resamples that a stage must win to be named
MARGIN = 0.05  # two costs closer than this are equal
MAX_CONTROL = 0.15  # a control that strays further makes every comparison worthless
MAX_STEAL, MAX_GROWTH, MAX_THROTTLED = 0.05, 0.15, 0.05  # shares of a turn's wall time
MAX_PACE_ERROR = 0.15
_RESAMPLES = 200


@dataclass(frozen=True)
class Cost:
    """Microseconds an image costs one thread: of CPU time, and of waiting (wall clock − CPU)."""

    cpu: float
    waiting: float = 0.0


@dataclass(frozen=True)
class Strain:
    """What the machine did to us in a turn, as shares of its wall time.

    Attributes:
      pressure: some task waited for a CPU (/proc/pressure/cpu); the level is partly our own, its growth is not.
      steal: CPU time that the hypervisor gave to others, of the allowed cores.
      throttled: the control group's quota had stopped us.
    """

    pressure: float = 0.0
    steal: float = 0.0
    throttled: float = 0.0


@dataclass(frozen=True)
class Turn:
    """What one turn measured, per image.

    Attributes:
      host: thread time of each host stage by itself: differences of cumulative costs within the turn.
      threads: how many threads or processes shared the host stages.
      busy_cores: CPU seconds that the whole input spent a second.
      delayed_cores: seconds a second in which its threads were ready and had no CPU; None: the kernel does not tell.
      copy, step, end_to_end: microseconds on the wall; None where not measured.
      step_cpu: microseconds of CPU time in the step.
      waiting_share: of the end-to-end run, in which the step waited for its batch.
      control: the input measured twice: ratio of the two rates.
    """

    host: Mapping[str, Cost]
    threads: int
    busy_cores: float
    copy: float | None = None
    step: float | None = None
    step_cpu: float = 0.0
    end_to_end: float | None = None
    waiting_share: float | None = None
    control: float = 1.0
    strain: Strain = Strain()
    delayed_cores: float | None = None


@dataclass(frozen=True)
class Cores:
    """What may be used, and whether the step uses it too."""

    allowed: float  # affinity or quota, whichever is less
    visible: int
    step_on_host: bool = False


@dataclass(frozen=True)
class Verdict:
    """What limits training; `str()` of it is what a person reads.

    Attributes:
      word: `X-bound`, `tie: X or Y`, `balanced`, TAKEN, QUOTA with its size, or `cannot tell`.
      stages: the stages that the word is about, the likeliest first.
      input_limit: whether the input is the limit: no, moderately, yes, or "not measured".
      factor: lowest and highest rate to expect, as a multiple, if the named stage cost nothing; None without one.
      cpu_shares: share of the input's CPU time by stage.
      microseconds: predicted for an image, and measured end to end (None where it was not).
      reasons: what was seen, one clause each.
      explained: predicted and measured pace agree.
    """

    word: str
    stages: tuple[str, ...]
    input_limit: str
    factor: tuple[float, float] | None
    cpu_shares: Mapping[str, float]
    microseconds: tuple[float, float | None]
    reasons: tuple[str, ...]
    explained: bool = True

    @property
    def confident(self) -> bool:
        """One stage is named, and the stages explain the pace."""
        return len(self.stages) == 1 and self.explained

    @property
    def limits_input(self) -> bool:
        """The stages that are named, or cannot be told apart, are the input's."""
        return bool(self.stages) and not {"copy", "step"} & set(self.stages)

    @property
    def images_per_second(self) -> float:
        """The predicted pace."""
        return 1e6 / self.microseconds[0]

    def __str__(self) -> str:
        return f"{self.word} — {'; '.join(self.reasons)}"


def judge(turns: Sequence[Turn], cores: Cores) -> Verdict:
    """Decide from at least one turn.

    A stage is named if it wins in SURE of the resamples of the turns; the winner of a resample is the largest of the
    medians of its costs.
    """
    typical = typical_turn(turns)
    draw = random.Random(0)  # the same turns, the same verdict
    samples = [typical_turn(draw.choices(turns, k=len(turns))) for _ in range(_RESAMPLES)]
    margin = max(MARGIN, noise(turns))
    wins = Counter(winners(sample, cores, margin) for sample in samples)
    clear = {names[0]: count for names, count in wins.items() if len(names) == 1}
    best = max(clear, key=lambda name: clear[name], default="")
    if clear.get(best, 0) >= SURE * _RESAMPLES:
        stages: tuple[str, ...] = (best,)
    else:
        seen = Counter[str]()
        for names, count in wins.items():
            seen.update(dict.fromkeys(names, count))
        stages = tuple(name for name, count in seen.most_common() if count > (1 - SURE) * _RESAMPLES)
    busy = "" if throttled(typical) else _busy_machine(turns)
    word = "cannot tell" if busy else _word(stages, typical, cores)
    predicted = pace(typical, cores)
    explained = typical.end_to_end is None or abs(predicted / typical.end_to_end - 1) <= MAX_PACE_ERROR
    return Verdict(
        word,
        () if busy else stages,
        _input_limit(typical),
        None
        if busy or len(stages) > 1 or word.startswith((QUOTA, TAKEN))
        else _factor(stages[0], samples, cores, noise(turns)),
        cpu_shares(typical),
        (predicted, typical.end_to_end),
        tuple(_reasons(busy, typical, cores, predicted, explained)),
        explained,
    )


def winners(turn: Turn, cores: Cores, margin: float = MARGIN) -> tuple[str, ...]:
    """The stage that limits in a turn, or those that cannot be told apart there.

    Args:
      margin: the paces of input, copy and step that lie closer are equal; costs within the input are paired
        differences, for which MARGIN will do.
    """
    waiting, costs, pace_alone = turn.waiting_share, host_costs(turn, cores), input_microseconds(turn, cores)
    if waiting is not None and turn.step and waiting < NOT_LIMIT:
        balanced = not cores.step_on_host and 1 / (1 + margin) <= pace_alone / turn.step <= 1 + margin
        return ("step", *_largest(costs)) if balanced else ("step",)
    step = turn.step if waiting is None or waiting < MODERATE else None  # a step that waits so long is not the limit
    if cores.step_on_host and step:  # they take turns on the same cores: costs add, and the largest limits
        return _largest(costs | {"step": step * turn.threads})
    limits = {"input": pace_alone, "copy": turn.copy or 0.0, "step": step or 0.0}
    largest = _largest(limits, margin)
    return tuple(stage for limit in largest for stage in (_largest(costs) if limit == "input" else (limit,)))


def host_costs(turn: Turn, cores: Cores) -> dict[str, float]:
    """What may limit the input, in microseconds of a thread an image.

    Batching waits for its own serial part, so its waiting is its cost; that of the other stages is their reads', or
    counts only where cores were not busy: then it is CPU time that others took or, where the kernel knows that nobody
    did, something that the stage itself waits for.
    """
    if taken_away(turn, cores):
        return {TAKEN: sum(cost.waiting for cost in turn.host.values())}
    costs = {stage: cost.cpu for stage, cost in turn.host.items() if stage != "storage"}
    if "records" in costs:
        costs["records"] += turn.host["storage"].cpu if "storage" in turn.host else 0.0
    costs["storage"] = sum(turn.host[stage].waiting for stage in READS if stage in turn.host)
    if "batch" in costs:
        costs["batch"] += turn.host["batch"].waiting
    if idle(turn, cores):
        waits = {stage: cost.waiting for stage, cost in turn.host.items() if stage not in (*READS, "batch")}
        if turn.delayed_cores is None:
            costs[TAKEN] = sum(waits.values())
        else:
            costs |= {stage: costs[stage] + max(wait, 0.0) for stage, wait in waits.items()}
    return costs


def idle(turn: Turn, cores: Cores) -> bool:
    """Cores were left idle that the input was given."""
    return turn.busy_cores < BUSY * min(cores.allowed, turn.threads)


def taken_away(turn: Turn, cores: Cores) -> bool:
    """Most of the CPU time that the input lacked went to others while its threads were ready for it."""
    lacking = min(cores.allowed, turn.threads) - turn.busy_cores
    return idle(turn, cores) and turn.delayed_cores is not None and turn.delayed_cores > lacking / 2


def input_microseconds(turn: Turn, cores: Cores) -> float:
    """An image out of the whole input, on the wall."""
    cpu, waiting = (sum(cost.cpu for cost in turn.host.values()), sum(cost.waiting for cost in turn.host.values()))
    return max((cpu + waiting) / turn.threads, cpu / cores.allowed)


def pace(turn: Turn, cores: Cores) -> float:
    """Predicted microseconds of training on an image: the slowest part, or the CPU time of all that share the CPU."""
    parts = [input_microseconds(turn, cores), turn.copy or 0.0, turn.step or 0.0]
    if cores.step_on_host:
        parts.append((sum(cost.cpu for cost in turn.host.values()) + turn.step_cpu) / cores.allowed)
    return max(parts)


def throttled(turn: Turn) -> bool:
    """The quota of the control group stopped us."""
    return turn.strain.throttled > MAX_THROTTLED


def noise(turns: Sequence[Turn]) -> float:
    """How far the control strays from 1, at most."""
    return max(abs(turn.control - 1) for turn in turns)


def cpu_shares(turn: Turn) -> dict[str, float]:
    """Share of the input's CPU time by stage; a stage that noise made negative has none."""
    costs = {stage: max(cost.cpu, 0.0) for stage, cost in turn.host.items()}
    total = sum(costs.values())
    return {stage: cost / total for stage, cost in costs.items()} if total else {}


def typical_turn(turns: Sequence[Turn]) -> Turn:
    """The median of each figure. Differences were taken within the turns, so drift between them does not matter."""

    def median(name: str) -> float | None:
        known = [value for turn in turns if (value := getattr(turn, name)) is not None]
        return statistics.median(known) if known else None

    def cost(stage: str) -> Cost:
        costs = [turn.host[stage] for turn in turns]
        return Cost(statistics.median(c.cpu for c in costs), statistics.median(c.waiting for c in costs))

    strains = [turn.strain for turn in turns]
    return Turn(
        {stage: cost(stage) for stage in turns[0].host},
        turns[0].threads,
        busy_cores=median("busy_cores") or 0.0,
        copy=median("copy"),
        step=median("step"),
        step_cpu=median("step_cpu") or 0.0,
        end_to_end=median("end_to_end"),
        waiting_share=median("waiting_share"),
        delayed_cores=median("delayed_cores"),
        strain=Strain(
            statistics.median(strain.pressure for strain in strains),
            statistics.median(strain.steal for strain in strains),
            statistics.median(strain.throttled for strain in strains),
        ),
    )


def _largest(costs: Mapping[str, float], margin: float = MARGIN) -> tuple[str, ...]:
    """The names of the largest cost and of those equal to it, largest first."""
    top = max(costs.values())
    return tuple(sorted((n for n in costs if costs[n] * (1 + margin) >= top), key=lambda n: -costs[n]))


def _word(stages: Sequence[str], turn: Turn, cores: Cores) -> str:
    if throttled(turn) and (stages[0] not in ("copy", "step") or cores.step_on_host):
        return f"{QUOTA} {cores.allowed:.1f} of {cores.visible} visible cores"
    if len(stages) == 1:
        return stages[0] if stages[0] == TAKEN else f"{stages[0]}-bound"
    if {"copy", "step"} & set(stages):
        return "balanced"
    return f"tie: {' or '.join(stages)}"


def _busy_machine(turns: Sequence[Turn]) -> str:
    """Why these turns cannot be compared; empty if they can."""
    seen = []
    if noise(turns) > MAX_CONTROL:
        controls = [turn.control for turn in turns]
        span = f"{min(controls):.2f} to {max(controls):.2f}"
        seen.append(f"noise {noise(turns):.0%}: a second measurement of the same thing gave {span} times the first")
    pressures = [turn.strain.pressure for turn in turns]
    if pressures[-1] - pressures[0] > MAX_GROWTH:
        seen.append(
            f"the share of the time in which something waited for a CPU grew from {pressures[0]:.0%} to "
            f"{pressures[-1]:.0%}"
        )
    steal = statistics.median(turn.strain.steal for turn in turns)
    if steal > MAX_STEAL:
        seen.append(f"the hypervisor gave {steal:.0%} of the CPU time to others")
    return f"this machine was busy ({', '.join(seen)}); measure again when it is quiet" if seen else ""


def _input_limit(turn: Turn) -> str:
    waiting = turn.waiting_share
    if waiting is None:
        return "not measured"
    return "no" if waiting < NOT_LIMIT else "moderately" if waiting < MODERATE else "yes"


def _factor(stage: str, samples: Sequence[Turn], cores: Cores, noise: float) -> tuple[float, float] | None:
    """The range of the speed-up without the stage's cost, over the resamples and the control's error."""
    gains = []
    for turn in samples:
        costs = host_costs(turn, cores)
        if stage not in costs:
            return None  # copy and step: nothing here says what would be faster
        spared = costs[stage] / min(turn.threads, cores.allowed)
        without = [input_microseconds(turn, cores) - spared, turn.copy or 0.0, turn.step or 0.0]
        if cores.step_on_host and stage != "storage":
            without.append(pace(turn, cores) - spared)
        gains.append(pace(turn, cores) / max(*without, 1e-3))
    gains.sort()
    low, high = gains[len(gains) // 20], gains[-1 - len(gains) // 20]
    return low / (1 + noise), high * (1 + noise)


def _reasons(busy: str, turn: Turn, cores: Cores, predicted: float, explained: bool) -> list[str]:
    reasons = [busy] if busy else []
    limited = turn.waiting_share is None or turn.waiting_share >= NOT_LIMIT
    if limited and turn.busy_cores < BUSY * cores.allowed:
        ready = (
            f"; other processes used {turn.delayed_cores:.1f} that it was ready for" if taken_away(turn, cores) else ""
        )
        reasons.append(f"the input kept {turn.busy_cores:.1f} of {cores.allowed:.3g} cores busy{ready}")
    if turn.waiting_share is not None:
        limit = {"no": "not the limit", "moderately": "moderately the limit", "yes": "the limit"}[_input_limit(turn)]
        reasons.append(f"the input is {limit}: the step waits for it {turn.waiting_share:.0%} of the time")
    if turn.step and not cores.step_on_host:
        reasons.append(
            f"by itself the input takes {input_microseconds(turn, cores):,.0f} µs an image, "
            f"the step {turn.step:,.0f} µs"
        )
    shares = sorted(cpu_shares(turn).items(), key=lambda item: -item[1])
    listed = ", ".join(f"{stage} {share:.0%}" for stage, share in shares if share >= 0.01)
    reasons.append(f"CPU time of the input: {listed}")
    waits = {stage: cost.waiting for stage, cost in turn.host.items() if cost.waiting >= 1}
    if waits:
        listed = ", ".join(f"{stage} {wait:,.0f} µs" for stage, wait in waits.items())
        reasons.append(f"waiting of a thread for each image: {listed}")
    if not explained and turn.end_to_end is not None:
        reasons.append(
            f"the stages do not explain the pace (predicted {1e6 / predicted:,.0f} images/s, measured "
            f"{1e6 / turn.end_to_end:,.0f} images/s): they do not overlap, or slow each other down"
        )
    return reasons
