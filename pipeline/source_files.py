"""Read one source file: its bytes, a reason why it is no image, or a fault of this machine, told apart. No TensorFlow.

An image is given up only for what is wrong with itself. A mount that is missing, a disk or a server that fails and
want of memory are the machine's: another machine, or the same one later, would store the image.
"""

from __future__ import annotations

import errno
import os
import socket
import stat
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from shardline.pipeline.errors import Failure
from shardline.pipeline.image_types import BadImage
from shardline.pipeline.object_store import Store
from shardline.pipeline.text import display

FOLDER, TAR, ZIP, STORE = "folder", "tar", "zip", "store"  # kinds of origin


@dataclass(frozen=True)
class Origin:
    """A folder, here or in an object store, or an archive that inputs are read from."""

    path: str
    kind: str
    shown_as: bytes = b""  # the folder that the inputs' paths begin with, which is not there on disk


class Place(NamedTuple):
    """Where the bytes of one input lie: in a folder at the input's path, in an archive at an offset."""

    origin: int  # number of the origin
    offset: int = 0  # of a tar member's bytes, of a zip member's local header
    packed: int = 0  # bytes in a zip archive
    crc: int = 0  # CRC-32 of the bytes, for a zip member


class MachineFault(Failure):
    """This host could not read or hold an input that may be sound; another one should try."""


def machine_fault(path: bytes | str, reason: str) -> MachineFault:
    """The fault in one line, with host and path."""
    return MachineFault(
        f"{display(path)} cannot be read on {socket.gethostname()}: {reason}; the image may be sound, so it is not "
        "set aside: mend the machine or the mount and run the command again, it continues where it stopped"
    )


def read_file(path: bytes, limit_bytes: int, *, seen: bool = False, seen_on: str = "") -> bytes:
    """The bytes of a regular file.

    Args:
      path: of the file.
      limit_bytes: a larger file is no image.
      seen: it was there before: that it cannot be found says nothing about it.
      seen_on: the host that saw it; on another one, that it may not be read says nothing about it either.

    Raises:
      BadImage: something else stands there, or nothing.
      MachineFault: this machine cannot tell.
    """
    try:
        # Not blocking: opening a named pipe would wait for ever.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, ValueError) as error:
        raise _unreadable(path, error, seen, seen_on) from None
    try:
        facts = os.fstat(descriptor)
        if stat.S_ISDIR(facts.st_mode):
            raise BadImage("is-a-directory", "a directory stands where an image was expected")
        if not stat.S_ISREG(facts.st_mode):
            raise BadImage("not-a-file", "a pipe, socket or device")
        _refuse_too_large(facts.st_size, limit_bytes)
        data = os.read(descriptor, facts.st_size + 1)
        if len(data) == facts.st_size:  # all, in one call
            return data
        with open(descriptor, "rb", closefd=False) as file:  # it grows, or is larger than what one call reads
            return data + file.read()
    except OSError as error:
        raise _unreadable(path, error, True, seen_on) from None
    except MemoryError:
        raise machine_fault(path, "out of memory") from None
    finally:
        os.close(descriptor)


def read_object(origin: Origin, path: bytes, size: int, limit_bytes: int, *, seen: bool) -> bytes:
    """The bytes of a file in an object store, of `size` bytes as the store's listing says.

    Raises:
      BadImage: it is too large for an image; or it is not there, and was not `seen` before.
      MachineFault: it has gone since.
      Failure: the store gives no answer.
    """
    _refuse_too_large(size, limit_bytes)
    store, name = Store(origin.path), path.decode()
    try:
        return store.read(name, limit_bytes)
    except FileNotFoundError:
        if seen:
            raise machine_fault(f"{store.url}/{name}", "it is not there any more") from None
    if any(store.entries(name)):
        raise BadImage("is-a-directory", "a directory stands where an image was expected")
    raise BadImage("missing", "no such file")


