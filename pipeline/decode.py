"""Stored bytes to RGB pixels. No TensorFlow.

JPEG goes through libjpeg-turbo (simplejpeg) into a buffer that is used again and again: fresh memory for every
image costs a fifth of the decoding time in page faults. Anything else, and JPEGs of others that are turned, have a
color profile or are not plain color or gray, are decoded as the converter would: one image, whoever reads it.

Of a crop of an image that the converter has checked, `pipeline.jpeg_window` decodes what it needs alone.
"""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
import simplejpeg

from shardline.pipeline import jpeg
from shardline.pipeline.image_headers import fault_of, read_header
from shardline.pipeline.image_pixels import decode_pixels
from shardline.pipeline.image_types import BadImage
from shardline.pipeline.jpeg_window import decode_part, pixel_buffer, read_layout

CropBox = Callable[[int, int], tuple[int, int, int, int]]  # height and width to top, left, height, width of a part

_MOST_PIXELS = 10**9
# Of more to know, the last of no loss.
_SIGNS = (b"Exif\0\0", b"ICC_PROFILE\0", b"http://ns.adobe.com/xap", b"\xff\xc3")


def decode(
    data: memoryview, *, exact: bool = False, window: CropBox | None = None, checked: bool = False
) -> np.ndarray:
    """The image in the bytes of a file, as uint8 [height, width, 3], RGB; valid until this thread decodes another.

    Unless `exact`, JPEGs are decoded a twentieth faster with a rounder transform and blockier color: for training.
    `checked` images were stored by our converter; others are turned and converted to sRGB as they say. `window` is
    asked, with the height and width of the image, which part of it to return; what lies below that part of a checked
    image is not even decoded.

    Raises:
      BadImage: the bytes are no image, or a damaged one.
      MemoryError: the machine has too little memory; says nothing about the image.
    """
    try:
        if checked and window and not exact and data[:2] == b"\xff\xd8" and (layout := read_layout(data)):
            return decode_part(data, layout, window(layout.height, layout.width))
        return cut(_whole(data, exact=exact, checked=checked), window)
    except Exception as error:
        raise fault_of(error) from None


def _whole(data: memoryview, *, exact: bool, checked: bool) -> np.ndarray:
    if data[:2] == b"\xff\xd8" and (checked or _is_plain(data)):
        try:
            height, width, colors, _ = simplejpeg.decode_jpeg_header(data)
        except ValueError:
            colors = "unknown"  # rare chroma subsamplings
        if colors in ("YCbCr", "RGB", "Gray"):
            buffer = pixel_buffer(height * width * 3)
            try:
                pixels: np.ndarray = simplejpeg.decode_jpeg(
                    data, fastdct=not exact, fastupsample=not exact, buffer=buffer
                )
                return pixels
            except ValueError:  # damaged, or of a kind that libjpeg complains of without need
                if checked:
                    raise
    return _png(data) if checked else _any(bytes(data))


def _is_plain(data: memoryview) -> bool:
    """Whether a JPEG's pixels are the image: not turned, sRGB as far as it says. Raises BadImage, a ValueError."""
    whole = bytes(data)
    if not any(sign in whole for sign in _SIGNS):
        return True
    header = jpeg.read_header(whole)
    return header.orientation == 1 and not header.profile and not header.broken_profile


def _png(data: memoryview) -> np.ndarray:
    """Of our converter: 8-bit RGB, no metadata."""
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
    if pixels is None:
        raise BadImage("corrupt-data", "cannot be decoded")
    return pixels


def _any(data: bytes) -> np.ndarray:
    header = read_header(data)
    if header.height * header.width > _MOST_PIXELS:
        raise BadImage("too-many-pixels", f"{header.width}x{header.height}")
    return cv2.cvtColor(decode_pixels(data, header).bgr, cv2.COLOR_BGR2RGB)


def cut(pixels: np.ndarray, window: CropBox | None) -> np.ndarray:
    """What a window shows of an image; all of it for None."""
    if window is None:
        return pixels
    top, left, height, width = window(*pixels.shape[:2])
    return pixels[top : top + height, left : left + width]
