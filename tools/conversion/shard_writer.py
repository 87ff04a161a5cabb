"""The unit of work of a conversion: `write_shard(ShardTask) -> ShardResult`. No TensorFlow.

A shard's bytes are a pure function of its task's inputs and options, so it does not matter which process, machine
or attempt writes it. It appears under its name only when whole, and its receipt appears after it.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa

from shardline.pipeline import stored
from shardline.pipeline.errors import Failure, UsageError
from shardline.pipeline.example import encode_example, parse_example
from shardline.pipeline.executors import TIMEOUT, WHY, Show, Task, no_show
from shardline.pipeline.files import atomic_writer, file_sha256, open_regular
from shardline.pipeline.image_options import ImageOptions
from shardline.pipeline.image_types import BadImage
from shardline.pipeline.images import process, set_up_process
from shardline.pipeline.manifest import Features
from shardline.pipeline.object_store import Store
from shardline.pipeline.source_files import (
    STORE,
    TAR,
    ZIP,
    Origin,
    Place,
    machine_fault,
    read_file,
    read_member,
    read_object,
)
from shardline.pipeline.sources_table import FILTERED, QUARANTINED, ROW, WRITTEN
from shardline.pipeline.stored import Count, Sha256
from shardline.pipeline.tfrecord import frame_record, unframe_record
from shardline.tools.conversion.sources import path_text

RECEIPT_FORMAT = "shardline receipt 3"
_HEAD_BYTES = 128  # of a receipt: keeps Arrow's buffers aligned
_RESULT = b"shardline"  # key of the receipt's metadata
# What a row holds where nothing was found out: of an input that cannot be used.
NOTHING = {field.name: "" if pa.types.is_string(field.type) else 0 for field in ROW} | {"offset": -1, "sharpness": None}


@dataclass(frozen=True)
class ShardTask(Task):
    """One shard to write: which inputs, in which order, where to, and how."""

    root: str
    inputs: tuple[tuple[int, bytes, int], ...]  # number, path relative to the root, label
    output: str  # path of the shard; the receipt lies beside it
    digest: str  # of the plan this task is part of; a receipt with another one is void
    options: ImageOptions = field(default_factory=ImageOptions)
    origins: tuple[Origin, ...] = ()  # folders and archives that inputs come from; (): the root
    places: tuple[tuple[Place, int], ...] = ()  # of each input there, and its bytes
    features: Features | None = None  # inputs are records "FILE@OFFSET:SIZE" with these features; None: files
    fail_on_bad_image: bool = False
    unseen: frozenset[int] = frozenset()  # positions at which the scan saw no file
    scan_host: str = ""  # where the scan ran
    address: str = ""  # in an object store, where shard and receipt are put in place of beside each other at `output`

    def __len__(self) -> int:
        return len(self.inputs)

    def describe(self, position: int) -> str:
        """Path of an input, for a message."""
        return path_text(self.inputs[position][1])


@dataclass(frozen=True)
class ShardResult:
    """What a finished task reports. The rows, one for each input, stay in the receipt beside the shard."""

    output: str
    digest: str
    records: int
    bytes: int
    sha256: str
    inputs: int = 0
    quarantined: int = 0
    filtered: int = 0
    seconds: float = 0.0  # it took; for estimates
    etag: str = ""  # that an object store gave the shard

    def rows(self) -> pa.Table:
        """What became of each input, in stored order: the columns of ROW.

        Raises:
          Failure: the receipt was damaged since it was written.
        """
        try:
            return read_receipt(self.output)
        except (OSError, ValueError) as error:
            raise Failure(f"{receipt_path(self.output)} is damaged ({error}); run the command again") from None

    def reasons(self) -> Counter[str]:
        """How many inputs were not written, by reason."""
        return Counter(filter(None, self.rows()["reason"].to_pylist()))


def write_shard(task: ShardTask, show: Show = no_show) -> ShardResult:
    """Convert the task's inputs into one TFRecord file and leave a receipt beside it, both in a store if it says so.

    Args:
      task: the work.
      show: called with the position of the input about to be read, and again before it is decoded.

    Raises:
      Failure: an image is bad and the task says that this ends the run.
      MachineFault: an input cannot be read here, for no fault of its own.
      OSError: the output cannot be written.
    """
    if not task.address:
        result, rows = _write_shard(task, show)
        write_receipt(result, rows)
        return result
    store, name = Store(task.address), os.path.basename(task.output)
    with tempfile.TemporaryDirectory(prefix="shardline-") as folder:
        result, rows = _write_shard(replace(task, output=os.path.join(folder, name)), show)
        if not is_whole(result):
            raise Failure(f"{result.output}: the disk of {folder} does not give back what was written; name another "
                          "one by TMPDIR")  # fmt: skip
        result = replace(result, etag=store.put(name, Path(result.output)))
        write_receipt(result, rows)
        store.put(receipt_path(name).name, receipt_path(result.output))
    return replace(result, output=task.output)


def _write_shard(task: ShardTask, show: Show) -> tuple[ShardResult, pa.Table]:
    """The shard alone; its receipt's rows."""
    started = time.monotonic()
    set_up_process()
    with atomic_writer(task.output) as file:
        columns, sha256 = _write_records(task, file, show)
    result = ShardResult(
        task.output,
        task.digest,
        records=columns["status"].count(WRITTEN),
        bytes=sum(columns["size"]),
        sha256=sha256,
        inputs=len(task.inputs),
        quarantined=columns["status"].count(QUARANTINED),
        filtered=columns["status"].count(FILTERED),
        seconds=time.monotonic() - started,
    )
    return result, pa.table(columns, schema=ROW)


