"""Where a conversion's dataset comes to lie: a folder of this host, or one of an object store. No TensorFlow.

Of a store, `directory` is a working copy: it has all small files, and no shards. Workers put each shard and its receipt
into the store themselves, once, when it is whole; it gets its final name there. The manifest is put last. A generation
that is added to a dataset has an output of its own, in the folder of the dataset's.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

from shardline.pipeline.cli import log
from shardline.pipeline.errors import UsageError
from shardline.pipeline.files import atomic_writer, file_sha256, own_directory, remove_strays
from shardline.pipeline.machine import available_cores
from shardline.pipeline.manifest import (
    FILE_NAME,
    Manifest,
    Shard,
    check_files,
    generation_folder,
    refuse_faults,
    shard_path,
)
from shardline.pipeline.object_store import PARALLEL, Store, StoredFile
from shardline.pipeline.paths import is_remote
from shardline.pipeline.sources_table import SOURCES_FILE
from shardline.pipeline.split_index import index_files, map_index
from shardline.pipeline.stored import stored_path
from shardline.pipeline.tfrecord import read_framed
from shardline.pipeline.wording import shorten_list
from shardline.pipeline.working_copy import WorkingCopy, working_copy
from shardline.tools.conversion.report import REPORT_FILES, remove_report
from shardline.tools.conversion.shard_writer import ShardResult, is_whole, receipt_path
from shardline.tools.conversion.tfds_metadata import FILES as TFDS_FILES

WORK = ".convert"
STAMPS = ".sources.json"  # which files, to the stamp, a finished dataset was made of; it lies beside the manifest
NOTE, SOURCES, PLACED = "request.json", "sources.npz", "placed.json"  # in WORK
WORK_FILE = re.compile(rf"{NOTE}|{SOURCES}|{PLACED}|[A-Za-z_]\w*-\d{{5}}(\.receipt\.arrow)?", re.ASCII)
OVERWRITE = "start over with --overwrite"
_SMALL = {FILE_NAME, STAMPS, SOURCES_FILE, *TFDS_FILES, *REPORT_FILES}
_GENERATION = re.compile(r"generation-\d{5}/")  # what `generation_folder` makes
_RESTORE = f"restore the files from a copy, or {OVERWRITE}"


class Output:
    """A folder of this host.

    Attributes:
      where: as it was given.
      directory: where all files but shards are written.
      address: where in a store workers put shards; "": they leave them in WORK.
    """

    def __init__(self, where: str, directory: Path, address: str = "") -> None:
        self.where, self.directory, self.address = where, directory, address

    def generation(self, number: int) -> Output:
        """Where the files of a generation lie, or are to lie. Raises UsageError where a link would lead elsewhere."""
        folder = self.directory / generation_folder(number)
        if number > 1 and folder.is_symlink():
            raise UsageError(f"--output={self.where}: {folder.name} is a link there; remove it, or name another folder")
        return Output(str(folder), folder)

    @contextlib.contextmanager
    def owned(self) -> Iterator[None]:
        """Nobody else writes there while the context lasts. Raises Failure where somebody does."""
        with own_directory(self.directory, "--output"):
            yield

    def names(self) -> list[str]:
        """What stands there, without what lies in folders."""
        return os.listdir(self.directory) if self.directory.exists() else []

    def companion(self, name: str) -> Path:
        """Where a small file of the dataset is. It may be missing."""
        return self.directory / name

    def check(self, manifest: Manifest, verify: bool) -> None:
        """Hold every shard against the manifest: size and indexes, and its SHA-256 if asked to. Raises UsageError."""
        faults = []
        for split in manifest.splits:
            check_files(manifest, self.directory, split, flag="--output", remedy=_RESTORE, mirrored=bool(self.address))
            for name, part in index_files(manifest, split).items():
                try:
                    map_index(self.directory / name, part, check=verify)
                except FileNotFoundError:  # made by a version that wrote none
                    continue
                except (OSError, ValueError) as error:
                    faults.append(f"{name} is damaged ({error})")
        refuse_faults(faults, f"--output={self.where}", _RESTORE)
        shards = [shard for split in manifest.splits.values() for shard in split.shards] if verify else []
        with ThreadPoolExecutor(available_cores()) as pool:
            hashes = pool.map(self._sha256, shards)
            damaged = [shard.file for shard, sha256 in zip(shards, hashes, strict=True) if sha256 != shard.sha256]
        if damaged:
            raise UsageError(
                f"--output={self.where}: the SHA-256 of {shorten_list(damaged)} is not the manifest's; {_RESTORE}"
            )

    def remove(self, names: Sequence[str]) -> None:
        """Delete files of ours, in order, and what killed attempts left of them."""
        remove_files(self.directory, names)

    def remove_report(self) -> None:
        """Delete the report."""
        remove_report(self.directory)

    def remove_work(self) -> None:
        """Delete the folder of unfinished work, but for files that no run puts there."""
        work = self.directory / WORK
        if work.is_symlink() or not work.is_dir():
            return
        remove_strays(work, lambda name: bool(WORK_FILE.fullmatch(name)))
        remove_files(work, sorted(name for name in os.listdir(work) if WORK_FILE.fullmatch(name)))
        if left := sorted(os.listdir(work)):
            _say_kept(work, left)
        else:
            work.rmdir()

    def receive(self, shard: str) -> None:
        """Have the receipt of a shard that a worker finished."""

    def is_whole(self, result: ShardResult) -> bool:
        """Whether an unfinished conversion's shard is what its receipt says."""
        return is_whole(result)

    def read(self, shard: str, offset: int, size: int) -> bytes:
        """Bytes of an unfinished conversion's shard, or of one that has its final name."""
        return read_framed(self.directory / shard, offset, size)

    def place(self, shard: str, name: str) -> None:
        """Give a shard its final name."""
        link_or_copy(shard, self.directory / name)  # until the folder of unfinished work goes

    @contextlib.contextmanager
    def writer(self, name: str) -> Iterator[BinaryIO]:
        """A new file of the dataset, which is there when the context ends."""
        with atomic_writer(self.directory / name) as file:
            yield file

    def sync(self) -> None:
        """Have all that was written so far where the dataset is to lie."""

    def _sha256(self, shard: Shard) -> str:
        return file_sha256(shard_path(self.directory, shard))


