"""Pairs of images whose perceptual hashes differ in few bits, found without comparing all with all. No TensorFlow.

64 bits are cut into three blocks more than bits may differ, six for three bits. Two hashes that differ in at most so
many bits agree in at least three blocks, so sorting by each choice of three blocks, 20 of them for three bits, brings
every such pair close together.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations, pairwise

import numpy as np

MAX_BITS = 3
_MAX_REACH = 1000  # hashes with equal blocks that each is compared with: bounds the work in crowds of look-alikes
_MIX = np.uint64(0x9E3779B97F4A7C15)  # odd: a multiplication that loses nothing, and carries all bits to the top
_PIECE = 1 << 20


@dataclass(frozen=True)
class Pair:
    """Two inputs that look alike."""

    first: int
    second: int
    bits: int  # by which the hashes differ
    across_splits: bool  # they lie in different splits


def near_duplicates(
    hashes: np.ndarray,
    inputs: np.ndarray,
    splits: np.ndarray,
    limit: int = 10_000,
    *,
    bits: int = MAX_BITS,
    across_only: bool = False,
) -> list[Pair]:
    """Pairs whose hashes differ in few bits, those across splits first, then by difference.

    Images without any structure (one color: hash 0) are left out. All pairs are found, unless there are many times more
    than `limit`, or more than a thousand hashes have three blocks in common.

    Args:
      hashes: uint64, one for each image.
      inputs: their numbers, for the result.
      splits: their splits, or which of two sets they belong to.
      limit: of pairs.
      bits: in which two hashes may differ.
      across_only: leave out pairs within a split.
    """
    structured = hashes != 0  # the others would be one crowd, each compared with a thousand
    if not structured.all():  # else three copies for nothing, of ten million images 130 MB
        hashes, inputs, splits = hashes[structured], inputs[structured], splits[structured]
    edges = [round(64 * i / (bits + 3)) for i in range(bits + 4)]
    blocks = [((1 << (end - start)) - 1) << start for start, end in pairwise(edges)]
    found: dict[tuple[int, int], int] = {}
    for mask in [2**64 - 1, *(sum(chosen) for chosen in combinations(blocks, 3))]:
        if len(found) >= 10 * limit:
            break
        apart = splits if across_only else None
        for one, other, differing in _neighbors(hashes, apart, np.uint64(mask), bits, 10 * limit):
            found[min(one, other), max(one, other)] = differing
    pairs = [Pair(int(inputs[a]), int(inputs[b]), n, bool(splits[a] != splits[b])) for (a, b), n in found.items()]
    return sorted(pairs, key=lambda pair: (not pair.across_splits, pair.bits, pair.first, pair.second))[:limit]


def _neighbors(
    hashes: np.ndarray, splits: np.ndarray | None, mask: np.uint64, most: int, limit: int
) -> list[tuple[int, int, int]]:
    """Pairs, of two `splits` if given, that agree in the mask's bits and differ in `most` at most, with that number."""
    # The masked hash, mixed, and the position share one word, sorted in place: ten million take 80 MB.
    width = np.uint64(max(1, (len(hashes) - 1).bit_length()))
    words = hashes & mask
    words *= _MIX
    words >>= width
    words <<= width
    for start in range(0, len(words), _PIECE):
        piece = words[start : start + _PIECE]
        piece |= np.arange(start, start + len(piece), dtype=np.uint64)
    words.sort()
    found: list[tuple[int, int, int]] = []
    ones = np.uint64((1 << int(width)) - 1)
    for start in range(0, len(words), _PIECE):
        piece = words[start : start + _PIECE + _MAX_REACH]
        same = np.flatnonzero((piece[1:] ^ piece[:-1]) <= ones)  # where a run of equal masked hashes goes on
        same = same[same < _PIECE]
        for reach in range(1, _MAX_REACH + 1):
            same = same[same < len(piece) - reach]
            same = same[(piece[same + reach] ^ piece[same]) <= ones]
            if not len(same) or len(found) >= limit:
                break
            a, b = piece[same] & ones, piece[same + reach] & ones
            bits = np.bitwise_count(hashes[a] ^ hashes[b])
            near = bits <= most
            if splits is not None:
                near &= splits[a] != splits[b]
            hits = np.flatnonzero(near)[:limit]
            found += zip(a[hits].tolist(), b[hits].tolist(), bits[hits].tolist(), strict=True)
    return found
