"""Verdicts put to the test: pipelines whose bottleneck is known are run, measured and judged; prints who was mistaken.

    make verdicts        or        python -m shardline.benchmarks.verdicts [--repeats 5] [--seconds 0.5] [--only quota]

The stages are simulated: processes burn CPU time or sleep, so many microseconds an image, into a buffer of batches that
a step takes from; one reads a file system of ours whose reads take their time. What measures, and what judges, is what
shardline-benchmark uses. The machine should be idle. A CPU quota and a file system need to be root's.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from functools import cache, partial
from multiprocessing.synchronize import Semaphore
from pathlib import Path

from shardline.benchmarks import slow_disk
from shardline.benchmarks.bottleneck import STAGES_SUITE, Bottleneck, Facts, bottleneck_of
from shardline.benchmarks.measure import interleave, ratio
from shardline.benchmarks.processes import Rate, outsiders, repeat_for, timed, undisturbed
from shardline.benchmarks.verdict import HOST_STAGES, QUOTA, READS, TAKEN, Cost
from shardline.pipeline import cli as command_line
from shardline.pipeline.errors import Failure
from shardline.pipeline.machine import available_cores, cpu_quota
from shardline.pipeline.options import check_options, option
from shardline.pipeline.wording import count

BATCH = 16  # images
USUAL = {"order": 6.0, "storage": 10.0, "records": 20.0, "parse": 15.0, "decode": 120.0, "augment": 60.0, "batch": 20.0}
BLOCK, _BLOCKS = 4096, 1 << 26  # bytes of a read, and places to read
_WITHOUT = "without the stage"
# Stages whose CPU time, and whose waiting, go by the name of one: see verdict.host_costs.
LEFT_OUT: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {"storage": ((), READS), "records": (READS, ())}
_GROUPS, _PERIOD = Path("/sys/fs/cgroup"), 100_000  # where control groups are; microseconds


@dataclass(frozen=True)
class Load(Cost):
    """What an image costs a process: CPU time and sleep in microseconds, and reads of a file.

    Attributes:
      reads: how many, each from a place of its own.
      file: that is read.
    """

    reads: int = 0
    file: str = ""


@dataclass(frozen=True)
class Scenario:
    """One pipeline; the costs are microseconds an image, those of the host's stages of one thread.

    Attributes:
      words: verdicts that are right.
      cpu, waiting: of some host stages, in place of the usual.
      step, step_cpu: sleep and CPU time of the step: that of an accelerator, and that of a step on the host's cores.
      copy: sleep of the copy to the device, which happens beside the step and the host's stages.
      disk: seconds that a read of a file takes, of which an image needs one; 0: none.
      neighbors: processes that burn CPU time beside it.
      quota: cores that a control group allows, while a thread for each visible core wants one; 0: no control group.
    """

    name: str
    words: tuple[str, ...]
    cpu: Mapping[str, float] = field(default_factory=dict)
    waiting: Mapping[str, float] = field(default_factory=dict)
    step: float = 10.0
    step_cpu: float = 0.0
    copy: float = 0.0
    disk: float = 0.0
    neighbors: int = 0
    quota: float = 0.0

    def cost(self, last: str, without: str = "", file: str = "") -> Load:
        """Of an image in the host's stages up to `last`, without what a verdict means by the name of a stage."""
        stages = HOST_STAGES[: HOST_STAGES.index(last) + 1]
        unworked, unwaited = LEFT_OUT.get(without, ((without,), (without,)))
        cpu = sum((USUAL | dict(self.cpu))[stage] for stage in stages if stage not in unworked)
        waits = [stage for stage in stages if stage not in unwaited]
        reads = int(self.disk > 0 and "storage" in waits)
        return Load(cpu, sum(self.waiting.get(stage, 0.0) for stage in waits), reads, file)


