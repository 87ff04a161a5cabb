"""What no image may do: cost more than its size allows, crash, or be blamed for the machine."""

from __future__ import annotations

import base64
import contextlib
import io
import struct
import subprocess
import sys
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from shardline.pipeline import image_headers, images
from shardline.pipeline.image_headers import read_header
from shardline.pipeline.image_options import ImageOptions
from shardline.pipeline.image_types import BadImage, Samples
from shardline.pipeline.images import load_rgb, process
from shardline.pipeline.sniff import sniff
from shardline.tools.image_variants import jpeg_segment, sloppy_exif_blocks, variants
from shardline.tools.image_writers import png
from shardline.tools.malformed_images import cases, reference_image

images.set_up_process()


def saved(kind: str, size: tuple[int, int] = (64, 48), **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, "teal").save(buffer, kind, **options)
    return buffer.getvalue()


# --- The size to store ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "options", "reason"),
    [
        ((70_000, 40), {}, "side-too-long"),
        ((70_000, 40), {"upscale": True}, "side-too-long"),
        ((300, 1), {"upscale": True}, "side-too-long"),
        ((300, 1), {"upscale": True, "encoding": "raw", "max_megapixels": 10}, "too-many-pixels"),
        ((3, 9_000), {"upscale": True, "size": 512, "encoding": "png"}, "too-many-pixels"),
        ((100_000, 300), {}, "side-too-long"),
        ((100_000, 300), {"resize": "none"}, "side-too-long"),
        ((70_000, 40), {"resize": "long"}, ""),
        ((70_000, 40), {"resize": "squash"}, ""),
        ((70_000, 40), {"resize": "center_crop"}, ""),
        ((300, 1), {"upscale": True, "resize": "center_crop"}, ""),
        ((70_000, 40), {"encoding": "raw"}, ""),
        ((100_000, 300), {"encoding": "png"}, ""),
    ],
)
def test_strips_are_stored_or_refused_with_a_reason(size: tuple[int, int], options: dict, reason: str) -> None:
    data, wanted = saved("PNG", size), ImageOptions(**options)
    for make in (process, load_rgb):
        if reason:
            with pytest.raises(BadImage) as caught:
                make(data, wanted)
            assert caught.value.reason == reason
            assert "becomes" in caught.value.detail or "--encoding" in caught.value.detail
        else:
            made = make(data, wanted)
            shape = (made.height, made.width) if isinstance(made, images.ProcessedImage) else made.shape[:2]
            assert max(shape) <= 100_000


# --- Headers that lie -------------------------------------------------------------------------------------


def test_decoded_sizes_are_held_against_the_headers(monkeypatch: pytest.MonkeyPatch) -> None:
    """For every format, by one check after whichever decoder."""
    small = Samples(np.zeros((9, 7, 3), np.uint8), "RGB")
    sound = {sniff(case.data): case.data for case in [*cases(), *variants()] if not case.reason}
    assert set(sound) == set(image_headers.FORMATS)
    for name, data in sound.items():
        lying = image_headers.Format(image_headers.FORMATS[name].read, lambda *_: small)
        monkeypatch.setitem(image_headers.FORMATS, name, lying)
        with pytest.raises(BadImage, match=r"corrupt-header.* holds 7x9"):
            load_rgb(data, ImageOptions())


def test_an_avif_larger_than_its_box_says_is_refused_before_it_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    avif = saved("AVIF", (1200, 900))
    size = avif.index(b"ispe") + 8
    assert read_header(avif).width == 1200
    monkeypatch.setattr(image_headers, "decode", lambda *_: pytest.fail("decoded"))
    with pytest.raises(BadImage, match="says 64x64 pixels, holds 1200x900"):
        process(avif[:size] + struct.pack(">II", 64, 64) + avif[size + 8 :], ImageOptions())


