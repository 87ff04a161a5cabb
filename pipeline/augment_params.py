"""Augmentation parameters: what is done to each sample, as numbers drawn from (seed, position). No TensorFlow.

All randomness of augmentation is drawn here. `augment_host` (OpenCV) and `augment_device` (TensorFlow) apply the same
numbers, so both show the same images up to rounding. To add an augmentation, add columns here and apply them in both.
"""

from __future__ import annotations

import math
from itertools import accumulate

import numpy as np

from shardline.pipeline import rng
from shardline.pipeline.config import InputConfig

FILL = (124, 116, 104)  # ImageNet's mean color: what VGG16's normalization turns into zero
NO_TABLE, AUTOCONTRAST, EQUALIZE, SOLARIZE, POSTERIZE = range(5)  # kinds of per-channel tables

# The columns of one layer of RandAugment, in the order in which they are applied.
WARP, COLOR, TABLE, SHARPNESS = slice(0, 6), slice(6, 24), slice(24, 26), 26
_LAYER_SIZE = 27

_CROP_TRIES = 10
_BETA_TRIES = 32
_GRAY = np.outer(np.ones(3), (0.299, 0.587, 0.114))  # RGB to gray, in all three channels
_TO_YIQ = np.array(((0.299, 0.587, 0.114), (0.5959, -0.2746, -0.3213), (0.2115, -0.5227, 0.3112)))


def columns(config: InputConfig) -> dict[str, slice]:
    """Columns of `AugmentParams.values` by augmentation; one that is off has none."""
    widths = {
        "crop_size": 2,  # height and width, in pixels, of the random crop on the device's canvas
        "flip": 1,
        "randaugment": _LAYER_SIZE * config.randaugment_layers,
        "color_jitter": 18 * any((config.brightness, config.contrast, config.saturation, config.hue)),
        "random_erasing": 4 * (config.random_erasing > 0),  # top, left, bottom, right; all 0 for none
        "mix": 5 * config.mixes,  # weight of the own image, then the partner's box: top, left, bottom, right
    }
    ends = list(accumulate(widths.values()))
    return {name: slice(end - width, end) for (name, width), end in zip(widths.items(), ends, strict=True) if width}


def num_columns(config: InputConfig) -> int:
    """Width of a row of `AugmentParams.values`."""
    return _width(columns(config))


def _width(columns: dict[str, slice]) -> int:
    return int(max(part.stop for part in columns.values()))


class AugmentParams:
    """Augmentation parameters of the samples at `positions`: float32 `values` [n, columns], and their crops."""

    def __init__(self, config: InputConfig, positions: np.ndarray) -> None:
        self.config = config
        self.columns = columns(config)
        self.values = np.zeros((len(positions), _width(self.columns)), np.float32)
        self._crops = self._uniform("crop", positions, 2 * _CROP_TRIES + 2)
        makers = {
            "flip": self._flip,
            "randaugment": self._randaugment,
            "color_jitter": self._color_jitter,
            "random_erasing": self._random_erasing,
            "mix": self._mix,
        }
        for name, make in makers.items():
            if name in self.columns:
                self.values[:, self.columns[name]] = make(positions)

    def crop(self, row: int, height: int, width: int) -> tuple[int, int, int, int]:
        """Top, left, height, width of a sample's random resized crop: area uniform, ratio log-uniform.

        The first of ten tries that fits the image, as in torchvision; if none does, the largest centered box of the
        nearest allowed ratio.
        """
        numbers = self._crops[row].tolist()
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

    def _uniform(self, purpose: str, positions: np.ndarray, count: int) -> np.ndarray:
        return rng.uniform(rng.key(self.config.seed, purpose), positions, count)

    def _flip(self, positions: np.ndarray) -> np.ndarray:
        # The name of a purpose is part of what a seed means.
        flip: np.ndarray = self._uniform("mirror", positions, 1) < 0.5 * self.config.horizontal_flip
        return flip

    def _randaugment(self, positions: np.ndarray) -> np.ndarray:
        table = _randaugment_table(self.config.randaugment_magnitude / 10)
        layers = self.config.randaugment_layers
        chosen = (self._uniform("randaugment", positions, layers) * len(table)).astype(int)
        layer_params: np.ndarray = table[chosen]
        return layer_params.reshape(len(positions), layers * _LAYER_SIZE)

    def _color_jitter(self, positions: np.ndarray) -> np.ndarray:
        spread = np.array([getattr(self.config, name) for name in ("brightness", "contrast", "saturation", "hue")])
        change = (2 * self._uniform("color", positions, 4) - 1) * spread
        brightness, contrast, saturation = 1 + change[:, :3].T
        return _color_matrix(brightness, contrast, saturation, change[:, 3])

    def _random_erasing(self, positions: np.ndarray) -> np.ndarray:
        chance, area, ratio, top, left = self._uniform("erase", positions, 5).T
        area = (0.02 + 0.31 * area) * (chance < self.config.random_erasing)
        ratio = 0.3 * (3.3 / 0.3) ** ratio
        return self._boxes(np.sqrt(area / ratio), np.sqrt(area * ratio), top, left)

    def _mix(self, positions: np.ndarray) -> np.ndarray:
        """Positions 2n and 2n + 1 are a pair and get the same numbers: each shows itself and some of the other."""
        pairs = positions // 2
        mixup, cutmix = self.config.mixup, self.config.cutmix
        choice, top, left = self._uniform("mix", pairs, 3).T
        cut = choice < (0.5 if mixup and cutmix else float(cutmix > 0))
        share = _beta(np.where(cut, cutmix, mixup), self._uniform("share", pairs, 2 * _BETA_TRIES))
        side = np.sqrt(1 - share) * cut
        boxes = self._boxes(side, side, top, left)
        return np.column_stack((np.where(cut, 1.0, share), boxes))

    def _boxes(self, height: np.ndarray, width: np.ndarray, top: np.ndarray, left: np.ndarray) -> np.ndarray:
        """Boxes in whole pixels: height and width as shares of the side, top and left as shares of the free room."""
        size = self.config.image_size
        height, width = np.round(np.minimum(height, 1) * size), np.round(np.minimum(width, 1) * size)
        top, left = np.floor(top * (size - height + 1)), np.floor(left * (size - width + 1))
        return np.column_stack((top, left, top + height, left + width))


