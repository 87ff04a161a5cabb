"""What shardline-browse knows of a dataset: a row for each input, as columns of small numbers, and which rows fit.

Of 60,000 images it takes some 10 MB; what is shown of one row alone is read when it is asked for. No TensorFlow.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from shardline.pipeline.dataset import Dataset
from shardline.pipeline.errors import UsageError
from shardline.pipeline.evaluation_files import METRICS, read_predictions
from shardline.pipeline.manifest import Manifest
from shardline.pipeline.near_duplicates import near_duplicates
from shardline.pipeline.progress import log, progress
from shardline.pipeline.sources_table import SOURCES, SOURCES_FILE, WRITTEN, iterate_sources, read_row
from shardline.pipeline.wording import count

if TYPE_CHECKING:
    from shardline.pipeline.shards import Shards

EQUAL, ALIKE = "equal pixels", "look alike"  # values of the facet `duplicates`
RIGHT, WRONG = "right", "wrong"  # values of the facet `prediction`
NO_CLASS = "(no label)"
TOP = 5  # classes that are kept of each prediction
_COLUMNS = ["path", "label", "split", "status", "reason", "source_height", "source_width", "record",
            "pixel_hash", "perceptual_hash"]  # fmt: skip


@dataclass(frozen=True)
class Facet:
    """A property of rows with few values.

    Attributes:
      title: of it on the page.
      values: what it may be, in the order of the codes.
      codes: int32 [rows]; -1 where a row has none of them.
    """

    title: str
    values: tuple[str, ...]
    codes: np.ndarray


@dataclass(frozen=True)
class Query:
    """Which rows to show, and in which order.

    Attributes:
      facets: wanted value of some facets, by name.
      low, high: bounds of some of `Index.numbers`, by name; both ends belong to it.
      text: part of the path.
      order: a key of ORDERS.
    """

    facets: Mapping[str, str] = field(default_factory=dict)
    low: Mapping[str, float] = field(default_factory=dict)
    high: Mapping[str, float] = field(default_factory=dict)
    text: str = ""
    order: str = ""


# What to sort by, and whether upwards. "": as stored.
ORDERS: dict[str, tuple[str, bool]] = {
    "": ("", True),
    "smallest first": ("side", True),
    "largest first": ("side", False),
    "least confident first": ("confidence", True),
    "most confident first": ("confidence", False),
}


@dataclass(frozen=True)
class Selection:
    """The rows that fit a query, and how many have each value of each facet under the query's other conditions."""

    rows: np.ndarray
    counts: dict[str, np.ndarray]


@dataclass(frozen=True, eq=False)
class Index:
    """All inputs of a dataset, a row each, written or not.

    Attributes:
      paths: of the sources; "" where an adopted record does not tell.
      records: number in its split of the record that holds it; -1: not stored.
      numbers: float32 columns by name: `side`, the shorter side of the source in pixels, and with predictions
        `confidence`, in percent; NaN where unknown.
      groups: number of the group of equal pixels; -1: none other has them.
      alike: rows that look like a row.
      top: classes predicted and their probabilities, most probable first, [rows, TOP]; None without predictions.
      adopted: there is no table of sources.
    """

    data: Dataset
    facets: dict[str, Facet]
    paths: pa.Array
    records: np.ndarray
    numbers: dict[str, np.ndarray]
    groups: np.ndarray
    alike: dict[int, list[int]]
    top: tuple[np.ndarray, np.ndarray] | None
    adopted: bool

    def __len__(self) -> int:
        return len(self.records)

    @property
    def manifest(self) -> Manifest:
        """The dataset's."""
        return self.data.manifest

    def select(self, query: Query) -> Selection:
        """The rows that fit."""
        masks: dict[str, np.ndarray] = {}
        for name, value in query.facets.items():
            facet = self.facets[name]
            masks[name] = facet.codes == (facet.values.index(value) if value in facet.values else -2)
        for name, bound in query.low.items():
            masks[f"low {name}"] = self.numbers[name] >= bound  # false for NaN
        for name, bound in query.high.items():
            masks[f"high {name}"] = self.numbers[name] <= bound
        if query.text:
            masks["text"] = pc.match_substring(self.paths, query.text, ignore_case=True).to_numpy(zero_copy_only=False)
        rows = np.flatnonzero(self._all(masks))
        column, upwards = ORDERS[query.order]
        if column in self.numbers:
            keys = self.numbers[column][rows]
            rows = rows[np.argsort(keys if upwards else -keys, kind="stable")]  # NaN last
        return Selection(rows, {name: self._count(name, masks) for name in self.facets})

    def _all(self, masks: Mapping[str, np.ndarray]) -> np.ndarray:
        fits = np.ones(len(self), bool)
        for mask in masks.values():
            fits &= mask
        return fits

    def _count(self, name: str, masks: Mapping[str, np.ndarray]) -> np.ndarray:
        facet = self.facets[name]
        others = self._all({other: mask for other, mask in masks.items() if other != name})
        return np.bincount(facet.codes[others & (facet.codes >= 0)], minlength=len(facet.values))

    def value(self, name: str, row: int) -> str:
        """What a facet is for a row; "" for none."""
        facet = self.facets[name]
        code = int(facet.codes[row])
        return facet.values[code] if code >= 0 else ""

    def split(self, row: int) -> str:
        """Name of a row's split."""
        return self.value("split", row)

    def facts(self, row: int) -> dict[str, Any]:
        """All that sources.parquet says of a row; {} where the dataset was adopted."""
        return {} if self.adopted else read_row(self.data.directory, row)

    def relatives(self, row: int) -> dict[str, list[int]]:
        """Other rows of equal pixels, and rows that look alike."""
        equal = np.flatnonzero(self.groups == self.groups[row]) if self.groups[row] >= 0 else np.empty(0, int)
        return {EQUAL: [other for other in equal.tolist() if other != row], ALIKE: self.alike.get(row, [])}


