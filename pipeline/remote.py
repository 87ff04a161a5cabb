"""Datasets in object stores: a folder of this host that fills with the shards that are read. No TensorFlow.

Manifest and indexes are copied when a dataset is opened, in three round trips less the one that lists the folder
meanwhile. A shard is copied whole when it is first read, held against the manifest's SHA-256, and from then on read as
any local file, by all processes of the host. The folder is named by the dataset's digest: whatever becomes of the
bucket, what lies there is right; what a disk has damaged since is copied again.

Where not all shards fit, and records are read in blocks, parts of shards are copied in place of whole ones, ahead of
the samples that need them, each to its place in a file whose rest is holes. Each record's own checksum says whether it
is here and right. After the place of the shard's last byte, the file says when each piece was needed last; the oldest
pieces become holes again. To write into such a file, to read it and to free a piece of it costs a fourth of what files
of pieces cost, of which ext4 makes a new one in 0.2 ms.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import logging
import os
import queue
import re
import shutil
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from shardline.pipeline.errors import Failure, UsageError
from shardline.pipeline.files import LOCK, atomic_write, exclusive, file_sha256, user_cache
from shardline.pipeline.manifest import FILE_NAME, Manifest, Shard, index_path, refuse_faults, shard_path
from shardline.pipeline.object_store import ATTEMPTS, PARALLEL, Store, StoredFile, exiting
from shardline.pipeline.options import option
from shardline.pipeline.split_index import fits, index_files
from shardline.pipeline.wording import count

_log = logging.getLogger(__name__)

PIECE_BYTES = 256 << 10  # least that is worth a request; also what is freed at once
_PAGE_BYTES = 4096  # what file systems keep together
_TIME = np.dtype("<f8")  # seconds since 1970; 0 of a piece that is not here
_PIECES = "pieces"  # folder of a mirror
_libc = ctypes.CDLL(None)
_PUNCH_HOLE = 3  # FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE
_SPARE_SHARE = 0.05  # of the limit: that many bytes may be copied before all that lies here is counted again
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
        self._room = 0  # bytes that may come before all that lies here is counted again

    def fetch_part(self, shard: Shard, offset: int, size: int) -> None:
        """Copy some bytes of a shard, and what lies in the same pages of memory, by one request."""
        start, stop = _rounded(offset, size, _PAGE_BYTES)
        content = self.store.read_range(shard.file, start, stop - start)
        self._make_room(len(content), more=True)
        with open(self.path_of_pieces(shard), "r+b", buffering=0) as file:
            _note(file.fileno(), shard, start, stop)  # before it is there: else nobody would free it
            os.pwrite(file.fileno(), content, start)

    def fetch_pieces(self, shard: Shard, offset: int, size: int) -> None:
        """Copy the pieces that hold some bytes of a shard: who needs them may need what lies beside them."""
        start, stop = _rounded(offset, size, PIECE_BYTES)
        self.fetch_part(shard, start, min(stop, shard.bytes) - start)

    def has_part(self, shard: Shard, offset: int, size: int) -> bool:
        """Whether some bytes of a shard are here, where they stay as long as those that are fetched now."""
        try:
            with open(self.folder / _PIECES / shard.file, "r+b", buffering=0) as file:
                _note(file.fileno(), shard, offset, offset + size)  # before they are looked for: others may free them
                return os.lseek(file.fileno(), offset, os.SEEK_HOLE) >= offset + size
        except OSError:  # there is none, or it ends before
            return False

    def path_of_pieces(self, shard: Shard) -> Path:
        """Where a shard lies as far as it was fetched in pieces."""
        path = self.folder / _PIECES / shard.file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        return path

    def fetch(self, shard: Shard) -> Path:
        """Where a shard lies, once it is there. Raises Failure when it cannot be had."""
        path = shard_path(self.folder, shard)
        if not _is_whole(path, shard):
            path.parent.mkdir(exist_ok=True)
            with self._alone_with(path):
                if not _is_whole(path, shard):  # nobody fetched it meanwhile
                    self._copy(shard, path)
        os.utime(path)  # for `_make_room`
        return path

    def mend(self, shard: Shard) -> bool:
        """Copy a shard again whose copy here was damaged. False: it is what the manifest says."""
        path = shard_path(self.folder, shard)
        with self._alone_with(path):
            if _is_whole(path, shard) and file_sha256(path) == shard.sha256:
                return False
            _log.warning("%s was damaged; fetching it again", path)
            self._copy(shard, path)
        return True

    def _alone_with(self, path: Path) -> contextlib.AbstractContextManager[None]:
        return exclusive(path.with_name(f".{path.name}{LOCK}"), str(path), wait=True)

    def _copy(self, shard: Shard, path: Path) -> None:
        self._make_room(shard.bytes)
        # Not for the disk to keep through a power cut: its checksums tell, and `mend` helps.
        self.store.fetch(shard.file, path, shard.sha256, durable=False)

    def fetch_ahead(self, shards: Sequence[Shard]) -> None:
        """Begin to fetch shards, in this order, in the background. What fails is tried again by who needs the shard."""
        missing = [shard for shard in shards if not _is_whole(shard_path(self.folder, shard), shard)]
        if not missing or self.url in _ahead:
            return
        what = f"{count(len(missing), 'shard')} ({sum(shard.bytes for shard in missing) / 1e9:,.2f} GB)"
        _log.warning("fetching %s of %s into %s", what, self.url, self.folder)
        _ahead[self.url] = PARALLEL
        todo: queue.SimpleQueue[Shard] = queue.SimpleQueue()
        for shard in missing:
            todo.put(shard)
        _fetchers[:] = filter(threading.Thread.is_alive, _fetchers)
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

    def check(self, manifest: Manifest, there: Mapping[str, StoredFile], *, text_indexes: bool) -> None:
        """Hold the store's files against the manifest, and fetch the indexes, or with `text_indexes` those of shards.

        Raises:
          UsageError: names what is missing or has another size.
        """
        shards = [shard for split in manifest.splits.values() for shard in split.shards]
        sizes = {name: file.size for name, file in there.items()}
        faults = [f"{shard.file} is missing" for shard in shards if shard.file not in sizes]
        faults += [
            f"{shard.file} has {sizes[shard.file]:,} bytes, not {shard.bytes:,}"
            for shard in shards
            if sizes.get(shard.file, shard.bytes) != shard.bytes
        ]
        refuse_faults(faults, f"--data={self.url}", "upload the dataset again")
        names: dict[str, tuple[Shard, ...]] = {}  # with the shards that an index is of, where it is a split's
        for split in manifest.splits.values():
            files = {} if text_indexes else index_files(manifest, split.name)
            whole = files and all(name in there for name in files)
            names |= files if whole else {str(index_path(shard.file)): () for shard in split.shards}
        with ThreadPoolExecutor(PARALLEL) as pool:
            list(pool.map(self._fetch_index, names.items()))  # raises what they raise

    def _fetch_index(self, found: tuple[str, tuple[Shard, ...]]) -> None:
        name, shards = found
        (self.folder / name).parent.mkdir(exist_ok=True)
        try:
            path = self.companion(name)
            for _ in range(ATTEMPTS):
                if not shards or fits(path, shards):
                    break
                path.unlink()  # damaged on the way, or since it was copied
                self.companion(name)
        except FileNotFoundError:
            raise UsageError(f"--data={self.url}: {name} is missing; upload the dataset again") from None

    def _fetch_all(self, todo: queue.SimpleQueue[Shard]) -> None:
        with contextlib.suppress(queue.Empty):
            while not exiting.is_set():
                shard = todo.get_nowait()
                with contextlib.suppress(Failure, OSError):
                    self.fetch(shard)
        with _counting:
            if (left := _ahead.pop(self.url, 1) - 1) > 0:
                _ahead[self.url] = left

    def _make_room(self, needed: int, *, more: bool = False) -> None:
        """Delete what was not used for longest, of all datasets here, until `needed` bytes fit, or some more.

        To count what lies here takes longer than to copy a piece or a small shard, so it is done once for many.
        """
        with _making_room:
            self._room -= needed
            if self._room >= 0:
                return
            spare = int(_SPARE_SHARE * self.limit_bytes)
            with exclusive(self.folder.parent / LOCK, str(self.folder.parent), wait=True):
                kept = list(_copies(self.folder.parent))
                too_many = sum(copy.bytes for copy in kept) + needed - self.limit_bytes
                wanted = too_many + (spare if more else 0)
                oldest = _oldest_first(kept)
                while wanted > 0 and (found := next(oldest, None)):
                    with contextlib.suppress(FileNotFoundError):
                        freed = found[0].free(found[1])
                        too_many, wanted = too_many - freed, wanted - freed
            self._room = min(-too_many, spare)


def open_mirror(url: str, options: DataCacheOptions, *, text_indexes: bool = False) -> tuple[Mirror, Manifest]:
    """The dataset at an address, its manifest and indexes fetched.

    Args:
      url: the address.
      options: which generation, and where copies are kept.
      text_indexes: fetch the index of each shard, and not those of the splits that say the same.

    Raises:
      UsageError: there is none, it is not whole, or the cache folder cannot be written.
      Failure: the store gave no answer.
    """
    store = Store(url)
    with ThreadPoolExecutor(1) as pool:
        listing = pool.submit(store.files)
        try:
            content = store.read(FILE_NAME)
        except FileNotFoundError:
            raise UsageError(f"--data={url}: no {FILE_NAME} there, so it is no dataset; check the address") from None
        there = listing.result()
    manifest = Manifest.parse(content, what=f"{store.url}/{FILE_NAME}")
    root = Path(options.data_cache) if options.data_cache else user_cache() / "data"
    folder = root / manifest.digest[:32]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / FILE_NAME).exists() or (folder / FILE_NAME).read_bytes() != content:
            atomic_write(folder / FILE_NAME, content)
        mirror = Mirror(store.url, folder, _limit(options, root))
        mirror.check(manifest, there, text_indexes=text_indexes)
    except OSError as error:
        raise UsageError(f"--data_cache={root}: {error.strerror}; name a folder that can be written") from None
    return mirror, manifest


def _limit(options: DataCacheOptions, root: Path) -> int:
    if options.data_cache_gb:
        return int(options.data_cache_gb * 1e9)
    return int(_FREE_SHARE * shutil.disk_usage(root).free) + sum(copy.bytes for copy in _copies(root))


@dataclass(frozen=True)
class _Copy:
    """A shard that lies here, or pieces of one.

    Attributes:
      path: of the file.
      bytes: that it takes on the disk.
      times: when each piece was needed, or the whole shard used, last; infinite for a piece that is not here.
      place: of the times in a file of pieces; 0 of a whole shard.
    """

    path: Path
    bytes: int
    times: np.ndarray
    place: int

    def free(self, number: int) -> int:
        """Delete a piece, or the whole shard; the bytes that this frees. Raises FileNotFoundError."""
        if self.place:
            start = number * PIECE_BYTES
            with open(self.path, "r+b", buffering=0) as file:
                before = _bytes_on_disk(os.fstat(file.fileno()))
                if _punch_hole(file.fileno(), start, min(PIECE_BYTES, self.place - start)):
                    os.pwrite(file.fileno(), bytes(_TIME.itemsize), self.place + number * _TIME.itemsize)
                    return before - _bytes_on_disk(os.fstat(file.fileno()))
        os.unlink(self.path)  # who has it open reads on
        return self.bytes


def _copies(root: Path) -> Iterator[_Copy]:
    """Each shard that lies here, whole or in pieces, as the manifests beside them name them."""
    for folder in root.iterdir():
        if not _FOLDER.fullmatch(folder.name) or not (folder / FILE_NAME).is_file():
            continue
        try:
            shards = _shards_of(folder)
        except UsageError:  # damaged, or of another version: nobody knows what is its own there
            continue
        there = (folder / _PIECES).is_dir()
        for shard in shards:
            path = shard_path(folder, shard)
            with contextlib.suppress(FileNotFoundError):
                facts = path.stat()
                yield _Copy(path, facts.st_size, np.array([facts.st_mtime]), 0)
            if there:
                with contextlib.suppress(FileNotFoundError), open(folder / _PIECES / shard.file, "rb") as file:
                    file.seek(place := _place_of_times(shard))
                    stored = file.read(-(-shard.bytes // PIECE_BYTES) * _TIME.itemsize)
                    times = np.frombuffer(stored, _TIME, len(stored) // _TIME.itemsize)
                    times = np.where(times > 0, times, np.inf)
                    yield _Copy(Path(file.name), _bytes_on_disk(os.fstat(file.fileno())), times, place)


@lru_cache
def _shards_of(folder: Path) -> list[Shard]:
    """What the manifest names, which does not change: the folder is named by its digest. Raises UsageError."""
    return [shard for split in Manifest.load(folder).splits.values() for shard in split.shards]


def _oldest_first(copies: Sequence[_Copy]) -> Iterator[tuple[_Copy, int]]:
    """Whole shards and pieces, each with its number in its file."""
    lengths = [len(copy.times) for copy in copies]
    times = np.concatenate([copy.times for copy in copies])
    first = np.cumsum(lengths) - lengths
    order = np.argsort(times, kind="stable")
    for place in order[np.isfinite(times[order])].tolist():
        number = int(np.searchsorted(first, place, side="right")) - 1
        yield copies[number], place - int(first[number])


def _rounded(offset: int, size: int, unit: int) -> tuple[int, int]:
    """Where what holds some bytes begins and ends, in whole units."""
    return offset // unit * unit, -(-(offset + size) // unit) * unit


def _note(file: int, shard: Shard, start: int, stop: int) -> None:
    """Write into the file of its pieces that these bytes of a shard are needed now."""
    first, last = start // PIECE_BYTES, -(-stop // PIECE_BYTES)
    times = np.full(last - first, time.time(), _TIME)
    os.pwrite(file, times.tobytes(), _place_of_times(shard) + first * _TIME.itemsize)


def _place_of_times(shard: Shard) -> int:
    """In the file of its pieces."""
    return _rounded(0, shard.bytes, _PAGE_BYTES)[1]


def _punch_hole(file: int, offset: int, size: int) -> bool:
    """Free some bytes of a file. False where the file system cannot."""
    return not _libc.fallocate(file, _PUNCH_HOLE, ctypes.c_int64(offset), ctypes.c_int64(size))


def _bytes_on_disk(facts: os.stat_result) -> int:
    return 512 * facts.st_blocks


def _is_whole(path: Path, shard: Shard) -> bool:
    try:
        return path.stat().st_size == shard.bytes
    except FileNotFoundError:
        return False


_ahead: dict[str, int] = {}  # threads of this process that fetch from each address
_counting = threading.Lock()
_making_room = threading.Lock()
_fetchers: list[threading.Thread] = []


@atexit.register
def _stop() -> None:
    """Python must not end threads that are inside obstore."""
    exiting.set()
    for thread in _fetchers:
        thread.join(_TIMEOUT_SECONDS)
