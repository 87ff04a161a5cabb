"""Archives as sources: what a .zip or .tar holds, and where, without unpacking it. No TensorFlow.

A member is read from its place in the archive (`pipeline.source_files.read_member`). A .tar in a .tar is a folder, as
in ILSVRC2012_img_train.tar. A compressed .tar cannot be read at a place: it is decompressed beside the output for as
long as the conversion runs. Names that lead elsewhere, links, devices and bombs are refused; nothing is ever written
under a name that an archive gives. Formats: https://pkware.cachefly.net/webdocs/casestudies/APPNOTE.TXT and pax(1).
"""

from __future__ import annotations

import bz2
import contextlib
import errno
import gzip
import lzma
import mmap
import os
import re
import stat
import struct
import weakref
import zlib
from array import array
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from shardline.pipeline.errors import UsageError
from shardline.pipeline.files import remove_strays, temporary_path
from shardline.pipeline.sniff import NOT_IMAGES, sniff
from shardline.pipeline.source_files import DEFLATED, STORED, TAR, ZIP, Origin, Place
from shardline.pipeline.text import display
from shardline.tools.conversion.config import ARCHIVE
from shardline.tools.conversion.sources import file_stamp
from shardline.tools.conversion.trees import Entry, has_image, is_left_behind

Opener = Callable[[str], BinaryIO]
_COMPRESSED: dict[bytes, Opener] = {  # by the first bytes: names are often wrong
    b"\x1f\x8b": gzip.open,  # type: ignore[dict-item]
    b"BZh": bz2.open,  # type: ignore[dict-item]
    b"\xfd7zXZ": lzma.open,  # type: ignore[dict-item]
}
_REMEDIES = {"html": "; download it again", "rar": "; unpack it and give the folder"}  # of what is no archive of ours
_REMEDIES["7z"] = _REMEDIES["rar"]
MAX_RATIO = 100  # of the members' bytes to the archive's; photographs hardly compress
BOMB_BYTES = 64 << 20  # below which nobody minds
_CHUNK = 1 << 20
_MAX_DEPTH = 100
_LONG_NAME_BYTES = 1 << 20


def is_archive(path: str) -> bool:
    """Whether a file is named like an archive that can be read."""
    return re.search(ARCHIVE, path, re.IGNORECASE) is not None


def archive_in(path: str) -> tuple[str, str]:
    """The archive that a path leads into, and the folder in it; two empty texts where there is none."""
    inner: list[str] = []
    while path and not os.path.lexists(path):
        path, _, name = path.rpartition("/")
        inner.insert(0, name)
    return (path, "/".join(inner)) if is_archive(path) and os.path.isfile(path) else ("", "")


class ArchiveTree:
    """The folders and files of an archive, seen from one of its folders. See `trees.Tree`."""

    def __init__(self, members: _Members, origin: Origin, root: bytes, keep: object = None) -> None:
        self._members, self._root = members, root
        self._keep = keep  # lives as long as this
        self.origins = (origin,)
        self.is_archive, self.is_mounted = True, False

    def entries(self, folder: bytes) -> list[Entry]:
        """What stands in a folder, sorted by name."""
        return self._members.entries(os.path.join(self._root, folder).rstrip(b"/"))

    def hidden_images(self) -> list[bytes]:
        """See `trees.SourceTree`."""
        root = self._root + b"/" if self._root else b""
        found = []
        for path, folder in self._members.folders.items():
            *above, name = path.removeprefix(root).split(b"/")
            if path.startswith(root) and name.startswith(b".") and not any(map(is_left_behind, above)):
                found += [b"/".join((*above, name))] * has_image(bytes(folder.names).split(b"/"))
        return sorted(found)

    def has(self, folder: bytes) -> bool:
        """Whether there is such a folder."""
        return os.path.join(self._root, folder).rstrip(b"/") in self._members.folders


