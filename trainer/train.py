"""Train a VGG16 on a dataset made by shardline-convert, on one device or many; run again after any kill, it continues.

    shardline-train --data DIR --workdir RUN --weights imagenet --phases "head:5@1e-2,all:10@1e-3"
    shardline-train --config RUN/config.json --workdir RUN2     # that run again; without --workdir, continue it

The run directory gets config.json, metrics.jsonl, report.html (written anew at each evaluation), checkpoints/, plots/
and, at the end, model.keras: uint8 RGB images in, probabilities out.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shardline.pipeline import cli as command_line
from shardline.pipeline.errors import UsageError
from shardline.pipeline.options import narrowed, option
from shardline.trainer.checks import check_weights_file
from shardline.trainer.config import TrainConfig
from shardline.trainer.data import banner, choose_eval_split, open_data
from shardline.trainer.hosts import find_hosts
from shardline.trainer.run_dir import CONFIG_FILE
from shardline.trainer.trackers import check_trackers
from shardline.trainer.xla import start_tensorflow

if TYPE_CHECKING:
    import keras

    from shardline.trainer.callbacks import Callback


@dataclass(frozen=True)
class TrainCommand(TrainConfig):
    """A run, and what to do with it: train, or one of the searches and checks."""

    allow_changes: bool = option(False, "continue a run under other flags than it was started with", group="run")
    dry_run: bool = option(False, "check everything, print what would happen, and stop", group="run")
    find_lr: bool = option(False, "learning-rate range test: plot loss over rate, suggest a rate", group="run")
    find_batch: bool = option(False, "find the largest batch that fits one device", group="run")
    selftest: bool = option(False, "check the trainer on this machine, in under two minutes", group="run")

    def __post_init__(self) -> None:
        super().__post_init__()
        chosen = [name for name in ("dry_run", "find_lr", "find_batch", "selftest") if getattr(self, name)]
        if len(chosen) > 1:
            raise UsageError(f"--{' and --'.join(chosen)}: choose one of them")

    @classmethod
    def from_stored(cls, content: dict[str, Any], path: str) -> dict[str, Any]:
        """The settings in a file of `--config`; of a run's config.json, those of the run, in its own directory."""
        run = content.get("train")
        return run | {"workdir": str(Path(path).parent)} if isinstance(run, dict) else content


def train(
    config: TrainConfig,
    *,
    allow_changes: bool = False,
    callbacks: Sequence[Callback | keras.callbacks.Callback] = (),
) -> dict[str, Any] | None:
    """Train, or continue from the newest checkpoint, and save the model in `config.workdir`.

    In any thread, in a notebook, and as often as wanted in one process. Only the main thread hears signals.

    Args:
      callbacks: are told of metrics and may end the run: see `callbacks.Callback`. Those of Keras work as they are.

    Returns:
      The result: step, finished, epoch, choice, weights_sha256 and evaluation of the weights in model.keras; last_step
      and images_per_second of the run (None where no step but the first was made). Of a run that a callback ended the
      same, of its last or best checkpoint, and `stopped_by`; the same call continues it. None where there was nothing
      to do, and on all hosts but the first.

    Raises:
      UsageError: a setting, the data or the run directory is wrong; the message names the field.
      Failure: training broke, e.g. its loss is not finite, or a callback did, which the message names.
      Interrupted: SIGINT or SIGTERM stopped it before its end; the same call continues it.
      SystemExit: a callback called sys.exit; it has ended as one that a callback ended, and the same call continues it.
    """
    from shardline.trainer import run  # TensorFlow takes seconds to import

    return run.train(config, allow_changes=allow_changes, callbacks=callbacks)


def main(command: TrainCommand) -> None:
    """The command: train, or carry out the one search or check that was asked for."""
    config = narrowed(command, TrainConfig)
    if not command.selftest:
        announce(config, needs_workdir=not (command.dry_run or command.find_batch))
    start_tensorflow(deterministic=command.deterministic, jit=command.jit is not False)
    from shardline.trainer import selftest, tuning  # TensorFlow takes seconds to import

    if command.selftest:
        selftest.selftest(config)
    elif command.dry_run:
        print(tuning.dry_run(config))
    elif command.find_lr:
        print(json.dumps(tuning.find_lr(config)))
    elif command.find_batch:
        print(json.dumps(tuning.find_batch(config)))
    elif result := train(config, allow_changes=command.allow_changes):
        print(json.dumps(result))


def announce(config: TrainConfig, *, needs_workdir: bool) -> None:
    """Refuse what can be refused without TensorFlow, and say what will be done.

    Of many hosts, all together refuse what only one of them lacks: later.
    """
    if len(find_hosts(config).addresses) > 1:
        return
    if needs_workdir and not config.workdir:
        raise UsageError("--workdir is missing: give a directory for the run's checkpoints, metrics and model")
    check_trackers(config)
    if not needs_workdir or not Path(config.workdir, CONFIG_FILE).exists():  # a run that goes on needs them no more
        check_weights_file(config.weights)
    data = open_data(config)
    command_line.log(banner(config, data, choose_eval_split(config, data)))
    if data and needs_workdir:
        data.start_workers(config)


def cli() -> None:
    """Run the console script `shardline-train`."""
    command_line.run(main, TrainCommand, __doc__)


if __name__ == "__main__":
    cli()
