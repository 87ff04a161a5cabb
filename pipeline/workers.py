"""Batches made by other processes, in memory they share with this one. No TensorFlow.

Threads of one process take turns at the Python interpreter, for a tenth of the time that an image takes: on two cores,
two threads were 1.58 times as fast as one, two workers 1.91 times, and two programs that share nothing 1.94 times.

A batch is a pure function of its positions, so it does not matter which process makes it, and nothing waits for a
worker: while one starts, when all are busy, and when one was killed, the thread that needs a batch makes it itself. But
where a decoder ended a worker, another worker tries; the record that ends that one, too, is bad, and decoded no more.

A worker holds no index and no sampler: each task names its records and where they lie. A worker ends with the process
that started it, whose end closes the worker's standard input.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import math
import mmap
import os
import pickle
import queue
import subprocess
import sys
import threading
import uuid
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property, partial

import numpy as np

from shardline.pipeline.batches import BadRecords, Batch, BatchBuilder
from shardline.pipeline.buffers import SharedBufferPool
from shardline.pipeline.executors import CRASHES
from shardline.pipeline.machine import available_memory
from shardline.pipeline.profiling import StageTimer
from shardline.pipeline.sampler import PADDING
from shardline.pipeline.shards import BadRecord

_log = logging.getLogger(__name__)

PREFETCHED = 2  # batches that tf.data holds ready
_HELD_BY_A_REPLICA = (
    4  # on the way to it: one in host memory, one beside the one it works on, and one that is asked for
)
_MEMORY_SHARE = 0.5  # of what is free, that batches in flight may take
_MIN_SAMPLES = 4096  # some seconds of work: shorter runs do not repay the start of workers
_TIMEOUT_SECONDS = 5.0  # for a worker to end
_MAX_SETUPS = 4  # that a worker keeps
_MARK_BYTES = 8


@dataclass(frozen=True)
class _Task:
    """One batch to make: where in the shared memory, of which records, and where they lie."""

    key: str
    setup: bytes | None  # of the key, for a worker that does not know it
    start: int
    positions: np.ndarray
    records: np.ndarray
    locations: np.ndarray  # rows of the index
    on_device: bool
    unsafe: frozenset[tuple[str, int]]  # records not to decode


class _Setup:
    """What the tasks of one stream have in common; pickled by this process, opened by a worker."""

    def __init__(self, batches: BatchBuilder, buffers: SharedBufferPool) -> None:
        self.kind, self.shards, self.image, self.exact = type(batches), batches.shards, batches.image, batches.exact
        # A worker names every bad record it meets: how many are too many is decided by the process that asks.
        self.config = replace(batches.config, cache="none", max_bad_records=sys.maxsize)
        self._path, self._bytes = f"/proc/{os.getpid()}/fd/{buffers.file}", buffers.bytes

    @cached_property
    def memory(self) -> mmap.mmap:
        """The shared memory; to be asked for in the worker."""
        with open(self._path, "r+b") as file:
            return mmap.mmap(file.fileno(), self._bytes)


@dataclass(frozen=True)
class _Answer:
    """A worker's result: the batch without its pixels, bad records and seconds by stage; or an error."""

    batch: Batch = field(default_factory=dict)
    bad_records: list[BadRecord] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    cpu_seconds: dict[str, float] = field(default_factory=dict)
    error: Exception | None = None


