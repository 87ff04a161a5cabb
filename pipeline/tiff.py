"""TIFF and BigTIFF: the tags that pixels depend on, and the pixels by tifffile, which sees no other tags."""

from __future__ import annotations

import io
import struct
from dataclasses import dataclass, field

import cv2
import numpy as np

from shardline.pipeline import color_spaces, exif, jpeg
from shardline.pipeline.image_types import BadImage, Header, Profile, Samples

_SUBFILE, _OLD_SUBFILE, _WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC = 254, 255, 256, 257, 258, 259, 262
_STRIPS, _ORIENTATION, _SAMPLES, _STRIP_ROWS, _STRIP_BYTES, _PLANAR, _COLORS = 273, 274, 277, 278, 279, 284, 320
_TILE_WIDTH, _TILE_HEIGHT, _TILES, _TILE_BYTES, _EXTRA, _FORMAT, _SUBSAMPLING = 322, 323, 324, 325, 338, 339, 530
_BELOW, _XMP, _PROFILE, _DNG = 330, 700, 34675, 50706
_CURVE, _PREDICTOR, _WHITE, _PRIMARIES, _INK_SET, _COEFFICIENTS, _RANGES = 301, 317, 318, 319, 332, 529, 532
_PIXELS = frozenset((  # and besides: fill order, fax options, JPEG tables
    _WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC, 266, _STRIPS, _SAMPLES, _STRIP_ROWS, _STRIP_BYTES, _PLANAR, 292,
    293, _PREDICTOR, _TILE_WIDTH, _TILE_HEIGHT, _TILES, _TILE_BYTES, _INK_SET, _EXTRA, _FORMAT, 347, _SUBSAMPLING,
))  # fmt: skip
_RAW = {32803: "a color filter array", 34892: "linear raw data"}
_PHOTOMETRICS = {0: "L", 1: "L", 2: "RGB", 3: "P", 5: "CMYK", 6: "RGB"}  # white is 0, black is 0, …, YCbCr
_PREDICTED = (5, 8, 32946, 34925, 50000)  # LZW, Deflate, LZMA, Zstandard: samples may be differences
_COMPRESSIONS = (*_PREDICTED, 1, 2, 3, 4, 7, 32773)  # none, fax, JPEG, PackBits
_PLAIN, _FAX, _JPEG, _CMYK, _YCBCR = 1, (2, 3, 4), 7, 5, 6
_ENDING = (5, 7, 8, 32946)  # compressions whose data tell where they end
_UNREAD = {4: "transparency mask", 8: "CIE L*a*b*", 9: "CIE L*a*b*", 10: "CIE L*a*b*", 32844: "LogL", 32845: "LogLuv"}
_UNPACKED = {6: "old JPEG", 33003: "JPEG 2000", 33005: "JPEG 2000", 34661: "JBIG", 34676: "SGI Log", 34712: "JPEG 2000",
             34887: "LERC", 34927: "WebP", 34933: "PNG", 50001: "WebP", 50002: "JPEG XL"}  # fmt: skip
_USUAL = {_COEFFICIENTS: (0.299, 0.587, 0.114), _RANGES: (0, 255, 128, 255, 128, 255)}  # of YCbCr, as JPEG's
MOST_PAGES = 1000
_KINDS = {1: "unsigned", 2: "signed", 3: "floating-point"}
_SIZES = {1: (*range(1, 17), 32, 64), 2: (8, 16, 32, 64), 3: (16, 32, 64)}  # in bits, of a sample of each kind


