"""How a rate is measured: interleaved repeats, medians with their spread, and an A/A control. No TensorFlow.

A machine's speed drifts, so whatever is compared takes turns (A B C, A B C, …) and is compared within a turn: the ratio
of two rates is the median of their per-turn ratios, with the range that holds 95% of such medians when the turns are
drawn anew (bootstrap); where that range holds 1, the two cannot be told apart. One of them is the reference, to which
all ratios refer. The control measures it a second time in every turn: how far its ratio strays from 1 is the noise of
every other ratio.
"""

from __future__ import annotations

import itertools
import math
import platform
import random
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, astuple, dataclass, field, replace
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import msgspec

from shardline.benchmarks import strain
from shardline.benchmarks.processes import ProcessError, Rate
from shardline.pipeline import native, stored
from shardline.pipeline.cli import progress
from shardline.pipeline.errors import Failure, UsageError
from shardline.pipeline.files import atomic_write
from shardline.pipeline.machine import available_cores, cpu_quota, memory_limit, processor_name

CONTROL = "control (reference again)"
RESULTS_FILE = "results.jsonl"
_RESAMPLES = 1000


@dataclass(frozen=True)
class Measurement:
    """One row of a suite: every repeat, in the order taken."""

    suite: str  # input, convert, train, …
    name: str  # what was measured
    unit: str  # images/s, MB/s, seconds
    repeats: Annotated[tuple[float, ...], msgspec.Meta(min_length=1)]
    what: str = ""  # what exactly it did, for a reader of the table
    cpu_seconds: tuple[float, ...] = ()  # CPU time per unit of work in each repeat, where it was taken
    settings: Mapping[str, Any] = field(default_factory=dict)  # JSON values
    waiting: tuple[float, ...] = ()  # share of each repeat that waited for input, where it was taken
    delay_seconds: tuple[float, ...] = ()  # per unit, in which threads were ready and others had the CPUs

    @property
    def median(self) -> float:
        """Median over the repeats."""
        return statistics.median(self.repeats)

    @property
    def per_core(self) -> float | None:
        """Work per CPU-second: what one fully busy core achieves. None where CPU time was not taken."""
        seconds = statistics.median(self.cpu_seconds) if self.cpu_seconds else 0
        return 1 / seconds if seconds > 0 else None

    @property
    def busy_cores(self) -> float | None:
        """CPU-seconds spent per second of wall clock."""
        return self.median / self.per_core if self.per_core else None

    @property
    def spread(self) -> tuple[float, float]:
        """Smallest and largest repeat."""
        return min(self.repeats), max(self.repeats)


class Interrupted(KeyboardInterrupt):
    """Ctrl-C while measuring; carries the turns that were complete."""

    def __init__(self, measurements: list[Measurement]) -> None:
        super().__init__()
        self.measurements = measurements


def interleave(
    suite: str,
    runs: Mapping[str, Callable[[], Rate]],
    *,
    repeats: int,
    reference: str | None = None,
    what: Mapping[str, str] | None = None,
    settings: Mapping[str, object] | None = None,
) -> list[Measurement]:
    """Call every function once a turn, `repeats` turns, after one warmup turn that does not count.

    Args:
      suite: name the measurements are filed under.
      runs: name to a function that works once and returns its rate in images/s.
      repeats: turns that count.
      reference: the row that ratios refer to; it runs twice a turn, as the A/A control.
      what: name to one line that says what the function does.
      settings: common to all, stored with each.

    Raises:
      Interrupted: Ctrl-C.
      Failure: a process that was measured ended too early.
    """
    runs = dict(runs)
    if reference is not None:
        runs[CONTROL] = runs[reference]
    backwards = itertools.cycle((False, True))  # every other turn, so that nothing always runs after the same neighbor

    def turn(show: Callable[[str], None]) -> dict[str, Rate]:
        rates = {}
        for name in reversed(runs) if next(backwards) else runs:
            show(name)
            try:
                rates[name] = runs[name]()
            except ProcessError as error:
                raise ProcessError(f"{name} {error}") from None
        return {name: rates[name] for name in runs}

    return take_turns(suite, turn, repeats=repeats, reference=reference, what=what, settings=settings)


