"""Sound images in every variant of their formats, crafted with struct and codecs, each with its true pixels.

    variants()      format x bits x photometric x planes x alpha x header version, profiles and orientations, as cases

No image library writes most of these, and decoders that guess get them wrong in silence. The truth is what went in.
"""

from __future__ import annotations

import base64
import io
import itertools
import struct
import zlib
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache, partial
from typing import Any

import numpy as np

from shardline.tools import image_writers as w
from shardline.tools.image_writers import bmp, gif, packed, png, tiff
from shardline.tools.malformed_images import Case, reference_image

HEIGHT, WIDTH = 41, 59  # odd, and no multiple of a byte, a tile or a chroma block
SIZE = HEIGHT, WIDTH
WHITE = 255


def variants() -> list[Case]:
    """Every variant, by format."""
    kinds = (_tiff_samples, _tiff_alphas, _tiff_layouts, _tiff_compressions, _tiff_refused, _png_samples, _png_palettes,
             _png_others, _bmp_headers, _bmp_masks, _bmp_run_lengths, _gifs, _pnms, _webps, _jpegs, _jpeg2000s,
             _jpeg2000_spaces, _avifs, _heics, _jpeg_xls, _sloppy_exifs, _other_orientations,
             _profiles, _gray_and_cmyk_profiles)  # fmt: skip
    return [case for kind in kinds for case in kind()]


# --- The image, and what a variant can keep of it ---------------------------------------------------------


@lru_cache(1)
def _rgb() -> np.ndarray:
    return reference_image(HEIGHT, WIDTH)


@lru_cache(1)
def _gray() -> np.ndarray:
    return np.rint(_rgb() @ (0.299, 0.587, 0.114)).astype(np.uint8)


@lru_cache(1)
def _gray_rgb() -> np.ndarray:
    return _shown(_gray(), 8)


