"""Measure this machine with this dataset: which stage is the bottleneck, and what would help.

    shardline-benchmark --data DIR --output REPORT [--raw_images DIR] [--suite input]
    shardline-benchmark --run RUN [--output REPORT]

Adds to REPORT/results.jsonl, one line a measurement with every repeat, and draws REPORT/report.html. Ctrl-C keeps what
was measured. The last lines on stdout are the bottleneck and the report's path.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

from shardline.benchmarks.bottleneck import bottleneck_of
from shardline.benchmarks.config import BenchConfig
from shardline.benchmarks.measure import RESULTS_FILE, Interrupted, Measurement, append_results, load_results
from shardline.benchmarks.report import write_report
from shardline.benchmarks.targets import summary
from shardline.pipeline import cli as command_line
from shardline.pipeline.errors import UsageError
from shardline.pipeline.files import own_directory
from shardline.pipeline.run_input import CONFIG_FILE
from shardline.trainer.xla import start_tensorflow

__all__ = ["BenchConfig", "benchmark"]

Part = Callable[[BenchConfig], list[Measurement]]


def benchmark(config: BenchConfig) -> None:
    """Measure the suite part by part, draw the report, and print the bottleneck and the report's path.

    What was measured is stored and drawn even if a later part fails, or Ctrl-C ends it.

    Raises:
      UsageError, Failure: a part cannot be measured, or another process writes to the same report.
    """
    config = check(config)
    with own_directory(config.directory, "--output"):
        _measure(config)
    if (config.directory.parent / CONFIG_FILE).is_file():
        from shardline.trainer.run_report import refresh_links  # OpenCV: not for --help

        refresh_links(config.directory.parent)


def _measure(config: BenchConfig) -> None:
    try:
        for part in parts(config.suite):
            try:
                measured = part(config)
            except Interrupted as interruption:
                append_results(config.directory, interruption.measurements)
                raise
            append_results(config.directory, measured)
            if measured:
                print(f"\n{measured[0].suite}\n{summary(measured)}", file=sys.stderr)
        print(f"to repeat: {config.command()}", file=sys.stderr)
    finally:
        _draw(config)


def check(config: BenchConfig) -> BenchConfig:
    """What will be measured, with what --run tells; refused if it is not there.

    Raises:
      UsageError: no such run, dataset or split, or no records.
    """
    from shardline.pipeline.dataset import open_dataset  # OpenCV: not for --help

    config = config.resolved()
    if config.data:
        data = open_dataset(config.data)
        if not data.num_records(config.split):
            raise UsageError(f"--split={config.split} of --data={config.data} holds no records; name another split")
    return config


def parts(suite: str) -> tuple[Part, ...]:
    """The functions that measure a suite, each in turns of its own."""
    # TensorFlow and OpenCV: not for --help.
    from shardline.benchmarks import (
        bench_convert,
        bench_image,
        bench_input,
        bench_object_store,
        bench_scaling,
        bench_train,
        parent_cost,
        simulated_gpu,
        stages,
        what_ifs,
    )
    from shardline.benchmarks import validate_advice as validation

    advised = (stages.measure, what_ifs.measure, validation.measure, bench_scaling.cores)
    convert = (
        bench_image.photographs,
        bench_image.large_images,
        bench_convert.photographs,
        bench_convert.large_images,
    )
    scaling = (bench_scaling.replicas, bench_convert.scaling)
    train = (bench_train.measure, bench_train.measure_head)
    suites: dict[str, tuple[Part, ...]] = {
        "short": advised,
        "input": (*advised, bench_input.measure),
        "convert": convert,
        "baselines": (bench_input.measure, *convert),
        "scaling": (bench_scaling.cores, *scaling),
        "train": train,
        "simulated_gpu": (simulated_gpu.measure, parent_cost.measure),
        "object_store": (bench_object_store.measure,),
        "all": (*advised, *scaling, bench_input.measure, *train, *convert),
    }
    return suites[suite]


def _draw(config: BenchConfig) -> None:
    results = config.directory / RESULTS_FILE
    if not results.exists() or not results.stat().st_size:
        return
    measurements = load_results(config.directory)
    write_report(config.directory, measurements)
    bottleneck = bottleneck_of(measurements)
    if bottleneck is not None:
        print(bottleneck)
    print(config.directory.absolute() / "report.html")


def main(config: BenchConfig) -> None:
    """The command: measure."""
    checked = check(config)  # at once: TensorFlow takes seconds to import
    command_line.log(f"suite {checked.suite} of {checked.data or checked.raw_images}; writes to: {checked.output}")
    start_tensorflow()
    benchmark(config)


def cli() -> None:
    """Run the console script `shardline-benchmark`."""
    command_line.run(main, BenchConfig, __doc__)


if __name__ == "__main__":
    cli()
