"""The host half of augmentation, in OpenCV: applies `pipeline.augment_params` to one image at a time. No TensorFlow.

What most images need, resizing and flipping, `_native.c` does in half the time, with the same bytes, where it could be
compiled and the processor has AVX2.
"""

from __future__ import annotations

import cv2
import numpy as np

from shardline.pipeline import native
from shardline.pipeline.augment_params import (
    AUTOCONTRAST,
    COLOR,
    FILL,
    IDENTITY,
    POSTERIZE,
    SHARPNESS,
    SOLARIZE,
    TABLE,
    WARP,
    AugmentParams,
)


def resize(pixels: np.ndarray, out: np.ndarray, *, flip: bool = False) -> None:
    """Fill `out`: bilinear, or by area averages when shrinking more than twofold, where bilinear would skip pixels."""
    height, width = out.shape[:2]
    if pixels.shape[:2] == (height, width):
        out[:] = pixels
    elif native.resize(pixels, out, flip):
        return
    else:
        skips = pixels.shape[0] > 2 * height or pixels.shape[1] > 2 * width
        kernel = cv2.INTER_AREA if skips else cv2.INTER_LINEAR
        cv2.resize(pixels, (width, height), dst=out, interpolation=kernel)
    if flip:
        cv2.flip(out, 1, dst=out)  # in place, in the caches: out of another buffer it takes nine times as long


def canvas_size(image_size: int) -> int:
    """Side of the square in which crops are sent to the device: an eighth longer than the images made of them.

    Of images stored at 8/7 of that size, as is usual, one crop in six is longer than this.
    """
    return -(-image_size * 9 // 8 // 8) * 8


def send_to_device(window: np.ndarray, params: AugmentParams, row: int, out: np.ndarray) -> None:
    """Put a sample's random crop at the top left of `out` and note its size in `params`.

    A side too long for the canvas gets its final length here, so that no side is resampled twice.
    """
    height, width = (side if side <= len(out) else params.config.image_size for side in window.shape[:2])
    resize(window, out[:height, :width])
    out[height:] = 0  # like the rest of the canvas: what leaves the host depends on the position alone
    out[:height, width:] = 0
    params.values[row, params.columns["crop_size"]] = height, width


def augment(window: np.ndarray, params: AugmentParams, row: int, out: np.ndarray) -> None:
    """Fill `out`, uint8 [size, size, 3], with a sample's random crop, augmented; mixing comes after all samples."""
    resize(window, out, flip=bool(params.values[row, params.columns["flip"].start]))
    if "randaugment" in params.columns:
        for layer in params.values[row, params.columns["randaugment"]].reshape(-1, len(IDENTITY)):
            out[:] = _layer(out, layer)
    if "color_jitter" in params.columns:
        out[:] = _color(out, params.values[row, params.columns["color_jitter"]])
    if "random_erasing" in params.columns:
        top, left, bottom, right = params.values[row, params.columns["random_erasing"]].astype(int)
        out[top:bottom, left:right] = FILL


def mix(image: np.ndarray, usable: np.ndarray, params: AugmentParams) -> np.ndarray:
    """Mix each pair of images in place where both are usable; returns the weight of its own image in each."""
    shares = np.ones(len(image), np.float32)
    for row in range(0, len(image), 2):
        pair = slice(row, row + 2)
        if usable[pair].all():
            share, *box = params.values[row, params.columns["mix"]].tolist()
            top, left, bottom, right = map(int, box)
            first, second = image[row].copy(), image[row + 1].copy()
            if share < 1:
                cv2.addWeighted(first, share, second, 1 - share, 0, dst=image[row])
                cv2.addWeighted(second, share, first, 1 - share, 0, dst=image[row + 1])
            image[row, top:bottom, left:right] = second[top:bottom, left:right]
            image[row + 1, top:bottom, left:right] = first[top:bottom, left:right]
            shares[pair] = share * (1 - (bottom - top) * (right - left) / image[row, ..., 0].size)
    return shares


def _layer(image: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """One layer of RandAugment; steps that change nothing are skipped."""
    changed = numbers != IDENTITY.astype(np.float32)
    if changed[WARP].any():
        image = _warp(image, numbers[WARP].reshape(2, 3))
    if changed[COLOR].any():
        image = _color(image, numbers[COLOR])
    if changed[TABLE].any():
        image = cv2.LUT(image, _table(image, *numbers[TABLE].tolist())[None])
    if changed[SHARPNESS]:
        kernel = (1 - numbers[SHARPNESS]) * np.array(((1, 1, 1), (1, 5, 1), (1, 1, 1)), np.float32) / 13
        kernel[1, 1] += numbers[SHARPNESS]
        image = cv2.filter2D(image, -1, kernel, borderType=cv2.BORDER_REPLICATE)
    return image


def _warp(image: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    size = image.shape[0]
    center = (size - 1) / 2
    matrix = matrix.astype(np.float64)
    matrix[:, 2] = matrix[:, 2] * size + center - matrix[:, :2].sum(1) * center
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return cv2.warpAffine(image, matrix, (size, size), flags=flags, borderValue=FILL)


def _color(image: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    own, mean = np.hsplit(numbers.reshape(3, 6).astype(np.float64), 2)
    offset = mean @ cv2.mean(image)[:3]
    return cv2.transform(image, np.column_stack((own, offset)))


def _table(image: np.ndarray, kind: float, value: float) -> np.ndarray:
    """uint8 [256, 3]: what becomes of each value of each channel."""
    values = np.arange(256)
    if kind == SOLARIZE:
        one = np.where(values < value, values, 255 - values)
    elif kind == POSTERIZE:
        one = values // value * value
    else:
        make = _autocontrast if kind == AUTOCONTRAST else _equalize
        return np.column_stack([make(np.bincount(image[..., c].ravel(), minlength=256)) for c in range(3)])
    return np.repeat(one.astype(np.uint8)[:, None], 3, 1)


def _autocontrast(counts: np.ndarray) -> np.ndarray:
    """Stretch so that the darkest value becomes 0 and the brightest 255."""
    present = np.flatnonzero(counts)
    low, high = present[0], present[-1]
    stretched = (np.arange(256) - low) * (255 / max(high - low, 1))
    return np.clip(np.round(stretched) if high > low else np.arange(256), 0, 255).astype(np.uint8)


def _equalize(counts: np.ndarray) -> np.ndarray:
    """Pillow's histogram equalization."""
    step = (counts.sum() - counts[np.flatnonzero(counts)[-1]]) // 255
    if step == 0:
        return np.arange(256, dtype=np.uint8)
    table: np.ndarray = np.clip((np.cumsum(counts) - counts + step // 2) // step, 0, 255)
    return table.astype(np.uint8)
