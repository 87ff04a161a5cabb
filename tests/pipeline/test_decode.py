"""Every encoding comes out as the same RGB image; damaged ones are refused."""

import io

import cv2
import imagecodecs
import numpy as np
import pytest
import simplejpeg
from PIL import Image

from shardline.pipeline.decode import cut
from shardline.pipeline.decode import decode as decode_bytes
from shardline.pipeline.encodings import ENCODINGS
from shardline.pipeline.example import Example
from shardline.pipeline.image_options import ImageOptions
from shardline.pipeline.image_types import BadImage
from shardline.pipeline.images import load_rgb
from shardline.tools.image_variants import DISPLAY_P3, variants
from tests.pipeline.tiny import encode, image

IMAGE = image(3, 40, 56)


def example(data, height=40, width=56):
    return Example(memoryview(data), 0, "", height, width)


def decode(stored, encoding, **options):
    return ENCODINGS[encoding].decode(stored, **options)


def pillow(image, kind, **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


@pytest.mark.parametrize(("encoding", "tolerance"), [("jpeg", 5), ("png", 0), ("raw", 0)])
@pytest.mark.parametrize("exact", [False, True])
def test_encodings_agree(encoding, tolerance, exact):
    found = decode(example(encode(IMAGE, encoding)), encoding, exact=exact)
    assert found.shape == IMAGE.shape
    assert found.dtype == np.uint8
    assert np.abs(found.astype(int) - IMAGE).mean() <= tolerance


@pytest.mark.parametrize(
    ("data", "tolerance"),
    [
        (pillow(Image.fromarray(IMAGE).convert("CMYK"), "jpeg", quality=95), 14),
        (simplejpeg.encode_jpeg(IMAGE, quality=95, colorsubsampling="444"), 8),
        (cv2.imencode(".png", cv2.cvtColor(IMAGE, cv2.COLOR_RGB2BGR).astype(np.uint16) * 257)[1].tobytes(), 0),
        (pillow(Image.fromarray(IMAGE), "png"), 0),
        (pillow(Image.fromarray(IMAGE), "bmp"), 0),
        (pillow(Image.fromarray(IMAGE), "webp", lossless=True), 0),
    ],
    ids=["cmyk", "444", "png16", "png", "bmp", "webp"],
)
def test_adopted_images_of_any_kind_are_read(data, tolerance):
    assert np.abs(decode(example(data), "any").astype(int) - IMAGE).max() <= tolerance


def test_exact_decoding_is_the_reference_one():
    data = encode(image(5, 64, 64), "jpeg")
    reference = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
    np.testing.assert_array_equal(decode(example(data), "jpeg", exact=True), reference)
    assert (decode(example(data), "jpeg") != reference).any()


def test_gray_becomes_three_channels():
    gray = cv2.cvtColor(IMAGE, cv2.COLOR_RGB2GRAY)
    for data in (pillow(Image.fromarray(gray), "jpeg"), pillow(Image.fromarray(gray), "png")):
        found = decode(example(data), "any")
        assert found.shape == IMAGE.shape
        assert (found == found[..., :1]).all()


@pytest.mark.parametrize("encoding", ["any", "jpeg"])
@pytest.mark.parametrize("exact", [False, True])
def test_adopted_images_are_what_the_converter_would_store(encoding, exact):
    """Turned, over white, in sRGB: training, prediction and inspection see one image."""
    turned = Image.Exif()
    turned[0x0112] = 6
    transparent = Image.fromarray(np.dstack([IMAGE, np.full(IMAGE.shape[:2], 90, np.uint8)]))
    files = [
        pillow(Image.fromarray(IMAGE), "jpeg", exif=turned),
        pillow(Image.fromarray(IMAGE), "png", exif=turned),
        pillow(transparent, "png"),
        pillow(Image.fromarray(IMAGE), "jpeg", icc_profile=DISPLAY_P3),
    ]
    packet = b"<x xmlns:a='http://ns.adobe.com/tiff/1.0/' a:Orientation='6'/>"
    files.append(pillow(Image.fromarray(IMAGE), "jpeg", xmp=packet))
    for data in files:
        found = decode(example(data), encoding, exact=exact)
        np.testing.assert_array_equal(found, load_rgb(data, ImageOptions(resize="none")))
    for data in (files[0], files[-1]):
        assert decode(example(data), encoding, exact=exact).shape == (56, 40, 3)


def test_a_window_of_a_turned_image_is_one_of_the_image_as_shown():
    turned = Image.Exif()
    turned[0x0112] = 6
    data = pillow(Image.fromarray(IMAGE), "jpeg", exif=turned)
    whole = decode(example(data), "jpeg").copy()
    np.testing.assert_array_equal(decode(example(data), "jpeg", window=lambda *_: (2, 3, 30, 9)), whole[2:32, 3:12])


@pytest.mark.parametrize("encoding", ["jpeg", "png", "raw", "any"])
@pytest.mark.parametrize("data", [b"", b"\xff\xd8", b"not an image", encode(IMAGE, "jpeg")[:700]])
def test_what_is_no_image_is_refused(encoding, data):
    with pytest.raises(ValueError):
        decode(example(data), encoding)


WINDOWS = ((0, 0, 3, 5), (5, 7, 20, 30), (0, 0, 70, 90), (40, 11, 30, 60), (63, 0, 2, 90), (0, 31, 64, 33))


@pytest.mark.parametrize("subsampling", ["444", "422", "420", "440", "411", "Gray"])
@pytest.mark.parametrize("size", [(70, 90), (71, 91), (97, 90)])
def test_a_window_shows_the_pixels_of_the_whole_image(subsampling, size):
    """However few of its rows are decoded for it."""
    pixels = image(7, *size)
    if subsampling == "Gray":
        data = simplejpeg.encode_jpeg(np.ascontiguousarray(pixels[..., :1]), 90, "Gray", "Gray")
    else:
        data = simplejpeg.encode_jpeg(pixels, 90, "RGB", subsampling)
    whole = decode(example(data), "jpeg").copy()
    for window in WINDOWS:
        part = decode(example(data), "jpeg", window=lambda *shape, window=window: window, checked=True)
        np.testing.assert_array_equal(part, cut(whole, lambda *shape, window=window: window))


@pytest.mark.parametrize("encoding", ["jpeg", "png", "raw", "progressive"])
@pytest.mark.parametrize("exact", [False, True])
def test_a_window_of_any_encoding(encoding, exact):
    data = pillow(Image.fromarray(IMAGE), "jpeg", progressive=True)
    stored = example(data if encoding == "progressive" else encode(IMAGE, encoding))
    encoding = encoding.replace("progressive", "jpeg")
    whole = decode(stored, encoding, exact=exact).copy()
    part = decode(stored, encoding, exact=exact, window=lambda height, width: (2, 3, height // 4, 9), checked=True)
    np.testing.assert_array_equal(part, whole[2:12, 3:12])


@pytest.mark.parametrize("exact", [False, True])
def test_rows_are_not_written_past_the_caches(exact):
    """libjpeg-turbo does that to rows which begin on a multiple of 32 bytes."""
    pixels = decode(example(encode(image(3, 40, 64), "jpeg"), 40, 64), "jpeg", exact=exact)
    assert all(row.ctypes.data % 32 for row in pixels)


def test_below_the_window_nothing_is_decoded_of_a_checked_image_alone():
    data = bytearray(encode(image(7, 256, 96), "jpeg"))
    data[len(data) * 3 // 4 : len(data) * 3 // 4 + 40] = bytes(40)

    def top(height, width):
        return 0, 0, 32, width

    assert decode(example(data), "jpeg", window=top, checked=True).shape == (32, 96, 3)
    with pytest.raises(ValueError, match="corrupt-scan: JPEG: blank stretch"):
        decode(example(data), "jpeg", window=top)


@pytest.mark.parametrize("encoding", [".jpg", ".png"])
@pytest.mark.parametrize("error", [RuntimeError("odd"), TypeError("odd"), OverflowError("odd"), cv2.error("odd")])
def test_whatever_a_decoder_raises_is_a_bad_image(monkeypatch, encoding, error):
    failing_decoders(monkeypatch, error)
    data = memoryview(cv2.imencode(encoding, np.zeros((8, 8, 3), np.uint8))[1].tobytes())
    for checked in (True, False):
        with pytest.raises(BadImage, match=rf"decoder-error: {type(error).__name__}: odd|corrupt-data"):
            decode_bytes(data, checked=checked)


@pytest.mark.parametrize("encoding", [".jpg", ".png"])
@pytest.mark.parametrize(
    "error", [MemoryError(), ValueError("Insufficient memory (case 4)"), cv2.error("std::bad_alloc")]
)
def test_want_of_memory_is_never_blamed_on_the_image(monkeypatch, encoding, error):
    failing_decoders(monkeypatch, error)
    data = memoryview(cv2.imencode(encoding, np.zeros((8, 8, 3), np.uint8))[1].tobytes())
    for checked in (True, False):
        with pytest.raises(MemoryError):
            decode_bytes(data, checked=checked)


def failing_decoders(monkeypatch, error):
    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr(simplejpeg, "decode_jpeg", fail)
    monkeypatch.setattr(cv2, "imdecode", fail)


def test_odd_jpegs_are_to_the_reader_what_they_are_to_the_converter():
    odd = [case for case in variants() if "transform" in case.name or case.name.endswith("-profile.jpg")]
    for case in odd:
        shown = load_rgb(case.data, ImageOptions(resize="none"))
        assert np.abs(decode_bytes(memoryview(case.data), exact=True).astype(int) - shown).max() <= 1, case.name
    assert len(odd) == 6
    lossless = imagecodecs.jpeg8_encode(np.full((16, 16, 3), 99, np.uint8), lossless=True, predictor=1)
    two = next(case.data for case in variants() if case.name == "two-components.jpg")
    for data in (lossless, two):
        for read in (lambda data: load_rgb(data, ImageOptions()), lambda data: decode_bytes(memoryview(data))):
            with pytest.raises(BadImage, match=r"^unsupported-jpeg: "):
                read(data)
