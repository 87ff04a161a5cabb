"""Run one function over many tasks on a Ray cluster, whose nodes come and go. No TensorFlow.

Every node is asked before it gets work: does it have this version of the program, does it see the inputs, can it write
the output? One that cannot is left out, by name. A task whose node is lost is done again, on another one where this
one could not read its inputs. When no task is left to begin, those that take far longer than others are begun a second
time, once: both attempts write the same bytes, each to a file of its own until it is whole, and the first one counts.
"""

from __future__ import annotations

import importlib
import os
import re
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from importlib import metadata
from types import ModuleType
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from shardline.pipeline.errors import Failure, UsageError
from shardline.pipeline.machine import available_cores
from shardline.pipeline.progress import log
from shardline.pipeline.source_files import MachineFault

if TYPE_CHECKING:
    from shardline.pipeline.executors import Task

CONNECT_SECONDS = 4  # for a cluster to be connected to, and again for its answer
CHECK_SECONDS = 60  # for a node to answer
PATIENCE_SECONDS = 30  # for tasks that were cancelled
LOOK_SECONDS = 1.0  # between two looks at the nodes and at what they do
RETRIES = 3  # of a task whose worker died
_SETTINGS = b"\x04"  # type of HTTP/2's first frame, whose header has 9 bytes
_HELLO = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0" + _SETTINGS + b"\0\0\0\0\0"
SLOW = 2.0  # times the median of the tasks that are done: then a task is begun a second time

T = TypeVar("T", bound="Task")
R = TypeVar("R")
OnProgress = Callable[[int], None]
RunOne = Callable[[T, OnProgress], R]  # does a task, and tells how many inputs are done


@dataclass(frozen=True)
class Cluster:
    """Which cluster, and what its nodes have to see.

    Attributes:
      address: HOST:PORT, ray://HOST:PORT, auto, or local for one on this machine; "": RAY_ADDRESS, else local.
      inputs: some of the files that tasks read.
      output: the folder that they write to; "" for none.
    """

    address: str = ""
    inputs: tuple[str, ...] = ()
    output: str = ""


@dataclass(eq=False)
class _Attempt(Generic[T]):
    """A task that is being done."""

    number: int  # of the task
    task: T
    failed: frozenset[str] = frozenset()  # nodes that could not read its inputs
    began: float = field(default_factory=time.monotonic)


def run(
    run_one: RunOne[T, R], tasks: Iterator[T], workers: int, on_progress: OnProgress, cluster: Cluster
) -> Iterator[R]:
    """Yield what `run_one` makes of every task, in the order they finish.

    Args:
      run_one: a picklable function of a task and of a function that is told of progress.
      tasks: consumed as the cluster gets free.
      workers: tasks at a time; 0: one for each CPU of the cluster, however many those become.
      on_progress: called now and then with the number of inputs worked on since the last call.
      cluster: where.

    Raises:
      UsageError: Ray is not installed.
      Failure: no cluster answers, no node can do the work, or a task was lost again and again.
      Exception: whatever `run_one` raised, after all other tasks are stopped.
    """
    ray = connect(cluster.address, workers)
    work = _Work(ray, run_one, workers, on_progress, cluster)
    try:
        numbered = enumerate(tasks)
        work.fill(numbered)
        looked = time.monotonic()
        while work.running:
            finished, _ = ray.wait(list(work.running), num_returns=1, timeout=LOOK_SECONDS)
            if not finished or time.monotonic() - looked > LOOK_SECONDS:  # short tasks never let it wait that long
                work.nodes.look()
                looked = time.monotonic()
            if finished:
                results = work.take(finished[0])
                work.fill(numbered)
                yield from results
            else:
                work.look()
                work.fill(numbered)
    finally:  # nothing of ours goes on writing after an error, or beside who comes next
        work.stop()


