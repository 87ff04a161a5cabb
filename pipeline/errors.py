"""The errors a person can act on. No TensorFlow."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager

from shardline.pipeline.commands import as_typed
from shardline.pipeline.text import display

_command_line = False


class UsageError(Exception):
    """A flag, value or input is wrong; the message is one line: what was given, what is wrong, remedy. Exit code 2.

    Messages are written with flags (`--size=0: use 1 or more`); outside a command they name the config's field
    (`size=0: use 1 or more`), because that is what a caller from Python can change. Control characters are escaped:
    names of files and values out of them are quoted as they are.
    """

    def __str__(self) -> str:
        return for_caller(display(super().__str__()))


class Failure(RuntimeError):
    """The run failed for a reason a person can act on; the message is one line. Exit code 1."""

    def __str__(self) -> str:
        return for_caller(display(super().__str__()))


class Interrupted(Failure):
    """A signal ended the work before its end; what was done is kept. Exit code 128 + `number`, as a shell has it."""

    def __init__(self, number: int, message: str) -> None:
        super().__init__(message)
        self.number = number


def explain(error: Exception) -> str:
    """What the machine refused, where, and what to do about it; "" for an error that is not the machine's."""
    if type(error).__name__ == "ResourceExhaustedError":  # TensorFlow's, for memory and for disks
        if (full := os.strerror(errno.ENOSPC)) in str(error):
            return f"{full}; {_REMEDIES[errno.ENOSPC]}"
        return "the memory of the device does not suffice; use smaller batches"
    if isinstance(error, RuntimeError) and "can't start new thread" in str(error):
        return f"{error}; {_REMEDIES[errno.EAGAIN]}"
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
        words = f" ({error})" if isinstance(error, MemoryError) and str(error) else ""
        return f"out of memory{words}; end other programs, or ask for less at once: fewer workers, smaller batches"
    if not isinstance(error, OSError):
        return ""
    if error.strerror is None:
        return str(error) or type(error).__name__
    place = os.fsdecode(error.filename) if isinstance(error.filename, (str, bytes, os.PathLike)) else ""
    remedy = _REMEDIES.get(error.errno or 0, "")
    return f"{place}{': ' if place else ''}{error.strerror}{'; ' if remedy else ''}{remedy}"


_UNREACHABLE = "the disk or its mount does not answer: look at it (dmesg, df), then run the same command again"
_REMEDIES = {
    errno.ENOENT: "check the path",
    errno.ENOTDIR: "check the path",
    errno.EACCES: "get the permission, or name another place",
    errno.EPERM: "get the permission, or name another place",
    errno.EROFS: "it cannot be written; name another place",
    errno.ENOSPC: "make room there, or name another place",
    errno.EDQUOT: "make room there, or name another place",
    errno.EFBIG: "this file system takes no larger files; name another place",
    errno.ENAMETOOLONG: "use shorter names",
    errno.EMFILE: "allow more open files (ulimit -n), or use fewer workers",
    errno.ENFILE: "end other programs, or use fewer workers",
    errno.EAGAIN: "end other programs, or use fewer workers",
    **dict.fromkeys(
        (errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EHOSTDOWN, errno.ENOTCONN, errno.ENODEV), _UNREACHABLE
    ),
}


def for_caller(text: str) -> str:
    """`text` with flags and commands as the user types them within a command, with fields' names elsewhere."""
    return as_typed(text) if _command_line else re.sub(r"(?<![\w-])--(?=[a-z])", "", text)


def in_command() -> bool:
    """Whether this process is a command that a person typed."""
    return _command_line


@contextmanager
def command_line() -> Iterator[None]:
    """Within it, messages name flags: the process is a command that a person typed."""
    global _command_line
    before, _command_line = _command_line, True
    try:
        yield
    finally:
        _command_line = before
