"""Layers of the network that trains: TensorFlow's own values and gradients, where nothing is added up bit for bit."""

from functools import partial

import keras
import numpy as np
import pytest
import tensorflow as tf
from tensorflow.python.framework import config as framework_config

from shardline.trainer.gradients import convolve, image_mean, max_pool_2x2
from shardline.trainer.model import NetworkConfig, create_network, initialize

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


def values_and_gradients(functions, x, upstream):
    found = []
    for function in functions:
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = function(x)
        found.append((y, tape.gradient(y, x, upstream)))
    return found


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("height, width", [(8, 8), (7, 7), (6, 9), (3, 2)])
def test_values_and_gradients_are_those_of_tensorflow(mode, dtype, height, width):
    run = MODES[mode](partial(values_and_gradients, (max_pool_2x2, tensorflow_pool)))
    for levels in (1, 3, 1000):
        x = images(height, width, dtype, levels)
        upstream = tf.cast(np.random.default_rng(9).normal(size=(3, height // 2, width // 2, 5)), dtype)
        (y, dx), (their_y, their_dx) = run(x, upstream)
        assert y.dtype == dx.dtype == dtype and dx.shape == x.shape
        np.testing.assert_array_equal(y, their_y)
        np.testing.assert_array_equal(dx, their_dx)
        assert np.count_nonzero(np.asarray(dx, np.float32)) == y.shape.num_elements()  # one pixel of each window


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_means_and_their_gradients_are_those_of_keras(mode, dtype):
    x = images(12, 7, dtype, 1000)
    upstream = np.random.default_rng(9).normal(size=(3, 5)).astype(np.float32)
    keras_mean = keras.layers.GlobalAveragePooling2D(dtype="float32")

    (y, dx), (their_y, their_dx) = MODES[mode](partial(values_and_gradients, (image_mean, keras_mean)))(x, upstream)
    assert y.dtype == "float32" and dx.dtype == dtype
    np.testing.assert_array_equal(y, their_y)
    # The reciprocal of the 84 pixels, by which some multiply, is rounded.
    np.testing.assert_allclose(np.asarray(dx, np.float64), np.asarray(their_dx, np.float64), rtol=2**-23)


@pytest.mark.parametrize("height, width", [(4, 4), (1, 3), (5, 4)])
def test_convolutions_have_the_gradients_of_numpy(height, width):
    """Of whole numbers, whose sums are exact in any order until they are rounded to bfloat16."""
    draw = np.random.default_rng([height, width])
    shapes = (40, height, width, 7), (3, 3, 7, 6), (6,), (40, height, width, 6)
    x, kernel, bias, upstream = (draw.integers(-3, 4, shape).astype(np.float64) for shape in shapes)
    padded, y = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0))), np.zeros_like(upstream) + bias
    dkernel, dpadded = np.zeros_like(kernel), np.zeros_like(padded)
    for i in range(3):
        for j in range(3):
            window = np.s_[:, i : i + height, j : j + width]
            y += padded[window] @ kernel[i, j]
            dkernel[i, j] = np.einsum("bhwi,bhwo->io", padded[window], upstream)
            dpadded[window] += upstream @ kernel[i, j].T

    @tf.function(autograph=False)
    def compute(*arguments):
        with tf.GradientTape() as tape:
            tape.watch(arguments)
            found = convolve(*arguments)
        return found, *tape.gradient(found, arguments, tf.cast(upstream, tf.bfloat16))

    exact = y, dpadded[:, 1:-1, 1:-1], dkernel, upstream.sum((0, 1, 2))
    for ours, sums in zip(compute(*(tf.cast(a, tf.bfloat16) for a in (x, kernel, bias))), exact, strict=True):
        assert ours.dtype == "bfloat16"
        np.testing.assert_array_equal(ours, tf.cast(sums, tf.bfloat16))


def backward_of(network):
    variables = list(network.weights.values())

    def backward(image, position):
        with tf.GradientTape() as tape:
            logits = network.train([image, position], training=True)
            loss = tf.reduce_sum(tf.nn.log_softmax(logits)[:, 0])
        return logits, tape.gradient(loss, variables)

    return backward


def gradients(network, batch, jit):
    return tf.function(backward_of(network), jit_compile=jit, autograph=False)(*batch)


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
        monkeypatch.setattr("shardline.trainer.gradients.max_pool_2x2", pool)
        network = create_network(NetworkConfig(5, image_size=56, width=0.05, precision=precision, input_scale=58))
        initialize(network, 3)
        found.append(gradients(network, batch, jit))
    (logits, ours), (their_logits, theirs) = found
    np.testing.assert_array_equal(logits, their_logits)
    for path, a, b in zip(network.weights, ours, theirs, strict=True):
        assert np.count_nonzero(b), path
        np.testing.assert_array_equal(a, b, err_msg=path)


def test_a_network_of_onednn_has_the_same_gradients():
    draw = np.random.default_rng(0)
    batch = draw.integers(0, 256, (4, 64, 64, 3)).astype(np.float32), np.arange(4)
    found, shape = [], {"head": "hypercolumn", "image_size": 64, "precision": "mixed_bfloat16", "input_scale": 58}
    for onednn in (False, True):
        network = create_network(NetworkConfig(5, **shape, width=0.25, onednn=onednn))
        initialize(network, 3)
        step = tf.function(backward_of(network), autograph=False)
        operations = step.get_concrete_function(*batch).graph.get_operations()
        # 64 × 64 to 4 × 4 pixels, by 16 to 128 channels: blocks 4 and 5 have fewer pixels than channels.
        slow = [node.type for node in operations].count("Conv2DBackpropFilter")
        assert slow == (7 if onednn else 13)
        found.append(step(*batch))
    (logits, theirs), (our_logits, ours) = found
    np.testing.assert_array_equal(logits, our_logits)
    for path, a, b in zip(network.weights, ours, theirs, strict=True):
        assert np.linalg.norm(a - b) <= 0.01 * np.linalg.norm(b), path  # bfloat16 rounds to 1 of 256


def test_what_trains_pools_so_and_what_is_served_as_keras_does():
    network = create_network(NetworkConfig(3, image_size=32, width=0.05))
    assert [type(layer).__name__ for layer in network.train.layers].count("MaxPooling2x2") == 5
    assert [type(layer).__name__ for layer in network.serve.layers].count("MaxPooling2D") == 5
    assert {layer.name for layer in network.train.layers if "pool" in layer.name} == {
        layer.name for layer in network.serve.layers if "pool" in layer.name
    }


@pytest.mark.parametrize("width", [1, 0.05])
def test_by_onednn_its_own_pooling_trains_beside_our_convolutions(width):
    network = create_network(NetworkConfig(3, image_size=32, width=width, onednn=True))
    kinds = [type(layer).__name__ for layer in network.train.layers]
    assert (kinds.count("Convolution"), kinds.count("MaxPooling2D"), kinds.count("Conv2D")) == (13, 5, 0)
    assert list(network.weights) == list(create_network(NetworkConfig(3, image_size=32, width=0.05)).weights)


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


def test_a_model_of_onednn_is_saved_as_any_other(tmp_path):
    network = create_network(NetworkConfig(3, image_size=32, width=0.05, onednn=True))
    network.serve.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    image = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), np.uint8)
    np.testing.assert_array_equal(loaded(image), network.serve(image))
    assert {type(layer).__module__.split(".")[0] for layer in loaded.layers} == {"keras"}
