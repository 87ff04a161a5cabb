"""Synthetic batches are the real ones in everything but their content, so that what is timed is what is trained."""

import numpy as np
import pytest

from shardline import pipeline
from shardline.pipeline.config import InputConfig
from shardline.trainer.selftest import write_dataset
from shardline.trainer.synthetic import SyntheticDataset

MODES = {
    "plain": {},
    "device": {"augment_on": "device"},
    "host, mixing": {"augment_on": "host", "mixup": 0.5, "cutmix": 1.0},
    "device, everything": {
        "augment_on": "device", "mixup": 0.5, "cutmix": 1.0, "randaugment_layers": 2, "random_erasing": 0.3, "hue": 0.1
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    write_dataset(folder, {"train": 24}, side=40)
    return pipeline.open_dataset(folder)


@pytest.mark.parametrize("mode", MODES)
def test_elements_have_the_shape_of_the_real_ones(mode, data):
    config = InputConfig(global_batch_size=8, image_size=32, workers=0, **MODES[mode])
    synthetic = SyntheticDataset(data.labels, 24)
    for name in ("train_batches", "eval_batches"):
        specs = [getattr(source, name)("train", config, replicas=2).element_spec for source in (synthetic, data)]
        assert specs[0] == specs[1]


@pytest.mark.parametrize("mode", MODES)
def test_the_device_can_finish_them(mode):
    config = InputConfig(global_batch_size=8, image_size=32, **MODES[mode])
    batches = iter(SyntheticDataset(tuple("abc"), 24).train_batches("train", config, cursor=8))
    first, second = next(batches), next(batches)
    np.testing.assert_array_equal(first["position"], range(8, 16))
    np.testing.assert_array_equal(second["position"], range(16, 24))
    finished = pipeline.augment_on_device(first, config)
    assert finished["image"].shape == (8, 32, 32, 3) and np.isfinite(finished["image"]).all()
    assert np.std(finished["image"]) > 10
    np.testing.assert_allclose(pipeline.soft_labels(finished, 3).numpy().sum(1), 1, rtol=1e-6)
