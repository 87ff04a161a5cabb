"""Decoded images as the bytes of a file, for pages, sheets and the images of a command. No TensorFlow."""

from __future__ import annotations

import numpy as np


def encode_rgb(rgb: np.ndarray, kind: str, quality: int = 80) -> bytes:
    """An image, uint8 RGB [height, width, 3], as a file of a kind: "jpg" or "webp" (quality 1 to 100), or "png"."""
    import cv2  # not for --help

    flags = {"jpg": cv2.IMWRITE_JPEG_QUALITY, "webp": cv2.IMWRITE_WEBP_QUALITY}
    settings = [flags[kind], quality] if kind in flags else []
    return cv2.imencode(f".{kind}", cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR), settings)[1].tobytes()


def fit(rgb: np.ndarray, side: int) -> np.ndarray:
    """The same image with its longer side at most `side` pixels."""
    import cv2  # not for --help

    scale = side / max(rgb.shape[:2])
    if scale >= 1:
        return rgb
    size = max(1, round(rgb.shape[1] * scale)), max(1, round(rgb.shape[0] * scale))
    return cv2.resize(rgb, size, interpolation=cv2.INTER_AREA)
