"""TFRecord files as they lie on disk: hop from header to header, read single records. No TensorFlow."""

from __future__ import annotations

import mmap
import os
import struct

import numpy as np

from pipeline.records import FRAME_BYTES, masked_crc

_HEADER = struct.Struct("<Q")


def index_records(path: str | os.PathLike[str]) -> np.ndarray:
    """Offset and framed size of every record, int64 [records, 2], without reading the payloads.

    Raises:
      ValueError: the file is damaged or compressed; the message names the offset.
    """
    size = os.path.getsize(path)
    if not size:
        return np.empty((0, 2), np.int64)
    offsets = []
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        offset = 0
        while offset < size:
            if offset + FRAME_BYTES > size:
                raise ValueError(f"truncated at byte {offset:,}: no room for another record")
            (length,) = _HEADER.unpack_from(data, offset)
            if length > size - offset - FRAME_BYTES:
                if masked_crc(data[offset : offset + 8]) == data[offset + 8 : offset + 12]:
                    raise ValueError(f"truncated: the record at byte {offset:,} ends after the file does")
                what = (
                    "gzip-compressed, decompress it first" if data[:2] == b"\x1f\x8b" else "damaged or no TFRecord file"
                )
                raise ValueError(f"no record header at byte {offset:,}: {what}")
            offsets.append(offset)
            offset += length + FRAME_BYTES
    begins = np.array(offsets, np.int64)
    return np.column_stack((begins, np.diff(begins, append=size)))


def read_framed(path: str | os.PathLike[str], offset: int, size: int) -> bytes:
    """The framed bytes of one record."""
    with open(path, "rb") as file:
        file.seek(offset)
        return file.read(size)