class Page(exif.Directory):
    """One directory, whole."""

    def __init__(self, data: bytes, offset: int | None = None) -> None:
        super().__init__(data, offset)
        if not self.whole:
            raise BadImage("truncated", "TIFF: the file ends inside a directory")

    @property
    def compression(self) -> int:
        """How strips or tiles are packed."""
        return self.first(_COMPRESSION, _PLAIN)

    @property
    def photometric(self) -> int:
        """What samples mean; where nothing says so, as libtiff takes them."""
        colors = self.first(_SAMPLES, 1) - self.length(_EXTRA)
        guess = 2 if colors == 3 and self.compression != _JPEG else 0 if self.compression in _FAX else 1
        return self.first(_PHOTOMETRIC, guess)

    @property
    def formats(self) -> set[int]:
        """Kinds of samples; undefined ones are unsigned (TIFF 6.0, page 80)."""
        return {1 if kind == 4 else kind for kind in self.values(_FORMAT).tolist()} or {1}

    def is_usual(self, tag: int) -> bool:
        """Whether YCbCr is what JPEG's is, as far as this tag tells."""
        return all(abs(a - b) < 0.01 * max(b, 1) for a, b in zip(self.values(tag), _USUAL[tag], strict=False))

    def check_values(self) -> None:
        """Raise BadImage if values that pixels need lie beyond the end."""
        for tag in filter(self.__contains__, _PIXELS):
            values = self.values(tag)
            if len(values) < min(self.length(tag), exif.MOST_VALUES) or values.dtype.kind == "f":
                raise BadImage("truncated", f"TIFF: the values of tag {tag} lie beyond the end")

    def check_whole(self) -> None:
        """Raise BadImage if pixels lie beyond the end."""
        for offsets, sizes in ((_STRIPS, _STRIP_BYTES), (_TILES, _TILE_BYTES)):
            starts, lengths = self.values(offsets), self.values(sizes)
            n = min(len(starts), len(lengths))
            if n and (starts[:n].astype(np.float64) + lengths[:n] > len(self.data)).any():
                raise BadImage("truncated", "TIFF: strips or tiles lie beyond the end")


@dataclass(frozen=True)
class TiffHeader(Header):
    """Of the first page."""

    page: Page = field(kw_only=True)


def read_header(data: bytes) -> TiffHeader:
    """The first page's tags; of the others, whether they are whole."""
    page = Page(data)
    page.check_values()
    frames, following, read = 1, page.following, len(page)
    while following and frames < MOST_PAGES:
        other = Page(data, following)
        read += len(other)
        if read < 0xFFFF:
            other.check_values()
            other.check_whole()
        frames, following = frames + 1, other.following
    if page.compression != _PLAIN:
        page.check_whole()
    _check_supported(page)
    turn = page.first(_ORIENTATION, 0)
    turn = turn if 1 <= turn <= 8 else exif.xmp_orientation(page.values(_XMP).tobytes()) or 1
    return TiffHeader("tiff", page.first(_WIDTH, 0), page.first(_HEIGHT, 0), turn, frames, page=page)


def _check_supported(page: Page) -> None:
    photometric, compression = page.photometric, page.compression
    bits, formats = set(page.values(_BITS).tolist()) or {1}, page.formats
    depth, kind, samples = max(bits), max(formats), page.first(_SAMPLES, 1)
    is_plain_ycbcr = photometric == _YCBCR and compression != _JPEG
    # Of another page, or in cameras' files of the image in a directory below.
    reduced = page.first(_SUBFILE) & 1 or page.first(_OLD_SUBFILE) == 2
    if page.data[8:10] == b"CR" or _DNG in page or photometric in _RAW or (reduced and _BELOW in page):
        raise BadImage("unsupported-raw", "a camera's raw file is not read; convert it to PNG or JPEG")
    refusal = "a small copy of another page as its first page" if reduced else ""
    if photometric not in _PHOTOMETRICS:
        refusal = f"photometric interpretation {photometric} ({_UNREAD.get(photometric, 'unknown')})"
    elif compression not in _COMPRESSIONS:
        refusal = f"compression scheme {compression} ({_UNPACKED.get(compression, 'unknown')})"
    elif len(bits) > 1 or len(formats) > 1:
        refusal = f"samples of {' and '.join(map(str, sorted(bits)))} bits"
    elif depth not in _SIZES.get(kind, ()):
        refusal = f"{depth}-bit {_KINDS.get(kind, 'complex or undefined')} samples"
    elif page.first(_PREDICTOR) == 2 and compression in _PREDICTED and depth not in (8, 16, 32, 64):
        refusal = f"differences of {depth}-bit samples"
    elif not len(_PHOTOMETRICS[photometric].replace("P", "L")) <= samples <= 8:
        refusal = f"{samples} samples a pixel for photometric interpretation {photometric}"
    elif _PHOTOMETRICS[photometric] == "L" and samples > 2:
        refusal = f"{samples} bands of which none is said to be red, green or blue"
    elif photometric == _CMYK and page.first(_INK_SET, 1) != 1:
        refusal = "inks that need not be cyan, magenta, yellow and black"
    elif photometric == _YCBCR and depth != 8:
        refusal = f"{depth}-bit YCbCr"
    elif compression == _JPEG and page.first(_PLANAR, 1) == 2 and samples > 1:
        refusal = "JPEG in separate planes"
    elif is_plain_ycbcr and page.values(_SUBSAMPLING).tolist() != [1, 1]:
        refusal = "subsampled YCbCr that is not JPEG"
    elif is_plain_ycbcr and not all(map(page.is_usual, _USUAL)):
        refusal = "YCbCr of other coefficients or ranges than JPEG's"
    if refusal:
        raise BadImage("unsupported-tiff", f"TIFF with {refusal}; convert it to PNG or JPEG")


