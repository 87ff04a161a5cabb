"""Which arithmetic a run computes in where its flags leave that open: bfloat16 or float32, with XLA or without.

What is fastest depends on the machine by a factor of three and more: oneDNN's convolutions know the CPU's bfloat16
instructions (AVX512-BF16, AMX), XLA's on CPUs do not, and without such instructions oneDNN's bfloat16 crawls. So a CPU
is asked: once, by timing a piece of VGG16 in a process of its own, before devices are claimed and flags of XLA are set.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec

from shardline.pipeline import stored
from shardline.pipeline.errors import Failure, UsageError
from shardline.pipeline.files import user_cache
from shardline.pipeline.machine import available_cores, processor_name
from shardline.pipeline.progress import log, saying
from shardline.pipeline.wording import last_line
from shardline.trainer.cluster import gpus
from shardline.trainer.config import AUTO, TrainConfig
from shardline.trainer.run_dir import CONFIG_FILE, read_config

if TYPE_CHECKING:
    import tensorflow as tf

FORMAT = "shardline arithmetic/1"
SIDE, BATCH, ROUNDS = 64, 16, 5  # of the timed steps: the ratios hardly depend on the images' size
PATIENCE_SECONDS = 600
WORTHWHILE = 1.05  # what another arithmetic has to be faster by than an earlier one of MODES

Mode = tuple[str, bool]  # precision, with XLA
MODES: tuple[Mode, ...] = (("float32", True), ("float32", False), ("mixed_bfloat16", True), ("mixed_bfloat16", False))
_PIECE = ((3, 64), (64, 64), (64, 128), (128, 256), (256, 512))  # VGG16's first block, and a layer of each other width


@dataclass(frozen=True)
class Rates:
    """Images a second of the timed piece of VGG16 on this machine, in the order of MODES."""

    machine: str
    images_per_second: tuple[Annotated[float, msgspec.Meta(gt=0)], ...]

    def __str__(self) -> str:
        rates = zip(MODES, self.images_per_second, strict=True)
        return ", ".join(f"{mode_text(*mode)} {rate:.3g}" for mode, rate in rates)

    def fastest(self, precision: str, jit: bool | None) -> Mode:
        """The fastest of the modes that a config leaves open; of nearly equal ones the first of MODES."""
        best, best_rate = None, 0.0
        for mode, rate in zip(MODES, self.images_per_second, strict=True):
            allowed = precision in (AUTO, mode[0]) and jit in (None, mode[1])
            if allowed and rate > best_rate * WORTHWHILE:
                best, best_rate = mode, rate
        assert best, (precision, jit)
        return best


def mode_text(precision: str, jit: bool) -> str:
    """An arithmetic for people."""
    return f"{precision} {'with' if jit else 'without'} XLA"


def decided(config: TrainConfig) -> TrainConfig:
    """The config with its precision and jit settled: as the run in its workdir has them, else by the device."""
    if config.precision != AUTO and config.jit is not None:
        return config
    recorded = _recorded(config)
    if recorded:
        return recorded
    found = gpus(config)
    if found:
        precision = _gpu_precision(found) if config.precision == AUTO else config.precision
        return replace(config, precision=precision, jit=config.jit is not False)
    if config.precision not in (AUTO, *(precision for precision, _ in MODES)):
        return replace(config, jit=True)  # float16, which CPUs compute for tests alone
    rates = measured()
    precision, jit = rates.fastest(config.precision, config.jit)
    log(f"arithmetic: {mode_text(precision, jit)}, the fastest here; images/s of a piece of VGG16: {rates}")
    return replace(config, precision=precision, jit=jit)


def _recorded(config: TrainConfig) -> TrainConfig | None:
    """A restart computes the same bits: what the run in the workdir has recorded, if there is one."""
    if not config.workdir or not (Path(config.workdir) / CONFIG_FILE).exists():
        return None
    train = TrainConfig.from_dict(read_config(config.workdir, "--workdir")["train"])
    precision = train.precision if config.precision == AUTO else config.precision
    return replace(config, precision=precision, jit=train.jit if config.jit is None else config.jit)


def _gpu_precision(found: list[tf.config.PhysicalDevice]) -> str:
    """bfloat16 has Tensor Cores since compute capability 8.0, float16 since 7.0."""
    import tensorflow as tf

    capability = min(tf.config.experimental.get_device_details(gpu).get("compute_capability", (0, 0)) for gpu in found)
    return "mixed_bfloat16" if capability >= (8, 0) else "mixed_float16" if capability >= (7, 0) else "float32"


def measured() -> Rates:
    """This machine's rates: those kept from an earlier run, else timed now, in some 20 seconds, and kept."""
    path = _kept_at()
    with contextlib.suppress(OSError, UsageError):
        rates = stored.load(path, Rates, format=FORMAT, remedy="delete it")
        if rates.machine == _machine() and len(rates.images_per_second) == len(MODES):
            return rates
    timing = "timing this CPU's arithmetic for --precision=auto and --jit=auto"
    log(f"{timing} (once for this machine, some 20 s) …")
    with saying(timing):
        rates = Rates(_machine(), _timed_elsewhere())
    with contextlib.suppress(OSError):  # no home, a full disk: timed again by the next run
        keep(rates)
    return rates


