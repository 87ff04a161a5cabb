"""Inference is the model, with or without XLA, averaged over the crops of an image."""

from dataclasses import replace

import keras
import numpy as np
import pytest
import tensorflow as tf

from shardline import pipeline
from shardline.pipeline.errors import Failure
from shardline.trainer.cluster import create_cluster
from shardline.trainer.evaluation.inference import DistributedModel, predict_files, predict_split


@pytest.fixture(scope="module")
def model():
    """Left and right halves speak for different classes."""
    keras.utils.set_random_seed(0)
    image = keras.Input((8, 8, 3), dtype="uint8")
    x = keras.layers.Flatten()(keras.layers.Rescaling(1 / 255)(image))
    return keras.Model(image, keras.layers.Dense(4, activation="softmax")(x))


@pytest.mark.parametrize("jit", [False, True])
def test_crops_of_an_image_are_averaged(model, jit):
    devices = create_cluster("one_device", 0)
    images = np.random.default_rng(0).integers(0, 256, (3, 5, 8, 8, 3), dtype=np.uint8)
    single = np.stack([model(images[:, crop]).numpy() for crop in range(5)], 1)
    flipped_crops = np.stack([model(images[:, crop, :, ::-1]).numpy() for crop in range(5)], 1)
    plain, five, flipped = (
        DistributedModel(model, devices, tta, jit)([shown])[0].numpy()
        for tta, shown in (("none", images[:, 0]), ("5", images), ("flip", images[:, 0]))
    )
    assert plain == pytest.approx(single[:, 0], abs=1e-5)
    assert five == pytest.approx(single.mean(1), abs=1e-5)
    assert flipped == pytest.approx((single[:, 0] + flipped_crops[:, 0]) / 2, abs=1e-5)
    assert np.abs(plain - flipped).max() > 0.01


def test_a_diverged_model_is_refused_and_never_right(loaded_run, tiny_data):
    diverged = replace(loaded_run, model=lambda images, training: tf.fill((images.shape[0], 3), np.float32(np.nan)))
    data, devices = pipeline.open_dataset(tiny_data), create_cluster("one_device", 0)
    with pytest.raises(Failure, match="outputs on test are not finite; training diverged: name an earlier checkpoint"):
        predict_split(diverged, devices, data, "test", batch_size=8)
    file = str(next((tiny_data.parent / "raw" / "test" / "red").iterdir()))
    ((row, _),) = predict_files(diverged, [file], top=3, batch_size=8)
    assert (row.labels, row.error) == ((), "the model's outputs are not finite")
