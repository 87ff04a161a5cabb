"""The preprocessing of evaluation, prediction and export: one function, of arrays and, to be exported, of tensors.

TensorFlow is imported for tensors only: the processes that make evaluation's batches go without it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from shardline.pipeline.antialias import resize_and_cut

if TYPE_CHECKING:
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

    A NumPy array gives a NumPy array with the same pixels.
    """
    xp, cast, cut = _of_arrays() if isinstance(image, np.ndarray) else _of_tensors()
    short = max(image_size, round(image_size / crop_fraction))
    size = cast(xp.shape(image)[:2], np.float64)
    resized = xp.maximum(image_size, cast(xp.round(size * short / xp.minimum(size[0], size[1])), np.int32))
    scale = cast(resized, np.float32) / cast(size, np.float32)
    slack = resized - image_size
    corners = [(1, 1), (0, 0), (0, 2), (2, 0), (2, 2)] if crops > 1 else [(1, 1)]  # in halves of the slack
    windows = (cut(image, scale, -cast(slack * corner // 2, np.float32), image_size) for corner in corners)
    cuts = xp.stack([cast(xp.maximum(0.0, xp.minimum(255.0, xp.round(w))), np.uint8) for w in windows])
    return xp.concat([cuts, cuts[:, :, ::-1]], 0) if crops == 10 else cuts


def _of_arrays() -> tuple[Any, Any, Any]:
    return np, np.asarray, resize_and_cut


def _of_tensors() -> tuple[Any, Any, Any]:
    """The module, the conversion to a type, and the resizing of a tensor, which computes only what is asked for."""
    import tensorflow as tf

    def resize(image: tf.Tensor, scale: tf.Tensor, translation: tf.Tensor, size: int) -> tf.Tensor:
        return tf.raw_ops.ScaleAndTranslate(
            images=image[None],
            size=[size, size],
            scale=scale,
            translation=translation,
            kernel_type="triangle",
            antialias=True,
        )[0]

    return tf, tf.cast, resize
