"""Pieces of shards that are fetched from an object store before the samples that need them are made. No TensorFlow."""

from __future__ import annotations

import atexit
import contextlib
import queue
import threading
from collections.abc import Callable

import numpy as np

from shardline.pipeline.errors import Failure
from shardline.pipeline.object_store import PARALLEL, exiting
from shardline.pipeline.remote import Mirror
from shardline.pipeline.shards import Shards

AHEAD_BLOCKS = 64  # of records; with 16 requests of 50 ms at once, 0.2 s
_GROUP_BLOCKS = 2  # that are looked at together, because a block may be that of two batches
_LOOK_SECONDS = 1.0  # between two looks at whether the program ends
_TIMEOUT_SECONDS = 5.0  # for a fetcher to end


class BlocksAhead:
    """Keeps what the next batches of one stream need on this host.

    Args:
      mirror: which has pieces.
      shards: of the split.
      records: the records of a batch, by its number.
      samples: in a batch.
      block: records that mostly lie end to end.
      most: records to keep, unless that is too few to be of use.
    """

    def __init__(
        self, mirror: Mirror, shards: Shards, records: Callable[[int], np.ndarray], samples: int, block: int, most: int
    ) -> None:
        self._mirror, self._shards, self._records = mirror, shards, records
        self._group = -(-_GROUP_BLOCKS * block // samples)  # batches
        self._ahead = max(1, min(AHEAD_BLOCKS * block, most) // (self._group * samples) - 1)  # groups
        self._next = 0  # group that is fetched next
        self._under_way: dict[int, list[threading.Event]] = {}  # of each group, set when a run of it was fetched
        self._lock = threading.Lock()
        self.samples = (self._ahead + 1) * self._group * samples  # that are here at once

    def reach(self, number: int) -> None:
        """Batch `number` is made now: have what those that follow it need fetched, and wait for what it needs itself.

        Whoever makes it would else ask for the same once more, one record after another.
        """
        group = number // self._group
        self._ask(group)
        for fetched in self._under_way.get(group, ()):
            while not fetched.wait(_LOOK_SECONDS) and not exiting.is_set():
                pass

    def _ask(self, group: int) -> None:
        with self._lock:
            for done in [other for other in self._under_way if other < group - 1]:
                del self._under_way[done]
            self._next = max(self._next, group)
            while self._next <= group + self._ahead:
                batches = range(self._next * self._group, (self._next + 1) * self._group)
                records = np.unique(np.concatenate([self._records(batch) for batch in batches]))
                runs = _runs(self._shards.locations(records))
                self._under_way[self._next] = [
                    _in_background(lambda run=run: self._fetch(*run))  # type: ignore[misc]
                    for run in runs
                ]
                self._next += 1

    def _fetch(self, number: int, offset: int, size: int) -> None:
        """What fails is tried again by who needs it."""
        shard = self._shards.shard(number)
        with contextlib.suppress(Failure, OSError):
            if not self._mirror.has_part(shard, offset, size):
                self._mirror.fetch_part(shard, offset, size)


def _runs(locations: np.ndarray) -> list[tuple[int, int, int]]:
    """Shard, offset and bytes of records that lie end to end."""
    runs: list[tuple[int, int, int]] = []
    for shard, offset, size in locations.tolist():
        if runs and runs[-1][0] == shard and sum(runs[-1][1:]) == offset:
            runs[-1] = (shard, runs[-1][1], runs[-1][2] + size)
        else:
            runs.append((shard, offset, size))
    return runs


_todo: queue.SimpleQueue[tuple[Callable[[], None], threading.Event] | None] = queue.SimpleQueue()
_fetchers: list[threading.Thread] = []


def _in_background(work: Callable[[], None]) -> threading.Event:
    """Have it done by one of a few threads, which start with the first work; set when it is done."""
    while len(_fetchers) < PARALLEL:
        thread = threading.Thread(target=_work, daemon=True)
        _fetchers.append(thread)
        thread.start()
    done = threading.Event()
    _todo.put((work, done))
    return done


def _work() -> None:
    while (found := _todo.get()) and not exiting.is_set():
        work, done = found
        try:
            work()
        finally:
            done.set()


@atexit.register
def _stop() -> None:
    """Python must not end threads that are inside obstore."""
    exiting.set()
    for _ in _fetchers:
        _todo.put(None)
    for thread in _fetchers:
        thread.join(_TIMEOUT_SECONDS)
