"""Train a VGG16 on a dataset made by shardline-convert, on one device or many; run again after any kill, it continues.

    shardline-train --data DIR --workdir RUN --weights imagenet --phases "head:5@1e-2,all:10@1e-3"

The run directory gets config.json, metrics.jsonl, checkpoints/, plots/ and, at the end, model.keras: uint8 RGB
images in, probabilities out.
"""

from __future__ import annotations

from dataclasses import dataclass

from shardline.pipeline import cli as command_line
from shardline.pipeline.errors import UsageError
from shardline.pipeline.options import narrowed, option
from shardline.trainer.config import TrainConfig


@dataclass(frozen=True)
class TrainCommand(TrainConfig):
    """A run, and what to do with it: train, or one of the searches and checks."""

    allow_changes: bool = option(False, "continue a run under other flags than it was started with", group="run")
    dry_run: bool = option(False, "check everything, print what would happen, and stop", group="run")
    find_lr: bool = option(False, "search for a learning rate: a plot and a suggestion", group="run")
    find_batch: bool = option(False, "search for the largest batch that fits one device", group="run")
    selftest: bool = option(False, "check the trainer on this machine, in under two minutes", group="run")

    def __post_init__(self) -> None:
        super().__post_init__()
        chosen = [name for name in ("dry_run", "find_lr", "find_batch", "selftest") if getattr(self, name)]
        if len(chosen) > 1:
            raise UsageError(f"--{' and --'.join(chosen)}: choose one of them")


def train(config: TrainConfig, *, allow_changes: bool = False) -> None:
    """Train, or continue from the newest checkpoint, and save the model in `config.workdir`."""
    from shardline.trainer import run  # TensorFlow takes seconds to import

    run.train(config, allow_changes=allow_changes)


def main(command: TrainCommand) -> None:
    """The command: train, or carry out the one search or check that was asked for."""
    command_line.import_tensorflow()
    from shardline.trainer import selftest, tuning  # TensorFlow takes seconds to import

    config = narrowed(command, TrainConfig)
    if command.selftest:
        selftest.selftest(config)
    elif command.dry_run:
        tuning.dry_run(config)
    elif command.find_lr:
        tuning.find_lr(config)
    elif command.find_batch:
        tuning.find_batch(config)
    else:
        train(config, allow_changes=command.allow_changes)


def cli() -> None:
    """Run the console script `shardline-train`."""
    command_line.run(main, TrainCommand, __doc__)


if __name__ == "__main__":
    cli()