def read_index(data: Dataset, run: str) -> Index:
    """The index of a dataset, with what a run predicted of it unless `run` is "".

    Raises:
      UsageError: there is no such evaluation, or a file is damaged.
    """
    manifest, directory = data.manifest, data.directory
    with contextlib.suppress(FileNotFoundError):
        data.companion(SOURCES_FILE)
    adopted = not (directory / SOURCES_FILE).exists()
    table = _adopted_rows(data) if adopted else _table_rows(directory, manifest.ledger.inputs)
    if fault := _misfit(manifest, table):
        raise UsageError(
            f"{directory / SOURCES_FILE}: {fault}; shardline-verify tells more; restore it from a copy, or convert "
            "again with --overwrite"
        )
    splits, records = _codes(table["split"], tuple(manifest.splits)), table["record"].to_numpy()
    groups = _equal_pixels(table["pixel_hash"])
    alike = _look_alikes(table["perceptual_hash"].to_numpy(), records, splits, groups)
    duplicates = np.full(len(table), -1, np.int32)
    duplicates[list(alike)] = 1
    duplicates[groups >= 0] = 0
    short = np.minimum(table["source_height"].to_numpy(), table["source_width"].to_numpy()).astype(np.float32)
    labels = table["label"].to_numpy()
    facets = {
        "class": Facet("class", (*manifest.shown_labels, NO_CLASS), np.where(labels < 0, len(manifest.labels), labels)),
        "split": Facet("split", tuple(manifest.splits), splits),
        "status": _text_facet("status", table["status"]),
        "reason": _text_facet("set aside because", table["reason"]),
        "duplicates": Facet("duplicates", (EQUAL, ALIKE), duplicates),
    }
    index = Index(
        data, facets, table["path"].combine_chunks(), records,
        {"side": np.where(short > 0, short, np.nan)}, groups, alike, None, adopted,
    )  # fmt: skip
    return _with_predictions(index, Path(run)) if run else index


def _text_facet(title: str, column: pa.ChunkedArray) -> Facet:
    """A facet of a column of few different texts, "" being none; the most frequent first."""
    often = [pair["values"] for pair in sorted(pc.value_counts(column).to_pylist(), key=lambda pair: -pair["counts"])]
    values = tuple(filter(None, often))
    return Facet(title, values, _codes(column, values))


def _codes(column: pa.ChunkedArray, values: tuple[str, ...]) -> np.ndarray:
    """int32 [rows]: which of the values stands in each row, -1 for none of them."""
    codes = pc.fill_null(pc.index_in(column, pa.array(values, pa.string())), -1)
    numbers: np.ndarray = codes.to_numpy().astype(np.int32)
    return numbers


# ---------------------------------------------------------------------------------------------- where rows come from


def _table_rows(directory: Path, inputs: int) -> pa.Table:
    """The columns of sources.parquet that an index is made of."""
    batches = []
    with progress(total=inputs, desc="index", unit="input") as bar:
        for batch in iterate_sources(directory, _COLUMNS):
            batches.append(batch)
            bar.update(len(batch))
    return pa.Table.from_batches(batches, pa.schema([SOURCES.field(name) for name in _COLUMNS]))


def _adopted_rows(data: Dataset) -> pa.Table:
    """The same of somebody else's shards, read record by record."""
    rows: list[tuple[Any, ...]] = []
    total = sum(split.records for split in data.manifest.splits.values())
    with progress(total=total, desc="index", unit="record") as bar:
        for split in data.manifest.splits:
            for row in _adopted_split(data.shards(split), split):
                rows.append(row)
                bar.update()
    columns = zip(*rows, strict=True) if rows else [()] * len(_COLUMNS)
    schema = pa.schema([SOURCES.field(name) for name in _COLUMNS])
    return pa.table([pa.array(column, kind.type) for column, kind in zip(columns, schema, strict=True)], schema=schema)


def _adopted_split(shards: Shards, split: str) -> Iterator[tuple[Any, ...]]:
    for record in range(len(shards)):
        try:
            example = shards.read(record)
            facts = (example.filename, example.label, split, WRITTEN, "", example.height, example.width)
        except ValueError:
            facts = ("", -1, split, WRITTEN, "damaged", 0, 0)
        yield (*facts, record, "", 0)


