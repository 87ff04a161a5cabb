"""Convert raw images into TFRecord shards with a manifest, indexes, a ledger, a report and TFDS metadata.

    shardline-convert --source photos --output data --splits train=0.9,validation=0.1

--source is a folder of class folders, a folder of split folders (train, validation, test) of class folders, a .csv,
.tsv or .parquet table with the columns path,label[,split][,group], or tfds:NAME[:VERSION]. Broken images are set
aside with a reason. An interrupted run continues where it stopped when the same command is given again. The same
sources and options give the same bytes for any number of workers. The last line on stdout is the dataset's digest.
"""

from __future__ import annotations

import errno
import os
import signal
from typing import TYPE_CHECKING

from shardline.pipeline import cli as command_line
from shardline.pipeline.errors import Failure, UsageError
from shardline.tools.conversion.config import ConvertConfig

if TYPE_CHECKING:
    from shardline.pipeline.manifest import Manifest
    from shardline.tools.conversion.estimate import Estimate

__all__ = ["ConvertConfig", "convert", "estimate"]


def convert(config: ConvertConfig) -> Manifest:
    """Convert, or continue an interrupted conversion; returns the manifest of the finished dataset.

    Raises:
      UsageError: a source, folder or option that cannot work.
      Failure: the conversion cannot go on, e.g. on a full disk; the same call continues it.
    """
    from shardline.tools.conversion import run  # OpenCV and pyarrow: not for --help

    if config.dry_run:
        raise UsageError("--dry_run writes nothing: call estimate() with this config, or convert() without it")
    try:
        return run.convert(config)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        raise Failure(
            f"--output={config.output}: {os.strerror(error.errno)}; free some space and run the same command again, it "
            "continues where it stopped"
        ) from None


def estimate(config: ConvertConfig) -> Estimate:
    """Convert a sample and tell what the whole would give; writes nothing.

    Raises:
      UsageError: a source or option that cannot work.
    """
    from shardline.tools.conversion import run  # OpenCV and pyarrow: not for --help

    return run.dry_run(config)


def main(config: ConvertConfig) -> None:
    """The command: convert and print the digest, or print a dry run's estimate."""
    command_line.stop_on_sigterm()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a process started with & inherits it ignored
    command_line.show(str(estimate(config)) if config.dry_run else convert(config).digest)


def cli() -> None:
    """Run the console script `shardline-convert`."""
    command_line.run(main, ConvertConfig, __doc__)


if __name__ == "__main__":
    cli()
