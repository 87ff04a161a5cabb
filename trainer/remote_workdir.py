"""Run directories in object stores: a copy of this host's is written, and sent there after each checkpoint; or read.

No TensorFlow.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

from shardline.pipeline.cli import log
from shardline.pipeline.errors import Failure, UsageError
from shardline.pipeline.evaluation_files import METRICS
from shardline.pipeline.files import LOCK
from shardline.pipeline.object_store import ATTEMPTS, Store
from shardline.pipeline.paths import is_remote
from shardline.pipeline.progress import saying
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
            raise UsageError(f"{what} is not empty and no run directory of shardline; choose another folder")
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


@lru_cache
def local_run(run: str) -> Path:
    """Where a run, or an evaluation, can be read: of an address, a copy that goes when this process ends.

    Raises:
      UsageError: neither lies at the address.
      Failure: the store gives no answer.
    """
    if not is_remote(run):
        return Path(run)
    if not Store(run).files().keys() & {CONFIG_FILE, METRICS}:
        raise UsageError(
            f"{run}: no {CONFIG_FILE} there, so it is no run directory; give a --workdir of shardline-train"
        )
    parent = tempfile.mkdtemp(prefix="shardline-")
    atexit.register(shutil.rmtree, parent, ignore_errors=True)
    folder = Path(parent, os.path.basename(run))
    folder.mkdir()
    copy = WorkingCopy(
        run, folder, lambda name: not name.startswith("features/") and not name.endswith((".html", ".keras"))
    )
    with saying(f"fetching {run}"):
        for _ in range(ATTEMPTS):
            with contextlib.suppress(FileNotFoundError):  # a checkpoint that training has deleted since it was listed
                copy.pull()
                return folder
    raise Failure(f"{run} changes while it is read; try again when its training has ended")


def runs_of(folder: str) -> list[str]:
    """The addresses of the runs in a folder of an object store, by name; its own where it is a run or an evaluation."""
    names = Store(folder).files().keys()
    inside = sorted(f"{folder}/{name[: -len(CONFIG_FILE) - 1]}" for name in names if _is_run(name))
    return [folder] if {CONFIG_FILE, METRICS} & names or not inside else inside


def _is_run(name: str) -> bool:
    return name.count("/") == 1 and name.endswith(f"/{CONFIG_FILE}")
