"""The baseline for accuracy trains our network with Keras's own step, from the same first weights."""

import numpy as np
import pytest
import tensorflow as tf

from shardline.benchmarks.baselines.keras_fit import KerasFitConfig, compile_model, create_model, fit, with_flips
from shardline.pipeline import open_dataset
from shardline.pipeline.errors import UsageError
from shardline.tools.conversion.run import convert
from shardline.trainer.model import NetworkConfig, create_network, initialize
from tests.tools.folders import class_folders, config
from tests.trainer.networks import randomized, values
from tests.trainer.test_weights import write_legacy_h5

TINY = {"split": "train", "image_size": 32, "width": 0.03, "global_batch_size": 4, "precision": "float32", "jit": False}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    root = tmp_path_factory.mktemp("keras_fit")
    convert(config(class_folders(root / "photos", classes=2, images=6), root / "data", size=40))
    return str(root / "data")


def test_it_trains_and_evaluates(dataset):
    found = fit(KerasFitConfig(data=dataset, phases="all:2@0.02", **TINY))
    assert found["steps"] == 6 and 0 <= found["top1"] <= 1 and np.isfinite(found["loss"])
    assert 0 <= found["flip_top1"] <= 1 and found["flip_seconds"] >= 0


def test_flips_are_averaged_and_what_fills_a_batch_does_not_count():
    def model(image, training):
        left = image[:, 0, 0, 0]
        return tf.stack([0 * left, left], 1)  # logits

    images = np.array([[1, -3], [-1, 3], [-2, -2]], np.float32)[:, None, :, None]
    labels, weights = np.array([0, 1, 1]), np.array([1, 1, 0], np.float32)
    assert not np.any(np.argmax(model(images, training=False), 1) == labels)  # without flips, none is right
    assert with_flips(model, tf.data.Dataset.from_tensors((images, labels, weights))) == 1.0


def test_it_starts_from_the_trainers_first_weights_and_ends_in_logits(dataset):
    data = open_dataset(dataset)
    recipe = KerasFitConfig(data=dataset, seed=3, **TINY)
    model = create_model(recipe, data)
    network = create_network(NetworkConfig(classes=2, image_size=32, dropout=0.5, seed=3, width=0.03))
    initialize(network, 3)
    ours = {variable.path: variable.numpy() for variable in network.train.trainable_variables}
    assert ours and all(np.array_equal(ours[v.path], v.numpy()) for v in model.trainable_variables)
    image = next(iter(data.eval_batches("train", recipe)))["image"]
    assert not np.allclose(model(image).numpy().sum(axis=1), 1)


def test_pretrained_convolutions_are_kept_while_the_head_trains_and_change_after_it(dataset, tmp_path):
    data, pretrained = open_dataset(dataset), values(randomized(1, "gap"))
    write_legacy_h5(tmp_path / "w.h5", pretrained)
    recipe = KerasFitConfig(data=dataset, weights=str(tmp_path / "w.h5"), phases="head:1@1e-3,all:1@1e-3", **TINY)
    model = create_model(recipe, data)
    kernel = next(v for v in model.variables if v.path == "block1_conv1/kernel")
    assert np.array_equal(kernel.numpy(), pretrained["block1_conv1/kernel"])
    names = []
    for phase in recipe.phase_list:
        compile_model(model, recipe, phase, steps=3)
        names.append({v.path.split("/")[0] for v in model.trainable_variables})
        assert float(model.optimizer.learning_rate) == np.float32(1e-3)
    assert names[0] == {"predictions"} and len(names[1]) == 14
    assert fit(recipe)["steps"] == 6


def test_what_it_cannot_do_is_refused():
    with pytest.raises(UsageError, match="trains head or all"):
        KerasFitConfig(data="data", phases="block5:1@1e-3")
    with pytest.raises(UsageError, match="soft labels"):
        KerasFitConfig(data="data", mixup=0.2)
