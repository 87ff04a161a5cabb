"""BenchConfig: what shardline-benchmark measures, and how. No TensorFlow, no OpenCV."""

from __future__ import annotations

import shlex
import sys
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import ClassVar

from shardline.pipeline.config import InputConfig
from shardline.pipeline.errors import UsageError
from shardline.pipeline.options import narrowed, option, options
from shardline.trainer.config import AUTO, PRECISIONS, TrainConfig
from shardline.trainer.run_dir import read_config

SUITES = ("short", "input", "convert", "train", "baselines", "scaling", "simulated_gpu", "object_store", "all")
_NEED_IMAGES = ("convert", "baselines", "all")


@dataclass(frozen=True)
class BenchConfig(InputConfig):
    """One benchmark: `shardline.benchmarks.run.benchmark(BenchConfig(data=…, output=…))`. One field, one flag.

    The fields it inherits describe the input that the stages measure: give those of the training run. Comparisons with
    other tools state an input of their own, the same for all.
    """

    GROUPS: ClassVar = ("benchmark", "input", "augmentation", "recipe", "step", "comparison", "forecast")
    COMMON: ClassVar = (
        *("data", "run", "output", "suite", "split", "raw_images", "repeats", "validate_advice", "gpu_step_rate"),
        *("global_batch_size", "image_size", "width", "precision", "price_per_hour"),
    )

    data: str = option(
        "", "dataset directory, made by shardline-convert or shardline-adopt; also the one argument without a flag",
        positional=True, path="folder", group="benchmark",
    )  # fmt: skip
    run: str = option(
        "", "run directory of shardline-train: measure the input and the step of that run; flags beside it that "
        "are not at their defaults replace the run's",
        group="benchmark", path="folder",
    )  # fmt: skip
    output: str = option(
        "",
        "report directory, RUN/benchmark with --run; measurements are added to those it holds",
        group="benchmark",
        path="folder",
    )
    suite: str = option(
        "input", "what to measure; short takes a few minutes: all stages, with the step at width multiplier 1/8, and "
        "reading on 1 to all cores; simulated_gpu: 1 to 8 GPUs that sleep instead of working; object_store: "
        "the dataset from a store, near and 50 ms away",
        choices=SUITES, group="benchmark",
    )  # fmt: skip
    split: str = option("train", "split to read", group="benchmark")
    raw_images: str = option(
        "", "folder of photographs to convert, for the suites convert, scaling, baselines and all, and for the sample "
        "of --validate_advice",
        group="benchmark", path="folder",
    )  # fmt: skip
    repeats: int = option(5, "turns that count, after one warmup turn; everything runs once a turn", low=1,
                          group="benchmark")  # fmt: skip
    seconds: float = option(
        1.5, "duration of one run of a stage, in seconds; it does at least one batch or step", low=0.01,
        group="benchmark",
    )  # fmt: skip
    validate_advice: bool = option(
        True,
        "convert a sample of the images as advised, beside the dataset, and measure what it brings",
        group="benchmark",
    )
    profile: bool = option(
        False, "write a profiler trace of training, or of reading with --gpu_step_rate, and a summary of it",
        group="benchmark",
    )  # fmt: skip
    gpu_step_rate: float = option(
        0.0, "training rate of one GPU that is not here, in images/s; 0: measure the step on this machine", low=0,
        group="step",
    )  # fmt: skip
    step_batch_size: int = option(
        0, "samples in a replica batch of the measured step; 0: --global_batch_size, on a CPU at most 8", low=0,
        group="step",
    )  # fmt: skip
    width: float | None = option(
        None, "width multiplier of VGG16 in the measured step; default: 1, in the suite short 0.125",
        above=0, high=1, group="step",
    )  # fmt: skip
    precision: str = option(AUTO, "as shardline-train's", choices=(AUTO, *PRECISIONS), group="step")
    jit: bool | None = option(None, "as shardline-train's", group="step")
    cache_features: int = option(
        0, "suite train: views of each image to store for training a head on stored features; 0: leave this out",
        low=0, group="step",
    )  # fmt: skip
    baseline_python: str = option(
        "",
        "Python that has the packages of the other tools (the extra bench); default: this one",
        group="comparison",
        path="file",
    )
    convert_images: int = option(
        3200, "images that the fastest tool converts in a turn, copies where the folder holds fewer", low=10,
        group="comparison",
    )  # fmt: skip
    interconnect_gbps: float = option(
        0.0, "bandwidth between two GPUs, in Gbit/s, for the forecast of more of them; 0: that of NVLink or PCIe in a "
        "box of cards like the one here, without one 100, a common network between hosts",
        low=0, group="forecast",
    )  # fmt: skip
    price_per_hour: float = option(
        0.0, "price of this machine for an hour, for the cost of a million images; 0: leave it out", low=0,
        group="forecast",
    )  # fmt: skip

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.output and not self.run:
            raise UsageError("--output is missing: name the directory for results.jsonl and report.html")
        if not self.data and not self.run and self.suite != "convert":
            raise UsageError(
                "--data is missing: name a dataset directory, made by shardline-convert or shardline-adopt, or a --run"
            )
        if not self.raw_images and self.suite in _NEED_IMAGES:
            raise UsageError(f"--suite={self.suite} converts images: name a folder of them with --raw_images")
        if self.raw_images and not Path(self.raw_images).is_dir():
            raise UsageError(f"--raw_images={self.raw_images}: no such folder")
        if self.image_size < 32:
            raise UsageError(f"--image_size={self.image_size}: VGG16 halves the image five times; use at least 32")

    def resolved(self) -> BenchConfig:
        """With what --run tells in place of the defaults; without --run."""
        if not self.run:
            return self
        trained = TrainConfig.from_dict(read_config(self.run)["train"])
        told = {field.name: getattr(trained, field.name) for field in fields(InputConfig)}
        told |= {name: getattr(trained, name) for name in ("data", "precision", "jit", "width")}
        told["split"] = trained.train_split
        defaults = {field.name: field.default for field in fields(self)}
        taken = {name: value for name, value in told.items() if getattr(self, name) == defaults[name]}
        return replace(self, run="", output=self.output or str(Path(self.run, "benchmark")), **taken)

    def command(self) -> str:
        """The command line that measures this again."""
        words = ["shardline-benchmark"]
        for name, field in options(BenchConfig).items():
            value = getattr(self, name)
            if value == field.default:
                continue
            if field.kind is bool:
                words.append(f"--{name}" if value else f"--no{name}")
            else:
                words.append(f"--{name}={field.option.text(value)}")
        return shlex.join(words)

    @property
    def directory(self) -> Path:
        """`output` as a path."""
        return Path(self.output)

    @property
    def input(self) -> InputConfig:
        """What the batches are made of: the fields that are InputConfig's."""
        return narrowed(self, InputConfig)

    @property
    def step_width(self) -> float:
        """The width multiplier of the measured step. A rate that is given is that of the whole network."""
        return self.width or (0.125 if self.suite == "short" and not self.gpu_step_rate else 1.0)

    @property
    def python(self) -> str:
        """The Python of the other tools."""
        return self.baseline_python or sys.executable
