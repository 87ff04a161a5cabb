"""InputConfig refuses what cannot work, naming the flag, the value and what would."""

import dataclasses
import json

import pytest

from shardline.pipeline.config import InputConfig
from shardline.pipeline.errors import UsageError
from shardline.pipeline.options import pair_text


@pytest.mark.parametrize(
    "wrong",
    [
        {"global_batch_size": 0},
        {"image_size": 0},
        {"image_size": 10**30},
        {"global_batch_size": 10**30},
        {"shuffle_block_size": 0},
        {"augment_on": "gpu"},
        {"crop_area": (0.5, 0.1)},
        {"crop_area": (0.0, 1.0)},
        {"crop_ratio": (1.0,)},
        {"brightness": 1.5},
        {"hue": 0.6},
        {"random_erasing": -0.1},
        {"randaugment_magnitude": 11},
        {"mixup": 2.0},
        {"eval_crop_fraction": 0.0},
        {"eval_crops": 2},
        {"cache": ""},
        {"max_bad_records": -1},
        {"threads": -1},
    ],
)
def test_impossible_values_are_refused_by_name(wrong):
    ((name, value),) = wrong.items()
    with pytest.raises(UsageError, match=rf"^{name}[ =]") as refusal:
        InputConfig(**wrong)
    assert (pair_text(value) if name == "crop_area" else str(value)) in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_a_batch_that_does_not_divide_is_refused_with_sizes_that_would():
    with pytest.raises(UsageError, match=r"global_batch_size=100 does not divide over 8 replicas; .* 96 or 104"):
        InputConfig(global_batch_size=100).replica_batch_size(hosts=4, replicas=2)
    assert InputConfig(global_batch_size=96).replica_batch_size(hosts=4, replicas=2) == 12


def test_pairs_never_straddle_replicas():
    with pytest.raises(UsageError, match="even"):
        InputConfig(global_batch_size=7, mixup=0.2)
    with pytest.raises(UsageError, match="multiple of 4"):
        InputConfig(global_batch_size=6, cutmix=1.0).replica_batch_size(hosts=2)


def test_a_config_out_of_json_is_the_one_that_went_in():
    config = InputConfig(global_batch_size=8, image_size=32)
    again = InputConfig(**json.loads(json.dumps(dataclasses.asdict(config))))
    assert again == config and hash(again) == hash(config)
