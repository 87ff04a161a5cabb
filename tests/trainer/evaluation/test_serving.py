"""The exported preprocessing shows the model of a file what prediction shows it, or refuses the file and says why."""

import functools
import io
import struct
import zlib

import cv2
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image, ImageCms

from shardline.pipeline.image_headers import read_header
from shardline.pipeline.image_options import ImageOptions
from shardline.pipeline.image_types import BadImage
from shardline.pipeline.images import load_rgb, process
from shardline.pipeline.preprocessing import eval_geometry
from shardline.tools.malformed_images import cases
from shardline.trainer.evaluation import graph_headers, graph_pixels
from tests.pipeline.test_color_spaces import SPACES, chrm, exif_of, gama, raw_profile, saved, with_chunks


def photo(width=90, height=60):
    """Smooth, with every side different, so that a turned or mirrored image is another one."""
    y, x = np.mgrid[:height, :width].astype(np.float32)
    return np.stack([255 * x / width, 255 * y / height, 127 + 127 * np.sin(x / 9 + y / 15)], -1).astype(np.uint8)


def encoded(form, pixels=None, **options):
    buffer = io.BytesIO()
    Image.fromarray(photo() if pixels is None else pixels).save(buffer, form, **options)
    return buffer.getvalue()


orientation_of = tf.function(
    graph_headers.exif_orientation, input_signature=[tf.TensorSpec([], tf.string)], autograph=False
)
BYTES = [tf.TensorSpec([None], tf.string)]


@functools.cache
def carriers(**options):
    """Both functions of an image file's bytes for a converter's options: in the graph, and on the host."""
    image_options = ImageOptions(**options)
    graph = tf.function(
        lambda files: graph_pixels.images_from_bytes(files, image_options, 32, 0.875), BYTES, autograph=False
    )
    return graph, lambda file: eval_geometry(load_rgb(file, image_options), 32, 0.875)


def assert_equal(files, mean=0.5, **options):
    """Both carriers show the model the same of files {name: bytes}."""
    graph, host = carriers(**options)
    images, status = graph(tf.constant(list(files.values())))
    for name, file, image, said in zip(files, files.values(), images.numpy(), status.numpy(), strict=True):
        assert said == b"ok", (name, said)
        assert np.abs(image.astype(int) - host(file)).mean() <= mean, name


# -------------------------------------------------------------------------------------------- EXIF


def entry(order, tag, kind, values, content):
    """12 bytes of a TIFF directory; `content` is the value, or where it lies."""
    layout = {1: "B3x", 3: "H2x", 4: "I", 5: "I"}[kind]
    return struct.pack(order + "HHI" + layout, tag, kind, values, content)


def tiff(order, *entries, at=8, after=b""):
    """A TIFF block with one directory."""
    mark = b"II" if order == "<" else b"MM"
    directory = struct.pack(order + "H", len(entries)) + b"".join(entries) + bytes(4)
    return mark + struct.pack(order + "HI", 42, at) + bytes(at - 8) + directory + after


def segment(code, body):
    return bytes([0xFF, code]) + struct.pack(">H", len(body) + 2) + body


def jpeg(*before):
    """A JPEG with these bytes after its first marker."""
    plain = encoded("JPEG", quality=95)
    return plain[:2] + b"".join(before) + plain[2:]


def exif(block):
    return segment(0xE1, b"Exif\0\0" + block)


def png(block, late=False, kind=b"eXIf", plain=b""):
    """A PNG with one chunk more, before or after the pixels."""
    plain = plain or encoded("PNG")
    at = plain.index(b"IEND" if late else b"IDAT") - 4
    chunk = kind + block
    return plain[:at] + struct.pack(">I", len(block)) + chunk + struct.pack(">I", zlib.crc32(chunk)) + plain[at:]


