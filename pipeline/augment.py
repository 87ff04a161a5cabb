"""Random crops and flips, drawn from (seed, position), and their host half in OpenCV. No TensorFlow.

`augment_device` holds the other half: with augment_on="device" the host only cuts the window out of the picture
and sends it on a canvas of fixed size, with what was drawn beside it.
"""

from __future__ import annotations

import math

import cv2
import numpy as np

from pipeline import draws
from pipeline.config import InputConfig

NUM_EDITS = 3  # what the device half is told of a sample: height and width of its window, mirrored or not
_CROP_TRIES = 10


class Draws:
    """All random numbers of the samples at `positions`, drawn at once."""

    def __init__(self, config: InputConfig, positions: np.ndarray) -> None:
        self.config = config
        self._crop = draws.uniform(draws.key(config.seed, "crop"), positions, 2 * _CROP_TRIES + 2)
        self.flip = draws.uniform(draws.key(config.seed, "flip"), positions, 1)[:, 0] < 0.5 * config.flip

    def window(self, row: int, height: int, width: int) -> tuple[int, int, int, int]:
        """Top, left, height, width of a row's random crop: area and ratio uniform, the latter in its logarithm.

        The first of ten tries that fits the picture counts; if none does, the largest centred window of the
        nearest allowed ratio.
        """
        numbers = self._crop[row].tolist()
        (area_low, area_high), (ratio_low, ratio_high) = self.config.crop_area, self.config.crop_ratio
        for i in range(_CROP_TRIES):
            area = height * width * (area_low + (area_high - area_low) * numbers[2 * i])
            ratio = ratio_low * (ratio_high / ratio_low) ** numbers[2 * i + 1]
            crop_height, crop_width = round(math.sqrt(area / ratio)), round(math.sqrt(area * ratio))
            if 0 < crop_height <= height and 0 < crop_width <= width:
                top = int(numbers[-2] * (height - crop_height + 1))
                left = int(numbers[-1] * (width - crop_width + 1))
                return top, left, crop_height, crop_width
        ratio = min(max(width / height, ratio_low), ratio_high)
        crop_height = max(1, min(height, round(width / ratio)))
        crop_width = max(1, min(width, round(height * ratio)))
        return (height - crop_height) // 2, (width - crop_width) // 2, crop_height, crop_width


def resize(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    """Bilinear; averaging areas where that would skip pixels, that is when shrinking more than twofold."""
    if pixels.shape[:2] == (height, width):
        return pixels
    skips = pixels.shape[0] > 2 * height or pixels.shape[1] > 2 * width
    return cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA if skips else cv2.INTER_LINEAR)


def crop_on_host(pixels: np.ndarray, draws: Draws, row: int, out: np.ndarray) -> None:
    """Fill `out`, uint8 [size, size, 3], with a row's random window of the picture, resized and maybe mirrored."""
    top, left, height, width = draws.window(row, *pixels.shape[:2])
    window = resize(pixels[top : top + height, left : left + width], *out.shape[:2])
    if draws.flip[row]:
        cv2.flip(window, 1, dst=out)
    else:
        out[:] = window


def canvas_size(image_size: int) -> int:
    """Side of the square on which windows travel to the device: an eighth more than the pictures made of them."""
    return -(-image_size * 9 // 8 // 8) * 8


def crop_for_device(pixels: np.ndarray, draws: Draws, row: int, out: np.ndarray) -> tuple[int, int]:
    """Put a row's random window at the top left of `out`, shrunk where it is larger; returns its size there."""
    top, left, height, width = draws.window(row, *pixels.shape[:2])
    window = pixels[top : top + height, left : left + width]
    height, width = min(height, out.shape[0]), min(width, out.shape[1])
    out[:height, :width] = resize(window, height, width)
    return height, width
