"""How a rate is measured: interleaved repeats, medians with their spread, and an A/A control. No TensorFlow.

A machine's speed drifts, so the contenders take turns (A B C, A B C, …) and are compared within a turn: the
ratio of two contenders is the median of their per-turn ratios. The control times the baseline a second time in
every turn under another name; how far its ratio strays from 1 is the noise that every other ratio carries.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import platform
import resource
import select
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import IO, Any, NamedTuple

from shardline.pipeline.machine import available_cores

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


@contextlib.contextmanager
def save_on_interrupt(path: str | os.PathLike[str]) -> Iterator[None]:
    """Within it, Ctrl-C while measuring appends the complete turns to `path` (nothing where that is empty)."""
    try:
        yield
    except Interrupted as interruption:
        if path and interruption.measurements:
            append_jsonl(path, interruption.measurements)
        raise


class Rate(NamedTuple):
    """What a contender may return in place of a plain rate: CPU seconds per unit of work as well."""

    rate: float
    cpu_seconds: float


def timed(work: Callable[[], int]) -> Rate:
    """Run `work`, which returns how many units it did, on the clock of the wall and of the CPUs."""
    children, cpu, wall = children_cpu_seconds(), time.process_time(), time.perf_counter()
    units = work()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    cpu += children_cpu_seconds() - children
    return Rate(units / wall, cpu / units if units else 0.0)


def children_cpu_seconds() -> float:
    """CPU time of this process's children so far, the living and the finished, to 10 ms."""
    ticks = 0
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it has just ended
            values = stat.read_text().rpartition(")")[2].split()
            if int(values[1]) == os.getpid():
                ticks += int(values[11]) + int(values[12])
    finished = os.times()
    return finished.children_user + finished.children_system + ticks / os.sysconf("SC_CLK_TCK")


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
    what = dict(what or {})
    if baseline is not None:
        runs[CONTROL] = contenders[baseline]
        what[CONTROL] = f"{baseline}, measured a second time in every turn: how far it strays from 1x is the noise"
    taken: dict[str, list[Rate]] = {name: [] for name in runs}

    def measurements(turns: int) -> list[Measurement]:
        return [
            Measurement(
                suite,
                name,
                unit,
                tuple(rate for rate, _ in rates[:turns]),
                what.get(name, ""),
                tuple(cpu for _, cpu in rates[:turns]) if any(cpu for _, cpu in rates) else (),
                dict(settings or {}),
            )
            for name, rates in taken.items()
            if turns
        ]

    for turn in range(repeats + 1):
        # Every other turn backwards, so that nobody always runs after the same neighbor.
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
    """Median, smallest and largest of the per-turn ratios measured / baseline; infinite where the baseline did 0."""
    ratios = [a / b if b else math.inf for a, b in zip(measured.repeats, baseline.repeats, strict=True)]
    return statistics.median(ratios), min(ratios), max(ratios)


def baseline_of(suite: Sequence[Measurement]) -> Measurement:
    """The row the ratios of a suite refer to: the one its settings name, else its first."""
    named = suite[0].settings.get("baseline")
    return next((m for m in suite if m.name == named), suite[0])


def comparable(m: Measurement, base: Measurement) -> bool:
    """Whether a ratio of the two means anything."""
    return base.unit == m.unit and len(base.repeats) == len(m.repeats) and 0 not in base.repeats


class Spent(NamedTuple):
    """Seconds on the wall while a command ran, and of CPU in it and the children it waited for."""

    wall: float
    cpu: float


def run_time_sliced(
    commands: Mapping[str, tuple[Sequence[str], Sequence[int]]], seconds: float, **options: Any
) -> dict[str, Spent]:
    """Run several commands to their ends, always one for a slice of time while the others are stopped.

    Args:
      commands: name to a command line and the cores it may use.
      seconds: length of a slice.
      options: for subprocess.Popen.

    Raises:
      RuntimeError: a command failed; with its last words.
    """
    spent: dict[str, Spent] = {}
    running: dict[str, tuple[subprocess.Popen[bytes], IO[bytes]]] = {}
    walls = dict.fromkeys(commands, 0.0)
    queue = deque(commands)
    try:
        while queue:
            name = queue.popleft()
            begin = time.perf_counter()
            if name in running:
                process, words = running[name]
                os.killpg(process.pid, signal.SIGCONT)
            else:
                process, words = running[name] = _start(*commands[name], options)
            usage = _wait(process, seconds)
            if usage is None:
                os.killpg(process.pid, signal.SIGSTOP)
                queue.append(name)
            walls[name] += time.perf_counter() - begin
            if process.returncode:
                words.seek(0)
                last_words = words.read().decode(errors="replace").strip()[-300:]
                raise RuntimeError(f"{' '.join(commands[name][0])}: {last_words}")
            if usage is not None:
                spent[name] = Spent(walls[name], usage.ru_utime + usage.ru_stime)
    finally:
        for process, words in running.values():
            words.close()
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    return spent


def _start(
    command: Sequence[str], cores: Sequence[int], options: Mapping[str, Any]
) -> tuple[subprocess.Popen[bytes], IO[bytes]]:
    """A process group of its own, and the file its messages go to."""
    words = tempfile.TemporaryFile()  # noqa: SIM115 (closed by the caller)
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=words,
        process_group=0,  # of this session: if we are killed, the kernel wakes and ends those that stand still
        preexec_fn=lambda: os.sched_setaffinity(0, cores),
        **options,
    )
    return process, words


def _wait(process: subprocess.Popen[bytes], seconds: float) -> resource.struct_rusage | None:
    """What the process used, if it ends within so many seconds."""
    descriptor = os.pidfd_open(process.pid)
    try:
        if not select.select([descriptor], [], [], seconds)[0]:
            return None
    finally:
        os.close(descriptor)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    return usage


class WorkerProcess:
    """A contender in a process of its own, for a while whenever it is told to: see `serve`, the other end."""

    def __init__(self, command: Sequence[str], seconds: float, **options: Any) -> None:
        """Start it and wait until it is ready. Raises RuntimeError with its last words when it ends instead."""
        self.command = command
        self.seconds = seconds
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options
        )
        self._answer()

    def __call__(self) -> Rate:
        """Take one turn."""
        assert self.process.stdin
        self.process.stdin.write(f"{self.seconds}\n")
        self.process.stdin.flush()
        return Rate(*self._answer())

    def close(self) -> None:
        """End the process."""
        self.process.kill()
        self.process.communicate()

    def _answer(self) -> list[float]:
        assert self.process.stdout
        for line in self.process.stdout:
            if line.startswith(_ANSWER):
                return json.loads(line.removeprefix(_ANSWER))
        words = self.process.communicate()[1].strip().splitlines() or ["no message"]
        raise RuntimeError(f"{self.command[0]} … ended with {self.process.returncode}: {words[-1]}")


def serve(work: Callable[[float], Rate]) -> None:
    """Say that all is ready; then, for each line of stdin, work for that many seconds and answer with the rate."""
    print(_ANSWER, "[]", flush=True)
    for line in sys.stdin:
        print(_ANSWER, json.dumps(work(float(line))), flush=True)


_ANSWER = "answer:"  # tells our lines from what libraries print


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
        "cores": available_cores(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": {name: metadata.version(name) for name in packages if _installed(name)},
        "commit": _commit(),
        # Reports get attached to tickets: where a home directory lies is nobody's business.
        "argv": [word.replace(f"{Path.cwd()}/", "") for word in sys.argv[1:]],
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
