"""Images made smaller: the same bytes whatever adds up, OpenCV with IPP or without, or the compiled module."""

import math
import platform

import cv2
import numpy as np
import pytest
import xxhash

from shardline.pipeline import native as native_or_not
from shardline.pipeline import resizing


def left_to_opencv(*_):
    return False


@pytest.fixture
def opencv_alone(monkeypatch):
    monkeypatch.setattr(native_or_not, "shrink", left_to_opencv)
    monkeypatch.setattr(native_or_not, "chroma", left_to_opencv)


def smooth_and_noise(height, width, number=0):
    pixels = np.random.default_rng(number).integers(0, 256, (height, width, 3), np.uint8)
    pixels[:, : width // 2] = cv2.GaussianBlur(pixels[:, : width // 2], (5, 5), 1.5)
    return pixels


def everything(bgr, target, extent):
    """Planes of a JPEG, and BGR."""
    return [*resizing.ycc(bgr, target, extent), resizing.resize(bgr, target, extent)]


def drawn_sizes(count):
    """What is to be spanned, and what an image spans: ratios equal, exact and unequal, fractions, enlarged."""
    draw = np.random.default_rng(11)
    for number in range(count):
        target = tuple(draw.integers(1, 200 if number % 7 else 14, 2).tolist())
        down, across = draw.uniform(0.7 if number % 11 == 0 else 1, 5 if number % 2 else 12, 2)
        across = across if number % 3 == 0 else down
        if number % 13 == 0:
            down = across = draw.integers(1, 6)
        extent = (max(1.0, target[0] * down), max(1.0, target[1] * across))
        yield target, extent if number % 4 == 0 else (float(round(extent[0])), float(round(extent[1])))


def test_the_compiled_module_makes_the_bytes_of_opencv(native, monkeypatch):
    done = {"shrink": 0, "chroma": 0}

    def counted(name):
        def call(*arguments):
            done[name] += (answer := getattr(native, name)(*arguments))
            return answer

        return call

    for number, (target, extent) in enumerate(drawn_sizes(350)):
        height, width = math.ceil(extent[0]), math.ceil(extent[1])
        framed = smooth_and_noise(height + 2, width + 2, number)
        bgr = framed[1:-1, 1:-1] if number % 2 else framed[1:-1, 1:-1].copy()
        made = []
        for shrink, chroma in ((counted("shrink"), counted("chroma")), (left_to_opencv, left_to_opencv)):
            monkeypatch.setattr(native_or_not, "shrink", shrink)
            monkeypatch.setattr(native_or_not, "chroma", chroma)
            made.append(everything(bgr, target, extent))
        for got, expected in zip(*made, strict=True):
            np.testing.assert_array_equal(got, expected, f"{extent} to {target}")
    assert done["shrink"] > 400 and done["chroma"] > 90


def test_the_compiled_module_takes_only_what_it_is_written_for(native):
    bgr, gray, luma = np.zeros((40, 40, 3), np.uint8), np.zeros((40, 40), np.uint8), np.zeros((20, 20), np.uint8)
    none = (0, 0, 256)
    assert native.shrink(bgr, luma, 0.5, 0.5, none, none) and native.shrink(gray, luma, 0.5, 0.5, none, none)
    for source, out in [(gray, bgr), (bgr[:7], luma), (gray[:, ::2], luma), (gray[:, ::-1], luma), (bgr[:0], luma)]:
        assert not native.shrink(source, out, 0.5, 0.5, none, none)
    for factor in (0.2, 1.01, math.nan, math.inf, -1.0, 0.0, 1.0):
        assert not native.shrink(gray, luma, factor, factor, none, none)
        assert not native.chroma(bgr, luma, luma.copy(), factor, factor)
    assert not native.chroma(bgr, luma, np.zeros((20, 19), np.uint8), 0.6, 0.6)
    assert not native.chroma(gray, luma, luma.copy(), 0.6, 0.6)
    with pytest.raises(ValueError, match="read-only"):
        native.shrink(gray, np.frombuffer(bytes(400), np.uint8).reshape(20, 20), 0.5, 0.5, none, none)
    with pytest.raises(TypeError):
        native.chroma(bgr, luma, "x", 0.6, 0.6)


def test_ipp_which_adds_up_otherwise_on_each_kind_of_processor_is_not_asked(opencv_alone):
    """Without IPP is how it is built for other processors; a process that uses it goes on doing so."""
    bgr, used, made = smooth_and_noise(301, 403), cv2.ipp.useIPP(), []
    try:
        for use in (True, False):
            cv2.ipp.setUseIPP(use)
            now = cv2.ipp.useIPP()  # False where there is none
            made.append([plane.tobytes() for plane in everything(bgr, (256, 343), (301, 403))])
            assert cv2.ipp.useIPP() == now
    finally:
        cv2.ipp.setUseIPP(used)
    assert made[0] == made[1]


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="others fuse multiplication and addition")
@pytest.mark.parametrize(("alone", "ratio"), [(True, 1.46), (False, 1.46), (True, 3.1), (False, 3.1)])
def test_pixels_are_those_of_every_machine(request, alone, ratio):
    """Literal, for shards that many machines write: when these change, KERNEL has to, too."""
    if alone:
        request.getfixturevalue("opencv_alone")
    rows, columns = np.mgrid[:375, :500]
    bgr = np.stack([rows * columns % 251, (rows * 7 + columns * columns) % 256, (rows ^ columns) & 255], -1)
    extent, target = (375.0, 500.0), (round(375 / ratio), round(500 / ratio))
    made = everything(bgr.astype(np.uint8), target, extent)
    found = xxhash.xxh3_64(b"".join(plane.tobytes() for plane in made)).hexdigest()
    assert found == {1.46: "f1b77881b3969538", 3.1: "e45ecda59404c060"}[ratio]
