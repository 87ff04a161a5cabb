"""Layers of the network that trains whose gradients TensorFlow computes slowly: the same values, faster ways.

Max pooling, under XLA: TensorFlow's gradient becomes select-and-scatter: atomic additions on a GPU, or, when results
must be deterministic, sorts of every activation (https://github.com/google/flax/issues/4233), and one core's work on a
CPU. Windows that do not overlap need none of that, but comparisons. Without XLA, oneDNN does it best.

Convolutions, in bfloat16 by oneDNN: their kernel's gradient takes up to three times as long as as much arithmetic in a
product of matrices, where a kernel has many numbers and images have few pixels.

Means over the image: TensorFlow spreads a gradient over all pixels in float32, and rounds it then.
"""

from __future__ import annotations

from collections.abc import Callable

import keras
import tensorflow as tf

Gradients = Callable[[tf.Tensor], tuple[tf.Tensor, tf.Tensor, tf.Tensor]]


class MaxPooling2x2(keras.layers.Layer):
    """keras.layers.MaxPooling2D() in the same bits, values and gradients; for NHWC images."""

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        """[b, h, w, c] to [b, h // 2, w // 2, c]; an odd last row or column is left out."""
        return max_pool_2x2(inputs)


class ImageMean(keras.layers.Layer):
    """keras.layers.GlobalAveragePooling2D(dtype="float32") in the same bits, values and gradients; for NHWC images."""

    def __init__(self, name: str) -> None:
        super().__init__(name=name, dtype="float32", autocast=False)

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        """[b, h, w, c] to float32 [b, c]."""
        return image_mean(inputs)


class Convolution(keras.layers.Layer):
    """A convolution of VGG16 with its ReLU, a layer of Keras that is built, with its variables: the same values."""

    def __init__(self, layer: keras.layers.Conv2D) -> None:
        super().__init__(name=layer.name, dtype=layer.dtype_policy)
        self.layer = layer

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        """[b, h, w, i] to [b, h, w, o]."""
        _, height, width, channels = inputs.shape
        if not (inputs.dtype == "bfloat16" and height and width and height * width <= channels):
            return self.layer(inputs)
        kernel, bias = map(tf.convert_to_tensor, (self.layer.kernel, self.layer.bias))
        return tf.nn.relu(convolve(inputs, kernel, bias))


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


@tf.custom_gradient
def image_mean(x: tf.Tensor) -> tuple[tf.Tensor, Callable[[tf.Tensor], tf.Tensor]]:
    """Mean in float32 over the pixels of [b, h, w, c]; its gradient is rounded to x's type before it is spread."""
    pixels = tf.cast(tf.shape(x)[1] * tf.shape(x)[2], tf.float32)

    def gradient(dy: tf.Tensor) -> tf.Tensor:
        return tf.broadcast_to(tf.cast(dy / pixels, x.dtype)[:, None, None], tf.shape(x))

    return tf.reduce_mean(tf.cast(x, tf.float32), [1, 2]), gradient


@tf.custom_gradient
def convolve(x: tf.Tensor, kernel: tf.Tensor, bias: tf.Tensor) -> tuple[tf.Tensor, Gradients]:
    """tf.nn.conv2d(x, kernel, 1, "SAME") + bias, of [b, h, w, i] with [3, 3, i, o]; gradients by products of matrices.

    At each of its nine places the kernel's gradient is one: of the images, shifted by that place, and the gradient of
    the outputs.
    """
    y = tf.nn.bias_add(tf.nn.conv2d(x, kernel, 1, "SAME"), bias)
    _, height, width, inputs = x.shape

    def gradients(dy: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        dx = tf.raw_ops.Conv2DBackpropInput(
            input_sizes=tf.shape(x), filter=kernel, out_backprop=dy, strides=[1, 1, 1, 1], padding="SAME"
        )
        flat, padded = tf.reshape(dy, [-1, kernel.shape[3]]), tf.pad(x, [[0, 0], [1, 1], [1, 1], [0, 0]])
        shifted = [padded[:, i : i + height, j : j + width] for i in range(3) for j in range(3)]
        products = [tf.matmul(tf.reshape(image, [-1, inputs]), flat, transpose_a=True) for image in shifted]
        # TensorFlow's own gradient of a bias adds up bfloat16 in bfloat16: off by a tenth.
        return dx, tf.reshape(tf.stack(products), kernel.shape), tf.reduce_sum(flat, 0)

    return y, gradients
