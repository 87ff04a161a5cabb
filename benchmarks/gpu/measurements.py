"""The parts of gpu-report that run within a process: each a generator of figures, written as JSON lines on stdout.

    python -m shardline.benchmarks.gpu.measurements NAME '{"data": DIR, "tiny": false, "work": FOLDER}'

Training is the trainer's own loop, on the devices and under the flags that a run has by default.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias
from unittest import mock

import keras
import numpy as np
import tensorflow as tf

from shardline import pipeline
from shardline.benchmarks.bench_train import Deadline
from shardline.benchmarks.gpu import trace
from shardline.benchmarks.processes import repeat_for, timed
from shardline.benchmarks.step_stages import copier
from shardline.pipeline.augment_host import canvas_size
from shardline.pipeline.machine import available_cores
from shardline.trainer import model
from shardline.trainer.actions import Evaluate, SaveCheckpoint, StepMonitor
from shardline.trainer.checkpoints import write_checkpoint
from shardline.trainer.cluster import peak_tflops
from shardline.trainer.config import PRECISIONS, TrainConfig
from shardline.trainer.feature_cache import create_feature_function, open_feature_cache
from shardline.trainer.gradients import max_pool_2x2
from shardline.trainer.loop import StopRequest, train_phase
from shardline.trainer.run import phase_loop, prepare
from shardline.trainer.setup import TrainSetup, eval_forward
from shardline.trainer.state import TrainState, create_train_state
from shardline.trainer.step import create_eval_step
from shardline.trainer.xla import set_flags

Facts: TypeAlias = dict[str, Any]
GIB = 2**30


@dataclass(frozen=True)
class Job:
    """What the report passes on."""

    data: str
    tiny: bool
    work: str

    @property
    def seconds(self) -> float:
        """Of one timed stretch."""
        return 0.3 if self.tiny else 2.0

    @property
    def batch(self) -> int:
        """The usual batch of a device."""
        return 8 if self.tiny else 128

    def config(self, **changes: Any) -> TrainConfig:
        """A run without end on synthetic batches, but for `changes`."""
        values: Facts = {
            "synthetic": "data" not in changes,
            "eval_split": "none",
            "phases": "all:999999@1e-6",
            "global_batch_size": self.batch,
            "log_every_steps": 1000,
            "peak_tflops": 1.0,
            "precision": "mixed_bfloat16",
            "jit": True,
        }
        if self.tiny:
            values |= {"width": 0.05, "image_size": 32, "augment_on": "device"}
        return TrainConfig(**values | changes)


class Training:
    """The trainer's loop on one config, for as long as it is asked to."""

    def __init__(self, config: TrainConfig) -> None:
        self.setup = prepare(config)
        self.network, self.state, step = create_train_state(self.setup, self.setup.spans[0])
        self.monitor = StepMonitor(self.setup, self.network, None, 0)
        self.monitor.bar.disable = True
        self._loop = phase_loop(self.setup, self.network, self.state, step, self.monitor)

    def run(self, seconds: float) -> None:
        """Train for about so long, at least one step."""
        train_phase(self.setup, self.state, self._loop, [self.monitor, Deadline(seconds)], StopRequest())

    def facts(self, seconds: float) -> Facts:
        """Compile, train, and tell the rate, the waiting and the memory."""
        started = time.perf_counter()
        self.run(0)
        compiling = time.perf_counter() - started
        self.run(seconds / 3)  # what happens once: autotuning of what is outside XLA, filling of buffers
        self.monitor.restart()
        self.run(0)
        self.run(seconds)
        rate = self.monitor.images_per_second
        waiting = self.monitor.waiting_share
        return {
            "images_per_second": round(rate, 1),
            "step_milliseconds": round(1e3 * self.setup.config.global_batch_size / rate, 3),
            "waiting_percent": round(100 * waiting, 2) if waiting is not None else None,
            "seconds_to_first_step": round(compiling, 2),
            "peak_memory_gib": peak_memory_gib(),
        }


def train_facts(config: TrainConfig, seconds: float) -> Facts:
    """`Training.facts`; memory is counted anew, and given back."""
    reset_memory()
    try:
        return Training(config).facts(seconds)
    except tf.errors.OpError as error:  # out of memory, most likely
        return {"error": f"{type(error).__name__}: {error.message[:300]}"}


def gpus() -> list[Any]:
    """Physical GPUs."""
    return list(tf.config.list_physical_devices("GPU"))


def device() -> str:
    """The first GPU, or the CPU."""
    return "/GPU:0" if gpus() else "/CPU:0"


