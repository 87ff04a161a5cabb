"""A command with a field of every kind, for the tests of options and command lines.

    python -m tests.pipeline.command --size 3 --mode fast

A second paragraph that is longer than eighty characters, so that a narrow terminal has to see it wrapped to its width.
"""

import errno
import os
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from shardline.pipeline import cli as command_line
from shardline.pipeline.errors import Failure, UsageError
from shardline.pipeline.files import atomic_write
from shardline.pipeline.options import check_options, option, pair, pair_text


@dataclass(frozen=True)
class BaseConfig:
    """What other configs share."""

    size: int = option(256, "length of the short side, in pixels", low=1, high=1000, group="images")
    seed: int = option(0, "seed of everything", low=0, group="images")

    def __post_init__(self):
        check_options(self)
        if self.size == 13:
            raise UsageError(f"--size={self.size}: brings bad luck; use --size=14, or --mode=slow")


@dataclass(frozen=True)
class CommandConfig(BaseConfig):
    """A field of every kind."""

    GROUPS: ClassVar = ("images", "work")

    ratio: tuple[float, float] = option((3 / 4, 4 / 3), "least and largest ratio", parse=pair, text=pair_text)
    rate: float = option(0.5, "share of something", above=0, below=1)
    pause: float = option(-1.0, "seconds to wait; -1: as long as it takes", low=0, also=(-1,))
    mode: str = option("slow", "how to work", choices=("slow", "fast"), group="work")
    fail: str = option("", "what goes wrong", group="work")
    quiet: bool = option(False, "say nothing", group="work")
    limit: int | None = option(None, "records at most; default: all", low=1, group="work")
    inputs: tuple[str, ...] = option((), "files to read", positional=True, group="work", path="any")
    folder: str = option("", "folder to write to", group="work", path="folder")
    table: str = option("none", "file to write, or none", group="work", path="file")
    hidden: int = option(7, "for Python only", flag=False)


ERRORS = {
    "memory": MemoryError(),
    "no-space": OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/a/file"),
    "read-only": OSError(errno.EROFS, os.strerror(errno.EROFS), Path("/a/file")),
    "permission": PermissionError(errno.EACCES, os.strerror(errno.EACCES), b"/a/\x1b[31m"),
    "stale": OSError(errno.ESTALE, os.strerror(errno.ESTALE), "/a/file"),
    "device": type("ResourceExhaustedError", (Exception,), {})("OOM when allocating a tensor\n2nd line"),
    "threads": RuntimeError("can't start new thread"),
    "odd": OSError("words of a library\nin two lines"),
    "pipe": BrokenPipeError(errno.EPIPE, "Broken pipe"),  # of another program than the one that reads us
}


def main(config: CommandConfig) -> None:
    """Do what `--fail` says, or print the config."""
    if config.fail == "usage":
        raise UsageError("--fail=usage: wrong; use another \x1b[31m")
    if config.fail == "failure":
        raise Failure("it broke; try --fail=usage")
    if config.fail == "os":
        Path("/nonexistent/file").read_bytes()
    if config.fail in ERRORS:
        raise ERRORS[config.fail]
    if config.fail == "full":
        atomic_write("/dev/shm/" + 300 * "x", "")
    if config.fail == "talk":
        for line in range(10**6):
            print(line)
    if config.fail == "stop":
        raise KeyboardInterrupt
    if config.fail == "bug":
        raise ZeroDivisionError
    if config.fail == "tensorflow":
        command_line.import_tensorflow().zeros(1)
    if not config.quiet:
        print(config)


def cli() -> None:
    """Run the command."""
    command_line.run(main, CommandConfig, __doc__)


if __name__ == "__main__":
    cli()
