"""GIF, BMP, PNM, WebP, AVIF, HEIC, JPEG 2000 and JPEG XL: size and frames before decoding, then the pixels.

Decoders are imported when a file first needs them: most workers never see one.
"""

from __future__ import annotations

import io
import math
import re
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from shardline.pipeline import color_spaces, exif, isobmff, jpeg, opencv
from shardline.pipeline.image_types import BadImage, Header, Profile, Samples

if TYPE_CHECKING:
    from PIL.GifImagePlugin import GifImageFile
    from PIL.ImageFile import ImageFile

MOST_READS = 40_000  # of a GIF
MOST_CHUNKS = 10_000  # of a WebP


# --- Pillow -----------------------------------------------------------------------------------------------


def _pillow_samples(name: str, image: ImageFile) -> Samples:
    image.load()
    if image.mode == "P":
        colors = np.full((256, 4), (0, 0, 0, 255), np.uint8)  # black for numbers beyond the palette
        table = np.frombuffer(bytes(image.getpalette("RGBA") or ()), np.uint8).reshape(-1, 4)
        colors[: len(table)] = table
        return Samples(np.asarray(image), "P", palette=colors)
    if image.mode == "1":
        return Samples(np.asarray(image).view(np.uint8), "L", 1)
    if image.mode not in ("L", "LA", "RGB", "RGBA", "CMYK"):
        raise BadImage(f"unsupported-{name}", f"{name} of mode {image.mode}; convert it to PNG or JPEG")
    return Samples(np.asarray(image), image.mode)


# --- BMP --------------------------------------------------------------------------------------------------

_RUN_LENGTHS = (b"\1\0\0\0", b"\2\0\0\0")  # compression schemes, of 8 and of 4 bits
_END_OF_RUNS = b"\0\1"
_16_BIT_MASKS = b"\x10\0\3\0\0\0"  # bits a pixel and compression


def _open_bmp(data: bytes) -> ImageFile:
    from PIL.BmpImagePlugin import BmpImageFile

    return BmpImageFile(io.BytesIO(data))


def read_bmp(data: bytes) -> Header:
    """The size, as Pillow reads it, and the color of headers of version 4 and 5."""
    return Header("bmp", *_open_bmp(data).size, profile=_bmp_profile(data))


def _bmp_profile(data: bytes) -> Profile:
    """Embedded, or of the colors and powers given; none for sRGB. Raises BadImage for one in another file."""
    size = int.from_bytes(data[14:18], "little")
    kind = data[70:74] if size >= 108 else b""
    if kind == b"KNIL" and size >= 124:
        raise BadImage("unsupported-bmp", "BMP whose color profile is in another file; convert it to PNG")
    if kind == b"DEBM" and size >= 124:
        start, length = struct.unpack_from("<II", data, 126)
        return data[14 + start : 14 + start + length]
    if kind != bytes(4):  # calibrated
        return None
    xyz = np.array(struct.unpack_from("<9i", data, 74), float).reshape(3, 3)
    powers = [power / 65536 for power in struct.unpack_from("<3I", data, 110)]
    totals = xyz.sum(axis=1)
    if not all(powers) or max(powers) - min(powers) > 0.01 or not totals.all():
        return None
    colors = (xyz[:, :2] / totals[:, None]).reshape(-1).tolist()
    power = powers[0] if powers[0] >= 1 else 1 / powers[0]  # some write the encoder's
    return color_spaces.of_numbers(colors, (), power)


