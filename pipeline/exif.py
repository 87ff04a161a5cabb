"""TIFF directories, which EXIF blocks are, too: the orientation of an image and the tags that its pixels need.

Reads the tags that are asked for and no more, follows no loops, and forgives what OpenCV and Pillow forgive: a missing
pointer to the next directory, other tags with values outside the block, more entries announced than there are.
"""

from __future__ import annotations

import re
import struct
from functools import cached_property

import numpy as np

ORIENTATION = 0x0112
MOST_VALUES = 1 << 22  # of a tag: strips or tiles, bytes of a profile
_MOST_REPEATS = 4  # of one tag
_PREFIX = b"Exif\0\0"  # of JPEG, which some writers put into other formats, too
_EXIF, _COLOR_SPACE, _INTEROPERABILITY = 0x8769, 0xA001, 0xA005
_TYPES = {1: "u1", 2: "u1", 3: "u2", 4: "u4", 5: "2u4", 6: "i1", 7: "u1", 8: "i2", 9: "i4", 10: "2i4", 13: "u4",
          16: "u8", 17: "i8"}  # fmt: skip
_KINDS = {order: {code: np.dtype(kind[:-2] + order + kind[-2:]) for code, kind in _TYPES.items()} for order in "<>"}
_LAYOUTS = {  # of a directory's entries, by byte order and whether it is BigTIFF
    (order, big): np.dtype(
        [("tag", f"{order}u2"), ("kind", f"{order}u2"), ("length", f"{order}u{word}"), ("", f"V{word}")]
    )
    for order in "<>"
    for big, word in ((False, 4), (True, 8))
}
_MOST_XMP = 1 << 18  # bytes
_XMP_PREFIX = re.compile(rb"""xmlns:([\w.-]+)\s*=\s*["']http://ns\.adobe\.com/tiff/1\.0/["']""")
_XMP_ORIENTATION = rb"""\b%s:Orientation(?:\s*=\s*["']|(?:\s[^<>]{0,99})?>\s*(?:<[\w:]{1,40}>)?)\s*([1-8])\b"""


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

    def __contains__(self, tag: int) -> bool:
        return tag in self._numbers

    @cached_property
    def _numbers(self) -> dict[int, list[int]]:
        """Of the entries of each tag."""
        found: dict[int, list[int]] = {}
        for number, tag in enumerate(self._entries["tag"].tolist()):
            found.setdefault(tag, []).append(number)
        return found

    def length(self, tag: int) -> int:
        """How many values a tag announces."""
        return int(self._entries[self._numbers[tag][0]]["length"]) if tag in self else 0

    def values(self, tag: int, most: int = MOST_VALUES, entry: int = 0) -> np.ndarray:
        """The first values of a tag, of its first entry or another; fewer where the block ends, none if no numbers.

        Fractions are floating-point numbers, all others integers.
        """
        numbers = self._numbers.get(tag, [])[entry:]
        _, code, length, _ = self._entries[numbers[0]].item() if numbers else (tag, 0, 0, b"")
        kind = _KINDS[self.order].get(code)
        if kind is None:
            return np.empty(0, np.int64)
        position = self._start + (numbers[0] + 1) * self._entries.itemsize - self.inline
        if kind.itemsize * length > self.inline:
            position = min(self._offset(position), len(self.data))
        count = max(0, min(length, most, (len(self.data) - position) // kind.itemsize))
        values = np.frombuffer(self.data[position : position + count * kind.itemsize], kind)
        return values[:, 0] / np.maximum(values[:, 1], 1) if values.ndim == 2 else values

    def first(self, tag: int, default: int = 0) -> int:
        """The first value of a tag."""
        values = self.values(tag, 1)
        return int(values[0]) if len(values) else default

    def below(self, tag: int) -> Directory:
        """The directory that a tag leads to."""
        return Directory(self.data, self.first(tag) or len(self.data))


def orientation(block: bytes) -> int:
    """The orientation that an EXIF block or TIFF file gives: 1 to 8, 1 for a value out of range, 0 for no such tag."""
    try:
        directory = Directory(block.removeprefix(_PREFIX))
    except struct.error:
        return 0
    for entry in range(_MOST_REPEATS):
        values = directory.values(ORIENTATION, 1, entry)
        if len(values) and values[0] in range(1, 9):
            return int(values[0])  # the first, as OpenCV and Pillow have it
    return int(ORIENTATION in directory)


def is_adobe_rgb(block: bytes) -> bool:
    """Whether an EXIF block says that colors are Adobe RGB: by its color space, or as cameras do by R03 (DCF 2.0)."""
    try:
        inside = Directory(block.removeprefix(_PREFIX)).below(_EXIF)
        space = inside.first(_COLOR_SPACE)
        if space in (0, 1, 2):  # untold, sRGB, Adobe RGB
            return space == 2
        return inside.below(_INTEROPERABILITY).values(1, 3).tobytes() == b"R03"
    except struct.error:
        return False


def xmp_orientation(packet: bytes) -> int:
    """The orientation that an XMP packet gives, for files whose EXIF gives none: 1 to 8, 0 for none."""
    packet = packet[:_MOST_XMP].replace(b"\0", b"")  # as of UTF-16
    prefix = _XMP_PREFIX.search(packet)
    found = re.search(_XMP_ORIENTATION % (re.escape(prefix[1]) if prefix else b"tiff"), packet)
    return int(found[1]) if found else 0