def open_archive(path: str, inner: str = "", *, spool_beside: str = "") -> ArchiveTree:
    """List an archive's members.

    Args:
      path: of the archive.
      inner: the folder in it that is wanted; "": its root.
      spool_beside: where a compressed .tar is decompressed to: a file beside this path.

    Raises:
      UsageError: the archive is damaged, hostile, or of a kind that cannot be read.
    """
    what = f"--source={path}"
    members = _Members(what, stamp=file_stamp(os.stat(path)))
    spool = None
    try:
        is_zip, unpacker = _kind(path, what)
        if is_zip:
            _list_zip(path, members)
            origin = Origin(os.path.abspath(path), ZIP)
        else:
            if unpacker:
                spool = Spool(path, spool_beside or path, unpacker)
            origin = Origin(os.path.abspath(spool.path if spool else path), TAR)
            with open(origin.path, "rb") as file:
                _list_tar(file, members, 0, os.path.getsize(origin.path), b"")
    except BaseException as error:
        if spool:
            spool.remove()
        if not isinstance(error, OSError) or error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise UsageError(f"{what} cannot be read: {error.strerror or error}") from None
    tree = ArchiveTree(members, origin, os.fsencode(inner.strip("/")), spool)
    if not tree.has(b""):
        raise UsageError(f"{what}: no folder {inner!r} in it")
    return tree


def _kind(path: str, what: str) -> tuple[bool, Opener | None]:
    """Whether a file is a .zip, and what decompresses it if it is a compressed .tar: told by its first bytes.

    Only a .zip behind other bytes, a program that unpacks itself, is told by its name.
    """
    with open(path, "rb") as file:
        start = file.read(_BLOCK)
    unpacker = next((unpacker for magic, unpacker in _COMPRESSED.items() if start.startswith(magic)), None)
    is_tar = unpacker is not None or start[257:262] == b"ustar"
    found = sniff(start)
    if found in NOT_IMAGES and found != "zip" and not is_tar:
        raise UsageError(f"{what} is {NOT_IMAGES[found]}, and no .zip or .tar{_REMEDIES.get(found, '')}")
    return found == "zip" or (path.lower().endswith(".zip") and not is_tar), unpacker


# ------------------------------------------------------------------------------------------------ members


@dataclass(eq=False)
class _Folder:
    """The members of one folder, as columns: millions of them must fit into memory."""

    folders: set[bytes] = field(default_factory=set)
    names: bytearray = field(default_factory=bytearray)  # each followed by a slash
    size: array[int] = field(default_factory=lambda: array("Q"))
    offset: array[int] = field(default_factory=lambda: array("Q"))
    packed: array[int] = field(default_factory=lambda: array("Q"))
    crc: array[int] = field(default_factory=lambda: array("I"))


@dataclass(eq=False)
class _Members:
    """What an archive holds, by folder."""

    what: str  # the archive, for messages
    stamp: int
    folders: dict[bytes, _Folder] = field(default_factory=lambda: {b"": _Folder()})

    def add_folder(self, path: bytes) -> _Folder:
        """The folder at a checked path, with those above it."""
        if path not in self.folders:
            above, name = os.path.split(path)
            self.add_folder(above).folders.add(name)
            self.folders[path] = _Folder()
        return self.folders[path]

    def add_file(self, path: bytes, size: int, offset: int, packed: int = 0, crc: int = 0) -> None:
        """A file at a checked path."""
        above, name = os.path.split(path)
        if not name:
            self.refuse(path, "is a file without a name")
        folder = self.add_folder(above)
        folder.names += name + b"/"
        folder.size.append(size)
        folder.offset.append(offset)
        folder.packed.append(packed)
        folder.crc.append(crc)

    def entries(self, path: bytes) -> list[Entry]:
        """What stands in a folder, sorted by name; of members with one name the last, as if unpacked."""
        folder = self.folders.get(path)
        if folder is None:
            return []
        found = {name: Entry(name, True) for name in folder.folders}
        columns = zip(folder.size, folder.offset, folder.packed, folder.crc, strict=True)
        for name, (size, offset, packed, crc) in zip(bytes(folder.names).split(b"/")[:-1], columns, strict=True):
            if name in folder.folders:
                self.refuse(os.path.join(path, name), "is a file and a folder")
            found[name] = Entry(name, False, size, self.stamp, Place(0, offset, packed, crc))
        return sorted(entry for entry in found.values() if not is_left_behind(entry.name))

    def checked(self, name: bytes) -> bytes:
        """A member's name as a relative path. Raises UsageError when it leads elsewhere."""
        if name.startswith(b"/") or re.match(rb"[A-Za-z]:[/\\]", name):
            self.refuse(name, "is an absolute path")
        parts = [part for part in name.split(b"/") if part not in (b"", b".")]
        if b".." in parts:
            self.refuse(name, "leads out of the archive")
        if b"\0" in name or len(parts) > _MAX_DEPTH or any(len(part) > 255 for part in parts):
            self.refuse(name, "is no file name")
        return b"/".join(parts)

    def refuse(self, name: bytes, why: str) -> None:
        """Raise UsageError: the archive is hostile, or made for something else."""
        raise UsageError(
            f"{self.what}: its member {display(name)!r} {why}; if you trust the archive, unpack it and give the folder"
        )


