"""The last stages: a batch to the device, the training step on batches in memory, the step on real input.

They run the trainer's own step, so they cost what training costs; the width multiplier thins it for a quick look.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import numpy as np
import tensorflow as tf

from shardline.benchmarks.bottleneck import STAGE_TEXT
from shardline.benchmarks.config import BenchConfig
from shardline.benchmarks.processes import Rate, repeat_for, timed
from shardline.pipeline import nvidia
from shardline.pipeline.augment_host import canvas_size
from shardline.pipeline.config import InputConfig
from shardline.pipeline.dataset import augment_on
from shardline.trainer.arithmetic import decided
from shardline.trainer.cluster import create_cluster
from shardline.trainer.config import TrainConfig
from shardline.trainer.model import NetworkConfig, create_network, num_parameters
from shardline.trainer.setup import create_setup
from shardline.trainer.state import create_train_state

_RATE = 1e-6  # learning rate: what is learned here does not matter, that it stays finite does
NETWORK_GBPS = 100.0
_BATCH_ON_CPU = 8  # samples: a step of 64 images at 224 pixels would take half a minute and 20 GB


def num_gpus() -> int:
    """GPUs of this machine that TensorFlow sees."""
    return len(tf.config.list_physical_devices("GPU"))


def batch_size(config: BenchConfig) -> int:
    """Samples in a replica batch of the measured step."""
    size = config.global_batch_size
    return config.step_batch_size or (size if num_gpus() else min(_BATCH_ON_CPU, size))


def train_config(config: BenchConfig) -> TrainConfig:
    """A training run on the benchmark's input: VGG16 with a GAP head from scratch, without end."""
    fields = asdict(config.input) | {
        "data": config.data,
        "train_split": config.split,
        "eval_split": "none",
        "phases": f"all:999999@{_RATE}",
        "global_batch_size": batch_size(config),
        "max_bad_records": 10**9,
        "width": config.step_width,
        "precision": config.precision,
        "jit": config.jit,
    }
    return decided(TrainConfig(**fields))


def text(config: TrainConfig, replicas: int = 1) -> str:
    """What the step trains, in one line."""
    width = "" if config.width == 1 else f" at width multiplier {config.width:g}"
    devices = f", {replicas} replicas" if replicas > 1 else ""
    return (
        f"VGG16{width}, {config.image_size} px, batches of {config.global_batch_size}{devices}, {config.precision}"
        f"{', XLA' if config.uses_xla else ''}"
    )


class Trainer:
    """The trainer's step, traced once, with synthetic and real batches to train on."""

    def __init__(self, config: TrainConfig, replicas: int = 1) -> None:
        logical_cpus = 0 if replicas == 1 or num_gpus() else replicas
        strategy = "one_device" if replicas == 1 else "mirrored"
        cluster = create_cluster(strategy, logical_cpus, deterministic=config.deterministic, jit=config.uses_xla)
        setup = create_setup(replace(config, synthetic=True), cluster)
        _, _, self._step = create_train_state(setup, setup.spans[0])
        self._synthetic = setup.train_batches(0)
        self._real = create_setup(config, cluster).train_batches(0)
        self._steps = 0
        self._samples = config.global_batch_size

    def step(self, seconds: float) -> Rate:
        """Images per second from batches in memory."""
        return self._train(self._synthetic, seconds)

    def end_to_end(self, seconds: float) -> Rate:
        """Images per second from the dataset."""
        return self._train(self._real, seconds)

    def _train(self, batches: Iterator[Any], seconds: float) -> Rate:
        running: list[Any] = []
        waited = 0.0

        def one() -> int:
            nonlocal waited
            self._steps += 1
            with tf.profiler.experimental.Trace("train", step_num=self._steps, _r=1):  # names the steps of a profile
                began = time.perf_counter()
                batch = next(batches)
                waited += time.perf_counter() - began
                running.append(self._step(batch, _RATE)["loss"])
            if len(running) > 1:
                float(running.pop(0))  # wait for the step before; this one runs while the next batch is fetched
            return self._samples

        def work() -> float:
            done = repeat_for(seconds, one)
            float(running.pop())
            return done

        began = time.perf_counter()
        rate = timed(work)
        return rate._replace(waiting=waited / (time.perf_counter() - began))


def replica_step(config: TrainConfig, replicas: int) -> Callable[[float], Rate]:
    """The step on N logical CPUs, or the first N GPUs. One process a count: TensorFlow splits its devices once."""
    return Trainer(config, replicas).step


def step_stages(config: BenchConfig) -> tuple[dict[str, Callable[[], Rate]], dict[str, str]]:
    """A function for each of copy, step and end_to_end, on all GPUs of the host, and what each of them does."""
    one, replicas = train_config(config), max(1, num_gpus())
    training = replace(one, global_batch_size=replicas * one.global_batch_size)
    trainer = Trainer(training, replicas)
    copy = copier(one, *([f"/GPU:{number}" for number in range(num_gpus())] or ["/CPU:0"]))
    works = {"copy": copy, "step": trainer.step, "end_to_end": trainer.end_to_end}
    what = {name: f"{STAGE_TEXT[name]}: {text(training, replicas)}" for name in ("step", "end_to_end")}
    if not num_gpus():
        what["copy"] = "no accelerator: batches copied within memory"
    return {name: partial(work, config.seconds) for name, work in works.items()}, what


def forecast_facts(config: BenchConfig, classes: int, on_gpu: bool) -> dict[str, float | str]:
    """What the forecast of more devices needs to know, JSON values."""
    network = create_network(NetworkConfig(classes, image_size=config.image_size, width=config.step_width))
    return {
        # A step adds up a float32 for each weight over the devices.
        "gradient_bytes": 4 * num_parameters(network.weights),
        "devices": 1 if config.gpu_step_rate else max(1, num_gpus()),  # that the step was measured on, together
        "step_batch_size": config.global_batch_size if config.gpu_step_rate else batch_size(config),
        "device": "GPU" if on_gpu else "host",
        "interconnect_gbps": config.interconnect_gbps or box_gbps(),
        "price_per_hour": config.price_per_hour,
    }


def box_gbps() -> float:
    """Bandwidth between cards of a box like this machine, in Gbit/s; of a network where there is no card we know."""
    found = nvidia.cards()
    return found[0].nominal.gbps if found and found[0].nominal else NETWORK_GBPS


def copier(config: InputConfig, *devices: str) -> Callable[[float], Rate]:
    """Images per second of copying a batch from the host's memory to each device; on a CPU, from memory to memory."""
    side = canvas_size(config.image_size) if augment_on(config) == "device" else config.image_size
    shape = (config.global_batch_size, side, side, 3)
    with tf.device("/CPU:0"):
        batch = tf.constant(np.random.default_rng(0).integers(0, 256, shape, np.uint8))

    def one() -> int:
        for device in devices:
            with tf.device("/CPU:0"):
                unseen = tf.identity(batch)  # the same memory; of a tensor once copied, TensorFlow keeps the copy
            with tf.device(device):
                tf.raw_ops.DeepCopy(x=batch) if "CPU" in device else tf.identity(unseen)
        if "CPU" not in devices[0]:
            tf.test.experimental.sync_devices()
        return len(devices) * shape[0]

    return lambda seconds: timed(lambda: repeat_for(seconds, one))
