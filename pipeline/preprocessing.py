"""The preprocessing of evaluation, prediction and export: one function, in TensorFlow so that it can be exported."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

PREPROCESSING = {
    "color": "rgb",  # channel order of what the model is fed; it normalizes by itself
    "dtype": "uint8",
    "resize": "short side to round(image_size / crop_fraction), bilinear with antialiasing, rounded to uint8",
    "crop": "center",
    "crop_fraction": 0.875,
}


def eval_geometry(image: tf.Tensor, image_size: int, crop_fraction: float = 0.875) -> tf.Tensor:
    """Resize the short side of uint8 [h, w, 3] and cut out the center: uint8 [image_size, image_size, 3]."""
    return eval_crops(image, image_size, crop_fraction, 1)[0]


def eval_crops(image: tf.Tensor, image_size: int, crop_fraction: float, crops: int) -> tf.Tensor:
    """uint8 [crops, s, s, 3]: the center crop; for 5 also the corners; for 10 all of them flipped, too.

    A NumPy array gives a NumPy array with the same pixels, computed on the CPU by one TensorFlow op: calling each of
    the small ones takes longer than resizing the image.
    """
    xp: Any = np if isinstance(image, np.ndarray) else tf
    cast = np.asarray if xp is np else tf.cast
    short = max(image_size, round(image_size / crop_fraction))
    size = cast(xp.shape(image)[:2], np.float64)
    resized = xp.maximum(image_size, cast(xp.round(size * short / xp.minimum(size[0], size[1])), np.int32))
    scale = cast(resized, np.float32) / cast(size, np.float32)
    slack = resized - image_size
    corners = [(1, 1), (0, 0), (0, 2), (2, 0), (2, 2)] if crops > 1 else [(1, 1)]  # in halves of the slack
    windows = (_resize_and_cut(image, scale, -cast(slack * corner // 2, np.float32), image_size) for corner in corners)
    cuts = xp.stack([cast(xp.maximum(0.0, xp.minimum(255.0, xp.round(w))), np.uint8) for w in windows])
    return xp.concat([cuts, cuts[:, :, ::-1]], 0) if crops == 10 else cuts


def _resize_and_cut(image: Any, scale: Any, translation: Any, image_size: int) -> Any:
    """Resizes with antialiasing, computing only the crop that is asked for."""

    def resize() -> tf.Tensor:
        return tf.raw_ops.ScaleAndTranslate(
            images=image[None],
            size=[image_size, image_size],
            scale=scale,
            translation=translation,
            kernel_type="triangle",
            antialias=True,
        )

    if not isinstance(image, np.ndarray):
        return resize()[0]
    with tf.device("/CPU:0"):
        return resize().numpy()[0]
