"""The ladder's upper rungs: a batch to the device, the training step on batches in memory, the step on real input.

They run the trainer's own step, so they cost what training costs; the network can be thinned for a quick look.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from shardline.benchmarks.measure import Rate, timed
from shardline.pipeline.config import InputConfig

_RATE = 1e-6  # learning rate: what is learned here does not matter, that it stays finite does
ROWS_ON_CPU = 8  # in a batch: a step of 64 images at 224 pixels would take half a minute and 20 GB


@dataclass(frozen=True)
class StepModel:
    """What the step trains: VGG16 with a GAP head from scratch, on `replicas` devices."""

    data: str  # dataset directory
    split: str
    input: InputConfig  # of the global batch
    width: float = 1.0  # share of VGG16's filters
    precision: str = "mixed_bfloat16"
    jit: bool = True
    replicas: int = 1

    def __str__(self) -> str:
        devices = f", {self.replicas} replicas" if self.replicas > 1 else ""
        return (
            f"VGG16{'' if self.width == 1 else f' at {self.width:g} of its width'}, {self.input.image_size} px, "
            f"batches of {self.input.global_batch_size}{devices}, {self.precision}{', XLA' if self.jit else ''}"
        )


class Trainer:
    """The trainer's step, traced once, with fake and real batches to feed it."""

    def __init__(self, model: StepModel) -> None:
        from shardline.pipeline import open_dataset
        from shardline.trainer import cluster, run
        from shardline.trainer import setup as planning
        from shardline.trainer.config import TrainConfig
        from shardline.trainer.state import TrainState
        from shardline.trainer.step import LossScale

        config = TrainConfig(
            data=model.data,
            train_split=model.split,
            eval_split="none",
            phases=f"all:999999@{_RATE}",
            global_batch_size=model.input.global_batch_size,
            image_size=model.input.image_size,
            width=model.width,
            precision=model.precision,
            jit=model.jit,
            synthetic=True,
        )
        devices = cluster.start("one_device", 0) if model.replicas == 1 else cluster.start("mirrored", _logical(model))
        plan = planning.make(config, devices)
        with devices.strategy.scope():
            network = planning.build_network(plan)
            state = TrainState(network.weights, {}, None, LossScale())
            state.optimizer = run.make_optimizer(plan, network, plan.spans[0])
        self._step = run.make_step(plan, network, state)
        self._fake = plan.train_batches(0)
        self._real = replace(plan, data=open_dataset(model.data), input=model.input).train_batches(0)
        self._steps = 0
        self._rows = model.input.global_batch_size

    def step(self, seconds: float) -> Rate:
        """Images per second from batches in memory."""
        return self._train(self._fake, seconds)

    def end_to_end(self, seconds: float) -> Rate:
        """Images per second from the dataset."""
        return self._train(self._real, seconds)

    def _train(self, batches: Iterator[Any], seconds: float) -> Rate:
        import tensorflow as tf

        running: list[Any] = []

        def one() -> int:
            self._steps += 1
            with tf.profiler.experimental.Trace("train", step_num=self._steps, _r=1):  # names the steps of a profile
                running.append(self._step(next(batches), _RATE)["loss"])
            if len(running) > 1:
                float(running.pop(0))  # wait for the step before; this one runs while the next batch is fetched
            return self._rows

        def work() -> int:
            done = work_for(seconds, one)
            float(running.pop())
            return done

        return timed(work)


def gradient_bytes(classes: int, image_size: int, width: float) -> int:
    """What a step has to add up over the devices: float32, a number for each weight."""
    from shardline.trainer import model

    network = model.build(classes=classes, head="gap", image_size=image_size, width=width)
    return sum(4 * math.prod(variable.shape) for variable in network.weights.values())


def copier(config: InputConfig, device: str) -> Callable[[float], Rate]:
    """Images per second of copying batches from the host's memory to `device`; on a CPU, from memory to memory."""
    import tensorflow as tf

    shape = (config.global_batch_size, config.image_size, config.image_size, 3)
    with tf.device("/CPU:0"):
        batch = tf.constant(np.random.default_rng(0).integers(0, 256, shape, np.uint8))

    def one() -> int:
        with tf.device(device):
            tf.raw_ops.DeepCopy(x=batch) if "CPU" in device else tf.identity(batch)
        if "CPU" not in device:
            tf.test.experimental.sync_devices()
        return shape[0]

    return lambda seconds: timed(lambda: work_for(seconds, one))


def work_for(seconds: float, one: Callable[[], int]) -> int:
    """Repeat `one` until the time is up, at least once; returns the units done."""
    deadline, done = time.perf_counter() + seconds, one()
    while time.perf_counter() < deadline:
        done += one()
    return done


def _logical(model: StepModel) -> int:
    """Logical CPUs to split this machine into; 0 where GPUs are the replicas."""
    import tensorflow as tf

    return 0 if tf.config.list_physical_devices("GPU") else model.replicas
