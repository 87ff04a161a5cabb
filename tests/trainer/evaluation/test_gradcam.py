"""Grad-CAM points at the evidence, and the images made of it have the promised shapes."""

import cv2
import keras
import numpy as np
import pytest

from shardline.trainer.evaluation import gradcam
from shardline.trainer.model import NetworkConfig, create_network, initialize


@pytest.fixture(scope="module")
def model():
    """A convolution that passes red and green on as two channels; class 0 counts red, class 1 green."""
    image = keras.Input((32, 32, 3), dtype="uint8")
    x = keras.layers.Rescaling(1 / 255)(image)
    x = keras.layers.AveragePooling2D(4)(x)
    convolution = keras.layers.Conv2D(2, 1, use_bias=False)
    x = keras.layers.GlobalAveragePooling2D()(convolution(x))
    dense = keras.layers.Dense(2, use_bias=False)
    outputs = keras.layers.Activation("softmax")(dense(x))
    convolution.set_weights([np.array([[[[1.0, 0], [0, 1], [0, 0]]]], np.float32)])
    dense.set_weights([np.array([[50.0, 0], [0, 50]], np.float32)])
    return keras.Model(image, outputs)


def corners():
    """Red at the top left, green at the bottom right."""
    image = np.zeros((32, 32, 3), np.uint8)
    image[:8, :8, 0] = image[-8:, -8:, 1] = 255
    return image


@pytest.mark.parametrize("jit", [False, True])
def test_the_map_is_high_where_the_evidence_for_the_class_lies(model, jit):
    images = np.stack([corners(), corners()])
    red, green = gradcam.GradCam(model, jit)(images, np.array([0, 1]))
    assert red.shape == (8, 8)
    assert (red[:2, :2] == 1).all() and red.sum() == pytest.approx(4)
    assert (green[-2:, -2:] == 1).all() and green.sum() == pytest.approx(4)


def test_a_sure_prediction_still_has_a_map(model):
    only_red = np.zeros((1, 32, 32, 3), np.uint8)
    only_red[:, :, :16, 0] = 255
    assert model(only_red)[0, 0] == 1.0  # the softmax has no slope left here
    assert gradcam.GradCam(model)(only_red, np.array([0])).max() == 1


def test_an_image_without_evidence_has_an_empty_map(model):
    assert gradcam.GradCam(model)(np.zeros((1, 32, 32, 3), np.uint8), np.array([0])).max() == 0


def test_evidence_of_several_convolutions_is_added_per_area():
    """One counts red in full resolution, one green after pooling; the class counts both, the fine one twice."""
    image = keras.Input((32, 32, 3), dtype="uint8")
    x = keras.layers.Rescaling(1 / 255)(image)
    fine, coarse = (keras.layers.Conv2D(1, 1, use_bias=False, name=name) for name in ("fine", "coarse"))
    means = [keras.layers.GlobalAveragePooling2D()(fine(x))]
    means.append(keras.layers.GlobalAveragePooling2D()(coarse(keras.layers.AveragePooling2D(4)(x))))
    dense = keras.layers.Dense(1, use_bias=False)
    model = keras.Model(image, dense(keras.layers.Concatenate()(means)))
    fine.set_weights([np.array([[[[1.0], [0], [0]]]], np.float32)])
    coarse.set_weights([np.array([[[[0.0], [1], [0]]]], np.float32)])
    dense.set_weights([np.array([[2.0], [1.0]], np.float32)])
    heat = gradcam.GradCam(model)(corners()[None], np.array([0]))[0]
    assert heat.shape == (8, 8) and heat.sum() == pytest.approx(4 * 1 + 4 * 0.5)
    assert heat[:2, :2] == pytest.approx(1) and heat[-2:, -2:] == pytest.approx(0.5)


@pytest.mark.parametrize(("head", "convolutions"), [("gap", 1), ("flatten256", 1), ("hypercolumn", 5)])
def test_its_model_is_the_trained_model(head, convolutions):
    network = create_network(NetworkConfig(3, head, 32, width=0.1))  # its layers belong to several models
    initialize(network, 0)
    images = np.random.default_rng(0).integers(0, 255, (2, 32, 32, 3), dtype=np.uint8)
    cam = gradcam.GradCam(network.serve)
    *activations, logits = cam._run(images)
    assert len(activations) == convolutions and cam(images, np.array([0, 1])).shape == (2, 2, 2)
    assert keras.ops.softmax(logits).numpy() == pytest.approx(network.serve(images).numpy(), abs=1e-5)


def test_overlay_and_pairs_keep_their_shapes():
    heat = np.zeros((4, 4), np.float32)
    heat[0, 0] = 1
    mixed = gradcam.overlay(corners(), heat)
    assert mixed.shape == (32, 32, 3) and mixed.dtype == np.uint8
    assert mixed[2, 2].astype(int).sum() > mixed[30, 2].astype(int).sum()
    pair = cv2.imdecode(np.frombuffer(gradcam.side_by_side(corners(), mixed, height=64), np.uint8), cv2.IMREAD_COLOR)
    assert pair.shape == (64, 64 + 4 + 64, 3)
