"""Decoded images kept for the next epoch, in memory or on a local disk. No TensorFlow.

A cache fills as records are read. It is refused beforehand when all of the split's images would not fit.
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

_ROOM = 0.8  # share of what is free that a cache may take: training needs the rest


class MemoryCache:
    """Images and labels in a list."""

    def __init__(self, num_records: int, image_bytes: float) -> None:
        _refuse_unless_it_fits("memory", num_records, image_bytes, available_memory(), "memory available")
        self._kept: list[tuple[np.ndarray, int] | None] = [None] * num_records

    def get(self, record: int) -> tuple[np.ndarray, int] | None:
        """A kept image and its label. Not to be written to."""
        return self._kept[record]

    def put(self, record: int, pixels: np.ndarray, label: int) -> None:
        """Keep a copy."""
        self._kept[record] = (pixels.copy(), label)


class DirectoryCache:
    """Images in one file, and where they lie in another: [records, 5] of offset + 1, height, width, label, CRC.

    Survives the process, and may be killed at any time: a row is written after its pixels, and their checksum is
    held against it. One process at a time.
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
                    file.truncate(num_records * 5 * 8)  # sparse: zeros take no room
            self._index = np.memmap(index, np.int64, "r+", shape=(num_records, 5))
        except OSError as error:
            raise UsageError(f"--cache={directory}: {error.strerror}; use a directory you can write to") from None
        self._appending = threading.Lock()

    def get(self, record: int) -> tuple[np.ndarray, int] | None:
        """A kept image and its label."""
        place, height, width, label, crc = self._index[record].tolist()
        if not place:
            return None
        data = os.pread(self._file, height * width * 3, place - 1)
        if len(data) != height * width * 3 or google_crc32c.value(data) != crc:
            return None
        return np.frombuffer(data, np.uint8).reshape(height, width, 3), label

    def put(self, record: int, pixels: np.ndarray, label: int) -> None:
        """Append an image."""
        data = pixels.tobytes()
        with self._appending:
            place, self._end = self._end, self._end + len(data)
        os.pwrite(self._file, data, place)
        row = self._index[record]
        row[1:] = *pixels.shape[:2], label, google_crc32c.value(data)
        row[0] = place + 1  # last: other threads and a killed run see a whole row or none

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
    if needed > _ROOM * free:
        raise UsageError(
            f"--cache={cache}: {num_records:,} images x {image_bytes / 1e3:,.0f} kB decoded = "
            f"{needed / 1e9:,.2f} GB, more than {_ROOM:.0%} of the {free / 1e9:,.2f} GB {what}; "
            "use --cache=none, or a directory on a larger local disk"
        )
