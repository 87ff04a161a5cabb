"""A head trained on a few stored views is as good as one that sees new crops in every epoch."""

import numpy as np
import pytest

from shardline.trainer.config import TrainConfig
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
