"""pipeline.images and pipeline.image_headers: every format right, every fault refused, sizes and colors true."""

from __future__ import annotations

import io
import math
import re
import struct
import subprocess
import sys

import cv2
import imagecodecs
import numpy as np
import pytest
import simplejpeg
from PIL import Image, ImageFilter, ImageOps

from shardline.pipeline import color, image_pixels, images, opencv
from shardline.pipeline.errors import UsageError
from shardline.pipeline.image_headers import FORMATS, decode, read_header
from shardline.pipeline.image_options import ImageOptions
from shardline.pipeline.image_types import BadImage, Header, Samples
from shardline.pipeline.images import FilteredImage, load_rgb, process
from shardline.pipeline.jpeg import JpegHeader
from shardline.pipeline.sniff import UNSUPPORTED, sniff
from shardline.tools import malformed_images
from shardline.tools.image_variants import jpeg_segment, profile_of, variants
from shardline.tools.image_writers import GRAY, WHITE_IS_ZERO, tiff
from tests.few import few

images.set_up_process()

CASES = malformed_images.cases()
SOUND = [case for case in CASES if not case.reason]
AS_IS = ImageOptions(resize="none")


def save(rgb: np.ndarray, kind: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(rgb).save(buffer, kind, **options)
    return buffer.getvalue()


def natural(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Noise whose spectrum falls as 1/f and whose colors mostly go together, as those of photographs do."""
    rng = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)[None])
    frequency[0, 0] = 1
    noise = rng.standard_normal((4, height, width))
    waves = np.fft.fft2(noise[0] + 0.4 * noise[1:]) / frequency
    rgb = np.moveaxis(np.fft.ifft2(waves).real, 0, -1)
    return np.clip(128 + 50 * rgb / rgb.std(), 0, 255).astype(np.uint8)


def decoded(stored: bytes) -> np.ndarray:
    return cv2.imdecode(np.frombuffer(stored, np.uint8), cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION)


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    return float(10 * np.log10(255**2 / np.mean((a.astype(float) - b.astype(float)) ** 2)))


# --- Formats and colors ----------------------------------------------------------------------------------


def pillow(data: bytes) -> np.ndarray:
    """The same file as an independent reader shows it: oriented, over white, 16 bits scaled."""
    image = Image.open(io.BytesIO(data))
    image.load()
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16"):
        return np.repeat(np.rint(np.asarray(image) / 257).astype(np.uint8)[..., None], 3, axis=2)
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        white.alpha_composite(image)
        image = white
    return np.asarray(image.convert("RGB"))


@pytest.mark.parametrize("case", SOUND, ids=lambda case: case.name)
def test_every_format_looks_as_pillow_shows_it(case: malformed_images.Case) -> None:
    assert case.rgb is not None
    own_way = case.name in ("16-bit.ppm", "16-bit-alpha.png")  # Pillow cuts these 16 bits in its own way
    expected, tolerance = (case.rgb, 1.0) if own_way else (pillow(case.data), 0.5)
    assert np.abs(load_rgb(case.data, AS_IS).astype(int) - expected).mean() < tolerance


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_is_applied_in_every_format(kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = save(malformed_images.reference_image(40, 64), kind, exif=exif)
    image = process(data, ImageOptions(size=32))
    assert (image.source_height, image.source_width) == ((64, 40) if orientation >= 5 else (40, 64))
    assert np.array_equal(load_rgb(data, AS_IS), pillow(data))
    assert b"Exif\0\0" not in image.data


def test_sixteen_bits_are_scaled_not_clipped() -> None:
    dark = np.full((8, 8), 300, np.uint16)  # 1.2 % gray; clipping would make it white
    assert load_rgb(save(dark), AS_IS).max() == 1


@pytest.mark.parametrize(
    ("highest", "note"), [(3000, "uses 3,000 of 65,535 levels"), (4080, "uses 4,080 of 65,535 levels"), (40_000, "")]
)
def test_a_depth_little_used_is_noted_and_can_be_scaled(highest: int, note: str) -> None:
    """Reflectance from 0 to 3,000 or CT from 0 to 4,080 in 16 bits is nearly black as it stands."""
    ramp = np.linspace(0, highest, 64 * 48).astype(np.uint16).reshape(48, 64)
    for data in (save(ramp, "PNG"), save(ramp, "TIFF")):
        full, scaled = (process(data, ImageOptions(depth_range=value)) for value in ("full", "image"))
        assert full.note == note and scaled.note.startswith("levels 0 to")
        shown = load_rgb(data, ImageOptions(depth_range="image"))
        assert (shown.min(), shown.max()) == (0, 255) and abs(shown.mean() - 127.5) < 1
        assert np.array_equal(load_rgb(data, ImageOptions(depth_range=f"0,{highest}")), shown)
        brighter = load_rgb(data, ImageOptions(depth_range=f"{highest / 4},{highest / 2}"))
        assert (brighter == 0).mean() > 0.24 and (brighter == 255).mean() > 0.49
        assert load_rgb(data, AS_IS).max() == round(highest / 257)


def test_a_range_is_for_more_than_8_bits_alone() -> None:
    for rgb in (malformed_images.reference_image(), malformed_images.reference_image()[..., 0]):
        for depth_range in ("image", "100,200"):
            assert np.array_equal(
                load_rgb(save(rgb), ImageOptions(depth_range=depth_range)), load_rgb(save(rgb), AS_IS)
            )


@pytest.mark.parametrize("kind", ["f2", "f4", "f8", "i2", "u4"])
def test_samples_without_a_range_of_their_own_need_one(kind: str) -> None:
    """Floats, signed and 32-bit numbers: refused by name, or scaled as asked; what is no number is black."""
    ramp = np.linspace(-1000, 3000, 64 * 48).reshape(48, 64, 1) + (1000 if kind == "u4" else 0)
    if kind[0] == "f":
        ramp[0, 0], ramp[0, 1] = np.nan, np.inf
        data = tiff(ramp.astype(kind), GRAY)
    else:
        formats = [(339, 3, [2])] if kind == "i2" else []
        data = tiff(ramp.astype(np.int64), GRAY, 8 * int(kind[1]), tags=formats)
    with pytest.raises(BadImage, match=r"unsupported-tiff.*depth_range"):
        process(data, AS_IS)
    low, high = (0, 4000) if kind == "u4" else (-1000, 3000)
    for depth_range in ("image", f"{low},{high}"):
        shown = load_rgb(data, ImageOptions(depth_range=depth_range))
        assert abs(shown.mean() - 127.5) < 1.5 and np.ptp(shown[1:]) >= 249
    assert load_rgb(data, ImageOptions(depth_range="image"))[0, 0, 0] <= 1


@pytest.mark.parametrize("kind", ["f4", "i2", "u2", "u4"])
def test_levels_are_those_of_the_file_where_white_is_zero(kind: str) -> None:
    """An X-ray of 12 bits in 16, dark where levels are high."""
    levels = np.linspace(0, 4095, 64 * 48).reshape(48, 64, 1)
    formats = [(339, 3, [{"f": 3, "i": 2, "u": 1}[kind[0]]])]
    samples = levels.astype(kind) if kind == "f4" else levels.astype(np.int64)
    data = tiff(samples, WHITE_IS_ZERO, 8 * int(kind[1]), tags=formats)
    for depth_range in ("0,4095", "image"):
        shown = load_rgb(data, ImageOptions(depth_range=depth_range))[..., 0]
        assert np.abs(shown - (255 - levels[..., 0] / 4095 * 255)).max() <= 1


@pytest.mark.parametrize(("kind", "opaque"), [("f4", 1), ("i2", 32767), ("u4", 2**32 - 1)])
def test_alpha_has_the_range_of_its_type_whatever_the_levels(kind: str, opaque: int) -> None:
    """Gray 50 of 100 at half the opacity, over white."""
    half = opaque / 2 if kind == "f4" else opaque // 2
    samples = np.broadcast_to(np.array([50, half]), (8, 8, 2))
    formats = [(339, 3, [2, 2])] if kind == "i2" else []
    samples = samples.astype(kind) if kind == "f4" else samples.astype(np.int64)
    data = tiff(samples, GRAY, 8 * int(kind[1]), extra=[2], tags=formats)
    assert np.abs(load_rgb(data, ImageOptions(depth_range="0,100")).astype(int) - 191).max() <= 1


def test_an_image_with_nothing_to_see_is_noted() -> None:
    """A clipboard that left alpha empty, a white sign on nothing; not what has a color somewhere."""
    rgb = malformed_images.reference_image()
    alpha = np.zeros_like(rgb[..., :1])
    white, note = np.full_like(rgb, 255), "transparent or white everywhere"
    for kind in ("PNG", "TIFF", "WEBP"):
        assert process(save(np.dstack([rgb, alpha]), kind), AS_IS).note == note
        assert process(save(np.dstack([white, alpha + 9]), kind), AS_IS).note == note
    alpha[3, 3] = 255
    assert process(save(np.dstack([rgb, alpha])), AS_IS).note == ""
    assert process(save(white), AS_IS).note == ""


@pytest.mark.parametrize("value", ["most", "1", "5,5", "9,1", "a,b", "0,inf", "nan,1", ""])
def test_a_depth_range_that_cannot_be_is_refused(value: str) -> None:
    with pytest.raises(UsageError, match=r"depth_range=.*0,4095"):
        ImageOptions(depth_range=value)
    assert ImageOptions(depth_range="0.50,4095").depth_range == "0.5,4095"
    assert ImageOptions(depth_range="16777215,16777216").depth_range == "16777215,16777216"


def test_alpha_is_blended_exactly() -> None:
    color, alpha = np.meshgrid(np.arange(256), np.arange(256))
    straight = np.floor((color * alpha + 255 * (255 - alpha)) / 255 + 0.5)
    levels = color.astype(np.uint8)[..., None], alpha.astype(np.uint8)[..., None]
    assert np.array_equal(image_pixels._over_white(*levels, associated=False)[..., 0], straight)
    assert np.array_equal(
        image_pixels._over_white(*levels, associated=True)[..., 0], np.minimum(color + 255 - alpha, 255)
    )


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_large_images_are_decoded_like_small_ones(case: malformed_images.Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through a file in memory: the same pixels, the same refusals."""

    def outcome() -> bytes | str:
        try:
            return process(case.data, ImageOptions(encoding="raw")).data
        except BadImage as bad:
            return bad.reason

    small = outcome()
    monkeypatch.setattr(opencv, "LARGE_BYTES", 0)
    assert outcome() == small


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_is_applied_to_large_images(kind: str, orientation: int, monkeypatch) -> None:
    """Reduced before they are turned, and through a file in memory."""
    monkeypatch.setattr(opencv, "LARGE_BYTES", 0)
    exif = Image.Exif()
    exif[0x0112] = orientation
    rgb = cv2.GaussianBlur(natural(320, 480), (0, 0), 2)
    data = save(rgb, kind, exif=exif)
    got = load_rgb(data, ImageOptions(size=40))
    want = Image.fromarray(pillow(data)).resize(got.shape[1::-1], Image.Resampling.LANCZOS)
    assert psnr(got, np.asarray(want)) > 34


@pytest.mark.parametrize("depth", [8, 16])
@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("halvings", [0, 1, 3])
def test_large_images_are_made_bgr_and_halved_in_bands(depth: int, channels: int, halvings: int) -> None:
    stored = natural(640, 480)[..., [0, 1, 2, 0][:channels]].squeeze()
    pixels = stored.copy() if depth == 8 else stored.astype(np.uint16) * 257
    samples = Samples(pixels, {1: "L", 3: "BGR", 4: "BGRA"}[channels], 255 if depth == 8 else 65535)
    want = stored[..., None].repeat(3, axis=2) if channels == 1 else stored
    if channels == 4:
        want = image_pixels._over_white(stored[..., :3], stored[..., 3:], associated=False)
    for _ in range(halvings):
        want = image_pixels.halve(want)
    got, note = image_pixels._to_bgr(samples, Header("png", 480, 640), color.conversion_of(samples), halvings, "full")
    assert np.array_equal(got, want) and note == ""


def test_ten_bit_avif_is_scaled_by_its_own_depth() -> None:
    rgb = malformed_images.reference_image()
    avif = cv2.imencode(".avif", rgb[..., ::-1].astype(np.uint16) << 2, [cv2.IMWRITE_AVIF_DEPTH, 10])[1].tobytes()
    assert np.abs(load_rgb(avif, AS_IS).astype(int) - rgb).mean() < 4


def test_xmp_before_exif_hides_no_orientation() -> None:
    exif = Image.Exif()
    exif[0x0112] = 3
    jpeg = save(malformed_images.reference_image(), "JPEG", exif=exif)
    xmp = b"http://ns.adobe.com/xap/1.0/\0<x:xmpmeta/>"
    jpeg = jpeg[:2] + b"\xff\xe1" + (len(xmp) + 2).to_bytes(2, "big") + xmp + jpeg[2:]
    assert read_header(jpeg).orientation == 3


def test_formats_are_told_by_content_and_names_are_unique() -> None:
    assert {sniff(case.data) for case in [*SOUND, *variants()]} == set(FORMATS)
    assert not set(FORMATS) & set(UNSUPPORTED)
    assert sniff(b"P6 2 2 255\n") == "pnm" and sniff(b"PNG, not really") == ""


@pytest.mark.parametrize("kind", ["DDS", "EPS", "ICNS", "ICO", "PCX", "PDF", "SGI", "TGA"])
def test_a_sound_file_of_another_format_is_refused_by_name(kind: str) -> None:
    with pytest.raises(BadImage, match=rf"^unsupported-{kind.lower()}: .* convert it to PNG or JPEG$"):
        load_rgb(save(np.full((32, 32, 3), 99, np.uint8), kind), AS_IS)


@pytest.mark.parametrize(("kind", "levels", "dtype"), [("5", b"255", "u1"), ("6", b"255", "u1"), ("6", b"999", ">u2")])
def test_line_ends_of_windows_shift_no_sample_of_a_binary_pnm(kind: str, levels: bytes, dtype: str) -> None:
    shape = (5, 7, 3)[: 3 if kind == "6" else 2]
    wanted = np.arange(10, 10 + math.prod(shape)).reshape(shape)  # the first is a line feed
    for end, rest in ((b"\r\n", b""), (b"\n", b"\n"), (b"\r", b""), (b"\n", b"")):
        data = b"P%b%b7 5%b%b%b" % (kind.encode(), end, end, levels, end) + wanted.astype(dtype).tobytes() + rest
        assert (decode(data, read_header(data)).pixels == wanted).all(), end


_OLD_TGA = b"\0\0\2" + bytes(9) + b"\4\0\4\0\x18\0" + bytes(48)


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("tga", _OLD_TGA), ("tga", _OLD_TGA.replace(b"\0\0\2", b"\0\0\x0b").replace(b"\x18\0", b"\x08\x20")),
        ("xbm", b"#define im_width 8\n#define im_height 8\nstatic char im_bits[] = {\n0x00};"),
        ("xpm", b"/* XPM */\nstatic char *a[] = {"), ("sun", b"\x59\xa6\x6a\x95"), ("pam", b"P7 332\n4 4 255\n"),
        ("pfm", b"PF 1 1 -1.0 "), ("raw", b"IIU\0\x18\0\0\0"), ("raw", b"IIRO\x08\0\0\0"), ("raw", b"FOVb"),
        ("raw", b"\0MRM"), ("svg", b"<!-- by hand -->\n<svg>"), ("video", b"\0\0\1\xba"),
        ("raw", b"II\x1a\0\0\0HEAPCCDR"), ("dpx", b"SDPX"), ("ktx", b"\xabKTX 11\xbb"), ("hdf5", b"\x89HDF\r\n"),
        ("nifti", bytes(344) + b"n+1\0"), ("iff", b"FORM\0\0\0\x50ILBMBMHD"), ("ico", b"RIFF\0\0\0\0ACONLIST"),
        ("bmp-array", b"BA\x0e\0"), ("pcx", b"\x0a\3\1\1"), ("eps", b"\xc5\xd0\xd3\xc6"),
        ("flif", b"FLIF31"), ("jbig2", b"\x97JB2\r\n"), ("video", b"\0\0\0\x08wide\0\0\0\0mdat"),
    ],
)  # fmt: skip
def test_what_is_not_read_is_refused_by_what_it_is(name: str, data: bytes) -> None:
    with pytest.raises(BadImage, match=rf"^unsupported-{name}: .* convert it to PNG or JPEG$"):
        load_rgb(data + bytes(40), AS_IS)


