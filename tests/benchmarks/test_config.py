"""The benchmark's input is that of a training run: same options, same defaults, same batches."""

from dataclasses import fields, replace

import pytest

from shardline.benchmarks.config import BenchConfig
from shardline.pipeline import InputConfig
from shardline.pipeline.cli import parse
from shardline.pipeline.errors import UsageError
from shardline.pipeline.options import options
from shardline.trainer.config import TrainConfig

PLACES = {"data": "data", "output": "report"}


def test_every_option_of_the_input_is_the_trainers():
    ours, trainers = options(BenchConfig), options(TrainConfig)
    for field in fields(InputConfig):
        assert ours[field.name] == trainers[field.name]


def test_the_step_trains_on_the_input_that_the_stages_measure():
    from shardline.benchmarks.step_stages import train_config

    argv = ["x", "--data=data", "--output=report", "--randaugment_layers=2", "--crop_area=0.5,1", "--cache=memory"]
    bench = parse(BenchConfig, [*argv, "--shuffle_block_size=8", "--seed=7", "--step_batch_size=16", "--nojit"])
    assert (bench.input.randaugment_layers, bench.input.crop_area, bench.input.cache) == (2, (0.5, 1.0), "memory")
    training = train_config(bench)
    assert training.input_config() == replace(bench.input, global_batch_size=16, max_bad_records=10**9)
    assert (training.precision, training.jit, training.data) == ("mixed_bfloat16", False, "data")


def test_the_short_suite_thins_the_network_unless_the_rate_is_given():
    assert BenchConfig(**PLACES).step_width == 1
    assert BenchConfig(**PLACES, suite="short").step_width == 0.125
    assert BenchConfig(**PLACES, suite="short", width=0.5).step_width == 0.5
    assert BenchConfig(**PLACES, suite="short", gpu_step_rate=3000).step_width == 1


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"suite": "everything"}, "suite=everything: use one of short"),
        ({"suite": "baselines"}, "suite=baselines converts images: name a folder of them with raw_images"),
        ({"image_size": 16}, "image_size=16: VGG16 halves the image five times; use at least 32"),
        ({"data": ""}, "data is missing"),
        ({"output": ""}, "output is missing"),
    ],
)
def test_what_cannot_work_is_refused(values, message):
    with pytest.raises(UsageError, match=message):
        BenchConfig(**PLACES | values)
