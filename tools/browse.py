"""Look through a dataset in a browser: filter its images, see what was set aside and why, and what a run mistook.

    shardline-browse data
    shardline-browse data --run run             # right and wrong, and how sure the model was
    shardline-browse data --sources photos      # also shows what was not stored: quarantined, filtered, duplicates

Prints the address of a page that this machine alone can open, and serves it until Ctrl-C. On another machine, forward
the port first: ssh -L PORT:127.0.0.1:PORT HOST.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from shardline.pipeline import cli as command_line
from shardline.pipeline.errors import UsageError
from shardline.pipeline.options import option
from shardline.tools.dataset_config import DatasetConfig, check_sources

if TYPE_CHECKING:
    from shardline.tools.browse_server import Server


@dataclass(frozen=True)
class BrowseConfig(DatasetConfig):
    """What to look through, and where the page is served: `browse(BrowseConfig(data=…))`. One field, one flag."""

    data: str = option(
        "", "dataset to look through: directory, s3://… or gs://…; also the one argument without a flag",
        positional=True, path="dataset",
    )  # fmt: skip
    run: str = option(
        "",
        "run directory whose evaluations tell mistakes and confidence, or an evaluation's own; empty: none",
        path="folder",
    )
    sources: tuple[str, ...] = option(
        (),
        "folder that was converted: shows the inputs that were not stored; may be repeated; empty: their names and "
        "reasons alone",
        path="folder",
    )
    port: int = option(0, "port of the page on this machine; 0: any free one", low=0, high=65535)
    open: bool = option(False, "open the page in the browser of this desktop")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_sources(self.sources)
        if self.run and not os.path.isdir(self.run):
            raise UsageError(f"--run={self.run}: no such directory; give a --workdir of shardline-train")


def browse(config: BrowseConfig) -> Server:
    """A server of the page, bound to its port: `serve_forever` serves it, `server_close` ends it, `url` is its address.

    Raises:
      UsageError: there is no such dataset or evaluation, a file of it is damaged, or the port is taken.
    """
    from shardline.pipeline.dataset import open_dataset  # OpenCV, pyarrow: not for --help
    from shardline.tools.browse_index import read_index
    from shardline.tools.browse_server import Server
    from shardline.tools.browse_site import Site

    data = open_dataset(config.data)
    index = read_index(data, config.run)
    data.read_pieces()
    try:
        return Server(Site(index, config.sources), config.port)
    except OSError as error:
        raise UsageError(f"--port={config.port}: {error.strerror}; use another, or 0 for any free one") from None


def main(config: BrowseConfig) -> None:
    """The command: print the address, and serve the page until Ctrl-C."""
    with browse(config) as server:
        print(server.url, flush=True)
        command_line.log("Ctrl-C ends it")
        if config.open:
            import webbrowser

            webbrowser.open(server.single_use_url())
        server.serve_forever()


def cli() -> None:
    """Run the console script `shardline-browse`."""
    command_line.run(main, BrowseConfig, __doc__)


if __name__ == "__main__":
    cli()
