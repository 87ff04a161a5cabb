"""Which record stands at which position of the endless training stream, and which positions are in which batch.

Positions count samples from 0 and never stop; an epoch is N of them. With K = `shuffle_block_size` consecutive stored
records read together, M = N // K, p = position % N, e = position // N and r_e a rotation drawn per epoch:

    record(position) = (perm_e(p // K) * K + p % K + r_e) mod N   if p < M * K
                       (p + r_e) mod N                            otherwise (the short tail)

K = 1 is an exact uniform shuffle. Up to `TABLE_BLOCKS` blocks, perm_e sorts the block numbers by a keyed hash, which
makes every permutation equally likely. Above, where a table would cost gigabytes and seconds an epoch, it is a keyed
Feistel network that needs none (`_feistel`). (TensorFlow's RandomIndexShuffle needs none either, but it is no
permutation when N - 1 is an even power of two from 65,536 on: of 65,537 records it reads one twice and one never.) No
TensorFlow.
"""

from __future__ import annotations

import math
import threading
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Protocol

import numpy as np

from shardline.pipeline import rng
from shardline.pipeline.config import InputConfig
from shardline.pipeline.errors import UsageError

if TYPE_CHECKING:
    import tensorflow as tf


class Sampler(Protocol):
    """Decides which record stands at which position of the stream."""

    def records(self, positions: np.ndarray) -> np.ndarray:
        """int64 record numbers at int64 `positions`."""
        ...


PADDING = -1  # record number of elements that only fill a batch


@dataclass(frozen=True)
class StoredOrder:
    """Every record once, as they are stored; padding after the last one."""

    num_records: int

    def records(self, positions: np.ndarray) -> np.ndarray:
        """int64 record numbers at `positions`."""
        return np.where(positions < self.num_records, positions, PADDING)


@dataclass(frozen=True)
class ShuffleSampler:
    """Shuffles the records of one split anew in every epoch. Equal fields give equal orders, on any machine."""

    num_records: int
    seed: int = 0
    shuffle_block_size: int = 1
    shuffle: bool = True

    def records(self, positions: np.ndarray) -> np.ndarray:
        """int64 record numbers at `positions`: O(1) a position, after one sort an epoch of up to `TABLE_BLOCKS`."""
        epochs, offsets = np.divmod(np.asarray(positions, np.int64), self.num_records)
        if not self.shuffle:
            return offsets
        records = np.empty_like(offsets)
        for epoch in np.unique(epochs):
            chosen = epochs == epoch
            records[chosen] = self._records_of_epoch(int(epoch), offsets[chosen])
        return records

    def _records_of_epoch(self, epoch: int, offsets: np.ndarray) -> np.ndarray:
        size = min(self.shuffle_block_size, self.num_records)
        num_blocks = self.num_records // size
        blocks, offsets_in_block = np.divmod(offsets, size)
        blocks = _permuted(blocks, num_blocks, rng.key(self.seed, "order", epoch))
        rotation = rng.key(self.seed, "rotation", epoch) % self.num_records
        return (blocks * size + offsets_in_block + rotation) % self.num_records


TABLE_BLOCKS = 1 << 22  # 16 MB and half a second an epoch
_FEISTEL_ROUNDS = 8


def _permuted(blocks: np.ndarray, count: int, key: int) -> np.ndarray:
    """int64: where each of `blocks` stands in the permutation of 0 .. count - 1; `count`, the short tail, stays."""
    if count > TABLE_BLOCKS:
        return np.where(blocks < count, _feistel(np.minimum(blocks, count - 1), count, key), blocks)
    with _one_sort_at_a_time:
        table = _permutation(count, key)
    found: np.ndarray = table[blocks].astype(np.int64)
    return found