def take_turns(
    suite: str,
    turn: Callable[[Callable[[str], None]], Mapping[str, Rate]],
    *,
    repeats: int,
    reference: str | None = None,
    what: Mapping[str, str] | None = None,
    settings: Mapping[str, object] | None = None,
) -> list[Measurement]:
    """`interleave` for what runs side by side: `turn(show)` returns all rates of a turn, CONTROL among them.

    `show` takes the name of what is running, for the progress bar.
    """
    control = {CONTROL: f"{reference}, a second time in every turn: how far its ratio strays from 1x is the noise"}
    strains: list[tuple[float, ...]] = []
    facts = {**(settings or {}), **({"reference": reference} if reference else {}), "strain": strains}
    measurements = partial(_measurements, suite, texts={**(what or {}), **control}, settings=facts)
    taken: list[Mapping[str, Rate]] = []
    with progress(total=repeats + 1, desc=suite, unit="turn") as bar:
        for number in range(repeats + 1):
            strained = strain.watch()
            try:
                rates = turn(bar.set_postfix_str)
            except KeyboardInterrupt:
                raise Interrupted(measurements(taken)) from None
            except ProcessError as error:
                raise Failure(f"{suite}: {error}") from None
            if number:  # not the warmup turn
                taken.append(rates)
                strains.append(astuple(strained()))
            bar.update()
    return measurements(taken)


def _measurements(
    suite: str, taken: Sequence[Mapping[str, Rate]], *, texts: Mapping[str, str], settings: Mapping[str, object]
) -> list[Measurement]:
    """The rates of all turns, by row."""
    rows = []
    for name in taken[0] if taken else ():
        rates = tuple(turn[name].rate for turn in taken)
        cpu_seconds = _if_taken(turn[name].cpu_seconds for turn in taken)
        waiting = _if_taken(turn[name].waiting for turn in taken)
        delays = _if_taken(turn[name].delay_seconds for turn in taken)
        row = Measurement(suite, name, "images/s", rates, texts.get(name, ""), settings=settings)
        rows.append(replace(row, cpu_seconds=cpu_seconds, waiting=waiting, delay_seconds=delays))
    return rows


def _if_taken(values: Iterable[float]) -> tuple[float, ...]:
    found = tuple(values)
    return found if any(found) else ()


def ratio(measured: Measurement, reference: Measurement) -> tuple[float, float, float]:
    """Median, smallest and largest of the per-turn ratios; infinite where the reference did 0."""
    ratios = _ratios(measured, reference)
    return statistics.median(ratios), min(ratios), max(ratios)


def _ratios(measured: Measurement, reference: Measurement) -> list[float]:
    return [a / b if b else math.inf for a, b in zip(measured.repeats, reference.repeats, strict=True)]


class Interval(NamedTuple):
    """Within which a ratio lies."""

    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.low:.2f}–{self.high:.2f}"

    @property
    def remark(self) -> str:
        """What follows it where it says that there is no difference to be seen."""
        return ", not distinguishable from 1" if self.low <= 1 <= self.high else ""


def interval(measured: Measurement, reference: Measurement) -> Interval:
    """Range of the middle 95% of the medians of per-turn ratios, whose turns are drawn anew: percentile bootstrap."""
    ratios = _ratios(measured, reference)
    draw = random.Random(0)  # the same turns, the same interval
    medians = sorted(statistics.median(draw.choices(ratios, k=len(ratios))) for _ in range(_RESAMPLES))
    return Interval(medians[round(0.025 * (_RESAMPLES - 1))], medians[round(0.975 * (_RESAMPLES - 1))])


def ratio_text(measured: Measurement, reference: Measurement) -> str:
    """Median of the per-turn ratios and its interval, in words where that holds 1."""
    found = interval(measured, reference)
    remark = "" if measured is reference else found.remark
    return f"{ratio(measured, reference)[0]:.2f} ({found}){remark}"


def reference_of(suite: Sequence[Measurement]) -> Measurement:
    """The row that the ratios of a suite refer to: the one its settings name, else its first."""
    named = suite[0].settings.get("reference")
    return next((m for m in suite if m.name == named), suite[0])


def comparable(m: Measurement, reference: Measurement) -> bool:
    """Whether a ratio of the two means anything."""
    return reference.unit == m.unit and len(reference.repeats) == len(m.repeats) and 0 not in reference.repeats


