"""A part of a JPEG is that part of the whole, as simplejpeg decodes it."""

import io

import cv2
import numpy as np
import pytest
import simplejpeg
from PIL import Image

from shardline.pipeline.jpeg_window import Layout, decode_part, read_layout
from tests.pipeline.tiny import image

FACTORS = {"444": 0x111111, "422": 0x211111, "420": 0x221111, "440": 0x121111, "411": 0x411111}


def jpeg(subsampling, height, width, restart=0, optimize=0):
    pixels = image(3, height, width)
    if subsampling == "Gray":
        pixels = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)
    options = [cv2.IMWRITE_JPEG_QUALITY, 90, cv2.IMWRITE_JPEG_RST_INTERVAL, restart]
    options += [cv2.IMWRITE_JPEG_OPTIMIZE, optimize]
    if subsampling != "Gray":
        options += [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, FACTORS[subsampling]]
    return memoryview(cv2.imencode(".jpg", pixels, options)[1].tobytes())


def whole(data, **options):
    return simplejpeg.decode_jpeg(data, fastdct=True, fastupsample=True, **options)


@pytest.mark.parametrize("subsampling", [*FACTORS, "Gray"])
@pytest.mark.parametrize(("size", "restart", "optimize"), [((48, 64), 0, 0), ((53, 71), 0, 1), ((53, 71), 3, 0)])
def test_a_part_at_any_place_shows_the_pixels_of_the_whole_image(subsampling, size, restart, optimize):
    data = jpeg(subsampling, *size, restart, optimize)
    pixels, layout = whole(data), read_layout(data)
    assert layout and (layout.height, layout.width) == size
    draw = np.random.default_rng(0)
    boxes = [(top, left, 17, 19) for top in range(34) for left in (0, 1, 15, 16, 33)]
    for _ in range(100):
        height, width = (int(draw.integers(1, side + 1)) for side in size)
        boxes.append((int(draw.integers(size[0] - height + 1)), int(draw.integers(size[1] - width + 1)), height, width))
    for top, left, height, width in boxes:
        part = decode_part(data, layout, (top, left, height, width))
        np.testing.assert_array_equal(part, pixels[top : top + height, left : left + width])


def test_other_jpegs_have_no_layout():
    def pillow(mode, **options):
        file = io.BytesIO()
        Image.fromarray(image(3, 40, 56)).convert(mode).save(file, "jpeg", **options)
        return memoryview(file.getvalue())

    plain = pillow("RGB")
    assert isinstance(read_layout(plain), Layout)
    assert read_layout(pillow("RGB", progressive=True)) is None
    assert read_layout(pillow("CMYK")) is None
    assert read_layout(pillow("RGB", exif=b"Exif\0\0" + bytes(2000))) is None
    changed = bytearray(plain)
    frame = changed.index(b"\xff\xc0")
    for at, value in ((frame + 4, 12), (frame + 5, 0), (frame + 11, 0x31), (frame + 9, 1)):
        other = bytearray(plain)
        other[at] = value
        if at == frame + 5:
            other[at : at + 2] = b"\0\0"
        assert read_layout(memoryview(other)) is None


def test_a_damaged_header_has_no_layout_or_its_own():
    """Whatever the bytes, an answer: the decoder that follows names the damage."""
    data, draw = bytes(jpeg("420", 48, 64)), np.random.default_rng(0)
    for length in range(700):
        found = read_layout(memoryview(data[:length]))
        assert found is None or found == (found.frame, 48, 64)
    for _ in range(2000):
        changed = bytearray(data)
        for at in draw.integers(2, 640, 4):
            changed[at] = draw.integers(256)
        read_layout(memoryview(changed))


def test_damage_is_an_error_where_the_last_row_is_wanted_and_else_above_the_part_passed_over():
    data = bytearray(jpeg("420", 256, 96))
    layout = read_layout(memoryview(data))
    at = len(data) // 3
    data[at : at + 2] = b"\xff\xd9"  # the end, too early
    with pytest.raises(ValueError) as expected:
        whole(bytes(data), strict=True)
    with pytest.raises(ValueError) as error:
        decode_part(memoryview(data), layout, (200, 0, 56, 96))
    assert str(error.value) == str(expected.value)
    lenient = whole(bytes(data), strict=False)
    np.testing.assert_array_equal(decode_part(memoryview(data), layout, (100, 3, 50, 9)), lenient[100:150, 3:12])
