"""From receipts to the finished dataset: who is a duplicate, which shard holds what, and a row for every input.

`resolve_duplicates` reads every receipt once and decides; `finish` puts the shards under their final names and writes
their indexes and sources.parquet. Exact duplicates are equal pixels, so they can be told only now: those that would lie
in two splits are brought together, and with --duplicates=drop all but one are left out. Either is a copy of framed
records, no decoding. No TensorFlow.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from shardline.pipeline.errors import Failure
from shardline.pipeline.manifest import Ledger, Shard, Split, index_path, shard_name, write_index
from shardline.tools.conversion.shard_writer import DUPLICATE, FILTERED, QUARANTINED, WRITTEN, ShardResult
from shardline.tools.conversion.sources import Sources
from shardline.tools.conversion.splits import Plan

SOURCES_FILE = "sources.parquet"


@dataclass(frozen=True, eq=False)
class DuplicateGroup:
    """One set of inputs with equal pixels. The first is the one that stays when duplicates are dropped."""

    inputs: tuple[int, ...]
    paths: tuple[str, ...]
    labels: tuple[int, ...]
    splits: tuple[int, ...]  # as planned

    @property
    def conflicting(self) -> bool:
        """Whether they carry different labels."""
        return len(set(self.labels)) > 1

    @property
    def across_splits(self) -> bool:
        """Whether the plan put them into different splits."""
        return len(set(self.splits)) > 1


@dataclass(eq=False)
class DedupResult:
    """What became of every input, and what has to be done to the shards."""

    ledger: Ledger
    reasons: Counter[str]  # of quarantine and filters
    twins: list[DuplicateGroup]
    dropped: frozenset[int]  # inputs
    moved: dict[int, int]  # input -> task whose shard takes it
    class_counts: np.ndarray  # int64: sound inputs of each class
    perceptual: dict[str, np.ndarray] = field(default_factory=dict)  # hash, input, split of written inputs

    @property
    def conflicts(self) -> list[DuplicateGroup]:
        """Equal pixels under different labels."""
        return [twins for twins in self.twins if twins.conflicting]


def resolve_duplicates(
    receipts: Sequence[ShardResult], plan: Plan, sources: Sources, duplicates: str, keep_apart: bool
) -> DedupResult:
    """Read all receipts and decide on duplicates.

    Args:
      receipts: in the order of the plan's tasks.
      plan: what was planned.
      sources: the inputs.
      duplicates: keep, drop or fail.
      keep_apart: bring duplicates (and the groups they lie in) together in one split; false where the source itself
        names the splits.

    Raises:
      Failure: there are duplicates and they are to be refused.
    """
    count = len(sources)
    pixels = np.zeros(count, np.uint64)
    looks = np.zeros(count, np.uint64)
    written = np.zeros(count, bool)
    reasons: Counter[str] = Counter()
    states: Counter[str] = Counter()
    for receipt in receipts:
        columns = receipt.columns()
        numbers = columns["input"]
        states.update(columns["status"])
        reasons.update(filter(None, columns["reason"]))
        written[numbers] = [status == WRITTEN for status in columns["status"]]
        pixels[numbers] = np.array([int(text[:16] or "0", 16) for text in columns["pixel_hash"]], np.uint64)
        looks[numbers] = np.array(columns["perceptual_hash"], np.uint64)
    found = np.flatnonzero(written).astype(np.uint32)
    twins = _twins(found, pixels, plan, sources, spare_evaluation=not keep_apart)
    if twins and duplicates == "fail":
        first = twins[0]
        extra = sum(len(each.inputs) - 1 for each in twins)
        raise Failure(
            f"--duplicates=fail: {extra} of {count} images have the pixels of another, e.g. {first.paths[1]} those of "
            f"{first.paths[0]}; remove them, or use --duplicates=drop or keep"
        )
    dropped: frozenset[int] = frozenset()
    moved: dict[int, int] = {}
    if duplicates == "drop":
        dropped = frozenset(number for each in twins for number in each.inputs[1:])
    elif keep_apart:
        moved = _bring_together(twins, plan, sources, found)
    split = plan.split.copy()
    split_of_task = [number for number, _, _ in plan.members()]
    for number, task in moved.items():
        split[number] = split_of_task[task]
    ledger = Ledger(
        inputs=count,
        written=states[WRITTEN] - len(dropped),
        quarantined=states[QUARANTINED],
        duplicates=len(dropped),
        filtered=states[FILTERED],
    )
    return DedupResult(
        ledger,
        reasons,
        twins,
        dropped,
        moved,
        np.bincount(sources.label[found], minlength=len(sources.labels)),
        {"hash": looks[found], "input": found, "split": split[found]},
    )


def _twins(
    found: np.ndarray, pixels: np.ndarray, plan: Plan, sources: Sources, *, spare_evaluation: bool
) -> list[DuplicateGroup]:
    """Inputs of equal pixels. 64 of the hash's bits are compared: a chance hit among ten million is 1 in 400,000."""
    # Hash and number share one word, sorted in place; the bits that had no room are compared afterwards.
    bits = max(1, (len(sources) - 1).bit_length())
    words = pixels[found]
    words >>= np.uint64(bits)
    words <<= np.uint64(bits)
    words |= found
    words.sort()
    close = np.flatnonzero(np.diff(words) < np.uint64(1 << bits)) if len(words) else np.empty(0, np.int64)
    near = np.unique(np.concatenate((words[close], words[close + 1]))) & np.uint64((1 << bits) - 1)
    del words
    order = near[np.argsort(pixels[near], kind="stable")]
    keys = pixels[order]
    starts = np.flatnonzero(np.concatenate(([True], keys[1:] != keys[:-1]))) if len(keys) else np.empty(0, np.int64)
    sizes = np.diff(np.append(starts, len(keys)))
    result = []
    for start, size in zip(starts[sizes > 1].tolist(), sizes[sizes > 1].tolist(), strict=True):
        # The first of a set, which stays: where the source names the splits, one outside the first split, because an
        # evaluation set should stay what it was; then the shortest path, which is rarely the copy ("a (1).jpg").
        members = sorted(
            order[start : start + size].tolist(),
            key=lambda number: (
                spare_evaluation and plan.split[number] == 0,
                len(sources.path(number)),
                sources.path(number),
            ),
        )
        result.append(
            DuplicateGroup(
                tuple(members),
                tuple(sources.path(number).decode("utf-8", "backslashreplace") for number in members),
                tuple(sources.label[members].tolist()),
                tuple(plan.split[members].tolist()),
            )
        )
    return sorted(result, key=lambda each: (not each.across_splits, not each.conflicting, each.paths))


