"""Train a VGG16 on a dataset made by shardline-convert, on one device or many; run again after any kill, it continues.

    shardline-train --data DIR --workdir RUN --weights imagenet --phases "head:5@1e-2,all:10@1e-3"

The run directory gets config.json, metrics.jsonl, checkpoints/, plots/ and, at the end, model.keras: uint8 RGB
images in, probabilities out.
"""

from __future__ import annotations

from absl import flags

from shardline.pipeline import cli as command
from shardline.trainer import config as configuration

configuration.define_flags()
flags.adopt_module_key_flags(configuration)
flags.DEFINE_boolean("allow_changes", False, "continue a run under other flags than it was started with")
flags.DEFINE_boolean("dry_run", False, "check everything, print what would happen, and stop")
flags.DEFINE_boolean("find_lr", False, "search for a learning rate: an image and a suggestion")
flags.DEFINE_boolean("find_batch", False, "search for the largest batch that fits one device")
flags.DEFINE_boolean("selftest", False, "check the trainer on this machine, in under two minutes")


def main() -> None:
    """Flags to one config to one call."""
    config = configuration.from_flags()
    chosen = [name for name in ("dry_run", "find_lr", "find_batch", "selftest") if flags.FLAGS[name].value]
    if len(chosen) > 1:
        raise command.UsageError(f"--{' and --'.join(chosen)}: choose one of them")
    command.import_tensorflow()
    from shardline.trainer import run, selftest, tuning  # here, because TensorFlow takes seconds to import

    if flags.FLAGS.selftest:
        selftest.selftest(config)
    elif flags.FLAGS.dry_run:
        tuning.dry_run(config)
    elif flags.FLAGS.find_lr:
        tuning.find_lr(config)
    elif flags.FLAGS.find_batch:
        tuning.find_batch(config)
    else:
        run.train(config, allow_changes=flags.FLAGS.allow_changes)


def cli() -> None:
    """Entry point of shardline-train."""
    command.run(main)


if __name__ == "__main__":
    cli()
