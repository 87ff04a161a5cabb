"""Host and device carry out the same augmentation: the images agree to rounding."""

import numpy as np
import pytest
import tensorflow as tf

from shardline import pipeline
from shardline.pipeline import augment_device, augment_params
from shardline.pipeline.batches import BatchBuilder
from shardline.pipeline.config import InputConfig
from shardline.pipeline.manifest import ImageFormat, Manifest
from shardline.pipeline.shards import Shards
from tests.pipeline.tiny import encode, image, write_dataset

ROWS = 64
OPTIONS = {
    "crop and flip": {},
    "color": {"brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.2},
    "erase": {"random_erasing": 0.7},
    "randaugment": {"randaugment_layers": 2},
    "mixup": {"mixup": 1.0},
    "cutmix": {"cutmix": 1.0},
    "everything": {"contrast": 0.3, "random_erasing": 0.2, "randaugment_layers": 1, "mixup": 0.4, "cutmix": 1.0},
}


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Images of all shapes, a few of them broken."""
    from shardline.pipeline.example import encode_example

    records = []
    for number in range(20):
        height, width = 30 + 11 * number % 60, 30 + 17 * number % 90
        pixels = image(number, height, width)
        pixels[: height // 3] //= 2  # so that contrast and histograms have something to do
        records.append(b"bad" if number == 7 else encode_example(encode(pixels, "png"), number % 3, "", height, width))
    return write_dataset(tmp_path_factory.mktemp("photos"), {"train": records}, encoding="png")


def both(directory, size=32, **options):
    """A batch augmented on the host, and what the device makes of the same one."""
    # With these crops no image stands on the brink between two steps of Equalize, where rounding would show.
    config = InputConfig(global_batch_size=ROWS, image_size=size, crop_area=(0.08, 1.0), **options)
    batches = BatchBuilder(Shards(Manifest.load(directory), directory, "train"), config, ImageFormat("png"))
    positions = np.arange(ROWS)
    host, sent = batches.train(positions, False), batches.train(positions, True)
    sent = {name: tf.constant(value) for name, value in sent.items()}
    return host, pipeline.augment_on_device(sent, config), config


@pytest.mark.parametrize("name", OPTIONS)
def test_host_and_device_show_the_same(photos, name):
    host, device, _ = both(photos, **OPTIONS[name])
    assert device["image"].shape == (ROWS, 32, 32, 3)
    assert device["image"].dtype == tf.float32
    image = device["image"].numpy()
    assert image.min() >= 0 and image.max() <= 255
    usable = host["weight"] > 0
    assert 0 < (~usable).sum() < ROWS
    difference = np.abs(image - host["image"].astype(np.float32))[usable].mean((1, 2, 3))
    assert difference.max() < (3.0 if "randaugment" in str(OPTIONS[name]) else 1.0)
    assert np.median(difference) < 0.6
    for key in host.keys() - {"image"}:
        np.testing.assert_allclose(device[key].numpy(), host[key], rtol=1e-5, err_msg=key)


@pytest.mark.parametrize("name", ["color", pytest.param("everything", marks=pytest.mark.slow)])
def test_compiled_it_shows_the_same(photos, name):
    config = InputConfig(global_batch_size=8, image_size=16, **OPTIONS[name])
    batch = BatchBuilder(Shards(Manifest.load(photos), photos, "train"), config, ImageFormat("png")).train(
        np.arange(8), True
    )
    plain = pipeline.augment_on_device({name: tf.constant(value) for name, value in batch.items()}, config)
    compiled = tf.function(lambda batch: pipeline.augment_on_device(batch, config), jit_compile=True)(batch)
    assert plain.keys() == compiled.keys()
    assert np.median(np.abs(plain["image"] - compiled["image"])) < 0.01


def test_an_image_of_one_color_survives_every_operation(tmp_path):
    from shardline.pipeline.example import encode_example

    flat = encode(np.full((40, 40, 3), (90, 90, 90), np.uint8), "png")
    write_dataset(tmp_path, {"train": [encode_example(flat, 0, "", 40, 40)] * 4}, encoding="png")
    host, device, _ = both(tmp_path, randaugment_layers=1, contrast=0.5)
    assert np.abs(device["image"].numpy() - host["image"]).max() <= 2


def test_batches_that_are_ready_only_change_their_type(photos):
    config = InputConfig(global_batch_size=4, image_size=16, mixup=0.3)
    batches = BatchBuilder(Shards(Manifest.load(photos), photos, "train"), config, ImageFormat("png"))
    batch = batches.train(np.arange(4), False)
    finished = pipeline.augment_on_device({name: tf.constant(value) for name, value in batch.items()}, config)
    assert finished["image"].dtype == tf.float32
    for name in batch:
        np.testing.assert_array_equal(finished[name], batch[name])


def test_soft_labels_are_the_shares_that_are_seen(photos):
    host, device, _ = both(photos, mixup=1.0, cutmix=1.0)
    soft = pipeline.soft_labels(device, 3).numpy()
    np.testing.assert_allclose(soft.sum(1), 1, rtol=1e-6)
    for row in range(ROWS):
        expected = np.zeros(3)
        expected[host["label"][row]] += host["label_share"][row]
        expected[host["label"][row ^ 1]] += 1 - host["label_share"][row]
        np.testing.assert_allclose(soft[row], expected, atol=1e-6)
    hard = pipeline.soft_labels({"label": tf.constant([2, 0])}, 3)
    assert hard.numpy().tolist() == [[0, 0, 1], [1, 0, 0]]


def test_cutmix_shows_the_partner_in_the_box_and_nowhere_else(photos):
    plain, _, _ = both(photos)
    host, _, config = both(photos, cutmix=1.0)
    boxes = (
        augment_params.AugmentParams(config, np.arange(ROWS))
        .values[:, augment_params.columns(config)["mix"]][:, 1:]
        .astype(int)
    )
    seen = 0
    for row, (top, left, bottom, right) in enumerate(boxes):
        if host["weight"][row] and host["weight"][row ^ 1]:
            expected = plain["image"][row].copy()
            expected[top:bottom, left:right] = plain["image"][row ^ 1][top:bottom, left:right]
            np.testing.assert_array_equal(host["image"][row], expected)
            seen += (expected != plain["image"][row]).any()
    assert seen > 30


@pytest.mark.parametrize("jit", [False, True])
def test_histograms_are_exact_and_added_up_as_integers(jit):
    """Floats would be added by sorting on GPUs, where results must be deterministic."""
    values = np.random.default_rng(0).integers(0, 256, (3, 3, 5000)).astype(np.int32)
    values[1] = 7  # all pixels in one bin
    histograms = tf.function(augment_device._counts, jit_compile=jit, autograph=False)
    expected = [[np.bincount(channel, minlength=256) for channel in image] for image in values]
    np.testing.assert_array_equal(histograms(tf.constant(values)), expected)
    if jit:
        hlo = histograms.experimental_get_compiler_ir(tf.constant(values))(stage="hlo")
        scatters = [line for line in hlo.splitlines() if " scatter(" in line]
        assert scatters and all("= s32[" in line for line in scatters)
