"""A run in its directory again: on the data that it began with, or not at all."""

import numpy as np
import pytest

from shardline.pipeline.errors import UsageError
from shardline.tools.conversion.run import convert
from shardline.trainer.checkpoints import checkpoint_path, write_checkpoint
from shardline.trainer.cluster import create_cluster
from shardline.trainer.config import TrainConfig
from shardline.trainer.resume import check_continues, checkpoint_to_continue, config_content
from shardline.trainer.run_dir import write_config
from shardline.trainer.setup import create_setup
from tests.tools.folders import class_folders, config
from tests.trainer.networks import HEADER

THIN = {"image_size": 32, "width": 0.03, "precision": "float32", "jit": False, "global_batch_size": 8}


def test_a_run_continues_on_the_generation_that_it_began_with(tmp_path):
    devices, image = create_cluster("one_device", 0), {"size": 32}
    convert(config(class_folders(tmp_path / "s", 2, 12), tmp_path / "d", image=image))

    def setup(**settings):
        return create_setup(TrainConfig(**THIN, data=tmp_path / "d", workdir=tmp_path / "run", **settings), devices)

    (tmp_path / "run").mkdir()
    began = setup()
    write_config(tmp_path / "run", config_content(began))
    convert(
        config(class_folders(tmp_path / "m", 2, 5, "more") / "more", tmp_path / "d", append=True, image={"size": 32})
    )
    later, pinned = setup(), setup(generation=1)
    with pytest.raises(UsageError, match=r"trained on generation 1 of the dataset, which .* generation=1"):
        check_continues(later, config_content(later), False)
    check_continues(pinned, config_content(pinned), False)
    assert pinned.sampler_key == began.sampler_key != later.sampler_key  # the first is what hosts compare, too
    positions = np.arange(60)
    np.testing.assert_array_equal(pinned.sampler.records(positions), began.sampler.records(positions))


def test_pairs_are_not_mixed_from_an_odd_sample_on(tmp_path):
    settings = THIN | {"synthetic": True, "workdir": tmp_path}
    devices = create_cluster("one_device", 0)
    odd = create_setup(TrainConfig(**settings | {"global_batch_size": 15}), devices)
    header = HEADER | {"step": 3, "cursor": 45, "sampler": odd.sampler_key, "train": odd.config.to_dict()}
    write_checkpoint(checkpoint_path(tmp_path, 3), header, {"model/a": np.zeros(1)})
    assert checkpoint_to_continue(odd).header["cursor"] == 45
    with pytest.raises(UsageError, match="goes on at sample 45, and mixup and cutmix mix pairs that begin at an even"):
        checkpoint_to_continue(create_setup(TrainConfig(**settings, mixup=0.2), devices))
