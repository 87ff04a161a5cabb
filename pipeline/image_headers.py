"""Every image format: its header read, its pixels decoded; all else refused by name.

To add a format: a signature in `sniff.py`, an entry in FORMATS, and a case for `shardline-doctor`.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import numpy as np

from shardline.pipeline import jpeg, opencv, png, tiff
from shardline.pipeline import other_formats as other
from shardline.pipeline.image_types import BadImage, Header, Samples
from shardline.pipeline.sniff import NOT_IMAGES, UNSUPPORTED, sniff

__all__ = ["FORMATS", "BadImage", "Header", "decode", "only_bad_images", "orientation_of", "read_header", "sniff"]

P = ParamSpec("P")
R = TypeVar("R")


@dataclass(frozen=True)
class Format:
    """How one format is read.

    Attributes:
      read: the file's bytes to its Header; looks at headers alone and takes milliseconds whatever they say.
      decode: the bytes, that header and a reduction (1, 2, 4 or 8; JPEG alone heeds it) to Samples.
    """

    read: Callable[[bytes], Header]
    decode: Callable[[bytes, Any, int], Samples]


FORMATS = {
    "jpeg": Format(jpeg.read_header, jpeg.decode),
    "png": Format(png.read_header, png.decode),
    "gif": Format(other.read_gif, other.decode_gif),
    "bmp": Format(other.read_bmp, other.decode_bmp),
    "pnm": Format(other.read_pnm, other.decode_pnm),
    "webp": Format(other.read_webp, other.decode_webp),
    "tiff": Format(tiff.read_header, tiff.decode),
    "avif": Format(other.read_avif, other.decode_avif),
    "heic": Format(other.read_heic, other.decode_heic),
    "jp2": Format(other.read_jp2, other.decode_jp2),
    "j2k": Format(other.read_j2k, other.decode_jp2),
    "jpeg-xl": Format(other.read_jxl, other.decode_jxl),
}


def only_bad_images(function: Callable[P, R]) -> Callable[P, R]:
    """Whatever a decoder raises becomes BadImage; but want of memory is the machine's fault, and stays MemoryError."""

    @wraps(function)
    def guarded(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return function(*args, **kwargs)
        except (BadImage, MemoryError):
            raise
        except Exception as error:
            if opencv.out_of_memory(error):
                raise MemoryError(str(error)) from error
            detail = " ".join(str(error).split())[:200]
            raise BadImage("decoder-error", f"{type(error).__name__}: {detail}") from error

    return guarded


def read_header(data: bytes) -> Header:
    """Sniff and parse. Raises BadImage for what is empty, unknown, unsupported by name or visibly incomplete."""
    if not data:
        raise BadImage("empty", "zero bytes")
    name = sniff(data)
    if name in NOT_IMAGES:
        raise BadImage("not-an-image", NOT_IMAGES[name])
    if not name:
        if not data.strip(b"\0"):
            raise BadImage("not-an-image", f"{len(data)} zero bytes")
        raise BadImage("not-an-image", f"begins with {data[:12]!r}, no image format known here")
    if name not in FORMATS:
        raise BadImage(f"unsupported-{name}", f"{UNSUPPORTED.get(name, name)} is not read; convert it to PNG or JPEG")
    header = _read(name, data)
    if header.width < 1 or header.height < 1:
        raise BadImage("corrupt-header", f"{name}: {header.width}x{header.height} pixels")
    return header


@only_bad_images
def _read(name: str, data: bytes) -> Header:
    try:
        return FORMATS[name].read(data)
    except (struct.error, IndexError):
        raise BadImage("truncated", f"{name}: the file ends inside its header") from None


def orientation_of(data: bytes) -> int:
    """EXIF orientation 1 to 8 that is still to be undone after decoding; 1 for files that are not read here."""
    try:
        return read_header(data).orientation
    except BadImage:
        return 1


def decode(data: bytes, header: Header, reduction: int = 1) -> Samples:
    """The samples of the first frame, a JPEG's reduced. Raises BadImage, and MemoryError where that is the reason."""
    expected = -(-header.height // reduction), -(-header.width // reduction)
    try:
        samples = _decode(data, header, reduction)
    except BadImage:
        _check_memory(header)
        raise
    if samples.pixels.shape[:2] != expected:
        height, width = samples.pixels.shape[:2]
        promised = f"{header.format}: says {expected[1]}x{expected[0]} pixels"
        raise BadImage("corrupt-header", f"{promised}, holds {width}x{height}")
    return samples


@only_bad_images
def _decode(data: bytes, header: Header, reduction: int) -> Samples:
    return FORMATS[header.format].decode(data, header, reduction)


def _check_memory(header: Header) -> None:
    """Raises MemoryError if there was not the memory to decode this: several decoders call that damage."""
    np.empty(24 * header.height * header.width, np.uint8)  # address space only: nothing touches it
