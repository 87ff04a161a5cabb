"""Run one function over many tasks: inline, in processes, or on a Ray cluster. No TensorFlow.

The executor of processes is a pool of its own, because `concurrent.futures` blames every task in flight when one worker
dies and cannot say what the dead one was working on. Here a worker holds one task at a time and shows its position
in shared memory, so the loss of a worker costs one task, which is run again, and a decoder that crashes or hangs costs
one image, which it names.
"""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import os
import signal
import sys
import time
import traceback
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnContext
from types import ModuleType
from typing import Generic, Protocol, Self, TypeVar

from shardline.pipeline import ray_executor
from shardline.pipeline.errors import Failure, UsageError
from shardline.pipeline.options import option
from shardline.pipeline.ray_executor import Cluster

CRASHES = {signal.SIGSEGV, signal.SIGBUS, signal.SIGILL, signal.SIGFPE, signal.SIGABRT}
CRASH, TIMEOUT = "crashes-decoder", "decoder-timeout"  # why a position is left out, and in words:
WHY = {CRASH: "its decoder ended the process, twice", TIMEOUT: "its decoder did not end in time, twice"}
IMAGE_TIMEOUT = 60.0  # seconds, where nobody says otherwise
MAX_DEATHS = 8  # of workers over one task, at whatever positions
TICK_SECONDS = 0.2  # between two looks at the workers


def image_timeout_option(then: str, group: str = "") -> float:
    """A field `image_timeout`, and what happens `then`, when the time is over a second time."""
    field: float = option(
        IMAGE_TIMEOUT,
        f"seconds that decoding one image may take in a worker process before {then}; 0: any time",
        low=0, group=group,
    )  # fmt: skip
    return field


def workers_option() -> int:
    """A field `workers` of a command that uses the executor `inline` for 1."""
    field: int = option(
        0,
        "processes at a time; 0: one for each core; 1: none but this one, which a decoder that crashes or hangs then "
        "ends or stalls",
        low=0,
    )
    return field


@dataclass(frozen=True, kw_only=True)
class Task(ABC):
    """What the executors need to know of a task: its length, and how to go on when one position kills the process.

    Attributes:
      unsafe: positions that are not to be decoded, and why: CRASH or TIMEOUT.
    """

    unsafe: tuple[tuple[int, str], ...] = ()

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def describe(self, position: int) -> str:
        """What stands at `position`, for a message."""

    def without(self, position: int, reason: str) -> Self:
        """The same task with the input at `position` left out: its decoder ended the process, or did not end, twice."""
        return replace(self, unsafe=(*self.unsafe, (position, reason)))


T = TypeVar("T", bound=Task)
R = TypeVar("R")
OnProgress = Callable[[int], None]


class Show(Protocol):
    """How work tells what it is doing."""

    def __call__(self, position: int, decoding: bool = False) -> None:
        """Say that the input at `position` is worked on: read, or `decoding`, which is what `image_timeout` watches."""


Work = Callable[[T, Show], R]


def no_show(position: int, decoding: bool = False) -> None:
    """A `Show` for work that nobody watches."""


def run(
    work: Work[T, R],
    tasks: Sequence[T] | Iterator[T],
    *,
    engine: str = "processes",
    workers: int = 1,
    on_progress: OnProgress = lambda done: None,
    image_timeout: float = IMAGE_TIMEOUT,
    cluster: Cluster = Cluster(),
) -> Iterator[R]:
    """Yield `work(task, show)` of every task, in the order they finish.

    Args:
      work: a module-level function of a task and of a `Show`.
      tasks: consumed as workers get free.
      engine: a name of EXECUTORS.
      workers: how many at a time; with Ray also 0: one for each CPU of the cluster.
      on_progress: called now and then with the number of inputs worked on since the last call.
      image_timeout: seconds that a process may decode one input before it is ended; 0: any. Not for `inline`, where a
        decoder that crashes or hangs ends or stalls this process.
      cluster: which one, for Ray.

    Raises:
      Failure: a worker was lost again and again over the same task.
      Exception: whatever `work` raised, after every worker is stopped.
    """
    if engine not in EXECUTORS:
        raise UsageError(f"--engine={engine}: use {', '.join(EXECUTORS)}")
    if engine == "ray":
        return _ray(work, iter(tasks), workers, on_progress, image_timeout, cluster)
    if workers < 1:
        raise UsageError(f"--workers={workers}: use 1 or more")
    return EXECUTORS[engine](work, iter(tasks), workers, on_progress, image_timeout)