def _misfit(manifest: Manifest, table: pa.Table) -> str:
    """What keeps a table's rows from being this dataset's; "" for nothing."""
    labels, records = table["label"].to_numpy(), table["record"].to_numpy()
    if len(labels) and labels.max() >= len(manifest.labels):
        return f"label {labels.max()} is none of {count(len(manifest.labels), 'class')}"
    splits = _codes(table["split"], tuple(manifest.splits))
    for number, (name, split) in enumerate(manifest.splits.items()):
        if not np.array_equal(records[(splits == number) & (records >= 0)], np.arange(split.records)):
            return f"the rows of split {name} are not its {count(split.records, 'record')}"
    return ""


# ---------------------------------------------------------------------------------------------------- duplicates


def _equal_pixels(hashes: pa.ChunkedArray) -> np.ndarray:
    """int32 [rows]: number of the group of rows with equal hashes; -1 where a row is alone or has no hash."""
    codes = hashes.combine_chunks().dictionary_encode()
    groups = np.array(codes.indices, np.int32)
    empty = codes.dictionary.index("").as_py()
    groups[(np.bincount(groups, minlength=1)[groups] < 2) | (groups == empty)] = -1
    return groups


def _look_alikes(
    hashes: np.ndarray, records: np.ndarray, splits: np.ndarray, groups: np.ndarray
) -> dict[int, list[int]]:
    """For each stored row that looks like others, those; of rows of equal pixels the first speaks for all."""
    first = np.zeros(len(groups), bool)
    first[np.unique(groups, return_index=True)[1]] = True
    rows = np.flatnonzero((records >= 0) & ((groups < 0) | first) & (hashes != 0))
    if len(rows):
        log(f"near duplicates: {count(len(rows), 'image')}")
    found: dict[int, list[int]] = {}
    for pair in near_duplicates(hashes[rows], rows, splits[rows]):
        found.setdefault(pair.first, []).append(pair.second)
        found.setdefault(pair.second, []).append(pair.first)
    return found


# --------------------------------------------------------------------------------------------------- predictions


def _with_predictions(index: Index, run: Path) -> Index:
    """The index with what a run's evaluations, or one evaluation's directory, say of its records."""
    folders = [run] if (run / METRICS).is_file() else [path.parent for path in sorted(run.glob(f"*/{METRICS}"))]
    rows, classes = len(index), len(index.manifest.labels)
    top = np.full((rows, min(TOP, classes)), -1, np.int32), np.full((rows, min(TOP, classes)), np.nan, np.float32)
    right = np.full(rows, -1, np.int32)
    skipped = []
    found: dict[str, dict[Path, pa.Table]] = {}  # by split
    for folder in folders:
        table, facts = read_predictions(folder)
        split = facts.get("split", "")
        if facts.get("digest") != index.manifest.digest or split not in index.manifest.splits:
            skipped.append(str(folder))
        else:
            found.setdefault(split, {})[folder] = table
    for split, tables in found.items():
        shown = run / f"evaluation-{split}" if run / f"evaluation-{split}" in tables else next(iter(tables))
        _place(index, tables[shown], split, top, right)
        for beside in tables.keys() - {shown}:
            log(f"note: {shown} is shown for {split}; {beside} evaluates it, too: --run={beside} shows that one")
    if (right < 0).all():
        of = f"; {', '.join(skipped)}: of another dataset" if skipped else ""
        raise UsageError(
            f"--run={run}: no evaluation of this dataset there{of}; make one with shardline-evaluate --run {run} "
            f"--data {index.data.where}"
        )
    for other in skipped:
        log(f"note: {other} is an evaluation of another dataset, and left out")
    facets = index.facets | {
        "prediction": Facet("prediction", (RIGHT, WRONG), right),
        "predicted": Facet("predicted class", index.manifest.shown_labels, top[0][:, 0]),
    }
    numbers = index.numbers | {"confidence": 100 * top[1][:, 0]}
    return Index(**{**vars(index), "facets": facets, "numbers": numbers, "top": top})


def _place(index: Index, table: pa.Table, split: str, top: tuple[np.ndarray, np.ndarray], right: np.ndarray) -> None:
    """Write an evaluation's predictions to the rows of its records."""
    number, classes = list(index.manifest.splits).index(split), len(index.manifest.labels)
    row_of = np.flatnonzero(
        (index.facets["split"].codes == number) & (index.records >= 0)
    )  # in the order of the records
    ids = table["id"].to_numpy()
    flat = pc.list_flatten(table["probabilities"]).to_numpy()
    if len(flat) != len(ids) * classes or (len(ids) and not 0 <= ids.min() <= ids.max() < len(row_of)):
        raise UsageError(f"--run: predictions of split {split} do not fit its records; run shardline-evaluate again")
    probabilities = flat.reshape(len(ids), classes)
    order = np.argsort(-probabilities, axis=1, kind="stable")[:, :TOP]  # of equal ones the lower class first
    rows = row_of[ids]
    top[0][rows] = order
    top[1][rows] = np.take_along_axis(probabilities, order, axis=1)
    right[rows] = order[:, 0] != index.facets["class"].codes[rows]
