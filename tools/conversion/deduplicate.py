"""Decide what becomes of exact duplicates, once every image's pixels are known. No TensorFlow.

Equal pixels can be told only after the images are converted. Duplicates that would lie in two splits are brought
together, and with --duplicates=drop all but one are left out. Either is a copy of framed records, no decoding:
`finalize` does it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.compute as pc

from shardline.pipeline.errors import Failure
from shardline.pipeline.image_pixels import FEW_LEVELS
from shardline.pipeline.manifest import NO_LABEL, Ledger
from shardline.pipeline.sources_table import FILTERED, QUARANTINED, WRITTEN, read_rows
from shardline.pipeline.wording import count
from shardline.tools.conversion.shard_writer import ShardResult
from shardline.tools.conversion.sources import Sources, path_text
from shardline.tools.conversion.splits import Plan


@dataclass(frozen=True, eq=False)
class Earlier:
    """The images that a dataset holds before a conversion adds to it: equal columns, sorted by pixels.

    Attributes:
      pixels: uint64, of the pixel hash.
      splits: int8, number in the plan's.
      labels: int32.
      rows: int64, number in the dataset's table of sources.
      perceptual: uint64, perceptual hashes.
      directory: of the dataset.
    """

    pixels: np.ndarray
    splits: np.ndarray
    labels: np.ndarray
    rows: np.ndarray
    perceptual: np.ndarray
    directory: Path

    def find(self, pixels: np.ndarray) -> np.ndarray:
        """int64: of each pixel hash where it stands first; -1 where it does not."""
        at = np.minimum(np.searchsorted(self.pixels, pixels), len(self.pixels) - 1)
        return np.where(self.pixels[at] == pixels, at, -1)

    def by_hash(self, pixels: np.ndarray) -> dict[str, tuple[str, int, int]]:
        """Path, label and split of the first image of each whole pixel hash that begins with one of these."""
        places = np.flatnonzero(np.isin(self.pixels, pixels))
        places = places[np.argsort(self.rows[places])]
        table = read_rows(self.directory, self.rows[places], ["path", "pixel_hash"]).to_pydict()
        labels, splits = self.labels[places].tolist(), self.splits[places].tolist()
        found: dict[str, tuple[str, int, int]] = {}
        for pixel_hash, *facts in zip(table["pixel_hash"], table["path"], labels, splits, strict=True):
            found.setdefault(pixel_hash, (facts[0], facts[1], facts[2]))
        return found


@dataclass(frozen=True, eq=False)
class DuplicateGroup:
    """Images with equal pixels. The first is the one that is kept when duplicates are dropped.

    Where that is one of the dataset's already, which is not among the inputs, `earlier` is true.
    """

    inputs: tuple[int, ...]
    paths: tuple[str, ...]
    labels: tuple[int, ...]
    splits: tuple[int, ...]  # as planned
    earlier: bool = False

    @property
    def conflicting(self) -> bool:
        """Whether they carry different labels; to have none is no conflict."""
        return len({*self.labels} - {NO_LABEL}) > 1

    @property
    def across_splits(self) -> bool:
        """Whether the plan put them into different splits."""
        return len(set(self.splits)) > 1


@dataclass(frozen=True, eq=False)
class PerceptualHashes:
    """The perceptual hashes of written inputs, in equal columns."""

    hashes: np.ndarray  # uint64
    inputs: np.ndarray  # uint32
    splits: np.ndarray  # int8: number of the split each comes to lie in


@dataclass(eq=False)
class DedupResult:
    """What became of every input, and what has to be done to the shards."""

    ledger: Ledger
    reasons: Counter[str]  # of quarantine and filters
    faint: Counter[str]  # notes on images that use few of their levels
    groups: list[DuplicateGroup]
    dropped: frozenset[int]  # inputs
    moved: dict[int, int]  # input -> task whose shard takes it
    class_counts: np.ndarray  # int64: usable inputs of each class
    perceptual: PerceptualHashes | None
    earlier: Earlier | None = None  # what the dataset held before

    def take_perceptual(self) -> PerceptualHashes:
        """The perceptual hashes, once: of ten million inputs they take 130 MB, which are then the caller's to free."""
        taken, self.perceptual = self.perceptual, None
        assert taken is not None, "taken before"
        return taken

    @property
    def conflicts(self) -> list[DuplicateGroup]:
        """Equal pixels under different labels."""
        return [group for group in self.groups if group.conflicting]