def _refuse_too_large(size: int, limit_bytes: int) -> None:
    if size > limit_bytes:
        raise BadImage("file-too-large", f"{size:,} bytes are more than --max_megapixels can need")


def find_source(folders: Sequence[str], path: str) -> str:
    """The file that an input's stored path names in one of the folders that were converted; "" if it is not there.

    The path was read from a file, so it leads nowhere else.
    """
    if "\0" in path or os.path.isabs(path) or ".." in path.split("/"):
        return ""
    candidates = filter(None, (path, path.partition("/")[2]))  # of SPLIT=SOURCE, paths begin with the split
    places = (os.path.join(folder, candidate) for candidate in candidates for folder in folders)
    return next(filter(os.path.isfile, places), "")


def _unreadable(path: bytes, error: OSError | ValueError, seen: bool, seen_on: str) -> BadImage | MachineFault:
    """Only what is proven is said of the file: every error that is not known to be its own is the machine's."""
    if isinstance(error, ValueError):
        return BadImage("missing", "no file has a name with a zero byte")
    what = error.strerror or str(error)
    if error.errno == errno.ELOOP:
        return BadImage("symlink-loop", "a symbolic link that leads back to itself")
    if error.errno == errno.ENXIO:
        return BadImage("not-a-file", "a pipe, socket or device")
    if error.errno in (errno.ENAMETOOLONG, errno.EISDIR):
        return BadImage("unreadable", what)
    if error.errno in (errno.EACCES, errno.EPERM) and not (seen and seen_on not in ("", socket.gethostname())):
        return BadImage("unreadable", what)
    if error.errno in (errno.ENOENT, errno.ENOTDIR) and not seen:
        if os.path.islink(path):
            return BadImage("dangling-symlink", f"leads to {display(os.readlink(path))}, which does not exist")
        return BadImage("missing", "no such file")
    return machine_fault(path, what)


# Members of archives ------------------------------------------------------------------------------------------------

_LOCAL_HEADER = struct.Struct("<4s2xHH16xHH")  # signature, flags, method, lengths of name and extra field
STORED, DEFLATED = 0, 8  # methods of zip members that are read


def read_member(origin: Origin, place: Place, size: int, limit_bytes: int) -> bytes:
    """The bytes of an archive's member, of `size` bytes as the archive's listing says.

    Raises:
      BadImage: it is too large for an image, or damaged.
      MachineFault: this machine cannot read the archive.
    """
    _refuse_too_large(size, limit_bytes)
    try:
        with open(origin.path, "rb", buffering=0) as file:
            if origin.kind == TAR:
                return _exactly(file.fileno(), size, place.offset)
            return _unzipped(file.fileno(), place, size)
    except OSError as error:
        raise machine_fault(origin.path, error.strerror or str(error)) from None
    except MemoryError:
        raise machine_fault(origin.path, "out of memory") from None


def _unzipped(file: int, place: Place, size: int) -> bytes:
    header = _exactly(file, _LOCAL_HEADER.size, place.offset)
    signature, _, method, name, extra = _LOCAL_HEADER.unpack(header)
    if signature != b"PK\3\4":
        raise BadImage("damaged-member", "no zip member stands where the archive's directory says")
    data = _exactly(file, place.packed, place.offset + _LOCAL_HEADER.size + name + extra)
    if method == DEFLATED:
        try:
            data = zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, size + 1)  # not more than it says: bombs
        except zlib.error as error:
            raise BadImage("damaged-member", f"cannot be inflated ({error})") from None
    if len(data) != size or zlib.crc32(data) != place.crc:
        raise BadImage("damaged-member", "its size or checksum is not the one in the archive's directory")
    return data


def _exactly(file: int, size: int, offset: int) -> bytes:
    pieces = []
    while size and (piece := os.pread(file, size, offset)):
        pieces.append(piece)
        size, offset = size - len(piece), offset + len(piece)
    if size:
        raise BadImage("damaged-member", "the archive ends within it")
    return b"".join(pieces)
