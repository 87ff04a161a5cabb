"""What the machine does to a measurement beside it: CPU pressure, stolen time, and a quota that stops us.

Pressure: https://docs.kernel.org/accounting/psi.html; stolen time: proc_stat(5), cpu lines.
Quotas: pipeline/machine.py. No TensorFlow.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

from shardline.benchmarks.verdict import Strain
from shardline.pipeline.machine import throttled_seconds


def watch(proc: Path = Path("/proc"), clock: Callable[[], float] = time.perf_counter) -> Callable[[], Strain]:
    """Begin to watch; the result, when called, gives the shares of the time since then. 0 where a kernel tells nothing.

    Args:
      proc: the proc file system.
      clock: seconds.
    """
    cpus = os.sched_getaffinity(0)

    def read() -> tuple[float, float, float, float]:
        return clock(), _pressure_seconds(proc), _stolen_seconds(proc, cpus), throttled_seconds()

    begin = read()

    def end() -> Strain:
        wall, pressure, stolen, throttled = (after - before for after, before in zip(read(), begin, strict=True))
        shares = (pressure / wall, stolen / wall / len(cpus), throttled / wall) if wall > 0 else (0.0, 0.0, 0.0)
        return Strain(*(min(max(share, 0.0), 1.0) for share in shares))

    return end


def _pressure_seconds(proc: Path) -> float:
    """Seconds so far in which some task of the machine waited for a CPU."""
    try:
        line = (proc / "pressure" / "cpu").read_text().splitlines()[0]  # some avg10=… avg60=… avg300=… total=µs
        return int(line.rpartition("total=")[2]) / 1e6
    except (OSError, ValueError, IndexError):
        return 0.0


def _stolen_seconds(proc: Path, cpus: set[int]) -> float:
    """Seconds so far that the hypervisor took from these CPUs."""
    try:
        lines = (proc / "stat").read_text().splitlines()
    except OSError:
        return 0.0
    names = {f"cpu{number}" for number in cpus}
    stolen = sum(int(words[8]) for line in lines if len(words := line.split()) > 8 and words[0] in names)
    return stolen / os.sysconf("SC_CLK_TCK")
