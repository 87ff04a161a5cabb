"""Processes to measure: workers that work when they are told to, and commands that run in slices of time.

Standard library only: a worker may run in another Python, one that has the packages of other tools.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import resource
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import IO, NamedTuple, NoReturn


class Rate(NamedTuple):
    """Units of work a second, with what else was measured; 0 where it was not.

    Attributes:
      cpu_seconds: CPU time per unit.
      waiting: share of the time that was spent waiting for input.
      delay_seconds: per unit, in which threads could have run but others had the CPUs.
    """

    rate: float
    cpu_seconds: float = 0.0
    waiting: float = 0.0
    delay_seconds: float = 0.0


def timed(work: Callable[[], float], *, children: bool = True) -> Rate:
    """Run `work`, which returns how many units it did; measure its time, CPU time and delays.

    Args:
      work: what to run.
      children: whether its children count, too.
    """
    delays, others, busy = run_delay_seconds(), children_cpu_seconds(), cpus_busy_seconds()
    own, wall = time.process_time(), time.perf_counter()
    units = work()
    wall, own = time.perf_counter() - wall, time.process_time() - own
    busy, others = cpus_busy_seconds() - busy, children_cpu_seconds() - others
    # Where children do the work, it is no matter when this process takes it from them.
    delay = run_delay_seconds()[children and others > own] - delays[children and others > own]
    # Our own threads may have waited for each other; and those that have ended are forgotten.
    delay, cpu = max(min(delay, busy - own - others), 0.0), own + others * children
    return Rate(units / wall, cpu / units, delay_seconds=delay / units) if units else Rate(units / wall)


def cpus_busy_seconds() -> float:
    """Time so far in which this process's CPUs worked for anybody, to 10 ms: proc_stat(5)."""
    ticks = 0
    with contextlib.suppress(OSError):
        for line in Path("/proc/stat").read_text().splitlines():
            name, *values = line.split()
            if name.startswith("cpu") and name[3:].isdigit() and int(name[3:]) in os.sched_getaffinity(0):
                user, nice, system, _, _, *others = map(int, values[:8])  # others: interrupts, stolen
                ticks += user + nice + system + sum(others)
    return ticks / os.sysconf("SC_CLK_TCK")


def run_delay_seconds() -> tuple[float, float]:
    """Time so far in which threads of this process and its children, and of the children alone, lacked a CPU.

    0 where the kernel does not tell: https://docs.kernel.org/scheduler/sched-stats.html.
    """

    def seconds(process: int) -> float:
        nanoseconds = 0
        for task in Path(f"/proc/{process}/task").glob("*/schedstat"):
            with contextlib.suppress(OSError, ValueError, IndexError):  # it has just ended
                nanoseconds += int(task.read_text().split()[1])
        return nanoseconds / 1e9

    children = sum(map(seconds, _children()))
    return seconds(os.getpid()) + children, children


def children_cpu_seconds() -> float:
    """CPU time of this process's children so far, the living and the finished, to 10 ms."""
    ticks = sum(int(values[11]) + int(values[12]) for values in _children().values())
    finished = os.times()
    return finished.children_user + finished.children_system + ticks / os.sysconf("SC_CLK_TCK")


def _children() -> dict[int, list[str]]:
    """This process's living children, with what /proc/PID/stat says after the name."""
    found = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it has just ended
            values = stat.read_text().rpartition(")")[2].split()
            if int(values[1]) == os.getpid():
                found[int(stat.parent.name)] = values
    return found