@lru_cache(1)
def _alpha() -> np.ndarray:
    """A third transparent, a sixth half transparent."""
    alpha = np.full(SIZE, WHITE, np.uint8)
    alpha[: HEIGHT // 3], alpha[HEIGHT // 3 : HEIGHT // 2] = 0, 128
    return alpha


def _quantized(samples: np.ndarray, bits: int) -> np.ndarray:
    """0..255 as whole numbers of so many bits."""
    return np.rint(samples.astype(float) * ((1 << bits) - 1) / WHITE).astype(np.int64)


def _shown(levels: np.ndarray, bits: int) -> np.ndarray:
    """What such numbers look like, in levels of 255; gray as RGB."""
    shown = np.rint(levels * (WHITE / ((1 << bits) - 1))).astype(np.uint8)
    return np.repeat(shown[..., None], 3, axis=2) if shown.ndim == 2 else shown


def over_white(rgb: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Straight alpha blended over white."""
    share = alpha[..., None] / WHITE
    return np.rint(rgb * share + WHITE * (1 - share)).astype(np.uint8)


def turned(stored: np.ndarray, orientation: int) -> np.ndarray:
    """What was seen, for an EXIF orientation from 1 to 8."""
    if orientation >= 5:
        stored = stored.swapaxes(0, 1)
    rows = -1 if orientation in (3, 4, 7, 8) else 1
    columns = -1 if orientation in (2, 3, 6, 7) else 1
    return stored[::rows, ::columns]


def _palette(bits: int) -> tuple[np.ndarray, np.ndarray]:
    """Indexes [height, width] and colors [2**bits, 3]."""
    colors = np.random.default_rng(bits).integers(0, 256, (1 << bits, 3))
    colors[:2] = (200, 40, 40), (40, 50, 190)
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    return (rows // 5 + columns // 3) % (1 << bits), colors


def _looked_up(index: np.ndarray, colors: np.ndarray) -> np.ndarray:
    return np.asarray(colors[index], np.uint8)


# --- TIFF -------------------------------------------------------------------------------------------------


def _tiff_samples() -> Iterator[Case]:
    """Bits x photometric x planes."""
    for bits in (1, 2, 4, 6, 8, 12, 16):
        gray, rgb, white = _quantized(_gray(), bits)[..., None], _quantized(_rgb(), bits), (1 << bits) - 1
        truth, name = _shown(gray[..., 0], bits), f"{bits}-bit.tif"
        yield Case(f"gray-{name}", tiff(gray, w.GRAY, bits), rgb=truth)
        yield Case(f"gray-white-is-zero-{name}", tiff(white - gray, w.WHITE_IS_ZERO, bits), rgb=truth)
        yield Case(f"rgb-{name}", tiff(rgb, w.RGB, bits), rgb=_shown(rgb, bits))
        yield Case(f"rgb-planes-{name}", tiff(rgb, w.RGB, bits, planar=True), rgb=_shown(rgb, bits))
        if bits <= 8:
            index, colors = _palette(bits)
            data = tiff(index[..., None], w.PALETTE, bits, colors=colors)
            yield Case(f"palette-{name}", data, rgb=_looked_up(index, colors))
    index, colors = _palette(8)
    data = tiff(index[..., None], w.PALETTE, tags=[(320, 3, colors.T.reshape(-1).tolist())])
    yield Case("palette-of-8-bit-colors.tif", data, rgb=_looked_up(index, colors))
    for bits, planar in itertools.product((8, 16), (False, True)):
        data = tiff(_quantized(_cmyk(), bits), w.CMYK, bits, planar=planar)
        yield Case(f"cmyk-{'planes-' if planar else ''}{bits}-bit.tif", data, rgb=_rgb())
    told = [(529, 5, [0.299, 0.587, 0.114]), (532, 5, [0.0, 255, 128, 255, 128, 255])]
    for name, more in (("ycbcr", 0), ("ycbcr-told", 2)):
        data = tiff(_ycbcr(_rgb()), w.YCBCR, tags=[(530, 3, (1, 1)), *told[:more]])
        yield Case(f"{name}.tif", data, rgb=_rgb(), tolerance=1.5)


def _cmyk() -> np.ndarray:
    """Ink levels of the image, half of what is common to all inks as black."""
    ink = WHITE - _rgb().astype(float)
    black = ink.min(axis=2, keepdims=True) * 0.5
    return np.dstack([WHITE - WHITE * (WHITE - ink) / (WHITE - black), black])


def _ycbcr(rgb: np.ndarray) -> np.ndarray:
    matrix = np.array([[0.299, 0.587, 0.114], [-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]])
    return np.asarray(np.clip(np.rint(rgb @ matrix.T + (0, 128, 128)), 0, WHITE), np.int64)


def _tiff_alphas() -> Iterator[Case]:
    """Kinds of extra samples x bits x planes x what they are beside."""
    kinds = ((w.UNSPECIFIED, "unspecified"), (w.ASSOCIATED, "associated"), (w.STRAIGHT, "straight"))
    for bits, (kind, name), planar in itertools.product((8, 16), kinds, (False, True)):
        share = _alpha()[..., None] / WHITE if kind == w.ASSOCIATED else 1.0
        fourth = _quantized(_gray() if kind == w.UNSPECIFIED else _alpha(), bits)
        alpha = np.full_like(_alpha(), WHITE) if kind == w.UNSPECIFIED else _alpha()
        note = "unspecified" if kind == w.UNSPECIFIED else ""
        tail = f"{name}{'-planes' if planar else ''}-{bits}-bit.tif"
        rgb, gray = _quantized(_rgb() * share, bits), _quantized(_gray()[..., None] * share, bits)
        data = tiff(np.dstack([rgb, fourth]), w.RGB, bits, extra=[kind], planar=planar)
        yield Case(f"rgb-{tail}", data, note=note, rgb=over_white(_rgb(), alpha))
        data = tiff(np.dstack([gray, fourth]), w.GRAY, bits, extra=[kind], planar=planar)
        yield Case(f"gray-{tail}", data, note=note, rgb=over_white(_gray_rgb(), alpha))
    infrared, alpha, shown = _gray(), _alpha(), over_white(_rgb(), _alpha())
    data = tiff(np.dstack([_rgb(), infrared, infrared]), w.RGB, extra=[0, 0])
    yield Case("rgb-and-two-bands.tif", data, note="2 unspecified bands", rgb=_rgb())
    yield Case("rgb-band-and-alpha.tif", tiff(np.dstack([_rgb(), infrared, alpha]), w.RGB, extra=[0, 2]), rgb=shown)
    data = tiff(np.dstack([_rgb(), infrared]), w.RGB)
    yield Case("four-samples-without-extra.tif", data, note="unspecified", rgb=_rgb())
    index, colors = _palette(8)
    data = tiff(np.dstack([index, alpha]), w.PALETTE, extra=[2], colors=colors)
    yield Case("palette-and-alpha.tif", data, rgb=over_white(colors[index], alpha))
    data = tiff(np.dstack([WHITE - _gray(), alpha]), w.WHITE_IS_ZERO, extra=[2])
    yield Case("white-is-zero-and-alpha.tif", data, rgb=over_white(_gray_rgb(), alpha))
    data = tiff(np.dstack([_quantized(_cmyk(), 8), alpha]), w.CMYK, extra=[2])
    yield Case("cmyk-and-alpha.tif", data, rgb=shown)


def _tiff_layouts() -> Iterator[Case]:
    """Byte order x header x strips or tiles x planes; orientations."""
    rgb16 = _quantized(_rgb(), 16)
    for order, big, tile, planar in itertools.product("<>", (False, True), (0, 16), (False, True)):
        name = "-".join(["little" if order == "<" else "big", "bigtiff" if big else "classic",
                         "tiles" if tile else "strips", *(["planes"] if planar else [])])  # fmt: skip
        data = tiff(rgb16, w.RGB, 16, order=order, big=big, tile=tile, planar=planar)
        yield Case(f"{name}.tif", data, rgb=_rgb())
    for orientation in range(1, 9):
        data = tiff(rgb16, w.RGB, 16, tags=[(274, 3, [orientation])])
        yield Case(f"orientation-{orientation}-16-bit.tif", data, rgb=turned(_rgb(), orientation))
    one_bit = _quantized(_gray(), 1)
    data = tiff(one_bit[..., None], w.GRAY, 1, lowest_bit_first=True)
    yield Case("lowest-bit-first.tif", data, rgb=_shown(one_bit, 1))
    for name, scheme, rows in (("plain", w.NONE, 16), ("lzw", w.LZW, HEIGHT), ("deflate", w.DEFLATE, HEIGHT)):
        for what, sizes in (("zero", [0] * -(-HEIGHT // rows)), ("no", [])):
            data = tiff(_rgb(), w.RGB, rows_per_strip=rows, compression=scheme, tags=[(279, 4, sizes)])
            yield Case(f"{what}-byte-counts-{name}.tif", data, rgb=_rgb())
    large = [(279, 4, [16 * WIDTH * 3, 16 * WIDTH * 3, 99_999])]
    yield Case("byte-count-beyond-the-end.tif", tiff(_rgb(), w.RGB, tags=large), rgb=_rgb())
    yield Case("differences-that-are-none.tif", tiff(_rgb(), w.RGB, tags=[(317, 3, [2])]), rgb=_rgb())
    yield Case("undefined-samples.tif", tiff(_rgb(), w.RGB, tags=[(339, 3, [4, 4, 4])]), rgb=_rgb())
    yield Case("rgb-that-is-not-told.tif", tiff(_rgb(), w.RGB, tags=[(262, 3, [])]), rgb=_rgb())
    data = tiff(_gray()[..., None], w.GRAY, tags=[(262, 3, [])])
    yield Case("gray-that-is-not-told.tif", data, rgb=_gray_rgb())
    yield Case("planes-0.tif", tiff(_rgb(), w.RGB, tags=[(284, 3, [0])]), rgb=_rgb())


def _tiff_compressions() -> Iterator[Case]:
    schemes = {"lzw": w.LZW, "deflate": w.DEFLATE, "packbits": w.PACKBITS, "old-deflate": w.OLD_DEFLATE, "zstd": w.ZSTD,
               "lzma": w.LZMA}  # fmt: skip
    for (name, scheme), bits in itertools.product(schemes.items(), (1, 12, 16)):
        rgb = _quantized(_rgb(), bits)
        yield Case(f"{name}-{bits}-bit.tif", tiff(rgb, w.RGB, bits, compression=scheme), rgb=_shown(rgb, bits))
    for name, bits, tile in itertools.product(("lzw", "deflate"), (8, 16), (0, 16)):
        data = tiff(_quantized(_rgb(), bits), w.RGB, bits, compression=schemes[name], predictor=True, tile=tile)
        yield Case(f"predictor-{name}-{bits}-bit{'-tiles' if tile else ''}.tif", data, rgb=_rgb())
    image = _pillow(_rgb())
    bitmap = image.convert("1")
    for name in ("group3", "group4", "tiff_ccitt"):
        yield Case(f"{name}.tif", _saved(bitmap, "TIFF", compression=name), rgb=np.asarray(bitmap.convert("RGB")))
    for mode in ("RGB", "YCbCr", "L", "CMYK"):
        data = _saved(image.convert(mode), "TIFF", compression="jpeg", quality=95)
        truth = np.asarray(image.convert(mode).convert("RGB"))
        yield Case(f"jpeg-{mode}.tif", data, rgb=truth, tolerance=4)


def _pillow(rgb: np.ndarray) -> Any:
    from PIL import Image

    return Image.fromarray(rgb)


def _saved(image: Any, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def _tiff_refused() -> Iterator[Case]:
    """Sound, but with no meaning as an image that we could be sure of: refused by name."""
    gray, reason = _gray()[..., None], "unsupported-tiff"
    for bits in (16, 32, 64):
        yield Case(f"float-{bits}-bit.tif", tiff((gray / WHITE).astype(f"f{bits // 8}"), w.GRAY), reason)
    yield Case("32-bit.tif", tiff(_quantized(gray, 31), w.GRAY, 32), reason)
    yield Case("signed-16-bit.tif", tiff(gray.astype(np.int64), w.GRAY, 16, tags=[(339, 3, [2])]), reason)
    yield Case("lab.tif", tiff(_rgb().astype(np.int64), w.LAB), reason)
    yield Case("seven-bands.tif", tiff(np.dstack([_rgb(), _rgb(), gray]), w.GRAY, extra=[0] * 6), reason)
    yield Case("two-inks.tif", tiff(np.dstack([gray, gray]), w.CMYK), reason)
    yield Case("other-inks.tif", tiff(_quantized(_cmyk(), 8), w.CMYK, tags=[(332, 3, [2])]), reason)
    yield Case("subsampled-ycbcr.tif", tiff(_ycbcr(_rgb()), w.YCBCR, tags=[(530, 3, (2, 2))]), reason)
    for name, tag in (("other-coefficients", (529, 5, [0.2126, 0.7152, 0.0722])),
                      ("other-ranges", (532, 5, [16, 235, 128, 240, 128, 240]))):  # fmt: skip
        yield Case(f"ycbcr-of-{name}.tif", tiff(_ycbcr(_rgb()), w.YCBCR, tags=[(530, 3, (1, 1)), tag]), reason)
    yield Case("no-byte-counts-packbits.tif", tiff(gray, w.GRAY, compression=w.PACKBITS, tags=[(279, 4, [])]), reason)
    data = tiff(_quantized(gray, 12), w.GRAY, 12, compression=w.LZW, predictor=True)
    yield Case("differences-of-12-bits.tif", data, reason)
    yield Case("unknown-compression.tif", tiff(gray, w.GRAY, tags=[(259, 3, [34676])]), reason)
    yield Case("small-copy-first.tif", tiff(gray, w.GRAY, tags=[(254, 4, [1])]), reason)
    yield Case("small-copy-first-as-of-old.tif", tiff(gray, w.GRAY, tags=[(255, 3, [2])]), reason)
    yield Case("jpeg-planes.tif", tiff(_rgb(), w.RGB, planar=True, tags=[(259, 3, [7])]), reason)
    yield Case("sensor.tif", tiff(gray, w.GRAY, tags=[(262, 3, [32803])]), "unsupported-raw")
    yield Case("preview-first.nef", tiff(gray, w.GRAY, tags=[(254, 4, [1]), (330, 4, [8])]), "unsupported-raw")


# --- PNG --------------------------------------------------------------------------------------------------


def _png_samples() -> Iterator[Case]:
    """Color type x bits x interlace x transparent color."""
    for interlace, bits in itertools.product((False, True), (1, 2, 4, 8, 16)):
        tail = f"{bits}-bit{'-interlaced' if interlace else ''}.png"
        gray = _quantized(_gray(), bits)
        yield Case(f"gray-{tail}", png(gray[..., None], 0, bits, interlace=interlace), rgb=_shown(gray, bits))
        key = int(gray[0, 0])
        data = png(gray[..., None], 0, bits, interlace=interlace, chunks=[(b"tRNS", struct.pack(">H", key))])
        shown = np.where(gray[..., None] == key, WHITE, _shown(gray, bits)).astype(np.uint8)
        yield Case(f"gray-key-{tail}", data, rgb=shown)
        if bits < 8:
            continue
        rgb, alpha = _quantized(_rgb(), bits), _quantized(_alpha(), bits)
        yield Case(f"rgb-{tail}", png(rgb, 2, bits, interlace=interlace), rgb=_rgb())
        flat = np.where((rgb[..., :1] > rgb[..., 1:2]), np.array(rgb[0, 0]), rgb)
        key_chunk = (b"tRNS", struct.pack(">3H", *rgb[0, 0].tolist()))
        data = png(flat, 2, bits, interlace=interlace, chunks=[key_chunk])
        shown = np.where((flat == rgb[0, 0]).all(axis=2, keepdims=True), WHITE, _shown(flat, bits)).astype(np.uint8)
        yield Case(f"rgb-key-{tail}", data, rgb=shown)
        data = png(np.dstack([_quantized(_gray(), bits), alpha]), 4, bits, interlace=interlace)
        yield Case(f"gray-alpha-{tail}", data, rgb=over_white(_gray_rgb(), _alpha()))
        data = png(np.dstack([rgb, alpha]), 6, bits, interlace=interlace)
        yield Case(f"rgb-alpha-{tail}", data, rgb=over_white(_rgb(), _alpha()))


def _png_palettes() -> Iterator[Case]:
    """Palette bits x interlace x transparent colors."""
    for interlace, bits in itertools.product((False, True), (1, 2, 4, 8)):
        tail = f"{bits}-bit{'-interlaced' if interlace else ''}.png"
        index, colors = _palette(bits)
        palette = (b"PLTE", colors.astype(np.uint8).tobytes())
        data = png(index[..., None], 3, bits, interlace=interlace, chunks=[palette])
        yield Case(f"palette-{tail}", data, rgb=_looked_up(index, colors))
        opacity = np.array([0, 128], np.uint8)
        transparent = (b"tRNS", opacity.tobytes())
        data = png(index[..., None], 3, bits, interlace=interlace, chunks=[palette, transparent])
        opacity = np.append(opacity, np.full(255, WHITE, np.uint8))
        yield Case(f"palette-alpha-{tail}", data, rgb=over_white(colors[index], opacity[index]))


def _png_others() -> Iterator[Case]:
    """Chunks that decoders may act on, though the pixels do not depend on them."""
    alpha = np.dstack([_rgb(), _alpha()])
    background = (b"bKGD", struct.pack(">3H", 255, 0, 0))
    yield Case("background-color.png", png(alpha, 6, chunks=[background]), rgb=over_white(_rgb(), _alpha()))
    suggested = (b"PLTE", bytes(range(48)))
    yield Case("rgb-with-palette.png", png(_rgb(), 2, chunks=[suggested]), rgb=_rgb())
    gray = _gray()
    high = (b"tRNS", struct.pack(">H", 0x700 | int(gray[0, 0])))  # of which 8 bits count
    shown = np.where(gray[..., None] == gray[0, 0], WHITE, _gray_rgb()).astype(np.uint8)
    yield Case("gray-key-of-more-bits.png", png(gray[..., None], 0, chunks=[high]), rgb=shown)
    significant = (b"sBIT", bytes([5, 6, 5]))
    yield Case("significant-bits.png", png(_rgb(), 2, chunks=[significant]), rgb=_rgb())
    frame = struct.pack(">IIIIIHHBB", 0, WIDTH, HEIGHT, 0, 0, 1, 10, 0, 0)
    animated = [(b"acTL", struct.pack(">II", 2, 0)), (b"fcTL", frame)]
    yield Case("animated-default-image.png", png(_rgb(), 2, chunks=animated), note="first frame of 2", rgb=_rgb())
    whole = png(_rgb(), 2)
    for name, left in (("no-end", -12), ("half-an-end", -4)):
        yield Case(f"{name}.png", whole[:left], rgb=_rgb())
        dressed = png(_rgb(), 2, chunks=[(b"tEXt", b"Comment\0x")])
        yield Case(f"{name}-after-text.png", dressed[:left], rgb=_rgb())
    common = png(alpha, 6)
    apple = common[:8] + w.png_chunk(b"CgBI", b"\x50\0\x20\6") + common[8:]
    yield Case("apple-devices.png", apple, "unsupported-png", rgb=_rgb())


# --- BMP --------------------------------------------------------------------------------------------------


def _bmp_headers() -> Iterator[Case]:
    rgb, bgr = _rgb(), _rgb()[..., ::-1].tobytes()
    for header in (12, 16, 40, 52, 56, 64, 108, 124):
        reason = "unsupported-bmp" if header == 16 else ""
        for bits in (1, 4, 8):
            index, colors = _palette(bits)
            data = bmp(packed(index, bits), SIZE, bits, header=header, colors=colors)
            yield Case(f"header-{header}-palette-{bits}-bit.bmp", data, reason, rgb=_looked_up(index, colors))
        yield Case(f"header-{header}-24-bit.bmp", bmp(bgr, SIZE, 24, header=header), reason, rgb=rgb)
    index, colors = _palette(4)
    few = bmp(packed(index % 5, 8), SIZE, 8, colors=colors[:5], used=5)
    yield Case("palette-of-5-colors.bmp", few, rgb=_looked_up(index % 5, colors))
    beyond = np.where(_alpha() == 0, 200, index % 5)
    few = bmp(packed(beyond, 8), SIZE, 8, colors=colors[:5], used=5)
    shown = np.where((beyond == 200)[..., None], 0, _looked_up(index % 5, colors)).astype(np.uint8)
    yield Case("number-beyond-the-palette.bmp", few, rgb=shown)
    gray = bmp(_gray().tobytes(), SIZE, 8, colors=np.repeat(np.arange(256)[:, None], 3, axis=1))
    yield Case("gray-palette.bmp", gray, rgb=_gray_rgb())
    one_bit = _quantized(_gray(), 1)
    white_first = bmp(packed(one_bit, 1), SIZE, 1, colors=np.array([[WHITE] * 3, [0] * 3]))
    yield Case("1-bit-white-first.bmp", white_first, rgb=WHITE - _shown(one_bit, 1))
    yield Case("top-down.bmp", bmp(bgr, SIZE, 24, top_down=True), rgb=rgb)


def _bmp_masks() -> Iterator[Case]:
    """Bits and places of the colors x what the fourth byte holds."""
    rgb, alpha = _rgb(), _alpha()
    fives, words = {"555": (5, 5, 5), "565": (5, 6, 5), "444": (4, 4, 4), "10-10-10": (10, 10, 10)}, {}
    for name, sizes in fives.items():
        shifts = (sizes[1] + sizes[2], sizes[2], 0)
        levels = [_quantized(rgb[..., i], sizes[i]) for i in range(3)]
        words[name] = levels[0] << shifts[0] | levels[1] << shifts[1] | levels[2]
        masks = [((1 << size) - 1) << shift for size, shift in zip(sizes, shifts, strict=True)]
        shown = np.dstack([_shown(level, size)[..., 0] for level, size in zip(levels, sizes, strict=True)])
        bits = 32 if sizes[0] == 10 else 16
        data = bmp(words[name].astype(f"<u{bits // 8}").tobytes(), SIZE, bits, compression=3, masks=masks)
        yield Case(f"masks-{name}.bmp", data, "" if sizes[0] == 5 else "unsupported-bmp", rgb=shown)
    levels5 = np.dstack([_shown(_quantized(rgb[..., i], 5), 5)[..., 0] for i in range(3)])
    for name, opaque, shown in (("real", alpha > 100, over_white(levels5, np.where(alpha > 100, WHITE, 0))),
                                ("empty", np.zeros(SIZE, int), levels5)):  # fmt: skip
        word = (words["555"] | opaque.astype(int) << 15).astype("<u2")
        data = bmp(word.tobytes(), SIZE, 16, header=108, compression=3, masks=[0x7C00, 0x3E0, 0x1F, 0x8000])
        yield Case(f"masks-1555-alpha-{name}.bmp", data, rgb=shown)
    yield Case("16-bit.bmp", bmp(words["555"].astype("<u2").tobytes(), SIZE, 16), rgb=levels5)
    bgrx = [0xFF0000, 0xFF00, 0xFF]
    fourths = (("zero", np.zeros_like(alpha), rgb), ("full", np.full_like(alpha, WHITE), rgb),
               ("real", alpha, over_white(rgb, alpha)))  # fmt: skip
    for name, fourth, shown in fourths:
        data = np.dstack([rgb[..., ::-1], fourth]).tobytes()
        yield Case(f"32-bit-fourth-{name}.bmp", bmp(data, SIZE, 32), rgb=rgb)
        yield Case(f"32-bit-masks-fourth-{name}.bmp", bmp(data, SIZE, 32, compression=3, masks=bgrx), rgb=rgb)
        for header in (56, 108, 124):
            with_alpha = bmp(data, SIZE, 32, header=header, compression=3, masks=[*bgrx, 0xFF000000])
            yield Case(f"header-{header}-alpha-{name}.bmp", with_alpha, rgb=shown)
        data = np.dstack([rgb, fourth]).tobytes()
        data = bmp(data, SIZE, 32, header=108, compression=3, masks=[0xFF, 0xFF00, 0xFF0000, 0xFF000000])
        yield Case(f"rgba-masks-alpha-{name}.bmp", data, rgb=shown)


def _bmp_run_lengths() -> Iterator[Case]:
    index, colors = _palette(4)
    for bits, compression in ((8, 1), (4, 2)):
        coded = b"".join(w.run_lengths(row, bits) + b"\0\0" for row in index[::-1]) + b"\0\1"
        data = bmp(coded, SIZE, bits, compression=compression, colors=colors)
        yield Case(f"rle{bits}.bmp", data, rgb=_looked_up(index, colors))
        half = b"".join(w.run_lengths(row, bits) + b"\0\0" for row in index[HEIGHT // 2 :][::-1]) + b"\0\1"
        below = np.where(np.arange(HEIGHT)[:, None] < HEIGHT // 2, 0, index)
        for name, padding in (("", 0), ("-and-is-padded", 2)):
            data = bmp(half + bytes(padding), SIZE, bits, compression=compression, colors=colors)
            yield Case(f"rle{bits}-that-ends-early{name}.bmp", data, rgb=_looked_up(below, colors))


# --- GIF, PNM, WebP ---------------------------------------------------------------------------------------


def _framed(rgb: np.ndarray, color: Sequence[int] = (WHITE, WHITE, WHITE)) -> np.ndarray:
    """On a larger canvas, 4 rows down and 6 columns in."""
    canvas = np.empty((HEIGHT + 9, WIDTH + 8, 3), np.uint8)
    canvas[:] = color
    canvas[4 : 4 + HEIGHT, 6 : 6 + WIDTH] = rgb
    return canvas


def _gifs() -> Iterator[Case]:
    for bits in (1, 2, 4, 8):
        index, colors = _palette(bits)
        yield Case(f"{1 << bits}-colors.gif", gif(index, colors), rgb=_looked_up(index, colors))
    index, colors = _palette(4)
    shown = _looked_up(index, colors)
    keyed = np.where(index[..., None] == 3, WHITE, shown).astype(np.uint8)
    yield Case("87a.gif", gif(index, colors, version=b"87a"), rgb=shown)
    yield Case("bytes-between-blocks.gif", gif(index, colors)[:-1] + b"\0\0;", rgb=shown)
    yield Case("no-trailer.gif", gif(index, colors)[:-1], rgb=shown)
    yield Case("interlaced.gif", gif(index, colors, interlace=True), rgb=shown)
    yield Case("local-colors.gif", gif(index, colors, local=True), rgb=shown)
    levels = np.repeat(np.arange(16)[:, None], 3, axis=1)
    yield Case("gray-colors.gif", gif(index, levels), rgb=_looked_up(index, levels))
    yield Case("screen-too-small.gif", gif(index, colors, screen=(1, 1)), rgb=shown)
    second = gif(np.full((9, 9), 5), colors, local=True)[13:-1]
    for disposal, key in itertools.product(range(4), (None, 3)):
        name, truth = f"disposal-{disposal}{'-key' if key else ''}.gif", keyed if key else shown
        data = gif(index, colors, disposal=disposal, key=key, more=second)
        yield Case(name, data, note="first frame of 2", rgb=truth)
        yield Case(f"no-trailer-{name}", data[:-1], note="first frame of 2", rgb=truth)
        framed = _framed(truth) if key else _framed(truth, colors[0].tolist())  # as FFmpeg shows it
        data = gif(index, colors, disposal=disposal, key=key, screen=framed.shape[:2], offset=(4, 6), more=second)
        yield Case(f"offset-{name}", data, note="first frame of 2", rgb=framed)

    for name, flags, color in (("screen", 0x80, (10, 200, 30)), ("no", 0, (WHITE, WHITE, WHITE))):
        data = gif(index, colors, local=True, screen=(HEIGHT + 9, WIDTH + 8), offset=(4, 6))
        table = bytes([0, 0, 0, 10, 200, 30]) if flags else b""
        data = data[:10] + bytes([flags, 1, 0]) + table + data[13:]
        yield Case(f"offset-with-colors-of-its-own-and-{name}-background.gif", data, rgb=_framed(shown, color))


def _pnms() -> Iterator[Case]:
    bitmap = 1 - _quantized(_gray(), 1)
    size = b"%d %d" % (WIDTH, HEIGHT)
    yield Case("plain.pbm", b"P1 " + size + b"\n" + _decimal(bitmap), rgb=_shown(1 - bitmap, 1))
    yield Case("plain-without-spaces.pbm", b"P1 " + size + b"\n" + _decimal(bitmap).replace(b" ", b""),
               rgb=_shown(1 - bitmap, 1))  # fmt: skip
    yield Case("binary.pbm", b"P4\n# a comment\n" + size + b"\n" + packed(bitmap, 1), rgb=_shown(1 - bitmap, 1))
    for largest in (1, 15, 100, 255, 1023, 4095, 65535):
        rgb, gray = (np.rint(part.astype(float) * largest / WHITE).astype(np.int64) for part in (_rgb(), _gray()))
        truth, gray_truth = (np.rint(part * (WHITE / largest)).astype(np.uint8) for part in (rgb, gray))
        gray_truth = np.repeat(gray_truth[..., None], 3, axis=2)
        head = size + b"\n%d\n" % largest
        kind = ">u1" if largest < 256 else ">u2"
        yield Case(f"plain-{largest}.pgm", b"P2\n" + head + _decimal(gray), rgb=gray_truth)
        yield Case(f"plain-{largest}.ppm", b"P3\n" + head + _decimal(rgb), rgb=truth)
        yield Case(f"binary-{largest}.pgm", b"P5\n" + head + gray.astype(kind).tobytes(), rgb=gray_truth)
        yield Case(f"binary-{largest}.ppm", b"P6\n" + head + rgb.astype(kind).tobytes(), rgb=truth)

    head = b"P6\n#" + b"x" * 6000 + b"\n" + size + b"\n255\n"
    yield Case("long-comment.ppm", head + _rgb().tobytes(), rgb=_rgb())
    head = b"P%d #\xff\r" + size + b"#\r255\n"
    yield Case("comments-that-return.ppm", head % 6 + _rgb().tobytes(), rgb=_rgb())
    yield Case("comments-that-return-in-decimals.ppm", head % 3 + b"#7\r" + _decimal(_rgb()), rgb=_rgb())
    zeros = b" ".join(b"%07d" % number for number in _rgb().reshape(-1))
    yield Case("leading-zeros.ppm", b"P3\n" + size + b"\n255\n" + zeros, rgb=_rgb())


def _decimal(samples: np.ndarray) -> bytes:
    return b"\n".join(b" ".join(b"%d" % number for number in row.reshape(-1)) for row in samples) + b"\n"


def _codec(kind: str, samples: np.ndarray, **options: Any) -> bytes:
    """As imagecodecs encodes it."""
    import imagecodecs

    return bytes(getattr(imagecodecs, f"{kind}_encode")(samples, **options))


def _webps() -> Iterator[Case]:
    for name, pixels, truth in (("rgb", _rgb(), _rgb()),
                                ("alpha", np.dstack([_rgb(), _alpha()]), over_white(_rgb(), _alpha()))):  # fmt: skip
        lossless = _codec("webp", pixels, lossless=True)
        yield Case(f"{name}-lossless.webp", lossless, rgb=truth)
        lossy = _codec("webp", pixels, level=95, lossless=False)
        yield Case(f"{name}-lossy.webp", lossy, rgb=truth, tolerance=5)
        framed = _framed(truth)
        data = w.webp_frames(lossless, SIZE, framed.shape[:2], (4, 6))
        yield Case(f"{name}-offset-frame.webp", data, note="first frame of 2", rgb=framed)

    still = _codec("webp", _rgb(), lossless=True)[12:]
    block, other = (sloppy_exif_blocks(turn)["plain"] for turn in (6, 3))
    for name, flags, blocks, turn in (
        ("exif", 8, [block], 6), ("exif-prefixed", 8, [b"Exif\0\0" + block], 6),
        ("exif-without-its-flag", 0, [block], 1), ("two-exifs", 8, [block, other], 6),
    ):  # fmt: skip
        chunks = [(b"EXIF", part) for part in blocks]
        yield Case(f"{name}.webp", w.webp_of(still, SIZE, flags, chunks), rgb=turned(_rgb(), turn))


# --- JPEG, JPEG 2000, AVIF, HEIC, JPEG XL -----------------------------------------------------------------


def _jpegs() -> Iterator[Case]:
    """Subsampling x coding; colors that are not YCbCr."""
    import simplejpeg

    smooth = np.ascontiguousarray(_smooth())
    for sampling in ("444", "422", "420", "440", "411"):
        data = simplejpeg.encode_jpeg(smooth, 95, "RGB", sampling)
        yield Case(f"sampling-{sampling}.jpg", data, rgb=smooth, tolerance=3)
    image = _pillow(smooth)
    for name, mode, number in (("ycbcr", "RGB", 2), ("ycbcr", "RGB", 7), ("ycck", "CMYK", 1)):
        adobe = jpeg_segment(0xEE, b"Adobe\0\x64\0\0\0\0%c" % number)
        data = _without_segments(
            _saved(image if mode == "RGB" else _as_ycck(smooth), "JPEG", quality=97, subsampling=0)
        )
        yield Case(f"{name}-of-transform-{number}.jpg", data[:2] + adobe + data[2:], rgb=smooth, tolerance=3)
    plain = _saved(image, "JPEG", quality=95)
    for name, numbers in (("empty", b"\1\1"), ("nameless", b"")):
        data = plain[:2] + jpeg_segment(0xE2, b"ICC_PROFILE\0" + numbers) + plain[2:]
        note = "profile ignored: parts of it are missing; " if numbers else ""
        yield Case(f"{name}-profile.jpg", data, note=note + "passed through", rgb=smooth, tolerance=3)
    two = _codec("jpeg8", np.ascontiguousarray(smooth[..., :2]), level=95)
    yield Case("two-components.jpg", two, "unsupported-jpeg")
    yield Case("rgb-components.jpg", _saved(image, "JPEG", quality=95, keep_rgb=True), rgb=smooth, tolerance=3)
    gray = image.convert("L")
    data = _saved(gray, "JPEG", quality=95, progressive=True)
    yield Case("gray-progressive.jpg", data, rgb=np.asarray(gray.convert("RGB")), tolerance=3)


def _without_segments(jpeg: bytes) -> bytes:
    """Without what applications wrote: JFIF, Adobe's transform."""
    from shardline.pipeline import jpeg as jpegs

    spans = [(start, end) for code, start, _, end in jpegs.segments(jpeg) if code & 0xF0 == 0xE0]
    return jpeg[:2] + jpeg[max(end for _, end in spans) :]


def _as_ycck(rgb: np.ndarray) -> Any:
    """CMYK whose levels are those of YCCK, stored inverted as Adobe does, with no black."""
    from PIL import Image

    ycc = (WHITE - _ycbcr(WHITE - rgb)).astype(np.uint8)
    return Image.fromarray(np.dstack([ycc, np.zeros(SIZE, np.uint8)]), "CMYK")


def _smooth() -> np.ndarray:
    """Without edges, so that lossy coding costs little."""
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    levels = [128 + 90 * np.sin(rows / 15), 128 + 90 * np.cos(columns / 20), 128 + 60 * np.sin((rows + columns) / 25)]
    return np.asarray(np.rint(np.dstack(levels)), np.uint8)


def _contents() -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """(name, samples, what is to be seen) with 1 to 4 channels."""
    yield "gray", _gray(), _gray_rgb()
    yield "gray-alpha", np.dstack([_gray(), _alpha()]), over_white(_gray_rgb(), _alpha())
    yield "rgb", _rgb(), _rgb()
    yield "rgb-alpha", np.dstack([_rgb(), _alpha()]), over_white(_rgb(), _alpha())


def _jpeg2000s() -> Iterator[Case]:
    """Container x bits x channels."""
    for kind, bits, (name, samples, _) in itertools.product(("jp2", "j2k"), (1, 2, 4, 8, 10, 12, 16), _contents()):
        levels = _quantized(samples, bits)
        shown = _shown(levels, bits)
        truth = over_white(shown[..., [0, 0, 0] if shown.shape[2] == 2 else [0, 1, 2]],
                           shown[..., -1] if name.endswith("alpha") else np.full(SIZE, WHITE))  # fmt: skip
        data = _codec("jpeg2k", levels.astype(np.uint8 if bits <= 8 else np.uint16), level=0, reversible=True,
                                         bitspersample=bits, codecformat=kind)  # fmt: skip
        note = ""
        if name.endswith("alpha") and kind == "jp2":
            data = _jp2(data, more=_channels(*range(shown.shape[2] - 1), alpha=w.STRAIGHT))
        elif name.endswith("alpha"):
            note = "1 unspecified band taken for alpha"
        yield Case(f"{name}-{bits}-bit.{kind}", data, note=note, rgb=truth)


def _box(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I4s", 8 + len(body), kind) + body


def _channels(*colors: int, alpha: int | None = None) -> bytes:
    """A cdef box: which color each channel is, and what the last is, as TIFF numbers it."""
    rows = [(channel, 0, color + 1) for channel, color in enumerate(colors)]
    rows += [] if alpha is None else [(len(colors), {1: 2, 2: 1}.get(alpha, 0xFFFF), 0 if alpha else 0xFFFF)]
    return _box(b"cdef", struct.pack(">H", len(rows)) + b"".join(struct.pack(">HHH", *row) for row in rows))


def _jp2(data: bytes, color: bytes = b"", more: bytes = b"") -> bytes:
    """A JPEG 2000 file with another box of its color, and more boxes after it."""
    box, head = data.index(b"colr") - 4, data.index(b"jp2h") - 4
    size = int.from_bytes(data[box : box + 4], "big")
    color = (_box(b"colr", color) if color else data[box : box + size]) + more
    length = int.from_bytes(data[head : head + 4], "big") + len(color) - size
    return data[:head] + struct.pack(">I", length) + data[head + 4 : box] + color + data[box + size :]


def _jpeg2000_spaces() -> Iterator[Case]:
    """What the JP2 container tells of its components: color spaces, profiles, palettes, alpha of each kind or none."""

    def coded(samples: np.ndarray, color: bytes = b"", more: bytes = b"", bits: int = 8) -> bytes:
        levels = samples.astype(np.uint8 if bits <= 8 else np.uint16)
        data = _codec("jpeg2k", levels, level=0, reversible=True, codecformat="jp2", mct=False, bitspersample=bits)
        return _jp2(data, color, more)

    space, profile = b"\1\0\0\0\0\0", b"\2\0\0"
    display, linear = np.rint(in_space(_smooth(), "Display P3")), np.rint(_linear(_gray() / WHITE) * WHITE)
    yield Case("ycbcr.jp2", coded(_ycbcr(_rgb()), space + b"\x12"), rgb=_rgb())
    yield Case("cmyk.jp2", coded(_quantized(_cmyk(), 8), space + b"\x0c"), rgb=_rgb())
    for name, kind in (("display", profile), ("display-any-profile", b"\3\0\0")):
        data = coded(display, kind + profile_of("Display P3"))
        yield Case(f"{name}.jp2", data, note="color profile Display P3 converted", rgb=_smooth())
    truth = _shown(np.rint(_encoded(linear / WHITE, 0.0) * WHITE), 8)
    data = coded(linear, profile + _LINEAR_GRAY)
    yield Case("linear-gray.jp2", data, note="color profile Linear gray converted", rgb=truth)
    data = coded(_rgb(), profile + _LINEAR_GRAY)
    yield Case("gray-profile-of-color.jp2", data, note="profile ignored: damaged, or of another kind", rgb=_rgb())
    for name, samples, more in (
        ("no-cdef", np.dstack([_rgb(), _gray()]), b""),
        ("cdef", np.dstack([_rgb(), _gray()]), _channels(0, 1, 2, alpha=w.UNSPECIFIED)),
    ):
        yield Case(f"infrared-{name}.jp2", coded(samples, more=more), note="1 unspecified band left out", rgb=_rgb())
    associated = np.rint(_rgb() * (_alpha()[..., None] / WHITE))
    data = coded(np.dstack([associated, _alpha()]), more=_channels(0, 1, 2, alpha=w.ASSOCIATED))
    yield Case("associated.jp2", data, rgb=over_white(_rgb(), _alpha()))
    yield Case("blue-first.jp2", coded(_rgb()[..., ::-1], more=_channels(2, 1, 0)), rgb=_rgb())
    mapping = _box(b"cmap", b"".join(struct.pack(">HBB", 0, 1, column) for column in range(3)))
    for bits, depth in itertools.product((1, 4, 8), (8, 16)):
        index, colors = _palette(bits)
        entries = (colors * (1 if depth == 8 else 257)).astype(f">u{depth // 8}").tobytes()
        palette = _box(b"pclr", struct.pack(">HB", len(colors), 3) + bytes([depth - 1] * 3) + entries)
        data = coded(index, space + b"\x10", palette + mapping, bits)
        yield Case(f"palette-{bits}-bit-of-{depth}-bit-colors.jp2", data, rgb=_looked_up(index, colors))
    quarters = np.empty((64, 80, 3), np.uint8)
    quarters[:32, :40], quarters[:32, 40:], quarters[32:, :40], quarters[32:, 40:] = _QUARTERS
    yield Case("420.jp2", _JP2_420, rgb=quarters)
    yield Case("420-of-rgb.jp2", _JP2_420.replace(space + b"\x12", space + b"\x10"), "unsupported-jp2")
    yield Case("cmy.jp2", coded(_rgb(), space + b"\x0c"), "unsupported-jp2")
    yield Case("lab.jp2", coded(_rgb(), space + b"\x0e"), "unsupported-jp2")


_QUARTERS = (200, 40, 40), (30, 160, 50), (40, 50, 190), (220, 215, 205)

# Color at half the size of brightness, by OpenJPEG through ctypes: nothing that we depend on writes it.
_JP2_420 = base64.b64decode(
    "AAAADGpQICANCocKAAAAFGZ0eXBqcDIgAAAAAGpwMiAAAAAtanAyaAAAABZpaGRyAAAAQAAAAFAAAwcHAAAAAAAPY29scgEAAAAAABIAAALKanAy"
    "Y/9P/1EALwAAAAAAUAAAAEAAAAAAAAAAAAAAAFAAAABAAAAAAAAAAAAAAwcBAQcCAgcCAv9SAAwAAAABAAUEBAAB/1wAE0BASEhQSEhQSEhQSEhQ"
    "SEhQ/2QAJQABQ3JlYXRlZCBieSBPcGVuSlBFRyB2ZXJzaW9uIDIuNS40/5AACgAAAAACQwAB/5PPtBwSyiTeDWG/w+cEDBfPtAwC6e/D6gSPtBoP"
    "qBQPxHaQE9WFZxYvDd/QdT/A+QDH2gcH1AQBA5THBF/D6gKPtA4faBAADwVpnwcfw+oKh9QXAfIGHwYC63jkwIuCSSAuaKtSx7ntfgvvGxl8/x7n"
    "w+oEh9QNA+cIEIYZrAmfLh+yvwyoyl/H2gsPqBoPqBAOUFaLgwCEun+ktg3eGxzH2h8PqEIPqCBYhPEY/mC5xMqGlH7Au8s0IFr2mevrFJ7VzOgg"
    "Vv13KU0lek7H4l/B84eH1BcB8gQdkU+/Rv8/DHTWrJinTKoKBn8bze4rw+oKh9QXA+cOHDLZM236Ozjefg8lapf/L7Kqept/GyHsLxYcH8faLQ+o"
    "Wg+oIJ5e/FOaRDCLsichypNINWr8SR88/3+KbaogGoeSyLCYg/i8MyVYSgDEZlHpiXgKOumjbn/D6gyH1B0D5wxag53EnzS31Eq/jC8Az6Hbzp2w"
    "ck8H64tEfyoEQhr0V8faHx9onB9QOCc65E4GdEw2ga9OgoIqfylEZR2NNbzu4JrR/iUdoP6DMk8pTJBik8h4x9ojD6heD6gQ2j+fUj6uEr8FNNHs"
    "uQk8YSDP6+qDzJS/J2IddoEKEcjseHIPBs8JB8+uYqPD6g+H1BsD5wieifzTlZvpgQH4KKZXCx977pNaCEUR/03DgBg/iWKJA8faHw+oPg+oFEDg"
    "wS+icAxHLp6SPMMxH3syFbLYbIaoCvyGfcFU14l4CT9//9k="
)


# Of Display P3, by SVT-AV1 with the timing of a video, its colr box renamed: the AV1 alone tells its color.
_AVIF_TIMED = base64.b64decode(
    "AAAAIGZ0eXBhdmlmAAAAAGF2aWZtaWYxbWlhZk1BMUIAAAD5bWV0YQAAAAAAAAAvaGRscgAAAAAAAAAAcGljdAAAAAAAAAAAAAAAAFBpY3R1cmVI"
    "YW5kbGVyAAAAAA5waXRtAAAAAAABAAAAHmlsb2MAAAAARAAAAQABAAAAAQAAASEAAAB+AAAAKGlpbmYAAAAAAAEAAAAaaW5mZQIAAAAAAQAAYXYw"
    "MUNvbG9yAAAAAGppcHJwAAAAS2lwY28AAAAUaXNwZQAAAAAAAABAAAAAMAAAABBwaXhpAAAAAAMICAgAAAAMYXYxQ4EADAAAAAATZnJlZW5jbHgA"
    "DAANAAGAAAAAF2lwbWEAAAAAAAAAAQABBAECgwQAAACGbWRhdAoWBAAAAAQAAABmwAAAFX+86vkQwNAYQDJkFACgIEDX/hgNk+mZ58SqNpWmYXhB"
    "ACCocmAZGZRbGZP+Kyq6TYunoZdgWrlfQuomm5Zzc5as4/RjrA1L5MQ/QBexCHMtQXcVyMtYn3QLOBwFWi5p5kTakc3RneYw2Hq6AU19gA=="
)


def _avifs() -> Iterator[Case]:
    for bits, (name, samples, truth) in itertools.product((8, 10, 12), _contents()):
        levels = _quantized(samples, bits).astype(np.uint8 if bits == 8 else np.uint16)
        data = _codec("avif", levels, level=100, bitspersample=bits)
        yield Case(f"{name}-{bits}-bit.avif", data, rgb=truth)
    plain = _saved(_pillow(_smooth()), "AVIF", quality=100, subsampling="4:4:4")
    for name, box, shown in _shown_otherwise():
        yield Case(f"{name}.avif", _with_property(plain, box), rgb=shown(_smooth()), tolerance=2)
    display = np.rint(in_space(_smooth(), "Display P3")).astype(np.uint8)
    for name, transfer, reason in (("display", 13, ""), ("pq", 16, "unsupported-avif")):
        data = _codec("avif", display, level=100, primaries=12, transfer=transfer)
        yield Case(f"{name}-told-twice.avif", data, reason, rgb=_smooth(), tolerance=1)
        yield Case(f"{name}-told-by-av1.avif", data.replace(b"colr", b"free"), reason, rgb=_smooth(), tolerance=1)
    quarters = np.empty((48, 64, 3), np.uint8)
    quarters[:24, :32], quarters[:24, 32:], quarters[24:, :32], quarters[24:, 32:] = _QUARTERS
    yield Case("frame-of-a-video.avif", _AVIF_TIMED, note="Display P3 converted", rgb=quarters, tolerance=4)
    of_any = struct.pack(">I", 24) + b"ftypmif1" + bytes(4) + b"mif1miaf" + plain[int.from_bytes(plain[:4], "big") :]
    yield Case("av1-in-heif.heic", of_any, "unsupported-heic", rgb=_smooth())
    part = _box(b"clap", struct.pack(">8I", WIDTH - 8, 1, HEIGHT - 8, 1, 0, 1, 0, 1))
    yield Case("part-of-it.avif", _with_property(plain, part), "unsupported-avif")


# Of two colors, multiplied by alpha as its header says: imagecodecs cannot write that header.
_JXL_ASSOCIATED = base64.b64decode("/wpYMDAASggQEAC8AEsYk46DgykwYigqnmsvIAUAQZ8nAPHLfT6Tzt6y5quAM2XaZcQDaIHAFiHZCKss")


def _jpeg_xls() -> Iterator[Case]:
    """Bits x channels, lossy, and a JPEG packed without loss."""
    import imagecodecs

    for bits, (name, samples, truth) in itertools.product((8, 10, 12, 16), _contents()):
        if bits > 8:  # imagecodecs says of these that they are linear
            colors = samples if name in ("gray", "rgb") else samples[..., :-1]
            light = _linear(colors / WHITE) * WHITE
            samples = light if colors is samples else np.dstack([light, samples[..., -1]])
        levels = _quantized(samples, bits).astype(np.uint8 if bits == 8 else np.uint16)
        data = _codec("jpegxl", levels, lossless=True, bitspersample=bits)
        yield Case(f"{name}-{bits}-bit.jxl", data, rgb=truth)
    dark = _smooth() // 8
    for kind in (np.float16, np.float32):
        data = _codec("jpegxl", _linear(dark / WHITE).astype(kind), lossless=True)
        yield Case(f"dark-{np.dtype(kind)}.jxl", data, rgb=dark)
    frames = _codec("jpegxl", np.stack(2 * [_quantized(_linear(_smooth() / WHITE) * WHITE, 10)]).astype(np.uint16),
                    lossless=True, photometric="rgb", bitspersample=10)  # fmt: skip
    yield Case("10-bit-animation.jxl", frames, note="first frame of an animation", rgb=_smooth())
    yield Case("lossy.jxl", _codec("jpegxl", _smooth(), distance=1), rgb=_smooth(), tolerance=3)
    for name, first, truth in (("rgb", _rgb(), _rgb()), ("gray", _gray(), _gray_rgb())):
        frames = _codec("jpegxl", np.stack([first, 255 - first]), lossless=True, photometric=name)
        yield Case(f"{name}-animation.jxl", frames, note="first frame of an animation", rgb=truth, tolerance=0)
    rgb, alpha = np.empty((12, 16, 3), np.uint8), np.full((12, 16), WHITE, np.uint8)
    rgb[:, :8], rgb[:, 8:], alpha[:4], alpha[4:6] = _QUARTERS[0], _QUARTERS[2], 0, 128
    yield Case("associated.jxl", _JXL_ASSOCIATED, rgb=over_white(rgb, alpha))
    jpeg = _saved(_pillow(_smooth()), "JPEG", quality=95, exif=_exif(6))
    packed_jpeg = bytes(imagecodecs.jpegxl_encode_jpeg(jpeg))
    truth = turned(_smooth(), 6)
    yield Case("packed-jpeg-orientation-6.jxl", packed_jpeg, rgb=truth, tolerance=3)
    unpackable = packed_jpeg.replace(b"jbrd", b"free")
    yield Case("orientation-6.jxl", unpackable, rgb=truth, tolerance=3)


# Four quarters as in `reference_image`, without texture, 64 x 48, encoded by x265 in libheif: nothing that we depend on
# can write HEIC.
_HEIC = base64.b64decode(
    "AAAAHGZ0eXBoZWl4AAAAAG1pZjFoZWl4bWlhZgAAAX5tZXRhAAAAAAAAACFoZGxyAAAAAAAAAABwaWN0AAAAAAAAAAAAAAAAAAAAACJpbG9jAAAA"
    "AERAAAEAAQAAAAABogABAAAAAAAAAMkAAAAjaWluZgAAAAAAAQAAABVpbmZlAgAAAAABAABodmMxAAAAAA5waXRtAAAAAAABAAAA/mlwcnAAAADe"
    "aXBjbwAAAHdodmNDAQQIAAAAnjgAAAAAHvAA/P/4+AAADwNgAAEAF0ABDAH//wQIAAADAJ44AAADAAAeugJAYQABACpCAQEECAAAAwCeOAAAAwAA"
    "HpAEECCy3VyU1zcBDQYEAAADAGQAAAMABCBiAAEACEQBwXMYMAiQAAAAE2NvbHJuY2x4AAEADQAGgAAAABRpc3BlAAAAAAAAAEAAAABAAAAAKGNs"
    "YXAAAABAAAAAAQAAADAAAAABAAAAAAAAAAL////wAAAAAgAAABBwaXhpAAAAAAMICAgAAAAYaXBtYQAAAAAAAAABAAEFgQIDBYQAAADRbWRhdAAA"
    "AMUoAa8J4CM4R//Vz//zIuh8U3vFV35Te/6z8u8EY/9ytlPlPXgq2HYtH66f/IW3uW0qvNMdyjr9wtOlFNf2Xl6ohuilviWO9VCx01ApQGZ4AEPx"
    "pYa/LOeU66hY9ZBgRPEY0louDqnImHgm4erLEHfL18PZEtKB6FlSe+wlhtry7HQHCmYENxecLsa936nZk12W6UibiWbONJ1FkQwg+ZLU60HUyML3"
    "jB259yE5qCVOyM998FvE3/q0VXdu7PKMQ6/PTQREQA=="
)


def _heics() -> Iterator[Case]:
    rgb = np.empty((48, 64, 3), np.uint8)
    rgb[:24, :32], rgb[:24, 32:], rgb[24:, :32], rgb[24:, 32:] = _QUARTERS
    yield Case("photo.heic", _HEIC, rgb=rgb)
    for name, box, shown in _shown_otherwise():
        yield Case(f"{name}.heic", _with_property(_HEIC, box), rgb=shown(rgb))


def _with_property(data: bytes, box: bytes) -> bytes:
    """An AVIF or HEIC of one image with another box, of how to show it, after those that it has."""
    start, more = data.index(b"mdat") + 4, len(box) + 1
    data = data.replace(struct.pack(">I", start), struct.pack(">I", start + more))  # where the image lies
    for kind, growth in ((b"meta", more), (b"iprp", more), (b"ipco", len(box)), (b"ipma", 1)):
        at = data.index(kind) - 4
        data = data[:at] + struct.pack(">I", int.from_bytes(data[at : at + 4], "big") + growth) + data[at + 4 :]
    at = data.index(b"ipma") + 14  # the number of its boxes, and which they are
    end, boxes = at + 1 + data[at], data[at + 1 : at + 1 + data[at]]
    last = max(number & 0x7F for number in boxes) + 1
    data = data[:at] + bytes([len(boxes) + 1, *boxes, 0x80 | last]) + data[end:]
    at = data.index(b"ipma") - 4
    return data[:at] + box + data[at:]


def _shown_otherwise() -> Iterator[tuple[str, bytes, Callable[[np.ndarray], np.ndarray]]]:
    """Boxes that turn, against the clock, and mirror, and what they do."""
    for turns in (1, 2, 3):
        yield f"turned-{turns}", _box(b"irot", bytes([turns])), partial(np.rot90, k=turns)
    yield "upside-down", _box(b"imir", b"\0"), lambda rgb: rgb[::-1]
    yield "mirrored", _box(b"imir", b"\1"), lambda rgb: rgb[:, ::-1]


# --- Orientations -----------------------------------------------------------------------------------------


def _exif(orientation: int) -> Any:
    from PIL import Image

    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def sloppy_exif_blocks(orientation: int = 6, tags: int = 20) -> dict[str, bytes]:
    """EXIF blocks with faults that OpenCV, Pillow or both forgive, and one that costs memory."""

    def block(entries: bytes, count: int, rest: bytes = bytes(4), order: str = "<") -> bytes:
        head = {"<": b"II", ">": b"MM"}[order] + struct.pack(order + "HI", 42, 8)
        return head + struct.pack(order + "H", count) + entries + rest

    def entry(kind: int, field: bytes, order: str = "<", count: int = 1) -> bytes:
        return struct.pack(order + "HHI", 0x112, kind, count) + field.ljust(4, b"\0")

    short = entry(3, struct.pack("<H", orientation))
    elsewhere = struct.pack("<HHII", 0xC000, 4, 4, 60_000)
    overlapping = b"".join(struct.pack("<HHII", 30_000 + i, 1, 60_000, 8) for i in range(tags))
    return {
        "plain": block(short, 1),
        "big-endian": block(entry(3, struct.pack(">H", orientation), ">"), 1, order=">"),
        "no-next-directory": block(short, 1, b""),
        "value-outside": block(short + elsewhere, 2),
        "count-too-large": block(short, 9),
        "signed-short": block(entry(8, struct.pack("<h", orientation)), 1),
        "long": block(entry(4, struct.pack("<I", orientation)), 1),
        "big-endian-long": block(entry(4, struct.pack(">I", orientation), ">"), 1, order=">"),
        "byte": block(entry(1, bytes([orientation])), 1),
        "fraction": block(entry(5, struct.pack("<I", 26)), 1, bytes(4) + struct.pack("<II", 2 * orientation, 2)),
        "overlapping-tags": block(overlapping + short, tags + 1),
    }


def jpeg_segment(marker: int, body: bytes) -> bytes:
    """Of a JPEG."""
    return struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body


def _sloppy_exifs() -> Iterator[Case]:
    jpeg = _saved(_pillow(_smooth()), "JPEG", quality=95)
    blocks = sloppy_exif_blocks()
    segments = {name: jpeg_segment(0xE1, b"Exif\0\0" + block) for name, block in blocks.items()}
    exif, empty_xmp = segments["plain"], jpeg_segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0")
    fillers = {
        "fill-bytes": b"\xff" * 7 + exif,
        "after-other-segments": jpeg_segment(0xEC, b"Ducky") + empty_xmp + exif,
        "after-128-kilobytes": jpeg_segment(0xED, bytes(65_000)) * 3 + exif,
    }
    for name, segment in (segments | fillers).items():
        data, note = jpeg[:2] + segment + jpeg[2:], "orientation 6"
        yield Case(f"exif-{name}.jpg", data, note=note, rgb=turned(_smooth(), 6), tolerance=3)


def _other_orientations() -> Iterator[Case]:
    """Outside EXIF blocks: XMP, as for a file that was never in a camera, and ImageMagick's text chunks."""
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    as_element = xmp.replace(b'tiff:Orientation="6"/>', b"><tiff:Orientation>6</tiff:Orientation></rdf:Description>")
    image, truth, note = _pillow(_smooth()), turned(_smooth(), 6), "orientation 6"
    for name, packet in (("attribute", xmp), ("element", as_element)):
        yield Case(f"xmp-{name}.jpg", _saved(image, "JPEG", quality=95, xmp=packet), note=note, rgb=truth, tolerance=3)
    yield Case("xmp.webp", _saved(image, "WEBP", lossless=True, xmp=xmp), note=note, rgb=truth)
    yield Case("xmp.tif", _saved(image, "TIFF", tiffinfo={700: xmp}), note=note, rgb=truth)
    text = (b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp)
    yield Case("xmp.png", png(_smooth(), 2, chunks=[text]), note=note, rgb=truth)
    block = b"Exif\0\0" + sloppy_exif_blocks()["plain"]
    profile = b"\nexif\n%8d\n%s\n" % (len(block), block.hex().encode())
    key = b"Raw profile type exif\0"
    yield Case("raw-profile.png", png(_smooth(), 2, chunks=[(b"tEXt", key + profile)]), note=note, rgb=truth)
    packed_profile = (b"zTXt", key + b"\0" + zlib.compress(profile))
    yield Case("packed-raw-profile.png", png(_smooth(), 2, chunks=[packed_profile]), note=note, rgb=truth)
    profile = b"\nxmp\n%8d\n%s\n" % (len(xmp), xmp.hex().encode())
    text = (b"tEXt", b"Raw profile type xmp\0" + profile)
    yield Case("raw-profile-xmp.png", png(_smooth(), 2, chunks=[text]), note=note, rgb=truth)


# --- Color profiles ---------------------------------------------------------------------------------------

_SRGB = ((0.64, 0.33), (0.30, 0.60), (0.15, 0.06))
_SPACES: dict[str, tuple[np.ndarray, float]] = {  # matrix to XYZ and gamma; 0 stands for sRGB's curve
    "Display P3": (w.rgb_to_xyz(((0.680, 0.320), (0.265, 0.690), (0.150, 0.060))), 0.0),
    "Adobe RGB": (w.rgb_to_xyz(((0.64, 0.33), (0.21, 0.71), (0.15, 0.06))), 563 / 256),
    "ProPhoto RGB": (w.rgb_to_xyz(((0.7347, 0.2653), (0.1596, 0.8404), (0.0366, 0.0001)), w.D50), 1.8),
}


def _linear(levels: np.ndarray) -> np.ndarray:
    """sRGB's curve, 0..1 to light."""
    return np.where(levels <= 0.04045, levels / 12.92, ((levels + 0.055) / 1.055) ** 2.4)


def _encoded(light: np.ndarray, gamma: float) -> np.ndarray:
    light = np.clip(light, 0, 1)
    if gamma:
        return light ** (1 / gamma)
    return np.where(light <= 0.0031308, light * 12.92, 1.055 * light ** (1 / 2.4) - 0.055)


def profile_of(space: str) -> bytes:
    """An ICC profile of Display P3, Adobe RGB, ProPhoto RGB or sRGB."""
    matrix, gamma = _SPACES.get(space, (w.rgb_to_xyz(_SRGB), 0.0))
    return w.icc_profile(space, matrix, gamma or _linear(np.linspace(0, 1, 1024)).tolist())


def in_space(rgb: np.ndarray, space: str) -> np.ndarray:
    """sRGB levels 0..255 as levels of another space, not rounded."""
    matrix, gamma = _SPACES[space]
    light = _linear(rgb / WHITE) @ (np.linalg.inv(matrix) @ w.rgb_to_xyz(_SRGB)).T
    return _encoded(light, gamma) * WHITE


def _profiles() -> Iterator[Case]:
    """Color space x format."""
    truth = _smooth()
    for space in _SPACES:
        samples, profile = in_space(truth, space), profile_of(space)
        image, note, name = _pillow(np.rint(samples).astype(np.uint8)), f"{space} converted", space.split()[0].lower()
        options: dict[str, dict[str, Any]] = {
            "jpg": {"kind": "JPEG", "quality": 97, "subsampling": 0}, "png": {"kind": "PNG"}, "tif": {"kind": "TIFF"},
            "webp": {"kind": "WEBP", "lossless": True},
            "avif": {"kind": "AVIF", "quality": 100, "subsampling": "4:4:4"},
        }  # fmt: skip
        for suffix, how in options.items():
            data = _saved(image, icc_profile=profile, **how)
            yield Case(f"{name}.{suffix}", data, note=note, rgb=truth, tolerance=2)
        icc = (34675, 7, list(profile))
        yield Case(f"{name}-16-bit.tif", tiff(_quantized(samples, 16), w.RGB, 16, tags=[icc]), note=note, rgb=truth,
                   tolerance=1.5)  # fmt: skip
    yield Case("srgb.jpg", _saved(_pillow(truth), "JPEG", quality=97, icc_profile=profile_of("sRGB")),
               note="it is sRGB; passed through", rgb=truth, tolerance=3)  # fmt: skip
    damaged = _saved(_pillow(truth), "JPEG", quality=97, icc_profile=b"no profile" * 50)
    yield Case("damaged-profile.jpg", damaged, note="profile ignored", rgb=truth, tolerance=3)
    alpha = _pillow(np.dstack([np.rint(in_space(truth, "Display P3")).astype(np.uint8), _alpha()]))
    solid = np.where(_alpha()[..., None] == WHITE, truth, over_white(truth, _alpha()))
    yield Case("display-alpha.png", _saved(alpha, "PNG", icc_profile=profile_of("Display P3")), note="P3 converted",
               rgb=solid, tolerance=2)  # fmt: skip


def _gray_and_cmyk_profiles() -> Iterator[Case]:
    gray = np.rint(_smooth()[..., 0]).astype(np.uint8)
    stored = np.rint(_encoded(_linear(gray / WHITE), 1.0) * WHITE).astype(np.uint8)
    shown = np.rint(_encoded(stored / WHITE, 0.0) * WHITE).astype(np.uint8)  # 8 bits of linear light are coarse
    profile, note = _LINEAR_GRAY, "Linear gray converted"
    for suffix, how in {"png": {"kind": "PNG"}, "tif": {"kind": "TIFF"}}.items():
        data = _saved(_pillow(stored), icc_profile=profile, **how)
        yield Case(f"linear-gray.{suffix}", data, note=note, rgb=_shown(shown, 8))
    data = _saved(_pillow(stored), "JPEG", quality=100, icc_profile=profile)
    yield Case("linear-gray.jpg", data, note=note, rgb=_shown(shown, 8), tolerance=2)
    dark = _smooth() // 8
    light, curve = _quantized(_linear(dark / WHITE) * WHITE, 16), w.icc_profile("Linear", w.rgb_to_xyz(_SRGB), 1.0)
    gamma, icc = (b"gAMA", struct.pack(">I", 100_000)), (34675, 7, list(curve))
    yield Case("dark-linear-16-bit.png", png(light, 2, 16, chunks=[gamma]), note="of gamma 1.00 converted", rgb=dark)
    yield Case("dark-linear-16-bit.tif", tiff(light, w.RGB, 16, tags=[icc]), note="Linear converted", rgb=dark)
    data = tiff(light[..., :1], w.GRAY, 16, tags=[(34675, 7, list(profile))])
    yield Case("dark-linear-gray-16-bit.tif", data, note=note, rgb=_shown(dark[..., 0], 8))
    wide = _saved(_pillow(gray), "PNG", icc_profile=profile_of("sRGB"))
    yield Case("gray-with-rgb-profile.png", wide, note="it is sRGB", rgb=_shown(gray, 8))
    lab = np.zeros((2, 2, 2, 2, 3))  # black wherever there is black ink, or all the others
    inks = {(0, 0, 0): (100, 0, 0), (1, 0, 0): (60, -20, -30), (0, 1, 0): (55, 40, -5), (0, 0, 1): (90, -5, 50),
            (1, 1, 0): (30, 15, -30), (1, 0, 1): (50, -40, 20), (0, 1, 1): (50, 40, 25)}  # fmt: skip
    for (cyan, magenta, yellow), color in inks.items():
        lab[cyan, magenta, yellow, 0] = color
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    mixture = (rows // 7 + columns // 9) % 8
    bits = np.stack([mixture >> 2 & 1, mixture >> 1 & 1, mixture & 1, np.zeros_like(mixture)], axis=-1)
    truth = _lab_to_srgb(lab[tuple(np.moveaxis(bits, -1, 0))])
    icc = (34675, 7, list(w.icc_cmyk_profile("Press", lab)))
    yield Case("press.tif", tiff(bits * WHITE, w.CMYK, tags=[icc]), note="Press converted", rgb=truth, tolerance=2)


def _lab_to_srgb(lab: np.ndarray) -> np.ndarray:
    """CIE L*a*b* relative to D50."""
    f = lab[..., 0] / 116 + 16 / 116
    ratio = np.stack([f + lab[..., 1] / 500, f, f - lab[..., 2] / 200], axis=-1)
    ratio = np.where(ratio > 6 / 29, ratio**3, (ratio - 16 / 116) * 3 * (6 / 29) ** 2)
    light = (ratio * w.D50) @ np.linalg.inv(w.rgb_to_xyz(_SRGB)).T
    return np.asarray(np.rint(_encoded(light, 0.0) * WHITE), np.uint8)


_LINEAR_GRAY = w.icc_gray_profile("Linear gray", 1.0)
DISPLAY_P3 = profile_of("Display P3")