def _refuse_bomb(what: str, expanded: int, packed: int) -> None:
    if expanded > max(BOMB_BYTES, MAX_RATIO * packed):
        raise UsageError(
            f"{what}: {packed:,} bytes expand to {expanded:,} or more, which photographs never do: it may be made to "
            "fill the disk; if you trust it, unpack it and give the folder"
        )


# ---------------------------------------------------------------------------------------------------- zip

_END = struct.Struct("<4s4HIIH")  # end of the central directory
_END64_LOCATOR, _END64 = struct.Struct("<4sIQI"), struct.Struct("<4sQ2H2I4Q")
_ENTRY = struct.Struct("<4s2B5HIII5HII")  # of the central directory
_ENCRYPTED, _UTF8 = 0x1, 0x800  # flags
_ZIP64, _UNICODE_NAME = 0x1, 0x7075  # extra fields
_UNIX = 3


def _list_zip(path: str, members: _Members) -> None:
    """Read the central directory."""
    size = os.path.getsize(path)
    if not size:
        raise UsageError(f"{members.what}: the archive is empty")
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        try:
            entries, start, extra_bytes = _central_directory(data, size)
            expanded = packed = 0
            for _ in range(entries):
                start, more = _add_zip_member(data, start, extra_bytes, members)
                expanded, packed = expanded + more[0], packed + more[1]
        except (struct.error, IndexError, ValueError):
            raise UsageError(f"{members.what}: no .zip archive, or a damaged one; download it again") from None
    if packed > size:
        raise UsageError(
            f"{members.what}: its members overlap, so that {size:,} bytes stand for {packed:,}: it is made to fill "
            "disks and is not read"
        )
    _refuse_bomb(members.what, expanded, size)


def _central_directory(data: mmap.mmap, size: int) -> tuple[int, int, int]:
    """Number of entries, where they start, and how many bytes stand before the archive."""
    at = data.rfind(b"PK\5\6", max(0, size - _END.size - 0xFFFF))
    if at < 0:
        raise ValueError("no end of the central directory")
    _, disk, first_disk, _, entries, directory_bytes, offset, _ = _END.unpack_from(data, at)
    end = at
    if at >= _END64_LOCATOR.size and data[at - _END64_LOCATOR.size :][:4] == b"PK\6\7":
        _, _, end64, _ = _END64_LOCATOR.unpack_from(data, at - _END64_LOCATOR.size)
        signature, _, _, _, disk, first_disk, _, entries, directory_bytes, offset = _END64.unpack_from(data, end64)
        end = end64
        if signature != b"PK\6\6":
            raise ValueError("no end of the 64-bit directory")
    before = end - directory_bytes - offset
    if disk or first_disk or before < 0:
        raise ValueError("one of several volumes, or damaged")
    return entries, offset + before, before


def _add_zip_member(data: mmap.mmap, at: int, before: int, members: _Members) -> tuple[int, tuple[int, int]]:
    """List the member whose entry starts at `at`; returns where the next one does, and its sizes, full and packed."""
    (
        signature, _, system, _, flags, method, _, _, crc, packed, size,
        name_bytes, extra_bytes, comment_bytes, _, _, attributes, offset,
    ) = _ENTRY.unpack_from(data, at)  # fmt: skip
    if signature != b"PK\1\2":
        raise ValueError("no entry")
    at += _ENTRY.size
    raw, extra = data[at : at + name_bytes], data[at + name_bytes : at + name_bytes + extra_bytes]
    if len(extra) < extra_bytes:
        raise ValueError("the directory ends within an entry")
    fields = _extra_fields(extra)
    size, packed, offset = _zip64(fields, size, packed, offset)
    name = _zip_name(raw, flags, fields, system)
    path = members.checked(name)
    mode = attributes >> 16 if system == _UNIX else 0
    if stat.S_IFMT(mode) not in (0, stat.S_IFREG, stat.S_IFDIR):
        members.refuse(name, "is a link" if stat.S_ISLNK(mode) else "is no regular file")
    if name.endswith(b"/") or stat.S_ISDIR(mode):
        members.add_folder(path)
    else:
        if flags & _ENCRYPTED:
            members.refuse(name, "is encrypted")
        if method not in (STORED, DEFLATED):
            members.refuse(name, f"is packed by method {method}, which is not read")
        if method == STORED and packed != size:
            raise ValueError("sizes of a stored member differ")
        members.add_file(path, size, offset + before, packed, crc)
    return at + name_bytes + extra_bytes + comment_bytes, (size, packed)


