"""The host's stages one by one: the input pipeline cut after reading, parsing, decoding, augmenting, batching.

Each rung does what the rung below does and one thing more, on the same positions, with as many threads; so the
difference between two rungs is the cost of that one thing. The rungs run the pipeline's own code.
"""

from __future__ import annotations

import itertools
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.measure import Rate, timed
from benchmarks.verdict import HOST_STAGES
from pipeline.batches import Batches
from pipeline.config import InputConfig
from pipeline.dataset import Dataset
from pipeline.decode import decode
from pipeline.order import Order
from pipeline.shards import Shards

_CHUNK_BYTES = 1 << 20
_USUAL_SIZES = (512, 384, 320, 256, 224, 192, 160, 128, 96, 72, 64)


def rungs(data: Dataset, split: str, config: InputConfig, *, seconds: float) -> dict[str, Callable[[], Rate]]:
    """A contender for each of `verdict.HOST_STAGES`, and "storage (cold)"; each works for about `seconds`."""
    shards = Shards(data.manifest, data.directory, split)
    order = Order(len(shards), config.seed, config.read_block, config.shuffle)
    batches = Batches(shards, config, data.manifest.image.encoding)
    files = [data.directory / shard.file for shard in data.manifest.split(split).shards]
    record_bytes = facts(data, split)["image_bytes"]
    rows = min(config.global_batch_size, 64)
    threads = config.threads or len(os.sched_getaffinity(0))

    def each(work: Callable[[int], Any]) -> Callable[[int], int]:
        def batch(number: int) -> int:
            for record in order.records(np.arange(number * rows, (number + 1) * rows)).tolist():
                work(record)
            return rows

        return batch

    def augmented(number: int) -> int:
        batches.train(np.arange(number * rows, (number + 1) * rows), False)
        return rows

    def in_threads(work: Callable[[int], int]) -> Callable[[], Rate]:
        return lambda: timed(lambda: _work_for(seconds, threads, work))

    def read(drop_cache: bool) -> Rate:
        if drop_cache:
            _drop_page_cache(files)
        chunks = [(path, at) for path in files for at in range(0, path.stat().st_size, _CHUNK_BYTES)]
        # Once through when cold: a second pass would find the files in memory.
        return timed(lambda: round(_read_for(seconds, threads, chunks, once=drop_cache) / record_bytes) or 1)

    def batched() -> Rate:
        elements = iter(data.train_batches(split, config))
        for _ in range(2 * threads):  # the first elements also fill the buffers
            next(elements)
        return timed(lambda: _draw_for(seconds, elements))

    runs = (
        lambda: read(drop_cache=False),
        in_threads(each(shards.payload)),
        in_threads(each(shards.read)),
        in_threads(each(lambda record: decode(shards.read(record), data.manifest.image.encoding))),
        in_threads(augmented),
        batched,
    )
    return {**dict(zip(HOST_STAGES, runs, strict=True)), "storage (cold)": lambda: read(drop_cache=True)}


def facts(data: Dataset, split: str) -> dict[str, Any]:
    """What the verdict's arithmetic needs to know of the stored pictures."""
    chosen = data.manifest.split(split)
    image = data.manifest.image
    shards = Shards(data.manifest, data.directory, split)
    sample = np.unique(np.linspace(0, chosen.records - 1, 64).astype(int))
    pixels = [decode(shards.read(int(record)), image.encoding).size / 3 for record in sample]
    return {
        "cores": len(os.sched_getaffinity(0)),
        "image_bytes": sum(shard.bytes for shard in chosen.shards) / chosen.records,
        "stored_pixels": float(np.mean(pixels)),
        "encoding": image.encoding,
        "stored_size": image.size,
    }


def smaller_size(stored_size: int, image_size: int) -> int | None:
    """The next usual `--size` below the stored one that still covers the training size."""
    return next((size for size in _USUAL_SIZES if image_size <= size < stored_size), None)


def _work_for(seconds: float, threads: int, work: Callable[[int], int]) -> int:
    """Call work(0), work(1), … from several threads until the time is up; returns the units done."""
    numbers = itertools.count()
    deadline = time.perf_counter() + seconds
    done = [0] * threads
    failures: list[BaseException] = []

    def loop(thread: int) -> None:
        try:
            while time.perf_counter() < deadline and not failures:
                done[thread] += work(next(numbers))
        except BaseException as error:
            failures.append(error)

    workers = [threading.Thread(target=loop, args=(n,)) for n in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    if failures:
        raise failures[0]
    return sum(done)


def _read_for(seconds: float, threads: int, chunks: list[tuple[Path, int]], *, once: bool) -> int:
    """Bytes read in `seconds`; with `once`, in one pass by one thread when that ends sooner."""
    deadline = time.perf_counter() + seconds
    descriptors = {path: os.open(path, os.O_RDONLY) for path, _ in chunks}

    def work(number: int) -> int:
        path, offset = chunks[number % len(chunks)]
        return len(os.pread(descriptors[path], _CHUNK_BYTES, offset))

    try:
        if once:
            return sum(work(number) for number in range(len(chunks)) if time.perf_counter() < deadline)
        return _work_for(seconds, threads, work)
    finally:
        for descriptor in descriptors.values():
            os.close(descriptor)


def _draw_for(seconds: float, elements: Iterator[Any]) -> int:
    deadline = time.perf_counter() + seconds
    images = 0
    while time.perf_counter() < deadline:
        images += next(elements)["image"].shape[0]
    return images


def _drop_page_cache(files: list[Path]) -> None:
    """Ask the kernel to forget the files' pages, so that the next read comes from the disk."""
    for path in files:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)