class _Work(Generic[T, R]):
    """The tasks that are being done, each by one call or, where it takes long, by two."""

    def __init__(
        self, ray: ModuleType, run_one: RunOne[T, R], workers: int, on_progress: OnProgress, cluster: Cluster
    ) -> None:
        self._ray, self._run_one, self._workers, self._on_progress = ray, run_one, workers, on_progress
        self.nodes = _Nodes(ray, cluster)
        self._board = ray.remote(num_cpus=0, max_restarts=-1)(_Board).remote()
        self._remote = ray.remote(max_retries=RETRIES)(_run_remotely)
        self.running: dict[object, _Attempt[T]] = {}  # by call
        self._cancelled: list[object] = []
        self._seconds: list[float] = []  # that tasks took
        self._counts: dict[int, int] = {}  # inputs done, by task, when we looked last
        self._shown = self._done = 0  # inputs

    def fill(self, numbered: Iterator[tuple[int, T]]) -> None:
        """Begin what there is room for: tasks that were not begun, then once more those that take long."""
        free = (self._workers or self.nodes.cpus) - len(self.running)
        while free > 0 and (following := next(numbered, None)) is not None:
            self._begin(_Attempt(*following), self.nodes.place(frozenset()))
            free -= 1
        for slow in _stragglers(self.running.values(), self._seconds)[: max(free, 0)]:
            self._begin(_Attempt(slow.number, slow.task, slow.failed), self.nodes.place(slow.failed))

    def _begin(self, attempt: _Attempt[T], place: object) -> None:
        remote = self._remote.options(scheduling_strategy=place)
        self.running[remote.remote(self._run_one, attempt.task, self._board, attempt.number)] = attempt

    def take(self, call: object) -> list[R]:
        """The result of a call that has ended; none where another call does its task, or has now begun to."""
        attempt = self.running.pop(call)
        others = [other for other, same in self.running.items() if same.number == attempt.number]
        node, result = _result_of(self._ray, call, attempt.task)
        if isinstance(result, MachineFault):
            if not others:
                failed = attempt.failed | {node}
                self._begin(_Attempt(attempt.number, attempt.task, failed), self.nodes.place(failed, result))
            return []
        for other in others:
            self._ray.cancel(other, force=True)
            self._cancelled.append(other)
            del self.running[other]
        self._seconds.append(time.monotonic() - attempt.began)
        self._done += len(attempt.task)
        self._show()
        return [result]

    def look(self) -> None:
        """See how far all of them are."""
        self._counts = _read(self._ray, self._board)
        self._show()

    def _show(self) -> None:
        numbers = {attempt.number for attempt in self.running.values()}
        now = self._done + sum(self._counts.get(number, 0) for number in numbers)
        self._on_progress(now - self._shown)
        self._shown = now

    def stop(self) -> None:
        """End what is still being done, and wait until it has ended."""
        for unfinished in self.running:
            self._ray.cancel(unfinished, force=True)
        if left := [*self.running, *self._cancelled]:
            self._ray.wait(left, num_returns=len(left), timeout=PATIENCE_SECONDS)
        self._ray.kill(self._board)


def _stragglers(attempts: Iterable[_Attempt[T]], seconds: list[float]) -> list[_Attempt[T]]:
    """Tasks that are done once and take far longer than others did."""
    if len(seconds) < 2:
        return []
    attempts, limit = list(attempts), SLOW * statistics.median(seconds) + LOOK_SECONDS
    numbers = [attempt.number for attempt in attempts]
    now = time.monotonic()
    return [found for found in attempts if now - found.began > limit and numbers.count(found.number) == 1]


class _Nodes:
    """The nodes of a cluster that can do the work."""

    def __init__(self, ray: ModuleType, cluster: Cluster) -> None:
        self._ray, self._cluster = ray, cluster
        self._cpus: dict[str, float] = {}  # of those that live and can
        self._faults: dict[str, str] = {}  # of all that were asked; "" for none
        self._turn = 0
        self.look()

    @property
    def cpus(self) -> int:
        """Of all nodes that can do the work, at least 1."""
        return max(1, int(sum(self._cpus.values())))

    def look(self) -> None:
        """See who is there; ask who is new. Raises Failure when no node can do the work."""
        alive = {node["NodeID"]: node for node in self._ray.nodes() if node["Alive"] and node["Resources"].get("CPU")}
        new = [node for node in alive if node not in self._faults]
        for node, fault in zip(new, self._ask(new), strict=True):
            self._faults[node] = fault
            if fault:
                log(f"note: node {_name(alive[node])} is left out: {fault}")
        self._cpus = {node: alive[node]["Resources"]["CPU"] for node in alive if not self._faults[node]}
        if alive and not self._cpus:
            node = next(iter(alive))
            raise Failure(f"no node of the Ray cluster can do the work: {_name(alive[node])}: {self._faults[node]}")

    def _ask(self, nodes: list[str]) -> list[str]:
        affinity = self._ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy
        ask = self._ray.remote(num_cpus=0, max_retries=1)(check_node)
        facts = (metadata.version("shardline"), self._cluster.inputs, self._cluster.output)
        calls = [ask.options(scheduling_strategy=affinity(node, soft=False)).remote(*facts) for node in nodes]
        return [self._answer(call) for call in calls]

    def _answer(self, call: object) -> str:
        try:
            return str(self._ray.get(call, timeout=CHECK_SECONDS))
        except self._ray.exceptions.RayError as error:
            if re.search(r"No module named '?shardline", str(error)):
                return f"shardline {metadata.version('shardline')} is not installed there"
            return f"it does not answer ({str(error).strip().splitlines()[-1]})"

    def place(self, failed: frozenset[str], fault: MachineFault | None = None) -> object:
        """Where a task may run that these nodes could not read; raises the fault where there is no other."""
        others = sorted(node for node in self._cpus if node not in failed)
        if not others:
            raise fault or Failure("no node of the Ray cluster is left that could do the work; run the command again")
        if not failed and not any(self._faults.values()):
            return "SPREAD"
        self._turn += 1
        # Not only there: it may be gone by then.
        return self._ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(
            others[self._turn % len(others)], soft=True
        )


def _name(node: dict[str, Any]) -> str:
    return str(node.get("NodeManagerHostname") or node.get("NodeManagerAddress") or node["NodeID"])


