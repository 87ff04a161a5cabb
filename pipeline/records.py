"""One stored picture as bytes and back: `encode_example` and `parse_example`, side by side so they cannot drift.

Neither needs TensorFlow: a converter worker must stay small, and a reader is as fast without it. The bytes are
a `tf.train.Example` whose features stand in sorted order, so equal inputs give equal bytes: protobuf's own
serialisation of maps does not promise that. Wire format: https://protobuf.dev/programming-guides/encoding/
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

import google_crc32c

from pipeline.manifest import Features

# ---------------------------------------------------------------------------------------------- encoding


def encode_example(image: bytes, label: int, filename: str, height: int, width: int) -> bytes:
    """Serialise one picture as a `tf.train.Example` with `pipeline.manifest.Features`' default names.

    Args:
      image: the encoded picture (JPEG or PNG), or height * width * 3 RGB bytes when stored raw.
      label: class number, 0 or more.
      filename: path of the source relative to the source folder, with forward slashes.
      height: pixels.
      width: pixels.
    """
    return _message(
        1,  # Example.features; the map entries (field 1 of Features) stand in the order of their keys
        _entry("image", _bytes_feature(image))
        + _entry("image/filename", _bytes_feature(filename.encode()))
        + _entry("image/height", _int_feature(height))
        + _entry("image/width", _int_feature(width))
        + _entry("label", _int_feature(label)),
    )


def _entry(key: str, feature: bytes) -> bytes:
    return _message(1, _message(1, key.encode()) + _message(2, feature))


def _bytes_feature(value: bytes) -> bytes:
    return _message(1, _message(1, value))  # Feature.bytes_list, BytesList.value


def _int_feature(value: int) -> bytes:
    return _message(3, _message(1, _varint(value)))  # Feature.int64_list, Int64List.value (packed)


def _message(field: int, payload: bytes) -> bytes:
    return bytes((field << 3 | 2,)) + _varint(len(payload)) + payload


def _varint(value: int) -> bytes:
    if value < 0:
        raise ValueError(f"a stored number must not be negative: {value}")
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


FRAME_BYTES = 16  # what framing adds to a payload: 8 length, 4 its checksum, 4 the payload's


def frame_record(payload: bytes) -> bytes:
    """Frame one payload as a TFRecord: length, masked CRC-32C of the length, payload, masked CRC-32C of it."""
    length = struct.pack("<Q", len(payload))
    return b"".join((length, masked_crc(length), payload, masked_crc(payload)))


def unframe_record(framed: bytes) -> bytes:
    """The payload of one framed record. Raises ValueError when its length or a checksum is wrong."""
    if len(framed) < FRAME_BYTES:
        raise ValueError(f"record of {len(framed)} bytes is shorter than its frame")
    (length,) = struct.unpack_from("<Q", framed)
    if length != len(framed) - FRAME_BYTES or masked_crc(framed[:8]) != framed[8:12]:
        raise ValueError("damaged record header")
    payload = framed[12:-4]
    if masked_crc(payload) != framed[-4:]:
        raise ValueError("record checksum does not match")
    return payload


def masked_crc(data: bytes) -> bytes:
    """The four checksum bytes TFRecord stores for `data`; the mask keeps CRCs of CRCs apart."""
    crc = google_crc32c.value(data)
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)


# ----------------------------------------------------------------------------------------------- parsing


@dataclass(frozen=True, slots=True)
class Example:
    """One stored picture, as read. Height and width are 0, and the file name empty, where they are not stored."""

    image: memoryview  # the encoded picture, or the pixels when stored raw
    label: int
    filename: str = ""
    height: int = 0
    width: int = 0


def parse_example(payload: bytes, features: Features) -> Example:
    """The picture in a serialised `tf.train.Example`: inverse of `encode_example`, for foreign feature names too.

    Raises:
      ValueError: the bytes are no Example, or the image or the label is missing.
    """
    try:
        found = dict(_entries(payload))
        image = found.get(features.image.encode())
        label = found.get(features.label.encode())
        height = found.get(features.height.encode())
        width = found.get(features.width.encode())
        filename = found.get(features.filename.encode())
        if not image or payload[image[0]] != _BYTES:
            raise ValueError(f"feature {features.image!r} holds no bytes")
        if not label or payload[label[0]] != _INTEGERS:
            raise ValueError(f"feature {features.label!r} holds no integer")
        return Example(
            image=memoryview(payload)[slice(*_first_value(payload, *image))],
            label=_integer(payload, label) + features.label_offset,
            filename=payload[slice(*_first_value(payload, *filename))].decode(errors="replace") if filename else "",
            height=_integer(payload, height) if height else 0,
            width=_integer(payload, width) if width else 0,
        )
    except IndexError:
        raise ValueError("the Example ends in the middle of a field") from None


_BYTES, _INTEGERS = 0x0A, 0x1A  # first byte of a Feature that holds a bytes_list or an int64_list


def _entries(payload: bytes) -> Iterator[tuple[bytes, tuple[int, int]]]:
    """Key and span of each Feature. Every writer of protobufs puts an entry's key before its value."""
    at, end = _delimited(payload, 0, 0x0A)  # Example.features
    if end != len(payload):
        raise ValueError("not a tf.train.Example")
    while at < end:
        entry, at = _delimited(payload, at, 0x0A)  # Features.feature
        key, value = _delimited(payload, entry, 0x0A)
        start, stop = _delimited(payload, value, 0x12)
        if stop != at:
            raise ValueError("not a tf.train.Example")
        if start < stop:  # else neither a list nor a value
            yield payload[key:value], (start, stop)


def _first_value(payload: bytes, start: int, stop: int) -> tuple[int, int]:
    """Span of the first value in a Feature's list; empty when the list is."""
    start, stop = _delimited(payload, start, payload[start])
    if start == stop:
        return start, stop
    if payload[start] == 0x08:  # an int64_list that is not packed
        return start + 1, stop
    return _delimited(payload, start, 0x0A)


def _integer(payload: bytes, span: tuple[int, int]) -> int:
    start, stop = _first_value(payload, *span)
    if start == stop:
        raise ValueError("an empty list where an integer belongs")
    number, _ = _varint_at(payload, start)
    return number - (1 << 64) if number >> 63 else number


def _delimited(payload: bytes, at: int, tag: int) -> tuple[int, int]:
    """Start and end of the length-delimited field at an offset."""
    if payload[at] != tag:
        raise ValueError("not a tf.train.Example")
    length = payload[at + 1]
    start = at + 2
    if length > 0x7F:
        length, start = _varint_at(payload, at + 1)
    if start + length > len(payload):
        raise IndexError(start + length)
    return start, start + length


def _varint_at(payload: bytes, at: int) -> tuple[int, int]:
    """The number that starts at an offset, and the offset behind it."""
    number = shift = 0
    while True:
        byte = payload[at]
        number |= (byte & 0x7F) << shift
        at += 1
        if byte < 0x80:
            return number, at
        shift += 7
