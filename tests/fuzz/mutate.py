"""Changed copies of seeds, the same ones for the same number: flipped bits, cuts, repeats, numbers at their limits."""

from __future__ import annotations

import random
from collections.abc import Sequence

_NUMBERS = [0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 2**63 - 1, 2**64 - 1]
_WORDS = [b"-1", b"0", b"1e999", b"NaN", b"null", b"true", b"[", b"{}", b'""', b"../", b"\0", b"\xff", b"9" * 25, b"\n"]


def mutated(seeds: Sequence[bytes], number: int) -> bytes:
    """One to four changes of a seed."""
    rng = random.Random(number)
    data = bytearray(rng.choice(seeds))
    for _ in range(rng.randint(1, 4)):
        at, length = rng.randint(0, len(data)), rng.choice([1, 2, 4, 8, rng.randint(1, 64)])
        match rng.randrange(8):
            case 0 if at < len(data):
                data[at] ^= 1 << rng.randrange(8)
            case 1 if at < len(data):
                data[at] = rng.randrange(256)
            case 2:
                size = rng.choice([1, 2, 4, 8])
                value = rng.choice(_NUMBERS) % 256**size
                data[at : at + size] = value.to_bytes(size, rng.choice(["little", "big"]))
            case 3:
                data[at : at + rng.choice([0, 1, 3])] = rng.choice(_WORDS)
            case 4:
                del data[at : at + length]
            case 5:
                data[at:at] = data[at : at + length] * rng.choice([1, 2, 30])
            case 6:
                del data[at:]
            case 7:
                other = rng.choice(seeds)
                start = rng.randint(0, len(other))
                data[at : at + length] = other[start : start + length]
    return bytes(data)