def test_targa_is_told_by_more_than_zeros_and_c_is_no_bitmap() -> None:
    texts = b"#define WIDTH 8\n" * 9, b"#define a_height 8", bytes(16) + b"\x18" + bytes(99), b"\0\0\2" + bytes(99)
    assert {sniff(data) for data in texts} == {""}


def test_a_palette_that_nothing_maps_is_no_image() -> None:
    palette = next(case for case in variants() if case.name == "palette-8-bit-of-8-bit-colors.jp2")
    with pytest.raises(BadImage, match=r"^corrupt-data: JPEG 2000: 1 components for RGB"):
        load_rgb(palette.data.replace(b"cmap", b"free"), AS_IS)


def test_jpeg_ls_is_no_damaged_jpeg() -> None:
    with pytest.raises(BadImage, match=r"^unsupported-jpeg: JPEG-LS is not read"):
        load_rgb(imagecodecs.jpegls_encode(np.full((32, 32), 99, np.uint8)), AS_IS)


@pytest.mark.parametrize("data", [b"RIFF\0\1\0\0AVI LIST", b"\x1a\x45\xdf\xa3\x01\0\0\0", b"\0\0\0\x18ftypmp42"])
def test_a_video_is_called_one(data: bytes) -> None:
    assert sniff(data + bytes(60)) == "video"


