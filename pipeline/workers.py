"""Batches made by other processes, in memory they share with this one. No TensorFlow.

Threads of one process take turns at the Python interpreter, for a tenth of the time that an image takes: on two cores,
two threads were 1.58 times as fast as one, two workers 1.91 times, and two programs that share nothing 1.94 times.

And a decoder that crashes or hangs ends a worker instead of the command: nothing is decoded here. A batch is a pure
function of its positions, so when a worker ends, for whatever reason, another process makes its batch; the record that
a second one decoded when it crashed, or did not end, is bad, and decoded no more.

A worker holds no index and no sampler: each task names its records and where they lie. A worker ends with the process
that started it, whose end closes the worker's standard input.
"""

from __future__ import annotations

import contextlib
import logging
import math
import mmap
import os
import pickle
import select
import struct
import subprocess
import sys
import threading
import uuid
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property, partial

import numpy as np

from shardline.pipeline import exit_guard
from shardline.pipeline.batches import BadRecords, Batch, BatchBuilder, Found
from shardline.pipeline.buffers import BufferPool, SharedBufferPool
from shardline.pipeline.config import InputConfig
from shardline.pipeline.errors import Failure
from shardline.pipeline.executors import IMAGE_TIMEOUT, TICK_SECONDS, Show, Watch, why_left_out
from shardline.pipeline.machine import available_cores, available_memory
from shardline.pipeline.manifest import ImageFormat
from shardline.pipeline.profiling import StageTimer
from shardline.pipeline.sampler import PADDING
from shardline.pipeline.shards import BadRecord, Shards

_log = logging.getLogger(__name__)

PREFETCHED = 2  # batches that tf.data holds ready
_HELD_BY_A_REPLICA = (
    4  # on the way to it: one in host memory, one beside the one it works on, and one that is asked for
)
_MEMORY_SHARE = 0.5  # of what is free, that batches in flight may take
_TIMEOUT_SECONDS = 5.0  # for a worker to end
_MAX_SETUPS = 4  # that a worker keeps
_AHEAD = 8  # workers that are started before it is known how many batches there will be
_IMAGES_A_TASK = 8  # whole ones, which come through a pipe
_MARK = struct.Struct("<q?")  # the record that a worker reads, and whether it decodes it


@dataclass(frozen=True)
class _Task:
    """Something to make: a batch, or the images of some records; of which records, and where they lie."""

    key: str
    setup: bytes | None  # of the key, for a worker that does not know it
    start: int | None  # of the batch in the shared memory; None: to be sent
    positions: np.ndarray | None  # of the batch; None: the images are wanted
    records: np.ndarray
    locations: np.ndarray  # rows of the index
    on_device: bool
    unsafe: dict[tuple[str, int], str]  # records not to decode, and why


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
    """A worker's result: the batch, without its pixels where they are in the shared memory, bad records and seconds by
    stage; or images; or an error."""

    batch: Batch = field(default_factory=dict)
    bad_records: list[BadRecord] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    cpu_seconds: dict[str, float] = field(default_factory=dict)
    found: dict[int, Found] = field(default_factory=dict)
    error: Exception | None = None


