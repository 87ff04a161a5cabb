"""Put finished shards under their final names, with their indexes, and write a row for every input. No TensorFlow.

Safe to run again after it was interrupted: nothing here is taken for a dataset before the manifest is there.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from shardline.pipeline.errors import Failure
from shardline.pipeline.manifest import (
    Manifest,
    Shard,
    Split,
    generation_folder,
    index_path,
    shard_name,
    write_index,
)
from shardline.pipeline.progress import progress
from shardline.pipeline.sources_table import DUPLICATE, ROW, SOURCES, WRITTEN, sources_writer
from shardline.pipeline.split_index import file_name, index_writer
from shardline.pipeline.wording import count
from shardline.tools.conversion.deduplicate import DedupResult
from shardline.tools.conversion.output import Output
from shardline.tools.conversion.resume import note_placing
from shardline.tools.conversion.shard_writer import ShardResult
from shardline.tools.conversion.sources import Sources
from shardline.tools.conversion.splits import Plan

_RUN_BYTES = 8 << 20  # of records that are copied at once


@dataclass(frozen=True)
class Finished:
    """The dataset's shards under their final names, and what the manifest says of their content."""

    splits: dict[str, Split]
    class_counts: dict[str, tuple[int, ...]]
    max_height: int
    max_width: int
    common_size: tuple[int, int] | None  # height and width when all stored images have the same


def finalize(
    output: Output,
    results: Sequence[ShardResult],
    dedup: DedupResult,
    plan: Plan,
    sources: Sources,
    base: Manifest | None = None,
) -> Finished:
    """Place every shard and write sources.parquet.

    Args:
      output: where the dataset is to lie, or the generation that is added to `base`.
      results: in the order of the plan's tasks.
      dedup: what becomes of duplicates.
      plan: what was planned.
      sources: the inputs.
      base: the dataset that these are added to: record numbers go on there, and a split may get none.

    Raises:
      Failure: a split has lost all of its records, or a shard is not what its receipt says.
      UsageError: a file that is not of this conversion has the name of a shard.
    """
    changes = _find_changes(results, dedup, len(sources))
    names = _shard_names(results, changes, plan, may_be_empty=base is not None)
    folder = generation_folder(base.num_generations + 1) if base else ""
    indexes = [file_name(plan.name, split) for split, placed in zip(plan.splits, names, strict=True) if placed]
    note_placing(output, plan.name, [*chain.from_iterable(names), *indexes])
    shards: dict[int, list[Shard]] = {split: [] for split in range(len(plan.splits))}
    next_record = [base.splits[name].records if base and name in base.splits else 0 for name in plan.splits]
    counts = np.zeros((len(plan.splits), len(sources.labels)), np.int64)
    sizes: list[np.ndarray] = []  # height and width: least and greatest of each shard
    members = progress(list(plan.members()), total=len(results), desc="finish", unit="shard", leave=False)
    with sources_writer(output.directory) as write, index_writer(output.directory, plan.name) as add_to_index:
        for task, (split, _, _) in enumerate(members):
            rows = _final_rows(task, results[task], changes)
            stored = rows.filter(pc.equal(rows["status"], WRITTEN))
            name = ""
            if len(stored):
                name = folder + names[split][len(shards[split])]
                placed = _place(results[task], stored, names[split][len(shards[split])], output)
                shards[split].append(replace(placed, file=name))
                add_to_index(plan.splits[split], placed, stored["size"].to_numpy())
                label = stored["label"].to_numpy()
                counts[split] += np.bincount(label[label >= 0], minlength=len(sources.labels))
                extent = np.column_stack([stored["height"].to_numpy(), stored["width"].to_numpy()])
                sizes += [extent.min(axis=0), extent.max(axis=0)]
            write(_located(rows, plan.splits[split], name, next_record[split], sources.labels))
            next_record[split] += len(stored)
    return _finished(shards, counts, sizes, plan, sources)


def _finished(
    shards: Mapping[int, Sequence[Shard]], counts: np.ndarray, sizes: Sequence[np.ndarray], plan: Plan, sources: Sources
) -> Finished:
    """What the manifest says, of the shards and the class counts of each split, and the sizes in each shard."""
    least, greatest = np.min(sizes, axis=0).tolist(), np.max(sizes, axis=0).tolist()
    filled = {name: split for split, name in enumerate(plan.splits) if shards[split]}
    unlabelled = sources.unlabelled
    return Finished(
        {name: Split(name, tuple(shards[split]), unlabelled=name in unlabelled) for name, split in filled.items()},
        {name: () if name in unlabelled else tuple(counts[split].tolist()) for name, split in filled.items()},
        max_height=greatest[0],
        max_width=greatest[1],
        common_size=(greatest[0], greatest[1]) if least == greatest else None,
    )


@dataclass(frozen=True, eq=False)
class _Changes:
    """How the shards differ from what was written."""

    dropped: np.ndarray  # bool, by input
    moved: np.ndarray  # bool, by input
    moved_in: dict[int, pa.Table]  # task -> rows that its shard takes in from others, by input


