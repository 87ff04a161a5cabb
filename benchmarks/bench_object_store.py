"""Reading from an object store beside reading the folder: with a warm cache, with none, in blocks, near and far.

The store is the dataset's folder, served on loopback by a process of its own; "50 ms" is how late each answer comes. A
turn reads one epoch in the shuffled order of training, from opening the dataset to the last batch, in a process of its
own for each row; the server shares the cores.
"""

from __future__ import annotations

import contextlib
import math
import os
import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

from shardline.benchmarks.config import BenchConfig
from shardline.benchmarks.measure import Measurement, interleave
from shardline.benchmarks.processes import Rate, WorkerProcess, timed
from shardline.benchmarks.store_server import BUCKET, served
from shardline.pipeline.config import InputConfig
from shardline.pipeline.dataset import open_dataset
from shardline.pipeline.manifest import Manifest
from shardline.pipeline.remote import PIECE_BYTES, DataCacheOptions

LOCAL, LOCAL_BLOCKS = "folder", "folder, in blocks"
WARM, NEAR, FAR = "store, warm cache", "store, cold", "store, cold, 50 ms"
NEAR_BLOCKS, FAR_BLOCKS = "store, in blocks, cache of a half", "store, in blocks, cache of a half, 50 ms"
LATENCY = 0.05  # seconds
_BLOCK = 64  # records, or more where they are small


def measure(config: BenchConfig) -> list[Measurement]:
    """One epoch a turn, from the folder and from the store."""
    manifest = Manifest.load(config.data)
    split = manifest.split(config.split)
    half, block = split.bytes / 2 / 1e9, max(_BLOCK, math.ceil(PIECE_BYTES * split.records / split.bytes))
    whole, blocks = config.input, replace(config.input, shuffle_block_size=block)
    folder, url = str(Path(config.data).absolute()), f"s3://{BUCKET}/{Path(config.data).absolute().name}"
    with contextlib.ExitStack() as stack:
        near, far = (stack.enter_context(served(Path(folder).parent, late)) for late in (0, LATENCY))
        warm = stack.enter_context(tempfile.TemporaryDirectory())

        def row(
            where: str, given: InputConfig, environment: dict[str, str] | None = None, cache: str = "", gb: float = 0
        ) -> Callable[[], Rate]:
            make = partial(reader, where, config.split, given, cache, gb)
            worker = WorkerProcess(make, environment={"TF_CPP_MIN_LOG_LEVEL": "3", **(environment or {})})
            return stack.enter_context(worker).wait_until_ready()

        return interleave(
            "object_store",
            {
                LOCAL: row(folder, whole),
                WARM: row(url, whole, near, warm),
                NEAR: row(url, whole, near),
                FAR: row(url, whole, far),
                LOCAL_BLOCKS: row(folder, blocks),
                NEAR_BLOCKS: row(url, blocks, near, gb=half),
                FAR_BLOCKS: row(url, blocks, far, gb=half),
            },
            repeats=config.repeats,
            reference=LOCAL,
            what={
                WARM: "all shards lie in the cache",
                NEAR: "the cache is empty when the dataset is opened",
                FAR: f"the same, and each answer comes {1e3 * LATENCY:.0f} ms late",
                FAR_BLOCKS: f"shards never fit, so blocks of {block} records are fetched ahead, by ranges",
            },
            settings={"data": Path(config.data).resolve().name, "image_size": config.image_size},
        )


def reader(where: str, split: str, config: InputConfig, cache: str, gb: float) -> Callable[[], Rate]:
    """Reads an epoch; with a cache that is made anew each time unless it is named."""

    def epoch() -> Rate:
        # What was asked for ahead of the last batch may still arrive.
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as empty:
            return timed(lambda: _epoch(where, split, config, DataCacheOptions(cache or empty, gb)))

    os.environ.setdefault("XDG_CACHE_HOME", tempfile.gettempdir())
    return epoch


def _epoch(where: str, split: str, config: InputConfig, options: DataCacheOptions) -> float:
    """Images of an epoch."""
    data = open_dataset(where, options)
    steps = data.num_records(split) // config.global_batch_size
    batches = data.numpy_batches(split, config)
    return float(sum(next(batches)["weight"].sum() for _ in range(steps)))
