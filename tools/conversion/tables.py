"""Tables as sources: a .csv, .tsv or .parquet with a row for each image. No TensorFlow.

Columns are known by the names that people give them; flags name others. What a cell means is never guessed from its
value: the first row that cannot be used ends the scan with its number.
"""

from __future__ import annotations

import csv
import os
import re
import shlex
import stat
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote

import numpy as np

from shardline.pipeline.errors import UsageError
from shardline.pipeline.object_store import Store, StoredFile
from shardline.pipeline.paths import is_remote, local_path
from shardline.pipeline.sniff import sniff
from shardline.pipeline.source_files import STORE, Origin, Place
from shardline.pipeline.text import parse_json
from shardline.pipeline.wording import count, shorten_list
from shardline.tools.conversion.config import is_split_name
from shardline.tools.conversion.labels import (
    NOTHING,
    LabelOptions,
    check_names,
    check_split,
    label_places,
    order_labels,
    similarity_key,
    split_notes,
    split_rank,
)
from shardline.tools.conversion.sources import Sources, SourcesBuilder, file_stamp, hash64, path_text
from shardline.tools.conversion.store_tree import etag_stamp
from shardline.tools.conversion.trees import IMAGE_SUFFIXES, Exclusions

SUFFIXES = (".csv", ".tsv", ".tab", ".parquet")
NAMES = {  # of columns, the usual ones first
    "path": ("path", "image", "image_path", "filepath", "file_path", "filename", "file_name", "image_name",
             "img", "img_path", "img_name", "image_id", "imageid", "img_id", "image index", "file", "id"),
    "label": ("label", "class", "target", "category", "class_name", "label_name", "class_id", "classid",
              "category_id", "labels"),
    "split": ("split", "set", "subset", "partition", "data set", "dataset", "phase", "usage", "ml_use"),
    "group": ("group",),
}  # fmt: skip
_DELIMITERS = ",;\t|"
_ADDRESS = re.compile("[a-z][a-z0-9+.-]*://", re.IGNORECASE)
_GROUPS = re.compile(
    r"(patient|subject|lesion|study|case|scene|video|session|group|individual)s?[-_ ]?(id|name|nr|no)?"
)
_TELLS_SPLITS = re.compile(  # by numbers or truth values: is_valid, is_training_img
    r"(?:(?:is|in|for)_?)?(?:train(?:ing)?|val(?:id(?:ation)?)?|test(?:ing)?)(?:_?(?:im(?:g|age)|set|flag))?"
)
_NAMED = re.compile("(?:label|class|category|target)s?_?(?:name|text|string|str)s?")
_TRIED = 200  # rows, evenly spaced
_INDEX = ("", "unnamed: 0", "__index_level_0__")  # what pandas calls a column of row numbers
_TRUTH = ("true", "false", "yes", "no")  # names of no split
_HOT = {"true": 1.0, "false": 0.0, "": 0.0}


@dataclass(frozen=True)
class TableOptions:
    """What a person says of a table.

    Attributes:
      labels: of the classes.
      path_column, label_column: names of columns; "": the usual ones.
      path_format: what a path is made of the cell `{}`: `train/{}.jpg`.
      unlabelled: splits whose images have no labels.
      exclusions: paths and names to leave out.
    """

    labels: LabelOptions = field(default_factory=LabelOptions)
    path_column: str = ""
    label_column: str = ""
    path_format: str = "{}"
    unlabelled: tuple[str, ...] = ()
    exclusions: Exclusions = field(default_factory=Exclusions)


