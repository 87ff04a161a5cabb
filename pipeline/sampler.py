"""The global order: which record stands at which position of the endless training stream. No TensorFlow.

Positions count samples from 0 and never stop; an epoch is N of them. With K = `shuffle_block_size` consecutive stored
records read together, M = N // K, p = position % N, e = position // N and r_e a rotation drawn per epoch:

    record(position) = (perm_e(p // K) * K + p % K + r_e) mod N   if p < M * K
                       (p + r_e) mod N                            otherwise (the short tail)

K = 1 is an exact uniform shuffle. perm_e sorts the block numbers by a keyed hash, which makes every permutation
equally likely. (TensorFlow's RandomIndexShuffle would need no table, but it is no permutation when N - 1 is an
even power of two from 65,536 on: of 65,537 records it reads one twice and one never.)
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import numpy as np

from shardline.pipeline import rng


class Sampler(Protocol):
    """Decides which record stands at which position of the stream."""

    def records(self, positions: np.ndarray) -> np.ndarray:
        """int64 record numbers at int64 `positions`."""
        ...


@dataclass(frozen=True)
class ShuffleSampler:
    """The order of one split. Equal fields give equal orders, on any machine."""

    num_records: int
    seed: int = 0
    shuffle_block_size: int = 1
    shuffle: bool = True

    def records(self, positions: np.ndarray) -> np.ndarray:
        """int64 record numbers at `positions`: O(1) a position, after one sort an epoch (2 s for 10 million)."""
        epochs, places = np.divmod(np.asarray(positions, np.int64), self.num_records)
        if not self.shuffle:
            return places
        records = np.empty_like(places)
        for epoch in np.unique(epochs):
            chosen = epochs == epoch
            records[chosen] = self._within(int(epoch), places[chosen])
        return records

    def _within(self, epoch: int, places: np.ndarray) -> np.ndarray:
        block = min(self.shuffle_block_size, self.num_records)
        num_blocks = self.num_records // block
        numbers, offsets = np.divmod(places, block)
        # The short tail is block number `num_blocks`: appended to the table, it maps to itself.
        with _one_sort_at_a_time:
            table = _permutation(num_blocks, rng.key(self.seed, "order", epoch))
        rotation = rng.key(self.seed, "rotation", epoch) % self.num_records
        return (table[numbers].astype(np.int64) * block + offsets + rotation) % self.num_records


_one_sort_at_a_time = threading.Lock()  # else every reading thread would sort when an epoch begins


@lru_cache(maxsize=2)  # batches in flight touch at most two epochs, unless those are shorter than a batch
def _permutation(count: int, key: int) -> np.ndarray:
    """Shuffled 0 .. count - 1, followed by `count`."""
    table = np.arange(count + 1, dtype=np.uint32 if count < 2**32 else np.int64)
    table[:count] = np.argsort(rng.bits(key, table[:count]))
    return table
