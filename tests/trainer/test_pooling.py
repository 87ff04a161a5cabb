"""Pooling in the network that trains: TensorFlow's own values and gradients, bit for bit."""

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.python.framework import config as framework_config

from shardline.trainer.model import NetworkConfig, create_network, initialize
from shardline.trainer.pooling import max_pool_2x2

MODES = {
    "eager": lambda f: f,
    "graph": lambda f: tf.function(f, autograph=False),
    "xla": lambda f: tf.function(f, autograph=False, jit_compile=True),
}


@pytest.fixture(autouse=True)
def without_op_determinism():
    """Trainings of other tests in this process switch it on, and with it TensorFlow compiles no pooling of its own."""
    framework_config.disable_op_determinism()


def tensorflow_pool(x):
    return tf.nn.max_pool2d(x, 2, 2, "VALID")


def images(height, width, dtype, levels):
    """Few levels make ties in most windows; the zeros of a ReLU are the ties that occur in life."""
    draw = np.random.default_rng([height, width, levels])
    return tf.cast(np.maximum(draw.integers(-levels, levels, (3, height, width, 5)), 0) / 7, dtype)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("height, width", [(8, 8), (7, 7), (6, 9), (3, 2)])
def test_values_and_gradients_are_those_of_tensorflow(mode, dtype, height, width):
    def both(x, upstream):
        found = []
        for pool in (max_pool_2x2, tensorflow_pool):
            with tf.GradientTape() as tape:
                tape.watch(x)
                y = pool(x)
            found.append((y, tape.gradient(y, x, upstream)))
        return found

    run = MODES[mode](both)
    for levels in (1, 3, 1000):
        x = images(height, width, dtype, levels)
        upstream = tf.cast(np.random.default_rng(9).normal(size=(3, height // 2, width // 2, 5)), dtype)
        (y, dx), (their_y, their_dx) = run(x, upstream)
        assert y.dtype == dx.dtype == dtype and dx.shape == x.shape
        np.testing.assert_array_equal(y, their_y)
        np.testing.assert_array_equal(dx, their_dx)
        assert np.count_nonzero(np.asarray(dx, np.float32)) == y.shape.num_elements()  # one pixel of each window


def gradients(network, batch, jit):
    variables = list(network.weights.values())

    def backward(image, position):
        with tf.GradientTape() as tape:
            logits = network.train([image, position], training=True)
            loss = tf.reduce_sum(tf.nn.log_softmax(logits)[:, 0])
        return logits, tape.gradient(loss, variables)

    return tf.function(backward, jit_compile=jit, autograph=False)(*batch)


@pytest.mark.parametrize(
    "precision, jit",
    [
        ("float32", False),
        pytest.param("float32", True, marks=pytest.mark.slow),
        pytest.param("mixed_bfloat16", True, marks=pytest.mark.slow),
    ],
)
def test_vgg16_has_the_gradients_it_has_with_the_pooling_of_keras(precision, jit, monkeypatch):
    draw = np.random.default_rng(0)
    # 56 pixels: 28, 14, 7 and, from an odd side, 3 and 1.
    batch = draw.integers(0, 256, (4, 56, 56, 3)).astype(np.float32), np.arange(4)
    found = []
    for pool in (max_pool_2x2, tensorflow_pool):
        monkeypatch.setattr("shardline.trainer.pooling.max_pool_2x2", pool)
        network = create_network(NetworkConfig(5, image_size=56, width=0.05, precision=precision, input_scale=58))
        initialize(network, 3)
        found.append(gradients(network, batch, jit))
    (logits, ours), (their_logits, theirs) = found
    np.testing.assert_array_equal(logits, their_logits)
    for path, a, b in zip(network.weights, ours, theirs, strict=True):
        assert np.count_nonzero(b), path
        np.testing.assert_array_equal(a, b, err_msg=path)


def test_what_trains_pools_so_and_what_is_served_as_keras_does():
    network = create_network(NetworkConfig(3, image_size=32, width=0.05))
    assert [type(layer).__name__ for layer in network.train.layers].count("MaxPooling2x2") == 5
    assert [type(layer).__name__ for layer in network.serve.layers].count("MaxPooling2D") == 5
    assert {layer.name for layer in network.train.layers if "pool" in layer.name} == {
        layer.name for layer in network.serve.layers if "pool" in layer.name
    }


def test_the_compiled_step_has_no_select_and_scatter():
    """What GPUs would sort or add up with atomics (see `make gpu-compile`)."""
    network = create_network(NetworkConfig(3, image_size=32, width=0.05))
    variables = list(network.weights.values())

    @tf.function(jit_compile=True, autograph=False)
    def backward(image):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(network.train([image, tf.zeros(2, tf.int64)], training=True))
        return tape.gradient(loss, variables)

    hlo = backward.experimental_get_compiler_ir(tf.zeros([2, 32, 32, 3]))(stage="hlo")
    assert "convolution" in hlo
    assert "scatter" not in hlo