def _beta(alpha: np.ndarray, uniforms: np.ndarray) -> np.ndarray:
    """Beta(alpha, alpha) by Jöhnk's rejection method (1964), for alpha up to 1: at least half of the tries succeed."""
    uniforms = np.maximum(uniforms.reshape(len(alpha), 2, -1), 2.0**-54)
    powers = uniforms ** (1 / alpha)[:, None, None]
    accepted = powers.sum(1) <= 1
    first = np.broadcast_to(accepted.argmax(1)[:, None, None], (len(alpha), 2, 1))
    (u, v), (x, y) = (np.take_along_axis(pairs, first, 2)[..., 0].T for pairs in (uniforms, powers))
    # Powers of a small alpha are too small for a float, but not their ratio.
    ratio = np.exp(np.clip((np.log(v) - np.log(u)) / alpha, -700, 700))
    share = np.where(x + y > 1e-290, x / np.maximum(x + y, 1e-300), 1 / (1 + ratio))
    return np.where(accepted.any(1), share, 0.5)


def _color_matrix(brightness: np.ndarray, contrast: np.ndarray, saturation: np.ndarray, hue: np.ndarray) -> np.ndarray:
    """[n, 18]: matrices A and B of  pixel -> A pixel + B mean,  where mean is the image's mean color.

    Brightness, contrast, saturation and hue in this order, without clipping in between. Contrast interpolates to the
    mean gray; hue rotates the chroma plane by a share of a full circle.
    """
    identity = np.eye(3)
    contrast, saturation = contrast[:, None, None], saturation[:, None, None]
    own = brightness[:, None, None] * identity
    mean = (1 - contrast) * _GRAY @ own
    own = contrast * own
    turn = np.zeros((len(hue), 3, 3))
    turn[:, 0, 0] = 1
    turn[:, 1, 1] = turn[:, 2, 2] = np.cos(2 * math.pi * hue)
    turn[:, 2, 1] = np.sin(2 * math.pi * hue)
    turn[:, 1, 2] = -turn[:, 2, 1]
    color = np.linalg.inv(_TO_YIQ) @ turn @ _TO_YIQ @ (saturation * identity + (1 - saturation) * _GRAY)
    return np.concatenate((color @ own, color @ mean), 2).reshape(-1, 18)


def _randaugment_table(strength: float) -> np.ndarray:
    """[28, 27]: RandAugment's fourteen operations, each twice, those with a direction once in each."""
    up, down = 1 + 0.9 * strength, 1 - 0.9 * strength
    angle = math.radians(30 * strength)
    rows = []
    for sign in (1, -1):
        factor = up if sign > 0 else down
        cosine, sine = math.cos(angle), sign * math.sin(angle)
        rows += [
            _layer(),
            _layer(table=(AUTOCONTRAST, 0)),
            _layer(table=(EQUALIZE, 0)),
            _layer(table=(SOLARIZE, 256 * (1 - strength))),
            _layer(table=(POSTERIZE, 2 ** round(4 * strength))),
            _layer(brightness=factor),
            _layer(contrast=factor),
            _layer(saturation=factor),
            _layer(sharpness=factor),
            _layer(warp=(cosine, -sine, 0, sine, cosine, 0)),
            _layer(warp=(1, sign * 0.3 * strength, 0, 0, 1, 0)),
            _layer(warp=(1, 0, 0, sign * 0.3 * strength, 1, 0)),
            _layer(warp=(1, 0, sign * 0.45 * strength, 0, 1, 0)),
            _layer(warp=(1, 0, 0, 0, 1, sign * 0.45 * strength)),
        ]
    return np.array(rows)


def _layer(
    *,
    warp: tuple[float, ...] = (1, 0, 0, 0, 1, 0),  # output to input coordinates: in sides, from the center
    brightness: float = 1,
    contrast: float = 1,
    saturation: float = 1,
    table: tuple[int, float] = (NO_TABLE, 0),
    sharpness: float = 1,
) -> np.ndarray:
    factors = (np.array([value]) for value in (brightness, contrast, saturation, 0.0))
    return np.concatenate((warp, _color_matrix(*factors)[0], table, (sharpness,)))


IDENTITY = _layer()
