"""Decoded images kept for the next epoch, in memory or on a local disk. No TensorFlow.

A cache fills as records are read. It is refused at the start unless all of the split's images would fit.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import threading
import weakref
from pathlib import Path

import google_crc32c
import numpy as np

from shardline.pipeline.errors import Failure, UsageError
from shardline.pipeline.files import exclusive
from shardline.pipeline.machine import available_memory

_MAX_SHARE = 0.8  # of what is free: training needs the rest
_READ_AND_WRITE = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW  # never what a link leads to


class MemoryCache:
    """Images and labels in a list."""

    def __init__(self, num_records: int, image_bytes: float) -> None:
        _refuse_unless_it_fits("memory", num_records, image_bytes, available_memory(), "memory available")
        self._kept: list[tuple[np.ndarray, int] | None] = [None] * num_records

    def get(self, record: int) -> tuple[np.ndarray, int] | None:
        """A cached image, read-only by convention, and its label; None if there is none."""
        return self._kept[record]

    def put(self, record: int, pixels: np.ndarray, label: int) -> None:
        """Store a copy."""
        self._kept[record] = (pixels.copy(), label)


class DirectoryCache:
    """Images in one file, and an index in another: int64 [records, 5] of offset + 1, height, width, label, CRC-32C.

    Outlives the process, which may be killed at any time. The checksum covers the pixels, the rest of the index row and
    the record's number: whatever is half written, damaged or another record's is decoded again. One process at a time.
    """

    def __init__(self, directory: str, name: str, num_records: int, image_bytes: float) -> None:
        """Raises UsageError where it cannot be written or does not fit, Failure while another process uses it."""
        path = Path(directory)
        self._directory, self._appending = directory, threading.Lock()
        with contextlib.ExitStack() as closing:
            try:
                path.mkdir(parents=True, exist_ok=True)
                closing.enter_context(exclusive(path / f"{name}.lock", f"--cache={directory}: {name}"))
                self._file = os.open(path / f"{name}.pixels", _READ_AND_WRITE, 0o644)
                closing.callback(os.close, self._file)
                self._end = os.fstat(self._file).st_size
                free = shutil.disk_usage(path).free + self._end
                _refuse_unless_it_fits(directory, num_records, image_bytes, free, "disk free there")
                self._index = _open_index(path / f"{name}.index", num_records)
            except OSError as error:
                raise UsageError(f"--cache={directory}: {error.strerror}; use a directory you can write to") from None
            weakref.finalize(self, closing.pop_all().close)

    def get(self, record: int) -> tuple[np.ndarray, int] | None:
        """A cached image and its label; None if there is none, or it is damaged."""
        row = self._index[record].copy()
        offset_plus_1, height, width, label, crc = row.tolist()
        size = height * width * 3
        if offset_plus_1 <= 0 or not 0 < size <= self._end - (offset_plus_1 - 1):
            return None
        data = os.pread(self._file, size, offset_plus_1 - 1)
        if _crc(record, row, data) != crc:
            return None
        return np.frombuffer(data, np.uint8).reshape(height, width, 3), label

    def put(self, record: int, pixels: np.ndarray, label: int) -> None:
        """Append an image. Raises Failure where the disk does not take it."""
        data = pixels.tobytes()
        with self._appending:
            offset, self._end = self._end, self._end + len(data)
        row = np.array([offset + 1, *pixels.shape[:2], label, 0])
        row[4] = _crc(record, row, data)
        try:
            if os.pwrite(self._file, data, offset) < len(data):  # the beginning of a full disk
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            raise Failure(
                f"--cache={self._directory} cannot be written: {error.strerror}; make room there, or use another cache"
            ) from None
        self._index[record, 1:] = row[1:]
        self._index[record, 0] = row[0]  # last: other threads see a whole row or none


def _open_index(path: Path, num_records: int) -> np.ndarray:
    """The rows of an index file, which is made anew if it has another size; zeros where nothing is stored."""
    size = num_records * 5 * 8
    with open(os.open(path, _READ_AND_WRITE, 0o644), "r+b") as file:
        if os.fstat(file.fileno()).st_size != size:
            file.truncate(0)
            os.posix_fallocate(file.fileno(), 0, size)  # a disk that is full later would kill who writes to a hole
        return np.memmap(file, np.int64, "r+", shape=(num_records, 5))


def _crc(record: int, row: np.ndarray, data: bytes) -> int:
    """CRC-32C of an image, of what its index row says of it, and of whose row it is."""
    facts = np.array([record, *row[:4]])
    return int(google_crc32c.extend(google_crc32c.value(data), facts.tobytes()))


Cache = MemoryCache | DirectoryCache


def _refuse_unless_it_fits(cache: str, num_records: int, image_bytes: float, free: int, what: str) -> None:
    needed = num_records * image_bytes
    if needed > _MAX_SHARE * free:
        raise UsageError(
            f"--cache={cache}: {num_records:,} images x {image_bytes / 1e3:,.0f} kB decoded = "
            f"{needed / 1e9:,.2f} GB, more than {_MAX_SHARE:.0%} of the {free / 1e9:,.2f} GB {what}; "
            "use --cache=none, or a directory on a larger local disk"
        )
