"""Decide everything before anything is done: which split, which order, which shards. No TensorFlow.

- **Split.** A pure function of one path (or group) and the seed, so adding images never moves another one. The
  unit number of a path is hash(path without its last number) + number * golden ratio (mod 1): files numbered in a
  row are spread evenly, so a class of image_0001 … image_0100 is cut within an image or two of the asked shares; names
  without a number get a plain hash, which is as close as coin tosses. Groups share one number.
- **Order.** By a keyed hash of the path: a global shuffle at write time.
- **Shards.** Cut from that order in near-equal counts. One shard is one task.

Exact duplicates are found only once pixels are seen; `deduplicate` then moves each to the split of the first.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np

from shardline.pipeline.errors import UsageError
from shardline.tools.conversion.sources import Sources, hash64

GOLDEN = 0x9E3779B97F4A7C15  # 2**64 / golden ratio, odd: multiples of it spread most evenly over the ring
PIECE = 100_000  # inputs looked at together
_LAST_NUMBER = re.compile(rb"(\d+)(\D*)$")


@dataclass(frozen=True, eq=False)
class Plan:
    """What a conversion will do, before it does it."""

    name: str
    splits: tuple[str, ...]
    split: np.ndarray  # int8: number in `splits` of every input
    order: tuple[np.ndarray, ...]  # per split: its inputs (uint32), in the order they are stored
    shards: tuple[int, ...]  # per split
    digest: str  # of everything the stored bytes depend on

    @property
    def num_tasks(self) -> int:
        """Shards in all splits."""
        return sum(self.shards)

    def members(self) -> Iterator[tuple[int, int, np.ndarray]]:
        """Split number, shard number and inputs of every shard, the splits in order."""
        for split, (order, count) in enumerate(zip(self.order, self.shards, strict=True)):
            cuts = np.arange(count + 1) * len(order) // count
            for shard in range(count):
                yield split, shard, order[cuts[shard] : cuts[shard + 1]]


def make_plan(
    sources: Sources,
    *,
    name: str,
    shares: Mapping[str, float],
    seed: int,
    shards: int,
    shard_bytes: int,
    record_bytes: int,
    options: Mapping[str, Any],
) -> Plan:
    """Assign splits, order and shards.

    Args:
      sources: the inputs.
      name: of the dataset.
      shares: split name to its share of the inputs; empty: the splits the source names, or all of it as "train".
      seed: chooses the split and the order.
      shards: number of shards of each split; 0: by size.
      shard_bytes: aim for this size when `shards` is 0.
      record_bytes: expected size of one stored record.
      options: what else the stored bytes depend on; part of the digest.

    Raises:
      UsageError: when a split would come out empty, or the shares contradict the source.
    """
    names, split = _split_numbers(sources, shares, seed)
    everyone = _shuffled(sources, seed)
    order = tuple(everyone[split[everyone] == number] for number in range(len(names)))
    del everyone
    counts = tuple(_shard_count(len(members), shards, shard_bytes, record_bytes) for members in order)
    digest = hashlib.sha256(
        json.dumps([sources.fingerprint(times=True), names, counts, seed, dict(options)], sort_keys=True).encode()
    )
    digest.update(split.data)
    return Plan(name, names, split, order, counts, digest.hexdigest())


def _split_numbers(sources: Sources, shares: Mapping[str, float], seed: int) -> tuple[tuple[str, ...], np.ndarray]:
    if not shares:
        if not sources.splits:
            return ("train",), np.zeros(len(sources), np.int8)
        return sources.splits, sources.split
    if len(sources.splits) > 1:
        raise UsageError(
            f"--splits: the source already names its splits ({', '.join(sources.splits)}); leave the flag out, or give "
            "one of them as --source"
        )
    names = tuple(shares)
    bounds = np.cumsum([shares[name] for name in names])[:-1]
    edges = np.array([min(int(bound * 2.0**64), 2**64 - 1) for bound in bounds], np.uint64)
    split = np.empty(len(sources), np.int8)
    units = _split_units(sources, seed)
    for start in range(0, len(sources), PIECE):
        piece = np.fromiter(islice(units, PIECE), np.uint64)
        split[start : start + PIECE] = np.searchsorted(edges, piece, side="right")
    _fill_empty_splits(split, sources, names, shares, edges, seed)
    return names, split


def _split_units(sources: Sources, seed: int) -> Iterator[int]:
    """For every input a number in [0, 2**64): where it falls on the line that the shares divide."""
    key = f"split {seed}".encode()
    grouped = sources.group if len(sources.group) else None
    for number, path in enumerate(sources.paths()):
        if grouped is not None and grouped[number]:
            yield hash64(int(grouped[number]).to_bytes(8, "little"), key)
            continue
        found = _LAST_NUMBER.search(path)
        if found:
            yield (hash64(path[: found.start(1)] + b"#" + found[2], key) + int(found[1]) * GOLDEN) % 2**64
        else:
            yield hash64(path, key)


def _fill_empty_splits(
    split: np.ndarray,
    sources: Sources,
    names: tuple[str, ...],
    shares: Mapping[str, float],
    edges: np.ndarray,
    seed: int,
) -> None:
    """Few images can leave a split without any: give it the nearest ones, or say that it cannot be done.

    Only this rule looks at more than one image, so it is the only one that can move an image when others are added;
    it acts on a handful of images only: when a whole split, or a class in the largest split, has none.
    """
    largest = max(range(len(names)), key=lambda number: shares[names[number]])
    lows = np.concatenate(([0], edges.astype(np.float64)))
    highs = np.concatenate((edges.astype(np.float64), [2.0**64]))
    group = sources.group if len(sources.group) else None
    units = np.empty(0)

    def take(target: int, candidates: np.ndarray) -> None:
        nonlocal units
        if not len(units):
            units = np.fromiter(_split_units(sources, seed), np.float64, len(sources))
        middle = (lows[target] + highs[target]) / 2
        nearest = candidates[np.argmin(np.abs(units[candidates] - middle))]
        if group is not None and group[nearest]:
            split[group == group[nearest]] = target
        else:
            split[nearest] = target

    counts = np.bincount(split, minlength=len(names))
    for target in np.flatnonzero(counts == 0):
        donor = int(np.argmax(np.bincount(split, minlength=len(names))))
        candidates = np.flatnonzero(split == donor)
        take(int(target), candidates)
    counts = np.bincount(split, minlength=len(names))
    if not counts.all():
        lacking = names[int(np.argmin(counts))]
        raise UsageError(
            f"--splits: {len(sources):,} images (or groups) cannot fill {len(names)} splits, "
            f"{lacking!r} would have none; ask for fewer splits or add images"
        )
    totals = np.bincount(sources.label, minlength=len(sources.labels))
    in_largest = np.bincount(sources.label[split == largest], minlength=len(sources.labels))
    for label in np.flatnonzero((totals > 1) & (in_largest == 0)):
        candidates = np.flatnonzero(sources.label == label)
        crowded = np.bincount(split, minlength=len(names))[split[candidates]] > 1
        if crowded.any():
            take(largest, candidates[crowded])


def _shuffled(sources: Sources, seed: int) -> np.ndarray:
    """All inputs (uint32) in the order of a keyed hash of their paths.

    The hash and the number share one 64-bit word, so that ten million of them are sorted in place, in 80 MB.
    """
    key = f"order {seed}".encode()
    bits = max(1, (len(sources) - 1).bit_length())
    words = np.fromiter((hash64(path, key) for path in sources.paths()), np.uint64, len(sources))
    words >>= np.uint64(bits)
    words <<= np.uint64(bits)
    for start in range(0, len(words), PIECE):
        piece = words[start : start + PIECE]
        piece |= np.arange(start, start + len(piece), dtype=np.uint64)
    words.sort()
    words &= np.uint64((1 << bits) - 1)
    return words.astype(np.uint32)


def _shard_count(records: int, shards: int, shard_bytes: int, record_bytes: int) -> int:
    """At least the shards the size asks for, and enough of them to keep many workers and hosts busy."""
    by_size = -(-records * record_bytes // shard_bytes)
    wanted = shards or max(by_size, min(16, records // 32), min(64, records // 256), 1)
    return max(1, min(wanted, records))
