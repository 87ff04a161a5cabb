"""Writers of what no image library writes: TIFF, PNG, BMP, GIF, WebP and ICC variants, from samples, with struct.

For `image_variants` and the tests. Samples are whole numbers of `bits` bits, [height, width, channels].
"""

from __future__ import annotations

import itertools
import struct
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np


def packed(samples: np.ndarray, bits: int, order: str = ">") -> bytes:
    """Rows of samples [rows, numbers in a row], most significant bit first, each row from a whole byte."""
    if bits in (8, 16, 32):
        return samples.astype(f"{order}u{bits // 8}").tobytes()
    spread = (samples[..., None] >> np.arange(bits - 1, -1, -1)) & 1
    return np.packbits(spread.reshape(len(samples), -1).astype(np.uint8), axis=1).tobytes()


# --- TIFF ---------------------------------------------------------------------------------------------------

_TIFF_TYPES = {1: "B", 3: "H", 4: "I", 5: "I", 7: "B"}
WHITE_IS_ZERO, GRAY, RGB, PALETTE, CMYK, YCBCR, LAB = 0, 1, 2, 3, 5, 6, 8
NONE, LZW, DEFLATE, PACKBITS, OLD_DEFLATE, LZMA, ZSTD = 1, 5, 8, 32773, 32946, 34925, 50000
UNSPECIFIED, ASSOCIATED, STRAIGHT = 0, 1, 2


def tiff(
    samples: np.ndarray,
    photometric: int,
    bits: int = 8,
    *,
    extra: Sequence[int] = (),
    planar: bool = False,
    order: str = "<",
    big: bool = False,
    tile: int = 0,
    rows_per_strip: int = 16,
    compression: int = NONE,
    predictor: bool = False,
    lowest_bit_first: bool = False,
    colors: np.ndarray | None = None,
    tags: Iterable[tuple[int, int, Sequence[float]]] = (),
) -> bytes:
    """A TIFF file of samples [height, width, channels]; floats are stored as such, with 8 * itemsize bits.

    Args:
      tags: more (number, type, values), which replace ours of the same number.
    """
    height, width, channels = samples.shape
    floating = samples.dtype.kind == "f"
    bits = 8 * samples.itemsize if floating else bits
    planes = [samples[..., i : i + 1] for i in range(channels)] if planar else [samples]
    segments = []
    for plane in planes:
        for part in _tiles(plane, tile) if tile else _strips(plane, rows_per_strip):
            if predictor:
                part = np.diff(part, axis=1, prepend=0) % (1 << bits)
            rows = part.reshape(len(part), -1)
            data = rows.astype(f"{order}f{bits // 8}").tobytes() if floating else packed(rows, bits, order)
            if lowest_bit_first:
                data = bytes(int(f"{byte:08b}"[::-1], 2) for byte in data)
            segments.append(_compressed(data, compression))
    entries: dict[int, tuple[int, Sequence[float]]] = {
        256: (4, [width]), 257: (4, [height]), 258: (3, [bits] * channels), 259: (3, [compression]),
        262: (3, [photometric]), 277: (3, [channels]), 284: (3, [2 if planar else 1]),
        317: (3, [2 if predictor else 1]), 339: (3, [3 if floating else 1] * channels),
    }  # fmt: skip
    offset_tag, count_tag = (324, 325) if tile else (273, 279)
    entries |= {322: (3, [tile]), 323: (3, [tile])} if tile else {278: (4, [rows_per_strip])}
    if lowest_bit_first:
        entries[266] = 3, [2]
    if extra:
        entries[338] = 3, extra
    if colors is not None:
        entries[320] = 3, (colors.T * 257).reshape(-1).tolist()
    data, position = b"", 16
    positions = []
    for segment in segments:
        positions.append(position + len(data))
        data += segment + bytes(len(segment) & 1)
    entries |= {offset_tag: (4, positions), count_tag: (4, [len(segment) for segment in segments])}
    entries |= {number: (kind, values) for number, kind, values in tags}
    return _tiff_file(data, {number: entry for number, entry in entries.items() if len(entry[1])}, order, big)


def _strips(plane: np.ndarray, rows: int) -> Iterator[np.ndarray]:
    for top in range(0, len(plane), rows):
        yield plane[top : top + rows]