class StoreOutput(Output):
    """A folder of an object store, or that of a generation in it, with a slash at its end: one working copy has all."""

    def __init__(self, where: str, copy: WorkingCopy, folder: str = "") -> None:
        super().__init__(where, copy.folder / folder, f"{copy.store.url}/{folder}{WORK}")
        self._copy, self._folder = copy, folder
        self._store = Store(f"{copy.store.url}/{folder}")
        self._files: dict[str, StoredFile] = {}  # as last listed
        self._pool = ThreadPoolExecutor(PARALLEL)
        self._placing: list[Future[None]] = []

    def generation(self, number: int) -> Output:
        """See `Output`."""
        folder = generation_folder(number)
        found = StoreOutput(f"{self.where}/{folder.rstrip('/')}" if folder else self.where, self._copy, folder)
        found._pool = self._pool
        found._list()
        return found

    def refresh(self) -> None:
        """Have the small files that are there now."""
        # Rows and report of a finished dataset are large, and mostly not needed.
        self._files = self._copy.pull(lambda name: os.path.basename(name) not in (SOURCES_FILE, *REPORT_FILES))

    def _list(self) -> None:
        self._files = self._store.files()

    @contextlib.contextmanager
    def owned(self) -> Iterator[None]:
        """See `Output`."""
        with self._store.own(f"--output={self.where}"):
            self.refresh()  # another process may have finished it meanwhile
            try:
                yield
            finally:
                self._pool.shutdown(cancel_futures=True)

    def names(self) -> list[str]:
        """See `Output`."""
        self._list()
        return sorted({name.partition("/")[0] for name in self._files})

    def companion(self, name: str) -> Path:
        """See `Output`."""
        path = self.directory / name
        if not path.exists():
            with contextlib.suppress(FileNotFoundError):
                self._copy.fetch(self._folder + name)
        return path

    def check(self, manifest: Manifest, verify: bool) -> None:
        """See `Output`."""
        shards = [shard for split in manifest.splits.values() for shard in split.shards]
        sizes = {name: file.size for name, file in self._files.items()}
        faults = [f"{shard.file} is missing or has another size" for shard in shards
                  if sizes.get(shard.file) != shard.bytes]  # fmt: skip
        refuse_faults(faults, f"--output={self.where}", _RESTORE)
        super().check(manifest, verify)

    def remove(self, names: Sequence[str]) -> None:
        """See `Output`."""
        self._store.delete([name for name in names if name in self._files])
        remove_files(self.directory, names)

    def remove_report(self) -> None:
        """See `Output`."""
        self._store.delete([name for name in REPORT_FILES if name in self._files])
        remove_report(self.directory)

    def remove_work(self) -> None:
        """See `Output`."""
        work = [name.removeprefix(f"{WORK}/") for name in self._store.files() if name.startswith(f"{WORK}/")]
        list(self._pool.map(lambda name: self._store.delete([f"{WORK}/{name}"]), filter(WORK_FILE.fullmatch, work)))
        if left := sorted(name for name in work if not WORK_FILE.fullmatch(name)):
            _say_kept(self.address, left)
        super().remove_work()

    def receive(self, shard: str) -> None:
        """See `Output`."""
        self._copy.fetch(f"{self._folder}{WORK}/{receipt_path(shard).name}")

    def is_whole(self, result: ShardResult) -> bool:
        """See `Output`. It is what was put, and had been hashed before, as long as its ETag is; else it is read."""
        name = f"{WORK}/{os.path.basename(result.output)}"
        found = self._files.get(name)
        if found is None or found.size != result.bytes:
            return False
        return found.etag == result.etag != "" or self._store.sha256(name) == result.sha256

    def read(self, shard: str, offset: int, size: int) -> bytes:
        """See `Output`."""
        name = f"{WORK}/{os.path.basename(shard)}" if os.path.isabs(shard) else shard
        return bytes(self._store.read_range(name, offset, size))

    def place(self, shard: str, name: str) -> None:
        """See `Output`. `sync` waits for it."""
        source = f"{WORK}/{os.path.basename(shard)}"
        self._placing.append(self._pool.submit(self._store.copy, source, name))

    @contextlib.contextmanager
    def writer(self, name: str) -> Iterator[BinaryIO]:
        """See `Output`."""
        path = self.directory / name
        with atomic_writer(path, durable=False) as file:
            yield file
        self._store.put(name, path)
        path.unlink()

    def sync(self) -> None:
        """See `Output`."""
        while self._placing:
            self._placing.pop().result()
        self._copy.push()

    def _sha256(self, shard: Shard) -> str:
        return self._store.sha256(shard.file)