ANIMATION = (  # segfaults OpenCV 5.0.0: found by fuzzing
    "iVBORw0KGgoAAAANSUhEUgAAAIAAAABAAQMAAADoGO08AAAABlBMVEUAAAAAAP+IZVZCAAAAAnRSTlP/gAgPs2oAAAAIYWNUTAAAAAIAAAABhIqj"
    "5gAAABJJREFUeJxjYBgFo2AUjALyAAAEQAAB+YUR9wAAABpmY1RMAAAAAAAAAIAAAABAAAAAAAAAAAAACgBkAAEmEi/gAAAAFmZkQVQAAAABeJxj"
    "YBgFo2AUjALyAAAEQAABa1DDIAAAABpmgFRMAAAAAgAAAIAAAABAAAAAAAAAAAAAZABkAAHthjUlAAAAG2ZkQVQAAAADeJxj+I8GGEYFRgVGBUYF"
    "iBMAAANI/C4zddOQAAAAAElFTkSuQmCC"
)


def test_the_animation_that_crashes_opencv_is_a_bad_image() -> None:
    with pytest.raises(BadImage, match="corrupt-data"):
        process(base64.b64decode(ANIMATION), ImageOptions())


METADATA = """
def act(path):
    images.read_header(open(path, "rb").read())
"""


def test_metadata_of_a_type_that_is_no_text_does_not_kill_its_reader(tmp_path: Path) -> None:
    """As damage makes it: libheif's binding ends the process."""
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "maker"
    avif = saved("AVIF", exif=exif)
    damaged = avif.replace(b"ExifExif", b"\xff\xffifExif")
    assert damaged != avif
    (tmp_path / "damaged").write_bytes(damaged)
    assert each(METADATA, {"damaged": tmp_path / "damaged"}) == {"damaged": "0"}
    assert read_header(damaged).orientation == read_header(avif).orientation


