"""TIFF and BigTIFF: the tags that pixels depend on, and the pixels by tifffile, which sees no other tags."""

from __future__ import annotations

import io
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field

import cv2
import numpy as np

from shardline.pipeline import color_spaces, exif, jpeg
from shardline.pipeline.image_types import BadImage, Header, Samples

_SUBFILE, _WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC, _ORIENTATION = 254, 256, 257, 258, 259, 262, 274
_STRIPS, _STRIP_BYTES, _SAMPLES, _STRIP_ROWS, _PLANAR, _COLORS = 273, 279, 277, 278, 284, 320
_TILE_WIDTH, _TILE_HEIGHT, _TILES, _TILE_BYTES, _EXTRA, _FORMAT, _SUBSAMPLING = 322, 323, 324, 325, 338, 339, 530
_BELOW, _XMP, _PROFILE, _DNG = 330, 700, 34675, 50706
_CURVE, _WHITE, _PRIMARIES, _INK_SET, _COEFFICIENTS, _RANGES = 301, 318, 319, 332, 529, 532
_PIXELS = frozenset((  # and besides: fill order, fax options, predictor, ink set, JPEG tables
    _WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC, 266, _STRIPS, _SAMPLES, _STRIP_ROWS, _STRIP_BYTES, _PLANAR, 292,
    293, 317, _TILE_WIDTH, _TILE_HEIGHT, _TILES, _TILE_BYTES, _INK_SET, _EXTRA, _FORMAT, 347, _SUBSAMPLING,
))  # fmt: skip
_READ = _PIXELS | {
    _SUBFILE, _ORIENTATION, _COLORS, _BELOW, _XMP, _PROFILE, _DNG, _CURVE, _WHITE, _PRIMARIES, _COEFFICIENTS, _RANGES,
}  # fmt: skip
_RAW = {32803: "a color filter array", 34892: "linear raw data"}
_PHOTOMETRICS = {0: "L", 1: "L", 2: "RGB", 3: "P", 5: "CMYK", 6: "RGB"}  # white is 0, black is 0, …, YCbCr
_COMPRESSIONS = (1, 2, 3, 4, 5, 7, 8, 32773, 32946, 50000)  # none, fax, LZW, JPEG, Deflate, PackBits, Zstandard
_PLAIN, _JPEG, _CMYK, _YCBCR = 1, 7, 5, 6
_ENDING = (5, 7, 8, 32946)  # compressions whose data tell where they end
_UNREAD = {4: "transparency mask", 8: "CIE L*a*b*", 9: "CIE L*a*b*", 10: "CIE L*a*b*", 32844: "LogL", 32845: "LogLuv"}
_UNPACKED = {6: "old JPEG", 33003: "JPEG 2000", 33005: "JPEG 2000", 34661: "JBIG", 34676: "SGI Log", 34712: "JPEG 2000",
             34887: "LERC", 34925: "LZMA", 34927: "WebP", 34933: "PNG", 50001: "WebP", 50002: "JPEG XL"}  # fmt: skip
_USUAL = {_COEFFICIENTS: (0.299, 0.587, 0.114), _RANGES: (0, 255, 128, 255, 128, 255)}  # of YCbCr, as JPEG's
MOST_PAGES = 1000
_MOST_VALUES = 1 << 22  # strips or tiles, bytes of a profile
_KINDS = {1: "unsigned", 2: "signed", 3: "floating-point"}


@dataclass(frozen=True)
class TiffHeader(Header):
    """Of the first page."""

    directory: exif.Directory | None = None
    tags: Mapping[int, tuple[exif.Entry, np.ndarray]] = field(default_factory=dict)

    def values(self, tag: int) -> np.ndarray:
        """All values of a tag, none where it is missing."""
        return self.tags[tag][1] if tag in self.tags else np.empty(0, np.int64)

    def first(self, tag: int, default: int) -> int:
        """The first value of a tag."""
        values = self.values(tag)
        return int(values[0]) if len(values) else default

    def is_usual(self, tag: int) -> bool:
        """Whether YCbCr is what JPEG's is, as far as this tag tells."""
        told = self.directory.fractions(self.tags[tag][0], 6) if self.directory and tag in self.tags else []
        return all(abs(a - b) < 0.01 * max(b, 1) for a, b in zip(told, _USUAL[tag], strict=False))