class Workers:
    """Has the batches of one stream made by this process's workers.

    Args:
      count: how many workers there may be, for all streams together; each starts when a batch first waits for it.
      batch_bytes: pixels of a batch.
      pieces: of shared memory, each for one batch: see `pieces_in_flight`.

    Attributes:
      sent: batches that came through a pipe, which is slower, for want of a piece of memory.
    """

    def __init__(self, count: int, batch_bytes: int, pieces: int = 16) -> None:
        self._count = count
        self._buffers = SharedBufferPool(pieces, batch_bytes)
        self.sent = 0
        self._key = uuid.uuid4().hex
        self._setup = b""

    def train(self, batches: BatchBuilder, positions: np.ndarray, on_device: bool) -> Batch:
        """What `batches.train` returns, made by a worker."""
        if batches.cache:
            return batches.train(positions, on_device, batches.through_cache(positions, partial(self.images, batches)))
        side = batches.side(on_device)
        return self._batch(batches, positions, (side, side, 3), on_device)

    def evaluation(self, batches: BatchBuilder, positions: np.ndarray) -> Batch:
        """What `batches.evaluation` returns, made by a worker."""
        if batches.cache:
            return batches.evaluation(positions, batches.through_cache(positions, partial(self.images, batches)))
        return self._batch(batches, positions, batches.config.eval_shape, False)

    def images(self, batches: BatchBuilder, records: Sequence[int]) -> dict[int, Found]:
        """The whole images of some records, decoded by a worker, with their labels; or what is wrong with them."""
        if not records:
            return {}
        answer = self._answer(batches, self._task(batches, np.array(records, np.int64)))
        batches.timer.add(answer.seconds, answer.cpu_seconds, 0)
        return answer.found

    def _batch(self, batches: BatchBuilder, positions: np.ndarray, shape: tuple[int, ...], on_device: bool) -> Batch:
        task = self._task(batches, batches.sampler.records(positions))
        place = self._buffers.empty((len(positions), *shape))
        image, start = place or (None, None)
        self.sent += image is None
        answer = self._answer(batches, replace(task, positions=positions, start=start, on_device=on_device))
        for bad in answer.bad_records:
            batches.bad.add(bad, batches.config.max_bad_records)
        batches.timer.add(answer.seconds, answer.cpu_seconds, len(positions))
        return answer.batch if image is None else {"image": image, **answer.batch}

    def _task(self, batches: BatchBuilder, records: np.ndarray) -> _Task:
        locations = batches.shards.locations(records[records != PADDING])
        return _Task(self._key, None, None, None, records, locations, False, {})

    def _answer(self, batches: BatchBuilder, task: _Task) -> _Answer:
        """A worker's answer, of the second or third if the first ones end instead. Raises the error that it met."""
        if not self._setup:
            self._setup = pickle.dumps(_Setup(batches, self._buffers))
        timeout = batches.config.image_timeout
        deaths: list[int] = []
        with _pool.worker(self._count) as worker:
            while not (answer := worker.ask(replace(task, unsafe=dict(batches.bad.unsafe)), self._setup, timeout)):
                _pool.refuse_if_closed()
                _note_death(worker, task, batches, deaths)
        if answer.error:
            raise answer.error
        return answer


def _note_death(worker: _Worker, task: _Task, batches: BatchBuilder, deaths: list[int]) -> None:
    """Add the record over which a worker ended to `deaths`; the second time, have nobody decode it any more.

    Raises:
      Failure: another try would be pointless.
    """
    record, code = worker.buried()
    record = record if record in task.records else -1
    split = batches.shards.split
    over = f"record {record} of {split}" if record >= 0 else f"no record of {split}"
    _log.warning(
        "an input worker ended (%s); %s",
        "killed, as its decoder did not end" if worker.hangs else f"exit code {code}",
        f"it decoded {over}" if record >= 0 else "another one does its work",
    )
    deaths.append(record)
    if reason := why_left_out(deaths, code, worker.hangs, "one batch", over):
        batches.bad.unsafe[split, record] = reason
        deaths.clear()


def stored_images(
    shards: Shards, image: ImageFormat, records: Sequence[int], image_timeout: float = IMAGE_TIMEOUT
) -> Iterator[Found]:
    """The images of some records as evaluation reads them, with their labels, in the order asked for; or what is wrong
    with them. They are decoded by a worker, where a decoder that crashes or hangs costs one of them.
    """
    batches = BatchBuilder(shards, InputConfig(image_timeout=image_timeout), image, exact=True)
    parts = [
        list(map(int, records[first : first + _IMAGES_A_TASK])) for first in range(0, len(records), _IMAGES_A_TASK)
    ]
    count = max(1, min(available_cores(), len(parts)))
    workers = Workers(count, 1, 1)
    with ThreadPoolExecutor(count) as threads:
        for first in range(0, len(parts), count):
            some = parts[first : first + count]
            for part, found in zip(some, threads.map(partial(workers.images, batches), some), strict=True):
                yield from (found[record] for record in part)