def peak_memory_gib() -> float | None:
    """Most device memory since `reset_memory`; None on a CPU."""
    return round(tf.config.experimental.get_memory_info("GPU:0")["peak"] / GIB, 3) if gpus() else None


def reset_memory() -> None:
    """Drop what earlier measurements left."""
    keras.backend.clear_session()
    gc.collect()
    if gpus():
        tf.config.experimental.reset_memory_stats("GPU:0")


# Parts ----------------------------------------------------------------------------------------------------------------


def facts(job: Job) -> Iterator[Facts]:
    """What TensorFlow is and sees; the first kernels; the device's own limits."""
    build = tf.sysconfig.get_build_info()
    yield {
        "python": sys.version.split()[0],
        "tensorflow": tf.__version__,
        "keras": keras.__version__,
        "numpy": np.__version__,
        "build": {name: str(value) for name, value in build.items()},
        "cores": available_cores(),
    }
    details = [tf.config.experimental.get_device_details(gpu) for gpu in gpus()]
    yield {"gpus": len(details), "details": [{k: str(v) for k, v in found.items()} for found in details]}
    if not details and not job.tiny:
        return
    prepare(job.config())  # claims the devices as the trainer does
    for name, kernel in (
        ("first kernel", lambda: tf.nn.relu(tf.random.normal([64, 64]))),
        ("second kernel", lambda: tf.linalg.matmul(tf.ones([256, 256]), tf.ones([256, 256]))),
        ("first program of XLA", tf.function(lambda: tf.reduce_sum(tf.ones([64, 64]) * 2), jit_compile=True)),
    ):
        started = time.perf_counter()
        kernel().numpy()
        yield {"what": name, "seconds": round(time.perf_counter() - started, 3)}
    if details:
        yield {"measured_tflops": {name: round(peak_tflops("GPU", name), 1) for name in PRECISIONS}}
        rate = copier(job.config().input_config(), "/GPU:0")(1.0).rate
        yield {"what": "copies from pageable memory", "gb_per_second": round(rate * canvas_size(224) ** 2 * 3 / 1e9, 2)}


def batches(job: Job) -> Iterator[Facts]:
    """Batches and precisions; from the times of batches, what a step costs beside its images."""
    sizes = (8, 2, 4) if job.tiny else (128, 32, 512, 256)
    milliseconds: dict[int, float] = {}
    for size in sizes:
        found = train_facts(job.config(global_batch_size=size), job.seconds)
        yield {"what": f"mixed_bfloat16, {size}", **found}
        if "step_milliseconds" in found:
            milliseconds[size] = found["step_milliseconds"]
    if len(milliseconds) > 1:
        image, step = np.polyfit(list(milliseconds), list(milliseconds.values()), 1)
        fit = {"milliseconds_a_step": round(step, 3), "milliseconds_an_image": round(image, 5)}
        yield {"what": "a step's time as a line over the batch", **fit}
    for precision in ("mixed_float16", "float32"):
        config = job.config(precision=precision)
        yield {"what": f"{precision}, {job.batch}", **train_facts(config, job.seconds)}
    most = 16 if job.tiny else 1024
    yield {"what": f"mixed_bfloat16, {most}", **train_facts(job.config(global_batch_size=most), job.seconds)}


def real(job: Job) -> Iterator[Facts]:
    """Training on the dataset as it is by default; a profile of some steps; augmentation that costs more."""
    training = Training(job.config(data=job.data))
    yield {"what": "default", **training.facts(job.seconds)}
    yield {"what": "profile", **profile(job, training)}
    layers: Facts = {"randaugment_layers": 2}
    yield {"what": "RandAugment, 2 layers", **_real_facts(job, **layers)}
    yield {"what": "RandAugment, 2 layers, and mixup", **_real_facts(job, **layers, mixup=0.2)}
    yield {"what": "on the host", **_real_facts(job, augment_on="host")}


def real_others(job: Job) -> Iterator[Facts]:
    """Ways to feed that are not the default."""
    yield {"what": "on the host, RandAugment, 2 layers", **_real_facts(job, randaugment_layers=2, augment_on="host")}
    yield {"what": "no worker processes", **_real_facts(job, workers=0)}
    yield {"what": "synthetic, in the same process", **train_facts(job.config(), job.seconds)}


def _real_facts(job: Job, **changes: Any) -> Facts:
    return train_facts(job.config(data=job.data, **changes), job.seconds)