def read_header(data: bytes) -> TiffHeader:
    """The first page's tags; of the others, whether they are whole."""
    directory = exif.Directory(data)
    tags = _tags(directory)
    frames, following, read = 1, directory.following, len(directory)
    while following and frames < MOST_PAGES:
        page = exif.Directory(data, following)
        read += len(page)
        if read < 0xFFFF:
            _check_whole(TiffHeader("tiff", 0, 0, tags=_tags(page)), len(data))
        frames, following = frames + 1, page.following
    header = TiffHeader("tiff", 0, 0, directory=directory, tags=tags)
    if header.first(_COMPRESSION, _PLAIN) != _PLAIN:
        _check_whole(header, len(data))
    _check_supported(data, header)
    turn = header.first(_ORIENTATION, 0)
    turn = turn if 1 <= turn <= 8 else exif.xmp_orientation(header.values(_XMP).tobytes()) or 1
    return TiffHeader("tiff", header.first(_WIDTH, 0), header.first(_HEIGHT, 0), turn, frames, directory, tags)


def _tags(directory: exif.Directory) -> dict[int, tuple[exif.Entry, np.ndarray]]:
    """Those we read; of each at most a million values, or a large profile."""
    if not directory.whole:
        raise BadImage("truncated", "TIFF: the file ends inside a directory")
    tags = {}
    for entry in directory:
        if entry.tag in _READ and entry.tag not in tags:
            tags[entry.tag] = entry, directory.values(entry, _MOST_VALUES)
            if len(tags[entry.tag][1]) < min(entry.length, _MOST_VALUES) and entry.tag in _PIXELS:
                raise BadImage("truncated", f"TIFF: the values of tag {entry.tag} lie beyond the end")
    return tags


def _check_whole(header: TiffHeader, size: int) -> None:
    for offsets, sizes in ((_STRIPS, _STRIP_BYTES), (_TILES, _TILE_BYTES)):
        starts, lengths = header.values(offsets), header.values(sizes)
        n = min(len(starts), len(lengths))
        if n and (starts[:n].astype(np.float64) + lengths[:n] > size).any():
            raise BadImage("truncated", "TIFF: strips or tiles lie beyond the end")


def _check_supported(data: bytes, header: TiffHeader) -> None:
    photometric, compression = header.first(_PHOTOMETRIC, 1), header.first(_COMPRESSION, 1)
    bits, formats = set(header.values(_BITS).tolist()) or {1}, set(header.values(_FORMAT).tolist()) or {1}
    samples = header.first(_SAMPLES, 1)
    reduced = bool(header.first(_SUBFILE, 0) & 1)  # of the image in a directory below, in cameras' files
    if data[8:10] == b"CR" or _DNG in header.tags or photometric in _RAW or (reduced and _BELOW in header.tags):
        raise BadImage("unsupported-raw", "a camera's raw file is not read; convert it to PNG or JPEG")
    refusal = "a small copy of another page as its first page" if reduced else ""
    if photometric not in _PHOTOMETRICS:
        refusal = f"photometric interpretation {photometric} ({_UNREAD.get(photometric, 'unknown')})"
    elif compression not in _COMPRESSIONS:
        refusal = f"compression scheme {compression} ({_UNPACKED.get(compression, 'unknown')})"
    elif len(bits) > 1 or len(formats) > 1:
        refusal = f"samples of {' and '.join(map(str, sorted(bits)))} bits"
    elif not formats <= set(_KINDS) or not _known_bits(max(bits), max(formats)):
        refusal = f"{max(bits)}-bit {_KINDS.get(max(formats), 'complex or undefined')} samples"
    elif not len(_PHOTOMETRICS[photometric].replace("P", "L")) <= samples <= 8:
        refusal = f"{samples} samples a pixel for photometric interpretation {photometric}"
    elif _PHOTOMETRICS[photometric] == "L" and samples > 2:
        refusal = f"{samples} bands of which none is said to be red, green or blue"
    elif photometric == _CMYK and header.first(_INK_SET, 1) != 1:
        refusal = "inks that need not be cyan, magenta, yellow and black"
    elif photometric == _YCBCR and max(bits) != 8:
        refusal = f"{max(bits)}-bit YCbCr"
    elif compression == _JPEG and header.first(_PLANAR, 1) == 2 and samples > 1:
        refusal = "JPEG in separate planes"
    elif photometric == _YCBCR and compression != _JPEG and header.values(_SUBSAMPLING).tolist() != [1, 1]:
        refusal = "subsampled YCbCr that is not JPEG"
    elif photometric == _YCBCR and compression != _JPEG and not all(map(header.is_usual, _USUAL)):
        refusal = "YCbCr of other coefficients or ranges than JPEG's"
    if refusal:
        raise BadImage("unsupported-tiff", f"TIFF with {refusal}; convert it to PNG or JPEG")


