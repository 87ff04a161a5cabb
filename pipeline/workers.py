"""Training batches made by other processes, in memory they share with this one. No TensorFlow.

Threads of one process take turns at the Python interpreter, for a tenth of the time that an image takes: on two cores,
two threads were 1.58 times as fast as one, two workers 1.91 times, and two programs that share nothing 1.94 times.

A batch is a pure function of its positions, so it does not matter who makes it, and nothing waits for a worker: while
one starts, when all are busy, and when one was killed, the thread that wants a batch makes it by itself.

A worker holds no index and no order: each task says which records it is about and where they lie. It ends with the
process that started it, whose end closes its standard input.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import mmap
import os
import pickle
import queue
import subprocess
import sys
import threading
import uuid
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from shardline.pipeline.batches import BadRecords, Batch, BatchBuilder
from shardline.pipeline.buffers import SharedBufferPool
from shardline.pipeline.config import InputConfig
from shardline.pipeline.manifest import ImageFormat
from shardline.pipeline.profiling import StageTimer
from shardline.pipeline.shards import RecordLocation, Shards

_log = logging.getLogger(__name__)

_SPARE_BATCHES = 16  # on their way to the device, or held by the consumer
_PAYS_FROM = 4096  # samples: some seconds of work, after which starting workers is not what takes the time
_PATIENCE_SECONDS = 5.0
_SETUPS = 4  # that a worker keeps


@dataclass(frozen=True)
class _Task:
    """One batch to make: where in the shared memory, of which records, and where they lie."""

    key: str
    setup: bytes | None  # of the key, for a worker that does not know it
    start: int
    positions: np.ndarray
    records: np.ndarray
    places: np.ndarray  # rows of the index
    on_device: bool


class Workers:
    """Has the batches of one stream made by this process's workers.

    Args:
      count: how many workers there should be at least, for all streams together.
      batch_bytes: pixels of a batch.
      at_once: start them, and wait for them, with the first batch; otherwise in the background once that pays.
    """

    def __init__(self, count: int, batch_bytes: int, at_once: bool) -> None:
        self._count, self._at_once = count, at_once
        self._memory = SharedBufferPool(count + _SPARE_BATCHES, batch_bytes)
        self._key = uuid.uuid4().hex
        self._setup = b""

    def train(self, batches: BatchBuilder, positions: np.ndarray, on_device: bool) -> Batch | None:
        """What `batches.train` returns, made by a worker; None when there is none to make it."""
        if self._at_once or batches.clock.samples >= _PAYS_FROM:
            _pool.grow(self._count, wait=self._at_once)
        worker = _pool.take()
        if worker is None:
            return None
        side = batches.side(on_device)
        found = self._memory.empty((len(positions), side, side, 3))
        if found is None:
            _pool.put(worker)
            return None
        image, start = found
        records = batches.order.records(positions)
        places = batches.shards.places(records)
        task = _Task(self._key, None, start, positions, records, places, on_device)
        try:
            answer = _ask(worker, task) or _ask(worker, replace(task, setup=self._described(batches)))
        except (OSError, EOFError, ValueError, pickle.UnpicklingError):
            if not _pool.closed:
                _log.warning("an input worker ended (exit code %s); its work is done without it", worker.wait())
            return None
        _pool.put(worker)
        batch, bad_records, seconds = answer
        if isinstance(batch, Exception):
            raise batch
        for bad in bad_records:
            batches.bad.add(bad, batches.config.max_bad_records)
        batches.clock.add(seconds, len(positions))
        return {"image": image, **batch}

    def _described(self, batches: BatchBuilder) -> bytes:
        if not self._setup:
            # A worker names every bad record it meets: how many are too many is decided here.
            config = replace(batches.config, cache="none", max_bad_records=sys.maxsize)
            memory = f"/proc/{os.getpid()}/fd/{self._memory.file}", self._memory.bytes
            self._setup = pickle.dumps((batches.shards, config, batches.image, memory))
        return self._setup


class _Pool:
    """This process's workers. Thread-safe."""

    def __init__(self) -> None:
        self.closed = False
        self._count = 0
        self._growing = threading.Lock()
        self._idle: queue.SimpleQueue[subprocess.Popen[bytes]] = queue.SimpleQueue()
        self._processes: list[subprocess.Popen[bytes]] = []

    def grow(self, count: int, wait: bool) -> None:
        """Start workers until `count` were started. Those that end are not replaced: something ended them."""
        if self._count >= count:
            return
        with self._growing:
            greeters = [threading.Thread(target=self._start, daemon=True) for _ in range(self._count, count)]
            for greeter in greeters:
                greeter.start()
            for greeter in greeters if wait else ():
                greeter.join()
            self._count = max(self._count, count)

    def take(self) -> subprocess.Popen[bytes] | None:
        """A worker that has nothing to do."""
        with contextlib.suppress(queue.Empty):
            return self._idle.get_nowait()
        return None

    def put(self, worker: subprocess.Popen[bytes]) -> None:
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
                process.wait(_PATIENCE_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            process.stdout.close()

    def _start(self) -> None:
        root = str(Path(__file__).parent.parent)
        paths = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
        try:
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", "shardline.pipeline.workers"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env={**os.environ, "PYTHONPATH": paths, "OPENBLAS_NUM_THREADS": "1"},
                start_new_session=True,  # Ctrl-C is for the parent, whose end is theirs
            )
        except OSError as error:
            _log.warning("an input worker cannot be started (%s); its work is done without it", error)
            return
        self._processes.append(process)
        assert process.stdout
        if process.stdout.read(1):
            self._idle.put(process)
        elif not self.closed:
            _log.warning("an input worker did not start (exit code %s); its work is done without it", process.wait())


