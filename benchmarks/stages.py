"""The stages one by one: the input pipeline cut after reading, parsing, decoding, augmenting, batching; copy and step.

Each host stage does what the stage before does and one thing more, on the same positions, in as many processes; so the
difference between two of them is the cost of that one thing. They run the pipeline's own code.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import numpy as np

from shardline.benchmarks import profiler_summary
from shardline.benchmarks.bottleneck import COLD, HOST_STAGES, STAGE_TEXT, STAGES_SUITE, Facts
from shardline.benchmarks.config import BenchConfig
from shardline.benchmarks.images import evenly_spaced
from shardline.benchmarks.measure import Measurement, interleave
from shardline.benchmarks.processes import Rate, WorkerProcess, repeat_for, timed
from shardline.pipeline.batches import BatchBuilder
from shardline.pipeline.config import InputConfig
from shardline.pipeline.dataset import Dataset, augment_on, open_dataset
from shardline.pipeline.encodings import ENCODINGS
from shardline.pipeline.errors import Failure, UsageError
from shardline.pipeline.machine import available_cores, memory_limit
from shardline.pipeline.shards import Shards

_CHUNK_BYTES = 1 << 20
_USUAL_SIZES = (512, 384, 320, 256, 224, 192, 160, 128, 96, 72, 64)


def measure(config: BenchConfig) -> list[Measurement]:
    """Every stage by itself, in turns, with the host's last one again as the control."""
    from shardline.benchmarks import step_stages  # TensorFlow takes seconds to import

    data = open_dataset(config.data)
    on_gpu = bool(config.gpu_step_rate or step_stages.num_gpus())
    facts = describe(data, config, step_on_host=not on_gpu)
    cold = cold_cache_text(files(data, config.split))
    what = STAGE_TEXT | {name: f"{STAGE_TEXT[name.split()[0]]}; {cold}" for name in COLD}
    # The step first: it claims the devices.
    steps, step_texts = ({}, {}) if config.gpu_step_rate else step_stages.step_stages(config)
    settings = {
        "facts": asdict(facts),
        "input": asdict(config.input),
        "seconds": config.seconds,
        "dataset": data.manifest.digest,
        "forecast": step_stages.forecast_facts(config, len(data.labels), on_gpu),
    }
    with host_stages(data, config.split, config.input, seconds=config.seconds) as host:
        measured = interleave(
            STAGES_SUITE,
            {**host, **steps},
            repeats=config.repeats,
            reference="batch",
            what=what | step_texts,
            settings=settings,
        )
        if config.profile:
            path = profiler_summary.write(steps.get("end_to_end", host["batch"]), config.directory)
            print(f"profile: {path}", file=sys.stderr)
    if config.gpu_step_rate:
        given = (config.gpu_step_rate,) * config.repeats
        text = "as given by --gpu_step_rate"
        measured.append(Measurement(STAGES_SUITE, "step", "images/s", given, text, (), measured[0].settings))
    return measured


@contextlib.contextmanager
def host_stages(
    data: Dataset, split: str, config: InputConfig, *, seconds: float
) -> Iterator[dict[str, Callable[[], Rate]]]:
    """A function for each of HOST_STAGES and COLD, which works for about `seconds`; to be used within the context.

    Records that cannot be decoded take their time and do not count.
    """
    config = replace(config, max_bad_records=data.num_records(split))
    processes = config.threads or available_cores()
    make = partial(StageWorker, str(data.directory), split, config, augment_on(config) == "device")
    paths = files(data, split)
    with contextlib.ExitStack() as stack:
        workers = [stack.enter_context(WorkerProcess(make)) for _ in range(processes)]

        def run(stage: str, workers: Sequence[WorkerProcess] = workers, once: bool = False) -> Rate:
            if once:
                drop_page_cache(paths)
            for number, worker in enumerate(workers):
                worker.start(stage, seconds, number, len(workers), once)
            rates = [worker.result() for worker in workers]
            total = sum(rate.rate for rate in rates)
            return Rate(total, sum(rate.rate * rate.cpu_seconds for rate in rates) / total if total else 0.0)

        # Once through when cold: a second pass would find the files in memory.
        cold = (partial(run, "storage", workers[:1], once=True), partial(run, "augment", once=True))
        yield {
            **{stage: partial(run, stage) for stage in HOST_STAGES[:-1]},
            "batch": partial(Batches(str(data.directory), split, config), seconds),
            **dict(zip(COLD, cold, strict=True)),
        }


