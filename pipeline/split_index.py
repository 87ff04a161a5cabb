"""The index of a split in one file that is mapped into memory: 8 bytes a record. No TensorFlow.

`NAME-SPLIT.index` begins with a line of 128 bytes: format, number of records, SHA-256 of the list of shards, CRC-32C of
what follows. Then it says where each record ends, as uint64 (little-endian), counted through the shards as if they
were one file; a record begins where the one before ends. Opening reads the line alone: a page is read when a record in
it is asked for, and the kernel keeps it once for all processes of a host. A dataset without such a file, as adopted
ones are, is read by the text index of each shard.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import mmap
import os
import re
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from typing import BinaryIO, NamedTuple, Protocol

import google_crc32c
import numpy as np

from shardline.pipeline.files import atomic_writer, open_regular
from shardline.pipeline.manifest import Manifest, Shard, check_files, check_sizes, generation_folder
from shardline.pipeline.tfrecord import FRAME_BYTES

FORMAT = "shardline index 1"
HEAD_BYTES = 128  # keeps the numbers aligned
CHECKED_BYTES = 64 << 20  # of files up to this size the checksum is compared when they are opened
_PIECE_BYTES = 8 << 20
_HEAD = re.compile(rf"{FORMAT} (\d{{1,16}}) ([0-9a-f]{{64}}) ([0-9a-f]{{8}}) *\n".encode())


class RecordLocation(NamedTuple):
    """Where a record lies: number of its shard, byte offset, and bytes with its frame."""

    shard: int
    offset: int
    size: int


class Index(Protocol):
    """The locations of all records of a split."""

    def __len__(self) -> int: ...

    def __getitem__(self, record: int) -> RecordLocation: ...

    def locations(self, records: np.ndarray) -> np.ndarray:
        """int64 [n, 3]: the same for many records."""
        ...


class LoadedIndex:
    """Of what `check_files` found: 12 bytes a record in memory."""

    def __init__(self, rows: np.ndarray, shards: Sequence[Shard]) -> None:
        self._offsets = rows[:, 1].copy()
        self._sizes = rows[:, 2].astype(np.uint32)
        self._ends = list(accumulate(shard.records for shard in shards))
        self._ends_array = np.array(self._ends)

    def __len__(self) -> int:
        return len(self._offsets)

    def __getitem__(self, record: int) -> RecordLocation:
        return RecordLocation(bisect_right(self._ends, record), int(self._offsets[record]), int(self._sizes[record]))

    def locations(self, records: np.ndarray) -> np.ndarray:
        """int64 [n, 3]: the same for many records."""
        shards = np.searchsorted(self._ends_array, records, side="right")
        return np.column_stack((shards, self._offsets[records], self._sizes[records]))


class MappedIndex:
    """Of the index files of a split, one for each generation that added to it, in order.

    A location that cannot be, of a file that was damaged since, is given a size of 1 byte: no record has that.
    """

    def __init__(self, parts: Sequence[tuple[np.ndarray, Sequence[Shard]]]) -> None:
        self._parts = [ends for ends, _ in parts]
        self._first = [0, *accumulate(map(len, self._parts))]  # record of each part
        self._records = self._first[-1]
        shards = [shard for _, of_part in parts for shard in of_part]
        self._ends = list(accumulate(shard.records for shard in shards))
        self._bytes = [shard.bytes for shard in shards]
        starts = (accumulate((shard.bytes for shard in of_part[:-1]), initial=0) for _, of_part in parts)
        self._starts = [start for of_part in starts for start in of_part]  # of each shard in its part, in bytes

    def __len__(self) -> int:
        return self._records

    def __getitem__(self, record: int) -> RecordLocation:
        if not 0 <= record < self._records:
            raise IndexError(f"record {record} of {len(self)}")
        shard, part = bisect_right(self._ends, record), bisect_right(self._first, record) - 1
        ends, number = self._parts[part], record - self._first[part]
        begin = int(ends[number - 1]) if number else 0
        offset, size = begin - self._starts[shard], int(ends[number]) - begin
        if offset < 0 or not FRAME_BYTES <= size <= self._bytes[shard] - offset:
            return RecordLocation(shard, 0, 1)
        return RecordLocation(shard, offset, size)

    def locations(self, records: np.ndarray) -> np.ndarray:
        """int64 [n, 3]: the same for many records."""
        return np.array([self[record] for record in records.tolist()], np.int64).reshape(-1, 3)


def open_index(manifest: Manifest, directory: str | os.PathLike[str], split: str, *, mirrored: bool = False) -> Index:
    """The index of a split, whose shards are held against the manifest by their sizes.

    Args:
      mirrored: a shard that is not here lies in an object store (`pipeline.remote`), which was looked at.

    Raises:
      UsageError: naming each faulty file (the first five) and the remedy.
    """
    shards = manifest.split(split).shards
    added = [(Path(directory) / name, part) for name, part in index_files(manifest, split).items()]
    if not added or not all(path.exists() for path, _ in added):
        return LoadedIndex(check_files(manifest, directory, split, mirrored=mirrored), shards)
    faults, parts = [], []
    for path, part in added:
        try:
            parts.append((map_index(path, part), part))
        except (OSError, ValueError) as error:
            faults.append(f"{path.name} is damaged ({error})")
    check_sizes(shards, directory, faults, mirrored=mirrored)
    return MappedIndex(parts)


def index_files(manifest: Manifest, split: str) -> dict[str, tuple[Shard, ...]]:
    """The files of a split's index, with the shards that each is of; {} of adopted datasets, which have none."""
    return {
        generation_folder(generation) + file_name(manifest.name, split): part
        for generation in range(1, manifest.num_generations + 1)
        if not manifest.adopted and (part := manifest.added(generation).get(split))
    }