def _feistel(numbers: np.ndarray, count: int, key: int) -> np.ndarray:
    """A permutation of 0 .. count - 1 (at least 2), computed for each of `numbers` alone.

    The generalized Feistel cipher of Black and Rogaway, "Ciphers with Arbitrary Finite Domains" (2002): numbers below
    a * b, a rectangle that hardly exceeds `count`, as pairs; what falls outside is enciphered again.
    """
    a = math.isqrt(count - 1) + 1
    b = -(-count // a)
    keys = rng.bits(key, np.arange(_FEISTEL_ROUNDS)).tolist()
    found = numbers.astype(np.int64)
    outside = np.ones(len(found), bool)
    while outside.any():
        left, right = found[outside] % a, found[outside] // a
        for number, round_key in enumerate(keys):
            modulus = b if number % 2 else a
            drawn = (rng.bits(round_key, right) % np.uint64(modulus)).astype(np.int64)
            left, right = right, (left + drawn) % modulus
        found[outside] = left + a * right
        outside = found >= count
    return found


_one_sort_at_a_time = threading.Lock()  # else every reading thread would sort when an epoch begins


@lru_cache(maxsize=2)  # batches in flight touch at most two epochs, unless those are shorter than a batch
def _permutation(count: int, key: int) -> np.ndarray:
    """Shuffled 0 .. count - 1, followed by `count`."""
    table = np.arange(count + 1, dtype=np.uint32 if count < 2**32 else np.int64)
    table[:count] = np.argsort(rng.bits(key, table[:count]))
    return table


class BalancedSampler:
    """Shows every class equally often: each run of C positions holds one record of each of the C classes, shuffled.

    All records of a class are shown, in an order shuffled anew each time, before one is shown again.

    Args:
      labels: the label of each record; classes without records are left out.
      seed: of all shuffles.
    """

    def __init__(self, labels: np.ndarray, seed: int = 0) -> None:
        self._seed = seed
        self._records = [np.flatnonzero(labels == label) for label in np.unique(labels)]  # of each class
        self._samplers = [
            ShuffleSampler(len(records), rng.key(seed, "class", number)) for number, records in enumerate(self._records)
        ]

    def records(self, positions: np.ndarray) -> np.ndarray:
        """int64 record numbers at `positions`."""
        rounds, offsets = np.divmod(np.asarray(positions, np.int64), len(self._records))
        found = np.empty_like(offsets)
        for number in np.unique(rounds):
            chosen = rounds == number
            key = rng.key(self._seed, "classes", int(number))
            classes = np.argsort(rng.bits(key, np.arange(len(self._records))))[offsets[chosen]]
            # A round shows one record of each class, so the round's number is the position in the class's own stream.
            found[chosen] = [self._records[c][self._samplers[c].records(number[None])[0]] for c in classes]
        return found


@dataclass(frozen=True)
class ReplicaBatches:
    """Which positions of the stream are in which replica batch of one host.

    Global batch s holds the B = `global_batch_size` positions from `cursor` + s * B on. Each of the `hosts` takes a
    run of them, in order, and each of its `replicas` a run of the host's. A host makes its replica batches one after
    another: number n is that of replica n % replicas in global batch n // replicas.

    Raises:
      UsageError: there is no such host or position, or the global batch does not divide evenly.
    """

    config: InputConfig
    host: int = 0
    hosts: int = 1
    replicas: int = 1
    cursor: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.host < self.hosts:
            raise UsageError(f"host={self.host} of hosts={self.hosts}: hosts count from 0")
        even = ", even when pairs are mixed" if self.config.mixes else ""
        if self.cursor < 0 or (even and self.cursor % 2):
            raise UsageError(f"cursor={self.cursor}: use 0 or more{even}")
        self.config.replica_batch_size(self.hosts, self.replicas)

    @property
    def size(self) -> int:
        """Samples in a replica batch."""
        return self.config.replica_batch_size(self.hosts, self.replicas)

    def positions(self, number: int | tf.Tensor) -> np.ndarray | tf.Tensor:
        """int64 [size]: the positions in replica batch `number`, an int or, within a TensorFlow graph, an int64."""
        step, replica = number // self.replicas, number % self.replicas
        first = self.cursor + step * self.config.global_batch_size + (self.host * self.replicas + replica) * self.size
        return first + np.arange(self.size)
