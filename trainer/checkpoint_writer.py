"""Writes a run's checkpoints in a thread of its own, one after another: training waits for the copy alone.

A checkpoint is on disk some seconds after its step, whole; a kill before that continues from the one before, to the
same bits. No TensorFlow.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from shardline.pipeline.files import sync_directory, temporary_path
from shardline.trainer.checkpoints import best_path, checkpoint_path, list_checkpoints, write_checkpoint


class CheckpointWriter:
    """The checkpoints of one run directory. A context: leaving it waits for the last of them."""

    def __init__(self, workdir: str, keep: int, after: Callable[[], None] = lambda: None) -> None:
        """Args: keep: how many numbered checkpoints stay; after: called when one was written."""
        self._workdir, self._keep, self._after = workdir, keep, after
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoints")
        self._writing: Future[None] | None = None

    def write(self, step: int, header: Mapping[str, Any], arrays: Mapping[str, np.ndarray], *, best: bool) -> None:
        """Begin to write the checkpoint of a step; `best`: also as the best one. Waits for the one before.

        Args:
          arrays: copies of the variables' values, which nobody changes any more.

        Raises:
          Failure: the one before could not be written.
        """
        self.wait()
        self._writing = self._thread.submit(self._write, step, dict(header), arrays, best)

    def check(self) -> None:
        """Raises Failure if the writing that began last has failed by now."""
        if self._writing and self._writing.done():
            self.wait()

    def wait(self) -> None:
        """Wait until nothing is being written. Raises Failure when that could not be."""
        writing, self._writing = self._writing, None
        if writing:
            writing.result()

    def __enter__(self) -> CheckpointWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            with contextlib.suppress(*((Exception,) if kind else ())):  # the first failure is the one to tell
                self.wait()
        finally:
            self._thread.shutdown()

    def _write(self, step: int, header: dict[str, Any], arrays: Mapping[str, np.ndarray], best: bool) -> None:
        path = checkpoint_path(self._workdir, step)
        write_checkpoint(path, header, arrays)
        if best:  # after the numbered one, so that no header is older than the best is
            keep_best(path, best_path(self._workdir), header, arrays)
        # Those after this one could not be read, or the run would have continued from them: they do not count.
        numbered = list_checkpoints(self._workdir)
        written = numbered[: numbered.index(path) + 1] if path in numbered else []
        for old in written[: -self._keep]:
            old.unlink()
        self._after()


def keep_best(path: Path, best: Path, header: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
    """Give a checkpoint's file the name of the best, too; or, on a file system without hard links, write it again."""
    try:
        link(path, best)
    except OSError:
        write_checkpoint(best, header, arrays)


def link(path: Path, name: Path) -> None:
    """Give a file a second name, in place of what had it. Raises OSError."""
    temporary = temporary_path(name)
    os.link(path, temporary)
    os.replace(temporary, name)
    temporary.unlink(missing_ok=True)  # which os.replace leaves where both are the same file already
    sync_directory(name.parent)
