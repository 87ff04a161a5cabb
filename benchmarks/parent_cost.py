"""What a batch costs the process that trains: its CPU time while workers that have nothing to do answer at once.

A host feeds its accelerators no faster than the trainer's process hands batches on, however many cores decode: naming
the records, asking a worker, taking its answer, and tf.data's part. The batches' memory is shared, so nothing is
copied. Two cores do for the cores of a large host, since CPU time is what counts.
"""

from __future__ import annotations

import contextlib
import math
import statistics
from collections.abc import Callable
from dataclasses import replace
from functools import partial

from shardline.benchmarks.config import BenchConfig
from shardline.benchmarks.measure import CONTROL, Measurement, interleave
from shardline.benchmarks.processes import Rate, WorkerProcess, repeat_for, timed
from shardline.benchmarks.simulated_gpu import SleepingBatches
from shardline.pipeline.config import InputConfig
from shardline.pipeline.dataset import Dataset
from shardline.pipeline.wording import count

SUITE = "parent of simulated workers"
WORKERS = (64, 1)
BATCH, IMAGE_SIZE = 64, 224
LIMIT_MS = 2.0  # of CPU a batch, at most


class InstantBatches(SleepingBatches):
    """Batches that are there at once."""

    rate = math.inf


class InstantDataset(Dataset):
    """A dataset whose batches cost its workers nothing."""

    builder = InstantBatches


def measure(config: BenchConfig) -> list[Measurement]:
    """Images per second of each number of workers and, in words, the parent's CPU time of a batch."""
    with contextlib.ExitStack() as stack:
        runs: dict[str, Callable[[], Rate]] = {}
        for workers in WORKERS:
            make = partial(parent, config.data, workers, config.seconds)
            worker = stack.enter_context(WorkerProcess(make, environment={"CUDA_VISIBLE_DEVICES": ""}))
            runs[f"shardline, {count(workers, 'worker')}"] = worker
        measured = interleave(
            SUITE,
            runs,
            repeats=config.repeats,
            reference=next(iter(runs)),
            settings={"batch": BATCH, "image_size": IMAGE_SIZE, "limit_ms": LIMIT_MS},
        )
    return [m if m.name == CONTROL else replace(m, what=cost(m)) for m in measured]


def cost(m: Measurement) -> str:
    """The parent's CPU time of a batch, beside the limit."""
    milliseconds = statistics.median(m.cpu_seconds) * BATCH * 1e3
    word = "below" if milliseconds < LIMIT_MS else "NOT below"
    return f"{milliseconds:.2f} ms of CPU in the parent for a batch of {BATCH} × {IMAGE_SIZE} px, {word} {LIMIT_MS:g}"


def parent(data: str, workers: int, seconds: float) -> Callable[[], Rate]:
    """Some seconds of taking batches at each call; CPU time is that of this process, without its workers'."""
    opened = InstantDataset(data)
    config = InputConfig(
        global_batch_size=BATCH, image_size=IMAGE_SIZE, workers=workers, threads=workers, augment_on="host"
    )
    batches = iter(opened.train_batches(next(iter(opened.manifest.splits)), config))

    def one() -> int:
        next(batches)
        return BATCH

    for _ in range(4 * workers):  # each worker has started by then
        one()

    return lambda: timed(lambda: repeat_for(seconds, one), children=False)
