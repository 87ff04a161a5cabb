"""JPEG: what its header says, damage that libjpeg passes over, what may be cut out of it, and its pixels."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain

import cv2
import simplejpeg

from shardline.pipeline import color_spaces, exif
from shardline.pipeline.image_types import BadImage, Header, Profile, Samples

FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # markers of a frame header
_READ = (0xC0, 0xC1, 0xC2, 0xC9, 0xCA)  # of them: baseline, extended, progressive; the last two arithmetic
_BARE = frozenset((0x01, *range(0xD0, 0xD9)))  # markers without a length
MOST_METADATA = 32  # segments in which an orientation is looked for
MOST_SEGMENTS = 10_000  # a profile in 255 parts and 100 MB of XMP are 2,000
_METADATA = {0xE1: (b"Exif", b"http"), 0xE2: (b"ICC_PROFILE\0", b"MPF\0")}  # MPF: a phone's list of more images
_END_OF_SCAN = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
_ZERO_RUN = bytes(24)  # longer than anything legal outside a scan that we could meet by accident


@dataclass(frozen=True)
class JpegHeader(Header):
    """What a JPEG says before its first scan."""

    components: int = 3
    passes_through: bool = False  # every decoder reads it
    told_inks: bool = True  # by Adobe's marker, where there are four components
    broken_profile: bool = False  # it is empty or its parts are not numbered 1, 2, …: libjpeg calls that corrupt data
    odd_transform: int = 0  # byte of Adobe's number of a color transform that libjpeg does not know; 0 for none
    metadata: tuple[tuple[int, int], ...] = ()  # byte spans of EXIF, XMP, color profile and the list of more images
    scan: int = 0  # where the compressed data begins
    scans: int = 0  # where the first of several begins: one of some components, or progressive; 0 if it is the only one


def read_header(data: bytes) -> JpegHeader:
    """Walk the segments up to the first scan."""
    marker = width = height = components = turn = adobe_at = 0
    block = xmp = b""
    metadata: list[tuple[int, int]] = []
    parts: list[tuple[int, int, bytes]] = []  # of a color profile: number, of how many, content
    for code, start, body, end in segments(data):
        if code == 0xE1 and data.startswith(b"Exif\0\0", body):
            if not turn and len(metadata) < MOST_METADATA:
                block = data[body + 6 : end]
                turn = exif.orientation(block)
        elif code == 0xE1 and data.startswith(b"http://ns.adobe.com/xap/1.0/\0", body):
            xmp = xmp or data[body:end]
        elif code == 0xE2 and data.startswith(b"ICC_PROFILE\0", body):
            if end - body >= 14:  # not one that libjpeg takes for something else
                parts.append((data[body + 12], data[body + 13], data[body + 14 : end]))
        elif code == 0xEE and data.startswith(b"Adobe", body) and end - body >= 12:
            adobe_at = body + 11
        elif code in FRAMES:
            precision, height, width, components = struct.unpack_from(">BHHB", data, body)
            marker = code
            if marker not in _READ or precision != 8:
                kind = f"{precision} bits a sample" if marker in _READ else "lossless or hierarchical coding"
                raise BadImage("unsupported-jpeg", f"JPEG with {kind}; convert it to PNG")
        elif code == 0xF7:
            raise BadImage("unsupported-jpeg", "JPEG-LS is not read; convert it to PNG")
        elif code == 0xDA:
            scans = start if data[body] < components or marker in (0xC2, 0xCA) else 0
            break
        if data.startswith(_METADATA.get(code, ()), body):
            metadata.append((start, end))
    else:
        raise BadImage("truncated", "JPEG: the file ends before its first scan")
    if not marker:
        raise BadImage("corrupt-header", "JPEG: no frame header before the scan")
    if height == 0:
        raise BadImage("unsupported-jpeg", "JPEG that gives its height only after the scan (DNL)")
    profile, broken = _joined(parts) if parts else (b"", False)
    if not parts and block and components == 3:
        profile = color_spaces.of_exif(block)
    transform = data[adobe_at] if adobe_at else 0
    odd = components > 2 and transform not in (0, components - 2)  # 1: YCbCr, 2: YCCK
    odd = odd and (components == 4 or b"JFIF\0" not in data[:end])
    return JpegHeader(
        "jpeg",
        width,
        height,
        turn or exif.xmp_orientation(xmp) or 1,
        profile=profile,
        components=components,
        passes_through=marker in (0xC0, 0xC1, 0xC2) and components in (1, 3) and not odd,
        told_inks=components != 4 or adobe_at > 0,
        broken_profile=broken,
        odd_transform=adobe_at if odd else 0,
        metadata=tuple(metadata),
        scan=end,
        scans=scans,
    )


def _joined(parts: list[tuple[int, int, bytes]]) -> tuple[Profile, bool]:
    """The color profile that parts make together, empty if that is none; and whether libjpeg calls them corrupt."""
    parts.sort(key=lambda part: part[0])
    broken = [part[:2] for part in parts] != [(number, len(parts)) for number in range(1, len(parts) + 1)]
    icc = b"".join(part for _, _, part in parts[:255])
    whole = not broken or (icc[36:40] == b"acsp" and int.from_bytes(icc[:4], "big") <= len(icc))
    return icc if whole else b"", broken or not icc


def segments(data: bytes) -> Iterator[tuple[int, int, int, int]]:
    """(marker, start, body, end) of each segment up to and with the first SOS."""
    position, last = 2, len(data) - 4
    for _ in range(MOST_SEGMENTS):
        if position > last or data[position] != 0xFF:
            break
        code = data[position + 1]
        if code == 0xFF:  # fill bytes before a marker
            fill = data[position : position + 65_536]
            position += len(fill) - len(fill.lstrip(b"\xff")) - 1
            continue
        if code in _BARE:
            position += 2
            continue
        end = position + 2 + (data[position + 2] << 8 | data[position + 3])
        if end > len(data) or code == 0xD9:
            return
        yield code, position, position + 4, end
        if code == 0xDA:
            return
        position = end
    else:
        raise BadImage("unsupported-jpeg", f"JPEG with more than {MOST_SEGMENTS:,} segments before its data")
    if position < len(data) and data[position] != 0xFF:
        raise BadImage("corrupt-header", f"JPEG: no marker at byte {position}")


# --- Compressed data --------------------------------------------------------------------------------------


def check_scan(data: bytes, header: JpegHeader) -> None:
    """Refuse blank stretches in compressed data: what a lost disk block leaves, and libjpeg may decode in silence."""
    blank = data.find(_ZERO_RUN, header.scan)
    if blank < 0 or _zeros_are_data(data):
        return
    end = _END_OF_SCAN.search(data, header.scan)
    if not end or blank < end.start():
        raise BadImage("corrupt-scan", f"JPEG: blank stretch in the compressed data at byte {blank}")


def _zeros_are_data(data: bytes) -> bool:
    """Whether a run of zero bytes in the first scan can be image.

    Not in sequential Huffman data, unless zeros spell "end of block" for every component of the scan: otherwise it
    would be dozens of equal coefficients in one 8x8 block.
    """
    components, first_ac_symbol = 0, dict[int, int]()
    for code, _, body, end in segments(data):
        if code == 0xC2:  # progressive
            return True
        if code == 0xC4:
            first_ac_symbol |= _first_ac_symbols(data[body : min(end, body + 8 * 273)])
        elif code in FRAMES:
            components = data[body + 5]
        elif code == 0xDA:
            tables = [data[body + 2 + 2 * i] & 15 for i in range(data[body])]
            return data[body] != components or all(first_ac_symbol.get(table, 0) == 0 for table in tables)
    return True


def _first_ac_symbols(body: bytes) -> dict[int, int]:
    """Number of each AC Huffman table of a segment: the symbol whose code is all zeros."""
    found = {}
    while len(body) >= 17:
        count = sum(body[1:17])
        if body[0] >> 4 == 1 and count:
            found[body[0] & 15] = body[17]
        body = body[17 + count :]
    return found


def strip(data: bytes, header: JpegHeader) -> bytes:
    """The same JPEG without EXIF, XMP, color profile, list of images and what lies after its end.

    Compressed data and the rest stay as they are, byte for byte.
    """
    # Phones and cameras append films and second images.
    end = next((end for code, _, end in _later_segments(data, header.scan) if code == 0xD9), len(data))
    if not header.metadata and end == len(data):
        return data
    bounds = [0, *chain.from_iterable(header.metadata), end]  # of what is kept
    return b"".join(data[start:stop] for start, stop in zip(bounds[::2], bounds[1::2], strict=True))


def _later_segments(data: bytes, position: int) -> Iterator[tuple[int, int, int]]:
    """(marker, body, end) of each segment from the first marker at or after `position` on, up to and with EOI."""
    while found := _END_OF_SCAN.search(data, position):
        code, body = found[0][1], found.end() + 2
        if code == 0xD9:
            yield code, body, found.end()
            return
        position = found.end() + int.from_bytes(data[found.end() : body], "big")
        yield code, body, position


def _lacks_scans(data: bytes, header: JpegHeader) -> bool:
    """Whether a file was cut after a whole scan and given an end: gray, or coarse, and sound for every decoder."""
    left: dict[int, bytearray] = {}  # of each component, the lowest bit that is known of each coefficient
    for code, body, _ in _later_segments(data, header.scans):
        if code == 0xDA:
            after = body + 1 + 2 * data[body]
            first, last, bits = data[after : after + 3]
            for component in data[body + 1 : after : 2]:
                known = left.setdefault(component, bytearray(b"\1" * 64))
                known[first : last + 1] = bytes([bits & 15]) * (last + 1 - first)
    return len(left) < header.components or any(map(any, left.values()))


# --- Pixels -----------------------------------------------------------------------------------------------


def decode(data: bytes, header: JpegHeader, reduction: int = 1) -> Samples:
    """All pixels, reduced 1, 2, 4 or 8 times.

    libjpeg-turbo through simplejpeg, whose strict mode raises where libjpeg would only warn of corrupt data. It is half
    of a conversion. Its faster flags save 2% (DCT) and, of 4:2:0 alone, 7% (upsampling), and change pixels; Y, Cb and
    Cr from Pillow, so that nothing is made BGR and gray again, take 1.5 times as long: Huffman codes are what costs.
    """
    check_scan(data, header)
    if header.scans and _lacks_scans(data, header):
        raise BadImage("truncated", "JPEG: scans are missing that would complete it")
    # Stored inverted, as Adobe does: so Pillow, OpenCV, libvips and browsers take all, marker or not.
    note = "" if header.told_inks else "CMYK taken as stored inverted, which nothing says"
    if header.odd_transform:  # YCbCr or YCCK, as libjpeg and all others take it, without libjpeg's complaint
        data = b"%b%c%b" % (data[: header.odd_transform], header.components - 2, data[header.odd_transform + 1 :])
    if header.broken_profile:
        data = strip(data, header)
        note = note if header.profile else "color profile ignored: parts of it are missing"
    channels = "CMYK" if header.components == 4 else "GRAY" if header.profile and header.components == 1 else "BGR"
    pixels = simplejpeg.decode_jpeg(
        data,
        channels,
        min_height=-(-header.height // reduction),
        min_width=-(-header.width // reduction),
        min_factor=reduction,
    )
    if channels == "GRAY":
        return Samples(pixels[..., 0], "L", profile=header.profile)
    pixels = cv2.bitwise_not(pixels) if channels == "CMYK" else pixels
    return Samples(pixels, channels, profile=header.profile, note=note)
