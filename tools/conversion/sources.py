"""Sources: every input of a conversion, as packed columns. No TensorFlow.

Columns, not objects, because ten million inputs must fit into a few hundred megabytes.
"""

from __future__ import annotations

import hashlib
import os
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from shardline.pipeline.manifest import Features
from shardline.pipeline.source_files import Origin, Place

WIDE = 2**32  # bytes of names, from which on 32 bits cannot count them
_PIECE = 100_000  # inputs looked at together, where each costs more than its place in a column


@dataclass(frozen=True, eq=False)
class Sources:
    """Every input of a conversion, as columns of equal length."""

    root: str  # paths are relative to it
    labels: tuple[str, ...]
    splits: tuple[str, ...]  # those the source itself names; () when it names none
    folders: tuple[bytes, ...]
    folder: np.ndarray  # int32: which of `folders` the input lies in
    names: bytearray  # all file names, end to end
    ends: np.ndarray  # uint32, or uint64 from 4 GiB of names on: where in `names` each ends
    label: np.ndarray  # int32
    split: np.ndarray  # int8: number in `splits`, -1 for none
    group: np.ndarray  # uint64: hash of the group's name, 0 for none; empty when the source has no groups
    size: np.ndarray  # uint32: bytes, at most 4 G; 0 also when it cannot be told
    stamp: np.ndarray  # uint64: see `file_stamp`; 0: the scan saw no file
    notes: tuple[str, ...] = ()  # what a person should know, a line each
    features: Features | None = None  # for inputs that are records, "FILE@OFFSET:SIZE": names of their features
    words: tuple[str, ...] = ()  # to show for each label
    unlabelled: tuple[str, ...] = ()  # splits whose inputs have no label: -1
    origins: tuple[Origin, ...] = ()  # where the bytes are, if not at paths below `root`
    places: Mapping[str, np.ndarray] = field(default_factory=dict)  # the fields of each input's `Place`, if so
    keep: object = None  # what has to live as long as the sources do

    def __len__(self) -> int:
        return len(self.ends)

    def path(self, number: int) -> bytes:
        """Path of one input relative to the root, as the file system spells it."""
        folder = self.folders[self.folder[number]]
        name = self.names[int(self.ends[number - 1]) if number else 0 : int(self.ends[number])]
        return folder + b"/" + bytes(name) if folder else bytes(name)

    def only(self, kept: np.ndarray) -> Sources:
        """Those inputs for which a mask is true, in the same order."""
        lengths = np.diff(self.ends, prepend=self.ends.dtype.type(0)).astype(np.int64)
        names = np.frombuffer(self.names, np.uint8)[np.repeat(kept, lengths)]
        columns = {name: getattr(self, name)[kept] for name in ("folder", "label", "split", "size", "stamp")}
        return replace(
            self,
            names=bytearray(names.tobytes()),
            ends=np.cumsum(lengths[kept]).astype(self.ends.dtype),
            group=self.group[kept] if len(self.group) else self.group,
            places={name: column[kept] for name, column in self.places.items()},
            **columns,
        )

    def class_counts(self, inputs: np.ndarray | slice = slice(None)) -> np.ndarray:
        """int64 by label: how many of some inputs, or all, are of each class."""
        label = self.label[inputs]
        counts = np.zeros(1 + len(self.labels), np.int64)  # the first are those without a label, -1
        for start in range(0, len(label), _PIECE):  # NumPy counts a copy in 64 bits
            counts += np.bincount(label[start : start + _PIECE] + 1, minlength=len(counts))
        return counts[1:]

    def place(self, number: int) -> Place:
        """Where the bytes of one input are, if not at its path below the root."""
        return Place(*(int(self.places[name][number]) for name in Place._fields))

    def paths(self) -> Iterator[bytes]:
        """Every path, in order."""
        begin = 0
        for start in range(0, len(self), _PIECE):  # Python's own integers are large: few at a time
            piece = slice(start, start + _PIECE)
            for folder, end in zip(self.folder[piece].tolist(), self.ends[piece].tolist(), strict=True):
                prefix, name = self.folders[folder], bytes(self.names[begin:end])
                yield prefix + b"/" + name if prefix else name
                begin = end

    def fingerprint(self, *, stamps: bool) -> str:
        """SHA-256 over paths, labels, splits, groups and sizes, and stamps if asked for, which are one disk's own."""
        digest = hashlib.sha256(repr((self.labels, self.splits, self.folders)).encode())
        columns = [self.folder, self.ends, self.label, self.split, self.group, self.size]
        digest.update(self.names)
        for column in [*columns, *([self.stamp] if stamps else [])]:
            digest.update(column.data)
        return digest.hexdigest()


