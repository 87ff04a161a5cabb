"""The device half of augmentation: pure TensorFlow on whole batches, safe under jit_compile."""

from __future__ import annotations

import tensorflow as tf

from pipeline.config import InputConfig


def augment_on_device(batch: dict[str, tf.Tensor], config: InputConfig) -> dict[str, tf.Tensor]:
    """Finish a training batch: float32 images [b, image_size, image_size, 3] with values from 0 to 255.

    Batches that were augmented on the host, and evaluation batches, only change their type.
    """
    image = tf.cast(batch["image"], tf.float32)
    if "edits" in batch:
        image = _crop(image, batch["edits"], config.image_size)
    return {name: value for name, value in batch.items() if name != "edits"} | {"image": image}


def _crop(canvas: tf.Tensor, edits: tf.Tensor, image_size: int) -> tf.Tensor:
    """Resize each canvas's window and mirror it, as two matrix products: bilinear, antialiased when shrinking."""
    side = canvas.shape[1]
    rows = _resize_matrix(edits[:, 0], side, image_size)
    columns = _resize_matrix(edits[:, 1], side, image_size)
    columns = tf.where(edits[:, 2, None, None] > 0, tf.reverse(columns, [1]), columns)
    image = tf.einsum("bsy,byxc->bsxc", rows, canvas)
    return tf.einsum("btx,bsxc->bstc", columns, image)


def _resize_matrix(length: tf.Tensor, side: int, image_size: int) -> tf.Tensor:
    """float32 [b, image_size, side]: weights that resample the first `length` of `side` pixels."""
    scale = tf.maximum(length, 1.0)[:, None, None] / image_size
    centre = (tf.range(image_size, dtype=tf.float32)[None, :, None] + 0.5) * scale - 0.5
    pixel = tf.range(side, dtype=tf.float32)[None, None, :]
    weight = tf.nn.relu(1.0 - tf.abs(pixel - centre) / tf.maximum(scale, 1.0))
    weight = tf.where(pixel < length[:, None, None], weight, 0.0)
    return weight / tf.maximum(tf.reduce_sum(weight, 2, keepdims=True), 1e-6)
