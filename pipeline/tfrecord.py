"""TFRecord files as they lie on disk: framing and checksums, indexing, single records. No TensorFlow."""

from __future__ import annotations

import mmap
import os
import struct
from typing import TypeVar

import google_crc32c
import numpy as np

_HEADER = struct.Struct("<Q")
_FRAME_START, _CRC = struct.Struct("<QI"), struct.Struct("<I")
FRAME_BYTES = 16  # added to a payload: its length (8), the checksums of the length (4) and of the payload (4)


def frame_record(payload: bytes | memoryview) -> bytes:
    """Frame one payload as a TFRecord: length, masked CRC-32C of the length, payload, masked CRC-32C of it."""
    length = struct.pack("<Q", len(payload))
    return b"".join((length, masked_crc(length), payload, masked_crc(payload)))


Data = TypeVar("Data", bytes, memoryview)  # a memoryview must be read-only; its slices are views, not copies


def unframe_record(framed: Data) -> Data:
    """The payload of one framed record. Raises ValueError when its length or a checksum is wrong."""
    if len(framed) < FRAME_BYTES:
        raise ValueError(f"record of {len(framed)} bytes is shorter than its frame")
    length, length_crc = _FRAME_START.unpack_from(framed)
    if length != len(framed) - FRAME_BYTES or _masked_crc(bytes(framed[:8])) != length_crc:
        raise ValueError("damaged record header")
    payload = framed[12:-4]
    if _masked_crc(payload) != _CRC.unpack_from(framed, len(framed) - 4)[0]:
        raise ValueError("record checksum does not match")
    return payload


def masked_crc(data: bytes | memoryview) -> bytes:
    """TFRecord's masked CRC-32C of `data`, 4 bytes; the mask is for data that itself contains CRCs."""
    return _CRC.pack(_masked_crc(data))


def _masked_crc(data: bytes | memoryview) -> int:
    # The library takes bytes and arrays, but no memoryview.
    crc: int = google_crc32c.value(data if isinstance(data, bytes) else np.frombuffer(data, np.uint8))
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def index_records(path: str | os.PathLike[str], start: int = 0, stop: int = 0) -> np.ndarray:
    """Offset and framed size of every record, int64 [records, 2], without reading the payloads.

    Args:
      path: of the file.
      start, stop: byte offsets of the first record and of the end of those that are wanted; 0: of the file's.

    Raises:
      ValueError: the file is damaged or compressed; the message names the offset.
    """
    size = stop or os.path.getsize(path)
    if not size:
        return np.empty((0, 2), np.int64)
    offsets = []
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        offset = start
        while offset < size:
            if offset + FRAME_BYTES > size:
                raise ValueError(f"truncated at byte {offset:,}: no room for another record")
            (length,) = _HEADER.unpack_from(data, offset)
            if length > size - offset - FRAME_BYTES:
                if masked_crc(data[offset : offset + 8]) == data[offset + 8 : offset + 12]:
                    raise ValueError(f"truncated: the record at byte {offset:,} ends after the file does")
                raise ValueError(f"no record header at byte {offset:,}: {_what_else(data[:2])}")
            offsets.append(offset)
            offset += length + FRAME_BYTES
    begins = np.array(offsets, np.int64)
    return np.column_stack((begins, np.diff(begins, append=size)))


def _what_else(start: bytes) -> str:
    """What a file is that does not begin with a record, by its first bytes."""
    if start == b"\x1f\x8b":
        return "gzip-compressed, decompress it first"
    if start[:1] == b"\x78" and int.from_bytes(start, "big") % 31 == 0:  # RFC 1950
        return "zlib-compressed, decompress it first"
    return "damaged or no TFRecord file"


def is_tfrecord(start: bytes) -> bool:
    """Whether a file that begins with these 12 bytes begins with a record."""
    return len(start) >= 12 and masked_crc(start[:8]) == start[8:12]


def read_framed(path: str | os.PathLike[str], offset: int, size: int) -> bytes:
    """The framed bytes of one record."""
    with open(path, "rb") as file:
        file.seek(offset)
        return file.read(size)