def _inline(
    work: Work[T, R], tasks: Iterator[T], workers: int, on_progress: OnProgress, image_timeout: float
) -> Iterator[R]:
    for task in tasks:
        shown = 0

        def show(position: int, decoding: bool = False) -> None:
            nonlocal shown
            on_progress(position - shown)
            shown = position

        yield work(task, show)
        on_progress(len(task) - shown)


# ------------------------------------------------------------------------------------------------ processes


class Watch:
    """How long one input has been decoded. Told look by look, so that time stands still while all of us are stopped."""

    def __init__(self) -> None:
        self._position, self._seconds, self._looked = -1, 0.0, time.monotonic()

    def is_over(self, limit: float, position: int, decoding: bool) -> bool:
        """Whether the input at `position`, which is being decoded or only read, has taken `limit` seconds; 0: never."""
        before, self._looked = self._looked, time.monotonic()
        passed = min(self._looked - before, 2 * TICK_SECONDS)
        self._seconds = self._seconds + passed if decoding and position == self._position else 0.0
        self._position = position
        return 0 < limit < self._seconds


class _Worker(Generic[T]):
    """One process, the pipe to it, and what it is doing."""

    def __init__(self, context: SpawnContext, work: Work[T, R], task: T, deaths: Sequence[int] = ()) -> None:
        self.position = context.RawValue(ctypes.c_int64, 0)
        self.decoding = context.RawValue(ctypes.c_bool, False)
        self.pipe, theirs = context.Pipe()
        shown = (self.position, self.decoding)
        self.process = context.Process(target=_serve, args=(work, theirs, *shown, os.getpid()), daemon=True)
        with _hidden_main():
            self.process.start()
        theirs.close()
        self.give(task, deaths)

    def give(self, task: T, deaths: Sequence[int] = ()) -> None:
        """Have it work on a task, over which earlier workers died at these positions."""
        self.task, self.deaths, self.shown, self.position.value = task, list(deaths), 0, 0
        self.decoding.value = self.hangs = False
        self.watch = Watch()
        self.pipe.send(task)

    def progress(self, position: int | None = None) -> int:
        """Inputs worked on since the last call, up to its own position or another."""
        before, self.shown = self.shown, self.position.value if position is None else position
        return self.shown - before

    def end_if_it_hangs(self, image_timeout: float) -> None:
        """End the process when it decodes one input for too long."""
        if self.watch.is_over(image_timeout, self.position.value, self.decoding.value):
            self.hangs = True
            self.process.kill()

    def stop(self) -> None:
        """End the process, whatever it is doing."""
        self.pipe.close()
        self.process.terminate()
        self.process.join(2)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()


def _processes(
    work: Work[T, R], tasks: Iterator[T], workers: int, on_progress: OnProgress, image_timeout: float
) -> Iterator[R]:
    context = multiprocessing.get_context("spawn")  # never fork: OpenCV and pyarrow hold threads
    pool: list[_Worker[T]] = []
    try:
        while len(pool) < workers and (task := next(tasks, None)) is not None:
            pool.append(_Worker(context, work, task))
        while pool:
            ready = wait([worker.pipe for worker in pool], timeout=TICK_SECONDS)
            for worker in list(pool):
                if worker.pipe not in ready:
                    on_progress(worker.progress())
                    worker.end_if_it_hangs(image_timeout)
                    continue
                try:
                    result, error = worker.pipe.recv()
                except (EOFError, OSError):  # it died
                    worker.process.join()
                    on_progress(worker.progress(0))
                    pool.remove(worker)
                    pool.append(_Worker(context, work, *_after_death(worker)))
                    continue
                if error is not None:
                    raise error
                on_progress(worker.progress(len(worker.task)))
                if (task := next(tasks, None)) is not None:
                    worker.give(task)
                else:
                    pool.remove(worker)
                    worker.stop()
                yield result
    finally:
        for worker in pool:
            worker.pipe.close()
            worker.process.terminate()
        for worker in pool:
            worker.stop()