@contextlib.contextmanager
def outsiders(count: int, target: Callable[..., object], *arguments: object) -> Iterator[None]:
    """So many processes that do something meanwhile, and whose CPU time is not counted as that of our children."""
    if not count:
        yield
        return
    ready, end = os.pipe()
    between = 0
    try:
        with undisturbed():
            between = os.fork()
            if not between:
                _start_outsiders(count, partial(target, *arguments), end)
        os.close(end)
        os.read(ready, 1)
        os.close(ready)
        yield
    finally:
        if between:
            with contextlib.suppress(ProcessLookupError):  # it has not made its group yet
                os.killpg(between, signal.SIGKILL)
            os.kill(between, signal.SIGKILL)
            os.waitpid(between, 0)


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Within it SIGINT and SIGTERM wait: where Python forks, what their handlers raise is printed and forgotten."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start_outsiders(count: int, work: Callable[[], object], ready: int) -> NoReturn:
    """In a child: have children do the work until this process is killed with them, or its parent has ended."""
    parent = os.getppid()
    os.setsid()
    for _ in range(count):
        if not os.fork():
            try:
                work()
            finally:
                os._exit(1)
    os.write(ready, b".")
    while os.getppid() == parent:
        time.sleep(0.5)
    os.killpg(0, signal.SIGKILL)
    os._exit(1)


def repeat_for(seconds: float, work: Callable[[], float]) -> float:
    """Call `work` until the time is up, at least once; the sum of the units it returns."""
    deadline, done = time.perf_counter() + seconds, work()
    while time.perf_counter() < deadline:
        done += work()
    return done


class ProcessError(Exception):
    """A process that was measured ended too early; with its last message."""


class WorkerProcess:
    """A function in a process of its own: `worker(...)` calls there what `make()` returned there.

    Args:
      make: a function of a module, or a `functools.partial` of one, without arguments left; it is sent by its name.
      python: interpreter to run it with; another one than this imports nothing of ours but `shardline.benchmarks`.
      cores: cores to pin it to; empty: as this process.
      environment: variables beside those of this process.
      stopped: between calls the process is stopped, so that nothing it does ahead takes a core from others.

    Raises:
      ProcessError: the process ended. From `wait_until_ready` and every call.
    """

    def __init__(
        self,
        make: Callable[[], Callable[..., Rate]],
        *,
        python: str = sys.executable,
        cores: Sequence[int] = (),
        environment: Mapping[str, str] | None = None,
        stopped: bool = False,
    ) -> None:
        self._stopped = stopped
        self._links = tempfile.TemporaryDirectory()
        variables = {**os.environ, "PYTHONSAFEPATH": "1", **(environment or {})}
        if python != sys.executable:
            (Path(self._links.name) / "shardline").mkdir()
            (Path(self._links.name) / "shardline" / "benchmarks").symlink_to(Path(__file__).parent)
            variables["PYTHONPATH"] = self._links.name
        command = [python, "-c", "from shardline.benchmarks import processes; processes.serve()"]
        pipe = subprocess.PIPE
        self._process, self._messages = _start(command, cores, stdin=pipe, stdout=pipe, env=variables)
        self._ready = False
        self._send(make)

    def wait_until_ready(self) -> WorkerProcess:
        """Wait for the end of `make`."""
        if not self._ready:
            self._receive()
            self._ready = True
            self._signal(signal.SIGSTOP)
        return self

    def start(self, *arguments: object) -> None:
        """Begin a call; `result` waits for its end."""
        self.wait_until_ready()
        self._signal(signal.SIGCONT)
        self._send(arguments)

    def result(self) -> Rate:
        """What the call that `start` began returns."""
        rate = Rate(*self._receive())
        self._signal(signal.SIGSTOP)
        return rate

    def __call__(self, *arguments: object) -> Rate:
        """One call, from begin to end."""
        self.start(*arguments)
        return self.result()

    def __enter__(self) -> WorkerProcess:
        return self

    def __exit__(self, *error: object) -> None:
        self._process.kill()
        self._process.communicate()
        self._messages.close()
        self._links.cleanup()

    def _signal(self, number: int) -> None:
        if self._stopped:
            with contextlib.suppress(ProcessLookupError):  # it has ended: `_receive` says why
                os.killpg(self._process.pid, number)

    def _send(self, message: object) -> None:
        assert self._process.stdin
        with contextlib.suppress(BrokenPipeError):  # it has ended: `_receive` says why
            pickle.dump(message, self._process.stdin)
            self._process.stdin.flush()

    def _receive(self) -> tuple[float, ...]:
        assert self._process.stdout
        try:
            answer: tuple[float, ...] = pickle.load(self._process.stdout)
        except EOFError:
            code = self._process.wait()
            lines = _text(self._messages).splitlines() or ["no message"]
            raise ProcessError(f"ended with exit code {code}: {lines[-1]}") from None
        return answer


