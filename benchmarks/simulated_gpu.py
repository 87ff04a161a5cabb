"""GPUs that are not here: the trainer around a step that sleeps as long as a GPU would work, on 1 to 8 logical CPUs.

Iterator, loop, gradients (zeros), all-reduce, update and bookkeeping are the trainer's own, and so are the input's
processes and shared memory; what they decode sleeps as well, so that two cores do for the cores of a large host. What
lacks to replicas x rate is Python, its lock, memory for batches, or these cores. TensorFlow is imported where devices
are claimed: a worker needs none.

Simulated is forward and backward: a device with a queue, as a GPU has one. It works on a step while the host prepares
the next, and the host waits once it is a step ahead; a turn ends when the last step is done. All-reduce and update run
on the host's cores, which those of GPUs do not; a batch is not copied to a device.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from shardline.benchmarks.bottleneck import SIMULATED_SUITE
from shardline.benchmarks.config import BenchConfig
from shardline.benchmarks.measure import CONTROL, Measurement, interleave
from shardline.benchmarks.processes import Rate, WorkerProcess
from shardline.pipeline.augment_params import num_columns
from shardline.pipeline.batches import Batch, BatchBuilder, Found, unfilled
from shardline.pipeline.dataset import Dataset
from shardline.pipeline.machine import available_cores
from shardline.pipeline.wording import count

if TYPE_CHECKING:
    import tensorflow as tf

    from shardline.trainer.config import TrainConfig
    from shardline.trainer.step import Forward

STEP_RATE = 4_400.0  # images/s of one H100, estimated: VGG16 at 224 pixels in bfloat16 takes 92 GFLOP an image
WORKER_RATE = 3_900.0  # images/s of one core that decodes crops for the device's augmentation
REPLICAS = (1, 2, 4, 8)
BATCH = 128  # samples of a replica
REACHED = 0.95  # of replicas x rate, at least


class SleepingBatches(BatchBuilder):
    """Batches that take a core's time and none of its work; their pixels are whatever the memory holds."""

    rate = WORKER_RATE

    def train(self, positions: np.ndarray, on_device: bool, found: Mapping[int, Found] | None = None) -> Batch:
        """A batch of readable samples."""
        until = time.perf_counter() + len(positions) / self.rate
        side = self.side(on_device)
        image = self._buffers.empty((len(positions), side, side, 3))
        batch = unfilled(positions, self.sampler.records(positions), image)
        batch["weight"][:] = 1
        if on_device:
            batch["augment_params"] = np.zeros((len(positions), num_columns(self.config)), np.float32)
        self.timer.add({}, {}, len(positions))
        time.sleep(max(until - time.perf_counter(), 0.0))
        return batch


class SleepingDataset(Dataset):
    """A dataset whose batches are made by sleepers."""

    builder = SleepingBatches


def measure(config: BenchConfig) -> list[Measurement]:
    """Images per second of each count of replicas, with what lacks to replicas x rate; one with real input, too."""
    rate = config.gpu_step_rate or STEP_RATE
    targets = {f"shardline, {count(n, 'replica')}": n * rate for n in REPLICAS}
    targets["shardline, 1 replica, real input"] = rate
    with contextlib.ExitStack() as stack:
        runs: dict[str, Callable[[], Rate]] = {}
        for name, target in targets.items():
            make = partial(simulated, config, round(target / rate), rate, "real" not in name)
            runs[name] = stack.enter_context(WorkerProcess(make, environment={"CUDA_VISIBLE_DEVICES": ""}))
        settings = {"step_rate": rate, "worker_rate": WORKER_RATE, "batch": BATCH}
        measured = interleave(
            SIMULATED_SUITE, runs, repeats=config.repeats, reference=next(iter(runs)), settings=settings
        )
    return [m if m.name == CONTROL else replace(m, what=lacking(m, targets[m.name])) for m in measured]


