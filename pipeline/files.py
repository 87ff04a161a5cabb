"""Files that are whole or absent: atomic writes and locks, one policy for all. No TensorFlow.

Policy on fsync: what a restart or a reader relies on (manifests, receipts, shards, checkpoints, configs) is on the disk
before it gets its name, and so is the name. What can be made again at any time (plots, pages) is written with
`durable=False`, which only promises that nobody sees half of it.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import logging
import os
import re
import socket
import stat
import time
import uuid
from collections.abc import Callable, Iterator
from functools import lru_cache
from io import BufferedReader
from pathlib import Path
from typing import BinaryIO

import psutil

from shardline.pipeline.errors import Failure, UsageError
from shardline.pipeline.text import display

_log = logging.getLogger(__name__)

TEMPORARY = ".tmp"  # how the names of unfinished files end


def temporary_path(path: str | os.PathLike[str]) -> Path:
    """A name beside `path` that no other attempt on any host uses: HOST-PID-RANDOM tells who left it behind."""
    path = Path(path)
    return path.with_name(f"{path.name}.{_host()}-{os.getpid()}-{uuid.uuid4().hex[:8]}{TEMPORARY}")


@contextlib.contextmanager
def atomic_writer(path: str | os.PathLike[str], *, durable: bool = True) -> Iterator[BinaryIO]:
    """A new binary file that gets its name `path` when the block ends, and is removed if the block raises."""
    temporary = temporary_path(path)
    try:
        with open(temporary, "xb", buffering=1 << 20) as file:  # records one by one take twice the time to write
            yield file
            file.flush()
            if durable:
                os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        if isinstance(error, OSError) and error.filename in (None, str(temporary), temporary):
            error.filename = os.fspath(path)  # a full disk names no file, and nobody knows the temporary one
        raise
    if durable:
        sync_directory(Path(path).parent)


@contextlib.contextmanager
def full_disk_named(path: str | os.PathLike[str]) -> Iterator[None]:
    """Where a library writes `path`: the error of a full disk, which does not say where it is full, names that."""
    full = os.strerror(errno.ENOSPC)
    try:
        yield
    except Exception as error:
        if isinstance(error, OSError) and error.filename is None:
            error.filename = os.fspath(path)
        elif type(error).__name__ == "ResourceExhaustedError" and full in str(error):  # TensorFlow's
            raise OSError(errno.ENOSPC, full, os.fspath(path)) from error
        raise


def atomic_write(path: str | os.PathLike[str], content: bytes | memoryview | str, *, durable: bool = True) -> None:
    """Write `content`, text as UTF-8, so that a reader sees all of it or what was there before."""
    with atomic_writer(path, durable=durable) as file:
        file.write(content.encode() if isinstance(content, str) else content)


def user_cache() -> Path:
    """This program's folder for what can be made again (https://specifications.freedesktop.org/basedir-spec/)."""
    named = os.environ.get("XDG_CACHE_HOME", "")  # which is ignored unless absolute, as s3://… is not
    return Path(named if os.path.isabs(named) else os.path.expanduser("~/.cache")) / "shardline"