def serve() -> None:
    """The worker's side: make the function, then call it for each message until there is nobody to answer."""
    inbox, outbox = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what libraries print must not get between the answers
    call = pickle.load(inbox)()
    answer: tuple[float, ...] = ()
    with contextlib.suppress(EOFError):
        while True:
            pickle.dump(answer, outbox)
            outbox.flush()
            answer = tuple(call(*pickle.load(inbox)))


class Spent(NamedTuple):
    """Seconds on the wall while a command ran, and of CPU in it and the children it waited for."""

    wall: float
    cpu: float


def run_time_sliced(
    commands: Mapping[str, tuple[Sequence[str], Sequence[int]]],
    seconds: float,
    environment: Mapping[str, str] | None = None,
) -> dict[str, Spent]:
    """Run several commands to their ends, always one for a slice of time while the others are stopped.

    Args:
      commands: name to a command line and the cores it may use.
      seconds: length of a slice.
      environment: variables beside those of this process.

    Raises:
      ProcessError: a command failed.
    """
    spent: dict[str, Spent] = {}
    running: dict[str, tuple[subprocess.Popen[bytes], IO[bytes]]] = {}
    walls = dict.fromkeys(commands, 0.0)
    queue = deque(commands)
    null, variables = subprocess.DEVNULL, {**os.environ, **(environment or {})}
    try:
        while queue:
            name = queue.popleft()
            begin = time.perf_counter()
            if name in running:
                process, messages = running[name]
                os.killpg(process.pid, signal.SIGCONT)
            else:
                process, messages = _start(*commands[name], stdin=null, stdout=null, env=variables)
                running[name] = process, messages
            usage = _wait(process, seconds)
            if usage is None:
                os.killpg(process.pid, signal.SIGSTOP)
                queue.append(name)
            walls[name] += time.perf_counter() - begin
            if process.returncode:
                raise ProcessError(f"{' '.join(commands[name][0])}: {_text(messages)[-300:]}")
            if usage is not None:
                spent[name] = Spent(walls[name], usage.ru_utime + usage.ru_stime)
    finally:
        for process, messages in running.values():
            messages.close()
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    return spent


def _start(
    command: Sequence[str], cores: Sequence[int], *, stdin: int, stdout: int, env: Mapping[str, str]
) -> tuple[subprocess.Popen[bytes], IO[bytes]]:
    """A process group of its own, and the file its messages go to.

    In this session: if this process is killed, the kernel wakes and ends those that are stopped.
    """
    messages = tempfile.TemporaryFile()  # noqa: SIM115 (closed by the caller)
    process = subprocess.Popen(command, stdin=stdin, stdout=stdout, stderr=messages, env=env, process_group=0)
    if cores:
        with contextlib.suppress(ProcessLookupError):  # it has ended already
            os.sched_setaffinity(process.pid, cores)  # before it has a second thread
    return process, messages


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


def _text(messages: IO[bytes]) -> str:
    messages.seek(0)
    return messages.read().decode(errors="replace").strip()


def missing_packages(python: str, packages: Sequence[str]) -> list[str]:
    """Those of `packages` that cannot be imported with that Python."""
    code = (
        "import importlib.util, sys\n"
        "def missing(name):\n"
        "    try: return importlib.util.find_spec(name) is None\n"
        "    except ModuleNotFoundError: return True\n"  # not even the package it is in
        "print(*filter(missing, sys.argv[1:]))"
    )
    command = [python, "-c", code, *packages]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
