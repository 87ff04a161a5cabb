"""Malformed images: one small file for every format, every oddity and every fault the converter must get right.

    cases()            what is in each file, and what must become of it
    write(directory, cases)   cases as files, with the faults that only a file system can have

Made here, from one image, on every run: nothing is downloaded and nothing is stored.
"""

from __future__ import annotations

import io
import os
import struct
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from shardline.pipeline.files import atomic_write
from shardline.tools.image_writers import bmp

if TYPE_CHECKING:
    from PIL.Image import Exif, Image
    from PIL.PngImagePlugin import PngInfo

WIDTH, HEIGHT = 160, 120


@dataclass(frozen=True)
class Case:
    """One file, and what must become of it."""

    name: str
    data: bytes
    reason: str = ""  # of the quarantine; "" for written
    note: str = ""  # must be part of the image's note
    rgb: np.ndarray | None = None  # what the decoded image must look like ...
    tolerance: float = 1.0  # ... up to this mean absolute difference, in levels of 255


def reference_image(height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    """Four quarters (red, green, blue, pale gray) with texture: shows a wrong color, order or turn at a glance."""
    rows, columns = np.mgrid[:height, :width]
    rgb = np.empty((height, width, 3))
    top, left = rows < height / 2, columns < width / 2
    rgb[top & left], rgb[top & ~left] = (200, 40, 40), (30, 160, 50)
    rgb[~top & left], rgb[~top & ~left] = (40, 50, 190), (220, 215, 205)
    texture = 12 * np.sin(columns / 3 + rows / 7) + 12 * np.sin(rows * columns / 211)
    return np.asarray(np.clip(rgb + texture[..., None], 0, 255), np.uint8)


def cases() -> list[Case]:
    """Every case, in the order of the doctor's table."""
    return [*_formats(), *_orientations(), *_colors(), *_animations(), *_faults(), *_lies(), *_refused()]


# --- Sound files ------------------------------------------------------------------------------------------


def _save(image: Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def _image(rgb: np.ndarray) -> Image:
    from PIL import Image

    return Image.fromarray(rgb)


def _formats() -> list[Case]:
    rgb = reference_image()
    image = _image(rgb)
    tiff = {"none": "raw", "LZW": "tiff_lzw", "Deflate": "tiff_adobe_deflate", "PackBits": "packbits"}
    return [
        Case("baseline.jpg", _save(image, "JPEG", quality=90), note="passed through", rgb=rgb, tolerance=4),
        Case("progressive.jpg", _save(image, "JPEG", quality=90, progressive=True), rgb=rgb, tolerance=4),
        Case("restart-markers.jpg", _save(image, "JPEG", quality=90, restart_marker_rows=1), rgb=rgb, tolerance=4),
        Case("with-exif.jpg", _save(image, "JPEG", exif=_exif(1)), note="passed through less", rgb=rgb, tolerance=4),
        Case("wrong-extension.jpg", _save(image, "PNG"), rgb=rgb),
        Case("no-extension", _save(image, "JPEG", quality=90), rgb=rgb, tolerance=4),
        Case("junk-after-the-end.jpg", _save(image, "JPEG", quality=90) + bytes(5000), note="less 5000 bytes", rgb=rgb,
             tolerance=4),
        Case("plain.png", _save(image, "PNG"), rgb=rgb),
        Case("lossless.webp", _save(image, "WEBP", lossless=True), rgb=rgb),
        Case("lossy.webp", _save(image, "WEBP", quality=90), rgb=rgb, tolerance=6),
        Case("lossy.avif", _save(image, "AVIF", quality=95), rgb=rgb, tolerance=4),
        Case("plain.bmp", _save(image, "BMP"), rgb=rgb),
        Case("plain.gif", _save(image, "GIF"), rgb=rgb, tolerance=6),
        Case("lossless.jp2", _save(image, "JPEG2000"), rgb=rgb),
        Case("codestream.j2k", _save(image, "JPEG2000", no_jp2=True), rgb=rgb),
        Case("plain.ppm", _save(image, "PPM"), rgb=rgb),
        *(Case(f"{name}.tif", _save(image, "TIFF", compression=scheme), rgb=rgb) for name, scheme in tiff.items()),
        Case("JPEG.tif", _save(image, "TIFF", compression="jpeg", quality=90), rgb=rgb, tolerance=4),
        Case("two-pages.tif", _save(image, "TIFF", save_all=True, append_images=[image.rotate(180)]),
             note="first frame of 2", rgb=rgb),
    ]  # fmt: skip


def _exif(orientation: int) -> Exif:
    from PIL import Image

    exif = Image.Exif()
    exif[0x0112] = orientation
    exif[0x010E] = "a description that must not survive"
    return exif


# What was seen, as a function of what is stored, for EXIF orientations 1 to 8.
_SEEN = {
    1: lambda stored: stored,
    2: lambda stored: stored[:, ::-1],
    3: lambda stored: stored[::-1, ::-1],
    4: lambda stored: stored[::-1],
    5: lambda stored: stored.swapaxes(0, 1),
    6: lambda stored: np.rot90(stored, -1),
    7: lambda stored: np.rot90(stored, 2).swapaxes(0, 1),
    8: lambda stored: np.rot90(stored),
}


def _orientations() -> list[Case]:
    rgb = reference_image()
    image = _image(rgb)
    note = "EXIF orientation 6 applied"
    return [
        *(
            Case(f"orientation-{n}.jpg", _save(image, "JPEG", quality=90, exif=_exif(n)),
                 note=f"EXIF orientation {n} applied", rgb=_SEEN[n](rgb), tolerance=5)
            for n in range(2, 9)
        ),
        Case("orientation-9.jpg", _save(image, "JPEG", quality=90, exif=_exif(9)), rgb=rgb, tolerance=4),
        Case("orientation-6.png", _save(image, "PNG", exif=_exif(6)), note=note, rgb=_SEEN[6](rgb)),
        Case("orientation-6.webp", _save(image, "WEBP", lossless=True, exif=_exif(6)), note=note, rgb=_SEEN[6](rgb)),
        Case("orientation-6.tif", _save(image, "TIFF", exif=_exif(6)), note=note, rgb=_SEEN[6](rgb)),
        Case("orientation-6.avif", _save(image, "AVIF", quality=95, exif=_exif(6)), note=note, rgb=_SEEN[6](rgb),
             tolerance=4),
    ]  # fmt: skip


def _colors() -> list[Case]:
    rgb = reference_image()
    image = _image(rgb)
    gray = np.asarray(image.convert("L"))
    gray_rgb = np.repeat(gray[..., None], 3, axis=2)
    palette = image.quantize(64)
    palette_rgb = np.asarray(palette.convert("RGB"))
    alpha = np.full((HEIGHT, WIDTH, 1), 255, np.uint8)
    alpha[: HEIGHT // 3], alpha[HEIGHT // 3 : HEIGHT // 2] = 0, 128
    over_white = np.rint(rgb * (alpha / 255) + 255 * (1 - alpha / 255)).astype(np.uint8)
    rgba = _image(np.dstack([rgb, alpha]))
    gray_alpha_rgb = np.rint(gray_rgb * (alpha / 255) + 255 * (1 - alpha / 255)).astype(np.uint8)
    see_through = np.where(np.asarray(palette)[..., None] == 3, 255, palette_rgb).astype(np.uint8)
    cmyk = image.convert("CMYK")
    adobe = _save(cmyk, "JPEG", quality=95)
    return [
        Case("gray.jpg", _save(image.convert("L"), "JPEG", quality=90), rgb=gray_rgb, tolerance=4),
        Case("cmyk-adobe-inverted.jpg", adobe, rgb=rgb, tolerance=4),
        Case("cmyk-untold.jpg", _without_adobe(adobe), note="CMYK taken as stored inverted", rgb=rgb, tolerance=4),
        Case("ycck.jpg", _ycck(rgb), rgb=rgb, tolerance=6),
        Case("palette.png", _save(palette, "PNG"), rgb=palette_rgb),
        Case("palette-with-transparency.png", _save(palette, "PNG", transparency=3), rgb=see_through),
        Case("alpha.png", _save(rgba, "PNG"), rgb=over_white),
        Case("gray-alpha.png", _save(rgba.convert("LA"), "PNG"), rgb=gray_alpha_rgb),
        Case("1-bit.png", _save(image.convert("1"), "PNG"), rgb=np.asarray(image.convert("1").convert("RGB"))),
        Case("16-bit.png", _png(rgb.astype(np.uint16) * 257), rgb=rgb),
        Case("16-bit-alpha.png", _png(np.dstack([rgb, alpha]).astype(np.uint16) * 257), rgb=over_white),
        Case("16-bit-gray.png", _png(gray.astype(np.uint16)[..., None] * 257), rgb=gray_rgb),
        Case("alpha.webp", _save(rgba, "WEBP", lossless=True, exact=True), rgb=over_white),
        Case("alpha.avif", _save(rgba, "AVIF", quality=95), rgb=over_white, tolerance=4),
        Case("alpha.tif", _save(rgba, "TIFF"), rgb=over_white),
        Case("alpha.jp2", _save(rgba, "JPEG2000"), rgb=over_white),
        Case("transparent.gif", _save(palette, "GIF", transparency=3), rgb=see_through),
        Case("cmyk.tif", _save(cmyk, "TIFF"), rgb=rgb),
        Case("palette.tif", _save(palette, "TIFF"), rgb=palette_rgb),
        Case("fax.tif", _save(image.convert("1"), "TIFF", compression="group4"),
             rgb=np.asarray(image.convert("1").convert("RGB"))),
        Case("16-bit-gray.tif", _save(_image(gray.astype(np.uint16) * 257), "TIFF"), rgb=gray_rgb),
        Case("palette.bmp", _save(palette, "BMP"), rgb=palette_rgb),
        Case("gray.bmp", _save(image.convert("L"), "BMP"), rgb=gray_rgb),
        Case("16-bit.ppm", b"P6 %d %d 65535\n" % (WIDTH, HEIGHT) + (rgb.astype(">u2") * 257).tobytes(), rgb=rgb),
    ]  # fmt: skip


def _without_adobe(jpeg: bytes) -> bytes:
    start = jpeg.index(b"\xff\xee\x00\x0eAdobe")
    return jpeg[:start] + jpeg[start + 16 :]


def _ycck(rgb: np.ndarray) -> bytes:
    import simplejpeg

    ink = np.concatenate([rgb, np.full((*rgb.shape[:2], 1), 255, np.uint8)], axis=2)  # stored inverted, as Adobe does
    return bytes(simplejpeg.encode_jpeg(np.ascontiguousarray(ink), 95, "CMYK", "444"))


def _png(samples: np.ndarray) -> bytes:
    """A 16-bit PNG, as Pillow cannot write it in color."""
    height, width, channels = samples.shape
    rows = samples.astype(">u2").reshape(height, -1).view(np.uint8)
    filtered = np.concatenate([np.zeros((height, 1), np.uint8), rows], axis=1).tobytes()
    color = {1: 0, 3: 2, 4: 6}[channels]
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, color, 0, 0, 0)),
              (b"IDAT", zlib.compress(filtered)), (b"IEND", b"")]  # fmt: skip
    return _PNG_SIGNATURE + b"".join(_chunk(kind, body) for kind, body in chunks)


