"""A folder of an object store that is written here, in a folder of this host's cache, and pushed there. No TensorFlow.

The store is the truth: `pull` makes the local folder what the store has, `push` sends what changed since. A process
that is killed in between loses what it had not pushed, and nothing else.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from shardline.pipeline.errors import UsageError
from shardline.pipeline.files import LOCK, TEMPORARY, exclusive, user_cache
from shardline.pipeline.object_store import PARALLEL, Store, StoredFile


class WorkingCopy:
    """The copy of a folder of an object store.

    Attributes:
      store: the folder there.
      folder: the folder here.
    """

    def __init__(self, url: str, folder: Path, wanted: Callable[[str], bool]) -> None:
        """Args: wanted: whether a file, by its path below the folder, is copied at all."""
        self.store, self.folder = Store(url), folder
        self._wanted = wanted
        self._known: dict[str, tuple[int, int]] = {}  # bytes and time of each file that is the same on both sides

    def pull(self, names: Callable[[str], bool] = lambda name: True) -> dict[str, StoredFile]:
        """Make the local folder what the store has of the wanted files of these names; all files that are there.

        Raises:
          Failure: the store gave no answer.
        """
        for entry in os.scandir(self.folder):
            shutil.rmtree(entry) if entry.is_dir(follow_symlinks=False) else os.unlink(entry)
        self._known = {}
        found = self.store.files()
        with ThreadPoolExecutor(PARALLEL) as pool:
            wanted = [name for name in found if name != LOCK and self._wanted(name) and names(name)]
            list(pool.map(lambda name: self._fetch_listed(name, found[name]), wanted))
        return found

    def _fetch_listed(self, name: str, file: StoredFile) -> None:
        try:
            self.fetch(name)
        except FileNotFoundError:
            if file.size:  # else it is what consoles make a folder of
                raise

    def fetch(self, name: str) -> Path:
        """Where a file lies, once it was copied from the store. Raises FileNotFoundError."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        self.store.fetch(name, path)
        self._known[name] = _facts(path)
        return path

    def push(self, first: str = "") -> None:
        """Write what is new or changed here to the store, then delete there what was on both sides and is gone here.

        Args:
          first: name of a file that is written before all others.

        Raises:
          Failure: the store gave no answer.
        """
        here = {name: _facts(self.folder / name) for name in self._names()}
        changed = [name for name, facts in here.items() if self._known.get(name) != facts]
        if first in changed:
            changed.remove(first)
            self.store.put(first, self.folder / first)
        with ThreadPoolExecutor(PARALLEL) as pool:
            list(pool.map(lambda name: self.store.put(name, self.folder / name), changed))
        gone = [name for name in self._known if name not in here]
        self.store.delete(gone)
        self._known = here

    def _names(self) -> Iterator[str]:
        for folder, _, files in os.walk(self.folder):
            for file in files:
                name = os.path.relpath(os.path.join(folder, file), self.folder)
                if not file.endswith(TEMPORARY) and file != LOCK and self._wanted(name):
                    yield name


def _facts(path: Path) -> tuple[int, int]:
    facts = path.stat()
    return facts.st_size, facts.st_mtime_ns


@contextlib.contextmanager
def working_copy(url: str, kind: str, what: str, wanted: Callable[[str], bool]) -> Iterator[WorkingCopy]:
    """A copy of an address in the user's cache, of this process alone while the context lasts; pull it first.

    Args:
      url: the address.
      kind: name of a folder of the cache.
      what: the flag and its value, for a message.
      wanted: see `WorkingCopy`.

    Raises:
      UsageError: the cache cannot be written.
      Failure: another process of this host has it.
    """
    parent = user_cache() / kind / hashlib.sha256(url.encode()).hexdigest()[:32]
    folder = parent / os.path.basename(url)
    with contextlib.ExitStack() as stack:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            stack.enter_context(exclusive(parent / LOCK, what))
        except OSError as error:
            raise UsageError(
                f"{folder}: {error.strerror}; name a cache that can be written by XDG_CACHE_HOME"
            ) from None
        yield WorkingCopy(url, folder, wanted)
        shutil.rmtree(folder, ignore_errors=True)  # not after an error: it may hold what could not be pushed