def file_sha256(path: str | os.PathLike[str]) -> str:
    """SHA-256 (hex) of a regular file, read piece by piece."""
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def open_regular(path: str | os.PathLike[str]) -> BufferedReader:
    """A regular file, to be read: whoever opens a pipe that lies there instead waits for ever. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "is no regular file", os.fspath(path))
    return open(descriptor, "rb")


def remove_strays(directory: str | os.PathLike[str], ours: Callable[[str], bool], *, owned: bool = True) -> None:
    """Delete the temporary files that killed attempts left of the files for whose names `ours` is true.

    Args:
      owned: nobody else uses the directory; else only what processes of this host left that have ended is deleted.
    """
    host = _host()
    with os.scandir(directory) as entries:
        for entry in entries:
            found = _STRAY.fullmatch(entry.name)
            if not found or not ours(found[1]):
                continue
            if owned or (found[2] == host and not psutil.pid_exists(int(found[3]))):
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(entry.path)


def _host() -> str:
    return socket.gethostname().replace(".", "_")


def remove_tree(directory: str | os.PathLike[str], ours: Callable[[str], bool]) -> None:
    """Delete a folder of ours, if it is there.

    Args:
      ours: whether a file, by its path relative to the folder, is one that we write there.

    Raises:
      UsageError: something else is in it; nothing was deleted.
    """
    refuse_foreign(directory, ours)
    for folder, folders, files in os.walk(directory, topdown=False):
        for name in files:
            os.unlink(os.path.join(folder, name))
        for name in folders:
            os.rmdir(os.path.join(folder, name))
    with contextlib.suppress(FileNotFoundError):
        os.rmdir(directory)


def refuse_foreign(directory: str | os.PathLike[str], ours: Callable[[str], bool]) -> None:
    """Raises UsageError where `remove_tree` would: a file that is not ours, a link, no folder at all."""
    if os.path.islink(directory) or (os.path.exists(directory) and not os.path.isdir(directory)):
        raise UsageError(f"{directory} is no folder that shardline wrote; move it away, or name another place")
    for folder, folders, files in os.walk(directory):
        links = [name for name in folders if os.path.islink(os.path.join(folder, name))]
        for name in sorted([*files, *links]):
            path = os.path.relpath(os.path.join(folder, name), directory)
            if name in links or not ours(path):
                raise UsageError(
                    f"{directory} holds {path}, which shardline did not write; move it away, or name another place"
                )


_STRAY = re.compile(r"(.+)\.([^./]+)-([0-9]{1,9})-[0-9a-f]{8}\.tmp")  # what `temporary_path` makes


def sync_directory(directory: str | os.PathLike[str]) -> None:
    """Bring the names in a directory to the disk, where the file system can."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with contextlib.suppress(OSError):  # some network file systems refuse it
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


# Locks ----------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def exclusive(path: str | os.PathLike[str], what: str, *, wait: bool = False) -> Iterator[None]:
    """This process alone uses `what` while the context lasts; the file `path` says which process that is.

    With `wait`, another process that uses it, or another thread of this one, is waited for.

    The lock is the kernel's (flock) and ends with its owner, however that ends. Over NFS, Linux turns it into a lock
    on the server, which other hosts see too. Where a file system keeps no locks, a warning says so.

    Raises:
      Failure: another process uses it; the message names its host, process and start.
      UsageError: a file that is no lock of ours has its name.
      OSError: the lock file cannot be written.
    """
    path = Path(path)
    file = _locked(path, what, wait)
    try:
        os.ftruncate(file, 0)
        os.pwrite(file, f"{owner()}\n".encode(), 0)
        yield
    finally:
        with contextlib.suppress(OSError):
            os.unlink(path)  # ours while we hold the lock; who waited for it finds out and makes another
        os.close(file)


LOCK = ".lock"  # name of a directory's lock file


@contextlib.contextmanager
def own_directory(directory: str | os.PathLike[str], flag: str) -> Iterator[None]:
    """`directory`, made if need be, is this process's alone while the context lasts.

    Raises:
      UsageError: it cannot be written.
      Failure: another process uses it; see `exclusive`.
    """
    with contextlib.ExitStack() as stack:
        try:
            Path(directory).mkdir(parents=True, exist_ok=True)
            stack.enter_context(exclusive(Path(directory) / LOCK, f"{flag}={directory}"))
        except OSError as error:
            raise UsageError(f"{flag}={directory} cannot be written: {error.strerror}; name another place") from None
        yield


@contextlib.contextmanager
def own_file(path: str | os.PathLike[str], flag: str) -> Iterator[None]:
    """Nobody else writes the file `path` while the context lasts. Raises as `own_directory` does."""
    with contextlib.ExitStack() as stack:
        lock = Path(path).with_name(f".{Path(path).name}{LOCK}")
        try:
            stack.enter_context(exclusive(lock, f"{flag}={path}"))
        except OSError as error:
            raise UsageError(f"{flag}={path} cannot be written: {error.strerror}; name another place") from None
        yield


def _locked(path: Path, what: str, wait: bool) -> int:
    """An open descriptor of the file that has this name and is locked by us."""
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
        if not _lock(file, fcntl.LOCK_EX, path, what, wait=wait):
            owner = display(os.pread(file, 200, 0).strip())
            os.close(file)
            raise Failure(f"{what} is in use by {owner or 'another process'}; wait for it, or end it")
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file), os.stat(path)):
                _refuse_no_lock(file, path)
                return file
        os.close(file)  # its owner removed the name before we had the lock