def test_decoders_see_no_animation_and_no_text_of_a_png(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    genuine = cv2.imdecode
    monkeypatch.setattr(cv2, "imdecode", lambda data, flags: seen.append(data.tobytes()) or genuine(data, flags))
    chunks = [(b"acTL", struct.pack(">II", 2, 0)), (b"tEXt", b"Comment\0hello"), (b"gAMA", struct.pack(">I", 45455))]
    rgb = reference_image()
    assert np.array_equal(load_rgb(png(rgb, 2, chunks=chunks), ImageOptions()), rgb)
    assert seen == [png(rgb, 2)]


@pytest.mark.parametrize(
    ("color", "channels", "chunk"),
    [(0, 1, b"PLTE"), (2, 3, b"PLTE"), (4, 2, b"tRNS"), (6, 4, b"PLTE"), (6, 4, b"tRNS")],
)
def test_libpng_has_nothing_to_complain_of(
    color: int, channels: int, chunk: bytes, capfd: pytest.CaptureFixture
) -> None:
    samples = np.full((4, 4, channels), 255, np.uint8)
    shown = load_rgb(png(samples, color, chunks=[(chunk, bytes(3 * 257))]), ImageOptions())
    assert (shown == 255).all() and capfd.readouterr().err == ""


def test_gray_of_no_bits_is_damaged() -> None:
    gray = png(reference_image()[..., :1], 0, chunks=[(b"tRNS", b"\0\0")])
    head = b"IHDR" + gray[16:24] + bytes(5)
    with pytest.raises(BadImage, match="corrupt-data"):
        process(gray[:12] + head + struct.pack(">I", zlib.crc32(head)) + gray[33:], ImageOptions())


@pytest.mark.parametrize("kind", [b"tEXt", b"gAMA", b"IDAT", b"zzZz"])
def test_every_checksum_counts(kind: bytes) -> None:
    whole = png(reference_image(), 2, chunks=[] if kind == b"IDAT" else [(kind, b"\0\1\2\3")])
    at = whole.index(kind)
    damaged = whole[: at + 5] + bytes([whole[at + 5] ^ 1]) + whole[at + 6 :]
    process(whole, ImageOptions())
    with pytest.raises(BadImage, match=f"corrupt-data.*checksum of chunk {kind.decode()}"):
        process(damaged, ImageOptions())


def test_the_second_image_of_a_phone_and_its_index_are_cut_off() -> None:
    first, second = Image.fromarray(reference_image()), Image.new("RGB", (160, 120), "red")
    buffer = io.BytesIO()
    first.save(buffer, "MPO", save_all=True, append_images=[second], quality=95)
    stored = process(buffer.getvalue(), ImageOptions())
    assert stored.note.startswith("passed through less")
    assert b"MPF\0" not in stored.data and stored.data.count(b"\xff\xd8\xff") == 1 and stored.data.endswith(b"\xff\xd9")
    assert np.abs(load_rgb(stored.data, ImageOptions()).astype(int) - reference_image()).mean() < 3


# --- Faults of decoders, and of the machine ---------------------------------------------------------------


@pytest.mark.parametrize(
    "error",
    [TypeError("no"), OverflowError("large"), AttributeError("gone"), KeyError(3), RecursionError("deep"),
     ZeroDivisionError("by zero"), AssertionError("never")],
)  # fmt: skip
@pytest.mark.parametrize("where", ["read", "decode"])
def test_whatever_a_decoder_raises_is_a_bad_image(
    where: str, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise error

    genuine = image_headers.FORMATS["gif"]
    broken = image_headers.Format(fail if where == "read" else genuine.read, fail)  # type: ignore[arg-type]
    monkeypatch.setitem(image_headers.FORMATS, "gif", broken)
    for make in (process, load_rgb):
        with pytest.raises(BadImage) as caught:
            make(saved("GIF"), ImageOptions())
        assert caught.value.reason == "decoder-error" and type(error).__name__ in caught.value.detail


def no_memory() -> cv2.error:
    error = cv2.error("OpenCV(5.0.0) alloc.cpp:73: error: (-4:Insufficient memory) Failed to allocate 432000000 bytes")
    error.code = cv2.Error.StsNoMem
    return error


@pytest.mark.parametrize("error", [MemoryError(), no_memory(), RuntimeError("Failed to decode frame 0: Out of memory"),
                                   ValueError("Insufficient memory (case 4)"), OSError("std::bad_alloc")])  # fmt: skip
def test_want_of_memory_is_never_the_images_fault(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise error

    broken = image_headers.Format(image_headers.FORMATS["gif"].read, fail)  # type: ignore[arg-type]
    monkeypatch.setitem(image_headers.FORMATS, "gif", broken)
    with pytest.raises(MemoryError):
        process(saved("GIF"), ImageOptions())


@pytest.mark.parametrize(
    ("error", "reason"),
    [(ValueError("Memory allocation error: Invalid image size: zero width or height"), "corrupt-data"),
     (EOFError("Decoder plugin generated an error: Unexpected end of file"), "truncated")],
)  # fmt: skip
def test_what_libheif_says_of_damage_is_the_images_fault(error: Exception, reason: str) -> None:
    fault = image_headers.fault_of(error, "heic")
    assert isinstance(fault, BadImage) and fault.reason == reason


# Does `act` with each file in a process of its own, and prints how each ended: 0, or what it died of. The libraries,
# which take longer to import than most files, are imported once.
EACH = """
import os, resource, sys
from shardline.pipeline import images
images.set_up_process()

def allow(megabytes):
    pages = int(open("/proc/self/statm").read().split()[0])
    limit = pages * resource.getpagesize() + (megabytes << 20)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))

{act}

for path in sys.argv[1:]:
    if not (child := os.fork()):
        code = 1
        try:
            act(path)
            code = 0
        finally:
            os._exit(code)  # and not through what the parent has to do at its end
    print(os.waitpid(child, 0)[1], flush=True)
"""


def each(act: str, files: dict[str, Path]) -> dict[str, str]:
    """How the process of each of these files ended, by its name; nothing may be said."""
    command = [sys.executable, "-c", EACH.replace("{act}", act), *map(str, files.values())]
    done = subprocess.run(command, capture_output=True, text=True, env={"PYTHONPATH": ":".join(sys.path)})
    assert (done.returncode, done.stderr) == (0, "")
    return dict(zip(files, done.stdout.split(), strict=True))


LITTLE_MEMORY = """
def act(path):
    options = images.ImageOptions(encoding="raw")
    small, large = (open(path + end, "rb").read() for end in (".small", ""))
    images.process(small, options)  # the libraries of its format are loaded
    allow(20)
    try:
        images.process(large, options)
    except MemoryError:
        return
    os._exit(1)
"""
KINDS = ("AVIF", "JPEG2000", "WEBP", "PNG", "GIF", "BMP", "TIFF", "JPEG")


def test_an_image_too_large_for_the_memory_left_is_no_bad_image(tmp_path: Path) -> None:
    """Whatever its decoder makes of that: some call it damage."""
    for kind in KINDS:
        for end, size in {".small": (64, 48), "": (5000, 4000)}.items():
            options = {"AVIF": {"quality": 30, "speed": 10}, "JPEG": {"progressive": True}}.get(kind, {})
            (tmp_path / f"{kind}{end}").write_bytes(saved(kind, size, **options))
    assert each(LITTLE_MEMORY, {kind: tmp_path / kind for kind in KINDS}) == dict.fromkeys(KINDS, "0")


# --- The price of a header --------------------------------------------------------------------------------

MANY = 300_000


def box(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I4s", 8 + len(body), kind) + body


def tiff_of(entries: bytes, count: int, following: int = 0) -> bytes:
    return b"II*\0" + struct.pack("<IH", 8, count) + entries + struct.pack("<I", following)


def hostile_png(*chunks: tuple[bytes, bytes]) -> bytes:
    return png(np.zeros((4, 4, 3), np.uint8), 2, chunks=chunks)


def hostile_jpeg(*segments: bytes) -> bytes:
    jpeg = saved("JPEG")
    return jpeg[:2] + b"".join(segments) + jpeg[2:]


BOMB = zlib.compress(bytes(1 << 28), 9)  # 256 MB in 260 KB
EXIF = jpeg_segment(0xE1, b"Exif\0\0" + sloppy_exif_blocks(1, tags=5000)["overlapping-tags"])
HOSTILE: dict[str, Callable[[], bytes]] = {
    "JPEG, 5,000 tags over the same bytes": lambda: hostile_jpeg(EXIF),
    "JPEG, 200 such blocks": lambda: hostile_jpeg(*[EXIF.replace(b"\x12\1", b"\x13\1")] * 200),
    "JPEG, fill bytes": lambda: hostile_jpeg(b"\xff" * 20_000_000),
    "JPEG, empty segments": lambda: hostile_jpeg(*[jpeg_segment(0xEC, b"")] * MANY),
    "JPEG, Huffman tables": lambda: hostile_jpeg(
        *[jpeg_segment(0xC4, bytes([i % 4, *[0] * 16]) * 3000) for i in range(300)]
    ),
    "JPEG, XMP": lambda: hostile_jpeg(*[jpeg_segment(0xE1, b"http" + b"tiff:Orientation " * 3000)] * 300),
    "PNG, chunks": lambda: hostile_png(*[(b"teXt", b"")] * MANY),
    "PNG, texts": lambda: hostile_png(*[(b"tEXt", b"Comment\0" + bytes(1 << 20))] * 60),
    "PNG, texts that inflate": lambda: hostile_png(*[(b"zTXt", b"Raw profile type exif\0\0" + BOMB)] * 40),
    "PNG, XMP that inflates": lambda: hostile_png(*[(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + BOMB)] * 40),
    "PNG, profile that inflates": lambda: hostile_png((b"iCCP", b"x\0\0" + BOMB)),
    "GIF, comments": lambda: saved("GIF")[:-1] + b"!\xfe" + b"\1x" * 10_000_000 + b"\0;",
    "GIF, comments first": lambda: saved("GIF")[:781] + b"!\xfe" + b"\1x" * 10_000_000 + b"\0" + saved("GIF")[781:],
    "GIF, frames": lambda: saved("GIF")[:-1] + (b"," + bytes(8) + b"\0\2\0") * MANY + b";",
    "TIFF, tags over the same bytes": lambda: tiff_of(
        b"".join(struct.pack("<HHII", i, 1, 700_000, 8) for i in range(65_535)), 65_535
    ),
    "TIFF, one tag again and again": lambda: tiff_of(struct.pack("<HHII", 273, 4, 100_000, 8) * 65_535, 65_535),
    "TIFF, a page that follows itself": lambda: tiff_of(
        struct.pack("<HHII", 256, 4, 1, 9) * 65_535, 65_535, following=8
    ),
    "TIFF, values of 2**32": lambda: tiff_of(struct.pack("<HHII", 273, 4, 0xFFFFFFFF, 8), 1),
    "BigTIFF, 2**63 tags": lambda: b"II+\0" + struct.pack("<HHQQ", 8, 0, 16, 1 << 63) + bytes(1000),
    "TIFF, XMP": lambda: tiff_of(struct.pack("<HHII", 700, 1, 1 << 23, 8), 1) + b"tiff:Orientation " * (1 << 19),
    "WebP, chunks": lambda: b"RIFF" + struct.pack("<I", 4 + 8 * MANY) + b"WEBP" + b"ABCD\0\0\0\0" * MANY,
    "AVIF, boxes": lambda: box(b"ftyp", b"avif\0\0\0\0avif") + box(b"free", b"") * MANY,
    "AVIF, items": lambda: box(b"ftyp", b"avif\0\0\0\0avif")
    + box(b"meta", bytes(4) + box(b"iloc", bytes(4) + b"\x44\0" + b"\xff\xff" + bytes(3_000_000))),
    "AVIF, chunks of tracks": lambda: box(b"ftyp", b"avis\0\0\0\0avif") + box(b"moov", b"stco" * MANY),
    "JPEG 2000, boxes": lambda: b"\0\0\0\x0cjP  \r\n\x87\n" + box(b"jp2h", box(b"colr", b"\1\0\0") * 9000) * 30,
    "JPEG XL, parts": lambda: b"\0\0\0\x0cJXL \r\n\x87\n" + box(b"jxlp", bytes(5)) * MANY,
    "HEIC, boxes": lambda: box(b"ftyp", b"heic\0\0\0\0heic") + box(b"free", b"") * MANY,
    "HEIC, items": lambda: box(b"ftyp", b"heic\0\0\0\0heic")
    + box(b"meta", bytes(4) + box(b"iloc", bytes(4) + b"\x44\0" + b"\xff\xff" + bytes(3_000_000))),
    "PNM, a comment": lambda: b"P6\n#" + b"x" * 20_000_000 + b"\n1 1 255\n\0\0\0",
    "PNM, comments": lambda: b"P6\n" + b"#\n" * 10_000_000 + b"1 1 255\n\0\0\0",
    "BMP, colors": lambda: b"BM" + struct.pack("<IHHI", 0, 0, 0, 54)
    + struct.pack("<IiiHHIIiiII", 40, 1, 1, 1, 8, 0, 0, 0, 0, 65_536, 0) + bytes(4 * 65_536 + 4),
}  # fmt: skip

PRICE = """
def read(data):
    try:
        images.read_header(data)
    except images.BadImage:
        pass

def act(path):
    data = open(path, "rb").read()
    read(data[:64])  # the libraries of its format are loaded
    allow(50)
    used = resource.getrusage(resource.RUSAGE_SELF)
    seconds = int(used.ru_utime + used.ru_stime) + 2
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    for turn in range(10):
        read(data)
"""


def test_no_header_costs_50_milliseconds_or_50_megabytes(tmp_path: Path) -> None:
    """Ten times within a second of processor time, of a busy machine, and 50 MB of address space, whatever it says."""
    files = {name: tmp_path / str(number) for number, name in enumerate(HOSTILE)}
    for name, path in files.items():
        path.write_bytes(HOSTILE[name]())
    assert each(PRICE, files) == dict.fromkeys(HOSTILE, "0")
    for path in files.values():
        path.unlink()  # 150 MB


@pytest.mark.parametrize("comments", [b"#x\n" * 500_000, b"#\n1 " * 500_000])
def test_comments_of_a_portable_map_cost_no_memory_of_their_own(comments: bytes) -> None:
    whole = b"P2 3 1 255 #\n7#\n#\r8 # 3\n9 "
    assert load_rgb(whole + comments, ImageOptions(resize="none"))[0, :, 0].tolist() == [7, 8, 9]
    tracemalloc.start()
    with pytest.raises(BadImage) if comments[1:2] == b"x" else contextlib.nullcontext():
        process(b"P2 2 2 255 " + comments, ImageOptions())
    assert tracemalloc.get_traced_memory()[1] < 8 * len(comments)
    tracemalloc.stop()


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_headers_end_in_an_image_or_a_bad_one(name: str) -> None:
    try:
        process(HOSTILE[name](), ImageOptions(max_megapixels=1))
    except BadImage as bad:
        assert bad.reason != "decoder-error", bad
