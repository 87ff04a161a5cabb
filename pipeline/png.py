"""PNG: its chunks, and its pixels decoded from those chunks alone that they depend on."""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass

import cv2
import numpy as np

from shardline.pipeline import color_spaces, exif, opencv
from shardline.pipeline.image_types import BadImage, Header, Samples

_PIXELS = frozenset((b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"))  # all else decoders may trip over, or interpret
_COLORS = frozenset((b"cICP", b"iCCP", b"sRGB", b"gAMA", b"cHRM", b"eXIf"))
_CHUNK = struct.Struct(">I4s")  # bytes and kind
_END = bytes(4) + b"IEND\xae\x42\x60\x82"  # the last chunk, without which all pixels may be there
_RAW_PROFILE = re.compile(rb"Raw profile type (?:exif|APP1)$")
_RAW_ICC = re.compile(rb"Raw profile type ic[cm]\0")
_RAW_COLOR = b"raw"  # key of such a profile among the chunks that tell of color
_HEXADECIMAL = (b"tEXt", b"zTXt")
_TEXTS = frozenset((*_HEXADECIMAL, b"iTXt"))
MOST_CHUNKS = 65_536  # at the usual 8 KB each, half a gigabyte
MOST_TEXTS = 32  # in which an orientation is looked for
_MOST_PROFILE = 1 << 22  # bytes of an inflated ICC profile
_MOST_TEXT = 1 << 17  # of an inflated text


@dataclass(frozen=True)
class PngHeader(Header):
    """What the chunks of a PNG say."""

    profile: bytes = b""  # ICC
    chunks: tuple[tuple[bytes, int, int], ...] = ()  # kind, start and end of each
    gray_key: int | None = None  # the transparent level of a gray PNG, as decoders scale it to 8 or 16 bits


def read_header(data: bytes) -> PngHeader:
    """Walk the chunks to the last."""
    if data[12:16] == b"CgBI":
        raise BadImage("unsupported-png", "PNG in Apple's form for its devices (CgBI); convert it to a common PNG")
    width, height, depth, color = struct.unpack_from(">IIBB", data, 16)
    chunks = _chunks(data)
    frames, orientation, from_text, texts, gray_key = 1, 0, 0, 0, None
    colors: dict[bytes, bytes] = {}  # bodies of chunks that tell of color
    for kind, start, end in chunks:
        if kind in _PIXELS:
            if kind == b"tRNS" and color == 0:
                gray_key = int.from_bytes(data[start + 8 : start + 10], "big") * 255 // ((1 << min(depth, 8)) - 1)
        elif kind == b"acTL":
            frames = int.from_bytes(data[start + 8 : start + 12], "big")
        elif kind in _COLORS:
            colors.setdefault(kind, data[start + 8 : end - 4])
            if kind == b"eXIf":
                orientation = exif.orientation(data[start + 8 : end - 4])
        elif kind in _HEXADECIMAL and _RAW_ICC.match(data, start + 8) and texts < MOST_TEXTS:
            texts += 1
            if _RAW_COLOR not in colors:
                colors[_RAW_COLOR] = _raw_profile(kind, data[start + 8 : end - 4].partition(b"\0")[2], _MOST_PROFILE)
        elif kind in _TEXTS and not from_text and texts < MOST_TEXTS:
            from_text, texts = _orientation_of_text(kind, data[start + 8 : end - 4]), texts + 1
    profile = _profile(colors) if colors else b""
    return PngHeader("png", width, height, orientation or from_text or 1, frames, profile, tuple(chunks), gray_key)


def _profile(colors: Mapping[bytes, bytes]) -> bytes:
    """ICC, of the chunk that counts (PNG, third edition, 4.3); empty for sRGB and where nothing is told.

    Raises:
      BadImage: the color is one that is not converted here.
    """
    if len(cicp := colors.get(b"cICP", b"")) == 4:
        if cicp[2] or cicp[3] != 1:
            raise BadImage("unsupported-png", "PNG of a video's YCbCr or narrow range (cICP); convert it to sRGB")
        return color_spaces.of_cicp("png", cicp[0], cicp[1])
    if profile := _inflated(colors.get(b"iCCP", b"").partition(b"\0")[2][1:], _MOST_PROFILE):
        return profile
    if profile := colors.get(_RAW_COLOR, b""):
        return profile
    if b"sRGB" in colors:
        return b""
    gamma, points = colors.get(b"gAMA", b""), colors.get(b"cHRM", b"")
    if len(gamma) == 4 or len(points) == 32:
        level = int.from_bytes(gamma, "big") / 100_000 if len(gamma) == 4 else 0
        numbers = [number / 100_000 for number in struct.unpack(">8I", points)] if len(points) == 32 else []
        white = (numbers[0], numbers[1]) if numbers else ()
        return color_spaces.of_numbers(numbers[2:], white, 1 / level if level else 0.0)
    return color_spaces.of_exif(colors.get(b"eXIf", b""))


def _chunks(data: bytes) -> list[tuple[bytes, int, int]]:
    found: list[tuple[bytes, int, int]] = []
    position = 8
    while position + 12 <= len(data) and len(found) < MOST_CHUNKS:
        size, kind = _CHUNK.unpack_from(data, position)
        end = position + 12 + size
        if not kind.isalpha():
            raise BadImage("corrupt-data", f"PNG: no chunk at byte {position}")
        if end > len(data):
            break
        found.append((kind, position, end))
        if kind == b"IEND":
            return found
        position = end
    if len(found) == MOST_CHUNKS:
        raise BadImage("unsupported-png", f"PNG of more than {MOST_CHUNKS:,} chunks")
    if not _END.startswith(data[position:]) or all(kind != b"IDAT" for kind, _, _ in found):
        raise BadImage("truncated", "PNG: the file ends inside a chunk, or before its pixels")
    return found


def _orientation_of_text(kind: bytes, body: bytes) -> int:
    """What XMP, or EXIF in ImageMagick's hexadecimal, says in a text chunk; 0 for nothing."""
    name, _, text = body.partition(b"\0")
    if kind == b"iTXt" and name == b"XML:com.adobe.xmp":
        packed, text = text[:1] == b"\1", text[2:].split(b"\0", 2)[-1]
        return exif.xmp_orientation(_inflated(text, _MOST_TEXT) if packed else text)
    if kind != b"iTXt" and _RAW_PROFILE.match(name):
        block = _raw_profile(kind, text, _MOST_TEXT)
        return exif.orientation(block) or exif.xmp_orientation(block)
    return 0


def _raw_profile(kind: bytes, text: bytes, most: int) -> bytes:
    """What ImageMagick wrote in hexadecimal, after a line break, a name and a length; empty for what is damaged."""
    text = _inflated(text[1:], most) if kind == b"zTXt" else text[:most]
    try:
        return bytes.fromhex("".join(text.decode("ascii").split("\n")[3:]))
    except ValueError:
        return b""


def _inflated(packed: bytes, most: int) -> bytes:
    """Empty for what is damaged."""
    try:
        return zlib.decompressobj().decompress(packed, most)
    except zlib.error:
        return b""


def decode(data: bytes, header: PngHeader, reduction: int = 1) -> Samples:
    """All pixels: 8 or 16 bits, gray, BGR or BGRA; palettes applied."""
    try:
        pixels = opencv.decode(_pixel_chunks(data, header), header)
    except BadImage as bad:
        raise (
            bad if header.chunks[-1][0] == b"IEND" else BadImage("truncated", "PNG: no end, and not all pixels")
        ) from None
    if header.gray_key is not None and pixels.ndim == 2:  # OpenCV takes it for opaque
        opaque = np.where(pixels == header.gray_key, 0, np.iinfo(pixels.dtype).max).astype(pixels.dtype)
        return opencv.samples(cv2.merge([pixels, opaque]), header.profile)
    return opencv.samples(pixels, header.profile)


def _pixel_chunks(data: bytes, header: PngHeader) -> bytes:
    """The file without the chunks that pixels do not depend on: text, profiles, frames after the first; with an end.

    Raises:
      BadImage: a chunk's checksum is wrong.
    """
    view = memoryview(data)
    kept = [view[:8]]
    for kind, start, end in header.chunks:
        if zlib.crc32(view[start + 4 : end - 4]) != int.from_bytes(data[end - 4 : end], "big"):
            raise BadImage("corrupt-data", f"PNG: checksum of chunk {kind.decode()} at byte {start}")
        if kind in _PIXELS:
            kept.append(view[start:end])
    last, _, end = header.chunks[-1]
    if last != b"IEND":
        return b"".join([*kept, _END])
    return data if len(kept) > len(header.chunks) and end == len(data) else b"".join(kept)