def _refuse_no_lock(file: int, path: Path) -> None:
    """Raise UsageError where what would be overwritten and removed as a lock is somebody's file, or a name of one."""
    with contextlib.suppress(OSError):  # of a pipe, which cannot be written either
        if os.pread(file, len(_OWNER), 0).strip(b"\0") not in (b"", _OWNER):
            os.close(file)
            raise UsageError(
                f"{path} is in the way and no lock that shardline wrote; move it away, or name another place"
            )


_OWNER = b"process "  # how the content of a lock file begins; a machine that lost its power left it empty, or zeros


@lru_cache  # said once
def _say_no_locks(folder: Path, reason: str, what: str) -> None:
    _log.warning(
        "%s: this file system keeps no locks (%s); make sure that no other process uses %s", folder, reason, what
    )


def owner(pid: int | None = None) -> str:
    """This process, or another one of this host, for a message: `process PID on HOST, started TIME`."""
    pid = pid or os.getpid()
    started = ""
    with contextlib.suppress(psutil.Error):
        started = f", started {time.strftime('%F %T %z', time.localtime(psutil.Process(pid).create_time()))}"
    return f"process {pid} on {socket.gethostname()}{started}"


@contextlib.contextmanager
def being_read(path: str | os.PathLike[str], what: str) -> Iterator[None]:
    """Nobody replaces `what`, whose file `path` is there, while the context lasts; any number of processes may read it.

    Nothing is written: `path` itself is locked. Where there is no such file, or no locks, nothing is promised.

    Raises:
      Failure: another process is about to replace it; see `nobody_reads`.
    """
    with contextlib.ExitStack() as stack:
        while (file := _opened(path, os.O_RDONLY)) is not None:
            closing = stack.enter_context(contextlib.ExitStack())
            closing.callback(os.close, file)
            if not _lock(file, fcntl.LOCK_SH, path, what):
                raise Failure(f"{what} is being replaced by {_holder(file)}; wait for it, then try again")
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(file), os.stat(path)):
                    break
            closing.close()  # it was replaced before we had the lock
        yield


@contextlib.contextmanager
def nobody_reads(path: str | os.PathLike[str], what: str) -> Iterator[None]:
    """Nobody reads `what`, whose file `path` is, by `being_read` while the context lasts.

    Raises:
      Failure: another process does; the message names it if it runs on this host.
    """
    with contextlib.ExitStack() as stack:
        file = _opened(path, os.O_RDWR)  # NFS asks for that
        if file is not None:
            stack.callback(os.close, file)
            if not _lock(file, fcntl.LOCK_EX, path, what):
                raise Failure(f"{what} is being read by {_holder(file)}; wait for it, or end it")
        yield


def _opened(path: str | os.PathLike[str], how: int) -> int | None:
    """A descriptor of a file; None where there is none to be had, which who reads or writes it will find out."""
    try:
        return os.open(path, how | os.O_CLOEXEC | os.O_NONBLOCK)  # it may be a pipe
    except OSError:
        return None


def _lock(file: int, kind: int, path: str | os.PathLike[str], what: str, *, wait: bool = False) -> bool:
    """Whether this process now has the lock, or there are none here, which is said."""
    try:
        fcntl.flock(file, kind | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError as error:  # ENOLCK, EOPNOTSUPP: no lock server
        _say_no_locks(Path(path).parent, error.strerror or str(error), what)
    return True


def _holder(file: int) -> str:
    """Who holds a lock of this open file, as the kernel tells it."""
    found = os.fstat(file)
    name = f"{os.major(found.st_dev):02x}:{os.minor(found.st_dev):02x}:{found.st_ino}"
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in Path("/proc/locks").read_text().splitlines():
            words = line.replace("-> ", "").split()  # number, FLOCK, ADVISORY, READ, pid, device and inode, …
            if words[1] == "FLOCK" and words[5] == name and int(words[4]) > 0:
                return owner(int(words[4]))
    return "another process, perhaps of another host"
