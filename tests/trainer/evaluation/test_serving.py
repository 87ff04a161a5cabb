"""The exported preprocessing does to a file what the converter and evaluation do, in TensorFlow ops alone."""

import functools
import io

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from shardline.pipeline.image_options import ImageOptions
from shardline.pipeline.images import load_rgb
from shardline.pipeline.preprocessing import eval_geometry
from shardline.trainer.evaluation import serving


def photo(width=90, height=60):
    """Smooth, with every side different, so that a turned or mirrored image is another one."""
    y, x = np.mgrid[:height, :width].astype(np.float32)
    return np.stack([255 * x / width, 255 * y / height, 127 + 127 * np.sin(x / 9 + y / 15)], -1).astype(np.uint8)


def encoded(form, orientation=None, endian="II", pixels=None, **options):
    buffer = io.BytesIO()
    image = Image.fromarray(photo() if pixels is None else pixels)
    if orientation:
        tag = (0x0112).to_bytes(2, "little" if endian == "II" else "big")
        order = "little" if endian == "II" else "big"
        other = (0x0110).to_bytes(2, order) + (2).to_bytes(2, order) + (4).to_bytes(4, order) + b"Cam\0"
        entry = tag + (3).to_bytes(2, order) + (1).to_bytes(4, order) + orientation.to_bytes(2, order) + b"\0\0"
        header = endian.encode() + (42).to_bytes(2, order) + (8).to_bytes(4, order) + (2).to_bytes(2, order)
        options["exif"] = b"Exif\0\0" + header + other + entry + bytes(4)
    image.save(buffer, form, **options)
    return buffer.getvalue()


_served = tf.function(serving.image_from_bytes, autograph=False)
orientation_of = tf.function(serving.exif_orientation, input_signature=[tf.TensorSpec([], tf.string)], autograph=False)
as_stored = functools.cache(ImageOptions)  # one object for equal options: another would be traced anew


def served(data, *arguments):
    return _served(tf.constant(data), *arguments)  # a tensor, or each file would be traced anew


@pytest.mark.parametrize("endian", ["II", "MM"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_read_and_applied(orientation, endian):
    data = encoded("JPEG", orientation, endian, quality=95)
    assert int(orientation_of(data)) == orientation
    options = as_stored(resize="none")
    pixels = served(data, options, 48, 1.0).numpy()
    expected = eval_geometry(tf.constant(load_rgb(data, options)), 48, 1.0).numpy()
    assert np.abs(pixels.astype(int) - expected).mean() < 2  # the decoders round differently


def test_files_without_or_with_broken_exif_are_upright():
    plain = encoded("JPEG")
    assert int(orientation_of(plain)) == 1
    tagged = encoded("JPEG", 6)
    at = tagged.index(b"Exif")
    for cut in (at + 8, at + 14, at + 20):  # a directory that ends early, or points nowhere
        damaged = tagged[:cut] + b"\xff" * 6 + tagged[cut + 6 :]
        assert 1 <= int(orientation_of(damaged)) <= 8
    assert int(orientation_of(tagged[: at + 12])) == 1


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
    data = encoded("PNG", pixels=rgba)
    options = as_stored(resize="none")
    pixels = served(data, options, 32, 1.0).numpy()
    expected = eval_geometry(tf.constant(load_rgb(data, options)), 32, 1.0).numpy()
    assert (pixels == expected).all() and pixels[16, 3].tolist() == [255, 255, 255]


def test_small_images_are_enlarged_only_when_asked():
    data = encoded("PNG", pixels=photo(30, 20))
    for upscale in (False, True):
        options = as_stored(resize="short", size=40, upscale=upscale)
        pixels = served(data, options, 32, 0.875).numpy()
        expected = eval_geometry(tf.constant(load_rgb(data, options)), 32, 0.875).numpy()
        assert np.abs(pixels.astype(int) - expected).mean() < 2