@dataclass(frozen=True)
class _StoredFacts:
    """What is known of the files beside a table in an object store."""

    store: Store
    size: int  # where in a row it stands; -1: nowhere
    etag: int
    files: Mapping[str, StoredFile]  # by path, where the table does not tell

    @staticmethod
    def find(store: Store, header: Sequence[str]) -> _StoredFacts:
        """From the table's columns, or from the store's listing."""
        names = [name.strip().lower() for name in header]
        size, etag = (names.index(name) if name in names else -1 for name in ("size", "etag"))
        return _StoredFacts(store, size, etag, {} if size >= 0 else store.files())

    def of(self, path: str, cells: Sequence[str], what: str) -> tuple[int, int]:
        """Bytes and stamp of a file; zeros where there is none."""
        if self.size < 0:
            file = self.files.get(path)
            return (file.size, etag_stamp(file, path)) if file else (0, 0)
        if not re.fullmatch(r"\d{1,15}", cells[self.size].strip()):
            raise UsageError(f"{what}: {cells[self.size]!r} in the column size is no number of bytes")
        file = StoredFile(int(cells[self.size]), cells[self.etag].strip().strip('"') if self.etag >= 0 else "")
        return file.size, etag_stamp(file, path)


class _Row(NamedTuple):
    """One row of a table; None for a column that the table does not have."""

    path: str
    label: str
    split: str | None = None
    group: str | None = None


Line = tuple[int, Sequence[str]]  # number and cells


def scan_table(
    path: Path, options: TableOptions, on_progress: Callable[[int], None], store: Store | None = None
) -> Sources:
    """The images that a table lists; paths are relative to its folder.

    Args:
      store: the folder of an object store that the table, now at `path`, and its images lie in. A column size, and one
        called etag, spare its listing.

    Raises:
      UsageError: a column is missing, a row cannot be used, or no path exists.
    """
    what = f"--source={store.url}/{path.name}" if store else f"--source={path}"
    lines = _parquet_lines(path) if path.suffix.lower() == ".parquet" else _text_lines(path)
    header = next(lines)[1]
    columns = _Columns.find(header, options, what)
    if path.suffix.lower() == ".parquet":
        _refuse_images(path, columns.path, what)
        if columns.label >= 0 and not options.labels.kind:
            columns = replace(columns, names=_class_label_names(path, header[columns.label], what))
            options = replace(options, labels=replace(options.labels, names=options.labels.names or columns.names))
    if not columns.classes and options.labels.kind == "onehot":
        options = replace(options, labels=replace(options.labels, kind="index"))
    facts = _StoredFacts.find(store, header) if store else None
    scan = _TableScan(path, options, what, facts)
    for number, cells in lines:
        if not len(scan.builder):
            columns = columns.for_first(cells)
        scan.add(number, columns.row(number, cells), cells)
        if len(scan.builder) % 10_000 == 0:
            on_progress(len(scan.builder))
    return scan.finish([*columns.notes, *columns.never_set(scan.labels)], header)


