"""A head trained on a few stored views is as good as one that sees new crops in every epoch."""

import itertools

import numpy as np
import pytest

from shardline.trainer import selftest
from shardline.trainer.cluster import create_cluster
from shardline.trainer.config import TrainConfig
from shardline.trainer.feature_cache import create_feature_function, open_feature_cache
from shardline.trainer.setup import create_setup, initial_network
from shardline.trainer.train import train


@pytest.mark.slow
def test_a_few_stored_views_are_as_good_as_new_ones_in_every_epoch(tiny_data, tmp_path):
    top1 = {0: [], 3: []}
    for views, found in top1.items():
        for seed in range(3):
            config = TrainConfig(
                data=str(tiny_data),
                workdir=str(tmp_path / f"{views}-{seed}"),
                seed=seed,
                cache_features=views,
                phases="head:30@0.1",
                global_batch_size=12,
                image_size=32,
                width=0.25,
                precision="float32",
                jit=False,
                dropout=0.0,
                eval_split="test",
                eval_every_epochs=30,
                peak_tflops=1,
            )
            found.append(train(config)["test_top1"])
    print(top1)
    fresh, stored = np.mean(top1[0]), np.mean(top1[3])
    assert fresh > 0.7  # of three classes
    assert stored == pytest.approx(fresh, abs=0.1)


@pytest.mark.parametrize("order", [{}, {"shuffle": False}, {"balanced_sampling": True}], ids=["", "stored", "balanced"])
def test_stored_features_are_those_of_the_stream_that_training_without_them_would_see(order, tmp_path):
    """Of ten classes of three records or two: balanced sampling takes some twice in an epoch, and others never."""
    selftest.write_dataset(tmp_path, {"train": 25}, side=32)
    config = TrainConfig(
        data=str(tmp_path), workdir=str(tmp_path / "run"), image_size=32, width=0.03, global_batch_size=5, workers=0,
        phases="head:4@0.1", precision="float32", jit=False, cache_features=2, **order,
    )  # fmt: skip
    setup = create_setup(config, create_cluster("one_device", 0))
    with setup.cluster.strategy.scope():
        network = initial_network(setup)
    compute = create_feature_function(setup, network)
    cached = list(itertools.islice(open_feature_cache(setup, network).batches(0), 20))
    for stored, batch in zip(cached[:10], setup.train_batches(0), strict=False):
        for name in ("record", "label", "weight", "position"):
            np.testing.assert_array_equal(stored[name], batch[name], err_msg=name)
        np.testing.assert_allclose(stored["features"], compute(batch), atol=1e-5)
    seen = {}
    for batch in cached[:10]:  # the two views
        for position, record, features in zip(batch["position"], batch["record"], batch["features"], strict=True):
            seen.setdefault((int(position) // 25, int(record)), []).append(features.numpy())
    for batch in cached[10:]:  # later epochs take what the views hold, and all of it counts
        assert batch["weight"].numpy().tolist() == [1.0] * 5
        columns = (batch[name].numpy() for name in ("position", "record", "label", "features"))
        for position, record, label, features in zip(*columns, strict=True):
            assert label == record % 10
            views = seen[position // 25 % 2, record]
            assert min(np.abs(view - features).max() for view in views) == 0
