"""Run one function over many tasks: inline, in processes, or on a Ray cluster. No TensorFlow.

The process engine is a pool of its own, because `concurrent.futures` blames every task in flight when one worker
dies and cannot say what the dead one was working on. Here a worker holds one task at a time and shows its position
in shared memory, so the loss of a worker costs one task, which is run again, and a decoder crash names its image.
"""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import os
import signal
import sys
import traceback
import types
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from typing import Any, Protocol, TypeVar

from shardline.pipeline.errors import Failure, UsageError

ENGINES = ("processes", "inline", "ray")
CRASHES = {signal.SIGSEGV, signal.SIGBUS, signal.SIGILL, signal.SIGFPE, signal.SIGABRT}
MAX_DEATHS = 8  # of workers over one task, at whatever positions
RAY_RETRIES = 3  # of a task whose worker died


class Task(Protocol):
    """What the engines need to know of a task: its length, and how to go on when one position kills the process."""

    def __len__(self) -> int: ...

    def without(self, position: int) -> Any:
        """The same task with the input at `position` left out."""

    def describe(self, position: int) -> str:
        """What stands at `position`, for a message."""


T = TypeVar("T", bound=Task)
R = TypeVar("R")
Work = Callable[[T, Callable[[int], None]], R]


def run(
    work: Work[T, R],
    tasks: Sequence[T] | Iterator[T],
    *,
    engine: str = "processes",
    workers: int = 1,
    on_progress: Callable[[int], None] = lambda done: None,
) -> Iterator[R]:
    """Yield `work(task, show)` of every task, in the order they finish.

    Args:
      work: a module-level function of a task and of a callable that takes the position being worked on.
      tasks: consumed as workers get free.
      engine: processes, inline or ray.
      workers: how many at a time.
      on_progress: called now and then with the number of inputs worked on since the last call.

    Raises:
      Failure: a worker was lost again and again over the same task.
      Exception: whatever `work` raised, after every worker is stopped.
    """
    if engine not in ENGINES:
        raise UsageError(f"--engine={engine}: use {', '.join(ENGINES)}")
    if workers < 1:
        raise UsageError(f"--workers={workers}: use 1 or more")
    runner = {"inline": _inline, "processes": _processes, "ray": _ray}[engine]
    return runner(work, iter(tasks), workers, on_progress)


def _inline(work: Work[T, R], tasks: Iterator[T], workers: int, on_progress: Callable[[int], None]) -> Iterator[R]:
    for task in tasks:
        shown = 0

        def show(position: int) -> None:
            nonlocal shown
            on_progress(position - shown)
            shown = position

        yield work(task, show)
        on_progress(len(task) - shown)


# ------------------------------------------------------------------------------------------------ processes


class _Worker:
    """One process, the pipe to it, and what it is doing."""

    def __init__(self, context: Any, work: Callable[..., Any]):
        self.position = context.RawValue(ctypes.c_int64, 0)
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(work, theirs, self.position, os.getpid()), daemon=True)
        with _hidden_main():
            self.process.start()
        theirs.close()
        self.task: Any = None
        self.deaths: list[int] = []  # positions at which this task's earlier workers died
        self.shown = 0  # of the position, already reported

    def give(self, task: Any, deaths: list[int]) -> None:
        self.task, self.deaths, self.shown, self.position.value = task, deaths, 0, 0
        self.pipe.send(task)

    def stop(self) -> None:
        self.pipe.close()
        self.process.terminate()
        self.process.join(2)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()