def resolve_duplicates(
    results: Sequence[ShardResult],
    plan: Plan,
    sources: Sources,
    duplicates: str,
    keep_together: bool,
    earlier: Earlier | None = None,
) -> DedupResult:
    """Read all receipts and decide on duplicates.

    Args:
      results: in the order of the plan's tasks.
      plan: what was planned.
      sources: the inputs.
      duplicates: keep, drop or fail.
      keep_together: bring duplicates (and the groups they lie in) together in one split; false where the source
        itself names the splits.
      earlier: what the dataset holds already, which stays where it is.

    Raises:
      Failure: there are duplicates and they are to be refused.
    """
    facts = _read_receipts(results, len(sources))
    written = np.flatnonzero(facts.written).astype(np.uint32)
    groups = _duplicate_groups(
        written, facts.pixels, results, plan, sources, earlier, spare_evaluation=not keep_together
    )
    if groups and duplicates == "fail":
        _refuse(groups, len(sources))
    dropped: frozenset[int] = frozenset()
    moved: dict[int, int] = {}
    if duplicates == "drop":
        dropped = frozenset(number for group in groups for number in group.inputs[0 if group.earlier else 1 :])
    elif keep_together:
        moved = _bring_together(groups, plan, sources, written)
    return DedupResult(
        ledger=facts.ledger(duplicates=len(dropped)),
        reasons=facts.reasons,
        faint=facts.faint,
        groups=groups,
        dropped=dropped,
        moved=moved,
        class_counts=sources.class_counts(written),
        perceptual=PerceptualHashes(facts.perceptual[written], written, _final_splits(plan, moved)[written]),
        earlier=earlier,
    )


def _final_splits(plan: Plan, moved: Mapping[int, int]) -> np.ndarray:
    """Number of the split of every input, after moves."""
    split = plan.split.copy()
    split_of_task = [number for number, _, _ in plan.members()]
    for number, task in moved.items():
        split[number] = split_of_task[task]
    return split


@dataclass(frozen=True, eq=False)
class _Receipts:
    """What all receipts say together; columns have an entry for each input."""

    written: np.ndarray  # bool
    pixels: np.ndarray  # uint64: of the pixel hash
    perceptual: np.ndarray  # uint64
    statuses: Counter[str]
    reasons: Counter[str]
    faint: Counter[str]

    def ledger(self, duplicates: int) -> Ledger:
        """What became of all inputs, when so many of those written are left out as duplicates."""
        return Ledger(
            inputs=len(self.written),
            written=self.statuses[WRITTEN] - duplicates,
            quarantined=self.statuses[QUARANTINED],
            duplicates=duplicates,
            filtered=self.statuses[FILTERED],
        )


_PIECE = 1 << 20  # hashes compared at a time: ten million differences would take 80 MB more
HASH_DIGITS = 16  # of a pixel hash, that find what may be equal


def hash_start(pixel_hash: str) -> int:
    """The first 64 bits of a pixel hash; 0 for none."""
    return int(pixel_hash[:HASH_DIGITS] or "0", 16)


def _read_receipts(results: Sequence[ShardResult], inputs: int) -> _Receipts:
    facts = _Receipts(
        np.zeros(inputs, bool),
        np.zeros(inputs, np.uint64),
        np.zeros(inputs, np.uint64),
        Counter(),
        Counter(),
        Counter(),
    )
    for result in results:
        rows = result.rows()
        numbers = rows["input"].to_numpy()
        statuses = rows["status"].to_pylist()
        facts.statuses.update(statuses)
        facts.reasons.update(filter(None, rows["reason"].to_pylist()))
        facts.written[numbers] = [status == WRITTEN for status in statuses]
        facts.pixels[numbers] = [hash_start(text) for text in rows["pixel_hash"].to_pylist()]
        facts.perceptual[numbers] = rows["perceptual_hash"].to_numpy()
        facts.faint.update(pc.drop_null(pc.struct_field(pc.extract_regex(rows["note"], FEW_LEVELS), "few")).to_pylist())
    return facts


def _refuse(groups: Sequence[DuplicateGroup], inputs: int) -> None:
    first = groups[0]
    extra = sum(len(group.paths) - 1 for group in groups)
    raise Failure(
        f"--duplicates=fail: {extra:,} of {count(inputs, 'image')} {'has' if extra == 1 else 'have'} the pixels of "
        f"another, e.g. {first.paths[1]} those of {first.paths[0]}; remove them, or use --duplicates=drop or keep"
    )


