"""A stored image as a serialized `tf.train.Example` and back, without TensorFlow.

A converter's worker must stay small, and a reader is as fast without it. The features stand in sorted order, so equal
inputs give equal bytes, which protobuf's own serialization of maps does not promise. Wire format:
https://protobuf.dev/programming-guides/encoding/
"""

from __future__ import annotations

import re
import struct
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

from shardline.pipeline.manifest import NO_LABEL, Features

# ---------------------------------------------------------------------------------------------- encoding


def encode_example(image: bytes, label: int, filename: str, height: int, width: int) -> bytes:
    """Serialize one image as a `tf.train.Example` with `pipeline.manifest.Features`' default names.

    Args:
      image: the encoded image (JPEG or PNG), or height * width * 3 RGB bytes when stored raw.
      label: class number, or -1 for an image without a label.
      filename: path of the source relative to the source folder, with forward slashes.
      height: pixels.
      width: pixels.
    """
    if label < -1 or height < 0 or width < 0:
        raise ValueError(f"a stored number must not be negative: label {label}, {height}x{width} pixels")
    name = filename.encode()
    entries = (  # of the map Features.feature, in the order of their keys
        _before(b"image", _BYTES, len(image)),
        image,
        _before(b"image/filename", _BYTES, len(name)),
        name,
        _int_entry(b"image/height", height),
        _int_entry(b"image/width", width),
        _int_entry(b"label", label),
    )
    return b"".join((_field(_MESSAGE, sum(map(len, entries))), *entries))  # Example.features


_MESSAGE = 0x0A  # field 1 of every message here that is read by its length
_BYTES, _INTS = 0x0A, 0x1A  # Feature.bytes_list, Feature.int64_list


def _before(key: bytes, kind: int, size: int) -> bytes:
    """The bytes before a feature's only value of `size` bytes: the map entry, the key, the feature, its list."""
    head = _field(_MESSAGE, size)
    head = _field(kind, len(head) + size) + head
    head = _field(_MESSAGE, len(key)) + key + _field(0x12, len(head) + size) + head
    return _field(_MESSAGE, len(head) + size) + head


@lru_cache(1 << 12)
def _int_entry(key: bytes, value: int) -> bytes:
    packed = _varint(value % 2**64)
    return _before(key, _INTS, len(packed)) + packed


def _field(tag: int, size: int) -> bytes:
    return bytes((tag,)) + _varint(size)


def _varint(value: int) -> bytes:
    if value < 0:
        raise ValueError(f"a stored number must not be negative: {value}")
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


# ----------------------------------------------------------------------------------------------- parsing


class Example(NamedTuple):
    """One stored image, as read. Height and width are 0, and the file name empty, where they are not stored."""

    image: memoryview  # the encoded image, or the pixels when stored raw
    label: int
    filename: str = ""
    height: int = 0
    width: int = 0


def parse_example(payload: bytes | memoryview, features: Features) -> Example:
    """The image in a serialized `tf.train.Example`: inverse of `encode_example`, for foreign feature names too.

    Raises:
      ValueError: the bytes are no Example, or the image or the label is missing or of another kind.
    """
    try:
        image, label, filename, height, width = _wanted_values(payload, features)
    except IndexError:
        raise ValueError("the Example ends in the middle of a field") from None
    if not isinstance(image, memoryview):
        held = len(feature_values(payload, features.image))
        raise ValueError(
            f"feature {features.image!r} holds {f'{held} values, and no one image' if held > 1 else 'no bytes'}"
        )
    if not isinstance(label, int):
        label = _other_label(payload, features)
    return Example(
        image=image,
        label=label + features.label_offset if features.label else NO_LABEL,
        filename=str(filename, errors="replace") if isinstance(filename, memoryview) else "",
        height=height if isinstance(height, int) else 0,
        width=width if isinstance(width, int) else 0,
    )


