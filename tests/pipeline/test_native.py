"""The compiled module makes OpenCV's bytes, and is not missed where it cannot be compiled."""

import subprocess
import sys

import cv2
import numpy as np
import pytest

from shardline.pipeline import augment_host, native
from tests.pipeline.conftest import build_native


@pytest.fixture(scope="module")
def resize(native):
    return native.resize


def drawn_sizes(count):
    """Height and width of a window and of what is made of it: usual ones, any, and tiny ones."""
    draw = np.random.default_rng(3)
    for number in range(count):
        if number % 3 == 0:
            yield *draw.integers(6, 449, 2).tolist(), 224, 224
        else:
            height, width = draw.integers(1, 300 if number % 3 == 1 else 20, 2).tolist()
            yield int(draw.integers(1, 2 * height + 1)), int(draw.integers(6, max(2 * width, 6) + 1)), height, width


def test_thousands_of_windows_show_the_pixels_of_opencv(resize):
    draw, done = np.random.default_rng(5), 0
    for number, (height, width, out_height, out_width) in enumerate(drawn_sizes(3000)):
        window = draw.integers(0, 256, (height + 2, width + 3, 3), np.uint8)[1:-1, 2:-1]
        framed = np.full((out_height + 2, out_width + 2, 3), 7, np.uint8)
        flip = bool(number & 4)
        expected = cv2.resize(window, (out_width, out_height))
        if resize(window, framed[1:-1, 1:-1], flip):
            done += 1
            framed_expected = np.full_like(framed, 7)
            framed_expected[1:-1, 1:-1] = expected[:, ::-1] if flip else expected
            np.testing.assert_array_equal(framed, framed_expected, f"{window.shape} to {expected.shape}")
    assert done > 2800


@pytest.mark.parametrize(
    ("window", "out"),
    [
        ((40, 5), (32, 32)),  # too narrow
        ((64, 64), (32, 32)),  # exact halves: areas
        ((65, 40), (32, 32)),  # more than twofold: areas
        ((40, 65), (32, 32)),
        ((40, 40, 4), (32, 32, 4)),
        ((40, 40), (32, 32, 4)),
        ((40, 40, 1), (32, 32, 1)),
        ((40, 40, 3, 1), (32, 32)),
    ],
)
def test_the_rest_is_left_to_opencv_untouched(resize, window, out):
    pixels = np.zeros(window if len(window) > 2 else (*window, 3), np.uint8)
    target = np.full(out if len(out) > 2 else (*out, 3), 7, np.uint8)
    assert not resize(pixels, target, False)
    assert (target == 7).all()


def test_other_arrays_are_left_to_opencv(resize):
    pixels, target = np.zeros((40, 40, 3), np.uint8), np.empty((32, 32, 3), np.uint8)
    assert not resize(pixels.astype(np.int16), target, False)
    assert not resize(pixels[:, ::-1], target, False)
    assert not resize(pixels[:, ::2], target, False)
    assert not resize(pixels.transpose(1, 2, 0)[:, :3], target, False)
    assert not resize(pixels[:0], target, False)
    with pytest.raises(ValueError, match="read-only"):
        resize(pixels, np.frombuffer(bytes(32 * 32 * 3), np.uint8).reshape(32, 32, 3), False)


def test_a_batch_is_the_same_with_and_without_it(resize, monkeypatch):
    """All that `augment_host.resize` does, areas and copies too."""
    draw = np.random.default_rng(7)
    for number, (height, width) in enumerate([(32, 32), (64, 64), (65, 33), (40, 3), (200, 9), (20, 50), (64, 31)] * 2):
        pixels, made = draw.integers(0, 256, (height, width, 3), np.uint8), []
        for way in (resize, lambda *_: False):
            monkeypatch.setattr(native, "resize", way)
            made.append(np.empty((32, 32, 3), np.uint8))
            augment_host.resize(pixels, made[-1], flip=number % 2 > 0)
        np.testing.assert_array_equal(*made)


def test_what_keeps_its_size_is_copied(monkeypatch):
    """As most crops that are sent to the device: six times as fast as mixing each pixel with its neighbors."""
    monkeypatch.setattr(native, "resize", lambda *_: pytest.fail("resized"))
    pixels, out = np.arange(3 * 4 * 3, dtype=np.uint8).reshape(3, 4, 3), np.zeros((3, 4, 3), np.uint8)
    augment_host.resize(pixels, out, flip=True)
    np.testing.assert_array_equal(out, pixels[:, ::-1])


def test_without_a_compiler_the_package_installs_all_the_same(tmp_path):
    path, said = build_native(tmp_path, CC=str(tmp_path / "no-compiler"))
    assert path is None and "no-compiler" in said


@pytest.mark.parametrize(
    ("instead", "why"),
    [("None", "there was no compiler"), ("types.ModuleType('of another kind')", "not for this processor")],
)
def test_where_it_is_missing_opencv_does_it_and_measurements_say_so(instead, why):
    program = f"""
import sys, types
sys.modules["shardline.pipeline._native"] = {instead}
from shardline.benchmarks.measure import machine
from shardline.pipeline import command_help, native
print([native.resize(), native.shrink(), native.chroma(), machine()["compiled"]])
print(command_help.version_text(machine=True))
"""
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert said.startswith("[False, False, False, False]\n") and f"\ncompiled module: none, {why}: OpenCV" in said
