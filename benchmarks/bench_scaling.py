"""Images per second with 1, 2, 4, … up to all: cores that read, and replicas that train.

Each count has a process of its own: cores are pinned once, and TensorFlow splits its devices once.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import replace
from functools import partial

from shardline.benchmarks.bottleneck import SCALING_SUITE
from shardline.benchmarks.config import BenchConfig
from shardline.benchmarks.measure import Measurement, interleave
from shardline.benchmarks.processes import WorkerProcess
from shardline.benchmarks.stages import Batches
from shardline.benchmarks.step_stages import num_gpus, replica_step, text, train_config
from shardline.pipeline.machine import available_cores


def cores(config: BenchConfig) -> list[Measurement]:
    """The host's batches, with as many worker processes as cores."""
    allowed = sorted(os.sched_getaffinity(0))
    with contextlib.ExitStack() as stack:
        workers = {}
        for count in _counts(available_cores()):
            make = partial(Batches, config.data, config.split, replace(config.input, threads=count))
            worker = WorkerProcess(make, cores=allowed[:count])
            workers[f"shardline, {_plural(count, 'core')}"] = stack.enter_context(worker)
        what = dict.fromkeys(workers, "host batches, as many worker processes as cores")
        return _measure(SCALING_SUITE, workers, what, config)


def replicas(config: BenchConfig) -> list[Measurement]:
    """The training step on all GPUs; without any, on logical CPUs that share the cores."""
    gpus, training = num_gpus(), train_config(config)
    with contextlib.ExitStack() as stack:
        workers, what = {}, {}
        for count in _counts(gpus or available_cores()):
            name = f"shardline, {_plural(count, 'replica')}"
            all_of_them = replace(training, global_batch_size=training.global_batch_size * count)
            devices = {"CUDA_VISIBLE_DEVICES": ",".join(map(str, range(count))) if gpus else ""}
            worker = WorkerProcess(partial(replica_step, all_of_them, count), environment=devices)
            workers[name] = stack.enter_context(worker)
            shared = "" if gpus else "; logical CPUs that share the cores, so the best is 1x"
            what[name] = f"step on batches in memory: {text(all_of_them, count)}{shared}"
        return _measure("scaling of replicas", workers, what, config)


def _measure(
    suite: str, workers: dict[str, WorkerProcess], what: dict[str, str], config: BenchConfig
) -> list[Measurement]:
    """The workers in turns, the first one as the reference."""
    runs = {name: partial(worker, config.seconds) for name, worker in workers.items()}
    return interleave(suite, runs, repeats=config.repeats, reference=next(iter(runs)), what=what)


def _counts(most: int) -> list[int]:
    """1, 2, 4, … and `most`."""
    return sorted({2**n for n in range(most.bit_length())} | {most})


def _plural(count: int, word: str) -> str:
    return f"{count} {word}{'s' if count > 1 else ''}"
