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
from functools import cached_property
from itertools import islice

import numpy as np

from shardline.pipeline.errors import UsageError
from shardline.pipeline.manifest import Manifest
from shardline.pipeline.wording import count
from shardline.tools.conversion.config import ConvertConfig
from shardline.tools.conversion.labels import split_rank
from shardline.tools.conversion.sources import Sources, hash64

GOLDEN = 0x9E3779B97F4A7C15  # 2**64 / golden ratio, odd: multiples of it spread most evenly over the ring
PIECE = 100_000  # inputs looked at together
_LAST_NUMBER = re.compile(rb"(\d{1,4000})(\D*)$")  # of more digits, Python makes no number


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
        for split, (order, shards) in enumerate(zip(self.order, self.shards, strict=True)):
            cuts = np.arange(shards + 1) * len(order) // shards
            for shard in range(shards):
                yield split, shard, order[cuts[shard] : cuts[shard + 1]]


def make_plan(
    config: ConvertConfig,
    sources: Sources,
    *,
    record_bytes: int,
    versions: Mapping[str, str] | None = None,
    base: Manifest | None = None,
) -> Plan:
    """Assign splits, order and shards.

    Args:
      config: `splits`, `seed` and the shard options decide; all options that the stored bytes depend on are part of
        the digest.
      sources: the inputs.
      record_bytes: expected size of one stored record.
      versions: of what else the stored bytes depend on; part of the digest.
      base: the dataset that the inputs are added to. Its splits come first, and none needs to get an input.

    Raises:
      UsageError: when a split would come out empty, or the shares contradict the source.
    """
    names, split = _split_numbers(sources, config.splits, config.seed, fill=base is None)
    if base:
        found, names = names, tuple(dict.fromkeys((*base.splits, *names)))
        split = np.array([names.index(name) for name in found], np.int8)[split]
    shuffled = _shuffled(sources, config.seed)
    order = tuple(shuffled[split[shuffled] == number] for number in range(len(names)))
    del shuffled
    shard_bytes = int(config.shard_mb * 1e6)
    shards = tuple(_shard_count(len(members), config.shards, shard_bytes, record_bytes) for members in order)
    facts = [sources.fingerprint(stamps=False), names, shards, config.stored_options(), dict(versions or {})]
    facts += [base.digest] if base else []
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    digest.update(split.data)
    return Plan(config.name, names, split, order, shards, digest.hexdigest())


def _split_numbers(
    sources: Sources, shares: Mapping[str, float], seed: int, *, fill: bool
) -> tuple[tuple[str, ...], np.ndarray]:
    """The splits' names, and for each input the number of its split."""
    if not shares:
        if not sources.splits:
            return ("train",), np.zeros(len(sources), np.int8)
        return sources.splits, sources.split
    if (
        sources.unlabelled or len(sources.splits) > 1 or any(map(split_rank, sources.splits))
    ):  # 0: train's may be divided
        told = f"--splits: the source already names its splits ({', '.join(sources.splits)}); "
        remedy = "leave the flag out, or give" if fill else "the shares of this dataset divide what is added, so give"
        raise UsageError(f"{told}{remedy} the folder of one of them as --source, or a table without a column split")
    edges = np.array([min(int(bound * 2.0**64), 2**64 - 1) for bound in _bounds(shares)[1:-1]], np.uint64)
    split = np.empty(len(sources), np.int8)
    units = _split_units(sources, seed)
    for start in range(0, len(sources), PIECE):
        piece = np.fromiter(islice(units, PIECE), np.uint64)
        split[start : start + PIECE] = np.searchsorted(edges, piece, side="right")
    if fill:
        _fill_empty_splits(split, sources, shares, seed)
    return tuple(shares), split


def _bounds(shares: Mapping[str, float]) -> np.ndarray:
    """Where on the line from 0 to 1 each split begins, and where the last ends."""
    return np.concatenate(([0.0], np.cumsum(list(shares.values()))[:-1], [1.0]))


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


def _fill_empty_splits(split: np.ndarray, sources: Sources, shares: Mapping[str, float], seed: int) -> None:
    """Few images can leave a split without any: give it the nearest ones, or say that it cannot be done.

    Only this rule looks at more than one image, so it is the only one that can move an image when others are added;
    it acts on a handful of images only: when a whole split, or a class in the largest split, has none.
    """
    names = tuple(shares)
    move = _NearestMover(split, sources, shares, seed)
    for target in np.flatnonzero(np.bincount(split, minlength=len(names)) == 0).tolist():
        donor = int(np.argmax(np.bincount(split, minlength=len(names))))
        move(target, np.flatnonzero(split == donor))
    counts = np.bincount(split, minlength=len(names))
    if not counts.all():
        raise UsageError(
            f"--splits: {count(len(sources), 'image')} (or groups) cannot fill {len(names)} splits, "
            f"{names[int(np.argmin(counts))]!r} would have none; ask for fewer splits or add images"
        )
    largest = max(range(len(names)), key=lambda number: shares[names[number]])
    totals = sources.class_counts()
    in_largest = sources.class_counts(split == largest)
    for label in np.flatnonzero((totals > 1) & (in_largest == 0)):
        candidates = np.flatnonzero(sources.label == label)
        crowded = np.bincount(split, minlength=len(names))[split[candidates]] > 1
        if crowded.any():
            move(largest, candidates[crowded])


@dataclass(eq=False)
class _NearestMover:
    """Moves single images, or whole groups, between splits."""

    split: np.ndarray  # changed in place
    sources: Sources
    shares: Mapping[str, float]
    seed: int

    @cached_property
    def units(self) -> np.ndarray:
        """Where each input falls on the line that the shares divide, from 0 to 2**64."""
        return np.fromiter(_split_units(self.sources, self.seed), np.float64, len(self.sources))

    def __call__(self, target: int, candidates: np.ndarray) -> None:
        """Give a split the candidate that is nearest to the middle of its share."""
        low, high = _bounds(self.shares)[target : target + 2] * 2.0**64
        nearest = candidates[np.argmin(np.abs(self.units[candidates] - (low + high) / 2))]
        group = self.sources.group
        if len(group) and group[nearest]:
            members = group == group[nearest]
            if not members[self.split == self.split[nearest]].all():  # a split that would be left empty
                self.split[members] = target
        else:
            self.split[nearest] = target


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