def _bring_together(twins: Sequence[DuplicateGroup], plan: Plan, sources: Sources, found: np.ndarray) -> dict[int, int]:
    """Which inputs move to which task, so that neither duplicates nor the groups they tie together straddle."""
    groups = sources.group if len(sources.group) else np.zeros(len(sources), np.uint64)
    parent: dict[Any, Any] = {}

    def root(node: Any) -> Any:
        while parent.setdefault(node, node) != node:
            node = parent[node]
        return node

    for number, each in enumerate(twins):
        for group in set(groups[list(each.inputs)].tolist()) - {0}:
            parent[root(("group", group))] = root(("twins", number))
    members: dict[Any, list[int]] = {}
    for number, each in enumerate(twins):
        members.setdefault(root(("twins", number)), []).extend(each.inputs)
    tied = {node[1]: root(node) for node in list(parent) if node[0] == "group"}
    if tied:
        for number in found[np.isin(groups[found], np.array(list(tied), np.uint64))].tolist():
            members[tied[int(groups[number])]].append(number)
    homes: dict[int, int] = {}  # of those that move: the input whose shard takes them
    for inputs in members.values():
        home = min(inputs, key=lambda number: (len(sources.path(number)), sources.path(number)))
        homes |= {number: home for number in inputs if plan.split[number] != plan.split[home]}
    wanted = np.array(sorted(set(homes.values())), np.uint32)
    task_of = {
        int(number): task
        for task, (_, _, inputs) in enumerate(plan.members() if homes else ())
        for number in inputs[np.isin(inputs, wanted)]
    }
    return {number: task_of[home] for number, home in homes.items()}


# -------------------------------------------------------------------------------------------------- finish


