"""Random access to the records of a split: its shards, index and open files. No TensorFlow.

Record numbers count through the shards in file-name order. A read is one `pread` and two checksums, wherever the
record lies, so an exact shuffle costs what sequential reading does.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from shardline.pipeline.buffers import thread_buffer
from shardline.pipeline.encodings import ENCODINGS
from shardline.pipeline.example import Example, own_pixels, parse_example
from shardline.pipeline.manifest import NO_LABEL, Features, Manifest, Shard
from shardline.pipeline.split_index import Index, RecordLocation, open_index
from shardline.pipeline.tfrecord import unframe_record

if TYPE_CHECKING:
    from shardline.pipeline.remote import Mirror

_MAX_OPEN_FILES = 512  # half of the usual limit of 1,024; shards above it are opened for each read


class Shards:
    """Random access to one split. Safe to share between threads.

    A pickled copy has an empty index: see `locations` and `locate`.

    Args:
      mirror: fetches a shard from an object store into `directory` before it is opened.
      in_pieces: it fetches only what is asked for; for a few records, or where not all shards fit. Also an attribute.
    """

    def __init__(
        self,
        manifest: Manifest,
        directory: str | os.PathLike[str],
        split: str,
        mirror: Mirror | None = None,
        *,
        in_pieces: bool = False,
    ) -> None:
        shards = manifest.split(split).shards
        self.split = split
        self.index: Index | Mapping[int, RecordLocation] = open_index(
            manifest, directory, split, mirrored=mirror is not None
        )
        self.unlabelled = manifest.split(split).unlabelled
        # Whatever a split without labels has for one: somebody else's may have none, or zeros.
        foreign = self.unlabelled and manifest.adopted
        self.features = replace(manifest.features, label="") if foreign else manifest.features
        # What batches need: not the file name, and the size only where the image does not tell it.
        self._pixel_features = replace(self.features, filename="")
        if ENCODINGS[manifest.image.encoding].self_describing:
            self._pixel_features = replace(self._pixel_features, height="", width="")
        self._own = self._pixel_features == Features(filename="", height="", width="")
        self.num_labels = len(manifest.labels)
        self._paths = [Path(directory).absolute() / shard.file for shard in shards]
        self._mirror, self._mirrored = mirror, shards if mirror else ()
        self.in_pieces = in_pieces
        self._sound: set[int] = set()  # mirrored shards whose damaged records are so in the store
        self._files: dict[int, int] = {}
        self._opening = threading.Lock()

    def __len__(self) -> int:
        return len(self.index)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "index": {}, "_files": {}, "_opening": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= state | {"_opening": threading.Lock()}

    def locations(self, records: np.ndarray) -> np.ndarray:
        """int64 [n, 3]: the locations of some records, for `locate` of a copy in another process."""
        assert not isinstance(self.index, Mapping)
        return self.index.locations(records)

    def locate(self, records: np.ndarray, locations: np.ndarray) -> None:
        """Tell a pickled copy where the records lie that it will be asked for next."""
        self.index = dict(zip(records.tolist(), map(RecordLocation._make, locations.tolist()), strict=True))

    def where(self, record: int) -> tuple[Path, int]:
        """Shard and byte offset of a record."""
        location = self.index[record]
        return self._paths[location.shard], location.offset

    def read(self, record: int) -> Example:
        """A stored example, checksums verified.

        Its image is valid until this thread reads another.

        Raises:
          ValueError: the record is damaged, or its label is none of the dataset's, or one in a split without labels.
          OSError: the shard cannot be read at all.
        """
        return self._checked(parse_example(self.payload(record), self.features))

    def read_pixels(self, record: int) -> Example:
        """As `read`, with what batches need: the image and its label; its size where the image does not tell it."""
        payload = self.payload(record)
        return self._checked((self._own and own_pixels(payload)) or parse_example(payload, self._pixel_features))

    def _checked(self, example: Example) -> Example:
        if not (example.label == NO_LABEL if self.unlabelled else 0 <= example.label < self.num_labels):
            raise ValueError(f"label {example.label} is not one of {self.num_labels}")
        return example

    def payload(self, record: int) -> memoryview:
        """The serialized Example, checksums verified; valid until this thread reads another. Raises as `read` does."""
        location = self.index[record]
        try:
            framed = self._pread(*location)
        except OSError as error:
            error.filename = str(self._paths[location.shard])  # which a read of an open file does not know
            raise
        try:
            return unframe_record(framed)
        except ValueError:
            if self._mirror is None or location.shard in self._sound:
                raise
            return unframe_record(self._fetched_again(location))

    def shard(self, number: int) -> Shard:
        """A shard of a split in an object store."""
        return self._mirrored[number]

    def _fetched_again(self, location: RecordLocation) -> memoryview:
        """A damaged record of a split in an object store, once its copy here is what the store has."""
        assert self._mirror
        number = location.shard
        if self.in_pieces:
            self._mirror.fetch_pieces(
                self._mirrored[number], location.offset, location.size
            )  # it was not here yet, too
        elif not self._mirror.mend(self._mirrored[number]):
            self._sound.add(number)  # or another thread has mended it
        with self._opening:
            if (file := self._files.get(number)) is not None:
                mended = os.open(self._path(number), os.O_RDONLY)
                os.dup2(mended, file, inheritable=False)  # other threads may be reading
                os.close(mended)
        return self._pread(*location)

    def _path(self, shard: int) -> Path:
        """What a shard is read from, once it is there."""
        if not self._mirror:
            return self._paths[shard]
        return (self._mirror.path_of_pieces if self.in_pieces else self._mirror.fetch)(self._mirrored[shard])

    def _pread(self, shard: int, offset: int, size: int) -> memoryview:
        """Bytes of a shard, fewer at its end, in a buffer that this thread's next read uses again."""
        memory = thread_buffer("record", size).data
        file = self._files.get(shard)
        if file is None:
            path = self._path(shard)
            with self._opening:
                if shard not in self._files and len(self._files) < _MAX_OPEN_FILES:
                    self._files[shard] = os.open(path, os.O_RDONLY)
            file = self._files.get(shard)
        if file is not None:
            count = os.preadv(file, [memory], offset)
        else:
            file = os.open(path, os.O_RDONLY)
            try:
                count = os.preadv(file, [memory], offset)
            finally:
                os.close(file)
        return memory[:count].toreadonly()

    def __del__(self) -> None:
        for file in getattr(self, "_files", {}).values():
            os.close(file)


@dataclass(frozen=True)
class BadRecord:
    """A record that could not be used: where it lies and why."""

    split: str
    record: int
    shard: str
    offset: int
    reason: str

    def __str__(self) -> str:
        return f"record {self.record} of {self.split} ({self.shard}, offset {self.offset}): {self.reason}"
