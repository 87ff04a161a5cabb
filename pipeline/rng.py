"""Keyed stateless randomness: numbers that depend on (seed, purpose, counter) alone. No TensorFlow.

A number is the SplitMix64 hash (https://prng.di.unimi.it/splitmix64.c) of its counter under a key made of seed and
purpose: any thread or host can compute it at any time, alone or in an array, and no library's version changes it.
"""

from __future__ import annotations

import hashlib

import numpy as np

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def key(seed: int, *names: str | int) -> int:
    """A 64-bit key for one purpose, e.g. `key(seed, "order", epoch)`."""
    text = "/".join(map(str, (seed, *names)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")


def bits(key: int, counters: np.ndarray) -> np.ndarray:
    """64 random bits for each counter; different counters give different numbers (the hash is a bijection)."""
    z = counters.astype(np.uint64)
    z *= _GOLDEN
    z += np.uint64(key)
    z ^= z >> np.uint64(30)
    z *= np.uint64(0xBF58476D1CE4E5B9)
    z ^= z >> np.uint64(27)
    z *= np.uint64(0x94D049BB133111EB)
    z ^= z >> np.uint64(31)
    return z


def uniform(key: int, positions: np.ndarray, count: int) -> np.ndarray:
    """float64 [len(positions), count] in [0, 1): `count` independent numbers for each position."""
    counters = positions.astype(np.int64)[:, None] * count + np.arange(count)
    return (bits(key, counters) >> np.uint64(11)) * 2.0**-53