def _extra_fields(extra: bytes) -> dict[int, bytes]:
    """Fields of an entry's extra block, by their numbers; of several with one number, the first."""
    fields: dict[int, bytes] = {}
    while len(extra) >= 4:
        kind, length = struct.unpack_from("<HH", extra)
        fields.setdefault(kind, extra[4 : 4 + length])
        extra = extra[4 + length :]
    return fields


def _zip64(fields: Mapping[int, bytes], *sizes: int) -> list[int]:
    """Full size, packed size and offset, the large ones out of the extra field."""
    found = list(sizes)
    large = [number for number, size in enumerate(found) if size == 0xFFFFFFFF]
    if _ZIP64 in fields:
        for number, value in zip(large, struct.unpack_from(f"<{len(large)}Q", fields[_ZIP64]), strict=True):
            found[number] = value
    return found


def _zip_name(raw: bytes, flags: int, fields: Mapping[int, bytes], system: int) -> bytes:
    """The name as a file system would hold it, in UTF-8; separators of Windows are ours."""
    unicode = fields.get(_UNICODE_NAME, b"")  # version, checksum of the other name, name
    if unicode[:1] == b"\1" and int.from_bytes(unicode[1:5], "little") == zlib.crc32(raw):
        raw = unicode[5:]
    elif not flags & _UTF8:
        try:
            raw.decode()
        except UnicodeDecodeError:
            raw = raw.decode("cp437").encode()
    return raw if b"/" in raw and system == _UNIX else raw.replace(b"\\", b"/")


# ---------------------------------------------------------------------------------------------------- tar

_BLOCK = 512
_FILE, _FOLDER, _LONG_NAME, _LONG_LINK, _PAX, _PAX_GLOBAL, _LABEL = b"0\0" + b"7", b"5", b"L", b"K", b"xX", b"g", b"V"
_KINDS = {b"1": "a link", b"2": "a link", b"3": "a device", b"4": "a device", b"6": "a pipe", b"S": "a sparse file"}