def scenarios() -> list[Scenario]:
    """Every stage as the limit, ties, slow reads, steps on a device and on the host, neighbors and a quota."""
    half, visible = sum(USUAL.values()) / available_cores(), len(os.sched_getaffinity(0))
    quota = visible / 8
    return [
        *(Scenario(f"heavy {s}", (f"{s}-bound",), {s: 400.0}) for s in HOST_STAGES if s != "storage"),
        Scenario("usual photographs", ("decode-bound",)),
        Scenario("raw pixels", ("augment-bound",), {"decode": 5.0}),
        Scenario("RandAugment", ("augment-bound",), {"augment": 500.0}),
        Scenario("large images", ("decode-bound",), {"decode": 2_000.0}),
        Scenario("2 ms a read", ("storage-bound",), waiting={"storage": 2_000.0}),
        Scenario("slow disk", ("storage-bound",), waiting={"storage": 600.0, "records": 100.0}),
        Scenario("2 ms a read of a file", ("storage-bound",), disk=2e-3),
        Scenario("8 MB/s", ("storage-bound",), waiting={"storage": 3_600.0}),
        Scenario("slow copy", ("copy-bound",), copy=4 * half),
        Scenario("slow step", ("step-bound",), step=4 * half),
        Scenario("slow step and slower reads", ("storage-bound",), waiting={"storage": 9_000.0}, step=2 * half),
        Scenario("step on the host", ("step-bound",), step=0.0, step_cpu=1_500.0),
        Scenario("input on the step's cores", ("decode-bound",), {"decode": 900.0}, step=0.0, step_cpu=30.0),
        Scenario("step as fast as the input", ("balanced",), step=half),
        Scenario("decode as dear as augment", ("tie: decode or augment", "tie: augment or decode"), {"augment": 120.0}),
        Scenario("a neighbor on every core", (TAKEN, "cannot tell"), neighbors=available_cores()),
        Scenario("a CPU quota", (f"{QUOTA} {quota:.1f} of {visible} visible cores",), quota=quota),
    ]


@dataclass(frozen=True)
class VerdictsConfig:
    """How thoroughly the scenarios are measured."""

    repeats: int = option(5, "turns that count, after one warmup turn", low=1)
    seconds: float = option(0.5, "duration of one run of a stage, in seconds", low=0.01)
    only: str = option("", "measure only scenarios whose name holds this text")

    def __post_init__(self) -> None:
        check_options(self)


def measure(scenario: Scenario, config: VerdictsConfig) -> tuple[Bottleneck, tuple[float, float, float]]:
    """The verdict, and median, least and largest speed-up when the stage that limits is left out."""
    visible = len(os.sched_getaffinity(0))
    step, copy = Cost(scenario.step_cpu, scenario.step), Cost(0.0, scenario.copy)
    stage = scenario.words[0].removesuffix("-bound")
    with quota(scenario.quota), outsiders(scenario.neighbors, _burn), slow_file(scenario.disk) as file:
        cores, allowed = available_cores(), min(cpu_quota() or visible, visible)
        threads = visible if scenario.quota else cores
        facts = Facts(
            cores, 30_000.0, 90_000.0, scenario.step_cpu > 0,
            allowed_cores=allowed, visible_cores=visible, threads=threads,
        )  # fmt: skip
        run = partial(run_pipeline, threads=threads, seconds=config.seconds)
        cost = partial(scenario.cost, file=file)
        runs: dict[str, Callable[[], Rate]] = {s: partial(run, cost(s), Cost(0.0)) for s in HOST_STAGES}
        if scenario.copy:
            runs["copy"] = partial(step_alone, copy, config.seconds)
        runs["step"] = partial(step_alone, step, config.seconds)
        runs["end_to_end"] = partial(run, cost("batch"), step, copy)
        runs[_WITHOUT] = partial(run, cost("batch", without=stage), step, copy)
        rows = interleave(
            STAGES_SUITE, runs, repeats=config.repeats, reference="batch", settings={"facts": asdict(facts)}
        )
    by_name = {row.name: row for row in rows}
    found = bottleneck_of([row for row in rows if row.name != _WITHOUT])
    assert found
    return found, ratio(by_name[_WITHOUT], by_name["end_to_end"])


_late = 0.0  # seconds that this process has slept too long so far
_MOST_LATE = 1e-3  # what a timer is late by; more is a neighbor's doing, and not made good


def work(cost: Cost) -> None:
    """A batch: burn CPU time, sleep, read. A sleep that ends late makes the next one shorter: the mean is right."""
    global _late
    until = time.thread_time() + cost.cpu * BATCH / 1e6
    while time.thread_time() < until:
        pass
    if cost.waiting:
        began = time.perf_counter()
        time.sleep(max(cost.waiting * BATCH / 1e6 - _late, 0.0))
        _late = min(_late + time.perf_counter() - began - cost.waiting * BATCH / 1e6, _MOST_LATE)
    if isinstance(cost, Load) and cost.reads:
        file = _opened(cost.file)
        for _ in range(cost.reads * BATCH):
            os.pread(file, BLOCK, random.randrange(_BLOCKS) * BLOCK)


@cache
def _opened(file: str) -> int:
    return os.open(file, os.O_RDONLY)


@contextlib.contextmanager
def slow_file(seconds: float) -> Iterator[str]:
    """A file each read of which takes so long; no file where that is no time. Raises OSError where none can be had."""
    if not seconds:
        yield ""
        return
    with tempfile.TemporaryDirectory() as source, tempfile.TemporaryDirectory() as folder:
        with Path(source, "file").open("wb") as file:
            file.truncate(_BLOCKS * BLOCK)  # so large that nothing is read twice; it takes no space
        with slow_disk.mounted(Path(source), Path(folder), seconds):
            yield str(Path(folder, "file"))