# --- Pixels -----------------------------------------------------------------------------------------------


def _profile(page: Page) -> Profile:
    """Embedded, of the colors that tags give, or that which EXIF names; none for sRGB."""
    if len(profile := page.values(_PROFILE)):
        return profile.tobytes()
    if _PRIMARIES not in page or _PHOTOMETRICS[page.photometric] != "RGB":
        return color_spaces.of_exif(page.data)
    colors, white = page.values(_PRIMARIES, 6).tolist(), page.values(_WHITE, 2).tolist()
    levels, curve = 1 << page.first(_BITS, 8), page.values(_CURVE)  # light for each level of a sample
    light = curve[levels // 2] / 65535 if len(curve) in (levels, 3 * levels) else 0
    power = float(np.log(light) / np.log(0.5)) if 0 < light < 1 else 0.0
    return color_spaces.of_numbers(colors, white, power) if len(colors) == 6 and len(white) in (0, 2) else None


def decode(data: bytes, header: TiffHeader, reduction: int = 1) -> Samples:
    """The first page as it is stored, bands without a meaning left out."""
    page = header.page
    pixels = _planes(data, page)
    photometric, bits = page.photometric, page.first(_BITS, 1)
    channels = _PHOTOMETRICS[photometric]
    colors = 1 if channels == "P" else len(channels)
    extra = [*page.values(_EXTRA).tolist(), *[0] * 8][: pixels.shape[2] - colors]
    alpha = next((i for i, kind in enumerate(extra) if kind in (1, 2)), None)
    color = pixels[..., :colors]
    white = (1 << bits) - 1 if bits <= 16 and page.formats == {1} else 0
    if photometric == _YCBCR and page.compression != _JPEG:
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
        palette=_palette(page) if photometric == 3 else None,
        profile=_profile(page),
        note=f"{unspecified} unspecified {'band' if unspecified == 1 else 'bands'} left out" if unspecified else "",
        inverted=photometric == 0,
    )


