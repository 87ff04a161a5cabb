"""Resizing with antialiasing, as TensorFlow's ScaleAndTranslate does it with a triangle kernel. No TensorFlow.

Weights and sums are those of TensorFlow's CPU kernel (tensorflow/core/kernels/image/scale_and_translate_op.cc), in its
order and in float32: the results are equal bit for bit, as long as it was not built to fuse multiplying with adding,
as the wheels for x86-64 are not. Taps that weigh nothing, and columns that nobody asks for, are left out.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

_HALF, _ONE = np.float32(0.5), np.float32(1)


def resize_and_cut(image: np.ndarray, scale: np.ndarray, translation: np.ndarray, size: int) -> np.ndarray:
    """float32 [size, size, 3] out of uint8 [h, w, 3], first scaled, then shifted.

    Args:
      scale: float32 [2], of rows and of columns.
      translation: float32 [2], in pixels of the result.
      size: side of the result; none of it may lie outside the image.
    """
    height, width = image.shape[:2]
    rows, row_weights = _taps(height, size, float(scale[0]), float(translation[0]))
    columns, column_weights = _taps(width, size, float(scale[1]), float(translation[1]))
    first = columns.min()
    part = image[:, first : columns.max() + 1]
    tall = _weighted_sum(part.reshape(height, -1), rows, row_weights)
    turned = np.ascontiguousarray(tall.reshape(size, -1, 3).transpose(1, 0, 2))
    wide = _weighted_sum(turned.reshape(len(turned), -1), columns - first, column_weights)
    return wide.reshape(size, size, 3).transpose(1, 0, 2)


def _weighted_sum(lines: np.ndarray, taps: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """float32 [n, m]: sums of the lines [h, m] that taps [n, k] name, tap after tap."""
    total = np.zeros((len(taps), lines.shape[1]), np.float32)
    for k in range(taps.shape[1]):
        if weights[:, k].any():
            total += lines[taps[:, k]] * weights[:, k, None]
    return total


@lru_cache(maxsize=256)  # images of one size share them
def _taps(length: int, size: int, scale: float, translation: float) -> tuple[np.ndarray, np.ndarray]:
    """Which lines of `length` each of `size` lines is made of, int64 [size, k], and by what weights, float32."""
    inverse = np.float32(1.0 / scale)
    reach = max(inverse, _ONE)  # half the width of the kernel, in lines of the image
    center = (np.arange(size, dtype=np.float32) + _HALF) * inverse - inverse * np.float32(translation)
    start = np.clip(np.ceil(center - reach - _HALF).astype(np.int64), 0, length - 1)
    end = np.clip(np.floor(center + reach - _HALF).astype(np.int64), 0, length - 1) + 1
    taps = start[:, None] + np.arange(min(2 * int(np.ceil(reach)) + 1, length))
    distance = np.abs((taps.astype(np.float32) + _HALF - center[:, None]) * (_ONE / reach))
    weights = np.where(taps < end[:, None], np.maximum(_ONE - distance, np.float32(0)), np.float32(0))
    total = np.zeros(size, np.float32)
    for k in range(taps.shape[1]):  # one after another: the order of the rounding
        total += weights[:, k]
    return np.minimum(taps, length - 1), weights * (_ONE / total)[:, None]