def step_alone(step: Cost, seconds: float) -> Rate:
    """Images a second of a step that never waits."""

    def one() -> float:
        work(step)
        return BATCH

    return timed(lambda: repeat_for(seconds, one))


def run_pipeline(host: Cost, step: Cost, copy: Cost = Cost(0.0), *, threads: int, seconds: float) -> Rate:
    """Images a second of processes that make batches and a step that takes them, once it runs evenly.

    A copy that costs something has a process of its own between the two.
    """
    context = multiprocessing.get_context("fork")
    free, made, ready = context.Semaphore(2 * threads), context.Semaphore(0), context.Semaphore(0)
    copies = copy != Cost(0.0)
    arguments = (host, free, made if copies else ready)
    makers = [context.Process(target=_make, args=arguments, daemon=True) for _ in range(threads)]
    if copies:
        makers.append(context.Process(target=_make, args=(copy, made, ready), daemon=True))
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
def quota(cores: float) -> Iterator[None]:
    """Within it this process and its children may use so many cores; 0: as before.

    Raises:
      OSError: no control group can be made.
    """
    if not cores:
        yield
        return
    second = (_GROUPS / "cgroup.controllers").exists()  # version 2
    parent = _GROUPS if second else _GROUPS / "cpu"
    group, before = parent / f"shardline-verdicts-{os.getpid()}", _own_group(parent, "" if second else "cpu")
    group.mkdir()
    try:
        if second:
            (group / "cpu.max").write_text(f"{cores * _PERIOD:.0f} {_PERIOD}")
        else:
            (group / "cpu.cfs_period_us").write_text(str(_PERIOD))
            (group / "cpu.cfs_quota_us").write_text(f"{cores * _PERIOD:.0f}")
        (group / "cgroup.procs").write_text(str(os.getpid()))
        yield
    finally:
        (before / "cgroup.procs").write_text(str(os.getpid()))
        group.rmdir()


def _own_group(parent: Path, controller: str) -> Path:
    """The folder of the control group that this process is in."""
    lines = [line.split(":", 2) for line in Path("/proc/self/cgroup").read_text().splitlines()]
    path = next(path for _, controllers, path in lines if controller in controllers.split(","))
    own = parent / path.lstrip("/")
    return own if own.is_dir() else parent  # in a container the path is the host's


@contextlib.contextmanager
def _running(processes: list[multiprocessing.context.ForkProcess]) -> Iterator[None]:
    try:
        with undisturbed():
            for process in processes:
                process.start()
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
    command_line.stop_on_sigterm()  # no file system stays mounted
    said, within = Counter[tuple[str, str]](), []
    wrong, num_right = [], 0
    chosen = [scenario for scenario in scenarios() if config.only in scenario.name]
    started, runs = time.monotonic(), len(HOST_STAGES) + 5
    minutes = len(chosen) * runs * (config.repeats + 1) * (config.seconds + 0.2) / 60
    print(f"{count(len(chosen), 'scenario')}, about {minutes:.0f} minutes", file=sys.stderr)
    for scenario in chosen:
        try:
            found, (gain, low, high) = measure(scenario, config)
        except OSError as error:
            print(f"none  {scenario.name}: not measured, this machine does not allow it ({error.strerror})")
            continue
        right = found.word in scenario.words
        num_right += right
        said[scenario.words[0], found.word] += 1
        if found.verdict.confident and not right and found.word != TAKEN:  # of the machine, not of the stages
            wrong.append(f"{scenario.name}: {found.word}")
        text = (
            "" if right else f", not {' or '.join(scenario.words)}; {'sure' if found.verdict.confident else 'not sure'}"
        )
        if right and found.verdict.factor:
            least, most = found.verdict.factor
            within.append(least <= high and low <= most)
            text = (
                f"; without it {least:.2f}x to {most:.2f}x predicted, {gain:.2f}x ({low:.2f}x to {high:.2f}x) measured"
            )
            text += "" if within[-1] else ": OUTSIDE"
        print(f"{'right' if right else 'NOT':5} {scenario.name}: {found.word}{text}")
        print(f"      {'; '.join(found.verdict.reasons)}")
    print("\nexpected -> said")
    for (expected, word), times in sorted(said.items()):
        print(f"{times:3} {expected} -> {word}")
    print(f"right words: {num_right} of {sum(said.values())}")
    print(f"factors within the predicted range: {sum(within)} of {len(within)}")
    print(f"measured in {(time.monotonic() - started) / 60:.1f} minutes", file=sys.stderr)
    if wrong:
        raise Failure(f"wrong words said with confidence: {'; '.join(wrong)}")


def cli() -> None:
    """Run this module as a command."""
    command_line.run(main, VerdictsConfig, __doc__)


if __name__ == "__main__":
    cli()
