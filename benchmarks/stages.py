"""The stages one by one: the input pipeline cut after each of its host stages; copy and step.

Each host stage does what the stage before does and one thing more, on the same positions, in as many processes; so the
difference between two of them is the cost of that one thing. They run the pipeline's own code.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import math
import mmap
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from shardline.benchmarks import profiler_summary
from shardline.benchmarks.bottleneck import COLD, SEQUENTIAL, STAGE_TEXT, STAGES_SUITE, Facts
from shardline.benchmarks.config import BenchConfig
from shardline.benchmarks.images import evenly_spaced
from shardline.benchmarks.measure import Measurement, interleave
from shardline.benchmarks.processes import Rate, WorkerProcess, repeat_for, timed
from shardline.benchmarks.verdict import HOST_STAGES
from shardline.pipeline.augment_params import AugmentParams
from shardline.pipeline.batches import BatchBuilder
from shardline.pipeline.config import InputConfig
from shardline.pipeline.dataset import Dataset, augment_on, open_dataset
from shardline.pipeline.decode import CropBox
from shardline.pipeline.encodings import ENCODINGS
from shardline.pipeline.errors import Failure
from shardline.pipeline.machine import available_cores, cpu_quota, memory_limit
from shardline.pipeline.manifest import UNKNOWN_KERNEL
from shardline.pipeline.shards import Shards

PREPROCESSED_SHARE = 0.875  # of the resized short side that evaluation's center crop has, as usual
_CHUNK_BYTES = 1 << 20
_MOST_BATCHES = 32  # in one call, as in training
_USUAL_SIZES = (512, 384, 320, 256, 224, 192, 160, 128, 96, 72, 64)


def measure(config: BenchConfig) -> list[Measurement]:
    """Every stage by itself, in turns, with the host's last one again as the control."""
    from shardline.benchmarks import step_stages  # TensorFlow takes seconds to import

    data = open_dataset(config.data)
    on_gpu = bool(config.gpu_step_rate or step_stages.num_gpus())
    facts = describe(data, config, step_on_host=not on_gpu)
    what = STAGE_TEXT | {name: f"{STAGE_TEXT[name.split()[0]]}; page cache dropped" for name in COLD}
    what[SEQUENTIAL] = "read the shards a megabyte at a time, in stored order, by one process"
    kept: list[float] = []
    # The step first: it claims the devices.
    steps, step_texts = ({}, {}) if config.gpu_step_rate else step_stages.step_stages(config)
    settings = {
        "facts": asdict(facts),
        "input": asdict(config.input),
        "seconds": config.seconds,
        "dataset": data.manifest.digest,
        "forecast": step_stages.forecast_facts(config, len(data.labels), on_gpu),
        "page_cache_kept": kept,
    }
    with host_stages(data, config.split, config.input, seconds=config.seconds, kept=kept) as host:
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
    data: Dataset, split: str, config: InputConfig, *, seconds: float, kept: list[float] | None = None
) -> Iterator[dict[str, Callable[[], Rate]]]:
    """A function for each of HOST_STAGES, SEQUENTIAL and COLD, which works for about `seconds`, within the context.

    Records that cannot be decoded take their time and do not count. `kept` gets what `drop_page_cache` returned before
    each cold run: only that run's own drop tells whether it was cold.
    """
    config = replace(config, max_bad_records=data.num_records(split))
    kept = [] if kept is None else kept
    processes = config.threads or available_cores()
    make = partial(StageWorker, str(data.directory), split, config, augment_on(config) == "device")
    paths = files(data, split)
    with contextlib.ExitStack() as stack:
        workers = [stack.enter_context(WorkerProcess(make)) for _ in range(processes)]

        def run(stage: str, workers: Sequence[WorkerProcess] = workers, once: bool = False) -> Rate:
            if once:
                kept.append(drop_page_cache(paths))
            for number, worker in enumerate(workers):
                worker.start(stage, seconds, number, len(workers), once)
            rates = [worker.result() for worker in workers]
            total = sum(rate.rate for rate in rates)
            if not total:
                return Rate(0.0)
            cpu = sum(rate.rate * rate.cpu_seconds for rate in rates)
            delay = sum(rate.rate * rate.delay_seconds for rate in rates)
            return Rate(total, cpu / total, delay_seconds=delay / total)

        # Once through when cold: a second pass would find the files in memory.
        cold = (partial(run, "storage", once=True), partial(run, "augment", once=True))
        yield {
            **{stage: partial(run, stage) for stage in HOST_STAGES[:-1]},
            "batch": partial(Batches(str(data.directory), split, config), seconds),
            SEQUENTIAL: partial(run, SEQUENTIAL, workers[:1]),
            **dict(zip(COLD, cold, strict=True)),
        }


