"""Images per second of the input pipeline, beside other loaders, on the same images and cores.

The dataset holds JPEGs (the published figures: photographs at short side 256, quality 90). Its first split is copied
as raw pixels and as plain files for the loaders that need them so. Every loader has its own process, pinned to its
cores, and they take turns of a quarter of a second, in which the others are stopped. Those whose packages are not
installed are left out, and named.
"""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from functools import partial
from pathlib import Path

from shardline.benchmarks.baselines.input import LOADERS, NOT_MEASURED, loader, prepare
from shardline.benchmarks.config import BenchConfig
from shardline.benchmarks.measure import Measurement, interleave
from shardline.benchmarks.processes import ProcessError, WorkerProcess, missing_packages
from shardline.pipeline.machine import available_cores

REFERENCE, TWO_CORES = "shardline host", "shardline host, 2 cores"
SLICE_SECONDS = 0.25
BATCH_SIZE = 64  # of every loader, whatever the options say: published comparisons stay the same measurement


def measure(config: BenchConfig) -> list[Measurement]:
    """Every loader that can run here; why the others cannot is kept with the measurements."""
    absent = dict(NOT_MEASURED)
    two_cores = {TWO_CORES: REFERENCE} if available_cores() > 1 else {}
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        prepare(config.data, Path(folder))
        runs = {}
        for name, loader_name in ({name: name for name in LOADERS} | two_cores).items():
            try:
                worker = stack.enter_context(_start(loader_name, folder, config, cores=2 if name in two_cores else 1))
                worker.wait_until_ready()
            except ProcessError as error:
                absent[name] = str(error)
                print(f"not measured: {name} ({error})", file=sys.stderr)
            else:
                runs[name] = partial(worker, min(SLICE_SECONDS, config.seconds))
        return interleave(
            "input",
            runs,
            repeats=config.repeats * max(1, round(config.seconds / SLICE_SECONDS)),
            reference=REFERENCE,
            what={name: LOADERS[two_cores.get(name, name)].what for name in runs},
            settings={
                "batch_size": BATCH_SIZE,
                "image_size": config.image_size,
                "data": Path(config.data).resolve().name,
                "absent": absent,
            },
        )


def _start(name: str, folder: str, config: BenchConfig, *, cores: int) -> WorkerProcess:
    """The process of a loader. Raises ProcessError that names the packages that are not installed."""
    packages = LOADERS[name].packages
    python = config.python if packages else sys.executable
    if missing := missing_packages(python, packages):
        raise ProcessError(f"{', '.join(missing)} not installed; see --baseline_python")
    make = partial(loader, name, folder, BATCH_SIZE, config.image_size, cores)
    pinned = sorted(os.sched_getaffinity(0))[:cores]
    return WorkerProcess(make, python=python, cores=pinned, environment={"TF_CPP_MIN_LOG_LEVEL": "3"}, stopped=True)
