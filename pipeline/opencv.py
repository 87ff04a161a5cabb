"""OpenCV's decoders, for PNG and WebP."""

from __future__ import annotations

import os

import cv2
import numpy as np

from shardline.pipeline.image_types import BadImage, Header, Samples

LARGE_BYTES = 16 << 20  # of decoded pixels; from here on their memory matters more than a copy of the file


def decode(data: bytes, header: Header) -> Samples:
    """What OpenCV makes of it: gray, gray with alpha, BGR or BGRA of 8 or 16 bits; no orientation applied."""
    if header.height * header.width * 3 < LARGE_BYTES:
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    else:  # imdecode copies the pixels on their way into Python; imread with a `dst` decodes them in place
        with open(os.memfd_create("image"), "wb") as file:
            file.write(data)
            file.flush()
            pixels = cv2.imread(f"/proc/self/fd/{file.fileno()}", dst=None, flags=cv2.IMREAD_UNCHANGED)
    if pixels is None:
        raise BadImage("corrupt-data", f"{header.format}: damaged image data")
    channels = {1: "L", 2: "LA", 3: "BGR", 4: "BGRA"}[1 if pixels.ndim == 2 else pixels.shape[2]]
    return Samples(pixels, channels, 255 if pixels.dtype == np.uint8 else 65535)