# --- Pass-through -----------------------------------------------------------------------------------------


def test_a_small_jpeg_passes_through_untouched() -> None:
    jpeg = save(malformed_images.reference_image(), "JPEG", quality=100)
    assert process(jpeg, ImageOptions(quality=50)).data == jpeg
    assert process(jpeg, ImageOptions(quality=50, size=64)).data != jpeg
    assert process(jpeg, ImageOptions(encoding="png")).data[:4] == b"\x89PNG"


def test_only_metadata_and_what_follows_the_end_are_taken_from_a_passing_jpeg() -> None:
    rgb = natural(90, 120)
    exif = Image.Exif()
    exif[0x010E] = "a name"
    options = {"quality": 97, "progressive": True}  # many scans to walk
    bare = save(rgb, "JPEG", **options)
    dressed = save(rgb, "JPEG", exif=exif, xmp=b"<x:xmpmeta/>", icc_profile=profile_of("sRGB"), **options)
    assert len(dressed) > len(bare)
    assert process(dressed + b"\xff\xd8 film \xff\xd9", ImageOptions()).data == bare


def test_what_few_decoders_read_is_encoded_anew() -> None:
    for name in ("cmyk-untold.jpg", "ycck.jpg", "orientation-3.jpg"):
        case = next(case for case in CASES if case.name == name)
        stored = process(case.data, ImageOptions()).data
        header = read_header(stored)
        assert isinstance(header, JpegHeader)
        assert (header.components, header.orientation, header.passes_through) == (3, 1, True)


