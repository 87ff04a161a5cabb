"""The exported preprocessing does to a file what the converter and evaluation do, in TensorFlow ops alone."""

import functools
import io
import struct
import zlib

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from shardline.pipeline.image_headers import read_header
from shardline.pipeline.image_options import ImageOptions
from shardline.pipeline.images import load_rgb
from shardline.pipeline.preprocessing import eval_geometry
from shardline.trainer.evaluation import serving


def photo(width=90, height=60):
    """Smooth, with every side different, so that a turned or mirrored image is another one."""
    y, x = np.mgrid[:height, :width].astype(np.float32)
    return np.stack([255 * x / width, 255 * y / height, 127 + 127 * np.sin(x / 9 + y / 15)], -1).astype(np.uint8)


def encoded(form, pixels=None, **options):
    buffer = io.BytesIO()
    Image.fromarray(photo() if pixels is None else pixels).save(buffer, form, **options)
    return buffer.getvalue()


_served = tf.function(serving.image_from_bytes, autograph=False)
orientation_of = tf.function(serving.exif_orientation, input_signature=[tf.TensorSpec([], tf.string)], autograph=False)
as_stored = functools.cache(ImageOptions)  # one object for equal options: another would be traced anew


def served(data, *arguments):
    return _served(tf.constant(data), *arguments)  # a tensor, or each file would be traced anew


# -------------------------------------------------------------------------------------------- EXIF


def entry(order, tag, kind, values, content):
    """12 bytes of a TIFF directory; `content` is the value, or where it lies."""
    layout = {1: "B3x", 3: "H2x", 4: "I"}[kind]
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


def png(block, late=False):
    """A PNG with the chunk eXIf, before or after the pixels."""
    plain = encoded("PNG")
    at = plain.index(b"IEND" if late else b"IDAT") - 4
    chunk = b"eXIf" + block
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


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("form", ["JPEG", "PNG"])
def test_every_orientation_is_applied(orientation, form):
    data = VARIANTS[f"II: {form} {orientation}"]
    options = as_stored(resize="none")
    pixels = served(data, options, 48, 1.0).numpy()
    expected = eval_geometry(tf.constant(load_rgb(data, options)), 48, 1.0).numpy()
    assert np.abs(pixels.astype(int) - expected).mean() < 2  # the decoders round differently


# ------------------------------------------------------------------------------------------ pixels


@pytest.mark.parametrize("resize", ["short", "squash", "center_crop"])
@pytest.mark.parametrize("form", ["JPEG", "PNG"])
def test_the_same_as_the_converter_for(resize, form):
    data = encoded(form)
    options = as_stored(resize=resize, size=40)
    pixels = served(data, options, 32, 0.875).numpy()
    expected = eval_geometry(tf.constant(load_rgb(data, options)), 32, 0.875).numpy()
    assert pixels.shape == (32, 32, 3) and pixels.dtype == np.uint8
    assert np.abs(pixels.astype(int) - expected).mean() < 1.5


def test_transparency_is_put_over_white():
    rgba = np.dstack([photo(), np.full((60, 90), 255, np.uint8)])
    rgba[:, :45, 3] = 0
    data = encoded("PNG", rgba)
    options = as_stored(resize="none")
    pixels = served(data, options, 32, 1.0).numpy()
    expected = eval_geometry(tf.constant(load_rgb(data, options)), 32, 1.0).numpy()
    assert (pixels == expected).all() and pixels[16, 3].tolist() == [255, 255, 255]


@pytest.mark.parametrize("bits", [1, 2, 4])
@pytest.mark.parametrize("transparent", [False, True])
def test_pngs_of_few_bits_are_as_the_converter_has_them(bits, transparent):
    levels = (photo()[..., 0].astype(int) * (1 << bits) // 256).astype(np.uint8)
    image = Image.fromarray(levels, "P")
    image.putpalette([value for level in range(1 << bits) for value in (40 * level % 256, 255 - level, level)])
    buffer = io.BytesIO()
    image.save(buffer, "PNG", bits=bits, **({"transparency": 1} if transparent else {}))
    data, options = buffer.getvalue(), as_stored(resize="none")
    assert data[24] == bits and (b"tRNS" in data) == transparent
    pixels = served(data, options, 32, 1.0).numpy()
    assert (pixels == eval_geometry(tf.constant(load_rgb(data, options)), 32, 1.0).numpy()).all()


def test_small_images_are_enlarged_only_when_asked():
    data = encoded("PNG", photo(30, 20))
    for upscale in (False, True):
        options = as_stored(resize="short", size=40, upscale=upscale)
        pixels = served(data, options, 32, 0.875).numpy()
        expected = eval_geometry(tf.constant(load_rgb(data, options)), 32, 0.875).numpy()
        assert np.abs(pixels.astype(int) - expected).mean() < 2