class SourcesBuilder:
    """Collects inputs one by one into packed columns."""

    def __init__(self) -> None:
        self.folders: list[bytes] = []
        self.folder, self.label, self.split = array("i"), array("i"), array("b")
        self.ends, self.size = array("I"), array("I")
        self.stamp, self.group = array("Q"), array("Q")
        self.names = bytearray()
        self.places = {"origin": array("H"), "offset": array("Q"), "packed": array("Q"), "crc": array("I")}

    def add(
        self, folder: int, name: bytes, label: int, split: int, size: int, stamp: int, place: Place | None = None
    ) -> None:
        """One input: label and split -1 for none, size and stamp 0 when they cannot be told."""
        self.names += name
        if len(self.names) >= WIDE and self.ends.typecode == "I":
            self.ends = array("Q", self.ends)
        self.ends.append(len(self.names))
        self.folder.append(folder)
        self.label.append(label)
        self.split.append(split)
        self.size.append(min(size, 2**32 - 1))
        self.stamp.append(stamp)
        if place:
            for column, value in zip(self.places.values(), place, strict=True):
                column.append(value)

    def __len__(self) -> int:
        return len(self.ends)

    def enter(self, folder: bytes) -> int:
        """A new folder; returns its number."""
        self.folders.append(folder)
        return len(self.folders) - 1

    def finish(
        self,
        root: str,
        labels: Sequence[str],
        splits: Sequence[str],
        relabel: np.ndarray,
        notes: Sequence[str],
        features: Features | None = None,
        *,
        unlabelled: Sequence[str] = (),
        origins: tuple[Origin, ...] = (),
        keep: object = None,
    ) -> Sources:
        """`relabel` maps the label numbers used while collecting to their final ones."""
        label = np.array(self.label, np.int32, copy=None)
        return Sources(
            root=root,
            labels=tuple(labels),
            splits=tuple(splits),
            folders=tuple(self.folders),
            folder=np.array(self.folder, np.int32, copy=None),
            names=self.names,
            ends=np.array(self.ends, self.ends.typecode, copy=None),
            label=np.append(relabel, -1).astype(np.int32)[label],  # no label stays -1
            split=np.array(self.split, np.int8, copy=None),
            group=np.array(self.group, np.uint64, copy=None),
            size=np.array(self.size, np.uint32, copy=None),
            stamp=np.array(self.stamp, np.uint64, copy=None),
            notes=tuple(notes),
            features=features,
            unlabelled=tuple(unlabelled),
            origins=origins,
            places={name: np.array(column, column.typecode) for name, column in self.places.items()} if origins else {},
            keep=keep,
        )


def file_stamp(facts: os.stat_result) -> int:
    """A number that changes when a file is written or replaced, also by one of the same size and an older time.

    Equal stamps stand for equal content. Others may, too: a copy of the file has another one.
    """
    mixed = facts.st_mtime_ns + facts.st_ctime_ns * 0x9E3779B97F4A7C15 + facts.st_ino * 0xC2B2AE3D27D4EB4F
    return mixed % 2**64 or 1


def hash64(data: bytes, key: bytes = b"") -> int:
    """A keyed 64-bit hash that is the same on every machine and in every Python."""
    return int.from_bytes(hashlib.blake2b(data, digest_size=8, key=key).digest(), "little")


def path_text(path: bytes) -> str:
    """A path as text that can be stored, whatever bytes the file system allowed."""
    return path.decode("utf-8", "backslashreplace")