def _known_bits(bits: int, kind: int) -> bool:
    return bits in {1: (*range(1, 17), 32, 64), 2: (8, 16, 32, 64), 3: (16, 32, 64)}[kind]


# --- Pixels -----------------------------------------------------------------------------------------------


def _profile(data: bytes, header: TiffHeader) -> bytes:
    """ICC: embedded, of the colors that tags give, or that which EXIF names; empty for sRGB."""
    if len(profile := header.values(_PROFILE)):
        return profile.tobytes()
    if header.directory and _PRIMARIES in header.tags and _PHOTOMETRICS[header.first(_PHOTOMETRIC, 1)] == "RGB":
        colors, white = (
            header.directory.fractions(header.tags[tag][0], most) if tag in header.tags else []
            for tag, most in ((_PRIMARIES, 6), (_WHITE, 2))
        )
        levels, curve = 1 << header.first(_BITS, 8), header.values(_CURVE)  # light for each level of a sample
        light = curve[levels // 2] / 65535 if len(curve) in (levels, 3 * levels) else 0
        power = float(np.log(light) / np.log(0.5)) if 0 < light < 1 else 0.0
        return color_spaces.of_numbers(colors, white, power) if len(colors) == 6 and len(white) in (0, 2) else b""
    return color_spaces.of_exif(data)


def decode(data: bytes, header: TiffHeader, reduction: int = 1) -> Samples:
    """The first page as it is stored, bands without a meaning left out."""
    pixels = _planes(data, header)
    photometric, bits = header.first(_PHOTOMETRIC, 1), header.first(_BITS, 1)
    channels = _PHOTOMETRICS[photometric]
    colors = 1 if channels == "P" else len(channels)
    extra = [*header.values(_EXTRA).tolist(), *[0] * 8][: pixels.shape[2] - colors]
    alpha = next((i for i, kind in enumerate(extra) if kind in (1, 2)), None)
    color = pixels[..., :colors]
    white = (1 << bits) - 1 if bits <= 16 and header.first(_FORMAT, 1) == 1 else 0
    if photometric == _YCBCR and header.first(_COMPRESSION, 1) != _JPEG:
        color = cv2.cvtColor(np.ascontiguousarray(color[..., [0, 2, 1]]), cv2.COLOR_YCrCb2RGB)
    if alpha is not None:
        color = np.concatenate([color, pixels[..., colors + alpha, None]], axis=2)
        channels += "A"
    unspecified = sum(kind not in (1, 2) for kind in extra)
    return Samples(
        color,
        channels,
        white,
        associated=alpha is not None and extra[alpha] == 1,
        palette=_palette(header) if photometric == 3 else None,
        profile=_profile(data, header),
        note=f"{unspecified} unspecified {'band' if unspecified == 1 else 'bands'} left out" if unspecified else "",
        inverted=photometric == 0,
    )


def _planes(data: bytes, header: TiffHeader) -> np.ndarray:
    """[height, width, samples], strip by strip or tile by tile as tifffile decodes them."""
    import tifffile  # with imagecodecs 0.3 s and 40 MB: only for the workers that meet a TIFF

    tiled = _TILES in header.tags
    starts, sizes = header.values(_TILES if tiled else _STRIPS), header.values(_TILE_BYTES if tiled else _STRIP_BYTES)
    with tifffile.TiffFile(io.BytesIO(_directory_alone(header))) as file:
        page = file.pages.first
        planes, _, height, width, samples = page.shaped
        count = int(np.prod(page.chunked))
        sizes = sizes if len(sizes) >= count else np.zeros(count, np.int64)
        unsaid = (
            not sizes[:count].all() and page.compression != _PLAIN and (count > 1 or page.compression not in _ENDING)
        )
        if len(starts) < count or not starts[:count].all() or unsaid:
            raise BadImage("unsupported-tiff", "TIFF without data for some of its strips or tiles")
        pixels: np.ndarray = np.empty((planes, height, width, samples), page.dtype)
        for index in range(count):
            _, (plane, _, top, left, _), shape = page.decode(None, index)
            start, size = int(starts[index]), int(sizes[index])
            needed = shape[1] * -(-shape[2] * shape[3] * page.bitspersample // 8)  # as rows without compression
            if page.compression == _PLAIN and not 0 < size < needed:  # the size may be missing, or that of a full strip
                size = needed
            if start + size > len(data):
                raise BadImage("truncated", "TIFF: strips or tiles lie beyond the end")
            segment = data[start : start + size] if size else data[start:]
            if page.compression == _JPEG:
                _check_jpeg(segment, header)
            part = page.decode(segment, index, jpegtables=page.jpegtables)[0]
            assert part is not None
            place = pixels[plane, top : top + part.shape[1], left : left + part.shape[2]]
            place[:] = part[0, : place.shape[0], : place.shape[1]]
    pixels = pixels[0] if planes == 1 else np.moveaxis(pixels[..., 0], 0, -1)
    return pixels.view(np.uint8) if pixels.dtype == bool else pixels


def _check_jpeg(segment: bytes, header: TiffHeader) -> None:
    """Raises BadImage for a strip or tile whose own header promises more pixels than the page's."""
    most_high = max(header.first(_HEIGHT, 0), header.first(_TILE_HEIGHT, 0))
    most_wide = max(header.first(_WIDTH, 0), header.first(_TILE_WIDTH, 0))
    for code, _, body, _ in jpeg.segments(segment):
        if 0xC0 <= code <= 0xCF and code not in (0xC4, 0xC8, 0xCC):
            height, width = struct.unpack_from(">HH", segment, body + 1)
            if height > most_high or width > most_wide:
                raise BadImage("corrupt-header", f"TIFF: a JPEG of {width}x{height} in {most_wide}x{most_high} pixels")


def _directory_alone(header: TiffHeader) -> bytes:
    """A TIFF file of the tags that pixels depend on, and nothing else."""
    assert header.directory is not None
    order, big = header.directory.order, header.directory.big
    word, inline = ("Q", 8) if big else ("I", 4)
    tags = sorted(_PIXELS & set(header.tags) - ({_PLANAR} if header.first(_PLANAR, 1) != 2 else set()))
    start = 16 + 8 + len(tags) * (20 if big else 12) + 8
    values, entries = b"", b""
    for tag in tags:
        entry, numbers = header.tags[tag]
        field = numbers.tobytes()
        if len(field) > inline:
            where = start + len(values)
            values += field + bytes(-len(field) % 8)
            field = struct.pack(order + word, where)
        entries += struct.pack(f"{order}HH{word}", tag, entry.kind, len(numbers)) + field.ljust(inline, b"\0")
    mark = {"<": b"II", ">": b"MM"}[order]
    head = mark + (struct.pack(order + "HHHQ", 43, 8, 0, 16) if big else struct.pack(order + "HI", 42, 16))
    directory = struct.pack(order + ("Q" if big else "H"), len(tags)) + entries
    return (head[:16].ljust(16, b"\0") + directory).ljust(start, b"\0") + values


def _palette(header: TiffHeader) -> np.ndarray:
    """uint8 [colors, 4]; writers who put 8-bit colors into the 16-bit table are forgiven, as by libtiff."""
    bits = header.first(_BITS, 1)
    table = header.values(_COLORS)[: 3 << bits]
    if len(table) < 3 << bits:
        raise BadImage("corrupt-header", f"TIFF: {len(table)} numbers in a palette of {1 << bits} colors")
    colors = table.reshape(3, -1).T
    colors = colors >> 8 if colors.max() > 255 else colors  # both for writers that multiply by 256 and by 257
    return np.insert(colors.astype(np.uint8), 3, 255, axis=1)