@contextlib.contextmanager
def _hidden_main() -> Iterator[None]:
    """A process started within does not import the caller's script again, which may be heavy, or have no `__main__`
    guard and convert again. What a worker runs lies in modules of its own.
    """
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def _after_death(worker: _Worker[T]) -> tuple[T, list[int]]:
    """The task to run again, and where its workers died so far. Raises Failure when that is pointless."""
    task, position, deaths = worker.task, worker.position.value, [*worker.deaths, worker.position.value]
    if reason := why_left_out(deaths, worker.process.exitcode or 0, worker.hangs, "one shard", task.describe(position)):
        return task.without(position, reason), []
    return task, deaths


def why_left_out(deaths: Sequence[int], code: int, hangs: bool, what: str, where: str) -> str:
    """CRASH or TIMEOUT when the input over which a process ended last has ended one before; "" to try it once more.

    Args:
      deaths: positions over which processes ended, the last one last; negative: over none.
      code: how the last one ended, as `exitcode` has it.
      hangs: it was ended because its decoder did not.
      what: the work, for the message.
      where: what stands at the last position, for the message.

    Raises:
      Failure: processes end again and again, and not because of a decoder.
    """
    *earlier, position = deaths
    again = position in earlier
    if again and position >= 0 and (hangs or -code in CRASHES):
        return TIMEOUT if hangs else CRASH
    if again or len(deaths) > MAX_DEATHS:
        how = f"killed by signal {-code}" if code < 0 else f"ended with code {code}"
        raise Failure(
            f"a worker was {how} {len(deaths)} times over {what}, last while it read {where}; "
            "if memory ran out, use fewer --workers or close other programs; run the command again to continue"
        )
    return ""


def _serve(work: Work[T, R], pipe: Connection, at: ctypes.c_int64, decodes: ctypes.c_bool, parent: int) -> None:
    """Body of a worker process: tasks in, (result, error) out, until the pipe closes."""
    _die_with(parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the whole group; the parent decides
    signal.signal(signal.SIGTERM, signal.SIG_DFL)

    def show(position: int, decoding: bool = False) -> None:
        at.value, decodes.value = position, decoding

    while True:
        try:
            task = pipe.recv()
        except EOFError:
            return
        answer: tuple[R | None, BaseException | None]
        try:
            answer = (work(task, show), None)
        except (Failure, UsageError, OSError) as error:
            answer = (None, error)
        except MemoryError:
            where = task.describe(at.value)
            answer = (None, Failure(f"out of memory at {where}; use fewer --workers, or close other programs"))
        except BaseException:
            answer = (None, RuntimeError(f"in a worker:\n{traceback.format_exc()}"))
        try:
            pipe.send(answer)
        except OSError:
            return


def _die_with(parent: int) -> None:
    """Have the kernel end this process when its parent is gone, however it went (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    if os.getppid() != parent:  # it went before the line above
        os._exit(1)


# ------------------------------------------------------------------------------------------------------ ray


def _ray(
    work: Work[T, R],
    tasks: Iterator[T],
    workers: int,
    on_progress: OnProgress,
    image_timeout: float,
    cluster: Cluster = Cluster(),
) -> Iterator[R]:
    return ray_executor.run(partial(_alone, work, image_timeout), tasks, workers, on_progress, cluster)


def _alone(work: Work[T, R], image_timeout: float, task: T, on_progress: OnProgress) -> R:
    """What `work` makes of a task in a process of its own, where a decoder that crashes or hangs costs one image."""
    (result,) = _processes(work, iter([task]), 1, on_progress, image_timeout)
    return result


EXECUTORS = {"processes": _processes, "inline": _inline, "ray": _ray}  # --engine's choices
