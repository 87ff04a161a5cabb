"""Color profiles of curves and a matrix: as LittleCMS and the definitions have it, in whole numbers."""

import numpy as np
import pytest
from PIL import Image, ImageCms

from shardline.pipeline import color
from shardline.pipeline.matrix_color import LIGHT, MatrixProfile, _levels, matrix_profile
from shardline.tools.image_variants import in_space, profile_of
from shardline.tools.image_writers import icc_gray_profile

SPACES = ["Display P3", "Adobe RGB", "ProPhoto RGB"]


def pixels(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (200, 300, 3), np.uint8)


@pytest.mark.parametrize("space", SPACES)
def test_its_answers_are_those_of_littlecms_to_a_level(space: str) -> None:
    change, rgb = color.conversion(profile_of(space), "RGB"), pixels()
    assert change.matrix is not None
    wanted = np.asarray(ImageCms.applyTransform(Image.fromarray(rgb), change.transform)).astype(int)
    assert np.abs(color.to_srgb(rgb, change)[..., ::-1] - wanted).max() <= 1


@pytest.mark.parametrize("space", SPACES)
def test_it_is_as_near_to_the_definition_as_littlecms(space: str) -> None:
    """Colors whose levels in the space are rounded as little as can be seen."""
    truth = np.stack(np.meshgrid(*3 * [np.arange(64, 256, 12.0)]), axis=-1).reshape(16, -1, 3)
    stored = np.rint(in_space(truth, space)).astype(np.uint8)
    change = color.conversion(profile_of(space), "RGB")
    theirs = np.asarray(ImageCms.applyTransform(Image.fromarray(stored), change.transform))
    off = [np.abs(shown - truth).mean() for shown in (color.to_srgb(stored, change)[..., ::-1], theirs)]
    assert off[0] <= off[1] + 0.005


@pytest.mark.parametrize("space", SPACES)
def test_its_sums_are_exact_so_that_every_machine_has_the_same_bits(space: str) -> None:
    """Against Python's integers: no order of adding, and no fused multiplication, gives anything else."""
    found, rgb = matrix_profile(profile_of(space)), pixels(1)
    parts = (found.matrix * 2**13).astype(np.int64)
    assert (parts == found.matrix * 2**13).all()
    light = found.light[:, 0].astype(np.int64)
    sums = np.stack([light[rgb[..., c], c] for c in range(3)], axis=-1) @ parts.T
    halves = (sums + 2**12 - 1 + ((sums >> 13) & 1)) >> 13  # to the nearest, of two the even one
    assert np.array_equal(found.to_srgb(rgb), _levels()[np.clip(halves, 0, LIGHT)])


def test_a_profile_that_is_more_than_that_is_left_to_littlecms(monkeypatch: pytest.MonkeyPatch) -> None:
    bent = matrix_profile(profile_of("Adobe RGB"))
    bent = MatrixProfile(bent.light, np.rint(bent.matrix * 1.02 * 2**13) / 2**13)
    monkeypatch.setattr(color, "matrix_profile", lambda profile: bent)
    color.conversion.cache_clear()
    try:
        change, rgb = color.conversion(profile_of("Adobe RGB"), "RGB"), pixels(2)
    finally:
        color.conversion.cache_clear()
    assert change.matrix is None
    wanted = np.asarray(ImageCms.applyTransform(Image.fromarray(rgb), change.transform))
    assert np.array_equal(color.to_srgb(rgb, change)[..., ::-1], wanted)


def test_gray_has_no_matrix() -> None:
    assert color.conversion(icc_gray_profile("Gray 1.8", 1.8), "L").matrix is None
