"""Datasets in object stores: a folder of this host that fills with the shards that are read. No TensorFlow.

Manifest and indexes are copied when a dataset is opened. A shard is copied whole when it is first read, held against
the manifest's SHA-256, and from then on read as any local file, by all processes of the host. The folder is named by
the dataset's digest: whatever becomes of the bucket, what lies there is right.

pyarrow talks to the stores. Credentials, region and endpoint come from the usual environment: AWS_ACCESS_KEY_ID,
AWS_PROFILE, AWS_REGION, AWS_ENDPOINT_URL, …; GOOGLE_APPLICATION_CREDENTIALS.
"""

from __future__ import annotations

import atexit
import contextlib
import hashlib
import logging
import os
import queue
import re
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from shardline.pipeline.errors import Failure, UsageError
from shardline.pipeline.files import LOCK, atomic_write, atomic_writer, exclusive, user_cache
from shardline.pipeline.manifest import FILE_NAME, Manifest, Shard, index_path, refuse_faults, shard_path
from shardline.pipeline.options import option
from shardline.pipeline.stored import LIMIT_BYTES
from shardline.pipeline.text import display
from shardline.pipeline.wording import count

if TYPE_CHECKING:
    from pyarrow.fs import FileSystem

_log = logging.getLogger(__name__)

T = TypeVar("T")

ATTEMPTS = 4  # for each file, beside those that pyarrow makes for each request
PARALLEL = 8  # files that are fetched at once
_PAUSE_SECONDS = 0.5  # before the second attempt; doubled for each further one
_PIECE_BYTES = 8 << 20
_FREE_SHARE = 0.9  # of the disk's free space, that copies may take
_TIMEOUT_SECONDS = 5.0  # for a fetcher to end
_FOLDER = re.compile("[0-9a-f]{32}")  # the start of a digest


@dataclass(frozen=True)
class DataCacheOptions:
    """Which generation of a dataset is read, where copies of shards from an object store are kept, and how many."""

    data_cache: str = option(
        "", "local folder for shards of --data=s3://… or gs://…; default: shardline/data in your cache folder",
        group="input", path="folder",
    )  # fmt: skip
    data_cache_gb: float = option(
        0.0, "GB of shards kept in --data_cache, the oldest go first; 0: nine tenths of the free space",
        low=0, group="input",
    )  # fmt: skip
    generation: int = option(
        0, "generation of --data, of a dataset that was added to, counted from 1; 0: the last one", low=0, group="input"
    )


class Store:
    """A folder of an object store. Its methods raise FileNotFoundError, and Failure once the store has failed often.

    Args:
      url: s3://BUCKET/FOLDER or gs://BUCKET/FOLDER.
    """

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")

    def read(self, name: str) -> bytes:
        """The content of a file of a sane size."""
        return self._tried(name, lambda: b"".join(self._pieces(name, LIMIT_BYTES)))

    def fetch(self, name: str, target: Path, sha256: str = "") -> None:
        """Copy a file, whole or not at all. What has another SHA-256 is fetched again."""

        def copy() -> None:
            found = hashlib.sha256()
            with atomic_writer(target) as file:
                for piece in self._pieces(name):
                    found.update(piece)
                    file.write(piece)
                if sha256 and found.hexdigest() != sha256:
                    raise _StoreError("its SHA-256 is not the one in the manifest")

        self._tried(name, copy)

    def sizes(self) -> dict[str, int]:
        """Bytes of every file, by its path from here on."""
        from pyarrow.fs import FileSelector

        def listed() -> dict[str, int]:
            with _errors_of_the_store():
                system, root = file_system(self.url)
                infos = system.get_file_info(FileSelector(root, recursive=True, allow_not_found=True))
            return {info.path.removeprefix(f"{root}/"): info.size for info in infos if info.is_file}

        return self._tried("", listed)

    def _pieces(self, name: str, limit_bytes: float = float("inf")) -> Iterator[bytes]:
        with contextlib.ExitStack() as stack:
            with _errors_of_the_store():
                system, root = file_system(self.url)
                stream = stack.enter_context(system.open_input_stream(f"{root}/{name}"))
            read = 0
            while True:
                with _errors_of_the_store():
                    piece = stream.read(_PIECE_BYTES)
                read += len(piece)
                if read > limit_bytes:
                    raise Failure(f"{self.url}/{name} has more than {limit_bytes:,} bytes; upload the dataset again")
                if _exiting.is_set():
                    raise Failure("the program ends")
                if not piece:
                    return
                yield piece

    def _tried(self, name: str, work: Callable[[], T]) -> T:
        """What `work` returns, tried again after each error of the store."""
        what = f"{self.url}/{name}" if name else self.url
        for attempt in range(1, ATTEMPTS + 1):
            try:
                return work()
            except _StoreError as error:
                if attempt == ATTEMPTS:
                    raise Failure(f"{what}: {error}, {ATTEMPTS} times; {_remedy(str(error))}") from None
                _log.warning("%s: %s; trying again", what, error)
                _exiting.wait(_PAUSE_SECONDS * 2 ** (attempt - 1))
        raise AssertionError