@contextlib.contextmanager
def open_output(where: str) -> Iterator[Output]:
    """What `--output` names. Raises Failure where another process of this host uses its working copy."""
    if not is_remote(where):
        yield Output(where, Path(where))
        return
    with working_copy(where, "output", f"--output={where}", _is_small) as copy:
        output = StoreOutput(where, copy)
        output.refresh()
        yield output


def _is_small(name: str) -> bool:
    """Whether a file is in the working copy: notes, receipts and all that lies beside the shards."""
    name = _GENERATION.sub("", name, count=1)
    if name.startswith(f"{WORK}/"):
        return name.removeprefix(f"{WORK}/") in (NOTE, SOURCES, PLACED) or name.endswith(".receipt.arrow")
    index = name.endswith(".index") or (".tfrecord-" in name and name.endswith(".idx"))
    return name in _SMALL or (index and "/" not in name)


def link_or_copy(source: str | os.PathLike[str], target: Path) -> None:
    """The same bytes under a second name; a copy where a link cannot be made."""
    try:
        os.link(source, target)
    except OSError:  # the file system has no links, or the target lies on another one
        with open(source, "rb") as file, atomic_writer(target) as out:
            shutil.copyfileobj(file, out, 1 << 20)


def remove_files(directory: Path, names: Sequence[str]) -> None:
    """Delete files of ours, in order, and what killed attempts left of them."""
    for name in names:
        path = stored_path(directory, name, r".+", what=directory)
        if path.is_dir() and not path.is_symlink():
            raise UsageError(f"--overwrite: {path} is a folder where a conversion puts a file; move it away")
        path.unlink(missing_ok=True)
    ours = set(names)
    remove_strays(directory, ours.__contains__)


def _say_kept(work: object, left: Sequence[str]) -> None:
    log(f"note: {work} is kept: {shorten_list(left)} {'is' if len(left) == 1 else 'are'} not the conversion's")