def profile(job: Job, training: Training) -> Facts:
    """What the profiler saw of some steps."""
    folder = Path(job.work, "profile")
    first = training.state.step
    with tf.profiler.experimental.Profile(str(folder)):
        training.run(0.4)
    found = next(folder.rglob("*.xplane.pb"), None)
    if found is None:
        return {"error": "the profiler wrote no trace"}
    return {"steps": training.state.step - first, **trace.summarize(found)}


def evaluation(job: Job) -> Iterator[Facts]:
    """Evaluation of a split against its step alone; the filling of the feature cache against its."""
    setup = replace(prepare(job.config(data=job.data)), eval_split="train")
    network, state, _ = create_train_state(setup, setup.spans[0])
    monitor = StepMonitor(setup, network, None, 0)
    evaluate = Evaluate(setup, network, monitor, None, SaveCheckpoint(setup, network, {}, 0, None))
    for what in ("evaluation, first", "evaluation, again"):
        started = time.perf_counter()
        evaluate.act(state)
        seconds = time.perf_counter() - started
        yield {"what": what, "seconds": round(seconds, 3), "images_per_second": round(setup.num_records / seconds, 1)}
    step = create_eval_step(setup.cluster.strategy, eval_forward(setup, network), setup.config.uses_xla)
    synthetic = prepare(job.config()).data.eval_batches("train", setup.input)
    batch = next(iter(synthetic))
    yield {"what": "evaluation step alone", **call_rate(job, lambda: step(batch)[0], job.batch)}
    yield from _features(job)


def _features(job: Job) -> Iterator[Facts]:
    views = 1 if job.tiny else 2
    config = job.config(data=job.data, phases="head:1@1e-3", cache_features=views, workdir=str(Path(job.work, "cache")))
    setup = prepare(config)
    network, _, _ = create_train_state(setup, setup.spans[0])
    compute = create_feature_function(setup, network)
    batch = next(setup.train_batches(0))
    alone = call_rate(job, lambda: compute(batch), job.batch)
    yield {"what": "features alone", **alone}
    started, images = time.perf_counter(), views * setup.num_records
    open_feature_cache(setup, network)
    seconds = time.perf_counter() - started
    working = max(seconds - alone["seconds_to_first_call"], 1e-3)
    yield {
        "what": "feature cache, filled; its compilation left out in the rate",
        "seconds": round(seconds, 3),
        "images_per_second": round(images / working, 1),
    }


def call_rate(job: Job, call: Callable[[], tf.Tensor], images: int) -> Facts:
    """Images a second of a function that computes a batch; every call waits for the one before."""
    started = time.perf_counter()
    waiting = [call()]
    np.asarray(waiting[0])
    first = time.perf_counter() - started

    def one() -> int:
        waiting.append(call())
        np.asarray(waiting.pop(0))
        return images

    rate = timed(lambda: repeat_for(job.seconds, one)).rate
    return {"images_per_second": round(rate, 1), "seconds_to_first_call": round(first, 2)}


def fc4096(job: Job) -> Iterator[Facts]:
    """The original head: rate, memory, and what a checkpoint costs."""
    changes: Facts = {"head": "fc4096", "global_batch_size": 8 if job.tiny else 256}
    yield {"what": "fc4096", **train_facts(job.config(**changes), job.seconds)}
    reset_memory()
    setup = prepare(job.config(**changes))
    _, state, _ = create_train_state(setup, setup.spans[0])
    yield {"what": "checkpoint of fc4096", **checkpoint_facts(state, Path(job.work, "checkpoints"))}


def checkpoint_facts(state: TrainState, folder: Path) -> Facts:
    """Seconds of copying all variables to the host, twice, and of writing them."""
    copying = []
    for _ in range(2):
        started = time.perf_counter()
        arrays = state.arrays()
        copying.append(round(time.perf_counter() - started, 3))
    started = time.perf_counter()
    path = folder / "step-00000001.npz"
    write_checkpoint(path, state.header(), arrays)
    seconds = round(time.perf_counter() - started, 3)
    return {"copy_seconds": copying, "write_seconds": seconds, "gb": round(path.stat().st_size / 1e9, 3)}