@dataclass(eq=False)
class _TableScan:
    """Collects rows."""

    path: Path
    options: TableOptions
    what: str
    facts: _StoredFacts | None = None  # of a table in an object store
    builder: SourcesBuilder = field(default_factory=SourcesBuilder)
    folders: dict[bytes, int] = field(default_factory=dict)
    labels: dict[str, int] = field(default_factory=dict)
    splits: dict[str, int] = field(default_factory=dict)
    spelled: dict[str, int] = field(default_factory=dict)  # number of the split, by each way it is written
    exist: int = 0
    first: Sequence[str] = ()  # cells of the first row

    @property
    def folder(self) -> str:
        """That paths are relative to."""
        return self.facts.store.url if self.facts else str(self.path.parent)

    def add(self, line: int, row: _Row, cells: Sequence[str]) -> None:
        """One row, checked."""
        self.first = self.first or cells
        split, label = self._split(line, row), -1
        if not row.path:
            raise UsageError(f"{self.what}, row {line}: path and label must not be empty")
        if not (row.split in self.options.unlabelled and row.split):
            if not row.label:
                hint = f"; --unlabelled={row.split} converts that split without labels" if row.split else ""
                raise UsageError(f"{self.what}, row {line}: path and label must not be empty{hint}")
            label = self.labels.setdefault(row.label, len(self.labels))
        path = os.fsencode(self._relative(line, self.options.path_format.replace("{}", row.path)))
        size, stamp = self._size_and_stamp(line, path, cells)
        if not stamp and b"\\" in path and self._size_and_stamp(line, slashes := path.replace(b"\\", b"/"), cells)[1]:
            path, (size, stamp) = slashes, self._size_and_stamp(line, slashes, cells)  # written on Windows
        if self.options.exclusions.leaves_out(path):
            return
        self.exist += stamp > 0
        folder, name = os.path.split(path)
        if folder not in self.folders:
            self.folders[folder] = self.builder.enter(folder)
        place = Place(0) if self.facts else None
        self.builder.add(self.folders[folder], name, label, split, size, stamp, place)
        if row.group is not None:
            self.builder.group.append(0 if row.group in NOTHING else hash64(row.group.encode()))

    def _relative(self, line: int, path: str) -> str:
        """A row's path, relative to the table's folder."""
        if not _ADDRESS.match(path):
            return path
        if self.facts and path.startswith(f"{self.facts.store.url}/"):
            return path.removeprefix(f"{self.facts.store.url}/")
        if path.lower().startswith("file:"):
            try:
                return local_path(path, "any")
            except ValueError as error:
                raise UsageError(f"{self.what}, row {line}: {path} {error}") from None
        remedy = "download the images, and list their paths"
        if is_remote(path):
            remedy = "put the table into the store, into a folder above all images"
        raise UsageError(f"{self.what}, row {line}: {path} does not lie below the table's folder; {remedy}")

    def _size_and_stamp(self, line: int, path: bytes, cells: Sequence[str]) -> tuple[int, int]:
        """0 and 0 where no file is, as its worker will say."""
        if self.facts:
            return self.facts.of(path.decode(), cells, f"{self.what}, row {line}")
        try:
            facts = os.stat(os.path.join(os.fsencode(self.path.parent), path))
        except (OSError, ValueError):
            return 0, 0
        return (facts.st_size, file_stamp(facts)) if stat.S_ISREG(facts.st_mode) else (0, 0)

    def _split(self, line: int, row: _Row) -> int:
        """Number of a row's split."""
        if row.split is None:
            return -1
        if row.split not in self.spelled:
            if not is_split_name(row.split) or row.split.lower() in _TRUTH or row.split in NOTHING:
                raise UsageError(
                    f"{self.what}, row {line}: {row.split!r} is no split's name, which is made of letters, digits and "
                    "_, a letter first; write train, validation or test there, or give the column another name to "
                    "leave it out"
                )
            name = check_split(row.split, self.splits, f"{self.what}, row {line}", self.options.labels)
            if len(self.splits) == 100:
                raise UsageError(f"{self.what}: the column split has more than 100 values; is it another column?")
            self.spelled[row.split] = self.splits.setdefault(name, len(self.splits))
        return self.spelled[row.split]

    def finish(self, notes: Sequence[str], header: Sequence[str] = ()) -> Sources:
        """All rows; at least one of them is a file."""
        if not len(self.builder):
            raise UsageError(f"{self.what}: the table has no rows")
        if not self.exist:
            rows = range(0, len(self.builder), -(-len(self.builder) // _TRIED))
            raise UsageError(
                f"{self.what}: none of its {count(len(self.builder), 'path')} exists (the first is "
                f"{self._path(0)}); paths are relative to the table's folder, {self.folder}"
                + (
                    self._column_hint(header)
                    or _format_hint(
                        self.path.parent, [os.fsdecode(self._bytes(row)) for row in rows], self.options.path_format
                    )
                )
            )
        repeated = self._repeated()
        if len(self.labels) == 1 < len(self.builder) and not self.options.labels.names:
            repeated.append(f"every row has the label {next(iter(self.labels))!r}")  # as Kaggle's sample_submission.csv
        splits = list(self.splits)
        missing = [name for name in self.options.unlabelled if name not in splits]
        if missing:
            raise UsageError(f"--unlabelled={missing[0]}: the table has the splits {shorten_list(splits) or 'of none'}")
        places = label_places(self.builder, self.labels, splits)
        order = order_labels(list(self.labels), self.options.labels, self.what, places=places)
        return self.builder.finish(
            self.folder, order.names, splits, order.relabel,
            [*notes, *repeated, *split_notes(splits), *self._splits_in_paths(), *self._other_folders(),
             *self._parted_groups(), *order.notes],
            unlabelled=[name for name in splits if name in self.options.unlabelled],
            origins=(Origin(self.facts.store.url, STORE),) if self.facts else (),
        )  # fmt: skip

    def _column_hint(self, header: Sequence[str]) -> str:
        """Another column that holds a path that exists."""
        for name, cell in zip(header, self.first, strict=False):
            if name.strip() and cell.strip() and os.path.isfile(self.path.parent / cell.strip()):
                return f"; those in the column {name.strip()!r} do: use --path_column={shlex.quote(name.strip())}"
        return ""

    def _splits_in_paths(self) -> list[str]:
        """A note on folders that are splits by name in a table that tells none."""
        parts = {part for folder in self.folders for part in path_text(folder).split("/")} if not self.splits else ()
        named = {part: rank for part in parts if (rank := split_rank(part)) is not None}
        if len(set(named.values())) < 2:
            return []
        return [
            f"paths lie in the folders {shorten_list(sorted(named))}, but no column tells splits, so that images of "
            "both are mixed; add a column split to keep them apart"
        ]

    def _other_folders(self) -> list[str]:
        """Notes on rows whose path lies in the folder of another class, or of another split."""
        labels, splits = list(self.labels), list(self.splits)
        parts = [set(path_text(folder).split("/")) for folder in self.builder.folders]
        folder, label, split = (
            np.array(getattr(self.builder, name), np.int64) for name in ("folder", "label", "split")
        )
        keys = (folder * (len(labels) + 1) + label) * (len(splits) + 1) + split
        _, firsts, rows = np.unique(keys, return_index=True, return_counts=True)
        others: dict[str, list[tuple[int, int, str]]] = {"class": [], "split": []}
        for first, many in zip(firsts.tolist(), rows.tolist(), strict=True):
            inside = parts[folder[first]]
            name = labels[label[first]] if label[first] >= 0 else ""
            if name and name not in inside and not self.labels.keys().isdisjoint(inside):
                others["class"].append((first, many, name))
            name = splits[split[first]] if split[first] >= 0 else ""
            ranks = {rank for part in inside if (rank := split_rank(part)) is not None}
            if ranks and split_rank(name) not in {*ranks, None}:
                others["split"].append((first, many, name))
        return [
            f"{count(sum(many for _, many, _ in found), 'row')} with a path in the folder of another {kind}, e.g. "
            f"{self._path(min(found)[0])} in {kind} {min(found)[2]!r}"
            for kind, found in others.items()
            if found
        ]

    def _parted_groups(self) -> list[str]:
        """A note on groups that the table itself puts into several splits."""
        if not self.builder.group or not self.splits:
            return []
        rows = np.array(self.builder.group, np.uint64)
        pairs = np.unique(
            np.stack([rows, np.array(self.builder.split, np.int64).astype(np.uint64)], 1)[rows > 0], axis=0
        )
        groups, splits = np.unique(pairs[:, 0], return_counts=True)
        parted = groups[splits > 1]
        if not len(parted):
            return []
        first = int(np.flatnonzero(np.isin(rows, parted))[0])
        return [f"{count(len(parted), 'group')} of the table in several splits, e.g. that of {self._path(first)}"]

    def _repeated(self) -> list[str]:
        """A note on files that several rows list. Raises UsageError where such rows have different labels."""
        stamps = np.array(self.builder.stamp, np.uint64, copy=None)
        ordered = np.sort(stamps)
        several = ordered[1:][(ordered[1:] == ordered[:-1]) & (ordered[1:] > 0)]
        first: dict[int, int] = {}
        for row in np.flatnonzero(np.isin(stamps, several)).tolist():
            labels = [self.builder.label[number] for number in (first.setdefault(int(stamps[row]), row), row)]
            if labels[0] != labels[1] and min(labels) >= 0:
                one, other = (list(self.labels)[label] for label in labels)
                raise UsageError(
                    f"{self.what}: {self._path(row)} is listed with the labels {one!r} and {other!r}; shardline takes "
                    "one label an image, so keep one row of each"
                )
        if not len(several):
            return []
        rows = f"{count(len(several), 'row')} {'lists' if len(several) == 1 else 'list'}"
        return [f"{rows} a file that another row lists, e.g. {self._path(min(first.values()))}"]

    def _path(self, row: int) -> str:
        return path_text(self._bytes(row))

    def _bytes(self, row: int) -> bytes:
        start = self.builder.ends[row - 1] if row else 0
        name = bytes(self.builder.names[start : self.builder.ends[row]])
        return os.path.join(self.builder.folders[self.builder.folder[row]], name)


def _format_hint(folder: Path, values: Sequence[str], given: str) -> str:
    """What would find the first path, and the others: a --path_format, or another way to write it."""
    value = values[0]
    if given != "{}":
        return ""
    if os.path.isdir(folder / value):
        return f"; {value} is a folder: list the images in it, or give its folder as --source"
    if (decoded := unquote(value)) != value and os.path.isfile(folder / decoded):
        return f"; {decoded} does: write the paths without percent signs"
    parts = value.replace("\\", "/").split("/")
    for tail in ("/".join(parts[start:]) for start in range(1, len(parts))):
        if os.path.isfile(folder / tail):
            return f"; {tail} does: write the paths from the table's folder on"
    with suppress(OSError, ValueError):  # ValueError: of names that no folder can have
        beside = os.listdir(os.path.dirname(folder / value))
        if name := next((name for name in beside if similarity_key(name) == similarity_key(parts[-1])), ""):
            found = os.path.join(os.path.dirname(value), name)
            return f"; {found} does: write names in the case and Unicode form that they have on disk"
    try:
        prefixes = ["", *sorted(f"{entry.name}/" for entry in os.scandir(folder) if entry.is_dir())[:100]]
    except OSError:
        return ""
    suffixes = ("", *map(os.fsdecode, IMAGE_SUFFIXES), ".JPEG", ".JPG")
    ends = [(prefix, suffix) for prefix in prefixes for suffix in suffixes]
    fitting = [pair for pair in ends if os.path.isfile(folder / value.join(pair))]  # also of names no file can have
    files, forms = (shorten_list(map(middle.join, fitting)) for middle in (value, "{}"))
    if len(fitting) > 1:  # Kaggle's train/1.png and test/1.png, or images and their masks
        return (
            f"; {files} do: write the folders into the paths, or use the one of --path_format={forms} that the labels "
            "are of"
        )
    if fitting:
        named = (value.join(fitting[0]) for value in values)
        if lost := next((name for name in named if not os.path.isfile(folder / name)), ""):
            return (
                f"; {files} does, and {lost} does not: write into each path the folder that its image lies in, or, if "
                f"images are missing, use --path_format='{forms}'"
            )
        return f"; {files} does: use --path_format='{forms}'"
    return "; --path_format='FOLDER/{}.jpg' says what they are made of"


# ----------------------------------------------------------------------------------------------- columns


@dataclass(frozen=True)
class _Columns:
    """Where in a row its parts stand."""

    what: str
    path: int
    label: int  # -1: told by the columns of `classes`
    split: int
    group: int
    classes: Mapping[str, int]  # of a table with a column for each class
    lists: bool  # labels are lists of 0 and one 1
    header: Sequence[str]
    doubtful: int = -1  # called as one of splits may be, and none by its first row
    telling: str = ""  # a column of another name that tells splits by its first row
    names: tuple[str, ...] = ()  # of classes, where labels are their numbers

    @property
    def notes(self) -> list[str]:
        """Which columns were read under other names, and which were not."""
        places = {"path": self.path, "label": self.label, "split": self.split, "group": self.group}
        names = {part: self.header[i].strip() for part, i in places.items() if i >= 0}
        read = ", ".join(f"column {name!r} as {part}" for part, name in names.items() if name.lower() != part)
        rest = [name.strip() for i, name in enumerate(self.header) if name.strip() and i not in places.values()]
        left_out = f"left out the {'column' if len(rest) == 1 else 'columns'} {shorten_list(rest)}"
        if self.telling in rest:
            left_out += f"; if {self.telling} tells splits, call that column split"
        elif telling := next((name for name in rest if _TELLS_SPLITS.fullmatch(name.lower())), ""):
            left_out += f"; if {telling} tells splits, write train, validation or test into a column split"
        if self.label >= 0 and (named := next((name for name in rest if _NAMED.fullmatch(name.lower())), "")):
            left_out += f"; if {named} has the names of the classes, use --label_column={shlex.quote(named)}"
        if self.group < 0 and (groups := [name for name in rest if _GROUPS.fullmatch(name.lower())]):
            left_out += f"; if images of one {groups[0]} belong into one split, call that column group"
        named = f"called the classes as the table's ClassLabel does ({shorten_list(self.names, 3)})"
        return [f"read {read}"] * bool(read) + [left_out] * bool(rest and not self.classes) + [named] * bool(self.names)

    def never_set(self, labels: Container[str]) -> list[str]:
        """A note on columns that would be classes if a row had a 1 there."""
        never = [name for name in self.classes if name not in labels]
        return [
            f"no row sets {shorten_list(never)}, so {'it is no class' if len(never) == 1 else 'they are no classes'}"
        ] * bool(never)

    @property
    def width(self) -> int:
        """How many columns a row needs."""
        return 1 + max(self.path, self.label, self.split, self.group, *self.classes.values())

    @staticmethod
    def find(header: Sequence[str], options: TableOptions, what: str) -> _Columns:
        """The columns, by name. Raises UsageError that says which flag helps."""
        names = [name.strip().lower() for name in header]
        found = {part: _position(names, options, part) for part in NAMES}
        check_columns(names, [i for i in found.values() if i >= 0], what)
        shown = f"it is {','.join(header)[:80]!r}"
        if found["path"] < 0:
            raise UsageError(
                f"{what}: no column 'path'; the first line must name the columns path and label, and may name split "
                f"and group; {shown}; --path_column and --label_column name others"
            )
        classes: dict[str, int] = {}
        if options.labels.kind == "onehot" and not options.label_column:
            taken = {found[part] for part in ("path", "split", "group")}
            columns = [i for i in range(len(names)) if i not in taken and names[i] not in _INDEX]
            classes = {header[i].strip(): i for i in columns}
            if len(classes) < len(columns):
                again = [header[i].strip() for i in columns if i not in classes.values()]
                raise UsageError(f"{what}: two columns are called {again[0]!r}; rename one")
        elif found["label"] < 0:
            raise UsageError(
                f"{what}: no column 'label'; the first line must name the columns path and label, and may name split "
                f"and group; {shown}; --label_column names another, --label_kind=onehot takes a column for each class"
            )
        return _Columns(
            what, found["path"], -1 if classes else found["label"], found["split"], found["group"], classes,
            options.labels.kind == "onehot" and not classes, header,
        )  # fmt: skip

    def for_first(self, cells: Sequence[str]) -> _Columns:
        """The same, but for a column that is called as one of splits may be, and is none by what it holds."""
        if self.split < 0:
            named = zip(self.header, cells, strict=False)
            return replace(
                self, telling=next((name.strip() for name, cell in named if split_rank(cell) is not None), "")
            )
        if self.header[self.split].strip().lower() == "split" or len(cells) <= self.split:
            return self
        return self if split_rank(cells[self.split]) is not None else replace(self, split=-1, doubtful=self.split)

    def row(self, line: int, cells: Sequence[str]) -> _Row:
        """The parts of one row."""
        if len(cells) < self.width:
            raise UsageError(f"{self.what}, line {line}: {count(len(cells), 'column')}, expected {self.width} or more")
        if any(map(str.strip, cells[len(self.header) :])):
            raise UsageError(
                f"{self.what}, line {line}: {len(cells)} columns, but the first line names {len(self.header)}; a value "
                "that holds what separates columns needs quotes around it"
            )
        if cells[self.path] == self.header[self.path] and list(cells[: len(self.header)]) == list(self.header):
            raise UsageError(f"{self.what}, line {line}: the first line again; remove it")
        if self.doubtful >= 0 and split_rank(cells[self.doubtful]) is not None:
            raise UsageError(
                f"{self.what}, row {line}: column {self.header[self.doubtful].strip()!r} holds "
                f"{cells[self.doubtful]!r}, but no split in the first row; if it tells splits, name one in each row, "
                "if not, give it another name to leave it out"
            )
        label = self._hot(line, cells) if self.classes else cells[self.label].strip()
        if label.isdecimal() and len(label) < 10 and int(label) < len(self.names):
            label = self.names[int(label)]
        if self.lists:
            label = _hot_number(label, f"{self.what}, row {line}")
        optional = (cells[i].strip() if i >= 0 else None for i in (self.split, self.group))
        return _Row(cells[self.path].strip(), label, *optional)

    def _hot(self, line: int, cells: Sequence[str]) -> str:
        """The class whose column is 1; the others have to be 0."""
        hot = []
        for name, column in self.classes.items():
            try:
                cell = cells[column].strip().lower()
                value = _HOT[cell] if cell in _HOT else float(cell)
            except ValueError:
                value = -1
            if value not in (0, 1):
                raise UsageError(
                    f"{self.what}, row {line}: {cells[column]!r} in column {name!r} is not 0 or 1; with "
                    "--label_kind=onehot each column but path, split and group is a class, unless --label_column names "
                    "one that holds lists"
                )
            if value:
                hot.append(name)
        if len(hot) > 1:
            raise UsageError(
                f"{self.what}, row {line}: {shorten_list(hot)} are set; shardline takes one label an image"
            )
        return hot[0] if hot else ""


def _hot_number(cell: str, what: str) -> str:
    """Where the one 1 of a list stands; "" for an empty cell."""
    values = re.findall(r"[^\s,;\[\](){}]+", cell)
    hot = [number for number, value in enumerate(values) if value in ("1", "1.0", "1.")]
    if values and (len(hot) != 1 or len(set(values)) > 2):
        raise UsageError(
            f"{what}: {cell[:80]!r} is no list of zeros and a single 1; shardline takes one label an image"
        )
    return str(hot[0]) if hot else ""


def _position(names: Sequence[str], options: TableOptions, part: str) -> int:
    """Where a part of a row stands; -1 for nowhere. Raises UsageError when a flag names a column that is not there."""
    given = {"path": options.path_column, "label": options.label_column}.get(part, "")
    if given:
        if given.strip().lower() not in names:
            raise UsageError(f"--{part}_column={given}: the table has the columns {', '.join(names)[:80]}")
        return names.index(given.strip().lower())
    return next((names.index(name) for name in NAMES[part] if name in names), -1)


# ------------------------------------------------------------------------------------------------- lines


def _text_lines(path: Path) -> Iterator[Line]:
    """The header, then each row, of at least as many cells."""
    what = f"--source={path}"
    with open(path, "rb") as file:
        start = file.read(4)
    encoding = "utf-16" if start[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    if start[::2] == b"\0\0" or start[1::2] == b"\0\0":  # of letters, without the mark that should be there
        encoding = "utf-16-be" if start[0] == 0 else "utf-16-le"
    if start == b"PK\3\4":
        raise UsageError(f"{what} is a spreadsheet or an archive and no text; save it as .csv")
    with open(path, newline="", encoding=encoding) as file:
        try:
            first, above = file.readline(), 1
            while first and not first.strip():
                first, above = file.readline(), above + 1
            if told := re.fullmatch(r'"?sep=(.)"?\s*', first):  # Excel's
                first, above = file.readline(), above + 1
            delimiter = told[1] if told else _delimiter(first, path)
            reader = csv.reader(chain([first], file), delimiter=delimiter, strict=True, skipinitialspace=True)
            yield above, next(reader, [])
            yield from ((reader.line_num + above - 1, cells) for cells in reader if any(map(str.strip, cells)))
        except UnicodeDecodeError as error:
            raise UsageError(f"{what} is not UTF-8 ({error.reason}); save it as UTF-8") from None
        except csv.Error as error:
            raise UsageError(f"{what}, line {reader.line_num + above - 1}: {error}") from None


def _delimiter(header: str, path: Path) -> str:
    """What stands between the names of the columns."""
    if path.suffix.lower() in (".tsv", ".tab") and "\t" in header:
        return "\t"
    known = {name for names in NAMES.values() for name in names}
    pieces = {mark: [name.strip(' "\r\n').lower() for name in header.split(mark)] for mark in _DELIMITERS}
    return max(_DELIMITERS, key=lambda mark: (len(known & set(pieces[mark])), len(pieces[mark])))


def _parquet_lines(path: Path) -> Iterator[Line]:
    """The same of a .parquet file."""
    import pyarrow.parquet as parquet  # only for such a table: a conversion's start should stay instant

    with _readable(f"--source={path}"):
        file = parquet.ParquetFile(path)
        yield 0, file.schema_arrow.names
        line = 0
        for batch in file.iter_batches(10_000):
            columns = [column.to_pylist() for column in batch.columns]
            for cells in zip(*columns, strict=True):
                line += 1
                yield line, list(map(_as_text, cells))


def check_columns(names: Sequence[str], used: Iterable[int], what: str) -> None:
    """Refuse a first line in which a column that is used has the name of another one."""
    if twice := next((names[i] for i in used if names.count(names[i]) > 1), ""):
        raise UsageError(f"{what}: two columns are called {twice!r}; rename one")


@contextmanager
def _readable(what: str) -> Iterator[None]:
    """Turn what Arrow raises for a damaged file into one line that names it."""
    import pyarrow

    try:
        yield
    except (pyarrow.ArrowException, OSError, UnicodeError) as error:
        if isinstance(error, MemoryError) or getattr(error, "errno", None):  # the machine's
            raise
        line = " ".join(str(error).split())[:200]
        raise UsageError(f"{what} is no .parquet, or a damaged one ({line}); write or copy it again") from None


def _class_label_names(path: Path, column: str, what: str) -> tuple[str, ...]:
    """The names that Hugging Face's datasets keep in a .parquet of the classes whose numbers a column has."""
    import pyarrow.parquet as parquet  # only for such a table

    with _readable(what):
        written = (parquet.read_schema(path).metadata or {}).get(b"huggingface", b"{}")
    try:
        names = list(parse_json(written.decode())["info"]["features"][column]["names"])
        check_names(names, f"{what}, column {column!r}", "rename it in the dataset's ClassLabel")
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return ()
    return tuple(names)


def _refuse_images(path: Path, column: int, what: str) -> None:
    """Datasets of Hugging Face have the images themselves in the column `image`."""
    import pyarrow  # only for such a table
    import pyarrow.parquet as parquet

    with _readable(what), parquet.ParquetFile(path) as file:
        field = file.schema_arrow.field(column)
        nested = pyarrow.types.is_nested(field.type)
        rows = None if nested else next(file.iter_batches(1, columns=[field.name]), None)
        first = rows.to_pylist()[0][field.name] if rows else None
    if nested or (isinstance(first, bytes) and sniff(first)):
        raise UsageError(
            f"{what}: column {field.name!r} holds {str(field.type)[:40]} and no paths; write its images into files, "
            "and their paths and labels into a .csv, and give that"
        )


def _as_text(value: object) -> str:
    if isinstance(value, bytes):
        return value.decode("utf-8", "backslashreplace")
    return "" if value is None else str(value)