def decode_bmp(data: bytes, header: Header, reduction: int = 1) -> Samples:
    """By Pillow. Alpha that is 0 everywhere is no alpha: the Windows clipboard leaves it empty."""
    whole = data[30:34] in _RUN_LENGTHS and len(data) >= int.from_bytes(data[2:6], "little")
    if whole and (runs := data.rstrip(b"\0")).endswith(_END_OF_RUNS):  # Pillow wants what the end leaves out
        row = b"\xff\0" * (header.width // 255 + 1) + b"\0\0"  # of the first color
        data = runs.removesuffix(_END_OF_RUNS) + row * header.height
    has_alpha_mask = int.from_bytes(data[14:18], "little") >= 56 and any(data[66:70])
    if data[28:34] == _16_BIT_MASKS and has_alpha_mask:  # which Pillow does not see
        import imagecodecs

        if len(data) < int.from_bytes(data[10:14], "little") + header.height * ((header.width + 1) // 2 * 4):
            raise BadImage("truncated", "BMP: the file ends before its last row")  # else imagecodecs makes it up
        samples = Samples(imagecodecs.bmp_decode(data), "RGBA")
    else:
        samples = _pillow_samples("bmp", _open_bmp(data))
    if samples.channels == "RGBA" and not samples.pixels[..., 3].any():
        return samples._replace(pixels=samples.pixels[..., :3], channels="RGB")
    return samples


# --- GIF --------------------------------------------------------------------------------------------------


_GIF_PROFILE = b"!\xff\x0bICCRGBG1012"


class _FewReads(io.BytesIO):
    """A file that ends after so many reads, as many as a header may cost, whatever it says."""

    left = MOST_READS
    ended = False  # read to its last byte and on

    def read(self, size: int | None = -1) -> bytes:
        found = io.BytesIO.read(self, size)
        self.left -= 1
        if not found:
            self.ended = True
        elif self.left <= 0:
            self.left = MOST_READS
            raise EOFError("unsupported: too many blocks before the first frame")
        return found


def _open_gif(data: bytes) -> GifImageFile:
    from PIL.GifImagePlugin import GifImageFile

    return GifImageFile(_FewReads(data))


def read_gif(data: bytes) -> Header:
    """As Pillow reads it; of a large file's frames those of its first part are counted."""
    image = _open_gif(data)
    file: Any = image.fp
    start, profile = data.find(_GIF_PROFILE, 0, image.tile[0].offset), b""
    if start >= 0:
        file.seek(start + len(_GIF_PROFILE))
        profile = b"".join(iter(image.data, None))
    frames = image.n_frames
    if file.ended and data[-1] not in b"\0;":
        raise BadImage("truncated", "GIF: the file ends inside a frame")
    return Header("gif", *image.size, frames=frames, profile=profile)


def decode_gif(data: bytes, header: Header, reduction: int = 1) -> Samples:
    """The first frame by Pillow, on a screen of its own background; transparent if it tells none, or the frame is."""
    image = _open_gif(data)
    left, top, right, bottom = image.tile[0].extents or (0, 0, *image.size)
    key = image.info.get("transparency")
    frame = _pillow_samples("gif", image)
    palette = np.repeat(np.arange(256, dtype=np.uint8)[:, None], 4, axis=1) if frame.palette is None else frame.palette
    palette[:, 3] = [0 if color == key else 255 for color in range(256)]
    table = data[13 : 13 + (6 << (data[10] & 7))] if data[10] & 0x80 and key is None else b""  # not the frame's own
    pixels = np.zeros((header.height, header.width, 4), np.uint8)
    if ground := table[3 * data[11] :][:3]:
        pixels[:] = *ground, 255
    pixels[top:bottom, left:right] = palette[frame.pixels[top:bottom, left:right]]
    return Samples(pixels, "RGBA")


# --- PNM --------------------------------------------------------------------------------------------------

_NUMBER = rb"(?:\s|#[^\r\n]*[\r\n])+(\d{1,9})"
_PNM = re.compile(rb"P(?:([14])|[2356])" + 2 * _NUMBER + rb"(?(1)|" + _NUMBER + rb")\s")  # bitmaps have no levels

_COMMENTS = re.compile(rb"(?:#[^\r\n]*+\s*+)++")


def _pnm_numbers(data: bytes) -> tuple[int, int, int, int]:
    """Width, height, largest level and where the samples begin, from the first 64 KB."""
    found = _PNM.match(data[:65_536])
    if not found:
        raise BadImage("corrupt-header", "PNM: no size")
    largest = int(found[4] or 1)
    if not 1 <= largest <= 65535:
        raise BadImage("corrupt-header", f"PNM: largest value {largest}")
    return int(found[2]), int(found[3]), largest, found.end()


def read_pnm(data: bytes) -> Header:
    """The size."""
    return Header("pnm", *_pnm_numbers(data)[:2])


def decode_pnm(data: bytes, header: Header, reduction: int = 1) -> Samples:
    """Binary samples as they lie in the file, decimal ones by NumPy."""
    kind = data[1:2]
    width, height, largest, start = _pnm_numbers(data)
    dtype = np.dtype(np.uint8 if largest < 256 else ">u2")
    shape = (height, width, 3) if kind in b"36" else (height, (width + 7) // 8) if kind == b"4" else (height, width)
    count = math.prod(shape)
    if kind in b"123":
        samples = _decimal(data[start:], count, bits=kind == b"1")
    else:
        # One byte ends the header; where Windows' two do, the file has one more than the samples need.
        start += data[start - 1 : start + 1] == b"\r\n" and len(data) == start + 1 + count * dtype.itemsize
        samples = np.frombuffer(data, dtype, min(count, (len(data) - start) // dtype.itemsize), start)
    if len(samples) < count:
        raise BadImage("truncated", f"PNM: {len(samples):,} of {count:,} samples")
    samples = samples.reshape(shape)
    if kind == b"4":
        samples = np.unpackbits(samples.view(np.uint8), axis=1, count=width)
    if samples.max() > largest:
        raise BadImage("corrupt-data", f"PNM: a sample of {samples.max()} above the largest value {largest}")
    samples = samples.astype(dtype.newbyteorder("="), copy=False)
    return Samples(samples, "RGB" if kind in b"36" else "L", largest, inverted=kind in b"14")


def _decimal(text: bytes, count: int, *, bits: bool) -> np.ndarray:
    text = _COMMENTS.sub(b"\n", text, count + 1)  # as many as there can be between so many numbers
    if bits:  # they need no space between them
        digits = np.frombuffer(text, np.uint8)
        return np.asarray(digits[(digits == 0x30) | (digits == 0x31)][:count] - 0x30)
    numbers = text.split(None, count)[:count]
    if any(len(number) > 9 or not number.isdigit() for number in numbers):
        raise BadImage("corrupt-data", "PNM: samples that are no numbers up to 65535")
    return np.array(numbers, "S9").astype(np.uint32)


# --- WebP -------------------------------------------------------------------------------------------------

_WEBP_FLAGS = {b"ICCP": 0x20, b"EXIF": 8, b"XMP ": 4}


def read_webp(data: bytes) -> Header:
    """Walk the chunks, counting frames. Profile, EXIF and XMP count where the first chunk says they are there."""
    last = 8 + int.from_bytes(data[4:8], "little")
    if len(data) < last:
        raise BadImage("truncated", "WebP: shorter than its RIFF header says")
    chunks: dict[bytes, tuple[int, int]] = {}  # of each kind the first: start and length of its body
    position, frames = 12, 0
    for _ in range(MOST_CHUNKS):
        if position + 8 > last:
            break
        kind, length = struct.unpack_from("<4sI", data, position)
        chunks.setdefault(kind, (position + 8, length))
        frames += kind == b"ANMF"
        position += 8 + length + (length & 1)
    width = height = flags = 0
    if b"VP8X" in chunks:
        start, _ = chunks[b"VP8X"]
        flags = data[start]
        width, height = (1 + int.from_bytes(data[start + i : start + i + 3], "little") for i in (4, 7))
    elif b"VP8 " in chunks:
        width, height = (side & 0x3FFF for side in struct.unpack_from("<HH", data, chunks[b"VP8 "][0] + 6))
    elif b"VP8L" in chunks:
        (bits,) = struct.unpack_from("<I", data, chunks[b"VP8L"][0] + 1)
        width, height = 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    said = {kind: data[at : at + size] for kind, (at, size) in chunks.items() if flags & _WEBP_FLAGS.get(kind, 0)}
    block = said.get(b"EXIF", b"")
    turn = exif.orientation(block) or exif.xmp_orientation(said.get(b"XMP ", b"")) or 1
    profile = said.get(b"ICCP") or color_spaces.of_exif(block)
    return Header("webp", width, height, turn, max(1, frames), profile)


def decode_webp(data: bytes, header: Header, reduction: int = 1) -> Samples:
    """By OpenCV: the first frame of an animation on a transparent canvas."""
    return opencv.decode(data, header)


# --- AVIF, HEIC -------------------------------------------------------------------------------------------


def _open_avif(data: bytes) -> ImageFile:
    from PIL import AvifImagePlugin

    AvifImagePlugin.DEFAULT_MAX_THREADS = 1  # a worker for each core
    return AvifImagePlugin.AvifImageFile(io.BytesIO(data))


def read_avif(data: bytes) -> Header:
    """As libavif reads it; the orientation is that of the boxes irot and imir, EXIF's does not count."""
    list(isobmff.boxes(data))  # whole, or truncated
    image = _open_avif(data)
    width, height = image.size
    color = isobmff.av1_color(data, height, width)
    boxes = _open_heic(data)
    if sorted(boxes.size) != sorted(image.size):  # libavif crops nothing
        raise BadImage("unsupported-avif", "AVIF of which a part alone is shown (clap); convert it to PNG or JPEG")
    turn = exif.orientation(image.info.get("exif", b"")) or 1
    profile = image.info.get("icc_profile") or _coded_profile("avif", boxes, color)
    return Header("avif", width, height, turn, getattr(image, "n_frames", 1), profile)


def _coded_profile(name: str, image: Any, color: tuple[int, int] = isobmff.UNTOLD) -> Profile:
    """Of the color that an nclx box tells, or else the coded image. Raises BadImage for one not converted here."""
    if box := image.info.get("nclx_profile"):
        color = box["color_primaries"], box["transfer_characteristics"]
    return color_spaces.of_cicp(name, *color)


def decode_avif(data: bytes, header: Header, reduction: int = 1) -> Samples:
    """By libavif in Pillow: 8 bits, whatever the depth."""
    return _pillow_samples("avif", _open_avif(data))


def _open_heic(data: bytes) -> Any:
    import pi_heif

    options = pi_heif.options
    options.DECODE_THREADS = 1  # a worker for each core
    options.THUMBNAILS = options.DEPTH_IMAGES = options.AUX_IMAGES = False
    start, end = isobmff.first_boxes(data).get(b"meta", (0, 0))  # of all boxes, whole, or truncated
    # Metadata whose type is no text kills its process: without the reference it has none.
    return pi_heif.open_heif(data[:start] + data[start:end].replace(b"cdsc", b"free") + data[end:])


def read_heic(data: bytes) -> Header:
    """As libheif reads it: already turned."""
    image = _open_heic(data)
    profile = image.info.get("icc_profile") or _coded_profile("heic", image)
    width, height = image.size
    return Header("heic", width, height, frames=len(image), profile=profile)


def decode_heic(data: bytes, header: Header, reduction: int = 1) -> Samples:
    """The primary image by libheif."""
    image = _open_heic(data)
    pixels = np.array(image)  # a copy: the memory is the image's, and goes with it
    mode = image.mode.replace("a", "A").replace("I;16", "L")
    return Samples(pixels, mode, int(np.iinfo(pixels.dtype).max), image.premultiplied_alpha)


# --- JPEG 2000 --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Jp2Header(Header):
    """Of a JPEG 2000 file or codestream."""

    channels: str = "RGB"
    bits: int = 8
    associated: bool = False
    note: str = ""  # on a component of which nothing says what it is
    profile_at: int = 0  # where the body of its box begins; 0 for no profile


_JP2_COLORS = {12: "CMYK", 16: "RGB", 17: "L", 18: "RGB"}  # by color space
_PROFILE_COLORS = {b"GRAY": "L", b"RGB ": "RGB", b"CMYK": "CMYK"}
_YCBCR = 18
_HALVED = (({1, 2}, {1}), ({1, 2}, {1, 2}))  # steps of components across and down, where color has fewer samples


def read_jp2(data: bytes) -> Jp2Header:
    """Size and depth of the codestream; of the boxes around it, what its components mean."""
    parts: dict[bytes, tuple[int, int]] = {}
    for kind, start, end in isobmff.boxes(data):
        if kind == b"jp2h":
            parts = parts or isobmff.first_boxes(data, start, end)
        elif kind == b"jp2c":
            return _read_codestream(data, start, "jp2", parts)
    raise BadImage("truncated", "JPEG 2000: no codestream")


def read_j2k(data: bytes) -> Jp2Header:
    """Of a bare codestream: RGB, or gray."""
    return _read_codestream(data, 0, "j2k", {})


def _read_codestream(data: bytes, start: int, name: str, boxes: dict[bytes, tuple[int, int]]) -> Jp2Header:
    """Of the codestream that begins at `start`, and these boxes, which tell what its components mean."""
    right, bottom, left, top = struct.unpack_from(">IIII", data, start + 8)
    (count,) = struct.unpack_from(">H", data, start + 40)
    components = data[start + 42 : start + 42 + 3 * count]  # depth less 1, step across and step down of each
    depths, steps = components[::3], (set(components[1::3]), set(components[2::3]))
    if b"pclr" in boxes:
        at = boxes[b"pclr"][0] + 2
        depths = data[at + 1 : at + 1 + data[at]]
    at, end = boxes.get(b"colr", (0, 0))
    by_number = at > 0 and data[at] == 1
    space = int.from_bytes(data[at + 3 : at + 7], "big") if by_number else 0
    profile = b"" if by_number else data[at + 3 : end]
    colors = _jp2_colors(len(depths), space, profile)
    more = len(depths) - len(colors)
    usual = steps == ({1}, {1}) or (steps in _HALVED and space in (0, _YCBCR) and not profile)
    if not colors or more not in (0, 1) or len(set(depths)) != 1 or depths[0] > 15 or not usual:
        bits = " and ".join(f"{(depth & 127) + 1}{' signed' if depth > 127 else ''}" for depth in sorted(set(depths)))
        what = f"{len(depths)} {'' if usual else 'subsampled '}components of {bits} bits"
        what += f", color space {space}" if space else ""
        raise BadImage("unsupported-jp2", f"JPEG 2000 with {what}; convert it to PNG or JPEG")
    if data.rfind(b"\xff\xd9") < start:
        raise BadImage("truncated", "JPEG 2000: no end marker")
    first, last = boxes.get(b"cdef", (0, 0))
    kinds = struct.unpack_from(f">{(last - first) // 2}H", data, first)[2::3]  # of channels: 1 and 2 are alpha
    said = 1 in kinds or 2 in kinds
    alpha = said or name == "j2k"  # which cannot say
    note = "" if said or not more else f"1 unspecified band {'taken for alpha' if alpha else 'left out'}"
    return Jp2Header(name, right - left, bottom - top, profile=profile, channels=colors + "A" * (more and alpha),
                     bits=depths[0] + 1, associated=2 in kinds, note=note, profile_at=at if profile else 0)  # fmt: skip


def _jp2_colors(components: int, space: int, profile: bytes) -> str:
    """Channels of color; "" for a color space that is not read."""
    few = "L" if components < 3 else "RGB"
    if profile:
        colors = _PROFILE_COLORS.get(profile[16:20], few)
        return colors if components - len(colors) in (0, 1) else few  # it is of another kind of color
    return _JP2_COLORS.get(space, "") if space else few


def decode_jp2(data: bytes, header: Jp2Header, reduction: int = 1) -> Samples:
    """By OpenJPEG in imagecodecs: all bits, palettes applied; not profiles, which it applies to any kind of color."""
    import imagecodecs

    if at := header.profile_at:
        data = data[: at - 4] + b"free" + data[at:]
    pixels = imagecodecs.jpeg2k_decode(data, numthreads=1)
    pixels = pixels.reshape(*pixels.shape[:2], -1)[..., : len(header.channels)]
    if pixels.shape[2] < len(header.channels):  # a palette that is not used
        raise BadImage("corrupt-data", f"JPEG 2000: {pixels.shape[2]} components for {header.channels}")
    return Samples(pixels, header.channels, (1 << header.bits) - 1, header.associated, note=header.note)


# --- JPEG XL ----------------------------------------------------------------------------------------------


_JXL_HEAD = 2048  # bytes, of which names of channels may be many


@dataclass(frozen=True)
class JxlHeader(Header):
    """Of a JPEG XL."""

    animated: bool = False
    depth: int = 8  # bits of a sample; 0 for floating-point numbers, from 0 to 1
    associated: bool = False  # color is multiplied by alpha


def read_jxl(data: bytes) -> JxlHeader:
    """Size, orientation, depth, kind of alpha and whether it is an animation, from the codestream's first bytes."""
    stream, is_jpeg = data[2:_JXL_HEAD], False
    if data[:1] == b"\0":
        parts = b""
        for kind, start, end in isobmff.boxes(data):
            is_jpeg = is_jpeg or kind == b"jbrd"
            if kind in (b"jxlc", b"jxlp") and len(parts) < _JXL_HEAD:
                start += 4 * (kind == b"jxlp")
                parts += data[start : min(end, start + _JXL_HEAD)]
        stream = parts[2:_JXL_HEAD]
    bits = isobmff.Bits(stream, lowest_first=True)
    height, width = _jxl_size(bits)
    turn, animated, depth, alphas = 1, False, 8, list[int]()
    if not bits.read(1):  # not all as usual
        if bits.read(1):  # extra fields
            turn = bits.read(3) + 1
            if bits.read(1):  # the size it is meant to be shown in
                _jxl_size(bits)
            if bits.read(1):
                raise BadImage("unsupported-jpeg-xl", "JPEG XL with a preview; convert it to PNG or JPEG")
            animated = bool(bits.read(1))
            if animated:  # ticks a second, times that it repeats, timecodes
                _jxl_number(bits, (100, 0), (1000, 0), (1, 10), (1, 30))
                _jxl_number(bits, (1, 0), (1001, 0), (1, 8), (1, 10))
                _jxl_number(bits, (0, 0), (0, 3), (0, 16), (0, 32))
                bits.read(1)
        depth = _jxl_depth(bits)
        bits.read(1)
        for _ in range(_jxl_number(bits, (0, 0), (1, 0), (2, 4), (1, 12))):
            alphas += _jxl_alpha(bits)
    if turn >= 5 and not is_jpeg:  # a JPEG comes out as it was stored, all else is turned by the decoder
        height, width = width, height
    turn, associated = turn if is_jpeg else 1, alphas[:1] == [1]
    return JxlHeader("jpeg-xl", width, height, turn, animated=animated, depth=depth, associated=associated)


def _jxl_depth(bits: isobmff.Bits) -> int:
    if bits.read(1):  # floating-point numbers
        _jxl_number(bits, (32, 0), (16, 0), (24, 0), (1, 6))
        bits.read(4)
        return 0
    return _jxl_number(bits, (8, 0), (10, 0), (12, 0), (1, 6))


def _jxl_alpha(bits: isobmff.Bits) -> list[int]:
    """Of the next channel that is no color: whether colors are multiplied by it; [] for one that is no alpha."""
    if bits.read(1):
        return [0]
    kind = _jxl_number(bits, (0, 0), (1, 0), (2, 4), (18, 6))
    _jxl_depth(bits)
    _jxl_number(bits, (0, 0), (3, 0), (4, 0), (1, 3))
    bits.read(8 * _jxl_number(bits, (0, 0), (0, 4), (16, 5), (48, 10)))  # its name
    if kind == 4:
        raise BadImage("unsupported-jpeg-xl", "JPEG XL with black ink (CMYK); convert it to PNG or JPEG")
    if kind == 2:  # a spot color
        bits.read(64)
    elif kind == 5:  # a color filter's
        _jxl_number(bits, (1, 0), (0, 2), (3, 4), (19, 8))
    return [bits.read(1)] if kind == 0 else []


def _jxl_size(bits: isobmff.Bits) -> tuple[int, int]:
    small = bits.read(1)

    def side() -> int:
        return 8 * (bits.read(5) + 1) if small else _jxl_number(bits, (1, 9), (1, 13), (1, 18), (1, 30))

    height = side()
    ratio = (None, (1, 1), (12, 10), (4, 3), (3, 2), (16, 9), (5, 4), (2, 1))[bits.read(3)]
    return height, height * ratio[0] // ratio[1] if ratio else side()


def _jxl_number(bits: isobmff.Bits, *choices: tuple[int, int]) -> int:
    """U32 of the specification: one of four offsets and numbers of bits."""
    offset, width = choices[bits.read(2)]
    return offset + bits.read(width)


def decode_jxl(data: bytes, header: JxlHeader, reduction: int = 1) -> Samples:
    """By libjxl; a JPEG that was packed without loss comes out as that JPEG."""
    import imagecodecs
    from pillow_jxl import Decoder

    np.empty(24 * header.height * header.width, np.uint8)  # or MemoryError: the decoder ends the process instead
    is_jpeg, facts, decoded, profile, _ = Decoder(num_threads=0)(data)
    if is_jpeg:
        return jpeg.decode(decoded, jpeg.read_header(decoded))
    pixels = np.frombuffer(decoded, np.uint8)
    if header.animated or header.depth != 8:  # that decoder gives the last frame, and 8 bits of a color
        pixels = imagecodecs.jpegxl_decode(data, index=0, numthreads=1)
    channels = {"I;16": "L", "F": "L"}.get(facts.mode, facts.mode)
    if channels not in ("L", "LA", "RGB", "RGBA") or pixels.size != facts.height * facts.width * len(channels):
        raise BadImage("unsupported-jpeg-xl", f"JPEG XL of mode {facts.mode}; convert it to PNG or JPEG")
    if pixels.dtype.kind == "f":
        pixels = np.rint(np.clip(pixels.astype(np.float32), 0, 1) * 65535).astype(np.uint16)
    note, white = "first frame of an animation" if header.animated else "", (1 << (header.depth or 16)) - 1
    pixels = pixels.reshape(facts.height, facts.width, -1)
    return Samples(pixels, channels, white, header.associated, profile=profile, note=note)