@pytest.mark.parametrize("name", ["photo.heic", "turned-1.avif", "rgb-8-bit.jp2", "packed-jpeg-orientation-6.jxl"])
def test_what_follows_the_last_box_is_no_part_of_an_image(name: str) -> None:
    case = next(case for case in variants() if case.name == name)
    for trailer in (b"\n", bytes(100), b"a trailer that is no box" * 9, b"\0\0\1\0mpvd, cut"):
        assert np.array_equal(load_rgb(case.data + trailer, AS_IS), load_rgb(case.data, AS_IS))


@pytest.mark.parametrize("progressive", [False, True])
def test_a_jpeg_that_was_cut_after_a_whole_scan_is_no_image(progressive: bool) -> None:
    """Every decoder shows it, gray or coarse, and none complains."""
    whole = save(natural(64, 96), "JPEG", quality=90, progressive=progressive) if progressive else _scan_by_scan()
    scans = [found.start() for found in re.finditer(rb"\xff\xda", whole)]
    assert len(scans) == (10 if progressive else 3)
    assert np.array_equal(load_rgb(whole, AS_IS), pillow(whole))
    for scan in scans[1:]:
        cut = whole[: whole.rindex(b"\xff\xc4", 0, scan) if progressive else scan] + b"\xff\xd9"
        assert pillow(cut).shape == pillow(whole).shape
        with pytest.raises(BadImage, match=r"^truncated: JPEG: scans are missing"):
            load_rgb(cut, AS_IS)


