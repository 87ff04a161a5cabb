"""sources.parquet: what became of every input of a conversion, a row each, in stored order. No TensorFlow.

Rows are Arrow tables from the worker that converts an input to the readers of the finished file. `ROW` is what a
worker knows of an input; `SOURCES` adds where it came to lie.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from shardline.pipeline.errors import UsageError
from shardline.pipeline.files import atomic_writer, open_regular
from shardline.pipeline.manifest import FILE_NAME, Manifest, generation_folder

SOURCES_FILE = "sources.parquet"
ROW_GROUP = 10_000  # rows, at least: many shards of few records should not make many row groups

# Values of `status`. Duplicates are told when all pixels are known.
WRITTEN, QUARANTINED, FILTERED, DUPLICATE = "written", "quarantined", "filtered", "duplicate"

ROW = pa.schema(
    [
        ("input", pa.uint32()),  # number in the scan
        ("path", pa.string()),  # relative to the source
        ("label", pa.int32()),
        ("status", pa.string()),
        ("reason", pa.string()),  # a word for why it was not written
        ("detail", pa.string()),
        ("sha256", pa.string()),  # of the source file
        ("bytes", pa.int64()),  # of the source file
        ("format", pa.string()),  # of the source image
        ("source_height", pa.int32()),  # pixels, before resizing
        ("source_width", pa.int32()),
        ("height", pa.int32()),  # pixels, as stored
        ("width", pa.int32()),
        ("offset", pa.int64()),  # of the framed record in its shard, bytes; -1: not stored
        ("size", pa.int64()),  # of the framed record, bytes
        ("pixel_hash", pa.string()),  # equal for equal stored pixels
        ("perceptual_hash", pa.uint64()),  # few bits differ between images that look alike
        ("sharpness", pa.float64()),  # variance of the Laplacian, where it was asked for
        ("note", pa.string()),  # what was mended, e.g. a missing end of file
    ]
)
SOURCES = pa.schema(
    [
        *(ROW.field(name) for name in ("path", "sha256", "label")),
        pa.field("label_name", pa.string()),
        pa.field("split", pa.string()),
        *(ROW.field(name) for name in ("status", "reason", "detail", "bytes", "format")),
        *(ROW.field(name) for name in ("source_height", "source_width", "height", "width")),
        pa.field("shard", pa.string()),  # file name; "": not stored
        pa.field("record", pa.int64()),  # number in its split; -1: not stored
        *(ROW.field(name) for name in ("offset", "size", "pixel_hash", "perceptual_hash", "sharpness", "note")),
    ]
)


@contextlib.contextmanager
def sources_writer(directory: str | os.PathLike[str]) -> Iterator[Callable[[pa.Table], None]]:
    """A function that appends rows (with the columns of SOURCES) to sources.parquet; the file is whole or absent.

    Rows are written piece by piece, so their number does not matter.
    """
    import pyarrow.parquet as parquet  # 6 MB that a worker does not need

    pieces: list[pa.Table] = []

    def add(rows: pa.Table) -> None:
        pieces.append(rows.select(SOURCES.names).cast(SOURCES))
        if sum(map(len, pieces)) >= ROW_GROUP:
            flush()

    def flush() -> None:
        if pieces:
            writer.write_table(pa.concat_tables(pieces))
            pieces.clear()

    target = Path(directory) / SOURCES_FILE
    options = {"compression": "zstd", "write_page_checksum": True}
    with atomic_writer(target) as file, parquet.ParquetWriter(file, SOURCES, **options) as writer:
        yield add
        flush()


def read_sources(
    directory: str | os.PathLike[str], columns: Sequence[str], where: list[tuple[str, str, object]] | None = None
) -> pa.Table:
    """Some columns of a dataset's sources.parquet; `where`: only rows that fit, e.g. [("split", "=", "train")].

    Those of later generations lie in their folders, and come after the others.

    Raises:
      FileNotFoundError: the dataset has none; it was adopted.
      UsageError: the file is damaged, or not what a conversion writes.
    """
    manifest = _manifest(directory)
    return pa.concat_tables(read_part(path, columns, where, manifest) for path in table_paths(directory, manifest))


def read_part(
    path: str | os.PathLike[str],
    columns: Sequence[str],
    where: list[tuple[str, str, object]] | None = None,
    manifest: Manifest | None = None,
) -> pa.Table:
    """The same of one generation, a path of `table_paths`; its values are held against a manifest, if one is given."""
    import pyarrow.parquet as parquet  # 6 MB that a worker does not need

    with _readable(Path(path)):
        table = parquet.read_table(path, columns=list(columns), filters=where, page_checksum_verification=True)
        _check_rows(table, columns, _bounds(manifest) if manifest else None)
        return table


def iterate_sources(
    directory: str | os.PathLike[str], columns: Sequence[str], *, checked: bool = True
) -> Iterator[pa.RecordBatch]:
    """The same for all rows, at most ROW_GROUP at a time. Raises as `read_sources` does.

    Args:
      checked: hold them against the dataset's manifest.
    """
    import pyarrow.parquet as parquet  # 6 MB that a worker does not need

    manifest = _manifest(directory)
    held = manifest if checked else None
    bounds = _bounds(held) if held else None
    for number, path in enumerate(table_paths(directory, manifest), 1):
        with _readable(path), parquet.ParquetFile(path, page_checksum_verification=True) as file:
            wanted = _inputs(held, number) if held else file.metadata.num_rows
            if file.metadata.num_rows != wanted:
                raise pa.ArrowInvalid(f"{file.metadata.num_rows:,} rows, the manifest says {wanted:,}")
            rows = 0
            for batch in file.iter_batches(ROW_GROUP, columns=list(columns)):
                _check_rows(batch, columns, bounds)
                rows += len(batch)
                yield batch
            if rows != wanted:  # a damaged footer can hide all of them
                raise pa.ArrowInvalid(f"{rows:,} of {wanted:,} rows")


def read_rows(directory: str | os.PathLike[str], numbers: np.ndarray, columns: Sequence[str]) -> pa.Table:
    """Some rows, by their numbers in the table, which ascend, in one pass over it. Raises as `read_sources` does."""
    first, pieces = 0, []
    for batch in iterate_sources(directory, columns) if len(numbers) else ():
        low, high = np.searchsorted(numbers, (first, first + len(batch)))
        pieces.append(batch.take(pa.array(numbers[low:high] - first)))
        first += len(batch)
    return pa.Table.from_batches(pieces, pa.schema([SOURCES.field(name) for name in columns]))


def _manifest(directory: str | os.PathLike[str]) -> Manifest | None:
    """Of a dataset; None where a folder is none, or not yet."""
    return Manifest.load(directory) if (Path(directory) / FILE_NAME).exists() else None


def _inputs(manifest: Manifest, generation: int) -> int:
    """How many inputs a generation had."""
    inputs = [0, *(then.ledger.inputs for then in manifest.generations)]
    return inputs[generation] - inputs[generation - 1] if manifest.generations else manifest.ledger.inputs


def table_paths(directory: str | os.PathLike[str], manifest: Manifest | None) -> list[Path]:
    """The tables of a dataset: its own and one of each later generation; the folder's own where it is no dataset."""
    generations = manifest.num_generations if manifest else 1
    return [Path(directory) / generation_folder(number) / SOURCES_FILE for number in range(1, generations + 1)]