def _tiles(plane: np.ndarray, side: int) -> Iterator[np.ndarray]:
    height, width = plane.shape[:2]
    plane = np.pad(plane, ((0, -height % side), (0, -width % side), (0, 0)))
    for top, left in itertools.product(range(0, height, side), range(0, width, side)):
        yield plane[top : top + side, left : left + side]


def _compressed(data: bytes, compression: int) -> bytes:
    import imagecodecs

    if compression in (DEFLATE, OLD_DEFLATE):
        return zlib.compress(data)
    encode: dict[int, Callable[..., bytes | bytearray]] = {
        LZW: imagecodecs.lzw_encode,
        PACKBITS: imagecodecs.packbits_encode,
        LZMA: imagecodecs.lzma_encode,
        ZSTD: imagecodecs.zstd_encode,
    }
    return bytes(encode[compression](data)) if compression in encode else data


def _tiff_file(data: bytes, entries: dict[int, tuple[int, Sequence[float]]], order: str, big: bool) -> bytes:
    """Header, image data from byte 16 on, values, directory."""
    mark = {"<": b"II", ">": b"MM"}[order]
    word, long = ("Q", 8) if big else ("I", 4)
    values, directory, start = b"", b"", 16 + len(data)
    for number, (kind, numbers) in sorted(entries.items()):
        fields = [part for value in numbers for part in (round(value * 10_000), 10_000)] if kind == 5 else numbers
        packed = struct.pack(f"{order}{len(fields)}{_TIFF_TYPES[kind]}", *fields)
        if len(packed) <= long:
            where = packed.ljust(long, b"\0")
        else:
            where = struct.pack(order + word, start + len(values))
            values += packed + bytes(-len(packed) % 8)
        directory += struct.pack(f"{order}HH{word}", number, kind, len(numbers)) + where
    count = struct.pack(order + ("Q" if big else "H"), len(entries))
    at = start + len(values)
    header = (mark + struct.pack(f"{order}HHHQ", 43, 8, 0, at)) if big else mark + struct.pack(f"{order}HI", 42, at)
    return header.ljust(16, b"\0") + data + values + count + directory + bytes(long)


# --- PNG ----------------------------------------------------------------------------------------------------

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_ADAM7 = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))


def png(
    samples: np.ndarray,
    color: int,
    bits: int = 8,
    *,
    interlace: bool = False,
    chunks: Iterable[tuple[bytes, bytes]] = (),
) -> bytes:
    """A PNG of samples [height, width, channels]; `chunks` (PLTE, tRNS, …) stand before the data."""
    height, width = samples.shape[:2]
    passes = _ADAM7 if interlace else ((0, 0, 1, 1),)
    data = b""
    for top, left, down, across in passes:
        part = samples[top::down, left::across]
        if part.size:
            rows = np.frombuffer(packed(part.reshape(len(part), -1), bits), np.uint8).reshape(len(part), -1)
            data += np.pad(rows, ((0, 0), (1, 0))).tobytes()
    header = struct.pack(">IIBBBBB", width, height, bits, color, 0, 0, int(interlace))
    everything = [(b"IHDR", header), *chunks, (b"IDAT", zlib.compress(data)), (b"IEND", b"")]
    return _PNG_SIGNATURE + b"".join(png_chunk(*chunk) for chunk in everything)


def png_chunk(kind: bytes, body: bytes) -> bytes:
    """Length, kind, body, checksum."""
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


# --- BMP ----------------------------------------------------------------------------------------------------


def bmp(
    data: bytes, size: tuple[int, int], bits: int, *, header: int = 40, compression: int = 0,
    colors: np.ndarray | None = None, masks: Sequence[int] = (), top_down: bool = False, used: int = 0,
) -> bytes:  # fmt: skip
    """A BMP of packed rows, the first on top, for (height, width) pixels; run-length codes are stored as they are.

    `header` is the length of its second header: 12, 16, 40, 52, 56, 64, 108 or 124.
    """
    height, width = size
    if compression in (0, 3):
        rows = np.frombuffer(data, np.uint8).reshape(height, -1)
        rows = np.pad(rows, ((0, 0), (0, -rows.shape[1] % 4)))
        data = (rows if top_down else rows[::-1]).tobytes()
    if header == 12:
        info = struct.pack("<IHHHH", 12, width, height, 1, bits)
    else:
        high = -height if top_down else height
        info = struct.pack("<IiiHHIIiiII", header, width, high, 1, bits, compression, len(data), 2835, 2835, used, 0)
        info = info.ljust(40) + struct.pack(f"<{len(masks)}I", *masks)
        info = info if header == 40 else info[:header].ljust(header, b"\0")
    palette = b""
    if colors is not None:
        bgr = colors[:, ::-1].astype(np.uint8)
        palette = (bgr if header == 12 else np.pad(bgr, ((0, 0), (0, 1)))).tobytes()
    start = 14 + len(info) + len(palette)
    return b"BM" + struct.pack("<IHHI", start + len(data), 0, 0, start) + info + palette + data