def check_node(version: str, inputs: tuple[str, ...], output: str) -> str:
    """What keeps this machine from doing the work; "" for nothing. Runs on each node."""
    here = metadata.version("shardline")
    if here != version:
        return f"shardline {version} is not installed there, but {here}"
    for path in inputs:
        try:
            with open(path, "rb"):
                pass
        except OSError as error:
            return f"--source: {path} cannot be read there: {error.strerror}"
    if output:
        try:
            with tempfile.TemporaryFile(dir=output):
                pass
        except OSError as error:
            return f"--output: {output} cannot be written there: {error.strerror}; it has to be a shared folder"
    return ""


class _Board:
    """An actor that knows how far each task is."""

    def __init__(self) -> None:
        self.counts: dict[int, int] = {}

    def show(self, number: int, count: int) -> None:
        """So many inputs of a task are done."""
        self.counts[number] = count

    def read(self) -> dict[int, int]:
        """Inputs done, by task."""
        return self.counts


def _read(ray: ModuleType, board: Any) -> dict[int, int]:
    try:
        counts: dict[int, int] = ray.get(board.read.remote(), timeout=LOOK_SECONDS)
        return counts
    except ray.exceptions.RayError:  # it is being started again elsewhere
        return {}


def _run_remotely(run_one: RunOne[T, R], task: T, board: Any, number: int) -> tuple[str, R | MachineFault]:
    """What `run_one` makes of a task, or the fault of this node, and which node this is."""
    node: str = importlib.import_module("ray").get_runtime_context().get_node_id()
    count, told = 0, time.monotonic()

    def on_progress(done: int) -> None:
        nonlocal count, told
        count += done
        if time.monotonic() - told > LOOK_SECONDS:
            told = time.monotonic()
            board.show.remote(number, count)

    try:
        return node, run_one(task, on_progress)
    except MachineFault as fault:
        return node, fault


def _result_of(ray: ModuleType, done: object, task: Task) -> tuple[str, Any]:
    """The node of a finished task, and what it returned or the MachineFault that it met. Raises what else it raised."""
    try:
        found: tuple[str, Any] = ray.get(done)
        return found
    except ray.exceptions.RayTaskError as error:
        raise error.cause if isinstance(error.cause, (Failure, UsageError, OSError)) else error from None
    except ray.exceptions.RayError as error:
        raise Failure(
            f"Ray lost the shard of {task.describe(0)} {RETRIES + 1} times ({str(error).splitlines()[0]}); look "
            "at its nodes and their memory, then run the same command again to continue"
        ) from None


def connect(address: str, workers: int = 0) -> ModuleType:
    """The module `ray`, connected to a cluster, or to one that is started on this machine.

    Raises:
      UsageError: Ray is not installed.
      Failure: nobody answers at the address within `CONNECT_SECONDS`, or not as a cluster should.
    """
    try:
        ray = importlib.import_module("ray")
        importlib.import_module("ray.util.scheduling_strategies")
    except ImportError:
        raise UsageError("--engine=ray needs Ray: pip install 'shardline[ray]'") from None
    if ray.is_initialized():
        return ray
    what = f"--ray_address={address}" if address else f"RAY_ADDRESS={os.environ.get('RAY_ADDRESS', '')}"
    address = address or os.environ.get("RAY_ADDRESS", "")
    local = address in ("", "local")
    if not local:
        _refuse_silent(address, what)
    try:
        ray.init(
            address="local" if local else address,
            num_cpus=workers or None if local else None,
            include_dashboard=False if local else None,
            log_to_driver=False,
            logging_level="error",
        )
    except Exception as error:  # Ray raises bare ones
        where = "on this machine" if local else f"({what})"
        remedy = "take --engine=processes, which needs no Ray" if local else "look at the cluster with ray status"
        said = str(error).strip().splitlines()[0].rstrip(".")
        raise Failure(f"Ray did not start {where}: {said}; run the same command again, or {remedy}") from None
    return ray


def cluster_cpus() -> int:
    """CPUs of the cluster that this process is connected to; of this machine, where it is to none."""
    ray = sys.modules.get("ray")
    return int(ray.cluster_resources().get("CPU", 1)) if ray and ray.is_initialized() else available_cores()


def _refuse_silent(address: str, what: str) -> None:
    """Raise Failure where nobody at HOST:PORT speaks HTTP/2, as gRPC does; Ray itself would try for minutes."""
    found = re.fullmatch(r"(?:ray://)?\[?([^\]/]+?)\]?:(\d+)", address)
    if not found:
        return
    try:
        with socket.create_connection((found[1], int(found[2])), timeout=CONNECT_SECONDS) as connection:
            if os.environ.get("RAY_USE_TLS", "0").lower() not in ("1", "true"):
                connection.sendall(_HELLO)
                if connection.recv(9)[3:4] != _SETTINGS:
                    raise OSError("something else listens")
    except OSError as error:
        raise Failure(
            f"{what}: no Ray cluster answers there ({error.strerror or error}); start one (ray start --head), or name "
            "its HOST:PORT"
        ) from None
