"""What this process may use: cores and memory, within its affinity and its control groups. No TensorFlow.

A pod with 16 CPUs on a node of 192 sees 192 cores; what it may use is in its control group. Version 2 of the interface:
https://docs.kernel.org/admin-guide/cgroup-v2.html, version 1: https://docs.kernel.org/scheduler/sched-bwc.html
"""

from __future__ import annotations

import contextlib
import math
import os
import platform
from collections.abc import Iterator
from pathlib import Path

import psutil

_ROOT = Path("/sys/fs/cgroup")
_OWN = Path("/proc/self/cgroup")


def available_cores(root: Path = _ROOT, own: Path = _OWN) -> int:
    """Cores this process can keep busy: its affinity, or its CPU quota, rounded up, if that is less; at least 1."""
    cores = len(os.sched_getaffinity(0))
    quota = cpu_quota(root, own)
    return cores if quota is None else max(1, min(cores, math.ceil(quota)))


def processor_name() -> str:
    """What the processor is called, e.g. `AMD EPYC 9R14`."""
    found = processor_lines("model name")
    return found[0].partition(":")[2].strip() if found else platform.processor() or platform.machine()


def processor_lines(*names: str) -> list[str]:
    """Lines of /proc/cpuinfo under these names, `name : value`, each once; [] where there are none."""
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return list(dict.fromkeys(line for line in lines if line.startswith(names)))
    return []


def cpu_quota(root: Path = _ROOT, own: Path = _OWN) -> float | None:
    """CPU seconds a second that the control groups allow; None for no limit."""
    quotas = []
    for folder in _groups("cpu", root, own):
        limit = _words(folder / "cpu.max")  # version 2: "200000 100000" or "max 100000"
        if not limit:
            limit = _words(folder / "cpu.cfs_quota_us") + _words(folder / "cpu.cfs_period_us")  # -1: no limit
        if len(limit) == 2 and limit[0].isdigit() and int(limit[0]) and int(limit[1]):
            quotas.append(int(limit[0]) / int(limit[1]))
    return min(quotas, default=None)


def throttled_seconds(root: Path = _ROOT, own: Path = _OWN) -> float:
    """Seconds so far in which a CPU quota stopped this process's control group or one above it; 0 without quotas."""
    stopped = [0.0]
    for folder in _groups("cpu", root, own):
        words = _words(folder / "cpu.stat")
        facts = dict(zip(words[::2], words[1::2], strict=False))
        stopped.append(int(facts.get("throttled_usec", 0)) / 1e6)  # version 2
        stopped.append(int(facts.get("throttled_time", 0)) / 1e9)  # version 1
    return max(stopped)


def memory_limit(root: Path = _ROOT, own: Path = _OWN) -> int:
    """Bytes of memory this process can ever have: the machine's, or its control groups' limit if that is less."""
    return min([int(psutil.virtual_memory().total), *(limit for limit, _ in _memory(root, own))])


def available_memory(root: Path = _ROOT, own: Path = _OWN) -> int:
    """Bytes that could be taken now without swapping or being killed."""
    return max(0, min([int(psutil.virtual_memory().available), *(limit - used for limit, used in _memory(root, own))]))


def peak_memory(status: Path = Path("/proc/self/status")) -> int:
    """Most bytes of memory that this program has had at once, since it was started.

    Not getrusage(2): its maximum begins at what the process had that started the program, before exec(2).
    """
    lines = status.read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))


def _memory(root: Path, own: Path) -> Iterator[tuple[int, int]]:
    """Limit of every control group that has one, and what is used of it and cannot be reclaimed, in bytes.

    Files that were read are charged to the group until their memory is wanted: like the kubelet, we do not count them.
    """
    for folder in _groups("memory", root, own):
        for limit_name, used_name, files_name in (
            ("memory.max", "memory.current", "inactive_file"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
        ):
            limit, used = _words(folder / limit_name), _words(folder / used_name)
            if limit and used and limit[0].isdigit():
                facts = _words(folder / "memory.stat")
                files = int(facts[facts.index(files_name) + 1]) if files_name in facts else 0
                yield int(limit[0]), max(0, int(used[0]) - files)


def _groups(controller: str, root: Path, own: Path) -> Iterator[Path]:
    """The folders of this process's control group and of those above it, in version 2 and in version 1."""
    try:
        lines = own.read_text().splitlines()
    except OSError:
        lines = ["0::/"]
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            base = root
        elif controller in controllers.split(","):
            base = next(
                (root / name for name in (controllers, controller) if (root / name).is_dir()), root / controller
            )
        else:
            continue
        # Within a container the path is often that of the host, and the group itself is mounted at the root.
        relative = Path(path.lstrip("/"))
        for part in (relative, *relative.parents):
            yield base / part


def _words(path: Path) -> list[str]:
    try:
        return path.read_text().split()
    except OSError:
        return []