def _scan_by_scan() -> bytes:
    """A JPEG of 8x8 pixels with a scan for each of its components: red."""
    tables = jpeg_segment(0xDB, bytes([0, *[4] * 64])) + jpeg_segment(
        0xC4, b"\0" + bytes([0, 0, 0, 8, *[0] * 12]) + bytes(range(8)) + b"\x10" + bytes([1, *[0] * 15]) + b"\0"
    )
    frame = jpeg_segment(0xC0, struct.pack(">BHHB", 8, 8, 8, 3) + b"".join(bytes([i, 0x11, 0]) for i in (1, 2, 3)))
    scans = [jpeg_segment(0xDA, bytes([1, i, 0, 0, 63, 0])) for i in (1, 2, 3)]
    levels = [f"{7:04b}" + f"{127 - 104:07b}", f"{7:04b}" + f"{127 - 86:07b}", f"{7:04b}" + f"{127:07b}"]
    data = [int((level + "0").ljust(16, "1"), 2).to_bytes(2, "big") for level in levels]
    return b"\xff\xd8" + tables + frame + b"".join(a + b for a, b in zip(scans, data, strict=True)) + b"\xff\xd9"


# --- Faults -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", [case for case in CASES if case.reason], ids=lambda case: case.name)
def test_every_fault_is_refused_with_its_reason(case: malformed_images.Case) -> None:
    with pytest.raises(BadImage) as caught:
        process(case.data, ImageOptions())
    assert (caught.value.reason, caught.value.status) == (case.reason, "quarantined")


@pytest.mark.parametrize("case", SOUND, ids=lambda case: case.name)
def test_no_truncated_file_is_written(case: malformed_images.Case) -> None:
    data = case.data[:-5000] if case.name == "junk-after-the-end.jpg" else case.data
    for length in np.linspace(1, len(data) - 13, 20).astype(int):  # not the end of a PNG, the padding of a TIFF
        with pytest.raises(BadImage):
            process(data[:length], ImageOptions())


def test_damage_anywhere_is_a_bad_image_or_an_image_never_another_error() -> None:
    rng = np.random.default_rng(1)
    outcomes = set()
    for case in SOUND:
        for turn in range(12):
            damaged = bytearray(case.data)
            where = rng.integers(0, min(len(damaged), 300 if turn % 2 else 1 << 30), 4)
            for position in where:
                damaged[position] = rng.integers(256)
            try:
                process(bytes(damaged), ImageOptions(size=64))
                outcomes.add("image")
            except BadImage as bad:
                outcomes.add(bad.reason)
    assert {"image", "corrupt-scan", "corrupt-data", "truncated", "not-an-image"} <= outcomes


