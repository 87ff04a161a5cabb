"""Buffers that are used again: fresh memory costs a page fault, and zeroing, for every page. No TensorFlow."""

from __future__ import annotations

import math
import mmap
import os
import sys
import threading
from typing import Protocol

import numpy as np

_ALIGNMENT = 64  # bytes; TensorFlow takes over arrays that start on such a boundary, and copies others
_MAX_BUFFERS = 16  # kept for reuse; a consumer that holds more batches gets fresh memory


class Buffers(Protocol):
    """Where the images of batches are put."""

    def empty(self, shape: tuple[int, ...]) -> np.ndarray:
        """A uint8 array of a shape, uninitialized."""
        ...


class BufferPool:
    """Hands out uint8 arrays, and again once nothing refers to them any more. Thread-safe."""

    def __init__(self) -> None:
        self._kept: list[np.ndarray] = []
        self._lock = threading.Lock()

    def empty(self, shape: tuple[int, ...]) -> np.ndarray:
        """An array of a shape, aligned for TensorFlow, uninitialized."""
        size = math.prod(shape)
        with self._lock:
            for memory in self._kept:
                # Three references: the list, the loop's variable and getrefcount's argument. Each array that is a view
                # of this memory, and each tensor that took one over, is another.
                if memory.size == size + _ALIGNMENT and sys.getrefcount(memory) == 3:
                    break
            else:
                memory = np.empty(size + _ALIGNMENT, np.uint8)
                if len(self._kept) < _MAX_BUFFERS:
                    self._kept.append(memory)
            start = -memory.ctypes.data % _ALIGNMENT
            return memory[start : start + size].reshape(shape)


class SharedBufferPool:
    """The same in memory shared with other processes, who map `file`, of `bytes` bytes: pieces of one size.

    A piece takes memory from its first use on, so the first free one is handed out.
    """

    def __init__(self, pieces: int, size: int) -> None:
        self._size = -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
        self.bytes = pieces * self._size
        self.file = os.memfd_create("batches")
        os.ftruncate(self.file, self.bytes)
        shared = mmap.mmap(self.file, self.bytes)
        self._pieces = [np.frombuffer(shared, np.uint8, self._size, piece * self._size) for piece in range(pieces)]
        self._lock = threading.Lock()

    def empty(self, shape: tuple[int, ...]) -> tuple[np.ndarray, int] | None:
        """An array of a shape, and where it starts in the file; None when all pieces are in use."""
        with self._lock:
            for number in range(len(self._pieces)):
                piece = self._pieces[number]
                if sys.getrefcount(piece) == 3:  # as above
                    return piece[: math.prod(shape)].reshape(shape), number * self._size
        return None

    def __del__(self) -> None:
        if hasattr(self, "file"):
            os.close(self.file)


_local = threading.local()


def thread_buffer(purpose: str, size: int) -> np.ndarray:
    """`size` bytes of this thread's own buffer for a purpose, uninitialized."""
    memory = getattr(_local, purpose, None)
    if memory is None or memory.size < size:
        memory = np.empty(size, np.uint8)
        setattr(_local, purpose, memory)
    return memory[:size]
