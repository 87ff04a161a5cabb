"""Color profiles: sRGB out, whatever came in; nothing of them left in what is stored; no price for images without."""

from __future__ import annotations

import io
import struct
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from shardline.pipeline import color
from shardline.pipeline.decode import decode
from shardline.pipeline.image_headers import read_header
from shardline.pipeline.image_options import ImageOptions
from shardline.pipeline.image_types import BadImage
from shardline.pipeline.images import load_rgb, process
from shardline.pipeline.jpeg import JpegHeader
from shardline.tools.image_variants import in_space, profile_of
from shardline.tools.image_writers import icc_gray_profile, icc_profile, rgb_to_xyz
from shardline.tools.malformed_images import reference_image

AS_IS = ImageOptions(resize="none")


def saved(rgb: np.ndarray, kind: str = "JPEG", **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(rgb).save(buffer, kind, **({"quality": 97, "subsampling": 0} if kind == "JPEG" else {}), **options)
    return buffer.getvalue()


def test_display_p3_as_if_it_were_srgb_would_be_far_off() -> None:
    """What the conversion is for: the corpus holds the rest."""
    rgb = reference_image()
    stored = np.rint(in_space(rgb, "Display P3")).astype(np.uint8)
    assert np.abs(stored.astype(int) - rgb).mean() > 6
    assert (
        np.abs(load_rgb(saved(stored, "PNG", icc_profile=profile_of("Display P3")), AS_IS).astype(int) - rgb).mean() < 1
    )


@pytest.mark.parametrize("space", ["Display P3", "sRGB"])
@pytest.mark.parametrize("options", [{}, {"size": 64}, {"encoding": "png"}, {"encoding": "raw"}])
def test_no_profile_is_left_in_what_is_stored(space: str, options: dict) -> None:
    stored = process(saved(reference_image(), icc_profile=profile_of(space)), ImageOptions(**options))
    assert not any(mark in stored.data for mark in (b"ICC_PROFILE", b"iCCP", space.encode()))
    assert "color profile" in stored.note


def test_an_image_is_one_whether_it_passes_through_or_not() -> None:
    for space in ("Display P3", "sRGB"):
        data = saved(reference_image(), icc_profile=profile_of(space))
        stored = process(data, ImageOptions())
        header = read_header(stored.data)
        assert isinstance(header, JpegHeader) and not header.profile
        assert ("passed through" in stored.note) == (space == "sRGB")
        assert np.abs(load_rgb(stored.data, AS_IS).astype(int) - load_rgb(data, AS_IS)).mean() < 2


def test_what_is_srgb_is_told_by_what_it_does_not_by_its_name() -> None:
    renamed = icc_profile("Anything", rgb_to_xyz(((0.64, 0.33), (0.30, 0.60), (0.15, 0.06))), 2.2)
    assert color.conversion(profile_of("sRGB"), "RGB").transform is None
    assert color.conversion(renamed, "RGB").transform is not None  # 2.2 is up to 6 levels off in the shadows
    assert color.conversion(profile_of("Display P3").replace(b"Display P3", b"sRGB IEC61"), "RGB").transform is not None


@pytest.mark.parametrize("damaged", [b"x", bytes(5000), profile_of("Display P3")[:200], profile_of("sRGB")[:128]])
def test_a_damaged_profile_is_ignored_with_a_note(damaged: bytes) -> None:
    stored = process(saved(reference_image(), icc_profile=damaged), ImageOptions())
    assert "color profile ignored" in stored.note and "passed through" in stored.note
    assert b"ICC_PROFILE" not in stored.data


def test_a_profile_in_several_segments_is_put_together() -> None:
    long = profile_of("Display P3") + bytes(150_000)
    assert len(read_header(saved(reference_image(), icc_profile=long)).profile) == len(long)
    assert "P3 converted" in process(saved(reference_image(), icc_profile=long), ImageOptions()).note


@pytest.mark.parametrize("lost", [[0], [1], [2], [0, 1]])
def test_a_profile_of_which_parts_are_missing_costs_no_image(lost: list[int]) -> None:
    """libjpeg calls that corrupt data; the pixels are whole, as every viewer shows them."""
    rgb = reference_image()
    jpeg, icc = saved(rgb), profile_of("Display P3") + bytes(150_000)
    icc = struct.pack(">I", len(icc)) + icc[4:]
    parts = [icc[i : i + 65_000] for i in range(0, len(icc), 65_000)]
    marks = [
        b"\xff\xe2" + struct.pack(">H", len(part) + 16) + b"ICC_PROFILE\0" + bytes([number, len(parts)]) + part
        for number, part in enumerate(parts, 1)
    ]
    whole = jpeg[:2] + b"".join(marks) + jpeg[2:]
    assert "Display P3 converted" in process(whole, AS_IS).note
    broken = jpeg[:2] + b"".join(mark for number, mark in enumerate(marks) if number not in lost) + jpeg[2:]
    stored = process(broken, AS_IS)
    assert "color profile ignored: parts of it are missing" in stored.note and stored.data == jpeg
    assert np.array_equal(load_rgb(broken, AS_IS), np.asarray(Image.open(io.BytesIO(jpeg))))
    assert np.array_equal(decode(memoryview(broken), exact=True), load_rgb(broken, AS_IS))
    with pytest.raises(BadImage, match="truncated"):
        process(whole[:2] + b"".join(marks[1:]) + jpeg[2:-400], AS_IS)


@pytest.mark.parametrize("numbers", [[(1, 1), (1, 1)], [(0, 1)], [(1, 0)], [(7, 2)]], ids=str)
def test_a_whole_profile_counts_however_its_parts_are_numbered(numbers: list[tuple[int, int]]) -> None:
    """Some writers store it twice or count from 0; Pillow or libvips read each of these."""
    jpeg, icc = saved(reference_image()), profile_of("Display P3")
    head = struct.pack(">HH12s", 0xFFE2, len(icc) + 16, b"ICC_PROFILE")
    data = jpeg[:2] + b"".join(head + bytes(pair) + icc for pair in numbers) + jpeg[2:]
    assert "Display P3 converted" in process(data, AS_IS).note
    plain = saved(reference_image(), icc_profile=icc)
    assert np.array_equal(load_rgb(data, AS_IS), load_rgb(plain, AS_IS))


@pytest.mark.parametrize("kind", ["PNG", "AVIF"])
def test_gray_with_alpha_and_a_profile_of_gray(kind: str) -> None:
    """Decoders make color of it, for which a profile of gray is none."""
    gray = reference_image()[..., 1]
    alpha = np.full_like(gray, 128)
    options = {"quality": 100} if kind == "AVIF" else {}
    data = saved(np.dstack([gray, alpha]), kind, icc_profile=icc_gray_profile("Gray 1.8", 1.8), **options)
    light = (gray / 255) ** 1.8
    shown = np.where(light <= 0.0031308, light * 12.92, 1.055 * light ** (1 / 2.4) - 0.055) * 255
    truth = np.dstack([shown * 128 / 255 + 127] * 3)
    assert np.abs(load_rgb(data, AS_IS) - truth).mean() < 1.5
    assert "Gray 1.8 converted to sRGB" in process(data, AS_IS).note


def test_a_profiles_name_cannot_speak_to_the_terminal() -> None:
    evil = icc_profile("\x1b]0;x\7\n; <b>" + "n" * 99, rgb_to_xyz(((0.68, 0.32), (0.26, 0.69), (0.15, 0.06))), 2.2)
    note = process(saved(reference_image(), icc_profile=evil), ImageOptions()).note
    assert note.isprintable() and "<" not in note and note.count(";") == 0 and len(note) < 90


def test_images_without_a_profile_never_load_the_color_machinery() -> None:
    code = """
import sys
from shardline.pipeline import images
images.set_up_process()
images.process(sys.stdin.buffer.read(), images.ImageOptions(size=32))
heavy = {"PIL", "tifffile", "imagecodecs", "pi_heif", "pillow_jxl", "tensorflow"}
print(sorted(heavy & set(sys.modules)))
"""
    for kind in ("JPEG", "PNG", "WEBP"):
        done = subprocess.run([sys.executable, "-c", code], input=saved(reference_image(), kind), capture_output=True,
                              env={"PYTHONPATH": ":".join(sys.path)})  # fmt: skip
        assert (done.stdout.strip(), done.stderr) == (b"[]", b"")