def _write_records(task: ShardTask, file: BinaryIO, show: Show) -> tuple[dict[str, list[Any]], str]:
    """Convert every input; returns what became of them, a list for each column of ROW, and the SHA-256 of the file."""
    columns: dict[str, list[Any]] = {name: [] for name in ROW.names}
    digest = hashlib.sha256()
    offset = 0
    for position in range(len(task.inputs)):
        row, framed = _convert(task, position, show)
        if framed:
            row |= {"offset": offset, "size": len(framed)}
            file.write(framed)
            digest.update(framed)
            offset += len(framed)
        for name, values in columns.items():
            values.append(row.get(name, NOTHING[name]))
    return columns, digest.hexdigest()


def _convert(task: ShardTask, position: int, show: Show) -> tuple[dict[str, Any], bytes]:
    """One input's row and its framed record, empty when there is none."""
    number, path, label = task.inputs[position]
    row: dict[str, Any] = {"input": number, "path": path_text(path), "label": label}
    show(position)
    try:
        data = _read(task, position)
        row |= {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        if task.unsafe and (reason := dict(task.unsafe).get(position)):
            raise BadImage(reason, WHY[reason] + (" (--image_timeout)" if reason == TIMEOUT else ""))
        show(position, decoding=True)
        image = process(data, task.options)
    except MemoryError:
        raise machine_fault(path, "out of memory; use fewer --workers") from None
    except BadImage as fault:
        if task.fail_on_bad_image and fault.status == QUARANTINED:
            raise Failure(f"{row['path']}: {fault}; mend or remove it, or use --on_bad_image=quarantine") from None
        return row | {"status": fault.status, "reason": fault.reason, "detail": fault.detail}, b""
    example = encode_example(image.data, label, row["path"], image.height, image.width)
    return row | {
        "status": WRITTEN,
        "format": image.source_format,
        "source_height": image.source_height,
        "source_width": image.source_width,
        "height": image.height,
        "width": image.width,
        "pixel_hash": image.pixel_hash,
        "perceptual_hash": image.perceptual_hash,
        "sharpness": image.sharpness,
        "note": image.note,
    }, frame_record(example)


# ------------------------------------------------------------------------------------------- reading inputs

_RECORD = re.compile(rb"(.*)@(\d+):(\d+)$", re.DOTALL)


def _read(task: ShardTask, position: int) -> bytes:
    _, path, _ = task.inputs[position]
    if task.features:
        return _read_record(task.root, path, task.features)
    # More bytes than the pixel limit needs with 16-bit RGBA, uncompressed: not an image we would take.
    limit_bytes = int(task.options.max_megapixels * 8e6) + (1 << 20)
    root = task.root
    if task.places:
        place, size = task.places[position]
        origin = task.origins[place.origin]
        if origin.kind in (TAR, ZIP):
            return read_member(origin, place, size, limit_bytes)
        root, path = origin.path, path.removeprefix(origin.shown_as).lstrip(b"/")
        if origin.kind == STORE:
            return read_object(origin, path, size, limit_bytes, seen=position not in task.unseen)
    seen = position not in task.unseen
    return read_file(os.path.join(os.fsencode(root), path), limit_bytes, seen=seen, seen_on=task.scan_host)


def source_sha256(task: ShardTask, position: int) -> str:
    """SHA-256 of an input's bytes as a row has it: "" of one that cannot be read. Raises MachineFault."""
    try:
        return hashlib.sha256(_read(task, position)).hexdigest()
    except BadImage:
        return ""


def _read_record(root: str, path: bytes, features: Features) -> bytes:
    found = _RECORD.match(path)
    assert found, path
    try:
        with open(os.path.join(os.fsencode(root), found[1]), "rb") as file:
            file.seek(int(found[2]))
            framed = file.read(int(found[3]))
        example = parse_example(unframe_record(framed), features)
    except ValueError as error:
        raise BadImage("damaged-record", str(error)) from None
    except OSError as error:
        raise machine_fault(found[1], error.strerror or str(error)) from None
    return bytes(example.image)


# ------------------------------------------------------------------------------------------------- receipts


def receipt_path(output: str | os.PathLike[str]) -> Path:
    """Where the receipt of a shard lies: a line with a checksum, then an Arrow file of its rows and its result."""
    return Path(f"{os.fspath(output)}.receipt.arrow")


def write_receipt(result: ShardResult, rows: pa.Table) -> None:
    """Prove that a shard is finished: rows have the columns of ROW."""
    facts = {name: value for name, value in vars(result).items() if name != "output"}
    buffer = pa.BufferOutputStream()
    with pa.ipc.new_file(buffer, ROW.with_metadata({_RESULT: json.dumps(facts)})) as writer:
        writer.write_table(rows)
    content = buffer.getvalue()
    head = f"{RECEIPT_FORMAT} {hashlib.sha256(content).hexdigest()}".ljust(_HEAD_BYTES - 1) + "\n"
    with atomic_writer(receipt_path(result.output)) as file:
        file.write(head.encode())
        file.write(content)


def read_receipt(output: str) -> pa.Table:
    """The rows of a shard's receipt. Raises OSError and ValueError when there is none or it is not what was written."""
    with open_regular(receipt_path(output)), pa.memory_map(str(receipt_path(output))) as file:
        content = file.read_buffer()
    head, content = content[:_HEAD_BYTES].to_pybytes(), content[_HEAD_BYTES:]
    if head != f"{RECEIPT_FORMAT} {hashlib.sha256(content).hexdigest()}".ljust(_HEAD_BYTES - 1).encode() + b"\n":
        raise ValueError("its checksum does not match")
    try:
        rows = pa.ipc.open_file(content).read_all()
        rows.validate(full=True)
    except pa.ArrowException as error:
        raise ValueError(str(error)) from None
    if not rows.schema.equals(ROW):
        raise ValueError("it has other columns")
    return rows


def is_whole(result: ShardResult) -> bool:
    """Whether a shard is what its result says, to the last bit."""
    try:
        return os.path.getsize(result.output) == result.bytes and file_sha256(result.output) == result.sha256
    except OSError:
        return False


def load_receipt(
    output: str, digest: str, inputs: np.ndarray, is_whole: Callable[[ShardResult], bool] = is_whole
) -> ShardResult | None:
    """The result of a shard that is whole to its last bit; None when it has to be written (again).

    Args:
      output: path of the shard.
      digest: of the plan that it must belong to.
      inputs: numbers of the inputs that it must have come from, in order.
      is_whole: whether the shard is what its result says.
    """
    try:
        rows = read_receipt(output)
        facts = stored.parse(rows.schema.metadata[_RESULT], _StoredResult, what=output, remedy="")
        if facts.digest != digest or not np.array_equal(rows["input"].to_numpy(), inputs):
            return None
        result = ShardResult(output, **vars(facts))
        return result if is_whole(result) else None
    except (OSError, ValueError, TypeError, KeyError, UsageError):  # of Arrow's errors, too
        return None


@dataclass(frozen=True)
class _StoredResult:
    """A ShardResult as a receipt has it."""

    digest: Sha256
    records: Count
    bytes: Count
    sha256: Sha256
    inputs: Count
    quarantined: Count
    filtered: Count
    seconds: float
    etag: str = ""
