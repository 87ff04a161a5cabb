"""The resizing of arrays against TensorFlow's own kernel, bit for bit in float32."""

import numpy as np
import pytest
import tensorflow as tf

from shardline.pipeline.antialias import resize_and_cut


def by_tensorflow(image, scale, translation, size):
    resized = tf.raw_ops.ScaleAndTranslate(
        images=image[None], size=[size, size], scale=scale, translation=translation, kernel_type="triangle",
        antialias=True,
    )  # fmt: skip
    return resized.numpy()[0]


@pytest.mark.parametrize("size", [1, 32, 224])
def test_every_bit_is_tensorflow_s(size):
    random = np.random.default_rng(size)
    shapes = [(1, 1), (1, 900), (size, size), (2 * size, 3 * size), *random.integers(1, 500, (30, 2)).tolist()]
    for shape in shapes:
        image = random.integers(0, 256, (*shape, 3), np.uint8)
        short = random.integers(size, 2 * size + 1)
        resized = np.maximum(size, np.round(np.array(shape) * short / min(shape)).astype(np.int32))
        scale = resized.astype(np.float32) / np.array(shape, np.float32)
        for corner in (0, 1, 2):  # of the slack, in halves
            translation = -((resized - size) * corner // 2).astype(np.float32)
            found = resize_and_cut(image, scale, translation, size)
            np.testing.assert_array_equal(found, by_tensorflow(image, scale, translation, size), err_msg=str(shape))


def test_an_unscaled_part_is_the_part_itself():
    image = np.random.default_rng(0).integers(0, 256, (50, 60, 3), np.uint8)
    found = resize_and_cut(image, np.float32([1, 1]), np.float32([-3, -20]), 40)
    np.testing.assert_array_equal(found, image[3:43, 20:60])
