"""DatasetConfig: what the commands that look at one finished dataset share. No TensorFlow."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from shardline.pipeline.errors import UsageError
from shardline.pipeline.options import check_options, option


def check_sources(sources: Sequence[str]) -> None:
    """Raise UsageError unless all folders of `--sources` are there."""
    for source in sources:
        if not os.path.isdir(source):
            raise UsageError(f"--sources={source}: no such folder; give the folder that was converted, unpacked")


@dataclass(frozen=True)
class DatasetConfig:
    """A config with the field `data`, which a command also takes as its one argument: `shardline-verify DIR`."""

    data: str = option(
        "", "dataset directory; may also be given without the flag, as the one argument", positional=True, path="folder"
    )

    def __post_init__(self) -> None:
        check_options(self)
        if not self.data:
            raise UsageError("--data is missing: name a dataset directory")

    @property
    def directory(self) -> Path:
        """`data` as a path."""
        return Path(self.data)
