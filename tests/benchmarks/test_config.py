"""The benchmark's input is that of a training run: same options, same defaults, same batches."""

import shlex
from dataclasses import fields, replace

import pytest

from shardline.benchmarks.config import BenchConfig
from shardline.pipeline import InputConfig
from shardline.pipeline.cli import parse
from shardline.pipeline.errors import UsageError
from shardline.pipeline.options import options
from shardline.trainer.config import TrainConfig
from shardline.trainer.run_dir import write_config

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


def test_a_run_tells_its_input_and_flags_beside_it_replace_that(tmp_path):
    recipe = {
        "data": "photos",
        "randaugment_layers": 2,
        "crop_area": (0.5, 1.0),
        "shuffle_block_size": 64,
        "width": 0.5,
    }
    trained = TrainConfig(**recipe, precision="float32", jit=False, train_split="most", seed=3, cache="memory")
    described = {"crop_fraction": 0.875, "stored": {}}
    content = {"train": trained.to_dict(), "labels": ["a"], "dataset": {}, "preprocessing": described, "versions": {}}
    write_config(tmp_path, {**content, "starting_weights_sha256": ""})
    bench = BenchConfig(run=str(tmp_path), output="report").resolved()
    assert bench.input == trained.input_config()
    assert (bench.data, bench.split, bench.precision, bench.jit, bench.step_width) == (
        "photos", "most", "float32", False, 0.5,
    )  # fmt: skip
    other = BenchConfig(run=str(tmp_path), output="report", cache="none", shuffle_block_size=8).resolved()
    assert other.shuffle_block_size == 8 and other.randaugment_layers == 2
    assert parse(BenchConfig, shlex.split(bench.command())) == bench  # the command needs the run no longer
    with pytest.raises(UsageError, match=r"run=.*nowhere: no such directory"):
        BenchConfig(run=str(tmp_path / "nowhere"), output="report").resolved()


def test_the_command_to_repeat_gives_the_same_benchmark():
    bench = BenchConfig(
        data="my photos", output="r", crop_area=(0.5, 1.0), jit=False, validate_advice=False, width=0.25
    )
    assert parse(BenchConfig, shlex.split(bench.command())) == bench
    assert "'--data=my photos'" in bench.command() and "--seconds" not in bench.command()


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
