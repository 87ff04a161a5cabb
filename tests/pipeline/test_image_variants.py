"""Every variant of every format gives its true pixels, or is refused by what it is; and where Pillow errs."""

from __future__ import annotations

import re

import numpy as np
import pytest

from shardline.pipeline import images, opencv
from shardline.pipeline.image_options import ImageOptions
from shardline.pipeline.image_types import BadImage
from shardline.pipeline.images import load_rgb, process
from shardline.tools import image_oracles
from shardline.tools.image_variants import variants
from shardline.tools.malformed_images import Case

images.set_up_process()

VARIANTS = variants()
SOUND = [case for case in VARIANTS if not case.reason]
AS_IS = ImageOptions(resize="none")


def distance(rgb: np.ndarray, truth: np.ndarray | None) -> float:
    assert truth is not None and rgb.shape == truth.shape
    return float(np.abs(rgb.astype(float) - truth).mean())


@pytest.mark.parametrize("case", SOUND, ids=lambda case: case.name)
def test_every_variant_shows_its_true_pixels(case: Case) -> None:
    assert distance(load_rgb(case.data, AS_IS), case.rgb) <= case.tolerance
    image = process(case.data, AS_IS)
    assert case.note in image.note
    assert (image.height, image.width) == (image.source_height, image.source_width) == case.rgb.shape[:2]


@pytest.mark.parametrize("case", [case for case in VARIANTS if case.reason], ids=lambda case: case.name)
def test_a_sound_file_that_is_not_read_is_refused_by_what_it_is(case: Case) -> None:
    with pytest.raises(BadImage) as caught:
        load_rgb(case.data, AS_IS)
    assert caught.value.reason == case.reason and case.reason.startswith("unsupported-")
    assert not re.search("damaged|corrupt", str(caught.value))


# What Pillow 13 gets wrong: the truth is what went in. With everything else it must agree.
PILLOW_ERRS = r"""
    gray-12-bit\.tif | gray-white-is-zero-16-bit\.tif          | takes 12 bits for 16; forgets the photometric
    .*planes(-16-bit)?\.tif                                    | takes the planes of 16 bits for 8
    palette-of-8-bit-colors\.tif                               | keeps the high byte of 8-bit colors
    gray-that-is-not-told\.tif                                 | takes white for zero
    four-samples-without-extra\.tif                            | takes a band without a meaning for alpha
    gray-key-(2|4|16)-bit.*\.png                               | compares the key with scaled levels
    .*-alpha-zero\.bmp                                         | shows nothing where alpha is empty
    (gray|rgb)(-alpha)?-(1|2|4)-bit\.(jp2|j2k)                 | shifts the levels of few bits
    (gray|rgb)-alpha-(10|12|16)-bit\.(jp2|j2k)                 | shifts 8-bit alpha
    (display|display-any-profile|linear-gray)\.jp2             | reads no color profile of JPEG 2000
    (infrared-(no-)?cdef|associated|blue-first)\.jp2            | knows no channel definitions
    palette-[14]-bit-of-8-bit-colors\.jp2                      | scales the numbers of colors
    masks-1555-alpha-real\.bmp                                 | sees no alpha in 16 bits
    dark-linear-.*                                              | converts colors in 8 bits, or not at all
    raw-profile-xmp\.png                                        | reads no XMP in ImageMagick's texts
    offset-with-colors-of-its-own-.*\.gif                      | takes a screen's color for one of the frame's
    (display-told-.*|frame-of-a-video)\.avif                   | reads no CICP codes
    exif-byte\.jpg                                             | knows orientations as numbers of 16 and 32 bits only
"""
PILLOW_ERRS = "|".join(
    f"(?:{line.rpartition('|')[0].strip().replace(' ', '')})" for line in PILLOW_ERRS.strip().splitlines()
)


@pytest.mark.parametrize("case", SOUND, ids=lambda case: case.name)
def test_pillow_agrees_or_is_known_to_err(case: Case) -> None:
    """An oracle that is not us: it holds the truths themselves to account."""
    assert case.rgb is not None
    found = image_oracles.verdicts(case.data, case.rgb)["Pillow"]
    if found is not None:
        assert (found > case.tolerance + 1) == bool(re.fullmatch(PILLOW_ERRS, case.name)), found


@pytest.mark.parametrize("case", SOUND, ids=lambda case: case.name)
def test_large_variants_are_decoded_like_small_ones(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    small = load_rgb(case.data, AS_IS)
    monkeypatch.setattr(opencv, "LARGE_BYTES", 0)
    assert np.array_equal(load_rgb(case.data, AS_IS), small)


@pytest.mark.parametrize("case", SOUND, ids=lambda case: case.name)
def test_a_truncated_variant_is_a_bad_image(case: Case) -> None:
    for length in np.linspace(1, len(case.data) - 13, 12).astype(int):  # not the end of a PNG, 8 bytes of a TIFF
        with pytest.raises(BadImage):
            process(case.data[:length], ImageOptions())


@pytest.mark.parametrize("case", SOUND[::3], ids=lambda case: case.name)
def test_a_damaged_variant_is_an_image_or_a_bad_image(case: Case) -> None:
    rng = np.random.default_rng(len(case.data))
    for turn in range(8):
        damaged = bytearray(case.data)
        for position in rng.integers(0, min(len(damaged), 200 if turn % 2 else 1 << 30), 3):
            damaged[position] = rng.integers(256)
        try:
            process(bytes(damaged), ImageOptions(size=32, max_megapixels=1))
        except BadImage as bad:
            assert bad.reason != "decoder-error", bad  # every decoder's own complaints are known


def test_the_oracles_are_independent_of_the_corpus() -> None:
    """Each of them tells a right image from a wrong one."""
    case = next(case for case in SOUND if case.name == "rgb-8-bit.png")
    assert case.rgb is not None
    assert set(image_oracles.verdicts(case.data, case.rgb).values()) == {0.0}
    wrong = image_oracles.verdicts(case.data, case.rgb[:, ::-1])
    assert {"Pillow", "imagecodecs"} <= set(wrong) and all(value and value > 10 for value in wrong.values())
    assert set(image_oracles.verdicts(b"no image", case.rgb).values()) == {None}
