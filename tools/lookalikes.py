"""Pairs of pictures whose perceptual hashes differ in few bits, found without comparing all with all. No TensorFlow.

64 bits are cut into six blocks. Two hashes that differ in at most three bits agree in at least three blocks, so
sorting by each of the 20 choices of three blocks brings every such pair close together.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations, pairwise

import numpy as np

MAX_BITS = 3
_EDGES = (0, 11, 22, 33, 44, 54, 64)
_REACH = 12  # neighbours looked at in a run of equal blocks; only crowds of look-alikes are longer


@dataclass(frozen=True)
class Pair:
    """Two inputs that look alike."""

    first: int
    second: int
    bits: int  # by which the hashes differ
    straddling: bool  # they lie in different splits


def near_duplicates(hashes: np.ndarray, inputs: np.ndarray, splits: np.ndarray, limit: int = 10_000) -> list[Pair]:
    """Look-alikes, pairs across splits first, then by difference.

    Of a crowd that shares one hash, every member is paired with the first one and, across splits, with the first of
    each other split; pictures without any structure (all one colour: hash 0) are left out.

    Args:
      hashes: uint64, one a picture.
      inputs: their numbers, for the result.
      splits: their splits.
      limit: of pairs.
    """
    keep = np.flatnonzero(hashes != 0)
    order = keep[np.argsort(hashes[keep], kind="stable")]
    values, starts = np.unique(hashes[order], return_index=True)
    ends = np.append(starts[1:], len(order))
    pairs: set[tuple[int, int, int]] = set()
    for start, end in zip(starts[ends - starts > 1].tolist(), ends[ends - starts > 1].tolist(), strict=True):
        members = order[start:end]
        firsts = members[np.unique(splits[members], return_index=True)[1]]
        for first in {int(members[0]), *firsts.tolist()}:
            others = members if first == members[0] else members[splits[members] != splits[first]]
            pairs |= {(min(first, other), max(first, other), 0) for other in others.tolist() if other != first}
            if len(pairs) > 4 * limit:
                break
    for a, b, bits in _close_values(values, limit):
        left, right = order[starts[a] : ends[a]], order[starts[b] : ends[b]]
        # One pair for each pair of splits: a crowd against a crowd says nothing more.
        for i in left[np.unique(splits[left], return_index=True)[1]].tolist():
            for j in right[np.unique(splits[right], return_index=True)[1]].tolist():
                pairs.add((min(i, j), max(i, j), bits))
    found = [Pair(int(inputs[i]), int(inputs[j]), bits, bool(splits[i] != splits[j])) for i, j, bits in pairs]
    return sorted(found, key=lambda pair: (not pair.straddling, pair.bits, pair.first, pair.second))[:limit]


def _close_values(values: np.ndarray, limit: int) -> set[tuple[int, int, int]]:
    """Pairs of positions in `values` (distinct) that differ in 1 to MAX_BITS bits."""
    close: set[tuple[int, int, int]] = set()
    blocks = [((1 << (end - start)) - 1) << start for start, end in pairwise(_EDGES)]
    for chosen in combinations(blocks, 3):
        masked = values & np.uint64(chosen[0] | chosen[1] | chosen[2])
        order = np.argsort(masked, kind="stable")
        keys = masked[order]
        for reach in range(1, _REACH + 1):
            same = np.flatnonzero(keys[reach:] == keys[:-reach])
            if not len(same):
                break
            a, b = order[same], order[same + reach]
            bits = np.bitwise_count(values[a] ^ values[b])
            for hit in np.flatnonzero(bits <= MAX_BITS).tolist():
                close.add((int(min(a[hit], b[hit])), int(max(a[hit], b[hit])), int(bits[hit])))
            if len(close) > 4 * limit:
                return close
    return close
