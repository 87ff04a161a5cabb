"""What is read back from disk is checked here before anything believes it: size, format, checksum, types, ranges.

Directories travel: a manifest, a run's config or a checkpoint may be damaged, edited, or made to do harm. A stored JSON
file ends with the SHA-256 of all that stands before it, so that any changed bit is found; its values then have the
types of a dataclass; and a file name in it is one in its own directory. Files that grow line by line have a checksum in
each line. No TensorFlow.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar

import google_crc32c
import msgspec

from shardline.pipeline.errors import UsageError
from shardline.pipeline.files import atomic_write, open_regular
from shardline.pipeline.text import display

LIMIT_BYTES = 64 << 20  # of a JSON file; a manifest of 10,000 shards and 100,000 classes has 4 MB

Count = Annotated[int, msgspec.Meta(ge=0, le=2**53)]
# A pattern ends with \Z: $ would let a line break pass at a text's end.
Sha256 = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}\Z")]

T = TypeVar("T")

_SEAL = re.compile(rb',\n "checksum": "([0-9a-f]{64})"\n}\n\Z')


_LINE_SEAL = re.compile(r', "crc32c": "([0-9a-f]{8})"}\n?\Z')


class _Head(msgspec.Struct):
    format: str | int | None = None


def save(path: str | os.PathLike[str], content: Mapping[str, Any], *, format: str, durable: bool = True) -> None:
    """Write a JSON object with its format's name first and its checksum last: whole or not at all."""
    atomic_write(path, sealed(content, format=format), durable=durable)


def load(path: str | os.PathLike[str], kind: type[T], *, format: str, remedy: str, limit_bytes: int = LIMIT_BYTES) -> T:
    """Inverse of `save`: the content as a `kind`, a dataclass.

    Raises:
      FileNotFoundError: there is no such file.
      UsageError: in one line, with the remedy, for a file that is not what `save` wrote.
    """
    data = read_bytes(path, remedy=remedy, limit_bytes=limit_bytes)
    return unsealed(data, kind, format=format, what=path, remedy=remedy)


def sealed(content: Mapping[str, Any], *, format: str) -> bytes:
    """What `save` writes."""
    text = json.dumps({"format": format, **content}, indent=1, ensure_ascii=False, allow_nan=False)
    body = text.removesuffix("\n}").encode(errors="replace")  # of a path that is no UTF-8
    return body + b',\n "checksum": "%s"\n}\n' % hashlib.sha256(body).hexdigest().encode()


def unsealed(data: bytes, kind: type[T], *, format: str, what: object, remedy: str) -> T:
    """Inverse of `sealed`. Raises UsageError that names `what`."""
    head = parse(data, _Head, what=what, remedy=remedy)
    if head.format != format:
        found = "none" if head.format is None else display(str(head.format))
        raise UsageError(f"{what} has format {found}, this program reads {format}; {remedy}")
    seal = _SEAL.search(data)
    if not seal or hashlib.sha256(data[: seal.start()]).hexdigest() != seal[1].decode():
        raise UsageError(f"{what} was edited or damaged: its checksum does not match; {remedy}")
    return parse(data, kind, what=what, remedy=remedy)


def sealed_line(values: Mapping[str, Any]) -> str:
    """An object as a line of a JSON Lines file, its checksum last."""
    body = json.dumps(values).removesuffix("}")
    return f'{body}, "crc32c": "{_line_crc(body)}"}}\n'


def unsealed_line(line: str, *, what: object, remedy: str) -> dict[str, Any]:
    """Inverse of `sealed_line`; a line without a checksum, as others write it, is taken as it is. Raises UsageError."""
    seal = _LINE_SEAL.search(line)
    if seal and _line_crc(line[: seal.start()]) != seal[1]:
        raise UsageError(f"{what} was edited or damaged: its checksum does not match; {remedy}")
    try:
        values = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{what} is damaged ({display(str(error))}); {remedy}") from None
    if not isinstance(values, dict):
        raise UsageError(f"{what} is damaged (it is no object); {remedy}")
    values.pop("crc32c", None)
    return values


def _line_crc(body: str) -> str:
    return str(google_crc32c.Checksum(body.encode(errors="replace")).hexdigest().decode())


def read_bytes(path: str | os.PathLike[str], *, remedy: str, limit_bytes: int = LIMIT_BYTES) -> bytes:
    """The content of a regular file of a sane size. Raises FileNotFoundError and UsageError."""
    try:
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            if size > limit_bytes:
                raise UsageError(f"{path} has {size:,} bytes, more than the {limit_bytes:,} allowed; {remedy}")
            return file.read(limit_bytes + 1)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise UsageError(f"{path} cannot be read ({error.strerror}); {remedy}") from None


def parse(data: bytes | str, kind: type[T], *, what: object, remedy: str) -> T:
    """A JSON text as a `kind`. Raises UsageError that says where `what` is not as it should be."""
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise UsageError(f"{what} is damaged ({display(str(error))}); {remedy}") from None


def convert(value: Any, kind: type[T], *, what: object, remedy: str) -> T:
    """The same for a value that is no text any more."""
    try:
        return msgspec.convert(value, kind)
    except (msgspec.ValidationError, RecursionError) as error:
        raise UsageError(f"{what} is damaged ({display(str(error))}); {remedy}") from None


def stored_path(directory: str | os.PathLike[str], name: str, pattern: str | re.Pattern[str], *, what: object) -> Path:
    """`directory`/`name` for a name that was read from a file, if it has the form that such names have.

    This is the only way from a stored name to a path: a name that leads elsewhere, or to a file of another kind, is
    never opened or removed. `pattern` matches the whole name.

    Raises:
      UsageError: the name has another form; `what` is the file that it stands in.
    """
    if not re.fullmatch(pattern, name) or os.path.basename(name) != name or name in ("", ".", "..") or "\0" in name:
        raise UsageError(f"{what} names the file {display(name)[:200]!r}, which is not its own; restore it from a copy")
    return Path(directory) / name
