"""Decoded images kept for the next epoch, in memory or on a local disk. No TensorFlow.

A cache fills as records are read. It is refused at the start unless all of the split's images would fit.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import threading
from pathlib import Path

import google_crc32c
import numpy as np

from shardline.pipeline.errors import UsageError
from shardline.pipeline.machine import available_memory

_MAX_SHARE = 0.8  # of what is free: training needs the rest


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

    Outlives the process, which may be killed at any time: an index row is written after its pixels, and their checksum
    is verified when they are read. One process at a time.
    """

    def __init__(self, directory: str, name: str, num_records: int, image_bytes: float) -> None:
        path = Path(directory)
        try:
            path.mkdir(parents=True, exist_ok=True)
            self._file = os.open(path / f"{name}.pixels", os.O_RDWR | os.O_CREAT, 0o644)
            self._lock(path / f"{name}.pixels")
            self._end = os.fstat(self._file).st_size
            free = shutil.disk_usage(path).free + self._end
            _refuse_unless_it_fits(directory, num_records, image_bytes, free, "disk free there")
            index = path / f"{name}.index"
            if not index.exists() or index.stat().st_size != num_records * 5 * 8:
                with open(index, "wb") as file:
                    file.truncate(num_records * 5 * 8)  # sparse: zeros take no space
            self._index = np.memmap(index, np.int64, "r+", shape=(num_records, 5))
        except OSError as error:
            raise UsageError(f"--cache={directory}: {error.strerror}; use a directory you can write to") from None
        self._appending = threading.Lock()

    def get(self, record: int) -> tuple[np.ndarray, int] | None:
        """A cached image and its label; None if there is none, or it is damaged."""
        offset_plus_1, height, width, label, crc = self._index[record].tolist()
        if not offset_plus_1:
            return None
        data = os.pread(self._file, height * width * 3, offset_plus_1 - 1)
        if len(data) != height * width * 3 or google_crc32c.value(data) != crc:
            return None
        return np.frombuffer(data, np.uint8).reshape(height, width, 3), label

    def put(self, record: int, pixels: np.ndarray, label: int) -> None:
        """Append an image."""
        data = pixels.tobytes()
        with self._appending:
            offset, self._end = self._end, self._end + len(data)
        os.pwrite(self._file, data, offset)
        row = self._index[record]
        row[1:] = *pixels.shape[:2], label, google_crc32c.value(data)
        row[0] = offset + 1  # last: other threads and a killed run see a whole row or none

    def _lock(self, path: Path) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(f"--cache={path.parent}: another run uses {path.name}; give each its own") from None

    def __del__(self) -> None:
        if hasattr(self, "_file"):
            os.close(self._file)


Cache = MemoryCache | DirectoryCache


def _refuse_unless_it_fits(cache: str, num_records: int, image_bytes: float, free: int, what: str) -> None:
    needed = num_records * image_bytes
    if needed > _MAX_SHARE * free:
        raise UsageError(
            f"--cache={cache}: {num_records:,} images x {image_bytes / 1e3:,.0f} kB decoded = "
            f"{needed / 1e9:,.2f} GB, more than {_MAX_SHARE:.0%} of the {free / 1e9:,.2f} GB {what}; "
            "use --cache=none, or a directory on a larger local disk"
        )