class Mirror:
    """A dataset of an object store, as far as it was read, in a folder of this host. Goes to other processes pickled.

    Attributes:
      url: the dataset's address.
      folder: where its manifest and indexes are, and its shards once they were fetched.
      limit_bytes: of all shards in `folder` and its siblings; beyond it, those that were not used for longest go.
    """

    def __init__(self, url: str, folder: Path, limit_bytes: int) -> None:
        self.url, self.folder, self.limit_bytes = url, folder, limit_bytes
        self.store = Store(url)

    def fetch(self, shard: Shard) -> Path:
        """Where a shard lies, once it is there. Raises Failure when it cannot be had."""
        path = shard_path(self.folder, shard)
        if not _is_whole(path, shard):
            path.parent.mkdir(exist_ok=True)
            with exclusive(path.with_name(f".{path.name}{LOCK}"), str(path), wait=True):
                if not _is_whole(path, shard):  # nobody fetched it meanwhile
                    self._make_room(shard.bytes)
                    self.store.fetch(shard.file, path, shard.sha256)
        os.utime(path)  # for `_make_room`
        return path

    def fetch_ahead(self, shards: Sequence[Shard]) -> None:
        """Begin to fetch shards, in this order, in the background. What fails is tried again by who needs the shard."""
        missing = [shard for shard in shards if not _is_whole(shard_path(self.folder, shard), shard)]
        if not missing or self.url in _ahead:
            return
        what = f"{count(len(missing), 'shard')} ({sum(shard.bytes for shard in missing) / 1e9:,.2f} GB)"
        _log.warning("fetching %s of %s into %s", what, self.url, self.folder)
        _ahead.add(self.url)
        todo: queue.SimpleQueue[Shard] = queue.SimpleQueue()
        for shard in missing:
            todo.put(shard)
        for _ in range(PARALLEL):
            thread = threading.Thread(target=self._fetch_all, args=(todo,), daemon=True)
            thread.start()
            _fetchers.append(thread)

    def companion(self, name: str) -> Path:
        """Where another file of the dataset lies, once it is there. Raises FileNotFoundError."""
        path = self.folder / name
        if not path.exists():
            self.store.fetch(name, path)
        return path

    def check(self, manifest: Manifest) -> None:
        """Hold the store's files against the manifest, and fetch the indexes.

        Raises:
          UsageError: names what is missing or has another size.
        """
        shards = [shard for split in manifest.splits.values() for shard in split.shards]
        sizes = self.store.sizes()
        faults = [f"{shard.file} is missing" for shard in shards if shard.file not in sizes]
        faults += [
            f"{shard.file} has {sizes[shard.file]:,} bytes, not {shard.bytes:,}"
            for shard in shards
            if sizes.get(shard.file, shard.bytes) != shard.bytes
        ]
        refuse_faults(faults, f"--data={self.url}", "upload the dataset again")
        with ThreadPoolExecutor(PARALLEL) as pool:
            list(pool.map(self._fetch_index, [index_path(shard.file) for shard in shards]))  # raises what they raise

    def _fetch_index(self, name: Path) -> None:
        (self.folder / name).parent.mkdir(exist_ok=True)
        try:
            self.companion(str(name))
        except FileNotFoundError:
            raise UsageError(f"--data={self.url}: {name} is missing; upload the dataset again") from None

    def _fetch_all(self, todo: queue.SimpleQueue[Shard]) -> None:
        with contextlib.suppress(queue.Empty):
            while not _exiting.is_set():
                shard = todo.get_nowait()
                with contextlib.suppress(Failure, OSError):
                    self.fetch(shard)

    def _make_room(self, needed: int) -> None:
        """Delete the shards that were not used for longest, of all datasets here, until `needed` bytes fit."""
        with exclusive(self.folder.parent / LOCK, str(self.folder.parent), wait=True):
            kept = sorted(_copies(self.folder.parent))
            total = sum(size for _, size, _ in kept)
            for _, size, path in kept:
                if total + needed <= self.limit_bytes:
                    break
                path.unlink(missing_ok=True)  # who has it open reads on
                total -= size


