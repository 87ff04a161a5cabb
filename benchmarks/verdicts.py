"""Verdicts put to the test: pipelines whose bottleneck is known are run, measured and judged; prints who was mistaken.

    make verdicts        or        python -m shardline.benchmarks.verdicts [--repeats 5] [--seconds 0.5]

The stages are simulated: processes burn CPU time or sleep, so many microseconds an image, into a buffer of batches that
a step takes from. What measures, and what judges, is what shardline-benchmark uses.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from multiprocessing.synchronize import Semaphore

from shardline.benchmarks.bottleneck import STAGES_SUITE, Bottleneck, Facts, bottleneck_of
from shardline.benchmarks.measure import interleave, ratio
from shardline.benchmarks.processes import Rate, repeat_for, timed
from shardline.benchmarks.verdict import HOST_STAGES, TAKEN, Cost
from shardline.pipeline import cli as command_line
from shardline.pipeline.errors import Failure
from shardline.pipeline.machine import available_cores
from shardline.pipeline.options import check_options, option

BATCH = 16  # images
USUAL = {"order": 6.0, "storage": 10.0, "records": 20.0, "parse": 15.0, "decode": 120.0, "augment": 60.0, "batch": 20.0}
_WITHOUT = "without the stage"


@dataclass(frozen=True)
class Scenario:
    """One pipeline; the costs are microseconds an image, those of the host's stages of one thread.

    Attributes:
      words: verdicts that are right.
      cpu, waiting: of some host stages, in place of the usual.
      step, step_cpu: sleep and CPU time of the step: that of an accelerator, and that of a step on the host's cores.
      neighbors: processes that burn CPU time beside it.
    """

    name: str
    words: tuple[str, ...]
    cpu: Mapping[str, float] = field(default_factory=dict)
    waiting: Mapping[str, float] = field(default_factory=dict)
    step: float = 10.0
    step_cpu: float = 0.0
    neighbors: int = 0

    def cost(self, last: str, without: str = "") -> Cost:
        """Of an image in the host's stages up to `last`."""
        stages = [stage for stage in HOST_STAGES[: HOST_STAGES.index(last) + 1] if stage != without]
        return Cost(sum((USUAL | dict(self.cpu))[s] for s in stages), sum(self.waiting.get(s, 0.0) for s in stages))


def scenarios() -> list[Scenario]:
    """Every stage as the limit, ties, slow reads, steps on a device and on the host, and neighbors."""
    half = sum(USUAL.values()) / available_cores()
    return [
        *(Scenario(f"heavy {s}", (f"{s}-bound",), {s: 400.0}) for s in HOST_STAGES if s != "storage"),
        Scenario("usual photographs", ("decode-bound",)),
        Scenario("raw pixels", ("augment-bound",), {"decode": 5.0}),
        Scenario("RandAugment", ("augment-bound",), {"augment": 500.0}),
        Scenario("large images", ("decode-bound",), {"decode": 2_000.0}),
        Scenario("2 ms a read", ("storage-bound",), waiting={"storage": 2_000.0}),
        Scenario("slow disk", ("storage-bound",), waiting={"storage": 600.0, "records": 100.0}),
        Scenario("slow step", ("step-bound",), step=4 * half),
        Scenario("step on the host", ("step-bound",), step=0.0, step_cpu=1_500.0),
        Scenario("input on the step's cores", ("decode-bound",), {"decode": 900.0}, step=0.0, step_cpu=30.0),
        Scenario("step as fast as the input", ("balanced",), step=half),
        Scenario("decode as dear as augment", ("tie: decode or augment", "tie: augment or decode"), {"augment": 120.0}),
        Scenario("a neighbor on every core", (TAKEN, "cannot tell"), neighbors=available_cores()),
    ]


@dataclass(frozen=True)
class VerdictsConfig:
    """How thoroughly the scenarios are measured."""

    repeats: int = option(5, "turns that count, after one warmup turn", low=1)
    seconds: float = option(0.5, "duration of one run of a stage, in seconds", low=0.01)

    def __post_init__(self) -> None:
        check_options(self)


