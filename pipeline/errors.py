"""The errors a person can act on. No TensorFlow."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

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


def for_caller(text: str) -> str:
    """`text` with `--flag` as it is within a command, and as the name of a field elsewhere."""
    return text if _command_line else re.sub(r"(?<![\w-])--(?=[a-z])", "", text)


@contextmanager
def command_line() -> Iterator[None]:
    """Within it, messages name flags: the process is a command that a person typed."""
    global _command_line
    before, _command_line = _command_line, True
    try:
        yield
    finally:
        _command_line = before
