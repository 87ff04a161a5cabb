"""Run directories in object stores: a copy of this host's is written, and sent there after each checkpoint.

No TensorFlow.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import replace

from shardline.pipeline.cli import log
from shardline.pipeline.errors import Failure, UsageError
from shardline.pipeline.files import LOCK
from shardline.pipeline.paths import is_remote
from shardline.pipeline.run_input import CONFIG_FILE
from shardline.pipeline.working_copy import WorkingCopy, working_copy
from shardline.trainer.config import TrainConfig
from shardline.trainer.hosts import find_hosts


@contextlib.contextmanager
def local_workdir(config: TrainConfig) -> Iterator[tuple[TrainConfig, Callable[[], None]]]:
    """The config with a run directory of this host, and what sends it to the store after each checkpoint.

    It is sent at the end, too. A run directory of this host is left as it is. Of many hosts, the first alone has one.

    Raises:
      UsageError: something else lies at the address.
      Failure: another process trains there, or the store gives no answer at the start or at the end. In between that is
        said, and tried again after the next checkpoint.
    """
    url, what = config.workdir, f"--workdir={config.workdir}"
    if not is_remote(url):
        yield config, lambda: None
        return
    if find_hosts(config).own:
        yield replace(config, workdir=""), lambda: None
        return
    with working_copy(url, "runs", what, lambda name: not name.startswith("features/")) as copy, copy.store.own(what):
        files = copy.store.files().keys() - {LOCK}
        if files and CONFIG_FILE not in files:
            raise UsageError(f"{what} is not empty and not a run of ours; choose another folder")
        copy.pull()
        try:
            yield replace(config, workdir=str(copy.folder)), lambda: _push(copy)
        except BaseException:
            _push(copy)  # the first failure is the one to tell
            raise
        copy.push(CONFIG_FILE)
        log(f"the run directory is {url}")


def _push(copy: WorkingCopy) -> None:
    try:
        copy.push(CONFIG_FILE)  # by which the folder is known to be a run's
    except Failure as error:
        log(f"warning: {error}; what was not sent lies in {copy.folder}")