def variants():
    """Files by what is special about their orientation tag."""
    for order in "<>":
        turned = entry(order, 0x0112, 3, 1, 6)
        model = entry(order, 0x0110, 4, 1, 7)
        name = f"{'II' if order == '<' else 'MM'}: "
        for orientation in range(10):
            block = tiff(order, model, entry(order, 0x0112, 3, 1, orientation))
            yield name + f"JPEG {orientation}", jpeg(exif(block))
            yield name + f"PNG {orientation}", png(block)
        yield name + "PNG, after the pixels", png(tiff(order, turned), late=True)
        yield name + "as BYTE", jpeg(exif(tiff(order, entry(order, 0x0112, 1, 1, 6))))
        yield name + "as LONG", jpeg(exif(tiff(order, entry(order, 0x0112, 4, 1, 6))))
        yield name + "as text", jpeg(exif(tiff(order, struct.pack(order + "HHI", 0x0112, 2, 1) + b"6\0\0\0")))
        yield name + "no value", jpeg(exif(tiff(order, entry(order, 0x0112, 3, 0, 6))))
        values = struct.pack(order + "HHHH", 6, 1, 1, 1)
        at = 8 + 2 + 12 + 4
        yield name + "several values", jpeg(exif(tiff(order, entry(order, 0x0112, 4, 2, at), after=values * 2)))
        for top, bottom in ((12, 2), (6, 0), (13, 2)):
            fraction = struct.pack(order + "II", top, bottom)
            block = tiff(order, entry(order, 0x0112, 5, 1, at), after=fraction)
            yield name + f"{top}/{bottom}", jpeg(exif(block))
        yield name + "value beyond the block", jpeg(exif(tiff(order, entry(order, 0x0112, 4, 2, 2**31 + 9))))
        yield name + "directory far in", jpeg(exif(tiff(order, turned, at=1000)))
        yield name + "directory beyond the block", jpeg(exif(tiff(order, turned)[:4] + struct.pack(order + "I", 2**31)))
        yield name + "no directory", jpeg(exif(tiff(order, turned)[:8]))
        yield name + "cut before the tag", jpeg(exif(tiff(order, model, turned)[:24]))
        yield name + "no tags", jpeg(exif(tiff(order)))
        yield name + "other tags", jpeg(exif(tiff(order, model)))
        yield name + "fill bytes", jpeg(b"\xff\xff\xff" + exif(tiff(order, turned)))
        yield (
            name + "after JFIF and a comment",
            jpeg(segment(0xE0, b"JFIF\0"), segment(0xFE, b"x"), exif(tiff(order, turned))),
        )
        yield name + "after another APP1", jpeg(segment(0xE1, b"something else"), exif(tiff(order, turned)))
        yield name + "after 256 KiB", jpeg(*[segment(0xE2, bytes(65_000))] * 4, exif(tiff(order, turned)))
    yield "plain JPEG", encoded("JPEG")
    yield "plain PNG", encoded("PNG")
    yield "gray JPEG", encoded("JPEG", photo()[..., 0])
    yield "not TIFF", jpeg(exif(b"neither II nor MM"))
    yield "empty EXIF", jpeg(exif(b""))


VARIANTS = dict(variants())


@pytest.mark.parametrize("name", VARIANTS)
def test_the_exported_orientation_is_the_converters(name):
    assert int(orientation_of(VARIANTS[name])) == read_header(VARIANTS[name]).orientation


def test_the_variants_hold_every_orientation_in_both_formats():
    for name in ("JPEG", "PNG"):
        found = [read_header(data).orientation for key, data in VARIANTS.items() if f": {name} " in key]
        assert sorted(set(found)) == list(range(1, 9))
    assert sum(read_header(data).orientation == 6 for data in VARIANTS.values()) >= 20


# ------------------------------------------------------------------------------------------ pixels

OPTIONS = [
    {"resize": "short", "size": 40},
    {"resize": "long", "size": 50, "upscale": True},
    {"resize": "squash", "size": 40, "upscale": True},
    {"resize": "squash", "size": 40},
    {"resize": "center_crop", "size": 40},
    {"resize": "none"},
]


def textured(width, height):
    """Detail of every scale: another kernel gives other pixels."""
    y, x = np.mgrid[:height, :width].astype(np.float32)
    waves = [127 + 60 * np.sin(x / 2.3 + y / 7) + 60 * np.sin(x * y / (211 + 40 * c)) for c in range(3)]
    return np.stack(waves, -1).astype(np.uint8)