def test_forty_zeroed_bytes_are_found_wherever_they_lie() -> None:
    jpeg = save(cv2.GaussianBlur(natural(160, 240), (0, 0), 1), "JPEG", quality=85)
    start = read_header(jpeg).scan
    silent = positions = 0
    for position in range(start, len(jpeg) - 50, 97):
        damaged = jpeg[:position] + bytes(40) + jpeg[position + 40 :]
        with pytest.raises(BadImage, match="corrupt-scan"):
            process(damaged, ImageOptions())
        positions += 1
        try:
            simplejpeg.decode_jpeg(damaged)
            silent += 1
        except ValueError:
            pass
    assert silent > positions / 2  # libjpeg alone lets most of these through without a warning


@pytest.mark.parametrize("optimize", [False, True])
@pytest.mark.parametrize("progressive", [False, True])
def test_flat_images_are_not_taken_for_zeroed_ones(optimize: bool, progressive: bool) -> None:
    for level in (0, 128, 255):
        for quality in (10, 75, 100):
            flat = np.full((300, 400, 3), level, np.uint8)
            flat[:40, :40] = 99
            process(save(flat, "JPEG", quality=quality, optimize=optimize, progressive=progressive), ImageOptions())


def test_the_pixel_limit_is_read_from_the_header_before_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr(cv2, "imdecode", never)
    monkeypatch.setattr(simplejpeg, "decode_jpeg", never)
    bomb = malformed_images.huge_png(16000)
    assert len(bomb) < 32_000
    for data in (bomb, *(case.data for case in SOUND)):
        with pytest.raises(BadImage, match="too-many-pixels"):
            process(data, ImageOptions(max_megapixels=0.01))
    with pytest.raises(FilteredImage, match="too-small"):
        process(SOUND[0].data, ImageOptions(min_side=121))


def test_a_bad_image_survives_the_way_between_processes() -> None:
    import pickle

    bad = pickle.loads(pickle.dumps(FilteredImage("too-small", "1x1")))
    assert (type(bad), bad.reason, bad.detail, bad.status) == (FilteredImage, "too-small", "1x1", "filtered")


# --- Geometry ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "options", "expected"),
    [
        ((300, 400), {}, (256, 341)),
        ((400, 300), {}, (341, 256)),
        ((300, 400), {"resize": "long"}, (192, 256)),
        ((300, 400), {"resize": "squash"}, (256, 256)),
        ((300, 400), {"resize": "center_crop"}, (256, 256)),
        ((300, 400), {"resize": "none"}, (300, 400)),
        ((300, 400), {"resize": "center_crop", "size": 255}, (255, 255)),
        ((100, 200), {}, (100, 200)),
        ((100, 200), {"upscale": True}, (256, 512)),
        ((100, 400), {"resize": "squash"}, (100, 256)),
        ((100, 400), {"resize": "squash", "upscale": True}, (256, 256)),
        ((100, 400), {"resize": "center_crop"}, (100, 256)),
        ((100, 400), {"resize": "center_crop", "upscale": True}, (256, 256)),
        ((1, 1), {}, (1, 1)),
        ((1, 1), {"upscale": True, "size": 16}, (16, 16)),
        ((1, 900), {"resize": "long", "size": 32}, (1, 32)),
        ((900, 2), {"resize": "long", "size": 32}, (32, 1)),
        ((3, 2000), {"resize": "squash", "size": 32}, (3, 32)),
        ((257, 257), {}, (256, 256)),
    ],
)
@pytest.mark.parametrize("encoding", ["jpeg", "png", "raw"])
def test_sizes(source: tuple[int, int], options: dict, expected: tuple[int, int], encoding: str) -> None:
    data = save(natural(*source), "JPEG", quality=95)
    wanted = ImageOptions(encoding=encoding, **options)
    image = process(data, wanted)
    assert (image.height, image.width) == expected
    assert load_rgb(data, wanted).shape == (*expected, 3)
    if encoding == "raw":
        assert len(image.data) == expected[0] * expected[1] * 3
    else:
        assert decoded(image.data).shape == (*expected, 3)


@pytest.mark.parametrize("size", few([700, 512, 400, 300, 223, 150, 101, 64, 40], 700, 223, 64))
def test_resizing_is_as_true_to_lanczos_as_opencv_area(size: int) -> None:
    rgb = cv2.GaussianBlur(natural(721, 963), (0, 0), 0.7)  # no lens is sharper
    ours = decoded(process(save(rgb), ImageOptions(size=size)).data)
    lanczos = np.asarray(Image.fromarray(rgb).resize(ours.shape[1::-1], Image.Resampling.LANCZOS))
    area = cv2.resize(rgb, ours.shape[1::-1], interpolation=cv2.INTER_AREA)
    plain = decoded(simplejpeg.encode_jpeg(area, 90, "RGB", "420"))
    assert psnr(ours, lanczos) > psnr(plain, lanczos) - 0.5