def open_mirror(url: str, options: DataCacheOptions) -> tuple[Mirror, Manifest]:
    """The dataset at an address, its manifest and indexes fetched.

    Raises:
      UsageError: there is none, it is not whole, or the cache folder cannot be written.
      Failure: the store gave no answer.
    """
    store = Store(url)
    try:
        content = store.read(FILE_NAME)
    except FileNotFoundError:
        raise UsageError(f"--data={url}: no {FILE_NAME} there, so it is no dataset; check the address") from None
    manifest = Manifest.parse(content, what=f"{store.url}/{FILE_NAME}")
    root = Path(options.data_cache) if options.data_cache else user_cache() / "data"
    folder = root / manifest.digest[:32]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        atomic_write(folder / FILE_NAME, content)
        mirror = Mirror(store.url, folder, _limit(options, root))
        mirror.check(manifest)
    except OSError as error:
        raise UsageError(f"--data_cache={root}: {error.strerror}; name a folder that can be written") from None
    return mirror, manifest


@lru_cache(maxsize=16)
def file_system(url: str) -> tuple[FileSystem, str]:
    """pyarrow's file system of an address, and the path there."""
    from pyarrow.fs import FileSystem

    system, path = FileSystem.from_uri(url)
    return system, path.rstrip("/")


def _limit(options: DataCacheOptions, root: Path) -> int:
    if options.data_cache_gb:
        return int(options.data_cache_gb * 1e9)
    return int(_FREE_SHARE * shutil.disk_usage(root).free) + sum(size for _, size, _ in _copies(root))


def _copies(root: Path) -> Iterator[tuple[float, int, Path]]:
    """When it was used last, bytes and path of each shard that lies here, as the manifests beside them name them."""
    for folder in root.iterdir():
        if not _FOLDER.fullmatch(folder.name) or not (folder / FILE_NAME).is_file():
            continue
        manifest = Manifest.load(folder)
        for split in manifest.splits.values():
            for shard in split.shards:
                path = shard_path(folder, shard)
                with contextlib.suppress(FileNotFoundError):
                    facts = path.stat()
                    yield facts.st_mtime, facts.st_size, path


def _is_whole(path: Path, shard: Shard) -> bool:
    try:
        return path.stat().st_size == shard.bytes
    except FileNotFoundError:
        return False


class _StoreError(Exception):
    """The store, or the way to it, failed; trying again may help."""


@contextlib.contextmanager
def _errors_of_the_store() -> Iterator[None]:
    """Tells its errors from those of this host's disk: pyarrow's have words of its own."""
    try:
        yield
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as error:
        raise _StoreError(display(" ".join(str(error).split()))) from None


def _remedy(error: str) -> str:
    if "ACCESS_DENIED" in error or "403" in error or "INVALID_ACCESS_KEY" in error or "SIGNATURE" in error:
        return "check the credentials (AWS_ACCESS_KEY_ID, AWS_PROFILE, GOOGLE_APPLICATION_CREDENTIALS)"
    if "SHA-256" in error:
        return "upload the dataset again"
    return "check the network, the region and the endpoint (AWS_REGION, AWS_ENDPOINT_URL)"


_ahead: set[str] = set()  # addresses that this process has begun to fetch
_fetchers: list[threading.Thread] = []
_exiting = threading.Event()


@atexit.register
def _stop() -> None:
    """Python must not end threads that are inside pyarrow."""
    _exiting.set()
    for thread in _fetchers:
        thread.join(_TIMEOUT_SECONDS)
