"""The network: VGG16's own layers, what trains, and the head's shapes."""

import keras
import numpy as np
import pytest

from shardline.trainer.model import PIXEL_SPREAD, NetworkConfig, create_network, flops_per_image, initialize
from tests.trainer.networks import THIN, randomized


def test_at_full_width_it_is_keras_vgg16_on_its_own_preprocessing():
    network = create_network(NetworkConfig(3, image_size=32))
    initialize(network, 0)
    theirs = keras.applications.VGG16(include_top=False, weights=None, input_shape=(32, 32, 3), pooling="avg")
    theirs.set_weights([v.numpy() for path, v in network.weights.items() if path.startswith("block")])
    images = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), np.uint8)
    expected = theirs(keras.applications.vgg16.preprocess_input(images.astype(np.float32)))
    found = network.backbone(images.astype(np.float32))
    assert sum(v.numpy().size for p, v in network.weights.items() if p.startswith("block")) == 14_714_688
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4 * float(np.abs(expected).max()))


@pytest.mark.parametrize(
    "head, layers",
    [
        ("gap", ["predictions"]),
        ("hypercolumn", ["predictions"]),
        ("flatten256", ["hidden", "predictions"]),
        ("fc4096", ["fc1", "fc2", "predictions"]),
    ],
)
def test_heads(head, layers):
    network = create_network(NetworkConfig(head=head, **THIN, precision="mixed_bfloat16"))
    assert [p[: -len("/kernel")] for p in network.trained("head") if p.endswith("kernel")] == layers
    served = network.serve(np.zeros((2, 32, 32, 3), np.uint8))
    assert served.shape == (2, 4) and served.dtype == "float32"
    np.testing.assert_allclose(np.asarray(served).sum(-1), 1, rtol=1e-6)


def test_what_trains_in_each_phase():
    network = create_network(NetworkConfig(**THIN))
    counts = {part: len(network.trained(part)) for part in ("head", "block5", "block4", "block3", "all")}
    assert counts == {"head": 2, "block5": 8, "block4": 14, "block3": 20, "all": 28}


def test_a_hypercolumn_is_every_blocks_last_convolution_averaged_and_normalized():
    network = create_network(NetworkConfig(3, "hypercolumn", image_size=32))
    initialize(network, 0)
    theirs = keras.applications.VGG16(include_top=False, weights=None, input_shape=(32, 32, 3))
    theirs.set_weights([v.numpy() for path, v in network.weights.items() if path.startswith("block")])
    outputs = [theirs.get_layer(f"block{block}_conv{last}").output for block, last in enumerate((2, 2, 3, 3, 3), 1)]
    images = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), np.uint8).astype(np.float32)
    maps = keras.Model(theirs.input, outputs)(keras.applications.vgg16.preprocess_input(images.copy()))
    blocks = [np.log(1 + np.asarray(one, np.float64).mean((1, 2))) for one in maps]
    expected = np.hstack([(x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + 1e-3) for x in blocks])
    assert expected.shape == (2, 64 + 128 + 256 + 512 + 512)
    np.testing.assert_allclose(network.backbone(images), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("head", ["gap", "hypercolumn", "flatten256"])
def test_the_four_views_share_their_layers(head):
    network = randomized(head=head, dropout=0.5)
    images = np.random.default_rng(1).integers(0, 256, (3, 32, 32, 3), np.uint8)
    position = keras.ops.arange(3)
    logits = network.train([keras.ops.cast(images, "float32"), position], training=False)
    through = network.head([network.backbone(images.astype(np.float32)), position], training=False)
    np.testing.assert_allclose(through, logits, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(network.serve(images), keras.ops.softmax(logits), rtol=1e-5, atol=1e-6)


def test_flops_of_vgg16_at_224_are_the_published_ones():
    network = create_network(NetworkConfig(1000))
    flops = flops_per_image(network, 224)
    forward = 2 * (15.47e9 - 25088 * 4096 - 4096 * 4096)  # without fc1 and fc2
    assert flops == pytest.approx(3 * forward, rel=0.01)
    assert flops_per_image(network, 224, "head") == pytest.approx(forward, rel=0.01)


def test_initial_activations_keep_their_size_through_all_layers():
    network = create_network(NetworkConfig(4, image_size=64, width=0.5, input_scale=PIXEL_SPREAD))
    initialize(network, 0)
    features = np.asarray(network.backbone(np.random.default_rng(0).normal(120, 58, (4, 64, 64, 3)).astype(np.float32)))
    assert 0.05 < np.sqrt((features**2).mean()) < 5
