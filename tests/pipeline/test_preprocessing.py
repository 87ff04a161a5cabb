"""The one function that evaluation, prediction and export show images through."""

import cv2
import numpy as np
import pytest
import tensorflow as tf

from shardline import pipeline
from shardline.pipeline.preprocessing import eval_crops
from tests.pipeline.tiny import image


def test_an_image_of_the_right_size_is_only_cut():
    pixels = image(1, 40, 56)
    np.testing.assert_array_equal(pipeline.eval_geometry(pixels, 35, 0.875), pixels[2:37, 10:45])


@pytest.mark.parametrize("size", [(40, 56), (56, 40), (300, 90), (64, 64), (20, 31), (1, 1)])
@pytest.mark.parametrize("fraction", [0.875, 1.0])
def test_any_size_becomes_a_square(size, fraction):
    found = pipeline.eval_geometry(image(1, *size), 32, fraction)
    assert found.shape == (32, 32, 3)
    assert found.dtype == np.uint8


def test_shrinking_averages_instead_of_skipping():
    stripes = np.zeros((128, 128, 3), np.uint8)
    stripes[:, ::4] = 255  # one column in four, which the four's middle does not touch
    found = pipeline.eval_geometry(stripes, 32, 1.0)[:, 2:-2]
    assert found.min() > 40 and found.max() < 90


def test_it_agrees_with_an_independent_resize():
    pixels = image(4, 128, 160)
    found = pipeline.eval_geometry(pixels, 56, 0.875).astype(int)
    expected = cv2.resize(pixels, (80, 64), interpolation=cv2.INTER_AREA)[4:60, 12:68]
    assert np.abs(found - expected).mean() < 2


def test_it_can_be_exported_with_any_image_size():
    graph = tf.function(
        lambda pixels: pipeline.eval_geometry(pixels, 32), input_signature=[tf.TensorSpec((None, None, 3), tf.uint8)]
    )
    for size in ((40, 56), (90, 33)):
        np.testing.assert_array_equal(graph(image(1, *size)), pipeline.eval_geometry(image(1, *size), 32))


@pytest.mark.parametrize("crops", [1, 10])
def test_arrays_and_tensors_give_the_same_pixels(crops):
    graph = tf.function(
        lambda image: eval_crops(image, 30, 0.8, crops), input_signature=[tf.TensorSpec((None, None, 3), tf.uint8)]
    )
    random = np.random.default_rng(0)
    for size in ((1, 1), (20, 31), (300, 90), *random.integers(20, 130, (40, 2))):
        pixels = random.integers(0, 256, (*size, 3), np.uint8)
        found = eval_crops(pixels, 30, 0.8, crops)
        assert isinstance(found, np.ndarray) and found.dtype == np.uint8
        np.testing.assert_array_equal(found, graph(pixels))
        np.testing.assert_array_equal(found, eval_crops(tf.constant(pixels), 30, 0.8, crops))


def test_several_crops_are_center_corners_and_mirrors():
    pixels = image(2, 40, 56)
    crops = eval_crops(pixels, 32, 0.8, 10)
    expected = [pixels[4:36, 12:44], pixels[:32, :32], pixels[:32, -32:], pixels[-32:, :32], pixels[-32:, -32:]]
    np.testing.assert_array_equal(crops[:5], expected)
    np.testing.assert_array_equal(crops[5:], crops[:5, :, ::-1])
    np.testing.assert_array_equal(eval_crops(pixels, 32, 0.8, 5), crops[:5])
    np.testing.assert_array_equal(pipeline.eval_geometry(pixels, 32, 0.8), crops[0])
