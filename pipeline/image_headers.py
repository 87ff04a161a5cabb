"""Every image format: its header read, its pixels decoded; all else refused by name.

To add a format: a signature in `sniff.py`, an entry in FORMATS, and a case for `shardline-doctor`.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import cv2
import numpy as np

from shardline.pipeline import jpeg, png, tiff
from shardline.pipeline import other_formats as other
from shardline.pipeline.image_types import BadImage, Header, Samples
from shardline.pipeline.sniff import NOT_IMAGES, UNSUPPORTED, sniff

P = ParamSpec("P")
R = TypeVar("R")
# Of decoders.
_COMPLAINTS = (OSError, EOFError, RuntimeError, SyntaxError, ValueError, IndexError, struct.error, cv2.error)
_NO_MEMORY = re.compile(
    "(?i)out of memory|insufficient memory|memory allocation(?!.*(limit|invalid))|bad_alloc|cannot allocate"
)
_WORDS = {
    "corrupt-scan": re.compile("(?i)corrupt jpeg data|premature end of data"),
    "truncated": re.compile("(?i)truncat|negative|end of (jpeg )?file|requires a buffer"),
    # Not what libjpeg calls so, of markers that damage has made.
    "unsupported": re.compile("(?i)unsupported(?! marker)|not supported|not been built|unknown|determine subsampling"),
}


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


def fault_of(error: Exception, name: str = "") -> BadImage | MemoryError:
    """What an error says of an image. Want of memory is the machine's fault; the rest decoders tell in words.

    Args:
      error: raised by anything.
      name: the format whose decoder raised it; "" for what is no decoder.
    """
    if isinstance(error, (BadImage, MemoryError)):
        return error
    text = " ".join(str(getattr(error, "err", None) or error).split())[:200]
    if _NO_MEMORY.search(str(error)):
        return MemoryError(f"{name}: {text}")
    if type(error).__name__ == "DecompressionBombError":  # Pillow's own limit, of a GIF's frame beyond its screen
        return BadImage("too-many-pixels", text)
    if not name or not isinstance(error, _COMPLAINTS) or isinstance(error, RecursionError):
        return BadImage("decoder-error", f"{type(error).__name__}: {text}")
    reason = next((reason for reason, words in _WORDS.items() if words.search(text)), "corrupt-data")
    if reason == "unsupported":
        return BadImage(f"unsupported-{name}", f"{text}; convert it to PNG or JPEG")
    return BadImage(reason, f"{name}: {text}")


def only_bad_images(function: Callable[P, R]) -> Callable[P, R]:
    """Whatever is raised becomes BadImage, or MemoryError where the machine has too little memory."""

    @wraps(function)
    def guarded(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return function(*args, **kwargs)
        except Exception as error:
            raise fault_of(error) from None

    return guarded


def read_header(data: bytes) -> Header:
    """Sniff and parse. Raises BadImage for what is empty, unknown, unsupported by name or visibly incomplete."""
    if not data:
        raise BadImage("empty", "zero bytes")
    name = sniff(data)
    if name in NOT_IMAGES:
        raise BadImage("not-an-image", NOT_IMAGES[name])
    if not name:
        zeros = f"{len(data)} zero bytes" if not data.strip(b"\0") else ""
        raise BadImage("not-an-image", zeros or f"begins with {data[:12]!r}, no image format known here")
    if name not in FORMATS:
        raise BadImage(f"unsupported-{name}", f"{UNSUPPORTED.get(name, name)} is not read; convert it to PNG or JPEG")
    try:
        header = FORMATS[name].read(data)
    except (struct.error, IndexError):
        raise BadImage("truncated", f"{name}: the file ends inside its header") from None
    except Exception as error:
        raise fault_of(error, name) from None
    if header.width < 1 or header.height < 1:
        raise BadImage("corrupt-header", f"{name}: {header.width}x{header.height} pixels")
    return header


def decode(data: bytes, header: Header, reduction: int = 1) -> Samples:
    """The samples of the first frame, a JPEG's reduced. Raises BadImage, and MemoryError where that is the reason."""
    high, wide = -(-header.height // reduction), -(-header.width // reduction)
    try:
        samples = FORMATS[header.format].decode(data, header, reduction)
    except Exception as error:
        # MemoryError if there was not the memory for this: several decoders call that damage. Nothing touches it.
        np.empty(24 * header.height * header.width, np.uint8)
        raise fault_of(error, header.format) from None
    height, width = samples.pixels.shape[:2]
    if (height, width) != (high, wide):
        raise BadImage("corrupt-header", f"{header.format}: says {wide}x{high} pixels, holds {width}x{height}")
    return samples._replace(profile=header.profile) if header.profile else samples