_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def _animations() -> list[Case]:
    rgb = reference_image()
    image = _image(rgb)
    more = {"save_all": True, "append_images": [image.rotate(180), image.rotate(90)]}
    note = "first frame of 3"
    return [
        Case("animated.gif", _save(image, "GIF", **more), note=note, rgb=rgb, tolerance=6),
        Case("animated.webp", _save(image, "WEBP", lossless=True, **more), note=note, rgb=rgb),
        Case("animated.png", _save(image, "PNG", **more), note=note, rgb=rgb),
        Case("animated.avif", _save(image, "AVIF", quality=95, **more), note=note, rgb=rgb, tolerance=4),
    ]


# --- Faults -----------------------------------------------------------------------------------------------


def _faults() -> list[Case]:
    sound = {case.name: case.data for case in _formats()}
    whole = [name for name in sound if name not in ("no-extension", "wrong-extension.jpg", "junk-after-the-end.jpg")]
    jpeg = _save(_image(reference_image(240, 320)), "JPEG", quality=90)
    middle = len(jpeg) // 2
    png = bytearray(sound["plain.png"])
    png[len(png) // 2] ^= 1
    return [
        Case("empty.jpg", b"", "empty"),
        Case("only-zeros.jpg", bytes(4096), "not-an-image"),
        Case("random-bytes.jpg", np.random.default_rng(0).bytes(4096), "not-an-image"),
        Case("web-page.jpg", b"<!DOCTYPE html>\n<html><body>403 Forbidden</body></html>", "not-an-image"),
        Case("lfs-pointer.jpg", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "not-an-image"),
        Case("text.png", b"photograph goes here\n", "not-an-image"),
        *(Case(f"cut-in-half-{name}", sound[name][: len(sound[name]) // 2], "truncated") for name in whole),
        Case("cut-in-the-header.jpg", sound["baseline.jpg"][:100], "truncated"),
        Case("last-two-bytes-missing.jpg", sound["baseline.jpg"][:-2], "truncated"),
        Case("40-zeroed-bytes.jpg", jpeg[:middle] + bytes(40) + jpeg[middle + 40 :], "corrupt-scan"),
        Case("200-bytes-lost.jpg", jpeg[:middle] + jpeg[middle + 200 :], "corrupt-scan"),
        Case("one-bit-flipped.png", bytes(png), "corrupt-data"),
        Case("16000x16000.png", huge_png(16000), "too-many-pixels"),
        Case("60000x60000.gif", b"GIF89a" + struct.pack("<HHBBB", 60000, 60000, 0, 0, 0) +
             b",\0\0\0\0\1\0\1\0\0\2\2L\1\0;", "too-many-pixels"),
    ]  # fmt: skip


def huge_png(side: int) -> bytes:
    """A black and white PNG a thousand times smaller than its pixels, which fill side * side * 3 bytes as RGB."""
    row = bytes(1 + (side + 7) // 8)
    packer = zlib.compressobj(9)
    packed = b"".join([*(packer.compress(row) for _ in range(side)), packer.flush()])
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    return _PNG_SIGNATURE + _chunk(b"IHDR", header) + _chunk(b"IDAT", packed) + _chunk(b"IEND", b"")


def _lies() -> list[Case]:
    """Headers that promise what the data does not hold, or more than any image needs."""
    image = _image(reference_image())
    animated = b"acTL" + struct.pack(">II", 2, 0)
    png = _save(image, "PNG")
    gif = _save(image, "GIF")
    text = bytearray(_save(image, "PNG", pnginfo=_text()))
    text[text.index(b"a comment")] ^= 1
    return [
        Case("small-says-the-box.avif", _resized_avif(image), "corrupt-header"),
        Case("small-says-the-page.tif", _resized_tiff(image), "corrupt-header"),
        Case("small-says-the-canvas.webp", _resized_webp(image), "corrupt-data"),
        Case("frame-beyond-the-screen.gif", gif[:6] + struct.pack("<HH", 1, 1) + gif[10:], rgb=reference_image(),
             tolerance=6),
        Case("frame-of-60000x60000.gif", b"GIF89a" + struct.pack("<HHBBB", 9, 9, 0, 0, 0) + b"," +
             struct.pack("<HHHHB", 0, 0, 60000, 60000, 0) + b"\2\2L\1\0;", "too-many-pixels"),
        Case("damaged-chunk-name.png", png.replace(b"IDAT", b"ID\x80T"), "corrupt-data"),
        Case("damaged-text.png", bytes(text), "corrupt-data"),
        Case("animation-without-frames.png", png[:33] + _chunk(animated[:4], animated[4:]) + png[33:],
             note="first frame of 2", rgb=reference_image()),
        Case("more-rows-than-there-are.bmp", _heightened_bmp(), "truncated"),
        Case("endless-digits.pgm", b"P2 " + b"9" * 320 + b" 1 255\n0", "corrupt-header"),
        Case("strip.png", _save(_image(np.zeros((3, 70_000, 3), np.uint8)), "PNG"), "side-too-long"),
    ]  # fmt: skip


def _text() -> PngInfo:
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    info.add_text("Comment", "a comment")
    return info


def _heightened_bmp() -> bytes:
    """Of 16 bits with alpha, whose decoder would make up the rows that are missing."""
    data = bytearray(bmp(bytes(2 * 8 * 8), (8, 8), 16, header=108, compression=3, masks=[0x7C00, 0x3E0, 0x1F, 0x8000]))
    data[22] = 9
    return bytes(data)


def _resized_avif(image: Image) -> bytes:
    data = _save(image, "AVIF")
    size = data.index(b"ispe") + 8
    return data[:size] + struct.pack(">II", 16, 12) + data[size + 8 :]


def _resized_tiff(image: Image) -> bytes:
    """A JPEG in a page that says it is smaller."""
    data = _save(image, "TIFF", compression="jpeg")
    sizes = {struct.pack("<HHI", tag, 4, 1): 16 for tag in (256, 257, 278)}  # width, height, rows of a strip
    sizes |= {struct.pack("<HHI", tag, 3, 1): 16 for tag in (256, 257, 278)}
    for entry, value in sizes.items():
        at = data.find(entry)
        if at >= 0:
            data = data[: at + 8] + struct.pack("<I", value) + data[at + 12 :]
    return data


def _resized_webp(image: Image) -> bytes:
    canvas = b"VP8X" + struct.pack("<IB3x", 10, 0) + b"\x0f\0\0" + b"\x0b\0\0"
    chunks = canvas + _save(image, "WEBP")[12:]
    return b"RIFF" + struct.pack("<I", 4 + len(chunks)) + b"WEBP" + chunks


def _refused() -> list[Case]:
    """What is not read, and must be refused by its name."""
    image = _image(reference_image())
    box = b"\0\0\0\x18ftyp"
    jpeg = _save(image, "JPEG")
    return [
        Case("photo.cr3", box + b"crx \0\0\0\1crx isom" + bytes(64), "unsupported-raw"),
        Case("movie.mp4", box + b"isom\0\0\2\0isommp42" + bytes(64), "unsupported-video"),
        Case("layers.psd", b"8BPS\0\1" + bytes(64), "unsupported-psd"),
        Case("drawing.svg", b'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg"/>', "unsupported-svg"),
        Case("document.pdf", b"%PDF-1.7\n" + bytes(64), "unsupported-pdf"),
        Case("icon.ico", _save(image, "ICO"), "unsupported-ico"),
        Case("12-bit.jpg", jpeg.replace(b"\xff\xc0\0\x11\x08", b"\xff\xc1\0\x11\x0c"), "unsupported-jpeg"),
        Case("lossless.jpg", jpeg.replace(b"\xff\xc0\0\x11", b"\xff\xc3\0\x11"), "unsupported-jpeg"),
        Case("empty.heic", box + b"heic\0\0\0\0mif1heic", "corrupt-data"),
        Case("empty.jxl", b"\xff\x0a", "truncated"),
    ]


# --- As files ---------------------------------------------------------------------------------------------


def write(directory: Path, made: Iterable[Case]) -> None:
    """Write each case as a file, and beside them what is no readable file at all though it is named like an image."""
    directory.mkdir(parents=True, exist_ok=True)
    for case in made:
        atomic_write(directory / case.name, case.data, durable=False)
    (directory / "a-directory.jpg").mkdir(exist_ok=True)
    os.symlink("nowhere.jpg", directory / "dangling-link.jpg")
    os.symlink("looping-link.jpg", directory / "looping-link.jpg")
    (directory / "unreadable.jpg").write_bytes(b"")
    (directory / "unreadable.jpg").chmod(0)  # root reads it all the same
