"""Max pooling over 2×2 windows with a gradient made of comparisons, for the network that trains.

TensorFlow's gradient becomes select-and-scatter under XLA: atomic additions on a GPU, or, when results must be
deterministic, sorts of every activation (https://github.com/google/flax/issues/4233), and one core's work on a CPU.
Windows that do not overlap need none of that.
"""

from __future__ import annotations

from collections.abc import Callable

import keras
import tensorflow as tf


class MaxPooling2x2(keras.layers.Layer):
    """keras.layers.MaxPooling2D() in the same bits, values and gradients; for NHWC images."""

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        """[b, h, w, c] to [b, h // 2, w // 2, c]; an odd last row or column is left out."""
        return max_pool_2x2(inputs)


@tf.custom_gradient
def max_pool_2x2(x: tf.Tensor) -> tuple[tf.Tensor, Callable[[tf.Tensor], tf.Tensor]]:
    """Largest value of each 2×2 window of [b, h, w, c]; its gradient goes to the first pixel that has that value."""
    y = tf.nn.max_pool2d(x, 2, 2, "VALID")
    height, width = y.shape[1:3]

    def gradient(dy: tf.Tensor) -> tf.Tensor:
        taken = tf.zeros_like(y, tf.bool)
        parts = []
        for row in (0, 1):
            for column in (0, 1):
                pixels = x[:, row : 2 * height : 2, column : 2 * width : 2]
                first = (pixels >= y) & ~taken
                taken |= first
                parts.append(tf.where(first, dy, tf.zeros_like(dy)))
        # [b, h, w, c] of each place in the window to [b, 2h, 2w, c]
        rows = [tf.stack(parts[start : start + 2], 3) for start in (0, 2)]
        dx = tf.reshape(tf.stack(rows, 2), (-1, 2 * height, 2 * width, y.shape[3]))
        odd = [(0, 0), (0, x.shape[1] - 2 * height), (0, x.shape[2] - 2 * width), (0, 0)]
        return tf.pad(dx, odd) if x.shape[1] % 2 or x.shape[2] % 2 else dx

    return y, gradient