@pytest.mark.parametrize("size", [700, 400, 257, 130, 85, 64, 32])
@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_resizing_shifts_nothing(size: int, kind: str) -> None:
    """A ramp stays the same ramp: halving, reduced JPEG decoding and odd sizes keep the grid to 1/20 of a pixel."""
    columns, rows = np.meshgrid(np.arange(963), np.arange(721))
    ramp = np.repeat(((columns + rows) * (255 / 1682))[..., None], 3, axis=2)
    got = load_rgb(save(np.rint(ramp).astype(np.uint8), kind, **({"quality": 98} if kind == "JPEG" else {})),
                   ImageOptions(size=size)).astype(float)  # fmt: skip
    height, width = got.shape[:2]
    columns, rows = np.meshgrid((np.arange(width) + 0.5) * 963 / width, (np.arange(height) + 0.5) * 721 / height)
    error = (got[..., 1] - (columns + rows - 1) * (255 / 1682))[4:-4, 4:-4]
    assert abs(error.mean()) < 0.05 * 255 / 1682 * 721 / size + 0.05
    assert abs(error[:, -8:].mean() - error[:, :8].mean()) < 0.3  # no drift from left to right


@pytest.mark.parametrize("options", [{}, {"resize": "squash"}, {"resize": "center_crop", "size": 201},
                                     {"resize": "long", "size": 333}, {"upscale": True, "size": 500},
                                     {"resize": "none"}])  # fmt: skip
def test_the_stored_jpeg_is_the_image_that_load_rgb_returns(options: dict) -> None:
    """Luma and chroma planes are resized apart; a chroma plane out of place would cost many dB."""
    rgb = cv2.GaussianBlur(natural(403, 517), (0, 0), 2)
    wanted = ImageOptions(quality=98, **options)
    data = save(rgb)
    want = load_rgb(data, wanted)
    plain = decoded(simplejpeg.encode_jpeg(want, 98, "RGB", "420"))
    assert psnr(decoded(process(data, wanted).data), want) > psnr(plain, want) - 1


@pytest.mark.parametrize("size", [(301, 401), (300, 401), (301, 400)])
def test_odd_sizes_keep_their_last_row_and_column(size: tuple[int, int]) -> None:
    white = np.full((*size, 3), 255, np.uint8)
    assert decoded(process(save(white), ImageOptions(resize="none", quality=20)).data).min() > 245


@pytest.mark.parametrize("width", [301, 302, 303, 306])
def test_cropping_keeps_chroma_under_luma(width: int) -> None:
    """Red beside a green of the same brightness: the seam is where the crop puts it, for every offset."""
    rgb = np.empty((200, width, 3), np.uint8)
    rgb[:, :150], rgb[:, 150:] = (200, 0, 0), (0, 102, 0)
    wanted = ImageOptions(resize="center_crop", size=200, quality=100)
    seams = [
        (image[..., 0].astype(float).mean(axis=0) / 200).sum()
        for image in (decoded(process(save(rgb), wanted).data), load_rgb(save(rgb), wanted))
    ]
    assert abs(seams[0] - seams[1]) < 0.6


def test_squashing_a_strip_does_not_alias() -> None:
    stripes = np.zeros((64, 4000, 3), np.uint8)
    stripes[:, ::2] = 255
    assert np.ptp(load_rgb(save(stripes), ImageOptions(resize="squash", size=64)).astype(int)) < 8


# --- Borders ----------------------------------------------------------------------------------------------


def framed(top: int, bottom: int, left: int, right: int, color: int) -> np.ndarray:
    return np.pad(malformed_images.reference_image(), ((top, bottom), (left, right), (0, 0)), constant_values=color)


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
@pytest.mark.parametrize("color", [0, 255])
@pytest.mark.parametrize("bars", [(20, 20, 0, 0), (0, 0, 33, 31), (10, 25, 40, 7), (0, 12, 0, 0)])
def test_uniform_frames_are_cut_to_the_pixel(kind: str, color: int, bars: tuple[int, int, int, int]) -> None:
    image = process(save(framed(*bars, color), kind), ImageOptions(trim_borders=True))
    assert abs(image.height - malformed_images.HEIGHT) <= (0 if kind == "PNG" else 2)
    assert abs(image.width - malformed_images.WIDTH) <= (0 if kind == "PNG" else 2)
    assert "trimmed from" in image.note
    assert (image.source_height, image.source_width) == framed(*bars, color).shape[:2]


def test_specks_in_a_bar_do_not_save_it() -> None:
    rgb = framed(40, 40, 0, 0, 0)
    rgb[10:13, 50:53] = rgb[-20:-17, 90:93] = 255
    assert process(save(rgb), ImageOptions(trim_borders=True)).height == malformed_images.HEIGHT