def _duplicate_groups(
    written: np.ndarray,
    pixels: np.ndarray,
    results: Sequence[ShardResult],
    plan: Plan,
    sources: Sources,
    earlier: Earlier | None,
    *,
    spare_evaluation: bool,
) -> list[DuplicateGroup]:
    """Inputs of equal pixels: 64 bits of the hash say which may be, all of it which are."""
    candidates = _with_company(written, pixels)
    if earlier:
        candidates = np.union1d(candidates, written[earlier.find(pixels[written]) >= 0])
    by_hash = _by_hash(results, candidates)
    known = earlier.by_hash(np.unique(pixels[candidates])) if earlier else {}

    def rank(number: int) -> tuple[bool, int, bytes]:
        # The first of a group is kept: where the source names the splits, one outside the first split, because an
        # evaluation set should stay what it was; then the shortest path, which is rarely the copy ("a (1).jpg").
        path = sources.path(number)
        return spare_evaluation and plan.split[number] == 0, len(path), path

    groups = []
    for pixel_hash, inputs in by_hash.items():
        before = [known[pixel_hash]] if pixel_hash in known else []
        if len(inputs) + len(before) < 2:
            continue
        members = sorted(inputs, key=rank)
        described = [
            *before,
            *zip(
                (path_text(sources.path(number)) for number in members),
                sources.label[members].tolist(),
                plan.split[members].tolist(),
                strict=True,
            ),
        ]
        paths, labels, splits = zip(*described, strict=True)
        groups.append(DuplicateGroup(tuple(members), paths, labels, splits, earlier=bool(before)))
    return sorted(groups, key=lambda group: (not group.across_splits, not group.conflicting, group.paths))


def _by_hash(results: Sequence[ShardResult], inputs: np.ndarray) -> dict[str, list[int]]:
    """Some of the inputs by their whole pixel hash."""
    found: dict[str, list[int]] = {}
    for result in results if len(inputs) else ():
        rows = result.rows().select(["input", "pixel_hash"])
        rows = rows.filter(np.isin(rows["input"].to_numpy(), inputs))
        for number, pixel_hash in zip(*(column.to_pylist() for column in rows.columns), strict=True):
            found.setdefault(pixel_hash, []).append(number)
    return found


def _with_company(written: np.ndarray, pixels: np.ndarray) -> np.ndarray:
    """Inputs of which another has the same hash, or nearly so, sorted by hash; equal ones by number."""
    # Hash and number share one word, sorted in place; the bits that had no room are compared afterwards.
    bits = max(1, (len(pixels) - 1).bit_length())
    words = pixels[written]
    words >>= np.uint64(bits)
    words <<= np.uint64(bits)
    words |= written
    words.sort()
    differences = (np.diff(words[start : start + _PIECE + 1]) for start in range(0, len(words) - 1, _PIECE))
    close = np.flatnonzero(np.concatenate([np.empty(0, bool), *(d < np.uint64(1 << bits) for d in differences)]))
    near = np.unique(np.concatenate((words[close], words[close + 1]))) & np.uint64((1 << bits) - 1)
    return near[np.argsort(pixels[near], kind="stable")]


def _bring_together(
    groups: Sequence[DuplicateGroup], plan: Plan, sources: Sources, written: np.ndarray
) -> dict[int, int]:
    """Which inputs move to which task, so that no duplicates, and no source groups that they tie, lie in two splits."""
    moves: dict[int, int] = {}  # input -> the input whose shard takes it
    split_of = {number: group.splits[0] for group in groups if group.earlier for number in group.inputs}
    joining: dict[int, int] = {}  # input -> the split where the dataset has it, or what it is tied to
    for inputs in _tied_inputs(groups, sources, written):
        if (fixed := next((split_of[number] for number in inputs if number in split_of), None)) is not None:
            joining |= {number: fixed for number in inputs if plan.split[number] != fixed}
            continue
        home = min(inputs, key=lambda number: (len(sources.path(number)), sources.path(number)))
        moves |= {number: home for number in inputs if plan.split[number] != plan.split[home]}
    homes = np.array(sorted(set(moves.values())), np.uint32)
    task_of = {
        int(number): task
        for task, (_, _, inputs) in enumerate(plan.members() if moves else ())
        for number in inputs[np.isin(inputs, homes)]
    }
    first_task: dict[int, int] = {}
    for task, (split, _, _) in enumerate(plan.members() if joining else ()):
        first_task.setdefault(split, task)
    return {number: task_of[home] for number, home in moves.items()} | {
        number: first_task[split] for number, split in joining.items()
    }


def _tied_inputs(groups: Sequence[DuplicateGroup], sources: Sources, written: np.ndarray) -> list[list[int]]:
    """Inputs that belong in one split: duplicates, and every source group with one of them, transitively."""
    source_group = sources.group if len(sources.group) else np.zeros(len(sources), np.uint64)
    parent: dict[Hashable, Hashable] = {}

    def root(node: Hashable) -> Hashable:
        while parent.setdefault(node, node) != node:
            node = parent[node]
        return node

    for number, group in enumerate(groups):
        for name in set(source_group[list(group.inputs)].tolist()) - {0}:
            parent[root(("source group", name))] = root(("duplicates", number))
    tied: dict[Hashable, list[int]] = {}
    for number, group in enumerate(groups):
        tied.setdefault(root(("duplicates", number)), []).extend(group.inputs)
    roots = {node[1]: root(node) for node in list(parent) if isinstance(node, tuple) and node[0] == "source group"}
    if roots:
        for number in written[np.isin(source_group[written], np.array(list(roots), np.uint64))].tolist():
            tied[roots[int(source_group[number])]].append(number)
    return list(tied.values())
