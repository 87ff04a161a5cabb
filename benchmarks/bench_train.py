"""Images per second of training: real input against synthetic, our loop against a bare tf.function, bfloat16 or not.

And of training a head through the frozen layers against training it on their stored features. Everything lives in one
process, trains the same VGG16 from scratch on the first device, and takes turns.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import keras
import tensorflow as tf

from shardline.benchmarks.config import BenchConfig
from shardline.benchmarks.measure import Measurement, interleave
from shardline.benchmarks.processes import Rate, repeat_for, timed
from shardline.benchmarks.step_stages import text, train_config
from shardline.pipeline import augment_on_device
from shardline.trainer.actions import StepMonitor
from shardline.trainer.cluster import create_cluster
from shardline.trainer.config import TrainConfig
from shardline.trainer.loop import Action, StepRecord, StopRequest, train_phase
from shardline.trainer.run import phase_loop
from shardline.trainer.setup import TrainSetup, create_setup, initial_network
from shardline.trainer.state import TrainState, create_train_state
from shardline.trainer.step import TrainLoop

LOOP, REAL, BARE = "loop, synthetic input", "loop, real input", "bare tf.function, one batch"
FROZEN, STORED = "head, through the frozen layers", "head, on stored features"
_PHASES, _HEAD = "all:999999@1e-4", "head:999999@1e-4"


def measure(config: BenchConfig) -> list[Measurement]:
    """The training loop and what bounds it, in float32 and in --precision."""
    plain = replace(config, precision="float32")
    real = replace(train_config(plain), phases=_PHASES)
    synthetic = replace(real, synthetic=True)
    runs = {
        LOOP: loop(synthetic, config.seconds),
        REAL: loop(real, config.seconds),
        BARE: bare(synthetic, config.seconds),
    }
    other = replace(train_config(config), phases=_PHASES, synthetic=True)
    if other != synthetic:
        runs[f"{LOOP}, {other.precision}"] = loop(other, config.seconds)
    return interleave(
        "train",
        runs,
        repeats=config.repeats,
        reference=LOOP,
        what={
            LOOP: f"shardline.trainer.loop with its bookkeeping, batches from memory: {text(synthetic)}",
            REAL: "the same loop on the dataset, cropped and flipped",
            BARE: "forward and backward in a tf.function, Keras SGD, one batch; nothing else",
        },
        settings={"seconds": config.seconds},
    )


def measure_head(config: BenchConfig) -> list[Measurement]:
    """A head's training with and without stored features; filling the cache is left out."""
    if not config.cache_features:
        return []
    frozen = replace(train_config(replace(config, precision="float32")), phases=_HEAD)
    with tempfile.TemporaryDirectory() as folder:
        stored = replace(frozen, cache_features=config.cache_features, workdir=folder)
        return interleave(
            "train head",
            {FROZEN: loop(frozen, config.seconds), STORED: loop(stored, config.seconds)},
            repeats=config.repeats,
            reference=FROZEN,
            what={
                FROZEN: f"decode, crop, forward through VGG16, backward through its head: {text(frozen)}",
                STORED: "read rows of a memory-mapped file, forward and backward through the head",
            },
            settings={"seconds": config.seconds, "cache_features": config.cache_features},
        )


def loop(config: TrainConfig, seconds: float) -> Callable[[], Rate]:
    """The trainer's own loop, continued for some seconds at each call."""
    setup = create_setup(config, create_cluster("one_device", 0, jit=config.uses_xla))
    network, state, step = create_train_state(setup, setup.spans[0])
    monitor = StepMonitor(setup, network, None, 0)
    monitor.bar.disable = True
    return turns(setup, state, phase_loop(setup, network, state, step, monitor), monitor, seconds)


def turns(
    setup: TrainSetup,
    state: TrainState,
    train_steps: TrainLoop,
    monitor: StepMonitor,
    seconds: float,
    finish: Callable[[], None] = lambda: None,
) -> Callable[[], Rate]:
    """Some seconds of a training loop at each call, and the share of them that its steps waited for batches.

    Args:
      finish: what has to end before a turn does.
    """

    def turn() -> int:
        first = state.cursor
        train_phase(setup, state, train_steps, [monitor, Deadline(seconds)], StopRequest())
        finish()
        return state.cursor - first

    def timed_turn() -> Rate:
        monitor.restart()
        return timed(turn)._replace(waiting=monitor.waiting_share or 0.0)

    return timed_turn


class Deadline(Action):
    """Ends a turn when its time is up."""

    def __init__(self, seconds: float) -> None:
        self._end = time.perf_counter() + seconds

    def after_step(self, record: StepRecord) -> None:
        """Look at the clock."""
        self.should_stop = time.perf_counter() >= self._end


def bare(config: TrainConfig, seconds: float) -> Callable[[], Rate]:
    """What TensorFlow does with this model when nothing watches: one batch, again and again."""
    setup = create_setup(config, create_cluster("one_device", 0, jit=config.uses_xla))
    network = initial_network(setup)
    optimizer = keras.optimizers.SGD(1e-4, momentum=0.9, nesterov=True, global_clipnorm=1.0)
    optimizer.build(network.train.trainable_variables)
    batch = next(iter(setup.data.train_batches("train", setup.input)))
    image, label, position = augment_on_device(batch, setup.input)["image"], batch["label"], batch["position"]

    def forward_backward() -> Any:
        with tf.GradientTape() as tape:
            logits = network.train([image, position], training=True)
            loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(label, logits))
        return loss, tape.gradient(loss, [v.value for v in network.train.trainable_variables])

    compiled = tf.function(forward_backward, jit_compile=config.jit)

    @tf.function
    def step() -> Any:
        loss, gradients = compiled()
        optimizer.apply(gradients)
        return loss

    def one() -> int:
        float(step())
        return config.global_batch_size

    return lambda: timed(lambda: repeat_for(seconds, one))