def lacking(m: Measurement, target: float) -> str:
    """How much of the target was reached, and what held it back."""
    share, cores = m.median / target, available_cores()
    text = f"{share:.0%} of {target:,.0f} images/s"
    if share >= REACHED:
        return text
    waiting = sorted(m.waiting)[len(m.waiting) // 2] if m.waiting else 0.0
    if (m.busy_cores or 0.0) > 0.9 * cores:
        return f"{text}: all of {count(cores, 'core')} busy"
    if waiting > (1 - share) / 2:
        return f"{text}: the step waits {waiting:.0%} for batches"
    return f"{text}: the time goes between the steps"


def train_config(config: BenchConfig, replicas: int) -> TrainConfig:
    """A run without end on so many logical CPUs, augmented on the device as on GPUs; a network that costs nothing."""
    from shardline.benchmarks import step_stages

    size = config.step_batch_size or BATCH
    thin = replace(step_stages.train_config(config), precision="float32", width=0.05, jit=False)
    workers = math.ceil(replicas * (config.gpu_step_rate or STEP_RATE) / WORKER_RATE) + 1
    strategy = "mirrored" if replicas > 1 else "one_device"
    return replace(
        thin, global_batch_size=replicas * size, augment_on="device", workers=workers, threads=workers,
        strategy=strategy, logical_cpus=replicas if replicas > 1 else 0,
    )  # fmt: skip


def simulated(config: BenchConfig, replicas: int, rate: float, sleeping: bool) -> Callable[[], Rate]:
    """Some seconds of training at each call, on batches of sleepers or, with as many workers as cores, on real ones."""
    import tensorflow as tf

    # As many as TensorFlow takes, and one that each device's queue holds: of a GPU it would hold none.
    tf.config.threading.set_inter_op_parallelism_threads(available_cores() + replicas)
    from shardline.benchmarks.bench_train import turns
    from shardline.trainer.actions import StepMonitor
    from shardline.trainer.cluster import create_cluster
    from shardline.trainer.run import phase_loop
    from shardline.trainer.setup import create_setup
    from shardline.trainer.state import create_step, create_train_state

    training = train_config(config, replicas)
    if not sleeping:
        training = replace(training, workers=available_cores(), threads=available_cores())
    setup = create_setup(training, create_cluster(training.strategy, training.logical_cpus))
    if sleeping:
        setup = replace(setup, data=SleepingDataset(config.data))
    network, state, _ = create_train_state(setup, setup.spans[0])
    devices: list[SleepingDevice] = []
    step = create_step(setup, network, state, sleeping_forward(list(network.weights.values()), rate, devices))
    monitor = StepMonitor(setup, network, None, 0)
    monitor.bar.disable = True
    loop = phase_loop(setup, network, state, step, monitor)

    def finish() -> None:
        for device in devices:
            device.wait()

    return turns(setup, state, loop, monitor, config.seconds, finish)


class SleepingDevice:
    """Works through steps one after another, each for rows / rate seconds."""

    def __init__(self, rate: float) -> None:
        self._rate, self._free_at = rate, 0.0

    def enqueue(self, positions: np.ndarray) -> np.float32:
        """Take a step; the host goes on when it is begun, which is when the one before is done."""
        began = max(self._free_at, time.perf_counter())
        self.wait()
        self._free_at = began + len(positions) / self._rate
        return np.float32(0)

    def wait(self) -> None:
        """Until the last step is done."""
        time.sleep(max(self._free_at - time.perf_counter(), 0.0))


def sleeping_forward(variables: list[tf.Variable], rate: float, devices: list[SleepingDevice]) -> Forward:
    """A forward pass in a device's time, and whose gradients are zeros of the variables' shapes.

    Each replica that is traced has a device of its own, which is added to `devices`.
    """
    import tensorflow as tf

    sizes = [math.prod(variable.shape) for variable in variables]

    def forward(batch: dict[str, tf.Tensor]) -> tuple[tf.Tensor, tf.Tensor]:
        devices.append(SleepingDevice(rate))
        done = tf.numpy_function(devices[-1].enqueue, [batch["position"]], tf.float32)
        zero = tf.ensure_shape(done, [])

        @tf.custom_gradient
        def logits(*weights: tf.Tensor) -> tuple[tf.Tensor, Callable[[tf.Tensor], list[tf.Tensor]]]:
            def gradients(_: tf.Tensor) -> list[tf.Tensor]:  # like those of a compiled step, out of one operation
                parts = tf.split(tf.fill([sum(sizes)], zero), sizes)
                return [tf.reshape(part, weight.shape) for part, weight in zip(parts, weights, strict=True)]

            return tf.fill([batch["position"].shape[0], 2], zero), gradients

        values: tf.Tensor = logits(*(tf.convert_to_tensor(variable) for variable in variables))
        return values, tf.one_hot(tf.zeros_like(batch["label"]), 2)

    return forward
