"""Boxes, as AVIF, JPEG 2000 and JPEG XL nest them: no more than it takes to know a size before decoding."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from itertools import islice

from shardline.pipeline.image_types import BadImage

MOST_BOXES = 10_000
MOST_ITEMS = 1_000  # of an AVIF, and chunks of its tracks
_OUTERMOST = frozenset((b"ftyp", b"meta", b"mdat", b"moov", b"jp2h", b"jp2c", b"jxlc", b"jxlp", b"jbrd"))
UNTOLD = 2, 2  # of CICP's codes
_CHUNK_OFFSETS = re.compile(rb"stco|co64")


def boxes(data: bytes, start: int = 0, end: int | None = None) -> Iterator[tuple[bytes, int, int]]:
    """(kind, start, end) of the bodies of the boxes between two offsets. Raises BadImage for one that runs past.

    Bytes after the last box of a file are passed over.
    """
    outermost, end = end is None, len(data) if end is None else end
    for _ in range(MOST_BOXES):
        if start + 8 > end:
            return
        size, kind = struct.unpack_from(">I4s", data, start)
        body = start + 8
        if size == 1:
            (size,) = struct.unpack_from(">Q", data, body)
            body += 8
        stop = end if size == 0 else start + size
        if stop > end or stop < body:
            if outermost and kind not in _OUTERMOST:  # as the trailers that phones append are no boxes
                return
            raise BadImage("truncated", f"box {kind.decode('ascii', 'replace')!a} at byte {start} runs past the end")
        yield kind, body, stop
        start = stop
    raise BadImage("corrupt-header", f"more than {MOST_BOXES:,} boxes")


def first_boxes(data: bytes, start: int = 0, end: int | None = None) -> dict[bytes, tuple[int, int]]:
    """Start and end of the body of the first box of each kind, likewise."""
    return {kind: (first, last) for kind, first, last in reversed(list(boxes(data, start, end)))}


class Bits:
    """Numbers of any width from a run of bytes."""

    def __init__(self, data: bytes, *, lowest_first: bool = False) -> None:
        self._lowest_first = lowest_first
        self._length = 8 * len(data)
        self._number = int.from_bytes(data, "little" if lowest_first else "big")
        self._position = 0

    def read(self, width: int) -> int:
        """The next number. Raises IndexError after the end."""
        self._position += width
        if self._position > self._length:
            raise IndexError("out of bits")
        shift = self._position - width if self._lowest_first else self._length - self._position
        return self._number >> shift & (1 << width) - 1


# --- AV1 in AVIF ------------------------------------------------------------------------------------------


def av1_color(data: bytes, height: int, width: int) -> tuple[int, int]:
    """CICP codes of primaries and transfer, of the first coded image that tells; 2, 2 for none.

    Raises:
      BadImage: an image is larger than the header says: libavif would decode, then shrink it.
    """
    told = UNTOLD
    for start in islice(_av1_starts(data), MOST_ITEMS + 1):
        high, wide, primaries, transfer = _av1_size_and_color(data[start : start + 256])
        if high > height + 64 or wide > width + 64:
            raise BadImage("corrupt-header", f"avif: says {width}x{height} pixels, holds {wide}x{high}")
        told = (primaries, transfer) if told == UNTOLD else told
    return told


def _av1_starts(data: bytes) -> Iterator[int]:
    """Where the items and the first samples of tracks begin."""
    outer = first_boxes(data)
    if b"meta" in outer:
        start, end = outer[b"meta"]
        inner = first_boxes(data, start + 4, end)
        if b"iloc" in inner:
            yield from _item_starts(data, *inner[b"iloc"], inner.get(b"idat", (0, 0))[0])
    for found in _CHUNK_OFFSETS.finditer(data, *outer.get(b"moov", (0, 0))):
        at, size = found.end() + 8, 4 if found[0] == b"stco" else 8
        yield int.from_bytes(data[at : at + size], "big")


def _item_starts(data: bytes, start: int, end: int, inside: int) -> Iterator[int]:
    """First extent of each item of an iloc box; `inside`: where the idat box's body begins."""
    version, sizes = data[start], int.from_bytes(data[start + 4 : start + 6], "big")
    offset_size, length_size, base_size = sizes >> 12, sizes >> 8 & 15, sizes >> 4 & 15
    index_size = sizes & 15 if version else 0
    id_size = 4 if version == 2 else 2
    position = start + 6 + id_size  # after the number of items
    if int.from_bytes(data[start + 6 : position], "big") > MOST_ITEMS:
        raise BadImage("unsupported-avif", f"AVIF of more than {MOST_ITEMS:,} items")
    while position + id_size + 4 <= end:
        position += id_size
        method = data[position + 1] & 15 if version else 0
        position += 4 if version else 2
        base = int.from_bytes(data[position : position + base_size], "big")
        position += base_size
        extents = int.from_bytes(data[position : position + 2], "big")
        first = position + 2 + index_size
        yield base + int.from_bytes(data[first : first + offset_size], "big") + (inside if method == 1 else 0)
        position += 2 + extents * (index_size + offset_size + length_size)


def _av1_size_and_color(data: bytes) -> tuple[int, int, int, int]:
    """Largest height and width, and CICP codes, by the sequence header that begins an AV1 bit stream; 0, 0 for none."""
    position = 0
    while position + 2 < len(data) and not data[position] & 0x81:
        kind, extended, sized = data[position] >> 3, data[position] >> 2 & 1, data[position] >> 1 & 1
        position += 1 + extended
        length = shift = 0
        while sized:
            length |= (data[position] & 0x7F) << shift
            shift, position, sized = shift + 7, position + 1, data[position] >> 7
        if kind == 1:
            return _sequence_header(Bits(data[position:]))
        if kind not in (2, 5, 15):  # temporal delimiter, metadata, padding
            break
        position += length
    return 0, 0, *UNTOLD


def _sequence_header(bits: Bits) -> tuple[int, int, int, int]:
    """AV1 specification, 5.5.1 and 5.5.2: as far as the color."""
    profile, _, reduced = bits.read(3), bits.read(1), bits.read(1)
    if reduced:
        bits.read(5)
    else:
        delay = zeros = 0
        if bits.read(1):  # timing, of videos
            bits.read(64)
            if bits.read(1):  # a number of any width
                while not bits.read(1):
                    zeros += 1
                bits.read(zeros)
            if bits.read(1):
                delay = 2 * bits.read(5) + 3
                bits.read(42)
        delayed = bits.read(1)
        for _ in range(bits.read(5) + 1):  # operating points
            bits.read(12)
            if bits.read(5) > 7:
                bits.read(1)
            if delay and bits.read(1):
                bits.read(delay)
            if delayed and bits.read(1):
                bits.read(4)
    width_bits, height_bits = bits.read(4) + 1, bits.read(4) + 1
    width, height = bits.read(width_bits) + 1, bits.read(height_bits) + 1
    if not reduced and bits.read(1):  # numbers of frames
        bits.read(7)
    bits.read(3)
    if not reduced:
        bits.read(4)
        ordered = bits.read(1)
        bits.read(2 * ordered)
        tools = bits.read(1) or bits.read(1)  # for screen content
        if tools and not bits.read(1):
            bits.read(1)
        bits.read(3 * ordered)
    bits.read(3)
    if bits.read(1) and profile == 2:
        bits.read(1)
    if profile != 1:
        bits.read(1)
    color = (bits.read(8), bits.read(8)) if bits.read(1) else UNTOLD
    return height, width, *color