def sources():
    """Files as they come from cameras, scanners and editors."""
    random = np.random.default_rng(0)
    rgb = textured(90, 60)
    rgba = np.dstack([rgb, random.integers(0, 256, (60, 90), np.uint8)])
    palette = Image.fromarray(rgb).quantize(200)
    deep = cv2.resize(random.integers(0, 65536, (6, 9, 3), np.uint16), (90, 60))
    yield "large.jpg", encoded("JPEG", textured(1301, 903), quality=90)
    yield "large.png", encoded("PNG", textured(641, 470))
    yield "huge.png", encoded("PNG", textured(1800, 1400))
    yield "gray.jpg", encoded("JPEG", rgb[..., 0])
    yield "progressive, 4:4:4.jpg", encoded("JPEG", rgb, progressive=True, subsampling=0)
    yield "cmyk.jpg", buffered(Image.fromarray(rgb).convert("CMYK"), "JPEG")
    yield "alpha.png", encoded("PNG", rgba)
    yield "gray and alpha.png", buffered(Image.fromarray(rgba[..., [0, 3]], "LA"), "PNG")
    yield "palette.png", buffered(palette, "PNG")
    yield "palette with transparency.png", buffered(palette, "PNG", transparency=7)
    yield "gray.png", encoded("PNG", rgb[..., 0])
    yield "16 bits.png", cv2.imencode(".png", deep)[1].tobytes()
    yield "16 bits gray.png", cv2.imencode(".png", deep[..., 0])[1].tobytes()
    yield "16 bits and alpha.png", cv2.imencode(".png", np.dstack([deep, deep[..., :1]]))[1].tobytes()
    yield "one bit.png", buffered(Image.fromarray(rgb).convert("1"), "PNG")
    for bits in (1, 2, 4):
        levels = Image.fromarray((rgb[..., 0].astype(int) * (1 << bits) // 256).astype(np.uint8), "P")
        levels.putpalette([value for level in range(1 << bits) for value in (40 * level % 256, 255 - level, level)])
        yield f"{bits} bits.png", buffered(levels, "PNG", bits=bits)
        yield f"{bits} bits with transparency.png", buffered(levels, "PNG", bits=bits, transparency=1)
    for orientation in range(1, 9):
        yield f"turned {orientation}.jpg", VARIANTS[f"II: JPEG {orientation}"]
        yield f"turned {orientation}.png", VARIANTS[f"MM: PNG {orientation}"]
    yield "srgb.jpg", encoded("JPEG", rgb, icc_profile=SRGB)
    yield "srgb.png", encoded("PNG", rgb, icc_profile=SRGB)
    for excess in range(4):
        yield f"{excess} too wide.png", encoded("PNG", textured(40 + 4 + excess, 40))
        yield f"{excess} too high.jpg", encoded("JPEG", textured(40, 40 + 4 + excess), quality=95)
    for width, height in ((20, 15), (33, 70), (400, 30), (9, 300), (3, 200), (130, 1), (41, 40), (79, 81)):
        yield f"{width}x{height}.png", encoded("PNG", textured(width, height))


def buffered(image, form, **options):
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
SOURCES = dict(sources())


@pytest.mark.parametrize(
    "options", [OPTIONS[0], *(pytest.param(one, marks=pytest.mark.slow) for one in OPTIONS[1:])], ids=str
)
def test_source_files_are_shown_as_prediction_shows_them(options):
    assert_equal(SOURCES, **options)


UNNOTICED = {"200-bytes-lost.jpg", "damaged-text.png"}  # libjpeg and libpng warn and go on; TensorFlow does not tell


def test_each_malformed_image_is_shown_as_prediction_shows_it_or_refused():
    graph, host = carriers(resize="short", size=40)
    found = cases()
    images, status = graph(tf.constant([case.data for case in found]))
    shown, unseen = set(), set()
    for case, image, said in zip(found, images.numpy(), status.numpy(), strict=True):
        try:
            expected = host(case.data)
        except BadImage:
            unseen |= {case.name} if said == b"ok" else set()
            continue
        if said == b"ok":
            shown.add(case.name)
            assert np.abs(image.astype(int) - expected).mean() <= 0.5, case.name
        else:
            assert not image.any()
    assert unseen == UNNOTICED
    sound = {case.name for case in found if not case.reason and case.data[:2] in (b"\x89P", b"\xff\xd8")}
    assert shown == sound and len(sound) >= 20  # none is refused out of caution


def hidden(orientation):
    """Files by where their orientation stands, so that the converter reads it and a graph does not."""
    block = tiff("<", entry("<", 0x0112, 3, 1, orientation))
    other = tiff("<", entry("<", 0x0110, 4, 1, 7))
    profile = b"\nexif\n%8d\n%s\n" % (len(block), block.hex().encode())
    xmp = b'<x tiff:Orientation="%d"/>' % orientation
    yield "hexadecimal text", png(b"Raw profile type exif\0" + profile, kind=b"tEXt")
    yield "packed text", png(b"Raw profile type exif\0\0" + zlib.compress(profile), kind=b"zTXt")
    yield "packed APP1", png(b"Raw profile type APP1\0\0" + zlib.compress(profile), late=True, kind=b"zTXt")
    yield "packed XMP", png(b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(xmp), kind=b"iTXt")
    yield "spaced XMP", png(b"XML:com.adobe.xmp\0\0\0\0\0" + xmp.replace(b"=", b" = "), kind=b"iTXt")
    packet = f'<x xmlns:ns0="http://ns.adobe.com/tiff/1.0/"><ns0:Orientation a="b">{orientation}</ns0:Orientation></x>'
    for coding in ("utf-8", "utf-16"):
        text = b"http://ns.adobe.com/xap/1.0/\0" + packet.encode(coding)
        yield f"XMP of another prefix in {coding}", jpeg(segment(0xE1, text))
    yield "second EXIF", jpeg(exif(other), exif(block))
    packed = b"Raw profile type exif\0\0" + zlib.compress(profile)
    yield "text beside EXIF without", png(packed, kind=b"zTXt", plain=png(other))
    yield "second eXIf", png(block, plain=png(other))


def test_what_may_be_turned_where_a_graph_does_not_look_is_refused():
    graph, _ = carriers(resize="short", size=40)
    files = dict(hidden(6))
    assert {name: read_header(file).orientation for name, file in files.items()} == dict.fromkeys(files, 6)
    images, status = graph(tf.constant(list(files.values())))
    said = {name: text.decode() for name, text in zip(files, status.numpy(), strict=True)}
    assert all("turned" in text and "turn it first, and call serve_images" in text for text in said.values()), said
    assert not images.numpy().any()


def test_an_orientation_that_is_plainly_told_wins_over_texts():
    """As in the converter: nothing is refused out of caution."""
    told = tiff("<", entry("<", 0x0112, 3, 1, 3))
    text = b"XML:com.adobe.xmp\0\0\0\0\0" + b'<x tiff:Orientation="6"/>'
    files = {
        "png": png(text, kind=b"iTXt", plain=png(told)),
        "jpeg": jpeg(exif(told), segment(0xE1, b'http://ns.adobe.com/xap/1.0/\0<x tiff:Orientation="6"/>')),
        "upright": png(text, kind=b"iTXt", plain=png(tiff("<", entry("<", 0x0112, 3, 1, 1)))),
    }
    assert [read_header(file).orientation for file in files.values()] == [3, 3, 1]
    assert_equal(files, resize="short", size=40)


@pytest.mark.parametrize(
    "name, file, reason",
    [
        ("nothing", b"", "neither JPEG nor PNG"),
        ("text", b"not an image", "neither JPEG nor PNG"),
        ("webp", encoded("WEBP"), "neither JPEG nor PNG"),
        ("cut JPEG", encoded("JPEG")[:700], "damaged"),
        ("cut PNG", encoded("PNG")[:700], "damaged"),
        ("large", encoded("PNG", np.zeros((12_000, 12_000), np.uint8)), "more pixels"),
        (
            "profile in JPEG",
            encoded("JPEG", icc_profile=SRGB.replace(b"s\0R\0G\0B", b"P\0 \0\x33\0.")),
            "color profile",
        ),
        ("profile in PNG", encoded("PNG", icc_profile=SRGB.replace(b"s\0R\0G\0B", b"P\0 \0\x33\0.")), "color profile"),
        ("XMP", jpeg(segment(0xE1, b'http://ns.adobe.com/xap/1.0/\0<x tiff:Orientation="6"/>')), "turned by XMP"),
    ],
    ids=lambda value: value if isinstance(value, str) and len(value) < 20 else "",
)
def test_what_the_graph_cannot_follow_is_refused_and_spoils_no_batch(name, file, reason):
    sound = encoded("JPEG")
    graph, host = carriers(resize="short", size=40)
    images, status = graph(tf.constant([sound, file, sound]))
    before, said, after = (text.decode() for text in status.numpy())
    assert (before, after) == ("ok", "ok") and reason in said
    assert not images[1].numpy().any()
    assert np.abs(images[2].numpy().astype(int) - host(sound)).mean() <= 0.5


def test_no_files_give_no_images():
    images, status = carriers(resize="short", size=40)[0](tf.constant([], tf.string))
    assert images.shape == (0, 32, 32, 3) and status.shape == (0,)


def test_where_the_converter_trims_borders_every_file_is_refused():
    _, status = carriers(resize="short", size=40, trim_borders=True)[0](tf.constant([encoded("JPEG")]))
    assert b"trims borders" in status.numpy()[0]


@pytest.mark.parametrize("depth_range", (pytest.param("image", marks=pytest.mark.slow), "0,4095"))
def test_files_of_16_bits_are_refused_where_the_converter_scales_them(depth_range):
    deep = encoded("PNG", photo()[..., 0].astype(np.uint16) * 16)
    graph, host = carriers(resize="short", size=40, depth_range=depth_range)
    said = graph(tf.constant([deep, encoded("PNG"), encoded("JPEG")]))[1].numpy()
    assert said.tolist() == [graph_pixels.SCALED.encode(), b"ok", b"ok"]
    assert host(deep).mean() > 10 * carriers(resize="short", size=40)[1](deep).mean()  # what guessing would have given
    assert_equal({"deep": deep}, resize="short", size=40)


@pytest.mark.parametrize(
    ("name", "colored"),
    [
        ("cICP P3", with_chunks(saved(photo()), cICP=bytes([12, 13, 0, 1]))),
        ("gAMA 1.8", with_chunks(saved(photo()), gAMA=gama(1.8))),
        ("profile in text", with_chunks(saved(photo()), zTXt=raw_profile())),
        ("cHRM", with_chunks(saved(photo()), cHRM=chrm(SPACES["Adobe RGB"][0]))),
        ("R03", saved(photo(), "JPEG", exif=b"Exif\0\0" + exif_of(0xFFFF, b"R03"))),
        ("R03, big-endian", saved(photo(), "JPEG", exif=b"Exif\0\0" + exif_of(0xFFFF, b"R03", ">"))),
        ("ColorSpace 2", saved(photo(), "JPEG", exif=b"Exif\0\0" + exif_of(2))),
        ("ColorSpace 2, big-endian", saved(photo(), "JPEG", exif=b"Exif\0\0" + exif_of(2, b"", ">"))),
    ],
)
def test_colors_told_without_a_profile_are_refused_where_the_converter_converts_them(name, colored):
    graph, _ = carriers(resize="short", size=40)
    assert "converted to sRGB" in process(colored, ImageOptions()).note
    (said,) = graph(tf.constant([colored]))[1].numpy()
    assert said == graph_headers.PROFILE.encode()


def test_colors_told_to_be_srgb_are_served():
    usual = {"gAMA": struct.pack(">I", 45455), "cHRM": chrm(((0.64, 0.33), (0.30, 0.60), (0.15, 0.06)))}
    assert_equal(
        {
            "cICP": with_chunks(saved(photo()), cICP=bytes([1, 13, 0, 1])),
            "gAMA and cHRM": with_chunks(saved(photo()), **usual),
            "sRGB first": with_chunks(saved(photo()), sRGB=b"\0", gAMA=gama(1.0)),
            "EXIF sRGB": saved(photo(), "JPEG", exif=b"Exif\0\0" + exif_of(1, b"R98")),
            "EXIF uncalibrated": saved(photo(), "JPEG", exif=b"Exif\0\0" + exif_of(0xFFFF)),
        },
        resize="short",
        size=40,
    )