def test_what_is_no_frame_is_not_cut() -> None:
    plain = np.full((120, 160, 3), 200, np.uint8)
    disc = cv2.circle(plain.copy(), (80, 60), 30, (20, 60, 90), -1)
    sky = malformed_images.reference_image()
    sky[:40] = np.linspace(120, 250, 40)[:, None, None]
    for rgb in (plain, disc, sky, malformed_images.reference_image(), natural(120, 160)):
        image = process(save(rgb), ImageOptions(trim_borders=True))
        assert (image.height, image.width, image.note) == (120, 160, "")


def test_sizes_after_trimming_decide() -> None:
    data = save(framed(100, 100, 0, 0, 0))
    with pytest.raises(FilteredImage, match="too-small"):
        process(data, ImageOptions(trim_borders=True, min_side=130))
    assert process(data, ImageOptions(min_side=130)).height == 320


# --- Measures ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ["jpeg", "png", "raw"])
@pytest.mark.parametrize("size", [100, 500])  # resized, or as it is (a JPEG then passes through)
def test_the_pixel_hash_finds_the_same_pixels_in_another_file(encoding: str, size: int) -> None:
    options = ImageOptions(encoding=encoding, size=size)
    jpeg = save(natural(150, 200), "JPEG", quality=92)
    pixels = decoded(jpeg)
    one_off = pixels.copy()
    one_off[70:80, 90:100] ^= 8
    copies = [process(data, options).pixel_hash for data in (jpeg, save(pixels), save(pixels, "BMP"))]
    assert len(set(copies)) == 1
    assert process(save(one_off), options).pixel_hash != copies[0]
    assert process(save(pixels[:, ::-1]), options).pixel_hash != copies[0]


def test_the_perceptual_hash_is_near_for_alike_and_far_for_other_images() -> None:
    def bits(a: int, b: int) -> int:
        return (a ^ b).bit_count()

    hashes = []
    for seed in range(12):
        rgb = natural(300, 400, seed)
        original = process(save(rgb), ImageOptions()).perceptual_hash
        darker = np.clip(rgb * 0.9, 0, 255).astype(np.uint8)
        smaller = np.asarray(Image.fromarray(rgb).resize((211, 158), Image.Resampling.LANCZOS))
        for variant in (save(rgb, "JPEG", quality=30), save(smaller, "JPEG"), save(darker)):
            assert bits(original, process(variant, ImageOptions()).perceptual_hash) <= 6
        hashes.append(original)
    assert min(bits(a, b) for i, a in enumerate(hashes) for b in hashes[:i]) > 10
    assert all(0 <= value < 2**64 for value in hashes)


def test_sharpness_falls_with_blur_and_filters() -> None:
    image = Image.fromarray(natural(300, 400))
    blurred = np.asarray(image.filter(ImageFilter.GaussianBlur(3)))
    asked = ImageOptions(min_sharpness=0.001)
    sharp, soft = (process(save(rgb), asked).sharpness for rgb in (np.asarray(image), blurred))
    assert sharp is not None and soft is not None and sharp > 20 * soft
    with pytest.raises(FilteredImage, match="blurred"):
        process(save(blurred), ImageOptions(min_sharpness=(sharp + soft) / 2))
    assert process(save(blurred), ImageOptions()).sharpness is None


# --- Options and determinism ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "value"),
    [("resize", "fit"), ("encoding", "webp"), ("size", 0), ("quality", 101), ("max_megapixels", 0.0),
     ("max_megapixels", float("nan")), ("max_megapixels", 2000.0), ("min_side", -1), ("min_sharpness", -1.0),
     ("min_sharpness", float("nan"))],
)  # fmt: skip
def test_options_refuse_what_cannot_be_and_name_the_flag(field: str, value: object) -> None:
    with pytest.raises(UsageError, match=f"{field}={value:g}" if isinstance(value, float) else f"{field}={value}"):
        ImageOptions(**{field: value})


_DIGEST = """
import hashlib, sys, cv2, numpy as np
from shardline.tools import malformed_images
from shardline.pipeline.image_options import ImageOptions
from shardline.pipeline.image_types import Header
from shardline.pipeline.images import process, set_up_process
set_up_process()
cv2.setNumThreads(int(sys.argv[1]))
digest = hashlib.sha256()
for case in malformed_images.cases():
    if not case.reason:
        digest.update(process(case.data, ImageOptions(size=100)).data)
print(digest.hexdigest(), "tensorflow" in sys.modules)
"""


def test_bytes_do_not_depend_on_threads_hash_seed_or_process() -> None:
    seen = set()
    for threads, seed in (("0", "1"), ("4", "2")):
        environment = {"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path)}
        result = subprocess.run(
            [sys.executable, "-c", _DIGEST, threads], env=environment, capture_output=True, text=True, check=True
        )
        seen.add(result.stdout)
        assert result.stderr == ""
    assert len(seen) == 1 and seen.pop().split()[1] == "False"