@dataclass(frozen=True)
class Finished:
    """The dataset's shards under their final names, and what the manifest says of their content."""

    splits: dict[str, Split]
    class_counts: dict[str, tuple[int, ...]]
    max_height: int
    max_width: int
    common_size: tuple[int, int] | None  # height and width when all stored images have the same


def finish(
    directory: Path, receipts: Sequence[ShardResult], dedup: DedupResult, plan: Plan, sources: Sources
) -> Finished:
    """Put every shard under its final name, with its index, and write sources.parquet. Safe to run again."""
    taken: dict[int, list[int]] = {}  # task -> inputs it takes in from others
    for number, task in sorted(dedup.moved.items()):
        taken.setdefault(task, []).append(number)
    guests = _find_records(receipts, dedup)
    tasks = [(split, shard) for split, shard, _ in plan.members()]
    leaving = dedup.dropped | dedup.moved.keys()

    lasting: dict[int, list[int]] = {}  # split -> its tasks that still have records; empty shards are not written
    for task, (split, _) in enumerate(tasks):
        gone = sum(1 for row in receipts[task].rows() if row["input"] in leaving) if leaving else 0
        if receipts[task].records - gone + len(taken.get(task, ())):
            lasting.setdefault(split, []).append(task)
    _refuse_empty_splits(plan, lasting)

    shards: dict[int, list[Shard]] = {split: [] for split in lasting}
    counts = np.zeros((len(plan.splits), len(sources.labels)), np.int64)
    sizes: set[tuple[int, int]] = set()
    max_height = max_width = 0
    with _Table(directory / SOURCES_FILE) as table:
        for task, (split, _) in enumerate(tasks):
            receipt, rows = receipts[task], receipts[task].rows()
            if task in lasting.get(split, ()):
                number, total = len(shards[split]), len(lasting[split])
                target = directory / shard_name(plan.name, plan.splits[split], number, total)
                stay = [row for row in rows if row["status"] == WRITTEN and row["input"] not in leaving]
                come = [guests[number] for number in taken.get(task, ())]
                shard = _place(receipt, stay, come, target, whole=len(stay) == receipt.records and not come)
                shards[split].append(shard)
                for row in (*stay, *(row for _, row in come)):
                    counts[split, row["label"]] += 1
                    max_height, max_width = max(max_height, row["height"]), max(max_width, row["width"])
                    if len(sizes) < 2:
                        sizes.add((row["height"], row["width"]))
                rows = [row for row in rows if row["input"] not in dedup.moved] + [row for _, row in come]
                table.add(rows, plan.splits[split], shard.file, sources.labels, dedup)
            else:
                rows = [row for row in rows if row["input"] not in dedup.moved]
                table.add(rows, plan.splits[split], "", sources.labels, dedup)
    return Finished(
        {plan.splits[split]: Split(plan.splits[split], tuple(shards[split])) for split in sorted(shards)},
        {plan.splits[split]: tuple(counts[split].tolist()) for split in sorted(shards)},
        max_height,
        max_width,
        next(iter(sizes)) if len(sizes) == 1 else None,
    )


def _refuse_empty_splits(plan: Plan, lasting: dict[int, list[int]]) -> None:
    for number, name in enumerate(plan.splits):
        if number not in lasting:
            raise Failure(
                f"split {name!r}: not one of its {len(plan.order[number]):,} images could be used; see --dry_run"
            )


Guest = tuple[str, dict[str, Any]]  # the shard it was written to, and its row


def _find_records(receipts: Sequence[ShardResult], dedup: DedupResult) -> dict[int, Guest]:
    """Where the records that move were written."""
    if not dedup.moved:
        return {}
    return {
        row["input"]: (receipt.output, row)
        for receipt in receipts
        for row in receipt.rows()
        if row["input"] in dedup.moved
    }


def _place(receipt: ShardResult, stay: list[dict[str, Any]], come: list[Guest], target: Path, *, whole: bool) -> Shard:
    """Make the final file; rows get their final offsets."""
    temporary = target.with_name(target.name + ".tmp")
    temporary.unlink(missing_ok=True)
    if whole:
        try:
            os.link(receipt.output, temporary)  # the same bytes under a second name, until the work folder goes
        except OSError:
            shutil.copyfile(receipt.output, temporary)
        size, sha256 = receipt.bytes, receipt.sha256
    else:
        size, sha256 = _copy_records(receipt.output, stay, come, temporary)
    rows = [*stay, *(row for _, row in come)]
    write_index(index_path(target), np.array([(row["offset"], row["size"]) for row in rows], np.int64).reshape(-1, 2))
    os.replace(temporary, target)
    return Shard(target.name, len(rows), size, sha256)


