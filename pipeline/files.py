"""Files that are whole or absent: atomic writes and locks, one policy for all. No TensorFlow.

Policy on fsync: what a restart or a reader relies on (manifests, receipts, shards, checkpoints, configs) is on the disk
before it gets its name, and so is the name. What can be made again at any time (plots, pages) is written with
`durable=False`, which only promises that nobody sees half of it.
"""

from __future__ import annotations

import contextlib
import os
import socket
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

TEMPORARY = ".tmp"  # how the names of unfinished files end


def temporary_path(path: str | os.PathLike[str]) -> Path:
    """A name beside `path` that no other attempt on any host uses: HOST-PID-RANDOM tells who left it behind."""
    path = Path(path)
    return path.with_name(f"{path.name}.{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}{TEMPORARY}")


@contextlib.contextmanager
def atomic_writer(path: str | os.PathLike[str], *, durable: bool = True) -> Iterator[BinaryIO]:
    """A new binary file that gets its name `path` when the block ends, and is removed if the block raises."""
    temporary = temporary_path(path)
    try:
        with open(temporary, "xb") as file:
            yield file
            file.flush()
            if durable:
                os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    if durable:
        sync_directory(Path(path).parent)


def atomic_write(path: str | os.PathLike[str], content: bytes | str, *, durable: bool = True) -> None:
    """Write `content`, text as UTF-8, so that a reader sees all of it or what was there before."""
    with atomic_writer(path, durable=durable) as file:
        file.write(content.encode() if isinstance(content, str) else content)


def sync_directory(directory: str | os.PathLike[str]) -> None:
    """Bring the names in a directory to the disk, where the file system can."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with contextlib.suppress(OSError):  # some network file systems refuse it
            os.fsync(descriptor)
    finally:
        os.close(descriptor)