def rate_text(rate: float) -> str:
    """Thousands without decimals, small rates with two digits."""
    return f"{rate:,.0f}" if rate >= 10 else f"{rate:.2g}"


def machine() -> dict[str, Any]:
    """The facts about this machine and these versions that a rate depends on."""
    packages = ("tensorflow", "keras", "numpy", "opencv-python-headless", "simplejpeg", "shardline")
    return {
        "cpu": processor_name(),
        "cores": available_cores(),
        "cpu_quota": cpu_quota(),
        "memory_gib": round(memory_limit() / 2**30, 1),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": {name: metadata.version(name) for name in packages if _installed(name)},
        "commit": _commit(),
        "compiled": not native.WHY_MISSING,  # the optional module
        "argv": [_without_folders(word) for word in sys.argv[1:]],
    }


def _without_folders(word: str) -> str:
    """An argument whose absolute paths begin at the current folder or, elsewhere, at their last name.

    Reports get attached to tickets: where a home directory lies is nobody's business.
    """
    return re.sub(r"(?<![^=,])/[^,]*/(?=[^,/])", "", word.replace(f"{Path.cwd()}/", ""))


def append_results(directory: Path, measurements: Sequence[Measurement]) -> None:
    """Add one line a measurement, with the machine and the time, to DIRECTORY/results.jsonl."""
    if not measurements:
        return
    facts = {"machine": machine(), "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}
    lines = [stored.sealed_line({**asdict(m), "median": m.median, **facts}) for m in measurements]
    path = directory / RESULTS_FILE
    atomic_write(path, (path.read_bytes() if path.exists() else b"") + "".join(lines).encode())


def load_results(path: Path) -> list[Measurement]:
    """The newest measurement of each (suite, name) of a report directory or results.jsonl, in the order first taken.

    Raises:
      UsageError: there is none, or the file is damaged.
    """
    file = path / RESULTS_FILE if path.is_dir() else path
    newest = {}
    for what, line in _lines(file):
        m = stored.convert(line, Measurement, what=what, remedy=_REMEDY)
        newest[m.suite, m.name] = m
    if not newest:
        raise UsageError(f"{file} is empty; {_REMEDY}")
    return list(newest.values())


def load_machine(path: Path) -> Machine:
    """What the newest line says of the machine. Takes and raises what `load_results` does."""
    what, line = _lines(path / RESULTS_FILE if path.is_dir() else path)[-1]
    return stored.convert(line.get("machine", {}), Machine, what=what, remedy=_REMEDY)


@dataclass(frozen=True)
class Machine:
    """What a report says of the machine that its rates were taken on; older files know less."""

    cpu: str = "unknown CPU"
    cores: int | None = None
    memory_gib: float | None = None
    python: str = "?"
    versions: Mapping[str, str] = field(default_factory=dict)
    commit: str = ""
    compiled: bool | None = None


_REMEDY = "restore it from a copy, or make one with shardline-benchmark"


def _lines(file: Path) -> list[tuple[str, dict[str, Any]]]:
    """Each line of a results.jsonl, with its place."""
    try:
        text = stored.read_bytes(file, remedy=_REMEDY).decode(errors="replace")
    except FileNotFoundError:
        raise UsageError(f"{file} is not there; make one with shardline-benchmark --output={file.parent}") from None
    places = [(f"{file}, line {number},", line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    return [(what, stored.unsealed_line(line, what=what, remedy=_REMEDY)) for what, line in places]


def table(measurements: Sequence[Measurement]) -> str:
    """A plain-text table: median rate, spread, and the ratio to the reference with its interval."""
    reference = reference_of(measurements)
    width = max(len(m.name) for m in measurements)
    lines = [
        f"{'':{width}}  {measurements[0].unit:>10}  {'min–max':>19}  × {reference.name} (95% of bootstrap medians)"
    ]
    for m in measurements:
        spread = f"{m.spread[0]:,.1f}–{m.spread[1]:,.1f}"
        lines.append(f"{m.name:{width}}  {m.median:>10,.1f}  {spread:>19}  {ratio_text(m, reference)}")
    return "\n".join(lines)


def _installed(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True


def _commit() -> str:
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    result = subprocess.run(command, capture_output=True, text=True)
    return result.stdout.strip() if result.returncode == 0 else ""
