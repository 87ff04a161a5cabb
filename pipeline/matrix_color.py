"""Profiles that are three curves and a matrix, as those of cameras, phones and screens are: to sRGB in whole numbers.

LittleCMS takes longer for such an image than all else that is done to it together; this takes a third of that. Its
answers differ by a level at most. Whole numbers, and sums that float64 holds exactly: the same on every machine.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import cv2
import numpy as np

from shardline.pipeline.image_types import Chromaticities

LIGHT = 2**15 - 1  # linear light of white
_PARTS = 2.0**13  # of 1 in the matrix
SRGB: Chromaticities = (0.64, 0.33, 0.30, 0.60, 0.15, 0.06)
D65: Chromaticities = (0.3127, 0.3290)


@dataclass(frozen=True, eq=False)
class MatrixProfile:
    """A profile of curves and a matrix.

    Attributes:
      light: int32 [256, 1, 3], linear light of each level of R, G and B.
      matrix: float64 [3, 3], multiples of 1 / _PARTS: that light to the light of sRGB's B, G and R.
    """

    light: np.ndarray
    matrix: np.ndarray

    def to_srgb(self, rgb: np.ndarray) -> np.ndarray:
        """uint8 RGB [height, width, 3] to BGR."""
        light = np.clip(cv2.transform(cv2.LUT(rgb, self.light), self.matrix), 0, LIGHT)
        return cv2.LUT(light.astype(np.uint16), _levels())  # in a third of np.take's time


def matrix_profile(profile: bytes) -> MatrixProfile:
    """The curves and the matrix that an ICC profile seems to hold, as LittleCMS answers; of others, nonsense.

    Raises:
      RuntimeError: LittleCMS cannot use it.
    """
    import imagecodecs  # for images that have a profile

    ramps = np.zeros((3, 256, 3), np.float32)  # one channel rises, the others are black
    for channel in range(3):
        ramps[channel, :, channel] = np.arange(256) / 255
    linear = rgb_profile(SRGB, D65, gamma=1.0)
    answers = imagecodecs.cms_transform(ramps, profile, linear, colorspace="rgb", outcolorspace="rgb")
    light = answers.astype(np.float64)
    full = light[:, 255]  # of each channel alone
    curves = np.einsum("clk,ck->lc", light, full) / np.maximum((full**2).sum(axis=1), 1e-9)
    matrix = np.rint(full.T[::-1] * _PARTS) / _PARTS
    return MatrixProfile(np.rint(curves[:, None] * LIGHT).astype(np.int32), matrix)


def rgb_profile(colors: Chromaticities, white: Chromaticities, **curve: Any) -> bytes:
    """An ICC profile by LittleCMS. Raises RuntimeError for chromaticities that are no colors."""
    import imagecodecs  # for images that tell a space

    primaries = [number for i in (0, 2, 4) for number in (*colors[i : i + 2], 1.0)]
    return bytes(imagecodecs.cms_profile("rgb", whitepoint=(*white, 1.0), primaries=primaries, **curve))


@cache
def _levels() -> np.ndarray:
    """uint8: sRGB's level of each linear light (IEC 61966-2-1); for cv2.LUT of all that 16 bits hold."""
    light = np.arange(2**16) / LIGHT
    curve = np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
    return np.asarray(np.rint(255 * np.minimum(curve, 1)), np.uint8)
