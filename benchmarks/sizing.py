"""What a dataset of a given size takes: shards, bytes, hours, hosts and dollars, from measured rates.

    python -m shardline.benchmarks.sizing                        # the table of docs/explanation/sizing.md
    python -m shardline.benchmarks.sizing --images 250_000_000 --core_price 0.03 --gpu_price 2.5

Prices are yours to give; the defaults are examples. No TensorFlow.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from shardline.benchmarks.measure import load_results
from shardline.pipeline import cli as command_line
from shardline.pipeline.errors import UsageError
from shardline.pipeline.options import check_options, option
from shardline.pipeline.wording import decimal
from shardline.tools.conversion.config import ConvertConfig

RESULTS = Path(__file__).parent / "results"
KNOWN = {"ImageNet-1k": 1_331_167, "ImageNet-21k": 14_197_122, "a billion": 1_000_000_000}
INDEX_BYTES = 8  # a record


@dataclass(frozen=True)
class SizingConfig:
    """What is to be sized, and what machines cost. One field, one flag."""

    images: int = option(0, "number of images; 0: those of ImageNet-1k, of ImageNet-21k, and a billion", low=0)
    shard_mb: float = option(ConvertConfig.shard_mb, "size of a shard, in MB, as of shardline-convert", above=0)
    cores: int = option(64, "cores of a host that converts", low=1)
    hours: float = option(8.0, "hours in which the conversion is to be done", above=0)
    epochs: int = option(9, "epochs of training; 9 is the default of shardline-train", low=1)
    gpus: int = option(8, "GPUs that train", low=1)
    core_price: float = option(0.04, "price of a core for an hour, in dollars", low=0)
    gpu_price: float = option(3.5, "price of a GPU for an hour, with the cores that feed it, in dollars", low=0)

    def __post_init__(self) -> None:
        check_options(self)


@dataclass(frozen=True)
class Rates:
    """What was measured.

    Attributes:
      convert_seconds: of one core, for a photograph of 500x375 pixels, with every check and the report.
      record_bytes: a stored image at the default 256 px and quality 90.
      read_seconds: of one core, for a sample that is read at random, decoded, cropped and flipped.
      gpu_images: a second, that one H200 trains at 224 px from JPEGs.
    """

    convert_seconds: float
    record_bytes: float
    read_seconds: float
    gpu_images: float


def measured(results: Path = RESULTS) -> Rates:
    """The rates that benchmarks/results holds.

    Raises:
      UsageError: it is not there: wheels come without it.
    """
    if not results.is_dir():
        raise UsageError(f"{results} is not there: a package comes without measurements; run this in a clone")
    rows = {(row.suite, row.name): row for row in load_results(results / "epyc-2-cores")}
    report = json.loads((results / "h200" / "gpu_report.json").read_text())
    (real,) = [
        row["images_per_second"]
        for part in report.values()
        for row in part
        if (row["part"], row.get("what")) == ("real", "default") and "images_per_second" in row
    ]
    return Rates(
        convert_seconds=statistics.median(rows["convert", "shardline"].cpu_seconds),
        record_bytes=rows["stages", "storage"].settings["facts"]["image_bytes"],
        read_seconds=statistics.median(rows["input", "shardline host"].cpu_seconds),
        gpu_images=real,
    )


def sizes(images: int, config: SizingConfig, rates: Rates) -> dict[str, str]:
    """What so many images take: a name and a value for each row of the table."""
    stored = images * rates.record_bytes
    core_hours = images * rates.convert_seconds / 3600
    hosts = math.ceil(core_hours / config.cores / config.hours)
    gpu_hours = config.epochs * images / rates.gpu_images / 3600
    return {
        "images": f"{images:,}",
        "stored": _bytes(stored),
        f"shards of {config.shard_mb:g} MB": f"{math.ceil(stored / config.shard_mb / 1e6):,}",
        "index, mapped": _bytes(images * INDEX_BYTES),
        "conversion, core-hours": decimal_hours(core_hours),
        f"hosts of {config.cores} cores, to convert in {config.hours:g} h": f"{hosts:,}",
        f"conversion, at ${config.core_price:g} a core-hour": f"${_round(core_hours * config.core_price)}",
        f"{config.epochs} epochs, H200-hours": decimal_hours(gpu_hours),
        f"{config.epochs} epochs on {config.gpus} H200, hours": decimal_hours(gpu_hours / config.gpus),
        f"{config.epochs} epochs, at ${config.gpu_price:g} a GPU-hour": f"${_round(gpu_hours * config.gpu_price)}",
    }


def table(config: SizingConfig, rates: Rates) -> str:
    """The sizes of one or of the known numbers of images, as a table in Markdown."""
    columns = {"images": config.images} if config.images else KNOWN
    found = {name: sizes(images, config, rates) for name, images in columns.items()}
    rows: Mapping[str, str] = next(iter(found.values()))
    lines = [f"| | {' | '.join(found)} |", "|---" * (len(found) + 1) + "|"]
    lines += [f"| {row} | {' | '.join(column[row] for column in found.values())} |" for row in rows]
    return "\n".join(lines)


def arithmetic(config: SizingConfig, rates: Rates) -> str:
    """How the first column comes about, a line a step."""
    name, images = next(iter(KNOWN.items()))
    stored, seconds = images * rates.record_bytes, images * rates.convert_seconds
    gpu_seconds = images / rates.gpu_images
    return "\n".join(
        [
            f"- stored: {images:,} x {rates.record_bytes:,.0f} bytes a record = {_bytes(stored)}; in shards of "
            f"{config.shard_mb:g} MB: {math.ceil(stored / config.shard_mb / 1e6):,}",
            f"- conversion of {name}: {images:,} x {1e3 * rates.convert_seconds:.2f} ms of a core = "
            f"{decimal_hours(seconds / 3600)} core-hours",
            f"- an epoch: {images:,} / {rates.gpu_images:,.0f} images/s = {gpu_seconds:,.0f} s of an H200",
            f"- feeding it, where the host augments: {rates.gpu_images:,.0f} images/s x "
            f"{1e3 * rates.read_seconds:.2f} ms of a core = {rates.gpu_images * rates.read_seconds:.1f} cores of that "
            "kind for each GPU",
        ]
    )


def _bytes(number: float) -> str:
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if number >= size:
            return f"{decimal(float(f'{number / size:.3g}'))} {unit}"
    return f"{number:,.0f} B"


def decimal_hours(hours: float) -> str:
    """Three digits, as many as the rates have."""
    return decimal(float(f"{hours:.3g}"))


def _round(dollars: float) -> str:
    return decimal(float(f"{dollars:.3g}"))


def main(config: SizingConfig) -> None:
    """The command: print the table, and how it comes about."""
    rates = measured()
    command_line.show(f"{table(config, rates)}\n\n{arithmetic(config, rates)}")


def cli() -> None:
    """Run as `python -m shardline.benchmarks.sizing`."""
    command_line.run(main, SizingConfig, __doc__)


if __name__ == "__main__":
    cli()