def run_lengths(row: np.ndarray, bits: int) -> bytes:
    """Runs for the first half of a row, literal pixels for the rest."""
    half, coded = len(row) // 2, b""
    for value, run in itertools.groupby(row[:half].tolist()):
        coded += bytes([len(list(run)), value if bits == 8 else value << 4 | value])
    rest = row[half:]
    literal = packed(rest[None], bits)
    return coded + bytes([0, len(rest)]) + literal + bytes(len(literal) & 1)


# --- GIF ----------------------------------------------------------------------------------------------------


def gif(
    index: np.ndarray, colors: np.ndarray, *, version: bytes = b"89a", screen: tuple[int, int] | None = None,
    offset: tuple[int, int] = (0, 0), interlace: bool = False, local: bool = False, key: int | None = None,
    disposal: int = 0, more: bytes = b"",
) -> bytes:  # fmt: skip
    """A GIF whose first frame is `index` with `colors`, on a screen of (height, width), at (top, left).

    The LZW codes are plain ones: a clear code before the table could grow.
    """
    height, width = index.shape
    bits = max(2, int(len(colors) - 1).bit_length())
    table = np.pad(colors, ((0, (1 << bits) - len(colors)), (0, 0))).astype(np.uint8).tobytes()
    rows = np.concatenate([np.arange(start, height, step) for start, step in ((0, 8), (4, 8), (2, 4), (1, 2))])
    data = _lzw((index[rows] if interlace else index).reshape(-1), bits)
    blocks = b"".join(bytes([len(data[i : i + 255])]) + data[i : i + 255] for i in range(0, len(data), 255)) + b"\0"
    size = screen or index.shape
    head = b"GIF" + version + struct.pack("<HHBBB", size[1], size[0], 0 if local else 0x80 | bits - 1, 0, 0)
    control = b""
    if version == b"89a":
        control = b"!\xf9\4" + struct.pack("<BHBB", disposal << 2 | (key is not None), 0, key or 0, 0)
    flags = (0x80 | bits - 1 if local else 0) | (0x40 if interlace else 0)
    image = b"," + struct.pack("<HHHHB", offset[1], offset[0], width, height, flags)
    tables = (b"", table) if local else (table, b"")
    return head + tables[0] + control + image + tables[1] + bytes([bits]) + blocks + more + b";"


def _lzw(pixels: np.ndarray, bits: int) -> bytes:
    """GIF's LZW without compression: a clear code before every 2**(bits - 1) - 1 pixels keeps the width of codes."""
    clear, run = 1 << bits, (1 << bits) - 2
    codes: list[int] = []
    for start in range(0, len(pixels), run):
        codes += [clear, *pixels[start : start + run].tolist()]
    spread = (np.array([*codes, clear + 1])[:, None] >> np.arange(bits + 1)) & 1
    return np.packbits(spread.reshape(-1).astype(np.uint8), bitorder="little").tobytes()


# --- WebP ---------------------------------------------------------------------------------------------------


def webp_of(image: bytes, size: tuple[int, int], flags: int, chunks: Iterable[tuple[bytes, bytes]]) -> bytes:
    """A file of the extended kind: the chunk of an image of (height, width), and more chunks after it."""
    body = _webp_chunk(b"VP8X", bytes([flags, 0, 0, 0]) + _uint24(size[1] - 1) + _uint24(size[0] - 1)) + image
    body += b"".join(_webp_chunk(*chunk) for chunk in chunks)
    return b"RIFF" + struct.pack("<I", 4 + len(body)) + b"WEBP" + body


def _webp_chunk(kind: bytes, body: bytes) -> bytes:
    return kind + struct.pack("<I", len(body)) + body + bytes(len(body) & 1)


def _uint24(number: int) -> bytes:
    return number.to_bytes(3, "little")