class StageWorker:
    """The host stages up to augmentation, in one process of several; see `WorkerProcess`."""

    def __init__(self, directory: str, split: str, config: InputConfig, on_device: bool) -> None:
        data = open_dataset(directory)
        self._shards = Shards(data.manifest, data.directory, split)
        self._batches = BatchBuilder(self._shards, config, data.manifest.image)
        self._encoding = ENCODINGS[data.manifest.image.encoding]
        self._checked = data.manifest.image.kernel != UNKNOWN_KERNEL  # as in training
        self._rows = min(config.global_batch_size, 64)
        paths = files(data, split)
        self._files = [os.open(path, os.O_RDONLY) for path in paths]
        self._chunks = [
            (file, at)
            for file, path in zip(self._files, paths, strict=True)
            for at in range(0, path.stat().st_size, _CHUNK_BYTES)
        ]
        self._record_bytes = data.manifest.split(split).bytes / len(self._shards)
        self._buffer = memoryview(bytearray(int(self._shards.locations(np.arange(len(self._shards)))[:, 2].max())))
        self._on_device = on_device
        reads = {
            "order": lambda record, crop: None,
            "storage": self._pread,
            "records": lambda record, crop: self._shards.payload(record),
            "parse": lambda record, crop: self._shards.read_pixels(record),
            "decode": self._decode,
        }
        self._work: dict[str, Callable[[int], float]] = {
            SEQUENTIAL: self._read_chunk,
            **{stage: partial(self._each, read) for stage, read in reads.items()},
            "augment": self._augment,
        }
        self._once = dict.fromkeys(self._work, -(-len(self._shards) // self._rows)) | {SEQUENTIAL: len(self._chunks)}

    def _read_chunk(self, number: int) -> float:
        """Images that a megabyte of a shard, in stored order, amounts to."""
        file, offset = self._chunks[number % len(self._chunks)]
        return len(os.pread(file, _CHUNK_BYTES, offset)) / self._record_bytes

    def _positions(self, number: int) -> np.ndarray:
        return np.arange(number * self._rows, (number + 1) * self._rows)

    def _each(self, read: Callable[[int, CropBox], object], number: int) -> float:
        """Do something with each record of a batch, in training's order; how many of them were readable."""
        good, positions = 0, self._positions(number)
        params = AugmentParams(self._batches.config, positions)
        for row, record in enumerate(self._batches.sampler.records(positions).tolist()):
            with contextlib.suppress(ValueError):
                read(record, partial(params.crop, row))
                good += 1
        return good

    def _pread(self, record: int, crop: CropBox) -> None:
        shard, offset, size = self._shards.index[record]
        os.preadv(self._files[shard], [self._buffer[:size]], offset)

    def _decode(self, record: int, crop: CropBox) -> None:
        example = self._shards.read_pixels(record)
        self._encoding.decode(example, window=crop, checked=self._checked)

    def _augment(self, number: int) -> float:
        return int(self._batches.train(self._positions(number), self._on_device)["weight"].sum())

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
        self._batches = open_dataset(directory).train_batches(split, config)
        self._take = _taker()

    def __call__(self, seconds: float) -> Rate:
        """Images per second from the first batch on; records that cannot be decoded do not count."""
        elements = iter(self._batches)
        for number in range(2 * self._processes):  # the first elements also fill the buffers
            if number == self._processes:
                began = time.perf_counter()  # workers have started
            next(elements)
        each = (time.perf_counter() - began) / self._processes
        # As training does: several batches in one call. Python between batches would be charged to them.
        count = max(1, min(_MOST_BATCHES, int(seconds / 8 / max(each, 1e-6))))
        return timed(lambda: repeat_for(seconds, lambda: float(self._take(elements, count))))

    def read(self, records: int) -> None:
        """Read the batches that hold so many records, to fill a cache."""
        read = 0
        for batch in self._batches:
            read += len(batch["weight"])
            if read >= records:
                return


def _taker() -> Callable[[Iterator[Any], int], Any]:
    """A function of an iterator and a count: the readable images in so many of its batches."""
    import tensorflow as tf

    @tf.function(autograph=False)
    def take(elements: Iterator[Any], count: tf.Tensor) -> tf.Tensor:
        def body(i: tf.Tensor, images: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            return i + 1, images + tf.reduce_sum(next(elements)["weight"])

        start = (tf.constant(0), tf.constant(0.0))
        return tf.while_loop(lambda i, _: i < count, body, start, parallel_iterations=1)[1]

    return lambda elements, count: take(elements, tf.constant(count))


def describe(data: Dataset, config: BenchConfig, *, step_on_host: bool) -> Facts:
    """The facts about the stored images, from a sample of them.

    Raises:
      Failure: nothing of the sample can be decoded.
    """
    split, image = config.split, data.manifest.image
    shards = Shards(data.manifest, data.directory, split)
    sides, faults = [], []
    sample = evenly_spaced(len(shards), 64)
    for record in sample:
        try:
            sides.append(ENCODINGS[image.encoding].decode(shards.read(record)).shape[:2])
        except ValueError as error:
            faults.append(f"record {record}: {error}")
    if faults:
        line = f"--data={data.directory}: {len(faults)} of {len(sample)} sampled records of {split} cannot be decoded "
        line += f"({faults[0]}); shardline-verify names the faults"
        if not sides:
            raise Failure(line)
        print(f"note: {line}", file=sys.stderr)
    stored_bytes = data.manifest.split(split).bytes
    # Of the pixels, not of the converter's option: it enlarges nothing, and images from elsewhere have no such option.
    short_side = round(float(np.median([min(height_width) for height_width in sides])))
    smaller = smaller_sizes(short_side, config.image_size)
    return Facts(
        cores=available_cores(),
        allowed_cores=min(cpu_quota() or math.inf, len(os.sched_getaffinity(0))),
        visible_cores=len(os.sched_getaffinity(0)),
        threads=config.threads or available_cores(),
        records=len(shards),
        image_bytes=stored_bytes / len(shards),
        stored_pixels=float(np.mean(np.prod(sides, axis=1))),
        step_on_host=step_on_host,
        encoding=image.encoding,
        stored_size=short_side,
        smaller_sizes=smaller,
        resize=image.resize,
        fits_memory=stored_bytes < 0.7 * memory_limit(),
    )


def smaller_sizes(stored_size: int, image_size: int) -> tuple[int, ...]:
    """The next usual `--size` below the stored one, and the least that leaves the usual margin around a crop."""
    covering = [size for size in _USUAL_SIZES if image_size <= size < stored_size]
    ample = [size for size in covering if size * PREPROCESSED_SHARE >= image_size]
    return tuple(dict.fromkeys([*covering[:1], *ample[-1:]]))


def files(data: Dataset, split: str) -> list[Path]:
    """The shards of a split."""
    return [data.directory / shard.file for shard in data.manifest.split(split).shards]


def from_disk(run: Callable[[], Rate], files: Sequence[Path]) -> Callable[[], Rate]:
    """The same run, which finds nothing of the files in memory when it begins."""

    def dropped() -> Rate:
        drop_page_cache(files)
        return run()

    return dropped


def drop_page_cache(files: Sequence[Path]) -> float:
    """Ask the kernel to forget the files' pages, so that the next read comes from the disk.

    Returns:
      The share of the pages that it kept nevertheless (-1 where it does not tell): some file systems do not let go.
    """
    kept, pages = 0, 0
    for path in files:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            resident = _resident_pages(descriptor)
        except OSError:
            return -1.0
        finally:
            os.close(descriptor)
        kept, pages = kept + sum(resident), pages + len(resident)
    return kept / pages if pages else -1.0


def _resident_pages(descriptor: int) -> list[bool]:
    """Which pages of a file are in memory. mincore(2) reads nothing, unlike reads that must not wait: they read ahead.

    Raises:
      OSError: the kernel does not tell: of files of others it says of each page that it is there.
    """
    status = os.fstat(descriptor)
    if status.st_uid != os.geteuid() and os.geteuid():
        raise PermissionError
    if not status.st_size:
        return []
    with mmap.mmap(descriptor, status.st_size, prot=mmap.PROT_READ | mmap.PROT_WRITE, flags=mmap.MAP_PRIVATE) as memory:
        flags = (ctypes.c_ubyte * -(-status.st_size // mmap.PAGESIZE))()
        view = (ctypes.c_char * status.st_size).from_buffer(memory)
        failed = ctypes.CDLL(None, use_errno=True).mincore(
            ctypes.c_void_p(ctypes.addressof(view)), ctypes.c_size_t(status.st_size), flags
        )
        del view  # it keeps the memory mapped
        if failed:
            raise OSError(ctypes.get_errno(), "mincore")
    return [bool(flag & 1) for flag in flags]
