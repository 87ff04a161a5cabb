"""What a file is, from its first bytes to its last marker: format, size, orientation, frames. No decoding, no OpenCV.

Content decides, never the file name. Everything that can be refused without decoding is refused here, by name.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache

from shardline.pipeline.text import display


class BadImage(ValueError):
    """This input cannot become an image. `reason` is a short stable slug to count by; `detail` is for people."""

    status = "quarantined"

    def __init__(self, reason: str, detail: str):
        detail = display(detail)  # it may quote the file
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail

    def __reduce__(self) -> tuple:
        return type(self), (self.reason, self.detail)  # crosses process boundaries whole


@dataclass(frozen=True)
class Header:
    """What a file says about itself before any pixel is decoded. Width and height are as stored, not yet oriented."""

    format: str
    width: int
    height: int
    orientation: int = 1  # EXIF's numbering, 1..8
    frames: int = 1
    depth: int = 8  # bits a sample uses
    passes_through: bool = False  # a JPEG that every decoder reads
    cmyk: str = ""  # "", "adobe" (stored inverted) or "plain" (no Adobe marker: 0 is no ink, as libvips has it)
    metadata: tuple[tuple[int, int], ...] = ()  # byte spans of EXIF and XMP segments of a JPEG
    scan: int = 0  # where a JPEG's compressed data begins
    zeros_are_data: bool = True  # False: a run of zero bytes in this JPEG's scan cannot be image


def sniff(data: bytes) -> str:
    """Name of the format by content: a key of READERS, a name of UNSUPPORTED, or "" for none we know."""
    for format_name, signature in _SIGNATURES:
        if data.startswith(signature):
            return format_name
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "webp"
    if data[4:8] == b"ftyp":
        return _sniff_isobmff(data)
    if len(data) > 2 and data[:1] == b"P" and data[1:2] in b"123456" and data[2:3].isspace():
        return "pnm"
    if data[128:132] == b"DICM":
        return "dicom"
    text = data[:512].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<!doctype html", b"<html")):
        return "html"
    if text.startswith(b"<svg") or (text.startswith(b"<?xml") and b"<svg" in text):
        return "svg"
    if text.startswith(b"version https://git-lfs"):
        return "git-lfs"
    return ""


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
    if name not in READERS:
        raise BadImage(f"unsupported-{name}", f"{UNSUPPORTED.get(name, name)} is not read; convert it to PNG or JPEG")
    try:
        header = READERS[name](data)
    except (struct.error, IndexError):
        raise BadImage("truncated", f"{name}: the file ends inside its header") from None
    if header.width < 1 or header.height < 1:
        raise BadImage("corrupt-header", f"{name}: {header.width}x{header.height} pixels")
    return header


_SIGNATURES: tuple[tuple[str, bytes], ...] = (
    ("jpeg", b"\xff\xd8\xff"),
    ("png", b"\x89PNG\r\n\x1a\n"),
    ("gif", b"GIF87a"),
    ("gif", b"GIF89a"),
    ("bmp", b"BM"),
    ("jpeg-xr", b"II\xbc"),
    ("tiff", b"II*\0"),
    ("tiff", b"MM\0*"),
    ("bigtiff", b"II+\0"),
    ("bigtiff", b"MM\0+"),
    ("jp2", b"\0\0\0\x0cjP  \r\n\x87\n"),
    ("j2k", b"\xff\x4f\xff\x51"),
    ("jpeg-xl", b"\xff\x0a"),
    ("jpeg-xl", b"\0\0\0\x0cJXL \r\n\x87\n"),
    ("psd", b"8BPS"),
    ("pdf", b"%PDF"),
    ("exr", b"\x76\x2f\x31\x01"),
    ("hdr", b"#?"),
    ("ico", b"\0\0\x01\0"),
    ("dds", b"DDS "),
    ("qoi", b"qoif"),
    ("pam", b"P7\n"),
    ("raw", b"FUJIFILMCCD-RAW"),
    ("zip", b"PK\x03\x04"),
    ("gzip", b"\x1f\x8b"),
)

UNSUPPORTED = {
    "heic": "HEIC/HEIF",
    "jpeg-xl": "JPEG XL",
    "jpeg-xr": "JPEG XR",
    "bigtiff": "BigTIFF",
    "psd": "Photoshop (PSD)",
    "svg": "SVG (vector graphics)",
    "pdf": "PDF",
    "exr": "OpenEXR",
    "hdr": "Radiance HDR",
    "ico": "Windows icon",
    "dds": "DirectDraw surface",
    "qoi": "QOI",
    "pam": "PAM",
    "raw": "a camera's raw file",
    "dicom": "DICOM",
    "video": "video",
}

NOT_IMAGES = {
    "html": "an HTML page, often a saved error message",
    "git-lfs": "a Git LFS pointer; fetch the real file with `git lfs pull`",
    "zip": "a ZIP archive",
    "gzip": "gzip-compressed data",
}


# --- JPEG -------------------------------------------------------------------------------------------------

_JPEG_FRAMES = {0xC0: "baseline", 0xC1: "extended", 0xC2: "progressive", 0xC9: "arithmetic", 0xCA: "arithmetic"}
_JPEG_BARE = frozenset((0x01, *range(0xD0, 0xD9)))  # markers without a length


def _read_jpeg(data: bytes) -> Header:
    width = height = components = marker = 0
    exif: bytes | None = None
    adobe = -1
    metadata: list[tuple[int, int]] = []
    first_ac_symbol: dict[int, int] = {}
    for code, start, body, end in _jpeg_segments(data):
        if code == 0xE1 and data[body : body + 4] in (b"Exif", b"http"):
            metadata.append((start, end))
            if exif is None and data[body : body + 6] == b"Exif\0\0":
                exif = data[body + 6 : end]
        elif code == 0xEE and data[body : body + 5] == b"Adobe":
            adobe = data[body + 11]
        elif code == 0xC4:
            first_ac_symbol.update(_first_ac_symbols(data[body:end]))
        elif 0xC0 <= code <= 0xCF and code not in (0xC8, 0xCC):
            marker = code
            precision, height, width, components = struct.unpack_from(">BHHB", data, body)
            if code not in _JPEG_FRAMES or precision != 8:
                kind = f"{precision} bits a sample" if code in _JPEG_FRAMES else "lossless or hierarchical"
                raise BadImage("unsupported-jpeg", f"JPEG with {kind}")
        elif code == 0xDA:
            if not marker:
                raise BadImage("corrupt-header", "JPEG: no frame header before the scan")
            if height == 0:
                raise BadImage("unsupported-jpeg", "JPEG that gives its height only after the scan (DNL)")
            interleaved = data[body] == components
            tables = [data[body + 2 + 2 * i] & 15 for i in range(data[body])]
            return Header(
                "jpeg",
                width,
                height,
                exif_orientation(exif or b""),
                passes_through=marker in (0xC0, 0xC1, 0xC2) and components in (1, 3),
                cmyk="" if components != 4 else "plain" if adobe < 0 else "adobe",
                metadata=tuple(metadata),
                scan=end,
                zeros_are_data=marker == 0xC2
                or not interleaved
                or all(first_ac_symbol.get(table, 0) == 0 for table in tables),
            )
    raise BadImage("truncated", "JPEG: the file ends before its first scan")


def _jpeg_segments(data: bytes) -> Iterator[tuple[int, int, int, int]]:
    """(marker, start, body, end) of each segment up to and with the first SOS."""
    position = 2
    while position + 4 <= len(data):
        if data[position] != 0xFF:
            raise BadImage("corrupt-header", f"JPEG: no marker at byte {position}")
        code = data[position + 1]
        if code == 0xFF:  # fill byte
            position += 1
            continue
        if code in _JPEG_BARE:
            position += 2
            continue
        if code == 0xD9:
            break
        end = position + 2 + int.from_bytes(data[position + 2 : position + 4], "big")
        if end > len(data):
            break
        yield code, position, position + 4, end
        if code == 0xDA:
            return
        position = end


@lru_cache(256)  # most files have the tables of the standard
def _first_ac_symbols(body: bytes) -> dict[int, int]:
    """Number of each AC Huffman table of a segment: the symbol whose code is all zeros."""
    found = {}
    while len(body) >= 17:
        count = sum(body[1:17])
        if body[0] >> 4 == 1 and count:
            found[body[0] & 15] = body[17]
        body = body[17 + count :]
    return found


# --- PNG, GIF, BMP, PNM -----------------------------------------------------------------------------------


def _read_png(data: bytes) -> Header:
    """Walk the chunks and check their CRCs: a PNG that is whole says so."""
    width, height, depth = struct.unpack_from(">IIB", data, 16)
    frames, orientation, position = 1, 1, 8
    view = memoryview(data)
    while position + 12 <= len(data):
        length = int.from_bytes(data[position : position + 4], "big")
        kind = data[position + 4 : position + 8]
        end = position + 12 + length
        if end > len(data):
            break
        critical = kind[:1].isupper() or kind == b"fdAT"
        if critical and zlib.crc32(view[position + 4 : end - 4]) != int.from_bytes(data[end - 4 : end], "big"):
            raise BadImage("corrupt-data", f"PNG: checksum of chunk {kind.decode('latin-1')} at byte {position}")
        if kind == b"IEND":
            return Header("png", width, height, orientation, frames=frames, depth=depth)
        if kind == b"acTL":
            frames = int.from_bytes(data[position + 8 : position + 12], "big")
        elif kind == b"eXIf":
            orientation = exif_orientation(data[position + 8 : end - 4])
        position = end
    raise BadImage("truncated", "PNG: no IEND chunk")


def _read_gif(data: bytes) -> Header:
    """Walk the blocks to the trailer, counting frames."""
    width, height, flags = struct.unpack_from("<HHB", data, 6)
    position = 13 + (3 << ((flags & 7) + 1) if flags & 0x80 else 0)
    frames = 0
    while position < len(data):
        block = data[position]
        if block == 0x3B and frames:
            return Header("gif", width, height, frames=frames)
        if block == 0x2C:
            frames += 1
            local = data[position + 9]
            position += 11 + (3 << ((local & 7) + 1) if local & 0x80 else 0)
        elif block == 0x21:
            position += 2
        else:
            raise BadImage("corrupt-data", f"GIF: unknown block at byte {position}")
        while data[position]:
            position += data[position] + 1
        position += 1
    raise BadImage("truncated", "GIF: no trailer")


def _read_bmp(data: bytes) -> Header:
    (start,) = struct.unpack_from("<I", data, 10)
    if int.from_bytes(data[14:18], "little") == 12:
        width, height, _, bits = struct.unpack_from("<HHHH", data, 18)
        compression = 0
    else:
        width, height, _, bits, compression = struct.unpack_from("<iiHHI", data, 18)
    # Not the file size in the header, which many writers get wrong.
    if compression in (0, 3) and len(data) < start + (width * bits + 31) // 32 * 4 * abs(height):
        raise BadImage("truncated", "BMP: shorter than its header says")
    return Header("bmp", width, abs(height))


def _read_pnm(data: bytes) -> Header:
    tokens = re.match(rb"P[1-6](?:\s|#[^\n]*\n)+(\d+)(?:\s|#[^\n]*\n)+(\d+)(?:(?:\s|#[^\n]*\n)+(\d+))?", data[:4096])
    if not tokens:
        raise BadImage("corrupt-header", "PNM: no size")
    largest = 1 if data[1:2] in b"14" else int(tokens[3] or 0)
    if not 1 <= largest <= 65535:
        raise BadImage("corrupt-header", f"PNM: largest value {largest}")
    if largest not in (1, 255, 65535):
        raise BadImage("unsupported-pnm", f"PNM with largest value {largest}; only 255 and 65535 are read")
    width, height, depth = int(tokens[1]), int(tokens[2]), 16 if largest > 255 else 8
    row = {b"4": (width + 7) // 8, b"5": width * depth // 8, b"6": 3 * width * depth // 8}.get(data[1:2], 0)
    if len(data) <= tokens.end() + row * height:
        raise BadImage("truncated", "PNM: shorter than its header says")
    return Header("pnm", width, height, depth=depth)


# --- WebP, TIFF -------------------------------------------------------------------------------------------


def _read_webp(data: bytes) -> Header:
    if len(data) < 8 + int.from_bytes(data[4:8], "little"):
        raise BadImage("truncated", "WebP: shorter than its RIFF header says")
    width = height = frames = 0
    orientation = 1
    position, last = 12, 8 + int.from_bytes(data[4:8], "little")
    while position + 8 <= last:
        kind, length = struct.unpack_from("<4sI", data, position)
        body = position + 8
        if kind == b"VP8X":
            width = 1 + int.from_bytes(data[body + 4 : body + 7], "little")
            height = 1 + int.from_bytes(data[body + 7 : body + 10], "little")
        elif kind == b"VP8 " and not width:
            width, height = (side & 0x3FFF for side in struct.unpack_from("<HH", data, body + 6))
        elif kind == b"VP8L" and not width:
            bits = int.from_bytes(data[body + 1 : body + 5], "little")
            width, height = 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
        elif kind == b"ANMF":
            frames += 1
        elif kind == b"EXIF":
            orientation = exif_orientation(data[body : body + length].removeprefix(b"Exif\0\0"))
        position = body + length + (length & 1)
    return Header("webp", width, height, orientation, frames=max(1, frames))


_TIFF_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8}
_TIFF_PHOTOMETRIC = (0, 1, 2, 3, 5, 6)  # gray (white or black is 0), RGB, palette, CMYK, YCbCr
_TIFF_COMPRESSION = (1, 2, 3, 4, 5, 7, 8, 32773, 32946)  # none, fax, LZW, JPEG, Deflate, PackBits


def tiff_tags(data: bytes, offset: int | None = None) -> tuple[dict[int, tuple[int, ...]], int]:
    """Integer tags of one TIFF directory (the first, unless told where), and the offset of the next."""
    order = {b"II": "<", b"MM": ">"}.get(data[:2])
    if not order:
        return {}, 0
    if offset is None:
        (offset,) = struct.unpack_from(order + "I", data, 4)
    (count,) = struct.unpack_from(order + "H", data, offset)
    tags: dict[int, tuple[int, ...]] = {}
    for entry in range(offset + 2, offset + 2 + 12 * count, 12):
        tag, kind, number = struct.unpack_from(order + "HHI", data, entry)
        if kind not in (1, 3, 4) or not 0 < number <= len(data):  # other types are not needed
            continue
        where = entry + 8
        if _TIFF_SIZES[kind] * number > 4:
            (where,) = struct.unpack_from(order + "I", data, where)
        tags[tag] = struct.unpack_from(f"{order}{number}{'?BsHI'[kind]}", data, where)
    (following,) = struct.unpack_from(order + "I", data, offset + 2 + 12 * count)
    return tags, following


def exif_orientation(exif: bytes) -> int:
    """Orientation 1..8 of an EXIF block; 1 where it is missing, damaged or out of range, as viewers do."""
    try:
        tags, _ = tiff_tags(exif)
    except struct.error:
        return 1
    orientation = tags.get(0x0112, (1,))
    return orientation[0] if 1 <= orientation[0] <= 8 else 1


def _read_tiff(data: bytes) -> Header:
    tags, following = tiff_tags(data)
    _check_strips(tags, len(data))
    frames = 1
    while following and frames < 1000:
        page, following = tiff_tags(data, following)
        _check_strips(page, len(data))
        frames += 1

    def first(tag: int, default: int) -> int:
        return tags.get(tag, (default,))[0]

    if data[8:10] == b"CR" or 50706 in tags or first(262, 0) in (32803, 34892) or first(254, 0) & 1:
        raise BadImage("unsupported-raw", f"{UNSUPPORTED['raw']} is not read; convert it to PNG or JPEG")
    depth, samples = max(tags.get(258, (1,))), first(277, 1)
    if first(262, 0) not in _TIFF_PHOTOMETRIC:
        raise BadImage("unsupported-tiff", f"TIFF with photometric interpretation {first(262, 0)}")
    if first(259, 1) not in _TIFF_COMPRESSION:
        raise BadImage("unsupported-tiff", f"TIFF with compression scheme {first(259, 1)}")
    if depth > 16 or first(339, 1) != 1:
        raise BadImage("unsupported-tiff", f"TIFF with {depth}-bit or non-integer samples: their range is not known")
    if samples == 2 or samples > 4:
        raise BadImage("unsupported-tiff", f"TIFF with {samples} samples a pixel")
    orientation = first(274, 1) if 1 <= first(274, 1) <= 8 else 1
    return Header("tiff", first(256, 0), first(257, 0), orientation, frames=frames, depth=depth)


def _check_strips(tags: dict[int, tuple[int, ...]], size: int) -> None:
    offsets, sizes = tags.get(273) or tags.get(324, ()), tags.get(279) or tags.get(325, ())
    if any(offset + length > size for offset, length in zip(offsets, sizes, strict=False)):
        raise BadImage("truncated", "TIFF: strips or tiles lie beyond the end")


# --- AVIF, JPEG 2000: boxes -------------------------------------------------------------------------------


def _boxes(data: bytes, start: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """(kind, body start, end) of the boxes between two offsets."""
    while start + 8 <= end:
        size, kind = struct.unpack_from(">I4s", data, start)
        body = start + 8
        if size == 1:
            (size,) = struct.unpack_from(">Q", data, body)
            body += 8
        stop = end if size == 0 else start + size
        if stop > end or stop < body:
            raise BadImage("truncated", f"box {kind.decode('latin-1')} at byte {start} runs past the end")
        yield kind, body, stop
        start = stop


def _sniff_isobmff(data: bytes) -> str:
    brands = [data[8:12], *(data[i : i + 4] for i in range(16, min(int.from_bytes(data[:4], "big"), 128), 4))]
    if any(brand in (b"avif", b"avis") for brand in brands):
        return "avif"
    if any(brand in (b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1") for brand in brands):
        return "heic"
    return "raw" if data[8:12] == b"crx " else "video"


def _read_avif(data: bytes) -> Header:
    """Size, depth and rotation of the primary item (AVIF ignores EXIF's orientation in favor of irot and imir)."""
    frames, properties, used = 1, [], []
    for kind, body, end in _boxes(data, 0, len(data)):
        if kind == b"moov":
            sizes = data.find(b"stsz", body, end)
            frames = max(1, int.from_bytes(data[sizes + 12 : sizes + 16], "big")) if sizes > 0 else 1
        if kind != b"meta":
            continue
        primary = 0
        for inner, start, stop in _boxes(data, body + 4, end):
            if inner == b"pitm":
                primary = int.from_bytes(data[start + 4 : start + (8 if data[start] else 6)], "big")
            elif inner == b"iprp":
                for part, first, last in _boxes(data, start, stop):
                    if part == b"ipco":
                        properties = list(_boxes(data, first, last))
                    elif part == b"ipma":
                        used = _associations(data, first, primary)
    width = height = turns = 0
    depth, mirror = 8, -1
    for index in used:
        kind, body, _ = properties[index - 1]
        if kind == b"ispe":
            width, height = struct.unpack_from(">II", data, body + 4)
        elif kind == b"av1C":
            depth = 8 if not data[body + 2] & 0x40 else 12 if data[body + 2] & 0x20 else 10
        elif kind == b"irot":
            turns = data[body] & 3  # quarter turns against the clock
        elif kind == b"imir":
            mirror = data[body] & 1  # 0: top and bottom change places, 1: left and right
    orientation = {-1: (1, 8, 3, 6), 0: (4, 5, 2, 7), 1: (2, 7, 4, 5)}[mirror][turns]
    return Header("avif", width, height, orientation, frames=frames, depth=depth)


def _associations(data: bytes, body: int, item: int) -> list[int]:
    """Property numbers that an ipma box gives to one item, in order."""
    version, flags = data[body], data[body + 3]
    (count,) = struct.unpack_from(">I", data, body + 4)
    position = body + 8
    for _ in range(count):
        (number,) = struct.unpack_from(">I" if version else ">H", data, position)
        position += 4 if version else 2
        size = 2 if flags & 1 else 1
        listed = data[position + 1 : position + 1 + size * data[position]]
        position += 1 + len(listed)
        if number == item:
            mask = 0x7FFF if size == 2 else 0x7F
            return [int.from_bytes(listed[i : i + size], "big") & mask for i in range(0, len(listed), size)]
    return []


def _read_jp2(data: bytes) -> Header:
    for kind, body, _ in _boxes(data, 0, len(data)):
        if kind == b"jp2c":
            return _read_j2k(data, body)
    raise BadImage("truncated", "JPEG 2000: no codestream")


def _read_j2k(data: bytes, start: int = 0) -> Header:
    right, bottom, left, top = struct.unpack_from(">IIII", data, start + 8)
    (components,) = struct.unpack_from(">H", data, start + 40)
    if components not in (1, 3, 4):
        raise BadImage("unsupported-jp2", f"JPEG 2000 with {components} components")
    if data.rfind(b"\xff\xd9") < start:
        raise BadImage("truncated", "JPEG 2000: no end marker")
    return Header("jp2", right - left, bottom - top, depth=1 + (data[start + 42] & 0x7F))


READERS: dict[str, Callable[[bytes], Header]] = {
    "jpeg": _read_jpeg,
    "png": _read_png,
    "gif": _read_gif,
    "bmp": _read_bmp,
    "pnm": _read_pnm,
    "webp": _read_webp,
    "tiff": _read_tiff,
    "avif": _read_avif,
    "jp2": _read_jp2,
    "j2k": _read_j2k,
}
