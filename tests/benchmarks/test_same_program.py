"""Training, selftest, searches and benchmarks build one program: the same flags, input and batches, as on a GPU."""

import dataclasses
import itertools
import json
import os

import pytest
import tensorflow as tf

from shardline.benchmarks import bench_train, step_stages
from shardline.benchmarks.config import BenchConfig
from shardline.pipeline.augment_host import canvas_size
from shardline.pipeline.augment_params import num_columns
from shardline.pipeline.config import InputConfig
from shardline.pipeline.example import encode_example
from shardline.trainer import selftest, state, tuning
from shardline.trainer.cluster import claim
from shardline.trainer.config import TrainConfig
from shardline.trainer.run import prepare
from shardline.trainer.step import REPORTED
from shardline.trainer.train import train
from shardline.trainer.xla import DETERMINISTIC
from tests.pipeline.tiny import encode, image, write_dataset


@dataclasses.dataclass
class Built:
    """What a step was made of, and what it was fed."""

    input: InputConfig
    step: dict
    flags: str
    batch: dict


@pytest.fixture
def data(tmp_path):
    records = [encode_example(encode(image(n, 50, 40), "png"), n % 3, f"{n}.png", 50, 40) for n in range(24)]
    return str(write_dataset(tmp_path / "data", {"train": records}, encoding="png"))


@pytest.fixture
def built(monkeypatch):
    """The steps that are built meanwhile, on a machine where the input believes in a GPU. They compute nothing."""
    found, inputs = [], []

    def create_train_step(strategy, forward, optimizer, loss_scale, config):
        input_config, flags = inputs[-1], os.environ["XLA_FLAGS"]

        def step(batch, rate, stop=0.0):
            (own,) = strategy.experimental_local_results(batch)
            spec = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in own.items()}
            found.append(Built(input_config, dataclasses.asdict(config), flags, spec))
            size = spec["label"][1]
            return dict.fromkeys(REPORTED, tf.constant(1.0)) | {"stop": tf.constant(0.0), "losses": tf.ones(size)}

        return step

    monkeypatch.setenv("XLA_FLAGS", "")
    monkeypatch.setattr(state, "create_train_step", create_train_step)
    monkeypatch.setattr(state, "train_forward", lambda setup, network: inputs.append(setup.input))
    monkeypatch.setattr(tf.config, "get_visible_devices", lambda kind: [kind])
    return found


@pytest.mark.slow
def test_all_entry_points_build_the_same_program(built, data, tmp_path, monkeypatch):
    options = {"randaugment_layers": 1, "mixup": 0.2, "precision": "float32", "jit": True}
    config = TrainConfig(
        strategy="one_device", data=data, workdir=str(tmp_path / "run"), eval_split="none", width=0.03,
        image_size=32, global_batch_size=8, phases="all:1@1e-3", workers=0, peak_tflops=1.0, **options,
    )  # fmt: skip
    bench = BenchConfig(
        data=data, output=str(tmp_path), width=0.03, image_size=32, global_batch_size=8, workers=0,
        **options,
    )  # fmt: skip

    def begin():  # each must set the flags itself
        monkeypatch.setenv("XLA_FLAGS", "")

    begin()
    train(config)
    begin()
    train(dataclasses.replace(config, synthetic=True, workdir=str(tmp_path / "synthetic")))
    begin()
    tuning.range_test(prepare(config))
    begin()
    tuning._measure(json.dumps(dataclasses.replace(config, synthetic=True).to_dict()))
    begin()
    trainer = step_stages.Trainer(step_stages.train_config(bench))
    trainer.step(0.01)
    trainer.end_to_end(0.01)
    begin()
    bench_train.loop(step_stages.train_config(bench), 0.01)()
    searched = len(built)
    begin()
    clock = itertools.count()
    monkeypatch.setattr(selftest.time, "perf_counter", lambda: float(next(clock)))
    assert selftest.Checks(config, claim(config)).rates
    assert len(built) > searched

    for one in built:
        side = canvas_size(one.input.image_size)
        (size,) = one.batch["label"][1]
        assert one.batch == {
            "image": (tf.uint8, (size, side, side, 3)),
            "augment_params": (tf.float32, (size, num_columns(one.input))),
            "label": (tf.int32, (size,)),
            "weight": (tf.float32, (size,)),
            "record": (tf.int64, (size,)),
            "position": (tf.int64, (size,)),
        }
    steps = [{**one.step, "global_batch_size": 0, "class_weights": (), "loss_scaling": False} for one in built]
    free = {"global_batch_size": 8, "image_size": 32, "max_bad_records": 0}
    assert all(step == steps[0] for step in steps)
    assert {dataclasses.replace(one.input, **free) for one in built} == {
        dataclasses.replace(config.input_config(), **free)
    }
    assert {one.flags for one in built} == {DETERMINISTIC}
