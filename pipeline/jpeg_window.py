"""Part of a JPEG that the converter has checked: nothing below it is decoded. No TensorFlow.

libjpeg decodes rows from the top, and a row's pixels depend on no later one when color is upsampled without smoothing,
so a header that promises fewer rows makes it stop early, with the same pixels. It then warns of the bytes left over,
which hides other warnings: what was damaged after the converter's check, the checksum of the record tells.

What lies above and beside the part costs little more than its Huffman decoding, which nothing saves. Tried: leaving
out its transform and color with jpeg_crop_scanline and jpeg_skip_scanlines takes 22 of 259 µs an image with
libjpeg-turbo 3.2, and would need its headers where we are compiled; through TurboJPEG 3, which needs none, 15 of 272
µs, since the one library that comes as a package (turbojpeg 0.0.2, libjpeg-turbo 2.1.92) is slower than simplejpeg's.
Of 282 µs that an image of the input benchmark takes, 240 are JPEG, 22 resizing and flipping (60 by OpenCV, without
`_native.c`), 20 reading, checksums and Python. To check, parse and cut a record in C would save some 6 of these, and
resizing with AVX-512 3.

Tried, too: decoding to four bytes a pixel, which OpenCV resizes a tenth faster (79 instead of 86 µs with the fourth
dropped again, the same pixels) as long as all of it is in the caches; in batches it is slower, 0.97 (0.95 to 1.00).
And tf.io.decode_and_crop_jpeg, which skips what lies beside the part and shows the same pixels: called by itself, it
takes 1.7 times the CPU time of decode_part, 484 instead of 286 µs on a busy machine.
"""

from __future__ import annotations

import struct
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import simplejpeg

from shardline.pipeline.buffers import thread_buffer

Box = tuple[int, int, int, int]  # top, left, height, width

_SCAN = b"\xff\xda"
_BASELINE = 0xC0
_SCAN_BYTES = 14  # a scan of three components; of one it has fewer
_HEAD_BYTES = 1024  # at most: those of libjpeg have 623
_SAMPLING = {  # factors that simplejpeg knows: gray, 4:4:4, 4:2:2, 4:2:0, 4:4:0, 4:1:1
    bytes.fromhex(factors) for factors in ("11", "111111", "211111", "221111", "121111", "411111")
}


class Layout(NamedTuple):
    """What the header of a baseline JPEG tells.

    Attributes:
      frame: byte at which its frame header begins.
      height, width: in pixels.
    """

    frame: int
    height: int
    width: int


def read_layout(data: memoryview) -> Layout | None:
    """None if a JPEG is not baseline, in one scan, and subsampled in a usual way, or its header is very long."""
    head = bytes(data[:_HEAD_BYTES])
    return _layout(head[: head.find(_SCAN) + _SCAN_BYTES])


@lru_cache(1 << 12)  # images of one size and quality have the same header
def _layout(head: bytes) -> Layout | None:
    at, frame = 2, 0  # the first marker after the start of the image
    while at + _SCAN_BYTES <= len(head) and head[at] == 0xFF:
        if head[at + 1] == _BASELINE:
            frame = at
        elif head[at + 1] == _SCAN[1]:
            return _layout_of_frame(head, frame, components=head[at + 4]) if frame else None
        elif head[at + 1] in range(0xC1, 0xD0) and head[at + 1] != 0xC4:
            return None
        at += 2 + int.from_bytes(head[at + 2 : at + 4], "big")
    return None


def _layout_of_frame(head: bytes, frame: int, components: int) -> Layout | None:
    """Of a frame whose first scan has so many components."""
    precision, height, width, count = struct.unpack_from(">BHHB", head, frame + 4)
    sampling = head[frame + 11 : frame + 11 + 3 * count : 3]
    usual = precision == 8 and height and width and count == components and sampling in _SAMPLING
    return Layout(frame, height, width) if usual else None


def pixel_buffer(size: int) -> np.ndarray:
    """`size` bytes of this thread's own, on an odd address: libjpeg-turbo writes rows that begin on a multiple of 32
    bytes past the caches, from where resizing must fetch them again, a twentieth of the time of an image."""
    return thread_buffer("image", size + 1)[1:]


def decode_part(data: memoryview, layout: Layout, box: Box) -> np.ndarray:
    """The pixels of a box, uint8 [height, width, 3], RGB; valid until this thread decodes another.

    By a faster transform and with blockier color than the reference: for training.

    Raises:
      ValueError: libjpeg cannot decode it, or warns of an image that is decoded to its last row.
    """
    top, left, height, width = box
    bottom, source = top + height, data
    if bottom < layout.height:
        fewer = bytearray(data)
        fewer[layout.frame + 5 : layout.frame + 7] = bottom.to_bytes(2, "big")
        source = memoryview(fewer)
    pixels: np.ndarray = simplejpeg.decode_jpeg(
        source,
        fastdct=True,
        fastupsample=True,
        buffer=pixel_buffer(bottom * layout.width * 3),
        strict=bottom == layout.height,
    )
    return pixels[top:, left : left + width]
