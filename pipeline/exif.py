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
      struct.error: the block has no byte order, or ends before the first entry.
    """

    def __init__(self, data: bytes, offset: int | None = None) -> None:
        self.data = data
        self.order = {b"II": "<", b"MM": ">"}.get(data[:2], "")
        if not self.order:
            raise struct.error("neither II nor MM")
        self.big = struct.unpack_from(self.order + "H", data, 2)[0] == 43
        self.word, self.inline = ("Q", 8) if self.big else ("I", 4)  # of an offset; bytes of values in an entry
        offset = min(self._offset(self.inline) if offset is None else offset, len(data))
        count: int
        (count,) = struct.unpack_from(self.order + ("Q" if self.big else "H"), data, offset)
        self._start = offset + (8 if self.big else 2)
        layout = _LAYOUTS[self.order, self.big]
        whole = max(0, min(count, 0xFFFF, (len(data) - self._start) // layout.itemsize))
        self._entries = np.frombuffer(data, layout, whole, self._start) if whole else np.empty(0, layout)
        self.whole = whole == count  # False where the block ends inside the directory

    def _offset(self, position: int) -> int:
        return int(struct.unpack_from(self.order + self.word, self.data, position)[0])

    @property
    def following(self) -> int:
        """Offset of the next directory; 0 for none."""
        end = self._start + self._entries.nbytes
        return int.from_bytes(self.data[end : end + self.inline], "little" if self.order == "<" else "big")

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[Entry]:
        yield from map(self._entry, range(len(self)), self._entries.tolist())

    def all(self, tag: int) -> Iterator[Entry]:
        """The entries of a tag, found without looking at the others."""
        for number in np.flatnonzero(self._entries["tag"] == tag).tolist():
            yield self._entry(number, self._entries[number].item())

    def _entry(self, number: int, fields: tuple[int, int, int, bytes]) -> Entry:
        return Entry(*fields[:3], self._start + (number + 1) * self._entries.itemsize - self.inline)

    def number(self, tag: int) -> int:
        """The first value of the first of these tags, 0 where there is none."""
        first = next(self.all(tag), None)
        values = [] if first is None else self.values(first, 1).tolist()
        return values[0] if values else 0

    def below(self, tag: int) -> Directory:
        """The directory that a tag leads to."""
        return Directory(self.data, self.number(tag) or len(self.data))

    def values(self, entry: Entry, most: int) -> np.ndarray:
        """The first values of a tag, at most `most`; fewer where the block ends, none if they are no integers."""
        kind = np.dtype(self.order + _INTEGERS.get(entry.kind, "V0"))
        if not kind.itemsize:
            return np.empty(0, np.int64)
        outside = kind.itemsize * entry.length > self.inline
        where = min(self._offset(entry.position), len(self.data)) if outside else entry.position
        count = max(0, min(entry.length, most, (len(self.data) - where) // kind.itemsize))
        return np.frombuffer(self.data, kind, count, where) if count else np.empty(0, np.int64)

    def fractions(self, entry: Entry, most: int) -> list[float]:
        """The first rational numbers of a tag; none if it holds others, or lies beyond the end."""
        count, where = min(entry.length, most), self._offset(entry.position)
        if entry.kind != 5 or where + 8 * count > len(self.data):
            return []
        numbers = np.frombuffer(self.data, np.dtype(self.order + "u4"), 2 * count, where).astype(float)
        found: list[float] = (numbers[::2] / np.maximum(numbers[1::2], 1)).tolist()
        return found


def orientation(block: bytes) -> int:
    """The orientation that an EXIF block or TIFF file gives: 1 to 8, 1 for a value out of range, 0 for no such tag."""
    found = 0
    try:
        directory = Directory(block.removeprefix(_PREFIX))
        for entry in directory.all(ORIENTATION):
            found = 1
            if len(values := directory.values(entry, 1)) and 1 <= values[0] <= 8:
                return int(values[0])  # the first, as OpenCV and Pillow have it
    except struct.error:
        pass
    return found


def is_adobe_rgb(block: bytes) -> bool:
    """Whether an EXIF block says that colors are Adobe RGB: by its color space, or as cameras do by R03 (DCF 2.0)."""
    try:
        inside = Directory(block.removeprefix(_PREFIX)).below(_EXIF)
        space = inside.number(_COLOR_SPACE)
        if space in (0, 1, 2):  # untold, sRGB, Adobe RGB
            return space == 2
        index = next(inside.below(_INTEROPERABILITY).all(1), None)
        return index is not None and inside.data[index.position : index.position + 3] == b"R03"
    except struct.error:
        return False


def xmp_orientation(packet: bytes) -> int:
    """The orientation that an XMP packet gives, for files whose EXIF gives none: 1 to 8, 0 for none."""
    found = _XMP_ORIENTATION.search(packet)
    return int(found[1]) if found else 0