AUGMENTATIONS: dict[str, Facts] = {
    "crop and flip": {},
    "color and erasing": {"brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.1, "random_erasing": 0.25},
    "RandAugment, 2 layers": {"randaugment_layers": 2},
}


def augmentation(job: Job) -> Iterator[Facts]:
    """Pixels augmented on the device against those of the host, and of the same function on a CPU."""
    for name, changes in AUGMENTATIONS.items():
        setup = prepare(job.config(data=job.data, **changes))
        sent, ready = (_first_batch(setup, place) for place in ("device", "host"))
        on_cpu = _augmented(setup, sent, "/CPU:0")
        for tf32 in (True, False):
            tf.config.experimental.enable_tensor_float_32_execution(tf32)
            on_device = _augmented(setup, sent, device())
            yield {
                "what": name,
                "tf32": tf32,
                "from_host": _differences(on_device, ready["image"].astype(np.float32)),
                "from_cpu": _differences(on_device, on_cpu),
            }
        tf.config.experimental.enable_tensor_float_32_execution(True)


def _first_batch(setup: TrainSetup, place: str) -> dict[str, np.ndarray]:
    batches = setup.data.train_batches("train", replace(setup.input, augment_on=place))
    return dict(next(batches.as_numpy_iterator()))


def _augmented(setup: TrainSetup, batch: Mapping[str, np.ndarray], where: str) -> np.ndarray:
    with tf.device(where):
        compiled = tf.function(lambda batch: pipeline.augment_on_device(batch, setup.input)["image"], jit_compile=True)
        image: np.ndarray = compiled({name: tf.constant(value) for name, value in batch.items()}).numpy()
    return image


def _differences(ours: np.ndarray, theirs: np.ndarray) -> Facts:
    """In levels of 255."""
    difference = np.abs(ours - theirs)
    return {"max": round(float(difference.max()), 4), "mean": round(float(difference.mean()), 6)}


def pooling(job: Job) -> Iterator[Facts]:
    """Our gradient of max pooling against TensorFlow's: bits, time alone, time within a step."""
    for dtype in (tf.float32, tf.bfloat16, tf.float16):
        for side in (16, 15):
            yield {"what": f"{dtype.name}, side {side}", "equal_bits": _equal_bits(dtype, side)}
    shape = (2, 16, 16, 8) if job.tiny else (128, 224, 224, 64)
    for name, pool in (("ours", max_pool_2x2), ("TensorFlow's", _tensorflow_pool)):
        compute = _pool_gradient(pool, tf.zeros(shape, tf.bfloat16))
        # A corner is enough to wait for; cut outside XLA, which else would compute nothing but the corner.
        corner = tf.function(lambda compute=compute: compute()[0, 0, 0])
        rate = call_rate(job, corner, 1)
        yield {"what": f"{name}, block1", "milliseconds": round(1e3 / rate["images_per_second"], 3), **rate}
    yield {"what": "step with ours", **train_facts(job.config(), job.seconds)}
    with mock.patch.object(model, "MaxPooling2x2", keras.layers.MaxPooling2D):
        yield {"what": "step with TensorFlow's", **train_facts(job.config(), job.seconds)}


def _tensorflow_pool(x: tf.Tensor) -> tf.Tensor:
    return tf.nn.max_pool2d(x, 2, 2, "VALID")


def _pool_gradient(pool: Callable[[tf.Tensor], tf.Tensor], x: tf.Tensor) -> tf.types.experimental.PolymorphicFunction:
    def gradient() -> tf.Tensor:
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = pool(x)
            # Not all alike, so that a gradient in the wrong place shows.
            factors = tf.cast(tf.range(y.shape[3]), y.dtype)
            loss = tf.reduce_sum(tf.cast(y * factors, tf.float32))
        return tape.gradient(loss, x)

    return tf.function(gradient, jit_compile=True)


def _equal_bits(dtype: tf.DType, side: int) -> bool:
    values = np.random.default_rng(side).integers(-3, 3, (4, side, side, 8))  # many ties
    with tf.device(device()):
        x = tf.cast(values, dtype)
        ours, theirs = (_pool_gradient(pool, x)().numpy() for pool in (max_pool_2x2, _tensorflow_pool))
    return bool(ours.tobytes() == theirs.tobytes())


PARTS: dict[str, Callable[[Job], Iterator[Facts]]] = {
    part.__name__: part for part in (facts, batches, real, real_others, evaluation, fc4096, augmentation, pooling)
}


def main(name: str, job: str) -> None:
    """Run a part."""
    set_flags()  # before devices are listed
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print must not get between the figures
    for found in PARTS[name](Job(**json.loads(job))):
        out.write(json.dumps(found) + "\n")
        out.flush()
    out.flush()
    os._exit(0)  # iterators of endless input would be waited for


if __name__ == "__main__":
    main(*sys.argv[1:])
