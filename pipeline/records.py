"""One stored picture as bytes and back: `encode_example` and `parse_example`, side by side so they cannot drift.

Encoding needs no TensorFlow (a converter worker must stay small); parsing imports it when called. The bytes are
a `tf.train.Example` whose features stand in sorted order, so equal inputs give equal bytes: protobuf's own
serialisation of maps does not promise that. Wire format: https://protobuf.dev/programming-guides/encoding/
"""

from __future__ import annotations

import struct
from typing import Any

import google_crc32c

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