def keep(rates: Rates) -> None:
    """Remember rates for this user's later runs. Raises OSError."""
    path = _kept_at()
    path.parent.mkdir(parents=True, exist_ok=True)
    stored.save(path, vars(rates), format=FORMAT)


def _kept_at() -> Path:
    return user_cache() / "arithmetic.json"


def _machine() -> str:
    """What the rates depend on."""
    return f"{processor_name()}, {available_cores()} cores, TensorFlow {metadata.version('tensorflow')}"


def _timed_elsewhere() -> tuple[float, ...]:
    command = [sys.executable, "-P", "-m", "shardline.trainer.arithmetic"]
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "", "TF_CPP_MIN_LOG_LEVEL": "3"}
    remedy = "give --precision and --jit or --nojit yourself"
    try:
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=PATIENCE_SECONDS)
        return tuple(map(float, json.loads(done.stdout)))
    except subprocess.TimeoutExpired:
        raise Failure(f"timing this CPU's arithmetic took more than {PATIENCE_SECONDS} s; {remedy}") from None
    except ValueError:
        last = last_line(done.stderr, otherwise=f"exit code {done.returncode}")
        raise Failure(f"this CPU's arithmetic could not be timed ({last}); {remedy}") from None


def time_modes() -> list[float]:
    """Images a second of forward and backward through the piece of VGG16, in the order of MODES.

    The modes take turns, and each counts by its fastest step: other programs make steps slower, never faster.
    """
    import tensorflow as tf

    images = tf.random.stateless_normal([BATCH, SIDE, SIDE, 3], [0, 0])
    steps = [_piece_step(precision.removeprefix("mixed_"), jit) for precision, jit in MODES]
    seconds = [float("inf")] * len(MODES)
    for turn in range(ROUNDS + 1):
        for index, step in enumerate(steps):
            started = time.perf_counter()
            step(images).numpy()
            if turn:  # the first one compiles
                seconds[index] = min(seconds[index], time.perf_counter() - started)
    return [BATCH / each for each in seconds]


def _piece_step(dtype: str, jit: bool) -> Callable[[tf.Tensor], tf.Tensor]:
    import tensorflow as tf

    kernels = [tf.Variable(0.1 * tf.random.stateless_normal([3, 3, *shape], [1, i])) for i, shape in enumerate(_PIECE)]

    def step(images: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape() as tape:
            features = tf.cast(images, dtype)
            for number, kernel in enumerate(kernels):
                features = tf.nn.relu(tf.nn.conv2d(features, tf.cast(kernel, dtype), 1, "SAME"))
                if number:
                    features = tf.nn.max_pool2d(features, 2, 2, "VALID")
            loss = tf.reduce_mean(tf.square(tf.cast(features, tf.float32)))
        return tf.add_n([tf.reduce_sum(gradient) for gradient in tape.gradient(loss, kernels)])

    compiled: Callable[[tf.Tensor], tf.Tensor] = tf.function(step, jit_compile=jit, autograph=False)
    return compiled


if __name__ == "__main__":
    print(json.dumps(time_modes()))
