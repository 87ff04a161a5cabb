"""PNG: its chunks, and its pixels decoded from those chunks alone that they depend on."""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import cv2
import numpy as np

from shardline.pipeline import color_spaces, exif, opencv
from shardline.pipeline.image_types import BadImage, Header, Profile, Samples

_PIXELS = frozenset((b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"))  # all else decoders may trip over, or interpret
_USELESS: dict[int, set[bytes]] = {2: {b"PLTE"}, 3: set()}  # of them, by kind of color; libpng complains on stderr
_TOLD = frozenset((b"acTL", b"cICP", b"iCCP", b"sRGB", b"gAMA", b"cHRM", b"eXIf", b"tRNS"))  # of each, the first counts
_END = bytes(4) + b"IEND\xae\x42\x60\x82"  # the last chunk, without which all pixels may be there
_RAW_PROFILE = re.compile(rb"Raw profile type (?:exif|APP1|xmp)$")
_RAW_ICC = re.compile(rb"Raw profile type ic[cm]\0")
_TEXTS = frozenset((b"tEXt", b"zTXt", b"iTXt"))
MOST_CHUNKS = 65_536  # at the usual 8 KB each, half a gigabyte
MOST_TEXTS = 32  # in which an orientation and a profile are looked for
_MOST_PROFILE = 1 << 22  # bytes of an inflated ICC profile
_MOST_TEXT = 1 << 17  # of an inflated text


@dataclass(frozen=True)
class PngHeader(Header):
    """What the chunks of a PNG say."""

    chunks: tuple[tuple[bytes, int, int], ...] = ()  # kind, start and end of each
    gray_key: int | None = None  # the transparent level of a gray PNG, as decoders scale it to 8 or 16 bits


def read_header(data: bytes) -> PngHeader:
    """Walk the chunks to the last."""
    if data[12:16] == b"CgBI":
        raise BadImage("unsupported-png", "PNG in Apple's form for its devices (CgBI); convert it to a common PNG")
    width, height, depth, color = struct.unpack_from(">IIBB", data, 16)
    chunks = _chunks(data)
    told: dict[bytes, bytes] = {}
    texts: list[tuple[bytes, memoryview]] = []
    turn = 0
    for kind, start, end in chunks:
        if kind in _TOLD:
            told.setdefault(kind, data[start + 8 : end - 4])
            turn = turn or (kind == b"eXIf" and exif.orientation(data[start + 8 : end - 4]))
        elif kind in _TEXTS and len(texts) < MOST_TEXTS:
            texts.append((kind, memoryview(data)[start + 8 : end - 4]))
    frames = int.from_bytes(told[b"acTL"][:4], "big") if b"acTL" in told else 1
    orientation = turn or next(filter(None, (_orientation_of_text(*text) for text in texts)), 1)
    gray_key = None
    if color == 0 and b"tRNS" in told:
        level = int.from_bytes(told[b"tRNS"][:2], "big") & (1 << depth) - 1
        gray_key = level * 255 // max(1, (1 << min(depth, 8)) - 1)
    return PngHeader("png", width, height, orientation, frames, _profile(told, texts), tuple(chunks), gray_key)


def _profile(told: Mapping[bytes, bytes], texts: Iterable[tuple[bytes, memoryview]]) -> Profile:
    """Of the chunk that counts (PNG, third edition, 4.3); none for sRGB and where nothing is told.

    Raises:
      BadImage: the color is one that is not converted here.
    """
    if len(cicp := told.get(b"cICP", b"")) == 4:
        if cicp[2] or cicp[3] != 1:
            raise BadImage("unsupported-png", "PNG of a video's YCbCr or narrow range (cICP); convert it to sRGB")
        return color_spaces.of_cicp("png", cicp[0], cicp[1])
    if profile := _inflated(told.get(b"iCCP", b"").partition(b"\0")[2][1:], _MOST_PROFILE):
        return profile
    raw = next((text for text in texts if _RAW_ICC.match(text[1])), None)
    if raw and (profile := _raw_profile(*raw, _MOST_PROFILE)):
        return profile
    if b"sRGB" in told:
        return b""
    gamma, points = told.get(b"gAMA", b""), told.get(b"cHRM", b"")
    if len(gamma) == 4 or len(points) == 32:
        level = int.from_bytes(gamma, "big") / 100_000 if len(gamma) == 4 else 0
        numbers = [number / 100_000 for number in struct.unpack(">8I", points)] if len(points) == 32 else []
        return color_spaces.of_numbers(numbers[2:], numbers[:2], 1 / level if level else 0.0)
    return color_spaces.of_exif(told.get(b"eXIf", b""))


def _chunks(data: bytes) -> list[tuple[bytes, int, int]]:
    found: list[tuple[bytes, int, int]] = []
    position = 8
    while position + 12 <= len(data) and len(found) < MOST_CHUNKS:
        size, kind = struct.unpack_from(">I4s", data, position)
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


def _orientation_of_text(kind: bytes, body: memoryview) -> int:
    """What XMP, or EXIF in ImageMagick's hexadecimal, says in a text chunk; 0 for nothing."""
    name, _, text = bytes(body).partition(b"\0")
    if kind == b"iTXt" and name == b"XML:com.adobe.xmp":
        packed, text = text[:1] == b"\1", text[2:].split(b"\0", 2)[-1]
        return exif.xmp_orientation(_inflated(text, _MOST_TEXT) if packed else text)
    block = _raw_profile(kind, body, _MOST_TEXT) if _RAW_PROFILE.match(name) else b""
    return exif.orientation(block) or exif.xmp_orientation(block)


def _raw_profile(kind: bytes, body: memoryview, most: int) -> bytes:
    """What ImageMagick wrote in hexadecimal, after a line break, a name and a length; empty for what is damaged."""
    text = bytes(body).partition(b"\0")[2]
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
        samples = opencv.decode(_pixel_chunks(data, header), header)
    except BadImage:
        if header.chunks[-1][0] == b"IEND":
            raise
        raise BadImage("truncated", "PNG: no end, and not all pixels") from None
    if header.gray_key is not None and samples.channels == "L":  # OpenCV takes it for opaque
        opaque = np.where(samples.pixels == header.gray_key, 0, samples.white).astype(samples.pixels.dtype)
        return Samples(cv2.merge([samples.pixels, opaque]), "LA", samples.white)
    return samples


def _pixel_chunks(data: bytes, header: PngHeader) -> bytes:
    """The file without the chunks that pixels do not depend on: text, profiles, frames after the first; with an end.

    Raises:
      BadImage: a chunk's checksum is wrong.
    """
    view = memoryview(data)
    needed = _PIXELS - _USELESS.get(data[25], {b"PLTE", b"tRNS"})
    kept = [view[:8]]
    for kind, start, end in header.chunks:
        if zlib.crc32(view[start + 4 : end - 4]) != int.from_bytes(data[end - 4 : end], "big"):
            raise BadImage("corrupt-data", f"PNG: checksum of chunk {kind.decode()} at byte {start}")
        if kind in needed:
            kept.append(view[start:end])
    last, _, end = header.chunks[-1]
    if last != b"IEND":
        return b"".join([*kept, _END])
    return data if len(kept) > len(header.chunks) and end == len(data) else b"".join(kept)