class Workers:
    """Has the batches of one stream made by this process's workers.

    Args:
      count: how many workers there should be at least, for all streams together.
      batch_bytes: pixels of a batch.
      at_once: start them, and wait for them, with the first batch; otherwise in the background, in long runs.
      pieces: of shared memory, each for one batch: see `pieces_in_flight`.

    Attributes:
      missed: batches that no worker made, by what was wanting: a worker, or a piece of memory.
    """

    def __init__(self, count: int, batch_bytes: int, at_once: bool, pieces: int = 16) -> None:
        self._count, self._at_once = count, at_once
        self._buffers = SharedBufferPool(pieces, batch_bytes)
        self.missed: Counter[str] = Counter()
        self._key = uuid.uuid4().hex
        self._setup = b""

    def train(self, batches: BatchBuilder, positions: np.ndarray, on_device: bool) -> Batch | None:
        """What `batches.train` returns, made by a worker; None when none is free."""
        side = batches.side(on_device)
        return self._make(batches, positions, (side, side, 3), on_device)

    def evaluation(self, batches: BatchBuilder, positions: np.ndarray) -> Batch | None:
        """What `batches.evaluation` returns, made by a worker; None when none is free."""
        return self._make(batches, positions, batches.config.eval_shape, False)

    def _make(
        self, batches: BatchBuilder, positions: np.ndarray, shape: tuple[int, ...], on_device: bool
    ) -> Batch | None:
        if self._at_once or batches.timer.samples >= _MIN_SAMPLES:
            _pool.grow(self._count, wait=self._at_once)
        worker = _pool.take()
        if worker is None:
            self.missed["worker"] += 1
            return None
        found = self._buffers.empty((len(positions), *shape))
        if found is None:
            self.missed["memory"] += 1
            _pool.put(worker)
            return None
        image, start = found
        records = batches.sampler.records(positions)
        locations = batches.shards.locations(records[records != PADDING])
        unsafe = batches.bad.unsafe
        task = _Task(self._key, None, start, positions, records, locations, on_device, frozenset(unsafe))
        deaths: Counter[int] = Counter()
        while not (answer := self._answer(worker, task, batches)):
            record = worker.crashed_at(records)
            if record is None:
                worker.warn("its work is done without it")
                return None
            worker.warn(f"it decoded record {record} of {batches.shards.split}")
            deaths[record] += 1
            successor = _pool.replace()
            if deaths[record] == 2 or successor is None:
                unsafe.add((batches.shards.split, record))
                task = replace(task, unsafe=frozenset(unsafe))
            if successor is None:
                return None
            worker = successor
        _pool.put(worker)
        if answer.error:
            raise answer.error
        for bad in answer.bad_records:
            batches.bad.add(bad, batches.config.max_bad_records)
        batches.timer.add(answer.seconds, answer.cpu_seconds, len(positions))
        return {"image": image, **answer.batch}

    def _answer(self, worker: _Worker, task: _Task, batches: BatchBuilder) -> _Answer | None:
        """A worker's answer; None if it ended instead."""
        try:
            answer = worker.ask(task) or worker.ask(replace(task, setup=self._described(batches)))
        except (OSError, EOFError, ValueError, pickle.UnpicklingError):
            return None
        assert answer  # it now knows the setup
        return answer

    def _described(self, batches: BatchBuilder) -> bytes:
        if not self._setup:
            self._setup = pickle.dumps(_Setup(batches, self._buffers))
        return self._setup


def pieces_in_flight(threads: int, replicas: int, batch_bytes: int) -> int:
    """Batches that can be under way at once: one for each thread that makes or has made one, those that wait, and
    those that replicas hold; fewer where that would take more than half of the memory that is free."""
    wanted = threads + PREFETCHED + _HELD_BY_A_REPLICA * replicas
    fit = int(_MEMORY_SHARE * available_memory() / max(batch_bytes, 1))
    if fit < wanted:
        _log.warning(
            "%d batches of %.3g MB may be under way, more than %.0f %% of the free memory: workers make %d at a time; "
            "use a smaller batch, or fewer --threads",
            wanted, batch_bytes / 1e6, 100 * _MEMORY_SHARE, max(1, fit),
        )  # fmt: skip
    return max(1, min(wanted, fit))


class _Worker:
    """One process, its pipes, and what it decodes."""

    def __init__(self, process: subprocess.Popen[bytes], mark: mmap.mmap) -> None:
        self.process, self._mark = process, mark

    def ask(self, task: _Task) -> _Answer | None:
        """Its answer; None when it does not know the task's setup."""
        assert self.process.stdin and self.process.stdout
        pickle.dump(task, self.process.stdin)
        self.process.stdin.flush()
        answer: _Answer | None = pickle.load(self.process.stdout)
        return answer

    def warn(self, what: str) -> None:
        """Say that it ended, unless all are to end."""
        if not _pool.closed:
            _log.warning("an input worker ended (exit code %s); %s", self.process.wait(), what)

    def crashed_at(self, records: np.ndarray) -> int | None:
        """The one of these records whose decoder ended the process; None if it ended otherwise."""
        record = int.from_bytes(self._mark[:8], "little")
        return record if -self.process.wait() in CRASHES and record in records else None