_OWN_START = re.compile(rb"\x0aV\x0aV\x0a\x05image\x12V\x0aV\x0a(V)".replace(b"V", rb"[\x80-\xff]{0,4}[\0-\x7f]"))
_OWN_END = re.compile(  # the file name is skipped; lengths of numbers and of what holds them have one byte
    rb"\x0aV\x0a\x0eimage/filename\x12V\x0aV\x0aV.*"
    rb"\x0a.\x0a\x0cimage/height\x12.\x1a.\x0a.V\x0a.\x0a\x0bimage/width\x12.\x1a.\x0a.V"
    rb"\x0a.\x0a\x05label\x12.\x1a.\x0a.(V)".replace(b"V", rb"[\x80-\xff]{0,9}[\0-\x7f]"),
    re.DOTALL,
)


def own_pixels(payload: memoryview) -> Example | None:
    """The image and the label of what `encode_example` wrote, in a quarter of the time; None of any other payload.

    Relies on the record's checksum: of the five lengths that tell where the image ends, it reads the last.
    """
    if not (start := _OWN_START.match(payload)):
        return None
    first = start.end()
    end = first + _varint_at(start[1], 0)[0]
    if not (rest := _OWN_END.fullmatch(payload, end)):
        return None
    label = _varint_at(rest[1], 0)[0]
    return Example(payload[first:end], label - (1 << 64) if label >> 63 else label)


def _other_label(payload: bytes | memoryview, features: Features) -> int:
    """A label that is not simply the one integer of its feature, before the offset."""
    if not features.label:
        return NO_LABEL
    values = feature_values(payload, features.label)
    if features.label_kind == "onehot":
        hot = [number for number, value in enumerate(values) if value == 1]
        if len(hot) == 1 and all(value in (0, 1) for value in values):
            return hot[0]
        raise ValueError(f"feature {features.label!r} is not one-hot: {len(hot)} of its {len(values)} numbers are 1")
    if len(values) > 1:
        raise ValueError(f"feature {features.label!r} holds {len(values)} labels; shardline takes one label an image")
    if not values or not features.label_kind:
        raise ValueError(f"feature {features.label!r} holds no integer")
    if features.label_kind == "name":
        name = label_text(values[0])
        if name not in features.names:
            raise ValueError(f"label {name!r} is none of the dataset's classes")
        return features.names.index(name)
    try:
        number = 0.5 if isinstance(values[0], bytes) and b"_" in values[0] else float(values[0])  # Python's 1_0
    except ValueError:
        number = 0.5
    if not number.is_integer():
        raise ValueError(f"feature {features.label!r} holds {label_text(values[0])!r}, no whole number")
    return int(number)


def label_text(value: bytes | float) -> str:
    """A stored class name; bytes that are no UTF-8 are escaped."""
    return value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else str(value)


def feature_values(payload: bytes | memoryview, name: str) -> Sequence[int] | Sequence[float] | Sequence[bytes]:
    """All values of one feature; none where it is missing or empty.

    Raises:
      ValueError: the bytes are no Example.
    """
    try:
        at, end = _delimited(payload, 0, 0x0A)
        while at < end:
            entry, at = _delimited(payload, at, 0x0A)
            key, key_end = _delimited(payload, entry, 0x0A)
            if bytes(payload[key:key_end]) != name.encode():
                continue
            feature, feature_end = _delimited(payload, key_end, 0x12)
            return _all_values(payload, feature) if feature < feature_end else ()
    except (IndexError, struct.error):
        raise ValueError("the Example ends in the middle of a field") from None
    return ()


def _all_values(payload: bytes | memoryview, feature: int) -> Sequence[int] | Sequence[float] | Sequence[bytes]:
    kind = payload[feature]
    at, end = _delimited(payload, feature, kind)
    if kind == 0x0A:  # bytes_list
        texts = []
        while at < end:
            start, at = _delimited(payload, at, 0x0A)
            texts.append(bytes(payload[start:at]))
        return texts
    if kind == 0x12:  # float_list: packed, or one tag for each number
        packed = at < end and payload[at] == 0x0A
        floats: list[float] = []
        while at < end:
            start, at = _delimited(payload, at, 0x0A) if packed else (at + 1, at + 5)
            floats += struct.unpack(f"<{(at - start) // 4}f", payload[start:at])
        return floats
    numbers: list[int] = []
    while at < end:
        if payload[at] == 0x0A:
            start, stop = _delimited(payload, at, 0x0A)
        else:
            start, stop = at + 1, at + 2
        while start < stop:
            number, start = _varint_at(payload, start)
            numbers.append(number - (1 << 64) if number >> 63 else number)
        at = start
    return numbers