@contextlib.contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Within it, whatever Arrow says of a damaged file becomes one line."""
    try:
        with open_regular(path):  # Arrow would wait at a pipe
            yield
    except FileNotFoundError:
        raise
    except (OSError, ValueError, KeyError, pa.ArrowException) as error:  # ValueError: names that are no UTF-8, too
        raise UsageError(
            f"{path} cannot be read ({error}); restore it from a copy, or convert again with --overwrite"
        ) from None


class _Bounds(NamedTuple):
    """What the values of a dataset's rows can be, by column."""

    words: dict[str, set[str]]
    ranges: dict[str, tuple[int, int]]


def _bounds(manifest: Manifest) -> _Bounds:
    splits = manifest.splits.values()
    shards = [shard for split in splits for shard in split.shards]
    longest = max((shard.bytes for shard in shards), default=0)
    return _Bounds(
        words={
            "status": {WRITTEN, QUARANTINED, FILTERED, DUPLICATE},
            "label_name": {"", *manifest.labels},
            "split": set(manifest.splits),
            "shard": {"", *(shard.file for shard in shards)},
        },
        ranges={
            "label": (-1, len(manifest.labels) - 1),
            "offset": (-1, longest),
            "size": (0, longest),
            "record": (-1, max((split.records for split in splits), default=0) - 1),
        },
    )


def _check_rows(found: pa.Table | pa.RecordBatch, columns: Sequence[str], bounds: _Bounds | None) -> None:
    """Raises ArrowInvalid where a column is missing or of another type, or a value is missing or cannot be."""
    wanted = pa.schema([SOURCES.field(name) for name in columns])
    if sorted(map(str, found.schema)) != sorted(map(str, wanted)):
        raise pa.ArrowInvalid(f"its columns are {', '.join(map(str, found.schema)) or 'missing'}")
    found.validate(full=True)
    if missing := [name for name in columns if name != "sharpness" and found[name].null_count]:
        raise pa.ArrowInvalid(f"values of {', '.join(missing)} are missing")
    if bounds and (foreign := [name for name in columns if not _fits(found, name, bounds)]):
        raise pa.ArrowInvalid(f"values of {', '.join(foreign)} are not this dataset's")


_DIGITS = {"sha256": 64, "pixel_hash": 32}  # hexadecimal


def _fits(rows: pa.Table | pa.RecordBatch, name: str, bounds: _Bounds) -> bool:
    """Whether the values of a column can be those of a dataset's rows."""
    import pyarrow.compute as pc  # some MB that a worker does not need

    column = rows[name]
    if name in _DIGITS:
        return pc.all(pc.match_substring_regex(column, rf"\A([0-9a-f]{{{_DIGITS[name]}}})?\z")).as_py() is not False
    if name == "split":  # an input of which nothing was written may be of one that has no records
        column = (
            column.filter(pc.equal(rows["status"], WRITTEN)) if "status" in rows.schema.names else column.slice(0, 0)
        )
    if name in bounds.words:
        return set(pc.unique(column).to_pylist()) <= bounds.words[name]
    if name not in bounds.ranges or not len(column):
        return True
    (low, high), extent = bounds.ranges[name], pc.min_max(column).as_py()
    return bool(low <= extent["min"] and extent["max"] <= high)


def read_row(directory: str | os.PathLike[str], number: int) -> dict[str, Any]:
    """One row, by its number in the file. Raises as `read_sources` does."""
    import pyarrow.parquet as parquet  # 6 MB that a worker does not need

    manifest = _manifest(directory)
    for path in table_paths(directory, manifest):
        with _readable(path), parquet.ParquetFile(path) as file:
            for group in range(file.num_row_groups):
                rows = file.metadata.row_group(group).num_rows
                if number < rows:
                    found = file.read_row_group(group).slice(number, 1)
                    _check_rows(found, SOURCES.names, _bounds(manifest) if manifest else None)
                    row: dict[str, Any] = found.to_pylist()[0]
                    return row
                number -= rows
    raise IndexError(number)