def start_ahead(count: int) -> None:
    """Start up to `count` workers in the background, each of which takes a third of a second."""

    def start() -> None:
        # Whoever needs one that cannot be started says so.
        with contextlib.suppress(Failure), _pool.worker(count):
            pass

    for _ in range(min(count, _AHEAD)):
        threading.Thread(target=start, daemon=True).start()


def pieces_in_flight(threads: int, replicas: int, batch_bytes: int) -> int:
    """Batches that can be under way at once: one for each thread that makes or has made one, those that wait, and
    those that replicas hold; fewer where that would take more than half of the memory that is free."""
    wanted = threads + PREFETCHED + _HELD_BY_A_REPLICA * replicas
    fit = int(_MEMORY_SHARE * available_memory() / max(batch_bytes, 1))
    if fit < wanted:
        _log.warning(
            "%d batches of %.3g MB may be under way, more than %.0f %% of the free memory: all but %d take a "
            "slower way; use a smaller batch, or fewer --threads",
            wanted, batch_bytes / 1e6, 100 * _MEMORY_SHARE, max(1, fit),
        )  # fmt: skip
    return max(1, min(wanted, fit))


class _Worker:
    """One process at a time, its pipes, and what it decodes.

    Attributes:
      hangs: its last process was ended because a decoder did not.
    """

    def __init__(self) -> None:
        self.process: subprocess.Popen[bytes] | None = None
        self.hangs = False
        self._mark: mmap.mmap | None = None

    def start(self) -> None:
        """Start a process, unless there is one. Raises Failure where that fails."""
        if self.process:
            return
        paths = os.pathsep.join(filter(None, sys.path))  # it finds what this process found
        file = os.memfd_create("shardline worker")
        try:
            os.ftruncate(file, _MARK.size)
            self._mark = mmap.mmap(file, _MARK.size)
            self.process = subprocess.Popen(
                # Not -m: the classes of a module that runs as __main__ are unknown to this process.
                [sys.executable, "-P", "-c", f"from shardline.pipeline import workers; workers.work({file})"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env={**os.environ, "PYTHONPATH": paths, "OPENBLAS_NUM_THREADS": "1"},
                start_new_session=True,  # Ctrl-C is for the parent; a worker ends with it
                pass_fds=(file,),
            )
        except OSError as error:
            raise _cannot_start(error.strerror or str(error)) from None
        finally:
            os.close(file)
        assert self.process.stdout
        if not self.process.stdout.read(1):
            raise _cannot_start(f"exit code {self.buried()[1]}")

    def ask(self, task: _Task, setup: bytes, image_timeout: float) -> _Answer | None:
        """Its answer; None if it ended instead, or was ended because one image took longer than `image_timeout`."""
        self.start()
        assert self._mark
        self._mark[:] = _MARK.pack(-1, False)
        self.hangs = False
        try:
            return self._ask(task, image_timeout) or self._ask(replace(task, setup=setup), image_timeout)
        except (OSError, EOFError, ValueError, pickle.UnpicklingError):
            return None

    def _ask(self, task: _Task, image_timeout: float) -> _Answer | None:
        """Its answer; None when it does not know the task's setup."""
        assert self.process and self.process.stdin and self.process.stdout and self._mark
        pickle.dump(task, self.process.stdin)
        self.process.stdin.flush()
        ready, watch = select.poll(), Watch()
        ready.register(self.process.stdout, select.POLLIN)
        while not ready.poll(TICK_SECONDS * 1e3):
            if watch.is_over(image_timeout, *_MARK.unpack(self._mark[:])):
                self.hangs = True
                self.process.kill()
                break
        answer: _Answer | None = pickle.load(self.process.stdout)
        return answer

    def buried(self) -> tuple[int, int]:
        """End its process, if it did not end, and forget it.

        Returns:
          The record that it read, -1 for none, and how it ended, as `Popen.returncode` has it.
        """
        process, mark, self.process, self._mark = self.process, self._mark, None, None
        assert process and process.stdin and process.stdout
        process.kill()
        code = process.wait()
        for pipe in (process.stdin, process.stdout):
            with contextlib.suppress(OSError):  # what was not sent yet
                pipe.close()
        return (_MARK.unpack(mark[:])[0] if mark else -1), code


def _cannot_start(reason: str) -> Failure:
    return Failure(f"no input worker, which decodes images, can be started ({reason}); end other programs")


class _Pool:
    """This process's workers. Thread-safe."""

    def __init__(self) -> None:
        self._all: list[_Worker] = []
        self._idle: list[_Worker] = []
        self._most = sys.maxsize  # that this machine lets us start
        self._closed = False
        self._changed = threading.Condition()

    @contextlib.contextmanager
    def worker(self, most: int) -> Iterator[_Worker]:
        """One that nobody else asks meanwhile, which may be waited for: there are up to `most`."""
        worker = self._take(most)
        try:
            yield worker
        except BaseException:
            if worker.process:
                worker.buried()  # nobody knows what it is doing
            raise
        finally:
            with self._changed:
                self._idle.append(worker)
                self._changed.notify()

    def refuse_if_closed(self) -> None:
        """Raises Failure when all workers are to end."""
        if self._closed:
            raise Failure("the program ends")

    def close(self) -> None:
        """End all workers."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        processes = [worker.process for worker in self._all if worker.process]
        for process in processes:
            assert process.stdin
            with contextlib.suppress(OSError):
                process.stdin.close()
        for process in processes:
            assert process.stdout
            try:
                process.wait(_TIMEOUT_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            process.stdout.close()

    def _take(self, most: int) -> _Worker:
        while True:
            with self._changed:
                while not self._closed and not self._idle and len(self._all) >= min(most, self._most):
                    self._changed.wait()
                self.refuse_if_closed()
                if not self._idle:
                    self._idle.append(_Worker())
                    self._all += self._idle
                worker = self._idle.pop()
            try:
                worker.start()
            except Failure as error:
                with self._changed:
                    self._all.remove(worker)
                    self._most = len(self._all)
                    if not self._all:
                        raise
                _log.warning("%s; the work of more than %d is done by those", error, self._most)
            else:
                return worker


_pool = _Pool()
exit_guard.at_exit(lambda: _pool.close())


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

    start: int
    memory: mmap.mmap

    def empty(self, shape: tuple[int, ...]) -> np.ndarray:
        return np.frombuffer(self.memory, np.uint8, math.prod(shape), self.start).reshape(shape)


def work(mark: int) -> None:
    """Make batches for the process at the other end of standard input and output, until it closes them.

    `mark` is an open file that always holds the number of the record that is read, and whether it is decoded.
    """
    with mmap.mmap(mark, _MARK.size) as shared, contextlib.suppress(BrokenPipeError):  # the parent ended

        def show(position: int, decoding: bool = False) -> None:
            shared[:] = _MARK.pack(position, decoding)

        _work(show)


def _work(show: Show) -> None:
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
        pickle.dump(_answered(task, known[task.key], show) if task.key in known else None, outbox)
        outbox.flush()


def _answered(task: _Task, setup: _Setup, show: Show) -> _Answer:
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
        buffers=BufferPool() if task.start is None else _TaskBuffers(task.start, setup.memory),
        show=show,
    )
    try:
        if task.positions is None:
            found, batch = batches.find(task.records.tolist()), Batch()
        else:
            make = batches.evaluation if setup.exact else partial(batches.train, on_device=task.on_device)
            found, batch = {}, make(task.positions)
    except Exception as error:
        return _Answer(error=error)
    if task.start is not None:
        del batch["image"]  # it is in the shared memory
    return _Answer(batch, list(bad.records.values()), dict(timer.seconds), dict(timer.cpu_seconds), found)
