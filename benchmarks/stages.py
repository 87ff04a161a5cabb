"""The host's stages one by one: the input pipeline cut after reading, parsing, decoding, augmenting, batching.

Each rung does what the rung below does and one thing more, on the same positions, in as many processes; so the
difference between two rungs is the cost of that one thing. The rungs run the pipeline's own code.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from shardline.benchmarks.bottleneck import HOST_STAGES
from shardline.benchmarks.measure import Rate, timed
from shardline.pipeline.batches import BatchBuilder
from shardline.pipeline.config import InputConfig
from shardline.pipeline.dataset import Dataset
from shardline.pipeline.encodings import ENCODINGS
from shardline.pipeline.errors import Failure, UsageError
from shardline.pipeline.machine import available_cores
from shardline.pipeline.sampler import ShuffleSampler
from shardline.pipeline.shards import Shards

COLD = ("storage (cold)", "augment (cold)")  # the same after the page cache was dropped, each record at most once
_CHUNK_BYTES = 1 << 20
_USUAL_SIZES = (512, 384, 320, 256, 224, 192, 160, 128, 96, 72, 64)


def rungs(data: Dataset, split: str, config: InputConfig, *, seconds: float) -> dict[str, Callable[[], Rate]]:
    """A contender for each of `verdict.HOST_STAGES` and of COLD; each works for about `seconds`.

    Records that cannot be decoded take their time and do not count.
    """
    config = replace(config, max_bad_records=data.num_records(split))
    shards = Shards(data.manifest, data.directory, split)
    order = ShuffleSampler(len(shards), config.seed, config.shuffle_block_size, config.shuffle)
    encoding = ENCODINGS[data.manifest.image.encoding]
    batches = BatchBuilder(shards, config, data.manifest.image)
    files = _files(data, split)
    record_bytes = sum(path.stat().st_size for path in files) / len(shards)
    rows = min(config.global_batch_size, 64)
    processes = config.threads or available_cores()
    config = replace(config, workers=processes if processes > 1 else 0)  # now, not once it pays

    def each(work: Callable[[int], Any]) -> Callable[[int], int]:
        def batch(number: int) -> int:
            good = 0
            for record in order.records(np.arange(number * rows, (number + 1) * rows)).tolist():
                with contextlib.suppress(ValueError):
                    work(record)
                    good += 1
            return good

        return batch

    def augmented(number: int) -> int:
        return int(batches.train(np.arange(number * rows, (number + 1) * rows), False)["weight"].sum())

    def in_processes(work: Callable[[int], int], most: int | None = None) -> Callable[[], Rate]:
        return lambda: _work_for(seconds, processes, work, most)

    def read(once: bool) -> Callable[[], Rate]:
        chunks = [(path, at) for path in files for at in range(0, path.stat().st_size, _CHUNK_BYTES)]

        def records() -> Rate:
            found = _read_for(seconds, processes, chunks, once=once)
            return Rate(found.rate / record_bytes, found.cpu_seconds * record_bytes)

        return records

    def cold(run: Callable[[], Rate]) -> Callable[[], Rate]:
        def dropped() -> Rate:
            drop_page_cache(files)
            return run()

        return dropped

    def batched() -> Rate:
        elements = iter(data.train_batches(split, config))
        for _ in range(2 * processes):  # the first elements also fill the buffers
            next(elements)
        return timed(lambda: _draw_for(seconds, elements))

    runs = (
        read(once=False),
        in_processes(each(shards.payload)),
        in_processes(each(shards.read)),
        in_processes(each(lambda record: encoding.decode(shards.read(record)))),
        in_processes(augmented),
        batched,
    )
    # Once through when cold: a second pass would find the files in memory.
    once_through = -(-len(shards) // rows)
    return {
        **dict(zip(HOST_STAGES, runs, strict=True)),
        COLD[0]: cold(read(once=True)),
        COLD[1]: cold(in_processes(augmented, once_through)),
    }


def facts(data: Dataset, split: str) -> dict[str, Any]:
    """What the verdict's arithmetic needs to know of the stored images, from a sample of them.

    Raises UsageError for a split without records, Failure where nothing of the sample can be decoded.
    """
    if not data.num_records(split):
        raise UsageError(f"--split={split} of --data={data.directory} holds no records; name another split")
    image = data.manifest.image
    shards = Shards(data.manifest, data.directory, split)
    sample = np.unique(np.linspace(0, len(shards) - 1, 64).astype(int)).tolist()
    pixels, faults = [], []
    for record in sample:
        try:
            pixels.append(ENCODINGS[image.encoding].decode(shards.read(record)).size / 3)
        except ValueError as error:
            faults.append(f"record {record}: {error}")
    if faults:
        line = f"--data={data.directory}: {len(faults)} of {len(sample)} sampled records of {split} cannot be decoded "
        line += f"({faults[0]}); shardline-verify names the faults"
        if not pixels:
            raise Failure(line)
        print(f"note: {line}", file=sys.stderr)
    stored_bytes = sum(path.stat().st_size for path in _files(data, split))
    return {
        "cores": available_cores(),
        "image_bytes": stored_bytes / len(shards),
        "stored_pixels": float(np.mean(pixels)),
        "encoding": image.encoding,
        "stored_size": image.size,
        "fits_memory": stored_bytes < 0.7 * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
    }


def smaller_size(stored_size: int, image_size: int) -> int | None:
    """The next usual `--size` below the stored one that still covers the training size."""
    return next((size for size in _USUAL_SIZES if image_size <= size < stored_size), None)


def _files(data: Dataset, split: str) -> list[Path]:
    return [data.directory / shard.file for shard in data.manifest.split(split).shards]


def _work_for(seconds: float, processes: int, work: Callable[[int], int], most: int | None = None) -> Rate:
    """Call work(0), work(1), … (at most `most`), which return units of work, until the time is up.

    In processes rather than threads, as the pipeline does: threads would also measure how they wait for each other.
    """

    def share(first: int) -> int:
        deadline = time.perf_counter() + seconds
        numbers = itertools.count(first, processes) if most is None else range(first, most, processes)
        return sum(work(number) for number in itertools.takewhile(lambda _: time.perf_counter() < deadline, numbers))

    def child(first: int, outbox: Any) -> None:
        try:
            outbox.send(timed(lambda: share(first)))
        except (Exception, KeyboardInterrupt) as error:
            outbox.send(error)

    if processes == 1:
        return timed(lambda: share(0))
    context = multiprocessing.get_context("fork")  # for what has been opened; the children touch no TensorFlow
    pipes = [context.Pipe(duplex=False) for _ in range(processes)]
    children = [
        context.Process(target=child, args=(first, outbox), daemon=True) for first, (_, outbox) in enumerate(pipes)
    ]
    for process in children:
        process.start()
    try:
        answers = [inbox.recv() for inbox, _ in pipes]
    finally:
        for process in children:
            process.terminate()
            process.join()
        for inbox, outbox in pipes:
            inbox.close()
            outbox.close()
    for answer in answers:
        if isinstance(answer, BaseException):
            raise answer
    total = sum(rate for rate, _ in answers)
    return Rate(total, sum(rate * cpu for rate, cpu in answers) / total if total else 0.0)


def _read_for(seconds: float, processes: int, chunks: list[tuple[Path, int]], *, once: bool) -> Rate:
    """Bytes read in `seconds`; with `once`, in one pass by one process when that ends sooner."""
    descriptors = {path: os.open(path, os.O_RDONLY) for path, _ in chunks}

    def work(number: int) -> int:
        path, offset = chunks[number % len(chunks)]
        return len(os.pread(descriptors[path], _CHUNK_BYTES, offset))

    try:
        return _work_for(seconds, 1 if once else processes, work, len(chunks) if once else None)
    finally:
        for descriptor in descriptors.values():
            os.close(descriptor)


def _draw_for(seconds: float, elements: Iterator[Any]) -> int:
    deadline = time.perf_counter() + seconds
    images = 0
    while time.perf_counter() < deadline:
        images += int(next(elements)["weight"].numpy().sum())
    return images


def drop_page_cache(files: Sequence[Path]) -> float:
    """Ask the kernel to forget the files' pages, so that the next read comes from the disk.

    Returns:
      The share of the pages that it kept nevertheless (NaN where it does not tell): some file systems do not let go.
    """
    kept, pages = 0, 0
    for path in files:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            size = os.fstat(descriptor).st_size
            for offset in range(0, size, max(size // 8, 1)):  # a few pages of each file tell enough
                pages += 1
                with contextlib.suppress(BlockingIOError):
                    kept += os.preadv(descriptor, [bytearray(1)], offset, os.RWF_NOWAIT)
        except OSError:
            return math.nan
        finally:
            os.close(descriptor)
    return kept / pages if pages else math.nan


def cold_cache_text(data: Dataset, split: str) -> str:
    """What a cold rung is worth on this file system, for the reader of its row."""
    kept = drop_page_cache(_files(data, split))
    if math.isnan(kept):
        return "page cache dropped; the file system does not tell whether it obeyed"
    if kept < 0.9:
        return f"page cache dropped{f', but for {kept:.0%} of it' if kept else ''}"
    return f"the kernel kept {kept:.0%} of the page cache: as warm as the others"