_pool = _Pool()
atexit.register(lambda: _pool.close())


def _ask(worker: subprocess.Popen[bytes], task: _Task) -> Any:
    """A worker's answer; None when it must be told the setup too."""
    assert worker.stdin and worker.stdout
    pickle.dump(task, worker.stdin)
    worker.stdin.flush()
    return pickle.load(worker.stdout)


# ------------------------------------------------------------------------------------------ in the worker


class _Told:
    """An order that is told rather than computed, and memory at a place that is told."""

    def __init__(self, path: str, size: int) -> None:
        with open(path, "r+b") as file:
            self._memory = mmap.mmap(file.fileno(), size)
        self.task: _Task

    def records(self, positions: np.ndarray) -> np.ndarray:
        return self.task.records

    def empty(self, shape: tuple[int, ...]) -> np.ndarray:
        return np.frombuffer(self._memory, np.uint8, int(np.prod(shape)), self.task.start).reshape(shape)


def _work() -> None:
    """Make batches until there is nobody left to make them for."""
    inbox, outbox = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # nothing else may write to the parent
    logging.disable()  # bad records are named by the parent, once
    known: dict[str, tuple[Shards, InputConfig, ImageFormat, _Told]] = {}
    outbox.write(b"\n")
    outbox.flush()
    while True:
        try:
            task = pickle.load(inbox)
        except EOFError:
            return
        if task.setup:
            shards, config, image, memory = pickle.loads(task.setup)
            while len(known) >= _SETUPS:
                del known[next(iter(known))]  # the oldest
            known[task.key] = shards, config, image, _Told(*memory)
        pickle.dump(_made(task, *known[task.key]) if task.key in known else None, outbox)
        outbox.flush()


def _made(task: _Task, shards: Shards, config: InputConfig, image: ImageFormat, told: Any) -> tuple[Any, ...]:
    """The batch without its pixels, or what went wrong; bad records; seconds by stage."""
    shards.index = dict(zip(task.records.tolist(), map(RecordLocation._make, task.places.tolist()), strict=True))
    told.task = task
    bad, clock = BadRecords(), StageTimer()
    try:
        batches = BatchBuilder(shards, config, image, bad=bad, clock=clock, order=told, memory=told)
        batch = batches.train(task.positions, task.on_device)
        del batch["image"]
    except Exception as error:
        return error, [], {}
    return batch, list(bad.records.values()), dict(clock.seconds)


if __name__ == "__main__":
    try:
        _work()
    except BrokenPipeError:
        os._exit(0)  # the parent is gone; there is nobody to tell
