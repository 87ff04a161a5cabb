"""Stored bytes to RGB pixels. No TensorFlow.

JPEG goes through libjpeg-turbo (simplejpeg) into a buffer that is used again and again: fresh memory for every
picture costs a fifth of the decoding time in page faults. Anything else, and JPEGs that are not plain colour or
grey, go through OpenCV. Orientation tags are not applied: the converter already has.
"""

from __future__ import annotations

import cv2
import numpy as np
import simplejpeg

from pipeline.memory import scratch
from pipeline.records import Example


def decode(example: Example, encoding: str, *, exact: bool = False) -> np.ndarray:
    """The picture as uint8 [height, width, 3], RGB; valid until this thread decodes another.

    Unless `exact`, JPEGs are decoded a twentieth faster with a rounder transform and blockier colour: for training.

    Raises:
      ValueError: the bytes are no picture, or a damaged one.
    """
    data = example.image
    if encoding == "raw":
        return _raw(example)
    if data[:2] == b"\xff\xd8":
        try:
            height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
        except ValueError:
            return _any(data)  # rare chroma subsamplings
        if colours in ("YCbCr", "RGB", "Gray"):
            buffer = scratch("picture", height * width * 3)
            return simplejpeg.decode_jpeg(data, fastdct=not exact, fastupsample=not exact, buffer=buffer)
    return _any(data)


def _raw(example: Example) -> np.ndarray:
    if len(example.image) != example.height * example.width * 3:
        raise ValueError(f"{len(example.image)} bytes are not {example.height} x {example.width} raw pixels")
    return np.frombuffer(example.image, np.uint8).reshape(example.height, example.width, 3)


def _any(data: memoryview) -> np.ndarray:
    try:
        flags = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_ANYDEPTH | cv2.IMREAD_IGNORE_ORIENTATION
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error as error:
        raise ValueError(f"cannot be decoded ({error.err})") from None
    if pixels is None:
        raise ValueError("cannot be decoded")
    if pixels.dtype == np.uint16:  # OpenCV's own conversion would saturate
        pixels = (pixels // 257).astype(np.uint8)
    if pixels.dtype != np.uint8:
        raise ValueError(f"pixels of type {pixels.dtype}")
    return pixels