def _find_changes(results: Sequence[ShardResult], dedup: DedupResult, inputs: int) -> _Changes:
    changes = _Changes(np.zeros(inputs, bool), np.zeros(inputs, bool), {})
    changes.dropped[list(dedup.dropped)] = True
    changes.moved[list(dedup.moved)] = True
    if dedup.moved:
        tables = map(_placed_rows, results)
        rows = pa.concat_tables(table.filter(changes.moved[table["input"].to_numpy()]) for table in tables)
        rows = rows.sort_by("input")
        task_of = np.array([dedup.moved[number] for number in rows["input"].to_pylist()])
        changes.moved_in.update({task: rows.filter(task_of == task) for task in set(task_of.tolist())})
    return changes


def _placed_rows(result: ShardResult) -> pa.Table:
    rows = result.rows()
    return rows.append_column("file", pa.array([result.output] * len(rows), pa.string()))


def _shard_names(
    results: Sequence[ShardResult], changes: _Changes, plan: Plan, *, may_be_empty: bool
) -> list[list[str]]:
    """By split, the names of the shards that have records: empty ones are not written."""
    num_shards = [0] * len(plan.splits)
    removed = changes.dropped | changes.moved
    for task, (split, _, inputs) in enumerate(plan.members()):
        records = results[task].records - int(removed[inputs].sum()) + len(changes.moved_in.get(task, ()))
        num_shards[split] += records > 0
    for split, name in enumerate(plan.splits):
        if not num_shards[split] and not may_be_empty:
            raise Failure(
                f"split {name!r}: not one of its {count(len(plan.order[split]), 'image')} could be used; see --dry_run"
            )
    return [
        [shard_name(plan.name, split, number, total) for number in range(total)]
        for split, total in zip(plan.splits, num_shards, strict=True)
    ]


def _final_rows(task: int, result: ShardResult, changes: _Changes) -> pa.Table:
    """The rows of one shard's inputs, duplicates marked, with those that moved in after those that stayed."""
    rows = _placed_rows(result)
    rows = rows.filter(~changes.moved[rows["input"].to_numpy()])
    if task in changes.moved_in:
        rows = pa.concat_tables([rows, changes.moved_in[task]])
    dropped = changes.dropped[rows["input"].to_numpy()]
    if dropped.any():
        for name, value in {"status": DUPLICATE, "reason": "equal-pixels", "size": 0}.items():
            rows = _with_column(rows, name, pc.if_else(dropped, pa.scalar(value, ROW.field(name).type), rows[name]))
    return rows


def _located(rows: pa.Table, split: str, file: str, first_record: int, labels: Sequence[str]) -> pa.Table:
    """The rows of one shard with the columns that say where each came to lie."""
    stored = np.array(pc.equal(rows["status"], WRITTEN))
    size = rows["size"].to_numpy()
    columns = {
        "offset": np.where(stored, np.cumsum(size) - size, -1),
        "label_name": np.array([*labels, ""], object)[rows["label"].to_numpy()],
        "split": np.full(len(rows), split, object),
        "shard": np.where(stored, file, ""),
        "record": np.where(stored, first_record + np.cumsum(stored) - 1, -1),
    }
    for name, column in columns.items():
        rows = _with_column(rows, name, pa.array(column, SOURCES.field(name).type))
    return rows


def _with_column(rows: pa.Table, name: str, column: pa.Array) -> pa.Table:
    """The rows with one column more, or another one in its place."""
    if name not in rows.column_names:
        return rows.append_column(name, column)
    return rows.set_column(rows.column_names.index(name), name, column)


def _place(result: ShardResult, stored: pa.Table, name: str, output: Output) -> Shard:
    """Make the final file and its index, of the records of some rows."""
    if not output.is_whole(result):
        raise Failure(f"{result.output} is not what its receipt says; run the command again, it will be written anew")
    size = stored["size"].to_numpy()
    write_index(index_path(output.directory / name), np.column_stack((np.cumsum(size) - size, size)))
    if len(stored) == result.records and stored["file"].unique().to_pylist() == [result.output]:
        output.place(result.output, name)
        return Shard(name, result.records, result.bytes, result.sha256)
    digest = hashlib.sha256()
    with output.writer(name) as out:
        for file, offset, length in _runs(stored):
            framed = output.read(file, offset, length)
            if len(framed) != length:
                raise Failure(f"{file} was cut meanwhile; run the command again, it will be written anew")
            out.write(framed)
            digest.update(framed)
    return Shard(name, len(stored), int(size.sum()), digest.hexdigest())


def _runs(stored: pa.Table) -> Iterator[tuple[str, int, int]]:
    """File, offset and bytes of records that lie end to end, some MB at a time."""
    file, offset, size = "", 0, 0
    columns = (stored[name].to_pylist() for name in ("file", "offset", "size"))
    for row in zip(*columns, strict=True):
        if row[:2] == (file, offset + size) and size < _RUN_BYTES:
            size += row[2]
            continue
        if size:
            yield file, offset, size
        file, offset, size = row
    if size:
        yield file, offset, size
