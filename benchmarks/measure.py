"""How a rate is measured: interleaved repeats, medians with their spread, and an A/A control. No TensorFlow.

A machine's speed drifts, so the contenders take turns (A B C, A B C, …) and are compared within a turn: the
ratio of two contenders is the median of their per-turn ratios. The control times the baseline a second time in
every turn under another name; how far its ratio strays from 1 is the noise that every other ratio carries.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

CONTROL = "control (baseline again)"


@dataclass(frozen=True)
class Measurement:
    """One contender of one suite: every repeat, in the order taken."""

    suite: str  # input, convert, train, ...
    name: str  # who
    unit: str  # images/s, MB/s, seconds
    repeats: tuple[float, ...]
    what: str = ""  # what exactly it did, for a reader of the table
    cpu_seconds: tuple[float, ...] = ()  # CPU time per unit of work in each repeat, where it was taken
    settings: Mapping[str, Any] = field(default_factory=dict)

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


class Rate(NamedTuple):
    """What a contender may return in place of a plain rate: CPU seconds per unit of work as well."""

    rate: float
    cpu_seconds: float


def timed(work: Callable[[], int]) -> Rate:
    """Run `work`, which returns how many units it did, on the clock of the wall and of this process's CPUs."""
    wall, cpu = time.perf_counter(), time.process_time()
    units = work()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return Rate(units / wall, cpu / units)


def interleave(
    suite: str,
    contenders: Mapping[str, Callable[[], float | Rate]],
    *,
    repeats: int,
    unit: str = "images/s",
    baseline: str | None = None,
    what: Mapping[str, str] | None = None,
    settings: Mapping[str, Any] | None = None,
    progress: Callable[[str], None] = lambda name: None,
) -> list[Measurement]:
    """Call every contender once a turn, `repeats` turns, after one uncounted warm-up turn.

    Args:
      suite: name the measurements are filed under.
      contenders: name to a function that works once and returns its rate in `unit`, or a `Rate`.
      repeats: counted turns.
      unit: of the rates.
      baseline: a contender that is measured twice a turn, as the A/A control.
      what: name to one line that says what the contender does.
      settings: common to all, stored with each.
      progress: called with the name of the contender about to run.
    """
    runs = dict(contenders)
    if baseline is not None:
        runs[CONTROL] = contenders[baseline]
    taken: dict[str, list[Rate]] = {name: [] for name in runs}

    def measurements(turns: int) -> list[Measurement]:
        return [
            Measurement(
                suite,
                name,
                unit,
                tuple(rate for rate, _ in rates[:turns]),
                (what or {}).get(name, ""),
                tuple(cpu for _, cpu in rates[:turns]) if any(cpu for _, cpu in rates) else (),
                dict(settings or {}),
            )
            for name, rates in taken.items()
            if turns
        ]

    for turn in range(repeats + 1):
        # Every other turn backwards, so that nobody always runs after the same neighbour.
        for name in list(runs) if turn % 2 == 0 else reversed(list(runs)):
            progress(name)
            try:
                result = runs[name]()
            except KeyboardInterrupt:
                raise Interrupted(measurements(turn - 1 if turn else 0)) from None
            if turn > 0:
                taken[name].append(result if isinstance(result, Rate) else Rate(result, 0.0))
    return measurements(repeats)


def ratio(measured: Measurement, baseline: Measurement) -> tuple[float, float, float]:
    """Median, smallest and largest of the per-turn ratios measured / baseline."""
    ratios = [a / b for a, b in zip(measured.repeats, baseline.repeats, strict=True)]
    return statistics.median(ratios), min(ratios), max(ratios)


def in_subprocess(command: Sequence[str], *, cores: Sequence[int] | None = None, env: Mapping[str, str] | None = None):
    """A contender that runs a command and reads its rate from the last line of its stdout.

    Args:
      command: argument list; its last stdout line must be one number.
      cores: pin the process to these CPU numbers (Linux).
      env: added to this process's environment.
    """

    def rate() -> float:
        result = subprocess.run(
            command,
            capture_output=True,
            text=True,
            env={**os.environ, **(env or {})},
            preexec_fn=(lambda: os.sched_setaffinity(0, cores)) if cores else None,
        )
        if result.returncode:
            raise RuntimeError(f"{command[0]} … ended with {result.returncode}: {result.stderr.strip()[-500:]}")
        return float(result.stdout.split()[-1])

    return rate


def machine() -> dict[str, Any]:
    """The facts about this machine and these versions that a rate depends on."""
    model = platform.processor()
    if os.path.exists("/proc/cpuinfo"):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                model = line.split(":", 1)[1].strip()
                break
    packages = ("tensorflow", "keras", "numpy", "opencv-python-headless", "simplejpeg", "shardline")
    return {
        "cpu": model,
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": {name: metadata.version(name) for name in packages if _installed(name)},
        "commit": _commit(),
        "argv": sys.argv[1:],
    }


def append_jsonl(path: str | os.PathLike[str], measurements: Sequence[Measurement]) -> None:
    """Add one line a measurement, with the machine and the time, to results.jsonl."""
    facts = {"machine": machine(), "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}
    with open(path, "a", encoding="utf-8") as file:
        for measurement in measurements:
            file.write(json.dumps({**asdict(measurement), "median": measurement.median, **facts}) + "\n")


def load_jsonl(path: str | os.PathLike[str]) -> list[Measurement]:
    """Inverse of `append_jsonl`, without the machine facts."""
    names = Measurement.__dataclass_fields__
    found = []
    for line in Path(path).read_text(encoding="utf-8").splitlines():
        stored: dict[str, Any] = json.loads(line)
        fields: dict[str, Any] = {name: value for name, value in stored.items() if name in names}
        found.append(Measurement(**fields | {name: tuple(v) for name, v in fields.items() if isinstance(v, list)}))
    return found


def table(measurements: Sequence[Measurement], baseline: str) -> str:
    """A plain-text table: median rate, spread, and the ratio to `baseline` with its spread."""
    by_name = {m.name: m for m in measurements}
    width = max(map(len, by_name))
    lines = [f"{'':{width}}  {measurements[0].unit:>10}  {'min–max':>19}  × {baseline} (min–max)"]
    for m in measurements:
        middle, low, high = ratio(m, by_name[baseline])
        spread = f"{m.spread[0]:,.1f}–{m.spread[1]:,.1f}"
        lines.append(f"{m.name:{width}}  {m.median:>10,.1f}  {spread:>19}  {middle:.2f} ({low:.2f}–{high:.2f})")
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