def webp_frames(still: bytes, size: tuple[int, int], canvas: tuple[int, int], offset: tuple[int, int]) -> bytes:
    """An animation of two frames, each `still` of (height, width) at an even (top, left) of a canvas."""
    height, width = size
    place = b"".join(map(_uint24, (offset[1] // 2, offset[0] // 2, width - 1, height - 1, 100)))
    image = still[12:]
    if image[:4] == b"VP8X":
        image = image[18:]
    frame = (b"ANMF", place + b"\0" + image)
    return webp_of(b"", canvas, 0x12, [(b"ANIM", bytes([0, 0, 0, 255, 0, 0])), frame, frame])


# --- ICC profiles -----------------------------------------------------------------------------------------

_BRADFORD = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])
D50, D65 = np.array([0.9642, 1.0, 0.8249]), np.array([0.9505, 1.0, 1.0890])


def rgb_to_xyz(primaries: Sequence[tuple[float, float]], white: np.ndarray = D65) -> np.ndarray:
    """Linear RGB with these chromaticities to XYZ as ICC profiles have it, relative to D50 (Bradford)."""
    xyz = np.array([[x / y, 1.0, (1 - x - y) / y] for x, y in primaries]).T
    xyz = xyz * np.linalg.solve(xyz, white)
    adapted = np.linalg.inv(_BRADFORD) @ np.diag(_BRADFORD @ D50 / (_BRADFORD @ white)) @ _BRADFORD
    return np.asarray(adapted @ xyz)


def icc_profile(name: str, matrix: np.ndarray, gamma: float | Sequence[float]) -> bytes:
    """A version 2 display profile: three columns of XYZ and one curve, a power or a table from 0 to 1."""
    tags = {b"desc": _icc_text(name), b"wtpt": _icc_xyz(D50)}
    tags |= {b"%cXYZ" % color: _icc_xyz(matrix[:, i]) for i, color in enumerate(b"rgb")}
    tags |= {b"%cTRC" % color: _icc_curve(gamma) for color in b"rgb"}
    return _icc_file(b"mntr", b"RGB ", b"XYZ ", tags)


def icc_gray_profile(name: str, gamma: float) -> bytes:
    """A version 2 profile of gray with a power curve."""
    tags = {b"desc": _icc_text(name), b"wtpt": _icc_xyz(D50), b"kTRC": _icc_curve(gamma)}
    return _icc_file(b"mntr", b"GRAY", b"XYZ ", tags)


def icc_cmyk_profile(name: str, lab: np.ndarray) -> bytes:
    """A version 2 printer profile from the Lab values of all 16 mixtures of no and full ink: [2, 2, 2, 2, 3]."""
    coded = np.rint(lab * (2.55, 1, 1) + (0, 128, 128)).astype(np.uint8).tobytes()
    identity = bytes(range(256))
    table = b"mft1" + bytes(4) + bytes([4, 3, 2, 0]) + struct.pack(">9i", *(np.eye(3, dtype=int).reshape(-1) << 16))
    tags = {b"desc": _icc_text(name), b"wtpt": _icc_xyz(D50), b"A2B0": table + identity * 4 + coded + identity * 3}
    return _icc_file(b"prtr", b"CMYK", b"Lab ", tags)


def _icc_text(text: str) -> bytes:
    return b"desc" + bytes(4) + struct.pack(">I", len(text) + 1) + text.encode() + bytes(1 + 8 + 70)


def _icc_xyz(xyz: np.ndarray) -> bytes:
    return b"XYZ " + bytes(4) + struct.pack(">3i", *np.rint(xyz * 65536).astype(int))


def _icc_curve(gamma: float | Sequence[float]) -> bytes:
    numbers = [round(gamma * 256)] if isinstance(gamma, float) else [round(level * 65535) for level in gamma]
    return b"curv" + bytes(4) + struct.pack(f">I{len(numbers)}H", len(numbers), *numbers)


def _icc_file(kind: bytes, space: bytes, connection: bytes, tags: dict[bytes, bytes]) -> bytes:
    start = 128 + 4 + 12 * len(tags)
    table, body = struct.pack(">I", len(tags)), b""
    for name, data in tags.items():
        body += bytes(-len(body) % 4)
        table += struct.pack(">4sII", name, start + len(body), len(data))
        body += data
    head = struct.pack(">I4xI4s4s4s", start + len(body), 0x02400000, kind, space, connection)
    head += bytes(12) + b"acsp" + bytes(28) + struct.pack(">3i", *np.rint(D50 * 65536).astype(int))
    return head.ljust(128, b"\0") + table + body