class StageWorker:
    """The host stages up to augmentation, in one process of several; see `WorkerProcess`."""

    def __init__(self, directory: str, split: str, config: InputConfig, on_device: bool) -> None:
        data = open_dataset(directory)
        shards = Shards(data.manifest, data.directory, split)
        batches = BatchBuilder(shards, config, data.manifest.image)
        encoding = ENCODINGS[data.manifest.image.encoding]
        rows = min(config.global_batch_size, 64)
        chunks = [(path, at) for path in files(data, split) for at in range(0, path.stat().st_size, _CHUNK_BYTES)]
        descriptors = {path: os.open(path, os.O_RDONLY) for path, _ in chunks}
        record_bytes = data.manifest.split(split).bytes / len(shards)

        def read_chunk(number: int) -> float:
            path, offset = chunks[number % len(chunks)]
            return len(os.pread(descriptors[path], _CHUNK_BYTES, offset)) / record_bytes

        def positions(number: int) -> np.ndarray:
            return np.arange(number * rows, (number + 1) * rows)

        def each(work: Callable[[int], object]) -> Callable[[int], float]:
            def batch(number: int) -> float:
                good = 0
                for record in batches.sampler.records(positions(number)).tolist():
                    with contextlib.suppress(ValueError):
                        work(record)
                        good += 1
                return good

            return batch

        self._work: dict[str, Callable[[int], float]] = {
            "storage": read_chunk,
            "records": each(shards.payload),
            "parse": each(shards.read),
            "decode": each(lambda record: encoding.decode(shards.read(record))),
            "augment": lambda number: int(batches.train(positions(number), on_device)["weight"].sum()),
        }
        self._once = dict.fromkeys(self._work, -(-len(shards) // rows)) | {"storage": len(chunks)}

    def __call__(self, stage: str, seconds: float, first: int, stride: int, once: bool) -> Rate:
        """Images per second of the batches `first`, `first` + `stride`, …; with `once`, of no batch twice."""
        numbers = range(first, self._once[stage], stride) if once else itertools.count(first, stride)
        work = self._work[stage]

        def until_late() -> float:
            deadline = time.perf_counter() + seconds
            in_time = itertools.takewhile(lambda _: time.perf_counter() < deadline, numbers)
            return sum(work(number) for number in in_time)

        return timed(until_late)


class Batches:
    """The last host stage: batches out of tf.data, made by the pipeline's own worker processes from the first on."""

    def __init__(self, directory: str, split: str, config: InputConfig) -> None:
        self._processes = config.threads or available_cores()
        if config.workers < 0:
            config = replace(config, workers=self._processes if self._processes > 1 else 0)
        self._batches = open_dataset(directory).train_batches(split, config)

    def __call__(self, seconds: float) -> Rate:
        """Images per second; records that cannot be decoded do not count."""
        elements = iter(self._batches)
        for _ in range(2 * self._processes):  # the first elements also fill the buffers
            next(elements)
        return timed(lambda: repeat_for(seconds, lambda: int(next(elements)["weight"].numpy().sum())))


def describe(data: Dataset, config: BenchConfig, *, step_on_host: bool) -> Facts:
    """The facts about the stored images, from a sample of them.

    Raises:
      UsageError: the split has no records.
      Failure: nothing of the sample can be decoded.
    """
    split, image = config.split, data.manifest.image
    if not data.num_records(split):
        raise UsageError(f"--split={split} of --data={data.directory} holds no records; name another split")
    shards = Shards(data.manifest, data.directory, split)
    pixels, faults = [], []
    sample = evenly_spaced(len(shards), 64)
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
    stored_bytes = data.manifest.split(split).bytes
    return Facts(
        cores=available_cores(),
        image_bytes=stored_bytes / len(shards),
        stored_pixels=float(np.mean(pixels)),
        step_on_host=step_on_host,
        encoding=image.encoding,
        stored_size=image.size,
        smaller_size=smaller_size(image.size, config.image_size),
        fits_memory=stored_bytes < 0.7 * memory_limit(),
    )


def smaller_size(stored_size: int, image_size: int) -> int | None:
    """The next usual `--size` below the stored one that still covers the training size."""
    return next((size for size in _USUAL_SIZES if image_size <= size < stored_size), None)


def files(data: Dataset, split: str) -> list[Path]:
    """The shards of a split."""
    return [data.directory / shard.file for shard in data.manifest.split(split).shards]


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


def cold_cache_text(files: Sequence[Path]) -> str:
    """What a cold stage is worth on this file system, for the reader of its row."""
    kept = drop_page_cache(files)
    if math.isnan(kept):
        return "page cache dropped; the file system does not tell whether it obeyed"
    if kept < 0.9:
        return f"page cache dropped{f', but for {kept:.0%} of it' if kept else ''}"
    return f"the kernel kept {kept:.0%} of the page cache: as warm as the others"