def _processes(work: Work[T, R], tasks: Iterator[T], workers: int, on_progress: Callable[[int], None]) -> Iterator[R]:
    context = multiprocessing.get_context("spawn")  # never fork: OpenCV and pyarrow hold threads
    pool: list[_Worker] = []

    def show_progress(worker: _Worker, position: int) -> None:
        on_progress(position - worker.shown)
        worker.shown = position

    try:
        while len(pool) < workers and (task := next(tasks, None)) is not None:
            pool.append(_Worker(context, work))
            pool[-1].give(task, [])
        while pool:
            ready = wait([worker.pipe for worker in pool], timeout=0.2)
            for worker in list(pool):
                if worker.pipe not in ready:
                    show_progress(worker, worker.position.value)
                    continue
                try:
                    result, error = worker.pipe.recv()
                except (EOFError, OSError):  # it died
                    pool.remove(worker)
                    worker.process.join()
                    show_progress(worker, 0)
                    pool.append(_Worker(context, work))
                    pool[-1].give(*_after_death(worker))
                    continue
                if error is not None:
                    raise error
                show_progress(worker, len(worker.task))
                task = next(tasks, None)
                if task is None:
                    pool.remove(worker)
                    worker.stop()
                else:
                    worker.give(task, [])
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
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def _after_death(worker: _Worker) -> tuple[Any, list[int]]:
    """The task to run again, and where its workers died so far. Raises Failure when that is pointless."""
    task, position, code = worker.task, worker.position.value, worker.process.exitcode or 0
    deaths = [*worker.deaths, position]
    again = position in worker.deaths
    if again and -code in CRASHES:
        return task.without(position), []
    if again or len(deaths) > MAX_DEATHS:
        how = f"killed by signal {-code}" if code < 0 else f"ended with code {code}"
        raise Failure(
            f"a worker was {how} {len(deaths)} times over one shard, last while it read {task.describe(position)}; "
            "if memory ran out, use fewer --workers or a lower --max_megapixels; run the command again to continue"
        )
    return task, deaths


def _serve(work: Callable[..., Any], pipe: Connection, position: Any, parent: int) -> None:
    """Body of a worker process: tasks in, (result, error) out, until the pipe closes."""
    _die_with(parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the whole group; the parent decides
    signal.signal(signal.SIGTERM, signal.SIG_DFL)

    def show(now: int) -> None:
        position.value = now

    while True:
        try:
            task = pipe.recv()
        except EOFError:
            return
        answer: tuple[Any, BaseException | None]
        try:
            answer = (work(task, show), None)
        except (Failure, UsageError, OSError) as error:
            answer = (None, error)
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


def _ray(work: Work[T, R], tasks: Iterator[T], workers: int, on_progress: Callable[[int], None]) -> Iterator[R]:
    try:
        import ray
    except ImportError:
        raise UsageError("--engine=ray needs Ray: pip install 'shardline[ray]'") from None

    if not ray.is_initialized():
        address = os.environ.get("RAY_ADDRESS")  # a cluster when there is one, else this machine
        try:
            ray.init(
                address=address,
                num_cpus=None if address else workers,
                include_dashboard=False,
                log_to_driver=False,
                logging_level="error",
            )
        except Exception as error:  # Ray raises bare ones
            where = f"at RAY_ADDRESS={address}" if address else "on this machine"
            raise Failure(f"Ray did not start {where}: {str(error).splitlines()[0]}") from None
    remote = ray.remote(max_retries=RAY_RETRIES)(_ray_work)
    running: dict[Any, T] = {}
    exhausted = False
    while running or not exhausted:
        while len(running) < workers and not exhausted:
            task = next(tasks, None)
            if task is None:
                exhausted = True
                break
            running[remote.remote(work, task)] = task
        if not running:
            break
        done, _ = ray.wait(list(running), num_returns=1)
        task = running.pop(done[0])
        try:
            result = ray.get(done[0])
        except ray.exceptions.RayTaskError as error:
            raise error.cause if isinstance(error.cause, (Failure, UsageError, OSError)) else error from None
        except ray.exceptions.RayError as error:
            raise Failure(
                f"Ray lost the shard of {task.describe(0)} {RAY_RETRIES + 1} times ({str(error).splitlines()[0]}); run "
                "again to continue: with --engine=processes, if an image may crash its decoder, to set it aside"
            ) from None
        on_progress(len(task))
        yield result


def _ray_work(work: Callable[..., Any], task: Any) -> Any:
    return work(task, lambda position: None)
