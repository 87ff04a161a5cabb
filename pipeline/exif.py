"""TIFF directories, which EXIF blocks are, too: the orientation of an image and the tags that its pixels need.

Reads the tags that are asked for and no more, follows no loops, and forgives what OpenCV and Pillow forgive: a missing
pointer to the next directory, other tags with values outside the block, more entries announced than there are.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

ORIENTATION = 0x0112
_PREFIX = b"Exif\0\0"  # of JPEG, which some writers put into other formats, too
_EXIF, _COLOR_SPACE, _INTEROPERABILITY = 0x8769, 0xA001, 0xA005
_INTEGERS = {1: "u1", 2: "u1", 3: "u2", 4: "u4", 6: "i1", 7: "u1", 8: "i2", 9: "i4", 13: "u4", 16: "u8", 17: "i8"}
_LAYOUTS = {  # of a directory's entries, by byte order and whether it is BigTIFF
    (order, big): np.dtype(
        [("tag", f"{order}u2"), ("kind", f"{order}u2"), ("length", f"{order}u{word}"), ("", f"V{word}")]
    )
    for order in "<>"
    for big, word in ((False, 4), (True, 8))
}
_XMP_ORIENTATION = re.compile(rb"""tiff:Orientation\s*(?:=\s*["']|>)\s*([1-8])\b""")


class Entry(NamedTuple):
    """One tag of a directory, its values not yet read."""

    tag: int
    kind: int  # as TIFF numbers the types
    length: int  # number of values
    position: int  # of the value, or of the offset where the values lie


class Directory:
    """One directory of a TIFF file or EXIF block, classic or BigTIFF.

    Raises:
      struct.error: the block ends before the first entry.
    """

    def __init__(self, data: bytes, offset: int | None = None) -> None:
        self.data = data
        self.order = {b"II": "<", b"MM": ">"}[data[:2]]
        self.big = struct.unpack_from(self.order + "H", data, 2)[0] == 43
        self._word = "Q" if self.big else "I"
        if offset is None:
            (offset,) = struct.unpack_from(self.order + self._word, data, 8 if self.big else 4)
        if offset > len(data):
            raise struct.error("the directory lies beyond the end")
        count: int
        (count,) = struct.unpack_from(self.order + ("Q" if self.big else "H"), data, offset)
        self._start = offset + (8 if self.big else 2)
        layout = _LAYOUTS[self.order, self.big]
        whole = max(0, min(count, 0xFFFF, (len(data) - self._start) // layout.itemsize))
        self._entries = np.frombuffer(data, layout, whole, self._start) if whole else np.empty(0, layout)
        self.whole = whole == count  # False where the block ends inside the directory

    @property
    def following(self) -> int:
        """Offset of the next directory; 0 for none."""
        end = self._start + self._entries.nbytes
        size = 8 if self.big else 4
        return int.from_bytes(self.data[end : end + size], "little" if self.order == "<" else "big")

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[Entry]:
        yield from map(self._entry, range(len(self)), self._entries.tolist())

    def all(self, tag: int) -> Iterator[Entry]:
        """The entries of a tag, found without looking at the others."""
        for number in np.flatnonzero(self._entries["tag"] == tag).tolist():
            yield self._entry(number, self._entries[number].item())

    def _entry(self, number: int, fields: tuple[int, int, int, bytes]) -> Entry:
        return Entry(*fields[:3], self._start + number * self._entries.itemsize + (12 if self.big else 8))

    def find(self, tag: int) -> Entry | None:
        """The first of them; of classic TIFF."""
        return None if self.big else next(self.all(tag), None)

    def number(self, entry: Entry) -> int:
        """The value of a tag that holds one short or long number."""
        value: int
        (value,) = struct.unpack_from(self.order + ("H" if entry.kind == 3 else "I"), self.data, entry.position)
        return value

    def below(self, tag: int) -> Directory | None:
        """The directory that a tag leads to."""
        pointer = self.find(tag)
        return Directory(self.data, self.number(pointer)) if pointer else None

    def values(self, entry: Entry, most: int) -> np.ndarray:
        """The first values of a tag, at most `most`; fewer where the block ends, none if they are no integers."""
        kind = np.dtype(self.order + _INTEGERS.get(entry.kind, "V0"))
        where, count = entry.position, min(entry.length, most)
        if not kind.itemsize:
            return np.empty(0, np.int64)
        if kind.itemsize * entry.length > (8 if self.big else 4):
            (where,) = struct.unpack_from(self.order + self._word, self.data, where)
            where = min(where, len(self.data))
        count = max(0, min(count, (len(self.data) - where) // kind.itemsize))
        return np.frombuffer(self.data, kind, count, where) if count else np.empty(0, np.int64)

    def fractions(self, entry: Entry, most: int) -> list[float]:
        """The first rational numbers of a tag; none if it holds others, or lies beyond the end."""
        count = min(entry.length, most)
        (where,) = struct.unpack_from(self.order + self._word, self.data, entry.position)
        if entry.kind != 5 or where + 8 * count > len(self.data):
            return []
        numbers = np.frombuffer(self.data, np.dtype(self.order + "u4"), 2 * count, where).astype(float)
        found: list[float] = (numbers[::2] / np.maximum(numbers[1::2], 1)).tolist()
        return found


def orientation(block: bytes) -> int:
    """The orientation that an EXIF block or TIFF file gives: 1 to 8, 1 for a value out of range, 0 for no such tag."""
    found, block = 0, block.removeprefix(_PREFIX)
    if block[:2] in (b"II", b"MM"):
        try:
            directory = Directory(block)
            for entry in directory.all(ORIENTATION):
                found = 1
                if len(values := directory.values(entry, 1)) and 1 <= values[0] <= 8:
                    return int(values[0])  # the first, as OpenCV and Pillow have it
        except struct.error:
            pass
    return found


def is_adobe_rgb(block: bytes) -> bool:
    """Whether an EXIF block says that colors are Adobe RGB: by its color space, or as cameras do by R03 (DCF 2.0)."""
    block = block.removeprefix(_PREFIX)
    if block[:2] not in (b"II", b"MM"):
        return False
    try:
        inside = Directory(block).below(_EXIF)
        space = inside and inside.find(_COLOR_SPACE)
        if not inside or not space:
            return False
        told = inside.number(space)
        if told == 1:  # sRGB, as most say
            return False
        interoperability = inside.below(_INTEROPERABILITY)
        index = interoperability and interoperability.find(1)
        return told == 2 or bool(index and block[index.position : index.position + 3] == b"R03")
    except struct.error:
        return False


def xmp_orientation(packet: bytes) -> int:
    """The orientation that an XMP packet gives, for files whose EXIF gives none: 1 to 8, 0 for none."""
    found = _XMP_ORIENTATION.search(packet)
    return int(found[1]) if found else 0
