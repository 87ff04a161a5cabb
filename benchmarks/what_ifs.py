"""Cheap what-ifs: the host's batches under other flags, in turns with those of the present ones. No conversion.

What is printed of them is decided in `bottleneck.py`: only what beats the control.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial

from shardline.benchmarks.bottleneck import STAGES_SUITE, UNCHANGED, WHAT_IF_SUITE, bottleneck_of
from shardline.benchmarks.config import BenchConfig
from shardline.benchmarks.measure import Measurement, interleave, load_results
from shardline.benchmarks.processes import Rate
from shardline.benchmarks.stages import Batches, files, from_disk
from shardline.benchmarks.step_stages import num_gpus
from shardline.pipeline.config import InputConfig
from shardline.pipeline.dataset import augment_on, open_dataset
from shardline.pipeline.errors import UsageError
from shardline.pipeline.machine import available_cores, available_memory

MORE_WORKERS = (2, 8)  # times as many
LARGE_BATCH, BATCH_FACTOR = 128, 4  # batches below it are tried at so many times their size
SHUFFLE_BLOCK = 64
FILL_SECONDS = 30.0  # that filling a cache may take
_WORKER_BYTES = 64 << 20


def measure(config: BenchConfig) -> list[Measurement]:
    """The changes, in turns with the unchanged input; nothing where the input is not the limit."""
    results = load_results(config.directory)
    found = bottleneck_of(results)
    if found is None or not found.verdict.limits_input:
        return []
    (batch,) = (m for m in results if m.suite == STAGES_SUITE and m.name == "batch")
    on_gpu = bool(config.gpu_step_rate or num_gpus())
    paths = files(open_dataset(config.data), config.split)
    runs: dict[str, Callable[[], Rate]] = {}
    what = {}
    for name, changed in {UNCHANGED: config.input, **changes(config.input, on_gpu)}.items():
        if changed.cache != config.cache and batch.settings["facts"]["records"] / batch.median > FILL_SECONDS:
            print(f"{name}: not tried, because it would take over {FILL_SECONDS:g} s to fill", file=sys.stderr)
            continue
        try:
            batches = Batches(config.data, config.split, changed)
        except UsageError as error:  # a cache that does not fit
            print(f"{name}: not tried: {error}", file=sys.stderr)
            continue
        if changed.cache != config.cache:
            batches.read(batch.settings["facts"]["records"])
        runs[name] = partial(batches, config.seconds)
        if "storage" in found.verdict.stages:  # else what was read a turn ago would come from memory
            runs[name] = from_disk(runs[name], paths)
        what[name] = "host batches" if name == UNCHANGED else f"host batches with {name}"
    return interleave(WHAT_IF_SUITE, runs, repeats=config.repeats, reference=UNCHANGED, what=what)


def changes(config: InputConfig, on_gpu: bool) -> dict[str, InputConfig]:
    """The flags to try, as a person would type them, with the configs they lead to."""
    values: list[tuple[str, int | str]] = []
    if config.cache == "none":
        values.append(("cache", "memory"))
    present = config.workers if config.workers > 0 else config.threads or available_cores()
    counts = (times * present for times in MORE_WORKERS)
    values += [("workers", n) for n in counts if n * _WORKER_BYTES < available_memory() / 2]
    if config.global_batch_size < LARGE_BATCH:
        values.append(("global_batch_size", BATCH_FACTOR * config.global_batch_size))
    if config.shuffle and config.shuffle_block_size < SHUFFLE_BLOCK:
        values.append(("shuffle_block_size", SHUFFLE_BLOCK))
    if on_gpu and augment_on(config) == "host":
        values.append(("augment_on", "device"))
    return {f"--{name} {value}": replace(config, **{name: value}) for name, value in values}  # type: ignore[arg-type]