def _copy_records(source: str, stay: list[dict[str, Any]], come: list[Guest], target: Path) -> tuple[int, str]:
    digest = hashlib.sha256()
    offset = 0
    with open(target, "wb") as out:
        for path, row in [*((source, row) for row in stay), *come]:
            with open(path, "rb") as file:
                file.seek(row["offset"])
                framed = file.read(row["size"])
            assert len(framed) == row["size"], path
            row["offset"] = offset
            out.write(framed)
            digest.update(framed)
            offset += len(framed)
        out.flush()
        os.fsync(out.fileno())
    return offset, digest.hexdigest()


# --------------------------------------------------------------------------------------- sources.parquet


class _Table:
    """sources.parquet, written piece by piece so that its length does not matter."""

    ROWS = 10_000  # a piece

    def __init__(self, path: Path):
        import pyarrow as pa
        import pyarrow.parquet as parquet

        text, small, whole = pa.string(), pa.int32(), pa.int64()
        self._pa = pa
        self._schema = pa.schema(
            [
                ("path", text), ("sha256", text), ("label", small), ("label_name", text), ("split", text),
                ("status", text), ("reason", text), ("detail", text), ("bytes", whole), ("format", text),
                ("source_height", small), ("source_width", small), ("height", small), ("width", small),
                ("shard", text), ("record", whole), ("offset", whole), ("size", whole), ("pixel_hash", text),
                ("perceptual_hash", pa.uint64()), ("sharpness", pa.float64()), ("note", text),
            ]
        )  # fmt: skip
        self._path = path
        self._temporary = path.with_name(path.name + ".tmp")
        self._writer = parquet.ParquetWriter(self._temporary, self._schema, compression="zstd")
        self._rows: list[dict[str, Any]] = []
        self._next_record: Counter[str] = Counter()  # by split

    def add(
        self, rows: list[dict[str, Any]], split: str, shard: str, labels: Sequence[str], dedup: DedupResult
    ) -> None:
        """Rows of one shard, in stored order."""
        for row in rows:
            dropped = row["input"] in dedup.dropped
            stored = row["status"] == WRITTEN and not dropped
            self._rows.append(
                row
                | {"label_name": labels[row["label"]], "split": split}
                | ({"status": DUPLICATE, "reason": "equal-pixels", "offset": -1, "size": 0} if dropped else {})
                | ({"shard": shard, "record": self._next_record[split]} if stored else {"shard": "", "record": -1})
            )
            self._next_record[split] += stored
        if len(self._rows) >= self.ROWS:
            self._flush()

    def _flush(self) -> None:
        if self._rows:
            self._writer.write_table(self._pa.Table.from_pylist(self._rows, self._schema))
            self._rows = []

    def __enter__(self) -> _Table:
        return self

    def __exit__(self, kind: Any, value: Any, trace: Any) -> None:
        if kind is None:
            self._flush()
        self._writer.close()
        if kind is None:
            os.replace(self._temporary, self._path)
        else:
            self._temporary.unlink(missing_ok=True)


def read_rows(directory: str | os.PathLike[str], columns: Sequence[str], where: Any = None) -> list[dict[str, Any]]:
    """Rows of sources.parquet with the named columns; `where` is a pyarrow filter."""
    import pyarrow.parquet as parquet

    return parquet.read_table(Path(directory) / SOURCES_FILE, columns=list(columns), filters=where).to_pylist()


def iterate_rows(directory: str | os.PathLike[str], columns: Sequence[str]) -> Iterator[dict[str, Any]]:
    """All rows, a piece at a time."""
    import pyarrow.parquet as parquet

    for batch in parquet.ParquetFile(Path(directory) / SOURCES_FILE).iter_batches(50_000, columns=list(columns)):
        yield from batch.to_pylist()