def _planes(data: bytes, page: Page) -> np.ndarray:
    """[height, width, samples], strip by strip or tile by tile as tifffile decodes them."""
    import tifffile  # with imagecodecs 0.3 s and 40 MB: only for the workers that meet a TIFF

    tiled = _TILES in page
    starts, sizes = page.values(_TILES if tiled else _STRIPS), page.values(_TILE_BYTES if tiled else _STRIP_BYTES)
    with tifffile.TiffFile(io.BytesIO(_directory_alone(page))) as file:
        coded = file.pages.first
        planes, _, height, width, samples = coded.shaped
        count = int(np.prod(coded.chunked))
        sizes = sizes if len(sizes) >= count else np.zeros(count, np.int64)
        guessed = coded.compression == _PLAIN or (count == 1 and coded.compression in _ENDING)  # sizes of 0
        if len(starts) < count or not starts[:count].all() or not (guessed or sizes[:count].all()):
            raise BadImage("unsupported-tiff", "TIFF without data for some of its strips or tiles")
        pixels: np.ndarray = np.empty((planes, height, width, samples), coded.dtype)
        for index in range(count):
            _, (plane, _, top, left, _), shape = coded.decode(None, index)
            start, size = int(starts[index]), int(sizes[index])
            needed = shape[1] * -(-shape[2] * shape[3] * coded.bitspersample // 8)  # as rows without compression
            if coded.compression == _PLAIN and not 0 < size < needed:  # it may be missing, or that of a full strip
                size = needed
            if start + size > len(data):
                raise BadImage("truncated", "TIFF: strips or tiles lie beyond the end")
            segment = data[start : start + size] if size else data[start:]
            if coded.compression == _JPEG:
                _check_jpeg(segment, page)
            part = coded.decode(segment, index, jpegtables=coded.jpegtables)[0]
            assert part is not None
            place = pixels[plane, top : top + part.shape[1], left : left + part.shape[2]]
            place[:] = part[0, : place.shape[0], : place.shape[1]]
    pixels = pixels[0] if planes == 1 else np.moveaxis(pixels[..., 0], 0, -1)
    return pixels.view(np.uint8) if pixels.dtype == bool else pixels


def _check_jpeg(segment: bytes, page: Page) -> None:
    """Raises BadImage for a strip or tile whose own header promises more pixels than the page's."""
    most_high = max(page.first(_HEIGHT, 0), page.first(_TILE_HEIGHT, 0))
    most_wide = max(page.first(_WIDTH, 0), page.first(_TILE_WIDTH, 0))
    for code, _, body, _ in jpeg.segments(segment):
        if code in jpeg.FRAMES:
            height, width = struct.unpack_from(">HH", segment, body + 1)
            if height > most_high or width > most_wide:
                raise BadImage("corrupt-header", f"TIFF: a JPEG of {width}x{height} in {most_wide}x{most_high} pixels")


def _directory_alone(page: Page) -> bytes:
    """A TIFF file of the tags that pixels depend on, and nothing else."""
    order, word, inline, big = page.order, page.word, page.inline, page.big
    useless = {_PLANAR: page.first(_PLANAR) != 2, _PREDICTOR: page.compression not in _PREDICTED}
    tags = [tag for tag in sorted(_PIXELS) if tag in page and not useless.get(tag)]
    values, entries = b"", b""
    for tag in tags:
        numbers = page.values(tag)
        field = numbers.tobytes()
        if len(field) > inline:
            where = 16 + len(values)
            values += field + bytes(-len(field) % 8)
            field = struct.pack(order + word, where)
        kind = {1: 7, 2: 3, 4: 4, 8: 16}[numbers.itemsize]
        entries += struct.pack(f"{order}HH{word}", tag, kind, len(numbers)) + field.ljust(inline, b"\0")
    start = 16 + len(values)
    head = struct.pack(order + "HHHQ", 43, 8, 0, start) if big else struct.pack(order + "HI", 42, start)
    head = ({"<": b"II", ">": b"MM"}[order] + head).ljust(16, b"\0")
    return head + values + struct.pack(order + ("Q" if big else "H"), len(tags)) + entries + bytes(8)


def _palette(page: Page) -> np.ndarray:
    """uint8 [colors, 4]; writers who put 8-bit colors into the 16-bit table are forgiven, as by libtiff."""
    bits = page.first(_BITS, 1)
    table = page.values(_COLORS)[: 3 << bits]
    if len(table) < 3 << bits:
        raise BadImage("corrupt-header", f"TIFF: {len(table)} numbers in a palette of {1 << bits} colors")
    colors = table.reshape(3, -1).T
    colors = colors >> 8 if colors.max() > 255 else colors  # both for writers that multiply by 256 and by 257
    return np.insert(colors.astype(np.uint8), 3, 255, axis=1)