class _Pool:
    """This process's workers. Thread-safe."""

    def __init__(self) -> None:
        self.closed = False
        self._count = 0
        self._growing = threading.Lock()
        self._idle: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
        self._processes: list[subprocess.Popen[bytes]] = []

    def grow(self, count: int, wait: bool) -> None:
        """Start workers until `count` were started. One that ended is not replaced here: its successor would, too."""
        if self._count >= count:
            return
        with self._growing:
            starters = [threading.Thread(target=self._grow_by_one, daemon=True) for _ in range(self._count, count)]
            for starter in starters:
                starter.start()
            for starter in starters if wait else ():
                starter.join()
            self._count = max(self._count, count)

    def replace(self) -> _Worker | None:
        """A new worker for one whose decoder ended it; None if it does not start."""
        return None if self.closed else self._start()

    def take(self) -> _Worker | None:
        """A worker that has nothing to do."""
        with contextlib.suppress(queue.Empty):
            return self._idle.get_nowait()
        return None

    def put(self, worker: _Worker) -> None:
        """Give it back."""
        self._idle.put(worker)

    def close(self) -> None:
        """End all workers."""
        self.closed = True
        for process in self._processes:
            assert process.stdin
            with contextlib.suppress(OSError):
                process.stdin.close()
        for process in self._processes:
            assert process.stdout
            try:
                process.wait(_TIMEOUT_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            process.stdout.close()

    def _grow_by_one(self) -> None:
        if worker := self._start():
            self._idle.put(worker)

    def _start(self) -> _Worker | None:
        paths = os.pathsep.join(filter(None, sys.path))  # it finds what this process found
        file = os.memfd_create("shardline worker")
        try:
            os.ftruncate(file, _MARK_BYTES)
            process = subprocess.Popen(
                # Not -m: the classes of a module that runs as __main__ are unknown to this process.
                [sys.executable, "-P", "-c", f"from shardline.pipeline import workers; workers.work({file})"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env={**os.environ, "PYTHONPATH": paths, "OPENBLAS_NUM_THREADS": "1"},
                start_new_session=True,  # Ctrl-C is for the parent; a worker ends with it
                pass_fds=(file,),
            )
            mark = mmap.mmap(file, _MARK_BYTES)
        except OSError as error:
            _log.warning("an input worker cannot be started (%s); its work is done without it", error)
            return None
        finally:
            os.close(file)
        self._processes.append(process)
        assert process.stdout
        if process.stdout.read(1):
            return _Worker(process, mark)
        if not self.closed:
            _log.warning("an input worker did not start (exit code %s); its work is done without it", process.wait())
        return None


_pool = _Pool()
atexit.register(lambda: _pool.close())


# ------------------------------------------------------------------------------------------ in the worker


@dataclass
class _TaskSampler:
    """The `Sampler` of one task, which names the records itself."""

    task: _Task

    def records(self, positions: np.ndarray) -> np.ndarray:
        return self.task.records


@dataclass
class _TaskBuffers:
    """The `Buffers` of one task: the piece of the shared memory that it names."""

    task: _Task
    memory: mmap.mmap

    def empty(self, shape: tuple[int, ...]) -> np.ndarray:
        return np.frombuffer(self.memory, np.uint8, math.prod(shape), self.task.start).reshape(shape)


def work(mark: int) -> None:
    """Make batches for the process at the other end of standard input and output, until it closes them.

    `mark` is an open file of eight bytes, which always hold the number of the record that is decoded.
    """
    with mmap.mmap(mark, _MARK_BYTES) as shared, contextlib.suppress(BrokenPipeError):  # the parent ended

        def show(record: int) -> None:
            shared[:] = record.to_bytes(_MARK_BYTES, "little")

        _work(show)


def _work(show: Callable[[int], None]) -> None:
    inbox, outbox = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what libraries print must not reach the pipe
    logging.disable()  # the parent reports bad records, once
    known: dict[str, _Setup] = {}
    outbox.write(b"\n")
    outbox.flush()
    while True:
        try:
            task = pickle.load(inbox)
        except EOFError:
            return
        if task.setup:
            while len(known) >= _MAX_SETUPS:
                del known[next(iter(known))]  # the oldest
            known[task.key] = pickle.loads(task.setup)
        pickle.dump(_answer(task, known[task.key], show) if task.key in known else None, outbox)
        outbox.flush()


def _answer(task: _Task, setup: _Setup, show: Callable[[int], None]) -> _Answer:
    setup.shards.locate(task.records[task.records != PADDING], task.locations)
    bad, timer = BadRecords(), StageTimer()
    bad.unsafe.update(task.unsafe)
    batches = setup.kind(
        setup.shards,
        setup.config,
        setup.image,
        bad=bad,
        timer=timer,
        exact=setup.exact,
        sampler=_TaskSampler(task),
        buffers=_TaskBuffers(task, setup.memory),
        on_record=show,
    )
    try:
        make = batches.evaluation if setup.exact else partial(batches.train, on_device=task.on_device)
        batch = make(task.positions)
    except Exception as error:
        return _Answer(error=error)
    del batch["image"]  # it is in the shared memory
    return _Answer(batch, list(bad.records.values()), dict(timer.seconds), dict(timer.cpu_seconds))
