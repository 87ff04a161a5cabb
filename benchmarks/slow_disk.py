"""A file system that is slow on purpose: a folder, read-only, each read of which takes a disk's time.

The kernel asks and threads of a process of its own answer, by FUSE (https://docs.kernel.org/filesystems/fuse.html;
structures: linux/fuse.h). Making one takes /dev/fuse and the right to mount.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import stat
import struct
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from shardline.benchmarks.processes import outsiders

LOOKUP, FORGET, GETATTR, OPEN, READ, RELEASE, FLUSH = 1, 2, 3, 14, 15, 18, 25
INIT, OPENDIR, READDIR, RELEASEDIR, INTERRUPT, BATCH_FORGET = 26, 27, 28, 29, 36, 42
_WITHOUT_ANSWER = (FORGET, INTERRUPT, BATCH_FORGET)
_ROOT = 1  # number of the mounted folder
_IN_HEADER, _OUT_HEADER = struct.Struct("<IIQQ16x"), struct.Struct("<IiQ")
_ATTRIBUTES = struct.Struct("<6Q10I")
_MINOR = 31  # of the protocol's version 7
_REQUEST_BYTES = 1 << 17
_VALID_SECONDS = 3600  # names and sizes stay
_THREADS = 32  # reads that wait at once
_DETACH = 2  # MNT_DETACH


@contextlib.contextmanager
def mounted(source: Path, folder: Path, seconds: float) -> Iterator[None]:
    """Within it, `folder` shows what `source` holds, and each read from the disk takes `seconds`.

    Raises:
      OSError: no such file system can be mounted here.
    """
    with contextlib.ExitStack() as stack:
        device = os.open("/dev/fuse", os.O_RDWR)
        try:
            _mount(folder, f"fd={device},rootmode={stat.S_IFDIR:o},user_id={os.getuid()},group_id={os.getgid()}")
            stack.callback(lambda: _libc().umount2(bytes(folder), _DETACH))
            stack.enter_context(outsiders(1, _serve, device, Disk(source, seconds)))
        finally:
            os.close(device)  # the server's is the last one: when it ends, so do all reads
        yield


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _mount(folder: Path, options: str) -> None:
    flags = 1 | 2 | 4  # MS_RDONLY, MS_NOSUID, MS_NODEV
    if _libc().mount(b"slow disk", bytes(folder), b"fuse", flags, options.encode()):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(folder))


@dataclass
class Disk:
    """Answers of the file system; its nodes are numbered as they are met.

    Attributes:
      source: the folder that is shown.
      seconds: that each read takes.
    """

    source: Path
    seconds: float
    paths: dict[int, Path] = field(default_factory=dict)
    numbers: dict[Path, int] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self.number(self.source)

    def number(self, path: Path) -> int:
        """The node of a path."""
        with self.lock:
            found = self.numbers.setdefault(path, len(self.numbers) + _ROOT)
            self.paths[found] = path
            return found

    def answer(self, operation: int, node: int, body: bytes) -> bytes:
        """What the kernel is told. Raises OSError."""
        if operation == INIT:
            readahead, congestion = 0, 1  # each read is one request
            return struct.pack("<4I2H2I2H2I24x", 7, _MINOR, readahead, 0, _THREADS, congestion, 1 << 12, 1, 0, 0, 0, 0)
        path = self.paths.get(node, self.source)
        if operation == LOOKUP:
            path /= os.fsdecode(body.rstrip(b"\0"))
            found = _attributes(path)
            return struct.pack("<4Q2I", self.number(path), 0, _VALID_SECONDS, _VALID_SECONDS, 0, 0) + found
        if operation == GETATTR:
            return struct.pack("<QII", _VALID_SECONDS, 0, 0) + _attributes(path)
        if operation in (OPEN, OPENDIR):
            return struct.pack("<QIi", os.open(path, os.O_RDONLY) if operation == OPEN else 0, 0, 0)
        if operation == READ:
            file, offset, size = struct.unpack_from("<QQI", body)
            time.sleep(self.seconds)
            return os.pread(file, size, offset)
        if operation == READDIR:
            _, offset, size = struct.unpack_from("<QQI", body)
            return _entries(path, offset, size)
        if operation == RELEASE:
            os.close(struct.unpack_from("<Q", body)[0])
        if operation in (RELEASE, RELEASEDIR, FLUSH):
            return b""
        raise OSError(errno.ENOSYS, "not needed")


def _attributes(path: Path) -> bytes:
    found = path.stat()
    times = [int(found.st_atime), int(found.st_mtime), int(found.st_ctime)]
    return _ATTRIBUTES.pack(
        found.st_ino, found.st_size, found.st_blocks, *times, 0, 0, 0, found.st_mode, 1, found.st_uid, found.st_gid,
        0, 4096, 0,
    )  # fmt: skip


def _entries(path: Path, first: int, size: int) -> bytes:
    """The names in a folder from the one numbered `first` on, as many as fit."""
    found = b""
    for number, child in enumerate(sorted(path.iterdir())[first:], first + 1):
        name = os.fsencode(child.name)
        kind = stat.S_IFMT(child.stat().st_mode) >> 12
        entry = struct.pack("<QQII", child.stat().st_ino, number, len(name), kind) + name
        entry += b"\0" * (-len(entry) % 8)
        if len(found) + len(entry) > size:
            break
        found += entry
    return found


def _serve(device: int, disk: Disk) -> None:
    threads = [threading.Thread(target=_answer_all, args=(device, disk)) for _ in range(_THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _answer_all(device: int, disk: Disk) -> None:
    while True:
        try:
            request = os.read(device, _REQUEST_BYTES)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.EINTR, errno.EAGAIN):  # what asked has given up
                continue
            return  # ENODEV: unmounted
        _, operation, unique, node = _IN_HEADER.unpack_from(request)
        if operation in _WITHOUT_ANSWER:
            continue
        try:
            code, body = 0, disk.answer(operation, node, request[_IN_HEADER.size :])
        except OSError as error:
            code, body = -(error.errno or errno.EIO), b""
        with contextlib.suppress(OSError):  # what asked has given up
            os.write(device, _OUT_HEADER.pack(_OUT_HEADER.size + len(body), code, unique) + body)