def _list_tar(file: BinaryIO, members: _Members, start: int, end: int, inside: bytes) -> None:
    """List the members of the .tar between two offsets, below the folder `inside`."""
    at, name, size_given = start, b"", -1
    nothing = True
    while at + _BLOCK <= end:
        header = os.pread(file.fileno(), _BLOCK, at)
        if not header.strip(b"\0"):
            _refuse_another(file, members, at, end)
            return
        kind, size = _tar_header(header, members)
        data = at + _BLOCK
        size = size if size_given < 0 or kind in _LONG_NAME + _LONG_LINK + _PAX + _PAX_GLOBAL else size_given
        if size > end - data:
            raise UsageError(f"{members.what}: the archive ends within a member; download it again")
        at = data + -(-size // _BLOCK) * _BLOCK
        nothing = False
        if kind in _LONG_NAME + _LONG_LINK + _PAX + _PAX_GLOBAL:
            if size > _LONG_NAME_BYTES:
                raise UsageError(f"{members.what}: a name of {size:,} bytes; the archive is damaged or made to do harm")
            content = os.pread(file.fileno(), size, data)
            if kind in _LONG_NAME:
                name = content.rstrip(b"\0")
            elif kind in _PAX:
                name, size_given = _pax(content, members, name, size_given)
            continue
        if kind not in _LABEL:
            name = name or _tar_name(header)
            _add_tar_member(file, members, kind, os.path.join(inside, name), data, size)
        name, size_given = b"", -1
    if nothing:
        raise UsageError(f"{members.what}: no .tar archive, or an empty one")


def _refuse_another(file: BinaryIO, members: _Members, at: int, end: int) -> None:
    """Refuse an archive with another one after its end: what programs unpack of them is the first."""
    while at < end and not (piece := os.pread(file.fileno(), min(_CHUNK, end - at), at)).strip(b"\0"):
        at += len(piece)
    if at < end:
        at += (len(piece) - len(piece.lstrip(b"\0"))) // _BLOCK * _BLOCK
        if os.pread(file.fileno(), _BLOCK, at)[257:262] == b"ustar":
            raise UsageError(
                f"{members.what}: another archive follows its end, as if joined by cat; unpack it with `tar -i` and "
                "give the folder"
            )


def _add_tar_member(file: BinaryIO, members: _Members, kind: bytes, name: bytes, data: int, size: int) -> None:
    path = members.checked(name)
    if kind in _FOLDER or (kind in _FILE and name.endswith(b"/")):
        members.add_folder(path)
    elif kind not in _FILE:
        members.refuse(name, f"is {_KINDS.get(kind, 'of an unknown kind')}")
    elif path.lower().endswith(b".tar") and not is_left_behind(
        os.path.basename(path)
    ):  # a class of ImageNet's training set
        members.add_folder(path[:-4])
        _list_tar(file, members, data, data + size, path[:-4])
    else:
        members.add_file(path, size, data)


def _tar_header(header: bytes, members: _Members) -> tuple[bytes, int]:
    """Kind and size of a member."""
    total = sum(header) - sum(header[148:156]) + 8 * ord(" ")
    try:
        if _tar_number(header[148:156]) != total:
            raise ValueError("checksum")
        size = _tar_number(header[124:136])
    except ValueError:
        raise UsageError(f"{members.what}: no .tar archive, or a damaged one; download it again") from None
    return header[156:157], size


def _tar_number(field: bytes) -> int:
    """An octal number, or GNU's binary one. Raises ValueError, also for negative ones."""
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    number = int(field.split(b"\0")[0].strip() or b"0", 8)
    if number < 0:
        raise ValueError("negative")
    return number


def _tar_name(header: bytes) -> bytes:
    name, prefix = header[:100].split(b"\0")[0], header[345:500].split(b"\0")[0]
    return prefix + b"/" + name if prefix and header[257:263] == b"ustar\0" else name


def _pax(content: bytes, members: _Members, name: bytes, size: int) -> tuple[bytes, int]:
    """Name and size that a POSIX header gives to the next member: lines of `LENGTH KEY=VALUE`."""
    while content:
        length, _, _ = content.partition(b" ")
        line = content[: int(length)] if re.fullmatch(rb"\d{1,9}", length) else b""
        if not line.endswith(b"\n") or int(length) > len(content):
            raise UsageError(f"{members.what}: a damaged POSIX header; download the archive again")
        key, _, value = line[len(length) + 1 : -1].partition(b"=")
        if key.startswith(b"GNU.sparse"):
            members.refuse(name or value, "is a sparse file")
        if key == b"path":
            name = value
        elif key == b"size":
            if not re.fullmatch(rb"\d{1,18}", value):
                raise UsageError(f"{members.what}: a damaged POSIX header; download the archive again")
            size = int(value)
        content = content[len(line) :]
    return name, size


# -------------------------------------------------------------------------------------------------- spool


class Spool:
    """A compressed .tar, decompressed into a file that goes when this object does."""

    def __init__(self, archive: str, beside: str, unpacker: Opener) -> None:
        directory = Path(beside).absolute().parent
        while not directory.is_dir():
            directory = directory.parent
        if not os.access(directory, os.W_OK):
            raise UsageError(
                f"--source={archive} is compressed and has to be decompressed, but {directory} cannot be written; name "
                "an --output elsewhere, or unpack the archive and give the folder"
            )
        name = f".{Path(archive).name}"
        remove_strays(directory, name.__eq__, owned=False)  # another conversion may read its own
        self.path = str(temporary_path(directory / name))
        self.remove = weakref.finalize(self, _unlink, self.path)
        try:
            _decompress(archive, self.path, unpacker)
        except BaseException:
            self.remove()
            raise


def _unlink(path: str) -> None:
    with contextlib.suppress(OSError):
        os.unlink(path)


def _decompress(archive: str, target: str, unpacker: Opener) -> None:
    packed, expanded = os.path.getsize(archive), 0
    try:
        with unpacker(archive) as source, open(target, "xb") as file:
            while piece := source.read(_CHUNK):
                expanded += len(piece)
                _refuse_bomb(f"--source={archive}", expanded, packed)
                file.write(piece)
    except (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile):
        raise UsageError(f"--source={archive} is damaged; download it again") from None
