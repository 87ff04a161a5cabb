"""A folder of an object store as a source. No TensorFlow."""

from __future__ import annotations

import os
from concurrent.futures import Future, ThreadPoolExecutor

from shardline.pipeline.errors import UsageError
from shardline.pipeline.object_store import Store, StoredFile
from shardline.pipeline.source_files import STORE, Origin, Place
from shardline.tools.conversion.sources import hash64
from shardline.tools.conversion.trees import IMAGE_SUFFIXES, Entry, has_image, is_left_behind

_AT_ONCE = 32  # folders that are listed


class StoreTree:
    """A folder of an object store: gives what a copy of it on disk does.

    A folder's listing is asked for when the one above it is there, many at a time, and kept: some 300 bytes a file.
    """

    is_archive = is_mounted = False

    def __init__(self, url: str) -> None:
        self.origins = (Origin(url, STORE),)
        self._store = Store(url)
        self._pool = ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="list")
        self._listings: dict[bytes, Future[list[Entry]]] = {}
        self._hidden: set[bytes] = set()
        if not self.entries(b""):
            raise UsageError(f"--source={url}: nothing is there; check the address")

    def entries(self, folder: bytes) -> list[Entry]:
        """See `Tree`."""
        entries = self._listing(folder).result()
        for entry in entries:
            if entry.is_folder:
                self._listing(os.path.join(folder, entry.name))
        return list(entries)

    def hidden_images(self) -> list[bytes]:
        """See `trees.SourceTree`."""

        def images(folder: bytes) -> bool:
            return has_image(map(str.encode, self._store.entries(folder.decode())[1]))

        hidden = sorted(self._hidden)
        return [folder for folder, found in zip(hidden, self._pool.map(images, hidden), strict=True) if found]

    def _listing(self, folder: bytes) -> Future[list[Entry]]:
        if folder not in self._listings:
            self._listings[folder] = self._pool.submit(self._list, folder)
        return self._listings[folder]

    def _list(self, folder: bytes) -> list[Entry]:
        folders, files = self._store.entries(folder.decode())
        found = {name.encode(): _entry(name.encode(), file) for name, file in files.items()}
        for name in map(str.encode, folders):  # one that is called as an image is a file gone wrong, as on disk
            found[name] = Entry(name, not name.lower().endswith(IMAGE_SUFFIXES), place=Place(0))
            if name.startswith(b"."):
                self._hidden.add(os.path.join(folder, name))
        return sorted(entry for name, entry in found.items() if not is_left_behind(name))


def _entry(name: bytes, file: StoredFile) -> Entry:
    return Entry(name, False, file.size, etag_stamp(file), Place(0))


def etag_stamp(file: StoredFile, path: str = "") -> int:
    """A number that changes when a file is written again: what `file_stamp` is for one on disk.

    Args:
      path: tells files of equal content apart.
    """
    return hash64(f"{path}\0{file.etag}\0{file.size}".encode()) or 1
