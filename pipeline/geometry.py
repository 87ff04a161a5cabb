"""What evaluation, prediction and export show of a picture: one function, in TensorFlow so that it can be exported."""

from __future__ import annotations

import tensorflow as tf

PREPROCESSING = {
    "colour": "rgb",  # channel order of what the model is fed; it normalises by itself
    "dtype": "uint8",
    "resize": "short side to round(image_size / crop_fraction), bilinear with antialiasing, rounded to uint8",
    "crop": "centre",
    "crop_fraction": 0.875,
}


def eval_geometry(image: tf.Tensor, image_size: int, crop_fraction: float = 0.875) -> tf.Tensor:
    """Resize the short side of uint8 [h, w, 3] and cut out the centre: uint8 [image_size, image_size, 3]."""
    return eval_crops(image, image_size, crop_fraction, 1)[0]


def eval_crops(image: tf.Tensor, image_size: int, crop_fraction: float, crops: int) -> tf.Tensor:
    """uint8 [crops, s, s, 3]: the centre; with 5 also the corners; with 10 all of them mirrored too."""
    short = max(image_size, round(image_size / crop_fraction))
    size = tf.shape(image)[:2]
    resized = tf.maximum(
        image_size,
        tf.cast(tf.round(tf.cast(size, tf.float64) * short / tf.cast(tf.reduce_min(size), tf.float64)), tf.int32),
    )
    scale = tf.cast(resized, tf.float32) / tf.cast(size, tf.float32)
    slack = resized - image_size
    corners = [(1, 1), (0, 0), (0, 2), (2, 0), (2, 2)] if crops > 1 else [(1, 1)]  # in halves of the slack
    cuts = tf.stack([_resize_and_cut(image, scale, slack * corner // 2, image_size) for corner in corners])
    return tf.concat([cuts, tf.reverse(cuts, [2])], 0) if crops == 10 else cuts


def _resize_and_cut(image: tf.Tensor, scale: tf.Tensor, top_left: tf.Tensor, image_size: int) -> tf.Tensor:
    """One op resizes, with antialiasing, and computes only the window it is asked for."""
    pixels = tf.raw_ops.ScaleAndTranslate(
        images=image[None],
        size=tf.constant([image_size, image_size]),
        scale=scale,
        translation=-tf.cast(top_left, tf.float32),
        kernel_type="triangle",
        antialias=True,
    )[0]
    return tf.cast(tf.clip_by_value(tf.round(pixels), 0, 255), tf.uint8)