def fits(path: Path, shards: Sequence[Shard]) -> bool:
    """Whether a file is the index of these shards."""
    try:
        map_index(path, shards)
    except (OSError, ValueError):
        return False
    return True


def directory_of(directory: str | os.PathLike[str], generation: int) -> Path:
    """Where the files of a generation lie."""
    return Path(directory) / generation_folder(generation)


def file_name(name: str, split: str) -> str:
    """Of the index of a dataset's split."""
    return f"{name}-{split}.index"


def map_index(path: Path, shards: Sequence[Shard], *, check: bool = False) -> np.ndarray:
    """Where the records of some shards end: uint64, mapped and not read.

    Args:
      check: compare the checksum whatever the size of the file.

    Raises:
      OSError: it cannot be read.
      ValueError: it is damaged, or that of other shards.
    """
    records = sum(shard.records for shard in shards)
    with open_regular(path) as file:
        found = _HEAD.fullmatch(file.read(HEAD_BYTES))
        if not found:
            raise ValueError(f"it is no {FORMAT}")
        if found[2].decode() != _digest(shards) or int(found[1]) != records:
            raise ValueError("it is of other shards")
        if os.fstat(file.fileno()).st_size != HEAD_BYTES + 8 * records:
            raise ValueError("it was cut")
        if check or 8 * records <= CHECKED_BYTES:
            checksum = google_crc32c.Checksum()
            while piece := file.read(_PIECE_BYTES):
                checksum.update(piece)
            if checksum.hexdigest() != found[3]:
                raise ValueError("its checksum does not match")
        if not records:
            return np.empty(0, np.uint64)
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    mapped.madvise(mmap.MADV_RANDOM)  # else the kernel reads ahead at each record
    ends = np.frombuffer(mapped, "<u8", records, HEAD_BYTES)
    if int(ends[-1]) != sum(shard.bytes for shard in shards):
        raise ValueError("its last record does not end where the shards do")
    return ends


class _Writer:
    """Writes the index of a split, shard by shard."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._file.write(b" " * HEAD_BYTES)
        self._shards: list[Shard] = []
        self._checksum = google_crc32c.Checksum()
        self._end = 0

    def add(self, shard: Shard, sizes: np.ndarray) -> None:
        """The framed sizes of a shard's records, in order."""
        content = (self._end + np.cumsum(sizes, dtype=np.int64)).astype("<u8").tobytes()
        self._checksum.update(content)
        self._file.write(content)
        self._shards.append(shard)
        self._end += shard.bytes

    def finish(self) -> None:
        """Write the line at the beginning."""
        records = sum(shard.records for shard in self._shards)
        head = f"{FORMAT} {records} {_digest(self._shards)} {self._checksum.hexdigest().decode()}"
        self._file.seek(0)
        self._file.write(head.ljust(HEAD_BYTES - 1).encode() + b"\n")


@contextlib.contextmanager
def index_writer(directory: str | os.PathLike[str], name: str) -> Iterator[Callable[[str, Shard, np.ndarray], None]]:
    """A function that adds a shard to the index of its split: the split, the shard, the framed sizes of its records.

    The files are whole or absent.
    """
    writers: dict[str, _Writer] = {}
    with contextlib.ExitStack() as stack:

        def add(split: str, shard: Shard, sizes: np.ndarray) -> None:
            if split not in writers:
                path = Path(directory) / file_name(name, split)
                writers[split] = _Writer(stack.enter_context(atomic_writer(path)))
            writers[split].add(shard, sizes)

        yield add
        for writer in writers.values():
            writer.finish()


def _digest(shards: Sequence[Shard]) -> str:
    """SHA-256 over the names' last parts, counts and content of some shards."""
    facts = [(shard.file.rpartition("/")[2], shard.records, shard.bytes, shard.sha256) for shard in shards]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()
