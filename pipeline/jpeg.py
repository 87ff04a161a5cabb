"""A JPEG's compressed data, without decoding it: damage that libjpeg passes over, and what may be cut off."""

from __future__ import annotations

import re

from shardline.pipeline.image_headers import BadImage, Header

_END_OF_SCAN = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
_ZERO_RUN = bytes(24)  # longer than anything legal outside a scan that we could meet by accident


def check_scan(data: bytes, header: Header) -> None:
    """Refuse blank stretches in compressed data: what a lost disk block leaves, and libjpeg may decode in silence.

    Sequential Huffman data cannot hold such a run unless zeros spell "end of block" for every component of the
    scan: otherwise it would be dozens of equal coefficients in one 8x8 block.
    """
    if header.zeros_are_data:
        return
    blank = data.find(_ZERO_RUN, header.scan)
    if blank >= 0 and blank < scan_end(data, header):
        raise BadImage("corrupt-scan", f"JPEG: blank stretch in the compressed data at byte {blank}")


def scan_end(data: bytes, header: Header) -> int:
    """Where the first scan's compressed data ends: at the next marker that is not a restart."""
    found = _END_OF_SCAN.search(data, header.scan)
    return found.start() if found else len(data)


def strip(data: bytes, header: Header) -> bytes:
    """The same JPEG without EXIF, XMP and what lies after its end; compressed data and the rest byte for byte."""
    end = _end_of_image(data, header)
    if not header.metadata and end == len(data):
        return data
    kept, position = [], 0
    for start, after in header.metadata:
        kept.append(data[position:start])
        position = after
    return b"".join([*kept, data[position:end]])


def _end_of_image(data: bytes, header: Header) -> int:
    """Just after the end marker: phones and cameras append films and second images."""
    position = header.scan
    while found := _END_OF_SCAN.search(data, position):
        if found[0] == b"\xff\xd9":
            return found.end()
        position = found.end() + int.from_bytes(data[found.end() : found.end() + 2], "big")
    return len(data)
