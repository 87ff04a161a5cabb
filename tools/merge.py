"""Join datasets into one: shards by hard link under new names, records unchanged wherever the labels allow.

    shardline-merge flowers more_flowers --output all
    shardline-merge grown --output flat         # one folder of a dataset that was added to with --append

All have to be made with the same image options. Classes are united by name: those of the first dataset keep their
numbers, new ones come after. Shards of a dataset whose classes get other numbers are copied with those; all others are
linked, or copied where the disks differ. Records of adopted datasets are never rewritten. The last line on stdout is
the digest of the result, which depends on the datasets, their order and --name alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from shardline.pipeline import cli as command_line
from shardline.pipeline.errors import UsageError
from shardline.pipeline.options import check_options, option

if TYPE_CHECKING:
    from shardline.pipeline.manifest import Manifest


@dataclass(frozen=True)
class MergeConfig:
    """What to join: `merge(MergeConfig(data=…, output=…))`. One field, one flag."""

    data: tuple[str, ...] = option(
        (), "dataset directory; may be repeated, and given without the flag: their order is that of the result",
        positional=True, path="folder",
    )  # fmt: skip
    output: str = option("", "folder for the result; new or empty", path="folder")
    name: str = option("", "name of the result, the start of every shard's name; default: the first dataset's")
    merge_similar_labels: bool = option(
        False,
        "make one class of names that differ in case, spaces or Unicode form only; by default they end the run",
    )
    duplicates: str = option(
        "note", "what to do about images of equal pixels in several of the datasets: say so, or end the run",
        choices=("note", "fail"),
    )  # fmt: skip

    def __post_init__(self) -> None:
        check_options(self)
        if not self.data:
            raise UsageError("--data is missing: name the dataset directories to join")
        if not self.output:
            raise UsageError("--output is missing: name the folder to write the result to")


def merge(config: MergeConfig) -> Manifest:
    """Join datasets; returns the manifest of the result.

    Raises:
      UsageError: there is no such dataset, they do not fit together, or the output holds something else.
      Failure: an image is in several of them, which `duplicates` forbids, or a dataset is being replaced.
    """
    from shardline.tools.conversion import merging  # pyarrow: not for --help

    return merging.merge(
        config.data,
        config.output,
        name=config.name,
        merge_similar=config.merge_similar_labels,
        refuse_duplicates=config.duplicates == "fail",
    )


def main(config: MergeConfig) -> None:
    """The command: join, and print the digest."""
    command_line.show(merge(config).digest)


def cli() -> None:
    """Run the console script `shardline-merge`."""
    command_line.run(main, MergeConfig, __doc__)


if __name__ == "__main__":
    cli()
