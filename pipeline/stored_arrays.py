"""Arrays by name with a JSON header in one .npz file, in which any changed bit is found before it is used.

NumPy opens such a file as any other; `header` is an array of bytes there. The header names every array with its type,
shape and SHA-256, and carries a checksum of its own; a CRC-32C at the file's end covers all of it. No TensorFlow.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
import zipfile
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, BinaryIO

import google_crc32c
import msgspec
import numpy as np

from shardline.pipeline import stored
from shardline.pipeline.errors import UsageError
from shardline.pipeline.files import atomic_writer, open_regular
from shardline.pipeline.stored import Count, Sha256
from shardline.pipeline.text import display

_HEADER = "header.npy"
_TAIL = re.compile(rb"crc32c [0-9a-f]{8}\Z")  # the zip file's comment, which is its end
_TAIL_BYTES, _CRC_BYTES = 15, 8
_CHUNK_BYTES = 1 << 24
_NPY_HEADER_BYTES = 1 << 16  # before an array's bytes, at most


@dataclass(frozen=True)
class _Array:
    dtype: Annotated[str, msgspec.Meta(pattern=r"^[<>|=]?[biufcSU][0-9]{1,4}\Z")]
    shape: Annotated[tuple[Count, ...], msgspec.Meta(max_length=32)]
    sha256: Sha256


@dataclass(frozen=True)
class _Header:
    header: dict[str, Any]
    arrays: dict[str, _Array]


def save_arrays(
    path: str | os.PathLike[str],
    header: Mapping[str, Any],
    arrays: Mapping[str, np.ndarray],
    *,
    format: str,
    durable: bool = True,
) -> None:
    """Write arrays of numbers or text, and a header of plain values: whole or not at all."""
    arrays = {name: np.asarray(array, order="C") for name, array in arrays.items()}
    facts = {
        name: {"dtype": array.dtype.str, "shape": list(array.shape), "sha256": _sha256(array)}
        for name, array in arrays.items()
    }
    text = stored.sealed({"header": dict(header), "arrays": facts}, format=format)
    with atomic_writer(path, durable=durable) as file:
        with zipfile.ZipFile(file, "w") as archive:
            for name, array in {"header": np.frombuffer(text, np.uint8), **arrays}.items():
                with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as member:
                    np.lib.format.write_array(member, array, allow_pickle=False)
            archive.comment = b"crc32c " + b"0" * _CRC_BYTES
        file.flush()
        file.seek(-_CRC_BYTES, os.SEEK_END)
        file.write(_crc(Path(file.name)))


def load_arrays(
    path: str | os.PathLike[str], *, format: str, remedy: str, only: Collection[str] | None = None
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Inverse of `save_arrays`, of the arrays named `only` where that is given.

    Raises:
      FileNotFoundError: there is no such file.
      UsageError: in one line, with the remedy, for a file that is not what `save_arrays` wrote.
    """
    try:
        with open_regular(path) as file:
            if not _tail_is_right(file, Path(path)):
                raise UsageError(f"{path} is damaged or cut: its checksum does not match; {remedy}")
            with zipfile.ZipFile(file) as archive:
                size = os.fstat(file.fileno()).st_size
                return _read(archive, size, format=format, what=path, remedy=remedy, only=only)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise UsageError(f"{path} cannot be read ({error.strerror}); {remedy}") from None
    except (zipfile.BadZipFile, ValueError, KeyError, EOFError, RuntimeError, OverflowError) as error:
        # Only of a file that somebody made so that its checksum is right.
        raise UsageError(f"{path} is damaged ({display(str(error))}); {remedy}") from None


def _read(
    archive: zipfile.ZipFile, size: int, *, format: str, what: object, remedy: str, only: Collection[str] | None
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    text = _member(archive, _HEADER, np.dtype(np.uint8), None, min(size, stored.LIMIT_BYTES)).tobytes()
    found = stored.unsealed(text, _Header, format=format, what=what, remedy=remedy)
    if sorted(archive.namelist()) != sorted([_HEADER, *(f"{name}.npy" for name in found.arrays)]):
        raise ValueError("it holds other arrays than its header says")
    arrays = {}
    for name, facts in found.arrays.items():
        if only is not None and name not in only:
            continue
        arrays[name] = _member(archive, f"{name}.npy", np.dtype(facts.dtype), facts.shape, size)
        if _sha256(arrays[name]) != facts.sha256:
            raise ValueError(f"the SHA-256 of {name} does not match")
    return found.header, arrays


def _member(
    archive: zipfile.ZipFile, name: str, dtype: np.dtype, shape: tuple[int, ...] | None, limit_bytes: int
) -> np.ndarray:
    """One array, of this type and, if given, shape; nothing is allocated for one that cannot be there."""
    info = archive.getinfo(name)
    if info.compress_type != zipfile.ZIP_STORED or info.file_size > limit_bytes:
        raise ValueError(f"{name} cannot have its size")
    with archive.open(info) as member:
        head = io.BytesIO(member.read(min(info.file_size, _NPY_HEADER_BYTES)))
        version = np.lib.format.read_magic(head)
        read_header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        there, fortran, kind = read_header[version](head)
        bytes_there = info.file_size - head.tell()
        if kind != dtype or fortran or (shape is not None and there != shape) or kind.hasobject:
            raise ValueError(f"{name} is not what its header says")
        if int(np.prod(there, dtype=object)) * kind.itemsize != bytes_there:
            raise ValueError(f"{name} has {bytes_there:,} bytes")
        array = np.empty(there, kind)
        flat = array.reshape(-1).view(np.uint8) if array.size else np.empty(0, np.uint8)
        rest = head.read()
        flat[: len(rest)] = np.frombuffer(rest, np.uint8)
        filled = len(rest)
        while filled < len(flat):
            piece = member.read(min(_CHUNK_BYTES, len(flat) - filled))
            flat[filled : filled + len(piece)] = np.frombuffer(piece, np.uint8)
            filled += len(piece)
        member.read(1)  # zip's own checksum is compared at the end
    return array


def _sha256(array: np.ndarray) -> str:
    return hashlib.sha256(array.reshape(-1).view(np.uint8).data if array.size else b"").hexdigest()


def _tail_is_right(file: BinaryIO, path: Path) -> bool:
    if os.fstat(file.fileno()).st_size < _TAIL_BYTES:
        return False
    file.seek(-_TAIL_BYTES, os.SEEK_END)
    tail = file.read()
    file.seek(0)
    return bool(_TAIL.match(tail)) and tail[-_CRC_BYTES:] == _crc(path)


def _crc(path: Path) -> bytes:
    """CRC-32C of a file but for its last bytes, where it stands itself."""
    checksum = google_crc32c.Checksum()
    with open(path, "rb") as file:  # not mapped: the pages of a large file would count as this process's memory
        left = os.fstat(file.fileno()).st_size - _CRC_BYTES
        while left > 0 and (piece := file.read(min(_CHUNK_BYTES, left))):
            checksum.update(piece)
            left -= len(piece)
    return bytes(checksum.hexdigest())