def feature_kinds(payload: bytes | memoryview) -> dict[str, str]:
    """Name of every feature of a serialized `tf.train.Example` and what it holds: bytes, int64, float or nothing.

    Raises:
      ValueError: the bytes are no Example.
    """
    kinds = {0x0A: "bytes", 0x12: "float", 0x1A: "int64"}
    found = {}
    try:
        at, end = _delimited(payload, 0, 0x0A)
        if end < len(payload):
            raise ValueError("a tf.train.SequenceExample" if payload[end] == 0x12 else "bytes after the Example")
        while at < end:
            entry, at = _delimited(payload, at, 0x0A)
            key, key_end = _delimited(payload, entry, 0x0A)
            feature, feature_end = _delimited(payload, key_end, 0x12)
            kind = kinds.get(payload[feature], "nothing") if feature < feature_end else "nothing"
            found[str(payload[key:key_end], errors="replace")] = kind
    except IndexError:
        raise ValueError("the Example ends in the middle of a field") from None
    return found


def _wanted_values(payload: bytes | memoryview, features: Features) -> list[memoryview | int | None]:
    """Values of the features that are read, None where there is not one; relies on keys before their values."""
    slots = _slots(features)
    values: list[memoryview | int | None] = [None] * 5
    at, end = _delimited(payload, 0, 0x0A)  # Example.features
    if end != len(payload):
        raise ValueError("not a tf.train.Example")
    while at < end:
        # Features.feature; its length and its key's are written out: this loop costs as much as the checksum.
        if payload[at] == 0x0A and payload[at + 1] < 0x80:
            entry = at + 2
            at = entry + payload[at + 1]
        else:
            entry, at = _delimited(payload, at, 0x0A)
        key_end = entry + 2 + payload[entry + 1]
        slot = slots.get(bytes(payload[entry + 2 : key_end]))
        if payload[entry] != 0x0A or payload[entry + 1] > 0x7F or at > end:
            raise ValueError("not a tf.train.Example, or a feature's name is longer than 127 bytes")
        if slot is not None:
            feature, feature_end = _delimited(payload, key_end, 0x12)
            if feature_end != at:
                raise ValueError("not a tf.train.Example")
            if feature < feature_end:
                values[slot] = _only_value(payload, feature)
    return values


@lru_cache(maxsize=8)
def _slots(features: Features) -> dict[bytes, int]:
    label = "" if features.label_kind else features.label
    names = (features.image, label, features.filename, features.height, features.width)
    return {name.encode(): slot for slot, name in enumerate(names) if name}


def _only_value(payload: bytes | memoryview, feature: int) -> memoryview | int | None:
    """The value of a Feature's list; None when that is empty, holds several, or floats."""
    kind = payload[feature]
    start, end = _delimited(payload, feature, kind)
    if start == end:
        return None
    if kind == 0x0A:  # bytes_list
        start, stop = _delimited(payload, start, 0x0A)
        return memoryview(payload)[start:stop] if stop == end else None
    if kind == 0x1A:  # int64_list: packed, or one tag for each number
        start = start + 1 if payload[start] == 0x08 else _delimited(payload, start, 0x0A)[0]
        if start < end:
            number, stop = _varint_at(payload, start)
            if stop == end:
                return number - (1 << 64) if number >> 63 else number
    return None


def _delimited(payload: bytes | memoryview, at: int, tag: int) -> tuple[int, int]:
    """Start and end of the length-delimited field at an offset."""
    if payload[at] != tag:
        raise ValueError("not a tf.train.Example")
    length = payload[at + 1]
    start = at + 2
    if length > 0x7F:
        length, start = _varint_at(payload, at + 1)
    end = start + length
    if end > len(payload):
        raise IndexError(end)
    return start, end


def _varint_at(payload: bytes | memoryview, at: int) -> tuple[int, int]:
    """The number that starts at an offset, and the offset after it."""
    byte = number = payload[at]
    shift = 0
    while byte > 0x7F:
        at += 1
        shift += 7
        byte = payload[at]
        number += byte - 1 << shift  # the bit that says that more follows is worth one of these
    return number, at + 1