def measure(scenario: Scenario, config: VerdictsConfig) -> tuple[Bottleneck, tuple[float, float, float]]:
    """The verdict, and median, least and largest speed-up when the stage that limits is left out."""
    cores = available_cores()
    facts = Facts(cores, 30_000.0, 90_000.0, step_on_host=scenario.step_cpu > 0)
    step = Cost(scenario.step_cpu, scenario.step)
    stage = scenario.words[0].removesuffix("-bound")
    run = partial(run_pipeline, threads=cores, seconds=config.seconds)
    runs: dict[str, Callable[[], Rate]] = {s: partial(run, scenario.cost(s), Cost(0.0)) for s in HOST_STAGES}
    runs["step"] = partial(step_alone, step, config.seconds)
    runs["end_to_end"] = partial(run, scenario.cost("batch"), step)
    runs[_WITHOUT] = partial(run, scenario.cost("batch", without=stage), step)
    with neighbors(scenario.neighbors):
        rows = interleave(
            STAGES_SUITE, runs, repeats=config.repeats, reference="batch", settings={"facts": asdict(facts)}
        )
    by_name = {row.name: row for row in rows}
    found = bottleneck_of([row for row in rows if row.name != _WITHOUT])
    assert found
    return found, ratio(by_name[_WITHOUT], by_name["end_to_end"])


def work(cost: Cost) -> None:
    """A batch: burn CPU time, then sleep."""
    until = time.thread_time() + cost.cpu * BATCH / 1e6
    while time.thread_time() < until:
        pass
    if cost.waiting:
        time.sleep(cost.waiting * BATCH / 1e6)


def step_alone(step: Cost, seconds: float) -> Rate:
    """Images a second of a step that never waits."""

    def one() -> float:
        work(step)
        return BATCH

    return timed(lambda: repeat_for(seconds, one))


def run_pipeline(host: Cost, step: Cost, *, threads: int, seconds: float) -> Rate:
    """Images a second of processes that make batches and a step that takes them, once it runs evenly."""
    context = multiprocessing.get_context("fork")
    free, ready = context.Semaphore(2 * threads), context.Semaphore(0)
    makers = [context.Process(target=_make, args=(host, free, ready), daemon=True) for _ in range(threads)]
    waited = 0.0

    def one() -> float:
        nonlocal waited
        began = time.perf_counter()
        ready.acquire()
        waited += time.perf_counter() - began
        free.release()
        work(step)
        return BATCH

    with _running(makers):
        for _ in range(2 * threads):
            one()
        waited, began = 0.0, time.perf_counter()
        rate = timed(lambda: repeat_for(seconds, one))
        return rate._replace(waiting=waited / (time.perf_counter() - began))


@contextlib.contextmanager
def neighbors(count: int) -> Iterator[None]:
    """Processes that burn CPU time within the context."""
    context = multiprocessing.get_context("fork")
    with _running([context.Process(target=_burn, daemon=True) for _ in range(count)]):
        yield


@contextlib.contextmanager
def _running(processes: list[multiprocessing.context.ForkProcess]) -> Iterator[None]:
    for process in processes:
        process.start()
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.join()


def _make(cost: Cost, free: Semaphore, ready: Semaphore) -> None:
    while True:
        free.acquire()
        work(cost)
        ready.release()


def _burn() -> None:
    while True:
        work(Cost(1_000.0))


def main(config: VerdictsConfig) -> None:
    """The command: run all scenarios, print a line for each and what was said in place of what."""
    said, within = Counter[tuple[str, str]](), []
    wrong = []
    for scenario in scenarios():
        found, (gain, low, high) = measure(scenario, config)
        right = found.word in scenario.words
        said[scenario.words[0], found.word] += 1
        if found.verdict.confident and not right and found.word != TAKEN:  # of the machine, not of the stages
            wrong.append(f"{scenario.name}: {found.word}")
        text = ""
        if right and found.verdict.factor:
            least, most = found.verdict.factor
            within.append(least <= high and low <= most)
            text = f"; without it {least:.2f}x to {most:.2f}x predicted, {gain:.2f}x measured"
        print(f"{'right' if right else 'NOT':5} {scenario.name}: {found.word}{text}")
        print(f"      {'; '.join(found.verdict.reasons)}", file=sys.stderr)
    print("\nexpected -> said")
    for (expected, word), count in sorted(said.items()):
        print(f"{count:3} {expected} -> {word}")
    print(f"factors within the predicted range: {sum(within)} of {len(within)}")
    if wrong:
        raise Failure(f"wrong words said with confidence: {'; '.join(wrong)}")


def cli() -> None:
    """Run this module as a command."""
    command_line.run(main, VerdictsConfig, __doc__)


if __name__ == "__main__":
    cli()
